//! Where something is written out to: beside what it replaces, and never onto what matters.
//!
//! Whatever gets a name is whole by then: it is written beside it first, and changes places with
//! what is there in one step, where the host's file system can do that.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

use super::error::HostError;
use super::mount_table;
use super::remove::remove_tree;
use super::roots::Roots;
use super::store::Store;

/// Why nothing may be written to a place.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Precious {
    /// It is the store, or lies in it, or around it.
    #[error("the store is there")]
    Store,
    /// Something is mounted there, or below: what was removed would go from that.
    #[error("{} is a mountpoint", .0.display())]
    Mount(PathBuf),
    /// A root keeps its changes there, or around it, or below.
    #[error("root {0} keeps its changes there")]
    Root(String),
    /// It is not a thing that a file or a directory can take the place of.
    #[error("it is a device, a pipe or a socket; `-` writes to standard output")]
    Special,
    /// It is `/`, or ends in `..`: nothing can be put beside it under another name.
    #[error("it has no name of its own")]
    Nameless,
}

/// Refuses a place where writing, or with `removes` removing what is there, would harm more than
/// was meant.
///
/// # Errors
/// [`HostError::ExportPlace`]; [`HostError::System`] if that cannot be found out.
pub(super) fn examine(store: &Store, target: &Path, removes: bool) -> Result<(), HostError> {
    let refuse = |why| Err(HostError::ExportPlace { path: target.to_owned(), why });
    let Some(name) = target.file_name() else { return refuse(Precious::Nameless) };
    let parent = match target.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        Some(_) | None => Path::new("."),
    };
    let parent = parent.canonicalize().map_err(HostError::system("look into", parent))?;
    let place = parent.join(name);
    // What is added to a directory goes where a link leads; what replaces a link does not.
    let place = if removes { place } else { place.canonicalize().unwrap_or(place) };
    let found = match place.symlink_metadata() {
        Ok(found) => Some(found.file_type()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(HostError::system("look at", target)(error)),
    };
    if let Some(kind) = found
        && (kind.is_block_device() || kind.is_char_device() || kind.is_fifo() || kind.is_socket())
    {
        return refuse(Precious::Special);
    }
    let goes = removes && found.is_some_and(|kind| kind.is_dir());
    let meets = |other: &Path| place.starts_with(other) || (goes && other.starts_with(&place));
    // What cannot be found is in nobody's way.
    if store.path().canonicalize().is_ok_and(|store| meets(&store)) {
        return refuse(Precious::Store);
    }
    let roots = match Roots::open(store)?.list() {
        Ok(roots) => roots,
        // Nothing would go.
        Err(_) if !goes => Vec::new(),
        Err(error) => return Err(error.into()),
    };
    for root in roots {
        let private = root.private.as_ref().and_then(|private| private.canonicalize().ok());
        if private.is_some_and(|private| meets(&private)) {
            return refuse(Precious::Root(root.name));
        }
    }
    if goes {
        let table = mount_table::read().map_err(HostError::system("look up", &place))?;
        if let Some(entry) = table.into_iter().find(|entry| entry.mountpoint.starts_with(&place)) {
            return refuse(Precious::Mount(entry.mountpoint));
        }
    }
    Ok(())
}

/// Lets `write` make something beside `target` and gives it that name when it is whole.
pub(super) fn beside<T>(
    target: &Path,
    replace: bool,
    write: impl FnOnce(&Path) -> Result<T, HostError>,
) -> Result<T, HostError> {
    let is_empty = || fs::read_dir(target).is_ok_and(|mut entries| entries.next().is_none());
    let exists = target.symlink_metadata().is_ok();
    if exists && !replace && !is_empty() {
        return Err(HostError::ExportExists { path: target.to_owned() });
    }
    let staged = staged(target, "partial")?;
    remove(&staged)?;
    let done = write(&staged).and_then(|done| {
        if exists {
            exchange(&staged, target)?;
            clear_away(&staged, target, replace)?;
        } else {
            name(&staged, target)?;
        }
        Ok(done)
    });
    if done.is_err() {
        // The first error is the one that matters.
        let _removed = remove(&staged);
    }
    done
}

/// Gives `staged` its name; what somebody else made meanwhile stays.
fn name(staged: &Path, target: &Path) -> Result<(), HostError> {
    match renameat_with(CWD, staged, CWD, target, RenameFlags::NOREPLACE) {
        Ok(()) => Ok(()),
        Err(Errno::EXIST) => Err(HostError::ExportExists { path: target.to_owned() }),
        // A file system that knows no flags.
        Err(Errno::INVAL) => fs::rename(staged, target).map_err(HostError::system("name", target)),
        Err(errno) => Err(HostError::system("name", target)(errno)),
    }
}

/// Lets `staged` and `target` change places: what was at `target` is at `staged` then.
fn exchange(staged: &Path, target: &Path) -> Result<(), HostError> {
    match renameat_with(CWD, staged, CWD, target, RenameFlags::EXCHANGE) {
        Ok(()) => return Ok(()),
        Err(Errno::INVAL) => {}
        Err(errno) => return Err(HostError::system("replace", target)(errno)),
    }
    // A file system that cannot: a directory cannot take the place of a full one, so that steps
    // aside first, and comes back if it was for nothing.
    let old = self::staged(target, "old")?;
    remove(&old)?;
    fs::rename(target, &old).map_err(HostError::system("replace", target))?;
    if let Err(error) = fs::rename(staged, target) {
        fs::rename(&old, target).map_err(HostError::system("put back", target))?;
        return Err(HostError::system("name", target)(error));
    }
    fs::rename(&old, staged).map_err(HostError::system("set aside", &old))
}

/// A hidden name in the same directory.
fn staged(target: &Path, word: &str) -> Result<PathBuf, HostError> {
    let Some(name) = target.file_name() else {
        return Err(HostError::ExportPlace { path: target.to_owned(), why: Precious::Nameless });
    };
    let mut hidden = OsString::from(".");
    hidden.push(name);
    hidden.push(format!(".mica-{}-{word}", std::process::id()));
    Ok(target.with_file_name(hidden))
}

/// Removes what was at `target` and is at `old` now. Without `replace` that was an empty directory:
/// if somebody put something into it meanwhile, both change places once more.
fn clear_away(old: &Path, target: &Path, replace: bool) -> Result<(), HostError> {
    if replace {
        return remove(old);
    }
    fs::remove_dir(old).map_err(|error| match exchange(old, target) {
        Ok(()) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {
            HostError::ExportExists { path: target.to_owned() }
        }
        Ok(()) => HostError::system("remove", target)(error),
        Err(error) => error,
    })
}

/// What is mounted beneath stays, and is an error.
fn remove(path: &Path) -> Result<(), HostError> {
    let removed = match path.symlink_metadata() {
        Ok(found) if found.is_dir() => remove_tree(path),
        Ok(_) => fs::remove_file(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => Err(error),
    };
    removed.map_err(HostError::system("remove", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_somebody_puts_into_an_empty_directory_meanwhile_stays_there() {
        let scratch = tempfile::tempdir().expect("scratch");
        let target = scratch.path().join("out");
        fs::create_dir(&target).expect("made");
        let refused = beside(&target, false, |staged| {
            fs::create_dir(staged)
                .and_then(|()| fs::write(staged.join("ours"), ""))
                .expect("written");
            // After the look at it, before both change places.
            fs::write(target.join("theirs"), "").expect("written");
            Ok(())
        });
        assert!(matches!(refused, Err(HostError::ExportExists { .. })), "{refused:?}");
        let names = |path: &Path| -> Vec<OsString> {
            fs::read_dir(path)
                .expect("listed")
                .map(|entry| entry.expect("entry").file_name())
                .collect()
        };
        assert_eq!(names(&target), ["theirs"]);
        assert_eq!(names(scratch.path()), ["out"], "what was written for nothing stayed");
    }
}
