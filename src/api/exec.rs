//! The streams of processes: commands in a container, and its init's own.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::Child;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderValue, Response, StatusCode, header};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use rustix::fs::OFlags;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::{Deserialize, Serialize};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf};
use tokio::sync::mpsc;

use super::client::STREAMS;
use super::refusal::Refused;
use super::routes::{Asked, Door, read};
use super::wire::{Done, Exec};
use crate::container::console::{Frame, resize};
use crate::container::passwd;
use crate::container::runtime::{ExecChild, ExecRequest};
use crate::node::NodeError;
use crate::node::machine::View;
use crate::node::phase::Phase;
use crate::node::queue::Request as Ask;
use crate::sys::readiness::awaited;

/// Bytes that are read at once.
const PIECE: usize = 16 << 10;

/// Frames that wait for a slow client before the command has to.
const BACKLOG: usize = 16;

/// How long passwords may take to be changed.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long a terminal is silent when all is told of a command that ended, and how long one that
/// never is may go on: what the command left in the background may write to it for ever.
const SILENCE: Duration = Duration::from_millis(200);
const REST: Duration = Duration::from_secs(2);

/// `POST /v1/containers/CT/attach`
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
struct Attach {
    /// Whether the container is started, and its streams taken from the first moment on.
    start: bool,
}

/// `POST /v1/containers/CT/password`
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Password {
    /// `USER:PASSWORD`, to be set inside.
    userpasswd: Option<String>,
    /// A file of the host with the public half of a key that root may log in with.
    ssh_key: Option<PathBuf>,
}

fn running(view: &View) -> Result<(), NodeError> {
    let remedy = match view.phase {
        Phase::Running => return Ok(()),
        Phase::Paused => "resume it first",
        Phase::Starting | Phase::Stopping => "try again in a moment",
        Phase::Created | Phase::Stopped | Phase::Failed => "start it first",
    };
    let name = view.recorded.config.name.clone();
    Err(NodeError::NotRunning { name, phase: view.phase, remedy })
}

/// Takes the connection of a request over, if the client offers it.
fn offered(request: &mut Request) -> Result<OnUpgrade, Refused> {
    let wanted = request.headers().get(header::UPGRADE).is_some_and(|value| value == STREAMS);
    let upgrade = request.extensions_mut().remove::<OnUpgrade>().filter(|_| wanted);
    upgrade.ok_or_else(|| {
        Refused::malformed(format!("ask with \"Connection: upgrade\" and \"Upgrade: {STREAMS}\""))
    })
}

fn switching() -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static(STREAMS));
    response
}

/// Does what blocks beside the event loop.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, NodeError> + Send + 'static,
) -> Result<T, NodeError> {
    tokio::task::spawn_blocking(work).await.unwrap_or(Err(NodeError::Ending))
}

/// Runs a command.
pub(super) async fn exec(
    State(door): State<Door>,
    Path(ct): Path<String>,
    mut request: Request,
) -> Result<Response<Body>, Refused> {
    let upgrade = offered(&mut request)?;
    let asked: Exec = read(request.into_body()).await?;
    if asked.command.is_empty() {
        return Err(Refused::malformed("a command is missing; give one after \"--\""));
    }
    let view = door.node.find(&ct)?.view();
    running(&view)?;
    let wanted = ExecRequest {
        args: asked.command,
        env: asked.env,
        workdir: asked.workdir,
        user: asked.user.or_else(|| view.recorded.config.user.clone()),
        terminal: asked.terminal.map(|size| (size.rows, size.columns)),
    };
    let driver = Arc::clone(door.node.driver());
    let child = blocking(move || driver.exec(&view.recorded, &wanted)).await?;
    tokio::spawn(async move {
        if let Ok(upgraded) = upgrade.await {
            if let Err(error) = bridge(upgraded, child, asked.interactive).await {
                tracing::debug!(%error, "the streams of a command broke");
            }
        } else {
            end(child.child).await;
        }
    });
    Ok(switching())
}

/// Kills a command whose client is gone, and reaps it.
async fn end(mut child: Child) {
    // It may have ended by itself.
    let _killed = child.kill();
    drop(tokio::task::spawn_blocking(move || child.wait()).await);
}

fn nonblocking(fd: impl Into<OwnedFd>) -> io::Result<AsyncFd<OwnedFd>> {
    let fd = fd.into();
    let flags = rustix::fs::fcntl_getfl(&fd)?;
    rustix::fs::fcntl_setfl(&fd, flags | OFlags::NONBLOCK)?;
    awaited(fd)
}

/// Reads what comes and sends it as frames, until nothing more comes.
async fn pump(
    from: Arc<AsyncFd<OwnedFd>>,
    to: mpsc::Sender<Frame>,
    frame: fn(Vec<u8>) -> Frame,
) -> io::Result<()> {
    let mut buffer = vec![0; PIECE];
    loop {
        let mut ready = from.readable().await?;
        let count = match ready.try_io(|fd| Ok(rustix::io::read(fd.get_ref(), &mut buffer)?)) {
            Ok(Ok(0)) => return Ok(()),
            Ok(Ok(count)) => count,
            // A terminal whose last user is gone.
            Ok(Err(error)) if error.raw_os_error() == Some(libc::EIO) => return Ok(()),
            Ok(Err(error)) => return Err(error),
            Err(_would_block) => continue,
        };
        if to.send(frame(buffer.get(..count).unwrap_or_default().to_vec())).await.is_err() {
            return Ok(());
        }
    }
}

async fn write_all(to: &AsyncFd<OwnedFd>, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let mut ready = to.writable().await?;
        match ready.try_io(|fd| Ok(rustix::io::write(fd.get_ref(), bytes)?)) {
            Ok(written) => bytes = bytes.get(written?..).unwrap_or_default(),
            Err(_would_block) => {}
        }
    }
    Ok(())
}

/// Takes what a client sends to a command, until it closes.
async fn feed(
    mut from: ReadHalf<TokioIo<Upgraded>>,
    mut input: Option<Arc<AsyncFd<OwnedFd>>>,
    terminal: bool,
) -> io::Result<()> {
    let mut bytes = Vec::new();
    let mut buffer = vec![0; PIECE];
    // The pace, which does not matter here: a command always waits for its client.
    let _pace = from.read_u8().await?;
    loop {
        while let Some(frame) = Frame::decode(&mut bytes)? {
            match frame {
                Frame::Input(typed) => {
                    let gone = match &input {
                        Some(input) => write_all(input, &typed).await.is_err(),
                        None => false,
                    };
                    if gone {
                        // Nobody reads it any more; the command goes on.
                        input = None;
                    }
                }
                Frame::EndOfInput if !terminal => input = None,
                Frame::Resize { rows, columns } => {
                    if let Some(terminal) = input.as_ref().filter(|_| terminal) {
                        resize(terminal.get_ref().as_fd(), rows, columns)?;
                    }
                }
                Frame::EndOfInput | Frame::Output(_) | Frame::Error(_) | Frame::Exit(_) => {}
            }
        }
        match from.read(&mut buffer).await? {
            0 => return Ok(()),
            count => bytes.extend_from_slice(buffer.get(..count).unwrap_or_default()),
        }
    }
}

/// Carries the streams of a command until it ended, or its client is gone, which ends it.
async fn bridge(upgraded: Upgraded, exec: ExecChild, interactive: bool) -> io::Result<()> {
    let ExecChild { mut child, terminal } = exec;
    let (from, mut to) = tokio::io::split(TokioIo::new(upgraded));
    let (sender, mut frames) = mpsc::channel(BACKLOG);
    let mut pumps = tokio::task::JoinSet::new();
    let is_terminal = terminal.is_some();
    let mut input = None;
    if let Some(terminal) = terminal {
        let terminal = Arc::new(nonblocking(terminal)?);
        input = Some(Arc::clone(&terminal));
        pumps.spawn(pump(terminal, sender.clone(), Frame::Output));
    }
    if let Some(stdin) = child.stdin.take().filter(|_| interactive) {
        input = Some(Arc::new(nonblocking(stdin)?));
    }
    if let Some(stdout) = child.stdout.take() {
        pumps.spawn(pump(Arc::new(nonblocking(stdout)?), sender.clone(), Frame::Output));
    }
    if let Some(stderr) = child.stderr.take() {
        pumps.spawn(pump(Arc::new(nonblocking(stderr)?), sender.clone(), Frame::Error));
    }
    drop(sender);
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let pid = pid.ok_or_else(|| io::Error::from_raw_os_error(libc::ESRCH))?;
    let ended = awaited(pidfd_open(pid, PidfdFlags::empty())?)?;
    let feeding = feed(from, input, is_terminal);
    tokio::pin!(feeding);
    let mut over = false;
    loop {
        tokio::select! {
            frame = frames.recv() => match frame {
                Some(frame) => if to.write_all(&frame.encode()).await.is_err() {
                    end(child).await;
                    return Ok(());
                },
                // Everything was said; the end is near.
                None => break,
            },
            _closed_or_broken = &mut feeding => {
                // There is nobody to run it for.
                end(child).await;
                return Ok(());
            }
            ready = ended.readable(), if !over => {
                drop(ready);
                over = true;
                if is_terminal {
                    // What it left in the background may hold the terminal open for ever.
                    break;
                }
            }
        }
    }
    // What a terminal still holds of a command that ended. A busy host hands it over in its own
    // time, so that only silence tells that this was all.
    if is_terminal {
        let until = tokio::time::Instant::now() + REST;
        loop {
            let left = until.saturating_duration_since(tokio::time::Instant::now());
            let next = tokio::time::timeout(left.min(SILENCE), frames.recv()).await;
            // Between frames only: half of one would garble what follows.
            let Ok(Some(frame)) = next else { break };
            if left.is_zero() || to.write_all(&frame.encode()).await.is_err() {
                break;
            }
        }
    }
    drop(ended.readable().await);
    pumps.abort_all();
    let status = tokio::task::spawn_blocking(move || child.wait()).await??;
    let status = std::os::unix::process::ExitStatusExt::signal(&status)
        .map_or_else(|| status.code().unwrap_or(255), |signal| 128 + signal);
    to.write_all(&Frame::Exit(status).encode()).await?;
    to.shutdown().await
}

/// Hands over the streams of a container's init.
pub(super) async fn attach(
    State(door): State<Door>,
    Path(ct): Path<String>,
    mut request: Request,
) -> Result<Response<Body>, Refused> {
    let upgrade = offered(&mut request)?;
    let asked: Attach = read(request.into_body()).await?;
    let handle = door.node.find(&ct)?;
    let driver = Arc::clone(door.node.driver());
    let stream = if asked.start {
        let streams = driver.listen(handle.id());
        let started = door.node.ask(&handle, Ask::Start).await;
        // Whether it came to that or not.
        driver.stop_listening(handle.id());
        started?;
        streams.try_recv().map_err(|_| {
            let view = handle.view();
            let name = view.recorded.config.name.clone();
            NodeError::NotRunning {
                name,
                phase: view.phase,
                remedy: "it ran already; see its console",
            }
        })?
    } else {
        let view = handle.view();
        running(&view)?;
        blocking(move || driver.attach(&view.recorded)).await?
    };
    stream
        .set_nonblocking(true)
        .and_then(|()| tokio::net::UnixStream::from_std(stream))
        .map_or_else(
            |error| Err(Refused::malformed(error.to_string())),
            |mut stream| {
                tokio::spawn(async move {
                    if let Ok(upgraded) = upgrade.await {
                        let mut client = TokioIo::new(upgraded);
                        // The monitor was told the pace by us; the client says it to us.
                        let mut pace = [0];
                        if client.read_exact(&mut pace).await.is_ok() {
                            // Either side may leave at any time.
                            let _left =
                                tokio::io::copy_bidirectional(&mut client, &mut stream).await;
                        }
                    }
                });
                Ok(switching())
            },
        )
}

/// Sets a password, or lets a key in.
pub(super) async fn password(
    State(door): State<Door>,
    Path(ct): Path<String>,
    Asked(asked): Asked<Password>,
) -> Result<Json<Done>, Refused> {
    let view = door.node.find(&ct)?.view();
    running(&view)?;
    let name = view.recorded.config.name.to_string();
    let driver = Arc::clone(door.node.driver());
    let done = move || {
        if let Some(given) = &asked.userpasswd {
            let input = passwd::chpasswd_input(given)?;
            let request = ExecRequest {
                args: vec!["chpasswd".to_owned()],
                user: Some("0".to_owned()),
                ..ExecRequest::default()
            };
            let (status, said) =
                driver.run(&view.recorded, &request, input.as_bytes(), PATIENCE)?;
            if status != Some(0) {
                let name = view.recorded.config.name.clone();
                let reason = format!("chpasswd in the container failed: {said}");
                return Err(NodeError::Step { name, reason });
            }
        }
        if let Some(key) = &asked.ssh_key {
            passwd::authorize(&driver.root(&view.recorded), "root", key)?;
        }
        Ok(())
    };
    blocking(done).await?;
    Ok(Json(Done { name, already: false }))
}
