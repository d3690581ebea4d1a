//! A private directory on a disk of its own that lies in a file.
//!
//! Holds a container to a size exactly, on any host, mapped pages too, for what a file system in a
//! file costs. The file is sparse: it takes what was ever written. After a crash the image is an
//! ext4 like any other and replays its journal when it is next mounted.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::error::HostError;
use super::mount_table;

/// Smallest that an ext4 with a journal is of use.
pub const LEAST_BYTES: u64 = 16 << 20;

/// Makes the image `file` with room for `bytes`, metadata of the file system included.
///
/// # Errors
/// A size below [`LEAST_BYTES`], a file that exists, what mkfs.ext4 says. Nothing is left then.
pub fn create(file: &Path, bytes: u64) -> Result<(), HostError> {
    let failed = || HostError::system::<io::Error>("make the disk image", file);
    if bytes < LEAST_BYTES {
        return Err(failed()(io::Error::other(format!("it takes {LEAST_BYTES} bytes at least"))));
    }
    let made = File::create_new(file).map_err(failed())?;
    let formatted = made.set_len(bytes).and_then(|()| {
        // No blocks are kept for root: in its own container everybody may be. The journal and
        // the tables are written when they are needed.
        let options = ["-q", "-F", "-m", "0", "-E", "nodiscard,lazy_itable_init=1"];
        run(Command::new("mkfs.ext4").args(options).arg(file))
    });
    formatted.and_then(|()| made.sync_all()).map_err(|error| {
        if let Err(error) = fs::remove_file(file) {
            tracing::warn!(file = %file.display(), %error, "an unfinished disk image stays");
        }
        failed()(error)
    })
}

/// Mounts the image on `directory`, which is made if it is missing; mounted there already, it stays.
///
/// # Errors
/// What mount(8) says.
pub fn mount(file: &Path, directory: &Path) -> Result<(), HostError> {
    let failed = || HostError::system::<io::Error>("mount the disk image on", directory);
    fs::create_dir_all(directory).map_err(failed())?;
    if device(directory).map_err(failed())?.is_some() {
        return Ok(());
    }
    let options = ["-t", "ext4", "-o", "loop,nodev,nosuid"];
    run(Command::new("mount").args(options).arg(file).arg(directory)).map_err(failed())
}

/// Unmounts it; mounted no more, nothing happens.
///
/// # Errors
/// `EBUSY` while a root is mounted from it.
pub fn unmount(directory: &Path) -> Result<(), HostError> {
    let failed = || HostError::system::<io::Error>("unmount the disk image on", directory);
    if device(directory).map_err(failed())?.is_none() {
        return Ok(());
    }
    rustix::mount::unmount(directory, rustix::mount::UnmountFlags::empty())
        .map_err(|errno| failed()(errno.into()))
}

/// Unmounts it, and if somebody still looks at it, as soon as nobody does; not mounted is fine.
///
/// # Errors
/// When the mount table cannot be read.
pub fn detach(directory: &Path) -> Result<(), HostError> {
    let failed = || HostError::system::<io::Error>("unmount the disk image on", directory);
    if device(directory).map_err(failed())?.is_none() {
        return Ok(());
    }
    rustix::mount::unmount(directory, rustix::mount::UnmountFlags::DETACH)
        .map_err(|errno| failed()(errno.into()))
}

/// The file system in an image, as its superblock says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Bytes that it takes of the file, its own metadata included.
    pub bytes: u64,
    /// Whether nobody was cut short in resizing it, and no error was found.
    pub sound: bool,
    /// Bytes at the end of a disk that may be too few to begin another group of blocks.
    spare_bytes: u64,
    group_bytes: u64,
}

impl Extent {
    /// Whether it takes all of a disk of so many bytes, as far as it can.
    #[must_use]
    pub fn fills(&self, bytes: u64) -> bool {
        let left = bytes.saturating_sub(self.bytes);
        let begun = bytes.checked_rem(self.group_bytes).unwrap_or(0);
        left == 0 || left == begun && left < self.spare_bytes || left < BLOCK_BYTES
    }
}

/// Largest block of an ext4: less than that is no room.
const BLOCK_BYTES: u64 = 4096;

/// Looks at the file system in the image `file`, which may be mounted on `directory`.
///
/// # Errors
/// A file that is not there, or holds no ext4.
pub fn extent(file: &Path, directory: &Path) -> Result<Extent, HostError> {
    let failed = || HostError::system::<io::Error>("look at the disk image", file);
    // While it is mounted the kernel writes the superblock back when it likes.
    let mounted = device(directory).map_err(failed())?;
    let source = mounted.as_deref().map_or(file, Path::new);
    let read = || {
        let mut superblock = [0; SUPERBLOCK_BYTES];
        File::open(source)?.read_exact_at(&mut superblock, SUPERBLOCK_AT)?;
        parse(&superblock).ok_or_else(|| io::Error::other("it holds no ext4"))
    };
    read().map_err(failed())
}

const SUPERBLOCK_AT: u64 = 1024;
const SUPERBLOCK_BYTES: usize = 1024;

/// Kernel documentation, "ext4 Data Structures and Algorithms", 4.1: the superblock.
fn parse(superblock: &[u8; SUPERBLOCK_BYTES]) -> Option<Extent> {
    const MAGIC: u64 = 0xEF53;
    /// `s_state`: an error was found, which resize2fs says too as long as it is not done.
    const ERROR: u64 = 2;
    /// `s_feature_incompat`: block numbers have 64 bits.
    const LARGE: u64 = 0x80;
    let number = |at: usize, bytes: usize| {
        let field = superblock.get(at..at.checked_add(bytes)?)?;
        Some(field.iter().rev().fold(0_u64, |number, byte| number << 8 | u64::from(*byte)))
    };
    if number(0x38, 2)? != MAGIC {
        return None;
    }
    let block_bytes = 1024_u64.checked_shl(u32::try_from(number(0x18, 4)?).ok()?)?;
    let high = if number(0x60, 4)? & LARGE == 0 { 0 } else { number(0x150, 4)? };
    let blocks = high << 32 | number(0x4, 4)?;
    // resize2fs(8) begins no group that has no room for its own metadata and fifty blocks more.
    let inodes = number(0x28, 4)?.checked_mul(number(0x58, 2)?)?.checked_div(block_bytes)?;
    let descriptors = number(0xCE, 2)?.checked_add(blocks.checked_div(number(0x20, 4)?)?)?;
    let spare = inodes.checked_add(descriptors)?.checked_add(64)?;
    Some(Extent {
        bytes: blocks.checked_mul(block_bytes)?,
        sound: number(0x3A, 2)? & ERROR == 0,
        spare_bytes: spare.checked_mul(block_bytes)?,
        group_bytes: number(0x20, 4)?.checked_mul(block_bytes)?,
    })
}

/// Gives the image more room, mounted on `directory` and in use.
///
/// # Errors
/// Less room than it has: take a new container and copy. What losetup and resize2fs say.
pub fn grow(file: &Path, directory: &Path, bytes: u64) -> Result<(), HostError> {
    let failed = || HostError::system::<io::Error>("resize the disk image", file);
    no_smaller(extent(file, directory)?.bytes, bytes).map_err(failed())?;
    let now = fs::metadata(file).map_err(failed())?.len();
    let Some(device) = device(directory).map_err(failed())? else {
        return Err(failed()(io::Error::other("it is not mounted")));
    };
    let resize_disk = |bytes| -> io::Result<()> {
        File::options().write(true).open(file)?.set_len(bytes)?;
        run(Command::new("losetup").arg("--set-capacity").arg(&device))
    };
    let grown = resize_disk(bytes.max(now))
        .and_then(|()| run(Command::new("resize2fs").arg(&device).arg(in_sectors(bytes))));
    grown.map_err(|error| {
        // Without CAP_SYS_RESOURCE the file system refuses; on a full host it may have taken a part
        // of the room, and keeps that.
        let taken = extent(file, directory).map_or(bytes, |extent| extent.bytes);
        if let Err(error) = resize_disk(now.max(taken)) {
            tracing::warn!(file = %file.display(), %error, "a disk image stays larger");
        }
        failed()(error)
    })
}

/// Gives the image more room, unmounted: any host does. What was cut short in doing so is finished.
///
/// The caller has seen that its file system takes no more than `bytes`.
///
/// # Errors
/// As [`grow`], and what e2fsck cannot put right by itself; nothing of what is in it is touched.
pub fn grow_at_rest(file: &Path, bytes: u64) -> Result<(), HostError> {
    let failed = || HostError::system::<io::Error>("resize the disk image", file);
    let image = File::options().read(true).write(true).open(file).map_err(failed())?;
    let resize = || -> io::Result<()> {
        await_rest(file)?;
        // It replays the journal, without which nobody resizes; 1: something was put right.
        let mut check = Command::new("e2fsck");
        check.args(["-f", "-p"]).arg(file).env("LC_ALL", "C").stdin(Stdio::null());
        let checked = check.output()?;
        if checked.status.code().is_none_or(|code| code > 1) {
            let said = String::from_utf8_lossy(&checked.stdout);
            let said = said.lines().map(str::trim).rfind(|line| !line.is_empty());
            return Err(io::Error::other(format!(
                "e2fsck cannot put it right by itself ({}); run e2fsck -f {} by hand",
                said.unwrap_or("it says nothing"),
                file.display()
            )));
        }
        let length = image.metadata()?.len();
        image.set_len(bytes.max(length))?;
        run(Command::new("resize2fs").arg(file).arg(in_sectors(bytes)))?;
        // What somebody who was cut short had made it longer.
        image.set_len(bytes)?;
        image.sync_all()
    };
    resize().map_err(failed())
}

/// How long a copy of the mounts may keep an image that was unmounted.
const PATIENCE: Duration = Duration::from_secs(30);

/// How often is looked whether one does.
const EVERY: Duration = Duration::from_millis(10);

/// Waits until no loop device has the image any more.
///
/// Whoever took a copy of the mount table while it was mounted, as a container that starts beside does for
/// a moment, has its file system in use: changed from outside, it would be lost.
fn await_rest(file: &Path) -> io::Result<()> {
    let until = Instant::now() + PATIENCE;
    loop {
        let mut losetup = Command::new("losetup");
        losetup.args(["--noheadings", "--output", "NAME", "--associated"]).arg(file);
        let output = losetup.env("LC_ALL", "C").stdin(Stdio::null()).output()?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            return Err(io::Error::other(said));
        }
        let devices = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        if devices.is_empty() {
            return Ok(());
        }
        if Instant::now() >= until {
            return Err(io::Error::other(format!(
                "it is still mounted in another mount namespace, from {devices}; end what keeps it there"
            )));
        }
        std::thread::sleep(EVERY);
    }
}

/// A size as resize2fs takes it exactly.
fn in_sectors(bytes: u64) -> String {
    format!("{}s", bytes / 512)
}

fn no_smaller(now: u64, bytes: u64) -> io::Result<()> {
    if bytes >= now {
        return Ok(());
    }
    Err(io::Error::other(format!("it has {now} bytes and cannot shrink")))
}

/// What is mounted exactly on `directory`; nothing on one that is not there.
fn device(directory: &Path) -> io::Result<Option<std::ffi::OsString>> {
    let path = match mount_table::canonical(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        path => path?,
    };
    let entry = mount_table::at(&path)?;
    Ok(entry.filter(|entry| entry.fs_type == "ext4").map(|entry| entry.source))
}

fn run(command: &mut Command) -> io::Result<()> {
    let output = command.env("LC_ALL", "C").stdin(Stdio::null()).output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    // The last line says what went wrong; before it some tell their version.
    let said = said.lines().map(str::trim).rfind(|line| !line.is_empty());
    let said = said.unwrap_or("it says nothing");
    Err(io::Error::other(said.to_owned()))
}
