//! `cargo +nightly fuzz run oci_import`
#![no_main]

#[path = "../cases/oci_import.rs"]
mod oci_import;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| oci_import::run(bytes));
