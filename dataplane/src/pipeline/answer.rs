//! What Weir answers itself: for the addresses it owns, and in place of packets that it refuses.

use super::Core;
use crate::flow::key::{self, FlowKey};
use crate::frame::Frame;
use crate::packet::{Kind, Packet};
use crate::rewrite::{answer, nat};
use crate::snapshot::Snapshot;
use crate::time::{TICKS_PER_SECOND, Tick};
use crate::trace::{Answer, Step, Trace};
use crate::verdict::{DropReason, Verdict};

/// Refusals that one worker answers in a second at most: enough for every honest client, too few to be a weapon.
const REFUSALS_PER_SECOND: u32 = 10_000;

/// How many refusals may still be answered in the present tick.
#[derive(Debug, Default)]
pub(super) struct Allowance {
    tick: Tick,
    used: u32,
}

impl Allowance {
    fn take(&mut self, now: Tick) -> bool {
        if self.tick != now {
            *self = Self { tick: now, used: 0 };
        }
        self.used = self.used.saturating_add(1);
        self.used <= REFUSALS_PER_SECOND / TICKS_PER_SECOND
    }
}

impl Core {
    /// Answers ARP, neighbour discovery and echo for an owned address.
    pub(super) fn respond(
        &mut self,
        frame: &mut Frame<'_>,
        packet: &Packet,
        tables: &Snapshot,
        trace: &mut impl Trace,
    ) -> Result<Verdict, DropReason> {
        let mac = tables.net.port(frame.port).ok_or(DropReason::NoPort)?.mac;
        let made = match packet.kind {
            Kind::ArpRequest => {
                answer::arp(frame, packet, mac)?;
                Answer::Arp
            }
            Kind::NeighbourSolicitation => {
                answer::neighbour(frame, packet, mac)?;
                Answer::NeighbourAdvertisement
            }
            _ => {
                answer::echo(frame, packet, mac)?;
                Answer::Echo
            }
        };
        trace.step(Step::Answered(made));
        Ok(Verdict::Reply(None))
    }

    /// Answers a packet that is not forwarded for `reason`, or drops it where no answer may be given.
    #[cold]
    pub(super) fn refuse(
        &mut self,
        frame: &mut Frame<'_>,
        packet: &Packet,
        reason: DropReason,
        with: Answer,
        tables: &Snapshot,
        trace: &mut impl Trace,
    ) -> Result<Verdict, DropReason> {
        let mac = self.may_answer(frame, reason, tables)?;
        let made = match with {
            Answer::Reset => answer::reset(frame, packet, mac),
            Answer::TimeExceeded => answer::time_exceeded(frame, &from_router(packet, tables), mac),
            _ => answer::port_unreachable(frame, packet, mac),
        };
        refused(made, reason, with, trace)
    }

    /// Tells the sender of a packet that exceeds `mtu` bytes, quoting it with one hop less, as the kernel does.
    #[cold]
    pub(super) fn too_big(
        &mut self,
        frame: &mut Frame<'_>,
        packet: &Packet,
        mtu: u16,
        tables: &Snapshot,
        trace: &mut impl Trace,
    ) -> Result<Verdict, DropReason> {
        let reason = DropReason::MtuExceeded;
        // No path may be as narrow as that (RFC 791; RFC 8200, section 5): nobody could send less.
        let least = if packet.key.v6 { 1280 } else { 68 };
        let mtu = if packet.key.v6 { mtu.max(least) } else { mtu };
        if mtu < least || packet.end - packet.l3 <= mtu {
            return Err(reason);
        }
        let mac = self.may_answer(frame, reason, tables)?;
        nat::pass(frame.bytes_mut(), packet)?;
        refused(answer::too_big(frame, &from_router(packet, tables), mac, mtu), reason, Answer::TooBig, trace)
    }

    /// The MAC address to answer a refused packet from, while the allowance lasts; after that it is only dropped.
    fn may_answer(
        &mut self,
        frame: &Frame<'_>,
        reason: DropReason,
        tables: &Snapshot,
    ) -> Result<[u8; 6], DropReason> {
        let port = tables.net.port(frame.port).ok_or(DropReason::NoPort)?;
        if self.answers.take(self.sweep.now()) { Ok(port.mac) } else { Err(reason) }
    }
}

/// The packet as one to whom its error is to come from. That is whom it was sent to, where this is a VIP. To a backend,
/// whose answer is for a client, Weir is a router and says so by its own address, if it has one on the way there.
fn from_router(packet: &Packet, tables: &Snapshot) -> Packet {
    let mut packet = *packet;
    let FlowKey { dst, v6, .. } = packet.key;
    if !tables.services.is_virtual(dst, v6) {
        let path = tables.net.way_to(packet.key.source(), 0).ok().map(|(_, path)| path);
        let own = path.and_then(|path| path.source).map(key::bits).filter(|(_, own_v6)| *own_v6 == v6);
        packet.key.dst = own.map_or(dst, |(own, _)| own);
    }
    packet
}

/// The verdict on a refused packet. One that may not be answered (a segment with RST, a broadcast) is refused all the
/// same.
fn refused(
    made: Result<(), DropReason>,
    reason: DropReason,
    with: Answer,
    trace: &mut impl Trace,
) -> Result<Verdict, DropReason> {
    made.map_err(|_| reason)?;
    trace.step(Step::Answered(with));
    Ok(Verdict::Reply(Some(reason)))
}
