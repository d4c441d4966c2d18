//! ICMP and ICMPv6 errors about packets that Weir has sent.

use super::Core;
use super::established::may_pass;
use crate::flow::entry::Way;
use crate::frame::Frame;
use crate::packet::Packet;
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
        let hop = self.find_hop(hit.slot(), way, tables)?;
        if !may_pass(packet, hop) {
            // Nobody is told by an error about an error.
            return Err(if packet.ttl <= 1 { DropReason::TtlExceeded } else { DropReason::MtuExceeded });
        }
        let entry = self.flows.entry(hit.slot()).ok_or(DropReason::NoFlow)?;
        trace.step(Step::FlowKnown {
            reply: way == Way::Reply,
            service: entry.service,
            backend: entry.backend,
        });
        let target = self.flows.tuple(entry).translated(way);
        match entry.mode() {
            Mode::FullNat if !entry.keeps_family() => {
                family::icmp::translate(frame, packet, [target.src, target.dst], &target.reversed())?;
            }
            Mode::Ipip | Mode::Gue | Mode::Gre => self.encapsulate(frame, packet, hit.slot(), hop)?,
            Mode::Dr => nat::pass(frame.bytes_mut(), packet)?,
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
