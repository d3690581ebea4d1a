//! All that a tree of files says about itself, to be compared with another.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, lgetxattr, llistxattr, openat, readlinkat, statat,
};

/// One name in a tree.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Described {
    pub(crate) kind: FileType,
    pub(crate) mode: u32,
    pub(crate) owner: (u32, u32),
    /// Seconds and nanoseconds.
    pub(crate) mtime: (i64, i64),
    /// For devices.
    pub(crate) rdev: u64,
    /// Length and digest of a regular file.
    pub(crate) content: Option<(u64, String)>,
    pub(crate) target: Option<Vec<u8>>,
    pub(crate) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Number of links, not for directories.
    pub(crate) nlink: u64,
    /// The first path of the same inode, where it has several.
    pub(crate) same_as: Option<String>,
}

impl fmt::Debug for Described {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:?} {:o} {:?} mtime {:?} rdev {:x} {:?}",
            self.kind, self.mode, self.owner, self.mtime, self.rdev, self.content
        )?;
        if let Some(target) = &self.target {
            write!(f, " -> {}", target.escape_ascii())?;
        }
        for (name, value) in &self.xattrs {
            write!(f, " {}={}", name.escape_ascii(), value.escape_ascii())?;
        }
        write!(f, " nlink {} {:?}", self.nlink, self.same_as)
    }
}

/// Every name of a tree, by its escaped path; `.` is the root.
pub(crate) type Snapshot = BTreeMap<String, Described>;

/// Describes the tree at `root`. Paths may be longer than `PATH_MAX`.
pub(crate) fn snapshot(root: &Path) -> Snapshot {
    let mut found = Snapshot::new();
    let mut first: HashMap<(u64, u64), String> = HashMap::new();
    let dir: OwnedFd = File::open(root).expect("the tree can be opened").into();
    let described = describe(&dir, OsStr::new("."));
    found.insert(".".to_owned(), described);
    descend(&dir, "", &mut found, &mut first);
    found
}

fn descend(
    dir: &OwnedFd,
    path: &str,
    found: &mut Snapshot,
    first: &mut HashMap<(u64, u64), String>,
) {
    let mut names: Vec<Vec<u8>> = Dir::read_from(dir)
        .expect("a directory can be listed")
        .map(|entry| entry.expect("entry").file_name().to_bytes().to_vec())
        .filter(|name| name != b"." && name != b"..")
        .collect();
    names.sort();
    for name in names {
        let text = OsStr::from_bytes(&name);
        let full = format!("{path}/{}", name.escape_ascii());
        let mut described = describe(dir, text);
        if described.kind == FileType::Directory {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW;
            let below = openat(dir, text, flags, Mode::empty()).expect("a directory can be opened");
            descend(&below, &full, found, first);
        } else if described.nlink > 1 {
            let stat = statat(dir, text, AtFlags::SYMLINK_NOFOLLOW).expect("stat");
            let first = first.entry((stat.st_dev, stat.st_ino)).or_insert_with(|| full.clone());
            described.same_as = Some(first.clone());
        }
        found.insert(full, described);
    }
}

fn describe(dir: &OwnedFd, name: &OsStr) -> Described {
    let stat = statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).expect("a name can be inspected");
    let kind = FileType::from_raw_mode(stat.st_mode);
    let device = matches!(kind, FileType::CharacterDevice | FileType::BlockDevice);
    let target = (kind == FileType::Symlink)
        .then(|| readlinkat(dir, name, Vec::new()).expect("a link can be read").into_bytes());
    Described {
        kind,
        mode: stat.st_mode & 0o7777,
        owner: (stat.st_uid, stat.st_gid),
        mtime: (stat.st_mtime, i64::try_from(stat.st_mtime_nsec).expect("below a second")),
        rdev: if device { stat.st_rdev } else { 0 },
        content: (kind == FileType::RegularFile).then(|| content(dir, name)),
        target,
        xattrs: xattrs(dir, name),
        nlink: if kind == FileType::Directory { 0 } else { stat.st_nlink },
        same_as: None,
    }
}

fn content(dir: &OwnedFd, name: &OsStr) -> (u64, String) {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW;
    let mut file =
        File::from(openat(dir, name, flags, Mode::empty()).expect("a file can be opened"));
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; 1 << 20];
    let mut len = 0;
    loop {
        let count = file.read(&mut buffer).expect("a file can be read");
        if count == 0 {
            return (len, hasher.finalize().to_hex().to_string());
        }
        len += u64::try_from(count).expect("fits");
        hasher.update(&buffer[..count]);
    }
}

fn xattrs(dir: &OwnedFd, name: &OsStr) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let path = PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd())).join(name);
    let mut list = vec![0; 65_536];
    let len = llistxattr(&path, &mut list).expect("attributes can be listed");
    list[..len]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
        .map(|name| {
            let mut value = vec![0; 65_536];
            let len = lgetxattr(&path, name, &mut value).expect("an attribute can be read");
            (name.to_vec(), value[..len].to_vec())
        })
        .collect()
}

/// Fails the test with every difference between two trees.
pub(crate) fn assert_same(left: &Snapshot, right: &Snapshot) {
    let mut differences = Vec::new();
    for (path, one) in left {
        match right.get(path) {
            None => differences.push(format!("{path}: only left: {one:?}")),
            Some(other) if one != other => {
                differences.push(format!("{path}:\n    {one:?}\n    {other:?}"));
            }
            Some(_) => {}
        }
    }
    for (path, other) in right {
        if !left.contains_key(path) {
            differences.push(format!("{path}: only right: {other:?}"));
        }
    }
    let shown: Vec<_> = differences.iter().take(20).cloned().collect();
    assert!(differences.is_empty(), "{} differences:\n{}", differences.len(), shown.join("\n"));
}
