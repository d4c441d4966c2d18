//! What only some flows need besides their entry.

use super::entry::Way;
use super::pool;
use super::sequence::Sequence;
use super::shift::Shift;
use super::table::Slot;
use crate::snapshot::Tunnel;

/// Of a flow of a persistent service, through a tunnel, or whose segments are renumbered. At most a cache line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extra {
    /// The template that the flow holds; [`pool::NONE`] without persistence.
    pub template: Slot,
    /// How its packets are encapsulated.
    pub tunnel: Tunnel,
    /// Source address of the outer header, in the backend's family. As the next hop, it is looked up anew when routes
    /// change.
    pub source: u128,
    /// Largest IP packet of the routes towards the backend and the client, by [`Way`]; 0: as large as the link's.
    pub mtu: [u16; 2],
    /// How its segments are renumbered, and what its backend is told of the client.
    pub sequence: Sequence,
    /// By how much the backend's data were made longer.
    pub shift: Shift,
}

impl Extra {
    /// The largest IP packet on `way` that is to leave by a link with the MTU `link`.
    #[inline]
    pub fn mtu(&self, way: Way, link: u16) -> u16 {
        let [forward, reply] = self.mtu;
        match if way == Way::Forward { forward } else { reply } {
            0 => link,
            route => route.min(link),
        }
    }
}

impl Default for Extra {
    fn default() -> Self {
        Self {
            template: pool::NONE,
            tunnel: Tunnel::default(),
            source: 0,
            mtu: [0; 2],
            sequence: Sequence::default(),
            shift: Shift::default(),
        }
    }
}

const _: () = assert!(size_of::<Extra>() <= 64);
