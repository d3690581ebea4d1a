//! What stands on the screen, and what keys make of it.

use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::*;
use crate::host::Store;
use crate::layer::{
    LayerBuilder, LayerPath, Layers, Metadata, NewContent, NewNode, Stack, Timestamp,
};
use crate::object::Objects;

/// An explorer on a screen in memory, over a store in a directory of its own.
struct Screen {
    explorer: Explorer,
    terminal: Terminal<TestBackend>,
    _dir: tempfile::TempDir,
}

const HOSTILE: &str = "evil\x1b]0;owned\x07\x1b[2J";

impl Screen {
    fn new(width: u16, height: u16) -> Self {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        Store::open_or_create(dir.path()).unwrap();
        let long = format!("a-name-that-is-{}-long.tar.gz", "very-".repeat(20));
        let below: Vec<(&str, Vec<u8>)> = vec![
            ("etc/passwd", b"root:x:0:0\n\x1b[31mred\n".to_vec()),
            ("etc/shadow", b"secret\n".to_vec()),
            ("usr/lib/libc.so.6", [b"\x7fELF\0".as_slice(), &[7; 3_000_000]].concat()),
            (HOSTILE, b"x".to_vec()),
            (&long, b"y".to_vec()),
        ];
        let above: Vec<(&str, Vec<u8>)> = vec![
            ("etc/passwd", b"root:x:0:0\nmore\n".to_vec()),
            ("usr/lib/libnew.so", vec![1; 4096]),
        ];
        let stack = Stack::new(vec![
            layer(dir.path(), &below, &[]),
            layer(dir.path(), &above, &["etc/shadow", "usr/lib/libc.so.6"]),
        ]);
        let library = Library::open(dir.path()).unwrap();
        let strata = Strata::of_stack(&library, "template debian:12".into(), &stack).unwrap();
        let explorer = Explorer::new(library, strata).unwrap();
        let terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        Self { explorer, terminal, _dir: dir }
    }

    /// Types keys; `⏎` is Enter, `⇥` Tab, `⎋` Escape, arrows are arrows.
    fn keys(&mut self, keys: &str) -> &mut Self {
        for key in keys.chars() {
            assert_eq!(self.key(key), Flow::Go, "{key}");
        }
        self
    }

    fn key(&mut self, key: char) -> Flow {
        let code = match key {
            '⏎' => KeyCode::Enter,
            '⇥' => KeyCode::Tab,
            '⎋' => KeyCode::Esc,
            '↓' => KeyCode::Down,
            '↑' => KeyCode::Up,
            '→' => KeyCode::Right,
            '←' => KeyCode::Left,
            letter => KeyCode::Char(letter),
        };
        self.lines();
        let key = KeyEvent::new(code, KeyModifiers::NONE);
        let action = keys::action(key, self.explorer.is_typing());
        action.map_or(Flow::Go, |action| self.explorer.act(action))
    }

    fn lines(&mut self) -> Vec<String> {
        self.terminal.draw(|frame| draw::screen(frame, &mut self.explorer)).unwrap();
        let buffer = self.terminal.backend().buffer();
        let width = usize::from(buffer.area.width);
        let rows = buffer.content.chunks(width);
        rows.map(|row| row.iter().map(|cell| cell.symbol()).collect()).collect()
    }

    /// The one line that has `text` in it.
    fn line(&mut self, text: &str) -> String {
        let lines = self.lines();
        let mut found = lines.iter().filter(|line| line.contains(text));
        let line = found.next().unwrap_or_else(|| panic!("no {text:?} in\n{}", lines.join("\n")));
        line.trim_end().to_owned()
    }

    fn shows(&mut self, text: &str) -> bool {
        self.lines().iter().any(|line| line.contains(text))
    }
}

fn layer(store: &Path, files: &[(&str, Vec<u8>)], gone: &[&str]) -> crate::layer::LayerId {
    let at = |path: &str| LayerPath::parse(path.as_bytes()).unwrap();
    let metadata = Metadata { mode: 0o644, uid: 0, gid: 0, mtime: Timestamp { secs: 0, nanos: 0 } };
    let layers = Layers::open(store).unwrap();
    let staging = Objects::open(store).unwrap().begin().unwrap();
    let mut builder = LayerBuilder::new();
    let mut puts = std::collections::HashMap::new();
    for (path, bytes) in files {
        let put = *puts.entry(bytes).or_insert_with(|| staging.put_bytes(bytes).unwrap());
        let (object, size, data_blocks) = (put.id, put.len_bytes, put.data_blocks);
        let content = NewContent::Regular { object, size, data_blocks };
        builder.put(&at(path), NewNode { metadata, xattrs: Vec::new(), content }).unwrap();
    }
    for path in gone {
        builder.whiteout(&at(path));
    }
    staging.publish().unwrap();
    let id = layers.publish(staging.dir(), builder.finish().unwrap()).unwrap();
    staging.finish().unwrap();
    id
}

#[test]
fn layers_and_tree_stand_side_by_side_in_80_columns() {
    let mut screen = Screen::new(80, 24);
    assert!(screen.line("template debian:12").ends_with("2 layers, 2.9 MiB, 2.9 MiB hidden"));
    assert_eq!(
        screen.line("  1  2.9 MiB").split('│').next().unwrap().trim(),
        "1  2.9 MiB     8    -    -"
    );
    assert_eq!(
        screen.line("▸  2").split('│').next().unwrap().trim(),
        "▸  2  4.0 KiB     1    1    2"
    );
    assert!(screen.line("Everything up to layer 2").ends_with("SIZE"));
    assert!(screen.line("▸ etc/").contains("·   ▸ etc/"));
    screen.keys("*");
    assert!(screen.line("passwd").contains("C     "), "a letter tells it");
    assert!(screen.line("shadow").contains("D     "));
    assert!(screen.line("libnew.so").ends_with("4.0 KiB"));
    assert!(screen.lines().iter().all(|line| crate::cli::explore::fit::width(line) == 80));
}

#[test]
fn hostile_names_and_contents_are_escaped() {
    let mut screen = Screen::new(80, 24);
    assert!(screen.shows("evil\\x1b]0;owned\\x07"));
    screen.keys("[/passwd⏎⏎");
    assert!(screen.shows("\\x1b[31mred"));
    let all = screen.lines().concat();
    assert!(!all.chars().any(char::is_control));
}

#[test]
fn long_names_keep_their_beginning_and_end() {
    let mut screen = Screen::new(80, 24);
    let line = screen.line("a-name-that-is");
    assert!(line.contains('…') && line.contains("tar.gz") && line.ends_with("1 B"), "{line}");
}

#[test]
fn a_binary_is_shown_as_bytes_and_escape_leads_back() {
    let mut screen = Screen::new(80, 24);
    screen.keys("[/libc⏎⏎");
    assert!(screen.line("00000000").contains("7f 45 4c 46 00"));
    assert!(screen.line("libc.so.6").contains("bytes, the beginning   lines 1–19 of 4096"));
    screen.keys("↓");
    assert!(!screen.shows("00000000"));
    screen.keys("⎋");
    assert!(screen.shows("Everything up to layer 1"));
}

#[test]
fn search_goes_from_match_to_match_and_around() {
    let mut screen = Screen::new(80, 24);
    screen.keys("/lib⏎");
    assert!(screen.shows("1 of 3 for \"lib\"") && screen.line("/usr/lib  ").contains("/usr/lib"));
    screen.keys("nn");
    assert!(screen.shows("3 of 3") && screen.shows("/usr/lib/libnew.so"));
    screen.keys("nN");
    assert!(screen.shows("3 of 3"));
    screen.keys("/nothing-like-this⏎");
    assert!(screen.shows("No name here has \"nothing-like-this\" in it."));
}

#[test]
fn only_changes_are_shown_when_asked_for() {
    let mut screen = Screen::new(80, 24);
    screen.keys("c*");
    assert!(screen.shows("Only what layer 2 changes"));
    assert!(screen.shows("libnew.so") && screen.shows("shadow") && !screen.shows("evil"));
    screen.keys("c");
    assert!(screen.shows("evil"));
}

#[test]
fn waste_names_layers_and_leads_to_the_file() {
    let mut screen = Screen::new(80, 24);
    screen.keys("w");
    assert!(screen.shows("Hidden by higher layers: 2.9 MiB (99 %)"));
    assert!(screen.line("/usr/lib/libc.so.6").contains(" 2.9 MiB    1    2  "));
    assert!(screen.line("  1  2.9 MiB").contains("2.9 MiB   2.9 MiB"), "by layer");
    screen.keys("⏎");
    assert!(screen.shows("Everything up to layer 1"));
    assert!(screen.lines()[22].contains("/usr/lib/libc.so.6"));
}

#[test]
fn a_wide_screen_tells_modes_and_owners() {
    let mut screen = Screen::new(120, 40);
    screen.keys("*");
    assert!(screen.line("libnew.so").ends_with("-rw-r--r--          0:0   4.0 KiB"));
    assert_eq!(screen.lines().len(), 40);
}

#[test]
fn a_small_terminal_is_told_what_is_needed() {
    for (width, height) in [(79, 24), (80, 23), (20, 4), (1, 1)] {
        let mut screen = Screen::new(width, height);
        let lines = screen.lines();
        assert!(width < 20 || lines.concat().contains("80×24"), "{lines:?}");
        assert_eq!(screen.key('q'), Flow::Quit);
    }
}

#[test]
fn help_fits_and_every_way_out_leads_out() {
    let mut screen = Screen::new(80, 24);
    screen.keys("?");
    assert!(screen.shows("q Ctrl-C") && screen.shows("· changed inside"));
    assert!(screen.shows("hard links once") && screen.shows("no name shows any more"));
    screen.keys("⎋/lib⏎⎋");
    assert_eq!(screen.key('⎋'), Flow::Quit);
    let control_c = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
    assert_eq!(keys::action(control_c, true), Some(keys::Action::Quit));
    assert_eq!(keys::action(control_c, false), Some(keys::Action::Quit));
}

#[test]
fn any_keys_in_any_order_leave_a_screen() {
    let keys = [
        '⏎', '⇥', '⎋', '↓', '↑', '→', '←', 'j', 'k', 'g', 'G', '[', ']', 'c', 's', '*', 'w', '?',
        '/', 'n', 'N', 'l', ' ', 'e',
    ];
    let seed = fastrand::u64(..);
    let mut random = fastrand::Rng::with_seed(seed);
    let mut screen = Screen::new(80, 24);
    for step in 0..3000 {
        let key = *random.choice(&keys).unwrap();
        if screen.key(key) == Flow::Quit {
            assert_eq!(key, '⎋', "seed {seed}, step {step}");
        }
        let lines = screen.lines();
        assert!(lines.iter().all(|line| fit::width(line) == 80), "seed {seed}, step {step}");
    }
}

/// Set for the test that is started again, in a terminal of its own.
const PANICS: &str = "MICA_TEST_PANICS_ON_SCREEN";

#[test]
fn a_panic_gives_the_terminal_back_before_it_is_told() {
    if std::env::var_os(PANICS).is_some() {
        on_screen(|_| panic!("told on the screen of before")).unwrap();
    }
    let name = "cli::explore::tests::a_panic_gives_the_terminal_back_before_it_is_told";
    let program = std::env::current_exe().unwrap();
    let command = format!("{} --exact {name} --nocapture; stty -a", program.display());
    let mut script = std::process::Command::new("script");
    script.args(["-qc", &command, "/dev/null"]).env(PANICS, "1").stdin(std::process::Stdio::null());
    let output = script.output().unwrap().stdout;
    let said = String::from_utf8_lossy(&output).into_owned();
    let entered = said.find("\x1b[?1049h").expect("the other screen");
    let told = said.find("told on the screen of before").expect("the panic");
    let left = said[..told].rfind("\x1b[?1049l").expect("the screen of before");
    assert!(entered < left, "{said:?}");
    for mode in ["icanon", "echo", "isig"] {
        assert!(said[told..].split_whitespace().any(|word| word == mode), "{mode}: {said}");
    }
}

#[test]
fn a_directory_of_a_hundred_thousand_files_answers_each_key_at_once() {
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    Store::open_or_create(dir.path()).unwrap();
    let names: Vec<String> = (0..100_000).map(|n| format!("many/file{n:06}")).collect();
    let mut files: Vec<(&str, Vec<u8>)> =
        names.iter().map(|name| (name.as_str(), b"x".to_vec())).collect();
    files.push(("few/file", b"x".to_vec()));
    let stack = Stack::new(vec![layer(dir.path(), &files, &[])]);
    let library = Library::open(dir.path()).unwrap();
    let strata = Strata::of_stack(&library, "template many".into(), &stack).unwrap();
    let explorer = Explorer::new(library, strata).unwrap();
    let terminal = Terminal::new(TestBackend::new(80, 24)).unwrap();
    let mut screen = Screen { explorer, terminal, _dir: dir };
    // Of the processor alone: how long others keep it is no matter of the explorer's.
    let used = || {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
        std::time::Duration::try_from(now).unwrap()
    };
    let time = |screen: &mut Screen, keys: &str| {
        let began = used();
        screen.keys(keys).lines();
        used() - began
    };
    screen.keys("⇥");
    // What costs the size of the tree: unfolding, searching, the other end.
    for keys in ["↓→", "G", "g", "/file099999⏎"] {
        let took = time(&mut screen, keys);
        assert!(took.as_secs() < 5, "{keys}: {took:?}");
    }
    assert!(screen.shows("file099999"), "{}", screen.lines().join("\n"));
    // What does not.
    let steps = "↑↓".repeat(50);
    let took = time(&mut screen, &steps);
    assert!(took.as_secs() < 5, "a hundred steps: {took:?}");
}
