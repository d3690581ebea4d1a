//! What a root decides as ext4 does: deleted files, inherited groups, masks and ACLs, special files.
//!
//! Where a script can say it, the same script runs beside it on the host.

use std::fs::{self, DirBuilder, File};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, PermissionsExt};

use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, mknodat, utimensat};
use rustix::io::Errno;

use crate::support::{Mounted, require_root};
use crate::{Desk, every_way, read_write, same_as_host};

#[test]
fn a_deleted_file_lives_on_in_its_descriptor() {
    every_way("text", |path, way| {
        let reader = File::open(path).unwrap();
        fs::remove_file(path).unwrap();
        assert_eq!(reader.metadata().unwrap().nlink(), 0, "{way:?}, not copied up");
        reader.set_permissions(fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(reader.metadata().unwrap().mode() & 0o7777, 0o600, "{way:?}");
        assert_eq!(std::io::read_to_string(reader).unwrap(), "old content\n", "{way:?}");

        // A new file of the same name is another one.
        fs::write(path, "private\n").unwrap();
        let file = read_write(path);
        fs::remove_file(path).unwrap();
        assert_eq!(file.metadata().unwrap().nlink(), 0, "{way:?}, private");
        file.write_all_at(b"written", 100).unwrap();
        file.set_len(105).unwrap();
        file.set_permissions(fs::Permissions::from_mode(0o640)).unwrap();
        let after = file.metadata().unwrap();
        assert_eq!((after.len(), after.mode() & 0o7777), (105, 0o640), "{way:?}");
        let mut bytes = [0; 105];
        file.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!((&bytes[..7], &bytes[100..]), (&b"private"[..], &b"writt"[..]), "{way:?}");
        assert!(!path.exists());
    });
}

#[test]
fn a_deleted_directory_lives_on_in_its_descriptor_and_takes_no_entry() {
    every_way("gone", |path, way| {
        DirBuilder::new().mode(0o755).create(path).unwrap();
        let directory = File::open(path).unwrap();
        fs::remove_dir(path).unwrap();
        assert_eq!(directory.metadata().unwrap().nlink(), 0, "{way:?}");
        directory.set_permissions(fs::Permissions::from_mode(0o700)).unwrap();
        assert_eq!(directory.metadata().unwrap().mode() & 0o7777, 0o700, "{way:?}");
        let made = mknodat(&directory, "file", FileType::RegularFile, Mode::RUSR, 0);
        assert_eq!(made, Err(Errno::NOENT), "{way:?}");
        let listed = rustix::fs::Dir::read_from(&directory).unwrap().flatten();
        let names = listed.filter(|entry| !matches!(entry.file_name().to_bytes(), b"." | b".."));
        assert_eq!(names.count(), 0, "{way:?}");
        DirBuilder::new().create(path).unwrap();
        assert_eq!(fs::metadata(path).unwrap().nlink(), 2, "{way:?}");
    });
}

#[test]
fn a_deleted_fifo_or_directory_is_changed_through_its_descriptor() {
    same_as_host(
        "chmod 700 touched; chmod 600 touched.fifo; mkdir born; mkfifo born.fifo victim.fifo
         for of in untouched touched born; do
             exec 4<$of 5<>$of.fifo
             rmdir $of; rm $of.fifo
             for fd in 4 5; do
                 chmod 421 /proc/self/fd/$fd 2>&1; chown 5:6 /proc/self/fd/$fd 2>&1
                 touch -d @7 /proc/self/fd/$fd 2>&1
                 stat -Lc '%F %a %u %g %h %Y' /proc/self/fd/$fd
             done
         done
         exec 5<>victim.fifo; mkfifo over; mv over victim.fifo
         chmod 421 /proc/self/fd/5; stat -Lc '%F %a %h' /proc/self/fd/5; rm victim.fifo",
    );
}

#[test]
fn a_shared_file_and_directory_keep_the_times_and_size_of_the_template() {
    every_way("text", |path, way| {
        let modified = fs::metadata(path).unwrap().modified().unwrap();
        fs::read(path).unwrap();
        assert_eq!(fs::metadata(path).unwrap().accessed().unwrap(), modified, "{way:?}");
        let directory = path.with_file_name("untouched");
        assert_eq!(fs::metadata(&directory).unwrap().len(), 4096, "{way:?}");
    });
}

#[test]
fn times_before_1970_and_after_2038_are_kept_through_a_remount() {
    let times = [-86_400 * 365, -1, (1 << 31) + 7, 9_000_000_000];
    let desk = Desk::new();
    for passthrough in [true, false] {
        let name = format!("times-{passthrough}");
        let root = desk.root(&name, passthrough);
        let path = |number: usize| root.path().join(format!("usr/lib/at {number}"));
        for (number, &secs) in times.iter().enumerate() {
            fs::write(path(number), "x").unwrap();
            let at = Timespec { tv_sec: secs, tv_nsec: 5 };
            let both = Timestamps { last_access: at, last_modification: at };
            utimensat(CWD, path(number), &both, AtFlags::empty()).unwrap();
        }
        let read = |root: &Mounted| -> Vec<_> {
            let stat = |number| fs::metadata(root.path().join(format!("usr/lib/at {number}")));
            (0..times.len()).map(|number| stat(number).unwrap().mtime()).collect()
        };
        assert_eq!(read(&root), times);
        root.unmount();
        assert_eq!(read(&desk.root(&name, passthrough)), times);
    }
}

#[test]
fn a_change_of_group_takes_set_group_id_from_who_is_not_in_the_group() {
    same_as_host(
        "for mode in 2566 2755 6664; do
             touch f; chown 7:8 f; chmod $mode f; stat -c %a f
             setpriv --reuid 7 --regid 9 --clear-groups chgrp 9 f; stat -c '%a %g' f
             chmod $mode f; chgrp 8 f; stat -c '%a %g' f
             chmod $mode f; setpriv --reuid 7 --regid 9 --groups 8 chgrp 9 f; stat -c '%a %g' f
             rm f
         done",
    );
}

#[test]
fn what_is_made_in_a_setgid_directory_gets_its_group() {
    same_as_host(
        "mkdir g; chgrp 1234 g; chmod 2775 g; umask 022
         echo > g/file; mkdir g/dir; mkfifo g/fifo; ln -s x g/link; mkdir -m 700 g/closed
         echo > text2; mv text2 g/moved; ln text g/linked
         cd g; stat -c '%n %F %a %u %g' . * dir
         chmod g+s file; chmod 2750 closed; setpriv --reuid 7 --regid 7 --clear-groups \
             bash -c 'echo > ours 2>&1' || echo refused
         chmod 2777 .; setpriv --reuid 7 --regid 7 --clear-groups \
             bash -c 'umask 0; echo > ours; chmod 2775 ours; mkdir theirs'
         stat -c '%n %F %a %u %g' *; rm -r ../g",
    );
}

#[test]
fn the_umask_counts_unless_an_acl_is_inherited() {
    same_as_host(
        "mkdir plain ruled; setfacl -d -m u:1:rwx,g:2:r-x,m::rwx,o::--- ruled
         for mask in 000 022 027 077 777; do umask $mask
             for in in plain ruled; do
                 echo > $in/file.$mask; mkdir $in/dir.$mask; mkfifo $in/fifo.$mask
             done
         done
         umask 022; find plain ruled | sort | while read -r name; do
             stat -c '%n %F %a' $name; getfacl -cn $name; done
         rm -r plain ruled",
    );
}

#[test]
fn acls_of_template_files_are_set_kept_and_removed_as_on_the_host() {
    same_as_host(
        "setfacl -m u:5:rw,g:6:r text; getfacl -cn text; stat -c %a text
         chmod g-w,o-r text; getfacl -cn text
         echo more >> text; getfacl -cn text
         cp --preserve=all text kept; getfacl -cn kept
         setpriv --reuid 5 --regid 5 --clear-groups cat text || echo refused
         setpriv --reuid 9 --regid 6 --clear-groups cat text || echo refused
         setpriv --reuid 9 --regid 9 --clear-groups cat text || echo refused
         setfacl -b text; getfacl -cn text; stat -c %a text
         setfacl -k . ; setfacl -d -m o::rx .; mkdir -p a/b; getfacl -cn a/b; setfacl -k . ; rm -r a",
    );
}

#[test]
fn every_kind_of_node_can_be_made() {
    require_root();
    every_way("text", |path, way| {
        let kinds = [
            ("regular", FileType::RegularFile, 0),
            ("fifo", FileType::Fifo, 0),
            ("socket", FileType::Socket, 0),
            ("char", FileType::CharacterDevice, rustix::fs::makedev(1, 3)),
            ("char00", FileType::CharacterDevice, 0),
            ("wide", FileType::CharacterDevice, rustix::fs::makedev(4095, 0x000f_ffff)),
            ("block", FileType::BlockDevice, rustix::fs::makedev(7, 200)),
        ];
        for (name, kind, device) in kinds {
            let place = path.with_file_name(name);
            mknodat(rustix::fs::CWD, &place, kind, Mode::from(0o640), device).unwrap();
            let made = rustix::fs::lstat(&place).unwrap();
            assert_eq!(FileType::from_raw_mode(made.st_mode), kind, "{way:?}: {name}");
            assert_eq!((made.st_rdev, made.st_nlink), (device, 1), "{way:?}: {name}");
            let again = mknodat(rustix::fs::CWD, &place, kind, Mode::from(0o640), device);
            assert_eq!(again, Err(Errno::EXIST), "{way:?}: {name}");
            let moved = path.with_file_name("moved");
            fs::rename(&place, &moved).unwrap();
            let kept = rustix::fs::lstat(&moved).unwrap();
            assert_eq!((kept.st_rdev, kept.st_mode), (made.st_rdev, made.st_mode), "{way:?}");
            fs::remove_file(&moved).unwrap();
        }
    });
}
