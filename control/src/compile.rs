//! Desired state -> the service half of a snapshot, and what the XDP program has to know of it.
//!
//! Nothing is touched while tables are made: a desired state that does not fit is refused whole.

mod access;
mod ids;
mod ours;

#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use dataplane::flow::key::VipKey;
use dataplane::ids::{BackendId, PoolId, ServiceId};
use dataplane::schedule::{self, Kind, Scheduler};
use dataplane::snapshot::{Backend, Mark, Persistence, Service, Services, Settings, SnatPool, Timeouts};
use dataplane::state::State;
use dataplane::time::Tick;
use thiserror::Error;
use xdp_prog::Ours;

use ids::Assigned;
pub use ids::{Fresh, IdTable};
pub use ours::ours;

use crate::model::{self, DesiredState, Identity, MatchRule, Unicast, vip_key};

/// Tables of one generation, with the ids that belong to them.
#[derive(Debug)]
pub struct Compiled {
    /// The service half of the snapshot.
    pub services: Services,
    /// What the XDP program is to take for Weir.
    pub ours: Ours,
    /// Idle times.
    pub timeouts: Timeouts,
    /// What IPVS has as sysctls, and limits.
    pub settings: Settings,
    /// The ids; the next compilation goes on from these once this one is published.
    pub ids: IdTable,
    /// Ids whose slots have a new owner.
    pub fresh: Fresh,
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

/// Compiles `desired`, going on from the ids in use before. Pure: equal input, equal tables.
///
/// Backends lie newest first. A service is reached by its VIPs, and by its node port on every node address of its
/// family. The services of a group have the backends in common that have one address, port and mode. Weir answers for the VIPs of services that announce them, but for those that are the node's own addresses.
pub fn compile(desired: &DesiredState, before: &IdTable) -> Result<Compiled, CompileError> {
    let mut ids = before.clone();
    let mut fresh = Fresh::default();
    let pools: HashMap<&str, PoolId, ahash::RandomState> =
        desired.pools().iter().map(|pool| &*pool.name).zip((0..).map(PoolId)).collect();
    let identities: Vec<Option<Identity>> = desired.services().iter().map(model::Service::identity).collect();
    let stays: HashSet<Identity, ahash::RandomState> = identities.iter().flatten().copied().collect();
    ids.remove_others(|identity| stays.contains(identity));

    let mut groups = access::Groups::default();
    let mut list = Vec::with_capacity(identities.len());
    for (service, identity) in desired.services().iter().zip(identities) {
        let Some(identity) = identity else { continue };
        let (id, backends) = ids.assign(identity, service, &mut fresh)?;
        let backends: Arc<[_]> = backends.into_iter().map(compiled).collect();
        let vips = reached_by(service, desired);
        let model::Scheduling { kind, flags } = service.scheduling;
        // What has a mark is reached by any address that a rule says.
        let addresses = service.mark().is_none().then_some(vips.len());
        let steady =
            service.options.stateless_fallback.then(|| ids.schedulers.steady(kind, flags, &backends));
        let scheduler = match &steady {
            Some(lookup) if kind == Kind::Mh => Scheduler::Mh(lookup.clone()),
            _ => ids.schedulers.compile(id, kind, flags, &backends, addresses),
        };
        list.push(Service {
            id,
            name: Arc::clone(&service.name),
            group: groups.join(service, &vips),
            vips,
            clients: service.clients(),
            mark: service.mark(),
            scheduler,
            steady,
            backends,
            pool: service.pool.as_ref().and_then(|name| pools.get(&**name).copied()),
            persistence: service.persistence.map(persistence),
            engine: service.engine,
            one_packet: service.one_packet,
            access: access::access(&service.access),
            options: service.options,
        });
    }
    ids.count_removed();
    let pools = desired.pools().iter().map(snat_pool).collect();
    let rules = desired.rules().iter().flat_map(MatchRule::spread).collect();
    let services = Services::new(list, pools, owned(desired)).with_rules(rules);
    let services = services.with_locality(access::locality(desired));
    let ours = ours(desired, &ids);
    let (timeouts, settings) = (desired.timeouts(), desired.settings());
    Ok(Compiled { services, ours, timeouts, settings, ids, fresh })
}

impl Compiled {
    /// Makes `state` ready for these tables: empties the slots that have a new owner, sets thresholds and the ends of
    /// drained backends, and carries over what schedulers remember from `old`, the tables published last. Called at
    /// `now`, right before publishing.
    pub fn prepare(&self, old: &Services, state: &State, now: Tick) {
        let fresh: HashSet<ServiceId, ahash::RandomState> = self.fresh.services.iter().copied().collect();
        let reused: HashSet<BackendId, ahash::RandomState> = self.fresh.backends.iter().copied().collect();
        for slot in self.fresh.backends.iter().filter_map(|id| state.backend(*id)) {
            slot.clear();
        }
        for service in self.services.iter() {
            for backend in &*service.backends {
                // Of services that share it, one says what bounds it.
                let bounding = self.services.backend(backend.id);
                if bounding.is_some_and(|(of, _)| of.id == service.id) {
                    bound(old.backend(backend.id), (service, backend), state, now);
                }
            }
            let Some(slot) = state.service(service.id) else { continue };
            if fresh.contains(&service.id) {
                schedule::start(service, slot);
                continue;
            }
            service.scheduler.forget(|id| reused.contains(&id));
            if let Some(before) = old.service(service.id)
                && (before.backends != service.backends
                    || before.scheduler.kind() != service.scheduler.kind())
            {
                schedule::carry(before, service, slot);
            }
        }
        for service in old.iter() {
            let Some(drain_s) = service.options.drain_s else { continue };
            let removed =
                service.backends.iter().filter(|backend| self.services.backend(backend.id).is_none());
            for slot in removed.filter_map(|backend| state.backend(backend.id)) {
                // One that was draining already keeps its end.
                slot.set_ends(slot.ends().or(Some(now.after_seconds(drain_s))));
            }
        }
    }
}

/// Writes what bounds a backend into its slot, where that is not as it was `before`.
fn bound(before: Option<(&Service, &Backend)>, now_is: (&Service, &Backend), state: &State, now: Tick) {
    let (_, backend) = now_is;
    let Some(slot) = state.backend(backend.id) else { return };
    let thresholds = |backend: &Backend| (backend.upper, backend.lower);
    if before.map(|(_, before)| thresholds(before)) != Some(thresholds(backend)) {
        slot.set_thresholds(backend.upper, backend.lower);
    }
    let drains =
        |(service, backend): (&Service, &Backend)| service.options.drain_s.filter(|_| backend.weight == 0);
    let drain_s = drains(now_is);
    if before.map(drains) != Some(drain_s) {
        slot.set_ends(drain_s.map(|seconds| now.after_seconds(seconds)));
    }
}

/// Every address that the service is found by: its VIPs first, then the node's addresses.
fn reached_by(service: &model::Service, desired: &DesiredState) -> Vec<VipKey> {
    let family = service.family();
    let own = desired.node_addresses().iter().filter(|addr| addr.family() == family);
    let on_node = own.filter_map(|addr| {
        let port = service.node_port?;
        Some(vip_key(*addr, Some(port), service.protocol()?))
    });
    service.keys().chain(on_node).collect()
}

fn compiled(Assigned { id, last_weight, backend }: Assigned) -> Backend {
    let port = backend.port_number();
    let model::Backend { addr, port: _, weight, mode, tunnel, upper, lower } = backend;
    Backend { id, addr: addr.ip(), port, weight: weight.0, last_weight, mode, tunnel, upper, lower }
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

/// The virtual addresses that Weir answers for.
fn owned(desired: &DesiredState) -> impl Iterator<Item = IpAddr> {
    let announced = || desired.services().iter().filter(|service| service.announce);
    let vips = announced().flat_map(model::Service::vips).copied();
    let marks: HashSet<_, ahash::RandomState> = announced().filter_map(model::Service::mark).collect();
    let of_marks = desired.rules().iter().flat_map(move |rule| {
        let single = rule.destinations.iter().filter(|net| net.prefix_len() == net.max_prefix_len());
        let addresses: Vec<_> = single.filter_map(|net| Unicast::new(net.addr()).ok()).collect();
        let is_announced = |addr: &Unicast| {
            marks.contains(&Mark { value: rule.mark, v6: addr.family() == model::Family::V6 })
        };
        addresses.into_iter().filter(is_announced).collect::<Vec<_>>()
    });
    let is_the_nodes = |addr: &Unicast| desired.node_addresses().contains(addr);
    let all = vips.chain(of_marks).filter(move |addr| !is_the_nodes(addr));
    all.map(Unicast::ip).filter(|addr| Unicast::new(*addr).is_ok())
}
