//! Any frames, times and tables through the engines of two workers.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| dataplane::pipeline::model::check(bytes));
