//! Where mounts of a container go in its root.
//!
//! The root is whatever its tenant made of it. Runtimes follow links there on their way to a mount, and
//! not all of them stay inside, or find what is only about to be there; so both are looked at before.

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, fstat, openat, openat2, readlinkat};
use rustix::io::Errno;

use super::runtime::RuntimeError;

/// Where every container has file systems of the kernel's, and the nodes in them.
const KERNELS: [&str; 3] = ["dev", "proc", "sys"];

/// As many links as the kernel follows on one way (path_resolution(7)).
const MOST_LINKS: usize = 40;

const INSIDE: ResolveFlags =
    ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);

fn open(root: &Path) -> Result<OwnedFd, Errno> {
    openat(CWD, root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

/// Refuses a root in which `/dev`, `/proc` or `/sys` is there and no directory: runc 1.1 makes device
/// nodes and links behind a link there, wherever in the host that leads.
///
/// # Errors
/// [`RuntimeError::Place`], or that one of them cannot be looked at.
pub(super) fn check(root: &Path) -> Result<(), RuntimeError> {
    let wrong = |errno: Errno| RuntimeError::system("look into", root)(errno.into());
    let top = open(root).map_err(wrong)?;
    for place in KERNELS {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let what = match openat2(&top, place, flags, Mode::empty(), INSIDE) {
            Err(Errno::NOENT) => continue,
            Err(Errno::LOOP) => "a symbolic link",
            Err(errno) => return Err(wrong(errno)),
            Ok(there) => match FileType::from_raw_mode(fstat(&there).map_err(wrong)?.st_mode) {
                FileType::Directory => continue,
                FileType::RegularFile => "a file",
                FileType::Fifo => "a fifo",
                FileType::Socket => "a socket",
                FileType::CharacterDevice | FileType::BlockDevice => "a device",
                FileType::Symlink | FileType::Unknown => "no directory",
            },
        };
        return Err(RuntimeError::Place { place, what });
    }
    Ok(())
}

/// Where `target` leads in the root mounted at `root`, every link on the way followed inside, be there
/// anything at its end or not: a runtime then makes it there. The same `target` where that cannot be
/// told, or is in a file system of the kernel's; runtimes judge those themselves.
pub(super) fn destination(root: &Path, target: &Path) -> PathBuf {
    follow(root, target).unwrap_or_else(|| target.to_owned())
}

fn follow(root: &Path, target: &Path) -> Option<PathBuf> {
    let top = open(root).ok()?;
    // Words to go, the next one last.
    let words = |path: &Path| -> Vec<OsString> {
        path.components().rev().map(|word| word.as_os_str().to_owned()).collect()
    };
    let mut to_go = words(target);
    let mut links = 0;
    // Without a link in it.
    let mut at = PathBuf::new();
    while let Some(word) = to_go.pop() {
        match Path::new(&word).components().next()? {
            Component::RootDir => at.clear(),
            Component::CurDir => {}
            Component::ParentDir => {
                at.pop();
            }
            Component::Prefix(_) => return None,
            Component::Normal(name) => {
                let above = if at == Path::new("") { Path::new(".") } else { at.as_path() };
                let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
                let link = openat2(&top, above, flags, Mode::empty(), INSIDE)
                    .and_then(|above| readlinkat(&above, name, Vec::new()));
                match link {
                    Ok(link) => {
                        links += 1;
                        if links > MOST_LINKS {
                            return None;
                        }
                        let link = <OsString as OsStringExt>::from_vec(link.into_bytes());
                        to_go.extend(words(Path::new(&link)));
                    }
                    // No link, or nothing.
                    Err(Errno::INVAL | Errno::NOENT) => at.push(name),
                    Err(_) => return None,
                }
            }
        }
    }
    let of_kernel = KERNELS.iter().any(|place| at.starts_with(place));
    (at != Path::new("") && !of_kernel).then(|| Path::new("/").join(at))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_destination_is_where_links_lead_inside_and_nowhere_else() {
        let root = tempfile::tempdir().expect("scratch");
        let at = |name: &str| root.path().join(name);
        fs::create_dir_all(at("etc")).expect("made");
        fs::create_dir_all(at("run")).expect("made");
        fs::create_dir_all(at("proc")).expect("made");
        fs::write(at("etc/plain"), "").expect("written");
        for (name, to) in [
            ("etc/stub", "../run/systemd/resolve/stub-resolv.conf"),
            ("etc/absolute", "/var/run/file"),
            ("var", "/srv"),
            ("etc/up", "../../../../../../etc/other"),
            ("etc/loop", "loop"),
            ("etc/top", "/"),
            ("etc/magic", "/proc/self/fd/0"),
            ("etc/sly", "../run/../dev/null"),
            ("etc/under", "plain/file"),
        ] {
            symlink(to, at(name)).expect("linked");
        }
        for (target, expected) in [
            ("/etc/plain", "/etc/plain"),
            ("/etc/none", "/etc/none"),
            ("/none/none", "/none/none"),
            ("/etc/stub", "/run/systemd/resolve/stub-resolv.conf"),
            ("/etc/absolute", "/srv/run/file"),
            ("/etc/up", "/etc/other"),
            ("/etc/loop", "/etc/loop"),
            ("/etc/top", "/etc/top"),
            ("/etc/magic", "/etc/magic"),
            ("/etc/sly", "/etc/sly"),
            ("/etc/under", "/etc/under"),
        ] {
            assert_eq!(
                destination(root.path(), Path::new(target)),
                Path::new(expected),
                "{target}"
            );
        }
    }

    #[test]
    fn what_is_no_directory_where_the_kernel_has_its_own_is_refused() {
        let root = tempfile::tempdir().expect("scratch");
        check(root.path()).expect("what is missing is made");
        for place in KERNELS {
            let path = root.path().join(place);
            symlink("/tmp", &path).expect("linked");
            let said = check(root.path()).expect_err("a link").to_string();
            assert!(said.contains(place) && said.contains("symbolic link"), "{said}");
            fs::remove_file(&path).expect("removed");
            fs::write(&path, "").expect("written");
            let said = check(root.path()).expect_err("a file").to_string();
            assert!(said.contains("is a file"), "{said}");
            fs::remove_file(&path).expect("removed");
            fs::create_dir(&path).expect("made");
        }
        check(root.path()).expect("directories");
    }
}
