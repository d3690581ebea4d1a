//! What a header and its extended headers say about one member.

use tar::Header;

use super::TarFault;
use super::numeric::numeric;
use super::pax::PaxFields;
use crate::layer::import::acl::{Accounts, Acl};
use crate::layer::import::metadata::{self, Xattrs};
use crate::layer::{Metadata, Timestamp};
use crate::sys::acl::{ACCESS, DEFAULT};

/// What a member is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum MemberKind {
    Regular,
    Directory,
    Symlink(Box<[u8]>),
    /// The path of an earlier member, as the archive spells it.
    HardLink(Box<[u8]>),
    Fifo,
    CharDevice(u64),
    BlockDevice(u64),
}

/// The kind of a member; `long_link` is the content of a GNU long link header.
pub(super) fn kind(
    header: &Header,
    path: &[u8],
    pax: &PaxFields,
    long_link: Option<Vec<u8>>,
) -> Result<MemberKind, TarFault> {
    let link = || -> Result<Box<[u8]>, TarFault> {
        let target: Box<[u8]> = match (&pax.link_path, long_link) {
            (Some(target), _) => target.clone(),
            (None, Some(target)) => target.into(),
            (None, None) => header.link_name_bytes().unwrap_or_default().as_ref().into(),
        };
        if target.is_empty() {
            return Err(TarFault::NoLinkTarget);
        }
        if target.contains(&0) {
            return Err(TarFault::NulInName);
        }
        Ok(target)
    };
    Ok(match header.as_old().linkflag[0] {
        // In the oldest format a trailing slash is all that makes a directory.
        0 | b'0' if path.ends_with(b"/") => MemberKind::Directory,
        0 | b'0' | b'7' | b'S' => MemberKind::Regular,
        b'1' => MemberKind::HardLink(link()?),
        b'2' => {
            let target = link()?;
            metadata::check_symlink(&target)?;
            MemberKind::Symlink(target)
        }
        b'3' => MemberKind::CharDevice(device(header)?),
        b'4' => MemberKind::BlockDevice(device(header)?),
        b'5' | b'D' => MemberKind::Directory,
        b'6' => MemberKind::Fifo,
        b'M' => return Err(TarFault::MultiVolume),
        other => return Err(TarFault::UnknownType(other)),
    })
}

pub(super) fn number(field: &[u8], name: &'static str) -> Result<i128, TarFault> {
    numeric(field).ok_or(TarFault::BadNumber(name))
}

pub(super) fn unsigned(field: &[u8], name: &'static str) -> Result<u64, TarFault> {
    u64::try_from(number(field, name)?).map_err(|_| TarFault::BadNumber(name))
}

fn device(header: &Header) -> Result<u64, TarFault> {
    let (major, minor) = match (header.as_ustar(), header.as_gnu()) {
        (Some(ustar), _) => (&ustar.dev_major, &ustar.dev_minor),
        (None, Some(gnu)) => (&gnu.dev_major, &gnu.dev_minor),
        (None, None) => return Err(TarFault::BadNumber("device")),
    };
    let major = unsigned(major, "device major")?;
    Ok(metadata::device(major, unsigned(minor, "device minor")?)?)
}

pub(super) fn metadata_of(header: &Header, pax: &PaxFields) -> Result<Metadata, TarFault> {
    let old = header.as_old();
    let mode = number(&old.mode, "mode")? & 0o7777;
    let uid = match pax.uid {
        Some(uid) => i128::from(uid),
        None => number(&old.uid, "uid")?,
    };
    let gid = match pax.gid {
        Some(gid) => i128::from(gid),
        None => number(&old.gid, "gid")?,
    };
    let mtime = match pax.mtime {
        Some(mtime) => mtime,
        None => {
            let secs = i64::try_from(number(&old.mtime, "mtime")?)
                .map_err(|_| TarFault::BadNumber("mtime"))?;
            Timestamp { secs, nanos: 0 }
        }
    };
    Ok(Metadata {
        mode: u32::try_from(mode).unwrap_or(0),
        uid: metadata::uid(uid)?,
        gid: metadata::gid(gid)?,
        mtime,
    })
}

/// ACLs that name users or groups, and the attributes they become.
pub(super) type NamedAcls = Vec<(&'static [u8], Acl)>;

pub(super) fn xattrs_of(
    pax: &PaxFields,
    kind: &MemberKind,
) -> Result<(Xattrs, NamedAcls), TarFault> {
    let mut xattrs = pax.xattrs.clone();
    let mut named_acls = NamedAcls::new();
    let mut add = |name: &[u8], value: Box<[u8]>| {
        if !xattrs.iter().any(|(known, _)| known.as_ref() == name) {
            xattrs.push((name.into(), value));
        }
    };
    for (name, value) in &pax.libarchive_xattrs {
        add(name, value.clone());
    }
    for (attribute, text) in [(ACCESS, &pax.acl_access), (DEFAULT, &pax.acl_default)] {
        let Some(text) = text else { continue };
        if attribute == DEFAULT && *kind != MemberKind::Directory {
            continue;
        }
        let acl = Acl::parse(text)?;
        if acl.is_numeric() {
            add(attribute, acl.encode(&Accounts::default())?);
        } else {
            named_acls.push((attribute, acl));
        }
    }
    if let Some(label) = &pax.selinux {
        let mut value = label.to_vec();
        // The kernel's value includes the NUL, the archive's does not.
        if value.last() != Some(&0) {
            value.push(0);
        }
        add(b"security.selinux", value.into());
    }
    metadata::check_xattrs(&xattrs)?;
    xattrs.sort_unstable();
    // The attribute itself, where an archive has both, says more.
    named_acls.retain(|(name, _)| !xattrs.iter().any(|(known, _)| known.as_ref() == *name));
    Ok((xattrs, named_acls))
}
