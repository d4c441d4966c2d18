//! Any packets, times, backends and settings: connection tracking, which has to be what its reference is.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    dataplane::pipeline::reference::check(bytes);
});
