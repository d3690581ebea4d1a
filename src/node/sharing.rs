//! Sharing again what containers hold alike, all the time and out of their way.
//!
//! Owns how: `STORE/sharing.json`, written whole, read when the daemon begins. What is done is the
//! host's ([`Background`]).

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use parking_lot::Mutex;
use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};

use super::error::NodeError;
use crate::container::config as container;
use crate::host::reshare::{Background, Rhythm};
use crate::host::roots::ResharePolicy;
use crate::host::{HostError, Roots, Store, reserve};
use crate::sys::durable::{self, Existing};

/// Its settings, in the store.
const FILE: &str = "sharing.json";

/// How containers are brought back together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SharingSettings {
    /// Nothing is read or replaced until it is resumed.
    pub paused: bool,
    /// Time between the end of one run and the begin of the next, in milliseconds.
    pub every_ms: u64,
    /// Bytes to read in a second, at most; 0: as fast as it goes.
    pub bytes_per_second: u64,
    /// Files that have changed within so many milliseconds are left alone.
    pub least_age_ms: u64,
}

impl Default for SharingSettings {
    fn default() -> Self {
        let Rhythm { rest, bytes_per_second, least_age, .. } = Rhythm::default();
        let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let (every_ms, least_age_ms) = (ms(rest), ms(least_age));
        Self { paused: false, every_ms, bytes_per_second, least_age_ms }
    }
}

/// What is to be another way from now on; the rest stays.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SharingChange {
    /// See [`SharingSettings::paused`].
    pub paused: Option<bool>,
    /// See [`SharingSettings::every_ms`].
    pub every_ms: Option<u64>,
    /// See [`SharingSettings::bytes_per_second`].
    pub bytes_per_second: Option<u64>,
    /// See [`SharingSettings::least_age_ms`].
    pub least_age_ms: Option<u64>,
}

/// What the background work does, and did last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SharingAnswer {
    /// How it works.
    #[serde(flatten)]
    pub settings: SharingSettings,
    /// The last run of this daemon; none before the first has ended.
    pub last: Option<LastRun>,
}

/// One run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastRun {
    /// Files that became references.
    pub files: u64,
    /// Bytes of the disk that became free, less what new objects take.
    pub disk_bytes: i64,
    /// Bytes of memory, likewise.
    pub memory_bytes: i64,
    /// How long it took, in milliseconds.
    pub milliseconds: u64,
    /// Why it did nothing.
    pub failed: Option<String>,
}

/// The background work of one daemon.
#[derive(Debug)]
pub struct Sharing {
    store: PathBuf,
    running: Mutex<Running>,
}

#[derive(Debug)]
struct Running {
    settings: SharingSettings,
    background: Background,
}

impl Sharing {
    /// Begins, as it was set before. Settings that cannot be read are told, and pause it: somebody
    /// may have meant it to be paused.
    ///
    /// # Errors
    /// [`NodeError::Host`] if no thread can be started.
    pub fn begin(store: &Path) -> Result<Self, NodeError> {
        let settings = read(store).unwrap_or_else(|error| {
            tracing::error!(%error, file = FILE, "sharing in the background is paused");
            SharingSettings { paused: true, ..SharingSettings::default() }
        });
        let background = start(store, &settings)?;
        let running = Mutex::new(Running { settings, background });
        Ok(Self { store: store.to_owned(), running })
    }

    /// How it works, and what it did.
    #[must_use]
    pub fn answer(&self) -> SharingAnswer {
        let running = self.running.lock();
        let last = running.background.last().map(|last| match last {
            Ok(report) => LastRun {
                files: report.files,
                disk_bytes: report.disk_bytes,
                memory_bytes: report.memory_bytes,
                milliseconds: report.milliseconds,
                failed: None,
            },
            Err(reason) => LastRun { failed: Some(reason), ..LastRun::default() },
        });
        SharingAnswer { settings: running.settings, last }
    }

    /// Changes how it works, durably; may wait for the file that is being read.
    ///
    /// # Errors
    /// [`NodeError::System`] if it cannot be written, then everything is as it was;
    /// [`NodeError::Host`] if no thread can be started.
    pub fn change(&self, change: SharingChange) -> Result<SharingAnswer, NodeError> {
        let mut running = self.running.lock();
        let before = running.settings;
        let settings = SharingSettings {
            paused: change.paused.unwrap_or(before.paused),
            every_ms: change.every_ms.unwrap_or(before.every_ms),
            bytes_per_second: change.bytes_per_second.unwrap_or(before.bytes_per_second),
            least_age_ms: change.least_age_ms.unwrap_or(before.least_age_ms),
        };
        if settings != before {
            write(&self.store, &settings)?;
            running.settings = settings;
        }
        if (SharingSettings { paused: before.paused, ..settings }) != before {
            running.background = start(&self.store, &settings)?;
        } else if settings.paused {
            running.background.pause();
        } else {
            running.background.resume();
        }
        drop(running);
        Ok(self.answer())
    }
}

fn start(store: &Path, settings: &SharingSettings) -> Result<Background, NodeError> {
    let rhythm = Rhythm {
        rest: Duration::from_millis(settings.every_ms),
        bytes_per_second: settings.bytes_per_second,
        least_age: Duration::from_millis(settings.least_age_ms),
        ..Rhythm::default()
    };
    Ok(Background::start(store, rhythm, settings.paused)?)
}

fn read(store: &Path) -> io::Result<SharingSettings> {
    match fs::read(store.join(FILE)) {
        Ok(text) => Ok(serde_json::from_slice(&text)?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(SharingSettings::default()),
        Err(error) => Err(error),
    }
}

fn write(store: &Path, settings: &SharingSettings) -> Result<(), NodeError> {
    let failed = |error: io::Error| NodeError::system("write", &store.join(FILE))(error);
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir =
        rustix::fs::open(store, flags, Mode::empty()).map_err(|errno| failed(errno.into()))?;
    let text = serde_json::to_vec_pretty(settings).map_err(|error| failed(error.into()))?;
    use std::os::fd::AsFd;
    durable::write_file(dir.as_fd(), OsStr::new(FILE), &text, Existing::Replace).map_err(failed)
}

/// Lets the root of a container share with whom its settings say.
///
/// # Errors
/// Why its record cannot be written.
pub(super) fn allow(
    store: &Store,
    private: &Path,
    wanted: container::ResharePolicy,
) -> Result<(), NodeError> {
    let record = reserve::of(store, private)?;
    let policy = match wanted {
        container::ResharePolicy::Off => ResharePolicy::Off,
        container::ResharePolicy::Templates => ResharePolicy::Templates,
        container::ResharePolicy::All => ResharePolicy::All,
    };
    if record.reshare != policy {
        let roots = Roots::open(store).map_err(HostError::from)?;
        let locked = roots.lock().map_err(HostError::from)?;
        locked.set_reshare(&record, policy).map_err(HostError::from)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_set_is_kept_and_what_cannot_be_read_pauses_it() {
        let scratch = tempfile::tempdir().unwrap();
        let store = scratch.path().join("store");
        crate::host::Store::open_or_create(&store).unwrap();
        let sharing = Sharing::begin(&store).unwrap();
        assert_eq!(sharing.answer().settings, SharingSettings::default());
        let change = SharingChange { every_ms: Some(7), ..SharingChange::default() };
        assert_eq!(sharing.change(change).unwrap().settings.every_ms, 7);
        let change = SharingChange { paused: Some(true), ..SharingChange::default() };
        sharing.change(change).unwrap();
        drop(sharing);
        let settings = Sharing::begin(&store).unwrap().answer().settings;
        assert_eq!((settings.paused, settings.every_ms), (true, 7));
        fs::write(store.join(FILE), b"{\"paused\": 3").unwrap();
        assert!(Sharing::begin(&store).unwrap().answer().settings.paused);
    }
}
