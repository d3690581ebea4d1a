//! Containers among themselves, with the host and with the world; ports, rates and the end.

use std::io::{Read, Write};
use std::process::Stdio;
use std::time::Instant;

use mica::container::network::{BitRate, Named, Namespace, Network, NetworkError, refresh_hosts};

use crate::lab::{Lab, Place, Server, config, endpoint};
use crate::support::{PATIENCE, Succeed, again_until};

#[test]
fn containers_reach_each_other_the_host_and_the_world() {
    let lab = Lab::new();
    let (one, two) = (lab.container(11), lab.container(12));
    let _servers = [one.place.serves(80), lab.host.serves(8000), lab.world.serves(80)];
    let who = |address: &str| two.place.asks(address);
    assert_eq!(who(&one.v4().to_string()).as_deref(), Some("10.99.0.12"));
    assert_eq!(who(&one.v6()).as_deref(), Some("fd4d:6963:6100::c"));
    assert_eq!(who("10.99.0.1:8000").as_deref(), Some("10.99.0.12"), "the host sees who asks");
    // The world sees the host.
    assert_eq!(who("192.0.2.2").as_deref(), Some("192.0.2.1"));
    assert_eq!(who("[2001:db8::2]").as_deref(), Some("2001:db8::1"));
    assert_eq!(lab.host.asks("10.99.0.11").as_deref(), Some("10.99.0.1"));
    // What is not published is nobody's outside, also of who knows the way.
    lab.world.sh(
        "ip route add 10.99.0.0/16 via 192.0.2.1; ip route add fd4d:6963:6100::/64 via 2001:db8::1",
    );
    assert!(lab.world.asks_in_vain("10.99.0.11"));
    assert!(lab.world.asks_in_vain(&one.v6()));
}

#[test]
fn names_resolve_through_a_hosts_file_kept_current() {
    let lab = Lab::new();
    let (one, two) = (lab.container(11), lab.container(12));
    let _server = one.place.serves(80);
    let hosts = lab.scratch.path().join("hosts");
    let named = |name: &str, number: u8| Named {
        names: vec![name.to_owned()],
        addresses: endpoint(number).v4.into_iter().map(Into::into).collect(),
    };
    refresh_hosts(&hosts, &named("web2", 12), &[]).unwrap();
    let mut shell = two.place.command("unshare");
    let script = format!(
        "mount --bind {} /etc/hosts; echo ready; read go; curl --silent --max-time 300 http://db1/",
        hosts.display()
    );
    let mut shell = shell
        .args(["--mount", "sh", "-ec", &script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .start();
    let (mut stdin, mut stdout) = (shell.stdin.take().unwrap(), shell.stdout.take().unwrap());
    let mut ready = [0; 6];
    stdout.read_exact(&mut ready).unwrap();
    // The neighbour starts only now; the file is mounted already.
    refresh_hosts(&hosts, &named("web2", 12), &[named("db1", 11)]).unwrap();
    stdin.write_all(b"\n").unwrap();
    let mut said = String::new();
    stdout.read_to_string(&mut said).unwrap();
    shell.wait().unwrap();
    assert_eq!(said, "10.99.0.12");
}

#[test]
fn published_ports_lead_in_live_from_everywhere_and_only_there() {
    let lab = Lab::new();
    let (mut one, two) = (lab.container(11), lab.container(12));
    let _server = one.place.serves(80);
    assert!(lab.world.asks_in_vain("192.0.2.1:8080"));
    let ports = |ports: &[&str]| ports.iter().map(|port| port.parse().unwrap()).collect();
    one.endpoint.published = ports(&["8080:80", "127.0.0.1:9090:80"]);
    assert_eq!(lab.network.update(&one.endpoint).unwrap(), []);
    assert_eq!(lab.world.asks("192.0.2.1:8080").as_deref(), Some("192.0.2.2"), "its own address");
    assert_eq!(lab.world.asks("[2001:db8::1]:8080").as_deref(), Some("2001:db8::2"));
    assert!(lab.host.asks("127.0.0.1:8080").is_some());
    assert!(lab.host.asks("127.0.0.1:9090").is_some());
    assert!(lab.host.asks("192.0.2.1:8080").is_some());
    assert!(lab.world.asks_in_vain("192.0.2.1:9090"), "published on the loopback only");
    assert!(two.place.asks("192.0.2.1:8080").is_some(), "a neighbour, by way of the host");
    assert!(one.place.asks("192.0.2.1:8080").is_some(), "itself, by way of the host");
    // Somebody's loopback stays that somebody's.
    let _on_loopback = lab.host.serves(7000);
    two.place.sh("ip route add 127.0.0.9/32 via 10.99.0.1 dev eth0 table main || true");
    assert!(two.place.asks_in_vain("127.0.0.9:7000"));

    // One that is taken by a neighbour, and one by a program of the host.
    let mut other = two.endpoint.clone();
    other.published = ports(&["8080:81"]);
    let refused = lab.network.update(&other).unwrap_err();
    assert!(matches!(refused, NetworkError::PortTaken { .. }), "{refused}");
    assert!(refused.to_string().contains("8080/tcp"), "{refused}");
    other.published = ports(&["81:81", "7000:81"]);
    let refused = lab.network.update(&other).unwrap_err();
    assert!(matches!(refused, NetworkError::PortInUse { .. }), "{refused}");
    assert!(refused.to_string().contains("7000/tcp"), "{refused}");
    assert!(refused.to_string().contains("python3 (process "), "{refused}");
    assert!(lab.world.asks("192.0.2.1:8080").is_some(), "a refusal changes nothing");

    one.endpoint.published = ports(&["8081:80"]);
    assert_eq!(lab.network.update(&one.endpoint).unwrap(), []);
    assert!(lab.world.asks_in_vain("192.0.2.1:8080"));
    assert!(lab.world.asks("192.0.2.1:8081").is_some());
    other.published = ports(&["8080:81"]);
    assert_eq!(lab.network.update(&other).unwrap(), [], "it is free now");
    lab.network.detach(&one.endpoint).unwrap();
    assert!(lab.world.asks_in_vain("192.0.2.1:8081"));
    assert_eq!(lab.network.attached().unwrap().len(), 1);
}

#[test]
fn datagrams_are_published_too() {
    let lab = Lab::new();
    let mut one = lab.container(11);
    one.endpoint.published = vec!["5353:53/udp".parse().unwrap()];
    lab.network.update(&one.endpoint).unwrap();
    let echo = "import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(('', 53))
print('ready', flush=True)
while True:
    text, who = s.recvfrom(100)
    s.sendto(b'heard ' + text, who)";
    let _server = Server::start(one.place.command("python3").args(["-c", echo]));
    let ask = "import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(300)
s.connect(('192.0.2.1', 5353))
s.send(b'this')
print(s.recv(100).decode())";
    assert_eq!(lab.world.command("python3").args(["-c", ask]).succeed(), "heard this\n");
}

/// Seconds that a transfer took, from curl's own clock.
fn seconds(place: &Place, arguments: &[&str]) -> f64 {
    let mut command = place.command("curl");
    command.args(["--silent", "--fail", "--output", "/dev/null", "--write-out", "%{time_total}"]);
    command.args(arguments).succeed().parse().unwrap()
}

#[test]
fn a_rate_holds_both_ways_is_changed_live_and_what_went_through_is_counted() {
    let lab = Lab::new();
    let (mut one, two) = (lab.container(11), lab.container(12));
    let data = lab.scratch.path().join("data");
    let _server = one.place.serves(80);
    let url = format!("http://{}/", one.v4());
    // What the container sends, and what it receives.
    let both_ways = |bytes: u64| {
        std::fs::write(&data, vec![7; usize::try_from(bytes).unwrap()]).unwrap();
        let posted = format!("@{}", data.display());
        let sent = seconds(&two.place, &[&format!("{url}{bytes}")]);
        let post = ["--header", "Expect:", "--data-binary", &posted, &url];
        [("sent", sent), ("received", seconds(&two.place, &post))]
    };
    // What each rate lets through in 1.6 s would take the one before it ten times as long: no
    // machine is too busy to tell them apart.
    let steps = [(Some(2_000_000), 400_000), (Some(20_000_000), 4_000_000), (None, 40_000_000)];
    for (rate, bytes) in steps {
        one.endpoint.rate = rate.and_then(BitRate::from_bits_per_s);
        assert_eq!(lab.network.update(&one.endpoint).unwrap(), []);
        let least = if rate.is_some() { 1.6 * 0.9 } else { 0.0 };
        for (way, took) in both_ways(bytes) {
            assert!((least..8.0).contains(&took), "{way} {bytes} in {took} s at {rate:?}");
        }
    }
    assert!(!lab.host.sh("ip link").contains("ifb"), "the devices for it are gone");

    let counters = lab.network.counters(&one.endpoint.id).unwrap().unwrap();
    let all: u64 = steps.iter().map(|(_, bytes)| bytes).sum();
    let (least, most) = (all, all / 4 * 5);
    assert!((least..most).contains(&counters.sent_bytes), "{counters:?}");
    assert!((least..most).contains(&counters.received_bytes), "{counters:?}");
    assert_eq!(lab.network.counters(&endpoint(99).id).unwrap(), None);
}

/// All that the host's network is, but for numbers that only ever grow.
fn everything(host: &Place) -> String {
    host.sh("nft list ruleset
         ip -o link | sed 's/^[0-9]*: //; s/@if[0-9]*//; s/ qlen [0-9]*//'
         ip -o address | sed 's/^[0-9]*: //'
         ip route; ip -6 route; tc qdisc
         sysctl -a 2>/dev/null | grep -e forward -e accept_ra -e localnet")
}

#[test]
fn a_network_is_gone_without_a_trace_and_touches_nobody_elses_rules() {
    let host = Place::new();
    let scratch = crate::support::Scratch::new("cells");
    host.sh("ip link set lo up
         ip link add uplink type dummy || ip link add uplink type veth peer name other
         ip link set uplink up
         nft -f - <<'END'
table inet theirs {
  chain forward {
    type filter hook forward priority 0; policy accept;
    ip saddr 10.99.0.0/16 counter
  }
}
table ip nat {
  chain POSTROUTING {
    type nat hook postrouting priority 100; policy accept;
    oifname \"elsewhere\" masquerade
  }
}
END");
    // The kernel looks in its own time whether anybody else has a new address of IPv6.
    again_until("addresses are in use", || !host.sh("ip address").contains("tentative"));
    let before = everything(&host);
    let network = Network::new(config(), &scratch.directory("state"), host.namespace());
    let (a, b) = (Place::new(), Place::new());
    network.ensure(&[]).unwrap();
    let (mut one, two) = (endpoint(11), endpoint(12));
    one.published = vec!["8080:80".parse().unwrap()];
    one.rate = BitRate::from_bits_per_s(1_000_000);
    network.attach(&one, &a.namespace()).unwrap();
    network.attach(&two, &b.namespace()).unwrap();
    let during = everything(&host);
    assert!(during.contains("table inet lab") && during.contains("lab0"), "{during}");
    let theirs = before.split("lo:").next().unwrap();
    assert!(theirs.contains("elsewhere") && during.starts_with(theirs), "{during}");
    network.remove().unwrap();
    assert_eq!(everything(&host), before);
    assert!(!a.can("ip link show eth0"), "cables are gone at both ends");
    network.remove().unwrap();
    // Again, and now the containers end first.
    network.ensure(&[]).unwrap();
    network.attach(&one, &a.namespace()).unwrap();
    drop(a);
    again_until("the cable is gone with its container", || {
        !host.can(&format!("ip link show {}", one.id.interface()))
    });
    assert_eq!(network.attached().unwrap().len(), 1, "rules are left");
    network.detach(&one).unwrap();
    assert_eq!(network.attached().unwrap().len(), 0);
    network.forget(&one.id).unwrap();
    network.detach(&one).unwrap();
    network.remove().unwrap();
    assert_eq!(everything(&host), before);
    let left: Vec<_> = std::fs::read_dir(scratch.directory("state")).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn after_a_restart_everything_is_adopted_and_connections_live_on() {
    let lab = Lab::new();
    let mut one = lab.container(11);
    let two = lab.container(12);
    one.endpoint.published = vec!["8080:80".parse().unwrap()];
    lab.network.update(&one.endpoint).unwrap();
    let _server = one.place.serves(80);
    // A connection through the published port, held open across the restart.
    let script = "import http.client, sys
c = http.client.HTTPConnection('192.0.2.1', 8080, timeout=300)
for line in ['ready'] + sys.stdin.read().split():
    c.request('GET', '/5'); print(c.getresponse().read().decode() and line, flush=True)";
    let script = script.replace(
        "['ready'] + sys.stdin.read().split()",
        "__import__('itertools').chain(['ready'], iter(sys.stdin.readline, ''))",
    );
    let mut client = lab.world.command("python3");
    let mut client =
        client.args(["-c", &script]).stdin(Stdio::piped()).stdout(Stdio::piped()).start();
    let mut out = std::io::BufReader::new(client.stdout.take().unwrap());
    let mut line = String::new();
    std::io::BufRead::read_line(&mut out, &mut line).unwrap();
    assert_eq!(line, "ready\n");

    let index =
        |place: &Place, name: &str| place.sh(&format!("ip -o link show {name}"))[..4].to_owned();
    let rules = || {
        let text = lab.host.sh("nft list ruleset");
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    let cable = one.endpoint.id.interface();
    let before = (index(&lab.host, "lab0"), index(&lab.host, &cable), rules());
    // Another process would do just this: it knows the configuration and who runs.
    let again = Network::new(config(), &lab.scratch.directory("state"), lab.host.namespace());
    let running = [one.endpoint.clone(), two.endpoint.clone()];
    assert_eq!(again.attached().unwrap(), running.iter().map(|one| one.id.clone()).collect());
    assert_eq!(again.ensure(&running).unwrap(), []);
    let after = (index(&lab.host, "lab0"), index(&lab.host, &cable), rules());
    assert_eq!(after, before, "nothing was made anew, and the rules are the same");
    client.stdin.take().unwrap().write_all(b"again\n").unwrap();
    let mut line = String::new();
    std::io::BufRead::read_line(&mut out, &mut line).unwrap();
    assert_eq!(line, "again\n");
    assert!(client.wait().unwrap().success());

    // What somebody tore out is put back; who does not run any more is cleared away.
    lab.host.sh("nft delete table bridge lab; nft flush table inet lab; ip address flush dev lab0");
    assert!(lab.world.asks_in_vain("192.0.2.1:8080"));
    assert_eq!(again.ensure(&running[..1]).unwrap(), []);
    assert!(lab.world.asks("192.0.2.1:8080").is_some());
    assert_eq!(again.attached().unwrap().len(), 1);
    assert!(!two.place.can("ip link show eth0"));
}

#[test]
fn a_hundred_are_attached_and_adopted_within_moments() {
    let lab = Lab::new();
    let places: Vec<Namespace> = (0..100).map(|_| Namespace::fresh().unwrap()).collect();
    let mut endpoints: Vec<_> = (100..200).map(endpoint).collect();
    for (endpoint, port) in endpoints.iter_mut().zip(8000_u16..) {
        endpoint.published = vec![format!("{port}:80").parse().unwrap()];
    }
    let begun = Instant::now();
    for (endpoint, place) in endpoints.iter().zip(&places) {
        lab.network.attach(endpoint, place).unwrap();
    }
    let attached = begun.elapsed();
    // The quickest of a few: this machine may have had to do something else meanwhile.
    let adopt = || {
        let begun = Instant::now();
        assert_eq!(lab.network.ensure(&endpoints).unwrap(), []);
        begun.elapsed()
    };
    let adopted = (0..5).map(|_| adopt()).min().unwrap();
    let begun = Instant::now();
    for endpoint in &endpoints {
        lab.network.counters(&endpoint.id).unwrap().unwrap();
    }
    let counted = begun.elapsed();
    let begun = Instant::now();
    for endpoint in &endpoints {
        lab.network.detach(endpoint).unwrap();
    }
    println!(
        "100: attached in {attached:?}, adopted in {adopted:?}, counted in {counted:?}, detached in {:?}",
        begun.elapsed()
    );
    assert_eq!(lab.network.attached().unwrap().len(), 0);
    // All at once, not one after the other; and that for which everybody waits when the daemon
    // starts is over long before anyone complains, however busy the machine.
    assert!(adopted < attached / 3, "{adopted:?} to adopt, {attached:?} to attach");
    assert!(attached < PATIENCE, "{attached:?}");
}

#[test]
fn what_is_in_the_way_is_named_and_left_alone() {
    let host = Place::new();
    let scratch = crate::support::Scratch::new("cells");
    let network = Network::new(config(), &scratch.directory("state"), host.namespace());
    host.sh("ip link add lab0 type bridge");
    let refused = network.ensure(&[]).unwrap_err();
    assert!(matches!(&refused, NetworkError::Foreign(name) if name == "lab0"), "{refused}");
    host.sh("ip link del lab0; ip link add vpn type bridge; ip address add 10.99.7.1/24 dev vpn");
    let before = everything(&host);
    let refused = network.ensure(&[]).unwrap_err().to_string();
    assert!(refused.contains("10.99.0.0/16 is in use") || refused.contains("vpn"), "{refused}");
    assert_eq!(everything(&host), before);
    host.sh("ip address flush dev vpn; ip address add 10.0.0.1/8 dev vpn");
    assert!(matches!(network.ensure(&[]), Err(NetworkError::Overlaps { .. })));
    host.sh("ip link del vpn");
    network.ensure(&[]).unwrap();
    // No such namespace, and none any more.
    assert!(Namespace::at("/proc/0/ns/net".as_ref()).is_err());
    let mut bad = endpoint(11);
    bad.v6 = Vec::new();
    let gone = Place::new();
    let namespace = gone.namespace();
    network.attach(&bad, &namespace).unwrap();
    assert!(!gone.sh("ip address show eth0").contains("inet6"), "no IPv6 was given");
    network.remove().unwrap();
    let refused = network.attach(&bad, &namespace).unwrap_err().to_string();
    assert!(refused.contains("lab0"), "{refused}");
}
