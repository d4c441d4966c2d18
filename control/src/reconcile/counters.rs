//! Whose traffic the workers' counters show.

use std::collections::HashMap;
use std::sync::Arc;

use dataplane::ids::{BackendId, ServiceId};
use dataplane::snapshot::{Service, Services};
use dataplane::stats::WorkerStats;

use crate::admin::protocol::Traffic;
use crate::compile::{Compiler, Fresh};
use crate::ipvs::estimator::Counters;
use crate::model::DesiredState;

/// What counters showed when their slots got their present owners. Counters only ever grow; their slots are reused.
#[derive(Clone, Debug, Default)]
pub struct Baseline {
    backends: HashMap<BackendId, Traffic, ahash::RandomState>,
    services: HashMap<ServiceId, u64, ahash::RandomState>,
}

impl Baseline {
    /// These slots have new owners.
    pub(super) fn note(&mut self, reused: &Fresh, stats: &[Arc<WorkerStats>]) {
        for id in &reused.backends {
            self.backends.insert(*id, total(stats, *id));
        }
        for id in &reused.services {
            self.services.insert(*id, refused(stats, *id));
        }
    }

    /// Traffic of the backend that has this slot now.
    pub fn traffic(&self, stats: &[Arc<WorkerStats>], id: BackendId) -> Traffic {
        total(stats, id).since(self.backends.get(&id).copied().unwrap_or_default())
    }

    /// New flows of the service that were refused.
    pub fn refused(&self, stats: &[Arc<WorkerStats>], service: &Service) -> u64 {
        let before = self.services.get(&service.id).copied().unwrap_or_default();
        refused(stats, service.id).saturating_sub(before)
    }
}

fn total(stats: &[Arc<WorkerStats>], id: BackendId) -> Traffic {
    let mut total = Traffic::default();
    for counters in stats.iter().filter_map(|stats| stats.backend(id)) {
        total += Traffic {
            flows: counters.flows.get(),
            packets_in: counters.packets_in.get(),
            bytes_in: counters.bytes_in.get(),
            packets_out: counters.packets_out.get(),
            bytes_out: counters.bytes_out.get(),
        };
    }
    total
}

fn refused(stats: &[Arc<WorkerStats>], id: ServiceId) -> u64 {
    stats.iter().filter_map(|stats| stats.refused(id)).map(|counter| counter.get()).sum()
}

/// The workers' counters as the estimator sees them.
pub(super) struct Sight<'a> {
    pub(super) stats: &'a [Arc<WorkerStats>],
    pub(super) baseline: &'a Baseline,
    pub(super) desired: &'a DesiredState,
    pub(super) compiler: &'a Compiler,
    pub(super) tables: &'a Services,
}

impl Counters for Sight<'_> {
    fn stirred(&self, see: &mut dyn FnMut(BackendId)) {
        self.stats.iter().for_each(|stats| stats.take_busy(&mut *see));
    }

    fn rest(&self, id: BackendId) {
        self.stats.iter().for_each(|stats| stats.rests(id));
    }

    fn read(&self, id: BackendId) -> Traffic {
        self.baseline.traffic(self.stats, id)
    }

    fn services(&self, id: BackendId) -> Vec<ServiceId> {
        let Some((service, _)) = self.tables.backend(id) else {
            return self.compiler.had(self.desired, id);
        };
        if service.group.is_none() {
            return vec![service.id];
        }
        let name = self.desired.service(&service.name).and_then(|of| of.group.as_deref());
        let members = name.map(|name| self.desired.group(name)).unwrap_or_default();
        let members = members.into_iter().filter_map(|order| self.tables.service(self.compiler.id(order)?));
        members.filter(|of| self.tables.backend_in(of, id).is_some()).map(|of| of.id).collect()
    }
}
