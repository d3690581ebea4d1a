//! The OCI bundle of a container: what a runtime is told.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use oci_spec::runtime::Spec;
use serde_json::{Value, json};

use super::bundle::{Bind, Bundle, Device, Record};
use super::capabilities;
use super::cgroup::{Cgroup, Hierarchy, Layout};
use super::command::{self, CommandError, Place};
use super::config::{ContainerConfig, Kind, RuntimeChoice, Volume};
use super::destinations;
use super::idmap::IdRange;
use super::init;
use super::passwd::{self, User, UserError};
use super::seccomp;

/// Where the root and what is bound into it lie while a container is made: in a mount namespace of
/// its maker alone. The users of a container may not pass through the store's directory.
pub(super) const STAGE: &str = "/run/mica";
/// The root, beneath [`STAGE`].
pub(super) const ROOT: &str = "/run/mica/root";
/// The user namespace, beneath [`STAGE`].
pub(super) const USERS: &str = "/run/mica/users";

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Where a container's cgroup is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CgroupPlace {
    /// Its absolute path in every hierarchy, such as `/mica/ID`.
    pub path: PathBuf,
    /// Its directory in each.
    pub directories: Vec<CgroupDirectory>,
}

/// A cgroup's directory in one hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CgroupDirectory {
    /// The hierarchy's name beneath `/sys/fs/cgroup`; empty when there is only one.
    pub name: String,
    /// Where the host has it.
    pub path: PathBuf,
    /// Whether runtimes leave it alone, so that the init is put there by us: `name=systemd`, and the
    /// cgroup2 tree beside others.
    pub ours: bool,
}

impl CgroupPlace {
    /// Where `cgroup` is on a host with `layout`.
    #[must_use]
    pub fn of(layout: &Layout, cgroup: &Cgroup) -> Self {
        let path = PathBuf::from(cgroup.inside_path());
        let relative = path.strip_prefix("/").unwrap_or(&path);
        let directory = |hierarchy: &Hierarchy| {
            let name = hierarchy.mountpoint.strip_prefix("/sys/fs/cgroup").unwrap_or(Path::new(""));
            CgroupDirectory {
                name: name.to_string_lossy().into_owned(),
                path: hierarchy.mountpoint.join(relative),
                ours: hierarchy.is_passed_over() && layout.hierarchies().len() > 1,
            }
        };
        let directories = layout.hierarchies().iter().map(directory).collect();
        Self { path: path.clone(), directories }
    }
}

/// Which network namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NetworkNamespace {
    /// A new one; it can be reached through the init once that is created.
    Own,
    /// The host's.
    Host,
    /// This one.
    At(PathBuf),
}

/// What a bundle is made from.
#[derive(Debug)]
pub struct Inputs<'a> {
    /// What the container is meant to be.
    pub config: &'a ContainerConfig,
    /// Where its root is mounted.
    pub root: &'a Path,
    /// Which users of the host its users are; none: the host's own.
    pub range: Option<IdRange>,
    /// Where its cgroup is; made by the caller.
    pub cgroup: &'a CgroupPlace,
    /// Its network namespace.
    pub network: NetworkNamespace,
    /// Files of the host's that it sees, such as its `/etc/hosts`.
    pub files: &'a [Volume],
    /// Where its output is kept.
    pub log: &'a Path,
}

/// Why no bundle was written.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    /// Its user.
    #[error(transparent)]
    User(#[from] UserError),
    /// Its command.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// No device.
    #[error("{0} is no device; a container is given devices such as /dev/fuse")]
    Device(PathBuf),
    /// A file or directory is missing or cannot be written.
    #[error("cannot {what} {path}: {source}")]
    System {
        /// What was being done.
        what: &'static str,
        /// To what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The description is none. A mistake of ours.
    #[error("the bundle of {name} is not as oci-spec has it: {source}")]
    Format {
        /// The container.
        name: String,
        /// Where.
        source: serde_json::Error,
    },
}

fn system(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SpecError {
    let path = path.to_owned();
    move |source| SpecError::System { what, path, source }
}

/// Writes the bundle of a container into `directory`, which is made.
///
/// # Errors
/// [`SpecError`]; nothing uses what was written then.
pub fn write_bundle(directory: &Path, inputs: &Inputs<'_>) -> Result<Bundle, SpecError> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true).mode(0o700);
    builder.create(directory).map_err(system("make", directory))?;
    let bundle = Bundle::at(directory);
    let config = inputs.config;
    let mut binds = Vec::new();
    let user = match config.user.as_deref() {
        Some(user) => passwd::resolve(inputs.root, user)?,
        None => User::root(),
    };
    if config.volumes.is_empty() {
        let path = config.env.get("PATH").map_or(PATH, String::as_str);
        let workdir = config.workdir.as_deref().unwrap_or(Path::new("/"));
        let place = Place { root: inputs.root, path, workdir };
        command::check(&place, words(config).first().map_or("", String::as_str))?;
    }
    let own_init = bundle.file("init");
    if config.init {
        init::write(&own_init).map_err(system("write", &own_init))?;
    }
    let own_init = config.init.then_some(own_init.as_path());
    let description = describe(inputs, &user, own_init, &mut binds)?;
    let spec: Spec = serde_json::from_value(description)
        .map_err(|source| SpecError::Format { name: config.name.to_string(), source })?;
    let record = Record {
        id: config.id.clone(),
        runtime: config.runtime.clone(),
        root: inputs.root.to_owned(),
        range: inputs.range,
        cgroups: inputs.cgroup.directories.iter().map(|known| known.path.clone()).collect(),
        cgroups_ours: inputs
            .cgroup
            .directories
            .iter()
            .filter(|known| known.ours)
            .map(|known| known.path.clone())
            .collect(),
        devices_in_root: config.privileged,
        binds,
        terminal: has_terminal(config),
        interactive: config.interactive,
        log: inputs.log.to_owned(),
        log_limits: config.logs,
    };
    bundle.write("config.json", &spec).map_err(system("write", &bundle.file("config.json")))?;
    bundle.write("bundle.json", &record).map_err(system("write", &bundle.file("bundle.json")))?;
    Ok(bundle)
}

fn has_terminal(config: &ContainerConfig) -> bool {
    config.terminal || config.kind == Kind::System
}

/// The words of the init.
fn words(config: &ContainerConfig) -> Vec<String> {
    if config.command.is_empty() { vec!["/sbin/init".to_owned()] } else { config.command.clone() }
}

fn environment(config: &ContainerConfig, user: &User) -> Vec<String> {
    let mut env = vec![
        ("PATH", PATH.to_owned()),
        // systemd and others look at this to know where they are.
        ("container", "mica".to_owned()),
        ("HOME", user.home.display().to_string()),
    ];
    if has_terminal(config) {
        env.push(("TERM", "xterm".to_owned()));
    }
    env.retain(|(name, _)| !config.env.contains_key(*name));
    let own = config.env.iter().map(|(name, value)| format!("{name}={value}"));
    env.into_iter().map(|(name, value)| format!("{name}={value}")).chain(own).collect()
}

fn describe(
    inputs: &Inputs<'_>,
    user: &User,
    own_init: Option<&Path>,
    binds: &mut Vec<Bind>,
) -> Result<Value, SpecError> {
    let config = inputs.config;
    let of_host = inputs.range.is_none();
    let held = held_capabilities();
    let mut meant = config.clone();
    if of_host {
        meant.userns = super::config::UserNamespace::Host;
    }
    let names = capabilities::of(&meant, held);
    let full: Vec<String> = names.iter().map(|name| format!("CAP_{name}")).collect();
    // Only root's init holds them; another user could gain them by a set-user-id program.
    let effective = if user.uid == 0 { full.clone() } else { Vec::new() };
    let mut process = json!({
        "terminal": has_terminal(config),
        "user": {"uid": user.uid, "gid": user.gid, "additionalGids": user.groups},
        "args": if config.init { init::before(words(config)) } else { words(config) },
        "env": environment(config, user),
        "cwd": config.workdir.as_deref().unwrap_or(Path::new("/")),
        "capabilities": {
            "bounding": full, "effective": effective, "permitted": effective,
            "inheritable": [], "ambient": [],
        },
    });
    if config.kind == Kind::Application && !config.privileged {
        process["noNewPrivileges"] = json!(true);
    }
    let mut linux = json!({
        "namespaces": namespaces(inputs),
        "cgroupsPath": inputs.cgroup.path,
    });
    let (devices, mut rules) = devices(config)?;
    if config.privileged {
        rules = vec![json!({"allow": true, "access": "rwm"})];
    } else {
        rules.insert(0, json!({"allow": false, "access": "rwm"}));
        linux["seccomp"] = seccomp::profile(&names, &config.runtime);
        linux["maskedPaths"] = json!([
            "/proc/acpi",
            "/proc/asound",
            "/proc/interrupts",
            "/proc/kcore",
            "/proc/keys",
            "/proc/latency_stats",
            "/proc/timer_list",
            "/proc/timer_stats",
            "/proc/sched_debug",
            "/proc/scsi",
            "/sys/firmware",
            "/sys/devices/virtual/powercap",
            "/sys/kernel/debug",
        ]);
        let mut read_only = vec!["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sysrq-trigger"];
        // A machine of its own sets what is its own; the kernel refuses the rest to its users.
        if config.kind == Kind::Application || of_host {
            read_only.push("/proc/sys");
        }
        linux["readonlyPaths"] = json!(read_only);
    }
    if of_host {
        linux["devices"] = json!(devices);
    }
    linux["resources"] = json!({"devices": rules});
    // The embedded runtime joins a user namespace made before, see `launch`.
    if let Some(range) = inputs.range
        && config.runtime != RuntimeChoice::Embedded
    {
        let map = json!([{"containerID": 0, "hostID": range.first(), "size": range.count()}]);
        linux["uidMappings"] = map.clone();
        linux["gidMappings"] = map;
    }
    Ok(json!({
        "ociVersion": "1.0.2",
        "hostname": config.hostname(),
        "root": {"path": ROOT, "readonly": config.read_only},
        "process": process,
        "mounts": mounts(inputs, own_init, binds)?,
        "linux": linux,
    }))
}

fn namespaces(inputs: &Inputs<'_>) -> Vec<Value> {
    let mut list: Vec<Value> =
        ["pid", "mount", "uts", "ipc", "cgroup"].iter().map(|kind| json!({"type": kind})).collect();
    match &inputs.network {
        NetworkNamespace::Own => list.push(json!({"type": "network"})),
        NetworkNamespace::At(path) => list.push(json!({"type": "network", "path": path})),
        NetworkNamespace::Host => {}
    }
    if inputs.range.is_some() {
        list.push(match inputs.config.runtime {
            RuntimeChoice::Embedded => json!({"type": "user", "path": USERS}),
            RuntimeChoice::External(_) => json!({"type": "user"}),
        });
    }
    list
}

fn devices(config: &ContainerConfig) -> Result<(Vec<Value>, Vec<Value>), SpecError> {
    let (mut devices, mut rules) = (Vec::new(), Vec::new());
    for path in &config.devices {
        let Device { block, major, minor } = device(path)?;
        let kind = if block { "b" } else { "c" };
        devices.push(json!({
            "path": path, "type": kind, "major": major, "minor": minor,
            "fileMode": 0o666, "uid": 0, "gid": 0,
        }));
        rules.push(json!({
            "allow": true, "type": kind, "major": major, "minor": minor, "access": "rwm",
        }));
    }
    Ok((devices, rules))
}

fn device(path: &Path) -> Result<Device, SpecError> {
    let metadata = fs::metadata(path).map_err(system("look at", path))?;
    let block = match metadata.file_type() {
        kind if kind.is_char_device() => false,
        kind if kind.is_block_device() => true,
        _ => return Err(SpecError::Device(path.to_owned())),
    };
    let number = metadata.rdev();
    Ok(Device { block, major: rustix::fs::major(number), minor: rustix::fs::minor(number) })
}

fn mounts(
    inputs: &Inputs<'_>,
    own_init: Option<&Path>,
    binds: &mut Vec<Bind>,
) -> Result<Vec<Value>, SpecError> {
    let config = inputs.config;
    let system_kind = config.kind == Kind::System;
    let mount = |target: &str, kind: &str, options: &[&str]| json!({"destination": target, "type": kind, "source": kind, "options": options});
    let mut list = vec![
        mount("/proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount(
            "/dev/pts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        mount("/dev/shm", "tmpfs", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
        mount("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
    ];
    let mut bind_as = |source: &Path, target: &Path, options: &[&str], device| {
        let name = format!("bind{}", binds.len());
        let staged = Path::new(STAGE).join(&name);
        let kept = options.iter().map(|option| (*option).to_owned()).collect();
        binds.push(Bind {
            source: source.to_owned(),
            name,
            target: target.to_owned(),
            options: kept,
            device,
        });
        json!({"destination": target, "type": "bind", "source": staged, "options": options})
    };
    let mut bind =
        |source: &Path, target: &Path, options: &[&str]| bind_as(source, target, options, None);
    if let Some(program) = own_init {
        list.push(bind(program, Path::new(init::PLACE), &["bind", "ro", "nosuid", "nodev"]));
    }
    let write = if config.privileged { "rw" } else { "ro" };
    // A sysfs of one's own takes a network namespace of one's own.
    list.push(if inputs.network == NetworkNamespace::Host && inputs.range.is_some() {
        bind(Path::new("/sys"), Path::new("/sys"), &["rbind", "ro", "nosuid", "noexec", "nodev"])
    } else {
        mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", write])
    });
    let cgroup = Path::new("/sys/fs/cgroup");
    let write = if system_kind || config.privileged { "rw" } else { "ro" };
    let options = ["bind", write, "nosuid", "noexec", "nodev"];
    if inputs.cgroup.directories.iter().any(|known| !known.name.is_empty()) {
        list.push(mount("/sys/fs/cgroup", "tmpfs", &["nosuid", "noexec", "nodev", "mode=755"]));
    }
    for known in &inputs.cgroup.directories {
        let name = known.name.as_str();
        let target = if name.is_empty() { cgroup.to_owned() } else { cgroup.join(name) };
        list.push(bind(&known.path, &target, &options));
    }
    if config.nesting && inputs.range.is_some() {
        // In a user namespace the kernel mounts a proc or sysfs for a container inside only if one is
        // seen whole already: the usual places have masks. All that is masked belongs to the host's root.
        list.push(mount("/dev/.mica/proc", "proc", &["nosuid", "noexec", "nodev"]));
        list.push(mount("/dev/.mica/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]));
    }
    if system_kind {
        list.push(mount("/run", "tmpfs", &["nosuid", "nodev", "strictatime", "mode=755"]));
        list.push(mount("/run/lock", "tmpfs", &["nosuid", "nodev", "noexec", "mode=1777"]));
    }
    // A link there leads to what only a running system makes; not every runtime makes it.
    let files = inputs.files.iter().map(|file| Volume {
        target: destinations::destination(inputs.root, &file.target),
        ..file.clone()
    });
    for volume in files.chain(config.volumes.iter().cloned()) {
        fs::symlink_metadata(&volume.source).map_err(system("look at", &volume.source))?;
        let write = if volume.read_only { "ro" } else { "rw" };
        list.push(bind(&volume.source, &volume.target, &["rbind", write, "nosuid", "nodev"]));
    }
    // The host's own node of a device belongs to the host's root: a container with other users gets
    // one that belongs to its root.
    if inputs.range.is_some() {
        for path in &config.devices {
            let device = device(path)?;
            list.push(bind_as(path, path, &["bind", "rw", "nosuid", "noexec"], Some(device)));
        }
    }
    Ok(list)
}

/// What this process may hand on to a container with the host's users.
fn held_capabilities() -> u64 {
    rustix::thread::capabilities(None).map_or(0, |sets| sets.permitted.bits())
}
