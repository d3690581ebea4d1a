//! Whether a port of the host is free.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use rustix::net::sockopt::{set_ipv6_v6only, set_socket_reuseaddr};
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with};

use super::error::NetworkError;
use super::rules;
use crate::container::config::{Port, Protocol};

/// A program that is just being started has copies of this process's sockets until it executes:
/// one of ours may stay bound for a moment after it is closed.
const TRIES: u32 = 5;

/// Says whether nothing of the host has `port`, by taking it for a moment.
pub(super) fn check(port: &Port) -> Result<(), NetworkError> {
    let any = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)];
    let addresses = port.host_ip.map_or(any.to_vec(), |one| vec![one]);
    addresses.into_iter().try_for_each(|address| {
        let mut tried = 1;
        let taken = loop {
            match take(SocketAddr::new(address, port.host), port.protocol) {
                Err(error) if error.kind() == io::ErrorKind::AddrInUse && tried < TRIES => {
                    std::thread::sleep(Duration::from_millis(5));
                    tried += 1;
                }
                taken => break taken,
            }
        };
        match taken {
            // A host without IPv6 has no port of it to lose.
            Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => Ok(()),
            taken => taken.map_err(|source| NetworkError::PortInUse {
                port: port.host,
                protocol: rules::word(port.protocol),
                source,
            }),
        }
    })
}

fn take(address: SocketAddr, protocol: Protocol) -> io::Result<()> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let kind = match protocol {
        Protocol::Tcp => SocketType::STREAM,
        Protocol::Udp => SocketType::DGRAM,
    };
    let socket = socket_with(family, kind, SocketFlags::CLOEXEC, None)?;
    if address.is_ipv6() {
        set_ipv6_v6only(&socket, true)?;
    }
    if protocol == Protocol::Tcp {
        // Connections that are over keep nobody from listening; one who listens does.
        set_socket_reuseaddr(&socket, true)?;
    }
    bind(&socket, &address)?;
    Ok(())
}
