//! Questions and orders to the kernel's network, one at a time (rtnetlink(7)).
//!
//! Written out here because it is little and because the crates for it are asynchronous and know
//! no token buckets. A message is a header, a fixed part and attributes; each answer is one too.

use std::io;
use std::os::fd::OwnedFd;

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, netlink, recv, send,
    socket_with,
};

/// A message: what is wanted of which thing.
#[derive(Debug, Clone)]
pub(super) struct Message {
    kind: u16,
    flags: u16,
    body: Vec<u8>,
}

pub(super) const CREATE: u16 = 0x400;
pub(super) const EXCLUSIVE: u16 = 0x200;
pub(super) const REPLACE: u16 = 0x100;
const REQUEST: u16 = 1;
const ACKNOWLEDGE: u16 = 4;
const DUMP: u16 = 0x300;

const HEADER_LEN: usize = 16;
const KIND_ERROR: u16 = 2;
const KIND_DONE: u16 = 3;
const NESTED: u16 = 0x8000;

impl Message {
    /// An order; `fixed` is the part before the attributes.
    pub(super) fn new(kind: u16, flags: u16, fixed: &[u8]) -> Self {
        Self { kind, flags, body: fixed.to_vec() }
    }

    /// Adds an attribute.
    pub(super) fn with(mut self, kind: u16, value: &[u8]) -> Self {
        attribute(&mut self.body, kind, value);
        self
    }

    /// Adds an attribute that holds a number.
    pub(super) fn with_u32(self, kind: u16, value: u32) -> Self {
        self.with(kind, &value.to_ne_bytes())
    }

    /// Adds an attribute that holds a name, with its zero.
    pub(super) fn with_name(self, kind: u16, name: &str) -> Self {
        self.with(kind, &zero_ended(name))
    }

    /// Adds an attribute that holds attributes.
    pub(super) fn with_nested(self, kind: u16, inner: Attributes) -> Self {
        self.with(kind | NESTED, &inner.0)
    }
}

/// Attributes to put into another.
#[derive(Debug, Clone, Default)]
pub(super) struct Attributes(Vec<u8>);

impl Attributes {
    /// None yet.
    pub(super) fn new() -> Self {
        Self::default()
    }

    /// Bytes before the first attribute: some nests have a fixed part too.
    pub(super) fn after(fixed: &[u8]) -> Self {
        Self(fixed.to_vec())
    }

    /// Adds one.
    pub(super) fn with(mut self, kind: u16, value: &[u8]) -> Self {
        attribute(&mut self.0, kind, value);
        self
    }

    /// Adds one that holds a name, with its zero.
    pub(super) fn with_name(self, kind: u16, name: &str) -> Self {
        self.with(kind, &zero_ended(name))
    }

    /// Adds one that holds attributes.
    pub(super) fn with_nested(self, kind: u16, inner: Self) -> Self {
        self.with(kind | NESTED, &inner.0)
    }
}

fn zero_ended(name: &str) -> Vec<u8> {
    name.bytes().chain([0]).collect()
}

fn attribute(body: &mut Vec<u8>, kind: u16, value: &[u8]) {
    // Longest here is a few dozen bytes.
    let len = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
    body.extend(len.to_ne_bytes());
    body.extend(kind.to_ne_bytes());
    body.extend(value);
    pad(body);
}

fn pad(body: &mut Vec<u8>) {
    body.resize(body.len().next_multiple_of(4), 0);
}

/// An answer: its kind, its fixed part and attributes.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) kind: u16,
    pub(super) body: Vec<u8>,
}

impl Answer {
    /// The four bytes at `at` of the fixed part, as a number.
    pub(super) fn u32_at(&self, at: usize) -> Option<u32> {
        self.body.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes)
    }

    /// The value of the attribute `kind` after a fixed part of `fixed` bytes.
    pub(super) fn attribute(&self, fixed: usize, kind: u16) -> Option<&[u8]> {
        find(self.body.get(fixed..)?, kind)
    }

    /// The same, as text up to its zero.
    pub(super) fn name(&self, fixed: usize, kind: u16) -> Option<String> {
        let bytes = self.attribute(fixed, kind)?;
        let text = bytes.split(|byte| *byte == 0).next()?;
        Some(String::from_utf8_lossy(text).into_owned())
    }
}

/// The value of the attribute `kind` among `attributes`.
pub(super) fn find(mut attributes: &[u8], kind: u16) -> Option<&[u8]> {
    loop {
        let len = usize::from(u16_at(attributes, 0)?);
        let this = u16_at(attributes, 2)? & !NESTED;
        let value = attributes.get(4..len)?;
        if this == kind {
            return Some(value);
        }
        attributes = attributes.get(len.next_multiple_of(4)..)?;
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2)?.try_into().ok().map(u16::from_ne_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes)
}

/// A conversation with the network namespace of the thread that began it.
#[derive(Debug)]
pub(super) struct Netlink {
    socket: OwnedFd,
    sequence: u32,
}

impl Netlink {
    /// Begins one.
    pub(super) fn open() -> io::Result<Self> {
        let socket = socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            // NETLINK_ROUTE is 0, the protocol of who names none.
            None,
        )?;
        bind(&socket, &netlink::SocketAddrNetlink::new(0, 0))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Gives an order and waits until it is carried out.
    pub(super) fn order(&mut self, message: &Message) -> io::Result<()> {
        self.send(message, REQUEST | ACKNOWLEDGE)?;
        self.answers(false).map(drop)
    }

    /// Asks about one thing.
    pub(super) fn ask(&mut self, message: &Message) -> io::Result<Option<Answer>> {
        self.send(message, REQUEST | ACKNOWLEDGE)?;
        Ok(self.answers(false)?.into_iter().next())
    }

    /// Asks for all things of a kind.
    pub(super) fn list(&mut self, message: &Message) -> io::Result<Vec<Answer>> {
        self.send(message, REQUEST | DUMP)?;
        self.answers(true)
    }

    fn send(&mut self, message: &Message, flags: u16) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let len = HEADER_LEN + message.body.len();
        let len = u32::try_from(len).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        let mut bytes = Vec::with_capacity(HEADER_LEN + message.body.len());
        bytes.extend(len.to_ne_bytes());
        bytes.extend(message.kind.to_ne_bytes());
        bytes.extend((message.flags | flags).to_ne_bytes());
        bytes.extend(self.sequence.to_ne_bytes());
        bytes.extend(0_u32.to_ne_bytes());
        bytes.extend(&message.body);
        send(&self.socket, &bytes, SendFlags::empty())?;
        Ok(())
    }

    /// Reads until the order is acknowledged, or until the list ends.
    fn answers(&mut self, list: bool) -> io::Result<Vec<Answer>> {
        let mut answers = Vec::new();
        // The kernel fills at most 32 KiB a time (netlink_dump).
        let mut buffer = vec![0_u8; 64 * 1024];
        loop {
            let (len, _) = recv(&self.socket, buffer.as_mut_slice(), RecvFlags::empty())?;
            let mut rest = buffer.get(..len).unwrap_or_default();
            while let Some((kind, sequence, body, after)) = split(rest) {
                rest = after;
                if sequence != self.sequence {
                    continue;
                }
                match kind {
                    KIND_ERROR => return judged(body).map(|()| answers),
                    KIND_DONE if list => return judged(body).map(|()| answers),
                    kind => answers.push(Answer { kind, body: body.to_vec() }),
                }
            }
        }
    }
}

/// The first message of some: kind, sequence, body, and what follows it.
fn split(bytes: &[u8]) -> Option<(u16, u32, &[u8], &[u8])> {
    let len = usize::try_from(u32_at(bytes, 0)?).ok()?;
    let body = bytes.get(HEADER_LEN..len)?;
    let after = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
    Some((u16_at(bytes, 4)?, u32_at(bytes, 8)?, body, after))
}

/// The verdict at the head of an error message: 0, or an errno less than that.
fn judged(body: &[u8]) -> io::Result<()> {
    let verdict = body.get(..4).and_then(|code| code.try_into().ok()).map(i32::from_ne_bytes);
    match verdict {
        None | Some(0) => Ok(()),
        Some(code) => Err(io::Error::from_raw_os_error(code.saturating_neg())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_found_and_bad_ones_end_the_search() {
        let inner = Attributes::new().with_name(1, "veth").with(2, &[7]);
        let message = Message::new(16, CREATE, &[0; 16]).with_u32(4, 1500).with_nested(18, inner);
        let answer = Answer { kind: 16, body: message.body.clone() };
        assert_eq!(answer.attribute(16, 4), Some(&1500_u32.to_ne_bytes()[..]));
        let nested = answer.attribute(16, 18).unwrap();
        assert_eq!(find(nested, 1), Some(&b"veth\0"[..]));
        assert_eq!(find(nested, 2), Some(&[7][..]));
        assert_eq!(find(nested, 3), None);
        for bad in [&[][..], &[0, 0, 1, 0], &[255, 0, 1, 0, 1], &[3, 0, 1, 0, 1, 1, 1, 1]] {
            assert_eq!(find(bad, 9), None, "{bad:?}");
        }
        for cut in 0..message.body.len() {
            let _any = find(&message.body[..cut], 99);
        }
    }

    #[test]
    fn the_kernel_answers() {
        let mut netlink = Netlink::open().unwrap();
        let links = netlink.list(&Message::new(18, 0, &[0; 16])).unwrap();
        let names: Vec<_> = links.iter().filter_map(|link| link.name(16, 3)).collect();
        assert!(names.iter().any(|name| name == "lo"), "{names:?}");
        let missing = Message::new(18, 0, &[0; 16]).with_name(3, "nosuchlink");
        let refused = netlink.ask(&missing).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::ENODEV));
    }
}
