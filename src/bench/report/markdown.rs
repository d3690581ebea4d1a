//! The figures as tables in Markdown, to be put into a document as they are.

use std::fmt::Write;

use super::{headlines, size};
use crate::bench::results::{FULL_COPIES, MemoryCase, Results, SavingsCase, StepTime};
use crate::bench::row::{Row, number};

/// All tables.
pub(super) fn summary(results: &Results) -> String {
    let mut text = format!(
        "{}; load {} at the start; {:.0} s in all.\n\n",
        results.machine.line(),
        results.machine.load,
        results.seconds
    );
    for line in headlines(results) {
        // Writing to a string does not fail, here and below.
        let _written = writeln!(text, "- {line}");
    }
    for case in &results.savings {
        text.push_str(&savings(case));
    }
    if let Some(case) = results.savings.first() {
        text.push_str(&inodes(case));
    }
    if !results.memory.is_empty() {
        text.push_str(&memory(&results.memory));
    }
    if !results.speed.is_empty() {
        text.push_str(&speed(&results.speed));
    }
    if !results.skipped.is_empty() {
        text.push_str("\nNot measured:\n\n");
        for skipped in &results.skipped {
            let _written = writeln!(text, "- {}: {}", skipped.what, skipped.why);
        }
    }
    text.push_str(&steps(&results.steps));
    text
}

fn savings(case: &SavingsCase) -> String {
    let mut text =
        format!("\nDisk, {} ({}); computed numbers in brackets:\n\n", case.name, case.note);
    let roots: Vec<u32> = case.ideal.iter().map(|(roots, _)| *roots).collect();
    let heads: Vec<String> = roots.iter().map(|roots| format!("{roots} |")).collect();
    let _written = writeln!(text, "| roots | {}", heads.join(" "));
    let _written = writeln!(text, "|---|{}", "---|".repeat(roots.len()));
    for name in case.contenders() {
        let cells: Vec<String> = roots
            .iter()
            .map(|roots| {
                let Some(point) = case.point(name, *roots) else { return "– |".to_owned() };
                let told = size(point.bytes);
                let told = if point.measured { told } else { format!("({told})") };
                match case.saved(name, *roots) {
                    Some(saved) if name != FULL_COPIES && *roots > 1 => {
                        format!("{told}, {:.1} % saved |", saved * 100.0)
                    }
                    _first => format!("{told} |"),
                }
            })
            .collect();
        let _written = writeln!(text, "| {name} | {}", cells.join(" "));
    }
    let cells: Vec<String> = roots
        .iter()
        .zip(&case.ideal)
        .map(|(roots, (_, bytes))| match case.ideal_saved(*roots) {
            Some(saved) if *roots > 1 => format!("{}, {:.1} % |", size(*bytes), saved * 100.0),
            _first => format!("{} |", size(*bytes)),
        })
        .collect();
    let _written = writeln!(text, "| every content once | {}", cells.join(" "));
    text
}

/// How many inodes the roots of the first case take.
fn inodes(case: &SavingsCase) -> String {
    let roots: Vec<u32> = case.ideal.iter().map(|(roots, _)| *roots).collect();
    let heads: Vec<String> = roots.iter().map(|roots| format!("{roots} |")).collect();
    let mut text = format!(
        "\nInodes, {}; computed numbers in brackets:\n\n| roots | {}\n|---|{}\n",
        case.name,
        heads.join(" "),
        "---|".repeat(roots.len())
    );
    for name in case.contenders() {
        let cells = roots.iter().map(|roots| match case.point(name, *roots) {
            Some(point) if point.measured => format!("{} |", point.inodes),
            Some(point) => format!("({}) |", point.inodes),
            None => "– |".to_owned(),
        });
        let _written = writeln!(text, "| {name} | {}", cells.collect::<Vec<_>>().join(" "));
    }
    text
}

/// How long the steps of the run took.
fn steps(steps: &[StepTime]) -> String {
    let mut text = "\nThe run itself:\n\n| step | seconds | planned |\n|---|---|---|\n".to_owned();
    for StepTime { name, planned_seconds, seconds } in steps {
        let _written = writeln!(text, "| {name} | {seconds:.0} | {planned_seconds:.0} |");
    }
    text
}

fn memory(cases: &[MemoryCase]) -> String {
    let mut text = "\nMemory of one container:\n\n\
        | runs | on | containers | in all | its cgroup | serving it (of which page cache) | Pss | serving processes, private | page cache: shared, private, own |\n\
        |---|---|---|---|---|---|---|---|---|\n"
        .to_owned();
    for case in cases {
        for of in &case.contenders {
            let each = |bytes: u64| size(bytes / u64::from(of.containers.max(1)));
            let _written = writeln!(
                text,
                "| {} | {} | {} | {} | {} | {} ({}) | {} | {} | {}, {}, {} in all |",
                case.workload,
                of.contender,
                of.containers,
                size(of.each_bytes()),
                each(of.cgroups_bytes),
                each(of.servers_cgroup_bytes),
                each(of.servers_cache_bytes),
                each(of.pss_bytes),
                each(of.servers_private_bytes),
                size(of.cache_shared_bytes),
                size(of.cache_private_bytes),
                size(of.cache_own_bytes),
            );
        }
    }
    text
}

fn speed(rows: &[Row]) -> String {
    let mut text =
        "\nSpeed, medians (least – most); a ratio only where it is larger than the spread:\n\n\
        | what | Mica | base | ratio (middle half) | target | others |\n|---|---|---|---|---|---|\n"
            .to_owned();
    for row in rows {
        let told = |name: &str| {
            row.find(name).map_or_else(
                || "–".to_owned(),
                |series| {
                    let (low, high) = series.range();
                    let [median, low, high] = [series.median(), low, high].map(number);
                    format!("{median} ({low} – {high}) {}", row.unit.name())
                },
            )
        };
        let others: Vec<String> = row
            .contenders
            .iter()
            .filter(|series| series.name != row.about && series.name != row.base)
            .map(|series| format!("{} {}", series.name, number(series.median())))
            .collect();
        let verdict = match row.promised().as_str() {
            "" => "–".to_owned(),
            promised => format!("{promised}: {}", row.verdict),
        };
        let ratio = if row.ratio.is_some() { row.told_ratio() } else { "–".to_owned() };
        let _written = writeln!(
            text,
            "| {} | {} | {} | {ratio} | {verdict} | {} |",
            row.what,
            told(&row.about),
            if row.base == row.about {
                "–".to_owned()
            } else {
                format!("{} {}", row.base, told(&row.base))
            },
            others.join(", "),
        );
    }
    text
}
