//! The schedulers: which backend takes a new flow. One file a scheduler.
//!
//! Formulas and the order of iteration are the kernel's (`net/netfilter/ipvs/ip_vs_*.c`): with one worker the
//! choices are the ones that IPVS makes, in the same order. Several workers share positions, caches and the backends'
//! connection counts, so the choice is made on the whole and not on one core's view.
//!
//! What a scheduler computes from the backends alone is compiled into the [`Scheduler`], by way of a [`Compiler`] that
//! shares what is equal; what it remembers from flow to flow outlives the snapshot, see [`carry`]: positions in
//! [`ServiceState`], the caches of lblc and lblcr beside their scheduler.

mod cache;
mod compiler;
mod cursor;
mod dh;
mod fo;
mod hash;
mod kind;
mod lblc;
mod lblcr;
mod lc;
mod mh;
mod nq;
mod ovf;
mod rr;
mod sed;
mod sh;
mod twos;
mod wlc;
mod wrr;

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use self::cursor::Cursor;
use crate::flow::key::FlowKey;
use crate::ids::{BackendId, ServiceId};
use crate::snapshot::{Backend, Service, Settings};
use crate::state::{ServiceState, State};
use crate::time::Tick;
pub use compiler::Compiler;
pub use kind::{FlagError, Flags, Kind, UnknownScheduler};
pub use mh::Lookup;

/// A scheduler with the tables that it needs, compiled for one list of backends.
#[derive(Clone, Debug, Default)]
pub enum Scheduler {
    /// Round robin.
    #[default]
    Rr,
    /// Weighted round robin.
    Wrr(wrr::Levels),
    /// Least connections.
    Lc,
    /// Weighted least connections.
    Wlc,
    /// Locality-based least connections.
    Lblc(Arc<lblc::Cache>),
    /// Locality-based least connections with replication.
    Lblcr(Arc<lblcr::Cache>),
    /// Destination hashing.
    Dh(dh::Table),
    /// Source hashing.
    Sh(sh::Table),
    /// Shortest expected delay.
    Sed,
    /// Never queue.
    Nq,
    /// Weighted failover.
    Fo,
    /// Weighted overflow.
    Ovf,
    /// Maglev hashing.
    Mh(mh::Lookup),
    /// Power of two choices.
    Twos,
}

impl Scheduler {
    /// The scheduler of this kind over `backends` (newest first), with tables of its own. Where schedulers follow each
    /// other, a [`Compiler`] makes them.
    pub fn compile(kind: Kind, flags: Flags, backends: &[Backend]) -> Self {
        Compiler::default().compile(ServiceId::default(), kind, flags, backends, None)
    }

    /// Which scheduler it is.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Rr => Kind::Rr,
            Self::Wrr(_) => Kind::Wrr,
            Self::Lc => Kind::Lc,
            Self::Wlc => Kind::Wlc,
            Self::Lblc(_) => Kind::Lblc,
            Self::Lblcr(_) => Kind::Lblcr,
            Self::Dh(_) => Kind::Dh,
            Self::Sh(_) => Kind::Sh,
            Self::Sed => Kind::Sed,
            Self::Nq => Kind::Nq,
            Self::Fo => Kind::Fo,
            Self::Ovf => Kind::Ovf,
            Self::Mh(_) => Kind::Mh,
            Self::Twos => Kind::Twos,
        }
    }

    /// Forgets the backends of which `gone` says so: their ids have new owners.
    pub fn forget(&self, gone: impl Fn(BackendId) -> bool) {
        let gone = |id| gone(BackendId(id));
        match self {
            Self::Lblc(cache) => cache.forget(&gone),
            Self::Lblcr(cache) => cache.forget(&gone),
            _ => {}
        }
    }
}

/// The backend that takes the flow which `key` (client to VIP) opens; `None` where none may.
///
/// `service.scheduler` was compiled for `service.backends`. The caller counts the flow in `state` before it
/// schedules the next one. rr, wrr, dh, sh and mh take constant time as long as few backends are drained or
/// overloaded; the others read every backend's counts, lblc and lblcr only where they do not know the destination.
#[inline]
pub fn schedule<'a>(
    service: &'a Service,
    settings: &Settings,
    state: &State,
    key: &FlowKey,
    now: Tick,
) -> Option<&'a Backend> {
    let backends = &service.backends;
    match &service.scheduler {
        Scheduler::Rr => rr::next(backends, state, &state.service(service.id)?.cursor),
        Scheduler::Wrr(levels) => wrr::next(backends, *levels, state, &state.service(service.id)?.cursor),
        Scheduler::Lc => lc::least(backends, state),
        Scheduler::Wlc => wlc::least(backends, state),
        Scheduler::Lblc(cache) => lblc::find(cache, backends, state, key, now, settings.lblc_expiration_s),
        Scheduler::Lblcr(cache) => lblcr::find(cache, backends, state, key, now, settings.lblcr_expiration_s),
        Scheduler::Dh(table) => table.find(backends, state, key),
        Scheduler::Sh(table) => table.find(backends, state, key),
        Scheduler::Sed => sed::least(backends, state),
        Scheduler::Nq => nq::first_idle(backends, state),
        Scheduler::Fo => fo::heaviest(backends, state),
        Scheduler::Ovf => ovf::heaviest_with_room(backends, state),
        Scheduler::Mh(lookup) => lookup.find(backends, state, key),
        Scheduler::Twos => twos::better(backends, state, key, &state.service(service.id)?.cursor),
    }
}

/// A choice that is due, and that [`confirm`] can make in few steps.
#[derive(Clone, Copy, Debug)]
pub struct Due {
    /// The backend's place in the list.
    place: u32,
    /// Whether the scheduler has a position.
    moves: bool,
    /// What the position has to be, and what it then is.
    before: u64,
    after: u64,
}

/// Where in the list the backend stands that takes the flow if it may, for a scheduler that takes constant time; `None` for
/// others. What a hash names is so for good, of the others `position` ([`ServiceState::cursor`]) tells. Of the list nothing is
/// read.
#[inline]
pub fn first_asked(service: &Service, key: &FlowKey, position: u64) -> Option<usize> {
    match &service.scheduler {
        Scheduler::Rr | Scheduler::Wrr(_) => {
            Some(Cursor::unpack(position).next_place(service.backends.len()))
        }
        Scheduler::Dh(table) => table.named(key),
        Scheduler::Sh(table) => table.named(key),
        Scheduler::Mh(lookup) => lookup.named(key),
        _ => None,
    }
}

/// What [`schedule`] will probably answer, for a scheduler that takes constant time; `None` for others. `asked` is what
/// [`first_asked`] said. `position` is what [`ServiceState::cursor`] holds, or will; it moves on, and nothing else changes.
#[inline]
pub fn foresee<'a>(
    service: &'a Service,
    state: &State,
    key: &FlowKey,
    asked: usize,
    position: &mut u64,
) -> Option<(&'a Backend, Option<Due>)> {
    let backends = &service.backends;
    let cursor = Cursor::unpack(*position);
    let (due, moves) = match &service.scheduler {
        Scheduler::Rr => (rr::due(backends, cursor), true),
        Scheduler::Wrr(levels) => (wrr::due(backends, *levels, cursor), true),
        _ => (Some((asked, cursor)), false),
    };
    if let Some((place, next)) = due
        && let Some(backend) = backends.get(place).filter(|backend| eligible(backend, state))
    {
        let (before, after) = (*position, next.pack());
        *position = after;
        let due = u32::try_from(place).ok().map(|place| Due { place, moves, before, after });
        return Some((backend, due));
    }
    let found = match &service.scheduler {
        Scheduler::Rr => Cursor::look_ahead(position, |cursor| rr::step(backends, state, cursor)),
        Scheduler::Wrr(levels) => {
            Cursor::look_ahead(position, |cursor| wrr::step(backends, *levels, state, cursor)).flatten()
        }
        Scheduler::Dh(table) => table.find(backends, state, key),
        Scheduler::Sh(table) => table.find(backends, state, key),
        Scheduler::Mh(lookup) => lookup.find(backends, state, key),
        _ => None,
    };
    found.map(|backend| (backend, None))
}

/// Chooses the backend that was due, as [`schedule`] would now. `None`, with nothing changed, where that may choose another.
#[inline]
pub fn confirm<'a>(service: &'a Service, state: &State, due: &Due) -> Option<&'a Backend> {
    // It stands where the search begins, so that nothing but itself decides.
    let backend = service.backends.get(due.place as usize).filter(|backend| eligible(backend, state))?;
    if due.moves {
        let cursor = &state.service(service.id)?.cursor;
        cursor.compare_exchange(due.before, due.after, Relaxed, Relaxed).ok()?;
    }
    Some(backend)
}

/// Takes what a scheduler remembers over from `old` to `new`, two generations of one service.
///
/// Called once for each service whose backends or scheduler a change touches, right before the snapshot with `new`
/// is published. It applies what the kernel does on a change of the list:
///
/// - rr: when the backend chosen last is removed, the position moves to the one before it, so that the one behind
///   it is next. Removals count as made before additions. Additions and edits leave the position alone.
/// - wrr: any change, also an edit to the same weight, starts over at the head of the list, at the level reached.
/// - lblc, lblcr: a removed backend is not chosen, and keeps its destinations should it come back with its id.
/// - another scheduler than before: starts afresh.
///
/// Workers may go on scheduling meanwhile, by the old list or the new: a position that their list does not have
/// resumes at the place where that backend stood.
pub fn carry(old: &Service, new: &Service, state: &ServiceState) {
    if old.scheduler.kind() != new.scheduler.kind() {
        start_afresh(new, state);
        return;
    }
    match &new.scheduler {
        Scheduler::Rr => rr::carry(&old.backends, &new.backends, &state.cursor),
        Scheduler::Wrr(levels) => wrr::carry(*levels, &state.cursor),
        _ => {}
    }
}

/// Has the scheduler of a new service start as if its backends had come one by one, which is how the kernel gets them.
pub fn start(service: &Service, state: &ServiceState) {
    start_afresh(service, state);
    if let Scheduler::Wrr(_) = &service.scheduler {
        wrr::start(&service.backends, &state.cursor);
    }
}

fn start_afresh(service: &Service, state: &ServiceState) {
    state.cursor.store(0, Relaxed);
    state.aux.store(0, Relaxed);
    match &service.scheduler {
        Scheduler::Lblc(cache) => cache.clear(),
        Scheduler::Lblcr(cache) => cache.clear(),
        _ => {}
    }
}

/// Whether the backend takes new flows at all: it is not drained, and its thresholds let it.
#[inline]
pub(crate) fn eligible(backend: &Backend, state: &State) -> bool {
    backend.weight > 0 && state.backend(backend.id).is_none_or(|counts| !counts.is_overloaded())
}

/// A backend's active connections.
#[inline]
fn active(backend: &Backend, state: &State) -> u32 {
    state.backend(backend.id).map_or(0, |counts| counts.counts().0)
}

/// What a backend's connections cost by IPVS's reckoning (`ip_vs_dest_conn_overhead`): 256 for each active one, as
/// an idle entry costs next to nothing, and 1 for each of all. Kernels before 6.12.117 leave the active ones out of
/// the latter, which is the same until hundreds of idle ones are there. Up to 2^41.
#[inline]
fn overhead(backend: &Backend, state: &State) -> u64 {
    let (active, inactive) = state.backend(backend.id).map_or((0, 0), |counts| counts.counts());
    let total = u64::from(active) + u64::from(inactive);
    (u64::from(active) << 8) + total
}

#[cfg(test)]
mod tests;
