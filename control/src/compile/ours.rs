//! What the XDP program takes for Weir.

use dataplane::snapshot::Mode;
use xdp_prog::{Endpoint, Ours, Proto};

use super::{IdTable, owned};
use crate::model::DesiredState;

/// What belongs to Weir with these tables. `nat` backends that were removed belong to it as long as `ids` holds a slot
/// for them: replies of their last flows still have to come back.
pub fn ours(desired: &DesiredState, ids: &IdTable) -> Ours {
    let mut ours = Ours { owned: owned(desired).collect(), ..Ours::default() };
    for service in desired.services() {
        let Some(proto) = Proto::from_ip_number(service.protocol.number()) else { continue };
        let vips = service.vips.iter().map(|vip| vip.ip());
        ours.vips.extend(vips.map(|addr| Endpoint { addr, port: service.port.number(), proto }));
        ours.node_ports.extend(service.node_port.map(|port| (proto, port.number())));
        let nat = service.backends.iter().filter(|backend| backend.mode == Mode::Nat);
        let endpoints = nat.map(|nat| Endpoint { addr: nat.addr.ip(), port: nat.port.number(), proto });
        ours.nat_backends.extend(endpoints);
    }
    for removed in ids.removed().filter(|removed| removed.mode == Mode::Nat) {
        if let Some(proto) = Proto::from_ip_number(removed.proto) {
            ours.nat_backends.insert(Endpoint { addr: removed.addr, port: removed.port, proto });
        }
    }
    if !ours.node_ports.is_empty() {
        ours.node_addresses = desired.node_addresses().iter().map(|addr| addr.ip()).collect();
    }
    for pool in desired.pools() {
        let ports = pool.low.number()..=pool.high.number();
        for addr in pool.ranges.iter().flat_map(|range| range.iter()) {
            ours.snat.insert(addr, ports.clone());
            ours.owned.insert(addr);
        }
    }
    ours
}
