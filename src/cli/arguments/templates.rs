//! The grammar of `mica template …` and `mica layer …`, where they look.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum, ValueHint};

use super::Json;
use crate::cli::output::parse_size;

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum LayerVerb {
    /// List the layers of the store
    #[command(alias = "ls")]
    List(Json),
    /// Show one layer: what it holds, who uses it
    Show {
        /// The layer: its digest, or the first digits of it
        layer: String,
        #[command(flatten)]
        json: Json,
    },
    /// Show what is in a layer, whiteouts too
    Tree(LayerTree),
}

#[derive(Debug, Args)]
pub(in crate::cli) struct Tree {
    /// A template NAME[:TAG], or the digest of a layer or stack
    pub(in crate::cli) template: String,
    /// The directory to show
    #[arg(default_value = "/")]
    pub(in crate::cli) path: OsString,
    /// Only what this layer of the template has, whiteouts too: its number (1 is the lowest) or digest
    #[arg(long, value_name = "LAYER")]
    pub(in crate::cli) layer: Option<String>,
    #[command(flatten)]
    pub(in crate::cli) shape: TreeShape,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct LayerTree {
    /// The layer: its digest, or the first digits of it
    pub(in crate::cli) layer: String,
    /// The directory to show
    #[arg(default_value = "/")]
    pub(in crate::cli) path: OsString,
    #[command(flatten)]
    pub(in crate::cli) shape: TreeShape,
}

#[derive(Debug, Clone, Copy, Args)]
pub(in crate::cli) struct TreeShape {
    /// Show no more than this many levels
    #[arg(long, value_name = "LEVELS")]
    pub(in crate::cli) depth: Option<usize>,
    /// Show what each file, and each directory with all that is in it, weighs, the heaviest first
    #[arg(long)]
    pub(in crate::cli) size: bool,
    #[command(flatten)]
    pub(in crate::cli) json: Json,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct Files {
    /// A template NAME[:TAG], or the digest of a layer or stack
    pub(in crate::cli) template: String,
    /// The directory to look in
    #[arg(default_value = "/")]
    pub(in crate::cli) path: OsString,
    /// Whose name fits the pattern (*, ?, […]); with a slash in it, whose path does
    #[arg(long, value_name = "GLOB")]
    pub(in crate::cli) name: Option<OsString>,
    /// Of this type; may be given many times
    #[arg(long = "type", value_name = "TYPE")]
    pub(in crate::cli) types: Vec<FileType>,
    /// Files of more than this size, like 10M
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub(in crate::cli) larger: Option<u64>,
    /// Programs that run as their owner or group (set-id bits)
    #[arg(long)]
    pub(in crate::cli) setuid: bool,
    /// Programs with capabilities of their own
    #[arg(long)]
    pub(in crate::cli) caps: bool,
    /// From this layer of the template: its number (1 is the lowest) or digest
    #[arg(long, value_name = "LAYER")]
    pub(in crate::cli) layer: Option<String>,
    /// Print exact paths, each ended by a NUL byte, for xargs -0
    #[arg(short = '0', long, conflicts_with = "json")]
    pub(in crate::cli) print0: bool,
    #[command(flatten)]
    pub(in crate::cli) json: Json,
}

/// The types of find(1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(in crate::cli) enum FileType {
    /// Regular files
    #[value(name = "f", alias = "file")]
    File,
    /// Directories
    #[value(name = "d", alias = "directory")]
    Directory,
    /// Symbolic links
    #[value(name = "l", alias = "symlink")]
    Symlink,
    /// Named pipes
    #[value(name = "p", alias = "fifo")]
    Fifo,
    /// Sockets
    #[value(name = "s", alias = "socket")]
    Socket,
    /// Character devices
    #[value(name = "c", alias = "char-device")]
    CharDevice,
    /// Block devices
    #[value(name = "b", alias = "block-device")]
    BlockDevice,
    /// Whiteouts of a single layer
    #[value(name = "w", alias = "whiteout")]
    Whiteout,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct Cat {
    /// A template NAME[:TAG], or the digest of a layer or stack
    pub(in crate::cli) template: String,
    /// Files; symbolic links are followed as from inside
    #[arg(required = true, value_name = "PATH")]
    pub(in crate::cli) paths: Vec<OsString>,
    #[command(flatten)]
    pub(in crate::cli) json: Json,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct TreeDiff {
    /// A template NAME[:TAG], or the digest of a layer or stack
    #[arg(value_name = "OLD")]
    pub(in crate::cli) before: String,
    /// What to compare it with
    #[arg(value_name = "NEW")]
    pub(in crate::cli) after: String,
    /// Only what lies here; may be given many times
    #[arg(value_name = "PATH")]
    pub(in crate::cli) paths: Vec<OsString>,
    /// Show how the lines of text files differ
    #[arg(long, conflicts_with = "stat")]
    pub(in crate::cli) content: bool,
    /// Show only how much differs
    #[arg(long)]
    pub(in crate::cli) stat: bool,
    /// A time of last change alone is a difference, too
    #[arg(long)]
    pub(in crate::cli) times: bool,
    #[command(flatten)]
    pub(in crate::cli) json: Json,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct TemplateCheck {
    /// Templates, or patterns like 'debian:*' [default: all]
    #[arg(value_name = "TEMPLATE")]
    pub(in crate::cli) templates: Vec<String>,
    /// Read what is missing or damaged again from here: the directory or archive of an import
    #[arg(long, value_name = "SOURCE", value_hint = ValueHint::AnyPath)]
    pub(in crate::cli) fix: Option<PathBuf>,
    /// Tell what --fix would put in place, and change nothing
    #[arg(long, requires = "fix")]
    pub(in crate::cli) dry_run: bool,
    #[command(flatten)]
    pub(in crate::cli) json: Json,
}
