//! How a container is connected.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::units::{ValueError, error};

/// What a container is connected to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NetworkMode {
    /// An interface of its own on the host's bridge.
    #[default]
    Bridge,
    /// Nothing but itself.
    None,
    /// The host's own interfaces.
    Host,
}

impl NetworkMode {
    /// The word.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Self::Bridge => "bridge",
            Self::None => "none",
            Self::Host => "host",
        }
    }
}

/// An address, and the length of its network's prefix if that was said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Address {
    /// The address.
    pub ip: IpAddr,
    /// Bits of the network's prefix.
    pub prefix: Option<u8>,
}

impl FromStr for Address {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let wanted = "an address, such as 10.88.0.11, 10.88.0.11/16 or fd00::11";
        let (ip, prefix) = match text.trim().split_once('/') {
            Some((ip, prefix)) => (ip, Some(prefix)),
            None => (text.trim(), None),
        };
        let ip: IpAddr = ip.parse().map_err(|_| error(text, wanted))?;
        let most = if ip.is_ipv4() { 32 } else { 128 };
        let prefix = prefix.map(|prefix| u8::from_str(prefix).ok().filter(|bits| *bits <= most));
        if prefix == Some(None) || ip.is_unspecified() || ip.is_multicast() || ip.is_loopback() {
            return Err(error(text, wanted));
        }
        Ok(Self { ip, prefix: prefix.flatten() })
    }
}

impl TryFrom<String> for Address {
    type Error = ValueError;

    fn try_from(text: String) -> Result<Self, ValueError> {
        text.parse()
    }
}

impl From<Address> for String {
    fn from(address: Address) -> Self {
        address.to_string()
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.prefix {
            Some(prefix) => write!(f, "{}/{prefix}", self.ip),
            None => write!(f, "{}", self.ip),
        }
    }
}

/// What a port carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    /// Streams.
    Tcp,
    /// Datagrams.
    Udp,
}

impl Protocol {
    /// The word.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// A port of the host that leads into the container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Port {
    /// The host's address; none: every one.
    pub host_ip: Option<IpAddr>,
    /// The host's port.
    pub host: u16,
    /// The container's.
    pub container: u16,
    /// What it carries.
    pub protocol: Protocol,
}

impl Port {
    /// Whether what comes to one may come to the other: the same port of the host, on an address
    /// that both have.
    #[must_use]
    pub fn collides(&self, other: &Self) -> bool {
        let every = |port: &Self| port.host_ip.is_none_or(|ip| ip.is_unspecified());
        self.host == other.host
            && self.protocol == other.protocol
            && (self.host_ip == other.host_ip || every(self) || every(other))
    }

    /// Its end on the host: `8080/tcp`, `127.0.0.1:53/udp`.
    #[must_use]
    pub fn on_host(&self) -> String {
        let port = format!("{}/{}", self.host, self.protocol.text());
        match self.host_ip {
            Some(IpAddr::V6(ip)) => format!("[{ip}]:{port}"),
            Some(IpAddr::V4(ip)) => format!("{ip}:{port}"),
            None => port,
        }
    }
}

impl FromStr for Port {
    type Err = ValueError;

    /// `8080:80`, `127.0.0.1:8080:80/udp`, `[::1]:53:53/udp`; `80` is `80:80`.
    fn from_str(text: &str) -> Result<Self, ValueError> {
        let wanted = "a published port, such as 8080:80, 127.0.0.1:8080:80 or 53:53/udp";
        let wrong = || error(text, wanted);
        let (ports, protocol) = match text.trim().rsplit_once('/') {
            None => (text.trim(), Protocol::Tcp),
            Some((ports, "tcp")) => (ports, Protocol::Tcp),
            Some((ports, "udp")) => (ports, Protocol::Udp),
            Some(_) => return Err(wrong()),
        };
        let port = |text: &str| match u16::from_str(text) {
            Ok(port) if port != 0 => Ok(port),
            Ok(_) | Err(_) => Err(wrong()),
        };
        let Some((host, container)) = ports.rsplit_once(':') else {
            let both = port(ports)?;
            return Ok(Self { host_ip: None, host: both, container: both, protocol });
        };
        let container = port(container)?;
        let (host_ip, host) = match host.rsplit_once(':') {
            None => (None, host),
            Some((ip, host)) => {
                let ip = ip.strip_prefix('[').and_then(|ip| ip.strip_suffix(']')).unwrap_or(ip);
                (Some(ip.parse().map_err(|_| wrong())?), host)
            }
        };
        Ok(Self { host_ip, host: port(host)?, container, protocol })
    }
}

impl TryFrom<String> for Port {
    type Error = ValueError;

    fn try_from(text: String) -> Result<Self, ValueError> {
        text.parse()
    }
}

impl From<Port> for String {
    fn from(port: Port) -> Self {
        port.to_string()
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host_ip {
            Some(IpAddr::V6(ip)) => write!(f, "[{ip}]:")?,
            Some(IpAddr::V4(ip)) => write!(f, "{ip}:")?,
            None => {}
        }
        let protocol = match self.protocol {
            Protocol::Tcp => "",
            Protocol::Udp => "/udp",
        };
        write!(f, "{}:{}{protocol}", self.host, self.container)
    }
}

/// How a container is connected.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct NetworkConfig {
    /// To what.
    pub mode: NetworkMode,
    /// Under which addresses; none: allocated ones.
    pub addresses: Vec<Address>,
    /// Which ports of the host lead in.
    pub ports: Vec<Port>,
    /// Who resolves names; none: the host's.
    pub nameservers: Vec<IpAddr>,
    /// Domains that short names are looked up in.
    pub search: Vec<String>,
}
