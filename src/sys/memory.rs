//! What the C library's allocator keeps of this process's memory.
#![allow(unsafe_code)]

/// Gets blocks of 8 MiB and more from the kernel one by one, from now on.
///
/// Freeing one such block teaches the allocator to take the next ones from its arenas, where it
/// writes zeroes over the first 132 KiB of each: what FUSE's buffers of 16 MiB take of their own is
/// then ten times what is ever used of them.
pub fn map_large_blocks() {
    const LARGE: libc::c_int = 8 << 20;
    // SAFETY: the call sets a number of the allocator's, under its own lock.
    let set = unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE) };
    if set != 1 {
        tracing::debug!("the allocator keeps its own threshold");
    }
}

/// Lets all threads of this process have one heap, which keeps little of what is freed.
///
/// A heap for each thread is for who allocates all the time; a mount process waits, and so does the
/// daemon. To be called before there are threads: a heap that is there stays.
pub fn keep_one_heap() {
    /// As much freed memory at the heap's end as the next large listing or read may want again.
    /// By itself the allocator keeps twice the largest block it ever gave back.
    const KEPT_BYTES: libc::c_int = 512 << 10;
    for (option, value) in [(libc::M_ARENA_MAX, 1), (libc::M_TRIM_THRESHOLD, KEPT_BYTES)] {
        // SAFETY: the call sets a number of the allocator's, under its own lock.
        let set = unsafe { libc::mallopt(option, value) };
        if set != 1 {
            tracing::debug!(option, "the allocator keeps its own heaps");
        }
    }
}

/// Gives what is free of this process's memory back to the kernel: best once before a long wait.
pub fn give_back() {
    // SAFETY: the call looks only at blocks that nobody has, under the allocator's own locks.
    let _given = unsafe { libc::malloc_trim(0) };
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes of private pages that this process has.
    fn private() -> usize {
        let statm = std::fs::read_to_string("/proc/self/statm").expect("procfs is mounted");
        let fields: Vec<usize> = statm.split(' ').filter_map(|field| field.parse().ok()).collect();
        (fields[1] - fields[2]) * 4096
    }

    #[test]
    fn what_was_freed_between_living_allocations_goes_back() {
        // Other tests of this process allocate too: far more than they do.
        let mut kept: Vec<Vec<u8>> = Vec::new();
        let mut freed: Vec<Vec<u8>> = Vec::new();
        for _ in 0..2000 {
            freed.push(vec![1; 60_000]);
            kept.push(vec![1; 16]);
        }
        drop(freed);
        give_back();
        let before = private();
        let again: Vec<Vec<u8>> = (0..2000).map(|_| vec![1; 60_000]).collect();
        let after = private();
        assert!(after > before + 60_000_000, "{before} and {after}: nothing had been given back");
        drop((again, kept));
    }
}
