//! Any operations on the flow table, which has to answer as a map does.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| dataplane::flow::model::check(bytes));
