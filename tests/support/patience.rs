//! Waiting for what nothing tells of.

use std::time::{Duration, Instant};

/// Longest wait before a test is called hung.
///
/// Only a test that fails ever waits as long. What takes a second on an idle machine takes half a
/// minute beside ten other programs and a disk whose every fsync takes a third of one.
pub(crate) const PATIENCE: Duration = Duration::from_secs(300);

/// Asks again until the answer is yes.
///
/// For the two things that keep a file system busy for a moment without anybody's doing: a program
/// that another thread of the test is just starting has every descriptor until it executes, and the
/// kernel frees the backing files of an ended FUSE connection only some time later.
pub(crate) fn again_until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "gave up waiting: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}
