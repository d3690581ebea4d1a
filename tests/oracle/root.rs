//! Roots of mica served by a child process of the test, with knobs that the program has not:
//! each lock of the objects can be left off.
//!
//! The child is the test binary itself, told by an environment variable to run
//! [`serve_if_asked`]; a server in the process that uses the mount could deadlock on it.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use mica::fs::FileSystem;
use mica::fuse::{Mount, MountOptions};
use mica::layer::import::{ImportOptions, Silent, Source, import};
use mica::layer::{Layers, Stack};
use mica::object::{Locks, ObjectReader, Objects};
use mica::private::PrivateLayer;
use mica::union::{SharedSet, Union};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, unmount};
use serde::{Deserialize, Serialize};

use crate::layers::{Layer, write_tar};
use crate::support::{Succeed, again_until, is_mountpoint};

const ASKED: &str = "MICA_TEST_SERVE";
const READY: &str = "the root is mounted";

/// What to mount and how.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct RootSpec {
    /// The store.
    pub(crate) store: PathBuf,
    /// What lies below.
    pub(crate) stack: Stack,
    /// The private directory; none mounts read-only.
    pub(crate) private: Option<PathBuf>,
    /// Where to mount.
    pub(crate) mountpoint: PathBuf,
    /// Whether opens may pass through.
    pub(crate) passthrough: bool,
    /// Whether objects are reached through a read-only mount.
    pub(crate) readonly_mount: bool,
    /// What is opened in the shared way; by default what templates have.
    pub(crate) shared_paths: Vec<String>,
}

/// Imports `layers`, each as a tar archive on those below it, into the new store `store`.
pub(crate) fn import_stack(store: &Path, layers: &[Layer], locks: Locks) -> Stack {
    std::fs::create_dir_all(store).unwrap();
    let mut stack = Stack::default();
    for (index, layer) in layers.iter().enumerate() {
        let archive = store.join(format!("layer{index}.tar"));
        write_tar(layer, File::create(&archive).unwrap());
        stack = import_on(store, &archive, &stack, locks);
        std::fs::remove_file(&archive).unwrap();
    }
    stack
}

/// Imports one source on a stack, which may be empty.
pub(crate) fn import_on(store: &Path, source: &Path, on: &Stack, locks: Locks) -> Stack {
    let objects = Objects::open_with_locks(store, locks).unwrap();
    let manifests = Layers::open(store).unwrap();
    let below = (!on.is_empty()).then(|| manifests.tree(on).unwrap());
    let staging = objects.begin().unwrap();
    let options = ImportOptions { on: below.as_ref(), ..ImportOptions::default() };
    let imported = import(Source::open(source).unwrap(), &staging, &options, &Silent).unwrap();
    staging.publish().unwrap();
    let mut stack = on.clone();
    for bytes in imported.layers {
        stack = stack.extended(manifests.publish(staging.dir(), bytes).unwrap());
    }
    manifests.tree(&stack).unwrap();
    staging.finish().unwrap();
    stack
}

/// A served root. Dropping it unmounts and ends its process.
pub(crate) struct ServedRoot {
    spec: RootSpec,
    child: Option<Child>,
}

impl ServedRoot {
    /// Mounts and returns when the root can be used.
    pub(crate) fn start(spec: &RootSpec) -> Self {
        let mut root = Self { spec: spec.clone(), child: None };
        root.mount();
        root
    }

    /// Where it is mounted.
    pub(crate) fn path(&self) -> &Path {
        &self.spec.mountpoint
    }

    /// The process that serves it.
    pub(crate) fn pid(&self) -> u32 {
        self.child.as_ref().expect("the root is mounted").id()
    }

    fn mount(&mut self) {
        let mut child = Command::new(std::env::current_exe().unwrap())
            // The test that calls `serve_if_asked` in every binary that has this module.
            .args(["--exact", "serves_a_root_for_another_test", "--nocapture", "--test-threads=1"])
            .env(ASKED, serde_json::to_string(&self.spec).unwrap())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .process_group(0)
            .start();
        let told = BufReader::new(child.stdout.take().unwrap());
        self.child = Some(child);
        // The child keeps writing to no-one afterwards, so read to the line and leave.
        let ready = told.lines().map_while(Result::ok).any(|line| line.contains(READY));
        assert!(ready, "the root was not mounted: {:?}", self.spec);
    }

    /// Unmounts, waits for the process to end well, and mounts again.
    pub(crate) fn remount(&mut self) {
        self.stop();
        self.mount();
    }

    /// Unmounts and waits for the process to end well.
    pub(crate) fn stop(&mut self) {
        again_until("a program that another test is starting holds the root", || {
            match unmount(&self.spec.mountpoint, UnmountFlags::NOFOLLOW) {
                Err(Errno::BUSY) => false,
                done => done.map(|()| true).expect("the root can be unmounted"),
            }
        });
        let status = self.child.take().expect("the root is mounted").wait().unwrap();
        assert!(status.success(), "the mount process ended with {status}");
    }
}

impl Drop for ServedRoot {
    fn drop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        if is_mountpoint(&self.spec.mountpoint)
            && let Err(error) = unmount(&self.spec.mountpoint, UnmountFlags::DETACH)
        {
            eprintln!("cannot unmount {}: {error}", self.spec.mountpoint.display());
        }
        // Only matters when it hangs; whether it worked, the wait shows.
        let _killed = child.kill();
        let _ended = child.wait();
    }
}

/// Serves a root until it is unmounted, if this process was started for that.
pub(crate) fn serve_if_asked() {
    let Ok(asked) = std::env::var(ASKED) else { return };
    let spec: RootSpec = serde_json::from_str(&asked).unwrap();
    rustix::process::umask(rustix::fs::Mode::empty());
    let tree = Layers::open(&spec.store).unwrap().tree(&spec.stack).unwrap();
    let locks = Locks { readonly_mount: spec.readonly_mount, ..Locks::ALL };
    let objects = ObjectReader::open_with_locks(&spec.store, locks).unwrap();
    let private = spec.private.as_ref().map(|dir| PrivateLayer::open(dir, &spec.stack).unwrap());
    let flags = if private.is_none() { MountFlags::RDONLY } else { MountFlags::empty() };
    let shared = SharedSet::resolve(&tree, &spec.shared_paths).unwrap();
    let file_system = FileSystem::new(Union::new(tree, objects, private, shared).unwrap());
    let options = MountOptions {
        mountpoint: spec.mountpoint.clone(),
        source: "test".to_owned(),
        flags,
        passthrough: spec.passthrough,
        threads: 4,
    };
    let mount = Mount::new(file_system, &options).unwrap();
    assert_eq!(mount.passthrough(), spec.passthrough, "this kernel decides otherwise");
    let mut out = std::io::stdout();
    writeln!(out, "{READY}").unwrap();
    out.flush().unwrap();
    mount.run().unwrap();
    // The test harness around this would go on to write to a pipe that nobody reads.
    std::process::exit(0);
}
