//! The grammar: `mica [NOUN] VERB TARGET…`.

mod bench;
mod containers;
mod templates;

use std::ffi::OsString;
use std::path::PathBuf;

pub(super) use bench::{Bench, BenchPart, BenchVerb};
pub(super) use containers::{
    Console, Copy, Create, Delete, Enter, Exec, Logs, NodeVerb, Ps, Rename, Run, Set, Settings,
    Sharing, Stop, Targets, Top,
};
pub(super) use templates::{
    Cat, FileType, Files, LayerVerb, TemplateCheck, Tree, TreeDiff, TreeShape,
};

use clap::{Args, Parser, Subcommand, ValueHint};

use super::output::parse_size;

/// Container roots from shared templates.
///
/// Every root on this host is backed by the same content-addressed files, on disk and in
/// memory; what a container changes goes to its private directory.
#[derive(Debug, Parser)]
#[command(name = "mica", version, propagate_version = true, arg_required_else_help = true)]
#[command(after_help = "Start with `mica demo`, or see what this host can do: `mica doctor`.")]
pub(super) struct Arguments {
    /// The store to work on
    #[arg(long, global = true, env = "MICA_STORE", value_name = "DIR", value_hint = ValueHint::DirPath)]
    #[arg(default_value = "/var/lib/mica")]
    pub(super) store: PathBuf,

    /// Print results and errors only
    #[arg(short, long, global = true)]
    pub(super) quiet: bool,

    #[command(subcommand)]
    pub(super) verb: Verb,
}

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Import, list, look into and delete templates
    #[command(subcommand)]
    Template(TemplateVerb),
    /// Look into single layers
    #[command(subcommand)]
    Layer(LayerVerb),
    /// Mount a root of a template; without arguments, list the roots
    Mount(Box<Mount>),
    /// Unmount a root and end its process
    #[command(alias = "unmount")]
    Umount(Umount),
    /// Make a container
    Create(Box<Create>),
    /// Make a container, run it, and be its terminal; its status passes through
    Run(Box<Run>),
    /// Start containers
    Start(Targets),
    /// Stop containers: ask, wait, then kill
    Stop(Stop),
    /// Stop containers and start them again
    Restart(Stop),
    /// Make the processes of containers stand still
    #[command(alias = "freeze")]
    Pause(Targets),
    /// Let the processes of containers go on
    #[command(alias = "unpause", alias = "thaw")]
    Resume(Targets),
    /// Be in a container, with a shell
    #[command(alias = "shell")]
    Enter(Enter),
    /// Run a command in containers; its status passes through
    Exec(Exec),
    /// Be at the console of a container
    #[command(alias = "attach")]
    Console(Console),
    /// Show what a container wrote
    Logs(Logs),
    /// List containers
    #[command(alias = "list", alias = "ls")]
    Ps(Ps),
    /// Show what containers use, again and again
    #[command(alias = "stats")]
    Top(Top),
    /// Change settings of containers, live and for good
    #[command(alias = "update")]
    Set(Box<Set>),
    /// Give a container another name
    Rename(Rename),
    /// Make a container of another one, running or not
    Copy(Box<Copy>),
    /// Delete containers and what they changed
    #[command(alias = "rm", alias = "destroy")]
    Delete(Delete),
    /// Show what happens to containers, as it happens
    Events(Json),
    /// The daemon that runs containers
    #[command(subcommand)]
    Node(NodeVerb),
    /// Show what a container or a root is, and what it uses
    #[command(alias = "inspect")]
    Info(Info),
    /// Show what a container changed against its template
    Diff(Diff),
    /// Tell where a path of a container comes from, and what its own copy costs
    Why(Why),
    /// Drop what a container changed at paths: back to the template
    Revert(Revert),
    /// Make a template of a container: its changes become one more layer
    Commit(Commit),
    /// Look through a container on a full screen: its layers, its own changes, their files
    Explore(Explore),
    /// Look after the store
    #[command(subcommand)]
    Store(StoreVerb),
    /// Try what this host can do, and tell what to do about the rest
    Doctor(Doctor),
    /// Show what Mica does, on a scratch store made of this host's own programs
    Demo(Demo),
    /// Measure disk, memory and speed of roots beside their peers, and write a report
    Bench(Box<Bench>),
    /// Print a script that completes commands in a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Write the man pages, one for each command
    Man {
        /// Where to; it is made if it is missing
        #[arg(value_name = "DIR", value_hint = ValueHint::DirPath)]
        dir: PathBuf,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum TemplateVerb {
    /// Make a template of a directory, a tar stream or a container image
    Import(Box<Import>),
    /// List the templates
    #[command(alias = "ls")]
    List(Json),
    /// Show one template: its layers, its run configuration, who uses it
    Show {
        /// The template, NAME[:TAG]
        template: String,
        #[command(flatten)]
        json: Json,
    },
    /// Show what each layer of a template added, changed and deleted
    History {
        /// The template, NAME[:TAG]
        template: String,
        #[command(flatten)]
        json: Json,
    },
    /// Show what is in a template
    Tree(Tree),
    /// Find files of a template, as find does
    Files(Box<Files>),
    /// Print files of a template
    Cat(Cat),
    /// Show what makes one template, tag or layer another
    Diff(TreeDiff),
    /// Look through a template's layers on a full screen, or compare two templates
    Explore(TemplateExplore),
    /// Check that everything of a template is there and hashes right
    Check(TemplateCheck),
    /// Read templates into memory ahead of their containers; the pages count as this command's
    Warm {
        /// Templates, or patterns like 'debian:*'
        #[arg(required = true, value_name = "TEMPLATE")]
        templates: Vec<String>,
        #[command(flatten)]
        json: Json,
    },
    /// Write a template out: a directory, a tar archive, an OCI image layout
    Export(Export),
    /// Delete templates; what only they referred to goes with the next `store gc`
    #[command(alias = "rm")]
    Delete {
        /// Templates, or patterns like 'debian:*'
        #[arg(required = true, value_name = "TEMPLATE")]
        templates: Vec<String>,
        /// Tell what would be deleted, and delete nothing
        #[arg(long)]
        dry_run: bool,
    },
}

#[derive(Debug, Args)]
pub(super) struct Import {
    /// The new template, NAME[:TAG]; the tag is `latest` unless given
    #[arg(value_name = "NAME[:TAG]")]
    pub(super) name: String,
    /// A directory, a tar archive (plain, gzip, zstd, xz), an OCI layout, a docker-save archive, or - for a stream on standard input
    #[arg(value_hint = ValueHint::AnyPath)]
    pub(super) source: PathBuf,
    /// Put it as one more layer on this template's present stack
    #[arg(long, value_name = "TEMPLATE")]
    pub(super) on: Option<String>,
    /// Move the name if it exists; roots stay on the stack they were made from
    #[arg(long)]
    pub(super) replace: bool,
    /// Leave out what matches, as in tar; may be given many times
    #[arg(long, value_name = "GLOB")]
    pub(super) exclude: Vec<OsString>,
    /// Which platform of an image to take, like linux/arm64 [default: this host's]
    #[arg(long, value_name = "OS/ARCH")]
    pub(super) platform: Option<String>,
    /// Which image to take where an archive holds several
    #[arg(long, value_name = "NAME")]
    pub(super) image: Option<String>,
    #[command(flatten)]
    pub(super) json: Json,
}

#[derive(Debug, Args)]
pub(super) struct Export {
    /// The template, NAME[:TAG]
    pub(super) template: String,
    /// A directory, an archive (.tar, .tar.gz, .tgz, .tar.zst), oci:DIR[:NAME] for an image in an OCI layout, or - for a tar stream on standard output
    #[arg(value_hint = ValueHint::AnyPath)]
    pub(super) target: OsString,
    /// What to write [default: what TARGET looks like]
    #[arg(long, value_name = "FORMAT")]
    pub(super) format: Option<ExportFormat>,
    /// Compression of an archive or of an image's layers [default: by the archive's name; images gzip]
    #[arg(long, value_name = "HOW")]
    pub(super) compress: Option<Compress>,
    /// Take the place of what is there
    #[arg(long)]
    pub(super) replace: bool,
    #[command(flatten)]
    pub(super) json: Json,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum ExportFormat {
    /// A directory with everything in it
    Dir,
    /// A tar archive
    Tar,
    /// An image in an OCI layout
    Oci,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Compress {
    /// As it is
    None,
    /// What everything reads
    Gzip,
    /// Smaller and quicker
    Zstd,
}

/// Every read can answer in JSON.
#[derive(Debug, Clone, Copy, Args)]
pub(super) struct Json {
    /// Answer in JSON
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
pub(super) struct Mount {
    /// The template, NAME[:TAG]
    #[arg(requires = "mountpoint")]
    pub(super) template: Option<String>,
    /// An empty directory; it is made if it is missing
    #[arg(value_hint = ValueHint::DirPath)]
    pub(super) mountpoint: Option<PathBuf>,
    /// Where changes are kept, a new or empty directory or that of this root; without it the root is read-only
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(super) private: Option<PathBuf>,
    /// What to call the root [default: the last part of its private directory or mountpoint]
    #[arg(long)]
    pub(super) name: Option<String>,
    /// Serve from this very process until unmounted, for supervisors
    #[arg(long)]
    pub(super) foreground: bool,
    /// Read and write through this root's own page cache only
    #[arg(long)]
    pub(super) no_passthrough: bool,
    /// Paths opened shared, parted by colons [default: the template's]
    #[arg(long, value_name = "PATHS")]
    pub(super) shared_paths: Option<String>,
    /// Options as in mount(8): ro, noexec, nosuid, nodev, noatime, private=DIR, …
    #[arg(short = 'o', value_name = "OPTIONS")]
    pub(super) options: Vec<OsString>,
    #[command(flatten)]
    pub(super) json: Json,
}

#[derive(Debug, Args)]
pub(super) struct Umount {
    /// Mountpoints, names or private directories
    #[arg(required_unless_present = "all", value_name = "ROOT")]
    pub(super) roots: Vec<OsString>,
    /// Every mounted root of the store
    #[arg(long, conflicts_with = "roots")]
    pub(super) all: bool,
    /// Also when files are open: the root leaves the tree now and ends with its last user
    #[arg(short, long)]
    pub(super) lazy: bool,
}

#[derive(Debug, Args)]
pub(super) struct Info {
    /// A name, mountpoint or private directory
    pub(super) root: OsString,
    #[command(flatten)]
    pub(super) json: Json,
}

/// A is added, C changed, D deleted, R moved, ! damaged.
#[derive(Debug, Args)]
pub(super) struct Diff {
    /// A container's or root's name, its mountpoint, or a private directory
    #[arg(value_name = "CT")]
    pub(super) container: OsString,
    /// Only what changed at or below these paths of the root, or removed or moved them
    #[arg(value_name = "PATH")]
    pub(super) paths: Vec<OsString>,
    /// Show changed text as a unified diff
    #[arg(long, conflicts_with = "stat")]
    pub(super) content: bool,
    /// Only count
    #[arg(long)]
    pub(super) stat: bool,
    #[command(flatten)]
    pub(super) json: Json,
}

#[derive(Debug, Args)]
pub(super) struct Why {
    /// A container's or root's name, its mountpoint, or a private directory
    #[arg(value_name = "CT")]
    pub(super) container: OsString,
    /// A path of the root
    pub(super) path: OsString,
    #[command(flatten)]
    pub(super) json: Json,
}

/// A directory means all in it. On a mounted root it shows at once; who has a file open keeps
/// what it has.
#[derive(Debug, Args)]
pub(super) struct Revert {
    /// A container's or root's name, its mountpoint, or a private directory
    #[arg(value_name = "CT")]
    pub(super) container: OsString,
    /// Paths of the root
    #[arg(value_name = "PATH", required = true)]
    pub(super) paths: Vec<OsString>,
    /// Tell what would be reverted, and revert nothing
    #[arg(long)]
    pub(super) dry_run: bool,
    #[command(flatten)]
    pub(super) json: Json,
}

/// A mounted root is frozen for the moment in which its names are read.
#[derive(Debug, Args)]
pub(super) struct Commit {
    /// A container's or root's name, its mountpoint, or a private directory
    #[arg(value_name = "CT")]
    pub(super) container: OsString,
    /// The new template, NAME[:TAG]; the tag is `latest` unless given
    #[arg(value_name = "NAME[:TAG]")]
    pub(super) name: String,
    /// Move the name if it exists; roots stay on the stack they were made from
    #[arg(long)]
    pub(super) replace: bool,
    #[command(flatten)]
    pub(super) json: Json,
}

#[derive(Debug, Args)]
pub(super) struct Explore {
    /// A container's or root's name, its mountpoint, or a private directory
    #[arg(value_name = "CT")]
    pub(super) container: OsString,
}

#[derive(Debug, Args)]
pub(super) struct TemplateExplore {
    /// A template, NAME[:TAG], or the digest of a layer or stack
    pub(super) template: String,
    /// Another one, to be compared with the first
    pub(super) other: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(super) enum StoreVerb {
    /// Show what every template and root costs, on the disk and in memory, and what deleting frees
    Df(Json),
    /// Name every template and root that has a content, under whatever path
    WhoHas(WhoHas),
    /// Share again what containers changed alike: one copy on the disk and in memory
    Reshare(Reshare),
    /// Remove what no template, root or running import refers to
    Gc {
        /// Count what would be removed, and remove nothing
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        json: Json,
    },
    /// Read every object back from its disk, set aside what is damaged, and put back what some container still has
    Scrub(Scrub),
    /// Check that everything that is named is there and is what its name says
    Check {
        /// Also read every object again and compare it with its digest
        #[arg(long)]
        rehash: bool,
        /// Make anew what is derived and wrong: merged trees and the index. Nothing else is touched
        #[arg(long)]
        fix: bool,
        #[command(flatten)]
        json: Json,
    },
    /// Drop the record of a root whose private directory is gone for good
    Forget {
        /// A name or private directory
        root: OsString,
        /// Also if the private directory still exists
        #[arg(long)]
        force: bool,
        /// Tell what would be forgotten, and forget nothing
        #[arg(long)]
        dry_run: bool,
    },
    /// Remove the whole store; private directories elsewhere stay, without their templates
    Destroy {
        /// Yes, really
        #[arg(long, required_unless_present = "dry_run")]
        yes: bool,
        /// Count what would be removed, and remove nothing
        #[arg(long)]
        dry_run: bool,
    },
}

/// Private files whose content a template has, or another container too, become references to one
/// object. Mounted roots go on meanwhile; what somebody writes to is left alone.
#[derive(Debug, Args)]
pub(super) struct Reshare {
    /// Names of roots, mountpoints or private directories
    #[arg(required_unless_present = "all", value_name = "CT")]
    pub(super) roots: Vec<OsString>,
    /// Every root of the store
    #[arg(long, conflicts_with = "roots")]
    pub(super) all: bool,
    /// Tell what would be won, and change nothing
    #[arg(long)]
    pub(super) dry_run: bool,
    /// Leave these paths alone; wildcards as in tar
    #[arg(long, value_name = "PATTERN")]
    pub(super) exclude: Vec<OsString>,
    /// Leave alone what changed more lately, as in `1h`
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub(super) min_age: Option<std::time::Duration>,
    /// Read so many bytes in a second at most, as in `20M`, with idle priority
    #[arg(long, value_name = "SIZE", value_parser = super::output::parse_size)]
    pub(super) rate: Option<u64>,
    /// Only say what these roots may share with from now on
    #[arg(long, value_name = "WITH", conflicts_with_all = ["dry_run", "exclude", "min_age", "rate", "json"])]
    pub(super) policy: Option<SharedWith>,
    #[command(flatten)]
    pub(super) json: Json,
}

/// What private files may be shared with.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub(super) enum SharedWith {
    /// Nothing
    Off,
    /// What templates have
    Templates,
    /// Also what other containers have, where everybody may read it in the template's shared paths
    All,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Exit status: 0 if nothing that is needed is missing (any more), 1 if something is, 2 for an interruption or bad usage."
)]
pub(super) struct Scrub {
    /// Begin anew, not where the last scrub was interrupted
    #[arg(long)]
    pub(super) restart: bool,
    /// Read no more than this in a second, as in 20M
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub(super) rate: Option<u64>,
    /// Look only: set nothing aside, put nothing back
    #[arg(long)]
    pub(super) dry_run: bool,
    #[command(flatten)]
    pub(super) json: Json,
}

#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("wanted").required(true).args(["word", "host", "versions"]))]
#[command(
    after_help = "Exit status: 0 if somebody has it, 1 if nobody is known to, 2 for bad usage."
)]
pub(super) struct WhoHas {
    /// A digest or six or more of its first digits; a path, looked up in all templates and roots; a pattern of names ('libssl*') or of paths ('/usr/**/libssl*'); ./FILE of this host
    #[arg(value_name = "HASH|PATH|GLOB")]
    pub(super) word: Option<OsString>,
    /// The content of this file of the host
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(super) host: Option<PathBuf>,
    /// All versions of the files with such a name, and who has which
    #[arg(long, value_name = "PATTERN")]
    pub(super) versions: Option<OsString>,
    /// First hash the private files whose content is not known
    #[arg(long)]
    pub(super) scan: bool,
    #[command(flatten)]
    pub(super) json: Json,
}

#[derive(Debug, Args)]
pub(super) struct Doctor {
    #[command(flatten)]
    pub(super) json: Json,
}

#[derive(Debug, Args)]
pub(super) struct Demo {
    /// Where to make the scratch store
    #[arg(long, value_name = "DIR", default_value = "/var/tmp", value_hint = ValueHint::DirPath)]
    pub(super) dir: PathBuf,
    /// Do without passthrough, as on a kernel before 6.9
    #[arg(long)]
    pub(super) no_passthrough: bool,
    #[command(flatten)]
    pub(super) json: Json,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_grammar_is_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn a_misspelt_verb_is_answered_with_the_nearest_one() {
        let error = Arguments::try_parse_from(["mica", "tempalte", "list"]).expect_err("no verb");
        assert!(error.to_string().contains("template"), "{error}");
    }

    #[test]
    fn settings_are_options_under_every_name_that_hands_know() {
        let line = "mica create web1 debian:12 limits.memory=1G --cpus 1.5 -p 8080:80 --ipadd 10.88.0.3 \
                    --privileged -e A=b --diskspace 2G --cpumask 3 --onboot no -- nginx -g x";
        let parsed = Arguments::try_parse_from(line.split_whitespace()).expect("understood");
        let Verb::Create(wanted) = parsed.verb else { panic!("another verb") };
        let pairs: Vec<(&str, &str)> =
            wanted.settings.0.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        assert_eq!(wanted.pairs, ["limits.memory=1G"]);
        assert_eq!(wanted.command, ["nginx", "-g", "x"]);
        assert_eq!(
            pairs,
            [
                ("limits.cpu", "1.5"),
                ("port", "8080:80"),
                ("ip", "10.88.0.3"),
                ("privileged", "yes"),
                ("env", "A=b"),
                ("diskspace", "2G"),
                ("cpumask", "3"),
                ("onboot", "no"),
            ]
        );
    }

    #[test]
    fn destroying_a_store_takes_a_yes() {
        assert!(Arguments::try_parse_from(["mica", "store", "destroy"]).is_err());
        assert!(Arguments::try_parse_from(["mica", "store", "destroy", "--yes"]).is_ok());
        assert!(Arguments::try_parse_from(["mica", "mount", "debian:12"]).is_err());
        assert!(Arguments::try_parse_from(["mica", "mount"]).is_ok());
    }
}
