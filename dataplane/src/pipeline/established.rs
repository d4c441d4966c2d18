//! A packet of a known flow: its state moves on, its timeout starts anew, it is translated and sent.

use super::deliver::count;
use super::{Core, Setup};
use crate::flow::entry::{Entry, Way};
use crate::flow::half_open::HalfOpen;
use crate::flow::state::State;
use crate::flow::table::{Hit, Slot};
use crate::flow::tcp::Strictness;
use crate::flow::{key, templates};
use crate::frame::Frame;
use crate::packet::Packet;
use crate::rewrite::l2;
use crate::snapshot::net::Hop;
use crate::snapshot::{Settings, Snapshot};
use crate::time::Tick;
use crate::trace::{Step, Trace};
use crate::verdict::{DropReason, Verdict};
use crate::wire::tcp::{ACK, FIN, RST, SYN};

impl Core {
    /// Translates a packet of the flow `hit` and sends it on its way. `None` if it is not of that flow.
    ///
    /// The first half is what every packet of an established flow passes; whatever stands in its way (a flow whose
    /// time is up, a state that may change, a hop that is not known, a packet that may not go on) is left to functions
    /// that are not inlined. Itself it is, or its many arguments would go through the stack.
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
        let entry = self.flows.confirm(hit, &packet.key)?;
        let routine = entry.state == State::Established && packet.tcp_flags & CONTROLS == self.turn.routine;
        let entry = if routine && !entry.expires.is_due(now) {
            entry.count_packet(way);
            let expires = now.after_seconds(tables.timeouts.of(State::Established));
            if entry.expires != expires {
                // The packets of a busy flow mostly find it as it has to be, and leave the cache line clean.
                entry.expires = expires;
            }
            entry
        } else {
            if let Some(verdict) = self.advance(frame, packet, hash, hit, now, tables, trace) {
                return Some(verdict);
            }
            self.flows.entry_mut(hit.slot())?
        };
        trace.step(Step::FlowKnown {
            reply: way == Way::Reply,
            service: entry.service,
            backend: entry.backend,
        });
        let known = if entry.epoch == tables.net.epoch { tables.net.hop(entry.hop(way)) } else { None };
        let Some(hop) = known.filter(|hop| may_pass(packet, hop)) else {
            return Some(or_drop(self.send(frame, packet, hit.slot(), way, tables, trace)));
        };
        let is_finished = || self.turn.is_finished(frame, packet, tables);
        if entry.is_simple() && packet.tcp_flags & SYN == 0 && is_finished() {
            return Some(or_drop(self.pass_simple(frame, packet, hit.slot(), way, hop)));
        }
        Some(or_drop(self.deliver(frame, packet, hit.slot(), way, hop, tables, trace)))
    }

    /// Sends a packet that is not a SYN, has a hop left and fits it, of a [simple](Entry::is_simple) flow.
    #[inline]
    fn pass_simple(
        &self,
        frame: &mut Frame<'_>,
        packet: &Packet,
        slot: Slot,
        way: Way,
        hop: &Hop,
    ) -> Result<Verdict, DropReason> {
        let entry = self.flows.entry(slot).ok_or(DropReason::NoFlow)?;
        count(entry, way, packet, &self.setup);
        self.translate(frame, packet, entry, way, false)?;
        l2::readdress(frame, packet, hop)?;
        Ok(Verdict::Tx(hop.port))
    }

    /// Moves a flow on by one of its packets, and starts its timeout anew. The verdict, where the packet is not to be
    /// sent on as one of this flow.
    #[inline(never)]
    #[expect(clippy::too_many_arguments, reason = "the packet path passes its context by hand, not in a bag")]
    fn advance(
        &mut self,
        frame: &mut Frame<'_>,
        packet: &Packet,
        hash: u64,
        hit: Hit,
        now: Tick,
        tables: &Snapshot,
        trace: &mut impl Trace,
    ) -> Option<Verdict> {
        let (slot, way) = (hit.slot(), hit.way());
        match self.fate(slot, way, packet, now, tables) {
            Fate::GoesOn => {}
            Fate::Expired => {
                self.expire(slot);
                return Some(or_drop(self.admit(frame, packet, hash, now, tables, trace)));
            }
            Fate::Anew => {
                self.close(slot);
                return Some(or_drop(self.admit(frame, packet, hash, now, tables, trace)));
            }
            Fate::Dropped => return Some(Verdict::Drop(DropReason::BackendRemoved)),
        }
        let strictness = self.strictness();
        let entry = self.flows.entry_mut(slot)?;
        let next = next_state(entry, way, packet, strictness);
        let mut assured = false;
        if next != entry.state {
            enter(entry, slot, next, &self.setup, &mut self.half_open);
            assured = matches!(next, State::Established | State::SctpEstablished);
        }
        entry.count_packet(way);
        if way == Way::Reply {
            assured |= entry.set_answered() && next == State::Udp;
        }
        let expires = now.after_seconds(tables.timeouts.of(next));
        if entry.expires != expires {
            entry.expires = expires;
        }
        if assured && entry.has_extra() {
            self.assure_template(slot);
        }
        None
    }

    /// What a packet means for its flow. The rules and their order are those of IPVS (`ip_vs_in_hook`): what happens
    /// to a backend concerns the packets that go to it, not those that come from it.
    #[inline]
    fn fate(&self, slot: Slot, way: Way, packet: &Packet, now: Tick, tables: &Snapshot) -> Fate {
        let Some(entry) = self.flows.entry(slot) else { return Fate::GoesOn };
        if entry.expires.is_due(now) {
            return Fate::Expired;
        }
        let settings = &tables.settings;
        if way == Way::Reply {
            return Fate::GoesOn;
        }
        if entry.proto() == key::UDP && tables.services.moves(entry.service, entry.backend) {
            return Fate::Anew;
        }
        if !watches_backends(settings) && !packet.is_first() {
            return Fate::GoesOn;
        }
        let backend = tables.services.backend(entry.backend);
        if packet.is_first() {
            let own = tables.services.backend_of(entry.service, entry.backend);
            let drains = own.is_some_and(|(_, backend)| backend.weight == 0);
            // A persistent client's next connection stays where it was.
            let over = is_over(entry, settings.conn_reuse_mode) && self.template(slot) == templates::NONE;
            if settings.expire_nodest_conn && drains || over {
                return Fate::Anew;
            }
        }
        match backend {
            None if settings.expire_nodest_conn => Fate::Anew,
            None if settings.drop_removed => Fate::Dropped,
            _ => Fate::GoesOn,
        }
    }

    /// Which of the TCP tables apply now.
    #[inline]
    pub(super) fn strictness(&self) -> Strictness {
        if self.defence.secure_tcp() { Strictness::Secure } else { Strictness::Normal }
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

/// What a packet means for the flow that it belongs to.
enum Fate {
    /// It is one more of its packets.
    GoesOn,
    /// The flow's time was up.
    Expired,
    /// The flow is over, and the packet is one of no flow.
    Anew,
    /// The backend is gone, and the packet with it.
    Dropped,
}

/// The flags of TCP that move states.
pub(super) const CONTROLS: u8 = FIN | SYN | RST | ACK;

/// What the [`CONTROLS`] of a segment are where it leaves an established flow as it is. No segment has what is
/// returned while every packet has to be looked at more closely.
#[inline]
pub(super) fn routine(settings: &Settings) -> u8 {
    if watches_backends(settings) { u8::MAX } else { ACK }
}

/// Whether packets of a flow do not go on as they did once its backend was removed.
#[inline]
fn watches_backends(settings: &Settings) -> bool {
    settings.expire_nodest_conn || settings.drop_removed
}

/// Whether a connection has ended, so that the next one on its tuple is scheduled anew at once.
fn is_over(entry: &Entry, reuse_mode: u8) -> bool {
    let ended = match entry.state {
        State::TimeWait | State::Close | State::SctpClosed => true,
        State::FinWait => reuse_mode & 2 != 0 && !entry.sees_replies(),
        _ => false,
    };
    reuse_mode != 0 && ended
}

/// The state of a flow after a packet.
#[inline]
pub(super) fn next_state(entry: &mut Entry, way: Way, packet: &Packet, strictness: Strictness) -> State {
    match entry.proto() {
        key::TCP => entry.state.next(strictness, entry.direction(way), packet.tcp_flags),
        key::SCTP => entry.state.after(entry.direction(way), packet.sctp),
        _ => entry.state,
    }
}

/// Moves a flow to a state, and the counts of half-open flows and of its backend with it.
#[inline(never)]
pub(super) fn enter(entry: &mut Entry, slot: Slot, next: State, setup: &Setup, half_open: &mut HalfOpen) {
    let was_half_open = entry.is_half_open();
    entry.state = next;
    if next == State::Established {
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
