//! Sending a packet of a flow: where it leaves, whether it fits, and which headers it leaves with.

use super::shape::Shaped;
use super::{Core, Setup};
use crate::flow::entry::{Entry, Way};
use crate::flow::key;
use crate::flow::table::Slot;
use crate::frame::{Checksum, Frame};
use crate::ids::{HopId, PortId};
use crate::packet::{Kind, Packet};
use crate::rewrite::encap::{self, Outer};
use crate::rewrite::split::{Pieces, Split};
use crate::rewrite::{family, l2, mss, nat};
use crate::snapshot::Snapshot;
use crate::snapshot::net::{Found, Hop, NoHop, Path};
use crate::trace::{Answer, Step, Trace};
use crate::verdict::{DropReason, Verdict};
use crate::wire::ipv4::{self, Ipv4};
use crate::wire::tcp::SYN;
use crate::wire::view;

/// The segment size that every TCP must accept (RFC 9293, section 3.7.1): none smaller is computed.
const LEAST_MSS: u16 = 536;

impl Core {
    /// Sends a packet of the flow in `slot`, whose next hop has to be looked up.
    #[inline(never)]
    pub(super) fn send(
        &mut self,
        frame: &mut Frame<'_>,
        packet: &Packet,
        slot: Slot,
        way: Way,
        tables: &Snapshot,
        trace: &mut impl Trace,
    ) -> Result<Verdict, DropReason> {
        let hop = self.find_hop(slot, way, tables)?;
        if packet.ttl <= 1 {
            return self.refuse(frame, packet, DropReason::TtlExceeded, Answer::TimeExceeded, tables, trace);
        }
        let entry = self.flows.entry(slot).ok_or(DropReason::NoFlow)?;
        trace.step(Step::NextHop(entry.hop(way)));
        self.deliver(frame, packet, slot, way, hop, tables, trace)
    }

    /// Translates or encapsulates any packet of a flow, which has a hop left, and gives it the next hop's layer-2 header.
    #[inline(never)]
    #[expect(clippy::too_many_arguments, reason = "the packet path passes its context by hand, not in a bag")]
    pub(super) fn deliver(
        &mut self,
        frame: &mut Frame<'_>,
        packet: &Packet,
        slot: Slot,
        way: Way,
        hop: &Hop,
        tables: &Snapshot,
        trace: &mut impl Trace,
    ) -> Result<Verdict, DropReason> {
        let unfinished = tables.net.leaves_checksums(frame.port) && nat::note_partial(frame, packet);
        let entry = self.flows.entry(slot).ok_or(DropReason::NoFlow)?;
        let makes_header = entry.mode().is_tunnel() || !entry.keeps_family();
        let id = if makes_header { self.next_id() } else { 0 };
        let outer = self.outer(slot, id)?;
        let entry = self.flows.entry(slot).ok_or(DropReason::NoFlow)?;
        if packet.kind != Kind::Transport && outer.is_none() && !entry.keeps_family() {
            return Err(DropReason::Fragment); // of which each would need a header of its own
        }
        let path = self.path_mtu(slot, way, hop, outer.as_ref());
        let largest = self.largest(slot, way, path, outer.as_ref(), unfinished);
        if packet.end - packet.l3 > largest && !self.may_split(slot, frame, packet) {
            return self.too_big(frame, packet, largest, tables, trace);
        }
        // Both renumber: what the client sends in the order opposite to that of what it gets.
        let is_control = entry.is_ftp() && packet.kind == Kind::Transport;
        let (was_asked, shaped, answers);
        let (limits, mut packet) = ((largest, unfinished), packet);
        if is_control && way == Way::Forward {
            was_asked = self.control(frame, packet, slot, way, limits, tables)?;
            packet = &was_asked;
        }
        let entry = self.flows.entry(slot).ok_or(DropReason::NoFlow)?;
        if entry.has_extra() {
            shaped = match self.shape(frame, packet, slot, way, limits, tables, trace)? {
                Shaped::Passes(packet) => packet,
                Shaped::Done(verdict) => return Ok(verdict),
            };
            packet = &shaped;
        }
        if is_control && way == Way::Reply {
            answers = self.control(frame, packet, slot, way, limits, tables)?;
            packet = &answers;
        }
        // A segment that was made anew is complete.
        let mut unfinished = unfinished && frame.checksum != Checksum::Complete;
        let is_larger = packet.end - packet.l3 > largest;
        if is_larger && unfinished {
            encap::finish(frame, packet)?; // of which each piece has but a part
            unfinished = false;
        }
        let entry = self.flows.entry(slot).ok_or(DropReason::NoFlow)?;
        count(entry, way, packet, &self.setup);
        if packet.tcp_flags & SYN != 0 {
            self.clamp(frame, packet, slot, way, largest, unfinished, tables)?;
        }
        if let Some(outer) = outer {
            outer.encapsulate(frame, packet, unfinished)?;
        } else if entry.mode().has_replies() && !entry.keeps_family() {
            let target = self.flows.tuple(entry).translated(way);
            family::translate(frame, packet, &target, entry.deltas(way), unfinished, id)?;
        } else {
            self.translate(frame, packet, entry, way, unfinished)?;
        }
        l2::readdress(frame, packet, hop)?;
        if is_larger {
            self.split(frame, hop, path, trace)?;
        }
        Ok(Verdict::Tx(hop.port))
    }

    /// Translates a packet of a flow outside of tunnels that keeps its IP version.
    #[inline]
    pub(super) fn translate(
        &self,
        frame: &mut Frame<'_>,
        packet: &Packet,
        entry: &Entry,
        way: Way,
        unfinished: bool,
    ) -> Result<(), DropReason> {
        let (bytes, deltas) = (frame.bytes_mut(), entry.deltas(way));
        if !entry.mode().has_replies() {
            nat::pass(bytes, packet)
        } else if entry.is_v6(way) {
            nat::translate_v6(bytes, packet, self.flows.target_v6(entry, way), deltas, unfinished)
        } else {
            nat::translate_v4(bytes, packet, entry.target_v4(way), deltas, unfinished)
        }
    }

    /// Puts a packet that is not of the flow in `slot`, but about it, into the flow's tunnel. Returns the path's MTU where
    /// it is larger, and may be [`Self::split`].
    pub(super) fn encapsulate(
        &mut self,
        frame: &mut Frame<'_>,
        packet: &Packet,
        slot: Slot,
        hop: &Hop,
    ) -> Result<Option<u16>, DropReason> {
        let id = self.next_id();
        let outer = self.outer(slot, id)?.ok_or(DropReason::NoFlow)?;
        let path = self.path_mtu(slot, Way::Forward, hop, Some(&outer));
        let is_larger = packet.end - packet.l3 > self.largest(slot, Way::Forward, path, Some(&outer), false);
        if is_larger && !self.may_split(slot, frame, packet) {
            return Err(DropReason::MtuExceeded);
        }
        outer.encapsulate(frame, packet, false)?;
        Ok(is_larger.then_some(path))
    }

    /// Whether a packet of the flow in `slot` may be cut where it is larger than its path: an IPv4 packet without DF that
    /// leaves as IPv4, by itself or in a tunnel's, which then is what is cut.
    #[cold]
    pub(super) fn may_split(&self, slot: Slot, frame: &Frame<'_>, packet: &Packet) -> bool {
        let leaves_as_v4 = |entry: &Entry| {
            if entry.mode().is_tunnel() { !entry.is_v6(Way::Reply) } else { entry.keeps_family() }
        };
        let allows = |ip: &Ipv4| ip.fragment.get() & ipv4::DONT_FRAGMENT == 0;
        self.flows.entry(slot).is_some_and(leaves_as_v4)
            && !packet.key.v6
            && view(frame.bytes(), packet.l3.into()).is_ok_and(allows)
    }

    /// Has a packet that is ready to leave, and larger than the `mtu` of its path, sent in pieces.
    #[cold]
    pub(super) fn split(
        &self,
        frame: &mut Frame<'_>,
        hop: &Hop,
        mtu: u16,
        trace: &mut impl Trace,
    ) -> Result<(), DropReason> {
        let l3 = u16::try_from(hop.header.len() + size_of::<u16>()).map_err(|_| DropReason::BadLength)?;
        let split = Split { mtu, l3 };
        let count = Pieces::of(frame.bytes(), split)?.count();
        // A checksum that was finished may have saved the tunnel the bytes that are too many.
        if count > 1 {
            trace.step(Step::Split(count));
            self.setup.stats.split.add(1);
            frame.split = Some(split);
        }
        Ok(())
    }

    /// The tunnel of a flow that goes by one.
    #[inline]
    fn outer(&self, slot: Slot, id: u16) -> Result<Option<Outer>, DropReason> {
        let entry = self.flows.entry(slot).ok_or(DropReason::NoFlow)?;
        if !entry.mode().is_tunnel() {
            return Ok(None);
        }
        let extra = self.flows.extra(slot).ok_or(DropReason::NoSource)?;
        let tuple = self.flows.tuple(entry);
        let outer = Outer {
            mode: entry.mode(),
            tunnel: extra.tunnel,
            v6: tuple.reply.v6,
            src: extra.source,
            dst: tuple.reply.src,
            entropy: low(tuple.forward.hash(self.setup.seed)),
            id,
        };
        Ok(Some(outer))
    }

    /// Identification for an IPv4 header of Weir's own. Workers take turns, so that no two give the same one to packets
    /// of one tunnel.
    #[inline]
    fn next_id(&mut self) -> u16 {
        self.made = self.made.wrapping_add(1);
        self.made.wrapping_mul(self.setup.workers.into()).wrapping_add(self.setup.worker.0.into())
    }

    /// Bytes of the largest IP packet that the path takes as it leaves.
    #[inline]
    pub(super) fn path_mtu(&self, slot: Slot, way: Way, hop: &Hop, outer: Option<&Outer>) -> u16 {
        let path = self.flows.extra(slot).map_or(hop.mtu, |extra| extra.mtu(way, hop.mtu));
        let learned = outer.and_then(|outer| self.path_mtus.get(outer.dst, self.sweep.now()));
        learned.map_or(path, |learned| path.min(learned))
    }

    /// Bytes of the largest IP packet on `way`, as it arrives, that still fits its path when it leaves.
    #[inline]
    fn largest(&self, slot: Slot, way: Way, path: u16, outer: Option<&Outer>, unfinished: bool) -> u16 {
        let becomes = self.flows.entry(slot).filter(|entry| !entry.keeps_family());
        match (outer, becomes) {
            (Some(outer), _) => path.saturating_sub(outer.overhead(unfinished)),
            (None, Some(entry)) if entry.is_v6(way) => path.saturating_add(family::DIFFERENCE),
            (None, Some(_)) => path.saturating_sub(family::DIFFERENCE),
            (None, None) => path,
        }
    }

    /// Lowers the segment size that a SYN or SYN-ACK announces, where its service wants that.
    #[cold]
    #[expect(clippy::too_many_arguments, reason = "the packet path passes its context by hand, not in a bag")]
    fn clamp(
        &self,
        frame: &mut Frame<'_>,
        packet: &Packet,
        slot: Slot,
        way: Way,
        largest: u16,
        unfinished: bool,
        tables: &Snapshot,
    ) -> Result<(), DropReason> {
        let entry = self.flows.entry(slot).ok_or(DropReason::NoFlow)?;
        let service = tables.services.backend_of(entry.service, entry.backend).map(|(service, _)| service);
        let Some(mss) = service.and_then(|service| service.options.mss) else { return Ok(()) };
        let most = if mss != 0 {
            mss
        } else {
            let back = self.largest_back(slot, entry, way, frame.port, tables);
            let headers = |v6| if v6 { 60 } else { 40 };
            let here = largest.saturating_sub(headers(entry.is_v6(way)));
            here.min(back).max(LEAST_MSS)
        };
        let range = packet.l4.into()..packet.end.into();
        let segment = frame.bytes_mut().get_mut(range).ok_or(DropReason::Truncated)?;
        mss::clamp(segment, most, unfinished);
        Ok(())
    }

    /// The largest segment that fits the way back. Where that is not known, or does not lead through here, what comes in
    /// by this port could go out by it.
    fn largest_back(&self, slot: Slot, entry: &Entry, way: Way, port: PortId, tables: &Snapshot) -> u16 {
        let back = if way == Way::Forward { Way::Reply } else { Way::Forward };
        let hop = tables.net.hop(entry.hop(back)).filter(|_| entry.epoch == tables.net.epoch);
        match hop.filter(|_| entry.mode().has_replies()) {
            Some(hop) => {
                let headers = if entry.is_v6(back) { 60 } else { 40 };
                let path = self.path_mtu(slot, back, hop, None);
                self.largest(slot, back, path, None, false).saturating_sub(headers)
            }
            None => {
                let headers = if entry.is_v6(way) { 60 } else { 40 };
                tables.net.port(port).map_or(0, |port| port.mtu).saturating_sub(headers)
            }
        }
    }

    /// Looks the next hop of a flow's packets on `way` up, and has the flow remember it.
    #[cold]
    #[inline(never)]
    pub(super) fn find_hop<'t>(
        &mut self,
        slot: Slot,
        way: Way,
        tables: &'t Snapshot,
    ) -> Result<&'t Hop, DropReason> {
        let net = &tables.net;
        let entry = self.flows.entry(slot).ok_or(DropReason::NoFlow)?;
        let tuple = self.flows.tuple(entry);
        // In every mode the backend is where replies would come from.
        let (arriving, towards) = match way {
            Way::Forward => (tuple.forward, tuple.reply),
            Way::Reply => (tuple.reply, tuple.forward),
        };
        let is_usual = !entry.has_extra() && !entry.mode().is_tunnel();
        if is_usual {
            let (addr, v6) = (towards.src, towards.v6);
            let known = match way {
                Way::Forward => self.ways.to_backend(entry.backend, addr, v6),
                Way::Reply => self.ways.to_client(addr, v6),
            };
            if let Some(hop) = self.known_hop(slot, way, known, tables) {
                return Ok(hop);
            }
        }
        let spread = u32::try_from(arriving.hash(self.setup.seed) >> 32).unwrap_or_default();
        let Found { hop: id, path, is_only } = match net.find(towards.source(), spread) {
            Ok(found) => found,
            Err(NoHop::Unresolved(neighbour)) => {
                if self.setup.wanted.push(neighbour).is_err() {
                    self.setup.stats.wanted_lost.add(1);
                }
                return Err(DropReason::NoNeighbour);
            }
            Err(NoHop::NoRoute) => return Err(DropReason::NoRoute),
            Err(NoHop::NoPort | NoHop::Local) => return Err(DropReason::NoPort),
        };
        let hop = net.hop(id).ok_or(DropReason::NoNeighbour)?;
        self.follow(slot, way, path)?;
        let entry = self.flows.entry_mut(slot).ok_or(DropReason::NoFlow)?;
        entry.take_hop(way, id, net.epoch);
        let backend = entry.backend;
        if is_only && path.mtu.is_none() {
            let (addr, v6) = (towards.src, towards.v6);
            match way {
                Way::Forward => self.ways.learn_backend(backend, addr, v6, id),
                Way::Reply => self.ways.learn_client(addr, v6, id),
            }
        }
        Ok(hop)
    }

    /// The next hop of a flow's packets on `way`, if it was found lately for another flow ([`Core::ways`]) and that is all
    /// there is to know of the way; the flow in `slot` remembers it.
    #[inline]
    pub(super) fn known_hop<'t>(
        &mut self,
        slot: Slot,
        way: Way,
        known: Option<HopId>,
        tables: &'t Snapshot,
    ) -> Option<&'t Hop> {
        let id = known?;
        let hop = tables.net.hop(id)?;
        self.flows.entry_mut(slot)?.take_hop(way, id, tables.net.epoch);
        Some(hop)
    }

    /// Has a flow remember what it needs to know of its path besides the hop: an MTU that is not the link's, and for a
    /// tunnel the address that it begins at.
    fn follow(&mut self, slot: Slot, way: Way, path: &Path) -> Result<(), DropReason> {
        let entry = self.flows.entry(slot).ok_or(DropReason::NoFlow)?;
        let begins = entry.mode().is_tunnel() && way == Way::Forward;
        if !begins && path.mtu.is_none() && !entry.has_extra() {
            return Ok(());
        }
        if path.mtu.is_some() {
            self.flows.entry_mut(slot).ok_or(DropReason::NoFlow)?.leave_plain_path();
        }
        let extra = self.flows.extra_mut(slot).ok_or(DropReason::FlowTableFull)?;
        let [forward, reply] = &mut extra.mtu;
        *(if way == Way::Forward { forward } else { reply }) = path.mtu.unwrap_or(0);
        if begins {
            extra.source = path.source.map(|addr| key::bits(addr).0).ok_or(DropReason::NoSource)?;
        }
        Ok(())
    }
}

/// Counts a packet for its backend.
#[inline]
pub(super) fn count(entry: &Entry, way: Way, packet: &Packet, setup: &Setup) {
    setup.stats.passed(entry.backend, way, packet.end - packet.l3);
}

#[expect(clippy::cast_possible_truncation, reason = "the low half is what is wanted")]
fn low(hash: u64) -> u32 {
    hash as u32
}
