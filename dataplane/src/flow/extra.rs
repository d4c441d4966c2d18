//! What only some flows need besides their entry.

use super::pool;
use super::table::Slot;
use crate::snapshot::Tunnel;

/// Of a flow of a persistent service, through a tunnel, or whose segments are renumbered. At most a cache line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extra {
    /// The template that the flow holds; [`pool::NONE`] without persistence.
    pub template: Slot,
    /// How its packets are encapsulated.
    pub tunnel: Tunnel,
}

impl Default for Extra {
    fn default() -> Self {
        Self { template: pool::NONE, tunnel: Tunnel::default() }
    }
}

const _: () = assert!(size_of::<Extra>() <= 64);
