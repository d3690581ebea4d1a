//! What a root can do that is really mounted here.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use super::namespace::Namespace;
use super::scratch::Scratch;
use super::{Capability, Finding};
use crate::host::import::{ImportRequest, import_template};
use crate::host::launch::{self, MountSpec, Ready};
use crate::host::options::GenericOptions;
use crate::host::{HostError, Store, sentence};
use crate::layer::import::{Choice, Excludes, Silent};
use crate::sys::mount::detached_idmapped;

/// What the one file of the scratch template says.
const TEXT: &[u8] = b"read through a root";

pub(super) fn try_all(scratch: &Scratch, program: &Path) -> Vec<Finding> {
    let ready = match mounted(scratch, program) {
        Ok(ready) => ready,
        Err(sentence) => {
            let refused = || Err(io::Error::other("no root could be mounted"));
            return vec![
                Capability::Mount.tried(Err(io::Error::other(sentence))),
                Capability::Passthrough.tried(refused()),
                Capability::IdmappedMount.tried(refused()),
            ];
        }
    };
    vec![
        Capability::Mount.tried(read_and_write(&ready)),
        Capability::Passthrough.tried(if ready.passthrough {
            Ok("agreed with the kernel".to_owned())
        } else {
            Err(io::Error::other("the kernel did not agree"))
        }),
        Capability::IdmappedMount.tried(idmapped(&ready.mountpoint, program)),
    ]
}

/// Imports a template of one file and mounts a root of it.
fn mounted(scratch: &Scratch, program: &Path) -> Result<Ready, String> {
    let told = |error: &(dyn std::error::Error + 'static)| sentence(error);
    let import = || -> Result<(), HostError> {
        let source = scratch.path().join("tree");
        let never = AtomicBool::new(false);
        let system =
            |error| HostError::System { what: "make", path: source.clone(), source: error };
        fs::create_dir_all(source.join("usr")).map_err(system)?;
        fs::write(source.join("usr/file"), TEXT).map_err(system)?;
        let store = Store::open_or_create(&scratch.store())?;
        let request = ImportRequest {
            name: "doctor:1".parse().map_err(HostError::TemplateName)?,
            source,
            on: None,
            replace: false,
            excludes: Excludes::default(),
            choice: Choice::default(),
            cancel: &never,
        };
        import_template(&store, &request, &Silent).map(drop)
    };
    import().map_err(|error| told(&error))?;
    let spec = MountSpec {
        store: scratch.store(),
        template: "doctor:1".to_owned(),
        mountpoint: scratch.mountpoint(),
        private: Some(scratch.path().join("private")),
        name: None,
        passthrough: true,
        shared_paths: None,
        fsname: None,
        disk_bytes: None,
        generic: GenericOptions::default(),
        unheard: false,
    };
    launch::start(program, &spec).map_err(|error| told(&error))
}

fn read_and_write(ready: &Ready) -> io::Result<String> {
    let file = ready.mountpoint.join("usr/file");
    if fs::read(&file)? != TEXT {
        return Err(io::Error::other("a file of the template does not read as it should"));
    }
    fs::write(&file, b"changed")?;
    if fs::read(&file)? != b"changed" {
        return Err(io::Error::other("a changed file does not read as it should"));
    }
    Ok("read, copied up and written".to_owned())
}

fn idmapped(mountpoint: &Path, program: &Path) -> io::Result<String> {
    let namespace = Namespace::start(program)?;
    let root = File::open(mountpoint)?;
    detached_idmapped(root.as_fd(), namespace.descriptor())?;
    Ok("a root was mapped to other owners".to_owned())
}
