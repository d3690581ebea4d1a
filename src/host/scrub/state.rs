//! How far a scrub is: `scrub.json` in the store.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use serde::{Deserialize, Serialize};

use crate::host::error::HostError;
use crate::object::{ObjectId, crash_point};
use crate::sys::durable::{self, Existing};

/// The format of the file.
const FORMAT: u32 = 1;

/// Its name in the store.
pub(in crate::host) const FILE: &str = "scrub.json";

/// Between two writes of it, unless the scrub ends.
const INTERVAL: Duration = Duration::from_secs(5);

/// What a scrub has behind it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct State {
    pub(super) format: u32,
    /// The last object that was dealt with; none before the first and after the last.
    pub(super) last: Option<ObjectId>,
    /// Objects and bytes read so far.
    pub(super) objects: u64,
    pub(super) bytes: u64,
    /// When the last whole scrub ended, in seconds since 1970.
    pub(super) finished: Option<u64>,
}

impl State {
    /// The end of the store is reached: the next scrub begins anew.
    pub(super) fn finish(&mut self) {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let finished = Some(now.map_or(0, |since| since.as_secs()));
        *self = Self { finished, ..Self::default() };
    }
}

/// Where that is kept.
pub(super) struct Notebook {
    store: PathBuf,
    dir: File,
    written: Instant,
}

impl Notebook {
    pub(super) fn open(store: &Path) -> Result<Self, HostError> {
        let dir = File::open(store).map_err(HostError::system("open", store))?;
        Ok(Self { store: store.to_owned(), dir, written: Instant::now() })
    }

    /// What the last scrub noted. A file that cannot be understood is none: it costs reading
    /// from the beginning.
    pub(super) fn read(&self) -> Result<Option<State>, HostError> {
        let path = self.store.join(FILE);
        match fs::read(&path) {
            Ok(bytes) => {
                let state = serde_json::from_slice::<State>(&bytes).ok();
                Ok(state.filter(|state| state.format == FORMAT))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(HostError::system("read", path)(error)),
        }
    }

    /// Whether it is time to write again.
    pub(super) fn is_due(&self) -> bool {
        self.written.elapsed() >= INTERVAL
    }

    pub(super) fn write(&mut self, state: &State) -> Result<(), HostError> {
        self.written = Instant::now();
        let path = || self.store.join(FILE);
        let state = State { format: FORMAT, ..*state };
        let bytes = serde_json::to_vec(&state)
            .map_err(|error| HostError::system("write", path())(io::Error::from(error)))?;
        crash_point("about to note");
        durable::write_file(self.dir.as_fd(), FILE.as_ref(), &bytes, Existing::Replace)
            .map_err(HostError::system("write", path()))
    }
}
