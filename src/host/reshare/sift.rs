//! From candidates to files that are worth reading whole: by size, by remembered hash, by sample.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::Member;
use super::candidates::{Candidate, Known, with_partner};
use super::content::{sample, sample_of};
use crate::catalog::Identity;
use crate::host::error::HostError;
use crate::host::store::Store;
use crate::host::{referred, roots::Roots};
use crate::layer::{LayerId, Layers};
use crate::object::{Digest, ObjectId, ObjectReader};

/// Files of this length are read whole at once: a disk gives all of them with their beginning, and
/// what is read whole is remembered.
const SAMPLED_BYTES: u64 = 64 << 10;

/// Candidates by size, the longest last, those alone that may find a partner by their size.
pub(super) fn by_size(
    store: &Store,
    layers: &Layers,
    reader: &ObjectReader,
    found: Vec<Candidate>,
) -> Result<(BTreeMap<u64, Vec<Candidate>>, Known), HostError> {
    let mut sizes: BTreeMap<u64, Vec<Candidate>> = BTreeMap::new();
    for file in found {
        sizes.entry(file.identity.size).or_default().push(file);
    }
    let known = objects_of(store, layers, reader, &sizes)?;
    for (size, files) in &mut sizes {
        let all = std::mem::take(files);
        *files = with_partner(all, |file| {
            known.of_templates.contains_key(size)
                || (file.among_roots && known.of_roots.contains_key(size))
        });
    }
    sizes.retain(|_, files| !files.is_empty());
    Ok((sizes, known))
}

/// The objects whose lengths are among `sizes`.
fn objects_of(
    store: &Store,
    layers: &Layers,
    reader: &ObjectReader,
    sizes: &BTreeMap<u64, Vec<Candidate>>,
) -> Result<Known, HostError> {
    let mut known = Known::default();
    let mut wanted: HashSet<LayerId> = HashSet::new();
    for listed in layers.templates().list()? {
        match listed.template {
            Ok(template) => wanted.extend(template.stack.layers()),
            Err(error) => tracing::warn!(%error, "a template is left out"),
        }
    }
    for record in Roots::open(store)?.list()? {
        wanted.extend(record.stack.layers());
    }
    for id in wanted {
        for object in layers.load(&id)?.objects() {
            if sizes.contains_key(&object.size) {
                let of_size = known.of_templates.entry(object.size).or_default();
                of_size.insert(object.id, object.data_blocks);
            }
        }
    }
    for id in referred::of_all(store)? {
        let Some(size) = reader.open_object(&id).ok().and_then(|object| object.len().ok()) else {
            continue;
        };
        if sizes.contains_key(&size) && !known.has_template(size, &id) {
            known.of_roots.entry(size).or_default().insert(id);
        }
    }
    Ok(known)
}

/// What sifting looks at.
pub(super) struct Sift<'a> {
    pub(super) members: &'a [Member],
    pub(super) reader: &'a ObjectReader,
    pub(super) known: &'a Known,
}

impl Sift<'_> {
    /// Groups of files of one size that may be the same, each with at least one possible partner.
    pub(super) fn groups(
        &self,
        hashes: &HashMap<Identity, ObjectId>,
        size: u64,
        files: Vec<Candidate>,
    ) -> Vec<Vec<Candidate>> {
        let Self { members, reader, known } = *self;
        let files = with_hashes(files, known, hashes);
        let hash = |file: &Candidate| hashes.get(&file.identity).copied();
        if size <= SAMPLED_BYTES {
            return if files.is_empty() { Vec::new() } else { vec![alike_together(files, hash)] };
        }
        // An object that cannot be read is nobody's partner.
        let sampled = |id: &ObjectId| sample(reader.open_object(id).ok()?, size).ok();
        let of_templates: HashSet<Digest> = known
            .of_templates
            .get(&size)
            .into_iter()
            .flat_map(HashMap::keys)
            .filter_map(sampled)
            .collect();
        let of_roots: HashSet<Digest> =
            known.of_roots.get(&size).into_iter().flatten().filter_map(sampled).collect();
        let mut groups: BTreeMap<Digest, Vec<Candidate>> = BTreeMap::new();
        for file in files {
            let Some(member) = members.get(file.root) else { continue };
            // What went meanwhile is nobody's partner either.
            if let Ok(sample) = sample_of(&member.upper, &file) {
                groups.entry(sample).or_default().push(file);
            }
        }
        let sifted = groups.into_iter().map(|(sample, files)| {
            with_partner(files, |file| {
                of_templates.contains(&sample) || (file.among_roots && of_roots.contains(&sample))
            })
        });
        let some = sifted.filter(|files| !files.is_empty());
        some.map(|files| alike_together(files, hash)).collect()
    }
}

/// Files in an order in which those that are probably the same come one after the other: of one
/// content, as far as that is known, or of one path, for what containers change alike they change in
/// the same places. Each waits under a lease for its like, and there are fewer leases than one
/// container may have files of one size.
fn alike_together(
    mut files: Vec<Candidate>,
    hash: impl Fn(&Candidate) -> Option<ObjectId>,
) -> Vec<Candidate> {
    files.sort_by(|one, two| {
        (hash(one), &one.path, one.root).cmp(&(hash(two), &two.path, two.root))
    });
    files
}

/// Leaves out files that are known to be like nothing else of their size.
fn with_hashes(
    files: Vec<Candidate>,
    known: &Known,
    hashes: &HashMap<Identity, ObjectId>,
) -> Vec<Candidate> {
    let hash = |file: &Candidate| hashes.get(&file.identity).copied();
    let mut holders: HashMap<Option<ObjectId>, HashSet<usize>> = HashMap::new();
    for file in files.iter().filter(|file| file.among_roots) {
        holders.entry(hash(file)).or_default().insert(file.root);
    }
    let elsewhere = |content: Option<ObjectId>, root: usize| {
        holders.get(&content).is_some_and(|roots| roots.iter().any(|other| *other != root))
    };
    let wanted = |file: &Candidate| match hash(file) {
        None => true,
        Some(id) => {
            let among = elsewhere(Some(id), file.root) || elsewhere(None, file.root);
            known.has_for(file, &id) || (file.among_roots && among)
        }
    };
    let keep: Vec<bool> = files.iter().map(wanted).collect();
    files.into_iter().zip(keep).filter_map(|(file, keep)| keep.then_some(file)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_be_the_same_comes_one_after_the_other() {
        let file = |root, ino, path: &[u8]| {
            let identity = Identity { ino, ..Identity::default() };
            Candidate { root, path: path.into(), identity, disk_bytes: 0, among_roots: true }
        };
        let files = vec![
            file(0, 1, b"a"),
            file(0, 2, b"b"),
            file(0, 3, b"moved"),
            file(1, 4, b"a"),
            file(1, 5, b"b"),
            file(1, 6, b"c"),
        ];
        let known = |file: &Candidate| {
            matches!(file.identity.ino, 3 | 6).then(|| ObjectId::of(b"the same"))
        };
        let order: Vec<u64> =
            alike_together(files, known).iter().map(|file| file.identity.ino).collect();
        assert_eq!(order, [1, 4, 2, 5, 6, 3]);
    }

    #[test]
    fn what_is_known_to_be_like_nothing_else_is_not_read_again() {
        let file = |root, ino| {
            let identity = Identity { ino, ..Identity::default() };
            Candidate { root, path: b"f"[..].into(), identity, disk_bytes: 0, among_roots: true }
        };
        let (one, two) = (file(0, 1), file(1, 2));
        let hashes = |of: &[(u64, &[u8])]| {
            let entry = |(ino, text): &(u64, &[u8])| {
                (Identity { ino: *ino, ..Identity::default() }, ObjectId::of(text))
            };
            of.iter().map(entry).collect::<HashMap<_, _>>()
        };
        let left = |known: &[(u64, &[u8])]| {
            with_hashes(vec![one.clone(), two.clone()], &Known::default(), &hashes(known)).len()
        };
        assert_eq!(left(&[]), 2);
        assert_eq!(left(&[(1, b"x")]), 2, "the other may be the same");
        assert_eq!(left(&[(1, b"x"), (2, b"x")]), 2);
        assert_eq!(left(&[(1, b"x"), (2, b"y")]), 0);
    }
}
