//! Terminals, attached clients, and what goes through them.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use mica::container::console::{Frame, Pace, connect, resize};
use mica::container::runtime::ExecRequest;

use crate::stage::{Cell, Wish, with_both};

with_both!(
    a_terminal_is_one_and_follows_its_size,
    an_attached_client_feeds_the_command_and_hears_its_end,
    a_command_beside_the_init_has_a_terminal_of_its_own,
);

/// A client that has said how it wants to be served.
struct Client {
    stream: UnixStream,
    buffer: Vec<u8>,
}

impl Client {
    fn attach(cell: &Cell, pace: Pace) -> Self {
        let mut stream = connect(&cell.bundle.attach_socket()).unwrap();
        stream.write_all(&[pace.byte()]).unwrap();
        stream.set_read_timeout(Some(crate::support::PATIENCE)).unwrap();
        Self { stream, buffer: Vec::new() }
    }

    fn send(&mut self, frame: &Frame) {
        self.stream.write_all(&frame.encode()).unwrap();
    }

    fn next(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = Frame::decode(&mut self.buffer).unwrap() {
                return Some(frame);
            }
            let mut bytes = [0; 4096];
            match self.stream.read(&mut bytes).unwrap() {
                0 => return None,
                count => self.buffer.extend(&bytes[..count]),
            }
        }
    }

    /// Everything that comes until the end, by stream, and the status.
    fn rest(&mut self) -> (String, String, Option<i32>) {
        let (mut out, mut err, mut status) = (Vec::new(), Vec::new(), None);
        while let Some(frame) = self.next() {
            match frame {
                Frame::Output(bytes) => out.extend(bytes),
                Frame::Error(bytes) => err.extend(bytes),
                Frame::Exit(code) => status = Some(code),
                Frame::Input(_) | Frame::Resize { .. } | Frame::EndOfInput => panic!("{frame:?}"),
            }
        }
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        (text(out), text(err), status)
    }

    fn until(&mut self, wanted: &str) -> String {
        let mut text = String::new();
        while !text.contains(wanted) {
            match self.next() {
                Some(Frame::Output(bytes)) => text.push_str(&String::from_utf8_lossy(&bytes)),
                other => panic!("{other:?} after {text:?}"),
            }
        }
        text
    }
}

fn a_terminal_is_one_and_follows_its_size(runtime: &str) {
    let cell = Cell::prepare(
        runtime,
        Wish::application(&["/bin/sh", "-c", "tty; read x; stty size; read x; exit 5"])
            .with(&[("terminal", "yes"), ("interactive", "yes")]),
    );
    cell.create();
    let mut client = Client::attach(&cell, Pace::Follow);
    client.send(&Frame::Resize { rows: 33, columns: 101 });
    cell.runtime.start(&cell.bundle).unwrap();
    let said = client.until("\n");
    assert!(said.contains("/dev/pts/0") || said.contains("/dev/console"), "{said}");
    client.send(&Frame::Input(b"\n".to_vec()));
    // To its very end: what is left of it would be for whoever comes next, too.
    client.until("33 101\r\n");
    // Somebody else on the same terminal, who then talks nonsense and is dropped.
    let mut other = Client::attach(&cell, Pace::Console);
    other.send(&Frame::Exit(1));
    assert_eq!(other.next(), None);
    client.send(&Frame::Input(b"\n".to_vec()));
    assert_eq!(client.rest().2, Some(5));
    assert_eq!(cell.exit().status, 5);
}

fn an_attached_client_feeds_the_command_and_hears_its_end(runtime: &str) {
    let cell = Cell::prepare(
        runtime,
        Wish::application(&["/bin/sh", "-c", "echo begun >&2; md5sum; exit 9"])
            .with(&[("interactive", "yes")]),
    );
    cell.create();
    let mut client = Client::attach(&cell, Pace::Follow);
    cell.runtime.start(&cell.bundle).unwrap();
    let mut writer = client.stream.try_clone().unwrap();
    let feeding = std::thread::spawn(move || {
        // More than any pipe or buffer on the way holds.
        for _ in 0..200 {
            writer.write_all(&Frame::Input(vec![b'x'; 50_000]).encode()).unwrap();
        }
        writer.write_all(&Frame::EndOfInput.encode()).unwrap();
    });
    let (out, err, status) = client.rest();
    feeding.join().unwrap();
    let want =
        crate::stage::host("sh", &["-c", "head -c 10000000 /dev/zero | tr '\\0' x | md5sum"]);
    assert_eq!((out, err.as_str(), status), (want, "begun\n", Some(9)));
}

fn a_command_beside_the_init_has_a_terminal_of_its_own(runtime: &str) {
    let cell = Cell::start(runtime, Wish::application(&["sleep", "infinity"]));
    let script =
        "tty; stty size; stty -echo; read x; stty size; echo got $x; ps -o tty= -p $$; exit 4";
    let request = ExecRequest {
        args: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(),
        terminal: Some((40, 120)),
        ..ExecRequest::default()
    };
    let exec = cell.runtime.exec(&cell.bundle, &request).unwrap();
    let terminal: OwnedFd = exec.terminal.expect("a terminal");
    let mut terminal = std::fs::File::from(terminal);
    let mut text = String::new();
    let mut read = |terminal: &mut std::fs::File, wanted: &str| {
        let mut bytes = [0; 1024];
        while !text.contains(wanted) {
            match terminal.read(&mut bytes) {
                Ok(count) if count > 0 => text.push_str(&String::from_utf8_lossy(&bytes[..count])),
                // The other side is closed.
                Ok(_) | Err(_) => break,
            }
        }
        text.clone()
    };
    use std::os::fd::AsFd;
    let said = read(&mut terminal, "40 120");
    assert!(said.contains("/dev/pts/"), "{said}");
    resize(terminal.as_fd(), 41, 121).unwrap();
    terminal.write_all(b"it\n").unwrap();
    let said = read(&mut terminal, "never said");
    assert!(said.contains("41 121") && said.contains("got it"), "{said}");
    assert!(said.trim_end().ends_with("pts/0"), "{said}");
    let mut child = exec.child;
    assert_eq!(child.wait().unwrap().code(), Some(4), "{said}");
    // A failure is told on standard error, and by the status.
    let request = ExecRequest { args: vec!["no-such".into()], ..request };
    let exec = cell.runtime.exec(&cell.bundle, &request).unwrap();
    let output = exec.child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(127), "{output:?}");
}
