//! The templates of a store: `templates/<name>/<tag>.json`, the truth about names.
//!
//! Each file is replaced as a whole and durable before it counts; a damaged one is reported
//! and harms no other. Knows nothing of who uses a template.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use rustix::fs::{AtFlags, Dir, Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::store::{LayersError, open_dir};
use super::template::{FORMAT, Template, TemplateName};
use crate::sys::durable::{self, Existing};

/// A template's file is far smaller; what is longer is not one.
const MAX_FILE_BYTES: u64 = 16 << 20;

/// The templates of one store.
#[derive(Debug)]
pub struct Templates {
    path: PathBuf,
    dir: OwnedFd,
}

/// One file among the templates.
#[derive(Debug)]
pub struct ListedTemplate {
    /// Where it lies.
    pub path: PathBuf,
    /// The template, or why the file cannot be used.
    pub template: Result<Template, LayersError>,
}

/// A template as it is written.
#[derive(Serialize)]
struct Written<'a> {
    format: u32,
    #[serde(flatten)]
    template: &'a Template,
}

/// What is read first: a newer format may have changed all else.
#[derive(Deserialize)]
struct Versioned {
    format: u32,
}

impl Templates {
    pub(super) fn new(path: PathBuf, dir: OwnedFd) -> Self {
        Self { path, dir }
    }

    /// All templates in order of their names, damaged ones as such.
    ///
    /// # Errors
    /// [`LayersError::Io`] if a directory cannot be read.
    pub fn list(&self) -> Result<Vec<ListedTemplate>, LayersError> {
        let mut listed = Vec::new();
        let names = children(&self.dir).map_err(LayersError::io("list", &self.path))?;
        for name in names {
            let path = self.path.join(OsStr::from_bytes(&name));
            let text = String::from_utf8_lossy(&name);
            let dir = match open_dir(self.dir.as_fd(), name.as_slice()) {
                Ok(dir) => dir,
                Err(Errno::NOENT) => continue, // Its last tag was deleted meanwhile.
                Err(Errno::NOTDIR | Errno::LOOP) => {
                    let template = Err(LayersError::TemplateMisplaced { path: path.clone() });
                    listed.push(ListedTemplate { path, template });
                    continue;
                }
                Err(errno) => return Err(LayersError::io("list", path)(errno)),
            };
            let files = children(&dir).map_err(LayersError::io("list", &path))?;
            for file in files {
                if durable::is_staged(OsStr::from_bytes(&file)) {
                    continue;
                }
                let path = path.join(OsStr::from_bytes(&file));
                let tag = std::str::from_utf8(&file).ok().and_then(|f| f.strip_suffix(".json"));
                let template = match tag.map(|tag| TemplateName::new(&text, tag)) {
                    Some(Ok(name)) => match self.get(&name) {
                        Err(LayersError::NoTemplate(_)) => continue,
                        template => template,
                    },
                    Some(Err(_)) | None => {
                        Err(LayersError::TemplateMisplaced { path: path.clone() })
                    }
                };
                listed.push(ListedTemplate { path, template });
            }
        }
        Ok(listed)
    }

    /// Reads one template.
    ///
    /// # Errors
    /// [`LayersError::NoTemplate`]; [`LayersError::TemplateDamaged`],
    /// [`LayersError::TemplateFormat`] and [`LayersError::TemplateMisplaced`] for a file that
    /// cannot be used; [`LayersError::Io`].
    pub fn get(&self, name: &TemplateName) -> Result<Template, LayersError> {
        let path = self.file_path(name);
        let text = match self.read(name) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(LayersError::NoTemplate(name.clone()));
            }
            Err(source) => return Err(LayersError::Io { action: "read", path, source }),
        };
        let damaged = |source| LayersError::TemplateDamaged { path: path.clone(), source };
        let Versioned { format } = serde_json::from_slice(&text).map_err(damaged)?;
        if format != FORMAT {
            return Err(LayersError::TemplateFormat { path, found: format });
        }
        let template: Template = serde_json::from_slice(&text).map_err(damaged)?;
        if template.name != *name {
            return Err(LayersError::TemplateMisplaced { path });
        }
        Ok(template)
    }

    fn read(&self, name: &TemplateName) -> io::Result<Vec<u8>> {
        let dir = open_dir(self.dir.as_fd(), name.name())?;
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&dir, file_name(name), flags, Mode::empty())?;
        let mut text = Vec::new();
        File::from(file).take(MAX_FILE_BYTES).read_to_end(&mut text)?;
        Ok(text)
    }

    /// Writes a template under its name. Durable on return.
    ///
    /// # Errors
    /// [`LayersError::TemplateExists`] without `replace`; [`LayersError::Io`] leaves what was
    /// there before.
    pub fn put(&self, template: &Template, replace: bool) -> Result<(), LayersError> {
        let name = &template.name;
        let path = self.file_path(name);
        let written = Written { format: FORMAT, template };
        let mut text = serde_json::to_vec_pretty(&written)
            .map_err(|source| LayersError::TemplateDamaged { path: path.clone(), source })?;
        text.push(b'\n');
        let existing = if replace { Existing::Replace } else { Existing::Keep };
        let io = |source| LayersError::Io { action: "write", path: path.clone(), source };
        loop {
            let dir = self.make_dir(name.name()).map_err(io)?;
            match durable::write_file(dir.as_fd(), file_name(name).as_ref(), &text, existing) {
                Ok(()) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    return Err(LayersError::TemplateExists(name.clone()));
                }
                // The directory was removed with its last tag meanwhile; make it again.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(source) => return Err(io(source)),
            }
        }
    }

    fn make_dir(&self, name: &str) -> io::Result<OwnedFd> {
        loop {
            match rustix::fs::mkdirat(&self.dir, name, Mode::RWXU) {
                Ok(()) => rustix::fs::fsync(&self.dir)?,
                Err(Errno::EXIST) => {}
                Err(errno) => return Err(errno.into()),
            }
            match open_dir(self.dir.as_fd(), name) {
                Err(Errno::NOENT) => {}
                opened => return Ok(opened?),
            }
        }
    }

    /// Takes a name away, damaged or not. Durable on return. Its layers stay until they are
    /// collected.
    ///
    /// # Errors
    /// [`LayersError::NoTemplate`] and [`LayersError::Io`].
    pub fn delete(&self, name: &TemplateName) -> Result<(), LayersError> {
        let remove = || {
            let dir = open_dir(self.dir.as_fd(), name.name())?;
            rustix::fs::unlinkat(&dir, file_name(name), AtFlags::empty())?;
            rustix::fs::fsync(&dir)?;
            match rustix::fs::unlinkat(&self.dir, name.name(), AtFlags::REMOVEDIR) {
                Ok(()) => rustix::fs::fsync(&self.dir),
                // Other tags are left, or somebody else was first.
                Err(Errno::NOTEMPTY | Errno::EXIST | Errno::NOENT) => Ok(()),
                Err(errno) => Err(errno),
            }
        };
        match remove() {
            Ok(()) => Ok(()),
            Err(Errno::NOENT) => Err(LayersError::NoTemplate(name.clone())),
            Err(errno) => Err(LayersError::io("delete", self.file_path(name))(errno)),
        }
    }

    fn file_path(&self, name: &TemplateName) -> PathBuf {
        self.path.join(name.name()).join(file_name(name))
    }
}

fn file_name(name: &TemplateName) -> String {
    format!("{}.json", name.tag())
}

/// The names in `dir`, sorted.
fn children(dir: &OwnedFd) -> io::Result<Vec<Vec<u8>>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(name.to_vec());
        }
    }
    names.sort_unstable();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::template::{Provenance, RunConfig, TemplateKind, default_shared_paths};
    use crate::layer::{Layers, Stack};

    fn template(name: &str) -> Template {
        Template {
            name: name.parse().expect("test name"),
            kind: TemplateKind::Os,
            stack: Stack::default(),
            config: RunConfig { env: vec!["A=b".into()], ..RunConfig::default() },
            shared_paths: default_shared_paths(),
            provenance: Provenance::now("-".into(), Some("sha256:00".into())),
        }
    }

    #[test]
    fn a_template_is_kept_replaced_and_deleted() {
        let scratch = tempfile::tempdir().expect("scratch");
        let layers = Layers::open(scratch.path()).expect("open");
        let templates = layers.templates();
        let first = template("debian:12");
        templates.put(&first, false).expect("put");
        assert_eq!(templates.get(&first.name).expect("get"), first);
        let mut second = first.clone();
        second.config.user = "1000".into();
        assert!(matches!(templates.put(&second, false), Err(LayersError::TemplateExists(_))));
        assert_eq!(templates.get(&first.name).expect("get"), first);
        templates.put(&second, true).expect("replace");
        assert_eq!(templates.get(&first.name).expect("get"), second);
        templates.delete(&first.name).expect("delete");
        assert!(matches!(templates.delete(&first.name), Err(LayersError::NoTemplate(_))));
        assert!(!scratch.path().join("templates/debian").exists());
    }

    #[test]
    fn damaged_templates_are_reported_and_harm_no_other() {
        let scratch = tempfile::tempdir().expect("scratch");
        let layers = Layers::open(scratch.path()).expect("open");
        let templates = layers.templates();
        for name in ["a:1", "b:1", "c:1", "d:1", "e:1"] {
            templates.put(&template(name), false).expect("put");
        }
        let dir = scratch.path().join("templates");
        std::fs::write(dir.join("a/1.json"), b"{").expect("damage");
        std::fs::write(dir.join("b/1.json"), br#"{"format": 2}"#).expect("damage");
        std::fs::rename(dir.join("c/1.json"), dir.join("c/2.json")).expect("misplace");
        std::fs::write(dir.join("d/.1.json.1-1-1.staged"), b"{").expect("leave");
        std::fs::write(dir.join("stray"), b"").expect("stray");
        std::fs::create_dir(dir.join(OsStr::from_bytes(b"\xff"))).expect("stray");
        std::fs::write(dir.join(OsStr::from_bytes(b"\xff/x.json")), b"").expect("stray");
        let listed = templates.list().expect("list");
        let bad: Vec<_> = listed.iter().filter(|listed| listed.template.is_err()).collect();
        assert_eq!(listed.len(), 7, "{listed:?}");
        assert!(matches!(bad[0].template, Err(LayersError::TemplateDamaged { .. })));
        assert!(matches!(bad[1].template, Err(LayersError::TemplateFormat { found: 2, .. })));
        assert!(matches!(bad[2].template, Err(LayersError::TemplateMisplaced { .. })));
        assert_eq!(bad.len(), 5);
    }

    #[test]
    fn a_put_survives_the_deletion_of_the_other_tags_meanwhile() {
        let scratch = tempfile::tempdir().expect("scratch");
        let layers = Layers::open(scratch.path()).expect("open");
        let templates = layers.templates();
        std::thread::scope(|scope| {
            for tag in ["a", "b", "c"] {
                scope.spawn(move || {
                    let template = template(&format!("x:{tag}"));
                    for _ in 0..50 {
                        templates.put(&template, false).expect("put");
                        templates.get(&template.name).expect("get");
                        templates.delete(&template.name).expect("delete");
                    }
                });
            }
        });
        assert!(templates.list().expect("list").is_empty());
    }
}
