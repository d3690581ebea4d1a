//! The serving side, inside a mount process.

use std::any::Any;
use std::fs::Permissions;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use super::descriptors::Receiver;
use super::{
    Answer, ControlError, FileToReplace, LINE_LIMIT_BYTES, Outcome, REPLACEMENTS, Request, Status,
    short_name,
};
use crate::fs::DiskUse;
use crate::object::ObjectId;
use crate::telemetry::Snapshot;

/// Connections served at once; one more is closed unanswered.
const CONNECTION_LIMIT: usize = 16;

/// How long a connection may stay silent before its thread gives it up.
const IDLE_LIMIT: Duration = Duration::from_secs(30);

/// How long accepting pauses when the process is out of descriptors.
const SHORTAGE_PAUSE: Duration = Duration::from_millis(100);

/// What a mount process lets itself be asked.
pub trait Service: Send + Sync + 'static {
    /// Answers [`Request::Status`].
    fn status(&self) -> Status;

    /// Answers [`Request::Statistics`].
    fn statistics(&self) -> Snapshot;

    /// Holds back everything that changes the root until the value is dropped.
    ///
    /// # Errors
    /// A sentence that says why it goes on.
    fn freeze(&self) -> Result<Box<dyn Any>, String>;

    /// Drops what the container changed at `path` and below; returns how many names changed.
    ///
    /// # Errors
    /// A sentence that says why not, or not all.
    fn revert(&self, path: &[u8]) -> Result<u64, String>;

    /// What the private files take on the disk, and may take.
    ///
    /// # Errors
    /// A sentence that says why it is not known.
    fn disk_use(&self) -> Result<DiskUse, String>;

    /// Limits what they may take.
    ///
    /// # Errors
    /// A sentence that says why nothing changed.
    fn limit_disk(&self, bytes: Option<u64>) -> Result<DiskUse, String>;

    /// Puts objects in the place of private files; each comes with a leased descriptor. Answers
    /// for each what became of it.
    ///
    /// # Errors
    /// A sentence that says why none was tried.
    fn replace_by_objects(
        &self,
        files: Vec<(FileToReplace, OwnedFd)>,
    ) -> Result<Vec<Outcome>, String>;

    /// Keeps nothing of these objects: who opens one from here on gets what the store has.
    ///
    /// # Errors
    /// A sentence that says why it may go on keeping them.
    fn forget_objects(&self, objects: &[ObjectId]) -> Result<(), String>;

    /// Unmounts; the process ends once this returned well.
    ///
    /// # Errors
    /// A sentence that says why the root is still mounted.
    fn stop(&self, detach: bool) -> Result<(), String>;
}

/// A bound control socket that nobody serves yet. Dropping it removes it.
///
/// Bound before a root is registered, so that whoever finds the record can tell by
/// connecting that the process lives; who connects early is answered once it serves.
#[derive(Debug)]
pub struct Socket {
    listener: Arc<UnixListener>,
    path: PathBuf,
    unnamed: bool,
}

impl Socket {
    /// Binds `path`, for root alone. A socket file left by a dead process is replaced.
    ///
    /// # Errors
    /// [`ControlError::AlreadyServed`] when a live process listens there,
    /// [`ControlError::Socket`] when the place cannot be used.
    pub fn bind(path: &Path) -> Result<Self, ControlError> {
        let failed = |source| ControlError::Socket { path: path.to_owned(), source };
        let (_directory, name) = short_name(path).map_err(failed)?;
        let listener = match UnixListener::bind(&name) {
            Ok(listener) => listener,
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                if UnixStream::connect(&name).is_ok() {
                    return Err(ControlError::AlreadyServed { path: path.to_owned() });
                }
                std::fs::remove_file(&name).map_err(failed)?;
                UnixListener::bind(&name).map_err(failed)?
            }
            Err(error) => return Err(failed(error)),
        };
        let socket = Self { listener: Arc::new(listener), path: path.to_owned(), unnamed: false };
        // Who connects is checked by credentials; the mode only keeps honest people out.
        std::fs::set_permissions(&name, Permissions::from_mode(0o600)).map_err(failed)?;
        Ok(socket)
    }

    /// Serves `service` from threads of its own.
    ///
    /// # Errors
    /// [`ControlError::Socket`] when no thread can be started.
    pub fn serve(self, service: Arc<dyn Service>) -> Result<Server, ControlError> {
        let listener = Arc::clone(&self.listener);
        let accepting = std::thread::Builder::new()
            .name("control".to_owned())
            .spawn(move || accept(&listener, &service))
            .map_err(|source| ControlError::Socket { path: self.path.clone(), source })?;
        Ok(Server { socket: self, accepting: Some(accepting) })
    }
}

impl Socket {
    /// Takes the name away while still listening: whoever wants the place finds it taken by
    /// a living process or free, and never removes a name that is another's by then.
    fn unname(&mut self) {
        if let Ok((_directory, name)) = short_name(&self.path) {
            // Already gone is as good as removed; a leftover is replaced by the next one.
            let _removed = std::fs::remove_file(name);
        }
        self.unnamed = true;
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if !self.unnamed {
            self.unname();
        }
    }
}

/// A control socket and the thread that accepts on it. Dropping it stops both.
#[derive(Debug)]
pub struct Server {
    socket: Socket,
    accepting: Option<JoinHandle<()>>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.socket.unname();
        // Wakes the accepting thread; it can only fail on a socket already shut down.
        let _woken = rustix::net::shutdown(&*self.socket.listener, rustix::net::Shutdown::Both);
        if let Some(thread) = self.accepting.take() {
            // Its panic, if any, was already printed, and the process is ending.
            let _ended = thread.join();
        }
    }
}

fn accept(listener: &UnixListener, service: &Arc<dyn Service>) {
    // Each connection's thread holds a clone: the count of clones is the count of threads.
    let place = Arc::new(());
    loop {
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) if error.raw_os_error() == Some(libc::ECONNABORTED) => continue,
            // Out of descriptors or memory for now: a paused control beats a deaf one.
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM)
                ) =>
            {
                std::thread::sleep(SHORTAGE_PAUSE);
                continue;
            }
            // Shut down by `Server::drop`.
            Err(error) => {
                tracing::debug!(%error, "control socket closed");
                return;
            }
        };
        if Arc::strong_count(&place) > CONNECTION_LIMIT || !is_root(&stream) {
            continue;
        }
        let (service, place) = (Arc::clone(service), Arc::clone(&place));
        let spawned = std::thread::Builder::new().name("control".to_owned()).spawn(move || {
            let _place = place;
            if let Err(error) = converse(&stream, &*service) {
                tracing::debug!(%error, "control connection ended early");
            }
        });
        if let Err(error) = spawned {
            tracing::warn!(%error, "no thread for a control connection");
        }
    }
}

/// Whether the connected process runs as root, or as the very user of this process.
fn is_root(stream: &UnixStream) -> bool {
    rustix::net::sockopt::socket_peercred(stream)
        .is_ok_and(|peer| peer.uid.is_root() || peer.uid == rustix::process::geteuid())
}

fn converse(stream: &UnixStream, service: &dyn Service) -> io::Result<()> {
    stream.set_read_timeout(Some(IDLE_LIMIT))?;
    stream.set_write_timeout(Some(IDLE_LIMIT))?;
    let mut requests = BufReader::new(Receiver::new(stream));
    let mut answers = stream;
    // Dropped with the connection, however that ends.
    let mut frozen: Option<Box<dyn Any>> = None;
    loop {
        let mut line = Vec::new();
        let read = requests.by_ref().take(LINE_LIMIT_BYTES).read_until(b'\n', &mut line)?;
        if read == 0 {
            return Ok(());
        }
        if line.last() != Some(&b'\n') {
            return Err(io::Error::from(io::ErrorKind::InvalidData));
        }
        // One request is answered before the next is sent, so all that came is this one's.
        let descriptors = requests.get_mut().take();
        let answer = match serde_json::from_slice::<Request>(&line) {
            Ok(Request::Status) => Answer::Status(service.status()),
            Ok(Request::Statistics) => Answer::Statistics(service.statistics()),
            Ok(Request::Freeze) if frozen.is_some() => Answer::Frozen,
            Ok(Request::Freeze) => match service.freeze() {
                Ok(hold) => {
                    frozen = Some(hold);
                    Answer::Frozen
                }
                Err(reason) => Answer::Refused { reason },
            },
            Ok(Request::Thaw) => match frozen.take() {
                Some(hold) => {
                    drop(hold);
                    Answer::Thawed
                }
                None => Answer::Refused { reason: "the root is not frozen".to_owned() },
            },
            Ok(Request::Revert { path_hex }) => match bytes(&path_hex) {
                Some(path) => match service.revert(&path) {
                    Ok(names) => Answer::Reverted { names },
                    Err(reason) => Answer::Refused { reason },
                },
                None => Answer::Refused { reason: "that is no path in hexadecimal".to_owned() },
            },
            Ok(Request::Disk) => disk(service.disk_use()),
            Ok(Request::LimitDisk { bytes }) => disk(service.limit_disk(bytes)),
            Ok(Request::ReplaceByObjects { files })
                if files.len() != descriptors.len() || files.len() > REPLACEMENTS =>
            {
                Answer::Refused { reason: "each file to replace takes one descriptor".to_owned() }
            }
            Ok(Request::ReplaceByObjects { files }) => {
                match service.replace_by_objects(files.into_iter().zip(descriptors).collect()) {
                    Ok(outcomes) => Answer::Replaced { outcomes },
                    Err(reason) => Answer::Refused { reason },
                }
            }
            Ok(Request::ForgetObjects { objects }) => match service.forget_objects(&objects) {
                Ok(()) => Answer::Forgotten,
                Err(reason) => Answer::Refused { reason },
            },
            Ok(Request::Stop { detach }) => match service.stop(detach) {
                Ok(()) => Answer::Stopping,
                Err(reason) => Answer::Refused { reason },
            },
            Err(error) => Answer::Refused {
                reason: format!("this mount process does not know that request: {error}"),
            },
        };
        let mut reply = serde_json::to_vec(&answer)?;
        reply.push(b'\n');
        answers.write_all(&reply)?;
    }
}

fn disk(told: Result<DiskUse, String>) -> Answer {
    told.map_or_else(|reason| Answer::Refused { reason }, Answer::Disk)
}

/// The bytes that hexadecimal digits stand for.
pub(crate) fn bytes(digits: &str) -> Option<Vec<u8>> {
    let (pairs, rest) = digits.as_bytes().as_chunks::<2>();
    let pair = |pair: &[u8; 2]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    if rest.is_empty() { pairs.iter().map(pair).collect() } else { None }
}
