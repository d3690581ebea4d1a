//! What is remembered of private layers: what they hold, and what their files hashed to.
//!
//! One tree of few, large rows, since sled opens in time proportional to their number:
//! ```text
//! "s" root(8)  → stamp(16) files(u32) unhashed(u32) changed(u32) moved(u32)   one glance
//! "b" root(8)  → stamp(16), then for each file: kind(1) digest(32) dev ino size (u64 each)
//!                mtime ctime (i64 seconds, u32 nanoseconds each) length(u16) path
//! "r" root(8)  → for each file that a re-share read: dev ino size mtime ctime digest(32)
//! "h" byte(1)  → digest(32) root(8), sorted: who holds contents whose digest begins so
//! ```
//! All rows of a root change in one batch. A root's stamp tells whether its private layer can
//! have changed since; the identity of a file, whether that one has.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::layer::{Derived, TreeIno};
use crate::object::{Digest, ObjectId};

use super::index::{IndexError, Session};

/// Names a private layer in a state; see [`Glance`].
pub type Stamp = [u8; 16];

/// Names a root: the eight bytes of its identity in the registry.
pub type RootKey = [u8; 8];

/// What tells a file, and each of its states, from any other on this host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Identity {
    /// Device number.
    pub dev: u64,
    /// Inode number.
    pub ino: u64,
    /// Size in bytes.
    pub size: u64,
    /// Last modification: seconds, nanoseconds.
    pub mtime: (i64, u32),
    /// Last change: seconds, nanoseconds.
    pub ctime: (i64, u32),
}

/// What a private layer has under one path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Held {
    /// A file of its own, with what it last hashed to.
    Private(Option<ObjectId>),
    /// Metadata of its own over an object of the store.
    Object(ObjectId),
    /// A directory of the tree that was moved here.
    Moved(TreeIno),
}

/// One path of a private layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// Below the root, without a leading slash.
    pub path: Vec<u8>,
    /// Of the inode in the upper directory.
    pub identity: Identity,
    /// What it is.
    pub held: Held,
}

/// A private layer in numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Glance {
    /// The state of the layer that the numbers are of.
    pub stamp: Stamp,
    /// Private files.
    pub files: u32,
    /// Those that were never hashed.
    pub unhashed: u32,
    /// Those that were hashed, and have changed since.
    pub changed: u32,
    /// Directories that show something else than the tree has at their path: moved ones and
    /// opaque ones.
    pub moved: u32,
}

impl Session {
    /// What is remembered of every root.
    ///
    /// # Errors
    /// [`IndexError`]; then the index is of no use.
    pub fn glances(&self) -> Result<HashMap<RootKey, Glance>, IndexError> {
        self.run(|rows| {
            let mut glances = HashMap::new();
            for row in rows.scan_prefix(b"s") {
                let (key, value) = row?;
                let key = key.get(1..).and_then(|key| key.try_into().ok());
                let glance = read_glance(&value).ok_or(IndexError::Malformed)?;
                glances.insert(key.ok_or(IndexError::Malformed)?, glance);
            }
            Ok(glances)
        })
    }

    /// All that is remembered of one root; nothing if it was never looked at.
    ///
    /// # Errors
    /// As [`Session::glances`].
    pub fn kept(&self, root: &RootKey) -> Result<Vec<Kept>, IndexError> {
        self.kept_where(root, |_, _| true)
    }

    /// The part of it that `wanted` is interested in, by its path and what it is.
    ///
    /// # Errors
    /// As [`Session::glances`].
    pub fn kept_where(
        &self,
        root: &RootKey,
        wanted: impl Fn(&[u8], &Held) -> bool,
    ) -> Result<Vec<Kept>, IndexError> {
        self.run(|rows| match rows.get(row_key(b'b', root))? {
            Some(bytes) => decode(&bytes, wanted).ok_or(IndexError::Malformed),
            None => Ok(Vec::new()),
        })
    }

    /// The roots that hold one of `contents`, and what begins with the same byte of digits.
    ///
    /// # Errors
    /// As [`Session::glances`].
    pub fn holders(
        &self,
        contents: &BTreeSet<ObjectId>,
    ) -> Result<BTreeSet<(ObjectId, RootKey)>, IndexError> {
        let bytes: BTreeSet<u8> =
            contents.iter().map(|content| content.digest().as_bytes()[0]).collect();
        let mut found = BTreeSet::new();
        for byte in bytes {
            found.extend(self.beginning_with(byte)?);
        }
        found.retain(|(content, _)| contents.contains(content));
        Ok(found)
    }

    /// Everything held by private layers whose digest begins with `byte`.
    ///
    /// # Errors
    /// As [`Session::glances`].
    pub fn beginning_with(&self, byte: u8) -> Result<Vec<(ObjectId, RootKey)>, IndexError> {
        self.run(|rows| match rows.get([b'h', byte])? {
            Some(bytes) => read_bucket(&bytes).ok_or(IndexError::Malformed),
            None => Ok(Vec::new()),
        })
    }

    /// Compares the reverse rows, from contents to roots, with the rows they are made of; with
    /// `fix` they are made again. `known` is every registered root.
    ///
    /// # Errors
    /// As [`Session::glances`].
    pub fn check(&self, known: &BTreeSet<RootKey>, fix: bool) -> Result<Derived, IndexError> {
        let mut rows = BTreeMap::new();
        let mut wanted = BTreeSet::new();
        for (root, glance) in self.glances()? {
            let kept = self.kept(&root)?;
            wanted.extend(kept.iter().filter_map(Kept::content).map(|content| (content, root)));
            rows.insert(root, (glance, kept));
        }
        let mut found = BTreeSet::new();
        for byte in 0..=u8::MAX {
            found.extend(self.beginning_with(byte)?);
        }
        if found == wanted {
            return Ok(if rows.is_empty() { Derived::Absent } else { Derived::Right });
        }
        if !fix {
            return Ok(Derived::Wrong);
        }
        // Rows of roots that are gone go with it.
        self.clear_holders()?;
        rows.retain(|root, _| known.contains(root));
        self.remember(&rows, known)?;
        Ok(Derived::Replaced)
    }

    fn clear_holders(&self) -> Result<(), IndexError> {
        self.run(|rows| {
            for byte in 0..=u8::MAX {
                rows.remove([b'h', byte])?;
            }
            Ok(())
        })
    }

    /// Remembers what was found in these roots, and forgets those not among `known`.
    ///
    /// # Errors
    /// As [`Session::glances`].
    pub fn remember(
        &self,
        found: &BTreeMap<RootKey, (Glance, Vec<Kept>)>,
        known: &BTreeSet<RootKey>,
    ) -> Result<(), IndexError> {
        let gone: BTreeSet<RootKey> =
            self.glances()?.into_keys().filter(|root| !known.contains(root)).collect();
        if found.is_empty() && gone.is_empty() {
            return Ok(());
        }
        let mut buckets: BTreeMap<u8, Vec<(ObjectId, RootKey)>> = BTreeMap::new();
        for (root, (_, kept)) in found {
            for content in kept.iter().filter_map(Kept::content) {
                let byte = content.digest().as_bytes()[0];
                buckets.entry(byte).or_default().push((content, *root));
            }
        }
        self.run(|rows| {
            let mut batch = sled::Batch::default();
            let mut written = 0;
            for byte in 0..=u8::MAX {
                let old = rows.get([b'h', byte])?.unwrap_or_default();
                let mut bucket = read_bucket(&old).ok_or(IndexError::Malformed)?;
                bucket.retain(|(_, root)| !found.contains_key(root) && !gone.contains(root));
                bucket.extend(buckets.remove(&byte).unwrap_or_default());
                bucket.sort_unstable();
                bucket.dedup();
                let bytes: Vec<u8> = bucket
                    .iter()
                    .flat_map(|(content, root)| {
                        content.digest().as_bytes().iter().chain(root).copied()
                    })
                    .collect();
                if bytes != *old {
                    written += bytes.len();
                    batch.insert(&[b'h', byte], bytes);
                }
            }
            for root in &gone {
                batch.remove(&row_key(b's', root));
                batch.remove(&row_key(b'b', root));
                batch.remove(&row_key(b'r', root));
            }
            for (root, (glance, kept)) in found {
                let (glance, kept) = (write_glance(glance), encode(kept));
                written += glance.len() + kept.len();
                batch.insert(&row_key(b's', root), glance);
                batch.insert(&row_key(b'b', root), kept);
            }
            rows.apply_batch(batch)?;
            rows.flush()?;
            self.wrote(written);
            Ok(())
        })
    }
}

impl Session {
    /// What files of a root hashed to when a re-share last read them.
    ///
    /// # Errors
    /// As [`Session::glances`].
    pub fn hashes(&self, root: &RootKey) -> Result<HashMap<Identity, ObjectId>, IndexError> {
        self.run(|rows| match rows.get(row_key(b'r', root))? {
            Some(bytes) => read_hashes(&bytes).ok_or(IndexError::Malformed),
            None => Ok(HashMap::new()),
        })
    }

    /// Remembers that, and forgets what was known before.
    ///
    /// # Errors
    /// As [`Session::glances`].
    pub fn remember_hashes(
        &self,
        root: &RootKey,
        hashes: &HashMap<Identity, ObjectId>,
    ) -> Result<(), IndexError> {
        self.run(|rows| {
            let key = row_key(b'r', root);
            let bytes: Vec<u8> = hashes
                .iter()
                .flat_map(|(identity, content)| {
                    [write_identity(identity), content.digest().as_bytes().to_vec()].concat()
                })
                .collect();
            if bytes.is_empty() {
                rows.remove(key)?;
            } else {
                self.wrote(bytes.len());
                rows.insert(key, bytes)?;
            }
            rows.flush()?;
            Ok(())
        })
    }
}

impl Kept {
    /// The content it has, as far as that is known.
    pub fn content(&self) -> Option<ObjectId> {
        self.held.content()
    }
}

impl Held {
    /// The content it has, as far as that is known.
    pub fn content(&self) -> Option<ObjectId> {
        match self {
            Self::Private(content) => *content,
            Self::Object(content) => Some(*content),
            Self::Moved(_) => None,
        }
    }
}

fn row_key(kind: u8, root: &RootKey) -> [u8; 9] {
    let mut key = [kind; 9];
    key[1..].copy_from_slice(root);
    key
}

fn write_glance(glance: &Glance) -> Vec<u8> {
    let mut bytes = glance.stamp.to_vec();
    for number in [glance.files, glance.unhashed, glance.changed, glance.moved] {
        bytes.extend_from_slice(&number.to_le_bytes());
    }
    bytes
}

fn read_glance(bytes: &[u8]) -> Option<Glance> {
    let mut from = Reader(bytes);
    let stamp = *from.take::<16>()?;
    let (files, unhashed, changed, moved) = (from.u32()?, from.u32()?, from.u32()?, from.u32()?);
    from.0.is_empty().then_some(Glance { stamp, files, unhashed, changed, moved })
}

fn read_bucket(bytes: &[u8]) -> Option<Vec<(ObjectId, RootKey)>> {
    let (rows, rest) = bytes.as_chunks::<40>();
    let row = |row: &[u8; 40]| {
        let (digest, root) = row.split_first_chunk::<32>()?;
        Some((ObjectId::new(Digest::from_bytes(*digest)), root.try_into().ok()?))
    };
    rest.is_empty().then(|| rows.iter().map(row).collect())?
}

fn encode(kept: &[Kept]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(kept.len() * 140);
    for one in kept {
        let (kind, digest) = match one.held {
            Held::Private(None) => (0, [0; 32]),
            Held::Private(Some(content)) => (1, *content.digest().as_bytes()),
            Held::Object(content) => (2, *content.digest().as_bytes()),
            Held::Moved(ino) => {
                let mut digest = [0; 32];
                digest[..4].copy_from_slice(&ino.get().to_le_bytes());
                (3, digest)
            }
        };
        bytes.push(kind);
        bytes.extend_from_slice(&digest);
        bytes.extend_from_slice(&write_identity(&one.identity));
        // A path that long cannot be opened; cut, it is found changed.
        let len = u16::try_from(one.path.len()).unwrap_or(u16::MAX);
        bytes.extend_from_slice(&len.to_le_bytes());
        bytes.extend_from_slice(one.path.get(..usize::from(len)).unwrap_or_default());
    }
    bytes
}

fn decode(bytes: &[u8], wanted: impl Fn(&[u8], &Held) -> bool) -> Option<Vec<Kept>> {
    let mut from = Reader(bytes);
    let mut kept = Vec::new();
    while !from.0.is_empty() {
        let [kind] = *from.take::<1>()?;
        let digest = *from.take::<32>()?;
        let content = ObjectId::new(Digest::from_bytes(digest));
        let held = match kind {
            0 => Held::Private(None),
            1 => Held::Private(Some(content)),
            2 => Held::Object(content),
            3 => Held::Moved(TreeIno::new(u32::from_le_bytes(*digest.first_chunk::<4>()?))?),
            _ => return None,
        };
        let identity = from.identity()?;
        let len = u16::from_le_bytes(*from.take::<2>()?);
        let (path, rest) = from.0.split_at_checked(usize::from(len))?;
        from.0 = rest;
        if wanted(path, &held) {
            kept.push(Kept { path: path.to_vec(), identity, held });
        }
    }
    Some(kept)
}

fn write_identity(identity: &Identity) -> Vec<u8> {
    let Identity { dev, ino, size, mtime, ctime } = *identity;
    let mut bytes = Vec::with_capacity(48);
    for number in [dev, ino, size] {
        bytes.extend_from_slice(&number.to_le_bytes());
    }
    for (seconds, nanos) in [mtime, ctime] {
        bytes.extend_from_slice(&seconds.to_le_bytes());
        bytes.extend_from_slice(&nanos.to_le_bytes());
    }
    bytes
}

fn read_hashes(bytes: &[u8]) -> Option<HashMap<Identity, ObjectId>> {
    let mut from = Reader(bytes);
    let mut hashes = HashMap::new();
    while !from.0.is_empty() {
        let identity = from.identity()?;
        hashes.insert(identity, ObjectId::new(Digest::from_bytes(*from.take::<32>()?)));
    }
    Some(hashes)
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take<const N: usize>(&mut self) -> Option<&'a [u8; N]> {
        let (taken, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(taken)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take().map(|bytes| u32::from_le_bytes(*bytes))
    }

    fn u64(&mut self) -> Option<u64> {
        self.take().map(|bytes| u64::from_le_bytes(*bytes))
    }

    fn identity(&mut self) -> Option<Identity> {
        let (dev, ino, size) = (self.u64()?, self.u64()?, self.u64()?);
        Some(Identity { dev, ino, size, mtime: self.time()?, ctime: self.time()? })
    }

    fn time(&mut self) -> Option<(i64, u32)> {
        let seconds = self.take().map(|bytes| i64::from_le_bytes(*bytes))?;
        Some((seconds, self.u32()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_survive_their_encoding_and_any_bytes_are_an_error_or_a_value() {
        let identity = Identity { dev: 1, ino: 2, size: 3, mtime: (-4, 5), ctime: (6, 7) };
        let of = |held| Kept { path: b"etc/\xff".to_vec(), identity, held };
        let kept = vec![
            of(Held::Private(None)),
            of(Held::Private(Some(ObjectId::of(b"x")))),
            of(Held::Object(ObjectId::of(b"y"))),
            of(Held::Moved(TreeIno::ROOT)),
        ];
        let bytes = encode(&kept);
        assert_eq!(decode(&bytes, |_, _| true).as_ref(), Some(&kept));
        let mut random = fastrand::Rng::with_seed(7);
        for _ in 0..2000 {
            let mut bytes = bytes.clone();
            let at = random.usize(..bytes.len());
            bytes[at] ^= random.u8(1..);
            bytes.truncate(random.usize(..=bytes.len()));
            // No panic; what it says is checked against the files themselves.
            let _anything = decode(&bytes, |_, _| true);
        }
        let hashes = HashMap::from([(identity, ObjectId::of(b"x"))]);
        let (identity, content) = hashes.iter().next().unwrap();
        let row = [write_identity(identity), content.digest().as_bytes().to_vec()].concat();
        assert_eq!(read_hashes(&row).as_ref(), Some(&hashes));
        assert_eq!(read_hashes(&row[1..]), None);
        let glance = Glance { stamp: [7; 16], files: 1, unhashed: 2, changed: 3, moved: 4 };
        assert_eq!(read_glance(&write_glance(&glance)), Some(glance));
        assert_eq!(read_glance(&[0; 31]), None);
        assert_eq!(read_bucket(&[0; 41]), None);
    }
}
