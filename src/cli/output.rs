//! What a person, or a program, reads.

use std::io::{self, Write};

use anyhow::Result;
use serde::Serialize;

/// Where results and remarks go.
#[derive(Debug, Clone, Copy)]
pub(super) struct Output {
    quiet: bool,
}

impl Output {
    pub(super) fn new(quiet: bool) -> Self {
        Self { quiet }
    }

    /// Whether only results and errors are wanted.
    pub(super) fn is_quiet(self) -> bool {
        self.quiet
    }

    /// Prints a result.
    pub(super) fn line(self, text: impl AsRef<str>) -> Result<()> {
        writeln!(io::stdout().lock(), "{}", text.as_ref())?;
        Ok(())
    }

    /// Prints a remark about what was done, unless told to be quiet.
    pub(super) fn remark(self, text: impl AsRef<str>) -> Result<()> {
        if self.quiet { Ok(()) } else { self.line(text) }
    }

    /// Prints something the user should know though all went well: to standard error.
    pub(super) fn note(self, text: impl AsRef<str>) {
        if !self.quiet {
            // Without standard error there is nobody to tell.
            let _told = writeln!(io::stderr().lock(), "mica: note: {}", text.as_ref());
        }
    }

    /// Prints a value as JSON.
    pub(super) fn json(self, value: &impl Serialize) -> Result<()> {
        let mut stdout = io::stdout().lock();
        serde_json::to_writer_pretty(&mut stdout, value).map_err(io::Error::from)?;
        writeln!(stdout)?;
        Ok(())
    }

    /// Prints rows in columns under their headings; numbers go to the right.
    pub(super) fn table(self, headings: &[&str], rows: &[Vec<String>]) -> Result<()> {
        self.line(columns(headings, rows).trim_end())
    }
}

/// Prints an error sentence.
pub(super) fn complain(sentence: &str) {
    // Without standard error there is nobody to tell.
    let _told = writeln!(io::stderr().lock(), "mica: {sentence}");
}

/// A size in bytes, for a person.
pub(super) fn size(bytes: u64) -> String {
    indicatif::BinaryBytes(bytes).to_string()
}

/// `1 file`, `2 files`.
pub(super) fn count(number: u64, noun: &str) -> String {
    let s = if number == 1 { "" } else { "s" };
    format!("{} {noun}{s}", indicatif::HumanCount(number))
}

/// A path as text.
pub(super) fn path(path: &std::path::Path) -> String {
    path.display().to_string()
}

fn columns(headings: &[&str], rows: &[Vec<String>]) -> String {
    let cell = |row: &[String], column: usize| row.get(column).cloned().unwrap_or_default();
    let width = |column: usize| {
        let cells = rows.iter().map(|row| cell(row, column).chars().count());
        cells.chain(headings.get(column).map(|heading| heading.chars().count())).max()
    };
    let to_the_right = |column: usize| {
        rows.iter().all(|row| cell(row, column).starts_with(|c: char| c.is_ascii_digit()))
            && !rows.is_empty()
    };
    let headings: Vec<String> = headings.iter().map(ToString::to_string).collect();
    let mut text = String::new();
    for row in std::iter::once(&headings).chain(rows) {
        let mut line = String::new();
        for column in 0..headings.len() {
            let (cell, width) = (cell(row, column), width(column).unwrap_or_default());
            let padded = if to_the_right(column) {
                format!("{cell:>width$}")
            } else {
                format!("{cell:<width$}")
            };
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
    fn counts_have_their_plural() {
        assert_eq!(
            (count(1, "file"), count(12_345, "file")),
            ("1 file".into(), "12,345 files".into())
        );
    }
}
