//! The operations of the workload: on a disk, on the model, and half done.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;

use crate::tree::{BLOCK_BYTES, Content, Node, Tree};

/// One change that is durable once it is acknowledged.
#[derive(Clone, Debug)]
pub(crate) enum Operation {
    /// A new file, its data and its name synced.
    Create { path: String, content: Content },
    /// A new file renamed over an old one, as every careful editor does it.
    Replace { path: String, content: Content },
    /// Blocks from `first` on rewritten in place, or appended.
    Write { path: String, first: usize, stamps: Vec<u64> },
    /// Cut to so many blocks.
    Truncate { path: String, blocks: usize },
    /// A name removed.
    Unlink { path: String },
    /// A name moved, over another if that exists.
    Rename { from: String, to: String },
    /// A further name.
    Link { from: String, to: String },
    /// Other permission bits.
    SetMode { path: String, mode: u32 },
    /// A directory moved with all that is in it.
    RenameDirectory { from: String, to: String },
}

/// The name under which a replacement is written.
fn staged(path: &str) -> String {
    format!("{path}.new")
}

impl Operation {
    /// Does it below `top` and makes it durable.
    pub(crate) fn perform(&self, top: &Path) -> io::Result<()> {
        match self {
            Self::Create { path, content } => {
                create(&top.join(path), content)?;
                sync_parent(top, path)
            }
            Self::Replace { path, content } => {
                let staged = top.join(staged(path));
                create(&staged, content)?;
                fs::rename(&staged, top.join(path))?;
                sync_parent(top, path)
            }
            Self::Write { path, first, stamps } => {
                let file = OpenOptions::new().write(true).open(top.join(path))?;
                let offset = u64::try_from(first * BLOCK_BYTES).expect("offsets are small");
                file.write_all_at(&Content::whole(stamps.clone()).bytes(), offset)?;
                file.sync_data()
            }
            Self::Truncate { path, blocks } => {
                let file = OpenOptions::new().write(true).open(top.join(path))?;
                file.set_len(u64::try_from(blocks * BLOCK_BYTES).expect("lengths are small"))?;
                file.sync_all()
            }
            Self::Unlink { path } => {
                fs::remove_file(top.join(path))?;
                sync_parent(top, path)
            }
            Self::Rename { from, to } => {
                fs::rename(top.join(from), top.join(to))?;
                // The new name first: a sync in between must not lose the file.
                sync_parent(top, to)?;
                sync_parent(top, from)
            }
            Self::Link { from, to } => {
                fs::hard_link(top.join(from), top.join(to))?;
                sync_parent(top, to)
            }
            Self::SetMode { path, mode } => {
                let file = File::open(top.join(path))?;
                file.set_permissions(Permissions::from_mode(*mode))?;
                file.sync_all()
            }
            Self::RenameDirectory { from, to } => {
                fs::rename(top.join(from), top.join(to))?;
                File::open(top)?.sync_all()
            }
        }
    }

    /// Does it to the model.
    pub(crate) fn apply(&self, tree: &mut Tree) {
        match self {
            Self::Create { path, content } | Self::Replace { path, content } => {
                tree.insert(path, Node { content: content.clone(), mode: 0o644 });
            }
            Self::Write { path, first, stamps } => {
                tree.change(path, |node| node.content = node.content.with(*first, stamps));
            }
            Self::Truncate { path, blocks } => {
                tree.change(path, |node| node.content = node.content.truncated(*blocks));
            }
            Self::Unlink { path } => tree.remove(path),
            Self::Rename { from, to } => {
                // Between two names of one file, rename(2) does nothing.
                if tree.names.get(from) != tree.names.get(to) {
                    tree.remove(to);
                    tree.link(from, to);
                    tree.remove(from);
                }
            }
            Self::Link { from, to } => tree.link(from, to),
            Self::SetMode { path, mode } => tree.change(path, |node| node.mode = *mode),
            Self::RenameDirectory { from, to } => {
                tree.directories.remove(from);
                tree.directories.insert(to.clone());
                let inside = format!("{from}/");
                let moved: Vec<String> =
                    tree.names.keys().filter(|path| path.starts_with(&inside)).cloned().collect();
                for path in moved {
                    let number = tree.names.remove(&path).expect("it was just listed");
                    tree.names.insert(format!("{to}/{}", &path[inside.len()..]), number);
                }
            }
        }
    }

    /// Undoes in `found` what this operation, cut off in the middle, may have left of itself;
    /// `before` is the tree it began with. What it may not leave stays and shows as a difference.
    ///
    /// Only writes to files may be half done. A name is there or not, and where a shared file has
    /// to be copied first, the whole old file is there until the new one is.
    pub(crate) fn forgive(&self, found: &mut Tree, before: &Tree) {
        match self {
            Self::Create { path, content } => forgive_new(found, path, content),
            Self::Replace { path, content } => forgive_new(found, &staged(path), content),
            Self::Write { path, first, stamps } => {
                let (Some(old), Some(half)) = (before.node(path), found.node(path)) else { return };
                if is_between(&half.content, &old.content, &old.content.with(*first, stamps)) {
                    let content = old.content.clone();
                    found.change(path, |node| node.content = content);
                }
            }
            Self::Truncate { .. }
            | Self::Unlink { .. }
            | Self::Rename { .. }
            | Self::Link { .. }
            | Self::SetMode { .. }
            | Self::RenameDirectory { .. } => {}
        }
    }
}

/// Removes a new file that is not yet synced: it may be short, or have zeros for data.
fn forgive_new(found: &mut Tree, path: &str, content: &Content) {
    let empty = Content::whole(Vec::new());
    if found.node(path).is_some_and(|node| is_between(&node.content, &empty, content)) {
        found.remove(path);
    }
}

/// Whether `half` may be what a write that turns `old` into `new` left when it was cut off:
/// of any length between, each block the old one, the new one, or zeros where there was none.
fn is_between(half: &Content, old: &Content, new: &Content) -> bool {
    let (short, long) = (old.stamps().len(), new.stamps().len());
    let blocks = half.stamps().iter().enumerate();
    (short..=long).contains(&half.stamps().len())
        && (half.stamps().len() > short || half.tail_bytes() == old.tail_bytes())
        && blocks.into_iter().all(|(at, stamp)| {
            let was = old.stamps().get(at).unwrap_or(&0);
            stamp == was || Some(stamp) == new.stamps().get(at)
        })
}

fn create(path: &Path, content: &Content) -> io::Result<()> {
    let mut file = File::create_new(path)?;
    file.write_all(&content.bytes())?;
    // The umask of whoever runs the tests is no part of them.
    file.set_permissions(Permissions::from_mode(0o644))?;
    file.sync_all()
}

fn sync_parent(top: &Path, path: &str) -> io::Result<()> {
    let parent = Path::new(path).parent().expect("paths have a directory");
    File::open(top.join(parent))?.sync_all()
}
