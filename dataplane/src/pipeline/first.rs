//! The first packet of a plain flow: TCP or UDP over untagged IPv4, to a service that wants nothing but a backend. What can
//! be asked of a packet of no known flow is many things; here a few tests say that none of them is asked of this one. Any
//! other is left to [`Core::admit`].

use super::admit::{first_state, mode_for};
use super::ahead::Foreseen;
use super::persist::{Choice, Keeps};
use super::{Core, Scratch};
use crate::flow::entry::{self, NO_HOP, Way};
use crate::flow::key::{self, FlowKey, words_v4};
use crate::flow::state::State;
use crate::flow::table::{Full, NewWords, Slot};
use crate::flow::tcp::{Direction, Strictness};
use crate::flow::{snat, templates};
use crate::frame::Frame;
use crate::ids::HopId;
use crate::packet::Packet;
use crate::schedule;
use crate::snapshot::{Backend, Mode, Service, Snapshot};
use crate::time::Tick;
use crate::trace::{Answer, Step, Trace};
use crate::verdict::{DropReason, Verdict};

/// Addresses and ports of a key over IPv4, in the order of the wire, and their hash.
pub(super) type Keyed = ((u64, u32), u64);

impl Core {
    /// What becomes of a packet of no known flow; `None`, with nothing changed, where [`Self::admit`] has to say.
    #[inline(never)]
    pub(super) fn pass_first(
        &mut self,
        frame: &mut Frame<'_>,
        packet: &Packet,
        note: &Scratch,
        now: Tick,
        tables: &Snapshot,
        trace: &mut impl Trace,
    ) -> Option<Result<Verdict, DropReason>> {
        let service = tables.services.service(note.first.service?)?;
        let settings = &tables.settings;
        // Packets of the same batch may have opened its flow meanwhile.
        let is_open = self.flows.is_unknown(note.hash)
            && self.flows.has_room()
            && self.half_open.count() < self.half_open_bound(settings)
            && self.defence.is_open(settings);
        if !is_open || self.elsewhere(frame, note.hash).is_some() {
            return None;
        }
        trace.step(Step::ServiceMatched(service.id));
        trace.step(Step::FlowUnknown);
        let (key, state) = (&packet.key, &self.setup.state);
        let due = match &note.first.due {
            Some(due) => schedule::confirm(service, state, due),
            None => None,
        };
        let chosen = match due {
            None => schedule::schedule(service, settings, state, key, now),
            due => due,
        };
        let Some(backend) = chosen else {
            let answer = Answer::PortUnreachable;
            return Some(self.without_backend(frame, packet, service, answer, tables, trace));
        };
        trace.step(Step::Scheduled(backend.id));
        let is_foreseen = note.first.backend == backend.id;
        let mode = if is_foreseen { note.first.mode } else { plain_mode(key, service, backend, tables) };
        let Some(mode) = mode else {
            let port = port_of(backend, key);
            let choice = Choice { backend, port, template: templates::NONE, keeps: Keeps::Flow };
            return Some(self.follow_choice(frame, packet, service, &choice, now, tables, trace));
        };
        Some(self.open_plain(frame, packet, note, service, (backend, mode), now, tables, trace))
    }

    /// Opens the flow and sends its packet.
    #[inline]
    #[expect(clippy::too_many_arguments, reason = "the packet path passes its context by hand, not in a bag")]
    fn open_plain(
        &mut self,
        frame: &mut Frame<'_>,
        packet: &Packet,
        note: &Scratch,
        service: &Service,
        (backend, mode): (&Backend, Mode),
        now: Tick,
        tables: &Snapshot,
        trace: &mut impl Trace,
    ) -> Result<Verdict, DropReason> {
        let net = &tables.net;
        let is_foreseen = note.first.backend == backend.id;
        let to_backend = if is_foreseen { note.first.hop } else { self.hop_to(backend, tables) };
        let to_client = self.ways.to_client(packet.key.src, false);
        let to_client = to_client.filter(|id| net.hop(*id).is_some()).unwrap_or(NO_HOP);
        let hops = [to_backend, to_client];
        let slot = match self.enlist(packet, note, service, (backend, mode), hops, now, tables, trace) {
            Ok(slot) => slot,
            Err(DropReason::FlowTableFull) => {
                return self.stateless(frame, packet, service, DropReason::FlowTableFull, now, tables, trace);
            }
            Err(reason) => return Err(reason),
        };
        if to_client == NO_HOP && mode.has_replies() {
            // The client's neighbour is asked for while the backend still thinks.
            let _ = self.find_hop(slot, Way::Reply, tables);
        }
        let hop = match net.hop(to_backend) {
            Some(hop) => hop,
            None => self.find_hop(slot, Way::Forward, tables)?,
        };
        if packet.key.proto == key::TCP
            && let Some(port) = self.send_first(frame, slot, hop)
        {
            let hop = self.flows.entry(slot).map_or(NO_HOP, |entry| entry.hop(Way::Forward));
            trace.step(Step::NextHop(hop));
            return Ok(Verdict::Tx(port));
        }
        self.send(frame, packet, slot, Way::Forward, tables, trace)
    }

    /// The next hop towards an IPv4 backend, if it is known; else [`NO_HOP`].
    #[inline]
    pub(super) fn hop_to(&self, backend: &Backend, tables: &Snapshot) -> HopId {
        let known = self.ways.to_backend(backend.id, key::bits(backend.addr).0, false);
        known.filter(|id| tables.net.hop(*id).is_some()).unwrap_or(NO_HOP)
    }

    /// [`Self::open`] for a plain flow over IPv4.
    #[inline]
    #[expect(clippy::too_many_arguments, reason = "the packet path passes its context by hand, not in a bag")]
    fn enlist(
        &mut self,
        packet: &Packet,
        note: &Scratch,
        service: &Service,
        (backend, mode): (&Backend, Mode),
        hops: [HopId; 2],
        now: Tick,
        tables: &Snapshot,
        trace: &mut impl Trace,
    ) -> Result<Slot, DropReason> {
        let key = &packet.key;
        if key.proto == key::TCP {
            self.half_open.tidy(&self.flows);
        }
        let (reply, reply_hash) = self.answered_as(key, note, service, (backend, mode), tables, trace)?;
        let state = state_after(packet, mode, self.strictness());
        let new = NewWords {
            words: [(key.addresses_v4(), key.ports()), reply],
            hashes: [note.hash, reply_hash],
            proto: key.proto,
            mode,
            service: service.id,
            backend: backend.id,
            hops,
            epoch: tables.net.epoch,
            state,
            expires: now.after_seconds(tables.timeouts.of(state)),
        };
        let slot = match self.flows.open_words(&new) {
            Ok(slot) => slot,
            Err(_) => self.open_in_the_place_of_another(&new, now)?,
        };
        trace.step(Step::FlowOpened(mode));
        self.setup.stats.flows_opened.add(1);
        self.setup.stats.opened(backend.id);
        self.publish(new.hashes, new.mode);
        if let Some(counts) = self.setup.state.backend(backend.id) {
            counts.opened_as(state.is_active());
        }
        if state.is_half_open()
            && let Some(entry) = self.flows.entry(slot)
        {
            self.half_open.began(slot, entry);
            self.setup.stats.half_open.set(self.half_open.count() as u64);
        }
        Ok(slot)
    }

    /// Opens a flow where the table has no room for it, if another one may go.
    #[cold]
    fn open_in_the_place_of_another(&mut self, new: &NewWords, now: Tick) -> Result<Slot, DropReason> {
        let opened = if self.make_room(now) { self.flows.open_words(new) } else { Err(Full) };
        opened.map_err(|Full| DropReason::FlowTableFull)
    }

    /// [`Self::reply_key`] for a plain flow over IPv4.
    #[inline]
    fn answered_as(
        &mut self,
        key: &FlowKey,
        note: &Scratch,
        service: &Service,
        (backend, mode): (&Backend, Mode),
        tables: &Snapshot,
        trace: &mut impl Trace,
    ) -> Result<Keyed, DropReason> {
        if mode == Mode::FullNat {
            // Counted by attempts, so that a retransmission after a failed one searches elsewhere.
            self.attempts = self.attempts.wrapping_add(1);
        }
        let is_free = |(words, hash): &Keyed| {
            self.flows.is_unknown(*hash) || self.flows.lookup_words(*hash, *words, key.proto).is_none()
        };
        let Foreseen { backend: likely, attempts, reply, .. } = note.first;
        let is_foreseen = likely == backend.id && attempts == self.attempts;
        let taken = match mode {
            Mode::FullNat if is_foreseen && is_free(&reply) => reply,
            Mode::FullNat => {
                let from = source(backend, key);
                let mut answers = self
                    .candidates(note.hash, service, backend, key, self.attempts, tables)
                    .into_iter()
                    .flatten()
                    .map(|to| self.keyed(from, to, key.proto));
                answers.find(is_free).ok_or(DropReason::SnatExhausted)?
            }
            mode => {
                let reply = if is_foreseen { reply } else { self.untranslated(backend, key) };
                if mode.has_replies() && !is_free(&reply) {
                    return Err(DropReason::TupleInUse);
                }
                return Ok(reply);
            }
        };
        let ((addresses, ports), _) = taken;
        let ([_, address], [_, port]) = (entry::addresses(addresses), entry::ports(ports));
        trace.step(Step::SnatTaken { address: key::address(address.into(), false), port });
        Ok(taken)
    }

    /// What the backend's packets of a new plain flow over IPv4 will carry, unless that is taken.
    #[inline]
    pub(super) fn first_answer(
        &self,
        key: &FlowKey,
        hash: u64,
        service: &Service,
        (backend, mode): (&Backend, Mode),
        attempts: u64,
        tables: &Snapshot,
    ) -> Option<Keyed> {
        if mode != Mode::FullNat {
            return Some(self.untranslated(backend, key));
        }
        let pool = tables.services.pool(service.pool?)?;
        let first = match tables.steering {
            None => snat::first(pool, self.setup.worker, self.setup.workers, hash ^ attempts),
            Some(_) => None,
        };
        let pair = match first {
            Some(pair) => pair,
            None => self.first_candidate(hash, service, backend, key, attempts, tables)?,
        };
        Some(self.keyed(source(backend, key), pair, key.proto))
    }

    /// The first of [`Self::candidates`], apart from where they are seldom needed.
    #[inline(never)]
    fn first_candidate(
        &self,
        hash: u64,
        service: &Service,
        backend: &Backend,
        key: &FlowKey,
        attempts: u64,
        tables: &Snapshot,
    ) -> Option<(u32, u16)> {
        self.candidates(hash, service, backend, key, attempts, tables)?.next()
    }

    /// The IPv4 addresses and ports that may stand for a client towards a backend.
    #[inline]
    fn candidates<'t>(
        &self,
        hash: u64,
        service: &Service,
        backend: &Backend,
        key: &FlowKey,
        attempts: u64,
        tables: &'t Snapshot,
    ) -> Option<impl Iterator<Item = (u32, u16)> + use<'t>> {
        let id = service.pool?;
        let pool = tables.services.pool(id)?;
        // What this worker may take of it, whatever suits.
        let pairs =
            snat::Candidates::new(pool, self.setup.worker, self.setup.workers, false, hash ^ attempts);
        let suited = self.suited(id, backend, port_of(backend, key), key.proto, tables);
        Some(pairs.preferring(suited).map(|(address, port)| (low(address), port)))
    }

    /// What the backend's packets carry where the client's address is kept.
    #[inline]
    fn untranslated(&self, backend: &Backend, key: &FlowKey) -> Keyed {
        self.keyed(source(backend, key), (low(key.src), key.sport), key.proto)
    }

    #[inline]
    fn keyed(&self, from: (u32, u16), to: (u32, u16), proto: u8) -> Keyed {
        let words = words_v4(from, to);
        (words, key::hash_v4(words.0, words.1, proto, self.setup.seed))
    }
}

/// The state of a plain flow that this packet opens.
#[inline]
fn state_after(packet: &Packet, mode: Mode, strictness: Strictness) -> State {
    let direction = if mode.has_replies() { Direction::Input } else { Direction::InputOnly };
    match first_state(packet) {
        State::Udp => State::Udp,
        none => none.next(strictness, direction, packet.tcp_flags),
    }
}

/// Where an IPv4 backend's packets of a flow come from.
#[inline]
fn source(backend: &Backend, key: &FlowKey) -> (u32, u16) {
    (low(key::bits(backend.addr).0), port_of(backend, key))
}

/// The port of a flow's packets to this backend.
#[inline]
fn port_of(backend: &Backend, key: &FlowKey) -> u16 {
    if backend.port == 0 { key.dport } else { backend.port }
}

/// How a flow to this backend is forwarded, if it is no more than one between two IPv4 addresses.
#[inline]
pub(super) fn plain_mode(
    key: &FlowKey,
    service: &Service,
    backend: &Backend,
    tables: &Snapshot,
) -> Option<Mode> {
    if backend.mode.is_tunnel() || !backend.addr.is_ipv4() {
        return None;
    }
    mode_for(key, service, backend, tables).ok()
}

/// An IPv4 address out of a key's.
#[inline]
#[expect(clippy::cast_possible_truncation, reason = "IPv4 addresses are the low 32 bits")]
fn low(addr: u128) -> u32 {
    addr as u32
}
