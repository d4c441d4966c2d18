//! What `ipvsadm -L` is told.

use dataplane::flow;
use dataplane::flow::key::VipKey;
use dataplane::ids::BackendId;
use dataplane::snapshot::{self, Mark, Services};

use super::command::{Key, Refusal, ServerEntry, ServiceEntry, Timeouts};
use super::convert::{address, keys, server_of, service_of};
use crate::model::{self, Clients, DesiredState};
use crate::reconcile::Reconciler;

/// The services, or the one with this key: each once for every address that it is reached by.
pub fn services(reconciler: &Reconciler, of: Option<Key>) -> Result<Vec<ServiceEntry>, Refusal> {
    let snapshot = reconciler.current();
    let desired = reconciler.desired();
    let mut entries = Vec::new();
    for service in desired.services() {
        let Some(compiled) = reconciler.compiled(&snapshot.services, service) else { continue };
        let found = all_keys(service, desired).filter(|key| of.is_none_or(|of| of == *key));
        entries.extend(found.map(|key| entry(reconciler, key, service, compiled)));
        if of.is_some() && !entries.is_empty() {
            break;
        }
    }
    if of.is_some() && entries.is_empty() { Err(Refusal::NoService) } else { Ok(entries) }
}

/// The idle times that `--set` sets.
pub fn timeouts(desired: &DesiredState) -> Timeouts {
    let [_, established, _, _, fin_wait, ..] = desired.timeouts().tcp_s;
    Timeouts { tcp_s: established, tcp_fin_s: fin_wait, udp_s: desired.timeouts().udp_s }
}

/// The service with this key in compiled tables.
pub fn find(services: &Services, key: Key) -> Option<&snapshot::Service> {
    match key {
        Key::Address { protocol, addr, port } => {
            let (addr, v6) = flow::key::bits(addr);
            services.exact(&VipKey { addr, port, proto: protocol.number(), v6 })
        }
        Key::Mark { mark, v6 } => services.marked(Mark { value: mark, v6 }),
    }
}

fn all_keys(service: &model::Service, desired: &DesiredState) -> impl Iterator<Item = Key> {
    let on_node: Vec<Key> = match (service.node_port, service.protocol(), service.clients()) {
        (Some(port), Some(protocol), Clients::All) => {
            let own = desired.node_addresses().iter();
            let own = own.filter(|addr| addr.family() == service.family());
            own.map(|addr| address(*addr, Some(port), protocol)).collect()
        }
        _ => Vec::new(),
    };
    keys(service).into_iter().chain(on_node)
}

fn entry(
    reconciler: &Reconciler,
    key: Key,
    service: &model::Service,
    compiled: &snapshot::Service,
) -> ServiceEntry {
    let estimator = reconciler.estimator();
    let counts = |id: BackendId| {
        use std::sync::atomic::Ordering::Relaxed;
        reconciler.state().backend(id).map_or((0, 0, 0), |state| {
            let (active, inactive) = state.counts();
            (active, inactive, state.persistent.load(Relaxed))
        })
    };
    let servers = compiled.backends.iter().map(|backend| {
        let (active, inactive, persistent) = counts(backend.id);
        let stats = estimator.backend(backend.id);
        ServerEntry { server: server_of(backend), active, inactive, persistent, stats }
    });
    ServiceEntry {
        service: service_of(key, service),
        stats: estimator.service(compiled.id),
        servers: servers.collect(),
    }
}
