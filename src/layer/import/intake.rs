//! The way from a byte stream to a decoder: counted, hashed, stoppable.

use std::cell::RefCell;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::rc::Rc;

use rustix::io::pread;
use sha2::{Digest as _, Sha256, Sha512};

use super::image::ImageError;
use super::progress::{Cancel, Progress};
use crate::object::ReadSparse;

/// Counts what is read for whoever watches, and fails once the import is cancelled.
pub(super) struct Intake<'a, R> {
    input: R,
    cancel: Cancel<'a>,
    progress: Option<&'a dyn Progress>,
}

impl<'a, R: Read> Intake<'a, R> {
    pub(super) fn new(input: R, cancel: Cancel<'a>, progress: Option<&'a dyn Progress>) -> Self {
        Self { input, cancel, progress }
    }
}

impl<R: Read> Read for Intake<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.cancel.is_set() {
            return Err(io::Error::other("cancelled"));
        }
        let count = self.input.read(buffer)?;
        if let Some(progress) = self.progress {
            progress.read(u64::try_from(count).unwrap_or(u64::MAX));
        }
        Ok(count)
    }
}

impl<R: Read> ReadSparse for Intake<'_, R> {
    fn hole(&mut self) -> io::Result<u64> {
        Ok(0)
    }
}

/// Hashes what is read with BLAKE3, to say later what was imported. The hasher is shared,
/// because decoders swallow their input.
pub(super) struct Hashed<R> {
    input: R,
    hasher: Rc<RefCell<blake3::Hasher>>,
}

impl<R: Read> Hashed<R> {
    pub(super) fn new(input: R, hasher: Rc<RefCell<blake3::Hasher>>) -> Self {
        Self { input, hasher }
    }
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.input.read(buffer)?;
        self.hasher.borrow_mut().update(&buffer[..count]);
        Ok(count)
    }
}

/// A part of a file, read without moving the file's offset.
#[derive(Debug)]
pub(super) struct FilePart<F> {
    file: F,
    at: u64,
    end: u64,
}

impl<F: AsFd> FilePart<F> {
    /// `len_bytes` from `offset`, or fewer if the file ends before.
    pub(super) fn new(file: F, offset: u64, len_bytes: u64) -> Self {
        Self { file, at: offset, end: offset.saturating_add(len_bytes) }
    }

    /// From the start of the file to its end.
    pub(super) fn whole(file: F) -> Self {
        Self::new(file, 0, u64::MAX)
    }
}

impl<F: AsFd> Read for FilePart<F> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.end.saturating_sub(self.at)).unwrap_or(usize::MAX);
        let wanted = buffer.len().min(left);
        let count = pread(&self.file, &mut buffer[..wanted], self.at)?;
        self.at = self.at.saturating_add(u64::try_from(count).unwrap_or(u64::MAX));
        Ok(count)
    }
}

/// A digest as image formats write it: `sha256:` or `sha512:` and lower-case hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Expected {
    text: String,
    algorithm: Algorithm,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Algorithm {
    Sha256,
    Sha512,
}

impl Expected {
    /// # Errors
    /// [`ImageError::BadDigest`] for anything but a well-formed SHA-256 or SHA-512 digest.
    pub(super) fn parse(text: &str) -> Result<Self, ImageError> {
        let bad = || ImageError::BadDigest(text.to_owned());
        let (algorithm, digits) = text.split_once(':').ok_or_else(bad)?;
        let (algorithm, length) = match algorithm {
            "sha256" => (Algorithm::Sha256, 64),
            "sha512" => (Algorithm::Sha512, 128),
            _ => return Err(bad()),
        };
        let hex = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        if digits.len() != length || !digits.bytes().all(hex) {
            return Err(bad());
        }
        Ok(Self { text: text.to_owned(), algorithm })
    }

    pub(super) fn as_str(&self) -> &str {
        &self.text
    }

    /// `ALGORITHM/DIGITS`, the path below `blobs/` in an OCI layout.
    pub(super) fn blob_path(&self) -> String {
        format!("blobs/{}", self.text.replacen(':', "/", 1))
    }
}

/// Hashes what is read, to be compared with the digest that names it.
pub(super) struct Verified<R> {
    input: R,
    hasher: ShaHasher,
    expected: Expected,
    read_bytes: u64,
}

enum ShaHasher {
    Sha256(Box<Sha256>),
    Sha512(Box<Sha512>),
}

impl<R: Read> Verified<R> {
    pub(super) fn new(input: R, expected: Expected) -> Self {
        let hasher = match expected.algorithm {
            Algorithm::Sha256 => ShaHasher::Sha256(Box::default()),
            Algorithm::Sha512 => ShaHasher::Sha512(Box::default()),
        };
        Self { input, hasher, expected, read_bytes: 0 }
    }

    /// Reads what is left and compares; `len_bytes` is the stated size, where there is one.
    pub(super) fn finish(mut self, len_bytes: Option<u64>) -> Result<(), ImageError> {
        let name = self.expected.text.clone();
        drain(&mut self).map_err(|source| ImageError::Read { name: name.clone(), source })?;
        if let Some(stated) = len_bytes.filter(|stated| *stated != self.read_bytes) {
            return Err(ImageError::Size { name, stated, found: self.read_bytes });
        }
        let found = match self.hasher {
            ShaHasher::Sha256(hasher) => format!("sha256:{}", hex(&hasher.finalize())),
            ShaHasher::Sha512(hasher) => format!("sha512:{}", hex(&hasher.finalize())),
        };
        if found == name { Ok(()) } else { Err(ImageError::Digest { name, found }) }
    }
}

impl<R: Read> Read for Verified<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.input.read(buffer)?;
        match &mut self.hasher {
            ShaHasher::Sha256(hasher) => hasher.update(&buffer[..count]),
            ShaHasher::Sha512(hasher) => hasher.update(&buffer[..count]),
        }
        self.read_bytes = self.read_bytes.saturating_add(u64::try_from(count).unwrap_or(u64::MAX));
        Ok(count)
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Reads to the end; tells whether anything but zeros came.
pub(super) fn drain(input: &mut impl Read) -> io::Result<bool> {
    let mut buffer = vec![0; 64 * 1024];
    let mut data = false;
    loop {
        match input.read(&mut buffer) {
            Ok(0) => return Ok(data),
            Ok(count) => data |= buffer[..count].iter().any(|byte| *byte != 0),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HELLO: &str = "sha256:2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";

    #[test]
    fn content_that_does_not_match_its_digest_is_refused() {
        let expected = Expected::parse(HELLO).unwrap();
        assert_eq!(expected.blob_path(), HELLO.replacen("sha256:", "blobs/sha256/", 1));
        assert!(Verified::new(&b"hello"[..], expected.clone()).finish(Some(5)).is_ok());
        assert!(matches!(
            Verified::new(&b"hellO"[..], expected.clone()).finish(Some(5)),
            Err(ImageError::Digest { .. })
        ));
        assert!(matches!(
            Verified::new(&b"hello"[..], expected).finish(Some(6)),
            Err(ImageError::Size { .. })
        ));
    }

    #[test]
    fn digests_cannot_name_other_files() {
        for text in [
            "",
            "sha256",
            "sha256:",
            "sha256:../../../etc/passwd",
            "md5:d41d8cd98f00b204e9800998ecf8427e",
            &HELLO.to_uppercase(),
            &HELLO[..70],
        ] {
            assert!(Expected::parse(text).is_err(), "{text}");
        }
    }
}
