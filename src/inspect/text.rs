//! Bytes as text: for people escaped, for JSON so that they come back.
//!
//! In JSON a name is a string. Where it is not UTF-8, the string holds U+FFFD in place of what
//! is not, and a second member, named like the first with `_hex` added, holds the exact bytes
//! as hexadecimal digits. Who reads `path_hex` if it is there, and `path` otherwise, has every
//! name exactly.

use std::fmt::Write as _;
use std::io;

use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};

use crate::layer::Timestamp;

/// Bytes as a person may see them: what would move the cursor, hide or reorder the text, or is
/// no UTF-8, is escaped as in C (`\n`, `\x1b`, `\xff`, `\u{202e}`), and so is the backslash.
#[must_use]
pub fn printable(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for letter in chunk.valid().chars() {
            match letter {
                '\\' => text.push_str("\\\\"),
                '\n' => text.push_str("\\n"),
                '\r' => text.push_str("\\r"),
                '\t' => text.push_str("\\t"),
                letter if letter.is_ascii_control() => escape(&mut text, letter as u32, "x", ""),
                letter if misleads(letter) => escape(&mut text, letter as u32, "u{", "}"),
                letter => text.push(letter),
            }
        }
        for byte in chunk.invalid() {
            escape(&mut text, u32::from(*byte), "x", "");
        }
    }
    text
}

fn escape(text: &mut String, code: u32, before: &str, after: &str) {
    // Writing into a string cannot fail.
    let _written = write!(text, "\\{before}{code:02x}{after}");
}

/// Control characters beyond ASCII, and those that reorder, part or hide what is around them.
fn misleads(letter: char) -> bool {
    letter.is_control()
        || matches!(letter,
            '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
            | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// Writes JSON with escapes in place of what would move the cursor, hide or reorder the text.
/// JSON has one for every character, so it says the same.
///
/// Every piece that is written has to be whole UTF-8, as those of `serde_json` are.
pub struct HarmlessJson<W>(pub W);

impl<W: io::Write> io::Write for HarmlessJson<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Ok(text) = std::str::from_utf8(bytes) else {
            self.0.write_all(bytes)?;
            return Ok(bytes.len());
        };
        let mut rest = text;
        while let Some(at) = rest.find(|letter| letter == '\u{7f}' || beyond_ascii(letter)) {
            let (before, from) = rest.split_at(at);
            self.0.write_all(before.as_bytes())?;
            let letter = from.chars().next().unwrap_or_default();
            for unit in letter.encode_utf16(&mut [0; 2]) {
                write!(self.0, "\\u{unit:04x}")?;
            }
            rest = &from[letter.len_utf8()..];
        }
        self.0.write_all(rest.as_bytes())?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

fn beyond_ascii(letter: char) -> bool {
    !letter.is_ascii() && misleads(letter)
}

/// Bytes as hexadecimal digits.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        // As above.
        let _written = write!(text, "{byte:02x}");
        text
    })
}

macro_rules! json_bytes {
    ($($(#[$doc:meta])* $name:ident: $member:literal, $exact:literal;)*) => { $(
        $(#[$doc])*
        #[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
        pub struct $name(pub Vec<u8>);

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                let mut map = serializer.serialize_map(None)?;
                map.serialize_entry($member, &String::from_utf8_lossy(&self.0))?;
                if std::str::from_utf8(&self.0).is_err() {
                    map.serialize_entry($exact, &hex(&self.0))?;
                }
                map.end()
            }
        }

        impl std::fmt::Display for $name {
            /// As [`printable`].
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(&printable(&self.0))
            }
        }

        impl From<&[u8]> for $name {
            fn from(bytes: &[u8]) -> Self {
                Self(bytes.to_vec())
            }
        }
    )* };
}

json_bytes! {
    /// A path; in JSON the members `path` and, if it is not UTF-8, `path_hex`. To be flattened
    /// into the answer it belongs to, as its fellows below.
    PathText: "path", "path_hex";
    /// A name; `name` and `name_hex`.
    NameText: "name", "name_hex";
    /// A symlink's target, or the place where something was written; `target` and `target_hex`.
    TargetText: "target", "target_hex";
    /// A private directory; `private` and `private_hex`.
    PrivateText: "private", "private_hex";
    /// How the lines of a text differ; `patch` and `patch_hex`.
    PatchText: "patch", "patch_hex";
}

impl PathText {
    /// The absolute path of what lies at `path`, which is relative to the root of a layer.
    #[must_use]
    pub fn absolute(path: &[u8]) -> Self {
        let mut bytes = Vec::with_capacity(path.len() + 1);
        bytes.push(b'/');
        bytes.extend_from_slice(path);
        Self(bytes)
    }
}

/// A time as RFC 3339 has it, with nanoseconds; `@SECONDS.NANOSECONDS` (since 1970) for years
/// that it cannot write.
#[must_use]
pub fn time(time: Timestamp) -> String {
    match civil(time) {
        Some((date, clock)) => format!("{date}T{clock}.{:09}Z", time.nanos),
        None => format!("@{}.{:09}", time.secs, time.nanos),
    }
}

/// A time for people, to the minute.
#[must_use]
pub fn short_time(time: Timestamp) -> String {
    match civil(time) {
        Some((date, clock)) => format!("{date} {}", clock.get(..5).unwrap_or_default()),
        None => format!("@{}", time.secs),
    }
}

/// Date and clock of a time between the years 0 and 9999.
fn civil(time: Timestamp) -> Option<(String, String)> {
    const DAY: i64 = 86_400;
    let (days, second) = (time.secs.div_euclid(DAY), time.secs.rem_euclid(DAY));
    // Days since 1 March of the year 0; the year begins with March so that the leap day is
    // its last ("chrono-compatible low-level date algorithms", H. Hinnant).
    let days = days.checked_add(719_468)?;
    let (era, day_of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era.checked_mul(400)? + i64::from(month <= 2);
    (0..=9999).contains(&year).then(|| {
        let (hour, minute) = (second / 3600, second / 60 % 60);
        (
            format!("{year:04}-{month:02}-{day:02}"),
            format!("{hour:02}:{minute:02}:{:02}", second % 60),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_moves_the_cursor_or_misleads_is_printed() {
        assert_eq!(printable(b"plain \xc3\xa9"), "plain é");
        assert_eq!(printable(b"a\nb\x1b[2J\\\xff\x7f"), r"a\nb\x1b[2J\\\xff\x7f");
        assert_eq!(printable("a\u{202e}b\u{85}".as_bytes()), r"a\u{202e}b\u{85}");
    }

    #[test]
    fn json_commands_no_terminal_and_says_the_same() {
        let text = "a\u{9b}b\u{202e}c\u{e0001}d\u{7f}e\\ é\u{1b}";
        let mut written = Vec::new();
        serde_json::to_writer(HarmlessJson(&mut written), text).expect("memory takes it");
        let json = String::from_utf8(written).expect("text");
        assert_eq!(json, r#""a\u009bb\u202ec\udb40\udc01d\u007fe\\ é\u001b""#);
        assert_eq!(serde_json::from_str::<String>(&json).expect("JSON"), text);
    }

    #[test]
    fn every_name_comes_back_from_json() {
        for name in [&b"plain"[..], b"a\nb", b"\xff\xfe", "é\u{202e}".as_bytes()] {
            let json = serde_json::to_value(PathText::from(name)).expect("plain data");
            let back = match json.get("path_hex") {
                Some(hex) => hex.as_str().map(|hex| {
                    hex.as_bytes()
                        .chunks(2)
                        .map(|two| std::str::from_utf8(two).expect("digits"))
                        .map(|two| u8::from_str_radix(two, 16).expect("digits"))
                        .collect()
                }),
                None => json["path"].as_str().map(|text| text.as_bytes().to_vec()),
            };
            assert_eq!(back.as_deref(), Some(name));
        }
    }

    #[test]
    fn times_are_those_of_the_calendar_and_any_number_is_one() {
        let at = |secs| time(Timestamp { secs, nanos: 5 });
        assert_eq!(at(0), "1970-01-01T00:00:00.000000005Z");
        assert_eq!(at(-1), "1969-12-31T23:59:59.000000005Z");
        assert_eq!(at(951_782_400), "2000-02-29T00:00:00.000000005Z");
        assert_eq!(at(4_107_542_399), "2100-02-28T23:59:59.000000005Z");
        assert_eq!(at(253_402_300_800), "@253402300800.000000005");
        for secs in [i64::MIN, i64::MAX] {
            assert_eq!(at(secs), format!("@{secs}.000000005"));
        }
        assert_eq!(short_time(Timestamp { secs: 86_399, nanos: 0 }), "1970-01-01 23:59");
    }
}
