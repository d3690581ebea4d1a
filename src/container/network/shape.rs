//! How fast a container may send and receive.
//!
//! What it receives is held up where the host sends it, by a token bucket on the host's end of
//! its cable. What it sends arrives at that end, where nothing can wait: it is passed on to a
//! device made for it (ifb), which has a bucket of its own. Both are the host's, so root in the
//! container cannot widen them.

use std::io;

use super::link;
use super::netlink::{Attributes, CREATE, EXCLUSIVE, Message, Netlink, REPLACE};

const NEW_QDISC: u16 = 36;
const DEL_QDISC: u16 = 37;
const NEW_FILTER: u16 = 44;

const KIND: u16 = 1;
const OPTIONS: u16 = 2;
const ROOT: u32 = 0xffff_ffff;
const INGRESS: u32 = 0xffff_fff1;
const INGRESS_HANDLE: u32 = 0xffff_0000;

/// Bits a second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct BitRate(u64);

impl BitRate {
    /// Slowest: below it a connection's first packets take longer than anyone waits.
    pub const LEAST: Self = Self(8_000);
    /// Fastest: what the kernel counts.
    pub const MOST: Self = Self(1_000_000_000_000);

    /// A rate of 8 kbit/s to 1 Tbit/s; none outside.
    pub fn from_bits_per_s(bits: u64) -> Option<Self> {
        (Self::LEAST.0..=Self::MOST.0).contains(&bits).then_some(Self(bits))
    }

    /// Bits a second.
    pub fn bits_per_s(self) -> u64 {
        self.0
    }

    /// What may go at once: 10 ms of it, and a few packets at least.
    fn burst_bytes(self) -> u64 {
        (self.0 / 8 / 100).clamp(16 * 1024, 64 * 1024 * 1024)
    }

    /// What may wait: 50 ms of it beside the burst.
    fn queue_bytes(self) -> u64 {
        (self.0 / 8 / 20).clamp(16 * 1024, 512 * 1024 * 1024) + self.burst_bytes()
    }
}

/// Sets both directions of the cable at `interface`; `shaper` names the device for the second.
pub(super) fn limit(
    netlink: &mut Netlink,
    interface: &link::Link,
    shaper: &str,
    rate: BitRate,
) -> io::Result<()> {
    token_bucket(netlink, interface.index, rate)?;
    let device = match link::named(netlink, shaper)? {
        Some(device) => device.index,
        None => {
            link::add_ifb(netlink, shaper)?;
            let made = link::named(netlink, shaper)?;
            made.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?.index
        }
    };
    token_bucket(netlink, device, rate)?;
    let ingress = Message::new(
        NEW_QDISC,
        CREATE | REPLACE,
        &fixed(interface.index, INGRESS_HANDLE, INGRESS, 0),
    )
    .with_name(KIND, "ingress");
    match netlink.order(&ingress) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    redirect(netlink, interface.index, device)
}

/// Takes both limits off.
pub(super) fn unlimit(
    netlink: &mut Netlink,
    interface: &link::Link,
    shaper: &str,
) -> io::Result<()> {
    for (handle, parent) in [(0, ROOT), (INGRESS_HANDLE, INGRESS)] {
        let message = Message::new(DEL_QDISC, 0, &fixed(interface.index, handle, parent, 0));
        match netlink.order(&message) {
            // There was none: the default one cannot be deleted, and answers so.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EINVAL)) => {}
            done => done?,
        }
    }
    link::remove(netlink, shaper).map(drop)
}

/// `struct tcmsg`.
fn fixed(index: u32, handle: u32, parent: u32, info: u32) -> [u8; 20] {
    let mut fixed = [0; 20];
    fixed[4..8].copy_from_slice(&index.to_ne_bytes());
    fixed[8..12].copy_from_slice(&handle.to_ne_bytes());
    fixed[12..16].copy_from_slice(&parent.to_ne_bytes());
    fixed[16..20].copy_from_slice(&info.to_ne_bytes());
    fixed
}

/// Puts a token bucket (tbf) where an interface sends, or changes the one there.
fn token_bucket(netlink: &mut Netlink, index: u32, rate: BitRate) -> io::Result<()> {
    const PARAMETERS: u16 = 1;
    const RATE64: u16 = 4;
    const BURST: u16 = 6;
    const HANDLE: u32 = 0x0001_0000;
    const ETHERNET: u8 = 1;
    let bytes_per_s = rate.bits_per_s() / 8;
    let saturated = |bytes: u64| u32::try_from(bytes).unwrap_or(u32::MAX);
    // struct tc_tbf_qopt: the rate, the peak rate, limit, buffer, mtu. What the kernel looks up
    // in tables of time it computes itself once the link layer is told.
    let mut parameters = [0; 36];
    parameters[1] = ETHERNET;
    parameters[8..12].copy_from_slice(&saturated(bytes_per_s).to_ne_bytes());
    parameters[24..28].copy_from_slice(&saturated(rate.queue_bytes()).to_ne_bytes());
    let mut options = Attributes::new()
        .with(PARAMETERS, &parameters)
        .with(BURST, &saturated(rate.burst_bytes()).to_ne_bytes());
    if bytes_per_s >= u64::from(u32::MAX) {
        options = options.with(RATE64, &bytes_per_s.to_ne_bytes());
    }
    let message = Message::new(NEW_QDISC, CREATE | REPLACE, &fixed(index, HANDLE, ROOT, 0))
        .with_name(KIND, "tbf")
        .with_nested(OPTIONS, options);
    netlink.order(&message)
}

/// Passes everything that `from` receives on to `to`, which sends it back when its time has come.
fn redirect(netlink: &mut Netlink, from: u32, to: u32) -> io::Result<()> {
    const SELECTOR: u16 = 5;
    const ACTIONS: u16 = 7;
    const FIRST: u16 = 1;
    const ACTION_KIND: u16 = 1;
    const ACTION_OPTIONS: u16 = 2;
    const MIRRED_PARAMETERS: u16 = 2;
    const STOLEN: u32 = 4;
    const EGRESS_REDIRECT: u32 = 1;
    const PREFERENCE: u32 = 1 << 16;
    /// Every protocol, in the order of the network.
    const ALL: u16 = 0x0003_u16.to_be();
    // struct tc_u32_sel with one key that every packet has.
    let mut selector = [0; 32];
    selector[0] = 1;
    selector[2] = 1;
    // struct tc_mirred
    let mut parameters = [0; 28];
    parameters[8..12].copy_from_slice(&STOLEN.to_ne_bytes());
    parameters[20..24].copy_from_slice(&EGRESS_REDIRECT.to_ne_bytes());
    parameters[24..28].copy_from_slice(&to.to_ne_bytes());
    let action = Attributes::new()
        .with_name(ACTION_KIND, "mirred")
        .with_nested(ACTION_OPTIONS, Attributes::new().with(MIRRED_PARAMETERS, &parameters));
    let options = Attributes::new()
        .with(SELECTOR, &selector)
        .with_nested(ACTIONS, Attributes::new().with_nested(FIRST, action));
    let info = PREFERENCE | u32::from(ALL);
    let message =
        Message::new(NEW_FILTER, CREATE | EXCLUSIVE, &fixed(from, 0, INGRESS_HANDLE, info))
            .with_name(KIND, "u32")
            .with_nested(OPTIONS, options);
    match netlink.order(&message) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        done => done,
    }
}
