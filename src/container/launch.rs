//! The fresh process in which a container is made or entered: `mica container-launch`.
//!
//! It has one thread and nothing but its standard streams, which are the container's. For making an
//! init it first takes a mount namespace of its own and stages there what the runtime shall see:
//! the root, its owners mapped, and what is bound into it. Nothing of that is ever in the host's mount
//! table, and all of it goes with the process.

use std::fs;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat, openat};
use rustix::mount::{
    MountFlags, MoveMountFlags, mount, mount_bind, mount_bind_recursive, move_mount,
};

use super::bundle::{Bundle, Device, Record};
use super::config::RuntimeChoice;
use super::destinations;
use super::exec;
use super::idmap::IdRange;
use super::places;
use super::runtime::{self, RuntimeError};
use super::spec::{ROOT, STAGE, USERS};
use crate::sys::mount::{add_attributes, detached_idmapped};
use crate::sys::namespace::{Alone, enter_own_mount_namespace, user_namespace};
use crate::sys::process::inherit_only_standard_streams;

/// What a launch is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Launch {
    /// Making the init.
    Create,
    /// Running the command of this name.
    Exec(String),
}

/// Does it; the answer is the process's exit status.
#[must_use]
pub fn run(directory: &Path, launch: &Launch) -> u8 {
    let bundle = Bundle::at(directory);
    let status = match launch {
        Launch::Create => match create(&bundle) {
            Ok(()) => 0,
            Err(error) => {
                // Standard error is the container's; the monitor reads it here.
                let message = error.word().map_or_else(|| super::sentence(&error), str::to_owned);
                match fs::write(bundle.file("failure"), message) {
                    Ok(()) => 1,
                    Err(_) => 2,
                }
            }
        },
        Launch::Exec(name) => match exec::run(&bundle, name) {
            Ok(status) => status,
            Err(error) => {
                complain(&super::sentence(&error));
                error.word().map_or(exec::OURS, exec::code_of)
            }
        },
    };
    u8::try_from(status).unwrap_or(u8::MAX)
}

/// Says why, to whoever ran the command.
pub(super) fn complain(message: &str) {
    // Nobody reads it: then nobody wants to know.
    let _told = writeln!(io::stderr().lock(), "mica: {message}");
}

fn create(bundle: &Bundle) -> Result<(), RuntimeError> {
    let here = |what| RuntimeError::system(what, bundle.directory());
    let record = bundle.record().map_err(here("read"))?;
    inherit_only_standard_streams().map_err(here("shield"))?;
    // Not the others: a runtime that fails kills whatever it finds in those.
    join_cgroups(&record.cgroups_ours).map_err(here("join the cgroups of"))?;
    enter_own_mount_namespace().map_err(here("make a mount namespace for"))?;
    stage(&record)?;
    match &record.runtime {
        RuntimeChoice::Embedded => runtime::create_embedded(bundle, &record),
        RuntimeChoice::External(program) => runtime::create_external(bundle, &record, program),
    }
}

/// The group of commands that come in from outside, where the container's own cannot hold them.
const VISITORS: &str = "mica-exec";

/// Puts this process into a cgroup, by its directories.
pub(super) fn join_cgroups(directories: &[PathBuf]) -> io::Result<()> {
    for directory in directories {
        match fs::write(directory.join("cgroup.procs"), "0") {
            // cgroup2: a group that shares controllers out, as systemd's does, holds nobody itself.
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                let own = directory.join(VISITORS);
                match fs::create_dir(&own) {
                    Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                        return Err(error);
                    }
                    _there => fs::write(own.join("cgroup.procs"), "0")?,
                }
            }
            done => done?,
        }
    }
    Ok(())
}

/// What runc wants to see while it enters a container: a directory where the root was.
pub(super) fn pretend_root() -> Result<(), RuntimeError> {
    let stage = Path::new(STAGE);
    let wrong = |error| RuntimeError::system("make a mount namespace at", stage)(error);
    enter_own_mount_namespace().map_err(wrong)?;
    empty_stage()
}

fn empty_stage() -> Result<(), RuntimeError> {
    let (stage, root) = (Path::new(STAGE), Path::new(ROOT));
    fs::create_dir_all(stage).map_err(RuntimeError::system("make", stage))?;
    mount("tmpfs", stage, "tmpfs", MountFlags::NOSUID, c"mode=755,size=1m")
        .map_err(|e| RuntimeError::system("mount", stage)(e.into()))?;
    fs::create_dir(root).map_err(RuntimeError::system("make", root))
}

fn make_device(place: &Path, device: Device, range: Option<IdRange>) -> io::Result<()> {
    let kind = if device.block { FileType::BlockDevice } else { FileType::CharacterDevice };
    let number = rustix::fs::makedev(device.major, device.minor);
    mknodat(CWD, place, kind, Mode::RUSR | Mode::WUSR, number)?;
    rustix::fs::chmod(place, Mode::from_raw_mode(0o666))?;
    if let Some(range) = range {
        std::os::unix::fs::chown(place, Some(range.first()), Some(range.first()))?;
    }
    Ok(())
}

/// The places in the root itself that something will be mounted on, and whether each is a directory.
fn wanted_places(record: &Record) -> Vec<(PathBuf, bool)> {
    let mut places: Vec<(PathBuf, bool)> =
        places::KERNELS.iter().map(|place| (PathBuf::from(place), true)).collect();
    for bind in &record.binds {
        // What lies in another mount is no matter of the root's.
        if !places.iter().any(|(place, _)| bind.target.starts_with(place)) {
            places.push((bind.target.clone(), bind.source.is_dir()));
        }
    }
    places
}

/// Puts the root and everything bound into it where the container's users may pass.
fn stage(record: &Record) -> Result<(), RuntimeError> {
    let at = RuntimeError::system;
    empty_stage()?;
    let (stage, root) = (Path::new(STAGE), Path::new(ROOT));
    places::make(&record.root, &wanted_places(record))
        .map_err(at("make a place for a mount in", &record.root))?;
    match record.range {
        None => {
            mount_bind(&record.root, root).map_err(|e| at("bind", &record.root)(e.into()))?;
        }
        Some(range) => {
            let alone = Alone::claim().map_err(at("copy a process for", &record.root))?;
            let made = user_namespace(&alone, range.first(), range.count());
            let users = made.map_err(at("make a user namespace for", &record.root))?;
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let source = openat(CWD, &record.root, flags, Mode::empty())
                .map_err(|e| at("open", &record.root)(e.into()))?;
            let tree = detached_idmapped(source.as_fd(), users.as_fd())
                .map_err(at("map the owners of", &record.root))?;
            move_mount(&tree, "", CWD, root, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
                .map_err(|e| at("mount", root)(e.into()))?;
            let place = Path::new(USERS);
            fs::File::create(place).map_err(at("make", place))?;
            mount_bind(format!("/proc/self/fd/{}", users.as_raw_fd()), place)
                .map_err(|e| at("bind", place)(e.into()))?;
        }
    }
    if !record.devices_in_root {
        restrict(root, libc::MOUNT_ATTR_NODEV).map_err(at("take the devices from", root))?;
    }
    destinations::check(root)?;
    for bind in &record.binds {
        let place = stage.join(&bind.name);
        if let Some(device) = bind.device {
            make_device(&place, device, record.range).map_err(at("make", &place))?;
            continue;
        }
        let metadata = fs::metadata(&bind.source).map_err(at("look at", &bind.source))?;
        let made = if metadata.is_dir() {
            fs::create_dir(&place)
        } else {
            fs::File::create(&place).map(drop)
        };
        made.map_err(at("make", &place))?;
        mount_bind_recursive(&bind.source, &place)
            .map_err(|e| at("bind", &bind.source)(e.into()))?;
        restrict(&place, attributes(&bind.options)).map_err(at("restrict", &bind.source))?;
    }
    Ok(())
}

/// What mount_setattr(2) calls these options of a mount.
fn attributes(options: &[String]) -> u64 {
    let attribute = |option: &String| match option.as_str() {
        "ro" => libc::MOUNT_ATTR_RDONLY,
        "nosuid" => libc::MOUNT_ATTR_NOSUID,
        "nodev" => libc::MOUNT_ATTR_NODEV,
        "noexec" => libc::MOUNT_ATTR_NOEXEC,
        _ => 0,
    };
    options.iter().map(attribute).fold(0, |all, one| all | one)
}

/// Restricts the mount at `place` and all mounts beneath it.
fn restrict(place: &Path, attributes: u64) -> io::Result<()> {
    let fd = openat(CWD, place, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    add_attributes(fd.as_fd(), attributes)
}
