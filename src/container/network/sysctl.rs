//! Switches of the host's network, and what they were before.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::error::NetworkError;

const SWITCHES: &str = "/proc/sys/net";

/// Changed switches of the network namespace of this thread, remembered in a file.
///
/// The file should not outlive a reboot, after which every switch is as the host wants it.
#[derive(Debug)]
pub(super) struct Switches {
    file: PathBuf,
    before: Vec<(String, String)>,
}

impl Switches {
    /// Those that `file` remembers; none if it is not there.
    pub(super) fn open(file: PathBuf) -> Result<Self, NetworkError> {
        let before = match fs::read(&file) {
            Ok(text) => serde_json::from_slice(&text)
                .map_err(|error| NetworkError::system("understand", &file)(error.into()))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(NetworkError::system("read", file)(error)),
        };
        Ok(Self { file, before })
    }

    /// Sets a switch, and remembers what it was unless an earlier value is remembered.
    pub(super) fn set(&mut self, name: &str, value: &str) -> Result<(), NetworkError> {
        let Some(now) = get(name)? else { return Ok(()) };
        if now == value {
            return Ok(());
        }
        if !self.before.iter().any(|(known, _)| known == name) {
            self.before.push((name.to_owned(), now));
            self.save()?;
        }
        put(name, value)
    }

    /// Sets every switch back that is still as `wanted` set it, last set first.
    pub(super) fn restore(self, wanted: &BTreeMap<String, String>) -> Result<(), NetworkError> {
        for (name, before) in self.before.iter().rev() {
            let now = get(name)?;
            // Gone with its interface, or somebody else has decided about it since.
            if now.is_some() && now.as_ref() == wanted.get(name) {
                put(name, before)?;
            }
        }
        match fs::remove_file(&self.file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(NetworkError::system("remove", self.file)(error))
            }
            _ => Ok(()),
        }
    }

    fn save(&self) -> Result<(), NetworkError> {
        let text = serde_json::to_vec(&self.before)
            .map_err(|error| NetworkError::system("write", &self.file)(error.into()))?;
        let staged = self.file.with_extension("new");
        let written = fs::write(&staged, text).and_then(|()| fs::rename(&staged, &self.file));
        written.map_err(NetworkError::system("write", &self.file))
    }
}

/// A switch as it is: none where the kernel has no such thing.
pub(super) fn get(name: &str) -> Result<Option<String>, NetworkError> {
    let path = Path::new(SWITCHES).join(name);
    match fs::read_to_string(&path) {
        Ok(text) => Ok(Some(text.trim().to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(NetworkError::system("read", path)(error)),
    }
}

/// Sets a switch that nobody will want back: of an interface of ours.
pub(super) fn put(name: &str, value: &str) -> Result<(), NetworkError> {
    let path = Path::new(SWITCHES).join(name);
    match fs::write(&path, value) {
        // A kernel without it: IPv6 switched off, for one.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done.map_err(NetworkError::system("set", path)),
    }
}
