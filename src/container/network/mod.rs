//! The network of the containers: a bridge, a cable to each, and rules of our own.
//!
//! ```text
//!  container ─ eth0 ══ mv0123456789ab ─ bridge mica0 ─ host: NAT, published ports
//! ```
//!
//! Everything lies in one network namespace of the host and carries our mark: the bridge, the
//! host's ends of the cables, the devices that hold up what is sent too fast, and two nft tables
//! under the network's name. Nothing else of the host is touched but the switches that let it
//! forward, which are remembered and set back. Names and rules are found again after a restart, so
//! whoever comes next adopts them; a cable vanishes with its container's namespace by itself.
//!
//! Which container has which address is not remembered here.

mod address;
mod error;
mod free;
mod link;
mod names;
mod namespace;
mod netlink;
mod nft;
mod rules;
mod shape;
mod sysctl;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use ipnet::{Ipv4Net, Ipv6Net};

pub use address::{EndpointId, Mac, NetworkName, allocate_v4, allocate_v6, check_address};
pub use error::NetworkError;
pub use names::{Named, hosts, refresh_hosts, resolv_conf};
pub use namespace::Namespace;
pub use shape::BitRate;

use self::netlink::Netlink;
use super::cgroup::{Holds, Shortfall};
use super::config::Port;

/// What the marks of all networks begin with.
const MARK: &str = "mica network ";

/// The interface inside a container.
const INSIDE: &str = "eth0";

/// What a network is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BridgeConfig {
    /// The bridge is called after it, and so are the tables of rules.
    pub name: NetworkName,
    /// Addresses of containers; the host has the first.
    pub v4: Ipv4Net,
    /// The same for IPv6; none: containers have no IPv6.
    pub v6: Option<Ipv6Net>,
    /// Longest packet, in bytes.
    pub mtu: u32,
    /// Whose it is, in words: several may be on one host.
    pub owner: String,
}

impl BridgeConfig {
    /// `mica0` with 10.88.0.0/16 and a range of IPv6 that is nobody's in the world (RFC 4193).
    ///
    /// # Panics
    /// Never: the text is fixed.
    pub fn standard() -> Self {
        Self {
            name: "mica".parse().expect("the standard name is sound"),
            v4: Ipv4Net::new_assert(Ipv4Addr::new(10, 88, 0, 0), 16),
            v6: Some(Ipv6Net::new_assert(Ipv6Addr::new(0xfd4d, 0x6963, 0x6100, 0, 0, 0, 0, 0), 64)),
            mtu: 1500,
            owner: String::new(),
        }
    }

    /// How many of [`numbered`](Self::numbered) there are.
    pub const NUMBERS: u8 = 26;

    /// One of several on a host: number 0 is the [`standard`](Self::standard) one, each has another
    /// bridge, other tables and other ranges. None from [`NUMBERS`](Self::NUMBERS) on.
    pub fn numbered(number: u8, owner: &str) -> Option<Self> {
        let letter =
            (number < Self::NUMBERS).then_some(char::from(b'a' + number % Self::NUMBERS))?;
        let mut config = Self { owner: owner.to_owned(), ..Self::standard() };
        if number > 0 {
            config.name = format!("mica{letter}").parse().ok()?;
            config.v4 = Ipv4Net::new(Ipv4Addr::new(10, 88 + number, 0, 0), 16).ok()?;
            let number = number.into();
            let v6 = Ipv6Addr::new(0xfd4d, 0x6963, 0x6100, number, 0, 0, 0, 0);
            config.v6 = Ipv6Net::new(v6, 64).ok();
        }
        Some(config)
    }

    /// The host's own addresses in it, which containers send everything else by way of.
    pub fn gateways(&self) -> (Ipv4Addr, Option<Ipv6Addr>) {
        (address::gateway_v4(&self.v4), self.v6.as_ref().map(address::gateway_v6))
    }

    /// What marks the interfaces of this network.
    fn mark(&self) -> String {
        // The kernel keeps 255 bytes.
        let owner = match self.owner.len() {
            0..=200 => self.owner.clone(),
            _ => Mac::named(&self.owner).to_string(),
        };
        format!("{MARK}{} of {owner}", self.name.as_str())
    }
}

/// A container's place in a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// What its interfaces are named after.
    pub id: EndpointId,
    /// Its IPv4 addresses; published ports lead to the first.
    pub v4: Vec<Ipv4Addr>,
    /// Its IPv6 addresses; published ports lead to the first.
    pub v6: Vec<Ipv6Addr>,
    /// Ports of the host that lead to it.
    pub published: Vec<Port>,
    /// How fast it may send, and receive.
    pub rate: Option<BitRate>,
}

/// What went through a container's interface since it was attached.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Bytes that the container received.
    pub received_bytes: u64,
    /// Bytes that it sent.
    pub sent_bytes: u64,
    /// Packets that it received.
    pub received_packets: u64,
    /// Packets that it sent.
    pub sent_packets: u64,
    /// Packets that did not reach it, because they came faster than it may receive.
    pub dropped_packets: u64,
}

/// A network of containers in a network namespace of the host.
#[derive(Debug, Clone)]
pub struct Network {
    config: BridgeConfig,
    state: PathBuf,
    namespace: Namespace,
}

impl Network {
    /// The network `config` of `namespace`, made yet or not. `state` is a directory, best one that
    /// a reboot empties, for what the host's switches were before.
    pub fn new(config: BridgeConfig, state: &Path, namespace: Namespace) -> Self {
        Self { config, state: state.to_owned(), namespace }
    }

    /// What it is.
    pub fn config(&self) -> &BridgeConfig {
        &self.config
    }

    /// Makes the network, or whatever of it is missing, with exactly `endpoints` attached: what is
    /// left of any other goes. Rules are written anew in one transaction; connections live on.
    ///
    /// Answers what of the endpoints' limits does not hold here.
    ///
    /// # Errors
    /// [`NetworkError::Overlaps`] and [`NetworkError::Foreign`] before anything is made.
    pub fn ensure(&self, endpoints: &[Endpoint]) -> Result<Vec<Shortfall>, NetworkError> {
        self.namespace.run(|| self.ensure_here(endpoints))?
    }

    /// Attaches a container, whose network namespace is `container`, and sets everything there:
    /// `lo`, `eth0`, addresses and default routes. Attached already, it is attached anew.
    ///
    /// Answers what of its limits does not hold here.
    ///
    /// # Errors
    /// [`NetworkError::PortInUse`] and [`NetworkError::PortTaken`] for a port of the host that
    /// somebody has. On any error the container is not attached, and nothing is left of it.
    pub fn attach(
        &self,
        endpoint: &Endpoint,
        container: &Namespace,
    ) -> Result<Vec<Shortfall>, NetworkError> {
        self.namespace.run(|| {
            let attached = self.attach_here(endpoint, container);
            if attached.is_err()
                && let Err(error) = self.forget_here(&endpoint.id)
            {
                tracing::warn!(%error, "a cable that was laid in part stays");
            }
            attached
        })?
    }

    /// Brings ports and rate of an attached container up to date. Connections that a port led
    /// in stay, new ones go by the new rules.
    ///
    /// # Errors
    /// As [`attach`](Self::attach); everything is as it was then.
    pub fn update(&self, endpoint: &Endpoint) -> Result<Vec<Shortfall>, NetworkError> {
        self.namespace.run(|| {
            let mut netlink = open()?;
            let Some(link) = self.cable(&mut netlink, &endpoint.id)? else {
                let interface = endpoint.id.interface();
                return Err(NetworkError::link("change", &interface)(
                    io::Error::from_raw_os_error(libc::ENODEV),
                ));
            };
            self.write_rules(endpoint)?;
            set_rate(&mut netlink, &link, endpoint)
        })?
    }

    /// Takes a container's cable and rules away; gone already is no error.
    ///
    /// # Errors
    /// What nft or the kernel refuses.
    pub fn detach(&self, endpoint: &Endpoint) -> Result<(), NetworkError> {
        self.namespace.run(|| {
            remove_links(&mut open()?, &endpoint.id)?;
            // Who knows what was set need not look for it.
            match nft::apply(&rules::without_endpoint(&self.config, endpoint)) {
                Err(NetworkError::Rules(_)) => self.forget_here(&endpoint.id),
                done => done,
            }
        })?
    }

    /// Takes away whatever is left of a container that nothing else is known of.
    ///
    /// # Errors
    /// What nft or the kernel refuses.
    pub fn forget(&self, id: &EndpointId) -> Result<(), NetworkError> {
        self.namespace.run(|| self.forget_here(id))?
    }

    /// Every container that something is left of, running or not.
    ///
    /// # Errors
    /// What nft or the kernel refuses.
    pub fn attached(&self) -> Result<BTreeSet<EndpointId>, NetworkError> {
        self.namespace.run(|| self.attached_here(&mut open()?))?
    }

    /// What went through a container's interface; none when it is not attached.
    ///
    /// # Errors
    /// What the kernel refuses.
    pub fn counters(&self, id: &EndpointId) -> Result<Option<Counters>, NetworkError> {
        self.namespace.run(|| {
            let link = self.cable(&mut open()?, id)?;
            // The host's end receives what the container sends.
            Ok(link.map(|link| Counters {
                received_bytes: link.traffic.sent_bytes,
                sent_bytes: link.traffic.received_bytes,
                received_packets: link.traffic.sent_packets,
                sent_packets: link.traffic.received_packets,
                dropped_packets: link.traffic.sent_dropped,
            }))
        })?
    }

    /// Takes the whole network away, attached containers or not, and sets the host's switches
    /// back: nothing is left of it.
    ///
    /// # Errors
    /// What nft or the kernel refuses; called again, it goes on with the rest.
    pub fn remove(&self) -> Result<(), NetworkError> {
        self.namespace.run(|| {
            let mut netlink = open()?;
            for id in self.attached_here(&mut netlink)? {
                remove_links(&mut netlink, &id)?;
            }
            nft::apply(&rules::removal(&self.config))?;
            let bridge = self.config.name.bridge();
            if self.bridge(&mut netlink)?.is_some() {
                link::remove(&mut netlink, &bridge)
                    .map_err(NetworkError::link("remove", &bridge))?;
            }
            let _alone = self.lock()?;
            if !self.others(&mut netlink)?.is_empty() {
                // The last network sets the host's switches back.
                return Ok(());
            }
            let switches = sysctl::Switches::open(self.switches_file())?;
            let mut wanted: BTreeMap<String, String> =
                FORWARDING.iter().map(|name| ((*name).to_owned(), "1".to_owned())).collect();
            for link in link::all(&mut netlink).map_err(NetworkError::link("list", "links"))? {
                wanted.insert(accept_ra(&link.name), "2".to_owned());
            }
            switches.restore(&wanted)
        })?
    }

    fn switches_file(&self) -> PathBuf {
        self.state.join("network-switches.json")
    }

    /// What is of all networks of a host changes under this lock; dropped, it is let go.
    fn lock(&self) -> Result<std::fs::File, NetworkError> {
        std::fs::create_dir_all(&self.state).map_err(NetworkError::system("make", &self.state))?;
        let directory =
            std::fs::File::open(&self.state).map_err(NetworkError::system("open", &self.state))?;
        rustix::fs::flock(&directory, rustix::fs::FlockOperation::LockExclusive)
            .map_err(|errno| NetworkError::system("lock", &self.state)(errno.into()))?;
        Ok(directory)
    }

    /// Other networks of ours on this host: their names, and whose they are.
    fn others(&self, netlink: &mut Netlink) -> Result<BTreeMap<String, String>, NetworkError> {
        let links = link::all(netlink).map_err(NetworkError::link("list", "links"))?;
        let named = |link: &link::Link| {
            let (name, owner) = link.alias.as_deref()?.strip_prefix(MARK)?.split_once(" of ")?;
            Some((name.to_owned(), owner.to_owned()))
        };
        let mut others: BTreeMap<String, String> = links.iter().filter_map(named).collect();
        others.remove(self.config.name.as_str());
        Ok(others)
    }

    /// Why each of `ports` that cannot be published now cannot: a program of the host has it, or a
    /// container of another network. Changes nothing.
    pub fn unpublishable(&self, ports: &[Port]) -> Vec<NetworkError> {
        let look = || {
            let one = |port: &Port| free::check(port).and_then(|()| self.check_others(&[port]));
            ports.iter().filter_map(|port| one(port).err()).collect()
        };
        self.namespace.run(look).unwrap_or_else(|error| vec![error])
    }

    /// Refuses ports that lead to containers of other networks.
    fn check_others(&self, ports: &[&Port]) -> Result<(), NetworkError> {
        if ports.is_empty() {
            return Ok(());
        }
        for (name, owner) in self.others(&mut open()?)? {
            let listing = nft::list(&name)?;
            if let Some(port) = ports.iter().find(|port| rules::publisher(&listing, port).is_some())
            {
                return Err(NetworkError::PortTaken { port: port.on_host(), owner });
            }
        }
        Ok(())
    }

    /// Our bridge, if it is there.
    fn bridge(&self, netlink: &mut Netlink) -> Result<Option<link::Link>, NetworkError> {
        let name = self.config.name.bridge();
        let found = link::named(netlink, &name).map_err(NetworkError::link("look at", &name))?;
        let Some(link) = found else { return Ok(None) };
        let alias = link.alias.as_deref().unwrap_or_default();
        if alias == self.config.mark() {
            return Ok(Some(link));
        }
        match alias.strip_prefix(MARK).and_then(|rest| rest.split_once(" of ")) {
            Some((_, owner)) => {
                Err(NetworkError::OtherOwner { bridge: name, owner: owner.to_owned() })
            }
            None => Err(NetworkError::Foreign(name)),
        }
    }

    /// The host's end of a container's cable, if it is there.
    fn cable(
        &self,
        netlink: &mut Netlink,
        id: &EndpointId,
    ) -> Result<Option<link::Link>, NetworkError> {
        let name = id.interface();
        let found = link::named(netlink, &name).map_err(NetworkError::link("look at", &name))?;
        Ok(found.filter(|link| link.kind.as_deref() == Some("veth")))
    }

    fn ensure_here(&self, endpoints: &[Endpoint]) -> Result<Vec<Shortfall>, NetworkError> {
        let mut netlink = open()?;
        let bridge = self.config.name.bridge();
        let link = match self.bridge(&mut netlink)? {
            Some(link) => link,
            None => {
                self.check_range(&mut netlink)?;
                self.make_bridge(&mut netlink)?
            }
        };
        for (name, value) in [("accept_ra", "0"), ("accept_dad", "0"), ("disable_ipv6", "0")] {
            sysctl::put(&format!("ipv6/conf/{bridge}/{name}"), value)?;
        }
        // A port published on the host's loopback is reached from there; what comes from
        // containers for it is dropped by a rule.
        sysctl::put(&format!("ipv4/conf/{bridge}/route_localnet"), "1")?;
        let (v4, v6) = self.config.gateways();
        let addresses = [
            Some((IpAddr::V4(v4), self.config.v4.prefix_len())),
            v6.zip(self.config.v6).map(|(v6, net)| (IpAddr::V6(v6), net.prefix_len())),
        ];
        for (address, prefix_len) in addresses.into_iter().flatten() {
            link::add_address(&mut netlink, link.index, address, prefix_len)
                .map_err(NetworkError::link("give an address to", &bridge))?;
        }
        link::up(&mut netlink, link.index).map_err(NetworkError::link("switch on", &bridge))?;
        self.forward(&mut netlink)?;

        let wanted: BTreeSet<&EndpointId> = endpoints.iter().map(|endpoint| &endpoint.id).collect();
        for id in self.attached_here(&mut netlink)? {
            if !wanted.contains(&id) {
                remove_links(&mut netlink, &id)?;
            }
        }
        let each: String =
            endpoints.iter().map(|endpoint| rules::of_endpoint(&self.config, endpoint)).collect();
        let (gone, made) = (rules::removal(&self.config), rules::tables(&self.config));
        nft::apply(&format!("{gone}{made}{each}")).map_err(|error| self.taken(error))?;
        let mut shortfalls = Vec::new();
        for endpoint in endpoints {
            if let Some(cable) = self.cable(&mut netlink, &endpoint.id)? {
                link::plug(&mut netlink, cable.index, link.index, endpoint.id.mac())
                    .map_err(NetworkError::link("plug in", &cable.name))?;
                shortfalls.extend(set_rate(&mut netlink, &cable, endpoint)?);
            }
        }
        Ok(shortfalls)
    }

    fn make_bridge(&self, netlink: &mut Netlink) -> Result<link::Link, NetworkError> {
        let name = self.config.name.bridge();
        link::add_bridge(netlink, &name, Mac::named(&name))
            .map_err(NetworkError::link("make the bridge", &name))?;
        let made = || -> io::Result<link::Link> {
            let gone = || io::Error::from_raw_os_error(libc::ENODEV);
            let link = link::named(netlink, &name)?.ok_or_else(gone)?;
            link::mark(netlink, link.index, &self.config.mark())?;
            Ok(link)
        }();
        made.map_err(NetworkError::link("mark", &name))
    }

    /// Refuses a range that an interface of the host uses already.
    fn check_range(&self, netlink: &mut Netlink) -> Result<(), NetworkError> {
        let failed = || NetworkError::link("list the addresses of", "this host");
        let links = link::all(netlink).map_err(failed())?;
        for (address, prefix_len, index) in link::addresses(netlink).map_err(failed())? {
            let ours = match address {
                IpAddr::V4(other) => Ipv4Net::new(other, prefix_len)
                    .is_ok_and(|net| {
                        net.contains(&self.config.v4.network()) || self.config.v4.contains(&other)
                    })
                    .then(|| self.config.v4.to_string()),
                IpAddr::V6(other) => self
                    .config
                    .v6
                    .filter(|v6| {
                        Ipv6Net::new(other, prefix_len)
                            .is_ok_and(|net| net.contains(&v6.network()) || v6.contains(&other))
                    })
                    .map(|v6| v6.to_string()),
            };
            if let Some(subnet) = ours {
                let interface = links.iter().find(|link| link.index == index);
                let interface =
                    interface.map_or_else(|| index.to_string(), |link| link.name.clone());
                let address = format!("{address}/{prefix_len}");
                return Err(NetworkError::Overlaps { subnet, interface, address });
            }
        }
        Ok(())
    }

    /// Lets the host forward. Interfaces that listen to router advertisements go on doing so,
    /// which a host that forwards IPv6 does not without being told.
    fn forward(&self, netlink: &mut Netlink) -> Result<(), NetworkError> {
        let _alone = self.lock()?;
        let mut switches = sysctl::Switches::open(self.switches_file())?;
        let [v4, v6] = FORWARDING;
        switches.set(v4, "1")?;
        if self.config.v6.is_none() || sysctl::get(v6)?.as_deref() == Some("1") {
            return Ok(());
        }
        for link in link::all(netlink).map_err(NetworkError::link("list", "links"))? {
            let name = accept_ra(&link.name);
            if link.alias.as_deref().is_none_or(|alias| !alias.starts_with(MARK))
                && sysctl::get(&name)?.as_deref() == Some("1")
            {
                switches.set(&name, "2")?;
            }
        }
        switches.set(v6, "1")
    }

    fn attach_here(
        &self,
        endpoint: &Endpoint,
        container: &Namespace,
    ) -> Result<Vec<Shortfall>, NetworkError> {
        let mut netlink = open()?;
        let name = endpoint.id.interface();
        let gone = |interface: &str| {
            NetworkError::link("find", interface)(io::Error::from_raw_os_error(libc::ENODEV))
        };
        let bridge = self.bridge(&mut netlink)?;
        let bridge = bridge.ok_or_else(|| gone(&self.config.name.bridge()))?;
        remove_links(&mut netlink, &endpoint.id)?;
        // Rules first, and in detaching last: there is no moment at which frames pass without.
        self.write_first_rules(endpoint)?;
        let there = container.descriptor()?;
        link::add_cable(
            &mut netlink,
            &name,
            self.config.mtu,
            INSIDE,
            endpoint.id.mac(),
            there.as_fd(),
        )
        .map_err(NetworkError::link("lay the cable", &name))?;
        let cable = self.cable(&mut netlink, &endpoint.id)?;
        let cable = cable.ok_or_else(|| gone(&name))?;
        link::mark(&mut netlink, cable.index, &self.config.mark())
            .map_err(NetworkError::link("mark", &name))?;
        // The host has no business on a container's cable, only on the bridge.
        sysctl::put(&format!("ipv6/conf/{name}/disable_ipv6"), "1")?;
        link::plug(&mut netlink, cable.index, bridge.index, endpoint.id.mac())
            .map_err(NetworkError::link("plug in", &name))?;
        let shortfalls = set_rate(&mut netlink, &cable, endpoint)?;
        link::up(&mut netlink, cable.index).map_err(NetworkError::link("switch on", &name))?;
        namespace::within(there.as_fd(), || self.furnish(endpoint))??;
        Ok(shortfalls)
    }

    /// Sets up the inside of a container's network namespace, in which this thread is.
    fn furnish(&self, endpoint: &Endpoint) -> Result<(), NetworkError> {
        let mut netlink = open()?;
        let inside = |what| NetworkError::link(what, INSIDE);
        let index = |netlink: &mut Netlink, name: &str| {
            let found = link::named(netlink, name).map_err(NetworkError::link("find", name))?;
            let missing =
                || NetworkError::link("find", name)(io::Error::from_raw_os_error(libc::ENODEV));
            found.map(|link| link.index).ok_or_else(missing)
        };
        let loopback = index(&mut netlink, "lo")?;
        link::up(&mut netlink, loopback).map_err(NetworkError::link("switch on", "lo"))?;
        let link = index(&mut netlink, INSIDE)?;
        let no_v6 = if endpoint.v6.is_empty() { "1" } else { "0" };
        for (name, value) in [("disable_ipv6", no_v6), ("accept_ra", "0"), ("accept_dad", "0")] {
            sysctl::put(&format!("ipv6/conf/{INSIDE}/{name}"), value)?;
        }
        let v4 = endpoint.v4.iter().map(|one| (IpAddr::V4(*one), self.config.v4.prefix_len()));
        let v6_len = self.config.v6.map_or(64, |v6| v6.prefix_len());
        let v6 = endpoint.v6.iter().map(|one| (IpAddr::V6(*one), v6_len));
        for (address, prefix_len) in v4.chain(v6) {
            link::add_address(&mut netlink, link, address, prefix_len)
                .map_err(inside("give an address to"))?;
        }
        link::up(&mut netlink, link).map_err(inside("switch on"))?;
        let (v4, v6) = self.config.gateways();
        let v4 = (!endpoint.v4.is_empty()).then_some(IpAddr::V4(v4));
        let v6 = v6.filter(|_| !endpoint.v6.is_empty()).map(IpAddr::V6);
        for gateway in [v4, v6].into_iter().flatten() {
            link::add_default_route(&mut netlink, link, gateway)
                .map_err(inside("set the default route of"))?;
        }
        Ok(())
    }

    /// Writes the rules of a container that should have none; what is left of it is replaced.
    fn write_first_rules(&self, endpoint: &Endpoint) -> Result<(), NetworkError> {
        endpoint.published.iter().try_for_each(free::check)?;
        self.check_others(&endpoint.published.iter().collect::<Vec<_>>())?;
        match nft::apply(&rules::of_endpoint(&self.config, endpoint)) {
            Err(NetworkError::Rules(_)) => self.write_rules(endpoint),
            done => done,
        }
    }

    /// Replaces a container's rules, in one transaction.
    fn write_rules(&self, endpoint: &Endpoint) -> Result<(), NetworkError> {
        let listing = nft::list(self.config.name.as_str())?;
        let interface = endpoint.id.interface();
        let old = rules::deletion(&self.config, &listing, &interface);
        let new = rules::of_endpoint(&self.config, endpoint);
        let added: Vec<&Port> = endpoint
            .published
            .iter()
            .filter(|port| !rules::leads(&listing, &interface, port))
            .collect();
        added.iter().try_for_each(|port| free::check(port))?;
        self.check_others(&added)?;
        nft::apply(&format!("{old}{new}")).map_err(|error| self.taken(error))
    }

    /// A transaction that adds what is there already meets another container's port.
    fn taken(&self, error: NetworkError) -> NetworkError {
        if let NetworkError::Rules(said) = &error
            && said.contains("File exists")
        {
            // nft repeats the order that was refused: its key is what is taken.
            let order = said.split_once("{ ").map(|(_, rest)| rest);
            let key = order.and_then(|rest| rest.split(" comment").next()).unwrap_or_default();
            let parts: Vec<&str> = key.split(" . ").collect();
            let port = match parts.as_slice() {
                [protocol, port] => format!("{port}/{protocol}"),
                [address, protocol, port] => format!("{address}:{port}/{protocol}"),
                _ => key.to_owned(),
            };
            let owner = if self.config.owner.is_empty() {
                "this network".to_owned()
            } else {
                self.config.owner.clone()
            };
            return NetworkError::PortTaken { port, owner };
        }
        error
    }

    fn forget_here(&self, id: &EndpointId) -> Result<(), NetworkError> {
        remove_links(&mut open()?, id)?;
        let listing = nft::list(self.config.name.as_str())?;
        let rules = rules::deletion(&self.config, &listing, &id.interface());
        if rules.is_empty() { Ok(()) } else { nft::apply(&rules) }
    }

    fn attached_here(&self, netlink: &mut Netlink) -> Result<BTreeSet<EndpointId>, NetworkError> {
        let links = link::all(netlink).map_err(NetworkError::link("list", "links"))?;
        let marked = links.iter().filter(|link| link.alias.as_deref() == Some(&self.config.mark()));
        let laid: BTreeSet<EndpointId> =
            marked.filter_map(|link| EndpointId::of_interface(&link.name)).collect();
        let listing = nft::list(self.config.name.as_str())?;
        let ruled = rules::owners(&listing);
        let ruled = ruled.iter().filter_map(|interface| EndpointId::of_interface(interface));
        Ok(laid.into_iter().chain(ruled).collect())
    }
}

/// Switches without which a host forwards nothing.
const FORWARDING: [&str; 2] = ["ipv4/ip_forward", "ipv6/conf/all/forwarding"];

fn accept_ra(interface: &str) -> String {
    format!("ipv6/conf/{interface}/accept_ra")
}

fn open() -> Result<Netlink, NetworkError> {
    Netlink::open().map_err(NetworkError::link("talk to the kernel about", "the network"))
}

/// Removes both devices of a container, as far as they are there.
fn remove_links(netlink: &mut Netlink, id: &EndpointId) -> Result<(), NetworkError> {
    for name in [id.interface(), id.shaper()] {
        link::remove(netlink, &name).map_err(NetworkError::link("remove", &name))?;
    }
    Ok(())
}

/// Sets or takes off how fast a container may be; a kernel that cannot is told of.
fn set_rate(
    netlink: &mut Netlink,
    cable: &link::Link,
    endpoint: &Endpoint,
) -> Result<Vec<Shortfall>, NetworkError> {
    let shaper = endpoint.id.shaper();
    let unlimited = |netlink: &mut Netlink| {
        shape::unlimit(netlink, cable, &shaper)
            .map_err(NetworkError::link("take the limit off", &cable.name))
    };
    let Some(rate) = endpoint.rate else { return unlimited(netlink).map(|()| Vec::new()) };
    match shape::limit(netlink, cable, &shaper, rate) {
        Ok(()) => Ok(Vec::new()),
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EOPNOTSUPP)) => {
            unlimited(netlink)?;
            Ok(vec![Shortfall {
                key: "limits.network",
                holds: Holds::NotAtAll,
                why: format!(
                    "this kernel lacks sch_tbf, cls_u32, act_mirred or ifb ({error}); load them"
                ),
            }])
        }
        Err(error) => Err(NetworkError::link("limit", &cable.name)(error)),
    }
}
