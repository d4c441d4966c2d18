//! The kernel's view of the network, mirrored by rtnetlink and compiled into [`dataplane::snapshot::Net`].
//!
//! ```text
//! kernel --messages--> event (read once) -> mirror (follow, or doubt) -> compile (pure) -> Net
//! workers --wanted--> resolve (who to ask, when) -> monitor (ask) -> kernel
//! ```
//!
//! Besides: [`kernel_path`] makes the veth pair by which frames that are not Weir's go to the kernel, and
//! [`announce`] tells the neighbours who has the VIPs. Only the kernel's default rules are followed: the local
//! table, then the main table; `ip rule` entries beyond these do not count.

pub mod announce;
pub mod compile;
pub mod event;
pub mod kernel_path;
pub mod mirror;
pub mod monitor;
pub mod resolve;
pub mod standing;

/// Why the kernel's network could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// The netlink socket could not be opened.
    #[error("cannot open a netlink socket: {0}")]
    Open(#[source] std::io::Error),
    /// A dump failed.
    #[error("cannot read {what} from the kernel by netlink: {source}")]
    Dump {
        /// What was read.
        what: &'static str,
        /// Why it failed.
        source: rtnetlink::Error,
    },
    /// The socket was closed.
    #[error("the netlink socket to the kernel was closed")]
    Closed,
}
