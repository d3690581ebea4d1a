//! A host, a world outside it and containers, each a network namespace of its own.

use std::io::{BufRead, BufReader};
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use mica::container::network::{BridgeConfig, Endpoint, EndpointId, Namespace, Network};

use crate::support::{PATIENCE, Scratch, Succeed, again_until, require_root};

/// A network namespace that lives as long as a process does which only waits.
pub(crate) struct Place(Child);

impl Place {
    pub(crate) fn new() -> Self {
        let mut child = Command::new("unshare")
            .args(["--net", "sh", "-c", "echo ready; exec sleep infinity"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .start();
        let mut ready = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut ready).unwrap();
        assert_eq!(ready, "ready\n");
        Self(child)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }

    pub(crate) fn namespace(&self) -> Namespace {
        Namespace::at(&self.path()).unwrap()
    }

    fn path(&self) -> PathBuf {
        format!("/proc/{}/ns/net", self.pid()).into()
    }

    /// A command that runs there.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path().display())).arg(program);
        command
    }

    /// Runs a line of shell there.
    pub(crate) fn sh(&self, script: &str) -> String {
        self.command("sh").args(["-ec", script]).succeed()
    }

    /// Whether a line of shell succeeds there.
    pub(crate) fn can(&self, script: &str) -> bool {
        self.command("sh").args(["-ec", script]).capture().status.success()
    }

    /// What an HTTP server answers, asked from there, however long a busy machine takes for it.
    pub(crate) fn asks(&self, address: &str) -> Option<String> {
        self.asks_for(PATIENCE, address)
    }

    /// Whether nobody answers there: for two seconds nothing comes, or a refusal at once.
    pub(crate) fn asks_in_vain(&self, address: &str) -> bool {
        self.asks_for(Duration::from_secs(2), address).is_none()
    }

    fn asks_for(&self, limit: Duration, address: &str) -> Option<String> {
        let (limit, url) = (limit.as_secs().to_string(), format!("http://{address}/"));
        let mut command = self.command("curl");
        command.args(["--silent", "--globoff", "--max-time", &limit, &url]);
        let output = command.capture();
        output.status.success().then(|| String::from_utf8(output.stdout).unwrap())
    }

    /// Starts a server there that answers every request with the address it came from.
    pub(crate) fn serves(&self, port: u16) -> Server {
        Server::start(self.command("python3").args(["-c", SERVER, &port.to_string()]))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// Answers with who asked; `/N` with N bytes; takes what is posted.
const SERVER: &str = r#"
import sys, socket
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        if len(self.path) > 1:
            body = b"x" * int(self.path[1:])
        else:
            body = self.client_address[0].removeprefix("::ffff:").encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()
    def log_message(self, *what):
        pass
class Server(ThreadingHTTPServer):
    address_family = socket.AF_INET6
    daemon_threads = True
server = Server(("::", int(sys.argv[1])), Handler)
print("ready", flush=True)
server.serve_forever()
"#;

/// A program that said it is ready; ends when dropped.
pub(crate) struct Server(pub(crate) Child);

impl Server {
    pub(crate) fn start(command: &mut Command) -> Self {
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).start();
        let mut ready = String::new();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        stdout.read_line(&mut ready).unwrap();
        assert_eq!(ready, "ready\n");
        child.stdout = Some(stdout.into_inner());
        Self(child)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ended = self.0.kill();
        self.0.wait().unwrap();
    }
}

/// The host 192.0.2.1, one machine in the world 192.0.2.2, and a network of containers.
pub(crate) struct Lab {
    pub(crate) host: Place,
    pub(crate) world: Place,
    pub(crate) network: Network,
    pub(crate) scratch: Scratch,
}

impl Lab {
    pub(crate) fn new() -> Self {
        require_root();
        let (host, world, scratch) = (Place::new(), Place::new(), Scratch::new("cells"));
        host.sh(&format!(
            "ip link set lo up
             sysctl -qw net.ipv6.conf.default.accept_dad=0
             ip link add uplink type veth peer name out netns {}
             ip address add 192.0.2.1/24 dev uplink
             ip address add 2001:db8::1/64 dev uplink nodad
             ip link set uplink up",
            world.pid()
        ));
        world.sh("ip link set lo up
             sysctl -qw net.ipv6.conf.out.accept_dad=0
             ip address add 192.0.2.2/24 dev out
             ip address add 2001:db8::2/64 dev out nodad
             ip link set out up");
        let network = Network::new(config(), &scratch.directory("state"), host.namespace());
        let lab = Self { host, world, network, scratch };
        assert_eq!(lab.network.ensure(&[]).unwrap(), []);
        lab
    }

    /// A container with the number as the end of its addresses.
    pub(crate) fn container(&self, number: u8) -> Container {
        let container = Container { place: Place::new(), endpoint: endpoint(number) };
        self.attach(&container);
        container
    }

    pub(crate) fn attach(&self, container: &Container) {
        let held = self.network.attach(&container.endpoint, &container.place.namespace());
        assert_eq!(held.unwrap(), []);
        // Its own address of IPv6 is in use when the kernel says the link is there.
        again_until("the cable carries", || {
            container.place.can("ip link show eth0 | grep -q LOWER_UP")
        });
        // The bridge is told of that some time later, by a thread of the kernel's, and until then
        // drops whatever is sent.
        let port = container.endpoint.id.interface();
        again_until("the bridge passes it on", || {
            self.host.can(&format!("bridge link show dev {port} | grep -q 'state forwarding'"))
        });
    }
}

pub(crate) struct Container {
    pub(crate) place: Place,
    pub(crate) endpoint: Endpoint,
}

impl Container {
    pub(crate) fn v4(&self) -> IpAddr {
        self.endpoint.v4[0].into()
    }

    pub(crate) fn v6(&self) -> String {
        format!("[{}]", self.endpoint.v6[0])
    }
}

pub(crate) fn config() -> BridgeConfig {
    let v4 = "10.99.0.0/16".parse().unwrap();
    BridgeConfig { name: "lab".parse().unwrap(), v4, ..BridgeConfig::standard() }
}

pub(crate) fn endpoint(number: u8) -> Endpoint {
    Endpoint {
        id: EndpointId::of(&format!("{number:02x}00000000ab")).unwrap(),
        v4: vec![format!("10.99.0.{number}").parse().unwrap()],
        v6: vec![format!("fd4d:6963:6100::{number:x}").parse().unwrap()],
        published: Vec::new(),
        rate: None,
    }
}
