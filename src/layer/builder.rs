//! Collects the paths of one layer and writes its manifest.
//!
//! The bytes are canonical: the same set of paths gives the same digest, whatever the order
//! they were put in. Numbers are given breadth first: all names of a directory in byte order,
//! then the directories among them in the same order; so a directory's number is always above
//! its parent's, and what is listed together lies together.

use std::collections::BTreeMap;

use crate::object::ObjectId;

use super::manifest::{
    Draft, DraftContent, DraftEntry, EncodeError, Encoder, FileKind, Manifest, ManifestError,
    Metadata, Timestamp, TreeIno,
};
use super::name::FileName;
use super::node::{BuildError, NewContent, NewNode, check, check_metadata, read_node};
use super::path::LayerPath;

/// Names a node of one [`LayerBuilder`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NodeId(usize);

impl NodeId {
    const ROOT: Self = Self(0);
}

/// What a layer has under one name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Child {
    /// A file of any kind.
    Node(NodeId),
    /// A mark that hides what lower layers have there.
    Whiteout,
}

/// A layer being put together.
#[derive(Debug)]
pub struct LayerBuilder {
    nodes: Vec<Node>,
    /// Files of the tree below that were hard-linked from here: all their names follow.
    below: Vec<LinkedBelow>,
}

#[derive(Debug)]
struct LinkedBelow {
    node: NodeId,
    names: Vec<LayerPath>,
}

#[derive(Debug)]
struct Node {
    metadata: Metadata,
    xattrs: BTreeMap<Box<[u8]>, Box<[u8]>>,
    content: NewContent,
    children: BTreeMap<FileName, Slot>,
    opaque: bool,
    implicit: bool,
}

#[derive(Clone, Copy, Debug)]
enum Slot {
    Node(NodeId),
    Whiteout,
}

impl Node {
    fn implicit_directory() -> Self {
        Self {
            metadata: Metadata { mode: 0o755, uid: 0, gid: 0, mtime: Timestamp::default() },
            xattrs: BTreeMap::new(),
            content: NewContent::Directory,
            children: BTreeMap::new(),
            opaque: false,
            implicit: true,
        }
    }
}

impl Default for LayerBuilder {
    fn default() -> Self {
        Self::new()
    }
}

impl LayerBuilder {
    /// A layer with nothing but an undescribed root directory.
    ///
    /// An undescribed (implicit) directory is 0755, owned by 0:0, with time 0; over a lower
    /// directory it changes nothing.
    pub fn new() -> Self {
        Self { nodes: vec![Node::implicit_directory()], below: Vec::new() }
    }

    /// Puts `node` at `path`, making missing parents as implicit directories.
    ///
    /// Replaces what this layer has there, except that a directory over a directory keeps the
    /// names in it. Parents that are no directories are replaced. A directory over a whiteout
    /// becomes opaque: the whiteout removed what lies below, not what this layer adds.
    ///
    /// # Errors
    /// [`BuildError`] for what no file system can hold.
    pub fn put(&mut self, path: &LayerPath, node: NewNode) -> Result<NodeId, BuildError> {
        check(path, &node)?;
        let is_directory = node.content == NewContent::Directory;
        let xattrs = node.xattrs.into_iter().collect();
        let Some((name, parents)) = path.names().split_last() else {
            if !is_directory {
                return Err(BuildError::Root);
            }
            let root = &mut self.nodes[NodeId::ROOT.0];
            (root.metadata, root.xattrs, root.implicit) = (node.metadata, xattrs, false);
            return Ok(NodeId::ROOT);
        };
        let parent = self.make_directories(parents);
        let old = self.nodes[parent.0].children.get(name).copied();
        if let (true, Some(Slot::Node(id))) = (is_directory, old) {
            let known = &mut self.nodes[id.0];
            if known.content == NewContent::Directory {
                (known.metadata, known.xattrs, known.implicit) = (node.metadata, xattrs, false);
                return Ok(id);
            }
        }
        let id = self.add(Node {
            metadata: node.metadata,
            xattrs,
            content: node.content,
            children: BTreeMap::new(),
            opaque: is_directory && matches!(old, Some(Slot::Whiteout)),
            implicit: false,
        });
        self.nodes[parent.0].children.insert(name.clone(), Slot::Node(id));
        Ok(id)
    }

    /// Gives the file at `target` of this layer another name.
    ///
    /// # Errors
    /// [`BuildError::NoTarget`] and [`BuildError::LinkToDirectory`].
    pub fn hard_link(&mut self, path: &LayerPath, target: &LayerPath) -> Result<(), BuildError> {
        let Some(id) = self.find(target) else {
            return Err(BuildError::NoTarget { path: path.clone(), target: target.clone() });
        };
        if self.nodes[id.0].content == NewContent::Directory {
            return Err(BuildError::LinkToDirectory { path: path.clone(), target: target.clone() });
        }
        self.link(path, id)
    }

    /// Gives a file of this layer another name.
    ///
    /// # Errors
    /// [`BuildError::LinkToDirectory`].
    pub fn hard_link_node(&mut self, path: &LayerPath, id: NodeId) -> Result<(), BuildError> {
        if self.nodes[id.0].content == NewContent::Directory {
            return Err(BuildError::LinkToDirectory { path: path.clone(), target: path.clone() });
        }
        self.link(path, id)
    }

    fn link(&mut self, path: &LayerPath, id: NodeId) -> Result<(), BuildError> {
        let (name, parents) = path.names().split_last().ok_or(BuildError::Root)?;
        let parent = self.make_directories(parents);
        self.nodes[parent.0].children.insert(name.clone(), Slot::Node(id));
        Ok(())
    }

    /// Gives the file at `target` of the tree below another name, in this layer.
    ///
    /// One inode has one record, so the record and all its lower names move into this layer,
    /// but for those that this layer removes or replaces by the time it is finished.
    ///
    /// # Errors
    /// [`BuildError::NoTarget`] and [`BuildError::LinkToDirectory`];
    /// [`BuildError::Below`] if `lower` is damaged.
    pub fn hard_link_below(
        &mut self,
        path: &LayerPath,
        lower: &Manifest,
        target: &LayerPath,
    ) -> Result<(), BuildError> {
        let hidden = self.hides(target);
        let found = if hidden { None } else { lower.resolve(target)? };
        let Some(inode) = found else {
            return Err(BuildError::NoTarget { path: path.clone(), target: target.clone() });
        };
        if inode.kind == FileKind::Directory {
            return Err(BuildError::LinkToDirectory { path: path.clone(), target: target.clone() });
        }
        let mut names = Vec::new();
        for (dir, name) in lower.links(inode.ino)? {
            let dir = lower.path(&lower.inode(dir)?)?;
            names.push(lower_path(&dir, name)?);
        }
        let known = self.below.iter().find(|linked| linked.names == names);
        let id = match known {
            Some(linked) => linked.node,
            None => {
                let node = read_node(lower, &inode)?;
                check(target, &node)?;
                let id = self.add(Node {
                    metadata: node.metadata,
                    xattrs: node.xattrs.into_iter().collect(),
                    content: node.content,
                    children: BTreeMap::new(),
                    opaque: false,
                    implicit: false,
                });
                self.below.push(LinkedBelow { node: id, names });
                id
            }
        };
        self.link(path, id)
    }

    /// Hides what lower layers have at `path`. What this layer itself has there stays, a
    /// directory becomes opaque. The root cannot be hidden: that is [`LayerBuilder::opaque`].
    pub fn whiteout(&mut self, path: &LayerPath) {
        let Some((name, parents)) = path.names().split_last() else {
            return self.opaque(path);
        };
        let parent = self.make_directories(parents);
        match self.nodes[parent.0].children.get(name).copied() {
            Some(Slot::Node(id)) => {
                let node = &mut self.nodes[id.0];
                node.opaque = node.content == NewContent::Directory;
            }
            Some(Slot::Whiteout) => {}
            None => {
                self.nodes[parent.0].children.insert(name.clone(), Slot::Whiteout);
            }
        }
    }

    /// Hides what lower layers have in the directory at `path`, making it if it is missing.
    pub fn opaque(&mut self, path: &LayerPath) {
        let id = self.make_directories(path.names());
        self.nodes[id.0].opaque = true;
    }

    /// Takes `path` and all below it out of this layer again; a whiteout too.
    pub fn remove(&mut self, path: &LayerPath) {
        let Some((name, parents)) = path.names().split_last() else {
            self.nodes[NodeId::ROOT.0] = Node::implicit_directory();
            return;
        };
        if let Some(parent) = self.find(&LayerPath::from_names(parents.to_vec())) {
            self.nodes[parent.0].children.remove(name);
        }
    }

    /// The node that this layer has at `path`; none for a whiteout.
    pub fn get(&self, path: &LayerPath) -> Option<NodeId> {
        self.find(path)
    }

    /// What a node is.
    pub fn kind(&self, id: NodeId) -> FileKind {
        self.nodes[id.0].content.kind()
    }

    /// What a node holds.
    pub fn content(&self, id: NodeId) -> &NewContent {
        &self.nodes[id.0].content
    }

    /// Whether something described the node, not merely something below it.
    pub fn is_described(&self, id: NodeId) -> bool {
        !self.nodes[id.0].implicit
    }

    /// The root directory.
    pub fn root(&self) -> NodeId {
        NodeId::ROOT
    }

    /// What this layer has under `name` in a directory of its own.
    pub fn child(&self, dir: NodeId, name: &FileName) -> Option<Child> {
        self.nodes[dir.0].children.get(name).map(|slot| match slot {
            Slot::Node(id) => Child::Node(*id),
            Slot::Whiteout => Child::Whiteout,
        })
    }

    /// Whether a directory hides what lower layers have in it.
    pub fn is_opaque(&self, id: NodeId) -> bool {
        self.nodes[id.0].opaque
    }

    /// How many nodes were ever made, replaced ones too: what the builder's memory grows with.
    pub fn node_count(&self) -> usize {
        self.nodes.len()
    }

    /// Gives a regular file its content, which an importer may know only after it was put.
    /// Changes nothing for any other kind.
    pub fn set_object(&mut self, id: NodeId, object: ObjectId, size: u64, data_blocks: u64) {
        let content = &mut self.nodes[id.0].content;
        if matches!(content, NewContent::Regular { .. }) {
            *content = NewContent::Regular { object, size, data_blocks };
        }
    }

    /// Adds or replaces an extended attribute of a node.
    pub fn set_xattr(&mut self, id: NodeId, name: Box<[u8]>, value: Box<[u8]>) {
        self.nodes[id.0].xattrs.insert(name, value);
    }

    /// Changes mode, owner and time of a node.
    ///
    /// # Errors
    /// [`BuildError::Mode`] and [`BuildError::Nanoseconds`].
    pub fn set_metadata(&mut self, id: NodeId, metadata: Metadata) -> Result<(), BuildError> {
        check_metadata(&LayerPath::root(), &metadata)?;
        (self.nodes[id.0].metadata, self.nodes[id.0].implicit) = (metadata, false);
        Ok(())
    }

    /// Whether `path` names something lower that this layer removes or replaces.
    fn hides(&self, path: &LayerPath) -> bool {
        let mut at = NodeId::ROOT;
        let mut opaque = self.nodes[at.0].opaque;
        for (depth, name) in path.names().iter().enumerate() {
            match self.nodes[at.0].children.get(name) {
                None => return opaque,
                Some(Slot::Whiteout) => return true,
                Some(Slot::Node(id)) => {
                    let node = &self.nodes[id.0];
                    let last = depth + 1 == path.names().len();
                    if last || node.content != NewContent::Directory {
                        return true;
                    }
                    opaque |= node.opaque;
                    at = *id;
                }
            }
        }
        opaque
    }

    fn add(&mut self, node: Node) -> NodeId {
        self.nodes.push(node);
        NodeId(self.nodes.len() - 1)
    }

    fn find(&self, path: &LayerPath) -> Option<NodeId> {
        path.names().iter().try_fold(NodeId::ROOT, |at, name| {
            match self.nodes[at.0].children.get(name)? {
                Slot::Node(id) => Some(*id),
                Slot::Whiteout => None,
            }
        })
    }

    fn make_directories(&mut self, names: &[FileName]) -> NodeId {
        let mut at = NodeId::ROOT;
        for name in names {
            let old = self.nodes[at.0].children.get(name).copied();
            at = match old {
                Some(Slot::Node(id)) if self.nodes[id.0].content == NewContent::Directory => id,
                Some(Slot::Node(_) | Slot::Whiteout) | None => {
                    let opaque = matches!(old, Some(Slot::Whiteout));
                    let id = self.add(Node { opaque, ..Node::implicit_directory() });
                    self.nodes[at.0].children.insert(name.clone(), Slot::Node(id));
                    id
                }
            };
        }
        at
    }

    /// The bytes of the layer's manifest; their digest is the layer's name.
    ///
    /// # Errors
    /// [`BuildError::Encode`] if the layer does not fit the format.
    pub fn finish(mut self) -> Result<Vec<u8>, BuildError> {
        for LinkedBelow { node, names } in std::mem::take(&mut self.below) {
            for path in names {
                if !self.hides(&path) {
                    self.link(&path, node)?;
                }
            }
        }
        let numbering = Numbering::of(&self.nodes)?;
        let mut encoder = Encoder::default();
        for id in &numbering.order {
            let node = &self.nodes[id.0];
            let xattrs: Vec<(&[u8], &[u8])> =
                node.xattrs.iter().map(|(name, value)| (&**name, &**value)).collect();
            encoder.add_inode(&Draft {
                metadata: node.metadata,
                content: draft_content(node),
                xattrs: &xattrs,
                last_name: None,
            })?;
        }
        for id in &numbering.order {
            let node = &self.nodes[id.0];
            let Some(ino) = numbering.numbers[id.0] else { continue };
            if node.content == NewContent::Directory {
                let entries = node.children.iter().map(|(name, slot)| DraftEntry {
                    name: name.as_bytes(),
                    node: match slot {
                        Slot::Whiteout => None,
                        Slot::Node(child) => numbering.numbers[child.0]
                            .map(|ino| (self.nodes[child.0].content.kind(), ino)),
                    },
                });
                encoder.add_directory(ino, entries)?;
            }
        }
        Ok(encoder.finish_layer()?)
    }
}

struct Numbering {
    /// Nodes in number order.
    order: Vec<NodeId>,
    /// Number of each node; none if it has no name left.
    numbers: Vec<Option<TreeIno>>,
}

impl Numbering {
    fn of(nodes: &[Node]) -> Result<Self, EncodeError> {
        let mut order = vec![NodeId::ROOT];
        let mut numbers = vec![None; nodes.len()];
        numbers[NodeId::ROOT.0] = Some(TreeIno::ROOT);
        let mut next = 0;
        while let Some(id) = order.get(next).copied() {
            next += 1;
            for slot in nodes[id.0].children.values() {
                let Slot::Node(child) = slot else { continue };
                if numbers[child.0].is_none() {
                    order.push(*child);
                    let number = u32::try_from(order.len()).ok().and_then(TreeIno::new);
                    let number = number.ok_or(EncodeError::TooMany { what: "inodes" })?;
                    numbers[child.0] = Some(number);
                }
            }
        }
        Ok(Self { order, numbers })
    }
}

fn draft_content(node: &Node) -> DraftContent<'_> {
    match &node.content {
        NewContent::Directory => {
            DraftContent::Directory { opaque: node.opaque, implicit: node.implicit }
        }
        NewContent::Regular { object, size, data_blocks } => {
            DraftContent::Regular { object: *object, size: *size, data_blocks: *data_blocks }
        }
        NewContent::Symlink(target) => DraftContent::Symlink(target),
        NewContent::Fifo => DraftContent::Fifo,
        NewContent::Socket => DraftContent::Socket,
        NewContent::CharDevice(rdev) => DraftContent::CharDevice(*rdev),
        NewContent::BlockDevice(rdev) => DraftContent::BlockDevice(*rdev),
    }
}

/// A path of the tree below. Its names were checked when the tree was made; a damaged one is
/// reported as such.
fn lower_path(dir: &[u8], name: &[u8]) -> Result<LayerPath, BuildError> {
    let mut bytes = dir.to_vec();
    bytes.push(b'/');
    bytes.extend_from_slice(name);
    LayerPath::parse(&bytes).map_err(|_| {
        BuildError::Below(ManifestError::Record {
            section: "links",
            index: 0,
            problem: "it is not a file name",
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::ObjectId;

    fn path(text: &str) -> LayerPath {
        LayerPath::parse(text.as_bytes()).expect("test path")
    }

    fn node(content: NewContent) -> NewNode {
        let mtime = Timestamp { secs: -5, nanos: 999_999_999 };
        let metadata = Metadata { mode: 0o4755, uid: 7, gid: 70_000, mtime };
        NewNode { metadata, xattrs: Vec::new(), content }
    }

    fn file(content: &[u8]) -> NewNode {
        let size = content.len() as u64;
        node(NewContent::Regular { object: ObjectId::of(content), size, data_blocks: 8 })
    }

    fn finish(builder: LayerBuilder) -> Manifest {
        let manifest = Manifest::from_bytes(builder.finish().expect("finish")).expect("open");
        manifest.validate().expect("validate");
        manifest
    }

    #[test]
    fn what_was_put_is_read_back() {
        let mut builder = LayerBuilder::new();
        let mut tool = file(b"tool");
        tool.xattrs = vec![
            ((*b"user.b").into(), (*b"2").into()),
            ((*b"security.capability").into(), (*b"\x01\0").into()),
        ];
        builder.put(&path("usr/bin/tool"), tool).expect("tool");
        builder
            .put(&path("usr/link"), node(NewContent::Symlink((*b"bin/tool").into())))
            .expect("link");
        builder.put(&path("dev/null"), node(NewContent::CharDevice(0x103))).expect("null");
        builder.hard_link(&path("a"), &path("usr/bin/tool")).expect("hard link");
        builder.whiteout(&path("gone"));
        builder.opaque(&path("usr/bin"));
        let manifest = finish(builder);

        let tool = manifest.resolve(&path("usr/bin/tool")).expect("read").expect("tool");
        assert_eq!((tool.mode, tool.uid, tool.gid, tool.size), (0o4755, 7, 70_000, 4));
        assert_eq!((tool.nlink, tool.data_blocks, tool.xattr_count), (2, 8, 2));
        assert_eq!(tool.mtime, Timestamp { secs: -5, nanos: 999_999_999 });
        assert_eq!(manifest.object(&tool).expect("read"), Some(ObjectId::of(b"tool")));
        assert_eq!(manifest.xattr(&tool, b"user.b").expect("read"), Some(&b"2"[..]));
        assert_eq!(manifest.xattr(&tool, b"user.c").expect("read"), None);
        let names: Vec<_> = manifest.links(tool.ino).expect("read").collect();
        let bin = manifest.resolve(&path("usr/bin")).expect("read").expect("bin");
        assert_eq!(names, [(TreeIno::ROOT, &b"a"[..]), (bin.ino, b"tool")]);
        assert_eq!(manifest.path(&tool).expect("read"), b"a");
        assert_eq!((bin.opaque, bin.implicit, bin.mode, bin.nlink), (true, true, 0o755, 2));

        let link = manifest.resolve(&path("usr/link")).expect("read").expect("link");
        assert_eq!(manifest.symlink_target(&link).expect("read"), b"bin/tool");
        let null = manifest.resolve(&path("dev/null")).expect("read").expect("null");
        assert_eq!((null.kind, null.rdev), (FileKind::CharDevice, 0x103));

        let root = manifest.root().expect("root");
        assert_eq!(root.nlink, 4);
        let listed: Vec<_> =
            manifest.entries(&root).map(|entry| entry.expect("entry").name.to_vec()).collect();
        assert_eq!(listed, [&b"a"[..], b"dev", b"gone", b"usr"]);
        let gone = manifest.lookup(&root, b"gone").expect("read").expect("gone");
        assert_eq!((gone.kind, gone.ino), (crate::layer::EntryKind::Whiteout, None));
    }

    #[test]
    fn bytes_do_not_depend_on_the_order_of_calls() {
        let build = |steps: &[usize]| {
            let mut builder = LayerBuilder::new();
            for step in steps {
                match step {
                    0 => drop(builder.put(&path("a/one"), file(b"1")).expect("put")),
                    1 => drop(builder.put(&path("a/two"), file(b"2")).expect("put")),
                    2 => drop(builder.put(&path("a"), node(NewContent::Directory)).expect("put")),
                    3 => drop(builder.put(&path("z"), file(b"3")).expect("put")),
                    4 => builder.whiteout(&path("a")),
                    _ => builder.whiteout(&path("b/c")),
                }
            }
            builder.finish().expect("finish")
        };
        let first = build(&[0, 1, 2, 3, 4, 5]);
        for other in [[5, 4, 3, 2, 1, 0], [3, 4, 0, 5, 1, 2], [2, 0, 4, 1, 5, 3]] {
            assert_eq!(build(&other), first);
        }
    }

    #[test]
    fn replaced_nodes_leave_nothing_behind() {
        let mut builder = LayerBuilder::new();
        builder.put(&path("a/b/c"), file(b"old")).expect("put");
        builder.put(&path("a/b"), file(b"new")).expect("file over directory");
        builder.put(&path("x"), file(b"new")).expect("put");
        builder.put(&path("x/y"), file(b"old")).expect("directory over file");
        builder.remove(&path("x"));
        let mut plain = LayerBuilder::new();
        plain.put(&path("a/b"), file(b"new")).expect("put");
        assert_eq!(builder.finish().expect("finish"), plain.finish().expect("finish"));
    }

    #[test]
    fn a_link_to_a_lower_file_takes_all_its_names_along() {
        let mut base = LayerBuilder::new();
        base.put(&path("a/f"), file(b"f")).expect("put");
        base.hard_link(&path("b/f"), &path("a/f")).expect("link");
        base.hard_link(&path("c/f"), &path("a/f")).expect("link");
        base.hard_link(&path("d/f"), &path("a/f")).expect("link");
        let tree = Manifest::from_bytes(super::super::merge(None, &finish(base)).expect("merge"))
            .expect("open");
        let mut above = LayerBuilder::new();
        above.whiteout(&path("b/f"));
        above.hard_link_below(&path("new"), &tree, &path("a/f")).expect("link");
        above.opaque(&path("c"));
        let above = finish(above);
        let merged = super::super::merge(Some(&tree), &above).expect("merge");
        let merged = Manifest::from_bytes(merged).expect("open");
        merged.validate().expect("validate");
        let new = merged.resolve(&path("new")).expect("read").expect("new");
        assert_eq!(new.nlink, 3);
        for name in ["a/f", "d/f"] {
            assert_eq!(merged.resolve(&path(name)).expect("read").expect(name).ino, new.ino);
        }
        assert!(merged.resolve(&path("b/f")).expect("read").is_none());
        assert!(merged.resolve(&path("c/f")).expect("read").is_none());
        let old = tree.resolve(&path("a/f")).expect("read").expect("old").ino;
        assert!(merged.inode(old).expect("kept").is_hidden());
        assert_eq!(
            merged.by_origin(merged.origin(new.ino).expect("read").expect("origin")),
            Some(new.ino)
        );
    }

    #[test]
    fn what_no_kernel_can_hold_is_refused() {
        let mut builder = LayerBuilder::new();
        let mut put = |node| builder.put(&path("x"), node);
        assert!(matches!(
            put(node(NewContent::Symlink([b'x'; 4096].into()))),
            Err(BuildError::Target { len: 4096, .. })
        ));
        let mut bad = file(b"");
        bad.xattrs = vec![((*b"").into(), (*b"").into())];
        assert!(matches!(put(bad), Err(BuildError::Xattr { .. })));
        let mut bad = file(b"");
        bad.metadata.mtime.nanos = 1_000_000_000;
        assert!(matches!(put(bad), Err(BuildError::Nanoseconds { .. })));
        let mut bad = file(b"");
        bad.metadata.mode = 0o100_644;
        assert!(matches!(put(bad), Err(BuildError::Mode { .. })));
        assert!(matches!(builder.put(&LayerPath::root(), file(b"")), Err(BuildError::Root)));
        assert!(matches!(
            builder.hard_link(&path("l"), &path("none")),
            Err(BuildError::NoTarget { .. })
        ));
    }
}
