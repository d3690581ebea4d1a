//! Which store of this host has which range of addresses.
//!
//! A store chooses its range when the first container that wants an address is made, and keeps it for
//! good: `STORE/node/network.json`. What others have is told in a file that a boot empties and every
//! daemon writes itself into again; an entry counts as long as that store's own file says the same.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use crate::container::network::BridgeConfig;
use crate::node::NodeError;
use crate::sys::durable::{Existing, write_file};

/// Where daemons of one host meet.
const MEETING: &str = "/run/mica";

/// Of the name of each network namespace's directory there; its number follows.
const PREFIX: &str = "network-";

/// The stores of a network namespace.
const LIST: &str = "stores.json";

/// What a store keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Kept {
    range: u8,
}

/// What a store tells the others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    range: u8,
    store: PathBuf,
}

/// The ranges of a network namespace: each is a host of its own here.
#[derive(Debug)]
pub(super) struct Ranges {
    directory: PathBuf,
}

impl Ranges {
    /// Of the namespace that this process is in.
    pub(super) fn of_this_host() -> Result<Self, NodeError> {
        let own = Path::new("/proc/self/ns/net");
        let number = fs::metadata(own).map_err(NodeError::system("look at", own))?.ino();
        Ok(Self { directory: Path::new(MEETING).join(format!("{PREFIX}{number}")) })
    }

    /// Whether `store` has chosen its range.
    ///
    /// # Errors
    /// [`NodeError::System`].
    pub(super) fn is_kept(store: &Path) -> Result<bool, NodeError> {
        Ok(kept(store)?.is_some())
    }

    /// Where what the host's switches were before is remembered.
    pub(super) fn state(&self) -> &Path {
        &self.directory
    }

    /// Keeps everybody else out of the directory, until dropped.
    fn lock(&self) -> Result<File, NodeError> {
        loop {
            fs::create_dir_all(&self.directory)
                .map_err(NodeError::system("make", &self.directory))?;
            let directory =
                File::open(&self.directory).map_err(NodeError::system("open", &self.directory))?;
            flock(&directory, FlockOperation::LockExclusive)
                .map_err(|errno| NodeError::system("lock", &self.directory)(errno.into()))?;
            // Somebody may have removed it before it was locked: see `sweep`.
            if is_at(&directory, &self.directory) {
                return Ok(directory);
            }
        }
    }

    /// Removes what other network namespaces left behind: those in which no store has a network any
    /// more, and no process is.
    fn sweep(&self) -> io::Result<()> {
        let Some(meeting) = self.directory.parent() else { return Ok(()) };
        for entry in fs::read_dir(meeting)? {
            let path = entry?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let number = name.strip_prefix(PREFIX).and_then(|number| number.parse().ok());
            let Some(number) = number.filter(|_| path != self.directory) else { continue };
            let directory = File::open(&path)?;
            if flock(&directory, FlockOperation::NonBlockingLockExclusive).is_err() {
                continue;
            }
            let entries: Vec<Entry> = read(&path.join(LIST)).ok().flatten().unwrap_or_default();
            // What cannot be read may be in use.
            let in_use =
                |entry: &Entry| kept(&entry.store).map_or(true, |kept| kept == Some(entry.range));
            let wanted = entries.iter().any(in_use) || is_inhabited(number);
            if !wanted {
                fs::remove_dir_all(&path)?;
            }
        }
        Ok(())
    }

    /// The network of `store`: the one it had before, or the first that no other store has.
    ///
    /// # Errors
    /// [`NodeError::RangeTaken`], [`NodeError::NoRangeLeft`]; [`NodeError::System`].
    pub(super) fn claim(&self, store: &Path) -> Result<BridgeConfig, NodeError> {
        let _alone = self.lock()?;
        let list = self.directory.join(LIST);
        let mut entries: Vec<Entry> = read(&list)?.unwrap_or_default();
        let mut living = Vec::new();
        for entry in entries.drain(..) {
            if entry.store != store && kept(&entry.store)? == Some(entry.range) {
                living.push(entry);
            }
        }
        let holder = |range| living.iter().find(|entry| entry.range == range);
        let range = match kept(store)? {
            Some(range) => match holder(range) {
                Some(entry) => {
                    return Err(NodeError::RangeTaken { range, other: entry.store.clone() });
                }
                None => range,
            },
            None => {
                let free = (0..BridgeConfig::NUMBERS).find(|range| holder(*range).is_none());
                let range = free.ok_or(NodeError::NoRangeLeft)?;
                let node = store.join("node");
                fs::create_dir_all(&node).map_err(NodeError::system("make", &node))?;
                let own = File::open(&node).map_err(NodeError::system("open", &node))?;
                let text = serde_json::to_vec(&Kept { range }).unwrap_or_default();
                write_file(own.as_fd(), FILE.as_ref(), &text, Existing::Replace)
                    .map_err(NodeError::system("write", &node.join(FILE)))?;
                range
            }
        };
        living.push(Entry { range, store: store.to_owned() });
        let text = serde_json::to_vec(&living).unwrap_or_default();
        let staged = list.with_extension("new");
        fs::write(&staged, text)
            .and_then(|()| fs::rename(&staged, &list))
            .map_err(NodeError::system("write", &list))?;
        if let Err(error) = self.sweep() {
            tracing::debug!(%error, "directories of network namespaces that are gone may stay");
        }
        let owner = format!("the store at {}", store.display());
        BridgeConfig::numbered(range, &owner).ok_or(NodeError::NoRangeLeft)
    }
}

/// Which range a store keeps, beneath its `node`.
const FILE: &str = "network.json";

/// Whether `path` is this directory.
fn is_at(directory: &File, path: &Path) -> bool {
    match (directory.metadata(), fs::metadata(path)) {
        (Ok(ours), Ok(there)) => (ours.dev(), ours.ino()) == (there.dev(), there.ino()),
        _ => false,
    }
}

/// Whether a process is in the network namespace of that number.
fn is_inhabited(number: u64) -> bool {
    let Ok(processes) = fs::read_dir("/proc") else { return true };
    let namespaces = processes.flatten().map(|process| process.path().join("ns/net"));
    namespaces.filter_map(|path| fs::metadata(path).ok()).any(|found| found.ino() == number)
}

fn kept(store: &Path) -> Result<Option<u8>, NodeError> {
    let kept: Option<Kept> = read(&store.join("node").join(FILE))?;
    Ok(kept.map(|kept| kept.range))
}

/// Reads a file of JSON; none when it is not there, or holds nothing that could be one of ours.
fn read<T: for<'a> Deserialize<'a>>(path: &Path) -> Result<Option<T>, NodeError> {
    match fs::read(path) {
        Ok(text) => Ok(serde_json::from_slice(&text).ok()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(NodeError::system("read", path)(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_other_namespaces_left_behind_is_removed_and_what_they_use_is_not() {
        let scratch = tempfile::tempdir().unwrap();
        let store = |name: &str| scratch.path().join(name);
        let ranges = |number: u64| Ranges {
            directory: scratch.path().join(format!("run/{PREFIX}{number}")),
        };
        let own = fs::metadata("/proc/self/ns/net").unwrap().ino();
        // In use; of a store that is gone; the same, with switches to be set back; these where
        // there are processes.
        for (number, name) in [(1, "lives"), (2, "gone"), (3, "changed"), (own, "here")] {
            ranges(number).claim(&store(name)).unwrap();
        }
        for number in [3, own] {
            fs::write(ranges(number).directory.join("network-switches.json"), "[]").unwrap();
        }
        for name in ["gone", "changed", "here"] {
            fs::remove_dir_all(store(name)).unwrap();
        }
        fs::create_dir(scratch.path().join("run/network-else")).unwrap();
        ranges(4).claim(&store("new")).unwrap();
        let mut left: Vec<String> = fs::read_dir(scratch.path().join("run"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .collect();
        left.sort();
        let mut expected = [
            "network-1".into(),
            "network-4".into(),
            format!("network-{own}"),
            "network-else".into(),
        ];
        expected.sort();
        assert_eq!(left, expected);
    }

    #[test]
    fn each_store_keeps_a_range_that_no_other_has() {
        let scratch = tempfile::tempdir().unwrap();
        let ranges = Ranges { directory: scratch.path().join("run") };
        let store = |name: &str| scratch.path().join(name);
        let range = |name: &str| ranges.claim(&store(name)).map(|config| config.v4.to_string());
        assert_eq!(range("a").unwrap(), "10.88.0.0/16");
        assert_eq!(range("b").unwrap(), "10.89.0.0/16");
        assert_eq!(range("a").unwrap(), "10.88.0.0/16");
        // After a boot nothing is known but what each keeps.
        fs::remove_dir_all(&ranges.directory).unwrap();
        assert_eq!(range("b").unwrap(), "10.89.0.0/16");
        assert_eq!(range("c").unwrap(), "10.88.0.0/16", "nobody said that it is taken");
        let refused = range("a").unwrap_err().to_string();
        assert!(refused.contains("10.88.0.0/16") && refused.contains("/c"), "{refused}");
        // One that is no more has none.
        fs::remove_dir_all(store("c")).unwrap();
        assert_eq!(range("a").unwrap(), "10.88.0.0/16");
        for number in 2..BridgeConfig::NUMBERS {
            range(&format!("more{number}")).unwrap();
        }
        assert!(matches!(ranges.claim(&store("last")), Err(NodeError::NoRangeLeft)));
    }
}
