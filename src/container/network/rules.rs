//! The rules of a network, as `nft` reads them. Pure text.
//!
//! Two tables carry the network's name, and nothing is ever written outside them. `inet` leads
//! published ports to containers and hides containers behind the host's addresses. `bridge` holds
//! every container to its own addresses, frame by frame, before the bridge has looked at one.
//! What belongs to one container is marked with its interface's name, so it is found again.

use std::net::IpAddr;

use super::{BridgeConfig, Endpoint};
use crate::container::config::Port;

/// Maps of published ports: on every address of the host, and on one.
const MAPS: [(&str, &str, &str); 4] = [
    ("any4", "inet_proto . inet_service", "ipv4_addr . inet_service"),
    ("any6", "inet_proto . inet_service", "ipv6_addr . inet_service"),
    ("one4", "ipv4_addr . inet_proto . inet_service", "ipv4_addr . inet_service"),
    ("one6", "ipv6_addr . inet_proto . inet_service", "ipv6_addr . inet_service"),
];

/// Takes both tables away, there or not.
pub(super) fn removal(config: &BridgeConfig) -> String {
    let name = config.name.as_str();
    // A table that is not there cannot be deleted: make it first. One transaction, so no moment.
    ["inet", "bridge"]
        .map(|family| format!("add table {family} {name}\ndelete table {family} {name}\n"))
        .concat()
}

/// Both tables from nothing, without any container.
pub(super) fn tables(config: &BridgeConfig) -> String {
    let (name, bridge) = (config.name.as_str(), config.name.bridge());
    let v4 = config.v4.trunc();
    let maps = MAPS.map(|(map, key, value)| format!("  map {map} {{ type {key} : {value}; }}\n"));
    let mut hidden = format!(
        "    oifname \"{bridge}\" ip saddr {v4} ct status dnat masquerade\n    \
         oifname \"{bridge}\" ip saddr 127.0.0.0/8 masquerade\n    \
         oifname != \"{bridge}\" ip saddr {v4} masquerade\n"
    );
    if let Some(v6) = config.v6.map(|v6| v6.trunc()) {
        hidden += &format!(
            "    oifname \"{bridge}\" ip6 saddr {v6} ct status dnat masquerade\n    \
             oifname != \"{bridge}\" ip6 saddr {v6} masquerade\n"
        );
    }
    // A published port is answered on the host's own addresses only. Loopback of IPv6 cannot be
    // sent out of an interface, whatever is done to it.
    let published = "\
    dnat ip to ip daddr . meta l4proto . th dport map @one4
    dnat ip to meta l4proto . th dport map @any4
    ip6 daddr ::1 return
    dnat ip6 to ip6 daddr . meta l4proto . th dport map @one6
    dnat ip6 to meta l4proto . th dport map @any6
";
    format!(
        "table inet {name} {{
{maps}  chain published {{
{published}  }}
  chain arriving {{
    type nat hook prerouting priority dstnat; policy accept;
    fib daddr type local jump published
  }}
  chain leaving {{
    type nat hook output priority -100; policy accept;
    fib daddr type local jump published
  }}
  chain hidden {{
    type nat hook postrouting priority srcnat; policy accept;
{hidden}  }}
  chain loopback {{
    type filter hook prerouting priority raw; policy accept;
    iifname \"{bridge}\" ip daddr 127.0.0.0/8 drop
  }}
  chain inward {{
    type filter hook forward priority filter; policy accept;
    oifname != \"{bridge}\" accept
    iifname \"{bridge}\" accept
    ct state established,related accept
    ct status dnat accept
    drop
  }}
}}
table bridge {name} {{
  map senders {{ type ifname : verdict; }}
  chain sent {{
    type filter hook prerouting priority -300; policy accept;
    iifname vmap @senders
  }}
}}
",
        maps = maps.concat(),
    )
}

/// What one container adds.
pub(super) fn of_endpoint(config: &BridgeConfig, endpoint: &Endpoint) -> String {
    let (name, interface) = (config.name.as_str(), endpoint.id.interface());
    // Refused if something is left of it: rules must not be added to others.
    let mut text = format!("create chain bridge {name} {interface}\n");
    for rule in sender(endpoint) {
        text += &format!("add rule bridge {name} {interface} {rule}\n");
    }
    text += &format!(
        "add element bridge {name} senders {{ \"{interface}\" comment \"{interface}\" : goto {interface} }}\n"
    );
    for published in &endpoint.published {
        for (map, key, value) in elements(endpoint, published) {
            text += &format!(
                "add element inet {name} {map} {{ {key} comment \"{interface}\" : {value} }}\n"
            );
        }
    }
    text
}

/// Takes away what [`of_endpoint`] added; refused if any of it is missing.
pub(super) fn without_endpoint(config: &BridgeConfig, endpoint: &Endpoint) -> String {
    let (name, interface) = (config.name.as_str(), endpoint.id.interface());
    let mut text = format!("delete element bridge {name} senders {{ \"{interface}\" }}\n");
    for published in &endpoint.published {
        for (map, key, _) in elements(endpoint, published) {
            text += &format!("delete element inet {name} {map} {{ {key} }}\n");
        }
    }
    text += &format!("flush chain bridge {name} {interface}\n");
    text += &format!("delete chain bridge {name} {interface}\n");
    text
}

/// What a container may send, as rules of its own chain.
fn sender(endpoint: &Endpoint) -> Vec<String> {
    let mac = endpoint.id.mac();
    let list = |addresses: &[String]| format!("{{ {} }}", addresses.join(", "));
    let v4: Vec<String> = endpoint.v4.iter().map(ToString::to_string).collect();
    let local = mac.link_local();
    let v6: Vec<String> = endpoint.v6.iter().chain([&local]).map(ToString::to_string).collect();
    let mut rules = vec![
        format!("ether saddr != {mac} drop"),
        "ether type != { arp, ip, ip6 } drop".to_owned(),
    ];
    if !endpoint.v4.is_empty() {
        // 0.0.0.0 asks whether an address is free.
        let asking: Vec<String> = v4.iter().cloned().chain(["0.0.0.0".to_owned()]).collect();
        rules.push(format!(
            "ether type arp arp saddr ether {mac} arp saddr ip {} accept",
            list(&asking)
        ));
        // Nobody but the host tells others their addresses.
        rules.push("ether type ip udp sport 67 drop".to_owned());
        rules.push(format!("ether type ip ip saddr {} accept", list(&v4)));
    }
    if !endpoint.v6.is_empty() {
        rules.push("ether type ip6 icmpv6 type { nd-router-advert, nd-redirect } drop".to_owned());
        rules.push("ether type ip6 udp sport 547 drop".to_owned());
        // Whose address is advertised stands after the 8 bytes of the ICMP header (RFC 4861, 4.4).
        let own = endpoint.v6.iter().chain([&local]);
        let own: Vec<String> = own.map(|address| format!("0x{:032x}", address.to_bits())).collect();
        rules.push(format!(
            "ether type ip6 icmpv6 type nd-neighbor-advert @th,64,128 != {} drop",
            list(&own)
        ));
        let asking: Vec<String> = v6.iter().cloned().chain(["::".to_owned()]).collect();
        rules.push(format!("ether type ip6 ip6 saddr {} accept", list(&asking)));
    }
    rules.push("drop".to_owned());
    rules
}

/// The elements that lead a published port to a container: map, key and value of each.
fn elements(endpoint: &Endpoint, published: &Port) -> Vec<(&'static str, String, String)> {
    let service = format!("{} . {}", published.protocol.text(), published.host);
    let v4 = endpoint.v4.first().map(|address| format!("{address} . {}", published.container));
    let v6 = endpoint.v6.first().map(|address| format!("{address} . {}", published.container));
    match published.host_ip.filter(|host| !host.is_unspecified()) {
        None => {
            let v4 = v4.map(|value| ("any4", service.clone(), value));
            let v6 = v6.map(|value| ("any6", service.clone(), value));
            v4.into_iter().chain(v6).collect()
        }
        Some(host) => {
            let key = format!("{host} . {service}");
            let (map, value) = match host {
                IpAddr::V4(_) => ("one4", v4),
                IpAddr::V6(_) => ("one6", v6),
            };
            value.map(|value| (map, key, value)).into_iter().collect()
        }
    }
}

/// What stands in a network's tables for one container: what `listing`, the answers of
/// `nft --json list table`, shows marked with `interface`, as the orders that delete it.
pub(super) fn deletion(
    config: &BridgeConfig,
    listing: &serde_json::Value,
    interface: &str,
) -> String {
    let name = config.name.as_str();
    let mut text = String::new();
    for (map, key, owner) in marked(listing) {
        if owner == interface {
            let family = if map == "senders" { "bridge" } else { "inet" };
            text += &format!("delete element {family} {name} {map} {{ {key} }}\n");
        }
    }
    let chains = objects(listing).filter_map(|object| object.get("chain")?.get("name")?.as_str());
    if chains.into_iter().any(|chain| chain == interface) {
        text += &format!("flush chain bridge {name} {interface}\n");
        text += &format!("delete chain bridge {name} {interface}\n");
    }
    text
}

/// Whether the tables lead `port` to the container behind `interface` already.
pub(super) fn leads(listing: &serde_json::Value, interface: &str, port: &Port) -> bool {
    let service = format!("{} . {}", port.protocol.text(), port.host);
    let key = match port.host_ip.filter(|host| !host.is_unspecified()) {
        Some(host) => format!("{host} . {service}"),
        None => service,
    };
    marked(listing).any(|(_, known, owner)| owner == interface && known == key)
}

/// The interface of a container that the tables lead `port`, or a part of it, to.
pub(super) fn publisher(listing: &serde_json::Value, port: &Port) -> Option<String> {
    let service = format!("{} . {}", port.protocol.text(), port.host);
    let host = port.host_ip.filter(|host| !host.is_unspecified());
    let leads = |known: &str| match host {
        Some(host) => known == service || known == format!("{host} . {service}"),
        None => known == service || known.ends_with(&format!(" . {service}")),
    };
    marked(listing).find(|(_, known, _)| leads(known)).map(|(_, _, owner)| owner)
}

/// Every container that has something in the tables, by its interface.
pub(super) fn owners(listing: &serde_json::Value) -> std::collections::BTreeSet<String> {
    marked(listing).map(|(_, _, owner)| owner).collect()
}

fn objects(listing: &serde_json::Value) -> impl Iterator<Item = &serde_json::Value> {
    listing.get("nftables").and_then(serde_json::Value::as_array).into_iter().flatten()
}

/// The marked elements of all maps: map, key, mark.
fn marked(listing: &serde_json::Value) -> impl Iterator<Item = (String, String, String)> {
    let elements = |object: &serde_json::Value| {
        let map = object.get("map")?;
        let name = map.get("name")?.as_str()?.to_owned();
        let elements = map.get("elem")?.as_array()?.clone();
        Some(elements.into_iter().filter_map(move |pair| {
            let element = pair.get(0)?.get("elem")?;
            let mark = element.get("comment")?.as_str()?.to_owned();
            Some((name.clone(), key(element.get("val")?)?, mark))
        }))
    };
    objects(listing).filter_map(elements).flatten()
}

/// A key as `nft` prints it, as `nft` reads it.
fn key(value: &serde_json::Value) -> Option<String> {
    if let Some(parts) = value.get("concat") {
        let parts: Option<Vec<String>> = parts.as_array()?.iter().map(key).collect();
        return Some(parts?.join(" . "));
    }
    if let Some(number) = value.as_u64() {
        return Some(number.to_string());
    }
    let text = value.as_str()?;
    Some(if text.starts_with("mv") { format!("\"{text}\"") } else { text.to_owned() })
}
