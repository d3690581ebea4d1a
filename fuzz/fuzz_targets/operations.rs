//! `cargo +nightly fuzz run operations`
#![no_main]

#[path = "../cases/operations.rs"]
mod operations;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| operations::run(bytes));
