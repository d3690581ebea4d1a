//! What every object takes, on the disk and in the page cache: each looked at once.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicU16, Ordering};

use rustix::fs::{Dir, FileType, Mode, OFlags, fstat, openat};
use rustix::io::Errno;

use super::reader::ObjectReader;
use super::store::{FAN_OUT, open_dir};
use super::{ObjectError, ObjectId};
use crate::sys::cache::resident_bytes;

/// What one object takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Surveyed {
    /// Its name.
    pub id: ObjectId,
    /// Bytes that its blocks take on the disk.
    pub disk_bytes: u64,
    /// Bytes of it that the page cache holds, in whole pages.
    pub resident_bytes: u64,
}

/// All of `objects/`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Survey {
    /// Every object, in order of the names.
    pub objects: Vec<Surveyed>,
    /// Bytes on the disk of the directories, and of files that are no objects.
    pub rest_disk_bytes: u64,
}

impl ObjectReader {
    /// Looks at every object once, with as many threads as there are processors.
    ///
    /// Brings nothing into the page cache and reads no content; a name costs about 3 µs. What
    /// is removed meanwhile is left out.
    ///
    /// # Errors
    /// [`ObjectError::Io`].
    pub fn survey(&self) -> Result<Survey, ObjectError> {
        let next = AtomicU16::new(0);
        let threads = std::thread::available_parallelism().map_or(1, usize::from).min(16);
        let parts = std::thread::scope(|scope| {
            let work = || {
                let mut part = Survey::default();
                loop {
                    let fan_out = next.fetch_add(1, Ordering::Relaxed);
                    if fan_out >= FAN_OUT {
                        return Ok(part);
                    }
                    self.survey_directory(fan_out, &mut part)?;
                }
            };
            let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
            let ends = workers.into_iter().map(|worker| {
                worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            });
            ends.collect::<Result<Vec<Survey>, ObjectError>>()
        })?;
        let mut whole = Survey::default();
        for part in parts {
            whole.objects.extend(part.objects);
            whole.rest_disk_bytes += part.rest_disk_bytes;
        }
        whole.objects.sort_unstable_by_key(|surveyed| surveyed.id);
        whole.rest_disk_bytes += self.rest_of_top()?;
        Ok(whole)
    }

    fn survey_directory(&self, fan_out: u16, part: &mut Survey) -> Result<(), ObjectError> {
        let prefix = format!("{fan_out:02x}");
        let path = self.path().join(&prefix);
        let dir = match open_dir(self.directory(), &*prefix) {
            Ok(dir) => dir,
            Err(Errno::NOENT) => return Ok(()),
            Err(error) => return Err(ObjectError::sys("open", path)(error)),
        };
        let fail = |action| ObjectError::sys(action, path.clone());
        part.rest_disk_bytes += disk_bytes(dir.as_fd()).map_err(fail("inspect"))?;
        for entry in Dir::read_from(&dir).map_err(fail("list"))? {
            let entry = entry.map_err(fail("list"))?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            let id = name.to_str().ok().and_then(|name| format!("{prefix}{name}").parse().ok());
            let Some(id) = id.filter(|_: &ObjectId| entry.file_type() != FileType::Directory)
            else {
                part.rest_disk_bytes += stray(dir.as_fd(), name).map_err(fail("inspect"))?;
                continue;
            };
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
            let file = match openat(&dir, name, flags, Mode::empty()) {
                Ok(file) => file,
                Err(Errno::NOENT) => continue,
                // A symbolic link: no object.
                Err(Errno::LOOP) => {
                    part.rest_disk_bytes += stray(dir.as_fd(), name).map_err(fail("inspect"))?;
                    continue;
                }
                Err(error) => return Err(fail("open")(error)),
            };
            let disk_bytes = disk_bytes(file.as_fd()).map_err(fail("inspect"))?;
            let resident_bytes = match resident_bytes(file.as_fd()) {
                Ok(bytes) => bytes,
                Err(error) => return Err(ObjectError::io("ask the page cache of", path)(error)),
            };
            part.objects.push(Surveyed { id, disk_bytes, resident_bytes });
        }
        Ok(())
    }

    /// Bytes on the disk of `objects/` itself and of what lies in it beside the 256 directories.
    fn rest_of_top(&self) -> Result<u64, ObjectError> {
        let fail = |action| ObjectError::sys(action, self.path().to_owned());
        // The clone of the mount is a place only, which cannot be listed.
        let top = open_dir(self.directory(), c".").map_err(fail("open"))?;
        let mut bytes = disk_bytes(top.as_fd()).map_err(fail("inspect"))?;
        for entry in Dir::read_from(&top).map_err(fail("list"))? {
            let entry = entry.map_err(fail("list"))?;
            let name = entry.file_name();
            let fan_out = name.to_bytes().len() == 2
                && name.to_bytes().iter().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
            if name != c"." && name != c".." && !fan_out {
                bytes += stray(top.as_fd(), name).map_err(fail("inspect"))?;
            }
        }
        Ok(bytes)
    }
}

fn disk_bytes(file: BorrowedFd<'_>) -> Result<u64, Errno> {
    Ok(u64::try_from(fstat(file)?.st_blocks).unwrap_or(0).saturating_mul(512))
}

/// Bytes on the disk of something that is no object, and of all beneath it.
fn stray(dir: BorrowedFd<'_>, name: &std::ffi::CStr) -> Result<u64, Errno> {
    let stat = match rustix::fs::statat(dir, name, rustix::fs::AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => stat,
        Err(Errno::NOENT) => return Ok(0),
        Err(error) => return Err(error),
    };
    let mut bytes = u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512);
    if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
        let below = open_dir(dir, name)?;
        for entry in Dir::read_from(&below)? {
            let entry = entry?;
            if entry.file_name() != c"." && entry.file_name() != c".." {
                bytes += stray(below.as_fd(), entry.file_name())?;
            }
        }
    }
    Ok(bytes)
}
