//! What outlives a generation and is shared by all workers: scheduler cursors and connection counts.
//!
//! Sized at start and never grown. Control hands slots out and takes one back once no snapshot and no flow uses it.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64};

use crate::ids::{BackendId, ServiceId};
use crate::time::Tick;

/// A service's scheduler state. What the words mean is the scheduler's own (`schedule/`).
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct ServiceState {
    /// First word: the position.
    pub cursor: AtomicU64,
    /// Second word: what the scheduler keeps besides (wrr's current weight).
    pub aux: AtomicU64,
}

/// A backend's connection counts as IPVS has them, and whether they keep it from taking more.
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct BackendState {
    /// Flows in an active state (TCP: SYN_SENT, SYN_RECV, ESTABLISHED, SYNACK).
    pub active: AtomicU32,
    /// All other flows.
    pub inactive: AtomicU32,
    /// Clients that persistence keeps with it (templates).
    pub persistent: AtomicU32,
    /// Whether its thresholds keep new flows away.
    overloaded: AtomicBool,
    /// See [`crate::snapshot::Backend::upper`].
    upper: AtomicU32,
    /// See [`crate::snapshot::Backend::lower`].
    lower: AtomicU32,
    /// The tick after which its remaining flows are ended, plus one; 0: never.
    ends: AtomicU32,
}

impl BackendState {
    /// Active and inactive flows.
    #[inline]
    pub fn counts(&self) -> (u32, u32) {
        (self.active.load(Relaxed), self.inactive.load(Relaxed))
    }

    /// Whether it has reached its upper threshold, and not gone below the lower one since.
    #[inline]
    pub fn is_overloaded(&self) -> bool {
        self.overloaded.load(Relaxed)
    }

    /// A flow was opened; it starts inactive.
    #[inline]
    pub fn opened(&self) {
        self.inactive.fetch_add(1, Relaxed);
        let upper = self.upper.load(Relaxed);
        if upper != 0 && self.total() >= upper {
            self.overloaded.store(true, Relaxed);
        }
    }

    /// A flow became active, or inactive.
    #[inline]
    pub fn moved(&self, active: bool) {
        let (to, from) = if active { (&self.active, &self.inactive) } else { (&self.inactive, &self.active) };
        to.fetch_add(1, Relaxed);
        from.fetch_sub(1, Relaxed);
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
        let count = if active { &self.active } else { &self.inactive };
        count.fetch_sub(1, Relaxed);
        if self.is_overloaded() && self.total() < self.floor() {
            self.overloaded.store(false, Relaxed);
        }
    }

    /// Sets both thresholds. A backend between them stays as it is.
    pub fn set_thresholds(&self, upper: u32, lower: u32) {
        self.upper.store(upper, Relaxed);
        self.lower.store(lower, Relaxed);
        let total = self.total();
        if upper == 0 || total < self.floor() {
            self.overloaded.store(false, Relaxed);
        } else if total >= upper {
            self.overloaded.store(true, Relaxed);
        }
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
        self.active.store(0, Relaxed);
        self.inactive.store(0, Relaxed);
        self.persistent.store(0, Relaxed);
        self.set_ends(None);
        self.set_thresholds(0, 0);
    }

    /// All flows: what thresholds are compared with.
    fn total(&self) -> u32 {
        let (active, inactive) = self.counts();
        active.saturating_add(inactive)
    }

    /// The flows below which an overloaded backend takes new ones again.
    fn floor(&self) -> u32 {
        let (upper, lower) = (self.upper.load(Relaxed), self.lower.load(Relaxed));
        if lower == 0 { upper - upper / 4 } else { lower }
    }
}

/// The slabs, indexed by id.
#[derive(Debug)]
pub struct State {
    services: Box<[ServiceState]>,
    backends: Box<[BackendState]>,
}

impl State {
    /// Slabs for so many services and backends.
    pub fn new(services: usize, backends: usize) -> Self {
        Self {
            services: (0..services).map(|_| ServiceState::default()).collect(),
            backends: (0..backends).map(|_| BackendState::default()).collect(),
        }
    }

    /// The service's slot; `None` past the slab.
    #[inline]
    pub fn service(&self, id: ServiceId) -> Option<&ServiceState> {
        self.services.get(id.index())
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
