//! Which slot of the slabs belongs to which service and backend, from generation to generation.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;

use dataplane::ids::{BackendId, ServiceId};
use dataplane::snapshot::Mode;
use dataplane::state::State;
use xdp_prog::Claim;

use crate::model::{Identity, Order, Service};

pub(super) type Map<K, V> = HashMap<K, V, ahash::RandomState>;

/// Whose backends they are: a group's, or those of a service that is in none.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Holder {
    Group(Arc<str>),
    Alone(Identity),
}

impl Holder {
    /// Who holds the backends of the service; `None` where nothing leads to it.
    pub(crate) fn of(service: &Service) -> Option<Self> {
        match &service.group {
            Some(group) => service.identity().map(|_| Self::Group(Arc::clone(group))),
            None => service.identity().map(Self::Alone),
        }
    }
}

/// What makes a backend the same one, of one [`Holder`].
pub(super) type Real = (IpAddr, u16, Mode);

/// Ids in use and free ones.
///
/// A service keeps its id as long as its [`Identity`] is the same; a backend as long as its holder, its address, port and
/// mode are. A removed backend keeps its slot, and gets it back if it returns, until no flow counts on it
/// ([`Self::reclaim`]).
#[derive(Clone, Debug)]
pub(super) struct IdTable {
    pub(super) services: Slots,
    pub(super) backends: Slots,
    /// Of services in the tables.
    pub(super) of: Map<Order, ServiceId>,
    pub(super) left_services: Map<Identity, LeftService>,
    pub(super) left_backends: Map<Holder, Vec<LeftBackend>>,
    /// Whose removed backends are.
    pub(super) held: Map<BackendId, Holder>,
}

/// A service that was removed.
#[derive(Clone, Debug)]
pub(super) struct LeftService {
    pub(super) id: ServiceId,
    /// Whose backends may still have flows that came by it.
    pub(super) holder: Holder,
    /// The first generation without it.
    pub(super) since: u64,
}

/// A backend that was removed from all services of its holder.
#[derive(Clone, Debug)]
pub(super) struct LeftBackend {
    pub(super) id: BackendId,
    pub(super) real: Real,
    /// What belongs to Weir as long as there are flows.
    pub(super) claims: Box<[Claim]>,
    /// The first generation without it.
    pub(super) since: u64,
}

/// Ids of one slab. Those never used go first, then the ones that are free for longest.
#[derive(Clone, Debug)]
pub(super) struct Slots {
    capacity: u32,
    used: u32,
    free: VecDeque<u32>,
}

/// How far ids were taken out of [`Slots`] that do not know of it yet.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Cursor {
    new: u32,
    reused: usize,
}

impl Slots {
    fn new(capacity: usize) -> Self {
        Self { capacity: u32::try_from(capacity).unwrap_or(u32::MAX), used: 0, free: VecDeque::new() }
    }

    pub(super) fn capacity(&self) -> u32 {
        self.capacity
    }

    /// The next id, and whether it had an owner before.
    pub(super) fn peek(&self, cursor: &mut Cursor) -> Option<(u32, bool)> {
        let next = self.used + cursor.new;
        if next < self.capacity {
            cursor.new += 1;
            return Some((next, false));
        }
        let reused = self.free.get(cursor.reused).copied()?;
        cursor.reused += 1;
        Some((reused, true))
    }

    /// Takes the ids out that were looked at.
    pub(super) fn take(&mut self, cursor: Cursor) {
        self.used += cursor.new;
        self.free.drain(..cursor.reused);
    }

    fn in_use(&self) -> usize {
        (self.used as usize).saturating_sub(self.free.len())
    }
}

impl IdTable {
    /// No ids in use, with the slabs of `state`.
    pub(super) fn new(state: &State) -> Self {
        let (services, backends) = state.capacity();
        Self {
            services: Slots::new(services),
            backends: Slots::new(backends),
            of: Map::default(),
            left_services: Map::default(),
            left_backends: Map::default(),
            held: Map::default(),
        }
    }

    /// How many services and backends have a slot, removed ones whose flows go on included.
    pub(super) fn in_use(&self) -> (usize, usize) {
        (self.services.in_use(), self.backends.in_use())
    }

    /// How many removed services and backends still have their slot.
    pub(super) fn removed(&self) -> usize {
        self.left_services.len() + self.held.len()
    }

    /// Frees the slots of what was removed, once every worker has seen the generation without it (so no flow can begin
    /// on it) and no flow counts on it any more. Returns what is not claimed any more.
    pub(super) fn reclaim(&mut self, state: &State, is_seen: impl Fn(u64) -> bool) -> Vec<Claim> {
        let mut claims = Vec::new();
        let idle = |id| state.backend(id).is_none_or(|counts| counts.is_unused());
        let (free, held) = (&mut self.backends.free, &mut self.held);
        self.left_backends.retain(|_, list| {
            list.retain_mut(|left| {
                let is_free = is_seen(left.since) && idle(left.id);
                if is_free {
                    free.push_back(left.id.0);
                    held.remove(&left.id);
                    claims.extend(std::mem::take(&mut left.claims));
                }
                !is_free
            });
            !list.is_empty()
        });
        let (free, busy) = (&mut self.services.free, &self.left_backends);
        self.left_services.retain(|_, left| {
            let is_free = is_seen(left.since) && !busy.contains_key(&left.holder);
            if is_free {
                free.push_back(left.id.0);
            }
            !is_free
        });
        claims
    }

    /// Sets the removed backends of a holder.
    pub(super) fn leave(&mut self, holder: Holder, list: Vec<LeftBackend>) {
        for left in self.left_backends.remove(&holder).into_iter().flatten() {
            self.held.remove(&left.id);
        }
        self.held.extend(list.iter().map(|left| (left.id, holder.clone())));
        if !list.is_empty() {
            self.left_backends.insert(holder, list);
        }
    }
}
