//! ICMP and ICMPv6 errors about packets that Weir has sent, from both sides.

use super::deliver::count;
use super::{Core, shape};
use crate::flow::entry::Way;
use crate::flow::key::{UDP, bits};
use crate::flow::table::Slot;
use crate::frame::Frame;
use crate::packet::{Kind, Packet};
use crate::rewrite::tunnelled::{self, Tunnelled};
use crate::rewrite::{family, icmp, l2, nat};
use crate::snapshot::{Mode, Snapshot};
use crate::trace::{Step, Trace};
use crate::verdict::{DropReason, Verdict};

impl Core {
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
        if let Some(hit) = self.flows.lookup(hash, &key) {
            return self.relay_error(frame, packet, hit.slot(), hit.way(), tables, trace);
        }
        if key.proto == UDP
            && let Some(verdict) = self.tunnel_error(frame, packet, tables, trace)?
        {
            return Ok(verdict);
        }
        if let Some(owner) = self.elsewhere(frame, hash) {
            trace.step(Step::FlowElsewhere(owner));
            return Ok(Verdict::Handoff(owner));
        }
        trace.step(Step::FlowUnknown);
        if tables.services.is_virtual(key.dst, key.v6) {
            return Err(DropReason::IcmpNoFlow);
        }
        Ok(self.to_kernel(frame, packet, tables))
    }

    /// Sends an error about the flow in `slot` on to whose packet it quotes, which went the other way.
    fn relay_error(
        &mut self,
        frame: &mut Frame<'_>,
        packet: &Packet,
        slot: Slot,
        way: Way,
        tables: &Snapshot,
        trace: &mut impl Trace,
    ) -> Result<Verdict, DropReason> {
        let hop = self.find_hop(slot, way, tables)?;
        // Nobody is told by an error about an error.
        if packet.ttl <= 1 {
            return Err(DropReason::TtlExceeded);
        }
        let path = self.path_mtu(slot, way, hop, None);
        let is_larger = packet.end - packet.l3 > path;
        if is_larger && !self.may_split(slot, frame, packet) {
            return Err(DropReason::MtuExceeded);
        }
        let mut larger_than = is_larger.then_some(path);
        let entry = self.flows.entry(slot).ok_or(DropReason::NoFlow)?;
        trace.step(Step::FlowKnown {
            reply: way == Way::Reply,
            service: entry.service,
            backend: entry.backend,
        });
        count(entry, way, packet, &self.setup);
        let target = self.flows.tuple(entry).translated(way);
        let grows = match self.flows.extra(slot).filter(|extra| !extra.sequence.is_over()) {
            Some(extra) => shape::requote(frame.bytes_mut(), packet, way, &extra.sequence)?,
            None => 0,
        };
        match entry.mode() {
            Mode::FullNat if !entry.keeps_family() => {
                family::icmp::translate(frame, packet, [target.src, target.dst], &target.reversed())?;
            }
            // The backend has sent what is quoted from the VIP itself: the error goes the way of the client's packets.
            Mode::Ipip | Mode::Gue | Mode::Gre => larger_than = self.encapsulate(frame, packet, slot, hop)?,
            Mode::Dr => nat::pass(frame.bytes_mut(), packet)?,
            // Towards the backend of a `nat` flow the sender is kept, as the kernel keeps it.
            Mode::Nat if way == Way::Forward => {
                icmp::translate(frame, packet, None, target.dst, &target.reversed(), grows)?;
            }
            _ => icmp::translate(frame, packet, Some(target.src), target.dst, &target.reversed(), grows)?,
        }
        trace.step(Step::IcmpTranslated);
        l2::readdress(frame, packet, hop)?;
        if let Some(mtu) = larger_than {
            self.split(frame, hop, mtu, trace)?;
        }
        Ok(Verdict::Tx(hop.port))
    }

    /// An error about a packet of a tunnel protocol.
    pub(super) fn tunnel_protocol_error(
        &mut self,
        frame: &mut Frame<'_>,
        packet: &Packet,
        tables: &Snapshot,
        trace: &mut impl Trace,
    ) -> Result<Verdict, DropReason> {
        debug_assert_eq!(packet.kind, Kind::TunnelError);
        if let Some(verdict) = self.tunnel_error(frame, packet, tables, trace)? {
            return Ok(verdict);
        }
        trace.step(Step::FlowUnknown);
        Ok(self.to_kernel(frame, packet, tables))
    }

    /// An error about a packet in one of Weir's tunnels: the client is told, about the packet that it sent. `None` where
    /// it is about something else: hosts have tunnels of their own.
    fn tunnel_error(
        &mut self,
        frame: &mut Frame<'_>,
        packet: &Packet,
        tables: &Snapshot,
        trace: &mut impl Trace,
    ) -> Result<Option<Verdict>, DropReason> {
        let Some(found) = tunnelled::find(frame, packet)? else { return Ok(None) };
        let key = &found.inner.key;
        let hash = self.flows.hash(key);
        let Some(hit) = self.flows.lookup(hash, key) else {
            let owner = self.elsewhere(frame, hash);
            owner.into_iter().for_each(|owner| trace.step(Step::FlowElsewhere(owner)));
            return Ok(owner.map(Verdict::Handoff));
        };
        let slot = hit.slot();
        if hit.way() != Way::Forward || !self.goes_by(slot, &found) {
            return Ok(None);
        }
        let hop = self.find_hop(slot, Way::Reply, tables)?;
        let entry = self.flows.entry(slot).ok_or(DropReason::NoFlow)?;
        trace.step(Step::FlowKnown { reply: true, service: entry.service, backend: entry.backend });
        self.learn_mtu(frame, packet, found.backend);
        let told = found.relay(frame, packet)?;
        trace.step(Step::IcmpTranslated);
        l2::readdress(frame, &told, hop)?;
        Ok(Some(Verdict::Tx(hop.port)))
    }

    /// Whether the flow's packets go by this tunnel.
    fn goes_by(&self, slot: Slot, found: &Tunnelled) -> bool {
        let Some(entry) = self.flows.entry(slot) else { return false };
        entry.mode() == found.mode && bits(self.flows.tuple(entry).reply.source()) == found.backend
    }
}
