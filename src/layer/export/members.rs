//! The members of an archive, in the order in which they are written.

use std::collections::HashMap;

use super::ExportError;
use super::header::Record;
use crate::layer::{EntryKind, FileKind, Inode, Manifest, ManifestError, TreeIno};

/// One member.
pub(super) enum Member<'a> {
    /// A file of any kind, by the first of its names.
    Node(&'a Inode),
    /// One more name of a file, and the name it was written under.
    Link(&'a [u8]),
    /// The name is removed from the layers below.
    Whiteout,
    /// The directory hides what the layers below have in it.
    Opaque,
}

/// Visits every member of a layer or tree with its path: each directory before its names, those
/// in byte order. The root's path is empty. Directories that nothing describes are left out, for
/// whoever reads the archive makes them too.
pub(super) fn visit(
    manifest: &Manifest,
    mut act: impl FnMut(&[u8], Member<'_>) -> Result<(), ExportError>,
) -> Result<(), ExportError> {
    let root = manifest.root()?;
    let mut path = Vec::new();
    let mut first_names: HashMap<TreeIno, Vec<u8>> = HashMap::new();
    // Directories on the way down: the next index, and the length of the path.
    let mut open = vec![(root, 0_u32, 0_usize)];
    visit_directory(&path, &root, &mut act)?;
    while let Some((dir, next, len)) = open.last_mut() {
        path.truncate(*len);
        let Some(entry) = manifest.entry(dir, *next)? else {
            open.pop();
            continue;
        };
        *next += 1;
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(entry.name);
        let ino = match (entry.kind, entry.ino) {
            (EntryKind::Inode(_), Some(ino)) => ino,
            (EntryKind::Whiteout, _) | (EntryKind::Inode(_), None) => {
                act(&path, Member::Whiteout)?;
                continue;
            }
        };
        let inode = manifest.inode(ino)?;
        if inode.kind == FileKind::Directory {
            visit_directory(&path, &inode, &mut act)?;
            open.push((inode, 0, path.len()));
        } else if let Some(first) = first_names.get(&ino) {
            act(&path, Member::Link(first))?;
        } else {
            if inode.nlink > 1 {
                first_names.insert(ino, path.clone());
            }
            act(&path, Member::Node(&inode))?;
        }
    }
    Ok(())
}

fn visit_directory(
    path: &[u8],
    inode: &Inode,
    act: &mut impl FnMut(&[u8], Member<'_>) -> Result<(), ExportError>,
) -> Result<(), ExportError> {
    if !inode.implicit {
        act(path, Member::Node(inode))?;
    }
    if inode.opaque { act(path, Member::Opaque) } else { Ok(()) }
}

/// What an inode's attributes are called in an archive, and their values.
pub(super) fn xattr_records(
    manifest: &Manifest,
    inode: &Inode,
) -> Result<Vec<Record>, ManifestError> {
    let mut records = Vec::new();
    for xattr in manifest.xattrs(inode)? {
        let (name, value) = xattr?;
        records.push((keyword(name), value.to_vec()));
    }
    Ok(records)
}

/// `SCHILY.xattr.NAME`. A keyword cannot hold `=`, which GNU tar writes as `%3D`; then a `%` that
/// would be read as part of such a sequence is `%25`. Go's programs know neither, so every other
/// `%` stays.
fn keyword(name: &[u8]) -> Vec<u8> {
    let mut keyword = b"SCHILY.xattr.".to_vec();
    for (at, byte) in name.iter().enumerate() {
        let rest = &name[at + 1..];
        match byte {
            b'=' => keyword.extend_from_slice(b"%3D"),
            b'%' if rest.starts_with(b"3D") || rest.starts_with(b"25") => {
                keyword.extend_from_slice(b"%25");
            }
            byte => keyword.push(*byte),
        }
    }
    keyword
}
