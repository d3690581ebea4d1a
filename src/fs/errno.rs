//! The one place where an error becomes an errno.

use rustix::io::Errno;

use crate::object::ObjectError;
use crate::union::UnionError;

/// Why a POSIX operation failed.
#[derive(Debug, thiserror::Error)]
pub enum FsError {
    /// The merged view refused.
    #[error(transparent)]
    Union(#[from] UnionError),
    /// A descriptor that was never handed out, or already closed.
    #[error("no such open file")]
    BadHandle,
    /// The operation is for regular files.
    #[error("not a regular file")]
    NotRegular,
    /// Only the owner of a file may do this, and CAP_FOWNER.
    #[error("not the owner of the file")]
    NotOwner,
    /// A namespace of extended attributes without a name in it.
    #[error("the attribute has no name")]
    AttributeName,
    /// Offsets or lengths that no file has.
    #[error("the offset is out of range")]
    Range,
    /// Something the file system does not do.
    #[error("not supported")]
    Unsupported,
    /// Nothing after the offset: SEEK_DATA and SEEK_HOLE.
    #[error("the offset is past the end of the file")]
    PastEnd,
    /// A program that runs must not lose its bytes.
    #[error("the file is being executed")]
    Executing,
    /// The inode goes on under another number; the kernel looks it up again.
    #[error("the inode was renumbered")]
    Renumbered,
    /// The host refused.
    #[error("the host file system refused: {0}")]
    Host(#[from] Errno),
}

impl FsError {
    /// What the caller of the system call sees.
    pub fn errno(&self) -> Errno {
        match self {
            Self::Union(error) => union_errno(error),
            Self::BadHandle => Errno::BADF,
            Self::NotRegular | Self::Range | Self::AttributeName => Errno::INVAL,
            Self::NotOwner => Errno::PERM,
            Self::Unsupported => Errno::OPNOTSUPP,
            Self::PastEnd => Errno::NXIO,
            Self::Executing => Errno::TXTBSY,
            Self::Renumbered => Errno::STALE,
            Self::Host(errno) => *errno,
        }
    }
}

fn union_errno(error: &UnionError) -> Errno {
    match error {
        UnionError::NoEntry => Errno::NOENT,
        UnionError::NameTooLong => Errno::NAMETOOLONG,
        UnionError::Exists => Errno::EXIST,
        UnionError::NotDirectory => Errno::NOTDIR,
        UnionError::IsDirectory => Errno::ISDIR,
        UnionError::NotEmpty => Errno::NOTEMPTY,
        UnionError::StillThere(_) => Errno::BUSY,
        UnionError::Stale => Errno::STALE,
        UnionError::ReadOnly => Errno::ROFS,
        UnionError::NoAttribute => Errno::NODATA,
        UnionError::Invalid => Errno::INVAL,
        UnionError::Manifest(_) | UnionError::Mark(_) => Errno::IO,
        UnionError::Object(error) => object_errno(error),
        // Damage is damage to whoever reads the file, whatever the host called it.
        UnionError::Host(Errno::UCLEAN) => Errno::IO,
        UnionError::Host(errno) => *errno,
    }
}

fn object_errno(error: &ObjectError) -> Errno {
    let source = match error {
        ObjectError::Io { source, .. } | ObjectError::Source(source) => source,
        ObjectError::Missing(_)
        | ObjectError::Damaged(_)
        | ObjectError::Length { .. }
        | ObjectError::Altered(_)
        | ObjectError::Lost(_) => return Errno::IO,
    };
    match Errno::from_io_error(source) {
        // The host ran out of something: its state, not the object's.
        Some(errno @ (Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::NOSPC)) => errno,
        Some(_) | None => Errno::IO,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damage_is_an_io_error_and_the_rest_keeps_its_name() {
        let errno = |error: UnionError| FsError::from(error).errno();
        assert_eq!(errno(UnionError::Host(Errno::UCLEAN)), Errno::IO);
        assert_eq!(errno(UnionError::Host(Errno::NOSPC)), Errno::NOSPC);
        assert_eq!(errno(UnionError::NotEmpty), Errno::NOTEMPTY);
        assert_eq!(FsError::Renumbered.errno(), Errno::STALE);
    }
}
