//! A machine that installs its services itself, from the network, and serves them.

use std::process::{Child, Command, Stdio};

use crate::network::on_host;
use crate::stage::{Stage, TEMPLATE};
use crate::support::{Succeed, again_until};

/// A process that ends with the test.
struct Company(Child);

impl Drop for Company {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ended = self.0.kill();
        let _reaped = self.0.wait();
    }
}

/// Connects the daemon's network namespace to the world, as a user without rights can: nothing of
/// the host's own network is touched.
fn uplink(stage: &Stage) -> Company {
    let daemon = stage.daemon().to_string();
    let child = Command::new("slirp4netns")
        .args(["--configure", "--mtu=1500", &daemon, "tap0"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .start();
    again_until("there is a way out", || {
        let routes = on_host(stage, &["ip", "route"]).capture();
        String::from_utf8_lossy(&routes.stdout).contains("default via")
    });
    Company(child)
}

/// Another machine beside the daemon's: a network namespace at the other end of a cable.
fn outside(stage: &Stage) -> Company {
    let child = Command::new("unshare").args(["--net", "sleep", "1000"]).start();
    let company = Company(child);
    let pid = company.0.id().to_string();
    let own = std::fs::read_link("/proc/self/ns/net").expect("a namespace");
    again_until("it has its own network", || {
        std::fs::read_link(format!("/proc/{pid}/ns/net")).is_ok_and(|its| its != own)
    });
    let link = ["ip", "link", "add", "cable", "type", "veth", "peer", "name", "there"];
    on_host(stage, &[&link[..], &["netns", &pid]].concat()).succeed();
    for words in
        [&["addr", "add", "192.0.2.1/24", "dev", "cable"][..], &["link", "set", "cable", "up"]]
    {
        on_host(stage, &[&["ip"], words].concat()).succeed();
    }
    for words in
        [&["addr", "add", "192.0.2.2/24", "dev", "there"][..], &["link", "set", "there", "up"]]
    {
        Command::new("nsenter")
            .arg(format!("--net=/proc/{pid}/ns/net"))
            .arg("ip")
            .args(words)
            .succeed();
    }
    company
}

/// Takes a minute, and a mirror: at the long count.
#[test]
fn nginx_and_sshd_installed_by_apt_serve_the_world() {
    if std::env::var("MICA_TEST_COUNTS").as_deref() != Ok("long") {
        return;
    }
    let stage = Stage::with_network("supervisor-apt");
    on_host(&stage, &["ip", "link", "set", "lo", "up"]).succeed();
    let _world = uplink(&stage);
    let published = ["-p", "8080:80", "-p", "2222:22", "--ip", "10.88.0.11"];
    stage.mica([&["create", "web1", TEMPLATE, "limits.memory=512MiB"][..], &published].concat());
    stage.mica(["start", "web1"]);
    again_until("systemd is up", || {
        let said = stage.ask(["exec", "web1", "--", "systemctl", "is-system-running"]);
        String::from_utf8_lossy(&said.stdout).trim() == "running"
    });
    stage.mica(["exec", "web1", "--", "apt-get", "-q", "update"]);
    let install = "DEBIAN_FRONTEND=noninteractive apt-get -q install -y --no-install-recommends \
                   nginx-light openssh-server";
    stage.mica(["exec", "web1", "--", "sh", "-c", install]);
    let failed = ["exec", "web1", "--", "systemctl", "--failed", "--plain", "--no-legend"];
    assert_eq!(stage.mica(failed), "");
    // From another machine, through a published port.
    let other = outside(&stage);
    let at = format!("--net=/proc/{}/ns/net", other.0.id());
    let fetch = ["curl", "-sS", "--max-time", "20", "http://192.0.2.1:8080/"];
    let page = Command::new("nsenter").arg(&at).args(fetch).succeed();
    assert!(page.contains("Welcome to nginx"), "{page}");
    // From another container, by its name.
    stage.mica(["create", "web2", TEMPLATE, "--", "sleep", "1000"]);
    stage.mica(["start", "web2"]);
    stage.mica(["exec", "web2", "--", "ping", "-c1", "-W5", "web1"]);
    // A key that was let in opens; sshd itself looks at owners and modes.
    let key = stage.store.path().with_file_name("key");
    let made = key.to_string_lossy().into_owned();
    Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f", &made]).succeed();
    let ssh = |user: &str| {
        let mut command = Command::new("nsenter");
        command.args([at.as_str(), "ssh", "-p", "2222", "-i", &made, "-o", "BatchMode=yes"]);
        command.args(["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"]);
        command.args([&format!("{user}@192.0.2.1"), "hostname"]);
        command
    };
    ssh("root").refuse();
    stage.mica(["set", "web1", "--ssh-key", &format!("{made}.pub")]);
    assert_eq!(ssh("root").succeed().trim(), "web1");
    stage.mica(["restart", "web1"]);
    again_until("nginx is there again", || {
        Command::new("nsenter").arg(&at).args(fetch).capture().status.success()
    });
    stage.remember();
    stage.mica(["delete", "--force", "--all"]);
    stage.assert_nothing_left("after a web server");
}
