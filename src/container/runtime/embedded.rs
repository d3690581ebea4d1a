//! The runtime inside this program: libcontainer, for making an init.
//!
//! libcontainer makes namespaces, mounts and the init. What it does not do is done by us: the
//! cgroups of every hierarchy, the idmapped root, the user namespace and, because its own way into a
//! running container forgets the user namespace and the filter of system calls, `exec` as well.

use std::fs;
use std::io;
use std::io::Write;
use std::path::{Path, PathBuf};

use libcontainer::container::builder::ContainerBuilder;
use libcontainer::syscall::syscall::SyscallType;

use super::{Bundle, Runtime, RuntimeError, clear, end, init};
use crate::container::bundle::Record;
use crate::container::console::connect;

/// The runtime inside this program.
#[derive(Debug)]
pub struct Embedded {
    program: PathBuf,
}

impl Embedded {
    /// `program` is the file of this very program.
    #[must_use]
    pub fn new(program: &Path) -> Self {
        Self { program: program.to_owned() }
    }
}

impl Runtime for Embedded {
    fn program(&self) -> &Path {
        &self.program
    }

    fn start(&self, bundle: &Bundle) -> Result<(), RuntimeError> {
        drop(init(bundle)?);
        let record = bundle.record().map_err(RuntimeError::system("read", bundle.directory()))?;
        let socket = bundle.runtime_root().join(record.id.as_str()).join("notify.sock");
        // What libcontainer's own `start` does, without its change of the working directory.
        let mut stream = match connect(&socket) {
            Ok(stream) => stream,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let message = "it has been started already".to_owned();
                return Err(RuntimeError::Failed { what: "start", message });
            }
            Err(error) => return Err(RuntimeError::system("start the init at", &socket)(error)),
        };
        stream
            .write_all(b"start container")
            .and_then(|()| fs::remove_file(&socket))
            .map_err(RuntimeError::system("start the init at", &socket))
    }

    fn delete(&self, bundle: &Bundle, force: bool) -> Result<(), RuntimeError> {
        end(bundle, force)?;
        clear(bundle)
    }
}

/// Makes the init, in a process of its own. Our streams become the init's.
pub(in crate::container) fn create(bundle: &Bundle, record: &Record) -> Result<(), RuntimeError> {
    let root = bundle.runtime_root();
    let failed = |error: libcontainer::error::LibcontainerError| RuntimeError::Failed {
        what: "create",
        message: executor_failure(&crate::container::sentence(&error)),
    };
    let console = record.terminal.then(|| bundle.file("terminal.sock"));
    ContainerBuilder::new(record.id.to_string(), SyscallType::default())
        .with_root_path(&root)
        .map_err(failed)?
        .with_pid_file(Some(bundle.file("pid")))
        .map_err(failed)?
        .with_console_socket(console)
        .as_init(bundle.directory())
        .with_systemd(false)
        .with_detach(true)
        .build()
        .map_err(failed)?;
    Ok(())
}

/// What a chain of libcontainer's errors comes down to.
pub(in crate::container) fn executor_failure(chain: &str) -> String {
    let dull = ["failed to create container", "failed to prepare for the container process"];
    let mut text = chain;
    for prefix in dull {
        text = text.strip_prefix(prefix).map_or(text, |rest| rest.trim_start_matches([':', ' ']));
    }
    text.to_owned()
}
