//! Looking ahead at packets of no known flow: which service they are for, which backend will probably take them, and all
//! memory that opening their flows will need.
//!
//! One leads to the next: the address to the service, that to its scheduler's position and its list, the list to the backend,
//! the backend to its counters, its way and the reply's bucket. So a few packets take each step together, and what the next
//! step reads is on its way for all of them at once.

use std::sync::atomic::Ordering::Relaxed;

use super::admit::{check_source, opens};
use super::first::{Keyed, plain_mode};
use super::{Core, Lane, STAGE, Scratch};
use crate::flow::entry::NO_HOP;
use crate::flow::key::VipKey;
use crate::flow::table::{Hit, Slot};
use crate::frame::Frame;
use crate::ids::{BackendId, HopId, NO_BACKEND, ServiceId};
use crate::packet::{Packet, Plain};
use crate::prefetch::{prefetch, prefetch_whole};
use crate::schedule::{self, Due};
use crate::snapshot::{Backend, FTP, Mode, Service, Snapshot};

/// Packets that are looked ahead at together. As many pass between that and the first one's verdict.
pub(super) const GROUP: usize = STAGE / 2;

/// What can be said of a packet of no known flow before the packets in front of it were decided on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Foreseen {
    /// The service that it opens a flow of, if nothing but the scheduler has a say in it.
    pub(super) service: Option<ServiceId>,
    /// The place in the service's list of the backend that is [asked first](schedule::first_asked).
    pub(super) asked: Option<usize>,
    /// The backend that will probably be chosen.
    pub(super) backend: BackendId,
    /// How the flow is then forwarded.
    pub(super) mode: Option<Mode>,
    /// How that choice is made in few steps.
    pub(super) due: Option<Due>,
    /// What [`Core::attempts`] then is.
    pub(super) attempts: u64,
    /// What the backend's packets will then carry, if that is free.
    pub(super) reply: Keyed,
    /// The next hop towards the backend; [`NO_HOP`] where it is not known.
    pub(super) hop: HopId,
}

impl Foreseen {
    pub(super) const NOTHING: Self = Self {
        service: None,
        asked: None,
        backend: NO_BACKEND,
        mode: None,
        due: None,
        attempts: 0,
        reply: ((0, 0), 0),
        hop: NO_HOP,
    };

    /// Says nothing any more.
    #[inline]
    fn forget(&mut self) {
        (self.service, self.asked, self.backend, self.due) = (None, None, NO_BACKEND, None);
    }

    /// Whether it opens a flow of a service, and nothing but the scheduler has a say in it.
    #[inline]
    pub(super) fn opens_plainly(&self) -> bool {
        self.service.is_some()
    }
}

/// How far a batch was looked ahead.
#[derive(Debug)]
pub(super) struct Ahead<'t> {
    positions: Positions,
    /// What [`Core::attempts`] will be.
    attempts: u64,
    /// The slot that the next flow will probably take.
    slot: Option<Slot>,
    /// The service of the packet before, if that one wants nothing but a backend for a new flow.
    plain: Option<ServiceId>,
    /// The service that was found last, and by what.
    last: Option<(VipKey, Found<'t>)>,
}

impl Ahead<'_> {
    /// Not at all.
    #[inline]
    pub(super) fn new(core: &Core) -> Self {
        let (attempts, slot) = (core.attempts, core.flows.next_slot());
        Self { positions: Positions::default(), attempts, slot, plain: None, last: None }
    }
}

/// Positions of schedulers as they will be once the packets before were decided on, by the low bits of the service's id.
type Positions = [(Option<ServiceId>, u64); 8];

/// A service that a packet may be for.
type Found<'t> = (ServiceId, &'t Service);

impl Core {
    /// Looks ahead at the packets of no known flow among these, [`GROUP`] at most. What depends on nothing but packet and
    /// tables is found out here for good; the backend and its SNAT port are a guess, which is right as long as no other
    /// worker uses the service's scheduler meanwhile.
    #[inline(never)]
    pub(super) fn foresee<'t>(
        &self,
        frames: &[Frame<'_>],
        notes: &mut [Scratch],
        ahead: &mut Ahead<'t>,
        tables: &'t Snapshot,
    ) {
        let mut group = [None; GROUP];
        for ((frame, note), found) in frames.iter().zip(&mut *notes).zip(&mut group) {
            note.first.forget();
            if note.hit == Hit::NONE && note.lane != Lane::Parsed {
                *found = self.look_for_service(frame, note, ahead, tables);
            }
        }
        for ((frame, note), found) in frames.iter().zip(&mut *notes).zip(&mut group) {
            *found = found.filter(|found| self.aim(frame, note, *found, ahead, tables).is_some());
        }
        for (note, found) in notes.iter().zip(&group) {
            if let Some((_, service)) = found {
                self.fetch_backend(service, note.first.asked);
            }
        }
        for (note, found) in notes.iter_mut().zip(group) {
            if let Some((_, service)) = found {
                self.guess(note, service, ahead, tables);
            }
        }
    }

    /// Reads a packet that may open a flow. Returns the service that has its address, and has that and its state fetched.
    #[inline]
    fn look_for_service<'t>(
        &self,
        frame: &Frame<'_>,
        note: &mut Scratch,
        ahead: &mut Ahead<'t>,
        tables: &'t Snapshot,
    ) -> Option<Found<'t>> {
        let packet = frame.head::<Plain>()?.packet();
        let (key, settings) = (&packet.key, &tables.settings);
        let is_plain = packet.ttl > 1 && key.sport != FTP - 1 && opens(&packet, settings);
        if !is_plain || !self.turn.is_finished(frame, &packet, tables) {
            return None;
        }
        let vip = key.vip();
        let found = match ahead.last {
            Some((known, found)) if known == vip => found,
            _ => {
                let found = tables.services.find_plain(key)?;
                prefetch_whole(found.1);
                if let Some(state) = self.setup.state.service(found.0) {
                    prefetch(state);
                }
                if !tables.services.tells_clients_apart() {
                    ahead.last = Some((vip, found));
                }
                found
            }
        };
        note.parsed = Ok(packet);
        Some(found)
    }

    /// Notes the service if nothing but its scheduler has a say in the packet, and has the backend fetched that is asked
    /// first.
    #[inline]
    fn aim(
        &self,
        frame: &Frame<'_>,
        note: &mut Scratch,
        (id, service): Found<'_>,
        ahead: &mut Ahead<'_>,
        tables: &Snapshot,
    ) -> Option<()> {
        let Ok(Packet { key, .. }) = &note.parsed else { return None };
        if ahead.plain != Some(id) {
            ahead.plain = service.is_plain().then_some(id);
        }
        ahead.plain?;
        check_source(key, service, frame.port, tables).ok()?;
        note.first.service = Some(id);
        let position = self.position(id, &mut ahead.positions)?;
        note.first.asked = schedule::first_asked(service, key, *position);
        if let Some(backend) = note.first.asked.and_then(|place| service.backends.get(place)) {
            prefetch_whole(backend);
        }
        Some(())
    }

    /// The position of a service's scheduler.
    #[inline]
    fn position<'p>(&self, id: ServiceId, positions: &'p mut Positions) -> Option<&'p mut u64> {
        let place = id.index() % positions.len();
        let (of, position) = positions.get_mut(place)?;
        if *of != Some(id) {
            *position = self.setup.state.service(id)?.cursor.load(Relaxed);
            *of = Some(id);
        }
        Some(position)
    }

    /// Has what is counted and known of a backend fetched.
    #[inline]
    fn fetch_backend(&self, service: &Service, place: Option<usize>) {
        let Some(Backend { id, .. }) = place.and_then(|place| service.backends.get(place)) else { return };
        self.setup.state.prefetch_backend(*id);
        self.setup.stats.prefetch_backend(*id);
        self.ways.prefetch_backend(*id);
    }

    /// Guesses the backend and what its packets will carry, and has the reply's bucket and the entry fetched.
    #[inline]
    fn guess(
        &self,
        note: &mut Scratch,
        service: &Service,
        ahead: &mut Ahead<'_>,
        tables: &Snapshot,
    ) -> Option<()> {
        let Scratch { parsed: Ok(Packet { key, .. }), hash, first, .. } = note else { return None };
        if let Some(slot) = ahead.slot {
            self.flows.prefetch_slot(slot);
            ahead.slot = self.flows.slot_behind(slot);
        }
        let position = self.position(service.id, &mut ahead.positions)?;
        let state = &self.setup.state;
        let (backend, due) = schedule::foresee(service, state, key, first.asked?, position)?;
        let mode = plain_mode(key, service, backend, tables)?;
        ahead.attempts = ahead.attempts.wrapping_add((mode == Mode::FullNat).into());
        let attempts = ahead.attempts;
        let reply = self.first_answer(key, *hash, service, (backend, mode), attempts, tables)?;
        (first.backend, first.mode, first.due) = (backend.id, Some(mode), due);
        (first.attempts, first.reply) = (attempts, reply);
        self.flows.prefetch(reply.1);
        first.hop = self.hop_to(backend, tables);
        if let Some(hop) = tables.net.hop(first.hop) {
            prefetch(hop);
        }
        Some(())
    }
}
