//! Mica as a helper of mount(8): `mount -t fuse.mica debian:12 /mnt -o private=DIR`, by
//! hand and from fstab.
//!
//! mount(8) calls `mount.fuse.mica SOURCE TARGET [-sfnvw] [-r] [-o OPTIONS] [-t TYPE]
//! [-N NAMESPACE]`. Success is silent.

mod caller;

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};

use super::mount;
use super::output::complain;
use crate::host::options::MountOptions;

/// The names under which mount(8) finds this program.
pub(super) const NAMES: &[&str] = &["mount.fuse.mica", "mount.mica"];

/// mount(8), EXIT STATUS: incorrect invocation.
const WRONG_CALL: u8 = 1;

/// mount(8), EXIT STATUS: mount failure.
const MOUNT_FAILED: u8 = 32;

pub(super) fn run(arguments: &[OsString]) -> ExitCode {
    let call = match Call::read(arguments) {
        Ok(call) => call,
        Err(error) => {
            complain(&crate::host::sentence(error.as_ref()));
            return ExitCode::from(WRONG_CALL);
        }
    };
    match call.mount() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&crate::host::sentence(error.as_ref()));
            ExitCode::from(MOUNT_FAILED)
        }
    }
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Call {
    source: String,
    target: PathBuf,
    options: MountOptions,
    /// `-f`: go through the motions, mount nothing.
    fake: bool,
}

impl Call {
    fn read(arguments: &[OsString]) -> Result<Self> {
        let mut places = Vec::new();
        let mut lists: Vec<OsString> = Vec::new();
        let (mut fake, mut sloppy, mut read_only) = (false, false, false);
        let mut rest = arguments.iter().skip(1);
        while let Some(argument) = rest.next() {
            let Some(flags) = argument.to_str().and_then(|text| text.strip_prefix('-')) else {
                places.push(argument.clone());
                continue;
            };
            for (at, flag) in flags.char_indices() {
                match flag {
                    's' => sloppy = true,
                    'f' => fake = true,
                    'r' => read_only = true,
                    // No mtab to keep; nothing to add; read-write is what holds anyway.
                    'n' | 'v' | 'w' => {}
                    'o' | 't' | 'N' => {
                        // The value is the rest of this argument, or the next one.
                        let attached = argument.to_str().and_then(|text| text.get(at + 2..));
                        let value = match attached.filter(|value| !value.is_empty()) {
                            Some(value) => OsString::from(value),
                            None => match rest.next() {
                                Some(value) => value.clone(),
                                None => bail!("-{flag} needs a value"),
                            },
                        };
                        take(flag, value, &mut lists)?;
                        break;
                    }
                    flag => bail!("-{flag} is not known; see mount(8), \"External helpers\""),
                }
            }
        }
        let [source, target] = places.as_slice() else {
            bail!("usage: mount -t fuse.mica TEMPLATE MOUNTPOINT [-o OPTIONS]");
        };
        let Some(source) = source.to_str() else {
            bail!("{} is no template name", source.display());
        };
        let mut options = MountOptions::default();
        for list in lists {
            options.parse(&list, sloppy)?;
        }
        options.generic.read_only |= read_only;
        if options.private.is_none() {
            options.private = caller::private_directory(target.as_ref());
        }
        Ok(Self { source: source.to_owned(), target: target.into(), options, fake })
    }

    fn mount(self) -> Result<()> {
        if self.fake {
            return Ok(());
        }
        let store = std::env::var_os("MICA_STORE").unwrap_or_else(|| "/var/lib/mica".into());
        let spec = mount::spec(&self.source, &self.target, self.options, store.as_ref())?;
        // What there is to note is in the root's record and log; success is silent.
        mount::start(&spec).map(drop)
    }
}

/// Takes one flag's value.
fn take(flag: char, value: OsString, lists: &mut Vec<OsString>) -> Result<()> {
    match flag {
        'o' => lists.push(value),
        't' if [OsStr::new("fuse.mica"), OsStr::new("mica")].contains(&value.as_os_str()) => {}
        't' => bail!("{} is not a type that Mica mounts", value.display()),
        _ => bail!("mounting in another mount namespace is not possible; enter it and mount there"),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(arguments: &[&str]) -> Result<Call> {
        let arguments: Vec<OsString> =
            std::iter::once(&"mount.fuse.mica").chain(arguments).map(OsString::from).collect();
        Call::read(&arguments)
    }

    #[test]
    fn what_mount_passes_is_understood() {
        let call = read(&[
            "debian:12",
            "/mnt/web2",
            "-n",
            "-o",
            "rw,private=/srv/web2,noexec",
            "-t",
            "fuse.mica",
        ])
        .expect("as mount(8) calls it");
        assert_eq!(
            (call.source.as_str(), call.target.as_path()),
            ("debian:12", "/mnt/web2".as_ref())
        );
        assert_eq!(call.options.private, Some("/srv/web2".into()));
        assert!(call.options.generic.no_exec && !call.fake);
        let call = read(&["-sfv", "debian:12", "-oro,unheard_of", "/mnt"]).expect("sloppy");
        assert!(call.fake && call.options.generic.read_only);
    }

    #[test]
    fn what_is_wrong_is_said() {
        for wrong in [
            &["debian:12"][..],
            &["a", "b", "c"],
            &["a", "b", "-o"],
            &["a", "b", "-x"],
            &["a", "b", "-t", "ext4"],
            &["a", "b", "-N", "/proc/1/ns/mnt"],
            &["a", "b", "-o", "unheard_of"],
        ] {
            assert!(read(wrong).is_err(), "{wrong:?}");
        }
    }
}
