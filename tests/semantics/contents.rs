//! What files hold: times after mapped writes, holes, direct I/O, copies within the kernel.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, SystemTime};

use rustix::fs::{FallocateFlags, SeekFrom, copy_file_range, fallocate, seek};
use rustix::io::Errno;

use crate::{BIG_BYTES, Desk, SPARSE_BYTES, SPARSE_DATA, every_way, raw, read_write, sparse};

/// A time long before any test.
fn long_ago() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000)
}

fn is_recent(time: SystemTime) -> bool {
    time > long_ago() + Duration::from_secs(86400)
}

/// Writes to `path` through mappings, and asks `stat` for the time after each.
fn stat_follows_mapped_writes(path: &Path, upper: &Path, what: &str) {
    let file = read_write(path);
    file.set_len(4 * 4096).unwrap();
    let mut mapped = raw::map_mut(&file);
    let mtime = || fs::metadata(path).unwrap().modified().unwrap();
    file.set_modified(long_ago()).unwrap();
    assert_eq!(mtime(), long_ago(), "{what}");
    mapped[0] = b'x';
    mapped.flush().unwrap();
    assert!(is_recent(mtime()), "{what}: after a mapped write and msync");
    file.set_modified(long_ago()).unwrap();
    drop(file);
    assert_eq!(mtime(), long_ago(), "{what}");
    mapped[2 * 4096] = b'y';
    mapped.flush().unwrap();
    assert!(is_recent(mtime()), "{what}: after the writer closed and its mapping wrote");
    drop(mapped);
    let (seen, real) = (fs::metadata(path).unwrap(), fs::metadata(upper).unwrap());
    assert_eq!(seen.modified().unwrap(), real.modified().unwrap(), "{what}");
    assert_eq!((seen.len(), real.len()), (4 * 4096, 4 * 4096), "{what}");
    let bytes = fs::read(path).unwrap();
    assert_eq!((bytes[0], bytes[2 * 4096]), (b'x', b'y'), "{what}");
}

#[test]
fn mtime_and_size_are_right_after_mapped_writes_and_after_the_writer_closed() {
    let desk = Desk::new();
    for passthrough in [true, false] {
        let name = format!("passthrough-{passthrough}");
        let root = desk.root(&name, passthrough);
        fs::write(root.path().join("srv/new"), "private").unwrap();
        for file in ["srv/new", "usr/lib/text", "etc/text"] {
            let what = format!("{file}, passthrough {passthrough}");
            let upper = desk.upper(&name, file);
            stat_follows_mapped_writes(&root.path().join(file), &upper, &what);
        }
    }
}

#[test]
fn a_mapped_write_of_a_passthrough_file_shows_in_stat_without_msync() {
    let desk = Desk::new();
    let root = desk.root("root", true);
    for file in ["usr/lib/text", "etc/text"] {
        let path = root.path().join(file);
        let file = read_write(&path);
        let mut mapped = raw::map_mut(&file);
        file.set_modified(long_ago()).unwrap();
        drop(file);
        assert_eq!(fs::metadata(&path).unwrap().modified().unwrap(), long_ago());
        mapped[0] = b'x';
        assert!(is_recent(fs::metadata(&path).unwrap().modified().unwrap()), "{path:?}");
        drop(mapped);
        assert!(is_recent(fs::metadata(&path).unwrap().modified().unwrap()), "{path:?}");
    }
}

/// Every piece of data in `file`, as (start, end).
fn pieces(file: &File) -> Vec<(u64, u64)> {
    let mut found = Vec::new();
    let mut from = 0;
    loop {
        match seek(file, SeekFrom::Data(from)) {
            Ok(start) => {
                from = seek(file, SeekFrom::Hole(start)).unwrap();
                found.push((start, from));
            }
            Err(Errno::NXIO) => return found,
            Err(error) => panic!("SEEK_DATA: {error}"),
        }
    }
}

#[test]
fn seek_hole_and_data_find_the_holes_of_shared_copied_up_and_private_files() {
    every_way("sparse", |path, way| {
        let data = vec![(SPARSE_DATA, SPARSE_DATA + 65536)];
        let shared = File::open(path).unwrap();
        assert_eq!(pieces(&shared), data, "{way:?}, not copied up");
        assert_eq!(shared.metadata().unwrap().blocks(), 128, "{way:?}");
        let end = seek(&shared, SeekFrom::Data(SPARSE_BYTES));
        assert_eq!(end, Err(Errno::NXIO), "{way:?}");
        drop(shared);
        let copied = read_write(path);
        assert_eq!(pieces(&copied), data, "{way:?}, copied up");
        let mine = path.with_file_name("mine");
        sparse(&mine);
        assert_eq!(pieces(&read_write(&mine)), data, "{way:?}, private");
    });
}

#[test]
fn fallocate_reserves_punches_and_zeroes_as_on_ext4() {
    every_way("big", |path, way| {
        let file = read_write(path);
        fallocate(&file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 65536, 65536)
            .unwrap();
        let mut expected: Vec<u8> = (0..BIG_BYTES / 8).flat_map(u64::to_le_bytes).collect();
        expected[65536..131_072].fill(0);
        assert!(fs::read(path).unwrap() == expected, "{way:?}: a punched hole reads as zeros");
        assert_eq!(pieces(&file), [(0, 65536), (131_072, BIG_BYTES)], "{way:?}");
        fallocate(&file, FallocateFlags::ZERO_RANGE, 4096, 4096).unwrap();
        expected[4096..8192].fill(0);
        assert!(fs::read(path).unwrap() == expected, "{way:?}: a zeroed range reads as zeros");
        fallocate(&file, FallocateFlags::empty(), BIG_BYTES, 4096).unwrap();
        assert_eq!(file.metadata().unwrap().len(), BIG_BYTES + 4096, "{way:?}");
        let blocks = file.metadata().unwrap().blocks();
        fallocate(&file, FallocateFlags::KEEP_SIZE, 2 * BIG_BYTES, 1 << 20).unwrap();
        let after = fs::metadata(path).unwrap();
        assert_eq!(after.len(), BIG_BYTES + 4096, "{way:?}");
        assert_eq!(after.blocks(), blocks + 2048, "{way:?}");
    });
}

#[test]
fn direct_io_reads_and_writes_what_the_page_cache_has() {
    every_way("big", |path, way| {
        let direct = |write| {
            let mut options = OpenOptions::new();
            options.read(true).write(write).custom_flags(libc::O_DIRECT).open(path).unwrap()
        };
        // Anonymous memory begins at a page, as direct I/O wants it.
        let mut page = memmap2::MmapMut::map_anon(8192).unwrap();
        let reader = direct(false);
        reader.read_exact_at(&mut page, 16384).unwrap();
        let numbers: Vec<u8> = (2048..3072_u64).flat_map(u64::to_le_bytes).collect();
        assert!(page[..] == numbers[..], "{way:?}: reading what is not copied up");
        drop(reader);
        let writer = direct(true);
        page.fill(b'd');
        writer.write_all_at(&page, 4096).unwrap();
        let cached = fs::read(path).unwrap();
        assert!(cached[4096..12288].iter().all(|byte| *byte == b'd'), "{way:?}");
        assert_eq!(cached[4088..4096], 511_u64.to_le_bytes(), "{way:?}");
        File::options().write(true).open(path).unwrap().write_all_at(b"cached", 8192).unwrap();
        writer.read_exact_at(&mut page, 4096).unwrap();
        assert_eq!((&page[..4], &page[4096..4102]), (&b"dddd"[..], &b"cached"[..]), "{way:?}");
    });
}

#[test]
fn copy_file_range_copies_from_a_shared_into_a_private_file() {
    every_way("big", |path, way| {
        let source = File::open(path).unwrap();
        let target = File::create_new(path.with_file_name("copy")).unwrap();
        let mut copied = 0;
        while copied < BIG_BYTES {
            let (mut from, mut to) = (copied, copied);
            let wanted = usize::try_from(BIG_BYTES - copied).unwrap();
            let count =
                copy_file_range(&source, Some(&mut from), &target, Some(&mut to), wanted).unwrap();
            assert!(count > 0, "{way:?}: an early end at {copied}");
            copied += u64::try_from(count).unwrap();
        }
        assert_eq!(target.metadata().unwrap().len(), BIG_BYTES, "{way:?}");
        let copy = fs::read(path.with_file_name("copy")).unwrap();
        assert!(copy == fs::read(path).unwrap(), "{way:?}");
        let end = copy_file_range(&source, Some(&mut BIG_BYTES.clone()), &target, None, 1);
        assert_eq!(end, Ok(0), "{way:?}");
    });
}
