//! ICMP errors about anything that was sent, quoted as short and as wrong as you like.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| dataplane::pipeline::model::errors::check(bytes));
