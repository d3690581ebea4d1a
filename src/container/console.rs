//! Terminals that change hands, and what goes over the monitor's socket.
//!
//! A client first sends one byte: `F` wants everything and slows the container down when it does
//! not keep up, `C` is a console that misses what it cannot take. From then on both sides send
//! frames: a byte that says what it is, four with the length (little-endian), the bytes.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

/// Longest frame that is taken.
pub const LONGEST: usize = 64 << 10;

/// Whether a client may slow the container down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    /// Everything arrives; the container waits for the client.
    Follow,
    /// What a slow client cannot take is left out.
    Console,
}

impl Pace {
    /// The byte that a client begins with.
    #[must_use]
    pub fn byte(self) -> u8 {
        match self {
            Self::Follow => b'F',
            Self::Console => b'C',
        }
    }

    pub(super) fn from_byte(byte: u8) -> Option<Self> {
        [Self::Follow, Self::Console].into_iter().find(|pace| pace.byte() == byte)
    }
}

/// What goes over the socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// To the container's standard input.
    Input(Vec<u8>),
    /// The terminal's new size, in letters.
    Resize {
        /// Lines.
        rows: u16,
        /// Columns.
        columns: u16,
    },
    /// Nothing more comes on standard input.
    EndOfInput,
    /// From standard output, or the terminal.
    Output(Vec<u8>),
    /// From standard error.
    Error(Vec<u8>),
    /// The init has ended; the last frame.
    Exit(i32),
}

impl Frame {
    /// The bytes of the frame.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let (kind, bytes): (u8, Vec<u8>) = match self {
            Self::Input(bytes) => (0, bytes.clone()),
            Self::Resize { rows, columns } => {
                (1, [rows.to_le_bytes(), columns.to_le_bytes()].concat())
            }
            Self::EndOfInput => (2, Vec::new()),
            Self::Output(bytes) => (3, bytes.clone()),
            Self::Error(bytes) => (4, bytes.clone()),
            Self::Exit(status) => (5, status.to_le_bytes().to_vec()),
        };
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        [&[kind], length.to_le_bytes().as_slice(), &bytes].concat()
    }

    /// Takes the first frame from the front of `bytes`; none when it is not whole yet.
    ///
    /// # Errors
    /// `InvalidData` for what is no frame.
    pub fn decode(bytes: &mut Vec<u8>) -> io::Result<Option<Self>> {
        let Some((head, rest)) = bytes.split_first_chunk::<5>() else { return Ok(None) };
        let [kind, length @ ..] = *head;
        let length = usize::try_from(u32::from_le_bytes(length)).unwrap_or(usize::MAX);
        if length > LONGEST {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let Some(content) = rest.get(..length) else { return Ok(None) };
        let frame = match (kind, content) {
            (0, content) => Self::Input(content.to_vec()),
            (1, [a, b, c, d]) => Self::Resize {
                rows: u16::from_le_bytes([*a, *b]),
                columns: u16::from_le_bytes([*c, *d]),
            },
            (2, []) => Self::EndOfInput,
            (3, content) => Self::Output(content.to_vec()),
            (4, content) => Self::Error(content.to_vec()),
            (5, [a, b, c, d]) => Self::Exit(i32::from_le_bytes([*a, *b, *c, *d])),
            _ => return Err(io::ErrorKind::InvalidData.into()),
        };
        bytes.drain(..head.len() + length);
        Ok(Some(frame))
    }
}

/// A socket in a directory however deep: the path of a socket has at most 107 bytes.
#[derive(Debug)]
pub(super) struct Door {
    pub(super) listener: UnixListener,
    path: PathBuf,
}

impl Door {
    /// Makes the socket; one that was left behind gives way.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let listener = short(path, |short| UnixListener::bind(short))?;
        Ok(Self { listener, path: path.to_owned() })
    }

    /// Receives a terminal from whoever comes, unless `giver` ends before.
    pub(super) fn terminal(&self, giver: BorrowedFd<'_>) -> io::Result<Option<OwnedFd>> {
        use rustix::event::{PollFd, PollFlags, poll};
        let mut fds = [
            PollFd::new(&self.listener, PollFlags::IN),
            PollFd::from_borrowed_fd(giver, PollFlags::IN),
        ];
        poll(&mut fds, None)?;
        if !fds[0].revents().contains(PollFlags::IN) {
            return Ok(None);
        }
        let (stream, _) = self.listener.accept()?;
        receive(&stream).map(Some)
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        // Somebody else may have removed it with the whole bundle.
        let _gone = std::fs::remove_file(&self.path);
    }
}

/// Connects to the socket at `path`.
///
/// # Errors
/// Those of connect(2).
pub fn connect(path: &Path) -> io::Result<UnixStream> {
    short(path, |short| UnixStream::connect(short))
}

fn short<T>(path: &Path, with: impl FnOnce(&Path) -> io::Result<T>) -> io::Result<T> {
    let directory = File::open(path.parent().unwrap_or(Path::new("/")))?;
    let through = PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd()));
    with(&through.join(path.file_name().unwrap_or_default()))
}

fn receive(stream: &UnixStream) -> io::Result<OwnedFd> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut name = [0; 4096];
    let mut parts = [IoSliceMut::new(&mut name)];
    recvmsg(stream, &mut parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(mut descriptors) = message
            && let Some(descriptor) = descriptors.next()
        {
            return Ok(descriptor);
        }
    }
    Err(io::ErrorKind::InvalidData.into())
}

/// Hands a terminal to whoever listens.
pub(super) fn send(stream: &UnixStream, terminal: BorrowedFd<'_>) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let descriptors = [terminal];
    ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
    sendmsg(stream, &[IoSlice::new(b"terminal")], &mut ancillary, SendFlags::empty())?;
    Ok(())
}

/// Tells a terminal its size.
///
/// # Errors
/// `ENOTTY` for what is none.
pub fn resize(terminal: BorrowedFd<'_>, rows: u16, columns: u16) -> io::Result<()> {
    let size =
        rustix::termios::Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    Ok(rustix::termios::tcsetwinsize(terminal.as_fd(), size)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_back_whole_and_in_order() {
        let frames = [
            Frame::Input(b"ls\n".to_vec()),
            Frame::Resize { rows: 24, columns: 300 },
            Frame::EndOfInput,
            Frame::Output(vec![0; 5000]),
            Frame::Error(Vec::new()),
            Frame::Exit(-1),
        ];
        let bytes: Vec<u8> = frames.iter().flat_map(Frame::encode).collect();
        let mut found = Vec::new();
        let mut buffer = Vec::new();
        for byte in bytes {
            buffer.push(byte);
            found.extend(Frame::decode(&mut buffer).expect("frames"));
        }
        assert_eq!(found, frames);
        assert!(buffer.is_empty());
    }

    #[test]
    fn what_is_no_frame_is_refused() {
        for wrong in [[9, 0, 0, 0, 0], [2, 1, 0, 0, 0], [0, 255, 255, 255, 255], [1, 0, 0, 0, 0]] {
            let mut bytes = [wrong.as_slice(), &[0; 8]].concat();
            assert!(Frame::decode(&mut bytes).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_descriptor_goes_through_a_socket_in_a_deep_directory() {
        let scratch = tempfile::tempdir().expect("scratch");
        let deep = scratch.path().join("d".repeat(150));
        std::fs::create_dir(&deep).expect("made");
        let door = Door::open(&deep.join("sock")).expect("opens");
        let stream = connect(&deep.join("sock")).expect("connects");
        let (reader, writer) = std::io::pipe().expect("a pipe");
        send(&stream, writer.as_fd()).expect("sent");
        drop(writer);
        let got = door.terminal(reader.as_fd()).expect("received").expect("a descriptor");
        rustix::io::write(&got, b"x").expect("written");
        assert_eq!(rustix::io::read(&reader, &mut [0; 2]).expect("read"), 1);
        drop(door);
        assert_eq!(std::fs::read_dir(&deep).expect("listed").count(), 0);
    }
}
