//! What another thread may do, as /proc tells it (proc(5)).

use std::fs;

/// The credentials of a thread that waits for an answer of ours, and so cannot change them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Credentials {
    /// The capabilities in effect over this host; none for a thread of another user namespace.
    effective: u64,
    uid: Option<u32>,
    gid: Option<u32>,
    groups: Vec<u32>,
}

/// CAP_FOWNER: every file counts as this thread's own.
pub const FOWNER: u32 = 3;
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
        let fourth = |name| field(name).and_then(|ids| ids.split_whitespace().nth(3));
        let uid = fourth("Uid:").and_then(|uid| uid.parse().ok());
        let groups = field("Groups:").into_iter().flat_map(str::split_whitespace);
        let groups = groups.filter_map(|gid| gid.parse().ok()).collect();
        let gid = fourth("Gid:").and_then(|gid| gid.parse().ok());
        Self { effective: effective.unwrap_or_default(), uid, gid, groups }
    }

    /// The user and group that what the thread makes belongs to; `None` if it is gone.
    pub fn owner(&self) -> Option<(u32, u32)> {
        self.uid.zip(self.gid)
    }

    /// Whether the thread acts as user `uid`.
    pub fn is_user(&self, uid: u32) -> bool {
        self.uid == Some(uid)
    }

    /// Whether capability number `capability` is in effect.
    pub fn holds(&self, capability: u32) -> bool {
        self.effective >> capability & 1 == 1
    }

    /// Whether the thread is in group `gid`.
    pub fn is_in_group(&self, gid: u32) -> bool {
        self.gid == Some(gid) || self.groups.contains(&gid)
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
        assert!(found.is_user(1000) && !found.is_user(0));
    }

    #[test]
    fn damaged_and_missing_text_gives_nothing() {
        assert_eq!(Credentials::parse("CapEff:\tzz\nUid:\t1\n"), Credentials::default());
        assert_eq!(Credentials::of(0), Credentials::default());
    }

    #[test]
    fn this_process_is_in_its_own_namespace() {
        let own = Credentials::of(std::process::id());
        assert!(own.is_in_group(rustix::process::getegid().as_raw()));
        assert_eq!(own.holds(SYS_ADMIN), rustix::process::geteuid().is_root());
    }
}
