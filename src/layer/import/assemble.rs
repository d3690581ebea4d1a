//! Gives archive members their meaning in a tree.
//!
//! The rules are those of unpacking in a chroot, so they match what docker and containerd make
//! of the same layers, and `tar x` where it is safe:
//! - A later member of the same path replaces an earlier one; a directory over a directory keeps
//!   its names.
//! - A leading `/` is dropped. `..` in a member name or in a hard link's target is refused.
//! - Symbolic links in the middle of a path are followed inside the tree: an absolute target
//!   starts at the root, `..` stops there. The last name is never followed. So a member cannot
//!   reach outside, and layers made for a system with or without merged `/usr` both fit.
//! - A hard link names what stands at its target at that moment, in this layer or below it.
//! - ACLs by name mean the users and groups of the tree's own `/etc/passwd` and `/etc/group`.
//! - With whiteouts on, `.wh.NAME` hides NAME of the layers below, `.wh..wh..opq` hides all that
//!   they have in its directory. OCI image-spec, layer.md, "Whiteouts".

use super::ImportError;
use super::acl::{Accounts, Acl, AclFault};
use super::metadata::printable;
use super::progress::{Note, Progress};
use super::resolve::{Found, Step, Walk, target_steps};
use super::tar::{Member, MemberKind, TarError};
use super::whiteout::{self, Whiteout};
use crate::layer::{
    BuildError, FileKind, FileName, LayerBuilder, LayerPath, Manifest, NewContent, NewNode, NodeId,
    PathError,
};
use crate::object::{ObjectId, Put};

/// Symbolic links followed for one path, as in the kernel (`MAXSYMLINKS`).
const MAX_LINKS: u32 = 40;
/// Most directories one inside another.
pub(super) const MAX_DEPTH: usize = 16_384;

/// Directories that members may lie in without the archive having them, for each member and in
/// all: a name of a few bytes makes thousands.
const IMPLIED_EACH: u64 = 4;
const IMPLIED: u64 = 256 << 10;
/// Steps from directory to directory on the way to members, for each member and in all: a link
/// makes one step thousands.
const STEPS_EACH: u64 = 256;
const STEPS: u64 = 16 << 20;

/// One layer while members are being placed in it.
pub(super) struct Assembly<'a> {
    builder: LayerBuilder,
    lower: Option<&'a Manifest>,
    whiteouts: bool,
    progress: &'a dyn Progress,
    absolute_names: u64,
    members: u64,
    /// ACLs that wait for the account files.
    named_acls: Vec<NamedAcl>,
    accounts: Accounts,
    /// Steps from directory to directory so far.
    steps: u64,
    /// The parent names of the last member and what they resolved to; members come grouped.
    last_parent: Option<(Vec<FileName>, Parent)>,
}

/// The directory that a member goes into.
#[derive(Clone)]
struct Parent {
    path: LayerPath,
    /// Whether it is there already, in the layer or below.
    exists: bool,
}

struct NamedAcl {
    node: NodeId,
    attribute: &'static [u8],
    acl: Acl,
    /// The member it is of, and its offset.
    member: Box<[u8]>,
    position: u64,
}

/// A regular file that waits for its content.
pub(super) struct Placed {
    pub(super) id: NodeId,
    pub(super) role: Role,
}

/// What the content of a file says about other members.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Ordinary,
    /// The numbers of users.
    Users,
    /// The numbers of groups.
    Groups,
}

impl<'a> Assembly<'a> {
    pub(super) fn new(
        lower: Option<&'a Manifest>,
        whiteouts: bool,
        progress: &'a dyn Progress,
    ) -> Self {
        Self {
            builder: LayerBuilder::new(),
            lower,
            whiteouts,
            progress,
            absolute_names: 0,
            members: 0,
            named_acls: Vec::new(),
            accounts: Accounts::default(),
            steps: 0,
            last_parent: None,
        }
    }

    /// Members placed so far.
    pub(super) fn members(&self) -> u64 {
        self.members
    }

    /// Nodes made so far, which is what memory grows with.
    pub(super) fn node_count(&self) -> usize {
        self.builder.node_count()
    }

    /// Places a member. A regular file's node is returned; it has no content until
    /// [`Self::set_content`].
    pub(super) fn place(&mut self, member: &Member) -> Result<Option<Placed>, ImportError> {
        self.members += 1;
        let path = self.parse(&member.path)?;
        let Some((name, parents)) = path.names().split_last() else {
            if member.kind != MemberKind::Directory {
                return Err(ImportError::RootReplaced);
            }
            let root = self.builder.put(&path, node(member, NewContent::Directory))?;
            self.keep_acls(root, member);
            return Ok(None);
        };
        if self.whiteouts
            && let Some(whiteout) = whiteout::parse(name.as_bytes())
        {
            self.whiteout(parents, whiteout, member)?;
            return Ok(None);
        }
        let parent = self.directory(parents, &member.path)?.path;
        let path = parent.join(name.clone());
        let content = match &member.kind {
            MemberKind::Regular => {
                NewContent::Regular { object: ObjectId::of(b""), size: 0, data_blocks: 0 }
            }
            MemberKind::Directory => {
                self.directory_member(&path, member)?;
                return Ok(None);
            }
            MemberKind::HardLink(target) => {
                self.hard_link(&path, target, member)?;
                return Ok(None);
            }
            MemberKind::Symlink(target) => {
                self.last_parent = None;
                NewContent::Symlink(target.clone())
            }
            MemberKind::Fifo => NewContent::Fifo,
            MemberKind::CharDevice(rdev) => NewContent::CharDevice(*rdev),
            MemberKind::BlockDevice(rdev) => NewContent::BlockDevice(*rdev),
        };
        let id = self.builder.put(&path, node(member, content))?;
        self.check_implied(member)?;
        self.keep_acls(id, member);
        let role = match path.to_bytes().as_slice() {
            b"etc/passwd" => Role::Users,
            b"etc/group" => Role::Groups,
            _ => Role::Ordinary,
        };
        Ok((member.kind == MemberKind::Regular).then_some(Placed { id, role }))
    }

    /// Refuses an archive that makes far more of itself than it has.
    fn check_implied(&self, member: &Member) -> Result<(), ImportError> {
        let nodes = u64::try_from(self.node_count()).unwrap_or(u64::MAX);
        if nodes > self.members.saturating_mul(IMPLIED_EACH).saturating_add(IMPLIED) {
            return Err(ImportError::TooManyImplied(member.path.clone()));
        }
        Ok(())
    }

    fn keep_acls(&mut self, id: NodeId, member: &Member) {
        for (attribute, acl) in &member.named_acls {
            self.named_acls.push(NamedAcl {
                node: id,
                attribute,
                acl: acl.clone(),
                member: member.path.clone(),
                position: member.position,
            });
        }
    }

    /// Looks at content whose role is not ordinary.
    pub(super) fn learn(&mut self, role: Role, content: &[u8]) {
        match role {
            Role::Users => self.accounts.set_users(content),
            Role::Groups => self.accounts.set_groups(content),
            Role::Ordinary => {}
        }
    }

    /// Gives a regular file its content.
    pub(super) fn set_content(&mut self, id: NodeId, put: &Put) {
        self.builder.set_object(id, put.id, put.len_bytes, put.data_blocks);
    }

    /// The manifest of the layer.
    pub(super) fn finish(mut self) -> Result<Vec<u8>, ImportError> {
        if self.absolute_names > 0 {
            self.progress.note(&Note::AbsoluteNames(self.absolute_names));
        }
        for NamedAcl { node, attribute, acl, member, position } in self.named_acls {
            let fault =
                |fault: AclFault| TarError { member: Some(member), position, fault: fault.into() };
            let value = acl.encode(&self.accounts).map_err(fault)?;
            self.builder.set_xattr(node, attribute.into(), value);
        }
        Ok(self.builder.finish()?)
    }

    fn parse(&mut self, path: &[u8]) -> Result<LayerPath, PathError> {
        if path.starts_with(b"/") {
            self.absolute_names += 1;
        }
        LayerPath::parse(path)
    }

    fn directory_member(&mut self, path: &LayerPath, member: &Member) -> Result<(), ImportError> {
        self.last_parent = None;
        let replaced =
            self.builder.get(path).is_some_and(|id| self.builder.kind(id) != FileKind::Directory);
        let id = self.builder.put(path, node(member, NewContent::Directory))?;
        self.check_implied(member)?;
        self.keep_acls(id, member);
        if replaced && self.lower.is_some() {
            // What stood here for a moment hid the directory below for good.
            self.builder.opaque(path);
        }
        Ok(())
    }

    fn hard_link(
        &mut self,
        path: &LayerPath,
        target: &[u8],
        member: &Member,
    ) -> Result<(), ImportError> {
        let no_target =
            || ImportError::NoLinkTarget { member: member.path.clone(), target: target.into() };
        let to_directory =
            || ImportError::LinkToDirectory { member: member.path.clone(), target: target.into() };
        let parsed = self.parse(target)?;
        let Some((name, parents)) = parsed.names().split_last() else {
            return Err(to_directory());
        };
        let target = self.directory(parents, &member.path)?.path.join(name.clone());
        if target == *path && self.builder.get(path).is_some() {
            return Ok(());
        }
        let linked = match (self.builder.get(&target), self.lower) {
            (Some(_), _) => self.builder.hard_link(path, &target),
            (None, Some(lower)) => self.builder.hard_link_below(path, lower, &target),
            (None, None) => return Err(no_target()),
        };
        match linked {
            Ok(()) => Ok(()),
            Err(BuildError::NoTarget { .. }) => Err(no_target()),
            Err(BuildError::LinkToDirectory { .. }) => Err(to_directory()),
            Err(error) => Err(error.into()),
        }
    }

    fn whiteout(
        &mut self,
        parents: &[FileName],
        whiteout: Whiteout,
        member: &Member,
    ) -> Result<(), ImportError> {
        let parent = match self.directory(parents, &member.path) {
            // umoci takes the names out of a directory that it then replaces by a file.
            Err(ImportError::NotADirectory { .. }) => None,
            parent => Some(parent?).filter(|parent| parent.exists).map(|parent| parent.path),
        };
        self.last_parent = None;
        match (whiteout, parent) {
            (Whiteout::Name(hidden), Some(parent)) => {
                self.builder.whiteout(&parent.join(hidden));
            }
            (Whiteout::Opaque, Some(parent)) => self.builder.opaque(&parent),
            // There is nothing to hide, and no directory shall come from it.
            (Whiteout::Name(_) | Whiteout::Opaque, None) => {}
            (Whiteout::Bookkeeping, _) => {
                self.progress.note(&Note::AufsFile(printable(&member.path)));
            }
            (Whiteout::Invalid, _) => {
                return Err(ImportError::BadWhiteout(printable(&member.path)));
            }
        }
        Ok(())
    }

    /// Resolves the directory that `names` lead to; what is missing on the way is to be made.
    fn directory(&mut self, names: &[FileName], member: &[u8]) -> Result<Parent, ImportError> {
        if names.len() > MAX_DEPTH {
            return Err(ImportError::TooDeep(member.into()));
        }
        if let Some((known, resolved)) = &self.last_parent
            && known == names
        {
            return Ok(resolved.clone());
        }
        let mut walk = Walk::new(&self.builder, self.lower)?;
        let mut steps: Vec<Step> = names.iter().rev().cloned().map(Step::Down).collect();
        let mut followed = 0;
        let most = self.members.saturating_mul(STEPS_EACH).saturating_add(STEPS);
        while let Some(step) = steps.pop() {
            self.steps += 1;
            if self.steps > most {
                return Err(ImportError::TooManySteps(member.into()));
            }
            let name = match step {
                Step::Up => {
                    walk.up();
                    continue;
                }
                Step::Down(name) => name,
            };
            match walk.down(name)? {
                Found::Directory | Found::Missing => {}
                Found::Symlink(target) => {
                    followed += 1;
                    if followed > MAX_LINKS {
                        return Err(ImportError::LinkLoop(member.into()));
                    }
                    walk.up();
                    if target.starts_with(b"/") {
                        walk.restart();
                    }
                    steps.extend(target_steps(&target)?.into_iter().rev());
                }
                Found::Other => {
                    let parent = walk.path().to_bytes().into();
                    return Err(ImportError::NotADirectory { member: member.into(), parent });
                }
            }
        }
        if walk.depth() > MAX_DEPTH {
            return Err(ImportError::TooDeep(member.into()));
        }
        let resolved = Parent { path: walk.path(), exists: walk.exists() };
        self.last_parent = Some((names.to_vec(), resolved.clone()));
        Ok(resolved)
    }
}

fn node(member: &Member, content: NewContent) -> NewNode {
    NewNode { metadata: member.metadata, xattrs: member.xattrs.clone(), content }
}
