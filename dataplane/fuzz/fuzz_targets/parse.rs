//! Any bytes as a frame: parsed, answered, translated.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| dataplane_fuzz::frames::check(bytes));
