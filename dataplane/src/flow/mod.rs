//! Flows: their key, their table, their states and what they hold.

pub mod directory;
pub mod key;
pub mod snat;
pub mod tcp;
