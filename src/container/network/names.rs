//! What a container calls others, and whom it asks about the rest of the world.
//!
//! Containers find each other through `/etc/hosts`, kept current by whoever starts and stops
//! them. Nothing answers questions in between, so a name resolves as well while the daemon is
//! away, and no container can make itself heard under a neighbour's name. The file lies on the
//! host and is mounted into the container; lines that the container adds stay.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::net::IpAddr;
use std::path::Path;

use super::error::NetworkError;

const BEGIN: &str = "# containers of this host, kept by mica";
const END: &str = "# end of what mica keeps";

/// A tenant may write what it likes into its own file; beyond this it is begun anew.
const LONGEST_BYTES: u64 = 1024 * 1024;

/// A container as others call it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    /// What it is called, and what it calls itself if that is something else.
    pub names: Vec<String>,
    /// Where it is.
    pub addresses: Vec<IpAddr>,
}

impl Named {
    /// Its lines: one for each address. Names that are none are left out.
    fn lines(&self) -> String {
        let sound = |name: &&String| {
            let letter = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
            (1..=253).contains(&name.len()) && name.bytes().all(letter)
        };
        let mut names: Vec<&str> = self.names.iter().filter(sound).map(String::as_str).collect();
        names.dedup();
        if names.is_empty() {
            return String::new();
        }
        let names = names.join(" ");
        self.addresses.iter().map(|address| format!("{address}\t{names}\n")).collect()
    }
}

/// The text of `/etc/hosts` of the container `own` among `others`; `existing` is what it was.
pub fn hosts(existing: &str, own: &Named, others: &[Named]) -> String {
    let kept = match (existing.find(BEGIN), existing.find(END)) {
        (Some(begin), Some(end)) if begin < end => {
            let after = existing.get(end + END.len()..).unwrap_or_default();
            let after = after.strip_prefix('\n').unwrap_or(after);
            format!("{}{after}", existing.get(..begin).unwrap_or_default())
        }
        // Somebody cut into it: what looks like ours goes, the rest is theirs.
        _ => {
            let theirs = existing.lines().filter(|line| *line != BEGIN && *line != END);
            theirs.map(|line| format!("{line}\n")).collect()
        }
    };
    let kept = if kept.trim().is_empty() {
        "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n\
         ff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n"
            .to_owned()
    } else {
        kept
    };
    let others: String = others.iter().filter(|other| *other != own).map(Named::lines).collect();
    // A container without an address of its own still knows itself.
    let own = match own.addresses.is_empty() {
        true => Named { addresses: vec![IpAddr::from([127, 0, 1, 1])], ..own.clone() }.lines(),
        false => own.lines(),
    };
    let newline = if kept.ends_with('\n') { "" } else { "\n" };
    format!("{kept}{newline}{BEGIN}\n{own}{others}{END}\n")
}

/// Brings the hosts file at `path` up to date, in place: it is mounted into a container by its
/// inode. Says whether anything changed.
///
/// # Errors
/// What opening or writing the file answers.
pub fn refresh_hosts(path: &Path, own: &Named, others: &[Named]) -> Result<bool, NetworkError> {
    let failed = || NetworkError::system("write", path);
    let open = File::options().read(true).write(true).create(true).truncate(false).open(path);
    let mut file = open.map_err(failed())?;
    let mut existing = Vec::new();
    (&mut file).take(LONGEST_BYTES + 1).read_to_end(&mut existing).map_err(failed())?;
    if u64::try_from(existing.len()).unwrap_or(u64::MAX) > LONGEST_BYTES {
        existing.clear();
    }
    let existing = String::from_utf8_lossy(&existing).into_owned();
    let wanted = hosts(&existing, own, others);
    if wanted == existing {
        return Ok(false);
    }
    // One write over the old text, then its end: nobody reads an empty file.
    let rewrite = |file: &mut File| -> io::Result<()> {
        file.seek(SeekFrom::Start(0))?;
        file.write_all(wanted.as_bytes())?;
        file.set_len(u64::try_from(wanted.len()).unwrap_or(u64::MAX))
    };
    rewrite(&mut file).map_err(failed())?;
    Ok(true)
}

/// What a container asks about the world: the host's `/etc/resolv.conf`, without servers that
/// only the host reaches (on its loopback); then what systemd-resolved asks itself.
///
/// `dns` are servers to ask instead. With none at all the text says so in a comment.
pub fn resolv_conf(host_root: &Path, dns: &[IpAddr]) -> String {
    if !dns.is_empty() {
        return dns.iter().map(|server| format!("nameserver {server}\n")).collect();
    }
    let files = [
        "etc/resolv.conf",
        "run/systemd/resolve/resolv.conf",
        "run/NetworkManager/no-stub-resolv.conf",
    ];
    let texts = files.iter().filter_map(|file| fs::read_to_string(host_root.join(file)).ok());
    let usable = texts.map(|text| reachable(&text)).find(|text| text.contains("nameserver "));
    usable.unwrap_or_else(|| {
        "# mica: the host asks a server on its own loopback, which no container reaches; \
         set one with dns=ADDRESS\n"
            .to_owned()
    })
}

/// The lines that mean something in a container.
fn reachable(text: &str) -> String {
    let kept = |line: &&str| {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => {
                let server = words.next().unwrap_or_default();
                // A scope names an interface of the host.
                server.parse::<IpAddr>().is_ok_and(|server| !server.is_loopback())
            }
            Some("search" | "domain" | "options") => true,
            _ => false,
        }
    };
    text.lines().filter(kept).map(|line| format!("{line}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(name: &str, address: &str) -> Named {
        Named { names: vec![name.to_owned()], addresses: vec![address.parse().unwrap()] }
    }

    #[test]
    fn hosts_keeps_what_the_container_added_and_replaces_what_is_ours() {
        let (web, db) = (named("web1", "10.88.0.2"), named("db1", "10.88.0.3"));
        let first = hosts("", &web, &[web.clone(), db.clone()]);
        assert!(first.starts_with("127.0.0.1\tlocalhost\n"), "{first}");
        assert!(first.contains("10.88.0.2\tweb1\n10.88.0.3\tdb1\n"), "{first}");
        assert_eq!(first.matches("web1").count(), 1, "{first}");
        assert_eq!(hosts(&first, &web, std::slice::from_ref(&db)), first);
        let added = format!("{first}10.1.1.1\tmine");
        let second = hosts(&added, &web, &[named("db2", "10.88.0.4")]);
        assert!(second.contains("10.1.1.1\tmine\n"), "{second}");
        assert!(second.contains("db2") && !second.contains("db1"), "{second}");
        let cut = first.replace(END, "");
        let third = hosts(&cut, &web, &[]);
        assert_eq!(third.matches(BEGIN).count(), 1, "{third}");
        assert_eq!(hosts(&third, &web, &[]), third);
    }

    #[test]
    fn no_name_brings_a_line_of_its_own() {
        let evil = Named {
            names: vec!["a\n10.0.0.1 db1".to_owned(), String::new(), "ok".to_owned()],
            addresses: vec!["10.88.0.9".parse().unwrap()],
        };
        let text = hosts("", &named("web1", "10.88.0.2"), &[evil]);
        assert!(text.contains("10.88.0.9\tok\n") && !text.contains("db1"), "{text}");
    }

    #[test]
    fn hosts_is_written_in_place() {
        use std::os::unix::fs::MetadataExt;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("hosts");
        let (web, db) = (named("web1", "10.88.0.2"), named("db1", "10.88.0.3"));
        assert!(refresh_hosts(&path, &web, std::slice::from_ref(&db)).unwrap());
        let inode = fs::metadata(&path).unwrap().ino();
        assert!(!refresh_hosts(&path, &web, &[db]).unwrap());
        assert!(refresh_hosts(&path, &web, &[]).unwrap());
        assert_eq!(fs::metadata(&path).unwrap().ino(), inode);
        assert!(!fs::read_to_string(&path).unwrap().contains("db1"));
        fs::write(&path, vec![b'x'; 3 << 20]).unwrap();
        assert!(refresh_hosts(&path, &web, &[]).unwrap());
        assert!(fs::metadata(&path).unwrap().len() < 1000, "begun anew");
    }

    #[test]
    fn servers_that_only_the_host_reaches_are_left_out() {
        let root = tempfile::tempdir().unwrap();
        let write = |file: &str, text: &str| {
            let path = root.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        assert!(resolv_conf(root.path(), &[]).starts_with("# mica: the host asks"));
        write("etc/resolv.conf", "# stub\nnameserver 127.0.0.53\nsearch lan\n");
        assert!(resolv_conf(root.path(), &[]).starts_with("# mica: the host asks"));
        write(
            "run/systemd/resolve/resolv.conf",
            "nameserver 192.0.2.1\nnameserver fe80::1%eth0\nsearch lan\n",
        );
        assert_eq!(resolv_conf(root.path(), &[]), "nameserver 192.0.2.1\nsearch lan\n");
        write("etc/resolv.conf", "nameserver ::1\nnameserver 2001:db8::53\n");
        assert_eq!(resolv_conf(root.path(), &[]), "nameserver 2001:db8::53\n");
        let own = ["192.0.2.7".parse().unwrap()];
        assert_eq!(resolv_conf(root.path(), &own), "nameserver 192.0.2.7\n");
    }
}
