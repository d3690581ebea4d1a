//! Random stacks of layers, each as a tar archive, and their merge done by hand on a directory.
//!
//! The merge here is the plainest one there is: unpack one layer after another onto a directory
//! and obey the whiteouts. It shares no code with the product, which is the point.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags};
use rustix::io::Errno;
use rustix::process::{Gid, Uid};

use crate::operation::{Acl, Fill, NodeKind, Place};

/// Metadata that a layer brings.
#[derive(Clone, Debug)]
pub(crate) struct Metadata {
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: (i64, u32),
    pub(crate) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// What a layer says of one place.
#[derive(Clone, Debug)]
pub(crate) enum Node {
    Directory,
    /// A directory that hides what lower layers hold there.
    OpaqueDirectory,
    Regular(Content),
    Symlink(Vec<u8>),
    Special(NodeKind),
    /// Another name of a file of this layer or of a lower one.
    HardLink(Place),
    Whiteout,
}

/// Content of a regular file: fills at offsets, holes between them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Content {
    pub(crate) size: u64,
    pub(crate) fills: Vec<(u64, Fill)>,
}

impl Content {
    /// A file of one fill.
    pub(crate) fn of(fill: Fill) -> Self {
        Self { size: fill.len as u64, fills: vec![(0, fill)] }
    }

    /// All its bytes.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(self.size).unwrap()];
        for (offset, fill) in &self.fills {
            let at = usize::try_from(*offset).unwrap();
            bytes[at..at + fill.len].copy_from_slice(&fill.bytes());
        }
        bytes
    }
}

/// One entry of a layer.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) place: Place,
    pub(crate) node: Node,
    pub(crate) metadata: Metadata,
}

/// One layer, in archive order: a directory before what it holds.
#[derive(Clone, Debug, Default)]
pub(crate) struct Layer {
    pub(crate) entries: Vec<Entry>,
}

impl Layer {
    /// Several layers in one, each under a directory of its own.
    pub(crate) fn side_by_side<'a>(parts: impl Iterator<Item = (Place, &'a Layer)>) -> Self {
        let mut all = Self::default();
        for (top, layer) in parts {
            let within = |place: &Place| top.join(place.as_bytes());
            all.entries.push(Entry {
                place: top.clone(),
                node: Node::Directory,
                metadata: Metadata {
                    mode: 0o755,
                    uid: 0,
                    gid: 0,
                    mtime: (1_000_000_000, 0),
                    xattrs: BTreeMap::new(),
                },
            });
            all.entries.extend(layer.entries.iter().map(|entry| Entry {
                place: within(&entry.place),
                node: match &entry.node {
                    Node::HardLink(target) => Node::HardLink(within(target)),
                    node => node.clone(),
                },
                metadata: entry.metadata.clone(),
            }));
        }
        all
    }
}

/// A directory of `names` files, over two layers: every third name is only in the higher one.
pub(crate) fn large_directory(directory: &Place, names: usize) -> Vec<Layer> {
    let metadata = |mode| Metadata {
        mode,
        uid: 0,
        gid: 0,
        mtime: (1_000_000_000, 0),
        xattrs: BTreeMap::new(),
    };
    let file = |number: usize| Entry {
        place: directory.join(format!("file{number}").as_bytes()),
        node: Node::Regular(Content::of(Fill { len: 10, seed: 1 })),
        metadata: metadata(0o644),
    };
    let mut layers = Vec::new();
    for higher in [false, true] {
        let mut entries = vec![Entry {
            place: directory.clone(),
            node: Node::Directory,
            metadata: metadata(0o755),
        }];
        let numbers = (0..names).filter(|number| number.is_multiple_of(3) == higher);
        entries.extend(numbers.map(file));
        layers.push(Layer { entries });
    }
    layers
}

/// A random stack, lowest first. The lowest has `usr` (shared opens) and `srv` (coherent ones).
pub(crate) fn random_stack(seed: u64, layers: usize) -> Vec<Layer> {
    let mut maker = Maker { random: fastrand::Rng::with_seed(seed), merged: BTreeMap::new() };
    (0..layers).map(|index| if index == 0 { maker.lowest() } else { maker.higher() }).collect()
}

struct Maker {
    random: fastrand::Rng,
    /// What the stack so far holds: true for a directory.
    merged: BTreeMap<Place, bool>,
}

impl Maker {
    fn lowest(&mut self) -> Layer {
        let mut layer = Layer::default();
        for directory in ["usr", "usr/a", "usr/a/b", "usr/c", "srv", "srv/a", "srv/a/b", "srv/d"] {
            let entry = self.entry(Place::new(directory), Node::Directory);
            self.push(&mut layer, entry);
        }
        for _ in 0..60 {
            let directory = self.directory();
            let place = directory.join(&self.name());
            if !self.merged.contains_key(&place) {
                let node = self.node(&layer, &place);
                let entry = self.entry(place, node);
                self.push(&mut layer, entry);
            }
        }
        layer
    }

    fn higher(&mut self) -> Layer {
        let mut layer = Layer::default();
        for _ in 0..24 {
            let place = match self.random.u32(0..3) {
                0 => {
                    let directory = self.directory();
                    directory.join(&self.name())
                }
                _ => self.existing(),
            };
            // A place is spoken of once in a layer, and nothing below a place that went.
            let spoken = |entry: &Entry| {
                entry.place.is_under(&place)
                    || (place.is_under(&entry.place) && !holds_lower(&entry.node))
                    || matches!(&entry.node, Node::HardLink(target) if target.is_under(&place))
            };
            if layer.entries.iter().any(spoken) || place.depth() < 2 {
                continue;
            }
            let node = match self.random.u32(0..8) {
                0 | 1 => Node::Whiteout,
                2 => Node::OpaqueDirectory,
                3 => Node::Directory,
                _ => self.node(&layer, &place),
            };
            // A whiteout is a name too: `.wh.` must fit before the name it hides.
            let hideable = self.merged.contains_key(&place) && place.name().len() <= 251;
            if matches!(node, Node::Whiteout) && !hideable {
                continue;
            }
            self.parents(&mut layer, &place);
            let opaque = matches!(node, Node::OpaqueDirectory);
            let entry = self.entry(place.clone(), node);
            self.push(&mut layer, entry);
            if opaque {
                for _ in 0..self.random.usize(0..3) {
                    let inner = place.join(&self.name());
                    if !self.merged.contains_key(&inner) {
                        let node = self.node(&layer, &place);
                        let entry = self.entry(inner, node);
                        self.push(&mut layer, entry);
                    }
                }
            }
        }
        layer
    }

    /// Layers bring the directories on the way to what they change, with whatever metadata.
    fn parents(&mut self, layer: &mut Layer, place: &Place) {
        let mut missing = Vec::new();
        let mut parent = place.parent();
        while !parent.is_root() {
            if !layer.entries.iter().any(|entry| entry.place == parent) {
                missing.push(parent.clone());
            }
            parent = parent.parent();
        }
        for parent in missing.into_iter().rev() {
            let entry = self.entry(parent, Node::Directory);
            self.push(layer, entry);
        }
    }

    fn push(&mut self, layer: &mut Layer, entry: Entry) {
        let place = entry.place.clone();
        match entry.node {
            Node::Whiteout => self.merged.retain(|other, _| !other.is_under(&place)),
            Node::Directory if self.merged.get(&place) == Some(&true) => {}
            Node::Directory | Node::OpaqueDirectory => {
                self.merged.retain(|other, _| !other.is_under(&place));
                self.merged.insert(place, true);
            }
            Node::Regular(_) | Node::Symlink(_) | Node::Special(_) | Node::HardLink(_) => {
                self.merged.retain(|other, _| !other.is_under(&place));
                self.merged.insert(place, false);
            }
        }
        layer.entries.push(entry);
    }

    fn entry(&mut self, place: Place, node: Node) -> Entry {
        let directory = matches!(node, Node::Directory | Node::OpaqueDirectory);
        let symlink = matches!(node, Node::Symlink(_));
        let regular = matches!(node, Node::Regular(_));
        let modes: &[u32] = if directory {
            &[0o755, 0o755, 0o2775, 0o1777, 0o700, 0o555]
        } else {
            &[0o644, 0o755, 0o600, 0o4755, 0o2755, 0o444]
        };
        let mode = if symlink { 0o777 } else { modes[self.random.usize(0..modes.len())] };
        let ids = [0, 0, 1000, 65534, 100];
        let mut xattrs = BTreeMap::new();
        let mut put = |name: &[u8], value: &[u8]| xattrs.insert(name.to_vec(), value.to_vec());
        if (directory || regular) && self.random.u32(0..4) == 0 {
            put(b"user.a", b"line\nline\0=1 ");
        }
        if self.random.u32(0..8) == 0 {
            put(b"trusted.a", &[0, 255, 10]);
        }
        if directory && self.random.u32(0..6) == 0 {
            put(b"system.posix_acl_default", &self.acl().encode());
        }
        let mut metadata = Metadata {
            mode,
            uid: ids[self.random.usize(0..ids.len())],
            gid: ids[self.random.usize(0..ids.len())],
            mtime: (
                self.random.i64(1_000_000_000..1_500_000_000),
                [0, 1, 123_456_789, 999_999_999][self.random.usize(0..4)],
            ),
            xattrs,
        };
        if !symlink && self.random.u32(0..8) == 0 {
            let acl = self.acl();
            metadata.mode = (mode & 0o7000)
                | u32::from(acl.owner) << 6
                | u32::from(acl.mask.unwrap_or(acl.group)) << 3
                | u32::from(acl.other);
            metadata.xattrs.insert(b"system.posix_acl_access".to_vec(), acl.encode());
        }
        Entry { place, node, metadata }
    }

    fn acl(&mut self) -> Acl {
        let mut permissions = || self.random.u16(0..8);
        Acl {
            owner: permissions(),
            user: Some((1000, permissions())),
            group: permissions(),
            named_group: None,
            mask: Some(permissions()),
            other: permissions(),
        }
    }

    fn node(&mut self, layer: &Layer, place: &Place) -> Node {
        match self.random.u32(0..20) {
            0 | 1 => Node::Symlink(self.name()),
            2 => Node::Special(NodeKind::Fifo),
            3 => Node::Special(NodeKind::Character(240, 3)),
            4 => Node::Special(NodeKind::Block(240, 4)),
            5..=8 => match self.link_target(layer, place) {
                Some(target) => Node::HardLink(target),
                None => Node::Regular(self.content()),
            },
            9 => Node::Directory,
            _ => Node::Regular(self.content()),
        }
    }

    /// A file to link to that this layer has not hidden: its own, or an untouched lower one.
    fn link_target(&mut self, layer: &Layer, replaced: &Place) -> Option<Place> {
        let settled: Vec<&Place> = self
            .merged
            .iter()
            .filter(|(place, directory)| {
                !**directory
                    && !place.is_under(replaced)
                    && layer.entries.iter().all(|entry| {
                        entry.place != **place || !matches!(entry.node, Node::HardLink(_))
                    })
            })
            .map(|(place, _)| place)
            .collect();
        match settled.len() {
            0 => None,
            n => Some(settled[self.random.usize(0..n)].clone()),
        }
    }

    fn content(&mut self) -> Content {
        let fill = |random: &mut fastrand::Rng, len| Fill { len, seed: random.u8(1..) };
        match self.random.u32(0..10) {
            0 => Content::default(),
            // Equal content under many names shares one object.
            1 | 2 => Content::of(Fill { len: 100, seed: 7 }),
            3 => Content::of(fill(&mut self.random, 4096)),
            4 => Content::of(fill(&mut self.random, 70_000)),
            5 => {
                let middle = fill(&mut self.random, 5000);
                Content { size: 200_000, fills: vec![(65_536, middle), (150_000, middle)] }
            }
            6 => Content { size: 30_000, fills: Vec::new() },
            _ => {
                let len = self.random.usize(1..9000);
                Content::of(fill(&mut self.random, len))
            }
        }
    }

    fn directory(&mut self) -> Place {
        let directories: Vec<&Place> =
            self.merged.iter().filter(|(_, is)| **is).map(|(place, _)| place).collect();
        directories[self.random.usize(0..directories.len())].clone()
    }

    fn existing(&mut self) -> Place {
        let n = self.random.usize(0..self.merged.len());
        self.merged.keys().nth(n).expect("the index is below the length").clone()
    }

    fn name(&mut self) -> Vec<u8> {
        match self.random.u32(0..30) {
            0 => vec![b'n'; 255],
            1 => b"\xff\xfe not utf-8\n".to_vec(),
            _ => vec![self.random.u8(b'a'..=b'j')],
        }
    }
}

/// Whether entries below this one may speak of what lower layers hold there.
fn holds_lower(node: &Node) -> bool {
    matches!(node, Node::Directory)
}

/// Unpacks `layer` onto `root`, which holds what lower layers made, and sets exact metadata.
/// `times` carries the directory times from layer to layer: unpacking disturbs them.
pub(crate) fn unpack(layer: &Layer, root: &Path, times: &mut BTreeMap<Place, (i64, u32)>) {
    let path = |place: &Place| path_in(root, place);
    for entry in &layer.entries {
        let target = path(&entry.place);
        match &entry.node {
            Node::Whiteout => {
                remove(&target);
                times.retain(|place, _| !place.is_under(&entry.place));
                continue;
            }
            Node::Directory => {
                if !fs::symlink_metadata(&target).is_ok_and(|found| found.is_dir()) {
                    remove(&target);
                    fs::create_dir(&target).unwrap();
                }
            }
            Node::OpaqueDirectory => {
                remove(&target);
                times.retain(|place, _| !place.is_under(&entry.place));
                fs::create_dir(&target).unwrap();
            }
            Node::Regular(content) => {
                remove(&target);
                times.retain(|place, _| !place.is_under(&entry.place));
                let file = fs::File::create_new(&target).unwrap();
                file.set_len(content.size).unwrap();
                for (offset, fill) in &content.fills {
                    rustix::io::pwrite(&file, &fill.bytes(), *offset).unwrap();
                }
            }
            Node::Symlink(to) => {
                remove(&target);
                times.retain(|place, _| !place.is_under(&entry.place));
                rustix::fs::symlink(to.as_slice(), &target).unwrap();
            }
            Node::Special(kind) => {
                remove(&target);
                times.retain(|place, _| !place.is_under(&entry.place));
                let (file_type, major, minor) = special(*kind);
                let device = rustix::fs::makedev(major, minor);
                rustix::fs::mknodat(CWD, &target, file_type, Mode::RWXU, device).unwrap();
            }
            Node::HardLink(to) => {
                remove(&target);
                times.retain(|place, _| !place.is_under(&entry.place));
                rustix::fs::linkat(CWD, path(to), CWD, &target, AtFlags::empty()).unwrap();
                // The entry's own metadata is that of the file it names: nothing to set.
                continue;
            }
        }
        set_metadata(&target, &entry.node, &entry.metadata);
        if matches!(entry.node, Node::Directory | Node::OpaqueDirectory) {
            times.insert(entry.place.clone(), entry.metadata.mtime);
        }
    }
    for (place, mtime) in times.iter() {
        set_mtime(&path(place), *mtime);
    }
}

fn set_metadata(path: &Path, node: &Node, metadata: &Metadata) {
    let (uid, gid) = (Uid::from_raw(metadata.uid), Gid::from_raw(metadata.gid));
    rustix::fs::chownat(CWD, path, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW).unwrap();
    let mut old = Vec::with_capacity(4096);
    rustix::fs::llistxattr(path, rustix::buffer::spare_capacity(&mut old)).unwrap();
    for name in old.split(|&b| b == 0).filter(|name| !name.is_empty()) {
        if !metadata.xattrs.contains_key(name) {
            match rustix::fs::lremovexattr(path, name) {
                Ok(()) | Err(Errno::NODATA) => {}
                Err(error) => panic!("cannot remove an attribute: {error}"),
            }
        }
    }
    if !matches!(node, Node::Symlink(_)) {
        rustix::fs::chmod(path, Mode::from_raw_mode(metadata.mode)).unwrap();
    }
    for (name, value) in &metadata.xattrs {
        rustix::fs::lsetxattr(path, name.as_slice(), value, XattrFlags::empty()).unwrap();
    }
    set_mtime(path, metadata.mtime);
}

pub(crate) fn set_mtime(path: &Path, (secs, nanos): (i64, u32)) {
    let time = Timespec { tv_sec: secs, tv_nsec: nanos.into() };
    let times = Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

fn path_in(root: &Path, place: &Place) -> PathBuf {
    root.join(OsStr::from_bytes(place.as_bytes()))
}

fn remove(path: &Path) {
    match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path).unwrap(),
        Ok(_) => fs::remove_file(path).unwrap(),
        Err(_) => {}
    }
}

fn special(kind: NodeKind) -> (FileType, u32, u32) {
    match kind {
        NodeKind::Regular => (FileType::RegularFile, 0, 0),
        NodeKind::Fifo => (FileType::Fifo, 0, 0),
        NodeKind::Socket => (FileType::Socket, 0, 0),
        NodeKind::Character(major, minor) => (FileType::CharacterDevice, major, minor),
        NodeKind::Block(major, minor) => (FileType::BlockDevice, major, minor),
    }
}

/// Writes `layer` as a PAX archive with OCI whiteouts. The records are made here, not by the
/// crate that the product reads them with.
pub(crate) fn write_tar(layer: &Layer, to: impl Write) {
    let mut archive = tar::Builder::new(to);
    for entry in &layer.entries {
        let mut header = tar::Header::new_ustar();
        let mut records = Vec::new();
        let metadata = &entry.metadata;
        header.set_mode(metadata.mode);
        header.set_uid(metadata.uid.into());
        header.set_gid(metadata.gid.into());
        header.set_mtime(u64::try_from(metadata.mtime.0).unwrap());
        let (secs, nanos) = metadata.mtime;
        record(&mut records, b"mtime", format!("{secs}.{nanos:09}").as_bytes());
        let mut body = Vec::new();
        let mut place = entry.place.clone();
        match &entry.node {
            Node::Directory | Node::OpaqueDirectory => {
                header.set_entry_type(tar::EntryType::Directory)
            }
            Node::Regular(content) => {
                header.set_entry_type(tar::EntryType::Regular);
                body = content.bytes();
            }
            Node::Symlink(target) => {
                header.set_entry_type(tar::EntryType::Symlink);
                record(&mut records, b"linkpath", target);
            }
            Node::HardLink(target) => {
                header.set_entry_type(tar::EntryType::Link);
                record(&mut records, b"linkpath", target.as_bytes());
            }
            Node::Special(kind) => {
                let (_, major, minor) = special(*kind);
                header.set_entry_type(match kind {
                    NodeKind::Fifo => tar::EntryType::Fifo,
                    NodeKind::Character(..) => tar::EntryType::Char,
                    NodeKind::Block(..) => tar::EntryType::Block,
                    NodeKind::Regular | NodeKind::Socket => panic!("tar has no such entry"),
                });
                header.set_device_major(major).unwrap();
                header.set_device_minor(minor).unwrap();
            }
            Node::Whiteout => {
                header.set_entry_type(tar::EntryType::Regular);
                place = whiteout_of(&place);
            }
        }
        if !matches!(entry.node, Node::Whiteout | Node::HardLink(_)) {
            for (name, value) in &metadata.xattrs {
                record(&mut records, &[b"SCHILY.xattr.", name.as_slice()].concat(), value);
            }
        }
        append(&mut archive, header, records, &place, &body);
        if matches!(entry.node, Node::OpaqueDirectory) {
            let mut header = tar::Header::new_ustar();
            header.set_entry_type(tar::EntryType::Regular);
            header.set_mode(0o644);
            append(&mut archive, header, Vec::new(), &place.join(b".wh..wh..opq"), &[]);
        }
    }
    archive.finish().unwrap();
}

fn whiteout_of(place: &Place) -> Place {
    place.parent().join(&[b".wh.", place.name()].concat())
}

fn append(
    archive: &mut tar::Builder<impl Write>,
    mut header: tar::Header,
    mut records: Vec<u8>,
    place: &Place,
    body: &[u8],
) {
    record(&mut records, b"path", place.as_bytes());
    let mut pax = tar::Header::new_ustar();
    pax.set_entry_type(tar::EntryType::XHeader);
    pax.set_size(records.len() as u64);
    pax.set_path("pax").unwrap();
    pax.set_cksum();
    archive.append(&pax, records.as_slice()).unwrap();
    header.set_size(body.len() as u64);
    header.set_path("real-name-is-in-the-record").unwrap();
    header.set_cksum();
    archive.append(&header, body).unwrap();
}

/// One PAX record: its own length in decimal, a space, key, `=`, value, newline.
fn record(records: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut len = rest + 1;
    while len != rest + len.to_string().len() {
        len = rest + len.to_string().len();
    }
    records.extend_from_slice(len.to_string().as_bytes());
    records.push(b' ');
    records.extend_from_slice(key);
    records.push(b'=');
    records.extend_from_slice(value);
    records.push(b'\n');
}
