//! What another thread may do, as /proc tells it (proc(5)).

use std::fs;

/// The credentials of a thread that waits for an answer of ours, and so cannot change them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Credentials {
    /// The capabilities in effect over this host; none for a thread of another user namespace.
    effective: u64,
    groups: Vec<u32>,
}

/// CAP_FSETID: set-id bits survive this thread's changes (capabilities(7)).
pub const FSETID: u32 = 4;
/// CAP_SYS_ADMIN: among much else, trusted attributes exist for this thread.
pub const SYS_ADMIN: u32 = 21;

impl Credentials {
    /// Reads those of thread `tid` as seen in our pid namespace. A thread that is gone, or that
    /// this namespace does not show (`tid` 0), has none.
    pub fn of(tid: u32) -> Self {
        let Ok(status) = fs::read_to_string(format!("/proc/{tid}/status")) else {
            return Self::default();
        };
        let mut found = Self::parse(&status);
        // Capabilities count in the thread's own user namespace; over files of ours only if that
        // is ours too. Whoever makes a user namespace has all of them in there.
        let namespace = |who: &str| fs::read_link(format!("/proc/{who}/ns/user")).ok();
        let ours = namespace("self");
        if ours.is_none() || namespace(&tid.to_string()) != ours {
            found.effective = 0;
        }
        found
    }

    fn parse(status: &str) -> Self {
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name));
        let effective = field("CapEff:").and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
        // The fourth is the one that counts for file access.
        let gid = field("Gid:").and_then(|gids| gids.split_whitespace().nth(3));
        let groups = field("Groups:").into_iter().flat_map(str::split_whitespace);
        let groups = gid.into_iter().chain(groups).filter_map(|gid| gid.parse().ok()).collect();
        Self { effective: effective.unwrap_or_default(), groups }
    }

    /// Whether capability number `capability` is in effect.
    pub fn holds(&self, capability: u32) -> bool {
        self.effective >> capability & 1 == 1
    }

    /// Whether the thread is in group `gid`.
    pub fn is_in_group(&self, gid: u32) -> bool {
        self.groups.contains(&gid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATUS: &str = "Name:\tcat\nUid:\t1000\t1000\t1000\t1000\nGid:\t100\t101\t102\t103\n\
                          Groups:\t27 30 \nCapEff:\t0000000000200010\n";

    #[test]
    fn capabilities_and_groups_are_read() {
        let found = Credentials::parse(STATUS);
        assert!(found.holds(FSETID) && found.holds(SYS_ADMIN) && !found.holds(0));
        assert!([103, 27, 30].iter().all(|gid| found.is_in_group(*gid)));
        assert!(!found.is_in_group(100));
    }

    #[test]
    fn damaged_and_missing_text_gives_nothing() {
        assert_eq!(Credentials::parse("CapEff:\tzz\nGid:\t1\n"), Credentials::default());
        assert_eq!(Credentials::of(0), Credentials::default());
    }

    #[test]
    fn this_process_is_in_its_own_namespace() {
        let own = Credentials::of(std::process::id());
        assert!(own.is_in_group(rustix::process::getegid().as_raw()));
        assert_eq!(own.holds(SYS_ADMIN), rustix::process::geteuid().is_root());
    }
}
