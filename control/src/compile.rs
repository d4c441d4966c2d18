//! Desired state -> the service half of a snapshot, and what the XDP program has to know of it.
//!
//! Nothing is touched while tables are made: a desired state that does not fit is refused whole.

mod ids;
mod ours;

#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use dataplane::flow::key::VipKey;
use dataplane::ids::{BackendId, PoolId};
use dataplane::schedule::{self, Kind, Scheduler};
use dataplane::snapshot::{Backend, Service, Services, SnatPool, Timeouts};
use dataplane::state::State;
use thiserror::Error;
use xdp_prog::Ours;

pub use ids::{Fresh, IdTable};
pub use ours::ours;

use crate::model::{self, DesiredState};

/// Tables of one generation, with the ids that belong to them.
#[derive(Debug)]
pub struct Compiled {
    /// The service half of the snapshot.
    pub services: Services,
    /// What the XDP program is to take for Weir.
    pub ours: Ours,
    /// Idle times.
    pub timeouts: Timeouts,
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
    /// The engine cannot run this scheduler.
    #[error("service {service}: scheduler {kind} is not available in this version")]
    Scheduler {
        /// The service's name.
        service: Arc<str>,
        /// The scheduler.
        kind: Kind,
    },
}

/// Compiles `desired`, going on from the ids in use before. Pure: equal input, equal tables.
///
/// Backends lie newest first. A service is reached by its VIPs, and by its node port on every node address of its
/// family. Weir answers for the VIPs of services that announce them, but for those that are the node's own addresses.
pub fn compile(desired: &DesiredState, before: &IdTable) -> Result<Compiled, CompileError> {
    let mut ids = before.clone();
    let mut fresh = Fresh::default();
    let pools: HashMap<&str, PoolId, ahash::RandomState> =
        desired.pools().iter().map(|pool| &*pool.name).zip((0..).map(PoolId)).collect();
    let keys: Vec<Vec<VipKey>> =
        desired.services().iter().map(|service| reached_by(service, desired)).collect();
    let first: HashSet<VipKey, ahash::RandomState> =
        keys.iter().filter_map(|keys| keys.first().copied()).collect();
    ids.remove_others(|key| first.contains(key));

    let mut list = Vec::with_capacity(keys.len());
    for (service, vips) in desired.services().iter().zip(keys) {
        let Some(first) = vips.first() else { continue };
        let (id, backends) = ids.assign(*first, service, &mut fresh)?;
        let backends: Box<[_]> = backends.into_iter().map(|(id, backend)| compiled(id, backend)).collect();
        let kind = service.scheduling.kind;
        let unavailable = || CompileError::Scheduler { service: Arc::clone(&service.name), kind };
        let scheduler =
            Scheduler::compile(kind, service.scheduling.flags, &backends).ok_or_else(unavailable)?;
        let pool = service.pool.as_ref().and_then(|name| pools.get(&**name).copied());
        let name = Arc::clone(&service.name);
        list.push(Service { id, name, vips, scheduler, backends, pool, ..Service::default() });
    }
    ids.count_removed();
    let pools = desired.pools().iter().map(snat_pool).collect();
    let services = Services::new(list, pools, owned(desired));
    let ours = ours(desired, &ids);
    Ok(Compiled { services, ours, timeouts: desired.timeouts(), ids, fresh })
}

impl Compiled {
    /// Makes `state` ready for these tables: empties the slots that have a new owner and carries the schedulers'
    /// positions over from `old`, the tables published last. Called right before publishing.
    pub fn prepare(&self, old: &Services, state: &State) {
        for slot in self.fresh.services.iter().filter_map(|id| state.service(*id)) {
            slot.cursor.store(0, Relaxed);
            slot.aux.store(0, Relaxed);
        }
        for slot in self.fresh.backends.iter().filter_map(|id| state.backend(*id)) {
            slot.clear();
        }
        for service in self.services.iter() {
            let before =
                service.vips.first().and_then(|vip| old.exact(vip)).filter(|old| old.id == service.id);
            if let (Some(before), Some(slot)) = (before, state.service(service.id))
                && (before.backends != service.backends
                    || before.scheduler.kind() != service.scheduler.kind())
            {
                schedule::carry(before, service, slot);
            }
        }
    }
}

/// Everything that the service is found by: its VIPs first, then the node's addresses.
fn reached_by(service: &model::Service, desired: &DesiredState) -> Vec<VipKey> {
    let on_vips = service.vips.iter().map(|vip| service.key(*vip, service.port));
    let family = service.family();
    let own = desired.node_addresses().iter().filter(|addr| Some(addr.family()) == family);
    let on_node = own.filter_map(|addr| Some(service.key(*addr, service.node_port?)));
    on_vips.chain(on_node).collect()
}

fn compiled(id: BackendId, backend: model::Backend) -> Backend {
    Backend::new(id, backend.addr.ip(), backend.port.number(), backend.weight.0.into(), backend.mode)
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

/// The VIPs that Weir answers for.
fn owned(desired: &DesiredState) -> impl Iterator<Item = IpAddr> {
    let announced = desired.services().iter().filter(|service| service.announce);
    let vips = announced.flat_map(|service| &service.vips);
    vips.filter(|vip| !desired.node_addresses().contains(vip)).map(|vip| vip.ip())
}
