//! One page with everything in it: it loads nothing from anywhere.

use std::fmt::Write;

use super::canvas::Drawn;
use super::{headlines, markdown};
use crate::bench::results::Results;

const STYLE: &str = "body{font:16px/1.5 sans-serif;color:#222;max-width:1240px;margin:2em auto;padding:0 1em}\
    table{border-collapse:collapse;margin:1em 0;font-size:14px}\
    td,th{border:1px solid #ddd;padding:.3em .6em;text-align:left;vertical-align:top}\
    th{background:#f4f4f4}svg{max-width:100%;height:auto}.missed{color:#b00020}.met{color:#1b7a3d}";

/// The page.
pub(super) fn page(results: &Results, pictures: &[Drawn]) -> String {
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <title>Mica beside its peers</title><style>{STYLE}</style></head><body>\n\
         <h1>Mica beside its peers</h1>\n<p>{}</p>\n<ul>\n",
        escaped(&results.machine.line())
    );
    for line in headlines(results) {
        // Writing to a string does not fail.
        let _written = writeln!(page, "<li>{}</li>", escaped(&line));
    }
    page.push_str("</ul>\n");
    for picture in pictures {
        let _written = writeln!(page, "<h2>{}</h2>\n{}", picture.name, inline(&picture.svg));
    }
    page.push_str("<h2>Figures</h2>\n");
    page.push_str(&tables(&markdown::summary(results)));
    page.push_str("</body></html>\n");
    page
}

/// A picture without the head that a file of its own has.
fn inline(svg: &str) -> &str {
    svg.find("<svg").map_or(svg, |at| &svg[at..])
}

/// Our own Markdown, which has only paragraphs, lists and tables.
fn tables(text: &str) -> String {
    let mut html = String::new();
    let mut open: Option<&str> = None;
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        let kind = match line.chars().next() {
            Some('|') => Some("table"),
            Some('-') => Some("ul"),
            _text => None,
        };
        if kind != open {
            if let Some(open) = open {
                let _written = writeln!(html, "</{open}>");
            }
            if let Some(kind) = kind {
                let _written = writeln!(html, "<{kind}>");
            }
            open = kind;
        }
        match kind {
            Some("table") if line.starts_with("|---") => {}
            Some("table") => {
                let head = lines.peek().is_some_and(|next| next.starts_with("|---"));
                let tag = if head { "th" } else { "td" };
                let cells = line.trim_matches('|').split('|').map(|cell| {
                    let cell = escaped(cell.trim());
                    let class = match &cell {
                        cell if cell.contains(": missed") => " class=\"missed\"",
                        cell if cell.contains(": met") => " class=\"met\"",
                        _plain => "",
                    };
                    format!("<{tag}{class}>{cell}</{tag}>")
                });
                let _written = writeln!(html, "<tr>{}</tr>", cells.collect::<String>());
            }
            Some(_list) => {
                let _written =
                    writeln!(html, "<li>{}</li>", escaped(line.trim_start_matches("- ")));
            }
            None if line.is_empty() => {}
            None => {
                let _written = writeln!(html, "<p>{}</p>", escaped(line));
            }
        }
    }
    if let Some(open) = open {
        let _written = writeln!(html, "</{open}>");
    }
    html
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_become_tables_and_nothing_is_markup_by_accident() {
        let html = tables("A <b> & c:\n\n| x | y |\n|---|---|\n| 1 | ≤ 2: missed |\n\n- one\n");
        assert!(html.contains("<p>A &lt;b&gt; &amp; c:</p>"), "{html}");
        assert!(html.contains("<tr><th>x</th><th>y</th></tr>"), "{html}");
        assert!(html.contains("<td class=\"missed\">≤ 2: missed</td>"), "{html}");
        assert!(html.contains("</table>\n<ul>\n<li>one</li>\n</ul>"), "{html}");
    }
}
