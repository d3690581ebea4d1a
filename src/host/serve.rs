//! The life of a mount process, from its brief to the end of its root.

use std::any::Any;
use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;

use super::error::HostError;
use super::launch::{MountSpec, Ready};
use super::roots::{LockedRoots, NewRoot, RootRecord, Roots};
use super::store::{Access, Store};
use super::{log, mount_table, mountpoint, refer, referred, supervisor, templates, unmount};
use crate::control::{FileToReplace, Outcome, Service, Socket, Status};
use crate::fs::{DiskUse, FileSystem};
use crate::fuse;
use crate::layer::template::default_shared_paths;
use crate::layer::{LayerPath, Layers, Stack};
use crate::object::{ObjectId, ObjectReader};
use crate::private::{PrivateError, PrivateLayer};
use crate::sys::process::allow_descriptors;
use crate::sys::signal::Termination;
use crate::telemetry::Snapshot;
use crate::union::{SharedSet, Union};

/// Threads that serve requests. A request served on another, idle processor costs more than
/// waiting for a busy one, and passthrough keeps reads and writes away from here.
const SERVING_THREADS: usize = 4;

/// How long a freeze waits for changes that began before it.
const FREEZE_PATIENCE: Duration = Duration::from_secs(10);

/// How long a revert, or a scrub that found damage, waits for the kernel to forget.
const TELL_PATIENCE: Duration = Duration::from_secs(10);

/// How long a mount waits for the lock on its private directory, and how often it tries.
const LOCK_PATIENCE: Duration = Duration::from_secs(15);
const LOCK_RETRY: Duration = Duration::from_millis(20);

/// What /dev/fuse is: `FUSE_MINOR` of the miscellaneous devices, linux/miscdevice.h.
const FUSE_DEVICE: (u32, u32) = (10, 229);

/// Mounts what `spec` says and serves it until it is unmounted; `ready` is called once it
/// is usable.
///
/// Must be called before this process has threads of its own: it takes the signals that
/// end it.
///
/// # Errors
/// Whatever keeps the root from being mounted; nothing is mounted or registered then. A
/// private directory that was made for it stays, empty.
pub fn serve(spec: &MountSpec, ready: &mut dyn FnMut(&Ready)) -> Result<(), HostError> {
    let termination =
        Termination::block().map_err(HostError::system("take signals in", "this process"))?;
    check_host()?;
    prepare_process();
    let store = Store::open(&spec.store, Access::Write)?;
    let layers = Layers::open(store.path())?;
    let place = mountpoint::prepare(&spec.mountpoint)?;
    let mountpoint = place.path.clone();
    let private = spec.private.as_deref().map(mountpoint::future_path).transpose()?;
    if let Some(private) = &private
        && private.starts_with(&mountpoint)
    {
        return Err(HostError::PrivateInside { private: private.clone(), mountpoint });
    }
    let roots = Roots::open(&store)?;
    unmount::let_end(&roots)?;
    let (mut registered, socket, mut notes) =
        register(&roots, &layers, spec, private, mountpoint.clone())?;
    let record = registered.record.clone();
    log::attach(&roots.log_path(&record.id));

    let tree = layers.tree(&record.stack)?;
    let private = record.private.as_deref();
    let private = private.map(|path| open_private(path, &record.stack)).transpose()?;
    // A directory that was copied or moved here brings references that this record knows not of.
    referred::adopt(&store, &record)?;
    let objects = ObjectReader::open(store.path())?;
    let patterns = match &spec.shared_paths {
        Some(patterns) => patterns.clone(),
        None => layers
            .templates()
            .get(&record.template)
            .map_or_else(|_| default_shared_paths(), |template| template.shared_paths),
    };
    let shared = SharedSet::resolve(&tree, &patterns)?;
    let read_only = private.is_none() || spec.generic.read_only;
    let file_system = FileSystem::new(Union::new(tree, objects, private, shared)?);
    if spec.disk_bytes.is_some() {
        // Before anybody can open anything: every byte is held.
        file_system.set_disk_limit(spec.disk_bytes).map_err(|error| {
            HostError::system("count", &record.private.clone().unwrap_or_default())(
                std::io::Error::from(error.errno()),
            )
        })?;
    }
    let options = fuse::MountOptions {
        mountpoint: mountpoint.clone(),
        source: spec.fsname.clone().unwrap_or_else(|| record.template.to_string()),
        flags: spec.generic.flags(read_only),
        passthrough: spec.passthrough,
        threads: SERVING_THREADS,
    };
    let mount = fuse::Mount::new(Arc::clone(&file_system), &options)?;
    registered.new = false;
    let unserved = Unserved(Some(mount.unmounter()));
    drop(place);

    let device = mount_table::at(&mountpoint)
        .map_err(HostError::system("look up", &mountpoint))?
        .map(|entry| entry.device);
    let passthrough = mount.passthrough();
    let status = Status {
        pid: std::process::id(),
        mountpoint: mountpoint.clone(),
        stack: record.stack.id().to_string(),
        private: record.private.clone(),
        read_only,
        passthrough,
        shared_paths: Some(patterns),
        mounted: true,
        since: SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default().as_secs(),
    };
    let root = Arc::new(ServedRoot { status, device, file_system: Mutex::new(Some(file_system)) });
    let control = socket.serve(Arc::clone(&root) as Arc<dyn Service>)?;
    end_on_signal(termination, Arc::clone(&root))?;

    if spec.passthrough && !passthrough {
        notes.push(
            "this kernel gives no passthrough (it needs Linux 6.9 and CAP_SYS_ADMIN): memory is \
             not shared among roots"
                .to_owned(),
        );
    }
    ready(&Ready {
        name: record.name.clone(),
        template: record.template.to_string(),
        mountpoint,
        private: record.private.clone(),
        read_only,
        passthrough,
        pid: std::process::id(),
        notes,
    });
    crate::sys::memory::give_back();
    supervisor::tell_ready();
    tracing::info!(name = %record.name, mountpoint = %root.status.mountpoint.display(), "mounted");
    unserved.served();
    let ended = mount.run();
    tracing::info!(name = %record.name, "unmounted");
    root.tidy(&roots, &record);
    // First the private directory is free, then nobody answers, then the record says so: at
    // each step the next mount of this root either finds it in use or can have it.
    root.let_go();
    drop(control);
    drop(registered);
    Ok(ended?)
}

/// Opens the private layer, waiting a moment for who looks after it at rest: a `store reshare`
/// locks it while it works on some files of it.
fn open_private(path: &Path, stack: &Stack) -> Result<PrivateLayer, PrivateError> {
    let deadline = Instant::now() + LOCK_PATIENCE;
    loop {
        match PrivateLayer::open(path, stack) {
            Err(PrivateError::InUse(_)) if Instant::now() < deadline => {
                std::thread::sleep(LOCK_RETRY);
            }
            opened => return opened,
        }
    }
}

/// What every mount needs, told in a sentence each before anything is touched.
fn check_host() -> Result<(), HostError> {
    if !rustix::process::geteuid().is_root() {
        return Err(HostError::NotRoot);
    }
    match File::options().read(true).write(true).open("/dev/fuse") {
        Ok(device) => {
            use std::os::unix::fs::{FileTypeExt, MetadataExt};
            let found = device.metadata().map_err(HostError::FuseDenied)?;
            let is_fuse = found.file_type().is_char_device()
                && (rustix::fs::major(found.rdev()), rustix::fs::minor(found.rdev()))
                    == FUSE_DEVICE;
            if is_fuse { Ok(()) } else { Err(HostError::NotFuse) }
        }
        Err(error)
            if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV | libc::ENXIO)) =>
        {
            Err(HostError::NoFuse)
        }
        Err(error) => Err(HostError::FuseDenied(error)),
    }
}

/// Sets what belongs to the process as a whole.
fn prepare_process() {
    // Modes come from the requests, whose umask the kernel has applied.
    rustix::process::umask(rustix::fs::Mode::empty());
    // As many descriptors as the hard limit gives: caches are sized by their own limits.
    allow_descriptors();
}

/// A mount that nobody serves yet: dropped, it leaves the tree, so that a failure on the last
/// steps leaves no dead mount behind.
struct Unserved(Option<fuse::Unmounter>);

impl Unserved {
    fn served(mut self) {
        self.0 = None;
    }
}

impl Drop for Unserved {
    fn drop(&mut self) {
        if let Some(Err(error)) = self.0.as_ref().map(fuse::Unmounter::detach) {
            tracing::warn!(%error, "a dead mount stays");
        }
    }
}

/// A root's record while this process serves it. Dropping it takes the live part away.
struct Registered<'a> {
    roots: &'a Roots,
    record: RootRecord,
    /// Registered by this process and not usable yet: goes altogether if that fails.
    new: bool,
}

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        let withdraw = |locked: LockedRoots<'_>| {
            // Mounted again by another process already: the record is that one's.
            let Some(record) = self.roots.current(&self.record)? else { return Ok(()) };
            if self.new { locked.remove(&record) } else { locked.detach(&record) }
        };
        if let Err(error) = self.roots.lock().and_then(withdraw) {
            tracing::warn!(%error, "the record of the root still says it is mounted");
        }
    }
}

/// Binds the root to its stack and enters it in the registry.
fn register<'a>(
    roots: &'a Roots,
    layers: &Layers,
    spec: &MountSpec,
    private: Option<PathBuf>,
    mountpoint: PathBuf,
) -> Result<(Registered<'a>, Socket, Vec<String>), HostError> {
    let locked = roots.lock()?;
    locked.prune()?;
    let known = match &private {
        Some(private) => known_root(&roots.list()?, layers, spec, private)?,
        None => None,
    };
    let Some(mut record) = known else {
        let template = templates::find(layers, &spec.template)?;
        let new = NewRoot {
            name: spec.name.clone(),
            template: template.name,
            stack: template.stack,
            private,
            mountpoint,
        };
        let (record, socket) = locked.register(new)?;
        return Ok((Registered { roots, record, new: true }, socket, Vec::new()));
    };
    if let Some(mount) = &record.mount
        && record.living().is_some()
    {
        return Err(HostError::PrivateInUse {
            private: record.private.clone().unwrap_or_default(),
            name: record.name.clone(),
            mountpoint: mount.mountpoint.clone(),
        });
    }
    let mut notes = Vec::new();
    let now = layers.templates().get(&record.template).map(|template| template.stack.id()).ok();
    if let Some(now) = now
        && now != record.stack.id()
        && record.moved_to != Some(now)
        && !spec.unheard
    {
        notes.push(format!(
            "{} names another stack since root {} was made; the root stays on its own",
            record.template, record.name
        ));
        record.moved_to = Some(now);
    }
    if let Some(name) = &spec.name {
        locked.rename(&mut record, name)?;
    }
    let socket = locked.attach(&mut record, mountpoint)?;
    Ok((Registered { roots, record, new: false }, socket, notes))
}

/// The registered root whose changes lie in `private`, if it may be mounted as `spec` says.
fn known_root(
    records: &[RootRecord],
    layers: &Layers,
    spec: &MountSpec,
    private: &Path,
) -> Result<Option<RootRecord>, HostError> {
    let Some(record) = records.iter().find(|record| record.private.as_deref() == Some(private))
    else {
        return moved_root(records, spec, private);
    };
    // A directory that was emptied or made anew begins anew.
    if !is_occupied(private) {
        let template = templates::find(layers, &spec.template)?;
        return Ok(Some(RootRecord {
            template: template.name,
            stack: template.stack,
            moved_to: None,
            ..record.clone()
        }));
    }
    if spec.template.parse().ok().as_ref() != Some(&record.template) {
        // Another name for the very same stack is no other template.
        let wanted = templates::find(layers, &spec.template)?;
        if wanted.stack != record.stack {
            return Err(HostError::OtherTemplate {
                private: private.to_owned(),
                name: record.name.clone(),
                bound: record.template.clone(),
                wanted: spec.template.clone(),
            });
        }
    }
    Ok(Some(record.clone()))
}

/// The root whose private directory was moved to `private`: same template, same stack, and
/// nothing left where the registry knows it.
fn moved_root(
    records: &[RootRecord],
    spec: &MountSpec,
    private: &Path,
) -> Result<Option<RootRecord>, HostError> {
    let Some(stack) = PrivateLayer::recorded_stack(private)? else { return Ok(None) };
    let named = spec.template.parse().ok();
    let moved = records.iter().find(|record| {
        named.as_ref() == Some(&record.template)
            && record.stack == stack
            && record.private.as_ref().is_some_and(|old| !old.exists())
    });
    Ok(moved.map(|record| RootRecord { private: Some(private.to_owned()), ..record.clone() }))
}

fn is_occupied(directory: &Path) -> bool {
    fs::read_dir(directory).is_ok_and(|mut names| names.next().is_some())
}

/// What the control socket answers for this root.
struct ServedRoot {
    status: Status,
    device: Option<String>,
    /// Gone once the root is unmounted: it holds the lock on the private directory.
    file_system: Mutex<Option<Arc<FileSystem>>>,
}

impl ServedRoot {
    fn let_go(&self) {
        drop(self.file_system.lock().take());
    }

    /// Shortens the logs of references, which grow with every file that is shared.
    fn tidy(&self, roots: &Roots, record: &RootRecord) {
        let file_system = self.file_system.lock().clone();
        let Some(file_system) = file_system.filter(|_| record.private.is_some()) else { return };
        match file_system.tidy_references() {
            Ok(Some(objects)) => referred::tidied(roots, record, &objects),
            Ok(None) => {}
            Err(error) => tracing::warn!(%error, "the log of references stays as long as it is"),
        }
    }

    fn unmount(&self, detach: bool) -> Result<(), HostError> {
        mountpoint::unmount(&self.status.mountpoint, self.device.as_deref(), detach)
    }
}

impl Service for ServedRoot {
    fn status(&self) -> Status {
        let there = mount_table::at(&self.status.mountpoint).ok().flatten();
        let mounted = there.is_some_and(|entry| Some(entry.device) == self.device);
        Status { mounted, ..self.status.clone() }
    }

    fn statistics(&self) -> Snapshot {
        let file_system = self.file_system.lock().clone();
        file_system.map_or_else(Snapshot::default, |file_system| file_system.statistics())
    }

    fn freeze(&self) -> Result<Box<dyn Any>, String> {
        let file_system = self.file_system.lock().clone();
        let Some(file_system) = file_system else { return Err("the root is gone".to_owned()) };
        match file_system.freeze(FREEZE_PATIENCE) {
            Ok(frozen) => Ok(Box::new(frozen)),
            Err(error) => Err(error.to_string()),
        }
    }

    fn revert(&self, path: &[u8]) -> Result<u64, String> {
        let file_system = self.file_system.lock().clone();
        let Some(file_system) = file_system else { return Err("the root is gone".to_owned()) };
        let path = LayerPath::parse(path).map_err(|error| error.to_string())?;
        let reverted = file_system.revert(&path);
        // The kernel shows it before anybody is told that it is done.
        if !file_system.await_told(TELL_PATIENCE) {
            tracing::warn!("the kernel takes long to forget what was reverted");
        }
        reverted.map_err(|error| format!("cannot revert all of {path}: {error}"))
    }

    fn disk_use(&self) -> Result<DiskUse, String> {
        let file_system = self.file_system.lock().clone();
        let Some(file_system) = file_system else { return Err("the root is gone".to_owned()) };
        let told = file_system.disk_use();
        told.map_err(|error| format!("cannot count the private files: {error}"))
    }

    fn limit_disk(&self, bytes: Option<u64>) -> Result<DiskUse, String> {
        let file_system = self.file_system.lock().clone();
        let Some(file_system) = file_system else { return Err("the root is gone".to_owned()) };
        let told = file_system.set_disk_limit(bytes);
        told.map_err(|error| format!("cannot count the private files: {error}"))
    }

    fn replace_by_objects(
        &self,
        files: Vec<(FileToReplace, OwnedFd)>,
    ) -> Result<Vec<Outcome>, String> {
        let file_system = self.file_system.lock().clone();
        let Some(file_system) = file_system else { return Err("the root is gone".to_owned()) };
        Ok(refer::replace(&file_system, files))
    }

    fn forget_objects(&self, objects: &[ObjectId]) -> Result<(), String> {
        let file_system = self.file_system.lock().clone();
        let Some(file_system) = file_system else { return Err("the root is gone".to_owned()) };
        let forgotten = file_system.forget_objects(objects);
        if !file_system.await_told(TELL_PATIENCE) {
            tracing::warn!("the kernel takes long to forget what was damaged");
        }
        forgotten.map_err(|error| format!("pages of it may stay in memory: {error}"))
    }

    fn stop(&self, detach: bool) -> Result<(), String> {
        self.unmount(detach).map_err(|error| super::sentence(&error))
    }
}

/// Unmounts at the first signal that asks for it; when the root is in use, lets it go with
/// its last user. The process ends with the mount, not with the signal.
fn end_on_signal(termination: Termination, root: Arc<ServedRoot>) -> Result<(), HostError> {
    let wait = move || {
        while let Ok(signal) = termination.wait() {
            tracing::info!(signal, "asked to end");
            match root.unmount(false) {
                Ok(()) => return,
                Err(HostError::MountpointBusy { .. }) => match root.unmount(true) {
                    Ok(()) => return,
                    Err(error) => tracing::warn!(%error, "cannot let the root go"),
                },
                Err(error) => tracing::warn!(%error, "cannot unmount"),
            }
        }
    };
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(wait)
        .map(drop)
        .map_err(HostError::system("start a thread in", "this process"))
}
