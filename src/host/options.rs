//! Mount options: the list after `-o`, as mount(8) and fstab(5) write it.
//!
//! Generic options are honoured or, where they concern only mount(8) or are always in
//! force, taken in silence. The last of two contradicting ones wins, as in mount(8).

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use rustix::mount::MountFlags;
use serde::{Deserialize, Serialize};

/// How access times are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum AccessTimes {
    /// The kernel's default: updated when older than the modification, or a day.
    #[default]
    Relative,
    /// Updated at every read.
    Strict,
    /// Never updated.
    Off,
}

/// What the kernel itself does for a mount, whatever its file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct GenericOptions {
    /// `ro`
    pub read_only: bool,
    /// `nosuid`: setuid bits and file capabilities have no effect.
    pub no_suid: bool,
    /// `nodev`: device nodes cannot be opened.
    pub no_devices: bool,
    /// `noexec`
    pub no_exec: bool,
    /// `nosymfollow`
    pub no_symlink_follow: bool,
    /// `noatime`, `relatime`, `strictatime`
    pub access_times: AccessTimes,
    /// `nodiratime`
    pub no_directory_access_times: bool,
    /// `sync`: every write reaches the disk before it returns.
    pub synchronous: bool,
    /// `dirsync`: the same, of directories.
    pub synchronous_directories: bool,
}

impl GenericOptions {
    /// The flags of mount(2) that ask for this.
    #[must_use]
    pub fn flags(&self, read_only: bool) -> MountFlags {
        let mut flags = match self.access_times {
            AccessTimes::Relative => MountFlags::RELATIME,
            AccessTimes::Strict => MountFlags::STRICTATIME,
            AccessTimes::Off => MountFlags::NOATIME,
        };
        for (wanted, flag) in [
            (read_only || self.read_only, MountFlags::RDONLY),
            (self.no_suid, MountFlags::NOSUID),
            (self.no_devices, MountFlags::NODEV),
            (self.no_exec, MountFlags::NOEXEC),
            (self.no_symlink_follow, MountFlags::NOSYMFOLLOW),
            (self.no_directory_access_times, MountFlags::NODIRATIME),
            (self.synchronous, MountFlags::SYNCHRONOUS),
            (self.synchronous_directories, MountFlags::DIRSYNC),
        ] {
            flags.set(flag, wanted);
        }
        flags
    }
}

/// Everything that can be said after `-o`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MountOptions {
    /// `private=DIR`, or `private_dir=DIR`, which no mount(8) takes for something else
    pub private: Option<PathBuf>,
    /// `store=DIR`
    pub store: Option<PathBuf>,
    /// `name=NAME`
    pub name: Option<String>,
    /// `shared_paths=/usr:/opt`: what is opened shared, instead of the template's own list.
    pub shared_paths: Option<Vec<String>>,
    /// `no_passthrough`
    pub no_passthrough: bool,
    /// `fsname=NAME`: the source shown in the mount table, instead of the template.
    pub fsname: Option<String>,
    /// `size=SIZE`, as of a tmpfs: the most that the private files may take on the disk.
    pub disk_bytes: Option<u64>,
    /// See [`GenericOptions`].
    pub generic: GenericOptions,
}

/// An option that cannot be honoured.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum OptionError {
    /// Nobody knows it.
    #[error(
        "mount option {0:?} is not known; Mica's own are private=, store=, name=, \
         shared_paths=, size=, no_passthrough and fsname="
    )]
    Unknown(String),
    /// It stands without the value it needs.
    #[error("mount option {0:?} needs a value: {0}=…")]
    Valueless(String),
    /// It has a value where it takes none.
    #[error("mount option {0:?} takes no value")]
    Valued(String),
    /// A value is not text where it has to be.
    #[error("the value of mount option {0:?} is not UTF-8")]
    NotText(String),
    /// A mounted root cannot change its options.
    #[error("a mounted root cannot be remounted; unmount it and mount it with the new options")]
    Remount,
    /// No size.
    #[error("mount option size={0:?} is no size; it is bytes, or a number with K, M, G or T")]
    Size(String),
    /// A shared path does not start at the root of the tree.
    #[error("{0:?} in shared_paths is not an absolute path of directories, like /usr or /lib*")]
    SharedPath(String),
}

/// Options of mount(8), of libfuse or of the kernel that ask for what holds anyway, or
/// that concern somebody else.
const SILENT: &[&str] = &[
    "defaults",
    "auto",
    "noauto",
    "user",
    "nouser",
    "users",
    "owner",
    "group",
    "nofail",
    "_netdev",
    "async",
    "silent",
    "loud",
    "nomand",
    "noiversion",
    "nolazytime",
    "lazytime",
    "allow_other",
    "default_permissions",
    "norelatime",
    "nostrictatime",
];

/// Those of them that come with a value.
const SILENT_VALUED: &[&str] = &["subtype", "user", "comment", "uhelper", "helper"];

/// Bytes, or a number with a unit that counts by 1024.
fn size(text: &str) -> Option<u64> {
    let (number, shift) = match text.to_ascii_uppercase().strip_suffix(['K', 'M', 'G', 'T']) {
        None => (text.to_owned(), 0),
        Some(number) => {
            let unit = text.chars().last().map_or(' ', |unit| unit.to_ascii_uppercase());
            (number.to_owned(), 10 * (1 + "KMGT".find(unit)?))
        }
    };
    number.parse::<u64>().ok()?.checked_mul(1 << shift)
}

impl MountOptions {
    /// Adds what `list` says: options parted by commas, a literal comma written `\,`.
    ///
    /// # Errors
    /// [`OptionError`]; with `sloppy` (mount's `-s`), unknown options are skipped.
    pub fn parse(&mut self, list: &OsStr, sloppy: bool) -> Result<(), OptionError> {
        for option in split(list.as_bytes()) {
            match self.set(&option) {
                Err(OptionError::Unknown(_)) if sloppy => {}
                done => done?,
            }
        }
        Ok(())
    }

    fn set(&mut self, option: &[u8]) -> Result<(), OptionError> {
        let mut parts = option.splitn(2, |byte| *byte == b'=');
        let key = String::from_utf8_lossy(parts.next().unwrap_or_default()).into_owned();
        match parts.next() {
            _ if key.is_empty() && option.is_empty() => Ok(()),
            _ if key.starts_with("x-") || key.starts_with("X-") => Ok(()),
            Some(value) => self.set_valued(&key, value),
            None => self.set_flag(&key),
        }
    }

    fn set_valued(&mut self, key: &str, value: &[u8]) -> Result<(), OptionError> {
        let path = || PathBuf::from(OsStr::from_bytes(value));
        let text =
            || String::from_utf8(value.to_vec()).map_err(|_| OptionError::NotText(key.to_owned()));
        match key {
            "private" | "private_dir" | "store" | "name" | "fsname" | "shared_paths" | "size"
                if value.is_empty() =>
            {
                return Err(OptionError::Valueless(key.to_owned()));
            }
            "private" | "private_dir" => self.private = Some(path()),
            "store" => self.store = Some(path()),
            "name" => self.name = Some(text()?),
            "size" => {
                let text = text()?;
                let bytes = size(&text).ok_or(OptionError::Size(text))?;
                self.disk_bytes = Some(bytes);
            }
            "fsname" => self.fsname = Some(text()?),
            "shared_paths" => self.shared_paths = Some(shared_paths(&text()?)?),
            _ if SILENT_VALUED.contains(&key) => {}
            _ if SILENT.contains(&key) || MountOptions::default().set_flag(key).is_ok() => {
                return Err(OptionError::Valued(key.to_owned()));
            }
            _ => return Err(OptionError::Unknown(key.to_owned())),
        }
        Ok(())
    }

    fn set_flag(&mut self, key: &str) -> Result<(), OptionError> {
        let generic = &mut self.generic;
        match key {
            "no_passthrough" => self.no_passthrough = true,
            "passthrough" => self.no_passthrough = false,
            "ro" => generic.read_only = true,
            "rw" => generic.read_only = false,
            "nosuid" => generic.no_suid = true,
            "suid" => generic.no_suid = false,
            "nodev" => generic.no_devices = true,
            "dev" => generic.no_devices = false,
            "noexec" => generic.no_exec = true,
            "exec" => generic.no_exec = false,
            "nosymfollow" => generic.no_symlink_follow = true,
            "symfollow" => generic.no_symlink_follow = false,
            "noatime" => generic.access_times = AccessTimes::Off,
            "atime" | "relatime" => generic.access_times = AccessTimes::Relative,
            "strictatime" => generic.access_times = AccessTimes::Strict,
            "nodiratime" => generic.no_directory_access_times = true,
            "diratime" => generic.no_directory_access_times = false,
            "sync" => generic.synchronous = true,
            "dirsync" => generic.synchronous_directories = true,
            "remount" => return Err(OptionError::Remount),
            "private" | "private_dir" | "store" | "name" | "fsname" | "shared_paths" => {
                return Err(OptionError::Valueless(key.to_owned()));
            }
            _ if SILENT.contains(&key) => {}
            _ => return Err(OptionError::Unknown(key.to_owned())),
        }
        Ok(())
    }
}

/// Reads a list of shared paths as the command line writes it: parted by colons.
///
/// # Errors
/// [`OptionError::SharedPath`].
pub fn shared_paths(list: &str) -> Result<Vec<String>, OptionError> {
    list.split(':')
        .filter(|path| !path.is_empty())
        .map(|path| {
            let wrong = !path.starts_with('/')
                || path.split('/').any(|part| part == "." || part == "..")
                || path.contains('\0');
            if wrong { Err(OptionError::SharedPath(path.to_owned())) } else { Ok(path.to_owned()) }
        })
        .collect()
}

/// Splits at commas that no backslash stands before, and takes that backslash away.
fn split(list: &[u8]) -> Vec<Vec<u8>> {
    let mut options = vec![Vec::new()];
    let mut bytes = list.iter().copied().peekable();
    while let Some(byte) = bytes.next() {
        let escaped = byte == b'\\' && matches!(bytes.peek(), Some(b',' | b'\\'));
        let byte = if escaped { bytes.next().unwrap_or(byte) } else { byte };
        if byte == b',' && !escaped {
            options.push(Vec::new());
        } else if let Some(option) = options.last_mut() {
            option.push(byte);
        }
    }
    options
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(list: &str) -> Result<MountOptions, OptionError> {
        let mut options = MountOptions::default();
        options.parse(OsStr::new(list), false).map(|()| options)
    }

    #[test]
    fn everything_mount_and_fstab_write_is_taken() {
        let options = parsed(
            "private=/srv/web2,store=/data/mica,rw,relatime,noexec,nodev,nosuid,fsname=web,\
             _netdev,nofail,x-systemd.requires=net.target,X-mount.mkdir,defaults,noauto,\
             user=root,comment=hi,allow_other,,",
        )
        .expect("all known");
        assert_eq!(options.private, Some("/srv/web2".into()));
        assert_eq!(options.store, Some("/data/mica".into()));
        assert_eq!(options.fsname.as_deref(), Some("web"));
        let generic = options.generic;
        assert!(generic.no_exec && generic.no_devices && generic.no_suid && !generic.read_only);
        assert_eq!(generic.access_times, AccessTimes::Relative);
    }

    #[test]
    fn the_last_of_two_contradicting_options_wins() {
        assert!(!parsed("ro,rw").expect("known").generic.read_only);
        assert!(parsed("rw,ro").expect("known").generic.read_only);
        assert!(!parsed("noexec,exec").expect("known").generic.no_exec);
        let times = parsed("relatime,noatime").expect("known").generic.access_times;
        assert_eq!(times, AccessTimes::Off);
        let mut twice = parsed("noexec").expect("known");
        twice.parse(OsStr::new("exec,private=/a"), false).expect("known");
        assert!(!twice.generic.no_exec && twice.private.is_some());
    }

    #[test]
    fn an_unknown_option_is_named_and_a_sloppy_mount_skips_it() {
        assert_eq!(parsed("ro,speed=11"), Err(OptionError::Unknown("speed".to_owned())));
        assert_eq!(parsed("turbo"), Err(OptionError::Unknown("turbo".to_owned())));
        let mut sloppy = MountOptions::default();
        sloppy.parse(OsStr::new("turbo,ro"), true).expect("skipped");
        assert!(sloppy.generic.read_only);
    }

    #[test]
    fn values_stand_where_they_belong_and_only_there() {
        assert_eq!(parsed("private"), Err(OptionError::Valueless("private".to_owned())));
        assert_eq!(parsed("private="), Err(OptionError::Valueless("private".to_owned())));
        assert_eq!(parsed("ro=1"), Err(OptionError::Valued("ro".to_owned())));
        assert_eq!(parsed("defaults=1"), Err(OptionError::Valued("defaults".to_owned())));
        assert_eq!(parsed("=1"), Err(OptionError::Unknown(String::new())));
        assert_eq!(parsed("remount,ro"), Err(OptionError::Remount));
    }

    #[test]
    fn a_path_may_hold_a_comma_an_equals_sign_and_bytes_that_are_no_text() {
        let options = parsed(r"private=/srv/a\,b=c,ro").expect("known");
        assert_eq!(options.private, Some("/srv/a,b=c".into()));
        let mut options = MountOptions::default();
        options.parse(OsStr::from_bytes(b"private=/srv/\xff"), false).expect("bytes");
        assert_eq!(options.private, Some(OsStr::from_bytes(b"/srv/\xff").into()));
        let name = options.parse(OsStr::from_bytes(b"name=\xff"), false);
        assert_eq!(name, Err(OptionError::NotText("name".to_owned())));
    }

    #[test]
    fn shared_paths_are_absolute() {
        let options = parsed("shared_paths=/usr:/lib*:").expect("known");
        assert_eq!(options.shared_paths, Some(vec!["/usr".to_owned(), "/lib*".to_owned()]));
        assert_eq!(parsed("shared_paths=/usr:opt"), Err(OptionError::SharedPath("opt".to_owned())));
        assert!(parsed("shared_paths=/usr/../etc").is_err());
    }
}
