//! Descriptors that travel with the lines of the protocol (unix(7), SCM_RIGHTS).
//!
//! An open file description travels, with the lease on it: whoever receives it holds that too.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::io::retry_on_intr;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

use super::REPLACEMENTS;

/// Writes `line`; the descriptors go with its first byte.
pub(super) fn send(
    stream: &UnixStream,
    line: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    if descriptors.is_empty() {
        return (&*stream).write_all(line);
    }
    let mut room = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(REPLACEMENTS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut room);
    if !ancillary.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    let sent = retry_on_intr(|| {
        sendmsg(stream, &[IoSlice::new(line)], &mut ancillary, SendFlags::NOSIGNAL)
    })?;
    (&*stream).write_all(line.get(sent..).unwrap_or_default())
}

/// Reads a stream and keeps the descriptors that come with it.
pub(super) struct Receiver<'a> {
    stream: &'a UnixStream,
    received: Vec<OwnedFd>,
}

impl<'a> Receiver<'a> {
    pub(super) fn new(stream: &'a UnixStream) -> Self {
        Self { stream, received: Vec::new() }
    }

    /// What came since the last time.
    pub(super) fn take(&mut self) -> Vec<OwnedFd> {
        std::mem::take(&mut self.received)
    }
}

impl Read for Receiver<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut room = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(REPLACEMENTS))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut room);
        let flags = RecvFlags::CMSG_CLOEXEC;
        let message = retry_on_intr(|| {
            recvmsg(self.stream, &mut [IoSliceMut::new(buffer)], &mut ancillary, flags)
        })?;
        for part in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = part {
                self.received.extend(descriptors);
            }
        }
        // Nobody sends so many that are not a mistake.
        self.received.truncate(REPLACEMENTS);
        Ok(message.bytes)
    }
}
