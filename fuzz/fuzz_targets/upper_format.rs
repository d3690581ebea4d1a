//! `cargo +nightly fuzz run upper_format`
#![no_main]

#[path = "../cases/unmounted.rs"]
mod unmounted;
#[path = "../cases/upper_format.rs"]
mod upper_format;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| upper_format::run(bytes));
