//! A peer without the types: it answers every open, also for writing, with an object's backing id.

use std::ffi::OsStr;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use fuser::{
    BackgroundSession, BackingId, Config, Errno, FileAttr, FileHandle, FileType, Filesystem,
    FopenFlags, Generation, INodeNo, InitFlags, KernelConfig, MountOption, OpenFlags, ReplyAttr,
    ReplyEntry, ReplyOpen, Request, Session, SessionACL,
};
use mica::object::ObjectFile;

const TTL: Duration = Duration::from_secs(60);
const FILE: INodeNo = INodeNo(2);

struct Peer {
    object: ObjectFile,
    backing: std::sync::OnceLock<BackingId>,
}

fn attributes(ino: INodeNo, size: u64) -> FileAttr {
    let directory = ino != FILE;
    FileAttr {
        ino,
        size,
        blocks: 1,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: if directory { FileType::Directory } else { FileType::RegularFile },
        perm: if directory { 0o755 } else { 0o666 },
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

impl Filesystem for Peer {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        config.add_capabilities(InitFlags::FUSE_PASSTHROUGH).expect("this kernel passes through");
        config.set_max_stack_depth(1).expect("a depth of one");
        Ok(())
    }

    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if name == "file" {
            let size = self.object.len().expect("an object has a length");
            reply.entry(&TTL, &attributes(FILE, size), Generation(0));
        } else {
            reply.error(Errno::ENOENT);
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        let size = self.object.len().expect("an object has a length");
        reply.attr(&TTL, &attributes(ino, size));
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let backing = self.backing.get_or_init(|| {
            reply.open_backing(self.object.as_fd()).expect("the kernel takes the object")
        });
        reply.opened_passthrough(FileHandle(1), FopenFlags::empty(), backing);
    }
}

/// Serves `file` with the content of `object` on `mountpoint` until dropped.
pub(crate) fn serve(object: ObjectFile, mountpoint: &Path) -> BackgroundSession {
    let mut config = Config::default();
    config.mount_options = vec![MountOption::FSName("peer".into()), MountOption::RW];
    config.acl = SessionACL::All;
    let peer = Peer { object, backing: std::sync::OnceLock::new() };
    Session::new(peer, mountpoint, &config).expect("mounted").spawn().expect("served")
}
