//! PAX extended header records: `LENGTH KEY=VALUE\n`, by POSIX.1-2001 `pax`.
//!
//! The `tar` crate splits records at newlines, so it loses any value that holds one, and a file
//! capability or a name often does. Records are cut by their stated length here.

use super::TarFault;
use crate::layer::Timestamp;
use crate::layer::import::metadata::{MetadataFault, Xattrs};

/// No file has more attributes: the list of their names has 64 KiB, and none is shorter than `user.x`.
const MOST_XATTRS: usize = 65_536 / 7;

/// What the extended headers say about one member; unset fields leave the ustar header in force.
#[derive(Clone, Debug, Default)]
pub(super) struct PaxFields {
    pub(super) path: Option<Box<[u8]>>,
    pub(super) link_path: Option<Box<[u8]>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u64>,
    pub(super) gid: Option<u64>,
    pub(super) mtime: Option<Timestamp>,
    /// `SCHILY.xattr.*`, in record order; a later record of the same name replaces an earlier one.
    pub(super) xattrs: Xattrs,
    /// `LIBARCHIVE.xattr.*`, decoded; `SCHILY.xattr.*` of the same name is preferred.
    pub(super) libarchive_xattrs: Xattrs,
    /// `SCHILY.acl.access` and `SCHILY.acl.default`, as text.
    pub(super) acl_access: Option<Box<[u8]>>,
    pub(super) acl_default: Option<Box<[u8]>>,
    /// `RHT.security.selinux`, which GNU tar writes instead of an xattr record.
    pub(super) selinux: Option<Box<[u8]>>,
    pub(super) sparse: PaxSparse,
}

/// The `GNU.sparse.*` records of formats 0.0, 0.1 and 1.0.
#[derive(Clone, Debug, Default)]
pub(super) struct PaxSparse {
    pub(super) major: Option<u64>,
    pub(super) minor: Option<u64>,
    /// Size of the file when expanded, in bytes.
    pub(super) real_size: Option<u64>,
    pub(super) name: Option<Box<[u8]>>,
    /// Format 0.1: `offset,length,…` in one record.
    pub(super) map: Option<Box<[u8]>>,
    /// Format 0.0: one record each, in pairs.
    pub(super) pairs: Vec<(u64, u64)>,
    pending_offset: Option<u64>,
}

impl PaxFields {
    /// Applies every record of one extended header over what is set already.
    pub(super) fn apply(&mut self, mut records: &[u8]) -> Result<(), TarFault> {
        while !records.is_empty() {
            let record = split_record(records)?;
            self.apply_record(record.key, record.value)?;
            records = record.rest;
        }
        Ok(())
    }

    /// Bytes that are copied for every member where these are global.
    pub(super) fn bytes(&self) -> usize {
        let texts = [
            &self.path,
            &self.link_path,
            &self.acl_access,
            &self.acl_default,
            &self.selinux,
            &self.sparse.name,
            &self.sparse.map,
        ];
        let xattrs = self.xattrs.iter().chain(&self.libarchive_xattrs);
        texts.into_iter().flatten().map(|text| text.len()).sum::<usize>()
            + xattrs.map(|(name, value)| name.len() + value.len()).sum::<usize>()
            + self.sparse.pairs.len() * 16
    }

    fn apply_record(&mut self, key: &[u8], value: &[u8]) -> Result<(), TarFault> {
        if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
            return replace(&mut self.xattrs, &keyword_decoded(name), value.into());
        }
        if let Some(name) = key.strip_prefix(b"LIBARCHIVE.xattr.") {
            let name = percent_decoded(name);
            let value = base64_decoded(value).ok_or(TarFault::BadPaxValue {
                key: "LIBARCHIVE.xattr",
                reason: "it is not base64",
            })?;
            return replace(&mut self.libarchive_xattrs, &name, value.into());
        }
        match key {
            b"path" => self.path = text(value),
            b"linkpath" => self.link_path = text(value),
            b"size" => self.size = number(value, "size")?,
            b"uid" => self.uid = number(value, "uid")?,
            b"gid" => self.gid = number(value, "gid")?,
            b"mtime" => self.mtime = time(value)?,
            b"SCHILY.acl.access" => self.acl_access = text(value),
            b"SCHILY.acl.default" => self.acl_default = text(value),
            b"RHT.security.selinux" => self.selinux = text(value),
            b"GNU.sparse.major" => self.sparse.major = number(value, "GNU.sparse.major")?,
            b"GNU.sparse.minor" => self.sparse.minor = number(value, "GNU.sparse.minor")?,
            b"GNU.sparse.size" | b"GNU.sparse.realsize" => {
                self.sparse.real_size = number(value, "GNU.sparse.realsize")?;
            }
            b"GNU.sparse.name" => self.sparse.name = text(value),
            b"GNU.sparse.map" => self.sparse.map = text(value),
            b"GNU.sparse.offset" => {
                self.sparse.pending_offset = number(value, "GNU.sparse.offset")?;
            }
            b"GNU.sparse.numbytes" => {
                let length = number(value, "GNU.sparse.numbytes")?;
                match (self.sparse.pending_offset.take(), length) {
                    (Some(offset), Some(length)) => self.sparse.pairs.push((offset, length)),
                    (None, _) | (_, None) => {
                        return Err(TarFault::BadPaxValue {
                            key: "GNU.sparse.numbytes",
                            reason: "no GNU.sparse.offset stands before it",
                        });
                    }
                }
            }
            // atime, ctime, uname, gname, comment, charset, dev, ino: nothing Mica keeps.
            _ => {}
        }
        Ok(())
    }
}

/// Sets one attribute. There are never so many that looking through them takes long.
fn replace(list: &mut Xattrs, name: &[u8], value: Box<[u8]>) -> Result<(), TarFault> {
    if let Some((_, known)) = list.iter_mut().find(|(known, _)| known.as_ref() == name) {
        *known = value;
        return Ok(());
    }
    if list.len() >= MOST_XATTRS {
        let bytes = list.iter().map(|(name, _)| name.len() + 1).sum::<usize>();
        return Err(MetadataFault::XattrList(bytes).into());
    }
    list.push((name.into(), value));
    Ok(())
}

struct Record<'a> {
    key: &'a [u8],
    value: &'a [u8],
    /// The records after this one.
    rest: &'a [u8],
}

/// Cuts the first record off.
fn split_record(records: &[u8]) -> Result<Record<'_>, TarFault> {
    let space =
        records.iter().take(20).position(|byte| *byte == b' ').ok_or(TarFault::BadPaxRecord)?;
    let length = decimal(&records[..space]).ok_or(TarFault::BadPaxRecord)?;
    let length = usize::try_from(length).map_err(|_| TarFault::BadPaxRecord)?;
    if length <= space + 1 || length > records.len() || records[length - 1] != b'\n' {
        return Err(TarFault::BadPaxRecord);
    }
    let pair = &records[space + 1..length - 1];
    let equals = pair.iter().position(|byte| *byte == b'=').ok_or(TarFault::BadPaxRecord)?;
    let (key, value) = (&pair[..equals], &pair[equals + 1..]);
    Ok(Record { key, value, rest: &records[length..] })
}

/// An empty value withdraws the record, by POSIX.
fn text(value: &[u8]) -> Option<Box<[u8]>> {
    (!value.is_empty()).then(|| value.into())
}

fn number(value: &[u8], key: &'static str) -> Result<Option<u64>, TarFault> {
    if value.is_empty() {
        return Ok(None);
    }
    match decimal(value) {
        Some(number) => Ok(Some(number)),
        None => Err(TarFault::BadPaxValue { key, reason: "it is not a number of 0 to 2^64-1" }),
    }
}

/// A number of decimal digits only; `None` when empty, malformed or too large.
pub(super) fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0_u64, |number, digit| {
        let digit = digit.is_ascii_digit().then(|| u64::from(digit - b'0'))?;
        number.checked_mul(10)?.checked_add(digit)
    })
}

/// Seconds with an optional sign and fraction; digits below the nanosecond are cut off towards
/// the past, as GNU tar does.
fn time(value: &[u8]) -> Result<Option<Timestamp>, TarFault> {
    if value.is_empty() {
        return Ok(None);
    }
    let bad = TarFault::BadPaxValue { key: "mtime", reason: "it is not a time in range" };
    parse_time(value).map(Some).ok_or(bad)
}

fn parse_time(value: &[u8]) -> Option<Timestamp> {
    let (negative, magnitude) = match value.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, value),
    };
    let (whole, fraction) = match magnitude.iter().position(|byte| *byte == b'.') {
        Some(point) => (&magnitude[..point], &magnitude[point + 1..]),
        None => (magnitude, &[][..]),
    };
    let secs = i64::try_from(decimal(whole)?).ok()?;
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let mut nanos = 0_u32;
    for place in 0..9 {
        let digit = fraction.get(place).map_or(0, |digit| u32::from(digit - b'0'));
        nanos = nanos * 10 + digit;
    }
    let below = fraction.iter().skip(9).any(|digit| *digit != b'0');
    if !negative {
        return Some(Timestamp { secs, nanos });
    }
    let nanos = nanos + u32::from(below);
    match nanos {
        0 => Some(Timestamp { secs: -secs, nanos: 0 }),
        1_000_000_000 => Some(Timestamp { secs: (-secs).checked_sub(1)?, nanos: 0 }),
        _ => Some(Timestamp { secs: (-secs).checked_sub(1)?, nanos: 1_000_000_000 - nanos }),
    }
}

/// GNU tar writes `=` in an attribute's name as `%3D`, for it ends a keyword, and `%` as `%25`.
fn keyword_decoded(name: &[u8]) -> Vec<u8> {
    let mut decoded = Vec::with_capacity(name.len());
    let mut rest = name;
    while let Some((first, tail)) = rest.split_first() {
        let (byte, after) = match rest.get(..3) {
            Some(b"%3D") => (b'=', &rest[3..]),
            Some(b"%25") => (b'%', &rest[3..]),
            _ => (*first, tail),
        };
        decoded.push(byte);
        rest = after;
    }
    decoded
}

/// libarchive writes attribute names with `%xx` for bytes outside printable ASCII.
fn percent_decoded(name: &[u8]) -> Vec<u8> {
    let mut decoded = Vec::with_capacity(name.len());
    let mut rest = name;
    while let Some((first, tail)) = rest.split_first() {
        if *first == b'%'
            && let [high, low, after @ ..] = tail
            && let (Some(high), Some(low)) = (hex_digit(*high), hex_digit(*low))
        {
            decoded.push(high << 4 | low);
            rest = after;
        } else {
            decoded.push(*first);
            rest = tail;
        }
    }
    decoded
}

fn hex_digit(byte: u8) -> Option<u8> {
    match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        b'A'..=b'F' => Some(byte - b'A' + 10),
        _ => None,
    }
}

/// libarchive writes base64 without padding; padding is accepted too.
fn base64_decoded(text: &[u8]) -> Option<Vec<u8>> {
    let unpadded = text.iter().rposition(|byte| *byte != b'=').map_or(0, |last| last + 1);
    let mut decoded = Vec::with_capacity(unpadded * 3 / 4);
    for group in text[..unpadded].chunks(4) {
        let mut bits = 0_u32;
        for byte in group {
            let six = match byte {
                b'A'..=b'Z' => byte - b'A',
                b'a'..=b'z' => byte - b'a' + 26,
                b'0'..=b'9' => byte - b'0' + 52,
                b'+' => 62,
                b'/' => 63,
                _ => return None,
            };
            bits = bits << 6 | u32::from(six);
        }
        let bytes = match group.len() {
            4 => 3,
            3 => 2,
            2 => 1,
            _ => return None,
        };
        let shifted = bits << (6 * (4 - group.len()) + 8);
        decoded.extend_from_slice(&shifted.to_be_bytes()[..bytes]);
    }
    Some(decoded)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(key: &str, value: &[u8]) -> Vec<u8> {
        let body = key.len() + value.len() + 3;
        let mut length = body + 1;
        while length != body + length.to_string().len() {
            length = body + length.to_string().len();
        }
        let mut record = format!("{length} {key}=").into_bytes();
        record.extend_from_slice(value);
        record.push(b'\n');
        record
    }

    fn fields(records: &[(&str, &[u8])]) -> Result<PaxFields, TarFault> {
        let bytes: Vec<u8> = records.iter().flat_map(|(key, value)| record(key, value)).collect();
        let mut fields = PaxFields::default();
        fields.apply(&bytes)?;
        Ok(fields)
    }

    fn mtime(value: &str) -> Option<(i64, u32)> {
        parse_time(value.as_bytes()).map(|time| (time.secs, time.nanos))
    }

    #[test]
    fn values_may_hold_newlines_and_equals_signs() {
        let fields = fields(&[
            ("SCHILY.xattr.user.a", b"1\n2=3\n"),
            ("path", b"new\nline=x"),
            ("size", b"17"),
        ])
        .unwrap();
        assert_eq!(fields.xattrs[0].1.as_ref(), b"1\n2=3\n");
        assert_eq!(fields.path.as_deref(), Some(&b"new\nline=x"[..]));
        assert_eq!(fields.size, Some(17));
    }

    #[test]
    fn an_empty_value_withdraws_a_record_but_not_an_xattr() {
        let fields =
            fields(&[("path", b"a"), ("path", b""), ("SCHILY.xattr.user.e", b"")]).unwrap();
        assert_eq!(fields.path, None);
        assert_eq!(fields.xattrs.len(), 1);
        assert!(fields.xattrs[0].1.is_empty());
    }

    #[test]
    fn times_keep_nanoseconds_on_both_sides_of_the_epoch() {
        assert_eq!(mtime("1700000000.123456789"), Some((1_700_000_000, 123_456_789)));
        assert_eq!(mtime("1.5"), Some((1, 500_000_000)));
        assert_eq!(mtime("1.1234567899"), Some((1, 123_456_789)));
        assert_eq!(mtime("-1.5"), Some((-2, 500_000_000)));
        assert_eq!(mtime("-1.0000000001"), Some((-2, 999_999_999)));
        assert_eq!(mtime("-1"), Some((-1, 0)));
        assert_eq!(mtime("-0.9999999999"), Some((-1, 0)));
        assert_eq!(mtime("9223372036854775807"), Some((i64::MAX, 0)));
        for bad in ["", "x", "1.x", "9223372036854775808", "--1", "1e3", "."] {
            assert_eq!(mtime(bad), None, "{bad}");
        }
    }

    #[test]
    fn libarchive_attributes_are_decoded() {
        let fields = fields(&[("LIBARCHIVE.xattr.user.a%20b", b"AAECAw")]).unwrap();
        assert_eq!(fields.libarchive_xattrs[0].0.as_ref(), b"user.a b");
        assert_eq!(fields.libarchive_xattrs[0].1.as_ref(), [0, 1, 2, 3]);
        assert_eq!(base64_decoded(b"aGVsbG8=").as_deref(), Some(&b"hello"[..]));
        assert_eq!(base64_decoded(b"a"), None);
        assert_eq!(base64_decoded(b"a*=="), None);
    }

    #[test]
    fn attribute_names_may_hold_equals_and_percent_signs() {
        let fields = fields(&[("SCHILY.xattr.user.a%3Db%25c%41", b"1")]).unwrap();
        assert_eq!(fields.xattrs[0].0.as_ref(), b"user.a=b%c%41");
    }

    #[test]
    fn malformed_records_are_errors() {
        for bytes in [
            &b"x"[..],
            b"5 a=b",
            b"6 a=bc",
            b"99 a=b\n",
            b"2 \n",
            b"0 a=b\n",
            b"5 abc\n",
            b"99999999999999999999999 a=b\n",
            b"7 a=bcd\n",
        ] {
            assert!(PaxFields::default().apply(bytes).is_err(), "{bytes:?}");
        }
    }

    #[test]
    fn old_sparse_pairs_are_kept_in_order() {
        let fields = fields(&[
            ("GNU.sparse.size", b"100"),
            ("GNU.sparse.offset", b"0"),
            ("GNU.sparse.numbytes", b"5"),
            ("GNU.sparse.offset", b"50"),
            ("GNU.sparse.numbytes", b"50"),
        ])
        .unwrap();
        assert_eq!(fields.sparse.pairs, [(0, 5), (50, 50)]);
        assert!(self::fields(&[("GNU.sparse.numbytes", b"5")]).is_err());
    }
}
