//! `cargo +nightly fuzz run manifest_reader`
#![no_main]

#[path = "../cases/manifest_reader.rs"]
mod manifest_reader;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| manifest_reader::run(bytes));
