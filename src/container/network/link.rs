//! Interfaces, their addresses and routes, of one network namespace.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, BorrowedFd};

use super::address::Mac;
use super::netlink::{Answer, Attributes, CREATE, EXCLUSIVE, Message, Netlink, REPLACE, find};

const NEW_LINK: u16 = 16;
const DEL_LINK: u16 = 17;
const GET_LINK: u16 = 18;
const SET_LINK: u16 = 19;
const NEW_ADDRESS: u16 = 20;
const GET_ADDRESS: u16 = 22;
const NEW_ROUTE: u16 = 24;
const NEW_NEIGHBOUR: u16 = 28;

// linux/if_link.h
const ADDRESS: u16 = 1;
const NAME: u16 = 3;
const MTU: u16 = 4;
const MASTER: u16 = 10;
const PROTINFO: u16 = 12;
const LINKINFO: u16 = 18;
const ALIAS: u16 = 20;
const STATS64: u16 = 23;
const NET_NS_FD: u16 = 28;
const INFO_KIND: u16 = 1;
const INFO_DATA: u16 = 2;
const VETH_PEER: u16 = 1;
const BRIDGE_PORT_HAIRPIN: u16 = 4;
const BRIDGE_PORT_LEARNING: u16 = 8;
const BRIDGE_PORT_UNICAST_FLOOD: u16 = 9;
const BRIDGE_MULTICAST_SNOOPING: u16 = 23;

const LINK_FIXED: usize = 16;
const ADDRESS_FIXED: usize = 8;
const UP: u32 = 1;
const NO_DETECTION: u32 = 2;

/// One interface, as the kernel tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) index: u32,
    pub(super) name: String,
    pub(super) kind: Option<String>,
    pub(super) alias: Option<String>,
    pub(super) master: Option<u32>,
    pub(super) traffic: Traffic,
}

/// What went through an interface, as the interface sees it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Traffic {
    pub(super) received_packets: u64,
    pub(super) sent_packets: u64,
    pub(super) received_bytes: u64,
    pub(super) sent_bytes: u64,
    pub(super) received_dropped: u64,
    pub(super) sent_dropped: u64,
}

/// `struct ifinfomsg`.
fn link_fixed(family: u8, index: u32, flags: u32) -> [u8; LINK_FIXED] {
    let mut fixed = [0; LINK_FIXED];
    fixed[0] = family;
    fixed[4..8].copy_from_slice(&index.to_ne_bytes());
    fixed[8..12].copy_from_slice(&flags.to_ne_bytes());
    fixed[12..16].copy_from_slice(&flags.to_ne_bytes());
    fixed
}

fn family(address: IpAddr) -> u8 {
    let family = match address {
        IpAddr::V4(_) => libc::AF_INET,
        IpAddr::V6(_) => libc::AF_INET6,
    };
    u8::try_from(family).unwrap_or_default()
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// All interfaces.
pub(super) fn all(netlink: &mut Netlink) -> io::Result<Vec<Link>> {
    let answers = netlink.list(&Message::new(GET_LINK, 0, &link_fixed(0, 0, 0)))?;
    Ok(answers.iter().filter_map(parse).collect())
}

/// The interface of this name.
pub(super) fn named(netlink: &mut Netlink, name: &str) -> io::Result<Option<Link>> {
    let message = Message::new(GET_LINK, 0, &link_fixed(0, 0, 0)).with_name(NAME, name);
    match netlink.ask(&message) {
        Ok(answer) => Ok(answer.as_ref().and_then(parse)),
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
        Err(error) => Err(error),
    }
}

fn parse(answer: &Answer) -> Option<Link> {
    if answer.kind != NEW_LINK {
        return None;
    }
    let number = |kind| {
        let bytes = answer.attribute(LINK_FIXED, kind)?;
        bytes.get(..4)?.try_into().ok().map(u32::from_ne_bytes)
    };
    let kind = answer.attribute(LINK_FIXED, LINKINFO).and_then(|info| find(info, INFO_KIND));
    let kind = kind.map(|kind| String::from_utf8_lossy(kind).trim_end_matches('\0').to_owned());
    let statistics = answer.attribute(LINK_FIXED, STATS64).unwrap_or_default();
    let counted = |at: usize| {
        let bytes = statistics.get(at * 8..at * 8 + 8).and_then(|bytes| bytes.try_into().ok());
        bytes.map_or(0, u64::from_ne_bytes)
    };
    Some(Link {
        index: answer.u32_at(4)?,
        name: answer.name(LINK_FIXED, NAME)?,
        kind,
        alias: answer.name(LINK_FIXED, ALIAS),
        master: number(MASTER),
        // struct rtnl_link_stats64
        traffic: Traffic {
            received_packets: counted(0),
            sent_packets: counted(1),
            received_bytes: counted(2),
            sent_bytes: counted(3),
            received_dropped: counted(6),
            sent_dropped: counted(7),
        },
    })
}

/// Makes a bridge, down yet. Who hears which multicast is not learned: all do.
pub(super) fn add_bridge(netlink: &mut Netlink, name: &str, mac: Mac) -> io::Result<()> {
    let data = Attributes::new().with(BRIDGE_MULTICAST_SNOOPING, &[0]);
    let info = Attributes::new().with_name(INFO_KIND, "bridge").with_nested(INFO_DATA, data);
    let message = Message::new(NEW_LINK, CREATE | EXCLUSIVE, &link_fixed(0, 0, 0))
        .with_name(NAME, name)
        .with(ADDRESS, &mac.0)
        .with_nested(LINKINFO, info);
    netlink.order(&message)
}

/// Lays a cable: `name` here, down yet, and `peer` with `mac` in the namespace behind `container`.
pub(super) fn add_cable(
    netlink: &mut Netlink,
    name: &str,
    mtu: u32,
    peer: &str,
    mac: Mac,
    container: BorrowedFd<'_>,
) -> io::Result<()> {
    let there = u32::try_from(container.as_raw_fd())
        .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let peer = Attributes::after(&link_fixed(0, 0, 0))
        .with_name(NAME, peer)
        .with(ADDRESS, &mac.0)
        .with(MTU, &mtu.to_ne_bytes())
        .with(NET_NS_FD, &there.to_ne_bytes());
    let info = Attributes::new()
        .with_name(INFO_KIND, "veth")
        .with_nested(INFO_DATA, Attributes::new().with_nested(VETH_PEER, peer));
    let message = Message::new(NEW_LINK, CREATE | EXCLUSIVE, &link_fixed(0, 0, 0))
        .with_name(NAME, name)
        .with_u32(MTU, mtu)
        .with_nested(LINKINFO, info);
    netlink.order(&message)
}

/// Makes a device that takes what another received, to hold it up.
pub(super) fn add_ifb(netlink: &mut Netlink, name: &str) -> io::Result<()> {
    let info = Attributes::new().with_name(INFO_KIND, "ifb");
    let message = Message::new(NEW_LINK, CREATE | EXCLUSIVE, &link_fixed(0, 0, UP))
        .with_name(NAME, name)
        .with_nested(LINKINFO, info);
    netlink.order(&message)
}

/// Removes an interface; says whether there was one.
pub(super) fn remove(netlink: &mut Netlink, name: &str) -> io::Result<bool> {
    let message = Message::new(DEL_LINK, 0, &link_fixed(0, 0, 0)).with_name(NAME, name);
    match netlink.order(&message) {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Writes a note to an interface that says whose it is.
pub(super) fn mark(netlink: &mut Netlink, index: u32, alias: &str) -> io::Result<()> {
    // Written without its zero: the length counts (rtnetlink.c, dev_set_alias).
    netlink
        .order(&Message::new(SET_LINK, 0, &link_fixed(0, index, 0)).with(ALIAS, alias.as_bytes()))
}

/// Switches an interface on.
pub(super) fn up(netlink: &mut Netlink, index: u32) -> io::Result<()> {
    netlink.order(&Message::new(SET_LINK, 0, &link_fixed(0, index, UP)))
}

/// Plugs a port into a bridge, for exactly one hardware address.
///
/// The bridge learns none from it and sends it nothing for unknown ones. So no frame, not even one
/// of the kind that bridges look at before any filter (01:80:c2:…), teaches it a neighbour's. What
/// the container sends to a port of the host that leads to itself comes back the same way, which
/// under br_netfilter is the bridge's doing and not the host's.
pub(super) fn plug(netlink: &mut Netlink, index: u32, bridge: u32, mac: Mac) -> io::Result<()> {
    const AF_BRIDGE: u8 = 7;
    const STATIC: u16 = 0x40;
    const OF_THE_BRIDGE: u8 = 4;
    const LINK_LAYER_ADDRESS: u16 = 2;
    netlink.order(&Message::new(SET_LINK, 0, &link_fixed(0, index, 0)).with_u32(MASTER, bridge))?;
    let port = Attributes::new()
        .with(BRIDGE_PORT_HAIRPIN, &[1])
        .with(BRIDGE_PORT_LEARNING, &[0])
        .with(BRIDGE_PORT_UNICAST_FLOOD, &[0]);
    netlink.order(
        &Message::new(SET_LINK, 0, &link_fixed(AF_BRIDGE, index, 0)).with_nested(PROTINFO, port),
    )?;
    // struct ndmsg
    let mut fixed = [0; 12];
    fixed[0] = AF_BRIDGE;
    fixed[4..8].copy_from_slice(&index.to_ne_bytes());
    fixed[8..10].copy_from_slice(&STATIC.to_ne_bytes());
    fixed[10] = OF_THE_BRIDGE;
    netlink.order(
        &Message::new(NEW_NEIGHBOUR, CREATE | REPLACE, &fixed).with(LINK_LAYER_ADDRESS, &mac.0),
    )
}

/// Gives an interface an address, at once in use; one that it has already is fine.
pub(super) fn add_address(
    netlink: &mut Netlink,
    index: u32,
    address: IpAddr,
    prefix_len: u8,
) -> io::Result<()> {
    const IFA_ADDRESS: u16 = 1;
    const IFA_LOCAL: u16 = 2;
    const IFA_BROADCAST: u16 = 4;
    const IFA_FLAGS: u16 = 8;
    // struct ifaddrmsg
    let mut fixed = [0; ADDRESS_FIXED];
    fixed[0] = family(address);
    fixed[1] = prefix_len;
    fixed[4..8].copy_from_slice(&index.to_ne_bytes());
    let octets = octets(address);
    // Nobody else can have it: it was given out, and the filter holds everybody to their own.
    let mut message = Message::new(NEW_ADDRESS, CREATE | REPLACE, &fixed)
        .with(IFA_LOCAL, &octets)
        .with(IFA_ADDRESS, &octets)
        .with_u32(IFA_FLAGS, NO_DETECTION);
    if let IpAddr::V4(address) = address {
        let mask = u32::MAX.checked_shr(u32::from(prefix_len)).unwrap_or(0);
        let broadcast = Ipv4Addr::from_bits(address.to_bits() | mask);
        message = message.with(IFA_BROADCAST, &broadcast.octets());
    }
    netlink.order(&message)
}

/// Every address of this host with its prefix and interface index.
pub(super) fn addresses(netlink: &mut Netlink) -> io::Result<Vec<(IpAddr, u8, u32)>> {
    const IFA_ADDRESS: u16 = 1;
    const IFA_LOCAL: u16 = 2;
    let answers = netlink.list(&Message::new(GET_ADDRESS, 0, &[0; ADDRESS_FIXED]))?;
    let address = |answer: &Answer| {
        let octets = answer
            .attribute(ADDRESS_FIXED, IFA_LOCAL)
            .or_else(|| answer.attribute(ADDRESS_FIXED, IFA_ADDRESS))?;
        let address = match octets.len() {
            4 => IpAddr::from(<[u8; 4]>::try_from(octets).ok()?),
            16 => IpAddr::from(Ipv6Addr::from(<[u8; 16]>::try_from(octets).ok()?)),
            _ => return None,
        };
        Some((address, *answer.body.get(1)?, answer.u32_at(4)?))
    };
    Ok(answers.iter().filter_map(address).collect())
}

/// Sends everything else by way of `gateway`.
pub(super) fn add_default_route(
    netlink: &mut Netlink,
    index: u32,
    gateway: IpAddr,
) -> io::Result<()> {
    const GATEWAY: u16 = 5;
    const OUT_INTERFACE: u16 = 4;
    const MAIN_TABLE: u8 = 254;
    const SET_AT_START: u8 = 3;
    const UNICAST: u8 = 1;
    // struct rtmsg
    let mut fixed = [0; 12];
    fixed[0] = family(gateway);
    fixed[4] = MAIN_TABLE;
    fixed[5] = SET_AT_START;
    fixed[7] = UNICAST;
    let message = Message::new(NEW_ROUTE, CREATE | REPLACE, &fixed)
        .with(GATEWAY, &octets(gateway))
        .with_u32(OUT_INTERFACE, index);
    netlink.order(&message)
}
