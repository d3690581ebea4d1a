//! What a run leaves: numbers with their units, as JSON that later versions can read.
//!
//! The schema is described in docs/PERFORMANCE.md. Members may be added to it; whatever
//! changes the meaning of one raises [`SCHEMA`].

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::error::{BenchError, Result};
use super::machine::Machine;
use super::row::Row;
use super::settings::{Settings, Sizes};

/// The version of the schema.
pub const SCHEMA: u64 = 1;

/// All that a run measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Results {
    /// [`SCHEMA`].
    pub schema: u64,
    /// Mica's version.
    pub mica: String,
    /// When it began, in seconds since 1970.
    pub started: u64,
    /// How long it took.
    pub seconds: f64,
    /// What it was measured on.
    pub machine: Machine,
    /// What was asked for.
    pub settings: Settings,
    /// How much of everything that meant.
    pub sizes: Sizes,
    /// What the roots were made of.
    pub templates: Vec<TemplateFacts>,
    /// Disk space.
    pub savings: Vec<SavingsCase>,
    /// Memory.
    pub memory: Vec<MemoryCase>,
    /// Speed, row by row.
    pub speed: Vec<Row>,
    /// Speed of single operations.
    pub latencies: Vec<Latency>,
    /// Growth.
    pub growth: Vec<Curve>,
    /// What was not measured, and why.
    pub skipped: Vec<Skipped>,
    /// How long each step of the run took.
    #[serde(default)]
    pub steps: Vec<StepTime>,
}

/// How long a step of a run took.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepTime {
    /// The step, as the progress shows it.
    pub name: String,
    /// What was planned, for an optimised build at the standard sizes.
    pub planned_seconds: f64,
    /// What it took.
    pub seconds: f64,
}

/// What a template is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TemplateFacts {
    /// As it was named.
    pub name: String,
    /// Bytes of its blocks as a plain directory.
    pub bytes: u64,
    /// Its inodes.
    pub inodes: u64,
}

/// Something that was left out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skipped {
    /// What.
    pub what: String,
    /// Why, and what to do about it.
    pub why: String,
}

/// Disk space of roots in one situation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavingsCase {
    /// The situation.
    pub name: String,
    /// What there is to know of it.
    pub note: String,
    /// Bytes and inodes, by contender and number of roots.
    pub points: Vec<DiskPoint>,
    /// Every distinct content of all roots once, by number of roots: less no store of whole
    /// files can take.
    pub ideal: Vec<(u32, u64)>,
}

/// What so many roots take.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskPoint {
    /// Who keeps them.
    pub contender: String,
    /// Number of roots.
    pub roots: u32,
    /// Bytes of all blocks that they take (`st_blocks`).
    pub bytes: u64,
    /// Inodes that they take.
    pub inodes: u64,
    /// By how much the use of the file system grew (`statfs`), which others may use too.
    pub statfs_bytes: Option<u64>,
    /// False: computed from fewer roots, because so many do not fit.
    pub measured: bool,
}

impl SavingsCase {
    /// What a contender with so many roots takes.
    #[must_use]
    pub fn point(&self, contender: &str, roots: u32) -> Option<&DiskPoint> {
        self.points.iter().find(|point| point.contender == contender && point.roots == roots)
    }

    /// The part of the disk that a contender saves over full copies, 0 to 1.
    #[must_use]
    pub fn saved(&self, contender: &str, roots: u32) -> Option<f64> {
        let copies = self.point(FULL_COPIES, roots)?.bytes;
        Some(1.0 - self.point(contender, roots)?.bytes as f64 / copies as f64)
    }

    /// What no store of whole files could save more of.
    #[must_use]
    pub fn ideal_saved(&self, roots: u32) -> Option<f64> {
        let (_, ideal) = self.ideal.iter().find(|(number, _)| *number == roots)?;
        Some(1.0 - *ideal as f64 / self.point(FULL_COPIES, roots)?.bytes as f64)
    }

    /// The contenders, in the order in which they were measured.
    #[must_use]
    pub fn contenders(&self) -> Vec<&str> {
        let mut names: Vec<&str> = Vec::new();
        for point in &self.points {
            if !names.contains(&point.contender.as_str()) {
                names.push(&point.contender);
            }
        }
        names
    }
}

/// The contender that everything is compared with on the disk and in memory.
pub const FULL_COPIES: &str = "full copies";

/// Memory of containers that run one workload.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MemoryCase {
    /// What runs in each.
    pub workload: String,
    /// The template.
    pub template: String,
    /// All contenders.
    pub contenders: Vec<MemoryOf>,
}

/// Memory of one contender's containers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct MemoryOf {
    /// Who keeps the roots.
    pub contender: String,
    /// How many containers run.
    pub containers: u32,
    /// Sum of the containers' memory cgroups: anonymous memory, kernel memory, and each page
    /// of the page cache with the one that touched it first.
    pub cgroups_bytes: u64,
    /// The memory cgroup of what serves the roots: mount processes, and the kernel's own
    /// memory for the mounts.
    pub servers_cgroup_bytes: u64,
    /// Of these, the page cache: what the servers read first, such as Mica's own program.
    #[serde(default)]
    pub servers_cache_bytes: u64,
    /// Sum of the proportional set sizes of the containers' processes.
    pub pss_bytes: u64,
    /// Sum of the proportional set sizes of the mount processes, the supervisor and its monitors.
    pub servers_pss_bytes: u64,
    /// Memory that each of these has for itself, summed.
    pub servers_private_bytes: u64,
    /// Page cache of what all roots share: lower directory or objects; of full copies, all.
    pub cache_shared_bytes: u64,
    /// Page cache of private files.
    pub cache_private_bytes: u64,
    /// Page cache of the roots themselves, for what does not pass through.
    pub cache_own_bytes: u64,
    /// By how much the machine's free memory shrank; others may use it too.
    pub machine_bytes: u64,
}

impl MemoryOf {
    /// What one container costs in memory: its cgroup and its part of what serves it.
    #[must_use]
    pub fn each_bytes(&self) -> u64 {
        (self.cgroups_bytes + self.servers_cgroup_bytes) / u64::from(self.containers.max(1))
    }
}

/// How long one operation takes, of everybody.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// The operation.
    pub what: String,
    /// The contenders.
    pub contenders: Vec<Quantiles>,
}

/// A distribution.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Quantiles {
    /// The contender.
    pub name: String,
    /// How many operations.
    pub operations: usize,
    /// Per cent of them, and the nanoseconds that these at most took.
    pub nanoseconds: Vec<(f64, f64)>,
}

/// How something grows with something else.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Curve {
    /// What grows.
    pub what: String,
    /// Its unit.
    pub unit: String,
    /// With what.
    pub along: String,
    /// The contenders.
    pub lines: Vec<Line>,
    /// What else a reader has to know.
    pub note: String,
}

/// One contender's growth.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Line {
    /// The contender.
    pub name: String,
    /// Where, and what was measured there, round by round.
    pub points: Vec<(f64, Vec<f64>)>,
}

/// One number of a run, with its spread.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Figure {
    /// Its unit.
    pub unit: String,
    /// Whether a smaller one is the better one.
    pub less_is_better: bool,
    /// Round by round; one number where there are no rounds.
    pub samples: Vec<f64>,
}

impl Results {
    /// Reads what [`super::report::write`] wrote.
    ///
    /// # Errors
    /// [`BenchError::System`], [`BenchError::NotResults`], [`BenchError::Schema`].
    pub fn read(path: &Path) -> Result<Self> {
        #[derive(Deserialize)]
        struct Head {
            schema: u64,
        }
        let path = if path.is_dir() { path.join("results.json") } else { path.to_owned() };
        let text = std::fs::read(&path).map_err(BenchError::at("read", &path))?;
        let wrong = |source| BenchError::NotResults { path: path.clone(), source };
        let head: Head = serde_json::from_slice(&text).map_err(wrong)?;
        if head.schema != SCHEMA {
            return Err(BenchError::Schema { path, found: head.schema });
        }
        serde_json::from_slice(&text).map_err(wrong)
    }

    /// Every number of the run by a name that another run of the same settings has too.
    #[must_use]
    pub fn figures(&self) -> Vec<(String, Figure)> {
        let mut all = Vec::new();
        let mut put = |name: String, unit: &str, less_is_better: bool, samples: Vec<f64>| {
            all.push((name, Figure { unit: unit.to_owned(), less_is_better, samples }));
        };
        for case in &self.savings {
            for point in case.points.iter().filter(|point| point.measured) {
                let name = format!("disk, {}, {} × {}", case.name, point.roots, point.contender);
                put(name, "MiB", true, vec![mebibytes(point.bytes)]);
            }
        }
        for case in &self.memory {
            for of in &case.contenders {
                let name = format!("memory, {}, {}", case.workload, of.contender);
                put(name, "MiB each", true, vec![mebibytes(of.each_bytes())]);
            }
        }
        for row in &self.speed {
            for series in &row.contenders {
                let name = format!("{}, {}", row.what, series.name);
                let unit = row.unit;
                put(name, unit.name(), unit.less_is_better(), series.samples.clone());
            }
        }
        for latency in &self.latencies {
            for of in &latency.contenders {
                let middle = of.nanoseconds.iter().find(|(part, _)| *part >= 50.0);
                let name = format!("latency, {}, {}", latency.what, of.name);
                put(name, "ns", true, middle.map(|(_, ns)| *ns).into_iter().collect());
            }
        }
        for curve in &self.growth {
            for line in &curve.lines {
                for (at, samples) in &line.points {
                    let name = format!("{}, {} {}, {}", curve.what, at, curve.along, line.name);
                    put(name, &curve.unit, true, samples.clone());
                }
            }
        }
        all
    }
}

/// Bytes in MiB.
pub(super) fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
