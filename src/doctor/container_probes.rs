//! What the host can do for containers: groups of processes, a network.

use std::io;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::time::Duration;

use super::{Capability, Finding};
use crate::container::cgroup::{
    Cgroup, CgroupError, CpuQuota, Disk, Holds, IoLimit, Layout, Limits, Shortfall,
};
use crate::container::network::{
    BitRate, BridgeConfig, Endpoint, EndpointId, Namespace, Network, NetworkError,
};

pub(super) fn try_all(scratch: &Path) -> Vec<Finding> {
    let network = network(scratch);
    let rates = match &network {
        Ok(shortfalls) => match shortfalls.first() {
            None => Ok("a token bucket was set each way".to_owned()),
            Some(short) => Err(io::Error::other(short.why.clone())),
        },
        Err(_) => Err(io::Error::other("there is no network to limit")),
    };
    let network = network
        .map(|_| "a connection over a bridge, with rules of our own".to_owned())
        .map_err(|error| io::Error::other(crate::host::sentence(&error)));
    vec![
        Capability::Cgroups.tried(cgroups(scratch)),
        Capability::ContainerNetwork.tried(network),
        Capability::NetworkRates.tried(rates),
    ]
}

/// Limits an empty group in every way, freezes it and removes it.
fn cgroups(scratch: &Path) -> io::Result<String> {
    let failed = |error: CgroupError| io::Error::other(crate::host::sentence(&error));
    let layout = Layout::detect().map_err(failed)?;
    let path = format!("mica-doctor-{}/trial", std::process::id()).parse().map_err(failed)?;
    let group = Cgroup::open(&layout, path);
    let tried = limit(&layout, &group, scratch);
    let removed = group.remove().and_then(|()| group.remove_empty_parents());
    let shortfalls = tried.map_err(failed)?;
    removed.map_err(failed)?;
    let keys = |holds| {
        let found = shortfalls.iter().filter(|short| short.holds == holds);
        found.map(|short| short.key).collect::<Vec<_>>().join(", ")
    };
    let (missing, in_part) = (keys(Holds::NotAtAll), keys(Holds::InPart));
    let kind = layout.kind();
    match (missing.as_str(), in_part.as_str()) {
        ("", "") => Ok(format!("{kind}: every limit was set")),
        ("", some) => Ok(format!("{kind}: every limit was set; {some} holds in part")),
        (none, _) => Err(io::Error::other(format!("{kind}: {none} cannot be held"))),
    }
}

fn limit(layout: &Layout, group: &Cgroup, scratch: &Path) -> Result<Vec<Shortfall>, CgroupError> {
    let group = Cgroup::create(layout, group.path().clone())?;
    let io = Disk::beneath(scratch)?;
    let shortfalls = group.apply(&Limits {
        memory_bytes: Some(64 << 20),
        swap_bytes: Some(0),
        memory_guarantee_bytes: Some(1 << 20),
        cpu_quota: Some(CpuQuota::from_thousandths(500)?),
        cpu_set: Some("0".parse()?),
        pids: Some(10),
        io: io.map(|disk| IoLimit { disk, bytes_per_s: Some(1 << 20), requests_per_s: None }),
        ..Limits::default()
    })?;
    group.freeze()?;
    group.thaw()?;
    Ok(shortfalls)
}

/// Makes a network in a namespace of its own and sends something over it.
fn network(scratch: &Path) -> Result<Vec<Shortfall>, NetworkError> {
    let (host, container) = (Namespace::fresh()?, Namespace::fresh()?);
    let config = BridgeConfig::standard();
    let (gateway, _) = config.gateways();
    let endpoint = Endpoint {
        id: EndpointId::of("d0c7042d0c70")?,
        v4: vec![crate::container::network::allocate_v4(&config.v4, &[gateway.into()].into())?],
        v6: Vec::new(),
        published: Vec::new(),
        rate: BitRate::from_bits_per_s(100_000_000),
    };
    let network = Network::new(config, scratch, host.clone());
    network.ensure(&[])?;
    let shortfalls = network.attach(&endpoint, &container)?;
    let unheard = |source| NetworkError::Link {
        what: "send anything over",
        interface: endpoint.id.interface(),
        source,
    };
    let listener = host.run(|| TcpListener::bind((gateway, 0)))?.map_err(unheard)?;
    let address = listener.local_addr().map_err(unheard)?;
    let patience = Duration::from_secs(5);
    let connect = || TcpStream::connect_timeout(&address, patience).map(drop);
    container.run(connect)?.map_err(unheard)?;
    network.remove()?;
    Ok(shortfalls)
}
