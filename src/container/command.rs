//! Whether the container's root has the command that it is to run.
//!
//! Looked at before anything is made: runtimes find out too, but each at another moment, in other
//! words, and a program whose loader is missing only when nobody listens any more. What is not
//! certain (a volume may bring the command, the host may know the format) is left to them.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2};
use rustix::io::Errno;

use super::exec::{NOT_EXECUTABLE, NOT_FOUND};
use crate::sys::inode;

/// Bytes of a program that are looked at: its header, or its first line.
const HEAD: usize = 4096;

/// Longest name of a loader, in bytes.
const LONGEST_NAME: u64 = 4096;

/// Why a container's command cannot run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// It is not there.
    #[error("the container has no {word}{}", searched.as_ref().map(|path| format!(" in its PATH ({path})")).unwrap_or_default())]
    NotFound {
        /// The command.
        word: String,
        /// The PATH in which it was looked for; none: it was named by its place.
        searched: Option<String>,
    },
    /// It is there, and what runs it is not.
    #[error(
        "{word} in the container needs {interpreter}, which the container does not have: its template may be only a part of a system"
    )]
    NoInterpreter {
        /// The command.
        word: String,
        /// Its loader, or the interpreter of a script.
        interpreter: String,
    },
    /// It is no program.
    #[error("{word} in the container cannot be executed: {why}")]
    NotExecutable {
        /// The command.
        word: String,
        /// Why.
        why: &'static str,
    },
}

impl CommandError {
    /// What a shell would answer.
    #[must_use]
    pub fn status(&self) -> u8 {
        let status = match self {
            Self::NotFound { .. } | Self::NoInterpreter { .. } => NOT_FOUND,
            Self::NotExecutable { .. } => NOT_EXECUTABLE,
        };
        u8::try_from(status).unwrap_or(u8::MAX)
    }
}

/// Where a command is looked for.
#[derive(Debug)]
pub(super) struct Place<'a> {
    /// Where the root is mounted.
    pub(super) root: &'a Path,
    /// Directories, as in the environment.
    pub(super) path: &'a str,
    /// Where it starts.
    pub(super) workdir: &'a Path,
}

/// Looks for `word`.
///
/// # Errors
/// [`CommandError`] when it certainly cannot run.
pub(super) fn check(place: &Place<'_>, word: &str) -> Result<(), CommandError> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let Ok(root) = openat(CWD, place.root, flags, Mode::empty()) else { return Ok(()) };
    let named = word.contains('/');
    let candidates: Vec<PathBuf> = if named {
        vec![place.workdir.join(word)]
    } else {
        place.path.split(':').map(|directory| Path::new(directory).join(word)).collect()
    };
    let mut denied = None;
    for candidate in candidates {
        if ["/proc", "/dev", "/sys", "/run"].iter().any(|other| candidate.starts_with(other)) {
            // What will be mounted there is not in the root.
            return Ok(());
        }
        match open(&root, &candidate) {
            Ok(file) => match permitted(&file) {
                Ok(None) => return interpreted(&root, &file, word),
                Ok(Some(why)) => denied = denied.or(Some(why)),
                Err(_unknown) => return Ok(()),
            },
            Err(Errno::NOENT | Errno::NOTDIR) => {}
            Err(_unknown) => return Ok(()),
        }
    }
    let word = word.to_owned();
    Err(match denied {
        Some(why) => CommandError::NotExecutable { word, why },
        None => {
            let searched = (!named).then(|| place.path.to_owned());
            CommandError::NotFound { word, searched }
        }
    })
}

fn open(root: &OwnedFd, path: &Path) -> Result<File, Errno> {
    // Looked at, not opened: it may be a fifo, which waits, or a device, which acts on being opened.
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let relative = path.strip_prefix("/").unwrap_or(path);
    openat2(root, relative, flags, Mode::empty(), ResolveFlags::IN_ROOT).map(File::from)
}

/// Why nobody may execute a file; none: somebody may.
fn permitted(file: &File) -> io::Result<Option<&'static str>> {
    let metadata = file.metadata()?;
    Ok(if metadata.is_dir() {
        Some("it is a directory")
    } else if !metadata.is_file() {
        Some("it is no file")
    } else if metadata.mode() & 0o111 == 0 {
        Some("its mode lets nobody")
    } else {
        None
    })
}

/// Whether what runs a program is there.
fn interpreted(root: &OwnedFd, file: &File, word: &str) -> Result<(), CommandError> {
    // A file, as `permitted` saw.
    let Ok(file) = inode::reopen(file, OFlags::RDONLY) else { return Ok(()) };
    let file = &File::from(file);
    let mut head = [0; HEAD];
    let Ok(len) = file.read_at(&mut head, 0) else { return Ok(()) };
    let head = head.get(..len).unwrap_or_default();
    let interpreter = if head.starts_with(b"\x7fELF") {
        loader(file, head)
    } else if let Some(line) = head.strip_prefix(b"#!") {
        let line = line.split(|byte| *byte == b'\n').next().unwrap_or_default();
        let mut words = line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
        words.next().map(<[u8]>::to_vec)
    } else if head.iter().all(|byte| byte.is_ascii_graphic() || byte.is_ascii_whitespace()) {
        // The kernel runs no text, and runtimes differ in whether they have a shell read it.
        let why = "it is no program, and no script that begins with #!";
        return Err(CommandError::NotExecutable { word: word.to_owned(), why });
    } else {
        None
    };
    let Some(interpreter) = interpreter.filter(|path| path.starts_with(b"/")) else {
        return Ok(());
    };
    let path = PathBuf::from(<OsString as OsStringExt>::from_vec(interpreter));
    match open(root, &path) {
        Err(Errno::NOENT | Errno::NOTDIR) => Err(CommandError::NoInterpreter {
            word: word.to_owned(),
            interpreter: path.to_string_lossy().into_owned(),
        }),
        Ok(_) | Err(_) => Ok(()),
    }
}

/// What loads an ELF program (elf(5), `PT_INTERP`); none: nothing, or it cannot be told.
fn loader(file: &File, head: &[u8]) -> Option<Vec<u8>> {
    const PT_INTERP: u64 = 3;
    let number = |bytes: &[u8], at: usize, len: usize| -> Option<u64> {
        let bytes = bytes.get(at..at.checked_add(len)?)?;
        Some(bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    };
    // Little-endian only: no other one runs Mica.
    let (wide, little) = (*head.get(4)? == 2, *head.get(5)? == 1);
    if !little {
        return None;
    }
    // Of the file's header: table, size and count of program headers. Of one of those: offset, size.
    let [table, size, count] =
        if wide { [(32, 8), (54, 2), (56, 2)] } else { [(28, 4), (42, 2), (44, 2)] };
    let [offset, len] = if wide { [(8, 8), (32, 8)] } else { [(4, 4), (16, 4)] };
    let table = number(head, table.0, table.1)?;
    let size = number(head, size.0, size.1)?;
    for index in 0..number(head, count.0, count.1)? {
        let mut header = [0; 56];
        let at = table.checked_add(index.checked_mul(size)?)?;
        let read = file.read_at(&mut header, at).ok()?;
        let header = header.get(..read)?;
        if number(header, 0, 4)? != PT_INTERP {
            continue;
        }
        let (at, len) = (number(header, offset.0, offset.1)?, number(header, len.0, len.1)?);
        let mut name = vec![0; usize::try_from(len.min(LONGEST_NAME)).ok()?];
        file.read_exact_at(&mut name, at).ok()?;
        let end = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
        name.truncate(end);
        return Some(name);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    fn root() -> tempfile::TempDir {
        let root = tempfile::tempdir().expect("scratch");
        let put = |path: &str, bytes: &[u8], mode: u32| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().expect("it has one")).expect("made");
            fs::write(&path, bytes).expect("written");
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("set");
        };
        let own = fs::read(std::env::current_exe().expect("a program")).expect("read");
        put("bin/dynamic", own.get(..HEAD).expect("long"), 0o755);
        put("bin/script", b"#! /bin/dynamic -x\n", 0o755);
        put("bin/lost", b"#!/bin/none\n", 0o755);
        put("bin/text", b"echo me\n", 0o755);
        put("bin/data", b"\0\x01\xff\xfe", 0o755);
        put("bin/plain", b"\x7fELF", 0o644);
        put("bin/short", b"\x7fELF\x02\x01", 0o755);
        put("srv/here", b"\x7fELF\x02\x01", 0o755);
        std::os::unix::fs::symlink("/bin/short", root.path().join("bin/link")).expect("made");
        root
    }

    fn status(root: &Path, word: &str) -> u8 {
        let place = Place { root, path: "/usr/bin:/bin", workdir: Path::new("/srv") };
        check(&place, word).map_or_else(|error| error.status(), |()| 0)
    }

    #[test]
    fn what_cannot_run_is_told_from_what_may() {
        let root = root();
        let told = |word| status(root.path(), word);
        for (word, expected) in [
            ("none", 127),
            ("/bin/none", 127),
            ("lost", 127),
            ("dynamic", 127),
            ("plain", 126),
            ("/bin", 126),
            ("text", 126),
            ("script", 0),
            ("short", 0),
            ("link", 0),
            ("data", 0),
            ("./here", 0),
            ("/proc/self/exe", 0),
        ] {
            assert_eq!(told(word), expected, "{word}");
        }
        let place = Place { root: root.path(), path: "/bin", workdir: Path::new("/") };
        let loader = check(&place, "dynamic").expect_err("no loader").to_string();
        assert!(loader.contains("/ld-"), "{loader}");
    }

    #[test]
    fn any_header_is_read_without_harm() {
        let root = root();
        let mut random = fastrand::Rng::with_seed(127);
        for _ in 0..2000 {
            let mut bytes = b"\x7fELF\x02\x01".to_vec();
            let len = random.usize(0..120);
            bytes.extend(std::iter::repeat_with(|| random.u8(..)).take(len));
            if random.bool() {
                bytes[4] = 1;
            }
            fs::write(root.path().join("bin/short"), &bytes).expect("written");
            status(root.path(), "short");
        }
    }
}
