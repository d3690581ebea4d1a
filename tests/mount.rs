//! A root mounted from the library, without the command line: the first journeys.
//!
//! Needs root and /dev/fuse.

// Helpers outside #[test] functions fail their test just as well.
#![allow(clippy::unwrap_used)]

mod support;

use std::io::Write;
use std::sync::{Mutex, MutexGuard, PoisonError};

use mica::layer::Stack;
use support::Scratch;
use support::library::{Root, file_system, run, template};

/// A child that another test forks holds our locks until it executes: one test at a time.
static ALONE: Mutex<()> = Mutex::new(());

fn mount(scratch: &Scratch, stack: &Stack, name: &str, private: bool, passthrough: bool) -> Root {
    let private = private.then(|| scratch.path().join(format!("{name}.p")));
    let fs = file_system(&scratch.path().join("store"), stack, private.as_deref());
    Root::serve(fs, &scratch.mountpoint(name), passthrough, 4)
}

fn scratch_store(name: &str) -> (MutexGuard<'static, ()>, Scratch, Stack) {
    let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let scratch = Scratch::new(name);
    let stack = template(&scratch.directory("store"));
    (alone, scratch, stack)
}

const CHANGES: &str = r#"
    test "$(cat usr/bin/../../etc/link)" = key=value
    test "$(usr/bin/tool)" = tool
    ls -la . etc srv usr/bin
    echo more >> etc/conf; test "$(cat etc/conf)" = "$(printf 'key=value\nmore')"
    echo gone > etc/empty; cat etc/empty
    chmod 600 usr/bin/tool; test "$(stat -c %a usr/bin/tool)" = 600
    test "$(cat usr/bin/tool | wc -c)" = 20
    ino=$(stat -c %i srv/one)
    test "$(stat -c %h srv/one)" = 3
    echo new >> srv/two
    test "$(cat srv/one)" = "$(printf 'linked\nnew')"; cmp srv/one etc/three
    test "$(stat -c %i srv/two)" = $ino; test "$(stat -c %h srv/one)" = 3
    rm srv/one; test "$(stat -c %h srv/two)" = 2
    ! test -e srv/one
    ln srv/two srv/one; test "$(stat -c %h etc/three)" = 3
    mv srv/deep srv/moved; test "$(cat srv/moved/er/file)" = deeper
    ! test -e srv/deep
    mkdir srv/deep; test -z "$(ls srv/deep)"
    echo x > srv/deep/file; test "$(cat srv/moved/file)" = deep
    rm -r srv/deep; ! test -e srv/deep
    rmdir srv/empty; ! test -e srv/empty; mkdir srv/empty; rmdir srv/empty
    rm usr/bin/big; ! test -e usr/bin/big
    mknod etc/null c 1 3; echo x > etc/null; test -c etc/null
    mknod etc/zero c 0 0; test "$(stat -c '%t:%T %F' etc/zero)" = "0:0 character special file"
    mkfifo etc/fifo; ln -s a/b etc/sym; test "$(readlink etc/sym)" = a/b
    mv etc/conf etc/conf2; mv etc/conf2 etc/conf; test "$(head -1 etc/conf)" = key=value
"#;

const AFTER: &str = r#"
    test "$(cat etc/conf)" = "$(printf 'key=value\nmore')"
    test "$(stat -c %a usr/bin/tool)" = 600
    test "$(cat srv/one)" = "$(printf 'linked\nnew')"; cmp srv/one etc/three
    test "$(stat -c %h etc/three)" = 3
    test "$(cat srv/moved/er/file)" = deeper
    ! test -e srv/deep; ! test -e srv/empty; ! test -e usr/bin/big
    test "$(stat -c '%t:%T %F' etc/zero)" = "0:0 character special file"
    ls -laR .
"#;

fn changes_stay_private(passthrough: bool) {
    let (_alone, scratch, stack) = scratch_store("mount");
    let before;
    {
        let root = mount(&scratch, &stack, "a", true, passthrough);
        let other = mount(&scratch, &stack, "b", true, passthrough);
        let other_before = run(&other.mountpoint, "find . -printf '%p %i %m %s %n %T@\\n' | sort");
        run(&root.mountpoint, CHANGES);
        run(&root.mountpoint, AFTER);
        before = run(&root.mountpoint, "find . -printf '%p %i %m %s %n\\n' | sort");
        let now = run(&other.mountpoint, "find . -printf '%p %i %m %s %n %T@\\n' | sort");
        assert_eq!(other_before, now);
        assert_eq!(root.fs.statistics().panics, 0);
    }
    let root = mount(&scratch, &stack, "a", true, passthrough);
    run(&root.mountpoint, AFTER);
    let after = run(&root.mountpoint, "find . -printf '%p %i %m %s %n\\n' | sort");
    assert_eq!(before, after);
}

#[test]
fn changes_stay_private_and_survive_a_remount_with_passthrough() {
    changes_stay_private(true);
}

#[test]
fn changes_stay_private_and_survive_a_remount_without_passthrough() {
    changes_stay_private(false);
}

#[test]
fn a_root_without_a_private_layer_refuses_changes() {
    let (_alone, scratch, stack) = scratch_store("readonly");
    let root = mount(&scratch, &stack, "r", false, true);
    run(&root.mountpoint, "cat etc/conf; ! touch etc/conf; ! rm etc/conf; ! mkdir x; usr/bin/tool");
}

#[test]
fn a_writer_beside_passthrough_readers_gets_its_own_copy() {
    use std::io::{Read, Seek};
    let (_alone, scratch, stack) = scratch_store("renumber");
    let root = mount(&scratch, &stack, "a", true, true);
    let path = root.mountpoint.join("usr/bin/tool");
    let mut reader = std::fs::File::open(&path).unwrap();
    let ino = std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(&path).unwrap());
    let mut writer = std::fs::OpenOptions::new().append(true).open(&path).unwrap();
    writer.write_all(b"more\n").unwrap();
    let text = std::fs::read_to_string(&path).unwrap();
    assert_eq!(text, "#!/bin/sh\necho tool\nmore\n");
    assert_eq!(std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(&path).unwrap()), ino);
    let mut old = String::new();
    reader.rewind().unwrap();
    reader.read_to_string(&mut old).unwrap();
    assert_eq!(old, "#!/bin/sh\necho tool\n");
    assert_eq!(root.fs.statistics().renumbered, 1);
}
