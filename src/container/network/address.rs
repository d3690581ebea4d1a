//! Addresses and names that a network gives out. Pure: who has what is the caller's to remember.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnet::{Ipv4Net, Ipv6Net};

use super::error::NetworkError;

/// What a network's bridge and tables are called: a short word.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct NetworkName(String);

impl NetworkName {
    /// The text; it is the name of the nft tables too.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The bridge's interface.
    pub fn bridge(&self) -> String {
        format!("{}0", self.0)
    }
}

impl FromStr for NetworkName {
    type Err = NetworkError;

    fn from_str(text: &str) -> Result<Self, NetworkError> {
        // An interface's name has 15 bytes, and the bridge's has a digit more than ours.
        let sound = (1..=14).contains(&text.len())
            && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
            && text.starts_with(|first: char| first.is_ascii_lowercase());
        if sound {
            return Ok(Self(text.to_owned()));
        }
        Err(NetworkError::Malformed {
            what: "the name of a network",
            text: text.to_owned(),
            reason: "it takes 1 to 14 small letters and digits, a letter first",
        })
    }
}

/// What the interfaces of one container are named after: the first 12 digits of its id.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EndpointId(String);

impl EndpointId {
    const LEN: usize = 12;
    const HOST_PREFIX: &str = "mv";
    const SHAPER_PREFIX: &str = "mi";

    /// For the container with this id: at least 12 hexadecimal digits.
    ///
    /// # Errors
    /// [`NetworkError::Malformed`].
    pub fn of(id: &str) -> Result<Self, NetworkError> {
        match id.get(..Self::LEN) {
            Some(id) if id.bytes().all(|byte| byte.is_ascii_hexdigit()) => {
                Ok(Self(id.to_ascii_lowercase()))
            }
            _ => Err(NetworkError::Malformed {
                what: "the id of a container",
                text: id.to_owned(),
                reason: "it takes at least 12 hexadecimal digits",
            }),
        }
    }

    /// Whose host end `interface` is.
    pub(super) fn of_interface(interface: &str) -> Option<Self> {
        let id = interface.strip_prefix(Self::HOST_PREFIX)?;
        (id.len() == Self::LEN).then(|| Self::of(id).ok()).flatten()
    }

    /// The host's end of the container's cable.
    pub fn interface(&self) -> String {
        format!("{}{}", Self::HOST_PREFIX, self.0)
    }

    /// The device that holds up what the container sends too fast.
    pub(super) fn shaper(&self) -> String {
        format!("{}{}", Self::SHAPER_PREFIX, self.0)
    }

    /// The hardware address of the container's end: local, unicast, the same whenever it starts.
    pub fn mac(&self) -> Mac {
        let digit =
            |at: usize| self.0.get(at..at + 2).and_then(|two| u8::from_str_radix(two, 16).ok());
        let byte = |at| digit(at).unwrap_or(0);
        Mac([0x02, byte(0), byte(2), byte(4), byte(6), byte(8)])
    }
}

/// A hardware address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Mac(pub(super) [u8; 6]);

impl Mac {
    /// A local address made from a name: FNV-1a.
    pub(super) fn named(name: &str) -> Self {
        let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        let [a, b, c, d, e, ..] = hash.to_le_bytes();
        Self([0x02, a, b, c, d, e])
    }

    /// The IPv6 address that an interface with it gives itself (RFC 4291, appendix A).
    pub fn link_local(self) -> Ipv6Addr {
        let [a, b, c, d, e, f] = self.0;
        Ipv6Addr::new(
            0xfe80,
            0,
            0,
            0,
            u16::from_be_bytes([a ^ 2, b]),
            u16::from_be_bytes([c, 0xff]),
            u16::from_be_bytes([0xfe, d]),
            u16::from_be_bytes([e, f]),
        )
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, f] = self.0;
        write!(formatter, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
    }
}

/// The first address of a range: the host's own end of the network.
pub(super) fn gateway_v4(subnet: &Ipv4Net) -> Ipv4Addr {
    subnet.hosts().next().unwrap_or(subnet.network())
}

/// The same for IPv6.
pub(super) fn gateway_v6(subnet: &Ipv6Net) -> Ipv6Addr {
    subnet.hosts().nth(1).unwrap_or(subnet.network())
}

/// An address of `subnet` that is not in `taken`: the lowest.
///
/// # Errors
/// [`NetworkError::Exhausted`].
pub fn allocate_v4(subnet: &Ipv4Net, taken: &BTreeSet<IpAddr>) -> Result<Ipv4Addr, NetworkError> {
    let mut free = subnet.hosts().skip(1).filter(|address| !taken.contains(&IpAddr::V4(*address)));
    free.next().ok_or_else(|| NetworkError::Exhausted { subnet: subnet.to_string() })
}

/// An address of `subnet` that is not in `taken`: the lowest.
///
/// # Errors
/// [`NetworkError::Exhausted`].
pub fn allocate_v6(subnet: &Ipv6Net, taken: &BTreeSet<IpAddr>) -> Result<Ipv6Addr, NetworkError> {
    // The first is every router's (RFC 4291, 2.6.1), the second ours.
    let mut free = subnet.hosts().skip(2).filter(|address| !taken.contains(&IpAddr::V6(*address)));
    free.next().ok_or_else(|| NetworkError::Exhausted { subnet: subnet.to_string() })
}

/// Says whether a container of these ranges may have `address`, which a person asked for.
///
/// # Errors
/// [`NetworkError::NotOurs`] for an address outside, the host's own and the range's first and
/// last, [`NetworkError::AddressTaken`] for one in `taken`.
pub fn check_address(
    v4: &Ipv4Net,
    v6: Option<&Ipv6Net>,
    address: IpAddr,
    taken: &BTreeSet<IpAddr>,
) -> Result<(), NetworkError> {
    let (subnet, inside, special) = match (address, v6) {
        (IpAddr::V4(one), _) => (
            v4.to_string(),
            v4.contains(&one),
            one == gateway_v4(v4) || one == v4.network() || one == v4.broadcast(),
        ),
        (IpAddr::V6(one), Some(v6)) => {
            (v6.to_string(), v6.contains(&one), one == gateway_v6(v6) || one == v6.network())
        }
        (IpAddr::V6(_), None) => (v4.to_string(), false, false),
    };
    let reason = match (inside, special) {
        (true, false) if taken.contains(&address) => {
            return Err(NetworkError::AddressTaken(address));
        }
        (true, false) => return Ok(()),
        (true, true) => "it is the network's own",
        (false, _) => "it lies outside",
    };
    Err(NetworkError::NotOurs { address, subnet, reason })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_given_out_once_and_never_the_networks_own() {
        let subnet: Ipv4Net = "10.88.0.0/29".parse().unwrap();
        let mut taken = BTreeSet::new();
        while let Ok(address) = allocate_v4(&subnet, &taken) {
            check_address(&subnet, None, address.into(), &taken).unwrap();
            assert!(taken.insert(address.into()));
        }
        let given: Vec<String> = taken.iter().map(ToString::to_string).collect();
        assert_eq!(given, ["10.88.0.2", "10.88.0.3", "10.88.0.4", "10.88.0.5", "10.88.0.6"]);
        for bad in ["10.88.0.0", "10.88.0.1", "10.88.0.7", "10.88.0.8", "fd00::5", "10.88.0.2"] {
            assert!(check_address(&subnet, None, bad.parse().unwrap(), &taken).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_wide_range_of_ipv6_is_given_out_from_its_beginning() {
        let subnet: Ipv6Net = "fd4d:6963:61::/64".parse().unwrap();
        let first = allocate_v6(&subnet, &BTreeSet::new()).unwrap();
        assert_eq!(first.to_string(), "fd4d:6963:61::2");
        assert_eq!(gateway_v6(&subnet).to_string(), "fd4d:6963:61::1");
        let second = allocate_v6(&subnet, &BTreeSet::from([first.into()])).unwrap();
        assert_eq!(second.to_string(), "fd4d:6963:61::3");
        let v4 = "10.0.0.0/8".parse().unwrap();
        check_address(&v4, Some(&subnet), second.into(), &BTreeSet::new()).unwrap();
        let gateway = gateway_v6(&subnet).into();
        assert!(check_address(&v4, Some(&subnet), gateway, &BTreeSet::new()).is_err());
    }

    #[test]
    fn interfaces_are_named_after_the_container() {
        let id = EndpointId::of("0123456789ABcdef").unwrap();
        assert_eq!(id.interface(), "mv0123456789ab");
        assert_eq!(EndpointId::of_interface(&id.interface()), Some(id.clone()));
        assert_eq!(EndpointId::of_interface("mvsomething"), None);
        assert_eq!(id.mac().to_string(), "02:01:23:45:67:89");
        assert_eq!(id.mac().link_local().to_string(), "fe80::1:23ff:fe45:6789");
        for bad in ["", "0123456789a", "0123456789xy", "0123456789éf"] {
            assert!(EndpointId::of(bad).is_err(), "{bad}");
        }
        for bad in ["", "0mica", "Mica", "a-b", "abcdefghijklmno", "a b"] {
            assert!(bad.parse::<NetworkName>().is_err(), "{bad}");
        }
    }
}
