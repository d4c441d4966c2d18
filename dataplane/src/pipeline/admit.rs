//! A packet of no known flow: whose it is, and the flow that it may open.

use super::established::{enter, next_state};
use super::persist::{By, Choice, Keeps};
use super::{Core, shape};
use crate::flow::entry::{Tuple, Way};
use crate::flow::key::{self, FlowKey};
use crate::flow::state::State;
use crate::flow::table::{FlowTable, NewFlow, Slot};
use crate::flow::{sctp, snat, tcp};
use crate::frame::Frame;
use crate::ids::PortId;
use crate::packet::{Kind, Packet};
use crate::rewrite::nat;
use crate::snapshot::{Backend, FTP, Masquerade, Mode, Service, Settings, Snapshot, SynProxy, WhenEmpty};
use crate::time::Tick;
use crate::trace::{Answer, Step, Trace};
use crate::verdict::{DropReason, Verdict};
use crate::wire::tcp::{ACK, SYN};
use crate::wire::{ipv4, ipv6};

impl Core {
    /// Hands the packet to the worker that knows its flow, opens a flow for it, or says why not.
    #[inline(never)]
    pub(super) fn admit(
        &mut self,
        frame: &mut Frame<'_>,
        packet: &Packet,
        hash: u64,
        now: Tick,
        tables: &Snapshot,
        trace: &mut impl Trace,
    ) -> Result<Verdict, DropReason> {
        let key = &packet.key;
        if let Some(owner) = self.elsewhere(frame, hash) {
            trace.step(Step::FlowElsewhere(owner));
            return Ok(Verdict::Handoff(owner));
        }
        if tables.services.has_ftp()
            && let Some(verdict) = self.announced(frame, packet, now, tables, trace)
        {
            return verdict;
        }
        let Some(service) = tables.services.find(key, frame.port) else {
            return self.without_service(frame, packet, now, tables, trace);
        };
        trace.step(Step::ServiceMatched(service.id));
        trace.step(Step::FlowUnknown);
        check_source(key, service, frame.port, tables)?;
        if key.proto == key::TCP
            && service.options.syn_proxy != SynProxy::Off
            && let Some(claim) = self.claim(frame, packet, now)
        {
            return self.open_claimed(frame, packet, service, claim, now, tables, trace);
        }
        if !opens(packet, &tables.settings) {
            return self.mid_flow(frame, packet, service, now, tables, trace);
        }
        let unknown = if key.proto == key::TCP { Answer::Reset } else { Answer::PortUnreachable };
        if key.sport == FTP - 1 {
            // A server's end of an active data connection of FTP, which no client starts (`ip_vs_schedule`).
            return self.refuse(frame, packet, DropReason::NoFlow, unknown, tables, trace);
        }
        let starts = key.proto == key::TCP && packet.tcp_flags & ACK == 0;
        if starts && !service.backends.is_empty() && self.uses_cookies(service) {
            return self.welcome(frame, packet, service, now, tables, trace);
        }
        if let Some(keeper) = self.keeper(frame, packet, service, tables) {
            trace.step(Step::FlowElsewhere(keeper));
            return Ok(Verdict::Handoff(keeper));
        }
        if self.defence.drops_packet() {
            return Err(DropReason::DropPacket);
        }
        if !self.defence.lets_open(now, &tables.settings) {
            return self.stateless(frame, packet, service, DropReason::NewFlowLimit, now, tables, trace);
        }
        let Some(choice) = self.choose(frame, packet, service, By::Scheduler, now, tables) else {
            return self.without_backend(frame, packet, service, Answer::PortUnreachable, tables, trace);
        };
        trace.step(Step::Scheduled(choice.backend.id));
        self.follow_choice(frame, packet, service, &choice, now, tables, trace)
    }

    /// Opens the flow that the scheduler decided on and sends its packet, also where there is no room for the flow.
    #[expect(clippy::too_many_arguments, reason = "the packet path passes its context by hand, not in a bag")]
    pub(super) fn follow_choice(
        &mut self,
        frame: &mut Frame<'_>,
        packet: &Packet,
        service: &Service,
        choice: &Choice<'_>,
        now: Tick,
        tables: &Snapshot,
        trace: &mut impl Trace,
    ) -> Result<Verdict, DropReason> {
        match self.let_through(frame, packet, service, choice, now, tables, trace) {
            Err(DropReason::FlowTableFull) => {
                self.stateless(frame, packet, service, DropReason::FlowTableFull, now, tables, trace)
            }
            outcome => outcome,
        }
    }

    /// A packet that would open a flow, and no backend takes it: its sender is told by `answer`, if at all.
    #[cold]
    pub(super) fn without_backend(
        &mut self,
        frame: &mut Frame<'_>,
        packet: &Packet,
        service: &Service,
        answer: Answer,
        tables: &Snapshot,
        trace: &mut impl Trace,
    ) -> Result<Verdict, DropReason> {
        if let Some(counter) = self.setup.stats.refused(service.id) {
            counter.add(1);
        }
        match service.access.when_empty {
            WhenEmpty::Reject => self.refuse(frame, packet, DropReason::NoBackend, answer, tables, trace),
            WhenEmpty::Drop => Err(DropReason::NoLocalBackend),
        }
    }

    /// Opens the flow that was decided on and sends its packet.
    #[expect(clippy::too_many_arguments, reason = "the packet path passes its context by hand, not in a bag")]
    pub(super) fn let_through(
        &mut self,
        frame: &mut Frame<'_>,
        packet: &Packet,
        service: &Service,
        choice: &Choice<'_>,
        now: Tick,
        tables: &Snapshot,
        trace: &mut impl Trace,
    ) -> Result<Verdict, DropReason> {
        let slot = self.open(packet, service, choice, now, tables, trace)?;
        if choice.backend.mode.has_replies() && choice.keeps.is_flow() {
            // The client's neighbour is asked for while the backend still thinks.
            let _ = self.find_hop(slot, Way::Reply, tables);
        }
        let outcome = self.send(frame, packet, slot, Way::Forward, tables, trace);
        let is_fragmented = packet.kind == Kind::FirstFragment && matches!(outcome, Ok(Verdict::Tx(_)));
        if !choice.keeps.is_flow() && is_fragmented {
            self.keep_once(slot, now);
        } else if !choice.keeps.is_flow() {
            self.forget(slot);
        }
        outcome
    }

    /// A packet to a service that belongs to no flow and opens none. For TCP the kernel's own stack would answer it.
    #[cold]
    fn mid_flow(
        &mut self,
        frame: &mut Frame<'_>,
        packet: &Packet,
        service: &Service,
        now: Tick,
        tables: &Snapshot,
        trace: &mut impl Trace,
    ) -> Result<Verdict, DropReason> {
        if packet.key.proto != key::TCP {
            return Err(DropReason::NoFlow);
        }
        let takes_cookies = service.options.syn_proxy != SynProxy::Off;
        if takes_cookies && self.follows_claim(frame, packet, now) {
            // The client sends again, from where it was.
            return Err(DropReason::BadCookie);
        }
        if service.steady.is_some() {
            return self.resume(frame, packet, service, now, tables, trace);
        }
        let reason = if takes_cookies { DropReason::BadCookie } else { DropReason::NoFlow };
        self.refuse(frame, packet, reason, Answer::Reset, tables, trace)
    }

    /// A packet to no service: a reply to a SNAT port, one for which there could have been a service, or the kernel's.
    fn without_service(
        &mut self,
        frame: &mut Frame<'_>,
        packet: &Packet,
        now: Tick,
        tables: &Snapshot,
        trace: &mut impl Trace,
    ) -> Result<Verdict, DropReason> {
        let key = &packet.key;
        if let Some(pool) = tables.services.snat_pool(key.dst, key.v6) {
            let owner = snat::owner(pool, key.dport, self.setup.workers);
            if let Some(owner) = owner.filter(|owner| *owner != self.setup.worker && !frame.handed_over) {
                trace.step(Step::FlowElsewhere(owner));
                return Ok(Verdict::Handoff(owner));
            }
            trace.step(Step::FlowUnknown);
            return Err(DropReason::NoFlow);
        }
        if let Some(resumed) = self.resume_reply(frame, packet, now, tables, trace) {
            return resumed;
        }
        if tables.services.locality().is_for_services(key.dst, key.v6) {
            let allocated = tables.services.is_virtual(key.dst, key.v6);
            trace.step(Step::NoService { allocated });
            if !allocated {
                return Err(DropReason::UnallocatedAddress);
            }
            let (reason, answer) = (DropReason::NoServicePort, Answer::PortUnreachable);
            return self.refuse(frame, packet, reason, answer, tables, trace);
        }
        trace.step(Step::NotOurs);
        Ok(self.to_kernel(frame, packet, tables))
    }

    /// Opens the flow that `packet` starts, both ways, and counts it. One for this packet alone is not found by others.
    pub(super) fn open(
        &mut self,
        packet: &Packet,
        service: &Service,
        choice: &Choice<'_>,
        now: Tick,
        tables: &Snapshot,
        trace: &mut impl Trace,
    ) -> Result<Slot, DropReason> {
        let is_kept = choice.keeps.is_flow();
        if is_kept && packet.key.proto != key::UDP {
            self.bound_half_open(&tables.settings)?;
        }
        let backend = choice.backend;
        let mode = mode_for(&packet.key, service, backend, tables)?;
        let hash = self.flows.hash(&packet.key);
        let (reply, reply_hash) = self.reply_key(packet, hash, service, choice, mode, tables, trace)?;
        let tuple = Tuple { forward: packet.key, reply };
        let new = NewFlow { tuple, mode, service: service.id, backend: backend.id };
        let hashes = [hash, reply_hash];
        let open = |flows: &mut FlowTable| match is_kept {
            true => flows.open_hashed(&new, hashes, now),
            false => flows.open_unlinked(&new, now),
        };
        let slot = match open(&mut self.flows) {
            Ok(slot) => slot,
            Err(_) if self.make_room(now) => open(&mut self.flows).map_err(|_| DropReason::FlowTableFull)?,
            Err(_) => return Err(DropReason::FlowTableFull),
        };
        if !matches!(choice.keeps, Keeps::Nothing | Keeps::Announced) {
            trace.step(Step::FlowOpened(mode));
            self.setup.stats.flows_opened.add(1);
            self.setup.stats.opened(backend.id);
        }
        if is_kept {
            self.publish(hashes, mode);
        }
        self.hold_template(slot, choice.template, now);
        if let Some(counts) = self.setup.state.backend(backend.id) {
            counts.opened();
        }
        if backend.mode.is_tunnel() {
            self.flows.extra_mut(slot).ok_or(DropReason::FlowTableFull)?.tunnel = backend.tunnel;
        }
        let strictness = self.strictness();
        let asked = if backend.mode.has_replies() { shape::asked(service, packet) } else { None };
        if let Some(sequence) = asked {
            self.flows.extra_mut(slot).ok_or(DropReason::FlowTableFull)?.sequence = sequence;
        }
        let entry = self.flows.entry_mut(slot).ok_or(DropReason::NoFlow)?;
        if asked.is_some() {
            entry.leave_plain_path();
        }
        nat::Deltas::prepare(entry, &tuple);
        entry.count_packet(Way::Forward);
        if entry.is_ftp() {
            entry.leave_plain_path();
        }
        if entry.proto() == key::TCP && service.options.mss.is_some() {
            entry.defer_plain_path();
        }
        entry.state = first_state(packet);
        // What is in the middle of a flow has to be followed by more before it counts for one, as a SYN has.
        let first = Packet { tcp_flags: SYN, ..*packet };
        let packet = if choice.keeps == Keeps::Middle { &first } else { packet };
        let next = next_state(entry, Way::Forward, packet, strictness);
        let next = if choice.keeps == Keeps::Announced { State::Listen } else { next };
        if is_kept {
            enter(entry, slot, next, &self.setup, &mut self.half_open);
        }
        entry.expires = now.after_seconds(tables.timeouts.of(next));
        Ok(slot)
    }

    /// What the backend's packets of the new flow, whose own key has this `hash`, will carry, and the hash of that:
    /// decided by the forwarding mode.
    #[expect(clippy::too_many_arguments, reason = "the packet path passes its context by hand, not in a bag")]
    fn reply_key(
        &mut self,
        packet: &Packet,
        hash: u64,
        service: &Service,
        choice: &Choice<'_>,
        mode: Mode,
        tables: &Snapshot,
        trace: &mut impl Trace,
    ) -> Result<(FlowKey, u64), DropReason> {
        let key = &packet.key;
        let backend = choice.backend;
        let (src, v6) = key::bits(backend.addr);
        let reply = FlowKey { src, dst: key.src, sport: choice.port, dport: key.sport, proto: key.proto, v6 };
        if mode != Mode::FullNat {
            let hash = self.flows.hash(&reply);
            let needs_to_be_free = mode == Mode::Nat && choice.keeps.is_flow();
            if needs_to_be_free && !self.is_free(&reply, hash) {
                return Err(DropReason::TupleInUse);
            }
            return Ok((reply, hash));
        }
        let id = service.pool.ok_or(DropReason::SnatExhausted)?;
        let pool = tables.services.pool(id).ok_or(DropReason::SnatExhausted)?;
        // Counted by attempts, so that a retransmission after a failed one searches elsewhere.
        self.attempts = self.attempts.wrapping_add(1);
        let spread = hash ^ self.attempts;
        let (taken, hash) = snat::Candidates::new(pool, self.setup.worker, self.setup.workers, v6, spread)
            .preferring(self.suited(id, backend, choice.port, key.proto, tables))
            .map(|(address, port)| FlowKey { dst: address, dport: port, ..reply })
            .map(|candidate| (candidate, self.flows.hash(&candidate)))
            .find(|(candidate, hash)| self.is_free(candidate, *hash))
            .ok_or(DropReason::SnatExhausted)?;
        trace.step(Step::SnatTaken { address: taken.destination(), port: taken.dport });
        Ok((taken, hash))
    }

    #[inline]
    fn is_free(&self, key: &FlowKey, hash: u64) -> bool {
        self.flows.is_unknown(hash) || self.flows.lookup(hash, key).is_none()
    }

    /// Tells the other workers whose flow this is, by the hashes of its keys.
    #[inline]
    pub(super) fn publish(&self, [forward, reply]: [u64; 2], mode: Mode) {
        if self.setup.workers < 2 {
            return;
        }
        self.publish_hash(forward);
        if mode.has_replies() {
            self.publish_hash(reply);
        }
    }

    /// Tells the other workers that packets with `key` are for this one.
    pub(super) fn publish_key(&self, key: &FlowKey) {
        if self.setup.workers > 1 {
            self.publish_hash(self.flows.hash(key));
        }
    }

    fn publish_hash(&self, hash: u64) {
        if !self.setup.directory.publish(hash, self.setup.worker) {
            self.setup.stats.directory_full.add(1);
        }
    }

    /// Takes [`Self::publish_key`] back.
    pub(super) fn withdraw_key(&self, key: &FlowKey) {
        if self.setup.workers > 1 {
            self.setup.directory.withdraw(self.flows.hash(key), self.setup.worker);
        }
    }
}

/// Whether a packet of no flow opens one.
pub(super) fn opens(packet: &Packet, settings: &Settings) -> bool {
    match packet.key.proto {
        key::TCP => tcp::opens(packet.tcp_flags, settings.sloppy_tcp),
        key::SCTP => sctp::opens(packet.sctp, settings.sloppy_sctp),
        _ => true,
    }
}

/// The state of a flow that has seen nothing yet.
pub(super) fn first_state(packet: &Packet) -> State {
    match packet.key.proto {
        key::TCP => State::None,
        key::SCTP => State::SctpNone,
        _ => State::Udp,
    }
}

/// How a new flow is forwarded: as its backend wants it, unless that is `nat`, which keeps the client's address, and the
/// service does not show it to its backends. Nor can it be kept where the client is the backend: that would send a host
/// packets from itself, which it drops, and would not get its answers. Such flows are translated from the service's SNAT
/// pool.
#[inline]
pub(super) fn mode_for(
    key: &FlowKey,
    service: &Service,
    backend: &Backend,
    tables: &Snapshot,
) -> Result<Mode, DropReason> {
    if backend.mode != Mode::Nat {
        return Ok(backend.mode);
    }
    let hairpin = key::bits(backend.addr) == (key.src, key.v6);
    if hairpin && service.pool.is_none() {
        return Err(DropReason::Hairpin);
    }
    let hidden = match service.access.masquerade {
        Masquerade::Hairpin => hairpin,
        Masquerade::NotLocal => hairpin || !tables.services.locality().local.contains(key.src, key.v6),
        Masquerade::Always => true,
    };
    Ok(if hidden { Mode::FullNat } else { Mode::Nat })
}

/// Refuses senders that cannot be, since an answer to them would go astray or come back, and those that may not use the
/// service. The node's own addresses are senders behind the port that leads to its kernel.
pub(super) fn check_source(
    key: &FlowKey,
    service: &Service,
    port: PortId,
    tables: &Snapshot,
) -> Result<(), DropReason> {
    if key.src == key.dst && key.sport == key.dport {
        return Err(DropReason::Land);
    }
    let of_kernel = tables.net.kernel.is_some_and(|(kernel, _)| kernel == port);
    let is_node = of_kernel && tables.services.locality().node.contains(key.src, key.v6);
    if !is_node && tables.services.is_virtual(key.src, key.v6) {
        return Err(DropReason::SourceIsVip);
    }
    if !service.access.admits(key) {
        return Err(DropReason::SourceRange);
    }
    let is_sender = match u32::try_from(key.src) {
        Ok(v4) if !key.v6 => ipv4::is_host(v4),
        _ => ipv6::is_host(key.src),
    };
    if is_sender { Ok(()) } else { Err(DropReason::BadSource) }
}
