//! The grammar of the verbs that act on containers, and of the daemon's.

use std::path::PathBuf;

use clap::builder::ArgAction;
use clap::{Arg, ArgMatches, Args, Command, FromArgMatches, Subcommand, ValueHint};

use super::Json;
use crate::container::config::{KEYS, Key, OWN_UNITS};

/// Settings that are shown in the help of `create` and `run`; docs/CONTAINERS.md has all.
const SHOWN: [&str; 18] = [
    "limits.memory",
    "limits.cpu",
    "limits.disk",
    "limits.pids",
    "priority",
    "hostname",
    "network",
    "ip",
    "port",
    "volume",
    "user",
    "restart",
    "autostart",
    "privileged",
    "runtime",
    "health.command",
    "init",
    "disk-image",
];

/// Settings that are yes when nothing is said.
const FLAGS: [&str; 8] = [
    "privileged",
    "nesting",
    "autostart",
    "read-only",
    "disk-image",
    "terminal",
    "interactive",
    "init",
];

/// Names that mean something else on a command line.
const OTHERS: [&str; 8] = ["h", "help", "version", "store", "quiet", "json", "name", "all"];

/// Names whose values are not those of the setting itself, or, as in `--onboot yes`, always there: they
/// are options of their own.
fn own_names() -> impl Iterator<Item = &'static str> {
    OWN_UNITS.into_iter().chain(["onboot"])
}

/// Settings under any of their names, as options: `--memory 1G`, `-p 8080:80`, `--ipadd …`.
#[derive(Debug, Clone, Default)]
pub(in crate::cli) struct Settings(pub(in crate::cli) Vec<(String, String)>);

/// The options of what has no row in the table of settings.
const PREFIXED: [(&str, char, &str); 2] = [
    ("env", 'e', "A variable of the environment, NAME=VALUE"),
    ("label", 'l', "A word to find it by, NAME or NAME=VALUE"),
];

fn option(key: &'static Key) -> Arg {
    let own = |alias: &&&str| !OTHERS.contains(alias) && own_names().all(|own| own != **alias);
    let longs = key.aliases.iter().filter(|alias| alias.len() > 1).filter(own);
    let shorts = key.aliases.iter().filter(|alias| !OTHERS.contains(alias));
    let shorts = shorts.filter_map(|alias| {
        let mut letters = alias.chars();
        letters.next().filter(|_| letters.next().is_none())
    });
    let mut option = Arg::new(key.name)
        .long(key.name)
        .aliases(longs.copied().collect::<Vec<_>>())
        .help(key.help)
        .value_name("VALUE")
        .help_heading("Settings")
        .action(ArgAction::Append)
        .allow_hyphen_values(true)
        .hide(!SHOWN.contains(&key.name));
    for (at, letter) in shorts.enumerate() {
        option = if at == 0 { option.short(letter) } else { option.short_alias(letter) };
    }
    if FLAGS.contains(&key.name) {
        option = option.num_args(0..=1).require_equals(true).default_missing_value("yes");
    }
    option
}

impl Args for Settings {
    fn augment_args(mut command: Command) -> Command {
        for key in KEYS {
            command = command.arg(option(key));
        }
        for name in own_names() {
            let option = Arg::new(name).long(name).value_name("VALUE").hide(true);
            command = command.arg(option.help_heading("Settings").action(ArgAction::Append));
        }
        for (name, letter, help) in PREFIXED {
            let option =
                Arg::new(name).long(name).short(letter).help(help).value_name("NAME=VALUE");
            command = command.arg(option.help_heading("Settings").action(ArgAction::Append));
        }
        command
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Settings {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let names = KEYS.iter().map(|key| key.name).chain(own_names());
        let names = names.chain(PREFIXED.map(|(name, ..)| name));
        let mut found: Vec<(usize, String, String)> = Vec::new();
        for name in names {
            let values = matches.get_many::<String>(name).into_iter().flatten();
            let places = matches.indices_of(name).into_iter().flatten();
            found
                .extend(places.zip(values).map(|(at, value)| (at, name.to_owned(), value.clone())));
        }
        found.sort();
        Ok(Self(found.into_iter().map(|(_, name, value)| (name, value)).collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        self.0.extend(Self::from_arg_matches(matches)?.0);
        Ok(())
    }
}

/// Which containers.
#[derive(Debug, Args)]
pub(in crate::cli) struct Targets {
    /// Names, identities, patterns ('web*'), label=NAME, label=NAME=VALUE
    #[arg(required_unless_present = "all", value_name = "CT")]
    pub(in crate::cli) containers: Vec<String>,
    /// Every container
    #[arg(long, conflicts_with = "containers")]
    pub(in crate::cli) all: bool,
}

/// With a command, or one in its template: an application container. With --system, or when the
/// template has /sbin/init and no command: a whole machine.
#[derive(Debug, Args)]
#[command(
    after_help = "Every setting, beside its vzctl, Incus, docker and podman name: docs/CONTAINERS.md"
)]
pub(in crate::cli) struct Create {
    /// The container's name
    pub(in crate::cli) name: String,
    /// The template, NAME[:TAG]
    pub(in crate::cli) template: String,
    /// Settings
    #[arg(value_name = "KEY=VALUE")]
    pub(in crate::cli) pairs: Vec<String>,
    /// Keep its changes in this directory, made by hand or new
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(in crate::cli) private: Option<PathBuf>,
    /// A whole machine, whatever its template says
    #[arg(long)]
    pub(in crate::cli) system: bool,
    #[command(flatten)]
    pub(in crate::cli) settings: Settings,
    /// What it runs
    #[arg(id = "words", last = true, value_name = "COMMAND")]
    pub(in crate::cli) command: Vec<String>,
    #[command(flatten)]
    pub(in crate::cli) json: Json,
}

/// Its exit status is the command's; 125 when Mica fails, 126 and 127 when the command cannot be
/// executed or is not there, 128 and a signal's number when that ended it.
#[derive(Debug, Args)]
#[command(
    after_help = "Every setting, beside its vzctl, Incus, docker and podman name: docs/CONTAINERS.md"
)]
pub(in crate::cli) struct Run {
    /// The template, NAME[:TAG]
    pub(in crate::cli) template: String,
    /// Settings
    #[arg(value_name = "KEY=VALUE")]
    pub(in crate::cli) pairs: Vec<String>,
    /// The container's name [default: the template's and some digits]
    #[arg(long)]
    pub(in crate::cli) name: Option<String>,
    /// Delete it once it has ended
    #[arg(long)]
    pub(in crate::cli) rm: bool,
    /// Return once it runs, and print its name
    #[arg(short, long)]
    pub(in crate::cli) detach: bool,
    /// Keep its changes in this directory, made by hand or new
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(in crate::cli) private: Option<PathBuf>,
    /// A whole machine, whatever its template says
    #[arg(long)]
    pub(in crate::cli) system: bool,
    #[command(flatten)]
    pub(in crate::cli) settings: Settings,
    /// What it runs
    #[arg(id = "words", last = true, value_name = "COMMAND")]
    pub(in crate::cli) command: Vec<String>,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct Stop {
    #[command(flatten)]
    pub(in crate::cli) targets: Targets,
    /// Kill its processes at once
    #[arg(short, long, visible_alias = "fast")]
    pub(in crate::cli) kill: bool,
}

/// Output of several is prefixed with their names, and in their order where all end within a second; the
/// exit status is the worst.
#[derive(Debug, Args)]
pub(in crate::cli) struct Exec {
    #[command(flatten)]
    pub(in crate::cli) targets: Targets,
    /// Pass standard input on
    #[arg(short, long)]
    pub(in crate::cli) interactive: bool,
    /// Give it a terminal
    #[arg(short, long)]
    pub(in crate::cli) tty: bool,
    /// A variable of the environment
    #[arg(short, long, value_name = "NAME=VALUE")]
    pub(in crate::cli) env: Vec<String>,
    /// USER, UID, USER:GROUP or UID:GID [default: the container's]
    #[arg(short, long)]
    pub(in crate::cli) user: Option<String>,
    /// Where it starts [default: where the init did]
    #[arg(short, long, value_name = "DIR")]
    pub(in crate::cli) workdir: Option<PathBuf>,
    /// What to run
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub(in crate::cli) command: Vec<String>,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct Enter {
    /// The container
    #[arg(value_name = "CT")]
    pub(in crate::cli) container: String,
    /// Whose shell [default: root's]
    #[arg(short, long)]
    pub(in crate::cli) user: Option<String>,
}

/// Ctrl-a q leaves it; Ctrl-a a sends Ctrl-a.
#[derive(Debug, Args)]
pub(in crate::cli) struct Console {
    /// The container
    #[arg(value_name = "CT")]
    pub(in crate::cli) container: String,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct Logs {
    /// The container
    #[arg(value_name = "CT")]
    pub(in crate::cli) container: String,
    /// Go on until it is down
    #[arg(short, long)]
    pub(in crate::cli) follow: bool,
    /// Only so many of the last lines
    #[arg(short = 'n', long, visible_alias = "lines", value_name = "LINES")]
    pub(in crate::cli) tail: Option<usize>,
    /// Begin each line with its time
    #[arg(short, long)]
    pub(in crate::cli) timestamps: bool,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct Ps {
    /// Only these: names, identities, patterns ('web*'), label=NAME, label=NAME=VALUE
    #[arg(value_name = "CT")]
    pub(in crate::cli) containers: Vec<String>,
    /// Also those that do not run
    #[arg(short, long)]
    pub(in crate::cli) all: bool,
    #[command(flatten)]
    pub(in crate::cli) json: Json,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct Top {
    /// Only these: names, identities, patterns ('web*'), label=NAME, label=NAME=VALUE
    #[arg(value_name = "CT")]
    pub(in crate::cli) containers: Vec<String>,
    /// Look twice, print once, and end
    #[arg(long)]
    pub(in crate::cli) once: bool,
    /// Seconds between two looks
    #[arg(short = 'd', long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub(in crate::cli) interval: u64,
    #[command(flatten)]
    pub(in crate::cli) json: Json,
}

/// A running container follows at once where it can, and at its next start otherwise; each answer
/// says which. An empty value takes a setting back.
#[derive(Debug, Args)]
#[command(
    after_help = "Every setting, beside its vzctl, Incus, docker and podman name: docs/CONTAINERS.md"
)]
pub(in crate::cli) struct Set {
    /// Names, identities, patterns ('web*'), label=NAME; then settings, KEY=VALUE
    #[arg(required = true, value_name = "CT|KEY=VALUE")]
    pub(in crate::cli) words: Vec<String>,
    #[command(flatten)]
    pub(in crate::cli) settings: Settings,
    /// Set a password in a running container
    #[arg(long, value_name = "USER:PASSWORD")]
    pub(in crate::cli) userpasswd: Option<String>,
    /// Let whoever has the other half of this key log in as root
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(in crate::cli) ssh_key: Option<PathBuf>,
    #[command(flatten)]
    pub(in crate::cli) json: Json,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct Rename {
    /// The container
    #[arg(value_name = "CT")]
    pub(in crate::cli) container: String,
    /// Its new name
    pub(in crate::cli) name: String,
    /// Also while it runs
    #[arg(short, long)]
    pub(in crate::cli) force: bool,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct Copy {
    /// The container; one that runs stands still while its private files are copied
    #[arg(value_name = "CT")]
    pub(in crate::cli) container: String,
    /// The new one's name
    pub(in crate::cli) name: String,
    /// Settings of its own; it has those of the first one otherwise, but for addresses, ports and host name
    #[arg(value_name = "KEY=VALUE")]
    pub(in crate::cli) pairs: Vec<String>,
    #[command(flatten)]
    pub(in crate::cli) settings: Settings,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct Delete {
    #[command(flatten)]
    pub(in crate::cli) targets: Targets,
    /// Also if it runs: it is killed first
    #[arg(short, long)]
    pub(in crate::cli) force: bool,
    /// Tell what would be deleted, and delete nothing
    #[arg(long)]
    pub(in crate::cli) dry_run: bool,
}

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum NodeVerb {
    /// Start the daemon; returns once its socket answers
    Start,
    /// Be the daemon, in front, until SIGTERM; containers run on
    Run {
        /// What `node start` starts
        #[arg(long, hide = true)]
        background: bool,
    },
    /// End the daemon; containers run on
    Stop {
        /// Stop all containers first, those that start first last
        #[arg(long)]
        containers: bool,
    },
    /// Tell whether the daemon runs, and what it has
    Status(Json),
    /// Bring containers back together in the background: how, and what it did last
    Sharing(Sharing),
    /// Print a systemd unit for the daemon
    Unit,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct Sharing {
    /// Read and replace nothing until it is resumed
    #[arg(long, conflicts_with = "resume")]
    pub(in crate::cli) pause: bool,
    /// Go on
    #[arg(long)]
    pub(in crate::cli) resume: bool,
    /// Time between two runs, as in `15m`
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub(in crate::cli) every: Option<std::time::Duration>,
    /// Read so many bytes in a second at most, as in `20M`; 0: as fast as it goes
    #[arg(long, value_name = "SIZE", value_parser = crate::cli::output::parse_size)]
    pub(in crate::cli) rate: Option<u64>,
    /// Leave alone what changed more lately, as in `1h`
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub(in crate::cli) min_age: Option<std::time::Duration>,
    #[command(flatten)]
    pub(in crate::cli) json: Json,
}
