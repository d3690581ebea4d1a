//! The whole-mount benchmark still measures every row of docs/PERFORMANCE.md.
//!
//! Tiny sizes: that there are figures is looked at, never how large they are. Needs root and
//! /dev/fuse.

// The sizes of real runs are not used here.
#[allow(dead_code)]
#[path = "../benches/mount/suite/mod.rs"]
mod suite;

use std::fs;
use std::path::PathBuf;

use serde_json::Value;
use suite::{Settings, Sizes};

#[test]
fn every_row_has_figures_of_every_contender() {
    let scratch = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let json = tempfile::NamedTempFile::new().unwrap();
    let settings =
        Settings { sizes: Sizes::TINY, only: None, json: json.path().to_owned(), scratch, nice: 0 };
    suite::run(&settings);
    let report: Value = serde_json::from_slice(&fs::read(json.path()).unwrap()).unwrap();
    assert!(report["machine"]["kernel"].is_string());
    let rows = report["rows"].as_array().unwrap();
    let with_target = rows.iter().filter(|row| row["target"] != "");
    assert!(with_target.count() >= 19, "a row of the table is missing");
    for row in rows {
        let contenders = row["contenders"].as_object().unwrap();
        assert!(!contenders.is_empty(), "{row}");
        for of in contenders.values() {
            assert!(of["median"].as_f64().is_some_and(|median| median > 0.0), "{row}");
        }
        assert!(row["target"] == "" || row["verdict"] != "", "{row}");
    }
}
