//! The control half of Weir: sources -> desired state -> compile -> publish.
//!
//! ```text
//! config (a file) -> model::DesiredState -> compile -> dataplane's Services and the XDP program's sets --+
//! netlink (the kernel's links, routes, neighbours) -> dataplane's Net -----------------------------------+-> reconcile
//! admin (what `weir show` and `weir reload` ask) <-> daemon (the control thread: all of it at run time) -+
//! nic (what interfaces and the machine can do) -> config's check of the host, `weir doctor`
//! http (health, metrics), in a thread of its own <- metrics (everybody's counters), what control notes
//! ```

pub mod admin;
pub mod compile;
pub mod config;
pub mod daemon;
pub mod http;
pub mod ipvs;
pub mod metrics;
pub mod model;
pub mod netlink;
pub mod nic;
pub mod reconcile;
pub mod source;
