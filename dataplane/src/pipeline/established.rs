//! A packet of a known flow: its state moves on, its timeout starts anew, it is translated and sent.

use super::deliver::count;
use super::{Core, Setup};
use crate::flow::entry::{Entry, Way};
use crate::flow::half_open::HalfOpen;
use crate::flow::key;
use crate::flow::table::{Hit, Slot};
use crate::flow::{tcp, templates};
use crate::frame::Frame;
use crate::packet::Packet;
use crate::rewrite::nat;
use crate::snapshot::Snapshot;
use crate::snapshot::net::Hop;
use crate::time::Tick;
use crate::trace::{Step, Trace};
use crate::verdict::{DropReason, Verdict};
use crate::wire::tcp::{ACK, RST, SYN};

impl Core {
    /// Translates a packet of the flow `hit` and sends it on its way. `None` if it is not of that flow.
    ///
    /// The first half is what every packet of an established flow passes; whatever stands in its way (a flow whose
    /// time is up, a connection that opens anew, a hop that is not known, a packet that may not go on) is left to
    /// functions that are not inlined. Itself it is, or its many arguments would go through the stack.
    #[inline(always)]
    #[expect(clippy::too_many_arguments, reason = "the packet path passes its context by hand, not in a bag")]
    pub(super) fn forward(
        &mut self,
        frame: &mut Frame<'_>,
        packet: &Packet,
        hash: u64,
        hit: Hit,
        now: Tick,
        tables: &Snapshot,
        trace: &mut impl Trace,
    ) -> Option<Verdict> {
        let way = hit.way();
        let mut entry = self.flows.confirm(hit, &packet.key)?;
        if entry.expires.is_due(now) || way == Way::Forward && reopens(entry.state, packet.tcp_flags) {
            return Some(or_drop(self.open_anew(frame, packet, hash, hit.slot(), now, tables, trace)));
        }
        if entry.proto() == key::TCP {
            let next = entry.state.next(entry.direction(way), packet.tcp_flags);
            if next != entry.state {
                enter(entry, hit.slot(), next, &self.setup, &mut self.half_open);
                if next == tcp::State::Established && entry.has_extra() {
                    self.assure_template(hit.slot());
                    entry = self.flows.confirm(hit, &packet.key)?;
                }
            }
        } else if way == Way::Reply && entry.set_answered() && entry.has_extra() {
            self.assure_template(hit.slot());
            entry = self.flows.confirm(hit, &packet.key)?;
        }
        if way == Way::Forward {
            entry.count_packet();
        }
        let expires = expiry(entry, now, tables);
        if entry.expires != expires {
            // The packets of a busy flow mostly find it as it has to be, and leave the cache line clean.
            entry.expires = expires;
        }
        trace.step(Step::FlowKnown {
            reply: way == Way::Reply,
            service: entry.service,
            backend: entry.backend,
        });
        let known = if entry.epoch == tables.net.epoch { tables.net.hop(entry.hop(way)) } else { None };
        let Some(hop) = known.filter(|hop| may_pass(packet, hop)) else {
            return Some(or_drop(self.send(frame, packet, hit.slot(), way, tables, trace)));
        };
        let deltas = entry.deltas(way);
        if entry.is_plain()
            && !tables.net.leaves_checksums(frame.port)
            && nat::translate_plain(frame.bytes_mut(), packet, entry.target_v4(way), deltas, hop)
        {
            count(entry, way, packet, &self.setup);
            return Some(Verdict::Tx(hop.port));
        }
        Some(or_drop(self.deliver(frame, packet, hit.slot(), way, hop, tables, trace)))
    }

    /// A packet whose flow is over: its time is up, or a SYN starts the next connection on the same tuple.
    #[cold]
    #[inline(never)]
    #[expect(clippy::too_many_arguments, reason = "the packet path passes its context by hand, not in a bag")]
    fn open_anew(
        &mut self,
        frame: &mut Frame<'_>,
        packet: &Packet,
        hash: u64,
        slot: Slot,
        now: Tick,
        tables: &Snapshot,
        trace: &mut impl Trace,
    ) -> Result<Verdict, DropReason> {
        if self.flows.entry(slot).is_some_and(|entry| entry.expires.is_due(now)) {
            self.expire(slot);
        } else if self.template(slot) == templates::NONE {
            self.close(slot);
        } else {
            return self
                .begin_again(packet, slot, now, tables)
                .and_then(|()| self.send(frame, packet, slot, Way::Forward, tables, trace));
        }
        self.admit(frame, packet, hash, now, tables, trace)
    }

    /// A connection starts on the tuple of one that has ended, and persistence leaves it on its backend.
    fn begin_again(
        &mut self,
        packet: &Packet,
        slot: Slot,
        now: Tick,
        tables: &Snapshot,
    ) -> Result<(), DropReason> {
        let entry = self.flows.entry_mut(slot).ok_or(DropReason::NoFlow)?;
        let next = entry.state.next(entry.direction(Way::Forward), packet.tcp_flags);
        enter(entry, slot, next, &self.setup, &mut self.half_open);
        entry.expires = expiry(entry, now, tables);
        Ok(())
    }
}

/// Whether a packet has a hop left and fits the next link.
#[inline]
pub(super) fn may_pass(packet: &Packet, hop: &Hop) -> bool {
    packet.ttl > 1 && packet.end - packet.l3 <= hop.mtu
}

/// The verdict, or what the reason comes to why there is none.
#[inline]
pub(super) fn or_drop(outcome: Result<Verdict, DropReason>) -> Verdict {
    match outcome {
        Ok(verdict) => verdict,
        // The hop is looked up before anything is written.
        Err(DropReason::NoNeighbour) => Verdict::Unresolved,
        Err(reason) => Verdict::Drop(reason),
    }
}

/// Whether a segment starts a new connection on the tuple of one that has ended: it is scheduled anew at once.
#[inline]
fn reopens(state: tcp::State, flags: u8) -> bool {
    flags & (SYN | ACK | RST) == SYN && matches!(state, tcp::State::TimeWait | tcp::State::Close)
}

/// Moves a flow to a TCP state and its backend's counts with it.
#[inline(never)]
pub(super) fn enter(
    entry: &mut Entry,
    slot: Slot,
    next: tcp::State,
    setup: &Setup,
    half_open: &mut HalfOpen,
) {
    let was_half_open = entry.is_half_open();
    entry.state = next;
    if next == tcp::State::Established {
        entry.resume_plain_path();
    }
    if entry.is_half_open() != was_half_open {
        if was_half_open {
            half_open.ended();
        } else {
            half_open.began(slot, entry);
        }
        setup.stats.half_open.set(half_open.count() as u64);
    }
    if next.is_active() != entry.is_active() {
        entry.set_active(next.is_active());
        if let Some(backend) = setup.state.backend(entry.backend) {
            backend.moved(next.is_active());
        }
    }
}

/// When the flow is forgotten if this packet is its last.
#[inline]
pub(super) fn expiry(entry: &Entry, now: Tick, tables: &Snapshot) -> Tick {
    now.after_seconds(if entry.proto() == key::TCP {
        tables.timeouts.tcp_s.get(entry.state as usize).copied().unwrap_or_default()
    } else {
        tables.timeouts.udp_s
    })
}
