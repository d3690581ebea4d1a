//! Root in a container sends what it likes; nobody hears what is not its own.

use std::collections::BTreeSet;
use std::io::Read;

use crate::lab::{Container, Lab, Server};
use crate::support::Succeed;

/// Sends every frame it can think of, and, last, one that is right.
const SENDER: &str = r#"
import os, socket, struct, sys
from ipaddress import ip_address as address
own, other, target = sys.argv[1:4]
mac = lambda text: bytes.fromhex(text.replace(":", ""))
(own_mac, own4, own6), (other_mac, other4, other6), (to_mac, to4, to6) = [
    (mac(m), address(a).packed, address(b).packed) for m, a, b in (text.split(",") for text in (own, other, target))]
gateway4, gateway6 = address("10.99.0.1").packed, address("fd4d:6963:6100::1").packed
local = lambda m: address("fe80::").packed[:8] + bytes([m[0] ^ 2]) + m[1:3] + b"\xff\xfe" + m[3:]

def checksum(data):
    total = sum(struct.unpack("!%dH" % (len(data) // 2), data))
    while total >> 16:
        total = (total & 0xffff) + (total >> 16)
    return ~total & 0xffff
def udp(name, port=1000):
    return struct.pack("!HHHH", port, 1000, 8 + len(name), 0) + name
def ip4(source, payload, protocol=17):
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(payload), 0, 0, 64, protocol, 0, source, to4)
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + payload
def ip6(source, payload, protocol=17):
    return struct.pack("!IHBB16s16s", 6 << 28, len(payload), protocol, 255, source, to6) + payload
def arp(operation, ether, sender, name):
    return struct.pack("!HHBBH6s4s6s4s", 1, 0x800, 6, 4, operation, ether, sender, to_mac, to4) + name
def icmp6(kind, body):
    return struct.pack("!BBHI", kind, 0, 0, 0x60000000) + body

frames = {
    "good-ip4": (own_mac, 0x800, ip4(own4, udp(b"<good-ip4>"))),
    "good-ip6": (own_mac, 0x86dd, ip6(own6, udp(b"<good-ip6>"))),
    "good-arp": (own_mac, 0x806, arp(2, own_mac, own4, b"<good-arp>")),
    "good-advert": (own_mac, 0x86dd, ip6(own6, icmp6(136, own6 + b"<good-advert>"), 58)),
    "good-local": (own_mac, 0x86dd, ip6(local(own_mac), udp(b"<good-local>"))),
    "ip4-neighbour": (own_mac, 0x800, ip4(other4, udp(b"<ip4-neighbour>"))),
    "ip4-host": (own_mac, 0x800, ip4(gateway4, udp(b"<ip4-host>"))),
    "ip4-world": (own_mac, 0x800, ip4(address("192.0.2.2").packed, udp(b"<ip4-world>"))),
    "ip4-loopback": (own_mac, 0x800, ip4(address("127.0.0.1").packed, udp(b"<ip4-loopback>"))),
    "dhcp-server": (own_mac, 0x800, ip4(own4, udp(b"<dhcp-server>", 67))),
    "mac-neighbour": (other_mac, 0x800, ip4(own4, udp(b"<mac-neighbour>"))),
    "arp-neighbour": (own_mac, 0x806, arp(2, own_mac, other4, b"<arp-neighbour>")),
    "arp-host": (own_mac, 0x806, arp(2, own_mac, gateway4, b"<arp-host>")),
    "arp-ask-as-host": (own_mac, 0x806, arp(1, own_mac, gateway4, b"<arp-ask-as-host>")),
    "arp-mac": (own_mac, 0x806, arp(2, other_mac, own4, b"<arp-mac>")),
    "ip6-neighbour": (own_mac, 0x86dd, ip6(other6, udp(b"<ip6-neighbour>"))),
    "ip6-host": (own_mac, 0x86dd, ip6(gateway6, udp(b"<ip6-host>"))),
    "ip6-local": (own_mac, 0x86dd, ip6(local(other_mac), udp(b"<ip6-local>"))),
    "advert-neighbour": (own_mac, 0x86dd, ip6(own6, icmp6(136, other6 + b"<advert-neighbour>"), 58)),
    "advert-host": (own_mac, 0x86dd, ip6(own6, icmp6(136, gateway6 + b"<advert-host>"), 58)),
    "advert-hopopts": (own_mac, 0x86dd, ip6(own6, b"\x3a\0\x01\x04\0\0\0\0" + icmp6(136, gateway6 + b"<advert-hopopts>"), 0)),
    "router-advert": (own_mac, 0x86dd, ip6(local(own_mac), icmp6(134, bytes(8) + b"<router-advert>"), 58)),
    "redirect": (own_mac, 0x86dd, ip6(local(own_mac), icmp6(137, bytes(32) + b"<redirect>"), 58)),
    "dhcp6-server": (own_mac, 0x86dd, ip6(own6, udp(b"<dhcp6-server>", 547))),
    "vlan": (own_mac, 0x8100, struct.pack("!HH", 5, 0x800) + ip4(other4, udp(b"<vlan>"))),
    "vlan-zero": (own_mac, 0x8100, struct.pack("!HH", 0, 0x800) + ip4(other4, udp(b"<vlan-zero>"))),
    "service-vlan": (own_mac, 0x88a8, struct.pack("!HH", 5, 0x800) + ip4(other4, udp(b"<service-vlan>"))),
    "unknown": (own_mac, 0x88b5, b"<unknown>"),
}
# Each processor has a queue of its own for what is sent on it: from one they arrive in order.
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
s.bind(("eth0", 0))
for name, (source, kind, body) in frames.items():
    s.send(to_mac + source + struct.pack("!H", kind) + body)
# A frame that bridges look at before any filter, in the neighbour's name.
s.send(bytes.fromhex("0180c200000e") + other_mac + struct.pack("!H", 0x88cc) + bytes(50))
s.send(to_mac + own_mac + struct.pack("!H", 0x800) + ip4(own4, udp(b"<last>")))
print("\n".join(frames))
"#;

/// Prints the name in every frame until the last.
const LISTENER: &str = r#"
import re, socket
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
s.bind(("eth0", 3))
print("ready", flush=True)
while True:
    found = re.search(rb"<([a-z0-9-]+)>", s.recv(2000))
    if found:
        if found[1] == b"last":
            break
        print(found[1].decode(), flush=True)
"#;

fn triple(container: &Container) -> String {
    let endpoint = &container.endpoint;
    format!("{},{},{}", endpoint.id.mac(), endpoint.v4[0], endpoint.v6[0])
}

/// What of all frames sent by `evil` in the name of `other` reaches `target`; and all there were.
fn heard(
    evil: &Container,
    other: &Container,
    target: &Container,
) -> (BTreeSet<String>, BTreeSet<String>) {
    let set = |text: String| text.lines().map(str::to_owned).collect::<BTreeSet<_>>();
    let mut listener = Server::start(target.place.command("python3").args(["-c", LISTENER]));
    let arguments = [triple(evil), triple(other), triple(target)];
    let sent = evil.place.command("python3").args(["-c", SENDER]).args(arguments).succeed();
    let mut said = String::new();
    listener.0.stdout.take().unwrap().read_to_string(&mut said).unwrap();
    (set(said), set(sent))
}

#[test]
fn only_frames_under_its_own_addresses_leave_a_container() {
    let lab = Lab::new();
    let (evil, other, target) = (lab.container(11), lab.container(12), lab.container(13));
    let (heard_with, sent) = heard(&evil, &other, &target);
    let good: BTreeSet<_> = sent.iter().filter(|name| name.starts_with("good")).cloned().collect();
    assert_eq!(good.len(), 5);
    assert_eq!(heard_with, good, "of {sent:?}");
    let fdb = lab.host.sh("bridge fdb show br lab0");
    let theirs = other.endpoint.id.mac().to_string();
    let at: Vec<_> = fdb.lines().filter(|line| line.starts_with(&theirs)).collect();
    assert!(at.iter().all(|line| line.contains(&other.endpoint.id.interface())), "{at:?}");
    assert!(!at.is_empty());

    // Without the rules nearly all of it arrives: it is they that keep it out.
    lab.host.sh("nft delete table bridge lab");
    let (heard_without, sent) = heard(&evil, &other, &target);
    let lost: BTreeSet<_> = sent.difference(&heard_without).cloned().collect();
    assert!(lost.len() <= 2, "arrive without a filter, or the test proves nothing: {lost:?}");
}

#[test]
fn taking_a_neighbours_addresses_takes_nothing_from_the_neighbour() {
    let lab = Lab::new();
    let (evil, other) = (lab.container(11), lab.container(12));
    let _server = other.place.serves(80);
    let _others = [evil.place.serves(80), lab.host.serves(8000), lab.world.serves(80)];
    evil.place.sh(
        "ip address add 10.99.0.12/16 dev eth0; ip address add fd4d:6963:6100::c/64 dev eth0 nodad",
    );
    assert_eq!(
        evil.place.asks("10.99.0.1:8000").as_deref(),
        Some("10.99.0.11"),
        "itself it may be"
    );
    lab.host.sh("ip neighbour flush dev lab0");
    assert_eq!(lab.host.asks("10.99.0.12").as_deref(), Some("10.99.0.1"));
    let neighbours = lab.host.sh("ip neighbour show dev lab0 10.99.0.12");
    assert!(neighbours.contains(&other.endpoint.id.mac().to_string()), "{neighbours}");
    let source = |limit: u32, address: &str, url: &str| {
        evil.place
            .can(&format!("curl --silent --max-time {limit} --interface {address} http://{url}/"))
    };
    let vain = |address: &str, url: &str| !source(2, address, url);
    assert!(source(300, "10.99.0.11", "192.0.2.2"));
    assert!(vain("10.99.0.12", "192.0.2.2") && vain("10.99.0.12", "10.99.0.1:8000"));
    // With the neighbour's hardware address too.
    let theirs = other.endpoint.id.mac();
    evil.place.sh(&format!(
        "ip link set eth0 down; ip link set eth0 address {theirs}; ip link set eth0 up"
    ));
    assert!(vain("10.99.0.12", "10.99.0.1:8000") && vain("10.99.0.11", "10.99.0.1:8000"));
    assert_eq!(lab.host.asks("10.99.0.12").as_deref(), Some("10.99.0.1"), "still the neighbour");
    assert_eq!(other.place.asks("10.99.0.1:8000").as_deref(), Some("10.99.0.12"));
}
