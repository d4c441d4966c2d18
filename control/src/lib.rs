//! The control half of Weir: sources -> desired state -> compile -> publish.
//!
//! ```text
//! config (a file) -> model::DesiredState -> compile -> dataplane's Services and the XDP program's sets -> publish
//! ```

pub mod admin;
pub mod compile;
pub mod config;
pub mod daemon;
pub mod model;
pub mod netlink;
pub mod reconcile;
