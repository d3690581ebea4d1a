//! At a terminal: `run -it`, `enter`, `console`.

use crate::stage::{Stage, TEMPLATE};

#[test]
fn a_terminal_is_handed_through_and_a_console_is_left_with_its_key() {
    let stage = Stage::new("supervisor-terminal");
    for init in ["init=no", "init=yes"] {
        let words = format!("run --rm -it {TEMPLATE} network=none {init} -- bash --norc");
        let typed = [("# ", "tty; echo $-\n"), ("/dev/pts/0", "exit 6\n")];
        let (status, said) = stage.at_terminal(&words, &typed);
        assert_eq!(status, 6, "{init}: {said}");
        assert!(said.contains('m') && !said.contains("no job control"), "{init}: {said}");
    }
    stage.create("c1", &["-it"], &["bash", "--norc"]);
    stage.mica(["start", "c1"]);
    // Left with Ctrl-a q, and the shell is still there, with what was typed.
    let typed = [("Ctrl-a q", "word=kept\n"), ("word=kept", "echo a$word\n"), ("akept", "\u{1}q")];
    let (status, said) = stage.at_terminal("console c1", &typed);
    assert_eq!(status, 0, "{said}");
    assert_eq!(stage.phase("c1"), "running");
    let typed = [("Ctrl-a q", "echo b$word\n"), ("bkept", "exit 3\n")];
    let (status, said) = stage.at_terminal("console c1", &typed);
    assert_eq!(status, 3, "it ended while somebody was there: {said}");
    stage.await_info("c1", "it ended", |info| info["phase"] == "stopped");
    stage.mica(["start", "c1"]);
    let typed = [("# ", "hostname; id -u; pwd\n"), ("/root", "exit 4\n")];
    let (status, said) = stage.at_terminal("enter c1", &typed);
    assert_eq!(status, 4, "{said}");
    assert!(said.contains("c1\r\n0\r\n/root"), "{said}");
}
