//! Sharing all the time, out of everybody's way: one thread that a supervisor drives.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::Mutex;

use super::{Pace, Report, Wanted, reshare};
use crate::host::error::{HostError, sentence};
use crate::host::roots::Roots;
use crate::host::store::{Access, Store};
use crate::layer::import::Excludes;

/// How often, how fast, and what not.
#[derive(Clone, Debug)]
pub struct Rhythm {
    /// Time between the end of one run and the begin of the next.
    pub rest: Duration,
    /// Bytes to read in a second, at most; 0: as fast as it goes.
    pub bytes_per_second: u64,
    /// Files that have changed more lately are left alone: what is being worked on would be
    /// copied up again.
    pub least_age: Duration,
    /// Paths that are left alone.
    pub exclude: Excludes,
}

impl Default for Rhythm {
    fn default() -> Self {
        Self {
            rest: Duration::from_secs(15 * 60),
            bytes_per_second: 32 << 20,
            least_age: Duration::from_secs(60 * 60),
            exclude: Excludes::default(),
        }
    }
}

/// The running thread; dropping it ends it after the file it is at.
#[derive(Debug)]
pub struct Background {
    pace: Arc<Pace>,
    last: Arc<Mutex<Option<Result<Report, String>>>>,
    thread: Option<JoinHandle<()>>,
}

impl Background {
    /// Starts to share what all roots of the store at `path` hold alike, after a first rest; paused,
    /// it waits to be resumed.
    ///
    /// # Errors
    /// [`HostError::System`] if no thread can be started.
    pub fn start(path: &Path, rhythm: Rhythm, paused: bool) -> Result<Self, HostError> {
        let pace = Arc::new(Pace::limited(rhythm.bytes_per_second));
        if paused {
            pace.pause();
        }
        let last = Arc::new(Mutex::new(None));
        let work = {
            let (path, pace, last) = (path.to_owned(), Arc::clone(&pace), Arc::clone(&last));
            move || work(path, &rhythm, &pace, &last)
        };
        let thread = std::thread::Builder::new()
            .name("reshare".to_owned())
            .spawn(work)
            .map_err(HostError::system("start a thread for", path))?;
        Ok(Self { pace, last, thread: Some(thread) })
    }

    /// Holds it, for instance while a backup runs; leases are given back at once.
    pub fn pause(&self) {
        self.pace.pause();
    }

    /// Lets it go on.
    pub fn resume(&self) {
        self.pace.resume();
    }

    /// Whether it is held.
    #[must_use]
    pub fn is_paused(&self) -> bool {
        self.pace.is_paused()
    }

    /// What the last run did, or a sentence why it did not; none before the first has ended.
    #[must_use]
    pub fn last(&self) -> Option<Result<Report, String>> {
        self.last.lock().clone()
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        self.pace.stop();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that shares private files panicked");
        }
    }
}

fn work(path: PathBuf, rhythm: &Rhythm, pace: &Pace, last: &Mutex<Option<Result<Report, String>>>) {
    pace.step_back();
    while pace.sleep(rhythm.rest) && pace.wait() {
        let done = once(&path, rhythm, pace);
        match &done {
            Ok(report) if report.files > 0 => tracing::info!(
                files = report.files,
                disk_bytes = report.disk_bytes,
                memory_bytes = report.memory_bytes,
                "shared what roots hold alike"
            ),
            Ok(_) => {}
            Err(error) => tracing::warn!(error = sentence(error), "nothing was shared"),
        }
        *last.lock() = Some(done.map_err(|error| sentence(&error)));
    }
}

fn once(path: &Path, rhythm: &Rhythm, pace: &Pace) -> Result<Report, HostError> {
    let store = Store::open(path, Access::Write)?;
    let roots = Roots::open(&store)?.list()?;
    let exclude = rhythm.exclude.clone();
    let least_age = Some(rhythm.least_age).filter(|age| !age.is_zero());
    reshare(&store, &Wanted { roots, exclude, least_age, dry_run: false, pace })
}
