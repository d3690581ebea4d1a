//! Digests, and the names of objects.

use std::fmt;
use std::io;
use std::os::fd::AsFd;
use std::str::FromStr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::content::digest_file;

/// Bytes read at a time.
const IDENTIFY_BYTES: usize = 128 << 10;

/// The BLAKE3-256 digest of some bytes: 64 lower-case hexadecimal digits as text.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest([u8; 32]);

/// A text that is not a digest: anything but 64 lower-case hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a digest: expected 64 lower-case hexadecimal digits")]
pub struct DigestError;

impl Digest {
    /// Hashes `bytes` on the calling thread.
    pub fn of(bytes: &[u8]) -> Self {
        Self(blake3::hash(bytes).into())
    }

    /// Wraps a digest that was computed elsewhere.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The 32 raw bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// 64 lower-case hexadecimal digits.
    pub fn to_hex(&self) -> String {
        self.hex().to_hex().as_str().to_owned()
    }

    fn hex(&self) -> blake3::Hash {
        // `Hash` is the same 32 bytes; it brings the hexadecimal form.
        blake3::Hash::from_bytes(self.0)
    }
}

impl From<blake3::Hash> for Digest {
    fn from(hash: blake3::Hash) -> Self {
        Self(hash.into())
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.hex().to_hex().as_str())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.hex().to_hex().as_str())
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        if text.bytes().any(|byte| byte.is_ascii_uppercase()) {
            return Err(DigestError);
        }
        blake3::Hash::from_hex(text).map(Self::from).map_err(|_| DigestError)
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(D::Error::custom)
    }
}

/// Names an object: the digest of its content.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ObjectId(Digest);

impl ObjectId {
    /// The name that an object with this content has.
    pub fn of(content: &[u8]) -> Self {
        Self(Digest::of(content))
    }

    /// Names the object whose content has this digest.
    pub const fn new(digest: Digest) -> Self {
        Self(digest)
    }

    /// The digest of the content.
    pub const fn digest(&self) -> &Digest {
        &self.0
    }

    /// Where the object lies below `objects/`: `ab/cdef…`.
    pub(super) fn path(&self) -> String {
        let hex = self.0.hex().to_hex();
        let (fan_out, rest) = hex.as_str().split_at(2);
        format!("{fan_out}/{rest}")
    }
}

/// Reads a file from its start to its end, without its holes, and returns the name that an object
/// with this content has. The offset of `file` moves.
///
/// # Errors
/// What reading answers.
pub fn identify(file: impl AsFd) -> io::Result<ObjectId> {
    let mut buffer = vec![0; IDENTIFY_BYTES];
    Ok(digest_file(file.as_fd(), u64::MAX, &mut buffer, &|| true)?.id)
}

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl FromStr for ObjectId {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        text.parse().map(Self)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_empty_object_has_the_published_blake3_digest() {
        let hex = "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262";
        assert_eq!(ObjectId::of(b"").to_string(), hex);
        assert_eq!(ObjectId::of(b"").path(), format!("af/{}", &hex[2..]));
    }

    proptest! {
        #[test]
        fn text_and_json_round_trip(bytes: [u8; 32]) {
            let id = ObjectId::new(Digest::from_bytes(bytes));
            prop_assert_eq!(id.to_string().parse::<ObjectId>(), Ok(id));
            let json = serde_json::to_string(&id).unwrap();
            prop_assert_eq!(json.len(), 66);
            prop_assert_eq!(serde_json::from_str::<ObjectId>(&json).unwrap(), id);
        }

        #[test]
        fn any_other_text_is_refused(text in "[0-9a-fA-Fxg]{0,70}") {
            let canonical = text.len() == 64
                && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
            prop_assert_eq!(text.parse::<Digest>().is_ok(), canonical);
        }
    }
}
