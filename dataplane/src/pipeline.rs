//! The whole path of a packet on one screen.
//!
//! A packet passes three stages, so that its memory is on its way while others are worked on: parse and prefetch the
//! flow's bucket; find its tag and prefetch the entry, or, for a packet of no known flow, what opening one will need;
//! confirm, translate, and give the verdict. Each stage is a few packets behind the one before it.

mod admit;
mod ahead;
mod answer;
mod cookies;
mod defence;
mod deliver;
mod established;
mod first;
#[cfg(any(test, fuzzing))]
#[allow(clippy::indexing_slicing, clippy::expect_used, missing_docs, reason = "a fixture may panic")]
pub mod fixture;
mod fragment;
mod ftp;
mod icmp;
#[cfg(any(test, fuzzing))]
#[allow(clippy::indexing_slicing, clippy::expect_used, clippy::panic, reason = "a check may panic")]
pub mod model;
mod path_mtu;
mod persist;
mod plain;
#[cfg(any(test, fuzzing))]
#[allow(
    clippy::cast_possible_truncation,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a check may panic, and its numbers are small"
)]
pub mod reference;
mod room;
mod shape;
mod stateless;
mod steer;
mod sweep;
#[cfg(test)]
#[allow(clippy::cast_possible_truncation, reason = "test numbers are small")]
mod tests;
mod ways;

use self::ahead::GROUP;
use self::established::or_drop;
use std::net::IpAddr;
use std::sync::Arc;

use crate::flow::call::CallId;
use crate::flow::cookie::Secret;
use crate::flow::directory::Directory;
use crate::flow::entry;
use crate::flow::fragments::Fragments;
use crate::flow::half_open::HalfOpen;
use crate::flow::key::{TCP, UDP};
use crate::flow::table::{FlowTable, Heap, Hit, MAX_FLOWS, Reserve, Slot};
use crate::flow::templates::Templates;
use crate::frame::{BATCH, Frame};
use crate::ids::{BackendId, PortId, ServiceId, WorkerId};
use crate::packet::{self, Kind, Packet, Plain};
use crate::snapshot::{Mode, Snapshot};
use crate::state::State;
use crate::stats::WorkerStats;
use crate::time::Tick;
use crate::trace::{Silent, Step, Trace};
use crate::verdict::{DropReason, Verdict};
use crate::wanted::Wanted;

/// What an engine is made with.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Which worker it serves.
    pub worker: WorkerId,
    /// How many workers there are.
    pub workers: u8,
    /// Flows at most. Of clients of persistent services a quarter more are remembered.
    pub flow_limit: usize,
    /// Counts shared by all workers.
    pub state: Arc<State>,
    /// Which worker owns a flow; shared by all workers.
    pub directory: Arc<Directory>,
    /// This worker's counters.
    pub stats: Arc<WorkerStats>,
    /// Neighbours that control should ask for; shared by all workers.
    pub wanted: Arc<Wanted>,
    /// Keys the hashes: random for each process, the same for all its workers.
    pub seed: u64,
}

/// One flow, for `weir show flows`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields are what their names say")]
pub struct FlowRecord {
    pub proto: u8,
    pub client: (IpAddr, u16),
    pub vip: (IpAddr, u16),
    pub snat: (IpAddr, u16),
    pub backend: (IpAddr, u16),
    pub service_id: ServiceId,
    pub backend_id: BackendId,
    pub mode: Mode,
    pub state: &'static str,
    pub expires_s: u32,
    pub call_id: CallId,
}

/// The packet engine of one worker, with the worker's own state.
#[derive(Debug)]
pub struct Engine {
    core: Core,
    scratch: Box<[Scratch; BATCH]>,
}

/// How many packets a stage is behind the one before it. While one packet is decided on, the entries of so many that follow
/// and the buckets of as many behind those are on their way. More than a few, for packets of one flow often come one after the
/// other, and all of them wait for the same two lines.
const STAGE: usize = 16;

/// How many packets ahead the addresses of IPv6 flows are fetched.
const WIDE: usize = 4;

/// What the first two stages leave for the third.
#[derive(Clone, Copy, Debug)]
struct Scratch {
    hash: u64,
    hit: Hit,
    lane: Lane,
    /// The packet, where it is not plain, and where it is one that [opens a flow plainly](ahead::Foreseen::opens_plainly).
    parsed: Result<Packet, DropReason>,
    /// What is foreseen of it, where it is plain and of no known flow.
    first: ahead::Foreseen,
}

/// How far a packet was parsed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lane {
    /// [`Plain`] TCP: it most likely goes where the flow's other packets went.
    PlainTcp,
    /// [`Plain`] UDP.
    PlainUdp,
    /// Any other, or faulty.
    Parsed,
}

impl Scratch {
    const EMPTY: Self = Self {
        hash: 0,
        hit: Hit::NONE,
        lane: Lane::Parsed,
        parsed: Err(DropReason::Truncated),
        first: ahead::Foreseen::NOTHING,
    };

    /// Parses a frame and has the bucket of its flow fetched.
    #[inline(always)]
    fn read(&mut self, frame: &Frame<'_>, flows: &FlowTable) {
        if let Some(plain) = Plain::of(frame.bytes()) {
            (self.lane, self.hash) = if plain.protocol() == TCP {
                (Lane::PlainTcp, flows.hash_plain(plain, TCP))
            } else {
                (Lane::PlainUdp, flows.hash_plain(plain, UDP))
            };
        } else {
            self.lane = Lane::Parsed;
            self.parsed = packet::uncommon(frame.bytes());
            self.hash = self.parsed.map_or(0, |packet| flows.hash(&packet.key));
        }
        flows.prefetch(self.hash);
    }

    /// Finds what probably is its flow and has that fetched. Returns whether there is one.
    #[inline(always)]
    fn probe(&mut self, flows: &FlowTable) -> bool {
        let hit = flows.probe(self.hash);
        self.hit = hit.unwrap_or(Hit::NONE);
        hit.is_some()
    }
}

/// A batch under way.
struct Batch<'b, 'f> {
    core: &'b mut Core,
    notes: &'b mut [Scratch],
    frames: &'b mut [Frame<'f>],
    verdicts: &'b mut [Verdict],
    now: Tick,
    tables: &'b Snapshot,
    ahead: ahead::Ahead<'b>,
    /// Where the first stage is.
    place: usize,
    /// Where the packets that were probed since the first one of no known flow are to be looked ahead at.
    stop: usize,
    /// Packets that were not for the shortest path.
    considered: u64,
}

/// A [stop](Batch::stop) that no batch comes to.
const NEVER: usize = usize::MAX;

impl Batch<'_, '_> {
    /// Moves the first stage on to `until`, and the others behind it; of the three only those that have packets meanwhile. Each
    /// such part of a batch is a function of its own, for asking about a stage each time would cost more, and keep fewer values in
    /// registers.
    #[inline(never)]
    fn run<const READ: bool, const PROBE: bool, const DECIDE: bool>(&mut self, until: usize) {
        let (core, frames, tables, now) = (&mut *self.core, &mut *self.frames, self.tables, self.now);
        let count = frames.len();
        let (Some(notes), Some(verdicts)) = (self.notes.get_mut(..count), self.verdicts.get_mut(..count))
        else {
            return;
        };
        let mut place = self.place;
        while place < until {
            let mut pause = until.min(self.stop);
            while place < pause {
                if READ && let (Some(frame), Some(note)) = (frames.get(place), notes.get_mut(place)) {
                    note.read(frame, &core.flows);
                }
                if PROBE
                    && let Some(note) = notes.get_mut(place.wrapping_sub(STAGE))
                    && !note.probe(&core.flows)
                {
                    self.stop = self.stop.min(place + GROUP);
                    pause = until.min(self.stop);
                }
                let decided = place.wrapping_sub(2 * STAGE);
                if DECIDE
                    && let (Some(frame), Some(note)) = (frames.get_mut(decided), notes.get(decided))
                    && let Some(verdict) = verdicts.get_mut(decided)
                {
                    if note.lane != Lane::PlainTcp
                        && let Some(next) = notes.get(decided + WIDE)
                    {
                        core.flows.prefetch_wide(next.hit);
                    }
                    if let Some(port) = core.pass_shortest(frame, note, now, tables, &mut Silent) {
                        *verdict = Verdict::Tx(port);
                    } else {
                        *verdict = core.consider(frame, note, now, tables, &mut Silent);
                        core.setup.stats.verdict(*verdict);
                        self.considered += 1;
                    }
                }
                place += 1;
            }
            if place == self.stop {
                let group = place - STAGE - GROUP..count.min(place - STAGE);
                if let (Some(frames), Some(notes)) = (frames.get(group.clone()), notes.get_mut(group)) {
                    core.foresee(frames, notes, &mut self.ahead, tables);
                }
                self.stop = NEVER;
            }
        }
        self.place = place;
    }
}

/// Templates for so many flows: a quarter more. Flows at the limit then hold no more than leave some to be had.
fn templates_limit(flow_limit: usize) -> usize {
    flow_limit.saturating_add((flow_limit / 4).max(1))
}

/// The engine without its scratch memory.
#[derive(Debug)]
struct Core {
    setup: Setup,
    flows: FlowTable,
    templates: Templates,
    sweep: sweep::Progress,
    answers: answer::Allowance,
    half_open: HalfOpen,
    defence: defence::State,
    secret: Secret,
    /// Backends so far that have answered Weir's own SYN.
    backends_answered: u64,
    fragments: Fragments,
    /// The flow that the first fragment in hand was given, if it is for this packet alone.
    once: Option<Slot>,
    turn: plain::Turn,
    ways: ways::Ways,
    /// Searches for a SNAT port so far: spreads them.
    attempts: u64,
    /// Batches so far while cards say how they spread frames.
    batches: u64,
    /// IP headers made so far: numbers them.
    made: u16,
    path_mtus: path_mtu::PathMtus,
}

impl Engine {
    /// An engine with an empty flow table on the heap. Allocates and faults in all memory that it will ever use.
    pub fn new(setup: Setup) -> Self {
        Self::with_memory(setup, &Heap)
    }

    /// The same, with the flow table's memory from `reserve`.
    pub fn with_memory(setup: Setup, reserve: &impl Reserve) -> Self {
        let flows = FlowTable::new(setup.flow_limit, setup.seed, reserve);
        let half_open = HalfOpen::new(setup.flow_limit, reserve);
        let secret = Secret::of(setup.seed);
        let templates = Templates::new(templates_limit(setup.flow_limit), setup.seed, reserve);
        let fragments = Fragments::new(setup.flow_limit);
        let (_, backends) = setup.state.capacity();
        Self {
            core: Core {
                setup,
                flows,
                templates,
                sweep: Default::default(),
                answers: Default::default(),
                half_open,
                defence: Default::default(),
                secret,
                backends_answered: 0,
                fragments,
                once: None,
                turn: plain::Turn::default(),
                ways: ways::Ways::new(backends),
                attempts: 0,
                batches: 0,
                made: 0,
                path_mtus: path_mtu::PathMtus::new(),
            },
            scratch: Box::new([Scratch::EMPTY; BATCH]),
        }
    }

    /// Decides on every frame of a batch (at most [`BATCH`]) and rewrites it in place. `verdicts` has the length
    /// of `frames`; all are set.
    pub fn process(
        &mut self,
        frames: &mut [Frame<'_>],
        verdicts: &mut [Verdict],
        now: Tick,
        tables: &Snapshot,
    ) {
        debug_assert!(frames.len() <= BATCH && frames.len() == verdicts.len());
        let Self { core, scratch } = self;
        core.begin(now, tables);
        core.check_steering(frames, tables);
        let count = frames.len();
        core.setup.stats.frames.add(count as u64);
        let Some(notes) = scratch.get_mut(..count) else { return };
        let ahead = ahead::Ahead::new(core);
        let mut batch =
            Batch { core, notes, frames, verdicts, now, tables, ahead, place: 0, stop: NEVER, considered: 0 };
        batch.run::<true, false, false>(STAGE);
        batch.run::<true, true, false>(2 * STAGE);
        batch.run::<true, true, true>(count);
        batch.run::<false, true, true>(count + STAGE);
        batch.run::<false, false, true>(count + 2 * STAGE);
        let forwarded = (count as u64).saturating_sub(batch.considered);
        core.setup.stats.forwarded.add(forwarded);
    }

    /// Decides on one frame and tells `trace` every step: the same path as [`Self::process`], for tools.
    pub fn process_one(
        &mut self,
        frame: &mut Frame<'_>,
        now: Tick,
        tables: &Snapshot,
        trace: &mut impl Trace,
    ) -> Verdict {
        self.core.begin(now, tables);
        let mut note = Scratch::EMPTY;
        note.read(frame, &self.core.flows);
        note.probe(&self.core.flows);
        let mut ahead = ahead::Ahead::new(&self.core);
        self.core.foresee(std::slice::from_ref(frame), std::slice::from_mut(&mut note), &mut ahead, tables);
        let passed = self.core.pass_shortest(frame, &note, now, tables, trace);
        let verdict =
            passed.map_or_else(|| self.core.consider(frame, &note, now, tables, trace), Verdict::Tx);
        match verdict {
            Verdict::Drop(reason) | Verdict::Reply(Some(reason)) => trace.step(Step::Refused(reason)),
            Verdict::Unresolved => trace.step(Step::Refused(DropReason::NoNeighbour)),
            Verdict::Early => trace.step(Step::Refused(DropReason::FragmentUnmatched)),
            Verdict::Unanswered => trace.step(Step::Refused(DropReason::BackendSilent)),
            _ => {}
        }
        self.core.setup.stats.frames.add(1);
        self.core.setup.stats.verdict(verdict);
        verdict
    }

    /// Copies live flows, and then templates, into `out` until its capacity is used or `limit` slots were looked at,
    /// from slot `cursor` on. Returns the next cursor, `None` at the end of both tables. Allocates nothing.
    pub fn dump(&self, cursor: usize, limit: usize, now: Tick, out: &mut Vec<FlowRecord>) -> Option<usize> {
        if let Some(cursor) = cursor.checked_sub(MAX_FLOWS) {
            return self.dump_templates(cursor, limit, now, out).map(|next| MAX_FLOWS + next);
        }
        let flows = &self.core.flows;
        let high = flows.high_water() as usize;
        let end = high.min(cursor.saturating_add(limit));
        for slot in cursor..end {
            if out.len() == out.capacity() {
                return Some(slot);
            }
            let live = u32::try_from(slot).ok().and_then(|slot| flows.entry(slot));
            out.extend(live.map(|entry| self.core.record(entry, now)));
        }
        if end < high {
            return Some(end);
        }
        (!self.core.templates.is_empty()).then_some(MAX_FLOWS)
    }

    /// [`Self::dump`] for templates, which follow the flows.
    fn dump_templates(
        &self,
        cursor: usize,
        limit: usize,
        now: Tick,
        out: &mut Vec<FlowRecord>,
    ) -> Option<usize> {
        let templates = &self.core.templates;
        let high = templates.high_water();
        let end = high.min(cursor.saturating_add(limit));
        for index in cursor..end {
            if out.len() == out.capacity() {
                return Some(index);
            }
            let live = u32::try_from(index).ok().and_then(|index| templates.get(index));
            out.extend(live.map(|template| persist::record(template, templates.call_id(template), now)));
        }
        (end < high).then_some(end)
    }

    /// Flows in the table.
    pub fn flows(&self) -> usize {
        self.core.flows.len()
    }

    /// Clients of persistent services that are remembered.
    pub fn templates(&self) -> usize {
        self.core.templates.len()
    }

    /// A number that changes with every first fragment: then frames that were [`Verdict::Early`] are worth another try.
    #[inline]
    pub fn first_fragments(&self) -> u64 {
        self.core.fragments.arrived()
    }

    /// A number that changes whenever a backend has answered that was asked in its client's stead: then frames that were
    /// [`Verdict::Unanswered`] are worth another try.
    #[inline]
    pub fn backends_answered(&self) -> u64 {
        self.core.backends_answered
    }

    /// What changes whenever frames that wait for other frames are worth another try.
    pub fn news(&self) -> (u64, u64) {
        (self.first_fragments(), self.backends_answered())
    }

    /// This worker's counters.
    pub fn stats(&self) -> &WorkerStats {
        &self.core.setup.stats
    }
}

impl Core {
    /// One packet on the shortest path, if that is for it.
    #[inline(always)]
    fn pass_shortest(
        &mut self,
        frame: &mut Frame<'_>,
        note: &Scratch,
        now: Tick,
        tables: &Snapshot,
        trace: &mut impl Trace,
    ) -> Option<PortId> {
        if note.lane != Lane::PlainTcp {
            return None;
        }
        self.pass_plain(frame, note.hit, now, tables, trace)
    }

    /// Any packet: the flow that is known, else the flow that may be opened, else what is answered or left.
    #[inline(never)]
    fn consider(
        &mut self,
        frame: &mut Frame<'_>,
        note: &Scratch,
        now: Tick,
        tables: &Snapshot,
        trace: &mut impl Trace,
    ) -> Verdict {
        if note.hit == Hit::NONE
            && note.first.opens_plainly()
            && let Ok(packet) = &note.parsed
            && let Some(outcome) = self.pass_first(frame, packet, note, now, tables, trace)
        {
            return or_drop(outcome);
        }
        let plain;
        let packet = match (note.lane, &note.parsed) {
            (Lane::Parsed, Ok(packet)) => packet,
            (Lane::Parsed, Err(reason)) => return Verdict::Drop(*reason),
            (Lane::PlainTcp | Lane::PlainUdp, _) => {
                let Some(headers) = frame.head::<Plain>() else {
                    return Verdict::Drop(DropReason::Truncated);
                };
                plain = headers.packet();
                &plain
            }
        };
        if packet.kind != Kind::Transport {
            return or_drop(self.other(frame, packet, note.hash, now, tables, trace));
        }
        let probable = self.forward(frame, packet, note.hash, note.hit, now, tables, trace);
        probable.unwrap_or_else(|| self.search(frame, packet, note.hash, now, tables, trace))
    }

    /// A packet that is not of the flow that its tag has named, if it has named one.
    #[inline(never)]
    fn search(
        &mut self,
        frame: &mut Frame<'_>,
        packet: &Packet,
        hash: u64,
        now: Tick,
        tables: &Snapshot,
        trace: &mut impl Trace,
    ) -> Verdict {
        let hit = self.flows.lookup(hash, &packet.key);
        let known = hit.and_then(|hit| self.forward(frame, packet, hash, hit, now, tables, trace));
        known.unwrap_or_else(|| or_drop(self.admit(frame, packet, hash, now, tables, trace)))
    }

    /// Everything that is no whole TCP, UDP or SCTP packet.
    #[cold]
    fn other(
        &mut self,
        frame: &mut Frame<'_>,
        packet: &Packet,
        hash: u64,
        now: Tick,
        tables: &Snapshot,
        trace: &mut impl Trace,
    ) -> Result<Verdict, DropReason> {
        let services = &tables.services;
        match packet.kind {
            Kind::IcmpError => self.icmp_error(frame, packet, tables, trace),
            Kind::TunnelError => self.tunnel_protocol_error(frame, packet, tables, trace),
            Kind::ArpRequest | Kind::NeighbourSolicitation | Kind::EchoRequest
                if services.owns(packet.key.dst, packet.key.v6) =>
            {
                self.respond(frame, packet, tables, trace)
            }
            Kind::FirstFragment => Ok(self.first_fragment(frame, packet, hash, now, tables, trace)),
            Kind::Fragment => self.later_fragment(frame, packet, now, tables, trace),
            _ => {
                trace.step(Step::NotOurs);
                Ok(self.to_kernel(frame, packet, tables))
            }
        }
    }

    /// Leaves a frame to the kernel, with a note on a checksum that its sender left unfinished.
    fn to_kernel(&self, frame: &mut Frame<'_>, packet: &Packet, tables: &Snapshot) -> Verdict {
        if tables.net.leaves_checksums(frame.port) {
            crate::rewrite::nat::note_partial(frame, packet);
        }
        Verdict::Kernel
    }

    /// The other worker that owns the flow of `hash`, for a frame that came straight from an interface.
    fn elsewhere(&self, frame: &Frame<'_>, hash: u64) -> Option<WorkerId> {
        if self.setup.workers < 2 || frame.handed_over {
            return None;
        }
        self.setup.directory.owner(hash).filter(|owner| *owner != self.setup.worker)
    }

    /// A batch begins.
    #[inline]
    fn begin(&mut self, now: Tick, tables: &Snapshot) {
        self.turn = plain::Turn::new(now, tables);
        self.ways.begin(tables.net.epoch);
    }

    fn record(&self, entry: &entry::Entry, now: Tick) -> FlowRecord {
        let tuple = self.flows.tuple(entry);
        let (forward, reply) = (tuple.forward, tuple.reply);
        let client = (forward.source(), forward.sport);
        // A backend that answers the client itself sees the client.
        let snat = if entry.mode().has_replies() { (reply.destination(), reply.dport) } else { client };
        FlowRecord {
            proto: forward.proto,
            client,
            vip: (forward.destination(), forward.dport),
            snat,
            backend: (reply.source(), reply.sport),
            service_id: entry.service,
            backend_id: entry.backend,
            mode: entry.mode(),
            state: entry.state.name(),
            expires_s: entry.expires.seconds_from(now),
            call_id: CallId::default(),
        }
    }
}
