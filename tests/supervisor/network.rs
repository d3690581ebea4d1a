//! Containers that reach each other, and are reached; in a network namespace of the daemon's own.

use std::process::Command;

use crate::stage::{Stage, TEMPLATE};
use crate::support::{Succeed, again_until};

/// A command of the host, where the daemon's network is.
fn on_host(stage: &Stage, words: &[&str]) -> Command {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net=/proc/{}/ns/net", stage.daemon())).args(words);
    command
}

/// A web server of the few modules that a minimal Python has.
const SERVE: &str = "
import socket
server = socket.create_server(('', 80))
while True:
    client, _ = server.accept()
    client.recv(9999)
    client.sendall(b'HTTP/1.0 200 OK\\r\\n\\r\\nthis is web1\\n')
    client.close()
";

/// Its client.
const FETCH: &str = "
import socket
server = socket.create_connection(('web1', 80), timeout=5)
server.sendall(b'GET / HTTP/1.0\\r\\n\\r\\n')
print(server.recv(9999).decode(), end='')
";

fn get(port: u16) -> String {
    format!(
        "import urllib.request as u; print(u.urlopen('http://10.88.0.1:{port}/', timeout=5).status)"
    )
}

#[test]
fn containers_have_addresses_names_and_published_ports_and_leave_no_link() {
    let stage = Stage::with_network("supervisor-network");
    on_host(&stage, &["ip", "link", "set", "lo", "up"]).succeed();
    let links = on_host(&stage, &["ip", "-o", "link"]).succeed();
    let serve = ["python3", "-c", SERVE];
    let mut words = vec!["create", "web1", TEMPLATE, "-p", "8080:80", "--ip", "10.88.0.11", "--"];
    words.extend(serve);
    stage.mica(words);
    stage.mica(["create", "client", TEMPLATE, "--", "sleep", "1000"]);
    stage.mica(["start", "--all"]);
    assert_eq!(stage.info("web1")["addresses"][0], "10.88.0.11");
    let taken = stage.refused(["create", "web2", TEMPLATE, "--ip", "10.88.0.11", "--", "true"]);
    assert!(taken.contains("10.88.0.11"), "{taken}");
    again_until("the service answers by its name", || {
        let said = stage.ask(["exec", "client", "--", "python3", "-c", FETCH]);
        String::from_utf8_lossy(&said.stdout).ends_with("web1\n")
    });
    // From the host, through the published port, and through one that is published while it runs.
    let status = on_host(&stage, &["python3", "-c", &get(8080)]).succeed();
    assert_eq!(status.trim(), "200");
    stage.mica(["set", "web1", "port=8080:80,8081:80"]);
    let status = on_host(&stage, &["python3", "-c", &get(8081)]).succeed();
    assert_eq!(status.trim(), "200");
    stage.mica(["exec", "client", "--", "ping", "-c1", "-W5", "web1"]);
    stage.remember();
    stage.mica(["delete", "--force", "--all"]);
    assert_eq!(
        on_host(&stage, &["ip", "-o", "link"]).succeed().lines().count(),
        links.lines().count()
    );
    assert_eq!(on_host(&stage, &["nft", "list", "tables"]).succeed().trim(), "");
    stage.assert_nothing_left("after containers with a network");
}
