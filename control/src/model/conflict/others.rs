//! What services that stay have taken, while others change.

use std::net::SocketAddr;
use std::sync::Arc;

use dataplane::flow::key::{self, VipKey};
use dataplane::snapshot::Mark;

use super::{Finder, Map, Others, Place, Reason};
use crate::model::{
    Clients, Draft, Family, Order, Port, Protocol, Service, SnatPool, Unicast, port_number, vip_key,
};

impl<'a> Others<'a> {
    fn stays(&self, place: Option<Order>) -> Option<&'a Arc<Service>> {
        self.state.at(place.filter(|place| !self.leaving.contains(place))?)
    }

    pub(super) fn has_name(&self, name: &str) -> bool {
        self.stays(self.state.named(name)).is_some()
    }

    pub(super) fn with_mark(&self, mark: Mark) -> Option<&'a Arc<str>> {
        self.stays(self.state.marked(mark)).map(|service| &service.name)
    }

    /// The service that has the address by a VIP, or by its node port where it is one of the `node`'s addresses.
    fn with_address(&self, vip: &VipKey, clients: Clients, node: &[Unicast]) -> Option<&'a Arc<str>> {
        let by_vip = || self.stays(self.state.holder(vip, clients));
        let is_nodes = || node.iter().any(|own| key::bits(own.ip()) == (vip.addr, vip.v6));
        let on_node = || {
            let protocol = Protocol::ALL.into_iter().find(|protocol| protocol.number() == vip.proto)?;
            let family = if vip.v6 { Family::V6 } else { Family::V4 };
            self.stays(self.state.on_node(&(family, protocol, Port::new(vip.port)?, clients)))
        };
        by_vip().or_else(|| is_nodes().then(on_node).flatten()).map(|service| &service.name)
    }

    /// All of them.
    fn all(&self) -> impl Iterator<Item = &'a Arc<Service>> {
        self.state.places().filter(|(place, _)| !self.leaving.contains(place)).map(|(_, service)| service)
    }
}

impl Finder<'_> {
    /// Refuses an address that a service has which stays, or that is a SNAT address.
    pub(super) fn of_others(
        &mut self,
        at: Place,
        addr: Unicast,
        port: Option<Port>,
        protocol: Protocol,
        clients: Clients,
    ) {
        let Some(others) = self.others else { return };
        let vip = vip_key(addr, port, protocol);
        if let Some(other) = others.with_address(&vip, clients, &self.around.node_addresses) {
            let vip = SocketAddr::new(addr.ip(), port_number(port));
            self.refuse(at, Reason::VipTaken { vip, protocol: protocol.name(), other: Arc::clone(other) });
        }
        if matches!(at, Place::Vip(..)) && has(&self.around.pools, addr) {
            self.refuse(at, Reason::SnatIsVip(addr.ip()));
        }
    }

    /// Refuses what is beside services where it does not go with those that stay: other node addresses and SNAT pools
    /// than `before`.
    pub(super) fn others_around(&mut self, before: &Draft) {
        let Some(others) = self.others else { return };
        let around = self.around;
        let new = (0..).zip(&around.node_addresses).filter(|(_, addr)| !before.node_addresses.contains(addr));
        let new: Vec<(usize, Unicast)> = new.map(|(at, addr)| (at, *addr)).collect();
        let other_pools = around.pools != before.pools;
        let pools: Map<&str, &SnatPool> = around.pools.iter().map(|pool| (&*pool.name, pool)).collect();
        for service in others.all().filter(|_| other_pools || !new.is_empty()) {
            for (at, addr) in new.iter().filter(|(_, addr)| addr.family() == service.family()) {
                let (Some(port), Some(protocol)) = (service.node_port, service.protocol()) else { break };
                let vip = vip_key(*addr, Some(port), protocol);
                if let Some(other) = others.with_address(&vip, service.clients(), &[]) {
                    let vip = SocketAddr::new(addr.ip(), port.number());
                    let reason =
                        Reason::VipTaken { vip, protocol: protocol.name(), other: Arc::clone(other) };
                    self.refuse(Place::NodeAddress(*at), reason);
                }
            }
            if other_pools {
                let vips = service.vips().iter().filter(|vip| has(&around.pools, **vip));
                let taken: Vec<_> = vips.map(|vip| vip.ip()).collect();
                for vip in taken {
                    self.refuse(Place::PoolName(0), Reason::SnatIsVip(vip));
                }
                self.pool_of(0, service, service.family(), &pools);
            }
        }
    }
}

/// Whether a pool has the address.
fn has(pools: &[SnatPool], addr: Unicast) -> bool {
    pools.iter().flat_map(|pool| &pool.ranges).any(|range| range.contains(addr.ip()))
}
