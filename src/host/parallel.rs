//! The same work on many things at once. Knows nothing of what they are, or what it is.

use std::collections::BTreeMap;

use parking_lot::Mutex;

/// More threads wait for one disk.
const MOST_THREADS: usize = 16;

/// Things that are worth a thread.
const THREADS_SHARE: usize = 8;

/// Does `work` on each of `things`, with as many threads as there are processors and work for; the
/// results are in the order of the things. Where the host has no more threads for this process,
/// the caller's own does it all.
pub(crate) fn each<T: Send, R: Send>(
    things: &mut [T],
    work: impl Fn(&mut T) -> R + Sync,
) -> Vec<R> {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = processors.min(MOST_THREADS).min(things.len().div_ceil(THREADS_SHARE)).max(1);
    if threads == 1 {
        return things.iter_mut().map(work).collect();
    }
    let size = things.len().div_ceil(threads).max(1);
    let parts = Mutex::new(things.chunks_mut(size).enumerate());
    let done = Mutex::new(BTreeMap::new());
    let run = || {
        loop {
            let next = parts.lock().next();
            let Some((at, part)) = next else { return };
            let results: Vec<R> = part.iter_mut().map(&work).collect();
            done.lock().insert(at, results);
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads {
            if let Err(error) = std::thread::Builder::new().spawn_scoped(scope, run) {
                tracing::debug!(%error, "no more threads");
                break;
            }
        }
        run();
    });
    done.into_inner().into_values().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_thing_is_worked_on_once_and_results_keep_their_order() {
        for count in [0, 1, 7, 8, 9, 100, 1001] {
            let mut things: Vec<usize> = (0..count).collect();
            let results = each(&mut things, |thing| {
                *thing += 1;
                *thing * 2
            });
            assert_eq!(things, (1..=count).collect::<Vec<_>>());
            assert_eq!(results, (1..=count).map(|thing| thing * 2).collect::<Vec<_>>());
        }
    }
}
