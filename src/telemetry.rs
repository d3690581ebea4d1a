//! Names of what a mount process counts, and of the spans it logs under.
//!
//! Counters are plain atomics: counting takes no lock and no system call, and nobody
//! who counts knows who reads. Nothing here survives the process.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

/// The log target of everything a person running a mount may want to see at the default level.
pub const MOUNT: &str = "mica::mount";

/// One monotonic count. Wraps after 2^64 events, which no mount lives to see.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Counts one event.
    pub fn hit(&self) {
        self.add(1);
    }

    /// Counts `amount` events, or bytes where the counter's name says so.
    pub fn add(&self, amount: u64) {
        self.0.fetch_add(amount, Ordering::Relaxed);
    }

    /// Reads the present value.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Declares the request kinds once: the enum, its list and its names.
macro_rules! request_kinds {
    ($($kind:ident => $name:literal),+ $(,)?) => {
        /// A kind of request that a mount serves, named as the kernel's protocol names it.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum RequestKind {
            $(#[doc = concat!("The kernel's `", $name, "`.")] $kind),+
        }

        impl RequestKind {
            /// Every kind, in declaration order: the index of a kind is its position here.
            pub const ALL: &'static [Self] = &[$(Self::$kind),+];

            /// The name under which statistics report this kind.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Self::$kind => $name),+ }
            }
        }
    };
}

request_kinds! {
    Lookup => "lookup",
    Forget => "forget",
    Getattr => "getattr",
    Setattr => "setattr",
    Readlink => "readlink",
    Mknod => "mknod",
    Mkdir => "mkdir",
    Unlink => "unlink",
    Rmdir => "rmdir",
    Symlink => "symlink",
    Rename => "rename",
    Link => "link",
    Open => "open",
    Create => "create",
    Read => "read",
    Write => "write",
    Flush => "flush",
    Release => "release",
    Fsync => "fsync",
    Readdir => "readdir",
    Readdirplus => "readdirplus",
    Fsyncdir => "fsyncdir",
    Statfs => "statfs",
    Setxattr => "setxattr",
    Getxattr => "getxattr",
    Listxattr => "listxattr",
    Removexattr => "removexattr",
    Access => "access",
    Getlk => "getlk",
    Setlk => "setlk",
    Ioctl => "ioctl",
    Poll => "poll",
    Fallocate => "fallocate",
    Lseek => "lseek",
    CopyFileRange => "copy_file_range",
    Other => "other",
}

/// Declares the plain counters once: the struct's fields and their part of the snapshot.
macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {
        /// Everything one mount process counts. Shared by reference among its threads.
        #[derive(Debug)]
        pub struct Counters {
            requests: [Counter; RequestKind::ALL.len()],
            $($(#[$doc])* pub $name: Counter),+
        }

        /// What [`Counters`] held at one moment; the body of the control answer `statistics`.
        ///
        /// Counters are read one after another, so two of them may disagree by the
        /// requests in flight.
        #[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
        pub struct Snapshot {
            /// Requests served since the mount began, by kind; kinds never seen are absent.
            #[serde(default)]
            pub requests: BTreeMap<String, u64>,
            $($(#[$doc])* #[serde(default)] pub $name: u64),+
        }

        impl Default for Counters {
            fn default() -> Self {
                Self {
                    requests: std::array::from_fn(|_| Counter::default()),
                    $($name: Counter::default()),+
                }
            }
        }

        impl Counters {
            /// Reads every counter.
            #[must_use]
            pub fn snapshot(&self) -> Snapshot {
                let requests = RequestKind::ALL
                    .iter()
                    .zip(&self.requests)
                    .filter(|(_, count)| count.get() > 0)
                    .map(|(kind, count)| (kind.name().to_owned(), count.get()))
                    .collect();
                Snapshot { requests, $($name: self.$name.get()),+ }
            }
        }

        impl Snapshot {
            /// The plain counters by name, in declaration order, for printing.
            #[must_use]
            pub fn values(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name)),+]
            }
        }
    };
}

counters! {
    /// Shared files whose data was copied into the private layer.
    copy_ups,
    /// Those of `copy_ups` that the host file system shared by reflink instead of copying.
    copy_ups_reflinked,
    /// Bytes that copy-ups copied (reflinked bytes do not count).
    copy_up_bytes,
    /// Shared entries of which only the metadata was copied up.
    metadata_copy_ups,
    /// Opens answered with a backing file.
    passthrough_opens,
    /// Opens answered through this root's own page cache.
    cached_opens,
    /// Passthrough opens that the kernel refused and that are served as cached ones.
    passthrough_refused,
    /// Nodes superseded by a copy-up beside open descriptors (answered ESTALE once).
    renumbered,
    /// Private files whose place an object with the same content took.
    replaced_by_objects,
    /// Backing files registered with the kernel.
    backings_registered,
    /// Backing files given up because the table was full.
    backings_evicted,
    /// Invalidations sent to the kernel.
    notifications,
    /// Notifications dropped because too many were waiting.
    notices_dropped,
    /// Notifications the kernel refused, other than for nodes it no longer knows.
    notification_failures,
    /// Reads and opens that failed because an object is missing or not what its name says.
    object_faults,
    /// Requests answered with EIO, whatever the reason.
    io_errors,
    /// Requests whose handler panicked; each was answered with EIO.
    panics,
}

impl Counters {
    /// Makes a set of counters that are all zero.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Counts one request of `kind`.
    pub fn request(&self, kind: RequestKind) {
        // The enum is declared by the same list as `ALL`, so every kind has its place.
        if let Some(counter) = self.requests.get(kind as usize) {
            counter.hit();
        }
    }
}

impl Snapshot {
    /// All requests, of every kind.
    #[must_use]
    pub fn total_requests(&self) -> u64 {
        self.requests.values().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_counts_under_its_own_name_only() {
        let counters = Counters::new();
        for kind in RequestKind::ALL {
            counters.request(*kind);
        }
        counters.request(RequestKind::Lookup);
        let snapshot = counters.snapshot();
        assert_eq!(snapshot.requests.len(), RequestKind::ALL.len());
        assert_eq!(snapshot.requests["lookup"], 2);
        assert_eq!(snapshot.requests["copy_file_range"], 1);
        assert_eq!(
            snapshot.total_requests(),
            1 + u64::try_from(RequestKind::ALL.len()).expect("a short list")
        );
    }

    #[test]
    fn a_snapshot_survives_json_and_tolerates_counters_it_does_not_know() {
        let counters = Counters::new();
        counters.copy_up_bytes.add(4096);
        counters.panics.hit();
        let snapshot = counters.snapshot();
        let text = serde_json::to_string(&snapshot).expect("plain numbers");
        assert_eq!(serde_json::from_str::<Snapshot>(&text).expect("own output"), snapshot);
        let newer = r#"{"requests":{"lookup":3},"copy_ups":1,"not_yet_invented":9}"#;
        let read: Snapshot = serde_json::from_str(newer).expect("unknown names are skipped");
        assert_eq!((read.copy_ups, read.panics), (1, 0));
    }
}
