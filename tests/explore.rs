//! The explorer on a real terminal: `mica` in tmux, driven by keys, judged by its screen.
//!
//! Needs root, /dev/fuse and tmux.

mod support;

use std::cell::RefCell;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use support::{MountOptions, Scratch, Store, Succeed, again_until, require_root};

/// A terminal of its own, with a program in it; it ends with the test.
struct Terminal {
    socket: PathBuf,
}

impl Terminal {
    /// Runs a shell command in a terminal of 80×24. What it prints afterwards stays on the screen.
    fn run(scratch: &Scratch, command: &str) -> Self {
        // Each has a server of its own: one that is just ending takes no more terminals.
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let terminal = Self { socket: scratch.path().join(format!("tmux{number}")) };
        let script = format!("echo before; {command}; echo \"ended with $?\"; exec cat");
        terminal
            .tmux(&["-f", "/dev/null", "-u", "new-session", "-d", "-x", "80", "-y", "24", &script])
            .env("LC_ALL", "C.UTF-8")
            .succeed();
        terminal
    }

    fn tmux(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("tmux");
        command.arg("-S").arg(&self.socket).args(arguments);
        command
    }

    fn screen(&self) -> String {
        self.tmux(&["capture-pane", "-p"]).succeed()
    }

    /// Waits until the screen shows all of `texts`, and returns it.
    fn shows(&self, texts: &[&str]) -> String {
        let last = RefCell::new(String::new());
        let told = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            again_until("the screen", || {
                *last.borrow_mut() = self.screen();
                texts.iter().all(|text| last.borrow().contains(text))
            });
        }));
        assert!(told.is_ok(), "no {texts:?} on\n{}", last.borrow());
        last.into_inner()
    }

    fn press(&self, keys: &[&str]) {
        self.tmux(&["send-keys"]).args(keys).succeed();
    }

    fn type_in(&self, text: &str) {
        self.tmux(&["send-keys", "-l", text]).succeed();
    }

    fn resize(&self, width: u16, height: u16) {
        let (width, height) = (width.to_string(), height.to_string());
        self.tmux(&["resize-window", "-x", &width, "-y", &height]).succeed();
    }

    /// The process that the shell of the terminal runs.
    fn program(&self) -> String {
        let shell = self.tmux(&["display-message", "-p", "#{pane_pid}"]).succeed();
        Command::new("pgrep").args(["-P", shell.trim()]).succeed().trim().to_owned()
    }

    /// Waits for the end of the program; the terminal is as it was before.
    fn ended(&self, status: u8) {
        let screen = self.shows(&[&format!("ended with {status}")]);
        assert!(screen.contains("before"), "the screen of before is back:\n{screen}");
        let format = "#{alternate_on} #{cursor_flag} #{pane_tty}";
        let told = self.tmux(&["display-message", "-p", format]).succeed();
        let (flags, tty) = told.trim().rsplit_once(' ').expect("three words");
        assert_eq!(flags, "0 1", "no other screen, and a cursor");
        let modes = Command::new("stty").args(["-a", "-F", tty]).succeed();
        for mode in ["icanon", "echo", "isig"] {
            assert!(modes.split_whitespace().any(|word| word == mode), "{mode}: {modes}");
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // It is gone already if it never started.
        let _ended = self.tmux(&["kill-server"]).output();
    }
}

/// Three layers: a base, one that changes and removes, and one that hides more.
fn layered(scratch: &Scratch) -> Store {
    let store = Store::at(&scratch.path().join("store"));
    let put = |dir: &Path, path: &str, bytes: &[u8]| {
        let path = dir.join(path);
        fs::create_dir_all(path.parent().expect("in a directory")).expect("made");
        fs::write(path, bytes).expect("written");
    };
    let base = scratch.directory("base");
    put(&base, "etc/hosts", b"127.0.0.1 localhost\n");
    put(&base, "etc/motd", b"hello\n\x1b]0;owned\x07\x1b[2Jrest\n");
    put(&base, "usr/lib/libold.so", &[b"\x7fELF\0".as_slice(), &[1; 300_000]].concat());
    let hostile = std::ffi::OsStr::from_bytes(b"evil\x1b[2J\xff");
    fs::write(base.join(hostile), "x").expect("written");
    for n in 0..200 {
        put(&base, &format!("usr/share/doc/file{n:03}"), format!("{n}\n").as_bytes());
    }
    store.import("app:1", &base);
    let second = scratch.directory("second");
    put(&second, "etc/hosts", b"127.0.0.1 localhost\n10.0.0.1 db\n");
    put(&second, "usr/lib/.wh.libold.so", b"");
    put(&second, "usr/lib/libnew.so", &[2; 200_000]);
    store.mica(["template", "import", "app:2", "--on", "app:1"]).arg(&second).succeed();
    let third = scratch.directory("third");
    put(&third, "srv/data", b"data\n");
    store.mica(["template", "import", "app:3", "--on", "app:2"]).arg(&third).succeed();
    store
}

fn explore(store: &Store, what: &str) -> String {
    format!("MICA_STORE='{}' '{}' {what}", store.path().display(), env!("CARGO_BIN_EXE_mica"))
}

#[test]
fn a_template_is_looked_through_by_keys_alone() {
    require_root();
    let scratch = Scratch::new("explore");
    let store = layered(&scratch);
    let terminal = Terminal::run(&scratch, &explore(&store, "template explore app:3"));

    let screen = terminal.shows(&["template app:3", "3 layers", "Everything up to layer 3"]);
    assert!(screen.contains("evil\\x1b[2J\\xff"), "{screen}");
    assert_eq!(screen.lines().count(), 24, "{screen}");
    let history = store.mica(["template", "history", "app:3", "--json"]).succeed();
    let history: serde_json::Value = serde_json::from_str(&history).expect("JSON");
    for row in history["layers"].as_array().expect("layers") {
        let count = |word: &str| match row[word].as_u64().expect("a number") {
            0 => "-".to_owned(),
            count => count.to_string(),
        };
        let line = screen.lines().map(|line| line.trim_start_matches(['▸', ' ']));
        let number = format!("{} ", row["number"]);
        let line = line.into_iter().find(|line| line.starts_with(&number)).expect("the layer");
        let words: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(words[3..6], [count("added"), count("changed"), count("deleted")], "{line}");
    }

    // The second layer: what it changed is marked, also without colour.
    terminal.press(&["["]);
    terminal.shows(&["Everything up to layer 2"]);
    terminal.press(&["*"]);
    terminal.shows(&["C     "]);
    terminal.press(&["c"]);
    let screen = terminal.shows(&["Only what layer 2 changes", "libnew.so"]);
    let row = |name: &str| {
        let line = screen.lines().find(|line| line.contains(name)).expect("it is there");
        line.split_once('│').expect("two panes").1.trim().to_owned()
    };
    assert!(row("libold.so").starts_with('D') && row("libold.so").ends_with("293 KiB"));
    assert!(row("libnew.so").starts_with('A') && row("libnew.so").ends_with("195 KiB"));
    assert!(row("hosts").starts_with('C') && !screen.contains("file000"));

    // What is hidden, and from there to the file in its layer.
    terminal.press(&["w"]);
    let screen = terminal.shows(&["Hidden by higher layers: 293 KiB", "/usr/lib/libold.so"]);
    assert!(screen.contains("293 KiB    1    2  /usr/lib/libold.so"), "{screen}");
    terminal.press(&["Enter"]);
    terminal.shows(&["Everything up to layer 1", "libold.so"]);
    terminal.press(&["Enter"]);
    terminal.shows(&["00000000  7f 45 4c 46 00 01 01 01", "bytes"]);
    terminal.press(&["Escape"]);
    terminal.shows(&["Everything up to layer 1"]);

    // Search, and a text with an attack in it.
    terminal.press(&["/"]);
    terminal.type_in("motd");
    terminal.press(&["Enter"]);
    terminal.shows(&["1 of 1 for \"motd\"", "/etc/motd"]);
    terminal.press(&["Enter"]);
    terminal.shows(&["hello", "\\x1b]0;owned\\x07\\x1b[2Jrest"]);
    let title = terminal.tmux(&["display-message", "-p", "#{pane_title}"]).succeed();
    assert!(!title.contains("owned"), "{title}");
    terminal.press(&["?"]);
    terminal.shows(&["q Ctrl-C", "A added"]);

    // Smaller than it can be, and back, and larger.
    terminal.resize(60, 20);
    terminal.shows(&["80×24", "60×20"]);
    terminal.resize(120, 40);
    terminal.shows(&["A added"]);
    terminal.press(&["Escape"]);
    let screen = terminal.shows(&["Everything up to layer 1", "MODE", "OWNER", "-rw-r--r--"]);
    assert!(screen.lines().count() == 40 && screen.lines().any(|line| line.chars().count() > 100));
    terminal.press(&["q"]);
    terminal.ended(0);
}

#[test]
fn every_way_out_gives_the_terminal_back() {
    require_root();
    let scratch = Scratch::new("explore");
    let store = layered(&scratch);
    for way in [&["q"][..], &["Escape"], &["C-c"], &["/", "a", "C-c"], &["?", "q"]] {
        let terminal = Terminal::run(&scratch, &explore(&store, "template explore app:2"));
        terminal.shows(&["Everything up to layer 2"]);
        terminal.press(way);
        terminal.ended(0);
    }
    let terminal = Terminal::run(&scratch, &explore(&store, "template explore app:2"));
    terminal.shows(&["Everything up to layer 2"]);
    Command::new("kill").arg(terminal.program()).succeed();
    terminal.ended(143);
    drop(terminal);
    // A terminal that goes away takes the program with it.
    let terminal = Terminal::run(&scratch, &explore(&store, "template explore app:2"));
    terminal.shows(&["Everything up to layer 2"]);
    let process = Path::new("/proc").join(terminal.program());
    drop(terminal);
    again_until("the explorer outlives its terminal", || !process.exists());
}

#[test]
fn a_container_has_its_own_changes_on_top() {
    require_root();
    let scratch = Scratch::new("explore");
    let store = layered(&scratch);
    let private = scratch.path().join("private");
    let at = scratch.mountpoint("web1");
    let mounted = store.mount("app:3", &at, &MountOptions::private(&private).with("--name=web1"));
    let change = "echo 1.1.1.1 >>etc/hosts; rm srv/data; echo own >etc/own; mv usr/share usr/moved";
    Command::new("sh").args(["-euc", change]).current_dir(&at).succeed();
    // Mounted or not.
    let mut mounted = Some(mounted);
    for _ in 0..2 {
        let terminal = Terminal::run(&scratch, &explore(&store, "explore web1"));
        terminal.shows(&["root web1", "4 layers", "Everything up to the private layer"]);
        terminal.press(&["c", "*"]);
        let screen = terminal.shows(&["Only what the private layer changes", "own"]);
        for row in [["C", "hosts"], ["A", "own"], ["D", "data"]] {
            let words = |line: &str| -> Vec<String> {
                let tree = line.split_once('│').map_or("", |(_, tree)| tree);
                tree.split_whitespace().map(str::to_owned).collect()
            };
            let found = screen.lines().any(|line| words(line).starts_with(&row.map(String::from)));
            assert!(found, "{row:?}\n{screen}");
        }
        terminal.press(&["/"]);
        terminal.type_in("etc/own");
        terminal.press(&["Enter", "Enter"]);
        terminal.shows(&["own", "text", "Esc back"]);
        // Escape and a letter at once are Alt and the letter to a terminal.
        terminal.press(&["Escape"]);
        terminal.shows(&["Only what the private layer changes"]);
        terminal.press(&["/"]);
        terminal.type_in("moved/doc/file042");
        terminal.press(&["Enter", "Enter"]);
        terminal.shows(&["file042", "  lines 1–1 of 1", " 42"]);
        terminal.press(&["q"]);
        terminal.ended(0);
        drop(terminal);
        if let Some(mounted) = mounted.take() {
            mounted.unmount();
        }
    }
}

#[test]
fn two_templates_are_compared() {
    require_root();
    let scratch = Scratch::new("explore");
    let store = layered(&scratch);
    let terminal = Terminal::run(&scratch, &explore(&store, "template explore app:1 app:3"));
    terminal.shows(&["template app:1 → template app:3", "What template app:3 changes"]);
    terminal.press(&["*"]);
    terminal.shows(&["libnew.so", "libold.so", "hosts", "data"]);
    terminal.press(&["w"]);
    terminal.shows(&["Two trees are compared here"]);
    terminal.press(&["q"]);
    terminal.ended(0);
}

#[test]
fn without_a_terminal_one_sentence_tells_why_not() {
    require_root();
    let scratch = Scratch::new("explore");
    let store = layered(&scratch);
    for words in [&["template", "explore", "app:1"][..], &["explore", "web1"]] {
        let output = store.mica(words.iter().copied()).capture();
        assert_eq!(output.status.code(), Some(2));
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(told.contains("needs a terminal") && told.lines().count() == 1, "{told}");
        assert!(output.stdout.is_empty());
    }
}
