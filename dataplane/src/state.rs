//! What outlives a generation and is shared by all workers: scheduler cursors and connection counts.
//!
//! Sized at start and never grown. Control hands slots out and takes one back once no snapshot and no flow uses it.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicU32, AtomicU64};

use zerocopy::FromZeros;

use crate::ids::{BackendId, ServiceId};
use crate::prefetch::prefetch_at;
use crate::stats::zeros;
use crate::time::Tick;

/// A service's scheduler state. What the words mean is the scheduler's own (`schedule/`). As long as a cache line, so
/// that no two share one.
#[derive(Debug, Default, FromZeros)]
#[repr(C)]
pub struct ServiceState {
    /// First word: the position.
    pub cursor: AtomicU64,
    /// Second word: what the scheduler keeps besides.
    pub aux: AtomicU64,
    _rest: [u64; 6],
}

/// A backend's connection counts as IPVS has them, and whether they keep it from taking more. As long as a cache line,
/// so that no two share one.
#[derive(Debug, Default, FromZeros)]
#[repr(C)]
pub struct BackendState {
    /// From bit 0 on: inactive flows (32 bits), active flows (31), whether its thresholds keep new flows away (1).
    ///
    /// One word, so that a flow which moves is never counted twice, and so that the mark always belongs to the counts:
    /// in words of their own, two workers could leave an empty backend marked for good.
    load: AtomicU64,
    /// Clients that persistence keeps with it (templates).
    pub persistent: AtomicU32,
    /// See [`crate::snapshot::Backend::upper`].
    upper: AtomicU32,
    /// See [`crate::snapshot::Backend::lower`].
    lower: AtomicU32,
    /// The tick after which its remaining flows are ended, plus one; 0: never.
    ends: AtomicU32,
    _rest: [u64; 5],
}

const _: () = assert!(size_of::<ServiceState>() == 64 && size_of::<BackendState>() == 64);

/// One inactive flow in [`BackendState::load`].
const INACTIVE: u64 = 1;
/// One active flow in it.
const ACTIVE: u64 = 1 << 32;
/// The mark in it.
const OVERLOADED: u64 = 1 << 63;

impl BackendState {
    /// Active flows (TCP: those in SYN_SENT, SYN_RECV, ESTABLISHED and SYNACK) and all others.
    #[inline]
    pub fn counts(&self) -> (u32, u32) {
        split(self.load.load(Relaxed))
    }

    /// Whether it has reached its upper threshold, and not gone below the lower one since.
    #[inline]
    pub fn is_overloaded(&self) -> bool {
        self.load.load(Relaxed) & OVERLOADED != 0
    }

    /// A flow was opened; it starts inactive.
    #[inline]
    pub fn opened(&self) {
        self.opened_as(false);
    }

    /// A flow was opened, active or inactive.
    #[inline]
    pub fn opened_as(&self, active: bool) {
        let one = if active { ACTIVE } else { INACTIVE };
        let upper = self.upper.load(Relaxed);
        if upper == 0 {
            self.load.fetch_add(one, Relaxed);
        } else {
            self.update(|load| {
                let more = load + one;
                if total(more) >= upper { more | OVERLOADED } else { more }
            });
        }
    }

    /// A flow became active, or inactive.
    #[inline]
    pub fn moved(&self, active: bool) {
        if active {
            self.load.fetch_add(ACTIVE - INACTIVE, Relaxed);
        } else {
            self.load.fetch_sub(ACTIVE - INACTIVE, Relaxed);
        }
    }

    /// Persistence keeps one more client with it.
    pub fn remembered(&self) {
        self.persistent.fetch_add(1, Relaxed);
    }

    /// Persistence keeps one client less with it.
    pub fn forgotten(&self) {
        self.persistent.fetch_sub(1, Relaxed);
    }

    /// Whether nothing refers to it: neither flow nor template.
    pub fn is_unused(&self) -> bool {
        self.counts() == (0, 0) && self.persistent.load(Relaxed) == 0
    }

    /// A flow ended.
    #[inline]
    pub fn closed(&self, active: bool) {
        let one = if active { ACTIVE } else { INACTIVE };
        if self.load.fetch_sub(one, Relaxed) & OVERLOADED != 0 {
            let floor = self.floor();
            self.update(|load| if total(load) < floor { load & !OVERLOADED } else { load });
        }
    }

    /// Both thresholds, upper and lower.
    pub fn thresholds(&self) -> (u32, u32) {
        (self.upper.load(Relaxed), self.lower.load(Relaxed))
    }

    /// Sets both thresholds. A backend between them stays as it is.
    pub fn set_thresholds(&self, upper: u32, lower: u32) {
        self.upper.store(upper, Relaxed);
        self.lower.store(lower, Relaxed);
        let floor = self.floor();
        self.update(|load| match total(load) {
            _ if upper == 0 => load & !OVERLOADED,
            total if total >= upper => load | OVERLOADED,
            total if total < floor => load & !OVERLOADED,
            _ => load,
        });
    }

    /// When the flows that are left are ended: for a drained backend whose service bounds that.
    #[inline]
    pub fn ends(&self) -> Option<Tick> {
        self.ends.load(Relaxed).checked_sub(1).map(Tick)
    }

    /// Sets [`Self::ends`].
    pub fn set_ends(&self, ends: Option<Tick>) {
        self.ends.store(ends.map_or(0, |tick| tick.0.saturating_add(1)), Relaxed);
    }

    /// Empties the slot for another owner.
    pub fn clear(&self) {
        self.load.store(0, Relaxed);
        self.persistent.store(0, Relaxed);
        self.set_ends(None);
        self.set_thresholds(0, 0);
    }

    /// The flows below which an overloaded backend takes new ones again: the lower threshold, or three quarters of the
    /// upper one.
    fn floor(&self) -> u32 {
        let (upper, lower) = self.thresholds();
        if lower == 0 { upper - upper / 4 } else { lower }
    }

    fn update(&self, change: impl Fn(u64) -> u64) {
        let mut seen = self.load.load(Relaxed);
        while let Err(other) = self.load.compare_exchange_weak(seen, change(seen), Relaxed, Relaxed) {
            seen = other;
        }
    }
}

/// Active and inactive flows.
#[inline]
#[expect(clippy::cast_possible_truncation, reason = "the fields are cut out of the word")]
fn split(load: u64) -> (u32, u32) {
    (((load & !OVERLOADED) >> 32) as u32, load as u32)
}

/// All flows: what thresholds are compared with.
#[inline]
fn total(load: u64) -> u32 {
    let (active, inactive) = split(load);
    active.saturating_add(inactive)
}

/// The slabs, indexed by id.
#[derive(Debug)]
pub struct State {
    services: Box<[ServiceState]>,
    backends: Box<[BackendState]>,
}

impl State {
    /// Slabs for so many services and backends. Slots that are not used take no memory.
    pub fn new(services: usize, backends: usize) -> Self {
        Self { services: zeros(services), backends: zeros(backends) }
    }

    /// The service's slot; `None` past the slab.
    #[inline]
    pub fn service(&self, id: ServiceId) -> Option<&ServiceState> {
        self.services.get(id.index())
    }

    /// Brings the backend's slot into the cache.
    #[inline]
    pub(crate) fn prefetch_backend(&self, id: BackendId) {
        prefetch_at(&self.backends, id.index());
    }

    /// The backend's slot; `None` past the slab.
    #[inline]
    pub fn backend(&self, id: BackendId) -> Option<&BackendState> {
        self.backends.get(id.index())
    }

    /// How many services and backends there is room for.
    pub fn capacity(&self) -> (usize, usize) {
        (self.services.len(), self.backends.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thresholds_have_hysteresis() {
        // Upper, lower, then the flows at which it starts to take new ones again on the way down.
        for (upper, lower, again) in
            [(4, 0, 2), (4, 2, 1), (4, 1, 0), (1, 0, 0), (3, 0, 2), (8, 0, 5), (8, 8, 7)]
        {
            let backend = BackendState::default();
            backend.set_thresholds(upper, lower);
            for flows in 1..=upper + 2 {
                backend.opened();
                backend.moved(true);
                assert_eq!(backend.is_overloaded(), flows >= upper, "{upper} {lower} at {flows}");
            }
            for flows in (0..upper + 2).rev() {
                backend.closed(true);
                assert_eq!(backend.is_overloaded(), flows > again, "{upper} {lower} down to {flows}");
            }
            assert_eq!(backend.counts(), (0, 0));
        }
    }

    #[test]
    fn an_edit_of_the_thresholds_counts_at_once() {
        let backend = BackendState::default();
        (0..4).for_each(|_| backend.opened());
        for (upper, lower, want) in [
            (0, 0, false),
            (5, 0, false),
            (4, 0, true),
            (5, 2, true), // between the two: as it was
            (5, 5, false),
            (3, 0, true),
            (0, 0, false),
        ] {
            backend.set_thresholds(upper, lower);
            assert_eq!(backend.is_overloaded(), want, "{upper} {lower}");
            assert_eq!(backend.counts(), (0, 4));
        }
    }

    #[test]
    fn workers_never_leave_an_idle_backend_overloaded() {
        let backend = BackendState::default();
        backend.set_thresholds(2, 0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..20_000 {
                        backend.opened();
                        backend.moved(true);
                        backend.moved(false);
                        backend.closed(false);
                    }
                });
            }
        });
        assert_eq!((backend.counts(), backend.is_overloaded()), ((0, 0), false));
    }
}
