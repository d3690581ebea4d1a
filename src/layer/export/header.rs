//! One member's headers: ustar, with PAX records for what does not fit. POSIX.1-2001 `pax`.

use std::io;

use tar::{EntryType, Header};

use crate::layer::{Metadata, Timestamp};

/// Keyword and value of a PAX record.
pub(super) type Record = (Vec<u8>, Vec<u8>);

/// Bytes of a header, and what content is padded to.
pub(super) const BLOCK_BYTES: usize = 512;

/// Longest name in a ustar header, in bytes. The prefix field is not used.
const NAME_BYTES: usize = 100;
/// The largest numbers that the octal fields hold.
const MAX_ID: u32 = 0o7_777_777;
const MAX_SIZE: u64 = 0o77_777_777_777;

/// What a header says.
pub(super) struct Described {
    /// Path; of a directory with a slash at its end.
    pub(super) path: Vec<u8>,
    pub(super) entry: EntryType,
    pub(super) metadata: Metadata,
    /// Bytes that follow.
    pub(super) size: u64,
    /// Target of a link of either kind.
    pub(super) link: Vec<u8>,
    /// Of a device.
    pub(super) rdev: u64,
    /// Further PAX records.
    pub(super) records: Vec<Record>,
}

impl Described {
    /// The bytes that come before the content.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] if a number does not fit, which none of Linux's does.
    pub(super) fn encode(&self) -> io::Result<Vec<u8>> {
        let mut records = Vec::new();
        let mut fit = |key: &str, value: Vec<u8>| records.push((key.as_bytes().to_vec(), value));
        if self.path.len() > NAME_BYTES {
            fit("path", self.path.clone());
        }
        if self.link.len() > NAME_BYTES {
            fit("linkpath", self.link.clone());
        }
        let Metadata { uid, gid, mtime, .. } = self.metadata;
        if uid > MAX_ID {
            fit("uid", uid.to_string().into_bytes());
        }
        if gid > MAX_ID {
            fit("gid", gid.to_string().into_bytes());
        }
        if self.size > MAX_SIZE {
            fit("size", self.size.to_string().into_bytes());
        }
        let whole = u64::try_from(mtime.secs).ok().filter(|secs| *secs <= MAX_SIZE);
        if whole.is_none() || mtime.nanos != 0 {
            fit("mtime", decimal(mtime).into_bytes());
        }
        records.extend(self.records.iter().cloned());
        let mut bytes = Vec::new();
        if !records.is_empty() {
            records.sort_unstable();
            let body: Vec<u8> = records.iter().flat_map(record).collect();
            let mut header = Header::new_ustar();
            let mut name = b"PaxHeaders/".to_vec();
            name.extend(self.path.iter().copied().filter(|byte| *byte != b'/'));
            put_name(&mut header, &name);
            header.set_entry_type(EntryType::XHeader);
            header.set_mode(0o644);
            header.set_size(u64::try_from(body.len()).map_err(io::Error::other)?);
            plain(&mut header)?;
            bytes.extend_from_slice(header.as_bytes());
            bytes.extend_from_slice(&body);
            bytes.resize(bytes.len().next_multiple_of(BLOCK_BYTES), 0);
        }
        let mut header = Header::new_ustar();
        put_name(&mut header, &self.path);
        header.set_entry_type(self.entry);
        header.set_mode(self.metadata.mode);
        header.set_size(if self.size > MAX_SIZE { 0 } else { self.size });
        plain(&mut header)?;
        header.set_uid(u64::from(if uid > MAX_ID { 0 } else { uid }));
        header.set_gid(u64::from(if gid > MAX_ID { 0 } else { gid }));
        header.set_mtime(whole.unwrap_or(0));
        let field = &mut header.as_old_mut().linkname;
        let len = self.link.len().min(field.len());
        field[..len].copy_from_slice(&self.link[..len]);
        if matches!(self.entry, EntryType::Char | EntryType::Block) {
            header.set_device_major(rustix::fs::major(self.rdev))?;
            header.set_device_minor(rustix::fs::minor(self.rdev))?;
        }
        header.set_cksum();
        bytes.extend_from_slice(header.as_bytes());
        Ok(bytes)
    }
}

/// Fills the number fields that a header of no device and of no owner has.
fn plain(header: &mut Header) -> io::Result<()> {
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_device_major(0)?;
    header.set_device_minor(0)?;
    header.set_cksum();
    Ok(())
}

fn put_name(header: &mut Header, name: &[u8]) {
    let field = &mut header.as_old_mut().name;
    let len = name.len().min(field.len());
    field[..len].copy_from_slice(&name[..len]);
}

/// `LENGTH KEY=VALUE\n`, whose length counts itself.
fn record((key, value): &Record) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    let mut record = format!("{length} ").into_bytes();
    record.extend_from_slice(key);
    record.push(b'=');
    record.extend_from_slice(value);
    record.push(b'\n');
    record
}

/// Seconds with a fraction; the fraction of a time before 1970 counts away from it.
fn decimal(time: Timestamp) -> String {
    let Timestamp { secs, nanos } = time;
    match (secs < 0, nanos) {
        (_, 0) => secs.to_string(),
        (false, nanos) => format!("{secs}.{nanos:09}"),
        (true, nanos) => format!("-{}.{:09}", -(secs + 1), 1_000_000_000 - nanos),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_counts_its_own_length() {
        let made = |value: &str| {
            String::from_utf8(record(&(b"path".to_vec(), value.as_bytes().to_vec()))).unwrap()
        };
        assert_eq!(made("a"), "9 path=a\n");
        assert_eq!(made("ab"), "11 path=ab\n");
        for (value, length) in [(89, 98), (90, 99), (91, 101)] {
            let long = made(&"x".repeat(value));
            assert_eq!(long.len(), length);
            assert!(long.starts_with(&format!("{length} path=")), "{long}");
        }
    }

    #[test]
    fn times_before_1970_are_written_as_they_are_read() {
        let text = |secs, nanos| decimal(Timestamp { secs, nanos });
        assert_eq!(text(1, 5), "1.000000005");
        assert_eq!(text(-2, 500_000_000), "-1.500000000");
        assert_eq!(text(-1, 999_999_999), "-0.000000001");
        assert_eq!(text(-1, 0), "-1");
        assert_eq!(text(i64::MIN, 1), "-9223372036854775807.999999999");
    }
}
