//! What outlives a generation and is shared by all workers: scheduler cursors and connection counts.
//!
//! Sized at start and never grown. Control hands slots out and takes one back once no snapshot and no flow uses it.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::ids::{BackendId, ServiceId};

/// A service's scheduler state. What the words mean is the scheduler's own (`schedule/`).
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct ServiceState {
    /// First word: the position.
    pub cursor: AtomicU64,
    /// Second word: what the scheduler keeps besides (wrr's current weight).
    pub aux: AtomicU64,
}

/// A backend's connection counts as IPVS has them.
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct BackendState {
    /// Flows in an active state (TCP: SYN_SENT, SYN_RECV, ESTABLISHED, SYNACK).
    pub active: AtomicU32,
    /// All other flows.
    pub inactive: AtomicU32,
}

impl BackendState {
    /// Active and inactive flows.
    #[inline]
    pub fn counts(&self) -> (u32, u32) {
        (self.active.load(Ordering::Relaxed), self.inactive.load(Ordering::Relaxed))
    }

    /// A flow was opened; it starts inactive.
    #[inline]
    pub fn opened(&self) {
        self.inactive.fetch_add(1, Ordering::Relaxed);
    }

    /// A flow became active, or inactive.
    #[inline]
    pub fn moved(&self, active: bool) {
        let (to, from) = if active { (&self.active, &self.inactive) } else { (&self.inactive, &self.active) };
        to.fetch_add(1, Ordering::Relaxed);
        from.fetch_sub(1, Ordering::Relaxed);
    }

    /// A flow ended.
    #[inline]
    pub fn closed(&self, active: bool) {
        let count = if active { &self.active } else { &self.inactive };
        count.fetch_sub(1, Ordering::Relaxed);
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
