//! What a person, or a program, reads.
//!
//! Conventions of every command that looks: a table or text by default, with units; with
//! `--json` the whole answer, sizes in bytes; with `-q` the names alone, one a line. Colour
//! goes to terminals only. Names are escaped for people (`inspect/text.rs`) and exact in JSON.

use std::io::{self, BufWriter, IsTerminal, Write};

use anyhow::Result;
use serde::Serialize;

use crate::inspect::text::HarmlessJson;
pub(super) use crate::inspect::text::printable;

/// Where results and remarks go.
#[derive(Debug, Clone, Copy)]
pub(super) struct Output {
    quiet: bool,
    colour: bool,
}

/// What a piece of text says by its colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Paint {
    /// Something that is new.
    Added,
    /// Something that is not what it was.
    Changed,
    /// Something that is gone.
    Removed,
    /// A directory.
    Directory,
    /// A symbolic link.
    Link,
    /// A program.
    Program,
    /// What matters less.
    Faint,
    /// A heading.
    Bold,
    /// Damage.
    Alarm,
}

impl Paint {
    /// The parameters of the terminal's "select graphic rendition".
    fn code(self) -> &'static str {
        match self {
            Self::Added | Self::Program => "32",
            Self::Changed => "33",
            Self::Removed => "31",
            Self::Directory => "34",
            Self::Link => "36",
            Self::Faint => "2",
            Self::Bold => "1",
            Self::Alarm => "1;31",
        }
    }
}

impl Output {
    pub(super) fn new(quiet: bool) -> Self {
        let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        // https://no-color.org
        let colour = io::stdout().is_terminal() && !set("NO_COLOR") && !dumb;
        Self { quiet, colour }
    }

    /// Whether only results and errors are wanted; of a list, the names alone.
    pub(super) fn is_quiet(self) -> bool {
        self.quiet
    }

    /// `text` in colour, if somebody sees it.
    pub(super) fn paint(self, paint: Paint, text: &str) -> String {
        if self.colour { format!("\x1b[{}m{text}\x1b[0m", paint.code()) } else { text.to_owned() }
    }

    /// Prints what may be long: written in large pieces.
    pub(super) fn pour(self, fill: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
        let mut stdout = BufWriter::with_capacity(64 * 1024, io::stdout().lock());
        fill(&mut stdout)?;
        stdout.flush()?;
        Ok(())
    }

    /// Prints names alone, one a line, escaped.
    pub(super) fn names(self, names: impl IntoIterator<Item = impl AsRef<[u8]>>) -> Result<()> {
        self.pour(|out| {
            for name in names {
                writeln!(out, "{}", printable(name.as_ref()))?;
            }
            Ok(())
        })
    }

    /// Prints a result.
    pub(super) fn line(self, text: impl AsRef<str>) -> Result<()> {
        writeln!(io::stdout().lock(), "{}", text.as_ref())?;
        Ok(())
    }

    /// Prints a remark about what was done, unless told to be quiet.
    pub(super) fn remark(self, text: impl AsRef<str>) -> Result<()> {
        if self.quiet { Ok(()) } else { self.line(harmless(text.as_ref())) }
    }

    /// Prints something the user should know though all went well: to standard error.
    pub(super) fn note(self, text: impl AsRef<str>) {
        if !self.quiet {
            // Without standard error there is nobody to tell.
            let _told = writeln!(io::stderr().lock(), "mica: note: {}", harmless(text.as_ref()));
        }
    }

    /// Prints what goes on to standard error, for a person who looks.
    pub(super) fn shown(self, text: impl std::fmt::Display) {
        if !self.quiet {
            // Without standard error there is nobody to tell.
            let _told = writeln!(io::stderr().lock(), "{text}\n");
        }
    }

    /// Prints a value as JSON.
    pub(super) fn json(self, value: &impl Serialize) -> Result<()> {
        self.pour(|out| {
            serde_json::to_writer_pretty(HarmlessJson(&mut *out), value)
                .map_err(io::Error::from)?;
            writeln!(out)?;
            Ok(())
        })
    }

    /// Prints rows in columns under their headings; numbers go to the right.
    pub(super) fn table(self, headings: &[&str], rows: &[Vec<String>]) -> Result<()> {
        let text = columns(headings, rows);
        let (heading, rows) = text.split_once('\n').unwrap_or_default();
        self.line(self.paint(Paint::Bold, heading))?;
        if rows.is_empty() { Ok(()) } else { self.line(rows.trim_end()) }
    }
}

/// Prints an error sentence.
pub(super) fn complain(sentence: &str) {
    // Without standard error there is nobody to tell.
    let _told = writeln!(io::stderr().lock(), "mica: {}", lines(sentence));
}

/// A sentence, and each reason that it lists on a line of its own.
fn lines(sentence: &str) -> String {
    sentence.split("\n- ").map(harmless).collect::<Vec<_>>().join("\n  - ")
}

/// A sentence without what a terminal would obey. Names in it are mostly escaped already, so
/// backslashes stay as they are.
fn harmless(sentence: &str) -> String {
    printable(sentence.as_bytes()).replace("\\\\", "\\")
}

/// A size in bytes, for a person.
pub(super) fn size(bytes: u64) -> String {
    indicatif::BinaryBytes(bytes).to_string()
}

/// How long ago something was, for a person.
pub(super) fn age(since: std::time::SystemTime) -> String {
    // A clock that was set back makes everything new.
    indicatif::HumanDuration(since.elapsed().unwrap_or_default()).to_string()
}

/// Reads a size: bytes, or with K, M, G or T (1024 each step), as in `10M` or `1.5GiB`.
pub(super) fn parse_size(text: &str) -> Result<u64, String> {
    let unit = text.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
    let number = text.strip_suffix(unit).unwrap_or_default();
    let unit = unit.trim().to_ascii_uppercase();
    let shift = match unit.strip_suffix("IB").or(unit.strip_suffix('B')).unwrap_or(&unit) {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        _ => return Err("use bytes, or a number with K, M, G or T".to_owned()),
    };
    let (whole, part) = number.split_once('.').unwrap_or((number, ""));
    let digits = |text: &str| -> Result<u64, String> {
        if text.is_empty() { Ok(0) } else { text.parse().map_err(|_| "it is no size".to_owned()) }
    };
    if number.is_empty() || number == "." || part.len() > 6 {
        return Err("it is no size".to_owned());
    }
    let scale = 10_u64.pow(u32::try_from(part.len()).unwrap_or_default());
    let whole = digits(whole)?.checked_mul(1 << shift);
    let part = digits(part)?.checked_mul(1 << shift).map(|part| part / scale);
    whole
        .zip(part)
        .and_then(|(whole, part)| whole.checked_add(part))
        .ok_or_else(|| "it is too large".to_owned())
}

/// `1 file`, `2 files`.
pub(super) fn count(number: u64, noun: &str) -> String {
    let s = if number == 1 { "" } else { "s" };
    format!("{} {noun}{s}", indicatif::HumanCount(number))
}

/// A path as text.
pub(super) fn path(path: &std::path::Path) -> String {
    printable(path.as_os_str().as_encoded_bytes())
}

fn columns(headings: &[&str], rows: &[Vec<String>]) -> String {
    let cell = |row: &'_ [String], column: usize| row.get(column).cloned().unwrap_or_default();
    let measure = |column: usize| {
        let cells = rows.iter().map(|row| row.get(column).map_or(0, |cell| cell.chars().count()));
        let heading = headings.get(column).map_or(0, |heading| heading.chars().count());
        let width = cells.fold(heading, usize::max);
        let is_number = |cell: &String| cell.starts_with(|c: char| c.is_ascii_digit());
        let to_the_right =
            !rows.is_empty() && rows.iter().all(|row| row.get(column).is_some_and(is_number));
        (width, to_the_right)
    };
    let shapes: Vec<(usize, bool)> = (0..headings.len()).map(measure).collect();
    let headings: Vec<String> = headings.iter().map(ToString::to_string).collect();
    let mut text = String::new();
    for row in std::iter::once(&headings).chain(rows) {
        let mut line = String::new();
        for (column, (width, to_the_right)) in shapes.iter().enumerate() {
            let cell = cell(row, column);
            let padded =
                if *to_the_right { format!("{cell:>width$}") } else { format!("{cell:<width$}") };
            line.push_str(&padded);
            line.push_str("  ");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_numbers_go_to_the_right() {
        let rows = [
            vec!["debian:12".to_owned(), "178 MiB".to_owned(), String::new()],
            vec!["a:1".to_owned(), "9 B".to_owned(), "web1".to_owned()],
        ];
        assert_eq!(
            columns(&["TEMPLATE", "SIZE", "ROOTS"], &rows),
            "TEMPLATE      SIZE  ROOTS\ndebian:12  178 MiB\na:1            9 B  web1\n"
        );
        assert_eq!(columns(&["A"], &[]), "A\n");
    }

    #[test]
    fn sizes_are_read_as_they_are_written() {
        for (text, bytes) in
            [("0", 0), ("10", 10), ("10k", 10_240), ("1.5GiB", 3 << 29), ("2MB", 2 << 20)]
        {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for text in ["", "k", ".", "1.2.3", "ten", "1x", "-1", "99999999999999999999", "20000000T"]
        {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_sentence_cannot_command_the_terminal() {
        assert_eq!(harmless("no \x1b[2J \"a\\n\""), "no \\x1b[2J \"a\\n\"");
    }

    #[test]
    fn counts_have_their_plural() {
        assert_eq!(
            (count(1, "file"), count(12_345, "file")),
            ("1 file".into(), "12,345 files".into())
        );
    }
}
