//! `cargo +nightly fuzz run operations`
#![no_main]

#[path = "../cases/operations.rs"]
mod operations;
#[path = "../cases/unmounted.rs"]
mod unmounted;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| operations::run(bytes));
