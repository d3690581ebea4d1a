//! runc alone on a plain directory; podman and lxc of Debian in a root of their own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::support::{Scratch, Succeed, again_until, debian};

/// What there is to compare with; `None` where it does not run, which was said.
pub(crate) struct Peers {
    directory: PathBuf,
    /// Who keeps the mount namespace whose root is the Debian of podman and lxc.
    keeper: Option<Child>,
    runc: bool,
    podman: bool,
    pub(crate) lxc: bool,
}

/// Where the plain directory is in the root of podman and lxc.
const PLAIN: &str = "/plain";

/// The name of the peers' own Debian, and what it has on top of the least.
pub(crate) const ARCHIVE: (&str, &str) = ("peers", "podman,runc,lxc,iproute2,nftables");

impl Peers {
    pub(crate) fn find(scratch: &Scratch, tar: &Path) -> Self {
        let directory = scratch.directory("peers");
        let plain = scratch.directory("peers/bundle/rootfs");
        Command::new("tar").arg("-xf").arg(tar).arg("-C").arg(&plain).succeed();
        let mut peers = Self { directory, keeper: None, runc: false, podman: false, lxc: false };
        peers.runc = peers.try_runc();
        peers.keeper = Some(peers.furnish());
        peers.podman = tried("podman", &mut peers.podman_run());
        peers.lxc = tried("lxc", &mut peers.lxc_execute());
        peers
    }

    fn bundle(&self) -> PathBuf {
        self.directory.join("bundle")
    }

    fn debian(&self) -> PathBuf {
        self.directory.join("debian")
    }

    fn try_runc(&self) -> bool {
        let mut spec = Command::new("runc");
        let spec = spec.arg("spec").current_dir(self.bundle()).output();
        if !spec.is_ok_and(|told| told.status.success()) {
            println!("runc is not here");
            return false;
        }
        let file = self.bundle().join("config.json");
        let text = fs::read_to_string(&file).expect("runc wrote it");
        let text = text.replace("\"terminal\": true", "\"terminal\": false");
        fs::write(&file, text.replace("\"sh\"", "\"/bin/true\"")).expect("it can be changed");
        tried("runc", &mut self.runc_run().expect("it is there"))
    }

    /// A Debian with podman and lxc, the plain directory in it, and a process whose root it is:
    /// neither of them works in a mere chroot.
    fn furnish(&self) -> Child {
        let root = self.debian();
        fs::create_dir_all(&root).expect("made");
        let tar = debian(ARCHIVE.0, ARCHIVE.1);
        Command::new("tar").arg("-xf").arg(tar).arg("-C").arg(&root).succeed();
        let at = |path: &str| root.join(path.trim_start_matches('/'));
        fs::create_dir_all(at(PLAIN)).expect("made");
        let mount = |options: &[&str], source: &Path, target: &Path| {
            Command::new("mount").args(options).arg(source).arg(target).succeed();
        };
        mount(&["--bind"], &root, &root);
        mount(&["--bind"], &self.bundle().join("rootfs"), &at(PLAIN));
        for place in ["/proc", "/sys", "/dev"] {
            mount(&["--rbind"], Path::new(place), &at(place));
        }
        mount(&["-t", "tmpfs"], Path::new("run"), &at("/run"));
        let containers = at("/etc/containers");
        fs::create_dir_all(&containers).expect("made");
        // What podman would ask of a systemd that is not there.
        let settings = "[engine]\ncgroup_manager=\"cgroupfs\"\nevents_logger=\"none\"\nruntime=\"runc\"\n\
                        [containers]\nlog_driver=\"k8s-file\"\ndefault_ulimits=[\"nofile=1024:1024\",\"nproc=1024:1024\"]\n";
        fs::write(containers.join("containers.conf"), settings).expect("written");
        let config = format!(
            "lxc.rootfs.path = dir:{PLAIN}\nlxc.uts.name = peer\nlxc.net.0.type = empty\n\
             lxc.mount.auto = proc sys cgroup:mixed\nlxc.apparmor.profile = unconfined\n\
             lxc.tty.max = 1\nlxc.pty.max = 64\n"
        );
        fs::write(at("/etc/peer.conf"), config).expect("written");
        let script = "cd \"$1\" && mkdir -p old && pivot_root . old && cd / && umount -l old && \
                      touch /run/ready && exec sleep infinity";
        let mut keeper = Command::new("unshare");
        keeper.args(["--mount", "sh", "-c", script, "sh"]).arg(&root);
        let keeper = keeper.stdin(Stdio::null()).spawn().expect("unshare can be started");
        again_until("the root is another", || at("/run/ready").exists());
        keeper
    }

    fn inside(&self, words: &[&str]) -> Command {
        let keeper = self.keeper.as_ref().map_or(0, Child::id);
        let mut command = Command::new("nsenter");
        command.args(["--mount", "--target", &keeper.to_string(), "--"]).args(words);
        command
    }

    /// Runs `/bin/true` from start to end.
    pub(crate) fn runc_run(&self) -> Option<Command> {
        let mut command = Command::new("runc");
        command.arg("--root").arg(self.directory.join("state"));
        command.args(["run", &format!("mica-bench-{}", std::process::id())]);
        command.current_dir(self.bundle());
        Some(command)
    }

    fn podman_run(&self) -> Command {
        self.inside(&["podman", "run", "--rm", "--network", "none", "--rootfs", PLAIN, "/bin/true"])
    }

    fn lxc_execute(&self) -> Command {
        self.inside(&["lxc-execute", "-n", "peer", "-f", "/etc/peer.conf", "--", "/bin/true"])
    }

    /// Everybody who runs `/bin/true` from start to end here.
    pub(crate) fn commands(&self) -> Vec<(&'static str, Command)> {
        let mut all = Vec::new();
        all.extend(
            self.runc.then(|| self.runc_run()).flatten().map(|command| ("runc run", command)),
        );
        all.extend(self.podman.then(|| ("podman run --rm --rootfs", self.podman_run())));
        all.extend(self.lxc.then(|| ("lxc-execute", self.lxc_execute())));
        all
    }

    /// Boots Debian's systemd in the plain directory.
    pub(crate) fn lxc_boot(&self) -> Command {
        self.inside(&["lxc-start", "-n", "peer", "-f", "/etc/peer.conf", "--", "/sbin/init"])
    }

    /// Runs a command in it.
    pub(crate) fn lxc_attach(&self, words: &[&str]) -> Command {
        let mut command = self.inside(&["lxc-attach", "-n", "peer", "--"]);
        command.args(words);
        command
    }

    pub(crate) fn lxc_kill(&self) -> Command {
        self.inside(&["lxc-stop", "-k", "-n", "peer"])
    }
}

impl Drop for Peers {
    fn drop(&mut self) {
        if let Some(keeper) = &mut self.keeper {
            // It may have ended by itself.
            let _ended = keeper.kill();
            keeper.wait().expect("it is ours");
        }
        let top = self.debian();
        crate::support::unmount_beneath(&top);
        for name in ["libpod_parent", "lxc.monitor.peer", "lxc.payload.peer", "lxc.pivot"] {
            remove_groups(name);
        }
    }
}

/// Removes what a peer leaves of groups.
fn remove_groups(name: &str) {
    let mut find = Command::new("find");
    find.args(["/sys/fs/cgroup", "-mindepth", "2", "-maxdepth", "2", "-name", name]);
    let found = String::from_utf8_lossy(&find.capture().stdout).into_owned();
    for group in found.lines() {
        Command::new("find")
            .args([group, "-depth", "-type", "d", "-exec", "rmdir", "{}", ";"])
            .capture();
    }
}

fn tried(name: &str, command: &mut Command) -> bool {
    match command.output() {
        Ok(told) if told.status.success() => true,
        Ok(told) => {
            let said = String::from_utf8_lossy(&told.stderr).trim().to_owned();
            println!("{name} does not run here: {} ({})", said, told.status);
            false
        }
        Err(error) => {
            println!("{name} is not here: {error}");
            false
        }
    }
}
