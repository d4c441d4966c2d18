//! Packets in pieces, in any order, through the engines of two workers.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| dataplane::pipeline::model::fragments::check(bytes));
