//! The services that have backends in common: a group, or a service by itself. They change together.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use dataplane::ids::{BackendId, ServiceId};
use dataplane::snapshot::{self, Services};
use xdp_prog::Claim;

use super::ids::{Holder, LeftBackend, Map, Real};
use super::{CompileError, Plan, claims};
use crate::model::{self, Draft, Order, Service};

/// A service with its place and its id.
#[derive(Clone, Debug)]
pub(super) struct Member {
    pub(super) order: Order,
    pub(super) id: ServiceId,
    pub(super) service: Arc<Service>,
}

/// What becomes of the services of one holder.
#[derive(Debug)]
pub(super) struct Unit {
    pub(super) holder: Holder,
    pub(super) before: Vec<Member>,
    /// In order.
    pub(super) after: Vec<Member>,
}

/// What a unit's backends are in the tables, and what comes of that.
pub(super) struct Seats<'a> {
    tables: &'a Services,
    /// The removed ones.
    left: &'a [LeftBackend],
}

impl<'a> Seats<'a> {
    pub(super) fn new(tables: &'a Services, left: &'a [LeftBackend]) -> Self {
        Self { tables, left }
    }
}

impl Unit {
    /// Assigns ids to the backends of the services after the change, each list newest first, and notes in `plan` what
    /// leaves, what comes, and what the XDP program is to be told. `around` is what there was besides services before, and
    /// what there is now.
    pub(super) fn plan(
        &self,
        seats: &Seats<'_>,
        around: [&Draft; 2],
        plan: &mut Plan,
        mut new_id: impl FnMut(&mut Plan) -> Result<BackendId, CompileError>,
    ) -> Result<Vec<Arc<[snapshot::Backend]>>, CompileError> {
        let mut known: Map<Real, BackendId> = Map::default();
        let mut before: Map<BackendId, Real> = Map::default();
        let listed = |member: &Member| seats.tables.service(member.id).map(|service| &*service.backends);
        for backend in self.before.iter().filter_map(listed).flatten() {
            let real = (backend.addr, backend.port, backend.mode);
            known.insert(real, backend.id);
            before.insert(backend.id, real);
        }
        known.extend(seats.left.iter().map(|left| (left.real, left.id)));
        let mut after: HashSet<BackendId, ahash::RandomState> = HashSet::default();
        let mut lists: Vec<Arc<[snapshot::Backend]>> = Vec::with_capacity(self.after.len());
        for member in &self.after {
            let own = listed(member).unwrap_or_default();
            let mut list = Vec::with_capacity(member.service.backends.len());
            for (backend, last_weight) in newest_first(own, &member.service.backends) {
                let real = (backend.addr.ip(), backend.port_number(), backend.mode);
                let id = match known.get(&real) {
                    Some(id) => *id,
                    None => *known.entry(real).or_insert(new_id(plan)?),
                };
                if after.insert(id) && !before.contains_key(&id) {
                    plan.addresses.new.push(backend.addr.ip());
                }
                let last_weight = last_weight.filter(|(of, _)| *of == id).map_or(0, |(_, weight)| weight);
                list.push(compiled(id, last_weight, backend));
            }
            let same = lists.last().filter(|last| ***last == *list);
            lists.push(same.map_or_else(|| list.into(), Arc::clone));
        }
        let gone: Map<BackendId, Real> = before.into_iter().filter(|(id, _)| !after.contains(id)).collect();
        plan.addresses.gone.extend(gone.values().map(|(addr, ..)| *addr));
        self.note_left(seats.left, &gone, &after, plan);
        self.note_claims(around, plan);
        Ok(lists)
    }

    /// Notes which backends have left the holder's services, and what is claimed for them.
    fn note_left(
        &self,
        left: &[LeftBackend],
        gone: &Map<BackendId, Real>,
        after: &HashSet<BackendId, ahash::RandomState>,
        plan: &mut Plan,
    ) {
        let (back, mut list): (Vec<_>, Vec<_>) =
            left.iter().cloned().partition(|left| after.contains(&left.id));
        if back.is_empty() && gone.is_empty() {
            return;
        }
        plan.returned_backends.extend(back.iter().map(|left| left.id));
        plan.delta.gone.extend(back.into_iter().flat_map(|left| left.claims));
        let by_real: Map<Real, BackendId> = gone.iter().map(|(id, real)| (*real, *id)).collect();
        let mut claims: Map<BackendId, HashSet<Claim>> = Map::default();
        for Member { service, .. } in &self.before {
            for backend in &*service.backends {
                let real = (backend.addr.ip(), backend.port_number(), backend.mode);
                if let Some(id) = by_real.get(&real) {
                    claims.entry(*id).or_default().extend(claims::of_removed(service, backend));
                }
            }
        }
        for (real, id) in by_real {
            let claims: Box<[_]> = claims.remove(&id).unwrap_or_default().into_iter().collect();
            plan.delta.new.extend(&claims);
            list.push(LeftBackend { id, real, claims, since: plan.generation });
        }
        plan.left.push((self.holder.clone(), list));
    }

    /// Notes what the services claim no more, and what they claim anew. One claim for all of them is enough.
    fn note_claims(&self, [around_before, around_after]: [&Draft; 2], plan: &mut Plan) {
        let of = |members: &[Member], around: &Draft| -> HashSet<Claim, ahash::RandomState> {
            members.iter().flat_map(|member| claims::of_service(&member.service, around)).collect()
        };
        let before = of(&self.before, around_before);
        let after = of(&self.after, around_after);
        plan.delta.gone.extend(before.difference(&after));
        plan.delta.new.extend(after.difference(&before));
    }
}

/// The backends in the order in which IPVS walks them: one that is there already keeps its place, a new one goes to the
/// head, so the last of `backends` that is new comes first. Each with what it was before: its id, and the latest weight
/// that was not 0.
fn newest_first<'b>(
    before: &[snapshot::Backend],
    backends: &'b [model::Backend],
) -> Vec<(&'b model::Backend, Option<(BackendId, u32)>)> {
    if before.is_empty() {
        return backends.iter().rev().map(|backend| (backend, None)).collect();
    }
    let places: Map<(IpAddr, u16), (usize, &snapshot::Backend)> =
        before.iter().enumerate().map(|(place, old)| ((old.addr, old.port), (place + 1, old))).collect();
    let old = |backend: &model::Backend| places.get(&(backend.addr.ip(), backend.port_number()));
    let mut list: Vec<_> = backends.iter().rev().map(|backend| (old(backend), backend)).collect();
    // New ones have no place and stay in front, in the order that they have now: the sort is stable.
    list.sort_by_key(|(old, _)| old.map_or(0, |(place, _)| *place));
    list.into_iter().map(|(old, backend)| (backend, old.map(|(_, old)| (old.id, old.last_weight)))).collect()
}

fn compiled(id: BackendId, last_weight: u32, backend: &model::Backend) -> snapshot::Backend {
    let port = backend.port_number();
    let model::Backend { addr, port: _, weight, mode, tunnel, upper, lower } = *backend;
    let last_weight = if weight.0 > 0 { weight.0 } else { last_weight };
    snapshot::Backend { id, addr: addr.ip(), port, weight: weight.0, last_weight, mode, tunnel, upper, lower }
}

/// The services of each holder that a change is about, those that come first in the desired state first.
pub(super) fn units(before: Vec<Member>, after: Vec<Member>) -> Vec<Unit> {
    let mut units: Vec<Unit> = Vec::new();
    let mut places: HashMap<Holder, usize, ahash::RandomState> = HashMap::default();
    let mut add = |member: Member, is_after: bool| {
        let Some(holder) = Holder::of(&member.service) else { return };
        let place = *places.entry(holder.clone()).or_insert_with(|| {
            units.push(Unit { holder, before: Vec::new(), after: Vec::new() });
            units.len() - 1
        });
        if let Some(unit) = units.get_mut(place) {
            if is_after { unit.after.push(member) } else { unit.before.push(member) }
        }
    };
    after.into_iter().for_each(|member| add(member, true));
    before.into_iter().for_each(|member| add(member, false));
    units
}
