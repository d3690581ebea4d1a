//! Names of one path component.
//!
//! Owns the rule what a file name is. Knows no encoding: names are bytes, as in the kernel.

use std::borrow::Borrow;
use std::fmt;

/// Longest file name in bytes (`NAME_MAX` of Linux).
pub const MAX_NAME_BYTES: usize = 255;

/// One path component: 1..=255 bytes, no `/`, no NUL, not `.` or `..`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileName(Box<[u8]>);

/// Why some bytes are no file name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// No bytes at all.
    #[error("a file name is empty")]
    Empty,
    /// Longer than [`MAX_NAME_BYTES`].
    #[error("a file name has {0} bytes; the limit is {MAX_NAME_BYTES}")]
    TooLong(usize),
    /// Holds a `/` or a NUL byte.
    #[error("a file name holds a slash or a NUL byte")]
    ForbiddenByte,
    /// Is `.` or `..`.
    #[error("\".\" and \"..\" are not file names")]
    Dots,
}

impl FileName {
    /// Checks `bytes` and keeps a copy of them.
    ///
    /// # Errors
    /// [`NameError`] says which rule is broken.
    pub fn new(bytes: &[u8]) -> Result<Self, NameError> {
        check_name(bytes)?;
        Ok(Self(bytes.into()))
    }

    /// The bytes of the name.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// Checks that `bytes` are a file name without copying them.
///
/// # Errors
/// [`NameError`] says which rule is broken.
pub fn check_name(bytes: &[u8]) -> Result<(), NameError> {
    if bytes.is_empty() {
        return Err(NameError::Empty);
    }
    if bytes.len() > MAX_NAME_BYTES {
        return Err(NameError::TooLong(bytes.len()));
    }
    if bytes == b"." || bytes == b".." {
        return Err(NameError::Dots);
    }
    if bytes.iter().any(|byte| matches!(byte, 0 | b'/')) {
        return Err(NameError::ForbiddenByte);
    }
    Ok(())
}

impl Borrow<[u8]> for FileName {
    fn borrow(&self) -> &[u8] {
        &self.0
    }
}

impl AsRef<[u8]> for FileName {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for FileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0.escape_ascii())
    }
}

impl fmt::Display for FileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        String::from_utf8_lossy(&self.0).fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_single_components_are_names() {
        assert!(FileName::new(b"a").is_ok());
        assert!(FileName::new(b"...").is_ok());
        assert!(FileName::new(&[0xff; 255]).is_ok());
        assert_eq!(FileName::new(b""), Err(NameError::Empty));
        assert_eq!(FileName::new(b".."), Err(NameError::Dots));
        assert_eq!(FileName::new(b"."), Err(NameError::Dots));
        assert_eq!(FileName::new(b"a/b"), Err(NameError::ForbiddenByte));
        assert_eq!(FileName::new(b"a\0"), Err(NameError::ForbiddenByte));
        assert_eq!(FileName::new(&[b'x'; 256]), Err(NameError::TooLong(256)));
    }
}
