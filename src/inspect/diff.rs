//! What makes one tree another: names added, changed and deleted.
//!
//! Both trees are walked side by side in byte order; nothing is read but their manifests,
//! for equal content has equal digests. A name that became another kind of thing is a change;
//! what was below a directory that is none any more is deleted, name by name.

use std::cmp::Ordering;
use std::collections::HashSet;

use serde::Serialize;

use crate::layer::{ManifestError, TreeIno};

use super::text::{PatchText, PathText};
use super::{FileText, InspectError, Node, View};

/// What happened to a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub enum Letter {
    /// It is new.
    #[serde(rename = "A")]
    Added,
    /// It is there in both, and not the same.
    #[serde(rename = "C")]
    Changed,
    /// It is gone.
    #[serde(rename = "D")]
    Deleted,
}

impl Letter {
    /// As a character.
    #[must_use]
    pub fn char(self) -> char {
        match self {
            Self::Added => 'A',
            Self::Changed => 'C',
            Self::Deleted => 'D',
        }
    }
}

/// One name that differs.
#[derive(Clone, Debug)]
pub struct Difference {
    /// What happened.
    pub letter: Letter,
    /// The path, relative to the root, without a leading slash.
    pub path: Vec<u8>,
    /// What it was; none if it is new.
    pub before: Option<Node>,
    /// What it is; none if it is gone.
    pub after: Option<Node>,
    /// What is not the same in a changed one: `type`, `content`, `target`, `device`, `mode`,
    /// `owner`, `mtime`, `xattrs`.
    pub differs: Vec<&'static str>,
}

/// One name that differs, for JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DifferenceText {
    /// `A` added, `C` changed, `D` deleted.
    pub letter: Letter,
    /// The path, from the root.
    #[serde(flatten)]
    pub path: PathText,
    /// What is not the same in a changed one.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub differs: Vec<&'static str>,
    /// What it was; absent if it is new.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub old: Option<FileText>,
    /// What it is; absent if it is gone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub new: Option<FileText>,
    /// How the lines of its text differ, as `diff -u` writes it, if that was asked for.
    #[serde(flatten)]
    pub patch: Option<PatchText>,
}

/// How much was added, changed and deleted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Tally {
    /// New names.
    pub added: u64,
    /// Names that are not what they were.
    pub changed: u64,
    /// Names that are gone.
    pub deleted: u64,
    /// Bytes of content under new names; here and below, a file with several names weighs once.
    pub added_bytes: u64,
    /// Bytes of the new content where content changed.
    pub changed_bytes: u64,
    /// Bytes of content under names that are gone.
    pub deleted_bytes: u64,
    /// Bytes of content below that are hidden: deleted, or replaced by other content.
    pub hidden_bytes: u64,
}

impl Difference {
    /// As JSON has it; `before` and `after` are the views that were compared.
    ///
    /// # Errors
    /// [`InspectError::Manifest`] for damage.
    pub fn text(&self, before: &View, after: &View) -> Result<DifferenceText, InspectError> {
        let side = |view: &View, node: &Option<Node>| {
            node.as_ref().map(|node| view.file_text(node)).transpose()
        };
        Ok(DifferenceText {
            letter: self.letter,
            path: PathText::absolute(&self.path),
            differs: self.differs.clone(),
            old: side(before, &self.before)?,
            new: side(after, &self.after)?,
            patch: None,
        })
    }

    /// Whether both sides are regular files of different content.
    #[must_use]
    pub fn is_of_content(&self) -> bool {
        let object = |side: &Option<Node>| side.as_ref().and_then(|node| node.object);
        object(&self.before) != object(&self.after)
    }
}

/// Sums differences up; a file with several names weighs once on either side.
#[derive(Debug, Default)]
pub struct Counter {
    tally: Tally,
    before: HashSet<TreeIno>,
    after: HashSet<TreeIno>,
}

impl Counter {
    /// Counts one difference.
    pub fn count(&mut self, difference: &Difference) {
        let before = weigh(difference.before.as_ref(), &mut self.before);
        let after = weigh(difference.after.as_ref(), &mut self.after);
        let tally = &mut self.tally;
        match difference.letter {
            Letter::Added => {
                tally.added += 1;
                tally.added_bytes += after;
            }
            Letter::Changed => {
                tally.changed += 1;
                if difference.is_of_content() {
                    tally.changed_bytes += after;
                    tally.hidden_bytes += before;
                }
            }
            Letter::Deleted => {
                tally.deleted += 1;
                tally.deleted_bytes += before;
                tally.hidden_bytes += before;
            }
        }
    }

    /// All that was counted.
    #[must_use]
    pub fn tally(&self) -> Tally {
        self.tally
    }
}

/// Bytes of a file's content, unless another name of it was weighed before.
fn weigh(node: Option<&Node>, seen: &mut HashSet<TreeIno>) -> u64 {
    let Some(node) = node else { return 0 };
    let again = node.nlink > 1 && node.ino.is_some_and(|ino| !seen.insert(ino));
    if again { 0 } else { content_bytes(node) }
}

impl Tally {
    /// Whether nothing differs.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.added + self.changed + self.deleted == 0
    }
}

/// Bytes of a regular file's content; nothing else has content.
#[must_use]
pub fn content_bytes(node: &Node) -> u64 {
    if node.kind.is_regular() { node.size } else { 0 }
}

/// Hands every name that differs to `take`, in byte order of each directory's names, a
/// directory before what is in it. A time alone makes a difference only if `times` says so.
///
/// # Errors
/// [`InspectError::Manifest`] for damage, and what `take` says.
pub fn diff<E: From<InspectError>>(
    before: &View,
    after: &View,
    times: bool,
    take: &mut dyn FnMut(Difference) -> Result<(), E>,
) -> Result<(), E> {
    let mut walk = Walk { before, after, times, path: Vec::new(), take };
    walk.pair(before.root()?, after.root()?)
}

struct Walk<'a, E> {
    before: &'a View,
    after: &'a View,
    times: bool,
    path: Vec<u8>,
    take: &'a mut dyn FnMut(Difference) -> Result<(), E>,
}

/// A directory in the middle of the walk: its names on either side, and the length of its path.
struct Level<'a> {
    before: Side<'a>,
    after: Side<'a>,
    len: usize,
}

type Child<'a> = Result<(&'a [u8], Node), InspectError>;
type Side<'a> = std::iter::Peekable<Box<dyn Iterator<Item = Child<'a>> + 'a>>;

impl<'a, E: From<InspectError>> Walk<'a, E> {
    fn pair(&mut self, before: Node, after: Node) -> Result<(), E> {
        let mut levels = Vec::new();
        self.meet(Some(before), Some(after), &mut levels)?;
        while let Some(level) = levels.last_mut() {
            self.path.truncate(level.len);
            let (before, after) = next_pair(level).map_err(E::from)?;
            let name = match (&before, &after) {
                (Some((name, _)), _) | (None, Some((name, _))) => *name,
                (None, None) => {
                    levels.pop();
                    continue;
                }
            };
            if !self.path.is_empty() {
                self.path.push(b'/');
            }
            self.path.extend_from_slice(name);
            self.meet(before.map(|one| one.1), after.map(|one| one.1), &mut levels)?;
        }
        Ok(())
    }

    /// Compares what one name stands for on either side, and goes into directories.
    fn meet(
        &mut self,
        before: Option<Node>,
        after: Option<Node>,
        levels: &mut Vec<Level<'a>>,
    ) -> Result<(), E> {
        let is_directory =
            |side: &Option<Node>| side.as_ref().is_some_and(|node| node.kind.is_directory());
        if is_directory(&before) || is_directory(&after) {
            levels.push(Level {
                before: self.side(self.before, before.as_ref())?,
                after: self.side(self.after, after.as_ref())?,
                len: self.path.len(),
            });
        }
        let (letter, differs) = match (&before, &after) {
            (None, None) => return Ok(()),
            (None, Some(_)) => (Letter::Added, Vec::new()),
            (Some(_), None) => (Letter::Deleted, Vec::new()),
            (Some(one), Some(other)) => {
                let aspects = self.aspects(one, other).map_err(E::from)?;
                if aspects.is_empty() {
                    return Ok(());
                }
                (Letter::Changed, aspects)
            }
        };
        (self.take)(Difference { letter, path: self.path.clone(), before, after, differs })
    }

    fn side(&self, view: &'a View, dir: Option<&Node>) -> Result<Side<'a>, InspectError> {
        let children: Box<dyn Iterator<Item = Child<'a>> + 'a> = match dir {
            Some(dir) => Box::new(view.children(dir)?),
            None => Box::new(std::iter::empty()),
        };
        Ok(children.peekable())
    }

    fn aspects(&self, one: &Node, other: &Node) -> Result<Vec<&'static str>, InspectError> {
        let mut aspects = Vec::new();
        if one.kind != other.kind {
            // All else is another thing's.
            return Ok(vec!["type"]);
        }
        let mut note = |differs: bool, aspect| aspects.extend(differs.then_some(aspect));
        note(one.object != other.object, "content");
        note(self.before.target(one)? != self.after.target(other)?, "target");
        note(one.rdev != other.rdev, "device");
        // Nobody described an implicit directory, and a symlink's mode means nothing.
        let described = !one.implicit && !other.implicit;
        note(described && one.mode != other.mode && !is_link(one), "mode");
        note(described && (one.uid, one.gid) != (other.uid, other.gid), "owner");
        note(described && self.times && one.mtime != other.mtime, "mtime");
        note(self.before.xattrs(one)? != self.after.xattrs(other)?, "xattrs");
        Ok(aspects)
    }
}

fn is_link(node: &Node) -> bool {
    node.kind == super::Kind::File(crate::layer::FileKind::Symlink)
}

type Pair<'a> = (Option<(&'a [u8], Node)>, Option<(&'a [u8], Node)>);

/// The next name of two sorted lists, with what it stands for in each.
fn next_pair<'a>(level: &mut Level<'a>) -> Result<Pair<'a>, InspectError> {
    let order = match (level.before.peek(), level.after.peek()) {
        (Some(Ok((one, _))), Some(Ok((other, _)))) => one.cmp(other),
        (Some(_), None) | (Some(Err(_)), _) => Ordering::Less,
        (None, Some(_)) | (_, Some(Err(_))) => Ordering::Greater,
        (None, None) => Ordering::Equal,
    };
    let before = if order.is_le() { level.before.next().transpose()? } else { None };
    let after = if order.is_ge() { level.after.next().transpose()? } else { None };
    Ok((before, after))
}

impl View {
    /// A view of manifest bytes that lie nowhere: the merge of some layers of a stack.
    pub(super) fn of_bytes(
        whole: String,
        bytes: Vec<u8>,
        layers: Vec<crate::layer::LayerId>,
    ) -> Result<Self, ManifestError> {
        let manifest = crate::layer::Manifest::from_bytes(bytes)?;
        Ok(Self::of_manifest(whole, manifest, layers))
    }
}
