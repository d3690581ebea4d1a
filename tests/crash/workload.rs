//! Workers that change a directory, and the ledger of what they meant to do and were told was done.
//!
//! The ledger is kept in the memory of the test, outside everything that is cut.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;

use crate::operation::Operation;
use crate::support::PATIENCE;
use crate::tree::{BLOCK_BYTES, Content, Node, Tree};

/// Files that a worker lets live; above it unlinks, below it creates.
const FILES: usize = 48;

/// What a worker began and what was acknowledged: always all, or all but the last.
#[derive(Debug, Default)]
struct Progress {
    operations: Vec<Operation>,
    acknowledged: usize,
    /// Why the worker ended, if not because it was told to.
    error: Option<io::Error>,
    ended: bool,
}

/// One worker's account.
#[derive(Debug)]
pub(crate) struct Ledger {
    initial: Tree,
    progress: Mutex<Progress>,
    changed: Condvar,
}

impl Ledger {
    /// How many operations are acknowledged.
    pub(crate) fn acknowledged(&self) -> usize {
        self.lock().acknowledged
    }

    /// How many operations were begun.
    pub(crate) fn begun(&self) -> usize {
        self.lock().operations.len()
    }

    /// Waits until `count` operations are acknowledged, or the worker ended.
    pub(crate) fn await_acknowledged(&self, count: usize) {
        let short = |progress: &mut Progress| progress.acknowledged < count && !progress.ended;
        let (progress, waited) = self
            .changed
            .wait_timeout_while(self.lock(), PATIENCE, short)
            .expect("workers do not panic");
        assert!(!waited.timed_out(), "the workload hangs at {:?}", progress.operations.last());
    }

    /// Checks that `found`, read after a cut, is what one of the states between `acknowledged`
    /// and `begun` operations may look like.
    ///
    /// # Errors
    /// How it differs from the state that was acknowledged, and what was under way.
    pub(crate) fn judge(
        &self,
        acknowledged: usize,
        begun: usize,
        found: &Tree,
    ) -> Result<(), String> {
        let operations: Vec<Operation> = self.lock().operations[..begun].to_vec();
        let mut state = self.initial.clone();
        for operation in &operations[..acknowledged] {
            operation.apply(&mut state);
        }
        let Some(first) = found.difference(&state) else { return Ok(()) };
        for operation in &operations[acknowledged..] {
            let mut forgiven = found.clone();
            operation.forgive(&mut forgiven, &state);
            if forgiven.difference(&state).is_none() {
                return Ok(());
            }
            operation.apply(&mut state);
            if found.difference(&state).is_none() {
                return Ok(());
            }
        }
        let lines = |operations: &[Operation]| -> String {
            operations.iter().map(|operation| format!("\n    {operation:x?}")).collect()
        };
        let recent = &operations[acknowledged.saturating_sub(24)..acknowledged];
        Err(format!(
            "{first}\n  acknowledged ({acknowledged} in all):{}\n  begun:{}",
            lines(recent),
            lines(&operations[acknowledged..])
        ))
    }

    /// Why the worker stopped by itself.
    pub(crate) fn error(&self) -> Option<String> {
        self.lock().error.as_ref().map(ToString::to_string)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Progress> {
        self.progress.lock().expect("workers do not panic")
    }

    fn tell(&self, change: impl FnOnce(&mut Progress)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }
}

/// A thread that works below one directory until it is stopped or meets an error.
pub(crate) struct Worker {
    /// Its account.
    pub(crate) ledger: Arc<Ledger>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Starts on the directory `top`, which holds `initial`.
    pub(crate) fn start(top: &Path, initial: Tree, seed: u64) -> Self {
        let ledger = Arc::new(Ledger {
            initial,
            progress: Mutex::new(Progress::default()),
            changed: Condvar::new(),
        });
        let stop = Arc::new(AtomicBool::new(false));
        let (top, its_ledger, its_stop) = (top.to_owned(), Arc::clone(&ledger), Arc::clone(&stop));
        let thread = std::thread::spawn(move || work(&top, &its_ledger, &its_stop, seed));
        Self { ledger, stop, thread: Some(thread) }
    }

    /// Tells it to stop, and waits until it has: its last operation is then acknowledged or failed.
    pub(crate) fn stop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().expect("workers do not panic");
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic there was already printed; here only its end matters.
            let _panicked = thread.join();
        }
    }
}

fn work(top: &Path, ledger: &Ledger, stop: &AtomicBool, seed: u64) {
    let mut choice = Choice { random: fastrand::Rng::with_seed(seed) };
    let mut tree = ledger.initial.clone();
    while !stop.load(Ordering::Relaxed) {
        let operation = choice.next(&tree);
        ledger.tell(|progress| progress.operations.push(operation.clone()));
        if let Err(error) = operation.perform(top) {
            ledger.tell(|progress| progress.error = Some(error));
            break;
        }
        operation.apply(&mut tree);
        ledger.tell(|progress| progress.acknowledged += 1);
    }
    ledger.tell(|progress| progress.ended = true);
}

/// Chooses operations that the tree allows.
struct Choice {
    random: fastrand::Rng,
}

impl Choice {
    fn next(&mut self, tree: &Tree) -> Operation {
        let Some(path) = self.existing(tree) else { return self.create(tree) };
        if tree.names.len() > FILES && self.random.bool() {
            return Operation::Unlink { path };
        }
        match self.random.u32(..20) {
            0..4 => self.create(tree),
            4..8 => Operation::Replace { path, content: self.content() },
            8..13 => self.write(tree, path),
            13 => {
                let blocks = tree.node(&path).map_or(0, |node| node.content.stamps().len());
                Operation::Truncate { path, blocks: self.random.usize(..=blocks.saturating_sub(1)) }
            }
            14 => Operation::Unlink { path },
            15 | 16 => Operation::Rename { from: path, to: self.new_or_existing(tree) },
            17 => Operation::Link { from: path, to: self.new_name(tree) },
            18 => Operation::SetMode { path, mode: 0o600 | self.random.u32(..0o100) },
            _ => self.rename_directory(tree),
        }
    }

    fn create(&mut self, tree: &Tree) -> Operation {
        Operation::Create { path: self.new_name(tree), content: self.content() }
    }

    /// Rewrites some blocks that are there, or appends some.
    fn write(&mut self, tree: &Tree, path: String) -> Operation {
        let Some(Node { content, .. }) = tree.node(&path) else { return self.create(tree) };
        let whole = content.stamps().len() - usize::from(!content.is_whole());
        let append = content.is_whole() && (whole == 0 || self.random.bool());
        let (first, count) = if append {
            (whole, 1 + self.random.usize(..4))
        } else if whole == 0 {
            return Operation::Replace { path, content: self.content() };
        } else {
            let first = self.random.usize(..whole);
            (first, 1 + self.random.usize(..(whole - first).min(4)))
        };
        let stamps = self.stamps(count);
        Operation::Write { path, first, stamps }
    }

    fn rename_directory(&mut self, tree: &Tree) -> Operation {
        let at = self.random.usize(..tree.directories.len());
        let from = tree.directories.iter().nth(at).expect("it was counted").clone();
        Operation::RenameDirectory { from, to: format!("moved{:x}", self.random.u64(..1 << 48)) }
    }

    fn existing(&mut self, tree: &Tree) -> Option<String> {
        if tree.names.is_empty() {
            return None;
        }
        let at = self.random.usize(..tree.names.len());
        tree.names.keys().nth(at).cloned()
    }

    fn new_name(&mut self, tree: &Tree) -> String {
        let at = self.random.usize(..tree.directories.len());
        let directory = tree.directories.iter().nth(at).expect("it was counted");
        format!("{directory}/new{:x}", self.random.u64(..1 << 48))
    }

    fn new_or_existing(&mut self, tree: &Tree) -> String {
        match self.existing(tree) {
            Some(path) if self.random.bool() => path,
            Some(_) | None => self.new_name(tree),
        }
    }

    fn content(&mut self) -> Content {
        let blocks = 1 + self.random.usize(..8);
        Content::whole(self.stamps(blocks))
    }

    fn stamps(&mut self, count: usize) -> Vec<u64> {
        // The upper bits number the words of a block.
        (0..count).map(|_| self.random.u64(1..1 << 40)).collect()
    }
}

/// The tree of files that a worker starts with, made for a template.
pub(crate) fn first_tree(seed: u64) -> Tree {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut tree = Tree::default();
    for directory in ["d0", "d1", "d2"] {
        tree.directories.insert(directory.to_owned());
        for file in 0..8 {
            // One in three larger than what is copied in one piece, one in three with an odd end.
            let blocks = if file % 3 == 0 { 40 } else { 1 + random.usize(..8) };
            let stamps = (0..blocks).map(|_| random.u64(1..1 << 40)).collect();
            let content = match file % 3 {
                1 => Content::cut(stamps, 8 * (1 + random.usize(..BLOCK_BYTES / 8))),
                _ => Content::whole(stamps),
            };
            tree.insert(&format!("{directory}/file{file}"), Node { content, mode: 0o640 });
        }
        tree.link(&format!("{directory}/file1"), &format!("{directory}/link1"));
    }
    tree.link("d0/file2", "d1/other-name");
    tree
}
