//! What is asked of a run, and how large everything is then.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// One part of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Part {
    /// Bytes and inodes on the disk.
    Savings,
    /// Memory of running containers.
    Memory,
    /// Time of operations and of whole workloads.
    Speed,
    /// How time and memory grow.
    Growth,
}

impl Part {
    /// All of them, in the order in which they run.
    pub const ALL: [Self; 4] = [Self::Savings, Self::Memory, Self::Speed, Self::Growth];
}

/// What was asked for. All paths are absolute.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// What is measured.
    pub parts: Vec<Part>,
    /// Roots that really run and really are copied at once.
    pub containers: u32,
    /// Templates of `store`; none: programs of this host.
    pub templates: Vec<String>,
    /// What runs in the containers of the memory part; none: all that the template has.
    pub workloads: Vec<String>,
    /// How much of everything.
    pub scale: Scale,
    /// Only the sections of the speed part whose name holds this.
    pub only: Option<String>,
    /// Where the templates are.
    #[serde(default, skip_serializing_if = "is_empty")]
    pub store: PathBuf,
    /// The directory on the disk to measure.
    #[serde(default, skip_serializing_if = "is_empty")]
    pub dir: PathBuf,
    /// This program, which serves the roots.
    #[serde(default, skip_serializing_if = "is_empty")]
    pub program: PathBuf,
}

impl Settings {
    /// The same without the paths of one machine, which say nothing to who reads a report.
    #[must_use]
    pub(super) fn without_paths(&self) -> Self {
        let none = PathBuf::new;
        Self { store: none(), dir: none(), program: none(), ..self.clone() }
    }
}

fn is_empty(path: &Path) -> bool {
    path.as_os_str().is_empty()
}

/// How much of everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scale {
    /// Only to see that it works.
    Tiny,
    /// Within two minutes; nothing that other users of the machine would feel.
    Quick,
    /// What `mica bench` does: a quarter of an hour.
    Standard,
    /// What the table of docs/PERFORMANCE.md asks for; the speed part alone takes ten minutes.
    Full,
}

/// The sizes that belong to a scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sizes {
    /// Files of the big tree; a multiple of 1,000.
    pub tree_files: usize,
    /// Layers of the deep stack; a divisor of `tree_files` / 1,000 or 1.
    pub layers: usize,
    /// Rounds of work that takes milliseconds.
    pub rounds: usize,
    /// Rounds of work that takes a second, or that needs a mount of its own.
    pub slow_rounds: usize,
    /// Whether page and inode caches may be dropped, which the whole machine feels.
    pub drop_caches: bool,
    /// Bytes of the file that is read and written.
    pub big_bytes: u64,
    /// Random 4 KiB reads or writes in a round.
    pub random: usize,
    /// Small files that are opened in a round; fewer than Mica keeps registered.
    pub small_files: usize,
    /// Bytes of the largest synced copy-up.
    pub copy_bytes: u64,
    /// Bytes of the copy-up by reflink.
    pub reflink_bytes: u64,
    /// Bytes of the tree that is imported.
    pub import_bytes: u64,
    /// Single operations whose latency is kept, for each contender.
    pub latencies: usize,
    /// Rounds of a whole workload.
    #[serde(default)]
    pub workload_rounds: usize,
    /// Clients that stand for many.
    #[serde(default)]
    pub crowd: usize,
    /// Most roots whose disk space is measured.
    pub roots: u32,
    /// Most roots mounted at the same time.
    pub mounted: u32,
    /// Most files, layers and directory entries that growth is followed to.
    pub growth_files: usize,
    /// See `growth_files`.
    pub growth_layers: usize,
    /// See `growth_files`.
    pub growth_entries: usize,
    /// Bytes of the largest file that growth is followed to.
    pub growth_bytes: u64,
}

impl Scale {
    /// The sizes of this scale.
    #[must_use]
    pub fn sizes(self) -> Sizes {
        let full = Sizes {
            tree_files: 100_000,
            layers: 20,
            rounds: 15,
            slow_rounds: 7,
            drop_caches: true,
            big_bytes: 256 << 20,
            random: 20_000,
            small_files: 1000,
            copy_bytes: 64 << 20,
            reflink_bytes: 512 << 20,
            import_bytes: 800 << 20,
            latencies: 50_000,
            workload_rounds: 5,
            crowd: 8,
            roots: 1000,
            mounted: 1000,
            growth_files: 1_000_000,
            growth_layers: 100,
            growth_entries: 100_000,
            growth_bytes: 64 << 20,
        };
        match self {
            Self::Full => full,
            Self::Standard => Sizes {
                tree_files: 40_000,
                rounds: 9,
                slow_rounds: 5,
                big_bytes: 128 << 20,
                random: 10_000,
                reflink_bytes: 256 << 20,
                import_bytes: 200 << 20,
                latencies: 20_000,
                ..full
            },
            Self::Quick => Sizes {
                tree_files: 2000,
                layers: 2,
                rounds: 4,
                slow_rounds: 3,
                drop_caches: false,
                big_bytes: 8 << 20,
                random: 2000,
                small_files: 200,
                copy_bytes: 8 << 20,
                reflink_bytes: 16 << 20,
                import_bytes: 8 << 20,
                latencies: 2000,
                workload_rounds: 1,
                crowd: 2,
                roots: 20,
                mounted: 10,
                growth_files: 10_000,
                growth_layers: 10,
                growth_entries: 1000,
                growth_bytes: 1 << 20,
            },
            Self::Tiny => Sizes {
                tree_files: 2000,
                layers: 2,
                rounds: 2,
                slow_rounds: 1,
                drop_caches: false,
                big_bytes: 1 << 20,
                random: 50,
                small_files: 20,
                copy_bytes: 2 << 20,
                reflink_bytes: 2 << 20,
                import_bytes: 2 << 20,
                latencies: 100,
                workload_rounds: 1,
                crowd: 2,
                roots: 3,
                mounted: 2,
                growth_files: 1000,
                growth_layers: 2,
                growth_entries: 100,
                growth_bytes: 64 << 10,
            },
        }
    }
}
