//! Differences of text, as `diff -u` writes them and `patch` reads them.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use similar::{Algorithm, DiffOp, DiffTag};

use super::output::printable;

/// Unchanged lines shown around a change.
const CONTEXT_LINES: usize = 3;

/// How long the shortest difference is searched for; then a longer one will do.
const PATIENCE: Duration = Duration::from_secs(2);

/// Where a NUL byte is looked for that tells text from other content.
const TEXT_SAMPLE_BYTES: usize = 8192;

/// Content longer than this is not compared line by line.
pub(super) const LIMIT_BYTES: u64 = 8 << 20;

/// Whether people could read it.
pub(super) fn is_text(content: &[u8]) -> bool {
    !content[..content.len().min(TEXT_SAMPLE_BYTES)].contains(&0)
}

/// A line as it may be written: a terminal is protected from what a file holds, a pipe gets
/// the bytes themselves.
pub(super) fn visible(line: &[u8]) -> Vec<u8> {
    if !io::stdout().is_terminal() {
        return line.to_vec();
    }
    let parts = line.split(|byte| *byte == b'\t').map(printable);
    parts.collect::<Vec<_>>().join("\t").into_bytes()
}

/// Writes the difference between two texts; nothing if they are equal.
///
/// `show` turns the bytes of a line into what is written.
pub(super) fn patch(
    out: &mut dyn Write,
    (old_label, old): (&str, &[u8]),
    (new_label, new): (&str, &[u8]),
    show: &dyn Fn(&[u8]) -> Vec<u8>,
) -> io::Result<()> {
    if old == new {
        return Ok(());
    }
    let old: Vec<&[u8]> = old.split_inclusive(|byte| *byte == b'\n').collect();
    let new: Vec<&[u8]> = new.split_inclusive(|byte| *byte == b'\n').collect();
    let deadline = Instant::now().checked_add(PATIENCE);
    let changes = similar::capture_diff_slices_deadline(Algorithm::Myers, &old, &new, deadline);
    writeln!(out, "--- {old_label}")?;
    writeln!(out, "+++ {new_label}")?;
    for hunk in similar::group_diff_ops(changes, CONTEXT_LINES) {
        let (Some(first), Some(last)) = (hunk.first(), hunk.last()) else { continue };
        let (before, after) = (
            first.old_range().start..last.old_range().end,
            first.new_range().start..last.new_range().end,
        );
        writeln!(out, "@@ -{} +{} @@", place(&before), place(&after))?;
        for change in &hunk {
            write_change(out, change, &old, &new, show)?;
        }
    }
    Ok(())
}

/// Lines are counted from 1; no lines at all lie after the one that is named.
fn place(lines: &std::ops::Range<usize>) -> String {
    match lines.len() {
        0 => format!("{},0", lines.start),
        1 => (lines.start + 1).to_string(),
        many => format!("{},{many}", lines.start + 1),
    }
}

fn write_change(
    out: &mut dyn Write,
    change: &DiffOp,
    old: &[&[u8]],
    new: &[&[u8]],
    show: &dyn Fn(&[u8]) -> Vec<u8>,
) -> io::Result<()> {
    let mut lines = |sign: u8, lines: &[&[u8]]| {
        for line in lines {
            out.write_all(&[sign])?;
            let (text, whole) = match line.strip_suffix(b"\n") {
                Some(text) => (text, true),
                None => (*line, false),
            };
            out.write_all(&show(text))?;
            out.write_all(b"\n")?;
            if !whole {
                out.write_all(b"\\ No newline at end of file\n")?;
            }
        }
        Ok(())
    };
    let (before, after) = (&old[change.old_range()], &new[change.new_range()]);
    match change.tag() {
        DiffTag::Equal => lines(b' ', before),
        DiffTag::Delete => lines(b'-', before),
        DiffTag::Insert => lines(b'+', after),
        DiffTag::Replace => {
            lines(b'-', before)?;
            lines(b'+', after)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn patched(old: &[u8], new: &[u8]) -> String {
        let mut out = Vec::new();
        patch(&mut out, ("a", old), ("b", new), &|line| line.to_vec()).expect("memory takes it");
        String::from_utf8(out).expect("text")
    }

    #[test]
    fn a_difference_reads_as_that_of_diff_u() {
        let old = b"1\n2\n3\n4\n5\n6\n7\n8\n9\n";
        let new = b"1\n2\n3\n4\nfive\n6\n7\n8\n9";
        assert_eq!(
            patched(old, new),
            "--- a\n+++ b\n@@ -2,8 +2,8 @@\n 2\n 3\n 4\n-5\n+five\n 6\n 7\n 8\n-9\n+9\n\\ No newline at end of file\n"
        );
        assert_eq!(patched(b"", b"x\n"), "--- a\n+++ b\n@@ -0,0 +1 @@\n+x\n");
        assert_eq!(patched(b"x\n", b""), "--- a\n+++ b\n@@ -1 +0,0 @@\n-x\n");
        assert_eq!(patched(b"same", b"same"), "");
    }

    #[test]
    fn text_has_no_nul() {
        assert!(is_text(b"") && is_text(b"\xff\n") && !is_text(b"a\0"));
    }
}
