//! Which slot of the slabs belongs to which service and backend, from generation to generation.

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;

use dataplane::ids::{BackendId, ServiceId};
use dataplane::schedule::Compiler;
use dataplane::snapshot::Mode;
use dataplane::state::State;

use super::CompileError;
use super::ours::tunnel;
use crate::model::{self, Identity, Service};

type Map<K, V> = HashMap<K, V, ahash::RandomState>;

/// Ids in use and free ones.
///
/// A service keeps its id as long as its [`Identity`] is the same; a backend as long as its service, or the group of
/// that, its address, port and mode are. A removed backend keeps its slot, and gets it back if it returns, until no flow counts
/// on it ([`Self::reclaim`]).
#[derive(Clone, Debug)]
pub struct IdTable {
    services: Slots,
    backends: Slots,
    owners: Map<Identity, Owner>,
    /// The backends of groups.
    shared: Map<(Arc<str>, IpAddr, u16, Mode), Shared>,
    /// How many services and backends are still here although they were removed.
    removed: usize,
    /// What schedulers of several generations and services share.
    pub(super) schedulers: Compiler,
}

/// A service that has an id, or had one whose backends still have flows.
#[derive(Clone, Debug)]
struct Owner {
    id: ServiceId,
    left: Option<Left>,
    /// Newest first, then those that were removed.
    backends: Vec<Slot>,
}

/// The backend of a group.
#[derive(Clone, Copy, Debug)]
struct Shared {
    id: BackendId,
    /// How many owners have a slot with this id.
    holders: u32,
}

#[derive(Clone, Debug)]
struct Slot {
    id: BackendId,
    /// The group that its owner was in when it was added.
    group: Option<Arc<str>>,
    addr: IpAddr,
    port: u16,
    mode: Mode,
    /// See [`tunnel`].
    tunnel: Option<(IpAddr, u16)>,
    /// The latest weight that was not 0 since it was added.
    last_weight: u32,
    left: Option<Left>,
}

/// When something left the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Left {
    /// With tables that are not published yet.
    Unpublished,
    /// With this generation.
    At(u64),
}

/// A backend that was removed while flows counted on it: its service, address, port, mode and tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Removed {
    pub service: Identity,
    pub addr: IpAddr,
    pub port: u16,
    pub mode: Mode,
    pub tunnel: Option<(IpAddr, u16)>,
}

/// A backend with its id.
#[derive(Clone, Copy, Debug)]
pub(super) struct Assigned {
    pub id: BackendId,
    /// Its latest weight that was not 0; 0 where it had none.
    pub last_weight: u32,
    pub backend: model::Backend,
}

/// Ids given to new owners by one compilation: their slots hold what earlier owners left.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fresh {
    /// Services.
    pub services: Vec<ServiceId>,
    /// Backends.
    pub backends: Vec<BackendId>,
}

/// Ids of one slab. Those never used go first, then the ones that are free for longest.
#[derive(Clone, Debug)]
struct Slots {
    capacity: u32,
    used: u32,
    free: VecDeque<u32>,
}

impl Slots {
    fn new(capacity: usize) -> Self {
        Self { capacity: u32::try_from(capacity).unwrap_or(u32::MAX), used: 0, free: VecDeque::new() }
    }

    fn take(&mut self) -> Option<u32> {
        if self.used < self.capacity {
            self.used += 1;
            return Some(self.used - 1);
        }
        self.free.pop_front()
    }

    fn in_use(&self) -> usize {
        (self.used as usize).saturating_sub(self.free.len())
    }
}

impl IdTable {
    /// No ids in use, with the slabs of `state`.
    pub fn new(state: &State) -> Self {
        let (services, backends) = state.capacity();
        Self {
            services: Slots::new(services),
            backends: Slots::new(backends),
            owners: Map::default(),
            shared: Map::default(),
            removed: 0,
            schedulers: Compiler::default(),
        }
    }

    /// How many services and backends have a slot, removed ones whose flows go on included.
    pub fn in_use(&self) -> (usize, usize) {
        (self.services.in_use(), self.backends.in_use())
    }

    /// Notes that the tables which these ids belong to were published as `generation`.
    pub fn published(&mut self, generation: u64) {
        let note = |left: &mut Option<Left>| {
            if *left == Some(Left::Unpublished) {
                *left = Some(Left::At(generation));
            }
        };
        for owner in self.owners.values_mut() {
            note(&mut owner.left);
            owner.backends.iter_mut().for_each(|slot| note(&mut slot.left));
        }
    }

    /// Frees the slots of what was removed, once every worker has seen the generation without it (so no flow can begin
    /// on it) and no flow counts on it any more. Returns how many removed services and backends still have their slot.
    /// Costs nothing where there are none.
    pub fn reclaim(&mut self, state: &State, is_seen: impl Fn(u64) -> bool) -> usize {
        if self.removed == 0 {
            return 0;
        }
        let gone = |left: Option<Left>| matches!(left, Some(Left::At(generation)) if is_seen(generation));
        let idle = |id| state.backend(id).is_none_or(|counts| counts.is_unused());
        let mut freed = 0;
        let (services, backends) = (&mut self.services.free, &mut self.backends.free);
        let shared = &mut self.shared;
        self.owners.retain(|_, owner| {
            owner.backends.retain(|slot| {
                if !gone(slot.left) {
                    return true;
                }
                let others = slot.shared_key().and_then(|key| shared.get_mut(&key));
                if let Some(others) = others.filter(|others| others.holders > 1) {
                    others.holders -= 1;
                } else if idle(slot.id) {
                    if let Some(key) = slot.shared_key() {
                        shared.remove(&key);
                    }
                    backends.push_back(slot.id.0);
                } else {
                    return true;
                }
                freed += 1;
                false
            });
            let free = gone(owner.left) && owner.backends.is_empty();
            if free {
                services.push_back(owner.id.0);
                freed += 1;
            }
            !free
        });
        self.removed -= freed;
        self.removed
    }

    /// The id of the service with this identity.
    pub fn service(&self, identity: &Identity) -> Option<ServiceId> {
        self.owners.get(identity).map(|owner| owner.id)
    }

    /// Removed backends that still have their slot.
    pub(super) fn removed(&self) -> impl Iterator<Item = Removed> {
        self.owners.iter().flat_map(|(key, owner)| {
            let removed = owner.backends.iter().filter(|slot| slot.left.is_some());
            removed.map(|slot| Removed {
                service: *key,
                addr: slot.addr,
                port: slot.port,
                mode: slot.mode,
                tunnel: slot.tunnel,
            })
        })
    }

    /// The id of the service that is `key`, and its backends, newest first.
    pub(super) fn assign(
        &mut self,
        key: Identity,
        service: &Service,
        fresh: &mut Fresh,
    ) -> Result<(ServiceId, Vec<Assigned>), CompileError> {
        let mut owner = match self.owners.remove(&key) {
            Some(owner) => owner,
            None => {
                let limit = self.services.capacity;
                let id = ServiceId(self.services.take().ok_or(CompileError::Services { limit })?);
                fresh.services.push(id);
                self.schedulers.forget(id);
                Owner { id, left: None, backends: Vec::new() }
            }
        };
        let before = std::mem::take(&mut owner.backends);
        let slot_of = |slot: &Slot| {
            ((slot.addr, slot.port, slot.mode), (slot.id, slot.left.map_or(slot.last_weight, |_| 0)))
        };
        let own = before.iter().filter(|slot| slot.group == service.group);
        let known: Map<_, _> = own.map(slot_of).collect();
        let mut ids = Vec::with_capacity(service.backends.len());
        for backend in newest_first(&before, &service.backends) {
            let (addr, port, mode) = (backend.addr.ip(), backend.port_number(), backend.mode);
            let (id, before) = match known.get(&(addr, port, mode)) {
                Some(known) => *known,
                None => (self.new_slot(service.group.as_ref(), (addr, port, mode), &before, fresh)?, 0),
            };
            let weight = backend.weight.0;
            let last_weight = if weight > 0 { weight } else { before };
            owner.backends.push(Slot {
                id,
                group: service.group.clone(),
                addr,
                port,
                mode,
                tunnel: tunnel(backend),
                last_weight,
                left: None,
            });
            ids.push(Assigned { id, last_weight, backend: *backend });
        }
        let kept: HashSet<BackendId, ahash::RandomState> = ids.iter().map(|assigned| assigned.id).collect();
        let mut removed: Vec<_> = before.into_iter().filter(|slot| !kept.contains(&slot.id)).collect();
        removed.iter_mut().for_each(Slot::leave);
        owner.backends.append(&mut removed);
        owner.left = None;
        let id = owner.id;
        self.owners.insert(key, owner);
        Ok((id, ids))
    }

    /// An id for a backend that its owner had none for: that of another service of its group, or a new one.
    fn new_slot(
        &mut self,
        group: Option<&Arc<str>>,
        (addr, port, mode): (IpAddr, u16, Mode),
        current: &[Slot],
        fresh: &mut Fresh,
    ) -> Result<BackendId, CompileError> {
        let key = group.map(|group| (Arc::clone(group), addr, port, mode));
        if let Some(shared) = key.as_ref().and_then(|key| self.shared.get_mut(key)) {
            shared.holders += 1;
            return Ok(shared.id);
        }
        let id = BackendId(self.backends.take().ok_or_else(|| self.backends_full(current))?);
        fresh.backends.push(id);
        if let Some(key) = key {
            self.shared.insert(key, Shared { id, holders: 1 });
        }
        Ok(id)
    }

    /// Lets go of every service that `stays` does not name, with its backends.
    pub(super) fn remove_others(&mut self, stays: impl Fn(&Identity) -> bool) {
        for (_, owner) in self.owners.iter_mut().filter(|(key, _)| !stays(key)) {
            owner.left = owner.left.or(Some(Left::Unpublished));
            owner.backends.iter_mut().for_each(Slot::leave);
        }
    }

    /// Counts what was removed, once every service has its ids.
    pub(super) fn count_removed(&mut self) {
        let backends = self.removed().count();
        self.removed = backends + self.owners.values().filter(|owner| owner.left.is_some()).count();
    }

    fn backends_full(&self, current: &[Slot]) -> CompileError {
        let of_others = self.owners.values().flat_map(|owner| &owner.backends);
        let removed = of_others.chain(current).filter(|slot| slot.left.is_some()).count();
        CompileError::Backends { limit: self.backends.capacity, removed }
    }
}

impl Slot {
    fn leave(&mut self) {
        self.left = self.left.or(Some(Left::Unpublished));
    }

    /// What services of its group find it by.
    fn shared_key(&self) -> Option<(Arc<str>, IpAddr, u16, Mode)> {
        Some((Arc::clone(self.group.as_ref()?), self.addr, self.port, self.mode))
    }
}

/// The backends in the order in which IPVS walks them: one that is there already keeps its place, a new one goes to the
/// head, so the last of `backends` that is new comes first.
fn newest_first<'b>(before: &[Slot], backends: &'b [model::Backend]) -> Vec<&'b model::Backend> {
    let places = before.iter().filter(|slot| slot.left.is_none()).map(|slot| (slot.addr, slot.port)).zip(1..);
    let places: Map<(IpAddr, u16), usize> = places.collect();
    let mut list: Vec<_> = backends.iter().rev().collect();
    // New ones have no place and stay in front, in the order that they have now: the sort is stable.
    list.sort_by_key(|backend| places.get(&(backend.addr.ip(), backend.port_number())).copied().unwrap_or(0));
    list
}
