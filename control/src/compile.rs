//! Desired state -> the service half of a snapshot, and what the XDP program has to know of it.
//!
//! The [`Compiler`] turns a change of the desired state into a [`Plan`], which costs what the change is about: the services
//! that change, and those of their groups. Nothing is touched meanwhile, so a change that does not fit is refused whole.
//! `Compiler::build` then makes the next tables out of the present ones, and cannot fail.

mod access;
mod claims;
mod ids;
mod prepare;
mod unit;

#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use dataplane::flow::key::VipKey;
use dataplane::ids::{BackendId, PoolId, ServiceId};
use dataplane::schedule::{self, Kind, Scheduler};
use dataplane::snapshot::{self, Persistence, Services, SnatPool};
use dataplane::state::State;
use dataplane::time::Tick;
use thiserror::Error;
use xdp_prog::{Claim, Delta, Rule};

use ids::{Cursor, Holder, IdTable, LeftBackend, LeftService, Map};
use unit::{Member, Seats, units};

use crate::model::{self, Applied, DesiredState, Identity, MatchRule, Order, Service, Touched, vip_key};

/// Ids given to new owners by one change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fresh {
    /// Services.
    pub services: Vec<ServiceId>,
    /// Backends.
    pub backends: Vec<BackendId>,
}

/// Why a desired state does not fit.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum CompileError {
    /// No slot is free for another service.
    #[error("there is room for {limit} services: raise limits.services and restart")]
    Services {
        /// How many slots there are.
        limit: u32,
    },
    /// No slot is free for another backend.
    #[error(
        "there is room for {limit} backends, {removed} of them removed ones that still have flows: \
         raise limits.backends and restart, or try again when those flows have ended"
    )]
    Backends {
        /// How many slots there are.
        limit: u32,
        /// How many of them wait for the last flow of a removed backend.
        removed: usize,
    },
}

/// What outlives a generation: ids, and what follows from all services together.
#[derive(Debug)]
pub struct Compiler {
    ids: IdTable,
    schedulers: schedule::Compiler,
    pools: Map<Arc<str>, PoolId>,
    /// How many services have a node port.
    node_ports: usize,
    /// The services that rules tell of.
    ruled: BTreeSet<Order>,
    rules: Vec<Rule>,
    /// What is claimed besides services.
    claims: HashSet<Claim>,
}

/// What a change comes to.
#[derive(Debug, Default)]
pub struct Plan {
    /// What changes for the XDP program.
    pub delta: Delta,
    /// Where backends come and go.
    pub addresses: Addresses,
    /// Ids that have new owners.
    pub fresh: Fresh,
    /// Those of them that others had before: their slots hold what these left.
    reused: Fresh,
    generation: u64,
    /// The services to be made, and their backends.
    made: Vec<(Member, Arc<[snapshot::Backend]>)>,
    /// The services as they were, of those made and of those that go.
    before: Vec<Member>,
    gone: Vec<ServiceId>,
    /// Removed backends by their holders, where they are others than before.
    left: Vec<(Holder, Vec<LeftBackend>)>,
    left_services: Vec<(Identity, LeftService)>,
    returned: Vec<Identity>,
    returned_backends: Vec<BackendId>,
    cursors: (Cursor, Cursor),
    node_ports: usize,
    ruled: Option<BTreeSet<Order>>,
    rules: Option<Vec<Rule>>,
    claims: Option<HashSet<Claim>>,
    pools: Option<Map<Arc<str>, PoolId>>,
}

/// Addresses of backends that come and go, each once for each id.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Addresses {
    /// Those that go.
    pub gone: Vec<IpAddr>,
    /// Those that come.
    pub new: Vec<IpAddr>,
}

/// Whether there is room in `state` for all that is desired.
pub fn check(desired: &DesiredState, state: &State) -> Result<(), CompileError> {
    let all = Applied::all(desired);
    Compiler::new(state).plan(desired, &all, &Services::default(), 1).map(drop)
}

/// Tables of all that is desired, with `state` made ready for them: for one that is imagined.
pub fn tables(desired: &DesiredState, state: &State) -> Result<Services, CompileError> {
    let (mut compiler, nothing) = (Compiler::new(state), Services::default());
    let mut plan = compiler.plan(desired, &Applied::all(desired), &nothing, 1)?;
    let delta = std::mem::take(&mut plan.delta);
    let (tables, built) = compiler.build(desired, plan, &delta, &nothing);
    built.prepare(&nothing, &tables, state, Tick::default());
    Ok(tables)
}

/// What was built, as far as others follow it.
#[derive(Debug, Default)]
pub struct Built {
    /// The services that were made, or made anew.
    pub made: Vec<ServiceId>,
    /// The services that were made anew, as they were, and those that are gone.
    pub before: Vec<ServiceId>,
    /// Where backends come and go.
    pub addresses: Addresses,
    /// Ids that have new owners, and had others before: their slots hold what these left.
    pub reused: Fresh,
    /// Backends that were removed and are back, in the slots that they had.
    pub returned: Vec<BackendId>,
    /// Addresses that there are more reasons to answer for, or fewer.
    pub owned: Vec<IpAddr>,
}

impl Compiler {
    /// Nothing compiled yet, with the slabs of `state`.
    pub fn new(state: &State) -> Self {
        Self {
            ids: IdTable::new(state),
            schedulers: schedule::Compiler::default(),
            pools: Map::default(),
            node_ports: 0,
            ruled: BTreeSet::new(),
            rules: Vec::new(),
            claims: HashSet::new(),
        }
    }

    /// What becomes of `tables` by a change that was `applied` to the desired state, in the generation that comes next.
    /// Changes nothing.
    pub(crate) fn plan(
        &self,
        desired: &DesiredState,
        applied: &Applied,
        tables: &Services,
        generation: u64,
    ) -> Result<Plan, CompileError> {
        let mut plan = Plan { generation, node_ports: self.node_ports, ..Plan::default() };
        let (before, after) = self.members(desired, applied, &mut plan)?;
        plan.before = before.clone();
        let around_before = applied.around.as_ref().unwrap_or(desired.around());
        let around = [&**around_before, &**desired.around()];
        for unit in units(before, after) {
            let left = self.ids.left_backends.get(&unit.holder).map_or(&[][..], Vec::as_slice);
            let seats = Seats::new(tables, left);
            let lists = unit.plan(&seats, around, &mut plan, |plan| self.new_backend(plan))?;
            plan.made.extend(unit.after.into_iter().zip(lists));
        }
        self.plan_around(desired, applied, &mut plan);
        Ok(plan)
    }

    /// The services that change, and all others of their groups, before and after, with their ids.
    fn members(
        &self,
        desired: &DesiredState,
        applied: &Applied,
        plan: &mut Plan,
    ) -> Result<(Vec<Member>, Vec<Member>), CompileError> {
        let touched = &applied.services;
        let is_touched: HashSet<Order, ahash::RandomState> = touched.iter().map(|of| of.order).collect();
        let member = |order: Order, service: &Arc<Service>| {
            Some(Member { order, id: *self.ids.of.get(&order)?, service: Arc::clone(service) })
        };
        let before = touched.iter().filter_map(|of| member(of.order, of.before.as_ref()?));
        let mut before: Vec<Member> = before.collect();
        let ids: Map<Identity, ServiceId> =
            before.iter().filter_map(|member| Some((member.service.identity()?, member.id))).collect();
        let mut kept = HashSet::<Identity, ahash::RandomState>::default();
        let mut after = Vec::with_capacity(touched.len());
        let mut news: Vec<(Order, &Arc<Service>)> =
            touched.iter().filter_map(|of| Some((of.order, of.after.as_ref()?))).collect();
        let others = others(desired, applied, &is_touched);
        news.sort_by_key(|(order, _)| *order);
        for (order, service) in news {
            let Some(identity) = service.identity() else { continue };
            let id = match ids.get(&identity) {
                Some(id) => *id,
                None => self.returned_or_new(identity, plan)?,
            };
            kept.insert(identity);
            after.push(Member { order, id, service: Arc::clone(service) });
        }
        for left in before.iter().filter_map(|member| Some((member, member.service.identity()?))) {
            let (Member { id, service, .. }, identity) = left;
            if let Some(holder) = Holder::of(service).filter(|_| !kept.contains(&identity)) {
                let left = LeftService { id: *id, holder, since: plan.generation };
                plan.left_services.push((identity, left));
                plan.gone.push(*id);
            }
        }
        let others: Vec<_> = others.into_iter().filter_map(|(order, of)| member(order, of)).collect();
        before.extend(others.iter().cloned());
        after.extend(others);
        before.sort_by_key(|member| member.order);
        after.sort_by_key(|member| member.order);
        Ok((before, after))
    }

    /// The id that a service had which was removed and is back, or a new one.
    fn returned_or_new(&self, identity: Identity, plan: &mut Plan) -> Result<ServiceId, CompileError> {
        if let Some(left) = self.ids.left_services.get(&identity) {
            plan.returned.push(identity);
            return Ok(left.id);
        }
        let slots = &self.ids.services;
        let taken = slots.peek(&mut plan.cursors.0);
        let (id, was_used) = taken.ok_or(CompileError::Services { limit: slots.capacity() })?;
        plan.fresh.services.push(ServiceId(id));
        plan.reused.services.extend(was_used.then_some(ServiceId(id)));
        Ok(ServiceId(id))
    }

    fn new_backend(&self, plan: &mut Plan) -> Result<BackendId, CompileError> {
        let slots = &self.ids.backends;
        let full = || CompileError::Backends { limit: slots.capacity(), removed: self.ids.held.len() };
        let (id, was_used) = slots.peek(&mut plan.cursors.1).ok_or_else(full)?;
        plan.fresh.backends.push(BackendId(id));
        plan.reused.backends.extend(was_used.then_some(BackendId(id)));
        Ok(BackendId(id))
    }

    /// What follows from all services together, and from what there is besides them.
    fn plan_around(&self, desired: &DesiredState, applied: &Applied, plan: &mut Plan) {
        let has_node_port =
            |of: &Option<Arc<Service>>| usize::from(of.as_ref().is_some_and(|of| of.node_port.is_some()));
        let has_rules = |of: &Option<Arc<Service>>| of.as_ref().is_some_and(|of| claims::has_rules(of));
        let mut ruled = None;
        for Touched { order, before, after } in &applied.services {
            plan.node_ports = plan.node_ports + has_node_port(after) - has_node_port(before);
            if has_rules(before) || has_rules(after) {
                let ruled = ruled.get_or_insert_with(|| self.ruled.clone());
                if has_rules(after) {
                    ruled.insert(*order)
                } else {
                    ruled.remove(order)
                };
            }
        }
        let other_around = applied.around.is_some();
        if other_around || (plan.node_ports > 0) != (self.node_ports > 0) {
            let claims = claims::of_around(desired.around(), plan.node_ports > 0);
            plan.delta.gone.extend(self.claims.difference(&claims));
            plan.delta.new.extend(claims.difference(&self.claims));
            plan.claims = Some(claims);
        }
        if other_around || ruled.is_some() {
            let services =
                ruled.as_ref().unwrap_or(&self.ruled).iter().filter_map(|order| desired.at(*order));
            let rules = claims::rules(desired.around(), services);
            if rules != self.rules {
                plan.delta.rules = Some(rules.clone());
                plan.rules = Some(rules);
            }
        }
        plan.ruled = ruled;
        plan.pools = other_around.then(|| {
            desired.pools().iter().map(|pool| Arc::clone(&pool.name)).zip((0..).map(PoolId)).collect()
        });
    }

    /// Carries a plan out whose `delta` the XDP program was told: makes the next tables out of `tables`, which it was made
    /// for.
    pub(crate) fn build(
        &mut self,
        desired: &DesiredState,
        plan: Plan,
        delta: &Delta,
        tables: &Services,
    ) -> (Services, Built) {
        self.take_over(&plan);
        let Plan { addresses, reused, returned_backends: returned, made, before, gone, pools, .. } = plan;
        let mut next = tables.clone();
        if pools.is_some() {
            next = around(next, desired);
        }
        let owned = |claim: &Claim| if let Claim::Owned(addr) = claim { Some(*addr) } else { None };
        let [disowned, mut owned]: [Vec<_>; 2] =
            [&delta.gone, &delta.new].map(|claims| claims.iter().filter_map(owned).collect());
        disowned.iter().for_each(|addr| next.disown(*addr));
        owned.iter().for_each(|addr| next.own(*addr));
        owned.extend(disowned);
        let mut groups = access::Groups::default();
        let mut services = Vec::with_capacity(made.len());
        for (member, backends) in &made {
            services.push(self.service(member, Arc::clone(backends), desired, &mut groups));
        }
        next.change(&gone, services);
        let made = made.iter().map(|(member, _)| member.id).collect();
        let before = before.into_iter().map(|member| member.id).collect();
        (next, Built { made, before, addresses, reused, returned, owned })
    }

    /// Has ids and what follows from all services go on from a plan.
    fn take_over(&mut self, plan: &Plan) {
        let ids = &mut self.ids;
        ids.services.take(plan.cursors.0);
        ids.backends.take(plan.cursors.1);
        plan.before.iter().for_each(|member| _ = ids.of.remove(&member.order));
        ids.of.extend(plan.made.iter().map(|(member, _)| (member.order, member.id)));
        for identity in &plan.returned {
            ids.left_services.remove(identity);
        }
        ids.left_services.extend(plan.left_services.iter().cloned());
        plan.left.iter().for_each(|(holder, list)| ids.leave(holder.clone(), list.clone()));
        plan.fresh.services.iter().for_each(|id| self.schedulers.forget(*id));
        self.node_ports = plan.node_ports;
        if let Some(ruled) = &plan.ruled {
            self.ruled.clone_from(ruled);
        }
        if let Some(rules) = &plan.rules {
            self.rules.clone_from(rules);
        }
        if let Some(claims) = &plan.claims {
            self.claims.clone_from(claims);
        }
        if let Some(pools) = &plan.pools {
            self.pools.clone_from(pools);
        }
    }

    fn service<'d>(
        &mut self,
        member: &'d Member,
        backends: Arc<[snapshot::Backend]>,
        desired: &DesiredState,
        groups: &mut access::Groups<'d>,
    ) -> snapshot::Service {
        let Member { id, service, .. } = member;
        let vips = reached_by(service, desired);
        let model::Scheduling { kind, flags } = service.scheduling;
        // What has a mark is reached by any address that a rule says.
        let addresses = service.mark().is_none().then_some(vips.len());
        let steady = service.options.stateless_fallback;
        let steady = steady.then(|| self.schedulers.steady(kind, flags, &backends));
        let scheduler = match &steady {
            Some(lookup) if kind == Kind::Mh => Scheduler::Mh(lookup.clone()),
            _ => self.schedulers.compile(*id, kind, flags, &backends, addresses),
        };
        snapshot::Service {
            id: *id,
            name: Arc::clone(&service.name),
            group: groups.join(service, &vips),
            vips,
            clients: service.clients(),
            mark: service.mark(),
            scheduler,
            steady,
            backends,
            pool: service.pool.as_ref().and_then(|name| self.pools.get(name).copied()),
            persistence: service.persistence.map(persistence),
            engine: service.engine,
            one_packet: service.one_packet,
            access: access::access(&service.access),
            options: service.options,
        }
    }

    /// The id of the service at a place of the desired state.
    pub(crate) fn id(&self, order: Order) -> Option<ServiceId> {
        self.ids.of.get(&order).copied()
    }

    /// The services that had a backend which was removed from the tables.
    pub(crate) fn had(&self, desired: &DesiredState, id: BackendId) -> Vec<ServiceId> {
        match self.ids.held.get(&id) {
            None => Vec::new(),
            Some(Holder::Group(name)) => {
                desired.group(name).into_iter().filter_map(|order| self.id(order)).collect()
            }
            Some(Holder::Alone(identity)) => {
                desired.identified(identity).and_then(|order| self.id(order)).into_iter().collect()
            }
        }
    }

    /// How many services and backends have a slot, removed ones whose flows go on included.
    pub fn in_use(&self) -> (usize, usize) {
        self.ids.in_use()
    }

    /// How many removed services and backends still have their slot.
    pub fn removed(&self) -> usize {
        self.ids.removed()
    }

    /// Frees the slots of what was removed, once every worker has seen the generation without it (so no flow can begin
    /// on it) and no flow counts on it any more. Returns what is not claimed any more. Costs nothing where nothing was
    /// removed.
    pub fn reclaim(&mut self, state: &State, is_seen: impl Fn(u64) -> bool) -> Vec<Claim> {
        self.ids.reclaim(state, is_seen)
    }
}

/// The services of the groups that a change is about which do not change themselves; all others, where something besides
/// services changes.
fn others<'d>(
    desired: &'d DesiredState,
    applied: &Applied,
    is_touched: &HashSet<Order, ahash::RandomState>,
) -> Vec<(Order, &'d Arc<Service>)> {
    if is_touched.len() == desired.len() && applied.services.iter().all(|of| of.after.is_some()) {
        return Vec::new();
    }
    if applied.around.is_some() {
        return desired.places().filter(|(order, _)| !is_touched.contains(order)).collect();
    }
    let both = applied.services.iter().flat_map(|of| [&of.before, &of.after]).flatten();
    let groups: HashSet<&str, ahash::RandomState> = both.filter_map(|of| of.group.as_deref()).collect();
    let members = groups.into_iter().flat_map(|group| desired.group(group));
    let others = members.filter(|order| !is_touched.contains(order));
    others.filter_map(|order| Some((order, desired.at(order)?))).collect()
}

/// The tables with what there is besides services.
fn around(tables: Services, desired: &DesiredState) -> Services {
    let rules = desired.rules().iter().flat_map(MatchRule::spread).collect();
    let pools = desired.pools().iter().map(snat_pool).collect();
    tables.with_rules(rules).with_locality(access::locality(desired)).with_pools(pools)
}

/// Every address that the service is found by: its VIPs first, then the node's addresses.
fn reached_by(service: &Service, desired: &DesiredState) -> Vec<VipKey> {
    let family = service.family();
    let own = desired.node_addresses().iter().filter(|addr| addr.family() == family);
    let on_node = own.filter_map(|addr| {
        let port = service.node_port?;
        Some(vip_key(*addr, Some(port), service.protocol()?))
    });
    service.keys().chain(on_node).collect()
}

fn persistence(of: model::Persistence) -> Persistence {
    let mask = of.netmask.map_or(u128::MAX, model::Netmask::bits);
    Persistence { timeout_s: of.timeout_s.get(), mask }
}

fn snat_pool(pool: &model::SnatPool) -> SnatPool {
    let (mut v4, mut v6) = (Vec::new(), Vec::new());
    for addr in pool.ranges.iter().flat_map(model::AddressRange::iter) {
        match addr {
            IpAddr::V4(addr) => v4.push(addr.to_bits()),
            IpAddr::V6(addr) => v6.push(addr.to_bits()),
        }
    }
    SnatPool { name: Arc::clone(&pool.name), v4, v6, low: pool.low.number(), high: pool.high.number() }
}
