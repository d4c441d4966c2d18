//! Flows: their key, their table, their states and what they hold.

pub mod key;
