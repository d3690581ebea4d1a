//! `cargo +nightly fuzz run tar_import`
#![no_main]

#[path = "../cases/tar_import.rs"]
mod tar_import;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tar_import::run(bytes));
