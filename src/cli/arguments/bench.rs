//! `mica bench`

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum, ValueHint};

use super::Json;

/// How templates are had that every workload runs in.
const TEMPLATES: &str = "\
Templates that have all that is measured (other packages do, what they lack is left out and said):
  mmdebstrap --variant=minbase --include=python3,nginx-light,systemd-sysv,dbus,openssh-server bookworm - | mica template import debian:12 -
  mmdebstrap --variant=minbase --include=python3,nginx-light,systemd-sysv,dbus,openssh-server trixie - | mica template import debian:13 -
  mmdebstrap --variant=minbase --include=python3,gcc,libc6-dev bookworm - | mica template import debian:build -
  mica bench --template debian:12 --template debian:13 --template debian:build
Peers and tools, where they are missing: apt-get install fuse-overlayfs runc xfsprogs git fio";

/// Measures N roots of a template beside N full copies, reflink copies, kernel overlayfs and
/// fuse-overlayfs, in turns in one run. Everything is made in a directory of its own and gone
/// at the end; the machine's page cache is dropped on the way (not with --quick).
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, after_help = TEMPLATES)]
pub(in crate::cli) struct Bench {
    #[command(subcommand)]
    pub(in crate::cli) verb: Option<BenchVerb>,
    /// What to measure
    #[arg(value_enum, default_value = "all")]
    pub(in crate::cli) part: BenchPart,
    /// Containers that really run, and full copies that are really made
    #[arg(long, value_name = "N", default_value_t = 20)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(in crate::cli) containers: u32,
    /// A template of the store; may be given many times, the first is the one the roots are made of [default: programs of this host]
    #[arg(long, value_name = "TEMPLATE")]
    pub(in crate::cli) template: Vec<String>,
    /// What the containers run whose memory is measured: shell, python, nginx, systemd; may be given many times [default: all that a template has]
    #[arg(long, value_name = "WORKLOAD")]
    pub(in crate::cli) workload: Vec<String>,
    /// Where the report goes; what is there of an earlier one is replaced
    #[arg(long, value_name = "DIR", default_value = "mica-bench", value_hint = ValueHint::DirPath)]
    pub(in crate::cli) out: PathBuf,
    /// A directory on the disk to measure
    #[arg(long, value_name = "DIR", default_value = "/var/tmp", value_hint = ValueHint::DirPath)]
    pub(in crate::cli) dir: PathBuf,
    /// Small sizes: within two minutes, and nothing that others on this machine would feel
    #[arg(long)]
    pub(in crate::cli) quick: bool,
    #[command(flatten)]
    pub(in crate::cli) json: Json,
}

/// One part of a benchmark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(in crate::cli) enum BenchPart {
    /// Disk space
    Savings,
    /// Memory of running containers
    Memory,
    /// Time of operations and of whole workloads
    Speed,
    /// How time and memory grow with files, layers, roots and sizes
    Growth,
    /// All of these
    All,
}

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum BenchVerb {
    /// Put the results of two runs beside each other
    #[command(after_help = "Exit status: 0, or 1 if something got worse by more than it varies.")]
    Compare {
        /// Where the report of the earlier run is, or its results.json
        #[arg(value_hint = ValueHint::AnyPath)]
        old: PathBuf,
        /// The same of the later run
        #[arg(value_hint = ValueHint::AnyPath)]
        new: PathBuf,
        #[command(flatten)]
        json: Json,
    },
}
