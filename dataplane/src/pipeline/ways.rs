//! The next hops that new flows were given lately, by destination: most of them go where others just went, and need not
//! search routes and neighbours for it.
//!
//! One table for each way, so that any number of clients do not crowd out the backends.

use crate::flow::entry::{NO_HOP, Way};
use crate::ids::HopId;

/// Destinations in a table: 16 KiB, of which few backends or clients use little.
const LINES: usize = 512;

/// A destination and the hop towards it.
#[derive(Clone, Copy, Debug)]
struct Line {
    addr: u128,
    hop: HopId,
    v6: bool,
}

impl Line {
    const EMPTY: Self = Self { addr: 0, hop: NO_HOP, v6: false };
}

/// What is known of the ways of one epoch of the network ([`Net::epoch`](crate::snapshot::Net::epoch)): as flows do, it
/// remembers the ids of hops, and no hop.
#[derive(Debug)]
pub(super) struct Ways {
    epoch: u32,
    /// By [`Way`].
    tables: [Box<[Line; LINES]>; 2],
}

impl Ways {
    pub(super) fn new() -> Self {
        Self { epoch: 0, tables: [(); 2].map(|()| Box::new([Line::EMPTY; LINES])) }
    }

    /// Forgets everything that is not from this epoch.
    #[inline]
    pub(super) fn begin(&mut self, epoch: u32) {
        if self.epoch != epoch {
            self.forget();
            self.epoch = epoch;
        }
    }

    #[cold]
    fn forget(&mut self) {
        self.tables.iter_mut().for_each(|table| table.fill(Line::EMPTY));
    }

    /// The hop towards `addr` for packets on `way`, if it is known and there is one only.
    #[inline]
    pub(super) fn get(&self, way: Way, addr: u128, v6: bool) -> Option<HopId> {
        let line = way.of(&self.tables).get(place(addr))?;
        (line.addr == addr && line.v6 == v6 && line.hop != NO_HOP).then_some(line.hop)
    }

    /// Notes it.
    pub(super) fn learn(&mut self, way: Way, addr: u128, v6: bool, hop: HopId) {
        let [forward, reply] = &mut self.tables;
        let table = if way == Way::Forward { forward } else { reply };
        if let Some(line) = table.get_mut(place(addr)) {
            *line = Line { addr, hop, v6 };
        }
    }
}

/// Where a destination has its line. Whoever aims at one line gets what everybody had without: a search.
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
        let mut ways = Ways::new();
        ways.begin(1);
        ways.learn(Way::Forward, 7, false, HopId(3));
        ways.learn(Way::Reply, 8, true, HopId(4));
        ways.begin(1);
        for (name, way, addr, v6, want) in [
            ("as learned", Way::Forward, 7, false, Some(HopId(3))),
            ("the other way", Way::Reply, 7, false, None),
            ("the other family", Way::Forward, 7, true, None),
            ("IPv6", Way::Reply, 8, true, Some(HopId(4))),
            ("another address", Way::Reply, 9, true, None),
        ] {
            assert_eq!(ways.get(way, addr, v6), want, "{name}");
        }
        ways.begin(2);
        assert_eq!([ways.get(Way::Forward, 7, false), ways.get(Way::Reply, 8, true)], [None; 2]);
    }

    #[test]
    fn no_address_is_known_at_first() {
        let ways = Ways::new();
        assert!((0..4096).all(|addr| ways.get(Way::Forward, addr, false).is_none()));
    }
}
