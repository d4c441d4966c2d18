//! Fragments: the first one, which has the ports, is a packet like any other; the later ones go where it went.

use super::Core;
use crate::flow::entry::Way;
use crate::flow::fragments::{Fate, LIFE_S};
use crate::flow::key::{FlowKey, SCTP, TCP, UDP};
use crate::flow::table::Slot;
use crate::frame::Frame;
use crate::packet::{Packet, fragment_key};
use crate::snapshot::Snapshot;
use crate::time::Tick;
use crate::trace::{Step, Trace};
use crate::verdict::{DropReason, Verdict};
use crate::wire::ipv6;

/// Keeps the hashes of fragmented packets apart from those of flows, in the directory that both share.
const APART: u64 = 0x4f72_6947_656e_7300;

impl Core {
    /// The first fragment of a packet: its flow is known, opened, another worker's or refused, and so will be the rest.
    #[cold]
    #[inline(never)]
    pub(super) fn first_fragment(
        &mut self,
        frame: &mut Frame<'_>,
        packet: &Packet,
        hash: u64,
        now: Tick,
        tables: &Snapshot,
        trace: &mut impl Trace,
    ) -> Verdict {
        let key = match fragment_key(frame.bytes(), packet) {
            Ok(key) => key,
            Err(reason) => return Verdict::Drop(reason),
        };
        let verdict = self.search(frame, packet, hash, now, tables, trace);
        let once = self.once.take();
        let fate = match verdict {
            Verdict::Tx(_) | Verdict::Unresolved => {
                once.map_or(Fate::Follow(packet.key), |slot| Fate::Once(packet.key, slot))
            }
            Verdict::Handoff(owner) => Fate::Elsewhere(owner),
            Verdict::Kernel => Fate::Kernel,
            Verdict::Drop(reason) | Verdict::Reply(Some(reason)) => Fate::Refused(reason),
            Verdict::Reply(None) | Verdict::Early | Verdict::Unanswered => {
                Fate::Refused(DropReason::Fragment)
            }
        };
        self.note(key, fate, now);
        verdict
    }

    /// Keeps a flow that was opened for one packet until its fragments have come, unless flows are short of room.
    pub(super) fn keep_once(&mut self, slot: Slot, now: Tick) {
        // Slots of single packets are beyond the capacity, so that there may be more flows than that.
        let free = self.flows.capacity().saturating_sub(self.flows.len());
        let is_short = free <= self.flows.capacity() / 16;
        match self.flows.entry_mut(slot) {
            Some(entry) if !is_short => {
                entry.expires = now.after_seconds(LIFE_S);
                self.once = Some(slot);
            }
            _ => self.forget(slot),
        }
    }

    fn note(&mut self, key: FlowKey, fate: Fate, now: Tick) {
        let hash = self.fragment_hash(&key);
        let change = self.fragments.note(hash, key, fate, now);
        self.setup.stats.fragmented.add(1);
        if change.evicted {
            self.setup.stats.fragments_evicted.add(1);
        }
        if self.setup.workers < 2 {
            return;
        }
        if let Some(old) = change.withdraw {
            self.setup.directory.withdraw(self.fragment_hash(&old), self.setup.worker);
        }
        if change.publish && !self.setup.directory.publish(hash, self.setup.worker) {
            self.setup.stats.directory_full.add(1);
        }
    }

    /// A fragment without ports.
    #[cold]
    #[inline(never)]
    pub(super) fn later_fragment(
        &mut self,
        frame: &mut Frame<'_>,
        packet: &Packet,
        now: Tick,
        tables: &Snapshot,
        trace: &mut impl Trace,
    ) -> Result<Verdict, DropReason> {
        let key = fragment_key(frame.bytes(), packet)?;
        let hash = self.fragment_hash(&key);
        match self.fragments.find(hash, &key, now) {
            Some(Fate::Follow(flow)) => {
                let hit = self.flows.lookup(self.flows.hash(&flow), &flow).ok_or(DropReason::NoFlow)?;
                return self.follow_first(frame, packet, (hit.slot(), hit.way()), tables, trace);
            }
            Some(Fate::Once(flow, slot)) => {
                let entry = self.flows.entry(slot).ok_or(DropReason::NoFlow)?;
                if self.flows.tuple(entry).forward != flow {
                    return Err(DropReason::NoFlow); // it had to make room
                }
                return self.follow_first(frame, packet, (slot, Way::Forward), tables, trace);
            }
            Some(Fate::Refused(reason)) => return Err(reason),
            Some(Fate::Elsewhere(owner)) if !frame.handed_over => {
                trace.step(Step::FlowElsewhere(owner));
                return Ok(Verdict::Handoff(owner));
            }
            Some(Fate::Kernel) => return Ok(self.leave(frame, packet, tables, trace)),
            Some(Fate::Elsewhere(_)) | None => {}
        }
        if let Some(owner) = self.elsewhere(frame, hash) {
            trace.step(Step::FlowElsewhere(owner));
            return Ok(Verdict::Handoff(owner));
        }
        self.without_first(frame, packet, tables, trace)
    }

    /// A fragment, and no worker knows of its first one.
    fn without_first(
        &mut self,
        frame: &mut Frame<'_>,
        packet: &Packet,
        tables: &Snapshot,
        trace: &mut impl Trace,
    ) -> Result<Verdict, DropReason> {
        let (services, FlowKey { dst, v6, .. }) = (&tables.services, packet.key);
        let is_virtual = services.is_virtual(dst, v6) || services.locality().is_for_services(dst, v6);
        // IPv6 may have options for the destination between the fragment header and the transport's.
        let has_ports = matches!(packet.key.proto, TCP | UDP | SCTP)
            || packet.key.v6 && packet.key.proto == ipv6::DESTINATION_OPTIONS;
        if has_ports && !frame.overdue {
            trace.step(Step::FragmentEarly);
            return Ok(Verdict::Early);
        }
        if !is_virtual {
            // A `nat` backend's own traffic, whose first fragments are not Weir's and do not come here.
            return Ok(self.leave(frame, packet, tables, trace));
        }
        Err(if has_ports { DropReason::FragmentUnmatched } else { DropReason::Fragment })
    }

    fn leave(
        &self,
        frame: &mut Frame<'_>,
        packet: &Packet,
        tables: &Snapshot,
        trace: &mut impl Trace,
    ) -> Verdict {
        trace.step(Step::NotOurs);
        self.to_kernel(frame, packet, tables)
    }

    /// Sends a later fragment the way that the first one of its packet went. No error is sent about it (RFC 1122,
    /// section 3.2.2).
    fn follow_first(
        &mut self,
        frame: &mut Frame<'_>,
        packet: &Packet,
        (slot, way): (Slot, Way),
        tables: &Snapshot,
        trace: &mut impl Trace,
    ) -> Result<Verdict, DropReason> {
        let entry = self.flows.entry(slot).ok_or(DropReason::NoFlow)?;
        trace.step(Step::FragmentFollows);
        let known = if entry.epoch == tables.net.epoch { tables.net.hop(entry.hop(way)) } else { None };
        let hop = match known {
            Some(hop) => hop,
            None => self.find_hop(slot, way, tables)?,
        };
        if packet.ttl <= 1 {
            return Err(DropReason::TtlExceeded);
        }
        self.setup.stats.fragments_followed.add(1);
        self.deliver(frame, packet, slot, way, hop, tables, trace)
    }

    /// Forgets packets whose time is up in a few places, and has the other workers forget them.
    pub(super) fn forget_fragments(&mut self, now: Tick) {
        let Self { fragments, setup, flows, .. } = self;
        fragments.sweep(now, |key| {
            if setup.workers > 1 {
                setup.directory.withdraw(flows.hash(&key) ^ APART, setup.worker);
            }
        });
    }

    pub(super) fn fragment_hash(&self, key: &FlowKey) -> u64 {
        self.flows.hash(key) ^ APART
    }
}
