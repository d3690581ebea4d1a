//! The rows, their machinery, and the peers.

mod contender;
mod content;
mod fixture;
mod import;
mod machine;
mod measure;
mod metadata;
mod mount;
mod open;
mod report;
#[path = "../../../tests/support/mod.rs"]
mod support;

use std::path::PathBuf;
use std::time::Instant;

use report::Report;

/// How much of everything.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    /// What the sizes are called.
    pub(crate) name: &'static str,
    /// Files of the big tree; a multiple of 1,000.
    pub(crate) tree_files: usize,
    /// Layers of the deep stack; a divisor of `tree_files` / 1,000 or 1.
    pub(crate) layers: usize,
    /// Rounds of work that takes milliseconds.
    pub(crate) rounds: usize,
    /// Rounds of work that takes a second, or that needs a mount of its own.
    pub(crate) slow_rounds: usize,
    /// Whether page and inode caches may be dropped, which the whole machine feels.
    pub(crate) drop_caches: bool,
    /// Bytes of the file that is read and written.
    pub(crate) big_bytes: u64,
    /// Random 4 KiB reads or writes in a round.
    pub(crate) random: usize,
    /// Small files that are opened in a round; fewer than Mica keeps registered.
    pub(crate) small_files: usize,
    /// Bytes of the largest synced copy-up.
    pub(crate) copy_bytes: u64,
    /// Bytes of the copy-up by reflink.
    pub(crate) reflink_bytes: u64,
    /// Bytes of the tree that is imported.
    pub(crate) import_bytes: u64,
}

impl Sizes {
    /// What the table asks for.
    pub(crate) const FULL: Self = Self {
        name: "full",
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
    };
    /// A few minutes.
    pub(crate) const QUICK: Self = Self {
        name: "quick",
        tree_files: 20_000,
        layers: 20,
        rounds: 7,
        slow_rounds: 3,
        big_bytes: 64 << 20,
        random: 5000,
        small_files: 500,
        copy_bytes: 16 << 20,
        reflink_bytes: 64 << 20,
        import_bytes: 100 << 20,
        ..Self::FULL
    };
    /// Only to see that it works: the figures mean nothing.
    pub(crate) const TINY: Self = Self {
        name: "tiny",
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
    };
}

/// What was asked for.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// How much.
    pub(crate) sizes: Sizes,
    /// Which sections: those whose name holds this.
    pub(crate) only: Option<String>,
    /// Where the figures go.
    pub(crate) json: PathBuf,
    /// Where the disk is that is measured.
    pub(crate) scratch: PathBuf,
    /// Priority of this program and of all it starts.
    pub(crate) nice: i32,
}

/// One section: it makes what it needs, measures, and removes it.
type Section = fn(&Sizes, &mut Report);

const SECTIONS: [(&str, Section); 8] = [
    ("warm", metadata::warm),
    ("first", metadata::first),
    ("mount", mount::mount),
    ("content", content::content),
    ("open", open::open_read_close),
    ("copy-up", open::open_for_write),
    ("reflink", open::reflink),
    ("import", import::import),
];

/// Measures; prints each row as it comes, and writes all of them to the JSON file.
///
/// # Panics
/// When something cannot be made, mounted or read: a figure would be missing.
pub(crate) fn run(settings: &Settings) {
    support::require_root();
    machine::prefer_self(settings.nice);
    let everywhere = machine::affinity();
    let mut report = Report::begin(settings);
    for (name, section) in SECTIONS {
        if settings.only.as_ref().is_some_and(|only| !name.contains(only.as_str())) {
            continue;
        }
        // Client and servers on one processor: FACTS of the kernel, not of a peer, make the
        // difference otherwise. Sections that measure it say so.
        machine::pin_self(machine::CLIENT);
        let begun = Instant::now();
        section(&settings.sizes, &mut report);
        report.section(name, begun.elapsed());
    }
    machine::restore(&everywhere);
    report.end(&settings.json);
}
