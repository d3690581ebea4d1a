//! A root mounted from the library, without the command line, on a small template.

// What goes wrong in here fails the test that called.
#![allow(clippy::unwrap_used)]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::thread::JoinHandle;

use mica::fs::FileSystem;
use mica::fuse::{Mount, MountOptions, Unmounter};
use mica::layer::{
    LayerBuilder, LayerPath, Layers, Metadata, NewContent, NewNode, Stack, Timestamp,
    default_shared_paths,
};
use mica::object::{ObjectReader, Objects, Staging};
use mica::private::{PrivateError, PrivateLayer};
use mica::union::{SharedSet, Union};

use super::command::Succeed;
use super::patience::again_until;

/// A served root; dropping it unmounts.
pub(crate) struct Root {
    pub(crate) mountpoint: PathBuf,
    pub(crate) fs: Arc<FileSystem>,
    unmounter: Unmounter,
    server: Option<JoinHandle<()>>,
}

impl Root {
    /// Serves `fs` on `mountpoint` with `threads` threads.
    pub(crate) fn serve(
        fs: Arc<FileSystem>,
        mountpoint: &Path,
        passthrough: bool,
        threads: usize,
    ) -> Self {
        let options = MountOptions {
            mountpoint: mountpoint.to_owned(),
            source: "test".into(),
            flags: rustix::mount::MountFlags::empty(),
            passthrough,
            threads,
        };
        let mount = Mount::new(Arc::clone(&fs), &options).unwrap();
        let unmounter = mount.unmounter();
        let server = std::thread::spawn(move || mount.run().unwrap());
        Self { mountpoint: options.mountpoint, fs, unmounter, server: Some(server) }
    }
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

pub(crate) fn node(mode: u32, content: NewContent) -> NewNode {
    let mtime = Timestamp { secs: 1_000_000_000, nanos: 5 };
    NewNode { metadata: Metadata { mode, uid: 0, gid: 0, mtime }, xattrs: Vec::new(), content }
}

/// Makes a store with one template of what `fill` puts in it.
pub(crate) fn store_with(path: &Path, fill: impl FnOnce(&mut LayerBuilder, &Staging)) -> Stack {
    let objects = Objects::open(path).unwrap();
    let layers = Layers::open(path).unwrap();
    let staging = objects.begin().unwrap();
    let mut builder = LayerBuilder::new();
    fill(&mut builder, &staging);
    staging.publish().unwrap();
    let layer = layers.publish(staging.dir(), builder.finish().unwrap()).unwrap();
    staging.finish().unwrap();
    Stack::new(vec![layer])
}

/// A path of a layer.
pub(crate) fn at(path: &str) -> LayerPath {
    LayerPath::parse(path.as_bytes()).unwrap()
}

/// A regular file.
pub(crate) fn regular(staging: &Staging, mode: u32, bytes: &[u8]) -> NewNode {
    let put = staging.put_bytes(bytes).unwrap();
    let content =
        NewContent::Regular { object: put.id, size: put.len_bytes, data_blocks: put.data_blocks };
    node(mode, content)
}

/// Makes a store with one template: programs of a kind under /usr, data under /etc and /srv.
pub(crate) fn template(path: &Path) -> Stack {
    store_with(path, |builder, staging| {
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
            builder.put(&at(name), regular(staging, mode, &bytes)).unwrap();
        }
        builder.hard_link(&at("srv/two"), &at("srv/one")).unwrap();
        builder.hard_link(&at("etc/three"), &at("srv/one")).unwrap();
        let link = NewContent::Symlink(b"conf"[..].into());
        builder.put(&at("etc/link"), node(0o777, link)).unwrap();
    })
}

/// The file system of `stack` with the private layer `private`, served by nobody yet.
pub(crate) fn file_system(store: &Path, stack: &Stack, private: Option<&Path>) -> Arc<FileSystem> {
    let tree = Layers::open(store).unwrap().tree(stack).unwrap();
    let shared = SharedSet::resolve(&tree, &default_shared_paths()).unwrap();
    let private = private.map(|path| {
        let mut layer = None;
        // A program that another test is just starting has the lock of one that was closed.
        again_until("the private directory is free", || {
            layer = match PrivateLayer::open(path, stack) {
                Err(PrivateError::InUse(_)) => None,
                opened => Some(opened.unwrap()),
            };
            layer.is_some()
        });
        layer.unwrap()
    });
    let union = Union::new(tree, ObjectReader::open(store).unwrap(), private, shared).unwrap();
    FileSystem::new(union)
}

/// Runs a shell script in `dir`; every command must succeed.
pub(crate) fn run(dir: &Path, script: &str) -> String {
    let mut shell = Command::new("bash")
        .args(["-euxo", "pipefail"])
        .current_dir(dir)
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .start();
    shell.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    let output = shell.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "script failed: {text}");
    text
}
