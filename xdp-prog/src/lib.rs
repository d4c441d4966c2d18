//! The kernel half of Weir: an XDP program that answers "is this ours?", its loader and the layout of its maps.
//!
//! ```text
//! changes -----> claims (what the maps should hold) -------> kernel maps
//!                                                             |
//! NIC --> weir_xdp.bpf.c: ours? --yes--> worker alive? --yes--> XSKMAP[port, queue] --> AF_XDP socket
//!                           |                   |                    | no socket
//!                           no                  no                   |
//!                           +-------------------+--------------------+--> the kernel
//! ```
//!
//! [`Xdp`] owns the loaded program, its maps and its attachments; when it is dropped, or the process dies, the
//! kernel takes the program off every interface. Rules, limits and counters are described in `docs/xdp-program.md`.

mod abi;
mod attach;
mod claims;
mod counters;
mod error;
mod fronts;
mod link;
mod loader;
mod ours;
mod privilege;
mod rules;
mod shared;
mod tables;

pub use abi::{Counter, MAX_PORTS, MAX_QUEUES};
pub use attach::Mode;
pub use counters::Counters;
pub use error::{AttachError, LoadError, SocketError, SyncError};
pub use loader::{DEFAULT_BEAT_LIMIT, Limits, Xdp};
pub use ours::{Claim, Delta, Endpoint, Ours, Proto, Rule};
pub use shared::Beat;
pub use tables::SyncReport;
