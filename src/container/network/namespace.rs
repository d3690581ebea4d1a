//! Acting in a network namespace that is not this process's.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::error::NetworkError;
use crate::sys::process::enter_own_network_namespace;

/// Where a network is: this process's own namespace, or another one.
#[derive(Debug, Clone, Default)]
pub struct Namespace(Option<Arc<OwnedFd>>);

impl Namespace {
    /// This process's own.
    pub fn current() -> Self {
        Self(None)
    }

    /// The one that `path` stands for: `/proc/PID/ns/net`, or a name under `/run/netns`.
    ///
    /// # Errors
    /// What opening it answers.
    pub fn at(path: &Path) -> Result<Self, NetworkError> {
        let file =
            File::open(path).map_err(NetworkError::system("open the network namespace", path))?;
        Ok(Self(Some(Arc::new(file.into()))))
    }

    /// A new one, with nothing in it but `lo`, switched off. It lives as long as this value, and as
    /// anybody in it.
    ///
    /// # Errors
    /// `EPERM` without CAP_SYS_ADMIN.
    pub fn fresh() -> Result<Self, NetworkError> {
        let own = Path::new("/proc/thread-self/ns/net");
        let make = || {
            enter_own_network_namespace()?;
            File::open(own)
        };
        let file = std::thread::scope(|scope| match scope.spawn(make).join() {
            Ok(made) => made,
            // What panicked there panics here.
            Err(panic) => std::panic::resume_unwind(panic),
        });
        let file = file.map_err(NetworkError::system("make a network namespace at", own))?;
        Ok(Self(Some(Arc::new(file.into()))))
    }

    /// A descriptor of it.
    pub(super) fn descriptor(&self) -> Result<Arc<OwnedFd>, NetworkError> {
        match &self.0 {
            Some(namespace) => Ok(Arc::clone(namespace)),
            None => {
                let own = Path::new("/proc/thread-self/ns/net");
                let file = File::open(own)
                    .map_err(NetworkError::system("open the network namespace", own))?;
                Ok(Arc::new(file.into()))
            }
        }
    }

    /// Runs `act` there.
    ///
    /// # Errors
    /// When it cannot be entered; `act` has not run then.
    pub fn run<T: Send>(&self, act: impl FnOnce() -> T + Send) -> Result<T, NetworkError> {
        match &self.0 {
            None => Ok(act()),
            Some(namespace) => within(namespace.as_fd(), act),
        }
    }
}

/// Runs `act` in `namespace`, on a thread made for it: a thread's namespace is its own, and one
/// that moved never comes back.
pub(super) fn within<T: Send>(
    namespace: BorrowedFd<'_>,
    act: impl FnOnce() -> T + Send,
) -> Result<T, NetworkError> {
    let failed = |error: io::Error| NetworkError::System {
        what: "enter",
        path: "the network namespace".into(),
        source: error,
    };
    let enter = || {
        move_into_link_name_space(namespace, Some(LinkNameSpaceType::Network))?;
        Ok(act())
    };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("network".to_owned());
        let running = thread.spawn_scoped(scope, enter)?;
        match running.join() {
            Ok(done) => done,
            // What panicked there panics here.
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
    .map_err(failed)
}
