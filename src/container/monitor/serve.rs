//! Watching: output into the log and to whoever is attached, input from them, and the end.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{WaitOptions, WaitStatus, wait};

use super::Watched;
use crate::container::bundle::{Bundle, Exit, now_ms};
use crate::container::console::{Frame, Pace, resize};
use crate::container::log::Stream;

/// Bytes that wait for one client, or for the container's input, before the other side has to.
const WAITING: usize = 256 << 10;
/// Clients at a time; more are turned away.
const CLIENTS: usize = 64;

struct Client {
    stream: UnixStream,
    pace: Option<Pace>,
    incoming: Vec<u8>,
    outgoing: Vec<u8>,
    gone: bool,
}

/// What there is to wait for, in the order of the poll.
#[derive(Clone, Copy)]
enum Source {
    Init,
    Door,
    Output(usize),
    Input,
    Client(usize),
}

/// Watches until the init has ended, then says so everywhere.
pub(super) fn serve(bundle: &Bundle, mut watched: Watched) -> io::Result<()> {
    for fd in watched.outputs.iter().map(|(_, fd)| fd).chain(&watched.input) {
        nonblocking(fd)?;
    }
    watched.door.listener.set_nonblocking(true)?;
    let mut clients: Vec<Client> = Vec::new();
    let mut input: Vec<u8> = Vec::new();
    let mut input_ends = false;
    loop {
        let (ready, flags) = wait_for(&watched, &clients, &input)?;
        let mut ended = false;
        for (source, events) in ready.into_iter().zip(flags) {
            if events.is_empty() {
                continue;
            }
            match source {
                Source::Init => ended = true,
                Source::Door => accept(&watched, &mut clients),
                Source::Output(at) => {
                    pass_on(&mut watched, at, &mut clients);
                }
                Source::Input => {}
                Source::Client(at) => {
                    let Some(client) = clients.get_mut(at) else { continue };
                    let readable = events.contains(PollFlags::IN);
                    let broken = events.intersects(PollFlags::HUP | PollFlags::ERR);
                    // It went away or talks nonsense; the container does not care.
                    client.gone |= broken && !readable;
                    client.gone |=
                        readable && take(client, &watched, &mut input, &mut input_ends).is_err();
                }
            }
        }
        feed(&mut watched, &mut input, input_ends);
        clients.retain_mut(|client| !client.gone && flush(client).is_ok());
        if ended {
            return end(bundle, watched, clients);
        }
    }
}

fn nonblocking(fd: &OwnedFd) -> io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(fd)?;
    Ok(rustix::fs::fcntl_setfl(fd, flags | rustix::fs::OFlags::NONBLOCK)?)
}

fn wait_for(
    watched: &Watched,
    clients: &[Client],
    input: &[u8],
) -> io::Result<(Vec<Source>, Vec<PollFlags>)> {
    // A client that wants everything and does not take it holds the container's output back.
    let held =
        |client: &Client| client.pace == Some(Pace::Follow) && client.outgoing.len() >= WAITING;
    let held = clients.iter().any(held);
    let mut sources = vec![Source::Init, Source::Door];
    let mut fds = vec![
        PollFd::new(&watched.init, PollFlags::IN),
        PollFd::new(&watched.door.listener, PollFlags::IN),
    ];
    if !held {
        // From the last on: one that ends is removed, and moves only those behind it.
        for (at, (_, fd)) in watched.outputs.iter().enumerate().rev() {
            sources.push(Source::Output(at));
            fds.push(PollFd::new(fd, PollFlags::IN));
        }
    }
    if let Some(fd) = &watched.input
        && !input.is_empty()
    {
        sources.push(Source::Input);
        fds.push(PollFd::new(fd, PollFlags::OUT));
    }
    for (at, client) in clients.iter().enumerate() {
        let mut wanted = PollFlags::empty();
        wanted.set(PollFlags::IN, input.len() < WAITING);
        wanted.set(PollFlags::OUT, !client.outgoing.is_empty());
        sources.push(Source::Client(at));
        fds.push(PollFd::new(&client.stream, wanted));
    }
    match poll(&mut fds, None) {
        Ok(_) | Err(Errno::INTR) => {}
        Err(error) => return Err(error.into()),
    }
    let flags = fds.iter().map(PollFd::revents).collect();
    Ok((sources, flags))
}

fn accept(watched: &Watched, clients: &mut Vec<Client>) {
    // One that is gone again is no loss.
    if let Ok((stream, _)) = watched.door.listener.accept()
        && clients.len() < CLIENTS
        && stream.set_nonblocking(true).is_ok()
    {
        clients.push(Client {
            stream,
            pace: None,
            incoming: Vec::new(),
            outgoing: Vec::new(),
            gone: false,
        });
    }
}

/// Reads what came out and gives it to the log and to the clients. Closes what has ended.
fn pass_on(watched: &mut Watched, at: usize, clients: &mut [Client]) -> bool {
    let Some((stream, fd)) = watched.outputs.get(at) else { return false };
    let stream = *stream;
    let mut buffer = [0; 32 << 10];
    let bytes = match rustix::io::read(fd, &mut buffer) {
        Ok(0) => &[],
        Ok(count) => buffer.get(..count).unwrap_or_default(),
        Err(Errno::AGAIN | Errno::INTR) => return false,
        Err(_) => &[],
    };
    if bytes.is_empty() {
        watched.outputs.remove(at);
        return false;
    }
    if let Err(error) = watched.log.write(stream, bytes) {
        // The container goes on without a log; a full disk is no reason to stop it.
        tracing::warn!(%error, "output is not kept");
    }
    for client in clients.iter_mut() {
        // One that has not said yet how it wants to be served is not to miss the beginning.
        let missed = client.pace != Some(Pace::Follow) && client.outgoing.len() >= WAITING;
        if !missed {
            let frame = match stream {
                Stream::Stdout => Frame::Output(bytes.to_vec()),
                Stream::Stderr => Frame::Error(bytes.to_vec()),
            };
            client.outgoing.extend(frame.encode());
        }
    }
    true
}

/// Reads what a client says.
fn take(
    client: &mut Client,
    watched: &Watched,
    input: &mut Vec<u8>,
    input_ends: &mut bool,
) -> io::Result<()> {
    let mut buffer = [0; 16 << 10];
    match rustix::io::read(&client.stream, &mut buffer) {
        Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
        Ok(count) => client.incoming.extend(buffer.get(..count).unwrap_or_default()),
        Err(Errno::AGAIN | Errno::INTR) => return Ok(()),
        Err(error) => return Err(error.into()),
    }
    if client.pace.is_none() {
        let first = client.incoming.remove(0);
        client.pace = Some(Pace::from_byte(first).ok_or(io::ErrorKind::InvalidData)?);
    }
    while let Some(frame) = Frame::decode(&mut client.incoming)? {
        match frame {
            Frame::Input(bytes) => input.extend(bytes),
            Frame::EndOfInput => *input_ends = true,
            Frame::Resize { rows, columns } => {
                if let Some(fd) = watched.input.as_ref().filter(|_| watched.terminal) {
                    resize(fd.as_fd(), rows, columns)?;
                }
            }
            Frame::Output(_) | Frame::Error(_) | Frame::Exit(_) => {
                return Err(io::ErrorKind::InvalidData.into());
            }
        }
    }
    Ok(())
}

/// Gives the container what waits for it.
fn feed(watched: &mut Watched, input: &mut Vec<u8>, ends: bool) {
    let Some(fd) = &watched.input else {
        input.clear();
        return;
    };
    while !input.is_empty() {
        match rustix::io::write(fd, input) {
            Ok(count) => drop(input.drain(..count)),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return,
            Err(_) => {
                // Nobody reads it any more.
                input.clear();
                if !watched.terminal {
                    watched.input = None;
                }
                return;
            }
        }
    }
    // A terminal ends its input by a letter, not by being closed.
    if ends && !watched.terminal {
        watched.input = None;
    }
}

fn flush(client: &mut Client) -> io::Result<()> {
    while !client.outgoing.is_empty() {
        match rustix::net::send(&client.stream, &client.outgoing, rustix::net::SendFlags::NOSIGNAL)
        {
            Ok(count) => drop(client.outgoing.drain(..count)),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// The init has ended: with it every process of its namespace, so what is to be read is there.
fn end(bundle: &Bundle, mut watched: Watched, mut clients: Vec<Client>) -> io::Result<()> {
    let mut at = 0;
    while at < watched.outputs.len() {
        let before = watched.outputs.len();
        if !pass_on(&mut watched, at, &mut clients) && watched.outputs.len() == before {
            at += 1;
        }
    }
    if let Err(error) = watched.log.finish() {
        tracing::warn!(%error, "the last output is not kept");
    }
    let exit = exit_of(&watched)?;
    bundle.write_durable("exit.json", &exit)?;
    let goodbye = Frame::Exit(exit.status).encode();
    // A client that does not read for so long has no use for the status either.
    let patience = Some(std::time::Duration::from_secs(5));
    for client in &mut clients {
        client.outgoing.extend(&goodbye);
        let told = client
            .stream
            .set_nonblocking(false)
            .and_then(|()| client.stream.set_write_timeout(patience))
            .and_then(|()| flush(client));
        if let Err(error) = told {
            tracing::debug!(%error, "a client was not told");
        }
    }
    Ok(())
}

/// Reaps until the init is among the reaped.
fn exit_of(watched: &Watched) -> io::Result<Exit> {
    let init = watched.init.pid();
    loop {
        let Some((pid, status)) = wait(WaitOptions::empty())? else { continue };
        if pid == init {
            return Ok(exit(status));
        }
    }
}

fn exit(status: WaitStatus) -> Exit {
    let signal = status.terminating_signal();
    let status = match (status.exit_status(), signal) {
        (Some(status), _) => status,
        (None, Some(signal)) => 128 + signal,
        (None, None) => 255,
    };
    Exit { status, signal, at_ms: now_ms() }
}
