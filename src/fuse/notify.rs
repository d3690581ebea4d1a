//! The one thread that tells the kernel what its caches must forget.
//!
//! INVAL_ENTRY takes the directory's lock and INVAL_INODE waits for page locks, so neither
//! may come from a thread that serves requests (fs/fuse/dev.c, fuse_notify).

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::thread::JoinHandle;

use crossbeam::channel::{Sender, select};
use fuser::{INodeNo, Notifier};

use crate::fs::{FileSystem, Notice};

/// The running thread.
pub(super) struct Notifying {
    stop: Sender<()>,
    thread: Option<JoinHandle<()>>,
}

impl Notifying {
    /// Ends the thread; messages that wait are for a mount that is gone.
    pub(super) fn stop(self) {
        drop(self.stop);
        if let Some(thread) = self.thread
            && thread.join().is_err()
        {
            tracing::error!("the notification thread panicked");
        }
    }
}

pub(super) fn start(fs: Arc<FileSystem>, kernel: Notifier) -> Notifying {
    let (stop, stopped) = crossbeam::channel::bounded(0);
    let notices = fs.notices();
    let work = move || {
        loop {
            select! {
                recv(notices) -> notice => match notice {
                    Ok(notice) => {
                        tell(&fs, &kernel, &notice);
                        fs.told();
                    }
                    Err(_) => return,
                },
                recv(stopped) -> _ => return,
            }
        }
    };
    let thread = std::thread::Builder::new().name("mica-notify".into()).spawn(work);
    let thread = thread.inspect_err(|error| tracing::error!(%error, "no notification thread")).ok();
    Notifying { stop, thread }
}

fn tell(fs: &FileSystem, kernel: &Notifier, notice: &Notice) {
    let told = match notice {
        // A negative offset forgets attributes and keeps pages.
        Notice::Attributes(id) => kernel.inval_inode(INodeNo(id.get()), -1, 0),
        Notice::Content(id) => kernel.inval_inode(INodeNo(id.get()), 0, 0),
        Notice::Name(dir, name) => kernel.inval_entry(INodeNo(dir.get()), OsStr::from_bytes(name)),
    };
    fs.counters().notifications.hit();
    if let Err(error) = told {
        tracing::debug!(%error, ?notice, "the kernel refused a notification");
        fs.counters().notification_failures.hit();
    }
}
