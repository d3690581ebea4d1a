//! A root mounted from the library, without the command line: the first journeys.
//!
//! Needs root and /dev/fuse.

// Helpers outside #[test] functions fail their test just as well.
#![allow(clippy::unwrap_used)]

mod support;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use mica::fs::FileSystem;
use mica::fuse::{Mount, MountOptions, Unmounter};
use mica::layer::{
    LayerBuilder, LayerPath, Layers, Metadata, NewContent, NewNode, Stack, Timestamp,
    default_shared_paths,
};
use mica::object::{ObjectReader, Objects};
use mica::private::PrivateLayer;
use mica::union::{SharedSet, Union};
use support::Scratch;

/// A child that another test forks holds our locks until it executes: one test at a time.
static ALONE: Mutex<()> = Mutex::new(());

struct Root {
    mountpoint: PathBuf,
    unmounter: Unmounter,
    server: Option<JoinHandle<()>>,
    fs: Arc<FileSystem>,
}

impl Drop for Root {
    fn drop(&mut self) {
        if let Err(errno) = self.unmounter.unmount() {
            eprintln!("unmount: {errno}");
            self.unmounter.detach().unwrap();
        }
        self.server.take().unwrap().join().unwrap();
    }
}

fn node(mode: u32, content: NewContent) -> NewNode {
    let mtime = Timestamp { secs: 1_000_000_000, nanos: 5 };
    NewNode { metadata: Metadata { mode, uid: 0, gid: 0, mtime }, xattrs: Vec::new(), content }
}

/// A store with one template: programs of a kind under /usr, data under /etc and /srv.
fn store(path: &Path) -> Stack {
    let objects = Objects::open(path).unwrap();
    let layers = Layers::open(path).unwrap();
    let staging = objects.begin().unwrap();
    let mut builder = LayerBuilder::new();
    let at = |path: &str| LayerPath::parse(path.as_bytes()).unwrap();
    for dir in ["usr", "usr/bin", "etc", "srv", "srv/empty", "srv/deep", "srv/deep/er"] {
        builder.put(&at(dir), node(0o755, NewContent::Directory)).unwrap();
    }
    for (name, mode, bytes) in [
        ("usr/bin/tool", 0o755, b"#!/bin/sh\necho tool\n".to_vec()),
        ("usr/bin/big", 0o755, vec![7u8; 3_000_000]),
        ("usr/bin/setuid", 0o4755, b"#!/bin/sh\nid -u\n".to_vec()),
        ("etc/conf", 0o644, b"key=value\n".to_vec()),
        ("etc/empty", 0o644, Vec::new()),
        ("srv/one", 0o644, b"linked\n".to_vec()),
        ("srv/deep/file", 0o644, b"deep\n".to_vec()),
        ("srv/deep/er/file", 0o600, b"deeper\n".to_vec()),
    ] {
        let put = staging.put_bytes(&bytes).unwrap();
        let content = NewContent::Regular {
            object: put.id,
            size: put.len_bytes,
            data_blocks: put.data_blocks,
        };
        builder.put(&at(name), node(mode, content)).unwrap();
    }
    builder.hard_link(&at("srv/two"), &at("srv/one")).unwrap();
    builder.hard_link(&at("etc/three"), &at("srv/one")).unwrap();
    builder.put(&at("etc/link"), node(0o777, NewContent::Symlink(b"conf"[..].into()))).unwrap();
    staging.publish().unwrap();
    let layer = layers.publish(staging.dir(), builder.finish().unwrap()).unwrap();
    staging.finish().unwrap();
    Stack::new(vec![layer])
}

fn mount(scratch: &Scratch, stack: &Stack, name: &str, private: bool, passthrough: bool) -> Root {
    let store = scratch.path().join("store");
    let layers = Layers::open(&store).unwrap();
    let tree = layers.tree(stack).unwrap();
    let shared = SharedSet::resolve(&tree, &default_shared_paths()).unwrap();
    let private = private
        .then(|| PrivateLayer::open(&scratch.path().join(format!("{name}.p")), stack).unwrap());
    let union = Union::new(tree, ObjectReader::open(&store).unwrap(), private, shared).unwrap();
    let fs = FileSystem::new(union);
    let options = MountOptions {
        mountpoint: scratch.mountpoint(name),
        source: "test".into(),
        flags: rustix::mount::MountFlags::empty(),
        passthrough,
        threads: 4,
    };
    let mount = Mount::new(Arc::clone(&fs), &options).unwrap();
    let unmounter = mount.unmounter();
    let server = std::thread::spawn(move || mount.run().unwrap());
    Root { mountpoint: options.mountpoint, unmounter, server: Some(server), fs }
}

/// Runs a shell script in `dir`; every command must succeed.
fn run(dir: &Path, script: &str) -> String {
    let mut shell = Command::new("bash")
        .args(["-euxo", "pipefail"])
        .current_dir(dir)
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    shell.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    let output = shell.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "script failed: {text}");
    text
}

fn scratch_store(name: &str) -> (MutexGuard<'static, ()>, Scratch, Stack) {
    let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let scratch = Scratch::new(name);
    let stack = store(&scratch.directory("store"));
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
