//! Debian roots by mmdebstrap, from the package mirror that apt on this machine uses.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{FlockOperation, flock};

use super::Succeed;

/// A Debian root of the minimal packages and these (separated by commas) as an archive, made once
/// and kept with the build under `name`: whoever names the same packages gives the same name.
pub(crate) fn debian(name: &str, packages: &str) -> PathBuf {
    let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("debian-{name}.tar"));
    // Tests that want the same at the same time make it once.
    let lock = File::create(kept.with_extension("lock")).expect("a lock can be made");
    flock(&lock, FlockOperation::LockExclusive).expect("it is ours in the end");
    if !kept.exists() {
        let part = kept.with_extension("part.tar");
        Command::new("mmdebstrap")
            .arg("--variant=minbase")
            .arg(format!("--include={packages}"))
            .arg("bookworm")
            .arg(&part)
            .succeed();
        fs::rename(&part, &kept).expect("the archive was made");
    }
    kept
}
