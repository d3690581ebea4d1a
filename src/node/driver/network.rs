//! Containers' places in the network: addresses, ports, names.
//!
//! The bridge is made when the first container that wants it is started or found running, and goes
//! with the last one: a host whose containers have no network is not touched.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use parking_lot::Mutex;

use super::ranges::Ranges;
use crate::container::config::{ContainerConfig, ContainerId, NetworkMode, Port, Volume};
use crate::container::network::{
    BitRate, BridgeConfig, Counters, Endpoint, EndpointId, Named, Namespace, Network, allocate_v4,
    allocate_v6, check_address, refresh_hosts, resolv_conf,
};
use crate::host::Store;
use crate::node::NodeError;
use crate::node::reasons::Reasons;
use crate::node::registry::{Places, Recorded};

/// One container in the network.
#[derive(Debug, Clone)]
struct Member {
    endpoint: Endpoint,
    named: Named,
    hosts: PathBuf,
}

/// The network, and who is in it.
#[derive(Debug)]
pub struct Connections {
    store: PathBuf,
    /// None until it is wanted: from then on this store has a range of its own.
    network: Mutex<Option<Network>>,
    members: Mutex<BTreeMap<ContainerId, Member>>,
}

impl Connections {
    /// The network of this store on this host; nothing is made yet.
    ///
    /// # Errors
    /// None yet: a network is made when it is needed.
    pub fn new(store: &Store) -> Result<Self, NodeError> {
        let store = store.path().to_owned();
        Ok(Self { store, network: Mutex::default(), members: Mutex::default() })
    }

    /// The network, with a range of this store's own.
    fn network(&self) -> Result<Network, NodeError> {
        let mut network = self.network.lock();
        if let Some(network) = &*network {
            return Ok(network.clone());
        }
        let ranges = Ranges::of_this_host()?;
        let config = ranges.claim(&self.store)?;
        let made = Network::new(config, ranges.state(), Namespace::current());
        Ok(network.insert(made).clone())
    }

    /// Addresses for a container beside `others`: those it names, and one of each family that it
    /// names none of. What keeps it from having them is one of `reasons` then; with any, none is
    /// chosen for it.
    pub(in crate::node) fn allocate(
        &self,
        config: &ContainerConfig,
        others: &[Recorded],
        reasons: &mut Reasons,
    ) -> Vec<IpAddr> {
        let unnamed = config.network.addresses.is_empty();
        if config.network.mode != NetworkMode::Bridge || (unnamed && !reasons.is_empty()) {
            return Vec::new();
        }
        let Some(network) = reasons.take(self.network()) else { return Vec::new() };
        let others = || others.iter().filter(|other| other.config.id != config.id);
        let taken: BTreeSet<IpAddr> =
            others().flat_map(|other| other.state.addresses.iter().copied()).collect();
        let ranges = network.config();
        let named = config.network.addresses.iter().map(|address| address.ip);
        for address in named.clone() {
            let checked = check_address(&ranges.v4, ranges.v6.as_ref(), address, &taken);
            reasons.take(checked.map_err(NodeError::from));
        }
        if !reasons.is_empty() {
            return Vec::new();
        }
        let chosen =
            Self::complete(ranges, named.collect(), &taken, || NodeError::unless_known(others()));
        reasons.take(chosen).unwrap_or_default()
    }

    /// `addresses`, and one of each family that none of them is of.
    fn complete(
        ranges: &BridgeConfig,
        mut addresses: Vec<IpAddr>,
        taken: &BTreeSet<IpAddr>,
        all_known: impl Fn() -> Result<(), NodeError>,
    ) -> Result<Vec<IpAddr>, NodeError> {
        if !addresses.iter().any(IpAddr::is_ipv4) {
            all_known()?;
            addresses.push(allocate_v4(&ranges.v4, taken)?.into());
        }
        if let Some(v6) = &ranges.v6
            && !addresses.iter().any(IpAddr::is_ipv6)
        {
            all_known()?;
            addresses.push(allocate_v6(v6, taken)?.into());
        }
        Ok(addresses)
    }

    /// The addresses of a container whose settings changed: what it has stays, as far as it can.
    /// Otherwise as [`Connections::allocate`].
    pub(in crate::node) fn reallocate(
        &self,
        changed: &Recorded,
        others: &[Recorded],
        reasons: &mut Reasons,
    ) -> Vec<IpAddr> {
        let named: Vec<IpAddr> =
            changed.config.network.addresses.iter().map(|address| address.ip).collect();
        let has = &changed.state.addresses;
        let bridged = changed.config.network.mode == NetworkMode::Bridge;
        let kept = bridged && !has.is_empty() && named.iter().all(|one| has.contains(one));
        let surplus = !named.is_empty()
            && has.iter().any(|one| {
                !named.contains(one) && named.iter().any(|named| named.is_ipv4() == one.is_ipv4())
            });
        if kept && !surplus {
            return has.clone();
        }
        self.allocate(&changed.config, others, reasons)
    }

    /// Why each of `ports` that `config` could not publish now could not, whatever containers of this
    /// store have: programs of the host, and containers of other stores.
    pub(in crate::node) fn unpublishable(
        &self,
        config: &ContainerConfig,
        ports: &[Port],
    ) -> Vec<NodeError> {
        if config.network.mode != NetworkMode::Bridge || ports.is_empty() {
            return Vec::new();
        }
        match self.network() {
            Ok(network) => {
                network.unpublishable(ports).into_iter().map(NodeError::Network).collect()
            }
            Err(error) => vec![error],
        }
    }

    /// Which other container that is connected publishes `port`, or a part of it.
    pub(super) fn publisher(&self, port: &Port, own: &ContainerId) -> Option<ContainerId> {
        let members = self.members.lock();
        let publishes =
            |member: &Member| member.endpoint.published.iter().any(|its| its.collides(port));
        let mut others = members.iter().filter(|(id, _)| *id != own);
        others.find(|(_, member)| publishes(member)).map(|(id, _)| id.clone())
    }

    fn member(recorded: &Recorded, places: &Places) -> Result<Option<Member>, NodeError> {
        let config = &recorded.config;
        if config.network.mode != NetworkMode::Bridge {
            return Ok(None);
        }
        let addresses = &recorded.state.addresses;
        let v4: Vec<Ipv4Addr> = addresses
            .iter()
            .filter_map(|one| match one {
                IpAddr::V4(one) => Some(*one),
                IpAddr::V6(_) => None,
            })
            .collect();
        let v6: Vec<Ipv6Addr> = addresses
            .iter()
            .filter_map(|one| match one {
                IpAddr::V6(one) => Some(*one),
                IpAddr::V4(_) => None,
            })
            .collect();
        let endpoint = Endpoint {
            id: EndpointId::of(config.id.as_str())?,
            v4,
            v6,
            published: config.network.ports.clone(),
            rate: config.limits.network_bits_per_s.and_then(BitRate::from_bits_per_s),
        };
        let mut names = vec![config.name.to_string()];
        if config.hostname() != config.name.as_str() {
            names.push(config.hostname().to_owned());
        }
        let named = Named { names, addresses: addresses.clone() };
        Ok(Some(Member { endpoint, named, hosts: places.hosts() }))
    }

    /// Writes what a container that is about to start sees as its `/etc/hosts`, `/etc/hostname` and
    /// `/etc/resolv.conf`; answers where they go. Who has the host's network has the host's files.
    pub(super) fn files(
        &self,
        recorded: &Recorded,
        places: &Places,
    ) -> Result<Vec<Volume>, NodeError> {
        let directory = places.hosts();
        let directory = directory.parent().unwrap_or(Path::new("/"));
        fs::create_dir_all(directory).map_err(NodeError::system("make", directory))?;
        let own = Self::member(recorded, places)?.map_or_else(
            || Named { names: vec![recorded.config.hostname().to_owned()], addresses: Vec::new() },
            |member| member.named,
        );
        let others: Vec<Named> =
            self.members.lock().values().map(|member| member.named.clone()).collect();
        let hosts = places.hosts();
        refresh_hosts(&hosts, &own, &others)?;
        let resolv = places.resolv_conf();
        write_resolv_conf(&recorded.config, &resolv)?;
        // systemd goes by this file, and a template often has the name of the host it was made on.
        let hostname = places.hostname();
        fs::write(&hostname, format!("{}\n", recorded.config.hostname()))
            .map_err(NodeError::system("write", &hostname))?;
        let volume = |source: PathBuf, target: &str| Volume {
            source,
            target: target.into(),
            read_only: false,
        };
        Ok(vec![
            volume(hosts, "/etc/hosts"),
            volume(resolv, "/etc/resolv.conf"),
            volume(hostname, "/etc/hostname"),
        ])
    }

    /// Connects a container whose processes are not started yet.
    pub(super) fn connect(
        &self,
        recorded: &Recorded,
        places: &Places,
        init: u32,
    ) -> Result<(), NodeError> {
        let Some(member) = Self::member(recorded, places)? else { return Ok(()) };
        let network = self.network()?;
        let mut members = self.members.lock();
        if members.is_empty() {
            network.ensure(&[])?;
        }
        let namespace = Namespace::at(&PathBuf::from(format!("/proc/{init}/ns/net")))?;
        let attached = network.attach(&member.endpoint, &namespace);
        let short = match attached {
            Ok(short) => short,
            Err(error) => {
                if members.is_empty() {
                    network.remove()?;
                }
                return Err(error.into());
            }
        };
        for short in short {
            tracing::warn!(container = %recorded.config.name, key = short.key, why = %short.why, "a limit does not hold");
        }
        members.insert(recorded.config.id.clone(), member);
        refresh(&members);
        Ok(())
    }

    /// Knows containers that are connected already, after the daemon was away, all at once: what is
    /// left of any other goes.
    ///
    /// # Errors
    /// What the kernel or nft refuses.
    pub fn adopt(&self, running: &[(Recorded, Places)]) -> Result<(), NodeError> {
        let mut found = BTreeMap::new();
        for (recorded, places) in running {
            if let Some(member) = Self::member(recorded, places)? {
                found.insert(recorded.config.id.clone(), member);
            }
        }
        let mut members = self.members.lock();
        if found.is_empty() {
            // Told to the others before one of them takes what this store's containers have.
            if Ranges::is_kept(&self.store)?
                && let Err(error) = self.network()
            {
                tracing::warn!(error = %crate::host::sentence(&error), "containers get no network");
            }
        } else {
            let endpoints: Vec<Endpoint> =
                found.values().map(|member| member.endpoint.clone()).collect();
            self.network()?.ensure(&endpoints)?;
        }
        *members = found;
        refresh(&members);
        Ok(())
    }

    /// Brings a running container's addresses, ports, rate and names up to date. Answers what does
    /// not hold.
    pub(super) fn follow(
        &self,
        changed: &Recorded,
        places: &Places,
        init: Option<u32>,
    ) -> Result<Vec<(&'static str, String)>, NodeError> {
        write_resolv_conf(&changed.config, &places.resolv_conf())?;
        let Some(member) = Self::member(changed, places)? else { return Ok(Vec::new()) };
        let mut members = self.members.lock();
        let short = match (members.get(&changed.config.id), init) {
            (Some(now), Some(init))
                if (&now.endpoint.v4, &now.endpoint.v6)
                    != (&member.endpoint.v4, &member.endpoint.v6) =>
            {
                // Another cable in the place of this one, with the new addresses.
                let namespace = Namespace::at(&PathBuf::from(format!("/proc/{init}/ns/net")))?;
                self.network()?.attach(&member.endpoint, &namespace)?
            }
            (Some(now), _) if now.endpoint != member.endpoint => {
                self.network()?.update(&member.endpoint)?
            }
            // A container whose network is that of its next start.
            (None, _) => return Ok(Vec::new()),
            (Some(_), _) => Vec::new(),
        };
        members.insert(changed.config.id.clone(), member);
        refresh(&members);
        Ok(short.into_iter().map(|short| (short.key, short.why)).collect())
    }

    /// Takes a container out of the network; not in it is fine.
    pub(super) fn disconnect(&self, recorded: &Recorded, places: &Places) -> Result<(), NodeError> {
        let Some(described) = Self::member(recorded, places)? else { return Ok(()) };
        let mut members = self.members.lock();
        let member = members.remove(&recorded.config.id);
        let was = member.is_some();
        if was || recorded.state.phase.is_up() {
            self.network()?.detach(&member.unwrap_or(described).endpoint)?;
        }
        if was && members.is_empty() {
            self.network()?.remove()?;
        }
        refresh(&members);
        Ok(())
    }

    /// What went through a container's interface; none when it has none of its own.
    ///
    /// # Errors
    /// What the kernel refuses.
    pub fn counters(&self, id: &ContainerId) -> Result<Option<Counters>, NodeError> {
        if !self.members.lock().contains_key(id) {
            return Ok(None);
        }
        Ok(self.network()?.counters(&EndpointId::of(id.as_str())?)?)
    }
}

/// Writes what a container asks about names, in place: the file is mounted into it.
fn write_resolv_conf(config: &ContainerConfig, path: &Path) -> Result<(), NodeError> {
    let network = &config.network;
    let mut text = match network.mode {
        NetworkMode::Host => fs::read_to_string("/etc/resolv.conf").unwrap_or_default(),
        NetworkMode::None => String::new(),
        NetworkMode::Bridge => resolv_conf(Path::new("/"), &network.nameservers),
    };
    if !network.search.is_empty() {
        text.push_str(&format!("search {}\n", network.search.join(" ")));
    }
    fs::write(path, text).map_err(NodeError::system("write", path))
}

/// Tells every container the names of the others.
fn refresh(members: &BTreeMap<ContainerId, Member>) {
    for (id, member) in members {
        let others = members.iter().filter(|(other, _)| *other != id);
        let others: Vec<Named> = others.map(|(_, member)| member.named.clone()).collect();
        if let Err(error) = refresh_hosts(&member.hosts, &member.named, &others) {
            tracing::warn!(container = %id, %error, "its hosts file is not up to date");
        }
    }
}
