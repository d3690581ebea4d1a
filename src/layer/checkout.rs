//! Writes a tree into a plain directory, as `tar x` would.
//!
//! For tools and tests that need real files, such as kernel overlayfs over a template. Content
//! is reflinked where the host can. Knows nothing of mounts. After a crash the directory is
//! unfinished and says nothing about it: the caller names it only when this has returned.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, UTIME_OMIT, Uid, XattrFlags,
    chmodat, chownat, fchmod, fchown, fremovexattr, fsetxattr, futimens, linkat, lsetxattr,
    mkdirat, mknodat, openat, symlinkat, utimensat,
};
use rustix::io::Errno;

use super::export::ExportError;
use super::trail::{Trail, open_directory};
use super::{EntryKind, FileKind, FileName, Inode, LayerPath, Manifest, ManifestError, TreeIno};
use crate::object::{CopyOut, ObjectReader};
use crate::sys::acl;

/// What was written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CheckedOut {
    /// Names, the root not counted.
    pub names: u64,
    /// Bytes of regular files, holes included.
    pub bytes: u64,
    /// Device nodes.
    pub devices: u64,
    /// Programs that run with another's rights: set-id bits or capabilities.
    pub privileged: u64,
}

/// Writes `tree` into the empty directory `target`, whose metadata becomes that of the root.
///
/// Needs the privileges that the owners, devices and attributes of the tree need. `cancel` is
/// looked at between files.
///
/// # Errors
/// [`ExportError`]; `target` then holds a part of the tree.
pub fn checkout(
    tree: &Manifest,
    objects: &ObjectReader,
    target: OwnedFd,
    cancel: &AtomicBool,
) -> Result<CheckedOut, ExportError> {
    if !tree.is_tree() {
        return Err(ExportError::NotATree);
    }
    // Whatever the directory inherited from where it lies, the template does not say.
    for name in [acl::ACCESS, acl::DEFAULT] {
        match fremovexattr(&target, name) {
            Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
            Err(errno) => return Err(fail("set an attribute of", &LayerPath::root())(errno)),
        }
    }
    let root = target.try_clone().map_err(|source| ExportError::Make {
        action: "open",
        path: LayerPath::root(),
        source,
    })?;
    let mut writer = Writer {
        tree,
        objects,
        root,
        trail: Trail::new(target),
        first_names: HashMap::new(),
        done: CheckedOut::default(),
    };
    writer.write(cancel)?;
    Ok(writer.done)
}

struct Writer<'a> {
    tree: &'a Manifest,
    objects: &'a ObjectReader,
    root: OwnedFd,
    trail: Trail,
    /// The first path of each inode with several names.
    first_names: HashMap<TreeIno, LayerPath>,
    done: CheckedOut,
}

impl Writer<'_> {
    fn write(&mut self, cancel: &AtomicBool) -> Result<(), ExportError> {
        // Directories being written, and the index of the next entry in each.
        let mut open = vec![(self.tree.root()?, 0_u32)];
        while let Some((dir, next)) = open.last_mut() {
            if cancel.load(Ordering::Relaxed) {
                return Err(ExportError::Cancelled);
            }
            let Some(entry) = self.tree.entry(dir, *next)? else {
                let dir = *dir;
                open.pop();
                self.finish_directory(&dir)?;
                continue;
            };
            *next += 1;
            let (EntryKind::Inode(_), Some(ino)) = (entry.kind, entry.ino) else {
                return Err(ExportError::NotATree);
            };
            let inode = self.tree.inode(ino)?;
            let name = FileName::new(entry.name).map_err(|_| ExportError::NotATree)?;
            self.done.names += 1;
            if inode.kind == FileKind::Directory {
                self.enter(name)?;
                open.push((inode, 0));
            } else {
                self.write_file(&inode, &name)?;
            }
        }
        Ok(())
    }

    fn enter(&mut self, name: FileName) -> Result<(), ExportError> {
        let path = self.trail.path_of(&name);
        let dir = self.trail.dir().map_err(fail("find again the directory of", &path))?;
        let text = OsStr::from_bytes(name.as_bytes());
        // Nobody else looks in before it is finished.
        mkdirat(&dir, text, Mode::from_raw_mode(0o700)).map_err(fail("make", &path))?;
        let below = open_directory(&dir, name.as_bytes()).map_err(fail("open", &path))?;
        self.trail.enter(name, Arc::new(below)).map_err(fail("open", &path))
    }

    /// Metadata last: writing into a directory changes its time, and its default ACL and set-id
    /// bits would be inherited.
    fn finish_directory(&mut self, inode: &Inode) -> Result<(), ExportError> {
        let path = self.trail.path();
        let dir = self.trail.dir().map_err(fail("find again", &path))?;
        self.describe_open(inode, dir.as_fd(), &path)?;
        self.trail.leave();
        Ok(())
    }

    fn write_file(&mut self, inode: &Inode, name: &FileName) -> Result<(), ExportError> {
        let path = self.trail.path_of(name);
        let dir = self.trail.dir().map_err(fail("find again the directory of", &path))?;
        let text = OsStr::from_bytes(name.as_bytes());
        if inode.nlink > 1 {
            if let Some(first) = self.first_names.get(&inode.ino) {
                return link(&self.root, first, &dir, text).map_err(fail("link", &path));
            }
            self.first_names.insert(inode.ino, path.clone());
        }
        let special = |kind: FileType, rdev: u64| {
            mknodat(&dir, text, kind, Mode::from_raw_mode(0o600), rdev)
                .map_err(fail("make the node", &path))
        };
        match inode.kind {
            FileKind::Regular => return self.write_content(inode, &dir, text, &path),
            FileKind::Symlink => {
                let target = OsStr::from_bytes(self.tree.symlink_target(inode)?);
                symlinkat(target, &dir, text).map_err(fail("make the link", &path))?;
            }
            FileKind::Fifo => special(FileType::Fifo, 0)?,
            FileKind::Socket => special(FileType::Socket, 0)?,
            FileKind::CharDevice | FileKind::BlockDevice => {
                self.done.devices += 1;
                let block = inode.kind == FileKind::BlockDevice;
                let kind = if block { FileType::BlockDevice } else { FileType::CharacterDevice };
                special(kind, inode.rdev)?;
            }
            FileKind::Directory => return Err(ExportError::NotATree),
        }
        self.describe_named(inode, dir.as_fd(), name, &path)
    }

    fn write_content(
        &mut self,
        inode: &Inode,
        dir: &OwnedFd,
        name: &OsStr,
        path: &LayerPath,
    ) -> Result<(), ExportError> {
        let id = self.tree.object(inode)?.ok_or(ManifestError::NoInode(inode.ino.get()))?;
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file =
            openat(dir, name, flags, Mode::from_raw_mode(0o600)).map_err(fail("make", path))?;
        self.objects.copy_out(&id, file.as_fd()).map_err(|error| match error {
            CopyOut::Object(source) => ExportError::Object { path: path.clone(), source },
            CopyOut::Write(source) => {
                ExportError::Make { action: "write", path: path.clone(), source }
            }
        })?;
        self.done.bytes += inode.size;
        let set_id = inode.mode & (libc::S_ISUID | libc::S_ISGID) != 0;
        if set_id || self.tree.xattr(inode, b"security.capability")?.is_some() {
            self.done.privileged += 1;
        }
        self.describe_open(inode, file.as_fd(), path)
    }

    /// Owner first, because changing it clears set-id bits and file capabilities; time last.
    fn describe_open(
        &self,
        inode: &Inode,
        file: BorrowedFd<'_>,
        path: &LayerPath,
    ) -> Result<(), ExportError> {
        let (uid, gid) = owner(inode);
        fchown(file, uid, gid).map_err(fail("change the owner of", path))?;
        fchmod(file, Mode::from_raw_mode(inode.mode)).map_err(fail("change the mode of", path))?;
        for xattr in self.tree.xattrs(inode)? {
            let (name, value) = xattr?;
            fsetxattr(file, name, value, XattrFlags::empty()).map_err(unset(name, path))?;
        }
        futimens(file, &times(inode)).map_err(fail("set the time of", path))
    }

    /// As [`Self::describe_open`], for what cannot be opened.
    fn describe_named(
        &self,
        inode: &Inode,
        dir: BorrowedFd<'_>,
        name: &FileName,
        path: &LayerPath,
    ) -> Result<(), ExportError> {
        let text = OsStr::from_bytes(name.as_bytes());
        let (uid, gid) = owner(inode);
        chownat(dir, text, uid, gid, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(fail("change the owner of", path))?;
        if inode.kind != FileKind::Symlink {
            // Just made by mknod, so there is nothing to follow.
            chmodat(dir, text, Mode::from_raw_mode(inode.mode), AtFlags::empty())
                .map_err(fail("change the mode of", path))?;
        }
        for xattr in self.tree.xattrs(inode)? {
            let (attribute, value) = xattr?;
            // No call sets an attribute of a name in a directory before Linux 6.13.
            let mut file = format!("/proc/self/fd/{}/", dir.as_raw_fd()).into_bytes();
            file.extend_from_slice(name.as_bytes());
            lsetxattr(file, attribute, value, XattrFlags::empty())
                .map_err(unset(attribute, path))?;
        }
        utimensat(dir, text, &times(inode), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(fail("set the time of", path))
    }
}

/// Gives the file at `first`, below `root`, another name.
fn link(root: &OwnedFd, first: &LayerPath, dir: &OwnedFd, name: &OsStr) -> Result<(), Errno> {
    let (last, parents) = first.names().split_last().ok_or(Errno::ISDIR)?;
    let mut at: Option<OwnedFd> = None;
    for parent in parents {
        at = Some(open_directory(at.as_ref().unwrap_or(root), parent.as_bytes())?);
    }
    let from = at.as_ref().unwrap_or(root);
    linkat(from, OsStr::from_bytes(last.as_bytes()), dir, name, AtFlags::empty())
}

fn owner(inode: &Inode) -> (Option<Uid>, Option<Gid>) {
    (Some(Uid::from_raw(inode.uid)), Some(Gid::from_raw(inode.gid)))
}

fn times(inode: &Inode) -> Timestamps {
    let mtime = Timespec { tv_sec: inode.mtime.secs, tv_nsec: i64::from(inode.mtime.nanos) };
    Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: mtime,
    }
}

/// An attribute that this place does not take.
fn unset(name: &[u8], path: &LayerPath) -> impl FnOnce(Errno) -> ExportError + use<> {
    let (name, path) = (name.escape_ascii().to_string(), path.clone());
    move |errno| ExportError::Attribute { name, path, source: errno.into() }
}

fn fail(action: &'static str, path: &LayerPath) -> impl FnOnce(Errno) -> ExportError + use<> {
    let path = path.clone();
    move |errno| ExportError::Make { action, path, source: errno.into() }
}
