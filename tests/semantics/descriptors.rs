//! The table "Descriptors open across a copy-up".

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::support::{again_until, while_nobody_starts};
use crate::{Way, every_way, raw};

const OLD: &str = "old content\n";
const NEW: &str = "new CONTENT, and more of it\n";

/// Replaces the bytes of `path` in place, through a descriptor that is not truncating.
fn write(path: &Path) -> File {
    let mut file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    file.write_all(NEW.as_bytes()).unwrap();
    file
}

fn within_proc(file: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

fn text_of(mut file: &File) -> String {
    let mut text = String::new();
    file.rewind().unwrap();
    file.read_to_string(&mut text).unwrap();
    text
}

#[test]
fn a_shared_descriptor_keeps_the_old_content_and_a_coherent_one_sees_the_new() {
    every_way("text", |path, way| {
        let reader = File::open(path).unwrap();
        assert_eq!(text_of(&reader), OLD);
        drop(write(path));
        assert_eq!(text_of(&reader), if way.shared { OLD } else { NEW }, "{way:?}");
        assert_eq!(fs::read_to_string(path).unwrap(), NEW, "{way:?}");
    });
}

#[test]
fn every_name_of_a_file_shows_what_was_written_beside_an_old_reader() {
    every_way("text", |path, way| {
        let [linked, moved, back] =
            ["linked", "moved", "back"].map(|name| path.with_file_name(name));
        fs::hard_link(path, &linked).unwrap();
        fs::rename(path, &moved).unwrap();
        fs::hard_link(&linked, path).unwrap();
        fs::hard_link(&moved, &back).unwrap();
        fs::rename(&back, path.with_file_name("there")).unwrap();
        let names = [path.to_owned(), linked.clone(), moved, path.with_file_name("there")];
        let _reader = File::open(&linked).unwrap();
        for name in &names {
            assert_eq!(fs::metadata(name).unwrap().len(), OLD.len() as u64, "{way:?}");
        }
        drop(write(path));
        for name in &names {
            again_until("the kernel was told of the new number", || {
                fs::metadata(name).unwrap().len() == NEW.len() as u64
            });
            assert_eq!(fs::read_to_string(name).unwrap(), NEW, "{way:?} {name:?}");
        }
    });
}

#[test]
fn what_is_changed_through_an_old_reader_shows_under_the_name() {
    every_way("text", |path, way| {
        let reader = File::open(path).unwrap();
        drop(write(path));
        let shown = || fs::metadata(path).unwrap();
        assert_eq!(shown().mode() & 0o7777, 0o644, "{way:?}");
        reader.set_permissions(fs::Permissions::from_mode(0o4751)).unwrap();
        again_until("the mode shows", || shown().mode() & 0o7777 == 0o4751);
        rustix::fs::fchown(&reader, None, Some(rustix::fs::Gid::from_raw(7))).unwrap();
        again_until("the group shows", || (shown().mode() & 0o7777, shown().gid()) == (0o751, 7));
        assert_eq!(fs::read_to_string(path).unwrap(), NEW, "{way:?}");
    });
}

#[test]
fn a_shared_mapping_keeps_the_old_content_and_a_coherent_one_sees_the_new() {
    every_way("text", |path, way| {
        let mapped = raw::map(&File::open(path).unwrap());
        assert_eq!(&mapped[..], OLD.as_bytes());
        drop(write(path));
        let now = if way.shared { OLD } else { NEW };
        assert_eq!(&mapped[..], &now.as_bytes()[..OLD.len()], "{way:?}");
    });
}

#[test]
fn fstat_on_a_shared_descriptor_has_the_old_size_and_time_and_the_present_owner() {
    every_way("text", |path, way| {
        let reader = File::open(path).unwrap();
        let before = reader.metadata().unwrap();
        drop(write(path));
        fs::set_permissions(path, fs::Permissions::from_mode(0o604)).unwrap();
        chown(path, Some(12), Some(34)).unwrap();
        fs::hard_link(path, path.with_file_name("another")).unwrap();
        let now = fs::metadata(path).unwrap();
        // The kernel is told by another thread than the one that answered the writer.
        again_until("fstat shows the new owner", || reader.metadata().unwrap().uid() == now.uid());
        let seen = reader.metadata().unwrap();
        assert_eq!(now.len(), u64::try_from(NEW.len()).unwrap());
        let content = if way.shared { &before } else { &now };
        assert_eq!((seen.len(), seen.modified().ok()), (content.len(), content.modified().ok()));
        let meta = |of: &fs::Metadata| (of.mode(), of.uid(), of.gid(), of.nlink(), of.ino());
        assert_eq!(meta(&seen), meta(&now), "{way:?}");
        assert_eq!((now.mode() & 0o7777, now.uid(), now.nlink()), (0o604, 12, 2));
    });
}

#[test]
fn writing_through_proc_of_a_shared_descriptor_is_estale_and_of_a_coherent_one_works() {
    every_way("text", |path, way| {
        let reader = File::open(path).unwrap();
        drop(write(path));
        let reopened = OpenOptions::new().write(true).open(within_proc(&reader));
        if way.shared {
            let error = reopened.expect_err("no name leads from the descriptor to the file");
            assert_eq!(error.raw_os_error(), Some(libc::ESTALE), "{way:?}");
        } else {
            reopened.unwrap().write_all_at(b"NEW", 0).unwrap();
            assert!(fs::read_to_string(path).unwrap().starts_with("NEW"), "{way:?}");
        }
    });
}

#[test]
fn proc_shows_a_shared_descriptor_as_deleted() {
    every_way("text", |path, way| {
        let reader = File::open(path).unwrap();
        assert_eq!(fs::read_link(within_proc(&reader)).unwrap(), path);
        drop(write(path));
        let shown = fs::read_link(within_proc(&reader)).unwrap();
        let deleted = shown.to_string_lossy().ends_with(" (deleted)");
        assert_eq!(deleted, way.shared, "{way:?}: {shown:?}");
    });
}

#[test]
fn flock_stays_on_the_old_inode_of_a_shared_file_and_in_force_on_a_coherent_one() {
    every_way("text", |path, way| {
        let holder = File::open(path).unwrap();
        flock(&holder, FlockOperation::NonBlockingLockExclusive).unwrap();
        let second = File::open(path).unwrap();
        let refused = flock(&second, FlockOperation::NonBlockingLockExclusive);
        assert_eq!(refused, Err(Errno::WOULDBLOCK), "{way:?}");
        let writer = write(path);
        let free = flock(&writer, FlockOperation::NonBlockingLockExclusive).is_ok();
        assert_eq!(free, way.shared, "{way:?}");
        let refused = flock(&second, FlockOperation::NonBlockingLockExclusive);
        assert_eq!(refused, Err(Errno::WOULDBLOCK), "{way:?}");
    });
}

#[test]
fn fcntl_locks_hold_between_writers_and_a_shared_file_has_none_before_its_first() {
    let claim = |path: &Path, way: Way| {
        let reader = File::open(path).unwrap();
        let read_only = raw::lock_description(&reader).expect_err("a write lock wants a writer");
        assert_eq!(read_only.raw_os_error(), Some(libc::EBADF), "{way:?}");
        assert!(raw::lock_for_reading(&reader).unwrap());
        let writer = write(path);
        // The read lock of before keeps the writer out only where it is on the same inode.
        assert_eq!(raw::lock_description(&writer).unwrap(), way.shared, "{way:?}");
        drop(reader);
        assert!(raw::lock_description(&writer).unwrap(), "{way:?}");
        let another = OpenOptions::new().write(true).open(path).unwrap();
        assert!(!raw::lock_description(&another).unwrap(), "{way:?}");
    };
    every_way("text", |path, way| while_nobody_starts(|| claim(path, way)));
}

/// Whether `inotify` has been told of a change.
fn told_of_change(inotify: &OwnedFd) -> bool {
    let mut buffer = [MaybeUninit::uninit(); 4096];
    let mut events = Reader::new(inotify, &mut buffer);
    let mut told = false;
    loop {
        match events.next() {
            Ok(event) => told |= event.events().contains(ReadFlags::MODIFY),
            Err(Errno::WOULDBLOCK) => return told,
            Err(error) => panic!("inotify: {error}"),
        }
    }
}

#[test]
fn an_inotify_mark_stays_on_the_old_inode_of_a_shared_file_and_in_force_on_a_coherent_one() {
    every_way("text", |path, way| {
        let reader = File::open(path).unwrap();
        let inotify = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC).unwrap();
        inotify::add_watch(&inotify, path, WatchFlags::MODIFY).unwrap();
        drop(write(path));
        assert_eq!(told_of_change(&inotify), !way.shared, "{way:?}");
        // A mark that is made after the copy-up hears of every change.
        inotify::add_watch(&inotify, path, WatchFlags::MODIFY).unwrap();
        drop(write(path));
        assert!(told_of_change(&inotify), "{way:?}");
        drop(reader);
    });
}

#[test]
fn tail_follows_a_coherent_file_and_not_a_shared_one() {
    every_way("text", |path, way| {
        let mut tail = File::open(path).unwrap();
        let mut text = String::new();
        tail.read_to_string(&mut text).unwrap();
        let mut log = OpenOptions::new().append(true).open(path).unwrap();
        for line in ["one\n", "two\n"] {
            log.write_all(line.as_bytes()).unwrap();
            text.clear();
            tail.read_to_string(&mut text).unwrap();
            assert_eq!(text, if way.shared { "" } else { line }, "{way:?}");
        }
    });
}
