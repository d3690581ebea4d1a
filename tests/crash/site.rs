//! The place that gets cut: a disk with a store on it, a root mounted from that, workers inside.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::support::{MountOptions, Mounted, Store, Succeed, ignore_syncs};
use crate::tree::Tree;
use crate::workload::{Worker, first_tree};

/// Where in a root the workers are: below the shared paths, and elsewhere.
const TOPS: [&str; 2] = ["usr/lib/worker", "srv/worker"];

/// The template that roots are mounted from.
const TEMPLATE: &str = "work:1";

/// What serves the root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Subject {
    /// Mica, with or without passthrough.
    Mica {
        /// Whether the kernel may open backing files itself.
        passthrough: bool,
    },
    /// Mica with every sync made a no-op: what the judgement must find wanting.
    MicaIgnoringSyncs,
    /// The bare disk: what the judgement must find good.
    Disk,
}

/// A disk prepared for workers.
pub(crate) struct Site {
    subject: Subject,
    disk: PathBuf,
    mountpoint: PathBuf,
    /// What each worker's directory holds, by what was last read of it.
    trees: Vec<Tree>,
}

impl Site {
    /// Makes store, template and private directory on the file system at `disk`; `source` is
    /// where the template's tree may be laid out.
    pub(crate) fn prepare(
        subject: Subject,
        disk: &Path,
        mountpoint: &Path,
        source: &Path,
        seed: u64,
    ) -> Self {
        let trees: Vec<Tree> = (seed..).take(TOPS.len()).map(first_tree).collect();
        let lower = if subject == Subject::Disk { disk.join("root") } else { source.to_owned() };
        for (top, tree) in TOPS.iter().zip(&trees) {
            tree.write(&lower.join(top)).expect("the first tree can be written");
        }
        let site =
            Self { subject, disk: disk.to_owned(), mountpoint: mountpoint.to_owned(), trees };
        match subject {
            Subject::Disk => {
                Command::new("sync").arg("--file-system").arg(disk).succeed();
            }
            Subject::Mica { .. } | Subject::MicaIgnoringSyncs => {
                site.store().import(TEMPLATE, source);
            }
        }
        site
    }

    /// The same site as it is on a copy of its disk.
    pub(crate) fn copied(&self, disk: &Path, mountpoint: &Path) -> Self {
        Self {
            subject: self.subject,
            disk: disk.to_owned(),
            mountpoint: mountpoint.to_owned(),
            trees: self.trees.clone(),
        }
    }

    /// Its store.
    pub(crate) fn store(&self) -> Store {
        Store::at(&self.disk.join("store"))
    }

    /// Mounts its root.
    pub(crate) fn open(&self) -> Root {
        let options = MountOptions::private(&self.disk.join("private"));
        let store = self.store();
        let mounted = match self.subject {
            Subject::Disk => None,
            Subject::Mica { passthrough } => {
                Some(store.serve(TEMPLATE, &self.mountpoint, &options.passthrough(passthrough)))
            }
            Subject::MicaIgnoringSyncs => {
                let mut command = store.mount_command(TEMPLATE, &self.mountpoint, &options);
                ignore_syncs(command.arg("--foreground"));
                Some(store.serve_with(&mut command, &self.mountpoint))
            }
        };
        let path = match &mounted {
            Some(mounted) => mounted.path().to_owned(),
            None => self.disk.join("root"),
        };
        Root { path, mounted }
    }

    /// Lets a worker loose in each directory of `root`.
    pub(crate) fn start(&self, root: &Root, seed: u64) -> Workers {
        let tops = TOPS.iter().map(|top| root.path.join(top));
        let started = tops.zip(&self.trees).zip(seed..);
        Workers(
            started.map(|((top, tree), seed)| Worker::start(&top, tree.clone(), seed)).collect(),
        )
    }

    /// Reads what `root` holds after a cut and has the workers' ledgers judge it.
    ///
    /// # Errors
    /// What an acknowledged operation lost, or what half an operation left.
    pub(crate) fn judge(
        &mut self,
        root: &Root,
        workers: &Workers,
        cut: &Cut,
    ) -> Result<(), String> {
        for (at, (top, worker)) in TOPS.iter().zip(&workers.0).enumerate() {
            let found = Tree::read(&root.path.join(top))?;
            let ((acknowledged, begun), ledger) = (cut.0[at], &worker.ledger);
            ledger
                .judge(acknowledged, begun, &found)
                .map_err(|difference| format!("/{top}: {difference}"))?;
            self.trees[at] = found;
        }
        Ok(())
    }

    /// Removes what a cut left under the names of replacements, so that workers can go on.
    pub(crate) fn tidy(&mut self, root: &Root) {
        for (top, tree) in TOPS.iter().zip(&mut self.trees) {
            let staged: Vec<String> =
                tree.names.keys().filter(|path| path.ends_with(".new")).cloned().collect();
            for path in staged {
                let staged = root.path.join(top).join(&path);
                fs::remove_file(&staged).expect("it was just read");
                let parent = fs::File::open(staged.parent().expect("it has one"));
                parent.and_then(|parent| parent.sync_all()).expect("a directory can be synced");
                tree.remove(&path);
            }
        }
    }
}

/// The mounted root.
pub(crate) struct Root {
    path: PathBuf,
    mounted: Option<Mounted>,
}

impl Root {
    /// Ends its mount process as a power cut does; the dead mount stays.
    pub(crate) fn kill(&mut self) {
        if let Some(mounted) = self.mounted.take() {
            mounted.kill();
        }
    }

    /// Unmounts it as a person would.
    pub(crate) fn close(self) {
        if let Some(mounted) = self.mounted {
            mounted.unmount();
        }
    }
}

/// The workers in a root.
pub(crate) struct Workers(Vec<Worker>);

/// What was acknowledged before a cut and what was begun until after it, for each worker.
pub(crate) struct Cut(Vec<(usize, usize)>);

impl Workers {
    /// Waits until a worker has done `count` more operations.
    pub(crate) fn await_more(&self, worker: usize, count: usize) {
        let ledger = &self.0[worker % self.0.len()].ledger;
        ledger.await_acknowledged(ledger.acknowledged() + count);
    }

    /// Runs `cut` and says what the workers knew before and after it.
    pub(crate) fn around(&self, cut: impl FnOnce()) -> Cut {
        let before: Vec<usize> = self.0.iter().map(|worker| worker.ledger.acknowledged()).collect();
        cut();
        Cut(before.into_iter().zip(self.0.iter().map(|worker| worker.ledger.begun())).collect())
    }

    /// Stops them and waits for them.
    pub(crate) fn stop(&mut self) {
        for worker in &mut self.0 {
            worker.stop();
        }
    }

    /// Why one of them stopped before it was told to.
    pub(crate) fn error(&self) -> Option<String> {
        self.0.iter().find_map(|worker| worker.ledger.error())
    }
}

/// An import that runs while the disk is cut.
pub(crate) struct Import {
    store: Store,
    template: String,
    source: PathBuf,
    child: Option<Child>,
}

impl Import {
    /// Lays out a tree that `seed` decides at `source` and starts to import it as `template`.
    pub(crate) fn start(store: Store, template: &str, source: &Path, seed: u64) -> Self {
        lay_out(source, seed);
        let mut import =
            Self { store, template: template.to_owned(), source: source.to_owned(), child: None };
        import.run(|_| {});
        import
    }

    /// The same, with every sync of the importing process made a no-op.
    pub(crate) fn start_ignoring_syncs(
        store: Store,
        template: &str,
        source: &Path,
        seed: u64,
    ) -> Self {
        lay_out(source, seed);
        let mut import =
            Self { store, template: template.to_owned(), source: source.to_owned(), child: None };
        import.run(|command| {
            ignore_syncs(command);
        });
        import
    }

    fn run(&mut self, prepare: impl FnOnce(&mut Command)) {
        let mut command = self.command(&self.store);
        prepare(&mut command);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        self.child = Some(command.start());
    }

    fn command(&self, store: &Store) -> Command {
        let mut command = store.mica(["template", "import", "--replace", &self.template]);
        command.arg(&self.source);
        command
    }

    /// Whether it has succeeded by now.
    pub(crate) fn acknowledged(&mut self) -> bool {
        let child = self.child.as_mut().expect("it was started");
        matches!(child.try_wait(), Ok(Some(status)) if status.success())
    }

    /// Waits for its end; says whether it succeeded.
    pub(crate) fn wait(&mut self) -> bool {
        self.child.as_mut().expect("it was started").wait().is_ok_and(|status| status.success())
    }

    /// Ends it with SIGKILL unless it has ended.
    pub(crate) fn kill(&mut self) {
        let child = self.child.as_mut().expect("it was started");
        child.kill().expect("a child can be killed");
        child.wait().expect("a child can be waited for");
    }

    /// Checks `store` after the cut: every object hashes to its name; the template is there and
    /// whole if it was `acknowledged`, whole or absent if not; and it can be imported again.
    ///
    /// # Errors
    /// What is missing or damaged.
    pub(crate) fn judge(
        &self,
        store: &Store,
        mountpoint: &Path,
        acknowledged: bool,
    ) -> Result<(), String> {
        check_objects(store)?;
        let there = store.mica(["template", "show", &self.template]).capture().status.success();
        if acknowledged && !there {
            return Err(format!("{} was acknowledged and is gone", self.template));
        }
        if there {
            self.compare(store, mountpoint).map_err(|told| format!("after the cut: {told}"))?;
        }
        let again = self.command(store).capture();
        if !again.status.success() {
            let told = String::from_utf8_lossy(&again.stderr).into_owned();
            return Err(format!("{} cannot be imported again: {told}", self.template));
        }
        check_objects(store)?;
        self.compare(store, mountpoint).map_err(|told| format!("imported again: {told}"))?;
        match fs::read_dir(store.path().join("staging")).map(Iterator::count) {
            Ok(0) => Ok(()),
            left => Err(format!("staging/ is not empty: {left:?}")),
        }
    }

    /// Mounts the template and compares it with what it was made from.
    fn compare(&self, store: &Store, mountpoint: &Path) -> Result<(), String> {
        let mounted = store.mount(&self.template, mountpoint, &MountOptions::read_only());
        let output = Command::new("diff").arg("-r").arg(&self.source).arg(mounted.path()).capture();
        mounted.unmount();
        if output.status.success() {
            return Ok(());
        }
        let (told, errors) = (&output.stdout, &output.stderr);
        Err(String::from_utf8_lossy(&[told.as_slice(), errors.as_slice()].concat()).into_owned())
    }
}

impl Drop for Import {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // It has ended, or has to now; the test does not care which.
            let _killed = child.kill();
            let _ended = child.wait();
        }
    }
}

/// Makes a tree of small files, equal files, a large file and an empty one.
fn lay_out(source: &Path, seed: u64) {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut bytes = |length: usize| -> Vec<u8> { (0..length).map(|_| random.u8(..)).collect() };
    let write = |path: String, bytes: &[u8]| {
        let path = source.join(path);
        fs::create_dir_all(path.parent().expect("it lies below the source")).expect("a directory");
        fs::write(path, bytes).expect("a source file can be written");
    };
    for number in 0..40 {
        let content = bytes(1 + 700 * number);
        write(format!("etc/{}/file{number}", number % 4), &content);
        write(format!("copies/{number}"), &content);
    }
    // Above what import keeps in memory.
    write("usr/large".to_owned(), &bytes(5 * 1024 * 1024));
    write("usr/empty".to_owned(), &[]);
}

/// Checks that every name in `objects/` is the digest of what it holds.
///
/// # Errors
/// The object that is not.
pub(crate) fn check_objects(store: &Store) -> Result<(), String> {
    let told = |error: std::io::Error| format!("objects: {error}");
    for directory in fs::read_dir(store.path().join("objects")).map_err(told)? {
        let directory = directory.map_err(told)?;
        for object in fs::read_dir(directory.path()).map_err(told)? {
            let object = object.map_err(told)?;
            let name = [directory.file_name(), object.file_name()]
                .map(|part| part.to_string_lossy().into_owned());
            let bytes = fs::read(object.path()).map_err(told)?;
            if blake3::hash(&bytes).to_hex().as_str() != name.concat() {
                return Err(format!(
                    "object {} holds something else: {} bytes",
                    name.concat(),
                    bytes.len()
                ));
            }
        }
    }
    Ok(())
}
