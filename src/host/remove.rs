//! Removing trees that a tenant filled.

use std::io;
use std::path::Path;
use std::process::{Command, Stdio};

/// Removes `path` and all beneath it, by rm(1); not there is fine.
///
/// `std::fs::remove_dir_all` takes a descriptor and a stack frame for each level, and a tenant
/// nests as deep as it likes. What is mounted beneath stays, and is an error.
///
/// # Errors
/// What rm(1) says.
pub fn remove_tree(path: &Path) -> io::Result<()> {
    let done = Command::new("rm")
        .args(["-rf", "--one-file-system", "--"])
        .arg(path)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()?;
    if done.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&done.stderr);
    let said = said.lines().next().unwrap_or("it says nothing").trim_start_matches("rm: ");
    Err(io::Error::other(said.to_owned()))
}
