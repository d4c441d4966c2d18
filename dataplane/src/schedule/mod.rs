//! The schedulers: which backend takes a new flow. One file a scheduler.
//!
//! Formulas and the order of iteration are the kernel's (`net/netfilter/ipvs/ip_vs_*.c`): with one worker the
//! choices are the ones that IPVS makes, in the same order. Several workers share the position of rr and wrr and
//! the connection counts of lc and wlc, so the choice is made on the whole and not on one core's view.
//!
//! What a scheduler computes from the backends alone is compiled into the [`Scheduler`]; what it remembers from
//! flow to flow lies in [`ServiceState`] and outlives the snapshot, see [`carry`].

mod cursor;
mod kind;
mod lc;
mod rr;
mod sh;
mod wlc;
mod wrr;

use std::sync::atomic::Ordering::Relaxed;

use crate::flow::key::FlowKey;
use crate::snapshot::{Backend, Service};
use crate::state::{ServiceState, State};
pub use kind::{Flags, Kind, UnknownFlag, UnknownScheduler};

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
    /// Source hashing.
    Sh(sh::Table),
}

impl Scheduler {
    /// The scheduler of this kind over `backends` (newest first); `None` where the kind is not available.
    pub fn compile(kind: Kind, flags: Flags, backends: &[Backend]) -> Option<Self> {
        match kind {
            Kind::Rr => Some(Self::Rr),
            Kind::Wrr => Some(Self::Wrr(wrr::Levels::of(backends))),
            Kind::Lc => Some(Self::Lc),
            Kind::Wlc => Some(Self::Wlc),
            Kind::Sh => Some(Self::Sh(sh::Table::over(backends, flags))),
            Kind::Lblc | Kind::Lblcr | Kind::Dh | Kind::Sed | Kind::Nq | Kind::Fo | Kind::Ovf => None,
            Kind::Mh | Kind::Twos => None,
        }
    }

    /// Which scheduler it is.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Rr => Kind::Rr,
            Self::Wrr(_) => Kind::Wrr,
            Self::Lc => Kind::Lc,
            Self::Wlc => Kind::Wlc,
            Self::Sh(_) => Kind::Sh,
        }
    }
}

/// The backend that takes the flow which `key` (client to VIP) opens; `None` where none may.
///
/// `service.scheduler` was compiled for `service.backends`. The caller counts the flow in `state` before it
/// schedules the next one. rr, wrr and sh take constant time as long as few backends are drained; lc and wlc read
/// every backend's counts.
#[inline]
pub fn schedule<'a>(service: &'a Service, state: &State, key: &FlowKey) -> Option<&'a Backend> {
    let backends = &service.backends;
    match &service.scheduler {
        Scheduler::Rr => rr::next(backends, &state.service(service.id)?.cursor),
        Scheduler::Wrr(levels) => wrr::next(backends, *levels, &state.service(service.id)?.cursor),
        Scheduler::Lc => lc::least(backends, state),
        Scheduler::Wlc => wlc::least(backends, state),
        Scheduler::Sh(table) => table.find(backends, key),
    }
}

/// Takes the position of rr and wrr over from `old` to `new`, two generations of one service.
///
/// Called once for each service whose backends or scheduler a change touches, right before the snapshot with `new`
/// is published. It applies what the kernel does on a change of the list:
///
/// - rr: when the backend chosen last is removed, the position moves to the one before it, so that the one behind
///   it is next. Removals count as made before additions. Additions and edits leave the position alone.
/// - wrr: any change, also an edit to the same weight, starts over at the head of the list, at the level reached.
/// - another scheduler than before: starts afresh.
///
/// Workers may go on scheduling meanwhile, by the old list or the new: a position that their list does not have
/// resumes at the place where that backend stood.
pub fn carry(old: &Service, new: &Service, state: &ServiceState) {
    if old.scheduler.kind() != new.scheduler.kind() {
        state.cursor.store(0, Relaxed);
        state.aux.store(0, Relaxed);
        return;
    }
    match &new.scheduler {
        Scheduler::Rr => rr::carry(&old.backends, &new.backends, &state.cursor),
        Scheduler::Wrr(levels) => wrr::carry(*levels, &state.cursor),
        Scheduler::Lc | Scheduler::Wlc | Scheduler::Sh(_) => {}
    }
}

/// Whether the backend takes new flows at all: the one test that every scheduler makes.
#[inline]
fn eligible(backend: &Backend) -> bool {
    backend.weight > 0
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
