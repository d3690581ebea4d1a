//! Users of a container: who a name is, a new password, a key to log in with.
//!
//! The container's own files are never trusted to be where their names say: every path is resolved
//! beneath its root, where an absolute symlink, too, stays inside.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Gid, Mode, OFlags, ResolveFlags, Uid, openat, openat2};

use crate::sys::inode;

/// A user as the kernel wants it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// Number of the user.
    pub uid: u32,
    /// Number of its group.
    pub gid: u32,
    /// Numbers of other groups that it is in.
    pub groups: Vec<u32>,
    /// Where it is at home.
    pub home: PathBuf,
}

/// Why there is no such user, or nothing could be done for it.
#[derive(Debug, thiserror::Error)]
pub enum UserError {
    /// Not in the container's /etc/passwd.
    #[error("the container has no user {0:?}; see its /etc/passwd, or give a number")]
    NoUser(String),
    /// Not in the container's /etc/group.
    #[error("the container has no group {0:?}; see its /etc/group, or give a number")]
    NoGroup(String),
    /// More than the kernel counts to, or its "no change".
    #[error(
        "{0} is the number of no user and no group: they go from 0 to 4294967294; give another one, or mend the container's /etc/passwd and /etc/group"
    )]
    Number(String),
    /// Not `USER:PASSWORD`.
    #[error("a password is set as USER:PASSWORD, on one line, neither of them empty")]
    Password,
    /// Nothing that sshd would read.
    #[error("{0} holds no public key; give a file such as ~/.ssh/id_ed25519.pub")]
    Key(PathBuf),
    /// A file cannot be read or written.
    #[error("cannot {what} {path}: {source}")]
    System {
        /// What was being done.
        what: &'static str,
        /// To which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

fn system(what: &'static str, path: &Path) -> impl FnOnce(rustix::io::Errno) -> UserError {
    let path = path.to_owned();
    move |errno| UserError::System { what, path, source: errno.into() }
}

/// More than any system has users; a container could fill memory otherwise.
const MOST: u64 = 16 << 20;

fn open_root(root: &Path) -> Result<OwnedFd, UserError> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(CWD, root, flags, Mode::empty()).map_err(system("open", root))
}

/// Reads a file of the container; nothing when it has none.
fn read(root: &OwnedFd, path: &str) -> Result<String, UserError> {
    // Looked at first: it may be a fifo, which waits, or a device, which acts on being opened.
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let file = match openat2(root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT) {
        Ok(file) => File::from(file),
        Err(rustix::io::Errno::NOENT) => return Ok(String::new()),
        Err(error) => return Err(system("open", Path::new(path))(error)),
    };
    let read = |file: File| {
        if !file.metadata()?.is_file() {
            let why = "it is no file; give a number, such as 0, instead of a name";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        let file = File::from(inode::reopen(&file, OFlags::RDONLY)?);
        let mut bytes = Vec::new();
        file.take(MOST).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    read(file).map_err(|source| UserError::System { what: "read", path: path.into(), source })
}

impl User {
    /// Root, whatever the container's files say of it: they are the tenant's to write.
    #[must_use]
    pub fn root() -> Self {
        Self { uid: 0, gid: 0, groups: Vec::new(), home: "/root".into() }
    }
}

/// Whether a word is a number, and so never a name.
fn is_number(word: &str) -> bool {
    !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_digit())
}

/// The number of a user or a group. To the kernel the last one means nobody (`setresuid(2)`).
fn number(word: &str) -> Result<u32, UserError> {
    let number = word.parse().ok().filter(|number| *number != u32::MAX);
    number.ok_or_else(|| UserError::Number(word.to_owned()))
}

/// Finds `USER`, `UID`, `USER:GROUP` or `UID:GID` in the container whose root is mounted at `root`.
///
/// Digits are a number, never a name. What a container's files say of a number is told if it can be;
/// of 0 they are not asked at all, so that no tenant decides who `0` is.
///
/// # Errors
/// [`UserError`].
pub fn resolve(root: &Path, user: &str) -> Result<User, UserError> {
    let root = open_root(root)?;
    let (name, group) = match user.split_once(':') {
        Some((name, group)) => (name, Some(group)),
        None => (user, None),
    };
    let given = if is_number(name) { Some(number(name)?) } else { None };
    let text = |path| match (read(&root, path), given) {
        (Err(_odd), Some(_)) => Ok(String::new()),
        (text, _) => text,
    };
    let mut found = if given == Some(0) {
        User::root()
    } else {
        let passwd = text("etc/passwd")?;
        let mut entries = passwd.lines().map(|line| line.split(':').collect::<Vec<_>>());
        let entry = entries.find(|fields| match given {
            Some(_) => fields.get(2).and_then(|id| id.parse().ok()) == given,
            None => fields.first() == Some(&name),
        });
        let field = |at: usize| entry.as_ref().and_then(|fields| fields.get(at)).copied();
        let of_entry = |at| field(at).filter(|id| is_number(id)).map(number).transpose();
        let uid = given.map_or_else(|| of_entry(2), |uid| Ok(Some(uid)))?;
        let uid = uid.ok_or_else(|| UserError::NoUser(name.to_owned()))?;
        let home = field(5).filter(|home| home.starts_with('/')).unwrap_or("/").into();
        let (gid, mut groups) = (of_entry(3), Vec::new());
        if group.is_none() {
            let own = field(0).unwrap_or(name);
            for fields in text("etc/group")?.lines().map(|line| line.split(':').collect::<Vec<_>>())
            {
                let members = fields.get(3).copied().unwrap_or_default();
                if members.split(',').any(|member| member == own) {
                    // A line that is none puts nobody into a group.
                    groups.extend(fields.get(2).and_then(|id| number(id).ok()));
                }
            }
        }
        let gid = if group.is_none() { gid?.unwrap_or(0) } else { 0 };
        User { uid, gid, groups, home }
    };
    if let Some(group) = group {
        found.gid = if is_number(group) {
            number(group)?
        } else {
            let groups = read(&root, "etc/group")?;
            let mut groups = groups.lines().map(|line| line.split(':').collect::<Vec<_>>());
            let named = groups.find(|fields| fields.first() == Some(&group));
            let id = named.as_ref().and_then(|fields| fields.get(2)).filter(|id| is_number(id));
            number(id.ok_or_else(|| UserError::NoGroup(group.to_owned()))?)?
        };
    }
    Ok(found)
}

/// What chpasswd(8) inside the container reads to set a password given as `USER:PASSWORD`.
///
/// It is run inside because only the container knows how its passwords are kept.
///
/// # Errors
/// [`UserError::Password`].
pub fn chpasswd_input(given: &str) -> Result<String, UserError> {
    match given.split_once(':') {
        Some((user, password))
            if !user.is_empty() && !password.is_empty() && !given.contains(['\n', '\0']) =>
        {
            Ok(format!("{given}\n"))
        }
        Some(_) | None => Err(UserError::Password),
    }
}

/// Lets whoever has the private half of a key in `key_file` log in as `user`, by adding the key to
/// its `.ssh/authorized_keys`, once.
///
/// `root` is where the host sees the container's files under their own numbers.
///
/// # Errors
/// [`UserError`]; the file is the old or the new one, never a part.
pub fn authorize(root: &Path, user: &str, key_file: &Path) -> Result<(), UserError> {
    let host = |what, path: &Path| {
        let path = path.to_owned();
        move |source| UserError::System { what, path, source }
    };
    let text = std::fs::read_to_string(key_file).map_err(host("read", key_file))?;
    let is_key = |line: &&str| {
        let mut words = line.split_whitespace();
        let kind = words.next().unwrap_or_default();
        let known =
            kind.starts_with("ssh-") || kind.starts_with("ecdsa-") || kind.starts_with("sk-");
        known && words.next().is_some_and(|data| data.starts_with("AAAA"))
    };
    let keys: Vec<&str> = text.lines().map(str::trim).filter(is_key).collect();
    if keys.is_empty() {
        return Err(UserError::Key(key_file.to_owned()));
    }
    let found = resolve(root, user)?;
    let top = open_root(root)?;
    let home = found.home.strip_prefix("/").unwrap_or(&found.home);
    let home = if home.as_os_str().is_empty() { Path::new(".") } else { home };
    let directory = |at: &OwnedFd, path: &Path| {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        openat2(at, path, flags, Mode::empty(), ResolveFlags::IN_ROOT)
    };
    let at_home = directory(&top, home).map_err(system("open", &found.home))?;
    let ssh_path = found.home.join(".ssh");
    let (uid, gid) = (Uid::from_raw(found.uid), Gid::from_raw(found.gid));
    match rustix::fs::mkdirat(&at_home, ".ssh", Mode::RWXU) {
        Ok(()) => {
            rustix::fs::chownat(&at_home, ".ssh", Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
                .map_err(system("give away", &ssh_path))?
        }
        Err(rustix::io::Errno::EXIST) => {}
        Err(error) => return Err(system("make", &ssh_path)(error)),
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let ssh = openat(&at_home, ".ssh", flags, Mode::empty()).map_err(system("open", &ssh_path))?;
    let path = ssh_path.join("authorized_keys");
    let relative = path.strip_prefix("/").unwrap_or(&path).to_string_lossy().into_owned();
    let mut content = read(&top, &relative)?;
    if !content.is_empty() && !content.ends_with('\n') {
        content.push('\n');
    }
    for key in keys {
        if !content.lines().any(|line| line.trim() == key) {
            content.push_str(key);
            content.push('\n');
        }
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let staged = ".authorized_keys.staged";
    match rustix::fs::unlinkat(&ssh, staged, AtFlags::empty()) {
        Ok(()) | Err(rustix::io::Errno::NOENT) => {}
        Err(error) => return Err(system("remove", &ssh_path.join(staged))(error)),
    }
    let file =
        openat(&ssh, staged, flags, Mode::RUSR | Mode::WUSR).map_err(system("write", &path))?;
    let mut file = File::from(file);
    let written = file.write_all(content.as_bytes()).and_then(|()| file.sync_all());
    written.map_err(host("write", &path))?;
    rustix::fs::fchown(file.as_fd(), Some(uid), Some(gid)).map_err(system("give away", &path))?;
    rustix::fs::renameat(&ssh, staged, &ssh, "authorized_keys").map_err(system("write", &path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn root() -> tempfile::TempDir {
        let root = tempfile::tempdir().expect("scratch");
        fs::create_dir_all(root.path().join("etc")).expect("made");
        let passwd = "root:x:0:0:root:/root:/bin/sh\nwww:x:33:33::/srv/www:/bin/false\nbad\n";
        fs::write(root.path().join("etc/passwd"), passwd).expect("written");
        let group = "root:x:0:\nwww:x:33:\nadm:x:4:www,root\ndisk:x:6:root\n";
        fs::write(root.path().join("etc/group"), group).expect("written");
        root
    }

    #[test]
    fn names_and_numbers_are_found() {
        let root = root();
        let user = |text| resolve(root.path(), text).expect(text);
        let www = User { uid: 33, gid: 33, groups: vec![4], home: "/srv/www".into() };
        assert_eq!(user("www"), www);
        assert_eq!(user("33"), www);
        assert_eq!(user("www:disk"), User { gid: 6, groups: vec![], ..www });
        assert_eq!(user("1234:5").home, Path::new("/"));
        resolve(root.path(), "nobody").expect_err("not there");
        resolve(root.path(), "www:wheel").expect_err("no group");
    }

    #[test]
    fn no_file_of_a_container_decides_who_a_number_is() {
        let root = root();
        let file = |name: &str| root.path().join("etc").join(name);
        let passwd = "0:x:1000:1000::/:/bin/sh\nroot:x:0:1000::/srv:/bin/sh\n33:x:0:0::/:/bin/sh\n\
            www:x:33:33::/srv/www:/bin/sh\nmax:x:4294967295:0::/:/bin/sh\nmin:x:5:4294967295::/:/bin/sh\n";
        fs::write(file("passwd"), passwd).expect("written");
        fs::write(file("group"), "adm:x:4:www\nlast:x:4294967295:www\n").expect("written");
        let user = |text| resolve(root.path(), text).expect(text);
        assert_eq!(user("0"), User::root());
        assert_eq!(user("0:7"), User { gid: 7, ..User::root() });
        let www = User { uid: 33, gid: 33, groups: vec![4], home: "/srv/www".into() };
        assert_eq!(user("33"), www);
        let last = ["max", "min", "www:last", "4294967295", "4294967296", "0:4294967295"];
        for word in last {
            let error = resolve(root.path(), word).expect_err(word);
            assert!(matches!(error, UserError::Number(_)), "{word}: {error}");
        }
        for name in ["passwd", "group"] {
            fs::remove_file(file(name)).expect("removed");
            let fifo = rustix::fs::FileType::Fifo;
            rustix::fs::mknodat(CWD, file(name), fifo, Mode::RWXU, 0).expect("made");
        }
        assert_eq!(user("0"), User::root());
        assert_eq!(user("33:4"), User { uid: 33, gid: 4, groups: Vec::new(), home: "/".into() });
        let odd = resolve(root.path(), "www").expect_err("no file").to_string();
        assert!(odd.contains("give a number"), "{odd}");
    }

    /// Needs root, for the owner of the key.
    #[test]
    fn a_key_is_added_once_and_no_symlink_leads_out() {
        let root = root();
        let outside = tempfile::tempdir().expect("scratch");
        let key = outside.path().join("key.pub");
        fs::write(&key, "ssh-ed25519 AAAAC3Nz me\n").expect("written");
        fs::create_dir_all(root.path().join("srv/www")).expect("made");
        authorize(root.path(), "www", &key).expect("added");
        authorize(root.path(), "www", &key).expect("there");
        let path = root.path().join("srv/www/.ssh/authorized_keys");
        assert_eq!(fs::read_to_string(&path).expect("written"), "ssh-ed25519 AAAAC3Nz me\n");
        // A home that is a symlink to the host's directory leads to the container's own.
        fs::remove_dir_all(root.path().join("srv")).expect("removed");
        std::os::unix::fs::symlink(outside.path(), root.path().join("srv")).expect("made");
        authorize(root.path(), "www", &key).expect_err("no such home inside");
        fs::create_dir_all(root.path().join("root")).expect("made");
        std::os::unix::fs::symlink(outside.path(), root.path().join("root/.ssh")).expect("made");
        authorize(root.path(), "root", &key).expect_err("not a directory of its own");
        assert_eq!(fs::read_dir(outside.path()).expect("listed").count(), 1);
        fs::write(&key, "-----BEGIN PRIVATE KEY-----\n").expect("written");
        assert!(matches!(authorize(root.path(), "www", &key), Err(UserError::Key(_))));
        assert!(chpasswd_input("root:a:b").is_ok() && chpasswd_input("root:x\nwww:y").is_err());
    }
}
