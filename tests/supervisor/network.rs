//! Containers that reach each other, and are reached; in a network namespace of the daemon's own.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use crate::stage::{Stage, TEMPLATE};
use crate::support::{Scratch, Store, Succeed, again_until};

/// A command of the host, where the daemon's network is.
pub(crate) fn on_host(stage: &Stage, words: &[&str]) -> Command {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net=/proc/{}/ns/net", stage.daemon())).args(words);
    command
}

/// A web server of the few modules that a minimal Python has.
pub(crate) const SERVE: &str = "
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
server = socket.create_connection(('web1', 80), timeout=60)
server.sendall(b'GET / HTTP/1.0\\r\\n\\r\\n')
print(server.recv(9999).decode(), end='')
";

fn get(port: u16) -> String {
    format!(
        "import urllib.request as u; print(u.urlopen('http://10.88.0.1:{port}/', timeout=300).status)"
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
    // A port that a container has, running or not, or a program of the host.
    let mut held = String::new();
    let listen = "import socket, time; s = socket.create_server(('', 9000)); print('on', flush=True); time.sleep(1e6)";
    let mut program = on_host(&stage, &["python3", "-c", listen]).stdout(Stdio::piped()).start();
    let out = program.stdout.take().expect("a pipe");
    BufReader::new(out).read_line(&mut held).expect("it listens");
    let publish = ["-p", "127.0.0.1:8080:80", "-p", "9000:80", "-p", "9001:80"];
    let taken =
        stage.refused([&["create", "web2", TEMPLATE][..], &publish, &["--", "true"]].concat());
    assert!(taken.contains("published by web1") && taken.contains("python3 (process"), "{taken}");
    assert!(!taken.contains("9001"), "{taken}");
    stage.mica(["create", "web2", TEMPLATE, "-p", "9001:80", "--", "true"]);
    let taken = stage.refused(["set", "web2", "port=8080:81,9000:80"]);
    assert!(taken.contains("published by web1") && taken.contains("python3 (process"), "{taken}");
    program.kill().and_then(|()| program.wait()).expect("ours");
    stage.mica(["set", "web2", "port=9000:80"]);
    // One that is taken when it is started is refused then, and that is no failure of its own.
    let mut program = on_host(&stage, &["python3", "-c", listen]).stdout(Stdio::piped()).start();
    let out = program.stdout.take().expect("a pipe");
    BufReader::new(out).read_line(&mut held).expect("it listens");
    let taken = stage.refused(["start", "web2"]);
    assert!(taken.contains("9000/tcp of the host is in use by python3"), "{taken}");
    assert_eq!(stage.phase("web2"), "created");
    program.kill().and_then(|()| program.wait()).expect("ours");
    stage.mica(["delete", "web2"]);
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
    stage.mica(["exec", "client", "--", "ping", "-c1", "-W60", "web1"]);
    stage.remember();
    stage.mica(["delete", "--force", "--all"]);
    assert_eq!(
        on_host(&stage, &["ip", "-o", "link"]).succeed().lines().count(),
        links.lines().count()
    );
    assert_eq!(on_host(&stage, &["nft", "list", "tables"]).succeed().trim(), "");
    stage.assert_nothing_left("after containers with a network");
}

/// A second store with a daemon in the network of the first, and a template `small` with one program.
struct Second<'a> {
    first: &'a Stage,
    store: Store,
    _scratch: Scratch,
}

impl<'a> Second<'a> {
    fn beside(first: &'a Stage) -> Self {
        let scratch = Scratch::new("supervisor-second");
        let tree = scratch.directory("tree");
        let needed = Command::new("ldd").arg("/bin/sleep").succeed();
        let libraries = needed.split_whitespace().filter(|word| word.starts_with('/'));
        let mut copy = Command::new("cp");
        copy.args(["-L", "--parents", "/bin/sleep"]).args(libraries).arg(&tree).succeed();
        let store = Store::at(&scratch.path().join("store"));
        store.import("small:1", &tree);
        let second = Self { first, store, _scratch: scratch };
        second.mica(&["node", "start"]).succeed();
        second
    }

    fn mica(&self, words: &[&str]) -> Command {
        let mut command = on_host(self.first, &[env!("CARGO_BIN_EXE_mica")]);
        command.args(words).env("MICA_STORE", self.store.path());
        command
    }
}

impl Drop for Second<'_> {
    fn drop(&mut self) {
        for words in [&["delete", "--all", "--force"][..], &["node", "stop", "--containers"]] {
            let _gone = self.mica(words).capture();
        }
    }
}

#[test]
fn two_stores_on_one_host_take_nothing_from_each_other() {
    let stage = Stage::with_network("supervisor-two-stores");
    let host = |words: &[&str]| on_host(&stage, words).succeed();
    let forwards = || host(&["cat", "/proc/sys/net/ipv4/ip_forward"]).trim().to_owned();
    let before = forwards();
    stage.mica(["create", "a1", TEMPLATE, "-p", "8080:80", "--", "sleep", "1000"]);
    stage.mica(["start", "a1"]);
    let second = Second::beside(&stage);
    // A port leads to one of them, and who has it keeps it.
    let create = ["create", "b1", "small:1", "-p", "8080:80", "--", "/bin/sleep", "1000"];
    let taken = second.mica(&create).refuse();
    let first = stage.store.path().display().to_string();
    assert!(taken.contains("8080/tcp") && taken.contains(&first), "{taken}");
    second.mica(&create.map(|word| if word == "8080:80" { "8081:80" } else { word })).succeed();
    let info = second.mica(&["info", "--json", "b1"]).succeed();
    let info: serde_json::Value = serde_json::from_str(&info).unwrap();
    let address = info["addresses"][0].as_str().unwrap().to_owned();
    assert!(address.starts_with("10.89."), "{info}");
    assert_eq!(stage.info("a1")["addresses"][0], "10.88.0.2");
    second.mica(&["start", "b1"]).succeed();
    let tables = host(&["nft", "list", "tables"]);
    assert!(tables.contains("inet mica\n") && tables.contains("inet micab\n"), "{tables}");
    // The host reaches both, they do not reach each other.
    // Nobody listens, and it says so itself.
    let reach = |address: &str| {
        let script =
            format!("import socket; socket.create_connection(('{address}', 9), timeout=300)");
        let said = on_host(&stage, &["python3", "-c", &script]).refuse();
        assert!(said.contains("Connection refused"), "{address}: {said}");
    };
    reach(&address);
    reach("10.88.0.2");
    let across = stage.ask(["exec", "a1", "--", "ping", "-c1", "-W1", &address]);
    assert!(!across.status.success(), "{across:?}");
    // A daemon that comes back, and one whose last container goes, leave the other's alone.
    second.mica(&["node", "stop"]).succeed();
    second.mica(&["node", "start"]).succeed();
    reach("10.88.0.2");
    stage.mica(["delete", "--force", "a1"]);
    assert_eq!(forwards(), "1");
    reach(&address);
    second.mica(&["delete", "--force", "b1"]).succeed();
    assert_eq!(host(&["nft", "list", "tables"]).trim(), "");
    assert_eq!(forwards(), before);
}
