//! Tells two worlds apart: the reference, a plain directory, and the subject.
//!
//! Remembers which file of the subject is which file of the reference, so that an inode number
//! that moves is found, even across a remount.

use std::collections::{BTreeMap, HashMap};

use crate::operation::Place;
use crate::world::{Identity, Kind, Look, Observation, World};

/// A difference between the worlds, in words.
#[derive(Clone, Debug)]
pub(crate) struct Difference {
    /// What kind of thing differs; shortening keeps to one kind.
    pub(crate) kind: &'static str,
    /// What was seen.
    pub(crate) what: String,
}

impl Difference {
    /// A difference of a kind.
    pub(crate) fn new(kind: &'static str, what: impl Into<String>) -> Self {
        Self { kind, what: what.into() }
    }
}

/// What a subject is known and written to do otherwise.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tolerance {
    /// st_nlink of a directory does not count its subdirectories.
    pub(crate) directory_links: bool,
    /// Link counts and inode numbers are its own affair.
    pub(crate) own_numbers: bool,
    /// What a mapping writes reaches the file, its times and its holes with msync, and takes
    /// the file's capabilities.
    pub(crate) lazy_maps: bool,
    /// A directory listing may show one of these numbers where stat shows another.
    pub(crate) internal_numbers: Option<(u64, u64)>,
}

/// Compares, and remembers identities.
#[derive(Debug)]
pub(crate) struct Comparer {
    tolerance: Tolerance,
    /// Inode number in the subject of each file of the reference.
    known: HashMap<Identity, u64>,
}

impl Comparer {
    /// One that has seen nothing.
    pub(crate) fn new(tolerance: Tolerance) -> Self {
        Self { tolerance, known: HashMap::new() }
    }

    /// Compares one place, its metadata and perhaps its content.
    pub(crate) fn place(
        &mut self,
        reference: &mut dyn World,
        subject: &mut dyn World,
        place: &Place,
        look: Look,
    ) -> Result<Option<Kind>, Difference> {
        let wanted = reference.observe(place, look);
        let found = subject.observe(place, look);
        match (wanted, found) {
            (Ok((wanted, identity)), Ok((mut found, subject_identity))) => {
                let own_links = wanted.kind == Kind::Directory && self.tolerance.directory_links;
                if own_links || self.tolerance.own_numbers {
                    found.nlink = wanted.nlink;
                }
                equal(place, &wanted, &found)?;
                self.identity(place, identity, subject_identity.inode)?;
                Ok(Some(wanted.kind))
            }
            (Err(wanted), Err(found)) if wanted == found => Ok(None),
            (wanted, found) => {
                let wanted = wanted.map(|(seen, _)| seen.kind);
                let found = found.map(|(seen, _)| seen.kind);
                let what = format!("{place:?}: reference {wanted:?}, subject {found:?}");
                Err(Difference::new("existence", what))
            }
        }
    }

    /// Compares all there is, and that each world's listings agree with its own files.
    /// Answers what was found.
    pub(crate) fn tree(
        &mut self,
        reference: &mut dyn World,
        subject: &mut dyn World,
    ) -> Result<BTreeMap<Place, Kind>, Difference> {
        let mut all = BTreeMap::new();
        let mut owners: HashMap<u64, Identity> = HashMap::new();
        let mut pending = vec![Place::root()];
        while let Some(directory) = pending.pop() {
            self.place(reference, subject, &directory, Look::Xattrs)?;
            let wanted = listed(reference, &directory)?;
            let found = listed(subject, &directory)?;
            if wanted.keys().ne(found.keys()) {
                return Err(Difference::new("names", names_differ(&directory, &wanted, &found)));
            }
            for (name, (kind, listed_inode)) in found {
                let place = directory.join(&name);
                let seen = self.place(reference, subject, &place, Look::Content)?;
                if seen != Some(kind) {
                    let what = format!("{place:?} is listed as {kind:?}, is {seen:?}");
                    return Err(Difference::new("listed kind", what));
                }
                let stat = |world: &mut dyn World| {
                    world.observe(&place, Look::Stat).map(|(_, identity)| identity)
                };
                let (Ok(theirs), Ok(ours)) = (stat(reference), stat(subject)) else {
                    return Err(Difference::new("existence", format!("{place:?} vanished")));
                };
                let internal = self.tolerance.internal_numbers;
                if listed_inode != ours.inode
                    && !self.tolerance.own_numbers
                    && !internal.is_some_and(|(low, high)| (low..high).contains(&listed_inode))
                {
                    let what = format!("{place:?}: d_ino {listed_inode}, st_ino {}", ours.inode);
                    return Err(Difference::new("d_ino", what));
                }
                if let Some(other) = owners.insert(ours.inode, theirs)
                    && other != theirs
                    && !self.tolerance.own_numbers
                {
                    let what = format!("{place:?} shares st_ino {} with another file", ours.inode);
                    return Err(Difference::new("inode shared", what));
                }
                if kind == Kind::Directory {
                    pending.push(place.clone());
                }
                all.insert(place, kind);
            }
        }
        // Files that are gone may give their numbers away.
        let living: Vec<Identity> = owners.into_values().collect();
        self.known.retain(|identity, _| living.contains(identity));
        Ok(all)
    }

    fn identity(
        &mut self,
        place: &Place,
        reference: Identity,
        subject: u64,
    ) -> Result<(), Difference> {
        let known = *self.known.entry(reference).or_insert(subject);
        if known == subject || self.tolerance.own_numbers {
            return Ok(());
        }
        let what = format!("{place:?}: st_ino was {known}, is {subject}");
        Err(Difference::new("st_ino", what))
    }
}

fn listed(
    world: &mut dyn World,
    directory: &Place,
) -> Result<BTreeMap<Vec<u8>, (Kind, u64)>, Difference> {
    world.names(directory).map_err(|errno| {
        Difference::new("listing", format!("{directory:?} cannot be listed: {errno}"))
    })
}

fn names_differ(
    directory: &Place,
    wanted: &BTreeMap<Vec<u8>, (Kind, u64)>,
    found: &BTreeMap<Vec<u8>, (Kind, u64)>,
) -> String {
    let only = |a: &BTreeMap<Vec<u8>, (Kind, u64)>, b: &BTreeMap<Vec<u8>, (Kind, u64)>| {
        let names: Vec<String> = a
            .keys()
            .filter(|name| !b.contains_key(*name))
            .map(|name| name.escape_ascii().to_string())
            .collect();
        names.join(" ")
    };
    format!(
        "{directory:?}: only in the reference [{}], only in the subject [{}]",
        only(wanted, found),
        only(found, wanted)
    )
}

/// Compares two observations field by field, so that the words say which one differs.
pub(crate) fn equal(
    place: &Place,
    wanted: &Observation,
    found: &Observation,
) -> Result<(), Difference> {
    if wanted == found {
        return Ok(());
    }
    let differ = |kind, wanted: &dyn std::fmt::Debug, found: &dyn std::fmt::Debug| {
        let what = format!("{kind} of {place:?}: reference {wanted:?}, subject {found:?}");
        Err(Difference::new(kind, what))
    };
    if wanted.kind != found.kind {
        return differ("kind", &wanted.kind, &found.kind);
    }
    if wanted.mode != found.mode {
        let octal = |mode| format!("{mode:04o}");
        return differ("mode", &octal(wanted.mode), &octal(found.mode));
    }
    if (wanted.uid, wanted.gid) != (found.uid, found.gid) {
        return differ("owner", &(wanted.uid, wanted.gid), &(found.uid, found.gid));
    }
    if wanted.nlink != found.nlink {
        return differ("nlink", &wanted.nlink, &found.nlink);
    }
    if wanted.size != found.size {
        return differ("size", &wanted.size, &found.size);
    }
    if wanted.device != found.device {
        return differ("device", &wanted.device, &found.device);
    }
    if wanted.target != found.target {
        return differ("symlink", &wanted.target, &found.target);
    }
    if wanted.xattrs != found.xattrs {
        return differ("xattrs", &readable(wanted), &readable(found));
    }
    if wanted.content != found.content {
        return differ("content", &summary(wanted, found), &summary(found, wanted));
    }
    differ("mtime", &wanted.mtime, &found.mtime)
}

fn readable(seen: &Observation) -> String {
    let xattrs = seen.xattrs.iter().flatten();
    let each =
        xattrs.map(|(name, value)| format!("{}={}", name.escape_ascii(), value.escape_ascii()));
    each.collect::<Vec<String>>().join(" ")
}

/// The first bytes that differ.
fn summary(this: &Observation, other: &Observation) -> String {
    let (Some(this), Some(other)) = (&this.content, &other.content) else {
        return "not read".to_owned();
    };
    let at = this.iter().zip(other).position(|(a, b)| a != b);
    let at = at.unwrap_or_else(|| this.len().min(other.len()));
    let end = this.len().min(at + 8);
    format!("{} bytes, at {at}: {:02x?}", this.len(), &this[at..end])
}
