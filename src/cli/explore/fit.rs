//! Making text fit its columns, as wide as a terminal shows it.

use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// Columns that a text takes.
pub(super) fn width(text: &str) -> usize {
    text.width()
}

/// The beginning of `text` that fits `columns`, and how many it takes.
fn head(text: &str, columns: usize) -> (&str, usize) {
    let mut taken = 0;
    for (at, letter) in text.char_indices() {
        let wide = letter.width().unwrap_or(0);
        if taken + wide > columns {
            return (&text[..at], taken);
        }
        taken += wide;
    }
    (text, taken)
}

/// The end of `text` that fits `columns`.
fn tail(text: &str, columns: usize) -> &str {
    let mut taken = 0;
    for (at, letter) in text.char_indices().rev() {
        taken += letter.width().unwrap_or(0);
        if taken > columns {
            return &text[at + letter.len_utf8()..];
        }
    }
    text
}

/// `text`, its middle left out if it is wider than `columns`: the end of a name tells as much
/// as its beginning.
pub(super) fn name(text: &str, columns: usize) -> String {
    if width(text) <= columns {
        return text.to_owned();
    }
    let Some(left) = columns.checked_sub(1) else { return String::new() };
    let (head, _) = head(text, left - left / 3);
    format!("{head}…{}", tail(text, left / 3))
}

/// `text`, its beginning left out if it is wider than `columns`: a path is known by its end.
pub(super) fn path(text: &str, columns: usize) -> String {
    if width(text) <= columns {
        return text.to_owned();
    }
    match columns.checked_sub(1) {
        Some(left) => format!("…{}", tail(text, left)),
        None => String::new(),
    }
}

/// `text`, cut off at `columns`.
pub(super) fn cut(text: &str, columns: usize) -> String {
    if width(text) <= columns {
        return text.to_owned();
    }
    match columns.checked_sub(1) {
        Some(left) => format!("{}…", head(text, left).0),
        None => String::new(),
    }
}

/// `text` without its first `columns`.
pub(super) fn shifted(text: &str, columns: usize) -> &str {
    &text[head(text, columns).0.len()..]
}

/// `text` and spaces up to `columns`.
pub(super) fn left(text: &str, columns: usize) -> String {
    format!("{text}{}", " ".repeat(columns.saturating_sub(width(text))))
}

/// Spaces and `text`, together `columns`.
pub(super) fn right(text: &str, columns: usize) -> String {
    format!("{}{text}", " ".repeat(columns.saturating_sub(width(text))))
}

/// `text` in lines of at most `columns`, broken between words where that can be.
pub(super) fn wrapped(text: &str, columns: usize) -> Vec<String> {
    let mut lines = Vec::new();
    let mut line = String::new();
    for word in text.split(' ') {
        let gap = usize::from(!line.is_empty());
        if width(&line) + gap + width(word) > columns && !line.is_empty() {
            lines.push(std::mem::take(&mut line));
        } else if gap > 0 {
            line.push(' ');
        }
        let mut word = word;
        while width(word) > columns && columns > 1 {
            let (part, _) = head(word, columns);
            lines.push(part.to_owned());
            word = &word[part.len()..];
        }
        line.push_str(word);
    }
    lines.push(line);
    lines
}

/// Columns of a size.
pub(super) const SIZE: usize = 8;

/// A size in at most [`SIZE`] columns.
pub(super) fn size(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut unit = 0;
    let mut whole = bytes;
    while whole >= 1024 {
        whole /= 1024;
        unit += 1;
    }
    // Tenths of the unit, to the nearest.
    let divisor = 1_u128 << (10 * unit);
    let tenths = (u128::from(bytes) * 10 + divisor / 2) / divisor;
    let name = UNITS.get(unit).copied().unwrap_or_default();
    if unit == 0 {
        format!("{bytes} B")
    } else if tenths < 100 {
        format!("{}.{} {name}", tenths / 10, tenths % 10)
    } else {
        format!("{} {name}", (tenths + 5) / 10)
    }
}

/// A number in at most `columns` (4 or more).
pub(super) fn number(number: u64, columns: usize) -> String {
    let mut text = number.to_string();
    let mut left = number;
    for unit in ["k", "M", "G", "T", "P"] {
        if text.len() <= columns {
            break;
        }
        left /= 1000;
        text = format!("{left}{unit}");
    }
    text
}

/// A share of a whole, in percent.
pub(super) fn share(part: u64, whole: u64) -> String {
    if whole == 0 || part == 0 {
        return "0 %".to_owned();
    }
    let percent = u128::from(part) * 100 / u128::from(whole);
    if percent == 0 { "under 1 %".to_owned() } else { format!("{percent} %") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_wide_is_cut_where_it_tells_least() {
        assert_eq!(name("linux-image-6.12.0-amd64.deb", 16), "linux-imag…4.deb");
        assert_eq!(path("/usr/lib/libc.so.6", 10), "…libc.so.6");
        assert_eq!(cut("abcdef", 4), "abc…");
        assert_eq!(name("abc", 3), "abc");
        assert_eq!(
            (name("abc", 0), path("abc", 0), cut("abc", 1)),
            (String::new(), String::new(), "…".into())
        );
        // Wide letters take two columns.
        assert_eq!(cut("日本語", 4), "日…");
        assert_eq!(path("日本語", 4), "…語");
        assert_eq!(shifted("日本語", 2), "本語");
    }

    #[test]
    fn sizes_and_numbers_keep_to_their_columns() {
        let sizes = [0, 1023, 1024, 10_189, 10_240, 1_048_575, 1 << 20, u64::MAX];
        let texts =
            ["0 B", "1023 B", "1.0 KiB", "10 KiB", "10 KiB", "1024 KiB", "1.0 MiB", "16 EiB"];
        assert_eq!(sizes.map(size), texts);
        assert!(sizes.iter().all(|bytes| size(*bytes).len() <= SIZE));
        assert_eq!([9_999, 10_000, 1_234_567].map(|n| number(n, 4)), ["9999", "10k", "1M"]);
        assert_eq!([share(0, 0), share(1, 1000), share(1, 3)], ["0 %", "under 1 %", "33 %"]);
    }

    #[test]
    fn sentences_are_broken_between_words() {
        assert_eq!(wrapped("one two three", 8), ["one two", "three"]);
        assert_eq!(wrapped("abcdefgh", 3), ["abc", "def", "gh"]);
    }
}
