//! One run of everything, its report, and two runs beside each other.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::support::{Scratch, Succeed, require_root};
use crate::{alone, assert_nothing_left, bench, template};

fn array<'a>(value: &'a Value, name: &str) -> &'a Vec<Value> {
    value[name].as_array().unwrap_or_else(|| panic!("no {name} in {value}"))
}

#[test]
fn everything_has_figures_that_hold_and_a_report() {
    require_root();
    let _alone = alone();
    let scratch = Scratch::new("bench-all");
    let store = template(&scratch);
    let (dir, out) = (scratch.directory("runs"), scratch.path().join("out"));
    let mut command = bench(&store, &dir, &["all", "--quick", "--containers", "2"]);
    command.args(["--template", "small:1", "--out"]).arg(&out);
    let said = command.succeed();
    assert!(said.contains("saved"), "{said}");
    assert_nothing_left(&dir);

    let results: Value =
        serde_json::from_slice(&fs::read(out.join("results.json")).unwrap()).unwrap();
    assert_eq!(results["schema"], 1);
    savings(&results);
    memory(&results);
    speed(&results);
    growth(&results);
    steps(&results);
    report(&out, &results);
    crate::counts::disk_space_is_what_du_counts(&scratch, &store, &results);
    crate::counts::memory_is_what_proc_counts(&scratch, &store, &results);
    comparison(&store, &out, &scratch.path().join("other"), results);
}

fn savings(results: &Value) {
    let cases = array(results, "savings");
    assert_eq!(cases.len(), 4);
    for case in cases {
        for who in ["full copies", "overlayfs", "mica"] {
            for roots in [1, 2, 10, 20, 100, 1000] {
                let point = |who: &str| -> Value {
                    let points = array(case, "points");
                    let found = points.iter().find(|point| {
                        point["contender"] == who && point["roots"].as_u64() == Some(roots)
                    });
                    found.unwrap_or_else(|| panic!("no {roots} × {who} in {case}")).clone()
                };
                assert!(point(who)["bytes"].as_u64() > Some(0), "{case}");
                if roots >= 10 {
                    assert!(
                        point("mica")["bytes"].as_u64() < point("full copies")["bytes"].as_u64(),
                        "{case}"
                    );
                }
                if roots > 20 {
                    assert_eq!(point(who)["measured"], false, "{case}");
                }
            }
        }
        let ideal = array(case, "ideal");
        assert!(ideal.iter().all(|pair| pair[1].as_u64() > Some(0)), "{case}");
    }
}

fn memory(results: &Value) {
    let cases = array(results, "memory");
    assert_eq!(cases.len(), 1, "{results}");
    assert_eq!(cases[0]["workload"], "shell");
    let total = fs::read_to_string("/proc/meminfo").unwrap();
    let total: u64 = total.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024;
    for of in array(&cases[0], "contenders") {
        let bytes = |name: &str| of[name].as_u64().unwrap();
        assert_eq!(bytes("containers"), 2, "{of}");
        let each = bytes("cgroups_bytes") / 2;
        assert!((100_000..100_000_000).contains(&each), "{of}");
        assert!(bytes("pss_bytes") > 0, "{of}");
        assert!(bytes("machine_bytes") < total, "{of}");
        if of["contender"] == "mica" {
            assert!(bytes("servers_private_bytes") > 0, "{of}");
            assert!(bytes("servers_cgroup_bytes") > 0, "{of}");
            // Both containers read the same objects.
            assert!(bytes("cache_shared_bytes") > 0, "{of}");
        }
    }
}

fn speed(results: &Value) {
    let rows = array(results, "speed");
    let with_target = rows.iter().filter(|row| !row["target"].is_null());
    assert!(with_target.count() >= 19, "a row of docs/PERFORMANCE.md is missing");
    for row in rows {
        let contenders = array(row, "contenders");
        assert!(!contenders.is_empty(), "{row}");
        for of in contenders {
            let samples = array(of, "samples");
            assert!(!samples.is_empty(), "{row}");
            assert!(samples.iter().all(|one| one.as_f64().is_some_and(|one| one > 0.0)), "{row}");
        }
        assert!(row["target"].is_null() || row["verdict"] != "", "{row}");
    }
    for latency in array(results, "latencies") {
        for of in array(latency, "contenders") {
            let spread = array(of, "nanoseconds");
            assert!(spread.len() > 100 && spread[0][1].as_f64() > Some(0.0), "{of}");
        }
    }
    assert_eq!(array(results, "latencies").len(), 4);
}

fn growth(results: &Value) {
    let curves = array(results, "growth");
    assert!(curves.len() >= 9, "{}", curves.len());
    for curve in curves {
        for line in array(curve, "lines") {
            for point in array(line, "points") {
                assert!(!point[1].as_array().unwrap().is_empty(), "{curve}");
            }
        }
    }
}

/// Each step is told with its time, and none of the paths of this machine.
fn steps(results: &Value) {
    let steps = array(results, "steps");
    let names: Vec<&str> = steps.iter().map(|step| step["name"].as_str().unwrap()).collect();
    for name in ["templates", "memory: shell", "savings: roots", "speed: latency", "growth: files"]
    {
        assert!(names.contains(&name), "{names:?}");
    }
    for step in steps {
        println!("{step}");
    }
    let sum: f64 = steps.iter().map(|step| step["seconds"].as_f64().unwrap()).sum();
    assert!(sum <= results["seconds"].as_f64().unwrap(), "{sum} of {}", results["seconds"]);
    assert!(!results.to_string().contains("/mica-bench-"), "a path of the run: {results}");
    for name in ["store", "dir", "program"] {
        assert!(results["settings"].get(name).is_none(), "{name}");
    }
}

fn report(out: &Path, results: &Value) {
    let html = fs::read_to_string(out.join("report.html")).unwrap();
    // What a browser would load; the name of SVG's own namespace is no address.
    let loads = html.replace("http://www.w3.org/2000/svg", "");
    for address in ["http://", "https://", "src=", "href=", "@import", "url("] {
        assert!(!loads.contains(address), "the page loads something: {address}");
    }
    assert_eq!(html.matches("<svg").count(), 4);
    for name in ["savings", "memory", "latency", "growth"] {
        let svg = fs::read_to_string(out.join(format!("{name}.svg"))).unwrap();
        assert!(html.contains(svg.trim_start()), "{name} is in the page as it is");
        let png = fs::read(out.join(format!("{name}.png"))).unwrap();
        assert!(png.starts_with(b"\x89PNG") && png.len() > 5000, "{name}");
    }
    let summary = fs::read_to_string(out.join("summary.md")).unwrap();
    for row in array(results, "speed") {
        assert!(summary.contains(row["what"].as_str().unwrap()), "{row}");
    }
    // What this host or template lacks is told, with what to do about it.
    let skipped = array(results, "skipped");
    let nginx = skipped.iter().find(|one| one["what"].as_str().unwrap().contains("nginx"));
    assert!(nginx.unwrap()["why"].as_str().unwrap().contains("import one that has"));
    assert!(summary.contains("no template has nginx"), "{summary}");
}

fn comparison(store: &crate::support::Store, out: &Path, other: &Path, mut results: Value) {
    let compare = |old: &Path, new: &Path| {
        let mut command = store.mica(["bench", "compare"]);
        command.arg(old).arg(new);
        command
    };
    let said = compare(out, out).succeed();
    assert!(said.contains("not different"), "{said}");
    // The same run, but for one row that takes ten times as long; its rounds all alike, which those
    // of a busy machine are not.
    let what = results["speed"][0]["what"].as_str().unwrap().to_owned();
    let even = other.with_extension("even");
    for (place, seconds) in [(even.as_path(), 1.0), (other, 10.0)] {
        fs::create_dir(place).unwrap();
        for of in results["speed"][0]["contenders"].as_array_mut().unwrap() {
            of["samples"].as_array_mut().unwrap().fill(seconds.into());
        }
        fs::write(place.join("results.json"), results.to_string()).unwrap();
    }
    let worse = compare(&even, other).capture();
    let said = String::from_utf8(worse.stdout).unwrap();
    assert_eq!(worse.status.code(), Some(1), "{said}");
    assert!(said.contains(&what) && said.contains("worse"), "{said}");
    let better = compare(other, &even).succeed();
    assert!(better.contains("better"), "{better}");
    // What is no report, and what a later version wrote, is refused.
    results["schema"] = 2.into();
    fs::write(other.join("results.json"), results.to_string()).unwrap();
    assert!(compare(out, other).refuse().contains("schema 2"));
    fs::write(other.join("results.json"), "{}").unwrap();
    assert!(compare(out, other).refuse().contains("does not hold the results"));
}
