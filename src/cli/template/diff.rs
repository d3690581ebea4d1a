//! `mica template diff OLD NEW [PATH…]`

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use serde::Serialize;

use super::{layer_path, view};
use crate::cli::FOUND;
use crate::cli::arguments::TreeDiff;
use crate::cli::output::{Output, Paint, printable, size};
use crate::cli::patch::{LIMIT_BYTES, is_text, patch, visible};
use crate::inspect::diff::content_bytes;
use crate::inspect::text::PatchText;
use crate::inspect::{
    Content, Counter, Difference, DifferenceText, Letter, Library, Node, Tally, View, diff,
};
use crate::layer::LayerPath;

/// The answer in JSON.
#[derive(Debug, Serialize)]
struct Answer {
    old: String,
    new: String,
    totals: Tally,
    #[serde(skip_serializing_if = "Option::is_none")]
    differences: Option<Vec<DifferenceText>>,
}

struct Sides {
    library: Library,
    before: View,
    after: View,
}

pub(super) fn run(wanted: &TreeDiff, store: &Path, output: Output) -> Result<ExitCode> {
    let library = Library::open(store)?;
    let before = view(&library, &wanted.before)?;
    let after = view(&library, &wanted.after)?;
    let sides = Sides { library, before, after };
    let paths = wanted.paths.iter().map(|path| layer_path(path)).collect::<Result<Vec<_>>>()?;
    let mut counter = Counter::default();
    let mut found = Vec::new();
    diff(&sides.before, &sides.after, wanted.times, &mut |difference| {
        if paths.is_empty() || paths.iter().any(|top| lies_in(&difference.path, top)) {
            counter.count(&difference);
            found.push(difference);
        }
        anyhow::Ok(())
    })?;
    let lies = |path: &LayerPath| found.iter().any(|difference| lies_in(&difference.path, path));
    for path in paths.iter().filter(|path| !lies(path)) {
        // That nothing differs may not be said of what there never was.
        if sides.before.find(path)?.is_none() {
            sides.after.get(path)?;
        }
    }
    let totals = counter.tally();
    if wanted.json.json {
        output.json(&sides.answer(wanted, totals, &found)?)?;
    } else if wanted.stat {
        stat(&totals, output)?;
    } else if output.is_quiet() {
        output.names(found.iter().map(|difference| [b"/", difference.path.as_slice()].concat()))?;
    } else if wanted.content {
        output.pour(|out| {
            found.iter().try_for_each(|difference| {
                let text = sides.content(difference, &visible)?;
                if text.is_empty() {
                    // Something else than lines: a mode, an empty file.
                    return Ok(writeln!(out, "{}", line(difference, output))?);
                }
                Ok(out.write_all(&text)?)
            })
        })?;
    } else {
        output.pour(|out| {
            found.iter().try_for_each(|one| Ok(writeln!(out, "{}", line(one, output))?))
        })?;
    }
    Ok(if totals.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(FOUND) })
}

fn lies_in(path: &[u8], top: &LayerPath) -> bool {
    let rest = path.strip_prefix(top.to_bytes().as_slice());
    top.is_root() || rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
}

/// `C /etc/passwd  1.2 KiB → 1.3 KiB, mode 0644 → 0600`
fn line(difference: &Difference, output: Output) -> String {
    let paint = match difference.letter {
        Letter::Added => Paint::Added,
        Letter::Changed => Paint::Changed,
        Letter::Deleted => Paint::Removed,
    };
    let head = format!("{} /{}", difference.letter.char(), printable(&difference.path));
    let head = output.paint(paint, &head);
    let remarks = remarks(difference).join(", ");
    if remarks.is_empty() {
        head
    } else {
        format!("{head}  {}", output.paint(Paint::Faint, &remarks))
    }
}

fn remarks(difference: &Difference) -> Vec<String> {
    let bytes = |node: &Node| node.kind.is_regular().then(|| size(content_bytes(node)));
    match (&difference.before, &difference.after) {
        (Some(before), Some(after)) => {
            let remark = |differs: &&'static str| match *differs {
                "type" => format!("{} → {}", before.kind.word(), after.kind.word()),
                "content" => format!("{} → {}", size(before.size), size(after.size)),
                "mode" => format!("mode {:04o} → {:04o}", before.mode, after.mode),
                "owner" => {
                    format!("owner {}:{} → {}:{}", before.uid, before.gid, after.uid, after.gid)
                }
                "xattrs" => "attributes".to_owned(),
                "mtime" => "time".to_owned(),
                other => other.to_owned(),
            };
            difference.differs.iter().map(remark).collect()
        }
        (Some(one), None) | (None, Some(one)) => bytes(one).into_iter().collect(),
        (None, None) => Vec::new(),
    }
}

fn stat(totals: &Tally, output: Output) -> Result<()> {
    let row =
        |what: &str, names: u64, bytes: u64| vec![what.to_owned(), names.to_string(), size(bytes)];
    let rows = [
        row("added", totals.added, totals.added_bytes),
        row("changed", totals.changed, totals.changed_bytes),
        row("deleted", totals.deleted, totals.deleted_bytes),
    ];
    output.table(&["", "NAMES", "CONTENT"], &rows)
}

impl Sides {
    fn answer(&self, wanted: &TreeDiff, totals: Tally, found: &[Difference]) -> Result<Answer> {
        let mut differences = Vec::new();
        if !wanted.stat {
            for difference in found {
                let mut text = difference.text(&self.before, &self.after)?;
                if wanted.content && difference.is_of_content() {
                    text.patch = Some(PatchText(self.content(difference, &|line| line.to_vec())?));
                }
                differences.push(text);
            }
        }
        Ok(Answer {
            old: self.before.whole().to_owned(),
            new: self.after.whole().to_owned(),
            totals,
            differences: (!wanted.stat).then_some(differences),
        })
    }

    /// How the content differs, as `diff -u` writes it; nothing if it does not.
    fn content(&self, difference: &Difference, show: &dyn Fn(&[u8]) -> Vec<u8>) -> Result<Vec<u8>> {
        let mut out = Vec::new();
        if !difference.is_of_content() {
            return Ok(out);
        }
        let shown = printable(&difference.path);
        let content = |node: &Option<Node>| match node.as_ref().and_then(|node| node.object) {
            Some(object) => self.library.object_content(&object, LIMIT_BYTES),
            None => Ok(Content::None),
        };
        let (old, new) = (content(&difference.before)?, content(&difference.after)?);
        let label = |name: &str, content: &Content| match content {
            Content::None => "/dev/null".to_owned(),
            Content::Whole(_) | Content::TooLong => format!("{name}/{shown}"),
        };
        // As git has them, for `patch -p1`.
        let labels = (label("a", &old), label("b", &new));
        match (text(&old), text(&new)) {
            (Some(before), Some(after)) => {
                patch(&mut out, (&labels.0, before), (&labels.1, after), show)?;
            }
            _ => writeln!(out, "Binary files {} and {} differ", labels.0, labels.1)?,
        }
        Ok(out)
    }
}

/// Text that can be compared by its lines; what is not there has none.
fn text(content: &Content) -> Option<&[u8]> {
    match content {
        Content::Whole(bytes) => Some(bytes.as_slice()).filter(|bytes| is_text(bytes)),
        Content::None => Some(&[]),
        Content::TooLong => None,
    }
}
