//! A packet of a known flow: its state moves on, its timeout starts anew, it is translated and sent.

use super::Core;
use crate::flow::entry::{Entry, NO_HOP, Way};
use crate::flow::key;
use crate::flow::table::{Hit, Slot};
use crate::flow::tcp;
use crate::frame::Frame;
use crate::ids::HopId;
use crate::packet::Packet;
use crate::rewrite::{icmp, l2, nat};
use crate::snapshot::net::{Hop, NoHop};
use crate::snapshot::{Mode, Snapshot};
use crate::state::State;
use crate::time::Tick;
use crate::trace::{Answer, Step, Trace};
use crate::verdict::{DropReason, Verdict};
use crate::wire::tcp::{ACK, RST, SYN};

impl Core {
    /// Translates a packet of the flow `hit` and sends it on its way.
    #[inline]
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
    ) -> Result<Verdict, DropReason> {
        let way = hit.way();
        let entry = self.flows.entry_mut(hit.slot()).ok_or(DropReason::NoFlow)?;
        if entry.proto() == key::TCP {
            if way == Way::Forward && reopens(entry.state, packet.tcp_flags) {
                self.close(hit.slot());
                return self.admit(frame, packet, hash, now, tables, trace);
            }
            let next = entry.state.next(entry.direction(way), packet.tcp_flags);
            if next != entry.state {
                enter(entry, next, &self.setup.state);
            }
        }
        entry.expires = now.after_seconds(timeout_s(entry, tables));
        trace.step(Step::FlowKnown {
            reply: way == Way::Reply,
            service: entry.service,
            backend: entry.backend,
        });
        self.send(frame, packet, hit.slot(), way, tables, trace)
    }

    /// Sends a packet of the flow in `slot`, which counts for its backend.
    #[inline]
    pub(super) fn send(
        &mut self,
        frame: &mut Frame<'_>,
        packet: &Packet,
        slot: Slot,
        way: Way,
        tables: &Snapshot,
        trace: &mut impl Trace,
    ) -> Result<Verdict, DropReason> {
        let (id, hop) = self.hop(slot, way, packet, tables)?;
        let entry = self.flows.entry(slot).ok_or(DropReason::NoFlow)?;
        let bytes = packet.end - packet.l3;
        if packet.ttl <= 1 {
            return self.refuse(frame, packet, DropReason::TtlExceeded, Answer::TimeExceeded, tables, trace);
        }
        if bytes > hop.mtu {
            return self.too_big(frame, packet, hop.mtu, tables, trace);
        }
        trace.step(Step::NextHop(id));
        if let Some(counters) = self.setup.stats.backend(entry.backend) {
            let (packets, volume) = match way {
                Way::Forward => (&counters.packets_in, &counters.bytes_in),
                Way::Reply => (&counters.packets_out, &counters.bytes_out),
            };
            packets.add(1);
            volume.add(u64::from(bytes));
        }
        let partial = tables.net.port(frame.port).is_some_and(|port| port.partial_checksums);
        if entry.mode() == Mode::Dr {
            nat::pass(frame, packet, partial)?;
        } else {
            let deltas = nat::Deltas::of(entry, way);
            nat::translate(frame, packet, self.flows.target(entry, way), deltas, partial)?;
        }
        l2::readdress(frame, packet, hop)?;
        Ok(Verdict::Tx(hop.port))
    }

    /// The next hop of a flow's packets on `way`: remembered in the flow, looked up anew when routes have changed.
    #[inline]
    fn hop<'t>(
        &mut self,
        slot: Slot,
        way: Way,
        packet: &Packet,
        tables: &'t Snapshot,
    ) -> Result<(HopId, &'t Hop), DropReason> {
        let net = &tables.net;
        let entry = self.flows.entry_mut(slot).ok_or(DropReason::NoFlow)?;
        if entry.epoch != net.epoch {
            entry.epoch = net.epoch;
            (entry.hop_forward, entry.hop_reply) = (NO_HOP, NO_HOP);
        }
        let id = entry.hop(way);
        match net.hop(id) {
            Some(hop) => Ok((id, hop)),
            None => self.find_hop(slot, way, packet, tables),
        }
    }

    #[cold]
    fn find_hop<'t>(
        &mut self,
        slot: Slot,
        way: Way,
        packet: &Packet,
        tables: &'t Snapshot,
    ) -> Result<(HopId, &'t Hop), DropReason> {
        let entry = self.flows.entry(slot).ok_or(DropReason::NoFlow)?;
        let target = match (entry.mode(), way) {
            (Mode::Dr, Way::Forward) => self.flows.tuple(entry).reply.source(),
            _ => self.flows.tuple(entry).translated(way).destination(),
        };
        let spread = u32::try_from(packet.key.hash(self.setup.seed) >> 32).unwrap_or_default();
        let found = tables.net.hop_to(target, spread);
        let id = match found {
            Ok(id) => id,
            Err(NoHop::Unresolved(neighbour)) => {
                if self.setup.wanted.push(neighbour).is_err() {
                    self.setup.stats.wanted_lost.add(1);
                }
                return Err(DropReason::NoNeighbour);
            }
            Err(NoHop::NoRoute) => return Err(DropReason::NoRoute),
            Err(NoHop::NoPort | NoHop::Local) => return Err(DropReason::NoPort),
        };
        if let Some(entry) = self.flows.entry_mut(slot) {
            match way {
                Way::Forward => entry.hop_forward = id,
                Way::Reply => entry.hop_reply = id,
            }
        }
        Ok((id, tables.net.hop(id).ok_or(DropReason::NoNeighbour)?))
    }

    /// An ICMP error about a packet that Weir sent: translated, so that its receiver finds its own packet quoted.
    pub(super) fn icmp_error(
        &mut self,
        frame: &mut Frame<'_>,
        packet: &Packet,
        tables: &Snapshot,
        trace: &mut impl Trace,
    ) -> Result<Verdict, DropReason> {
        // Whoever receives the error sent, or would have sent, packets the other way round.
        let key = packet.key.reversed();
        let hash = self.flows.hash(&key);
        let Some(hit) = self.flows.lookup(hash, &key) else {
            if let Some(owner) = self.elsewhere(frame, hash) {
                trace.step(Step::FlowElsewhere(owner));
                return Ok(Verdict::Handoff(owner));
            }
            trace.step(Step::FlowUnknown);
            if tables.services.is_virtual(key.dst, key.v6) {
                return Err(DropReason::IcmpNoFlow);
            }
            return Ok(self.to_kernel(frame, packet, tables));
        };
        let way = hit.way();
        let (_, hop) = self.hop(hit.slot(), way, packet, tables)?;
        let entry = self.flows.entry(hit.slot()).ok_or(DropReason::NoFlow)?;
        trace.step(Step::FlowKnown {
            reply: way == Way::Reply,
            service: entry.service,
            backend: entry.backend,
        });
        let target = self.flows.tuple(entry).translated(way);
        match entry.mode() {
            Mode::Dr => nat::pass(frame, packet, false)?,
            // Towards the backend of a `nat` flow the sender is kept, as the kernel keeps it.
            Mode::Nat if way == Way::Forward => {
                icmp::translate(frame, packet, None, target.dst, &target.reversed(), 0)?;
            }
            _ => icmp::translate(frame, packet, Some(target.src), target.dst, &target.reversed(), 0)?,
        }
        trace.step(Step::IcmpTranslated);
        l2::readdress(frame, packet, hop)?;
        Ok(Verdict::Tx(hop.port))
    }
}

/// Whether a segment starts a new connection on the tuple of one that has ended: it is scheduled anew at once.
#[inline]
fn reopens(state: tcp::State, flags: u8) -> bool {
    flags & (SYN | ACK | RST) == SYN && matches!(state, tcp::State::TimeWait | tcp::State::Close)
}

/// Moves a flow to a TCP state and its backend's counts with it.
pub(super) fn enter(entry: &mut Entry, next: tcp::State, state: &State) {
    entry.state = next;
    if next.is_active() != entry.is_active() {
        entry.set_active(next.is_active());
        if let Some(backend) = state.backend(entry.backend) {
            backend.moved(next.is_active());
        }
    }
}

/// Idle time after which the flow is forgotten, in seconds.
#[inline]
pub(super) fn timeout_s(entry: &Entry, tables: &Snapshot) -> u32 {
    if entry.proto() == key::TCP {
        tables.timeouts.tcp_s.get(entry.state as usize).copied().unwrap_or_default()
    } else {
        tables.timeouts.udp_s
    }
}
