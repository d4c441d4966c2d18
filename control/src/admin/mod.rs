//! The admin socket: what `weir show` and `weir reload` talk to.
//!
//! A Unix socket, readable by its owner alone; one JSON object a line, each way. [`protocol`] has the types,
//! [`client`] asks, [`server`] listens and passes requests on, [`show`] fills replies
//! in, [`render`] makes tables of them.

pub mod client;
pub mod protocol;
pub mod render;
pub mod server;
pub mod show;
