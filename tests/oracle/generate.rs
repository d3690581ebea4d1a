//! Random steps that hit: a generator that knows what exists.
//!
//! Blind steps mostly answer `ENOENT`. The generator keeps a census of the tree and of the open
//! slots, aims most steps at what is there and the rest at what is not. Two generators with one
//! seed and one census give the same step. Knows nothing of how steps are carried out.

use std::collections::BTreeMap;

use crate::operation::{
    Access, Acl, AllocateHow, Fill, NodeKind, OpenHow, Operation, Place, RenameHow, SetHow, Step,
    Target, Text, Time, Who,
};
use crate::world::{HANDLES, Kind, LISTINGS, MAPS};

/// What exists, as far as the steps so far have shown.
#[derive(Clone, Debug, Default)]
pub(crate) struct Census {
    places: BTreeMap<Place, Kind>,
    handles: [bool; HANDLES],
    maps: [bool; MAPS],
    listings: [bool; LISTINGS],
}

impl Census {
    /// Nothing but the root.
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Records that `place` is a `kind`, or is not there.
    pub(crate) fn set(&mut self, place: &Place, kind: Option<Kind>) {
        if place.is_root() {
            return;
        }
        match kind {
            Some(kind) => {
                if kind != Kind::Directory {
                    self.remove_tree(place);
                }
                self.places.insert(place.clone(), kind);
            }
            None => self.remove_tree(place),
        }
    }

    /// Records that exactly `all` is there.
    pub(crate) fn replace(&mut self, all: &BTreeMap<Place, Kind>) {
        self.places.clone_from(all);
    }

    /// Records the outcome of a step that succeeded.
    pub(crate) fn record(&mut self, operation: &Operation) {
        use Operation as O;
        match operation {
            O::Rename { from, to, how: RenameHow::Exchange } => {
                let (a, b) = (self.take_tree(from), self.take_tree(to));
                self.put_tree(a, from, to);
                self.put_tree(b, to, from);
            }
            O::Rename { from, to, .. } if from != to => {
                let moved = self.take_tree(from);
                self.remove_tree(to);
                self.put_tree(moved, from, to);
            }
            O::Open { slot, .. } | O::Reopen { slot, .. } => self.handles[*slot] = true,
            O::Close { slot } => self.handles[*slot] = false,
            O::Map { map, .. } => self.maps[*map] = true,
            O::Unmap { map } => self.maps[*map] = false,
            O::OpenListing { slot, .. } => self.listings[*slot] = true,
            O::ListRest { slot } => self.listings[*slot] = false,
            O::Remount => {
                self.handles = Default::default();
                self.maps = Default::default();
                self.listings = Default::default();
            }
            _ => {}
        }
    }

    /// Every known place under `top`, itself included.
    pub(crate) fn under(&self, top: &Place) -> Vec<Place> {
        self.places.keys().filter(|place| place.is_under(top)).cloned().collect()
    }

    /// Whether anything is mapped.
    pub(crate) fn has_maps(&self) -> bool {
        self.maps.contains(&true)
    }

    /// The number of known places.
    pub(crate) fn len(&self) -> usize {
        self.places.len()
    }

    fn remove_tree(&mut self, top: &Place) {
        self.places.retain(|place, _| !place.is_under(top));
    }

    fn take_tree(&mut self, top: &Place) -> Vec<(Place, Kind)> {
        let taken: Vec<_> = self
            .places
            .iter()
            .filter(|(place, _)| place.is_under(top))
            .map(|(place, kind)| (place.clone(), *kind))
            .collect();
        self.remove_tree(top);
        taken
    }

    fn put_tree(&mut self, tree: Vec<(Place, Kind)>, from: &Place, to: &Place) {
        for (place, kind) in tree {
            self.places.insert(place.moved(from, to), kind);
        }
    }
}

/// Which steps a world can carry out at all.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Profile {
    /// Steps of users other than root.
    pub(crate) users: bool,
    /// Mappings.
    pub(crate) maps: bool,
    /// `Forget` and `Remount`.
    pub(crate) remount: bool,
    /// `trusted.*` and `security.*` attributes beside `user.*`.
    pub(crate) privileged_xattrs: bool,
    /// Listings that go on while names come and go.
    pub(crate) listings: bool,
    /// Access control lists.
    pub(crate) acls: bool,
}

impl Profile {
    /// Everything a kernel mount can do.
    pub(crate) const MOUNTED: Self = Self {
        users: true,
        maps: true,
        remount: true,
        privileged_xattrs: true,
        listings: true,
        acls: true,
    };

    /// What makes sense without a kernel.
    pub(crate) const UNMOUNTED: Self = Self {
        users: false,
        maps: false,
        remount: false,
        privileged_xattrs: true,
        listings: false,
        acls: true,
    };
}

/// Makes steps from a seed.
#[derive(Clone, Debug)]
pub(crate) struct Generator {
    random: fastrand::Rng,
    profile: Profile,
}

const IDS: [u32; 5] = [0, 1000, 65534, 100, 4242];
const MODES: [u32; 14] = [
    0o644, 0o755, 0o600, 0o000, 0o777, 0o4755, 0o2755, 0o6755, 0o1777, 0o2644, 0o4644, 0o2775,
    0o444, 0o700,
];
const UMASKS: [u32; 5] = [0o022, 0o000, 0o077, 0o027, 0o777];

impl Generator {
    /// A generator of steps within `profile`.
    pub(crate) fn new(seed: u64, profile: Profile) -> Self {
        Self { random: fastrand::Rng::with_seed(seed), profile }
    }

    /// The next step on what `census` says is there.
    pub(crate) fn step(&mut self, census: &Census) -> Step {
        let operation = self.operation(census);
        let kept_for_root = matches!(operation, Operation::Forget | Operation::Remount);
        let who = match self.random.u32(0..10) {
            0 if self.profile.users && !kept_for_root => Who::User,
            1 if self.profile.users && !kept_for_root => Who::Nobody,
            _ => Who::Root,
        };
        let umask = if self.random.u32(0..3) > 0 { 0o022 } else { self.pick(&UMASKS) };
        Step { who, umask, operation }
    }

    fn operation(&mut self, census: &Census) -> Operation {
        use Operation as O;
        if census.len() < 30 && self.random.u32(0..3) == 0 {
            return self.creation(census);
        }
        match self.random.u32(0..1000) {
            0..=129 => self.creation(census),
            130..=179 => O::Unlink { place: self.some(census, not_directory) },
            180..=199 => O::RemoveDirectory { place: self.some(census, is_directory) },
            200..=309 => self.rename(census),
            310..=359 => self.link(census),
            360..=459 => self.write(census),
            460..=489 => O::Read {
                target: self.target(census, is_regular),
                offset: self.offset(),
                len: self.random.usize(0..9000),
            },
            490..=519 => O::Truncate { target: self.target(census, is_regular), len: self.size() },
            520..=544 => O::Allocate {
                target: self.target(census, is_regular),
                how: self.pick(&[
                    AllocateHow::Grow,
                    AllocateHow::KeepSize,
                    AllocateHow::Punch,
                    AllocateHow::Zero,
                ]),
                offset: self.offset(),
                len: self.size().max(1),
            },
            545..=564 if self.profile.maps => O::MapWrite {
                target: self.target(census, is_regular),
                offset: self.offset() / 4,
                fill: self.fill(),
            },
            565..=579 => O::CopyRange {
                from: self.target(census, is_regular),
                to: self.target(census, is_regular),
                from_offset: self.offset() / 2,
                to_offset: self.offset() / 2,
                len: usize::try_from(self.size()).unwrap_or(1),
            },
            580..=589 => O::Holes { target: self.target(census, is_regular) },
            590..=629 => O::Chmod { target: self.target(census, any), mode: self.pick(&MODES) },
            630..=659 => O::Chown {
                target: self.target(census, any),
                uid: self.maybe().then(|| self.pick(&IDS)),
                gid: self.maybe().then(|| self.pick(&IDS)),
                follow: self.maybe(),
            },
            660..=694 => O::SetTimes {
                target: self.target(census, any),
                access: self.time(),
                modify: self.time(),
                follow: self.maybe(),
            },
            695..=724 => self.set_xattr(census),
            725..=739 => O::RemoveXattr {
                target: self.target(census, any),
                name: Text(self.xattr_name()),
                follow: self.maybe(),
            },
            740..=749 => O::GetXattr {
                target: self.target(census, any),
                name: Text(self.xattr_name()),
                room: self.pick(&[0, 1, 24, 400]),
            },
            750..=774 if self.profile.acls => self.set_acl(census),
            775..=834 => self.open(census),
            835..=849 => O::Close { slot: self.handle(census) },
            850..=864 => O::Inspect { slot: self.handle(census) },
            865..=871 => O::Sync { slot: self.handle(census), data_only: self.maybe() },
            872..=879 => O::LinkHandle { slot: self.handle(census), to: self.fresh(census) },
            880..=889 if self.profile.maps => O::Reopen {
                slot: self.random.usize(0..HANDLES),
                from: self.handle(census),
                access: self.access(),
                truncate: self.random.u32(0..6) == 0,
            },
            890..=904 if self.profile.maps => O::Map {
                map: self.random.usize(0..MAPS),
                slot: self.handle(census),
                len: self.pick(&[1, 100, 4096, 10_000, 70_000]),
                write: self.maybe(),
            },
            905..=919 if self.profile.maps => O::MapPoke {
                map: slot(&mut self.random, &census.maps),
                offset: usize::try_from(self.offset() / 8).unwrap_or(0),
                fill: self.fill(),
                sync: self.maybe(),
            },
            920..=934 if self.profile.maps => O::MapPeek {
                map: slot(&mut self.random, &census.maps),
                offset: usize::try_from(self.offset() / 8).unwrap_or(0),
                len: self.random.usize(1..6000),
            },
            935..=937 if self.profile.maps => {
                O::Unmap { map: slot(&mut self.random, &census.maps) }
            }
            938..=949 => O::List { place: self.some(census, is_directory) },
            950..=959 if self.profile.listings => O::OpenListing {
                slot: self.random.usize(0..LISTINGS),
                place: self.some(census, is_directory),
            },
            960..=971 if self.profile.listings => {
                O::ListSome { slot: slot(&mut self.random, &census.listings), seek: self.maybe() }
            }
            972..=979 if self.profile.listings => {
                O::ListRest { slot: slot(&mut self.random, &census.listings) }
            }
            980..=982 if self.profile.listings => {
                let place = self.some(census, is_directory);
                if place.depth() < 2 { O::List { place } } else { O::EmptyWhileListing { place } }
            }
            983..=989 if self.profile.remount => O::Forget,
            990..=991 if self.profile.remount => O::Remount,
            _ => self.write(census),
        }
    }

    fn creation(&mut self, census: &Census) -> Operation {
        use Operation as O;
        let place = self.fresh(census);
        let mode = self.pick(&MODES);
        match self.random.u32(0..20) {
            0..=6 => O::MakeDirectory { place, mode },
            7..=9 => O::Symlink { place, target: Text(self.symlink_target(census)) },
            10..=12 => O::MakeNode {
                place,
                kind: self.pick(&[
                    NodeKind::Regular,
                    NodeKind::Fifo,
                    NodeKind::Socket,
                    NodeKind::Character(0, 0),
                    NodeKind::Character(240, 7),
                    NodeKind::Block(240, 1),
                ]),
                mode,
            },
            _ => O::Write {
                target: Target::Name(place),
                offset: 0,
                fill: self.fill(),
                how: OpenHow { create: Some(mode), exclusive: self.maybe(), ..OpenHow::default() },
            },
        }
    }

    fn rename(&mut self, census: &Census) -> Operation {
        let from = self.some(census, any);
        let to = match self.random.u32(0..20) {
            0 => self.child_of(&from),
            1..=9 => self.some(census, any),
            _ => self.fresh(census),
        };
        let how = match self.random.u32(0..10) {
            0 => RenameHow::NoReplace,
            1 | 2 => RenameHow::Exchange,
            3 => RenameHow::Whiteout,
            _ => RenameHow::Replace,
        };
        Operation::Rename { from, to, how }
    }

    fn link(&mut self, census: &Census) -> Operation {
        let from = self.some(census, not_directory);
        let to =
            if self.random.u32(0..6) == 0 { self.some(census, any) } else { self.fresh(census) };
        Operation::Link { from, to, follow: self.maybe() }
    }

    fn write(&mut self, census: &Census) -> Operation {
        let target = self.target(census, is_regular);
        let how = match target {
            Target::Handle(_) => OpenHow::default(),
            Target::Name(_) => OpenHow {
                create: (self.random.u32(0..4) == 0).then(|| self.pick(&MODES)),
                exclusive: false,
                truncate: self.random.u32(0..5) == 0,
                append: self.random.u32(0..4) == 0,
                no_follow: self.random.u32(0..10) == 0,
                directory: false,
            },
        };
        Operation::Write { target, offset: self.offset(), fill: self.fill(), how }
    }

    fn open(&mut self, census: &Census) -> Operation {
        let create = self.random.u32(0..6) == 0;
        let place = match (create, self.random.u32(0..12)) {
            (true, _) => self.fresh(census),
            (false, 0) => self.some(census, any),
            (false, _) => self.some(census, is_regular),
        };
        Operation::Open {
            slot: self.random.usize(0..HANDLES),
            place,
            access: self.access(),
            how: OpenHow {
                create: create.then(|| self.pick(&MODES)),
                exclusive: self.random.u32(0..10) == 0,
                truncate: self.random.u32(0..8) == 0,
                append: self.random.u32(0..6) == 0,
                no_follow: self.random.u32(0..10) == 0,
                directory: self.random.u32(0..40) == 0,
            },
        }
    }

    fn set_xattr(&mut self, census: &Census) -> Operation {
        let name = self.xattr_name();
        let value = if name == b"security.capability" {
            // VFS_CAP_REVISION_2 with the effective bit: cap_net_raw.
            let mut value = 0x0200_0001_u32.to_le_bytes().to_vec();
            value.extend_from_slice(&(1_u32 << 13).to_le_bytes());
            value.extend_from_slice(&[0; 12]);
            value
        } else {
            match self.random.u32(0..4) {
                0 => Vec::new(),
                1 => b"y".to_vec(),
                _ => Fill { len: self.random.usize(1..60), seed: self.random.u8(..) }.bytes(),
            }
        };
        Operation::SetXattr {
            target: self.target(census, any),
            name: Text(name),
            value: Text(value),
            how: self.pick(&[SetHow::Set, SetHow::Set, SetHow::Create, SetHow::Replace]),
            follow: self.maybe(),
        }
    }

    fn set_acl(&mut self, census: &Census) -> Operation {
        let default = self.maybe();
        let name: &[u8] =
            if default { b"system.posix_acl_default" } else { b"system.posix_acl_access" };
        let permissions = |random: &mut fastrand::Rng| random.u16(0..8);
        let named = self.random.u32(0..3) > 0;
        let acl = Acl {
            owner: permissions(&mut self.random),
            user: named.then(|| (self.pick(&IDS), permissions(&mut self.random))),
            group: permissions(&mut self.random),
            named_group: (named && self.maybe())
                .then(|| (self.pick(&IDS), permissions(&mut self.random))),
            mask: (named || self.random.u32(0..5) == 0).then(|| permissions(&mut self.random)),
            other: permissions(&mut self.random),
        };
        let target =
            if default { self.target(census, is_directory) } else { self.target(census, any) };
        if self.random.u32(0..6) == 0 {
            return Operation::RemoveXattr { target, name: Text::new(name), follow: true };
        }
        Operation::SetXattr {
            target,
            name: Text::new(name),
            value: Text(acl.encode()),
            how: SetHow::Set,
            follow: true,
        }
    }

    fn xattr_name(&mut self) -> Vec<u8> {
        const USER: [&[u8]; 4] = [b"user.a", b"user.b", b"user.overlay.opaque", b"user."];
        const PRIVILEGED: [&[u8]; 8] = [
            b"trusted.a",
            b"trusted.overlay.opaque",
            b"trusted.overlay.redirect",
            b"trusted.overlay.metacopy",
            b"trusted.overlay.overlay.opaque",
            b"security.capability",
            b"security.test",
            b"trusted.mica.ino",
        ];
        if self.profile.privileged_xattrs && self.maybe() {
            self.pick(&PRIVILEGED).to_vec()
        } else {
            self.pick(&USER).to_vec()
        }
    }

    /// A place that is likely free: a new name in a known directory.
    fn fresh(&mut self, census: &Census) -> Place {
        let directory = match self.random.u32(0..20) {
            0 => Place::root(),
            1 => self.some(census, is_symlink),
            _ => self.some(census, is_directory),
        };
        let name = self.name();
        if directory.depth() >= 7 { Place::new(name) } else { directory.join(&name) }
    }

    fn child_of(&mut self, place: &Place) -> Place {
        let name = self.name();
        place.join(&name)
    }

    fn name(&mut self) -> Vec<u8> {
        match self.random.u32(0..40) {
            0 => b".wh.a".to_vec(),
            1 => b".wh..wh..opq".to_vec(),
            2 => vec![b'n'; 255],
            3 => vec![b'n'; 256],
            4 => b"\xff\xfe not utf-8\n".to_vec(),
            5 => b"#0".to_vec(),
            _ => vec![self.random.u8(b'a'..=b'j')],
        }
    }

    fn symlink_target(&mut self, census: &Census) -> Vec<u8> {
        match self.random.u32(0..10) {
            0 => b"nowhere/at/all".to_vec(),
            1 => vec![b'x'; self.pick(&[1, 200, 4095])],
            2 => b"\xfe\xff".to_vec(),
            3..=5 => self.some(census, any).name().to_vec(),
            // One step up would leave the tree from its top, so links only point down.
            _ => {
                let name = self.name();
                let below = self.some(census, any);
                let mut target = below.name().to_vec();
                target.push(b'/');
                target.extend_from_slice(&name);
                target
            }
        }
        .or_dot()
    }

    /// A known place of a kind; now and then one that is not there.
    fn some(&mut self, census: &Census, wanted: fn(Kind) -> bool) -> Place {
        if self.random.u32(0..25) == 0 {
            let top = self.pick(&["usr", "srv", "usr/b", "nothing"]);
            let name = self.name();
            return Place::new(top).join(&name);
        }
        let matching: Vec<&Place> = census
            .places
            .iter()
            .filter(|(_, kind)| wanted(**kind))
            .map(|(place, _)| place)
            .collect();
        match matching.len() {
            0 => Place::new("usr"),
            n => matching[self.random.usize(0..n)].clone(),
        }
    }

    fn target(&mut self, census: &Census, wanted: fn(Kind) -> bool) -> Target {
        if self.random.u32(0..4) == 0 && census.handles.iter().any(|open| *open) {
            Target::Handle(self.handle(census))
        } else if wanted(Kind::Directory) && self.random.u32(0..60) == 0 {
            Target::Name(Place::root())
        } else {
            Target::Name(self.some(census, wanted))
        }
    }

    fn handle(&mut self, census: &Census) -> usize {
        slot(&mut self.random, &census.handles)
    }

    fn access(&mut self) -> Access {
        self.pick(&[Access::Read, Access::Write, Access::ReadWrite])
    }

    fn offset(&mut self) -> u64 {
        match self.random.u32(0..8) {
            0..=2 => 0,
            3 => self.random.u64(0..300),
            4 => self.pick(&[4095, 4096, 4097, 8192]),
            5 => self.random.u64(0..20_000),
            6 => self.random.u64(0..100_000),
            _ => self.random.u64(0..4096),
        }
    }

    fn size(&mut self) -> u64 {
        match self.random.u32(0..8) {
            0 => 0,
            1 | 2 => self.random.u64(0..200),
            3 => self.pick(&[1, 4095, 4096, 4097, 8192]),
            4 => self.random.u64(0..150_000),
            _ => self.random.u64(0..10_000),
        }
    }

    fn fill(&mut self) -> Fill {
        let len = match self.random.u32(0..8) {
            0 => 0,
            1 => self.pick(&[4096, 4097, 12_288]),
            2 => self.random.usize(0..70_000),
            _ => self.random.usize(1..300),
        };
        let seed = if self.random.u32(0..8) == 0 { 0 } else { self.random.u8(1..) };
        Fill { len, seed }
    }

    fn time(&mut self) -> Time {
        match self.random.u32(0..6) {
            0 => Time::Now,
            1 => Time::Keep,
            2 => Time::At(self.pick(&[0, 1, -86_400, 999_999_999]), 0),
            _ => Time::At(
                self.random.i64(1_000_000_000..1_600_000_000),
                self.pick(&[0, 1, 999_999_999, 123_456_789]),
            ),
        }
    }

    fn maybe(&mut self) -> bool {
        self.random.bool()
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.random.usize(0..from.len())]
    }
}

trait OrDot {
    fn or_dot(self) -> Self;
}

impl OrDot for Vec<u8> {
    /// An empty or upward target is no test of ours.
    fn or_dot(self) -> Self {
        if self.is_empty() || self.starts_with(b"/") { b".".to_vec() } else { self }
    }
}

fn slot(random: &mut fastrand::Rng, open: &[bool]) -> usize {
    let used: Vec<usize> = (0..open.len()).filter(|&i| open[i]).collect();
    match used.len() {
        0 => 0,
        n => used[random.usize(0..n)],
    }
}

fn any(_: Kind) -> bool {
    true
}

fn is_directory(kind: Kind) -> bool {
    kind == Kind::Directory
}

fn not_directory(kind: Kind) -> bool {
    kind != Kind::Directory
}

fn is_symlink(kind: Kind) -> bool {
    kind == Kind::Symlink
}

fn is_regular(kind: Kind) -> bool {
    kind == Kind::Regular
}
