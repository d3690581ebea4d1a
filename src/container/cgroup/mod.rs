//! The groups of processes that the kernel limits, counts, freezes and kills as one.
//!
//! A container has two groups in every hierarchy of the host, v1, v2 or both:
//!
//! ```text
//! mica/web1            limits, written by us, out of the container's reach
//! mica/web1/inside     its processes; what it sees as the root of all groups
//! ```
//!
//! So neither a tenant who owns its part of the tree nor a privileged one changes what it may
//! use. Knows nothing of containers but a path and plain limits. The kernel keeps all of it, so
//! a crash here changes nothing: whoever comes next opens the same path.

mod apply;
mod devices;
mod disk;
mod error;
mod guarantee;
mod layout;
mod limits;
mod plan;
mod stop;
mod tree;
mod usage;
mod walk;

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

pub use disk::Disk;
pub use error::CgroupError;
pub use guarantee::{Capacity, Guarantee, OverCommitted, admit, protect_parent, weights};
pub use layout::{Controller, Delegation, Hierarchy, Layout, Version};
pub use limits::{CpuQuota, CpuSet, IoLimit, Limits, Weight};
pub use plan::{Holds, Shortfall};
pub use usage::Usage;

/// The group that a container sees as the root of all groups.
const INSIDE: &str = "inside";

/// Where a group lies in every hierarchy: names divided by `/`, such as `mica/web1`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GroupPath(String);

impl GroupPath {
    /// The path of `name` beneath this one.
    ///
    /// # Errors
    /// [`CgroupError::BadPath`].
    pub fn join(&self, name: &str) -> Result<Self, CgroupError> {
        format!("{}/{name}", self.0).parse()
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What it lies beneath; none at the top.
    fn parent(&self) -> Option<Self> {
        self.0.rsplit_once('/').map(|(parent, _)| Self(parent.to_owned()))
    }
}

impl FromStr for GroupPath {
    type Err = CgroupError;

    fn from_str(text: &str) -> Result<Self, CgroupError> {
        let sound = |name: &str| {
            let letter = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
            // A dot may stand anywhere but first: neither `.` nor `..`, and no hidden group.
            (1..=128).contains(&name.len()) && name.bytes().all(letter) && !name.starts_with('.')
        };
        let path = text.trim_matches('/');
        if path.split('/').all(sound) {
            Ok(Self(path.to_owned()))
        } else {
            Err(CgroupError::BadPath(text.to_owned()))
        }
    }
}

impl fmt::Display for GroupPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The groups of one container, in every hierarchy.
#[derive(Debug, Clone)]
pub struct Cgroup {
    layout: Layout,
    path: GroupPath,
}

impl Cgroup {
    /// Makes the groups of `path` wherever they are missing; those that exist stay as they are.
    ///
    /// # Errors
    /// What making a directory or enabling a controller answers. Groups made until then stay:
    /// [`remove`](Self::remove) takes them away.
    pub fn create(layout: &Layout, path: GroupPath) -> Result<Self, CgroupError> {
        let group = Self::open(layout, path);
        for hierarchy in layout.hierarchies() {
            tree::make(hierarchy, &group.inside_path())?;
            tree::bound(hierarchy, &group.outer(hierarchy))?;
        }
        Ok(group)
    }

    /// The groups of `path`, whether or not they exist: to ask about, adopt or remove them.
    pub fn open(layout: &Layout, path: GroupPath) -> Self {
        Self { layout: layout.clone(), path }
    }

    /// Whether any of them exists.
    pub fn exists(&self) -> bool {
        self.layout.hierarchies().iter().any(|hierarchy| self.outer(hierarchy).exists())
    }

    /// Where the groups lie.
    pub fn path(&self) -> &GroupPath {
        &self.path
    }

    /// The absolute path, within each hierarchy, of the group that the processes belong into: the
    /// `linux.cgroupsPath` of an OCI runtime's configuration.
    pub fn inside_path(&self) -> String {
        format!("/{}/{INSIDE}", self.path)
    }

    /// Moves a process, with all its threads, into the container's group of every hierarchy.
    ///
    /// A cgroup namespace must be made after this: its root is where the process is then. So what
    /// starts a container enters first, and everything it starts is inside from the first moment.
    ///
    /// # Errors
    /// `ESRCH` when there is no such process, `ENOENT` when the groups were not made.
    pub fn enter(&self, pid: u32) -> Result<(), CgroupError> {
        for hierarchy in self.layout.hierarchies() {
            let file = self.inside(hierarchy).join("cgroup.procs");
            fs::write(&file, pid.to_string()).map_err(CgroupError::system("write", &file))?;
        }
        Ok(())
    }

    /// Every process of the container, as this pid namespace counts, in whichever hierarchy it is.
    ///
    /// # Errors
    /// What reading a directory answers; a group that is gone has no processes.
    pub fn processes(&self) -> Result<BTreeSet<u32>, CgroupError> {
        let mut all = BTreeSet::new();
        for hierarchy in self.layout.hierarchies() {
            tree::processes(&self.outer(hierarchy), &mut all)?;
        }
        Ok(all)
    }

    /// Holds the processes to the devices that every container has, and those at `also`, before any is in.
    ///
    /// # Errors
    /// [`CgroupError::DevicesOpen`] where neither cgroup2 nor a v1 hierarchy can hold them.
    pub fn hold_to_devices(&self, also: &[PathBuf]) -> Result<(), CgroupError> {
        devices::hold(self, also)
    }

    /// Holds the container to `limits`, running or not: each takes effect at once. What `limits`
    /// leaves open is unlimited from then on.
    ///
    /// Answers what of it does not hold here, or in part only.
    ///
    /// # Errors
    /// [`CgroupError::MemoryInUse`] when more than the new limit is in use and cannot be
    /// reclaimed, [`CgroupError::BadLimit`] for processors this host does not have. On any error
    /// everything is as it was.
    pub fn apply(&self, limits: &Limits) -> Result<Vec<Shortfall>, CgroupError> {
        apply::apply(self, limits)
    }

    /// Sets the part of the processors under contention alone, leaving every other limit.
    ///
    /// # Errors
    /// What writing it answers; a host without the controller has nothing to set.
    pub fn set_cpu_weight(&self, weight: Weight) -> Result<(), CgroupError> {
        apply::set_cpu_weight(&self.layout, &self.path, weight)
    }

    /// What the container uses and has used.
    ///
    /// # Errors
    /// [`CgroupError::Garbled`] when a file holds something unknown.
    pub fn usage(&self) -> Result<Usage, CgroupError> {
        usage::usage(self)
    }

    /// Makes every process stand still; returns once they do.
    ///
    /// # Errors
    /// [`CgroupError::NotFrozen`] when one does not within half a minute; they run on then.
    pub fn freeze(&self) -> Result<(), CgroupError> {
        stop::freeze(self)
    }

    /// Lets them go on.
    ///
    /// # Errors
    /// What writing the file answers.
    pub fn thaw(&self) -> Result<(), CgroupError> {
        stop::thaw(self)
    }

    /// Whether [`freeze`](Self::freeze) is in force.
    ///
    /// # Errors
    /// What reading the file answers.
    pub fn is_frozen(&self) -> Result<bool, CgroupError> {
        stop::is_frozen(self)
    }

    /// Kills every process, frozen or not, those that are being forked too; returns once the
    /// groups are empty.
    ///
    /// # Errors
    /// [`CgroupError::Undying`] when some are left after a minute.
    pub fn kill_all(&self) -> Result<(), CgroupError> {
        stop::kill_all(self)
    }

    /// Gives the container its own part of the trees, as the user that its root is on the host: its
    /// init makes groups there. Its limits stay ours.
    ///
    /// # Errors
    /// What chown(2) answers.
    pub fn delegate(&self, uid: u32, gid: u32, delegation: Delegation) -> Result<(), CgroupError> {
        let given = |known: &&Hierarchy| known.may_be_given(delegation);
        for hierarchy in self.layout.hierarchies().iter().filter(given) {
            tree::delegate(&self.inside(hierarchy), uid, gid)?;
        }
        Ok(())
    }

    /// Removes the groups and all that the container made in them; gone already is no error.
    ///
    /// # Errors
    /// `EBUSY` while processes are in them.
    pub fn remove(&self) -> Result<(), CgroupError> {
        for hierarchy in self.layout.hierarchies() {
            tree::remove(&self.outer(hierarchy))?;
        }
        Ok(())
    }

    /// Removes the groups that the container made in its own part, but not that itself: what an OCI
    /// runtime is to remove goes by a path, and no path may lead to what lies deep in it.
    ///
    /// # Errors
    /// As [`remove`](Self::remove).
    pub fn remove_made(&self) -> Result<(), CgroupError> {
        for hierarchy in self.layout.hierarchies() {
            tree::remove_beneath(&self.inside(hierarchy))?;
        }
        Ok(())
    }

    /// Removes the groups above, up to the root, that hold nothing any more.
    ///
    /// # Errors
    /// What opening a hierarchy answers.
    pub fn remove_empty_parents(&self) -> Result<(), CgroupError> {
        let mut above = self.path.parent();
        while let Some(path) = above {
            for hierarchy in self.layout.hierarchies() {
                tree::remove_empty(hierarchy, path.as_str())?;
            }
            above = path.parent();
        }
        Ok(())
    }

    /// The limits' directory in `hierarchy`.
    fn outer(&self, hierarchy: &Hierarchy) -> PathBuf {
        hierarchy.mountpoint.join(self.path.as_str())
    }

    /// The processes' directory in `hierarchy`.
    fn inside(&self, hierarchy: &Hierarchy) -> PathBuf {
        self.outer(hierarchy).join(INSIDE)
    }

    /// The limits' directory of `controller`, and its interface.
    fn controlled(&self, controller: Controller) -> Option<(PathBuf, Version)> {
        let hierarchy = self.layout.with(controller)?;
        Some((self.outer(hierarchy), hierarchy.version))
    }
}

/// Reads a file of the kernel; none when it is not there.
fn read(file: &Path) -> Result<Option<String>, CgroupError> {
    match fs::read_to_string(file) {
        Ok(text) => Ok(Some(text)),
        // A group removed between opening and reading answers ENODEV.
        Err(error) if walk::is_gone(&error) => Ok(None),
        Err(error) => Err(CgroupError::system("read", file)(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_groups_stay_in_the_hierarchy() {
        for good in ["mica", "mica/web1", "/mica/0f-a_b.c/", "a/b/c"] {
            assert_eq!(good.parse::<GroupPath>().unwrap().as_str(), good.trim_matches('/'));
        }
        for bad in ["", "/", "..", "a/../b", "a//b", "a/./b", ".hidden", "a b", "a\n", "ä"] {
            assert!(bad.parse::<GroupPath>().is_err(), "{bad:?}");
        }
    }
}
