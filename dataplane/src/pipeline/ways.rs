//! The next hops that new flows were given lately: most of them go where others just went, and need not search routes and
//! neighbours for it.
//!
//! One table for each way, so that any number of clients do not crowd out the backends. A backend has a line of its own,
//! clients share a few by their addresses.

use zerocopy::FromZeros;

use crate::flow::entry::NO_HOP;
use crate::ids::{BackendId, HopId};
use crate::prefetch::prefetch_at;
use crate::stats::zeros;

/// Clients in their table: 16 KiB, of which few clients use little.
const LINES: usize = 512;

/// A client and the hop towards it.
#[derive(Clone, Copy, Debug)]
struct Line {
    addr: u128,
    hop: HopId,
    v6: bool,
}

impl Line {
    const EMPTY: Self = Self { addr: 0, hop: NO_HOP, v6: false };
}

/// The hop towards a backend, which is known by its id, as long as it has this address: ids are used again.
#[derive(Debug, Default, FromZeros)]
struct Seat {
    addr: u128,
    /// When the hop was found.
    epoch: u32,
    hop: u32,
    /// IP version of the address; 0 where nothing is known.
    version: u8,
}

/// What is known of the ways of one epoch of the network ([`Net::epoch`](crate::snapshot::Net::epoch)): as flows do, it
/// remembers the ids of hops, and no hop.
#[derive(Debug)]
pub(super) struct Ways {
    epoch: u32,
    clients: Box<[Line; LINES]>,
    /// By id.
    backends: Box<[Seat]>,
}

impl Ways {
    /// For so many backends. Those that are not used take no memory.
    pub(super) fn new(backends: usize) -> Self {
        Self { epoch: 0, clients: Box::new([Line::EMPTY; LINES]), backends: zeros(backends) }
    }

    /// Forgets everything that is not from this epoch.
    #[inline]
    pub(super) fn begin(&mut self, epoch: u32) {
        if self.epoch != epoch {
            self.forget();
            self.epoch = epoch;
        }
    }

    /// What is known of backends tells its epoch itself.
    #[cold]
    fn forget(&mut self) {
        self.clients.fill(Line::EMPTY);
    }

    /// The hop towards a client, if it is known and there is one only.
    #[inline]
    pub(super) fn to_client(&self, addr: u128, v6: bool) -> Option<HopId> {
        let line = self.clients.get(place(addr))?;
        (line.addr == addr && line.v6 == v6 && line.hop != NO_HOP).then_some(line.hop)
    }

    /// Notes it.
    pub(super) fn learn_client(&mut self, addr: u128, v6: bool, hop: HopId) {
        if let Some(line) = self.clients.get_mut(place(addr)) {
            *line = Line { addr, hop, v6 };
        }
    }

    /// The hop towards a backend with this address, if it is known and there is one only.
    #[inline]
    pub(super) fn to_backend(&self, id: BackendId, addr: u128, v6: bool) -> Option<HopId> {
        let seat = self.backends.get(id.index())?;
        let is_known = seat.version == version(v6) && seat.epoch == self.epoch && seat.addr == addr;
        is_known.then_some(HopId(seat.hop))
    }

    /// Notes it.
    pub(super) fn learn_backend(&mut self, id: BackendId, addr: u128, v6: bool, hop: HopId) {
        if let Some(seat) = self.backends.get_mut(id.index()) {
            *seat = Seat { addr, epoch: self.epoch, hop: hop.0, version: version(v6) };
        }
    }

    /// Brings what is known of a backend into the cache.
    #[inline]
    pub(super) fn prefetch_backend(&self, id: BackendId) {
        prefetch_at(&self.backends, id.index());
    }
}

#[inline]
fn version(v6: bool) -> u8 {
    if v6 { 6 } else { 4 }
}

/// Where a client has its line. Whoever aims at one line gets what everybody had without: a search.
#[inline]
#[expect(
    clippy::cast_possible_truncation,
    reason = "the halves are taken one by one, and the top bits are few"
)]
fn place(addr: u128) -> usize {
    let folded = addr as u64 ^ (addr >> 64) as u64;
    // 2^64 over the golden ratio.
    (folded.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (u64::BITS - LINES.trailing_zeros())) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hop_is_known_by_way_and_family_until_the_epoch_ends() {
        let mut ways = Ways::new(2);
        ways.begin(1);
        ways.learn_backend(BackendId(1), 7, false, HopId(3));
        ways.learn_backend(BackendId(2), 7, false, HopId(3));
        ways.learn_client(8, true, HopId(4));
        ways.begin(1);
        for (name, id, addr, v6, want) in [
            ("as learned", 1, 7, false, Some(HopId(3))),
            ("another backend", 0, 7, false, None),
            ("the id has a new owner", 1, 8, false, None),
            ("the other family", 1, 7, true, None),
            ("past the limit", 2, 7, false, None),
        ] {
            assert_eq!(ways.to_backend(BackendId(id), addr, v6), want, "{name}");
        }
        for (name, addr, v6, want) in [
            ("as learned", 8, true, Some(HopId(4))),
            ("the other family", 8, false, None),
            ("a backend", 7, false, None),
            ("another address", 9, true, None),
        ] {
            assert_eq!(ways.to_client(addr, v6), want, "{name}");
        }
        ways.begin(2);
        assert_eq!([ways.to_backend(BackendId(1), 7, false), ways.to_client(8, true)], [None; 2]);
    }

    #[test]
    fn nothing_is_known_at_first() {
        let ways = Ways::new(1);
        assert!((0..4096).all(|addr| ways.to_client(addr, false).is_none()));
        assert_eq!(ways.to_backend(BackendId(0), 0, false), None);
    }
}
