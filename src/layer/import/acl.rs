//! POSIX ACLs as text, the form that star, GNU tar and libarchive put into PAX records.
//!
//! What becomes of them is the kernel's form (`sys/acl.rs`), its entries sorted by tag and
//! identifier.

use std::collections::HashMap;

use super::metadata::printable;
use crate::sys::acl::{GROUP, GROUP_OBJ, MASK, OTHER, UNDEFINED_ID, USER, USER_OBJ, VERSION};

/// An ACL text that cannot be turned into the kernel's form.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AclFault {
    /// Not `tag:qualifier:permissions` with an optional identifier.
    #[error("its ACL text is malformed")]
    Malformed,
    /// A user or group that only has a name, and nothing says who that is.
    #[error(
        "its ACL names \"{0}\", who is not in the archive's /etc/passwd or /etc/group; \
         archive with --xattrs --xattrs-include='*' instead of --acls"
    )]
    UnknownName(String),
    /// One of the user, group and other entries is missing or given twice.
    #[error("its ACL lacks one of the user, group, other or mask entries, or has one twice")]
    Incomplete,
}

/// An ACL as text says it; names are not yet numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Acl(Vec<Entry>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    tag: u16,
    who: Who,
    permissions: u16,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Who {
    /// The file's own user or group, the others, or the mask.
    Own,
    Id(u32),
    Name(Box<[u8]>),
}

/// The numbers of users and groups, as the tree's own account files say.
#[derive(Clone, Debug, Default)]
pub(crate) struct Accounts {
    users: HashMap<Box<[u8]>, u32>,
    groups: HashMap<Box<[u8]>, u32>,
}

impl Accounts {
    /// Replaces the users by those in the text of an `/etc/passwd`.
    pub(crate) fn set_users(&mut self, passwd: &[u8]) {
        self.users = numbers(passwd);
    }

    /// Replaces the groups by those in the text of an `/etc/group`.
    pub(crate) fn set_groups(&mut self, group: &[u8]) {
        self.groups = numbers(group);
    }
}

/// `name:password:number:…`, as passwd(5) and group(5) both have it.
fn numbers(text: &[u8]) -> HashMap<Box<[u8]>, u32> {
    let line = |line: &[u8]| {
        let mut fields = line.split(|byte| *byte == b':');
        let name = fields.next()?;
        Some((name.into(), identifier(fields.nth(1)?)?))
    };
    text.split(|byte| *byte == b'\n').filter_map(line).collect()
}

impl Acl {
    /// Reads an ACL; entries are separated by newlines or commas, a fourth field is the numeric
    /// identifier (star), `#` starts a comment. acl(5), "LONG TEXT FORM" and "SHORT TEXT FORM".
    pub(crate) fn parse(text: &[u8]) -> Result<Self, AclFault> {
        let mut entries = Vec::new();
        for line in text.split(|byte| matches!(byte, b'\n' | b',' | 0)) {
            let line = line.split(|byte| *byte == b'#').next().unwrap_or_default().trim_ascii();
            if !line.is_empty() {
                entries.push(entry(line)?);
            }
        }
        Ok(Self(entries))
    }

    /// Whether [`Self::encode`] needs no accounts.
    pub(crate) fn is_numeric(&self) -> bool {
        !self.0.iter().any(|entry| matches!(entry.who, Who::Name(_)))
    }

    /// The value of a `system.posix_acl_*` attribute.
    pub(crate) fn encode(&self, accounts: &Accounts) -> Result<Box<[u8]>, AclFault> {
        let number = |entry: &Entry| match &entry.who {
            Who::Own => Ok((entry.tag, UNDEFINED_ID, entry.permissions)),
            Who::Id(id) => Ok((entry.tag, *id, entry.permissions)),
            Who::Name(name) => {
                let known = if entry.tag == USER { &accounts.users } else { &accounts.groups };
                let id = known.get(name).ok_or_else(|| AclFault::UnknownName(printable(name)))?;
                Ok((entry.tag, *id, entry.permissions))
            }
        };
        let mut entries = self.0.iter().map(number).collect::<Result<Vec<_>, _>>()?;
        entries.sort_unstable();
        check(&entries)?;
        let mut value = VERSION.to_le_bytes().to_vec();
        for (tag, id, permissions) in entries {
            value.extend_from_slice(&tag.to_le_bytes());
            value.extend_from_slice(&permissions.to_le_bytes());
            value.extend_from_slice(&id.to_le_bytes());
        }
        Ok(value.into())
    }
}

fn entry(line: &[u8]) -> Result<Entry, AclFault> {
    let fields: Vec<&[u8]> = line.split(|byte| *byte == b':').map(<[u8]>::trim_ascii).collect();
    let (tag, qualifier, permissions, number) = match fields.as_slice() {
        // libacl writes `mask:rwx` and `other:rwx` too.
        [tag @ (b"mask" | b"m" | b"other" | b"o"), permissions] => {
            (*tag, &[][..], *permissions, None)
        }
        [tag, qualifier, permissions] => (*tag, *qualifier, *permissions, None),
        [tag, qualifier, permissions, number] => (*tag, *qualifier, *permissions, Some(*number)),
        _ => return Err(AclFault::Malformed),
    };
    let permissions = permission_bits(permissions)?;
    let tag = match (tag, qualifier.is_empty()) {
        (b"user" | b"u", true) => USER_OBJ,
        (b"user" | b"u", false) => USER,
        (b"group" | b"g", true) => GROUP_OBJ,
        (b"group" | b"g", false) => GROUP,
        (b"mask" | b"m", true) => MASK,
        (b"other" | b"o", true) => OTHER,
        _ => return Err(AclFault::Malformed),
    };
    let who = match (number, identifier(qualifier)) {
        (_, _) if qualifier.is_empty() => Who::Own,
        (Some(number), _) => Who::Id(identifier(number).ok_or(AclFault::Malformed)?),
        (None, Some(id)) => Who::Id(id),
        (None, None) => Who::Name(qualifier.into()),
    };
    Ok(Entry { tag, who, permissions })
}

fn identifier(digits: &[u8]) -> Option<u32> {
    std::str::from_utf8(digits).ok()?.parse().ok().filter(|id| *id != UNDEFINED_ID)
}

fn permission_bits(letters: &[u8]) -> Result<u16, AclFault> {
    letters.iter().try_fold(0, |bits, letter| match letter {
        b'r' => Ok(bits | 4),
        b'w' => Ok(bits | 2),
        b'x' => Ok(bits | 1),
        b'-' => Ok(bits),
        _ => Err(AclFault::Malformed),
    })
}

/// The rules of the kernel's `posix_acl_valid`.
fn check(entries: &[(u16, u32, u16)]) -> Result<(), AclFault> {
    let count = |tag| entries.iter().filter(|entry| entry.0 == tag).count();
    let named = count(USER) + count(GROUP) > 0;
    let distinct = entries.windows(2).all(|pair| (pair[0].0, pair[0].1) != (pair[1].0, pair[1].1));
    let complete = count(USER_OBJ) == 1 && count(GROUP_OBJ) == 1 && count(OTHER) == 1;
    if complete && distinct && count(MASK) <= 1 && (!named || count(MASK) == 1) {
        Ok(())
    } else {
        Err(AclFault::Incomplete)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encode(text: &str) -> Result<Box<[u8]>, AclFault> {
        Acl::parse(text.as_bytes())?.encode(&Accounts::default())
    }

    #[test]
    fn the_kernels_form_of_a_named_user() {
        let value =
            encode("user::rw-\nuser:lisa:rwx:1000\ngroup::r--\nmask::rwx\nother::r--\n").unwrap();
        let mut expected = vec![2, 0, 0, 0];
        for (tag, permissions, id) in [
            (USER_OBJ, 6_u16, UNDEFINED_ID),
            (USER, 7, 1000),
            (GROUP_OBJ, 4, UNDEFINED_ID),
            (MASK, 7, UNDEFINED_ID),
            (OTHER, 4, UNDEFINED_ID),
        ] {
            expected.extend_from_slice(&tag.to_le_bytes());
            expected.extend_from_slice(&permissions.to_le_bytes());
            expected.extend_from_slice(&id.to_le_bytes());
        }
        assert_eq!(value.as_ref(), expected);
    }

    #[test]
    fn short_forms_and_numeric_qualifiers() {
        let long = encode("user::rw-\nuser:7:r-x\ngroup::r--\nmask::r-x\nother::---").unwrap();
        let short = encode("g::r,u::rw,o:---,m:rx,u:7:rx # effective").unwrap();
        assert_eq!(long, short);
    }

    #[test]
    fn broken_acls_are_refused() {
        let rest = "\nuser::rw-\ngroup::r--\nother::r--";
        for (text, fault) in [
            ("user:lisa:rwx\nmask::rwx", AclFault::UnknownName("lisa".to_owned())),
            ("user:5:rwx", AclFault::Incomplete),
            ("user::rwx", AclFault::Incomplete),
            ("mask::rwz", AclFault::Malformed),
            ("someone::rwx", AclFault::Malformed),
            ("user", AclFault::Malformed),
            ("user:5:rwx:4294967295\nmask::rwx", AclFault::Malformed),
        ] {
            assert_eq!(encode(&format!("{text}{rest}")), Err(fault), "{text}");
        }
        assert_eq!(encode(""), Err(AclFault::Incomplete));
    }

    #[test]
    fn names_are_those_of_the_tree() {
        let text = b"u::rw,u:lisa:rw,g::r,g:adm:r,m::rw,o::-";
        let acl = Acl::parse(text).unwrap();
        assert!(!acl.is_numeric());
        let mut accounts = Accounts::default();
        accounts.set_users(b"root:x:0:0::/root:/bin/sh\nlisa:x:1007:5::/:\nbroken\n");
        accounts.set_groups(b"adm:x:4:lisa\nlisa:x:9:\n");
        let numeric = Acl::parse(b"u::rw,u:1007:rw,g::r,g:4:r,m::rw,o::-").unwrap();
        assert!(numeric.is_numeric());
        assert_eq!(acl.encode(&accounts), numeric.encode(&Accounts::default()));
    }
}
