//! What a run leaves for people: pictures, a page that needs nothing else, a table.
//!
//! Everything is made of [`Results`] alone, so that old results can be drawn anew.

mod canvas;
mod growth;
mod html;
mod latency;
mod markdown;
mod memory;
mod savings;

use std::fs;
use std::path::{Path, PathBuf};

use super::error::{BenchError, Result};
use super::results::Results;
use canvas::{Drawn, drawn};

/// Writes the report into `dir`, making that if need be: `results.json`, `report.html`,
/// `summary.md`, and each picture as SVG and PNG. Returns the files.
///
/// # Errors
/// [`BenchError::System`], [`BenchError::Picture`].
pub fn write(results: &Results, dir: &Path) -> Result<Vec<PathBuf>> {
    fs::create_dir_all(dir).map_err(BenchError::at("make", dir))?;
    let pictures = pictures(results)?;
    let mut files = Vec::new();
    let mut put = |name: &str, content: &[u8]| -> Result<()> {
        let path = dir.join(name);
        fs::write(&path, content).map_err(BenchError::at("write", &path))?;
        files.push(path);
        Ok(())
    };
    let mut json = serde_json::to_vec(results).map_err(std::io::Error::from)?;
    json.push(b'\n');
    put("results.json", &json)?;
    for Drawn { name, svg, png } in &pictures {
        put(&format!("{name}.svg"), svg.as_bytes())?;
        put(&format!("{name}.png"), png)?;
    }
    put("summary.md", markdown::summary(results).as_bytes())?;
    put("report.html", html::page(results, &pictures).as_bytes())?;
    Ok(files)
}

/// The pictures that there are figures for.
fn pictures(results: &Results) -> Result<Vec<Drawn>> {
    let mut pictures = Vec::new();
    if let Some(picture) = savings::Picture::of(results) {
        pictures.push(drawn("savings", &picture)?);
    }
    if let Some(picture) = memory::Picture::of(results) {
        pictures.push(drawn("memory", &picture)?);
    }
    if let Some(picture) = latency::Picture::of(results) {
        pictures.push(drawn("latency", &picture)?);
    }
    if let Some(picture) = growth::Picture::of(results) {
        pictures.push(drawn("growth", &picture)?);
    }
    Ok(pictures)
}

/// The lines that every report begins with.
#[must_use]
pub fn headlines(results: &Results) -> Vec<String> {
    let mut lines = Vec::new();
    for roots in [20, 100] {
        let case = results.savings.first();
        let saved = case.and_then(|case| {
            Some((case.saved("mica", roots)?, case.ideal_saved(roots)?, case.point("mica", roots)?))
        });
        if let Some((saved, ideal, point)) = saved {
            lines.push(format!(
                "{roots} roots take {} where full copies take {}: {:.1} % saved; at best {:.1} % \
                 could be",
                size(point.bytes),
                size(case_copies(results, roots)),
                saved * 100.0,
                ideal * 100.0,
            ));
        }
    }
    for case in &results.memory {
        let each = |who: &str| {
            let of = case.contenders.iter().find(|of| of.contender == who)?;
            Some(size(of.each_bytes()))
        };
        if let (Some(mica), Some(copies)) = (each("mica"), each(super::results::FULL_COPIES)) {
            let overlayfs = each("overlayfs")
                .map(|bytes| format!(", on overlayfs {bytes}"))
                .unwrap_or_default();
            lines.push(format!(
                "a container that runs {} costs {mica} of memory, as a full copy \
                 {copies}{overlayfs}",
                case.workload
            ));
        }
    }
    let judged =
        |wanted: &str| results.speed.iter().filter(|row| row.verdict.starts_with(wanted)).count();
    if !results.speed.is_empty() {
        let all = results.speed.iter().filter(|row| row.target.is_some()).count();
        lines.push(format!(
            "{} of {all} targets of speed are met, {} are missed",
            judged("met"),
            judged("missed")
        ));
    }
    lines
}

fn case_copies(results: &Results, roots: u32) -> u64 {
    let case = results.savings.first();
    let copies = case.and_then(|case| case.point(super::results::FULL_COPIES, roots));
    copies.map_or(0, |point| point.bytes)
}

/// Bytes for a person: three digits and a unit.
fn size(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let (mut value, mut unit) = (bytes as f64, 0);
    while value >= 999.5 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    let digits = if unit == 0 || value >= 99.95 { 0 } else { 1 };
    format!("{value:.digits$} {}", units[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_three_digits() {
        for (bytes, text) in
            [(0, "0 B"), (999, "999 B"), (1 << 20, "1.0 MiB"), (1000 << 20, "1.0 GiB")]
        {
            assert_eq!(size(bytes), text);
        }
        assert_eq!(size(150 << 20), "150 MiB");
    }
}
