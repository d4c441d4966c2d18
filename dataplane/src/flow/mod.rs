//! Flows: their key, their table, their states and what they hold.

mod bucket;
pub mod call;
pub mod cookie;
pub mod directory;
pub mod entry;
pub mod extra;
pub mod fragments;
pub mod half_open;
pub mod key;
#[cfg(any(test, fuzzing))]
#[allow(clippy::indexing_slicing, reason = "a check may panic")]
pub mod model;
pub mod pool;
pub mod sctp;
pub mod sequence;
pub mod shift;
pub mod snat;
pub mod state;
pub mod suited;
pub mod table;
pub mod tcp;
pub mod templates;
pub mod toeplitz;
