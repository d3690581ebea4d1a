//! The init that application containers with `init=yes` have: `sys/init.rs`, as bytes.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// The program; empty on an architecture that it is not written for.
const PROGRAM: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/init"));

/// Where a container sees it: on a tmpfs, so that its root keeps no trace.
pub(super) const PLACE: &str = "/dev/init";

/// Whether there is one here.
pub(super) fn is_there() -> bool {
    !PROGRAM.is_empty()
}

/// Writes it to `file`, for one container.
pub(super) fn write(file: &Path) -> io::Result<()> {
    fs::write(file, PROGRAM)?;
    fs::set_permissions(file, fs::Permissions::from_mode(0o555))
}

/// The words of a container's process 1 for a command.
pub(super) fn before(command: Vec<String>) -> Vec<String> {
    [PLACE.to_owned(), "--".to_owned()].into_iter().chain(command).collect()
}
