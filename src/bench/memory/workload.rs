//! What runs in the containers whose memory is measured, and when it is up.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::bench::cgroup::Cgroup;
use crate::bench::error::{BenchError, Result};
use crate::bench::fixture;
use crate::bench::run::{inside, tool};

/// How long a workload may take until it answers.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// What runs in a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Workload {
    /// A shell that looks around once and then loops.
    Shell,
    /// `python3 -m http.server`, asked once.
    Python,
    /// nginx with one worker, asked once.
    Nginx,
    /// A whole system: init and every unit of the template. See [`super::systems`].
    Systemd,
}

impl Workload {
    pub(super) const ALL: [Self; 4] = [Self::Shell, Self::Python, Self::Nginx, Self::Systemd];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Shell => "shell",
            Self::Python => "python",
            Self::Nginx => "nginx",
            Self::Systemd => "systemd",
        }
    }

    /// What a template must have for it.
    pub(super) fn program(self) -> &'static str {
        match self {
            Self::Shell => "sh",
            Self::Python => "python3",
            Self::Nginx => "nginx",
            Self::Systemd => "systemctl",
        }
    }

    /// What is run in the root, and whether it listens on `port`.
    fn start(self, root: &Path, port: u16) -> Result<(Command, bool)> {
        let port_text = port.to_string();
        Ok(match self {
            Self::Shell => {
                let script = "ls -l /usr/bin /etc >/dev/null; echo ready; \
                              while read -r line; do :; done";
                (inside(root, &["sh", "-c", script]), false)
            }
            Self::Python => {
                let words = ["python3", "-m", "http.server", "--bind", "127.0.0.1", &port_text];
                (inside(root, &words), true)
            }
            Self::Nginx => {
                let config = format!(
                    "daemon off; worker_processes 1; pid /tmp/bench-nginx.pid; error_log stderr;\n\
                     events {{}}\n\
                     http {{ access_log off; server {{ listen 127.0.0.1:{port}; root /etc; }} }}\n"
                );
                fixture::file(root, "tmp/bench-nginx.conf", config.as_bytes())?;
                (inside(root, &["nginx", "-c", "/tmp/bench-nginx.conf"]), true)
            }
            Self::Systemd => (inside(root, &["/sbin/init"]), false),
        })
    }
}

/// Starts the workload in `root` within `cell`; returns once it answers.
pub(super) fn start(workload: Workload, root: &Path, cell: &Cgroup) -> Result<Child> {
    let port = free_port()?;
    let (command, listens) = workload.start(root, port)?;
    let mut started = tool("sh");
    // 0 stands for whoever writes it; then the very same process goes on.
    started.args(["-c", "echo 0 > \"$0\" && exec \"$@\""]).arg(cell.door());
    started.arg(command.get_program()).args(command.get_args()).env_clear();
    started.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    started.stdin(if listens { Stdio::null() } else { Stdio::piped() });
    started.stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = started.spawn().map_err(BenchError::at("start", workload.program()))?;
    let ready = if listens { ask(port, &mut child) } else { hear(&mut child) };
    if ready.is_err() {
        let _killed = child.kill();
        let _ended = child.wait();
    }
    ready.map(|()| child)
}

/// A port that nobody has now.
fn free_port() -> Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

/// Waits for the line "ready".
fn hear(child: &mut Child) -> Result<()> {
    let mut line = String::new();
    if let Some(stdout) = child.stdout.take() {
        BufReader::new(stdout).read_line(&mut line)?;
    }
    if line.trim() == "ready" { Ok(()) } else { Err(silent(child)) }
}

/// Asks over HTTP until there is an answer.
fn ask(port: u16, child: &mut Child) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        if child.try_wait()?.is_some() {
            break;
        }
        if let Ok(mut stream) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)) {
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer)?;
            if answer.starts_with(b"HTTP/1.") {
                return Ok(());
            }
        }
        // Nobody tells when somebody else's socket begins to listen.
        std::thread::sleep(Duration::from_millis(2));
    }
    Err(silent(child))
}

fn silent(child: &mut Child) -> BenchError {
    let ended = child.try_wait().ok().flatten();
    let status = ended.map_or_else(|| "it runs".to_owned(), |status| status.to_string());
    BenchError::Program {
        program: "the workload".to_owned(),
        status,
        said: "it did not answer".to_owned(),
    }
}
