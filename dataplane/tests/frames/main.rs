//! Frames through the parser, the answers and the translation of ICMP errors: tables, truncations, properties and the
//! kernel's own packets.

#![allow(
    clippy::cast_possible_truncation,
    clippy::disallowed_macros,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    unreachable_pub,
    reason = "a test fails by panicking, and says why"
)]

mod answers;
mod golden;
mod icmp_errors;
#[path = "../../fuzz/src/frames.rs"]
mod model;
mod parse;
mod properties;
mod samples;
