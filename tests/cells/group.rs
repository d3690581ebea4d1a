//! Groups and processes of one test, gone with it.

use std::io::Write;
use std::process::{Child, Command, Stdio};

use mica::container::cgroup::{Cgroup, GroupPath, Layout, Limits};

use crate::support::Succeed;

/// Two levels above the groups, as containers have one above theirs.
pub(crate) struct Parent {
    pub(crate) layout: Layout,
    pub(crate) path: GroupPath,
}

impl Parent {
    pub(crate) fn new(layout: Layout) -> Self {
        // The host's cgroups are shared by runs that each count processes from one.
        let path = format!("mica-test-{:016x}", fastrand::u64(..));
        Self { layout, path: path.parse().unwrap() }
    }

    /// Of this host.
    pub(crate) fn here() -> Self {
        crate::support::require_root();
        Self::new(Layout::detect().unwrap())
    }

    pub(crate) fn group(&self, name: &str) -> Group {
        Group(Cgroup::create(&self.layout, self.path.join(name).unwrap()).unwrap())
    }
}

/// A group that is killed and removed when dropped.
pub(crate) struct Group(pub(crate) Cgroup);

impl std::ops::Deref for Group {
    type Target = Cgroup;

    fn deref(&self) -> &Cgroup {
        &self.0
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let gone = self.0.kill_all().and_then(|()| self.0.remove());
        if let Err(error) = gone.and_then(|()| self.0.remove_empty_parents()) {
            eprintln!("a group of this test stays: {error}");
        }
    }
}

impl Group {
    /// Runs `script` in the group from its first command on.
    pub(crate) fn run(&self, script: &str) -> Running {
        let mut child = Command::new("sh")
            .args(["-c", &format!("read go; {script}")])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .start();
        self.enter(child.id()).unwrap();
        child.stdin.take().unwrap().write_all(b"\n").unwrap();
        Running(child)
    }

    /// Applies `limits`, all of which this host holds.
    pub(crate) fn hold(&self, limits: &Limits) {
        assert_eq!(self.apply(limits).unwrap(), []);
    }
}

/// A process that is killed and reaped when dropped.
pub(crate) struct Running(pub(crate) Child);

impl Running {
    pub(crate) fn is_running(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended, and been reaped, already.
        let _ended = self.0.kill();
        self.0.wait().unwrap();
    }
}
