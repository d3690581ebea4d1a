//! Who holds a private directory to a size: the host's own file system where it can.
//!
//! A btrfs with quotas switched on does it for a subvolume, ext4 and xfs mounted with project
//! quotas for a directory. Both are exact, also for what passes through. Everywhere else the mount
//! itself holds the limit (see `fs`), and here is said why. Whatever is set is the kernel's and
//! survives a crash; setting it again is no harm.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};

use super::error::HostError;
use super::mount_table;

/// Magic number of statfs(2).
const BTRFS: u64 = 0x9123_683e;

/// The inode number of every btrfs subvolume's top.
const SUBVOLUME: u64 = 256;

/// Whether anybody changes a private directory while it is limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tree {
    /// Nobody does.
    AtRest,
    /// A container may.
    InUse,
}

/// Who holds the limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HeldBy {
    /// A quota group of btrfs: writing past it answers `EDQUOT`.
    Qgroup,
    /// A project quota of ext4 or xfs: `EDQUOT` or `ENOSPC`.
    ProjectQuota,
    /// Nobody here: the mount has to.
    Mount {
        /// What the host lacks.
        why: String,
    },
}

/// Makes the directory that is to become private, so that the host can hold it: a subvolume on a
/// btrfs whose quotas are on. One that exists stays as it is.
///
/// # Errors
/// When it cannot be made.
pub fn prepare(directory: &Path) -> Result<(), HostError> {
    let failed = || HostError::system::<io::Error>("make", directory);
    if directory.exists() {
        return Ok(());
    }
    let above = directory.parent().unwrap_or(directory);
    fs::create_dir_all(above).map_err(failed())?;
    if is_btrfs(above).map_err(failed())? && run("btrfs", &["qgroup", "show", "-f"], above).is_ok()
    {
        match run("btrfs", &["subvolume", "create"], directory) {
            Ok(()) => return Ok(()),
            Err(refusal) => tracing::info!(%refusal, "a plain directory instead of a subvolume"),
        }
    }
    fs::create_dir(directory).map_err(failed())
}

/// Holds what `directory` takes on the disk to `bytes`, or to nothing any more, and says who does.
///
/// `project` numbers the directory where a project quota holds it: one that no other has. `tree` says
/// whether the directory may be walked, as a project quota wants once.
///
/// # Errors
/// When the directory cannot be looked at. A host that refuses is no error.
pub fn limit(
    directory: &Path,
    bytes: Option<u64>,
    project: u32,
    tree: Tree,
) -> Result<HeldBy, HostError> {
    let failed = || HostError::system::<io::Error>("look at", directory);
    let metadata = fs::metadata(directory).map_err(failed())?;
    let refused = if is_btrfs(directory).map_err(failed())? {
        match qgroup(directory, metadata.ino(), bytes) {
            Ok(()) => return Ok(HeldBy::Qgroup),
            Err(why) => why,
        }
    } else {
        match project_quota(directory, bytes, project, tree).map_err(failed())? {
            Ok(()) => return Ok(HeldBy::ProjectQuota),
            Err(why) => why,
        }
    };
    Ok(HeldBy::Mount { why: refused })
}

fn is_btrfs(directory: &Path) -> io::Result<bool> {
    let kind = rustix::fs::statfs(directory)?.f_type;
    // The field's type differs between architectures; the magic number fits all of them.
    Ok(u64::try_from(kind).is_ok_and(|kind| kind == BTRFS))
}

fn qgroup(directory: &Path, inode: u64, bytes: Option<u64>) -> Result<(), String> {
    if inode != SUBVOLUME {
        return Err("the private directory is no subvolume of its btrfs".to_owned());
    }
    let most = bytes.map_or_else(|| "none".to_owned(), |bytes| bytes.to_string());
    run("btrfs", &["qgroup", "limit", &most], directory)
}

fn project_quota(
    directory: &Path,
    bytes: Option<u64>,
    project: u32,
    tree: Tree,
) -> io::Result<Result<(), String>> {
    let path = directory.canonicalize()?;
    let entries = mount_table::read()?;
    let holding = entries.iter().filter(|entry| path.starts_with(&entry.mountpoint));
    let Some(holding) = holding.max_by_key(|entry| entry.mountpoint.components().count()) else {
        return Ok(Err("its file system is not in the mount table".to_owned()));
    };
    let mounted = &holding.mountpoint;
    if !has_project_quotas(mounted)? {
        return Ok(Err(format!(
            "{} ({}) is mounted without project quotas (option prjquota)",
            mounted.display(),
            holding.fs_type
        )));
    }
    let kib = bytes.map_or(0, |bytes| bytes.div_ceil(1024)).to_string();
    let (number, mounted) = (project.to_string(), mounted.to_string_lossy());
    // By name: a tenant that changes the tree meanwhile would lead chattr(1) anywhere. What it made
    // since the start has the number of its directory.
    let numbered = match tree {
        Tree::AtRest => run("chattr", &["-R", "+P", "-p", &number], directory),
        Tree::InUse => Ok(()),
    };
    let set = numbered.and_then(|()| {
        run("setquota", &["-P", &number, "0", &kib, "0", "0"], mounted.as_ref().as_ref())
    });
    if let Err(why) = set {
        return Ok(Err(why));
    }
    // statfs(2) of a directory under a project quota shows the quota: believed when seen.
    let shown = rustix::fs::statvfs(directory)?;
    let shown = shown.f_blocks.saturating_mul(shown.f_frsize);
    if bytes.is_some_and(|bytes| shown > bytes.next_multiple_of(4096)) {
        return Ok(Err("the project quota was set and does not show".to_owned()));
    }
    Ok(Ok(()))
}

/// Whether the file system mounted at `mountpoint` says so in its options.
fn has_project_quotas(mountpoint: &Path) -> io::Result<bool> {
    let device = fs::metadata(mountpoint)?.dev();
    let number = format!("{}:{}", rustix::fs::major(device), rustix::fs::minor(device));
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    Ok(table.lines().any(|line| {
        let options = line.rsplit(' ').next().unwrap_or_default();
        line.split(' ').nth(2) == Some(&number)
            && options.split(',').any(|option| ["prjquota", "pquota"].contains(&option))
    }))
}

/// Runs a program on `path`; what it said if it refused.
fn run(program: &str, arguments: &[&str], path: &Path) -> Result<(), String> {
    let output = Command::new(program)
        .args(arguments)
        .arg(path)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("cannot run {program}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said.lines().find(|line| !line.trim().is_empty()).unwrap_or("it says nothing");
    Err(format!("{program}: {}", said.trim().trim_start_matches("ERROR: ")))
}
