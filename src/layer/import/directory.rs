//! Imports a live directory as one layer.
//!
//! The importing thread walks; workers open, read and store the files. A file that somebody
//! writes to meanwhile is read again, a few times, and is then an error: a layer never holds a
//! mixture of two states of one file.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{CWD, FileType, Mode, OFlags, Statx, openat, readlinkat};
use rustix::io::Errno;
use rustix::time::{ClockId, clock_gettime};

use super::exclude::Excludes;
use super::metadata::{Xattrs, check_symlink, check_xattrs, gid, printable, uid};
use super::progress::Note;
use super::walk::{Visit, device, kind, status, walk};
use super::whiteout::{self, Whiteout};
use super::workers::with_workers;
use super::xattrs::{self, Attributes, Subject};
use super::{ImportError, Session};
use crate::layer::{FileName, LayerBuilder, LayerPath, Metadata, NewContent, NewNode, Timestamp};
use crate::sys::sparse::hole_bytes;

/// How often a file that changes is read before it is an error.
const ATTEMPTS: u32 = 3;
/// A batch is handed over when it has so many files or bytes.
const BATCH_FILES: usize = 64;
const BATCH_BYTES: u64 = 4 << 20;

/// A regular file for a worker.
struct Job {
    path: LayerPath,
    dir: Arc<OwnedFd>,
    name: FileName,
    /// Device and inode, if the walk has other names of this file.
    linked: Option<(u64, u64)>,
}

type Done = Vec<(LayerPath, NewNode)>;

/// Opens a directory that is to be imported; a symbolic link to one is followed.
pub(super) fn open(path: &Path) -> Result<OwnedFd, ImportError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(CWD, path, flags, Mode::empty()).map_err(|errno| ImportError::Open {
        name: path.display().to_string(),
        source: errno.into(),
    })
}

/// Imports the directory `root`, called `name` in messages. Returns the manifest and the number
/// of names in it. With `whiteouts`, `.wh.` names hide what is below.
pub(super) fn import_directory(
    session: &Session<'_>,
    root: OwnedFd,
    name: &str,
    excludes: &Excludes,
    whiteouts: bool,
) -> Result<(Vec<u8>, u64), ImportError> {
    let mut builder = LayerBuilder::new();
    let mut names = 0_u64;
    let mut first_names: HashMap<(u64, u64), LayerPath> = HashMap::new();
    let mut links: Vec<(LayerPath, LayerPath)> = Vec::new();
    with_workers(
        session.threads,
        |batch: Vec<Job>| store_files(session, batch),
        |workers| {
            let mut batch = Vec::new();
            let mut batch_bytes = 0_u64;
            walk(session, root, name, excludes, |visit| {
                names += 1;
                session.progress.entry();
                session.check_nodes(builder.node_count() + links.len())?;
                let is_directory = kind(&visit.stat) == FileType::Directory;
                if whiteouts
                    && !is_directory
                    && let Some(name) = &visit.name
                    && let Some(whiteout) = whiteout::parse(name.as_bytes())
                {
                    return hide(session, &mut builder, &visit.path, whiteout);
                }
                let identity = (device(&visit.stat), visit.stat.stx_ino);
                let linked = !is_directory && visit.stat.stx_nlink > 1;
                if linked {
                    if let Some(first) = first_names.get(&identity) {
                        links.push((visit.path, first.clone()));
                        return Ok(());
                    }
                    first_names.insert(identity, visit.path.clone());
                }
                match (kind(&visit.stat), visit.name.clone()) {
                    (FileType::RegularFile, Some(name)) => {
                        batch_bytes = batch_bytes.saturating_add(visit.stat.stx_size);
                        let linked = linked.then_some(identity);
                        batch.push(Job { path: visit.path, dir: visit.dir, name, linked });
                        if batch.len() >= BATCH_FILES || batch_bytes >= BATCH_BYTES {
                            batch_bytes = 0;
                            workers.submit(std::mem::take(&mut batch), |done| {
                                put_all(&mut builder, done)
                            })?;
                        }
                    }
                    (_, _) => {
                        if let Some(node) = other_node(session, &visit)? {
                            builder.put(&visit.path, node)?;
                        }
                    }
                }
                Ok(())
            })?;
            workers.submit(batch, |done| put_all(&mut builder, done))?;
            workers.finish(|done| put_all(&mut builder, done))
        },
    )?;
    for (path, target) in links {
        // A first name that vanished before it was read takes its other names along.
        if builder.get(&target).is_some() {
            builder.hard_link(&path, &target)?;
        }
    }
    Ok((builder.finish()?, names))
}

fn hide(
    session: &Session<'_>,
    builder: &mut LayerBuilder,
    path: &LayerPath,
    whiteout: Whiteout,
) -> Result<(), ImportError> {
    let parent = path.parent().unwrap_or_default();
    match whiteout {
        Whiteout::Name(hidden) => builder.whiteout(&parent.join(hidden)),
        Whiteout::Opaque => builder.opaque(&parent),
        Whiteout::Bookkeeping => {
            session.progress.note(&Note::AufsFile(printable(&path.to_bytes())));
        }
        Whiteout::Invalid => return Err(ImportError::BadWhiteout(printable(&path.to_bytes()))),
    }
    Ok(())
}

fn put_all(builder: &mut LayerBuilder, done: Done) -> Result<(), ImportError> {
    for (path, node) in done {
        builder.put(&path, node)?;
    }
    Ok(())
}

fn store_files(session: &Session<'_>, batch: Vec<Job>) -> Result<Done, ImportError> {
    let mut done = Vec::with_capacity(batch.len());
    for job in batch {
        session.cancel.check()?;
        if let Some(node) = store_file(session, &job)? {
            done.push((job.path, node));
        } else {
            session.progress.note(&Note::Vanished(printable(&job.path.to_bytes())));
        }
    }
    Ok(done)
}

/// Stores one file; `None` if it is gone.
fn store_file(session: &Session<'_>, job: &Job) -> Result<Option<NewNode>, ImportError> {
    let bytes = job.path.to_bytes();
    let fail = |action| ImportError::file(action, &bytes);
    let changed = || ImportError::Changed { path: printable(&bytes), attempts: ATTEMPTS };
    let mut last = None;
    for _ in 0..ATTEMPTS {
        let file = match open_file(&job.dir, job.name.as_bytes()) {
            Ok(file) => file,
            Err(Errno::NOENT) if job.linked.is_none() => return Ok(None),
            // Another kind of file by now, or its first name is gone and the others are not.
            Err(Errno::LOOP | Errno::NOENT | Errno::NXIO) => return Err(changed()),
            Err(errno) => return Err(fail("open")(errno)),
        };
        let before = status(&file, b"").map_err(fail("stat"))?;
        let same = job.linked.is_none_or(|known| known == (device(&before), before.stx_ino));
        if kind(&before) != FileType::RegularFile || !same {
            return Err(changed());
        }
        let allocated = before.stx_blocks.saturating_mul(512);
        if last.is_none() {
            session.check_holes(&bytes, hole_bytes(before.stx_size, allocated))?;
        }
        let settled = is_settled(&before);
        let xattrs = attributes(session, &Subject::Open(file.as_fd()), &bytes)?;
        let put = session
            .sink
            .put_file(file.as_fd(), before.stx_size)
            .map_err(|source| ImportError::Content { path: printable(&bytes), source })?;
        let after = status(&file, b"").map_err(fail("stat"))?;
        let twice = last.replace(put.id) == Some(put.id);
        if put.len_bytes == before.stx_size && unchanged(&before, &after) && (settled || twice) {
            session.progress.read(put.len_bytes);
            session.progress.stored(put.len_bytes, put.hit);
            let content = NewContent::Regular {
                object: put.id,
                size: put.len_bytes,
                data_blocks: put.data_blocks,
            };
            let metadata = metadata(&before, &bytes)?;
            return Ok(Some(NewNode { metadata, xattrs, content }));
        }
    }
    Err(changed())
}

/// Reads without changing the access time where that is allowed, as tar and backups do.
fn open_file(dir: &OwnedFd, name: &[u8]) -> Result<OwnedFd, Errno> {
    let name = OsStr::from_bytes(name);
    // NONBLOCK: were it a fifo by now, nothing would wait.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    match openat(dir, name, flags | OFlags::NOATIME, Mode::empty()) {
        // Only the owner and root may.
        Err(Errno::PERM) => openat(dir, name, flags, Mode::empty()),
        result => result,
    }
}

/// Whether the next change of a file will show in its times. Before Linux 6.13 they move with
/// the timer tick only, 10 ms at most; what is younger is read until it is the same twice.
fn is_settled(stat: &Statx) -> bool {
    const TICK_NANOS: i128 = 20_000_000;
    let nanos = |secs: i64, nanos: i128| i128::from(secs) * 1_000_000_000 + nanos;
    let now = clock_gettime(ClockId::Realtime);
    let now = nanos(now.tv_sec, i128::from(now.tv_nsec));
    let changed = nanos(stat.stx_ctime.tv_sec, i128::from(stat.stx_ctime.tv_nsec));
    // A time in the future, from a clock that was set back since, says nothing of youth.
    !(0..TICK_NANOS).contains(&(now - changed))
}

fn unchanged(before: &Statx, after: &Statx) -> bool {
    let state = |stat: &Statx| {
        let (mtime, ctime) = (stat.stx_mtime, stat.stx_ctime);
        (stat.stx_size, mtime.tv_sec, mtime.tv_nsec, ctime.tv_sec, ctime.tv_nsec)
    };
    state(before) == state(after)
}

/// The node of anything but a regular file; `None` if it is gone.
fn other_node(session: &Session<'_>, visit: &Visit) -> Result<Option<NewNode>, ImportError> {
    let bytes = visit.path.to_bytes();
    let name = visit.name.as_ref().map_or(&b"."[..], FileName::as_bytes);
    let rdev = rustix::fs::makedev(visit.stat.stx_rdev_major, visit.stat.stx_rdev_minor);
    let content = match kind(&visit.stat) {
        FileType::Directory => NewContent::Directory,
        FileType::Symlink => {
            match readlinkat(&visit.dir, OsStr::from_bytes(name), Vec::with_capacity(256)) {
                Ok(target) => {
                    let target = target.into_bytes();
                    check_symlink(&target).map_err(|fault| ImportError::Metadata {
                        path: printable(&bytes),
                        fault,
                    })?;
                    NewContent::Symlink(target.into())
                }
                Err(Errno::NOENT) => {
                    session.progress.note(&Note::Vanished(printable(&bytes)));
                    return Ok(None);
                }
                Err(errno) => return Err(ImportError::file("read the link", &bytes)(errno)),
            }
        }
        FileType::Fifo => NewContent::Fifo,
        FileType::Socket => NewContent::Socket,
        FileType::CharacterDevice => NewContent::CharDevice(rdev),
        FileType::BlockDevice => NewContent::BlockDevice(rdev),
        FileType::RegularFile | FileType::Unknown => {
            return Err(ImportError::file("import", &bytes)(Errno::NOTSUP));
        }
    };
    let subject = match &visit.opened {
        Some(opened) => Subject::Open(opened.as_fd()),
        None => Subject::named(visit.dir.as_fd(), name),
    };
    let xattrs = match attributes(session, &subject, &bytes) {
        Err(ImportError::File { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
            session.progress.note(&Note::Vanished(printable(&bytes)));
            return Ok(None);
        }
        result => result?,
    };
    Ok(Some(NewNode { metadata: metadata(&visit.stat, &bytes)?, xattrs, content }))
}

fn attributes(
    session: &Session<'_>,
    subject: &Subject<'_>,
    path: &[u8],
) -> Result<Xattrs, ImportError> {
    let Attributes { kept, foreign } =
        xattrs::read(subject).map_err(ImportError::file("read the attributes of", path))?;
    check_xattrs(&kept).map_err(|fault| ImportError::Metadata { path: printable(path), fault })?;
    for name in foreign {
        session
            .progress
            .note(&Note::ForeignXattr { path: printable(path), name: printable(&name) });
    }
    Ok(kept)
}

fn metadata(stat: &Statx, path: &[u8]) -> Result<Metadata, ImportError> {
    let fail = |fault| ImportError::Metadata { path: printable(path), fault };
    Ok(Metadata {
        mode: u32::from(stat.stx_mode) & 0o7777,
        uid: uid(i128::from(stat.stx_uid)).map_err(fail)?,
        gid: gid(i128::from(stat.stx_gid)).map_err(fail)?,
        mtime: Timestamp { secs: stat.stx_mtime.tv_sec, nanos: stat.stx_mtime.tv_nsec },
    })
}

/// Counts what [`import_directory`] would import: names, and bytes of regular files.
pub(super) fn measure(
    session: &Session<'_>,
    root: OwnedFd,
    name: &str,
    excludes: &Excludes,
) -> Result<(u64, u64), ImportError> {
    let (mut names, mut bytes) = (0_u64, 0_u64);
    let quiet = Session { progress: &super::progress::Silent, ..*session };
    walk(&quiet, root, name, excludes, |visit| {
        names += 1;
        if kind(&visit.stat) == FileType::RegularFile {
            bytes = bytes.saturating_add(visit.stat.stx_size);
        }
        Ok(())
    })?;
    Ok((names, bytes))
}
