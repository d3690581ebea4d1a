//! The asking side.

use std::io::{self, BufRead, BufReader, Read};
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use super::descriptors::send;
use super::{
    Answer, ControlError, FORGOTTEN, FileToReplace, LINE_LIMIT_BYTES, Outcome, Request, Status,
    short_name,
};
use crate::fs::DiskUse;
use crate::object::ObjectId;
use crate::telemetry::Snapshot;

/// How long an answer may take; unmounting waits for data to reach the disk.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);

/// A connection to one mount process.
#[derive(Debug)]
pub struct Client {
    stream: BufReader<UnixStream>,
}

impl Client {
    /// Connects to the process that listens at `path`.
    ///
    /// # Errors
    /// [`ControlError::Socket`]; with `NotFound` or `ConnectionRefused` inside, no process
    /// listens there: the mount has ended.
    pub fn connect(path: &Path) -> Result<Self, ControlError> {
        let connect = || {
            let (_directory, name) = short_name(path)?;
            let stream = UnixStream::connect(name)?;
            stream.set_read_timeout(Some(ANSWER_LIMIT))?;
            stream.set_write_timeout(Some(ANSWER_LIMIT))?;
            Ok(stream)
        };
        let stream =
            connect().map_err(|source| ControlError::Socket { path: path.to_owned(), source })?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    /// Waits for answers no longer than this, instead of a minute.
    ///
    /// # Errors
    /// [`ControlError::Lost`] for a duration of zero.
    pub fn set_patience(&self, limit: Duration) -> Result<(), ControlError> {
        self.stream.get_ref().set_read_timeout(Some(limit)).map_err(ControlError::Lost)
    }

    /// The listening process, in this process's pid namespace.
    ///
    /// # Errors
    /// [`ControlError::Lost`] when the kernel cannot say.
    pub fn peer(&self) -> Result<rustix::process::Pid, ControlError> {
        rustix::net::sockopt::socket_peercred(self.stream.get_ref())
            .map(|peer| peer.pid)
            .map_err(|errno| ControlError::Lost(errno.into()))
    }

    /// Asks for [`Request::Status`].
    ///
    /// # Errors
    /// As [`Client::stop`].
    pub fn status(&mut self) -> Result<Status, ControlError> {
        let answer = self.call(&Request::Status)?;
        let Answer::Status(status) = answer else { return Err(unexpected(answer)) };
        Ok(status)
    }

    /// Asks for [`Request::Statistics`].
    ///
    /// # Errors
    /// As [`Client::stop`].
    pub fn statistics(&mut self) -> Result<Snapshot, ControlError> {
        let answer = self.call(&Request::Statistics)?;
        let Answer::Statistics(snapshot) = answer else { return Err(unexpected(answer)) };
        Ok(snapshot)
    }

    /// Orders [`Request::Freeze`]. Asking for anything at least every half minute keeps the root
    /// frozen, ending the connection lets it go on.
    ///
    /// # Errors
    /// As [`Client::stop`].
    pub fn freeze(&mut self) -> Result<(), ControlError> {
        let answer = self.call(&Request::Freeze)?;
        if answer == Answer::Frozen { Ok(()) } else { Err(unexpected(answer)) }
    }

    /// Orders [`Request::Thaw`]. Well answered, the root was frozen all the time.
    ///
    /// # Errors
    /// As [`Client::stop`]; then it may have changed meanwhile.
    pub fn thaw(&mut self) -> Result<(), ControlError> {
        let answer = self.call(&Request::Thaw)?;
        if answer == Answer::Thawed { Ok(()) } else { Err(unexpected(answer)) }
    }

    /// Orders [`Request::Revert`] of a path relative to the root; returns how many names stand
    /// for something else now.
    ///
    /// # Errors
    /// As [`Client::stop`].
    pub fn revert(&mut self, path: &[u8]) -> Result<u64, ControlError> {
        let path_hex = path.iter().map(|byte| format!("{byte:02x}")).collect();
        let answer = self.call(&Request::Revert { path_hex })?;
        let Answer::Reverted { names } = answer else { return Err(unexpected(answer)) };
        Ok(names)
    }

    /// Asks [`Request::Disk`].
    ///
    /// # Errors
    /// As [`Client::stop`].
    pub fn disk_use(&mut self) -> Result<DiskUse, ControlError> {
        self.ask_disk(&Request::Disk)
    }

    /// Orders [`Request::LimitDisk`]; it is in force on return.
    ///
    /// # Errors
    /// As [`Client::stop`].
    pub fn limit_disk(&mut self, bytes: Option<u64>) -> Result<DiskUse, ControlError> {
        self.ask_disk(&Request::LimitDisk { bytes })
    }

    fn ask_disk(&mut self, request: &Request) -> Result<DiskUse, ControlError> {
        let answer = self.call(request)?;
        let Answer::Disk(told) = answer else { return Err(unexpected(answer)) };
        Ok(told)
    }

    /// Orders [`Request::ReplaceByObjects`]; `leased` are open on the files, in the same order.
    ///
    /// # Errors
    /// As [`Client::stop`]; then some may have been replaced.
    pub fn replace_by_objects(
        &mut self,
        files: Vec<FileToReplace>,
        leased: &[BorrowedFd<'_>],
    ) -> Result<Vec<Outcome>, ControlError> {
        let wanted = files.len();
        let answer = self.call_with(&Request::ReplaceByObjects { files }, leased)?;
        if let Answer::Replaced { outcomes } = &answer
            && outcomes.len() == wanted
        {
            return Ok(outcomes.clone());
        }
        Err(unexpected(answer))
    }

    /// Orders [`Request::ForgetObjects`], as often as there are too many for one.
    ///
    /// # Errors
    /// As [`Client::stop`]; then some may be kept.
    pub fn forget_objects(&mut self, objects: &[ObjectId]) -> Result<(), ControlError> {
        for objects in objects.chunks(FORGOTTEN) {
            let answer = self.call(&Request::ForgetObjects { objects: objects.to_vec() })?;
            if answer != Answer::Forgotten {
                return Err(unexpected(answer));
            }
        }
        Ok(())
    }

    /// Orders [`Request::Stop`]; on return the process is ending, or already gone: once it
    /// has unmounted, nothing makes it wait for its answer to be read.
    ///
    /// # Errors
    /// [`ControlError::Refused`] with the process's reason, [`ControlError::Lost`] when it
    /// answers nothing, [`ControlError::Protocol`] when it speaks something else.
    pub fn stop(&mut self, detach: bool) -> Result<(), ControlError> {
        match self.call(&Request::Stop { detach }) {
            Ok(Answer::Stopping) => Ok(()),
            Ok(answer) => Err(unexpected(answer)),
            Err(error) if error.is_hang_up() => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn call(&mut self, request: &Request) -> Result<Answer, ControlError> {
        self.call_with(request, &[])
    }

    fn call_with(
        &mut self,
        request: &Request,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<Answer, ControlError> {
        let mut line = serde_json::to_vec(request).map_err(ControlError::Protocol)?;
        line.push(b'\n');
        let mut answer = Vec::new();
        let read = send(self.stream.get_ref(), &line, descriptors)
            .and_then(|()| {
                self.stream.by_ref().take(LINE_LIMIT_BYTES).read_until(b'\n', &mut answer)
            })
            .map_err(ControlError::Lost)?;
        if read == 0 {
            return Err(ControlError::Lost(io::Error::from(io::ErrorKind::UnexpectedEof)));
        }
        serde_json::from_slice(&answer).map_err(ControlError::Protocol)
    }
}

/// Whether the other side closed, as opposed to staying silent.
pub(super) fn is_hang_up(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    [BrokenPipe, ConnectionReset, UnexpectedEof].contains(&error.kind())
}

/// The error for an answer to another question than the one asked.
fn unexpected(answer: Answer) -> ControlError {
    use serde::de::Error as _;
    match answer {
        Answer::Refused { reason } => ControlError::Refused { reason },
        Answer::Status(_)
        | Answer::Statistics(_)
        | Answer::Frozen
        | Answer::Reverted { .. }
        | Answer::Replaced { .. }
        | Answer::Thawed
        | Answer::Forgotten
        | Answer::Disk(_)
        | Answer::Stopping => {
            ControlError::Protocol(serde_json::Error::custom("an answer to another request"))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::any::Any;
    use std::io::Write;
    use std::os::fd::{AsFd, OwnedFd};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use super::super::{Server, Service, Socket};
    use super::*;

    #[derive(Default)]
    struct Pretended {
        stopped: AtomicBool,
        frozen: Arc<AtomicBool>,
        forgotten: AtomicUsize,
    }

    struct OnDrop<F: FnMut()>(F);

    impl<F: FnMut()> Drop for OnDrop<F> {
        fn drop(&mut self) {
            self.0();
        }
    }

    impl Service for Pretended {
        fn status(&self) -> Status {
            Status {
                pid: std::process::id(),
                mountpoint: "/mnt/web1".into(),
                stack: "00".repeat(32),
                private: None,
                read_only: true,
                passthrough: false,
                shared_paths: None,
                mounted: true,
                since: 7,
            }
        }

        fn statistics(&self) -> Snapshot {
            Snapshot { copy_ups: 3, ..Snapshot::default() }
        }

        fn freeze(&self) -> Result<Box<dyn Any>, String> {
            self.frozen.store(true, Ordering::SeqCst);
            let frozen = Arc::clone(&self.frozen);
            Ok(Box::new(OnDrop(move || frozen.store(false, Ordering::SeqCst))))
        }

        fn revert(&self, path: &[u8]) -> Result<u64, String> {
            if path == b"a/\xff" { Ok(3) } else { Err("not there".to_owned()) }
        }

        fn disk_use(&self) -> Result<DiskUse, String> {
            Ok(DiskUse { limit_bytes: Some(9), used_bytes: 4, unheld_files: 1 })
        }

        fn limit_disk(&self, bytes: Option<u64>) -> Result<DiskUse, String> {
            let limit_bytes = Some(bytes.ok_or("it cannot be counted")?);
            Ok(DiskUse { limit_bytes, used_bytes: 4, unheld_files: 0 })
        }

        fn replace_by_objects(
            &self,
            files: Vec<(FileToReplace, OwnedFd)>,
        ) -> Result<Vec<Outcome>, String> {
            let outcome = |(file, fd): (FileToReplace, OwnedFd)| {
                let mut text = String::new();
                std::fs::File::from(fd).read_to_string(&mut text).unwrap();
                if text == file.path_hex { Outcome::Replaced } else { Outcome::Changed }
            };
            Ok(files.into_iter().map(outcome).collect())
        }

        fn forget_objects(&self, objects: &[ObjectId]) -> Result<(), String> {
            self.forgotten.fetch_add(objects.len(), Ordering::SeqCst);
            Ok(())
        }

        fn stop(&self, detach: bool) -> Result<(), String> {
            if !detach {
                return Err("busy: a shell stands in it".to_owned());
            }
            self.stopped.store(true, Ordering::SeqCst);
            Ok(())
        }
    }

    fn served(dir: &Path) -> (std::path::PathBuf, Arc<Pretended>, Server) {
        let path = dir.join("root.sock");
        let service = Arc::new(Pretended::default());
        let server = Socket::bind(&path)
            .and_then(|socket| socket.serve(Arc::clone(&service) as Arc<dyn Service>))
            .expect("a fresh place binds");
        (path, service, server)
    }

    #[test]
    fn questions_and_orders_are_answered_on_one_connection() {
        let dir = tempfile::tempdir().expect("a scratch directory");
        let (path, service, _server) = served(dir.path());
        let mut client = Client::connect(&path).expect("the server listens");
        assert_eq!(client.disk_use().unwrap().limit_bytes, Some(9));
        assert_eq!(client.limit_disk(Some(7)).unwrap().limit_bytes, Some(7));
        let refused = client.limit_disk(None).unwrap_err();
        assert_eq!(refused.to_string(), "it cannot be counted");
        assert_eq!(
            client.peer().expect("local").as_raw_nonzero().get().unsigned_abs(),
            std::process::id()
        );
        assert_eq!(client.status().expect("status").since, 7);
        assert_eq!(client.statistics().expect("statistics").copy_ups, 3);
        assert_eq!(client.revert(b"a/\xff").expect("reverted"), 3);
        assert!(matches!(client.revert(b"b"), Err(ControlError::Refused { .. })));
        client.forget_objects(&vec![ObjectId::of(b"x"); FORGOTTEN + 1]).expect("forgotten");
        assert_eq!(service.forgotten.load(Ordering::SeqCst), FORGOTTEN + 1);
        let refused = client.stop(false).expect_err("busy");
        assert_eq!(refused.to_string(), "busy: a shell stands in it");
        client.stop(true).expect("detaches");
        assert!(service.stopped.load(Ordering::SeqCst));
    }

    #[test]
    fn descriptors_come_with_their_request_and_in_order() {
        let dir = tempfile::tempdir().expect("a scratch directory");
        let (path, _service, _server) = served(dir.path());
        let mut client = Client::connect(&path).expect("the server listens");
        let open = |text: &str| {
            let path = dir.path().join(text);
            std::fs::write(&path, text).expect("written");
            std::fs::File::open(path).expect("opened")
        };
        let file = |text: &str| FileToReplace {
            path_hex: text.to_owned(),
            object: crate::object::ObjectId::of(b"x"),
            size: 1,
            blocks: 8,
        };
        let (one, two) = (open("61"), open("62"));
        for _ in 0..3 {
            let sent = [one.try_clone().expect("copied"), two.try_clone().expect("copied")];
            for mut file in &sent {
                std::io::Seek::rewind(&mut file).expect("rewound");
            }
            let outcomes = client
                .replace_by_objects(
                    vec![file("61"), file("6x")],
                    &[sent[0].as_fd(), sent[1].as_fd()],
                )
                .expect("answered");
            assert_eq!(outcomes, [Outcome::Replaced, Outcome::Changed]);
        }
        let few = client.replace_by_objects(vec![file("61"), file("62")], &[one.as_fd()]);
        assert!(matches!(few, Err(ControlError::Refused { .. })));
        // Those of a request that wants none are closed and not mixed up with later ones.
        client.call_with(&Request::Status, &[two.as_fd()]).expect("answered");
        std::io::Seek::rewind(&mut &one).expect("rewound");
        let outcomes = client.replace_by_objects(vec![file("61")], &[one.as_fd()]);
        assert_eq!(outcomes.expect("answered"), [Outcome::Replaced]);
    }

    #[test]
    fn a_freeze_ends_with_its_thaw_or_with_its_connection() {
        let dir = tempfile::tempdir().expect("a scratch directory");
        let (path, service, server) = served(dir.path());
        let frozen = || service.frozen.load(Ordering::SeqCst);
        let mut client = Client::connect(&path).expect("the server listens");
        assert!(matches!(client.thaw(), Err(ControlError::Refused { .. })));
        client.freeze().expect("frozen");
        client.status().expect("answers");
        assert!(frozen());
        client.thaw().expect("thawed");
        assert!(!frozen());
        client.freeze().expect("frozen again");
        assert!(frozen());
        drop(client);
        // The connection's thread ends before the one that accepts.
        drop(server);
        while Arc::strong_count(&service) > 1 {
            std::thread::yield_now();
        }
        assert!(!frozen());
    }

    #[test]
    fn nonsense_is_refused_and_the_connection_lives_on() {
        let dir = tempfile::tempdir().expect("a scratch directory");
        let (path, _service, _server) = served(dir.path());
        let mut client = Client::connect(&path).expect("the server listens");
        for line in ["{\"request\":\"format-disk\"}\n", "not json\n", "\n"] {
            client.stream.get_mut().write_all(line.as_bytes()).expect("sent");
            let mut answer = String::new();
            client.stream.read_line(&mut answer).expect("answered");
            assert!(answer.contains("refused"), "{answer}");
        }
        client.status().expect("still served");
    }

    #[test]
    fn an_endless_line_ends_the_connection_and_not_the_server() {
        let dir = tempfile::tempdir().expect("a scratch directory");
        let (path, _service, _server) = served(dir.path());
        let mut client = Client::connect(&path).expect("the server listens");
        let long = vec![b'x'; usize::try_from(LINE_LIMIT_BYTES).expect("small") + 1];
        // The server may close while this is still being written.
        let _sent = client.stream.get_mut().write_all(&long);
        let mut answer = Vec::new();
        let _closed = client.stream.read_to_end(&mut answer);
        assert!(answer.is_empty());
        Client::connect(&path).expect("listens").status().expect("answers");
    }

    #[test]
    fn a_socket_left_by_the_dead_is_replaced_and_one_of_the_living_is_not() {
        let dir = tempfile::tempdir().expect("a scratch directory");
        let path = dir.path().join("root.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).expect("binds"));
        assert!(path.exists());
        let socket = Socket::bind(&path).expect("nobody listens on the old one");
        // Not served yet, and alive all the same.
        assert!(matches!(Socket::bind(&path), Err(ControlError::AlreadyServed { .. })));
        let server = socket.serve(Arc::new(Pretended::default())).expect("a thread starts");
        assert!(matches!(Socket::bind(&path), Err(ControlError::AlreadyServed { .. })));
        drop(server);
        assert!(!path.exists());
        assert!(matches!(Client::connect(&path), Err(ControlError::Socket { .. })));
    }

    #[test]
    fn a_deep_directory_does_not_matter() {
        let dir = tempfile::tempdir().expect("a scratch directory");
        let deep = dir.path().join("d".repeat(120)).join("e".repeat(120));
        std::fs::create_dir_all(&deep).expect("made");
        let (path, _service, _server) = served(&deep);
        Client::connect(&path).expect("connects").status().expect("answers");
    }
}
