//! Publishing: staged content becomes objects, and is whole from the first moment its name
//! exists.
//!
//! A name that reaches the disk before its content is a zero-byte file after a power cut (seen
//! on ext4 and xfs). So: pin; `syncfs`; rename each (never over another); immutable flag;
//! `syncfs`. Cut anywhere, what has a digest for a name is whole, and the rest is in a staging
//! directory that nobody locks.

use std::num::NonZero;
use std::sync::atomic::Ordering;

use rustix::fs::{AtFlags, Mode, RenameFlags, mkdirat, renameat, renameat_with, syncfs, unlinkat};
use rustix::io::Errno;

use super::staging::{Known, Staging, staged_name};
use super::{ObjectError, ObjectId, crash_point};

/// What one call of [`Staging::publish`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Published {
    /// Objects that are new in the store.
    pub objects: u64,
    /// Their length together.
    pub bytes: u64,
    /// Objects that another import had published in the meantime.
    pub already: u64,
    /// Names that were there with too few, too many or other bytes, and now name whole objects.
    pub repaired: u64,
}

impl std::ops::Add for Published {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            objects: self.objects + other.objects,
            bytes: self.bytes + other.bytes,
            already: self.already + other.already,
            repaired: self.repaired + other.repaired,
        }
    }
}

/// Threads that publish, at most.
const MOST_THREADS: usize = 4;

/// Objects for which another thread is worth it.
const LEAST_PER_THREAD: usize = 128;

struct Item {
    id: ObjectId,
    number: u64,
    len_bytes: u64,
}

impl Staging {
    /// Publishes everything staged so far and makes all that this import relies on durable.
    ///
    /// Objects that other threads put meanwhile may be left for the next call. After an error it
    /// may be called again.
    ///
    /// # Errors
    /// [`ObjectError::Io`]; [`ObjectError::Lost`] if the host once failed to write staged data
    /// back, after which it would not say so again (fsync(2), NOTES).
    pub fn publish(&self) -> Result<Published, ObjectError> {
        let _one_at_a_time = self.publishing.lock();
        if self.lost.load(Ordering::Relaxed) {
            return Err(ObjectError::Lost(self.path()));
        }
        let items = self.staged();
        if !items.is_empty() {
            {
                let _guard = self.lock_pins()?;
                self.append_pins(items.iter().map(|item| item.id))?;
            }
            crash_point("pinned");
            self.sync()?;
            crash_point("content durable");
        } else if !self.unsynced.load(Ordering::Relaxed) {
            return Ok(Published::default());
        }
        let published = self.publish_all(&items)?;
        crash_point("renamed");
        self.unsynced.store(false, Ordering::Relaxed);
        // Also without a new object: one that was found may have been renamed by an import
        // which has not come to its own second syncfs yet.
        if let Err(error) = self.sync() {
            self.unsynced.store(true, Ordering::Relaxed);
            return Err(error);
        }
        crash_point("published");
        Ok(published)
    }

    /// Renames and flags; on several threads, because setting a flag takes as long as a rename.
    fn publish_all(&self, items: &[Item]) -> Result<Published, ObjectError> {
        let publish = |items: &[Item]| {
            let mut published = Published::default();
            for item in items {
                self.publish_one(item, &mut published)?;
                self.known.lock().insert(item.id, Known::Pinned);
            }
            Ok(published)
        };
        let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
        let threads = cores.min(MOST_THREADS).min(items.len() / LEAST_PER_THREAD).max(1);
        let mut parts = items.chunks(items.len().div_ceil(threads).max(1));
        let mine = parts.next().unwrap_or_default();
        std::thread::scope(|scope| {
            let others: Vec<_> = parts.map(|part| scope.spawn(move || publish(part))).collect();
            let mut total = publish(mine);
            for other in others {
                let part = other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
                total = total.and_then(|total| Ok(total + part?));
            }
            total
        })
    }

    fn staged(&self) -> Vec<Item> {
        let known = self.known.lock();
        let mut items: Vec<Item> = known
            .iter()
            .filter_map(|(id, known)| match *known {
                Known::Staged { number, len_bytes } => Some(Item { id: *id, number, len_bytes }),
                Known::Pinned => None,
            })
            .collect();
        // In the order of the target directories: each is touched once.
        items.sort_unstable_by_key(|item| item.id);
        items
    }

    fn sync(&self) -> Result<(), ObjectError> {
        // `dir` is as old as the import, so no write error since can have been reported to
        // somebody else only (syncfs(2), errors per open file description since Linux 5.8).
        syncfs(&self.dir).map_err(|error| {
            self.lost.store(true, Ordering::Relaxed);
            ObjectError::sys("make durable", self.path())(error)
        })
    }

    fn publish_one(&self, item: &Item, published: &mut Published) -> Result<(), ObjectError> {
        let (from, to) = (staged_name(item.number), item.id.path());
        let failed = || ObjectError::sys("publish", self.shared.object_path(&item.id));
        let mut made = false;
        loop {
            match renameat_with(
                &self.dir,
                &*from,
                &self.shared.objects,
                &*to,
                RenameFlags::NOREPLACE,
            ) {
                Ok(()) => {
                    crash_point("first renamed");
                    published.objects += 1;
                    published.bytes += item.len_bytes;
                    return self.shared.mark_immutable(&item.id, true);
                }
                Err(Errno::NOENT) if !made => {
                    match mkdirat(&self.shared.objects, &to[..2], Mode::from_raw_mode(0o700)) {
                        // There already: another thread or import was faster.
                        Ok(()) | Err(Errno::EXIST) => made = true,
                        Err(error) => return Err(failed()(error)),
                    }
                }
                // The staged file is gone: an earlier call renamed it and then failed.
                Err(Errno::NOENT) => match self.shared.find(&item.id)? {
                    Some(found) if found.regular && found.len_bytes == item.len_bytes => {
                        published.already += 1;
                        return self.shared.mark_immutable(&item.id, true);
                    }
                    Some(_) | None => return Err(failed()(Errno::NOENT)),
                },
                Err(Errno::EXIST) => match self.shared.find(&item.id)? {
                    Some(found)
                        if found.regular
                            && found.len_bytes == item.len_bytes
                            && !self.distrusted.lock().contains(&item.id) =>
                    {
                        unlinkat(&self.dir, &*from, AtFlags::empty())
                            .map_err(|error| failed()(error))?;
                        published.already += 1;
                        return self.shared.mark_immutable(&item.id, true);
                    }
                    Some(found) => {
                        tracing::warn!(
                            object = %item.id,
                            len_bytes = found.len_bytes,
                            expected_bytes = item.len_bytes,
                            "a damaged object is replaced"
                        );
                        self.shared.mark_immutable(&item.id, false)?;
                        match renameat(&self.dir, &*from, &self.shared.objects, &*to) {
                            Ok(()) => {
                                published.repaired += 1;
                                return self.shared.mark_immutable(&item.id, true);
                            }
                            // Another import has repaired it.
                            Err(Errno::PERM) => {}
                            Err(error) => return Err(failed()(error)),
                        }
                    }
                    // Swept since: once more.
                    None => {}
                },
                Err(error) => return Err(failed()(error)),
            }
        }
    }
}
