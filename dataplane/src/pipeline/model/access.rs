//! Tables in which it matters who a client is: services of their own for clients inside, services that are parts of a
//! group and share backends, sources that may not, and SNAT for who is not local. And what has to hold for a flow that
//! opens under any tables.

use std::net::Ipv6Addr;
use std::sync::Arc;

use super::Arrival;
use crate::flow::entry::{Entry, Way};
use crate::flow::key::{FlowKey, UDP, bits};
use crate::ids::ServiceId;
use crate::pipeline::fixture::vip;
use crate::schedule::{Flags, Kind as Scheduling, Scheduler};
use crate::snapshot::{
    Access, Clients, Group, Locality, Masquerade, Mode, Networks, Service, Services, Snapshot, WhenEmpty,
};

/// Clients are numbered from 1 to 4; these may use a service that admits only some.
const ADMITTED: [u8; 3] = [1, 2, 3];
/// These are local.
const LOCAL: [u8; 2] = [1, 2];
/// This one is the node.
const NODE: [u8; 1] = [4];

/// `usual`, where services tell their clients apart, and UDP flows leave a removed backend. With `fewer` each service
/// has lost its first backend.
pub(super) fn apart(usual: &Snapshot, fewer: bool) -> Snapshot {
    let mut list: Vec<_> = usual.services.iter().cloned().map(changed).collect();
    let first = u32::try_from(list.len()).expect("a few");
    let twins: Vec<_> = list.iter().filter(|service| service.group.is_some()).map(inside).collect();
    list.extend((first..).zip(twins).map(|(id, twin)| Service { id: ServiceId(id), ..twin }));
    if fewer {
        for service in list.iter_mut().filter(|service| service.steady.is_none()) {
            service.backends = service.backends.iter().skip(1).cloned().collect();
            service.scheduler = Scheduler::compile(Scheduling::Rr, Flags::default(), &service.backends);
        }
    }
    let block = |v6| {
        let (addr, _) = bits(vip(v6));
        (addr & !0xff, addr | 0xff)
    };
    let (low, high) = block(false);
    let narrow = |addr: u128| u32::try_from(addr).expect("an address of IPv4");
    let locality = Locality {
        local: clients(&LOCAL),
        node: clients(&NODE),
        virtual_networks: Networks::new([(narrow(low), narrow(high))], [block(true)]),
    };
    let services = Services::new(list, usual.services.pools().to_vec(), [vip(false), vip(true)]);
    let services = services.with_rules(usual.services.rules().to_vec()).with_locality(locality);
    Snapshot { services: Arc::new(services), ..usual.clone() }
}

/// The addresses of clients, in both families.
fn clients(numbers: &[u8]) -> Networks {
    let v4 = |number: &u8| u32::from_be_bytes([172, 16, 0, *number]);
    let v6 = |number: &u8| Ipv6Addr::new(0xfd22, 0, 0, 0, 0, 0, 0, (*number).into()).to_bits();
    Networks::new(numbers.iter().map(|n| (v4(n), v4(n))), numbers.iter().map(|n| (v6(n), v6(n))))
}

fn changed(mut service: Service) -> Service {
    service.options.move_udp = true;
    let Some(vip) = service.vips.first().copied() else { return service };
    let access = |masquerade| Access { masquerade, ..Access::default() };
    match vip.port {
        70 | 80 => {
            service.group = Some(Group { vip, place: 0 });
            service.access = access(if vip.port == 80 { Masquerade::Always } else { Masquerade::NotLocal });
        }
        71 | 75 => service.access = access(Masquerade::NotLocal),
        81 => service.access.sources = Some(clients(&ADMITTED)),
        83 => service.access.when_empty = WhenEmpty::Drop,
        _ => {}
    }
    service
}

/// The part of a group that clients inside reach: other backends in another order.
fn inside(service: &Service) -> Service {
    let backends: Vec<_> = service.backends.iter().take(2).rev().cloned().collect();
    Service {
        clients: Clients::Inside,
        group: service.group.map(|group| Group { place: 1, ..group }),
        scheduler: Scheduler::compile(Scheduling::Rr, Flags::default(), &backends),
        backends: backends.into(),
        access: Access { masquerade: Masquerade::NotLocal, ..Access::default() },
        ..service.clone()
    }
}

/// Judges a flow that a packet with `key` has just opened.
pub(super) fn opened(tables: &Snapshot, arrival: &Arrival, key: &FlowKey, entry: &Entry) {
    let service = tables.services.find(key, arrival.port).expect("a flow is of a service");
    assert_eq!(entry.service, service.id, "{key:?} is another service's");
    let is_one_of = |numbers: &[u8]| clients(numbers).contains(key.src, key.v6);
    let tells_apart = !tables.services.locality().local.is_empty();
    let (is_local, is_node) = (tells_apart && is_one_of(&LOCAL), tells_apart && is_one_of(&NODE));
    assert!(service.access.sources.is_none() || is_one_of(&ADMITTED), "{key:?} may not");
    let is_for_inside = |other: &Service| other.clients == Clients::Inside && other.vips == service.vips;
    let has_twin = tables.services.iter().any(is_for_inside);
    assert_eq!(service.clients == Clients::Inside, has_twin && (is_local || is_node), "{key:?}");
    let backend = service.backends.iter().find(|backend| backend.id == entry.backend);
    let backend = backend.unwrap_or_else(|| panic!("{key:?} went to another service's backend"));
    let is_hidden = bits(backend.addr) == (key.src, key.v6)
        || match service.access.masquerade {
            Masquerade::Hairpin => false,
            Masquerade::NotLocal => !is_local,
            Masquerade::Always => true,
        };
    let want = if backend.mode == Mode::Nat && is_hidden { Mode::FullNat } else { backend.mode };
    assert_eq!(entry.mode(), want, "{key:?}");
}

/// Judges a flow by which a packet was sent on.
pub(super) fn used(tables: &Snapshot, entry: &Entry, way: Way) {
    let moves = tables.services.service(entry.service).is_some_and(|service| service.options.move_udp);
    if entry.proto() == UDP && way == Way::Forward && moves {
        assert!(tables.services.backend(entry.backend).is_some(), "a removed backend keeps a UDP flow");
    }
}
