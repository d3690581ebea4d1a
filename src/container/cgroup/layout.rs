//! Which hierarchies of groups this host has, and where.
//!
//! Three layouts are in use: cgroup v1 (a hierarchy for every controller, and `name=systemd`),
//! v2 (one for all), and hybrids, where a cgroup2 tree with the controllers left over stands
//! beside v1 ones. All three are one thing here: a list of hierarchies, each with what it controls.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::error::CgroupError;

/// What a hierarchy can limit or count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Controller {
    /// Processor time: quota and weight.
    Cpu,
    /// Processor time used; a controller in v1 only.
    Cpuacct,
    /// Which processors may be used.
    Cpuset,
    /// Memory and swap.
    Memory,
    /// How many processes.
    Pids,
    /// Block devices: `blkio` in v1, `io` in v2.
    Io,
    /// Which devices may be opened; a controller in v1 only.
    Devices,
    /// Standing still; a controller in v1 only, part of every group in v2.
    Freezer,
    /// Large pages.
    Hugetlb,
}

impl Controller {
    fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "cpu" => Self::Cpu,
            "cpuacct" => Self::Cpuacct,
            "cpuset" => Self::Cpuset,
            "memory" => Self::Memory,
            "pids" => Self::Pids,
            "blkio" | "io" => Self::Io,
            "devices" => Self::Devices,
            "freezer" => Self::Freezer,
            "hugetlb" => Self::Hugetlb,
            _ => return None,
        })
    }

    /// What a v2 tree calls it in `cgroup.subtree_control`.
    pub(super) fn v2_name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Cpuacct => "cpuacct",
            Self::Cpuset => "cpuset",
            Self::Memory => "memory",
            Self::Pids => "pids",
            Self::Io => "io",
            Self::Devices => "devices",
            Self::Freezer => "freezer",
            Self::Hugetlb => "hugetlb",
        }
    }
}

impl fmt::Display for Controller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.v2_name())
    }
}

/// Which of the kernel's two interfaces a hierarchy has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// One hierarchy for each controller.
    V1,
    /// The unified one.
    V2,
}

/// How much of the trees a container gets for its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delegation {
    /// All in which it stays within its limits.
    Held,
    /// Everything, as container runtimes inside want it: on cgroup v1 it may leave limits of disk
    /// traffic behind, and disturb its neighbours through cpuset.
    Nesting,
}

/// One mounted tree of groups.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hierarchy {
    /// Where it is mounted.
    pub mountpoint: PathBuf,
    /// Which interface it has.
    pub version: Version,
    /// What it controls; empty for `name=systemd`, and for a cgroup2 tree that v1 left nothing.
    pub controllers: BTreeSet<Controller>,
    /// The name of a v1 hierarchy without controllers: `systemd`.
    pub name: Option<String>,
}

impl Hierarchy {
    /// Whether OCI runtimes leave this tree alone where there are others: `name=systemd`, and the
    /// cgroup2 tree.
    pub fn is_passed_over(&self) -> bool {
        self.version == Version::V2 || self.name.as_deref() == Some("systemd")
    }

    /// Whether a container may own its part of this tree: make groups there and set whatever it
    /// likes in those, and still be held to every limit above.
    pub fn may_be_given(&self, delegation: Delegation) -> bool {
        let held = |controller: &Controller| match controller {
            // What a group below may have counts against all above it, or is cut to what they have.
            Controller::Cpuacct
            | Controller::Pids
            | Controller::Freezer
            | Controller::Hugetlb
            // Root of the host alone lets a group have more, and never more than the one above.
            | Controller::Devices => true,
            // v1 throttles each group by itself, so a new one is free of the limit. And each change of
            // cpuset.sched_relax_domain_level, by whomever, has the kernel arrange the processors
            // anew for the whole host. A quota below is the least that the one above may have from then
            // on; and a host has 65,535 groups of memory for all.
            Controller::Io | Controller::Cpuset | Controller::Cpu | Controller::Memory => {
                delegation == Delegation::Nesting
            }
        };
        let known = match self.name.as_deref() {
            Some(name) => name == "systemd",
            // net_cls and its like: nobody knows here what they give away.
            None => !self.controllers.is_empty(),
        };
        self.version == Version::V2 || (known && self.controllers.iter().all(held))
    }
}

/// All hierarchies of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    hierarchies: Vec<Hierarchy>,
}

impl Layout {
    /// Reads what is mounted.
    ///
    /// # Errors
    /// [`CgroupError::NoHierarchy`], or what reading the mount table answers.
    pub fn detect() -> Result<Self, CgroupError> {
        Self::detect_in(Path::new("/"))
    }

    /// The same with `root` in the place of `/`: for trees that were recorded.
    ///
    /// # Errors
    /// As [`detect`](Self::detect).
    pub fn detect_in(root: &Path) -> Result<Self, CgroupError> {
        let table = root.join("proc/self/mountinfo");
        let text = fs::read_to_string(&table).map_err(CgroupError::system("read", &table))?;
        let mut hierarchies: Vec<Hierarchy> = Vec::new();
        for mount in text.lines().filter_map(|line| Mounted::parse(line, root)) {
            let hierarchy = mount.hierarchy()?;
            // The same tree mounted twice is one; the kernel has one cgroup2 tree.
            let known = hierarchies.iter().any(|known| {
                known.version == hierarchy.version
                    && known.controllers == hierarchy.controllers
                    && known.name == hierarchy.name
            });
            if !known {
                hierarchies.push(hierarchy);
            }
        }
        if hierarchies.is_empty() {
            return Err(CgroupError::NoHierarchy);
        }
        Ok(Self { hierarchies })
    }

    /// All of them, in the order of the mount table.
    pub fn hierarchies(&self) -> &[Hierarchy] {
        &self.hierarchies
    }

    /// The one that has `controller`.
    pub fn with(&self, controller: Controller) -> Option<&Hierarchy> {
        self.hierarchies.iter().find(|hierarchy| hierarchy.controllers.contains(&controller))
    }

    /// The cgroup2 tree, whatever it controls.
    pub fn unified(&self) -> Option<&Hierarchy> {
        self.hierarchies.iter().find(|hierarchy| hierarchy.version == Version::V2)
    }

    /// What people call this arrangement: `v1`, `v2` or `hybrid`.
    pub fn kind(&self) -> &'static str {
        let all = |version| self.hierarchies.iter().all(|known| known.version == version);
        match (all(Version::V1), all(Version::V2)) {
            (true, _) => "v1",
            (_, true) => "v2",
            (false, false) => "hybrid",
        }
    }
}

/// A line of mountinfo that mounts groups.
struct Mounted {
    mountpoint: PathBuf,
    version: Version,
    options: Vec<String>,
}

impl Mounted {
    /// proc_pid_mountinfo(5): the file system's type and its own options stand after a lone `-`.
    /// Mounts of a part of a tree (root other than `/`) are passed over: a container's view.
    fn parse(line: &str, root: &Path) -> Option<Self> {
        let (mount, system) = line.split_once(" - ")?;
        let mut mount = mount.split(' ').skip(3);
        let (within, mountpoint) = (mount.next()?, mount.next()?);
        let mut system = system.split(' ');
        let version = match system.next()? {
            "cgroup" => Version::V1,
            "cgroup2" => Version::V2,
            _ => return None,
        };
        // Below a cgroup namespace the parts above its root read as `/..`.
        if within != "/" {
            return None;
        }
        let options = system.nth(1)?.split(',').map(str::to_owned).collect();
        let mountpoint = root.join(unescape(mountpoint).trim_start_matches('/'));
        Some(Self { mountpoint, version, options })
    }

    fn hierarchy(self) -> Result<Hierarchy, CgroupError> {
        let controllers = match self.version {
            Version::V1 => {
                self.options.iter().filter_map(|option| Controller::parse(option)).collect()
            }
            Version::V2 => {
                let list = self.mountpoint.join("cgroup.controllers");
                let text = match fs::read_to_string(&list) {
                    Ok(text) => text,
                    Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
                    Err(error) => return Err(CgroupError::system("read", &list)(error)),
                };
                text.split_whitespace().filter_map(Controller::parse).collect()
            }
        };
        let name = self.options.iter().find_map(|option| option.strip_prefix("name="));
        let name = name.map(str::to_owned);
        Ok(Hierarchy { mountpoint: self.mountpoint, version: self.version, controllers, name })
    }
}

/// Undoes the octal escapes of mountinfo.
fn unescape(field: &str) -> String {
    ["\\040", "\\011", "\\012", "\\134"]
        .iter()
        .zip([" ", "\t", "\n", "\\"])
        .fold(field.to_owned(), |text, (escape, letter)| text.replace(escape, letter))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recorded(mountinfo: &str, files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let mut files = files.to_vec();
        files.push(("proc/self/mountinfo", mountinfo));
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    /// Debian 12 as installed.
    const V2: &str = "\
23 28 0:21 / /proc rw,nosuid - proc proc rw
30 24 0:27 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:9 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot
";

    /// A virtual machine without systemd.
    const HYBRID: &str = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
38 31 0:35 / /sys/fs/cgroup/blkio rw,relatime - cgroup cgroup rw,blkio
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime shared:1 master:2 - cgroup cgroup rw,xattr,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
99 31 0:32 /docker/x /var/lib/elsewhere rw,relatime - cgroup cgroup rw,memory
98 31 0:32 / /mnt/a\\040second\\040time rw,relatime - cgroup cgroup rw,memory
";

    #[test]
    fn one_tree_holds_all_on_v2() {
        let tree = recorded(
            V2,
            &[(
                "sys/fs/cgroup/cgroup.controllers",
                "cpuset cpu io memory hugetlb pids rdma misc\n",
            )],
        );
        let layout = Layout::detect_in(tree.path()).unwrap();
        assert_eq!(layout.kind(), "v2");
        for controller in [Controller::Cpu, Controller::Io, Controller::Memory, Controller::Pids] {
            assert_eq!(layout.with(controller), layout.unified(), "{controller}");
        }
        assert_eq!(layout.with(Controller::Devices), None);
        assert_eq!(layout.hierarchies().len(), 1);
    }

    #[test]
    fn a_hybrid_has_each_controller_where_it_is_mounted() {
        let tree = recorded(HYBRID, &[("sys/fs/cgroup/unified/cgroup.controllers", "hugetlb\n")]);
        let layout = Layout::detect_in(tree.path()).unwrap();
        assert_eq!(layout.kind(), "hybrid");
        let at = |controller| {
            let hierarchy = layout.with(controller).unwrap();
            hierarchy.mountpoint.strip_prefix(tree.path()).unwrap().to_owned()
        };
        assert_eq!(at(Controller::Cpu), Path::new("sys/fs/cgroup/cpu,cpuacct"));
        assert_eq!(at(Controller::Cpuacct), at(Controller::Cpu));
        assert_eq!(at(Controller::Memory), Path::new("sys/fs/cgroup/memory"));
        assert_eq!(at(Controller::Io), Path::new("sys/fs/cgroup/blkio"));
        assert_eq!(at(Controller::Hugetlb), Path::new("sys/fs/cgroup/unified"));
        assert_eq!(layout.with(Controller::Pids), None);
        let passed: Vec<_> =
            layout.hierarchies().iter().filter(|known| known.is_passed_over()).collect();
        assert_eq!(passed.len(), 2, "name=systemd and the cgroup2 tree");
        let kept = |delegation| {
            let kept = |known: &&Hierarchy| !known.may_be_given(delegation);
            let kept = layout.hierarchies().iter().filter(kept);
            kept.flat_map(|known| &known.controllers).collect::<BTreeSet<_>>()
        };
        let [cpu, cpuacct] = [&Controller::Cpu, &Controller::Cpuacct];
        let wanted = BTreeSet::from([cpu, cpuacct, &Controller::Memory, &Controller::Io]);
        assert_eq!(kept(Delegation::Held), wanted);
        assert!(kept(Delegation::Nesting).is_empty());
    }

    #[test]
    fn without_any_tree_it_says_so() {
        let tree = recorded("23 28 0:21 / /proc rw,nosuid - proc proc rw\ngarbage\n\n", &[]);
        let refused = Layout::detect_in(tree.path()).unwrap_err();
        assert!(matches!(refused, CgroupError::NoHierarchy), "{refused}");
    }
}
