//! Whether a port of the host is free, and who has it if it is not.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use rustix::net::sockopt::{set_ipv6_v6only, set_socket_reuseaddr};
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with};

use super::error::NetworkError;
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
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                Err(NetworkError::PortInUse { port: port.on_host(), holder: holder(port) })
            }
            taken => {
                taken.map_err(|source| NetworkError::PortRefused { port: port.on_host(), source })
            }
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

/// Who has `port` in the network namespace of this thread, for a person.
fn holder(port: &Port) -> String {
    let unknown = || "a program of the host".to_owned();
    let Some(socket) = listening(port) else { return unknown() };
    let link = format!("socket:[{socket}]");
    let has = |pid: &str| {
        let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten();
        // Processes end, and close what they have, while they are looked at.
        let mut targets = descriptors.filter_map(|one| fs::read_link(one.ok()?.path()).ok());
        targets.any(|target| target.as_os_str() == link.as_str())
    };
    let names = fs::read_dir("/proc").into_iter().flatten();
    let mut pids = names
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()));
    let Some(pid) = pids.find(|pid| has(pid)) else { return unknown() };
    match fs::read_to_string(format!("/proc/{pid}/comm")) {
        Ok(name) => format!("{} (process {pid})", name.trim_end()),
        Err(_gone) => unknown(),
    }
}

/// The number of the socket that listens at `port`: proc(5), `/proc/net/tcp`.
fn listening(port: &Port) -> Option<String> {
    const LISTENS: &str = "0A";
    let own = port.host_ip.filter(|ip| !ip.is_unspecified()).map(hexadecimal);
    let at = |local: &str| {
        local.split_once(':').is_some_and(|(address, number)| {
            let every = address.bytes().all(|byte| byte == b'0');
            u16::from_str_radix(number, 16) == Ok(port.host)
                && (every || own.as_deref().is_none_or(|own| own == address))
        })
    };
    let protocol = port.protocol.text();
    [protocol.to_owned(), format!("{protocol}6")].iter().find_map(|table| {
        let table = fs::read_to_string(format!("/proc/thread-self/net/{table}")).ok()?;
        table.lines().skip(1).find_map(|line| {
            let mut fields = line.split_whitespace();
            let (local, state) = (fields.nth(1)?, fields.nth(1)?);
            let listens = port.protocol == Protocol::Udp || state == LISTENS;
            (at(local) && listens).then(|| fields.nth(5).map(str::to_owned)).flatten()
        })
    })
}

/// An address as the kernel prints it there: words of four bytes, as they lie in memory.
fn hexadecimal(address: IpAddr) -> String {
    let bytes = match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    let word = |four: &[u8]| {
        let four: [u8; 4] = four.try_into().unwrap_or_default();
        format!("{:08X}", u32::from_ne_bytes(four))
    };
    bytes.chunks(4).map(word).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_listens_is_found_by_the_port_and_named() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let number = listener.local_addr().expect("it has one").port();
        for text in [format!("127.0.0.1:{number}:80"), format!("{number}:80")] {
            let told = check(&text.parse().expect("a port")).expect_err("it is taken").to_string();
            let own = format!("(process {})", std::process::id());
            assert!(told.contains(&own) && told.contains("/tcp"), "{told}");
        }
        drop(listener);
        assert!(check(&format!("{number}:80").parse().expect("a port")).is_ok());
    }
}
