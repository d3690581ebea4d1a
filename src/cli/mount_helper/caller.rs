//! What mount(8) was asked for before it took `private=DIR` away.
//!
//! libmount knows an option called `private` itself (a propagation flag) and drops every
//! option of that name, with a value or not, when it calls a helper (util-linux 2.38.1,
//! seen). So the helper looks where it still stands: on the command line of the mount(8)
//! that called it, or in the line of fstab that this one was reading.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use crate::host::mount_table::{canonical, unescaped};
use crate::host::options::MountOptions;

/// The short options of mount(8) that take a value.
const VALUED: &str = "LNOTUot";

/// The value of `private=` in the call that this process is the helper of.
pub(super) fn private_directory(target: &Path) -> Option<PathBuf> {
    let parent = std::os::unix::process::parent_id();
    let line = fs::read(format!("/proc/{parent}/cmdline")).ok()?;
    let arguments: Vec<&OsStr> = line.split(|byte| *byte == 0).map(OsStr::from_bytes).collect();
    let asked = Asked::read(&arguments)?;
    asked.private.or_else(|| {
        let fstab = asked.fstab.unwrap_or_else(|| "/etc/fstab".into());
        in_fstab(&fs::read(fstab).ok()?, target)
    })
}

/// As much of a call of mount(8) as matters here.
#[derive(Debug, Default, PartialEq, Eq)]
struct Asked {
    private: Option<PathBuf>,
    fstab: Option<PathBuf>,
}

impl Asked {
    /// Reads the command line of mount(8); `None` if it is some other program's.
    fn read(arguments: &[&OsStr]) -> Option<Self> {
        let program = arguments.first().and_then(|path| Path::new(path).file_name())?;
        if program != "mount" {
            return None;
        }
        let mut asked = Self::default();
        let mut rest = arguments.iter().skip(1);
        while let Some(argument) = rest.next() {
            let bytes = argument.as_bytes();
            if let Some(long) = bytes.strip_prefix(b"--") {
                let mut parts = long.splitn(2, |byte| *byte == b'=');
                let flag = match parts.next() {
                    Some(b"options") => 'o',
                    Some(b"fstab") => 'T',
                    _ => continue,
                };
                let value = parts.next().map(OsStr::from_bytes).or_else(|| rest.next().copied());
                asked.take(flag, value?);
                continue;
            }
            let Some(flags) = bytes.strip_prefix(b"-") else { continue };
            let valued = flags.iter().position(|flag| VALUED.as_bytes().contains(flag));
            let Some((at, flag)) = valued.and_then(|at| Some((at, flags.get(at)?))) else {
                continue;
            };
            let attached = flags.get(at + 1..).filter(|value| !value.is_empty());
            let value = attached.map(OsStr::from_bytes).or_else(|| rest.next().copied());
            asked.take(char::from(*flag), value?);
        }
        Some(asked)
    }

    fn take(&mut self, flag: char, value: &OsStr) {
        match flag {
            'o' => self.private = private_in(value).or(self.private.take()),
            'T' => self.fstab = Some(value.into()),
            _ => {}
        }
    }
}

/// The value of `private=` in a list of options; what else is wrong with the list is told
/// elsewhere.
fn private_in(list: &OsStr) -> Option<PathBuf> {
    let mut options = MountOptions::default();
    options.parse(list, true).ok()?;
    options.private
}

/// The value of `private=` in the last line of an fstab that mounts on `target`.
fn in_fstab(fstab: &[u8], target: &Path) -> Option<PathBuf> {
    let target = canonical(target).ok()?;
    let lines = fstab.split(|byte| *byte == b'\n');
    let fields = lines.map(|line| {
        let fields = line.split(u8::is_ascii_whitespace).filter(|field| !field.is_empty());
        fields.map(|field| OsString::from_vec(unescaped(field))).collect::<Vec<_>>()
    });
    let found = fields.rev().find(|fields| match fields.as_slice() {
        [source, place, kind, ..] => {
            !source.as_bytes().starts_with(b"#")
                && ["fuse.mica", "mica"].iter().any(|name| kind == name)
                && canonical(Path::new(place)).is_ok_and(|place| place == target)
        }
        _ => false,
    });
    private_in(found?.get(3)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(arguments: &[&str]) -> Option<Asked> {
        Asked::read(&arguments.iter().map(OsStr::new).collect::<Vec<_>>())
    }

    #[test]
    fn the_option_is_found_however_it_was_written() {
        for arguments in [
            &["/usr/bin/mount", "-t", "fuse.mica", "a:1", "/mnt", "-o", "private=/srv/a,ro"][..],
            &["mount", "-oprivate=/srv/a", "-t", "fuse.mica", "a:1", "/mnt"],
            &["mount", "-vo", "ro,private=/srv/a", "a:1", "/mnt"],
            &["mount", "--options=private=/srv/a", "a:1", "/mnt"],
            &["mount", "--options", "private=/srv/b", "-o", "turbo,private=/srv/a", "a:1", "/mnt"],
        ] {
            let found = asked(arguments).expect("a call of mount").private;
            assert_eq!(found.as_deref(), Some(Path::new("/srv/a")), "{arguments:?}");
        }
        assert_eq!(asked(&["mount", "-o", "ro", "/mnt"]), Some(Asked::default()));
        let table = asked(&["mount", "-T", "/etc/other", "/mnt"]).expect("a call of mount");
        assert_eq!(table.fstab.as_deref(), Some(Path::new("/etc/other")));
        assert_eq!(asked(&["bash", "-o", "private=/srv/a"]), None);
        assert_eq!(asked(&[]), None);
    }

    #[test]
    fn the_last_line_of_fstab_for_the_place_counts() {
        let scratch = tempfile::tempdir().expect("a scratch directory");
        let place = scratch.path().join("a b");
        fs::create_dir(&place).expect("made");
        let escaped = place.display().to_string().replace(' ', "\\040");
        let fstab = format!(
            "# base:1 {escaped} fuse.mica private=/srv/comment 0 0\n\
             base:1\t{escaped}\tfuse.mica\tprivate=/srv/old 0 0\n\
             base:1 /elsewhere fuse.mica private=/srv/other 0 0\n\
             base:1 {escaped} fuse.mica rw,private=/srv/a\\040b,nofail 0 0\n\
             UUID=1 {escaped} ext4 private=/srv/ext4 0 0\nbase:1\n"
        );
        assert_eq!(in_fstab(fstab.as_bytes(), &place), Some("/srv/a b".into()));
        assert_eq!(in_fstab(fstab.as_bytes(), scratch.path()), None);
    }
}
