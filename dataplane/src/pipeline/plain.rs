//! The shortest path: a segment in the middle of an established TCP flow over untagged IPv4 that is translated, or passed
//! on as it is (`dr`). All that such a packet needs lies in its entry, its hop and its backend's counters; whatever is out
//! of the ordinary about it (a flow whose time is up, a state that may change, a hop that is not known) is left to the
//! path for every packet.

use zerocopy::big_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::Core;
use super::established::{self, CONTROLS};
use crate::flow::entry::{Entry, Way};
use crate::flow::state::State;
use crate::flow::table::{Hit, Slot};
use crate::frame::Frame;
use crate::ids::PortId;
use crate::packet::Packet;
use crate::rewrite::nat::{self, Deltas};
use crate::snapshot::Snapshot;
use crate::snapshot::net::{Hop, LinkHeader};
use crate::time::Tick;
use crate::trace::{Step, Trace};
use crate::wire::checksum::{self, Delta};

/// What is the same for all packets of a batch.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Turn {
    /// See [`established::routine`].
    pub(super) routine: u8,
    /// When an established TCP flow ends that has a packet now.
    expires: Tick,
    /// Whether senders on any port may leave checksums unfinished.
    pub(super) has_unfinished: bool,
}

impl Turn {
    pub(super) fn new(now: Tick, tables: &Snapshot) -> Self {
        Self {
            routine: established::routine(&tables.settings),
            expires: now.after_seconds(tables.timeouts.of(State::Established)),
            has_unfinished: tables.net.ports.iter().any(|port| port.partial_checksums),
        }
    }

    /// Whether the checksum of a TCP segment or UDP datagram is whole, as most are also where senders may leave it to the
    /// interface.
    #[inline]
    pub(super) fn is_finished(&self, frame: &Frame<'_>, packet: &Packet, tables: &Snapshot) -> bool {
        let may_be_left = self.has_unfinished && tables.net.leaves_checksums(frame.port);
        !(may_be_left && nat::is_unfinished(frame, packet))
    }
}

/// The headers of a TCP segment over untagged IPv4 without options, in the pieces that matter.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Headers {
    macs: [u8; 12],
    before_len: [u8; 4],
    len: U16,
    before_ttl: [u8; 4],
    ttl: u8,
    protocol: u8,
    header_checksum: U16,
    addresses: [u8; 8],
    ports: [u8; 4],
    before_flags: [u8; 9],
    flags: u8,
    window: U16,
    checksum: U16,
}

impl Headers {
    #[inline]
    fn words(&self) -> (u64, u32) {
        (u64::from_ne_bytes(self.addresses), u32::from_ne_bytes(self.ports))
    }

    /// Whether the checksum looks as if its sender had left it to the interface.
    #[inline]
    fn is_unfinished(&self) -> bool {
        const HEADER_LEN: u16 = 20;
        let len = self.len.get().wrapping_sub(HEADER_LEN);
        checksum::is_partial_v4(self.checksum, self.addresses, self.protocol, len)
    }

    /// Other MAC addresses and one hop less. `header` is what changes of the IP header, as its checksum sees it.
    #[inline]
    fn pass(&mut self, macs: &[u8; 12], header: Delta) {
        self.macs = *macs;
        self.ttl = self.ttl.wrapping_sub(1);
        self.header_checksum = header.update(self.header_checksum);
    }

    /// What a packet of the flow on this way gets, and the MAC addresses of its hop.
    #[inline]
    fn give(&mut self, macs: &[u8; 12], entry: &Entry, way: Way) {
        if entry.mode().has_replies() {
            self.translate(macs, entry.target_v4(way), entry.deltas(way));
        } else {
            self.pass(macs, Delta::TTL_LESS_ONE);
        }
    }

    #[inline]
    fn translate(&mut self, macs: &[u8; 12], (addresses, ports): (u64, u32), deltas: &Deltas) {
        self.pass(macs, deltas.header);
        self.addresses = addresses.to_ne_bytes();
        self.ports = ports.to_ne_bytes();
        self.checksum = deltas.transport.update(self.checksum);
    }
}

impl Core {
    /// Translates a packet that was parsed as plain TCP and is probably of the flow `hit`. Returns the port that it leaves
    /// by; `None`, with nothing changed, where it has to pass the path for every packet.
    #[inline(always)]
    pub(super) fn pass_plain(
        &mut self,
        frame: &mut Frame<'_>,
        hit: Hit,
        now: Tick,
        tables: &Snapshot,
        trace: &mut impl Trace,
    ) -> Option<PortId> {
        let (way, port) = (hit.way(), frame.port);
        let headers = frame.known_head_mut::<Headers>()?;
        let entry = self.flows.confirm_plain(hit, headers.words())?;
        if entry.state != State::Established
            || headers.flags & CONTROLS != self.turn.routine
            || entry.epoch != tables.net.epoch
            || self.turn.has_unfinished && tables.net.leaves_checksums(port) && headers.is_unfinished()
        {
            return None;
        }
        let hop = tables.net.hop(entry.hop(way))?;
        let LinkHeader::Untagged(macs) = &hop.header else { return None };
        let len = headers.len.get();
        if headers.ttl <= 1 || len > hop.mtu {
            return None;
        }
        if entry.expires != self.turn.expires {
            if entry.expires.is_due(now) {
                return None;
            }
            // The packets of a busy flow mostly find it as it has to be, and leave the cache line clean.
            entry.expires = self.turn.expires;
            self.setup.stats.stirred(entry.backend);
        }
        trace.step(Step::FlowKnown {
            reply: way == Way::Reply,
            service: entry.service,
            backend: entry.backend,
        });
        entry.count_packet(way);
        headers.give(macs, entry, way);
        self.setup.stats.passed_again(entry.backend, way, len);
        Some(hop.port)
    }

    /// Translates the packet that was parsed as plain TCP, has a hop left, and has just opened the flow in `slot`. `None`, with nothing
    /// changed, where it has to be sent as any packet is.
    #[inline]
    pub(super) fn send_first(&mut self, frame: &mut Frame<'_>, slot: Slot, hop: &Hop) -> Option<PortId> {
        let headers = frame.known_head_mut::<Headers>()?;
        let entry = self.flows.entry(slot).filter(|entry| entry.is_plain())?;
        let LinkHeader::Untagged(macs) = &hop.header else { return None };
        if headers.len.get() > hop.mtu {
            return None;
        }
        headers.give(macs, entry, Way::Forward);
        self.setup.stats.passed(entry.backend, Way::Forward, headers.len.get());
        Some(hop.port)
    }
}
