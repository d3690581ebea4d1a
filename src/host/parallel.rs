//! The same work on many things at once.

/// Does `work` on each of `things`, with as many threads as there are processors; the results
/// are in the order of the things.
pub(crate) fn each<T: Send, R: Send>(
    things: &mut [T],
    work: impl Fn(&mut T) -> R + Sync,
) -> Vec<R> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(16);
    let size = things.len().div_ceil(threads).max(1);
    if things.len() <= 4 {
        return things.iter_mut().map(work).collect();
    }
    std::thread::scope(|scope| {
        let parts: Vec<_> = things
            .chunks_mut(size)
            .map(|part| scope.spawn(|| part.iter_mut().map(&work).collect::<Vec<R>>()))
            .collect();
        let join = |part: std::thread::ScopedJoinHandle<'_, Vec<R>>| {
            part.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        parts.into_iter().flat_map(join).collect()
    })
}
