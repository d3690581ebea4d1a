//! A process inside, at this terminal: input and output, sizes, the end.

use std::io::{self, IsTerminal, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use ratatui::crossterm::terminal;

use crate::api::Connection;
use crate::container::console::{Frame, Pace};
use crate::host::interrupt_flag;

/// Ctrl-a: what comes next is for Mica.
const ESCAPE: u8 = 1;

/// How often the size of the terminal is looked at, and whether somebody wants to end.
const EVERY: Duration = Duration::from_millis(200);

/// Whether the process has a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Terminal {
    /// It has pipes.
    None,
    /// It has one, and this one is put at its service.
    Given,
    /// The same, and Ctrl-a q leaves it.
    Console,
}

/// Puts the terminal of this process back as it was.
struct Raw;

impl Raw {
    fn begin() -> Result<Option<Self>> {
        if !io::stdin().is_terminal() {
            return Ok(None);
        }
        terminal::enable_raw_mode().context("cannot take the terminal over")?;
        Ok(Some(Self))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // There is no other way to say so than on this very terminal.
        let _restored = terminal::disable_raw_mode();
    }
}

/// What of the typed is for the process; none: Ctrl-a q was typed.
fn typed(bytes: &[u8], escaped: &mut bool) -> Option<Vec<u8>> {
    let mut passed = Vec::with_capacity(bytes.len());
    for &byte in bytes {
        if *escaped {
            *escaped = false;
            match byte {
                b'q' => return None,
                ESCAPE => passed.push(ESCAPE),
                other => passed.extend([ESCAPE, other]),
            }
        } else if byte == ESCAPE {
            *escaped = true;
        } else {
            passed.push(byte);
        }
    }
    Some(passed)
}

/// Sends what is typed until it ends; a console that is left closes the connection.
fn send_input(mut to: UnixStream, console: bool) {
    let mut buffer = [0; 8192];
    let mut escaped = false;
    loop {
        let frame = match io::stdin().read(&mut buffer) {
            Ok(0) | Err(_) => Frame::EndOfInput,
            Ok(count) => {
                let bytes = buffer.get(..count).unwrap_or_default();
                let passed =
                    if console { typed(bytes, &mut escaped) } else { Some(bytes.to_vec()) };
                match passed {
                    Some(passed) => Frame::Input(passed),
                    None => {
                        // The other side sees the same as if this process had gone.
                        let _left = to.shutdown(std::net::Shutdown::Both);
                        return;
                    }
                }
            }
        };
        if to.write_all(&frame.encode()).is_err() || frame == Frame::EndOfInput {
            return;
        }
    }
}

fn size() -> Option<Frame> {
    let (columns, rows) = terminal::size().ok()?;
    Some(Frame::Resize { rows, columns })
}

/// Carries the streams of a process until it ended; answers its status. `interrupted` is called once
/// when somebody presses Ctrl-C where no terminal passes it on.
pub(super) fn carry(
    connection: Connection,
    terminal: Terminal,
    interactive: bool,
    interrupted: Option<&dyn Fn()>,
) -> Result<i32> {
    let raw = if terminal == Terminal::None { None } else { Raw::begin()? };
    let mut out = io::stdout().lock();
    let status = relay(connection, terminal, interactive, interrupted, &mut |frame| match frame {
        Frame::Output(bytes) => {
            out.write_all(bytes)?;
            out.flush()
        }
        Frame::Error(bytes) => io::stderr().lock().write_all(bytes),
        Frame::Input(_) | Frame::EndOfInput | Frame::Resize { .. } | Frame::Exit(_) => Ok(()),
    });
    drop(raw);
    status
}

/// As [`carry`], with the output given to `show`.
pub(super) fn relay(
    connection: Connection,
    terminal: Terminal,
    interactive: bool,
    interrupted: Option<&dyn Fn()>,
    show: &mut dyn FnMut(&Frame) -> io::Result<()>,
) -> Result<i32> {
    let Connection { mut stream, early: mut bytes } = connection;
    // A process that ended at once is told of by a daemon that reads no more: what it said is there
    // to be read all the same, and if it said nothing, reading tells.
    let say = |mut stream: &UnixStream, bytes: &[u8]| {
        let _gone = stream.write_all(bytes);
    };
    say(&stream, &[Pace::Follow.byte()]);
    let mut seen = if terminal == Terminal::None { None } else { size() };
    if let Some(size) = &seen {
        say(&stream, &size.encode());
    }
    if interactive || terminal == Terminal::Console {
        let to = stream.try_clone().context("cannot share the connection")?;
        let console = terminal == Terminal::Console;
        std::thread::spawn(move || send_input(to, console));
    }
    let flag = interrupted.map(|_| interrupt_flag()).transpose()?;
    let mut told = false;
    stream.set_read_timeout(Some(EVERY)).context("cannot wait on the connection")?;
    let mut buffer = [0; 32 << 10];
    loop {
        while let Some(frame) = Frame::decode(&mut bytes).context("the daemon talks nonsense")? {
            if let Frame::Exit(status) = frame {
                return Ok(status);
            }
            show(&frame)?;
        }
        match stream.read(&mut buffer) {
            Ok(0) if terminal == Terminal::Console => return Ok(0),
            Ok(0) => bail!("the connection broke; the process may run on"),
            Ok(count) => bytes.extend_from_slice(buffer.get(..count).unwrap_or_default()),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock
                        | io::ErrorKind::TimedOut
                        | io::ErrorKind::Interrupted
                ) => {}
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                bail!("the connection broke; the process may run on")
            }
            Err(error) => return Err(error).context("the daemon went away"),
        }
        if let (Some(flag), Some(interrupted)) = (flag, interrupted)
            && flag.load(Ordering::Relaxed)
            && !told
        {
            told = true;
            interrupted();
        }
        if seen.is_some() {
            let now = size();
            if now != seen
                && let Some(size) = &now
            {
                say(&stream, &size.encode());
            }
            seen = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_said_before_the_other_side_closed_is_read_though_nothing_can_be_written() {
        let (stream, mut daemon) = UnixStream::pair().expect("a pair");
        let frames = [Frame::Error(b"why".to_vec()), Frame::Exit(125)];
        for frame in &frames {
            daemon.write_all(&frame.encode()).expect("written");
        }
        drop(daemon);
        let mut told = Vec::new();
        let connection = Connection { stream, early: Vec::new() };
        let status = relay(connection, Terminal::None, false, None, &mut |frame| {
            told.push(frame.clone());
            Ok(())
        });
        assert_eq!(status.expect("it ended"), 125);
        assert_eq!(told, frames[..1]);
        // Nothing was said: that is told of.
        let (stream, daemon) = UnixStream::pair().expect("a pair");
        drop(daemon);
        let connection = Connection { stream, early: Vec::new() };
        let broke = relay(connection, Terminal::None, false, None, &mut |_| Ok(()));
        assert!(broke.expect_err("no end").to_string().contains("broke"));
    }

    #[test]
    fn a_console_is_left_by_its_two_keys_and_by_nothing_else() {
        let mut escaped = false;
        assert_eq!(typed(b"ls\r", &mut escaped), Some(b"ls\r".to_vec()));
        assert_eq!(typed(b"q\x01\x01q", &mut escaped), Some(b"q\x01q".to_vec()));
        assert_eq!(typed(b"\x01x", &mut escaped), Some(b"\x01x".to_vec()));
        assert_eq!(typed(b"a\x01", &mut escaped), Some(b"a".to_vec()));
        assert_eq!(typed(b"q", &mut escaped), None);
    }
}
