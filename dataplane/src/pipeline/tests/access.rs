//! Who may use a service, where its clients are, and services that are parts of one.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use super::super::fixture::{LAN, MACS, SNAT4, UPLINK, backend, engines, net, vip};
use super::super::*;
use super::{Wire, at, packet};
use crate::flow::key::{TCP, UDP, VipKey, bits};
use crate::ids::PoolId;
use crate::schedule::{Flags, Kind as Scheduling, Scheduler};
use crate::snapshot::{
    Access, Backend, Clients, Group, Locality, Masquerade, Networks, Persistence, Service, Services,
    SnatPool, SynProxy, WhenEmpty,
};
use crate::wire::tcp::{ACK, SYN};

/// A client in the local networks, one that is not, and an address of the node's own.
const POD: IpAddr = IpAddr::V4(Ipv4Addr::new(172, 16, 0, 7));
const OUTSIDE: IpAddr = IpAddr::V4(Ipv4Addr::new(172, 17, 0, 7));
const NODE: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 254));

/// A service on a port of the VIP with these of the three backends, by their ids and weights.
fn service(id: u32, port: u16, backends: &[(u32, u32)]) -> Service {
    let (addr, v6) = bits(vip(false));
    let backends: Vec<_> = backends
        .iter()
        .map(|(id, weight)| {
            Backend::new(BackendId(*id), backend(*id as u8 + 1, false), 8000, *weight, Mode::Nat)
        })
        .collect();
    Service {
        id: ServiceId(id),
        vips: vec![VipKey { addr, port, proto: TCP, v6 }],
        scheduler: Scheduler::compile(Scheduling::Rr, Flags::default(), &backends),
        backends: backends.into(),
        ..Service::default()
    }
}

fn range(first: [u8; 4], last: [u8; 4]) -> Networks {
    Networks::new([(u32::from_be_bytes(first), u32::from_be_bytes(last))], [])
}

/// Pods in 172.16/16, the node at 10.0.0.254, virtual addresses in 10.0.0/24 and SNAT addresses among them.
fn snapshot(services: Vec<Service>) -> Snapshot {
    let pool =
        SnatPool { name: "pool".into(), v4: vec![SNAT4.to_bits()], v6: vec![], low: 1024, high: u16::MAX };
    let locality = Locality {
        local: range([172, 16, 0, 0], [172, 16, 255, 255]),
        node: range([10, 0, 0, 254], [10, 0, 0, 254]),
        virtual_networks: Networks::new(
            [([10, 0, 0, 0], [10, 0, 0, 255]), ([10, 1, 9, 0], [10, 1, 9, 255])]
                .map(|(first, last)| (u32::from_be_bytes(first), u32::from_be_bytes(last))),
            [],
        ),
    };
    let services = Services::new(services, vec![pool], [vip(false)]).with_locality(locality);
    Snapshot { services: Arc::new(services), net: Arc::new(net()), ..Snapshot::default() }
}

fn pooled(service: Service, masquerade: Masquerade) -> Service {
    let access = Access { masquerade, ..Access::default() };
    Service { pool: Some(PoolId(0)), access, ..service }
}

/// What becomes of a first segment, and what the backend sees of it.
fn first(engine: &mut Engine, tables: &Snapshot, from: SocketAddr, to: SocketAddr) -> (Verdict, Wire) {
    let mut wire = Wire::new(&packet(TCP, SYN, from, to, 64), UPLINK);
    (wire.through(engine, tables, Tick(0)), wire)
}

/// The last byte of the backend that a first segment goes to.
fn chosen(engine: &mut Engine, tables: &Snapshot, from: SocketAddr, to: SocketAddr) -> u8 {
    let (verdict, wire) = first(engine, tables, from, to);
    assert_eq!(verdict, Verdict::Tx(LAN), "{from} {to}");
    match wire.seen().1.ip() {
        IpAddr::V4(v4) => v4.octets()[3],
        IpAddr::V6(_) => unreachable!(),
    }
}

#[test]
fn source_ranges_say_who_may_open_a_flow_and_spare_those_that_are_open() {
    let ranges = |sources| {
        let access = Access { sources, ..Access::default() };
        snapshot(vec![Service { access, ..service(0, 80, &[(0, 1)]) }])
    };
    let all = ranges(None);
    // A thousand ranges, of which one has the pod.
    let thousand = (0..1000_u32).map(|net| (0x0b00_0000 + net * 512, 0x0b00_0000 + net * 512 + 255));
    let many = Networks::new(thousand.chain([(0xac10_0000, 0xac10_00ff)]), [(0, u128::MAX)]);
    let tables = ranges(Some(many));
    let mut engine = engines(1, 64).remove(0);
    let to = at(vip(false), 80);
    assert_eq!(first(&mut engine, &all, at(OUTSIDE, 999), to).0, Verdict::Tx(LAN));
    for (name, from, flags, want) in [
        ("in a range", at(POD, 1000), SYN, Verdict::Tx(LAN)),
        ("in none", at(OUTSIDE, 1000), SYN, Verdict::Drop(DropReason::SourceRange)),
        ("in none, in the middle of nothing", at(OUTSIDE, 1000), ACK, Verdict::Drop(DropReason::SourceRange)),
        ("in none, but of a flow that is open", at(OUTSIDE, 999), ACK, Verdict::Tx(LAN)),
    ] {
        let mut wire = Wire::new(&packet(TCP, flags, from, to, 64), UPLINK);
        assert_eq!(wire.through(&mut engine, &tables, Tick(0)), want, "{name}");
    }
    let nobody = ranges(Some(Networks::default()));
    assert_eq!(first(&mut engine, &nobody, at(POD, 2), to).0, Verdict::Drop(DropReason::SourceRange));
}

#[test]
fn a_service_without_backends_refuses_or_is_silent_as_it_was_told() {
    let mut rejecting = service(0, 80, &[]);
    let mut silent = service(1, 81, &[]);
    let mut drained = service(2, 82, &[(0, 0)]);
    for service in [&mut silent, &mut drained] {
        service.access.when_empty = WhenEmpty::Drop;
    }
    for service in [&mut rejecting, &mut silent] {
        // Nobody is welcomed to a service that has nothing to offer.
        service.options.syn_proxy = SynProxy::Always;
    }
    let tables = snapshot(vec![rejecting, silent, drained]);
    let mut engine = engines(1, 64).remove(0);
    for (port, want) in [
        (80, Verdict::Reply(Some(DropReason::NoBackend))),
        (81, Verdict::Drop(DropReason::NoLocalBackend)),
        (82, Verdict::Drop(DropReason::NoLocalBackend)),
    ] {
        let (verdict, wire) = first(&mut engine, &tables, at(OUTSIDE, 1000), at(vip(false), port));
        assert_eq!(verdict, want, "{port}");
        if port == 80 {
            assert_eq!(wire.bytes()[34..36], [3, 3], "ICMP port unreachable");
        }
        let refused = engine.stats().refused(ServiceId(u32::from(port) - 80)).unwrap();
        assert_eq!(refused.get(), 1, "{port}");
    }
}

#[test]
fn what_is_for_no_service_in_a_virtual_network_is_refused_or_dropped() {
    let tables = snapshot(vec![service(0, 80, &[(0, 1)])]);
    let elsewhere = IpAddr::from([10, 2, 0, 1]);
    for (name, proto, to, want) in [
        ("a service", TCP, at(vip(false), 80), Verdict::Tx(LAN)),
        (
            "its address, no such port",
            TCP,
            at(vip(false), 81),
            Verdict::Reply(Some(DropReason::NoServicePort)),
        ),
        (
            "its address, another protocol",
            UDP,
            at(vip(false), 80),
            Verdict::Reply(Some(DropReason::NoServicePort)),
        ),
        (
            "no service's address",
            TCP,
            at([10, 0, 0, 7].into(), 80),
            Verdict::Drop(DropReason::UnallocatedAddress),
        ),
        (
            "no service's address",
            UDP,
            at([10, 0, 0, 7].into(), 53),
            Verdict::Drop(DropReason::UnallocatedAddress),
        ),
        ("the node's own address in the network", TCP, at(NODE, 22), Verdict::Kernel),
        ("a SNAT address in a network", TCP, at(SNAT4.into(), 4000), Verdict::Drop(DropReason::NoFlow)),
        ("outside of it", TCP, at(elsewhere, 80), Verdict::Kernel),
    ] {
        let mut engine = engines(1, 64).remove(0);
        let mut wire = Wire::new(&packet(proto, SYN, at(OUTSIDE, 1000), to, 64), UPLINK);
        assert_eq!(wire.through(&mut engine, &tables, Tick(0)), want, "{name}");
    }
    let mut steps = Vec::new();
    let mut engine = engines(1, 64).remove(0);
    let mut wire = Wire::new(&packet(TCP, SYN, at(OUTSIDE, 1), at(vip(false), 81), 64), UPLINK);
    let mut frame = Frame::new(&mut wire.chunk, wire.start, wire.len, UPLINK).unwrap();
    engine.process_one(&mut frame, Tick(0), &tables, &mut steps);
    assert_eq!(steps[0], Step::NoService { allocated: true });
}

#[test]
fn masquerading_hides_clients_from_nat_backends() {
    let backend1 = backend(1, false);
    for (name, masquerade, from, hidden) in [
        ("hairpin, from outside", Masquerade::Hairpin, OUTSIDE, false),
        ("hairpin, a pod", Masquerade::Hairpin, POD, false),
        ("hairpin, the backend itself", Masquerade::Hairpin, backend1, true),
        ("not local, from outside", Masquerade::NotLocal, OUTSIDE, true),
        ("not local, a pod", Masquerade::NotLocal, POD, false),
        ("not local, the backend itself", Masquerade::NotLocal, backend1, true),
        ("always, a pod", Masquerade::Always, POD, true),
    ] {
        let tables = snapshot(vec![pooled(service(0, 80, &[(0, 1)]), masquerade)]);
        let mut engine = engines(1, 64).remove(0);
        let from = at(from, 40_000);
        let (verdict, wire) = first(&mut engine, &tables, from, at(vip(false), 80));
        assert_eq!(verdict, Verdict::Tx(LAN), "{name}");
        let (src, dst, _) = wire.seen();
        assert_eq!(dst, at(backend1, 8000), "{name}");
        assert_eq!(src.ip(), if hidden { SNAT4.into() } else { from.ip() }, "{name}");
        let mut reply = Wire::new(&packet(TCP, SYN | ACK, dst, src, 64), LAN);
        let back = if from.ip() == backend1 { LAN } else { UPLINK };
        assert_eq!(reply.through(&mut engine, &tables, Tick(0)), Verdict::Tx(back), "{name}");
        assert_eq!((reply.seen().0, reply.seen().1), (at(vip(false), 80), from), "{name}");
    }
    let mut poolless = pooled(service(0, 80, &[(0, 1)]), Masquerade::Always);
    poolless.pool = None;
    let mut engine = engines(1, 64).remove(0);
    let (verdict, _) = first(&mut engine, &snapshot(vec![poolless]), at(POD, 1), at(vip(false), 80));
    assert_eq!(verdict, Verdict::Drop(DropReason::SnatExhausted), "nobody is shown who is to be hidden");
}

#[test]
fn clients_inside_have_services_of_their_own_on_the_same_addresses() {
    let inside = |service| Service { clients: Clients::Inside, ..service };
    let tables = snapshot(vec![
        service(0, 80, &[(0, 1)]),
        inside(service(1, 80, &[(1, 1)])),
        inside(service(2, 81, &[(2, 1)])),
        service(3, 82, &[(0, 1)]),
    ]);
    let mut engine = engines(1, 64).remove(0);
    for (name, from, port, want) in [
        ("from outside", OUTSIDE, 80, 1),
        ("a pod", POD, 80, 2),
        ("a pod, where there is one for all alone", POD, 82, 1),
        ("a pod, where there is one for inside alone", POD, 81, 3),
    ] {
        assert_eq!(chosen(&mut engine, &tables, at(from, 1000), at(vip(false), port)), want, "{name}");
    }
    let (verdict, _) = first(&mut engine, &tables, at(OUTSIDE, 1000), at(vip(false), 81));
    assert_eq!(verdict, Verdict::Reply(Some(DropReason::NoServicePort)), "for inside alone");
}

#[test]
fn the_nodes_own_address_is_a_client_inside_where_its_kernel_sends() {
    let (addr, v6) = bits(NODE);
    let mut on_node = service(0, 80, &[(0, 1)]);
    on_node.vips.push(VipKey { addr, port: 30080, proto: TCP, v6 });
    let inside = Service { clients: Clients::Inside, ..service(1, 80, &[(1, 1)]) };
    let mut tables = snapshot(vec![on_node, inside]);
    let mut engine = engines(1, 64).remove(0);
    let from_wire = first(&mut engine, &tables, at(NODE, 1000), at(vip(false), 80)).0;
    assert_eq!(from_wire, Verdict::Drop(DropReason::SourceIsVip));
    let mut net = net();
    net.kernel = Some((UPLINK, MACS[0]));
    tables.net = Arc::new(net);
    assert_eq!(chosen(&mut engine, &tables, at(NODE, 1000), at(vip(false), 80)), 2);
    let forged = first(&mut engine, &tables, at(vip(false), 1000), at(vip(false), 80)).0;
    assert_eq!(forged, Verdict::Drop(DropReason::SourceIsVip), "a VIP is no client anywhere");
}

/// Two persistent services of one group, on ports 80 and 81, with these of the three backends.
fn grouped(cluster: &[(u32, u32)], external: &[(u32, u32)]) -> Snapshot {
    let (addr, v6) = bits(vip(false));
    let vip = VipKey { addr, port: 80, proto: TCP, v6 };
    let part = |place: u16, backends: &[(u32, u32)]| Service {
        group: Some(Group { vip, place }),
        persistence: Some(Persistence { timeout_s: 100, mask: u128::MAX }),
        ..service(place.into(), 80 + place, backends)
    };
    snapshot(vec![part(0, cluster), part(1, external)])
}

#[test]
fn a_group_keeps_a_client_with_one_backend_by_whatever_address_it_comes() {
    const ALL: [(u32, u32); 3] = [(0, 1), (1, 1), (2, 1)];
    let mut engine = engines(1, 64).remove(0);
    let (cluster, external) = (at(vip(false), 80), at(vip(false), 81));
    let mut port = 1000;
    let mut go = |engine: &mut Engine, tables: &Snapshot, from: IpAddr, to| {
        port += 1;
        chosen(engine, tables, at(from, port), to)
    };
    let tables = grouped(&ALL, &ALL);
    let kept = go(&mut engine, &tables, POD, cluster);
    assert!((0..4).all(|_| go(&mut engine, &tables, POD, external) == kept), "the same by another address");
    let hosts = (0..3).map(|n| IpAddr::from([172, 18, 0, n]));
    let others: BTreeSet<_> = hosts.map(|host| go(&mut engine, &tables, host, external)).collect();
    assert!(others.len() > 1, "other clients go elsewhere");

    // The external service loses the backend, which the other one keeps; or it has no new flows for it.
    let rest: Vec<_> = ALL.into_iter().filter(|(id, _)| *id != u32::from(kept) - 1).collect();
    let drained = ALL.map(|(id, weight)| (id, if id == u32::from(kept) - 1 { 0 } else { weight }));
    let tables = grouped(&ALL, &rest);
    let other = go(&mut engine, &tables, POD, external);
    assert_ne!(other, kept);
    for tables in [tables, grouped(&ALL, &drained)] {
        for _ in 0..3 {
            assert_eq!(go(&mut engine, &tables, POD, external), other, "it has one of its own now");
            assert_eq!(go(&mut engine, &tables, POD, cluster), kept, "and the other one still its own");
        }
    }
    // It comes back: what is kept for the group counts.
    assert_eq!(go(&mut engine, &grouped(&ALL, &ALL), POD, external), kept);
    // Gone from both: a new choice, which both share.
    let tables = grouped(&rest, &rest);
    let (a, b) = (go(&mut engine, &tables, POD, cluster), go(&mut engine, &tables, POD, external));
    assert!(a != kept && b != kept);
    assert_eq!(go(&mut engine, &tables, POD, cluster), a);
}

#[test]
fn a_backend_is_gone_for_a_group_when_no_part_has_it() {
    let mut engine = engines(1, 64).remove(0);
    let to = at(vip(false), 81);
    let mut gone = grouped(&[(1, 1)], &[(1, 1)]);
    let mut elsewhere = grouped(&[(0, 1), (1, 1)], &[(1, 1)]);
    for tables in [&mut gone, &mut elsewhere] {
        tables.settings.expire_nodest_conn = true;
    }
    assert_eq!(chosen(&mut engine, &grouped(&[(0, 1)], &[(0, 1)]), at(POD, 1), to), 1);
    let mut again = |tables: &Snapshot| {
        let mut wire = Wire::new(&packet(TCP, ACK, at(POD, 1), to, 64), UPLINK);
        wire.through(&mut engine, tables, Tick(0))
    };
    assert_eq!(again(&elsewhere), Verdict::Tx(LAN), "the other part still has it");
    assert_eq!(again(&gone), Verdict::Reply(Some(DropReason::NoFlow)));
}

#[test]
fn of_services_that_share_a_backend_one_that_does_not_drain_it_speaks_for_it() {
    let tables = grouped(&[(0, 0), (1, 1)], &[(1, 0), (0, 1)]);
    for (id, service, weight) in [(0, 1, 1), (1, 0, 1)] {
        let (of, backend) = tables.services.backend(BackendId(id)).unwrap();
        assert_eq!((of.id, backend.weight), (ServiceId(service), weight));
        for (service, weight) in [(0, id), (1, 1 - id)] {
            let (of, backend) = tables.services.backend_of(ServiceId(service), BackendId(id)).unwrap();
            assert_eq!((of.id, backend.id, backend.weight), (ServiceId(service), BackendId(id), weight));
        }
    }
    let tables = grouped(&[(0, 1)], &[(1, 1)]);
    let (of, _) = tables.services.backend_of(ServiceId(0), BackendId(1)).unwrap();
    assert_eq!(of.id, ServiceId(1), "whoever has it");
    let service = tables.services.service(ServiceId(0)).unwrap();
    assert!(tables.services.backend_in(service, BackendId(1)).is_none());
    assert!(tables.services.backend_of(ServiceId(0), BackendId(7)).is_none());
}

#[test]
fn udp_flows_leave_a_removed_backend_at_once_where_their_service_says_so() {
    let udp = |backends: &[(u32, u32)], move_udp| {
        let mut service = service(0, 80, backends);
        service.vips[0].proto = UDP;
        service.options.move_udp = move_udp;
        service
    };
    let (from, to) = (at(OUTSIDE, 1000), at(vip(false), 80));
    let went = |engine: &mut Engine, service| {
        let tables = snapshot(vec![service]);
        let mut wire = Wire::new(&packet(UDP, 0, from, to, 64), UPLINK);
        (wire.through(engine, &tables, Tick(0)) == Verdict::Tx(LAN)).then(|| wire.seen().1.ip())
    };
    let [first, second] = [1, 2].map(|number| Some(backend(number, false)));
    for (name, move_udp, later, want) in [
        ("removed, and the service moves flows", true, &[(1, 1)][..], second),
        ("removed, and it does not", false, &[(1, 1)], first),
        ("drained", true, &[(0, 0), (1, 1)], first),
        ("all are removed", true, &[], None),
    ] {
        let mut engine = engines(1, 64).remove(0);
        assert_eq!(went(&mut engine, udp(&[(0, 1)], move_udp)), first, "{name}");
        assert_eq!(went(&mut engine, udp(later, move_udp)), want, "{name}");
        assert_eq!(went(&mut engine, udp(later, move_udp)), want, "{name}, again");
        assert_eq!(engine.flows(), usize::from(want.is_some()), "{name}");
    }
    // TCP stays, and so does a UDP flow whose backend another service of the group still has.
    let tcp = |backends: &[(u32, u32)]| {
        let mut service = service(0, 80, backends);
        service.options.move_udp = true;
        snapshot(vec![service])
    };
    let mut engine = engines(1, 64).remove(0);
    assert_eq!(chosen(&mut engine, &tcp(&[(0, 1)]), from, to), 1);
    let mut wire = Wire::new(&packet(TCP, ACK, from, to, 64), UPLINK);
    assert_eq!(wire.through(&mut engine, &tcp(&[(1, 1)]), Tick(0)), Verdict::Tx(LAN));
    assert_eq!(wire.seen().1.ip(), backend(1, false));

    let mut engine = engines(1, 64).remove(0);
    assert_eq!(went(&mut engine, udp(&[(0, 1)], true)), first);
    let parts = snapshot(vec![udp(&[(1, 1)], true), service(1, 81, &[(0, 1)])]);
    let mut wire = Wire::new(&packet(UDP, 0, from, to, 64), UPLINK);
    assert_eq!(wire.through(&mut engine, &parts, Tick(0)), Verdict::Tx(LAN));
    assert_eq!(wire.seen().1.ip(), backend(1, false), "still in use");
}
