//! What the merged trees hold, by their reverse tables.

use std::collections::{BTreeMap, BTreeSet};

use super::super::InspectError;
use super::follow::{Look, follow};
use super::glob::Glob;
use crate::catalog::{Catalog, CatalogError, Table, TableDamaged};
use crate::layer::{
    FileKind, Inode, LayerId, LayerPath, Manifest, ManifestError, Stack, StackId, TreeIno,
};
use crate::object::ObjectId;

/// A stack that templates or roots have, opened.
pub(super) struct Opened {
    pub(super) id: StackId,
    layers: Vec<LayerId>,
    pub(super) tree: Manifest,
    table: Table,
    /// What the question means here: contents, and the paths that were looked up for it.
    pub(super) asked: BTreeMap<ObjectId, BTreeSet<Vec<u8>>>,
    /// Paths that were looked up on the way to them: a root whose private layer has none of them
    /// sees the same.
    pub(super) on_the_way: BTreeSet<Vec<u8>>,
    /// Where the contents are.
    pub(super) hits: Vec<Hit>,
}

/// A name of the tree that has one of the contents.
#[derive(Clone, Debug)]
pub(super) struct Hit {
    pub(super) content: ObjectId,
    pub(super) inode: Inode,
    pub(super) path: Vec<u8>,
    /// The layer that it comes from.
    pub(super) layer: Option<LayerId>,
}

impl Opened {
    pub(super) fn open(
        catalog: &Catalog,
        layers: &crate::layer::Layers,
        stack: &Stack,
    ) -> Result<Self, InspectError> {
        let id = stack.id();
        let tree = layers.tree(stack)?;
        let table = catalog.table(&id, &tree).map_err(of_catalog)?;
        let layers = stack.layers().to_vec();
        let (asked, on_the_way) = (BTreeMap::new(), BTreeSet::new());
        Ok(Self { id, layers, tree, table, asked, on_the_way, hits: Vec::new() })
    }

    /// Follows a path, symbolic links too, and notes the content that lies there.
    pub(super) fn ask_path(&mut self, path: &LayerPath) -> Result<Option<Inode>, InspectError> {
        let tree = &self.tree;
        let mut on_the_way = BTreeSet::new();
        let found = follow(path, |path| {
            on_the_way.insert(path.to_bytes());
            Ok::<_, InspectError>(match tree.resolve(path)? {
                None => Look::Absent,
                Some(inode) if inode.kind == FileKind::Directory => Look::Directory,
                Some(inode) if inode.kind == FileKind::Symlink => {
                    Look::Link(tree.symlink_target(&inode)?.to_vec())
                }
                Some(inode) => Look::File(inode),
            })
        })?;
        self.on_the_way = on_the_way;
        let Some((path, inode)) = found else { return Ok(None) };
        if let Some(content) = tree.object(&inode)? {
            self.asked.entry(content).or_default().insert(path.to_bytes());
        }
        Ok(Some(inode))
    }

    /// Notes the contents of all files that fit a pattern.
    pub(super) fn ask_glob(&mut self, catalog: &Catalog, glob: &Glob) -> Result<(), InspectError> {
        let found = match self.matching(glob) {
            Err(Trouble::Table) => {
                self.table = catalog.new_table(&self.id, &self.tree).map_err(of_catalog)?;
                self.matching(glob)
            }
            found => found,
        };
        for (content, path) in found.map_err(Trouble::settled)? {
            self.asked.entry(content).or_default().insert(path);
        }
        Ok(())
    }

    /// The files that fit, by the names in the table.
    fn matching(&mut self, glob: &Glob) -> Result<Vec<(ObjectId, Vec<u8>)>, Trouble> {
        let names = if glob.is_of_paths() { glob.of_last_name() } else { Some(glob.clone()) };
        // With `**` at the end of a path, any name may fit.
        let names = names.unwrap_or_else(|| Glob::new(b"*"));
        let mut found = Vec::new();
        let (mut at, end) = (self.first_name(names.literal())?, self.table.name_count());
        while at < end {
            let (dir, index) = self.table.name(at)?;
            at += 1;
            let dir = self.tree.inode(dir)?;
            let Some(entry) = self.tree.entry(&dir, index)? else { return Err(Trouble::Table) };
            if !entry.name.starts_with(names.literal()) {
                break;
            }
            if !names.fits_text(entry.name) {
                continue;
            }
            let Some(ino) = entry.ino else { return Err(Trouble::Table) };
            let path = self.path_in(&dir, entry.name)?;
            if glob.fits(&path)
                && let Some(content) = self.tree.object(&self.tree.inode(ino)?)?
            {
                found.push((content, path));
            }
        }
        Ok(found)
    }

    /// The rank of the first name that is not before `literal`.
    fn first_name(&mut self, literal: &[u8]) -> Result<u32, Trouble> {
        let (mut low, mut high) = (0, self.table.name_count());
        while low < high {
            let middle = low + (high - low) / 2;
            let (dir, index) = self.table.name(middle)?;
            let dir = self.tree.inode(dir)?;
            let Some(entry) = self.tree.entry(&dir, index)? else { return Err(Trouble::Table) };
            if entry.name < literal { low = middle + 1 } else { high = middle }
        }
        Ok(low)
    }

    /// Finds every file that has one of `contents`.
    pub(super) fn find(
        &mut self,
        catalog: &Catalog,
        contents: &BTreeSet<ObjectId>,
    ) -> Result<(), InspectError> {
        let mut hits = Vec::new();
        for content in contents {
            let Some(index) = self.tree.object_index(content) else { continue };
            let files = match self.files_with(content, index) {
                Err(Trouble::Table) => {
                    self.table = catalog.new_table(&self.id, &self.tree).map_err(of_catalog)?;
                    self.files_with(content, index)
                }
                files => files,
            };
            for inode in files.map_err(Trouble::settled)? {
                let origin = self.tree.origin(inode.ino)?;
                let layer =
                    origin.and_then(|origin| self.layers.get(origin.layer as usize)).copied();
                for (dir, name) in self.tree.links(inode.ino)? {
                    let path = self.path_in(&self.tree.inode(dir)?, name)?;
                    hits.push(Hit { content: *content, inode, path, layer });
                }
            }
        }
        self.hits = hits;
        Ok(())
    }

    fn files_with(&mut self, content: &ObjectId, index: u32) -> Result<Vec<Inode>, Trouble> {
        let mut files = Vec::new();
        for ino in self.table.files_with(index)? {
            let inode = self.tree.inode(ino)?;
            if self.tree.object(&inode)? != Some(*content) {
                return Err(Trouble::Table);
            }
            files.push(inode);
        }
        Ok(files)
    }

    fn path_in(&self, dir: &Inode, name: &[u8]) -> Result<Vec<u8>, ManifestError> {
        let mut path = self.tree.path(dir)?;
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(name);
        Ok(path)
    }

    /// Whether the tree has a directory at a path.
    pub(super) fn has_directory(&self, path: &[u8]) -> bool {
        let found = LayerPath::parse(path).ok().and_then(|path| self.tree.resolve(&path).ok());
        found.flatten().is_some_and(|inode| inode.kind == FileKind::Directory)
    }

    /// The path of `hit` below directory `top` of the tree, if it is below it.
    pub(super) fn below(&self, hit: &Hit, top: TreeIno) -> Result<Option<Vec<u8>>, ManifestError> {
        let top = self.tree.path(&self.tree.inode(top)?)?;
        let rest = hit.path.strip_prefix(top.as_slice());
        Ok(rest.and_then(|rest| rest.strip_prefix(b"/")).map(<[u8]>::to_vec))
    }
}

/// Why the table did not answer.
enum Trouble {
    Table,
    Manifest(ManifestError),
}

impl Trouble {
    /// What it means after the table was made anew.
    fn settled(self) -> InspectError {
        match self {
            Self::Manifest(error) => error.into(),
            // What was just made in memory from this very tree contradicts it.
            Self::Table => ManifestError::NotAManifest.into(),
        }
    }
}

impl From<TableDamaged> for Trouble {
    fn from(_: TableDamaged) -> Self {
        Self::Table
    }
}

impl From<ManifestError> for Trouble {
    fn from(error: ManifestError) -> Self {
        Self::Manifest(error)
    }
}

fn of_catalog(error: CatalogError) -> InspectError {
    match error {
        CatalogError::Layers(error) => error.into(),
        CatalogError::Manifest(error) => error.into(),
    }
}
