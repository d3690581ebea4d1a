//! Trying what this host can do.
//!
//! Owns the list of capabilities, how each is tried, and what to do where one is missing.
//! Nothing is concluded from version numbers: each is done for real, on a scratch directory
//! beside the store and on a root mounted from it. Must never know who reads the findings.
//! Nothing survives: the scratch directory goes with the value that made it; after a crash
//! it is named `.mica-doctor-…` and may be removed.

mod container_probes;
mod host_probes;
mod namespace;
mod root_probes;
mod scratch;

use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;

pub use namespace::stand_in_own_namespace;
use scratch::Scratch;

/// What Mica uses of a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Capability {
    /// Root, with CAP_SYS_ADMIN.
    Root,
    /// /dev/fuse can be opened.
    Fuse,
    /// A root can be mounted and read.
    Mount,
    /// Shared files go straight to their objects.
    Passthrough,
    /// The objects can be reached through a mount that nobody can write through.
    ReadOnlyMount,
    /// Objects can be made immutable.
    ImmutableFlag,
    /// Private layers can keep their marks.
    TrustedXattrs,
    /// Private layers can keep their whiteouts.
    Whiteouts,
    /// Copies can share their blocks.
    Reflink,
    /// Files can be found again by handle.
    FileHandles,
    /// The page cache can be measured without touching it.
    Cachestat,
    /// The kernel can check the content of objects whenever it reads them.
    Verity,
    /// A root can be mounted again for a user namespace.
    IdmappedMount,
    /// FUSE requests can be served through io_uring.
    Uring,
    /// Containers can be limited, counted and paused.
    Cgroups,
    /// Containers can have a network of their own.
    ContainerNetwork,
    /// It can be held to a rate.
    NetworkRates,
}

/// How much a missing capability matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Need {
    /// Without it there are no roots.
    Required,
    /// Without it something is slower, bigger or less safe.
    Wanted,
    /// Nothing uses it yet.
    Future,
}

/// What trying one capability showed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was tried.
    pub capability: Capability,
    /// How much it matters.
    pub need: Need,
    /// Whether it works here.
    pub works: bool,
    /// What was seen.
    pub seen: String,
    /// What to do, where it does not work.
    pub remedy: Option<&'static str>,
}

impl Capability {
    /// What it is called.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::Fuse => "fuse",
            Self::Mount => "mounting a root",
            Self::Passthrough => "passthrough",
            Self::ReadOnlyMount => "detached read-only mount",
            Self::ImmutableFlag => "immutable flag",
            Self::TrustedXattrs => "trusted.* xattrs",
            Self::Whiteouts => "whiteouts",
            Self::Reflink => "reflink",
            Self::FileHandles => "file handles",
            Self::Cachestat => "cachestat",
            Self::Verity => "fs-verity",
            Self::IdmappedMount => "idmapped mount",
            Self::Uring => "FUSE over io_uring",
            Self::Cgroups => "cgroup limits",
            Self::ContainerNetwork => "container network",
            Self::NetworkRates => "network rates",
        }
    }

    fn need(self) -> Need {
        match self {
            Self::Root | Self::Fuse | Self::Mount | Self::TrustedXattrs | Self::Whiteouts => {
                Need::Required
            }
            Self::Passthrough
            | Self::ReadOnlyMount
            | Self::ImmutableFlag
            | Self::Reflink
            | Self::FileHandles
            | Self::Cachestat
            | Self::Verity
            | Self::Cgroups
            | Self::ContainerNetwork
            | Self::NetworkRates => Need::Wanted,
            Self::IdmappedMount | Self::Uring => Need::Future,
        }
    }

    fn remedy(self) -> &'static str {
        match self {
            Self::Root => "run as root (sudo), in a container with CAP_SYS_ADMIN",
            Self::Fuse => "modprobe fuse; give a container the device /dev/fuse",
            Self::Mount => "what is missing above has to work first",
            Self::Passthrough => {
                "use Linux 6.9 or newer with CONFIG_FUSE_PASSTHROUGH, as root; until then memory \
                 is not shared among roots"
            }
            Self::ReadOnlyMount => {
                "use Linux 5.12 or newer, as root; objects then have one lock less"
            }
            Self::ImmutableFlag => {
                "keep the store on ext4, xfs or btrfs, as root; objects then have one lock less"
            }
            Self::TrustedXattrs => {
                "keep private directories on ext4, xfs or btrfs, and run as root"
            }
            Self::Whiteouts => "keep private directories on ext4, xfs or btrfs, and run as root",
            Self::Reflink => {
                "keep store and private directories on one xfs or btrfs file system; until then \
                 the first write to a file copies it"
            }
            Self::FileHandles => "keep private directories on ext4, xfs or btrfs, and run as root",
            Self::Cachestat => "use Linux 6.5 or newer; until then mincore answers instead",
            Self::Verity => {
                "keep the store on ext4 (mkfs.ext4 -O verity) or btrfs, with a kernel that has \
                 CONFIG_FS_VERITY; until then only `mica store scrub` notices a bad disk"
            }
            Self::IdmappedMount => "use Linux 6.12 or newer",
            Self::Cgroups => {
                "mount cgroup2 on /sys/fs/cgroup, with every controller (no cgroup_disable= on \
                 the kernel's command line); what is named is not held until then"
            }
            Self::ContainerNetwork => {
                "apt-get install nftables; use a kernel with bridge, veth, nf_tables and NAT; until \
                 then containers run with --network none or host"
            }
            Self::NetworkRates => {
                "use a kernel with sch_tbf, sch_ingress, cls_u32, act_mirred and ifb; until then \
                 limits.network is not held"
            }
            Self::Uring => {
                "echo Y > /sys/module/fuse/parameters/enable_uring (Linux 6.14 or newer)"
            }
        }
    }

    /// The finding of a trial: what was seen when it worked, or the refusal.
    fn tried(self, seen: Result<String, io::Error>) -> Finding {
        let works = seen.is_ok();
        let seen = seen.unwrap_or_else(|error| crate::host::sentence(&error));
        let remedy = (!works).then(|| self.remedy());
        Finding { capability: self, need: self.need(), works, seen, remedy }
    }
}

/// What an examination found.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// The store it is about; it need not exist.
    pub store: PathBuf,
    /// Where things were tried: beside the store, on its file system.
    pub tried_at: PathBuf,
    /// Every capability, required ones first.
    pub findings: Vec<Finding>,
}

impl Report {
    /// Whether roots can be mounted here.
    #[must_use]
    pub fn can_mount(&self) -> bool {
        self.findings.iter().all(|finding| finding.works || finding.need != Need::Required)
    }
}

/// Tries every capability on the file system of `store`; `program` is this program's file.
///
/// # Errors
/// When no scratch directory can be made beside the store.
pub fn examine(store: &Path, program: &Path) -> io::Result<Report> {
    let scratch = Scratch::beside(store)?;
    let mut findings = host_probes::try_all(scratch.path());
    let root = root_probes::try_all(&scratch, program);
    findings.extend(root);
    findings.extend(container_probes::try_all(scratch.path()));
    findings.sort_by_key(|finding| match finding.need {
        Need::Required => 0,
        Need::Wanted => 1,
        Need::Future => 2,
    });
    let tried_at = scratch.path().parent().unwrap_or(Path::new("/")).to_owned();
    Ok(Report { store: store.to_owned(), tried_at, findings })
}
