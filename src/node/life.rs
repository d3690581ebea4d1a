//! The daemon's own directory, `STORE/node`: its lock, its socket, its log.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;
use rustix::io::Errno;

use super::error::NodeError;

/// The directory of the daemon of a store.
const NODE: &str = "node";

/// How often the lock is tried.
const EVERY: Duration = Duration::from_millis(5);

/// How long a daemon that is ending is waited for.
const COURTESY: Duration = Duration::from_secs(2);

/// Where the daemon of the store at `store` answers.
#[must_use]
pub fn socket(store: &Path) -> PathBuf {
    store.join(NODE).join("socket")
}

/// Where it writes what happens.
#[must_use]
pub fn log(store: &Path) -> PathBuf {
    store.join(NODE).join("log")
}

/// Held by the one daemon of a store, until dropped or until the process ends.
#[derive(Debug)]
#[must_use = "the lock lasts as long as this value"]
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Takes it.
    ///
    /// # Errors
    /// [`NodeError::AlreadyRuns`].
    pub fn take(store: &Path) -> Result<Self, NodeError> {
        let directory = store.join(NODE);
        match DirBuilder::new().mode(0o700).create(&directory) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(NodeError::system("make", &directory)(error));
            }
            _there => {}
        }
        let path = directory.join("lock");
        let open = File::options().read(true).write(true).create(true).truncate(false).open(&path);
        let mut file = open.map_err(NodeError::system("open", &path))?;
        let until = Instant::now() + COURTESY;
        loop {
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => break,
                // One that was killed a moment ago still has threads that are ending.
                Err(Errno::WOULDBLOCK) if Instant::now() < until => std::thread::sleep(EVERY),
                Err(Errno::WOULDBLOCK) => {
                    let pid = fs::read_to_string(&path).unwrap_or_default().trim().to_owned();
                    return Err(NodeError::AlreadyRuns { store: store.to_owned(), pid });
                }
                Err(errno) => return Err(NodeError::system("lock", &path)(errno.into())),
            }
        }
        let mut write = || {
            file.set_len(0)?;
            writeln!(file, "{}", std::process::id())
        };
        write().map_err(NodeError::system("write", &path))?;
        Ok(Self { _file: file })
    }
}

/// Waits until no daemon has the store, or `limit` is over; answers whether that is so.
///
/// # Errors
/// [`NodeError::System`].
pub fn await_end(store: &Path, limit: Duration) -> Result<bool, NodeError> {
    let path = store.join(NODE).join("lock");
    let file = match File::open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
        file => file.map_err(NodeError::system("open", &path))?,
    };
    let until = Instant::now() + limit;
    loop {
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared) {
            Ok(()) => return Ok(true),
            Err(Errno::WOULDBLOCK) if Instant::now() < until => std::thread::sleep(EVERY),
            Err(Errno::WOULDBLOCK) => return Ok(false),
            Err(errno) => return Err(NodeError::system("look at", &path)(errno.into())),
        }
    }
}

/// A systemd unit that runs the daemon of the store at `store`; containers are none of its
/// business, so that restarting it ends none of them.
#[must_use]
pub fn unit(program: &Path, store: &Path) -> String {
    let (program, store) = (program.display(), store.display());
    format!(
        "[Unit]\n\
         Description=Mica containers ({store})\n\
         Documentation=man:mica-node(1)\n\
         After=network-online.target local-fs.target\n\
         Wants=network-online.target\n\
         RequiresMountsFor={store}\n\
         \n\
         [Service]\n\
         Type=notify\n\
         ExecStart={program} --store {store} node run\n\
         # Containers and their roots outlive the daemon; `mica node stop --containers` ends them.\n\
         KillMode=process\n\
         Restart=on-failure\n\
         Delegate=yes\n\
         TasksMax=infinity\n\
         LimitNOFILE=1048576\n\
         \n\
         [Install]\n\
         WantedBy=multi-user.target\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_has_one_daemon_at_a_time() {
        let store = tempfile::tempdir().expect("a scratch directory");
        let lock = Lock::take(store.path()).expect("free");
        let taken = Lock::take(store.path()).expect_err("taken").to_string();
        assert!(taken.contains(&format!("process {}", std::process::id())), "{taken}");
        drop(lock);
        let _again = Lock::take(store.path()).expect("free again");
    }
}
