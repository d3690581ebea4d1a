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

/// Gives what is free of this process's memory back to the kernel: best once before a long wait.
pub fn give_back() {
    // SAFETY: the call looks only at blocks that nobody has, under the allocator's own locks.
    let _given = unsafe { libc::malloc_trim(0) };
}
