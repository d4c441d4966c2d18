//! The MTUs of paths to tunnels' other ends, as ICMP errors about the outer packets tell them.

use super::Core;
use crate::frame::Frame;
use crate::packet::Packet;
use crate::time::Tick;
use crate::wire::icmp::{Icmp, v4, v6};
use crate::wire::view;

/// Paths remembered at most.
const PATHS: usize = 256;
/// Seconds that an MTU is believed in (the kernel's `mtu_expires`; RFC 1191, section 6.3).
const LIFETIME_S: u32 = 600;
/// What is never believed: less than every host can reassemble (RFC 791), less than a link must carry (RFC 8200).
const LEAST_MTU: [u16; 2] = [576, 1280];

/// A path that is narrower than its first link.
#[derive(Clone, Copy, Debug, Default)]
struct Learned {
    dst: u128,
    mtu: u16,
    until: Tick,
}

/// The MTUs of paths to tunnels' other ends: one place an address, where the latest news replaces older ones.
#[derive(Debug)]
pub(super) struct PathMtus {
    list: Box<[Learned]>,
    /// Until when any of them may count.
    until: Option<Tick>,
}

impl PathMtus {
    pub(super) fn new() -> Self {
        Self { list: vec![Learned::default(); PATHS].into_boxed_slice(), until: None }
    }

    /// The MTU learned for the path to `dst`; `None` mostly, without a look at the table.
    #[inline]
    pub(super) fn get(&self, dst: u128, now: Tick) -> Option<u16> {
        self.until.filter(|until| !until.is_due(now))?;
        let learned = self.list.get(place(dst))?;
        (learned.dst == dst && learned.mtu != 0 && !learned.until.is_due(now)).then_some(learned.mtu)
    }

    fn learn(&mut self, dst: u128, mtu: u16, now: Tick) {
        let until = now.after_seconds(LIFETIME_S);
        if let Some(learned) = self.list.get_mut(place(dst)) {
            *learned = Learned { dst, mtu, until };
            self.until = Some(until);
        }
    }
}

/// Where an address lies in the table. Only addresses of backends come there, so nobody can aim.
fn place(dst: u128) -> usize {
    let folded = dst ^ dst >> 64;
    let folded = folded ^ folded >> 32;
    usize::try_from((folded ^ folded >> 16 ^ folded >> 8) % PATHS as u128).unwrap_or_default()
}

/// The MTU that an ICMP error reports, if it does.
fn reported(frame: &[u8], packet: &Packet) -> Option<u16> {
    let icmp: &Icmp = view(frame, packet.l4.into()).ok()?;
    let rest = icmp.rest.get();
    match (packet.key.v6, icmp.kind, icmp.code) {
        (true, v6::PACKET_TOO_BIG, _) => Some(u16::try_from(rest).unwrap_or(u16::MAX)),
        (false, v4::UNREACHABLE, v4::FRAGMENTATION_NEEDED) => u16::try_from(rest & 0xffff).ok(),
        _ => None,
    }
}

impl Core {
    /// Learns what the ICMP error in `frame`, which is about the tunnel of one of this worker's flows, tells about the
    /// path to the tunnel's end.
    pub(super) fn learn_mtu(&mut self, frame: &Frame<'_>, packet: &Packet, (dst, is_v6): (u128, bool)) {
        let [least_v4, least_v6] = LEAST_MTU;
        let least = if is_v6 { least_v6 } else { least_v4 };
        if let Some(mtu) = reported(frame.bytes(), packet).filter(|mtu| *mtu >= least) {
            self.path_mtus.learn(dst, mtu, self.sweep.now());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_mtu_is_known_for_its_path_and_for_ten_minutes() {
        let now = Tick(u32::MAX - 7);
        let mut paths = PathMtus::new();
        assert_eq!(paths.get(1, now), None);
        paths.learn(1, 1400, now);
        assert_eq!((paths.get(1, now), paths.get(2, now)), (Some(1400), None));
        paths.learn(1, 1300, now);
        assert_eq!(paths.get(1, now.after_seconds(LIFETIME_S - 1)), Some(1300));
        assert_eq!(paths.get(1, now.after_seconds(LIFETIME_S)), None);
        for dst in 0..10_000 {
            paths.learn(dst, 1400, now);
            assert_eq!(paths.get(dst, now), Some(1400));
        }
    }
}
