//! Persistence, services of marks and of all ports, and one-packet scheduling.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use super::super::fixture::{LAN, SNAT4, UPLINK, backend, engines, net, vip};
use super::super::*;
use super::{Wire, at, packet};
use crate::flow::entry::Way;
use crate::flow::key::{SCTP, TCP, UDP, VipKey, bits};
use crate::ids::PoolId;
use crate::schedule::{Flags, Kind as Scheduling, Scheduler};
use crate::snapshot::marks::{Mark, MarkRule, Prefix, Protocols};
use crate::snapshot::{Backend, Persistence, Service, Services, SnatPool};
use crate::time::TICKS_PER_SECOND;
use crate::wire::tcp::{ACK, FIN, RST, SYN};
use std::net::SocketAddr;

const TIMEOUT_S: u32 = 100;

/// A service of three backends, rr, on a port of the VIP; the backends' ports are 8000 above it.
fn service(proto: u8, port: u16, v6: bool, mode: Mode) -> Service {
    let (addr, v6) = bits(vip(v6));
    let backend_port = if port == 0 { 0 } else { 8000 + port };
    let backends: Vec<_> =
        (0..3).map(|n| Backend::new(BackendId(n), backend(n as u8 + 1, v6), backend_port, 1, mode)).collect();
    Service {
        vips: vec![VipKey { addr, port, proto, v6 }],
        scheduler: Scheduler::compile(Scheduling::Rr, Flags::default(), &backends),
        backends: backends.into(),
        pool: Some(PoolId(0)),
        ..Service::default()
    }
}

fn persistent(service: Service, mask: u128) -> Service {
    Service { persistence: Some(Persistence { timeout_s: TIMEOUT_S, mask }), ..service }
}

/// The services with ids in this order, also of their backends.
fn snapshot(services: Vec<Service>, rules: Vec<MarkRule>) -> Snapshot {
    let services = services.into_iter().enumerate().map(|(number, mut service)| {
        service.id = ServiceId(number as u32);
        for backend in Arc::make_mut(&mut service.backends) {
            backend.id.0 += 3 * number as u32;
        }
        service
    });
    let pool =
        SnatPool { name: "pool".into(), v4: vec![SNAT4.to_bits()], v6: vec![], low: 1024, high: u16::MAX };
    let services = Services::new(services.collect(), vec![pool], [vip(false), vip(true)]);
    Snapshot { services: Arc::new(services.with_rules(rules)), net: Arc::new(net()), ..Snapshot::default() }
}

fn client(host: u32, port: u16) -> SocketAddr {
    at(std::net::Ipv4Addr::from_bits(0xac10_0000 + host).into(), port)
}

fn seconds(seconds: u32) -> Tick {
    Tick(seconds * TICKS_PER_SECOND)
}

/// Where the first packet of a flow is sent; `None` where it is not.
fn opened(
    engine: &mut Engine,
    tables: &Snapshot,
    (proto, from, to): (u8, SocketAddr, SocketAddr),
    now: Tick,
) -> Option<SocketAddr> {
    let mut wire = Wire::new(&packet(proto, SYN, from, to, 64), UPLINK);
    (wire.through(engine, tables, now) == Verdict::Tx(LAN)).then(|| wire.seen().1)
}

fn send(
    engine: &mut Engine,
    tables: &Snapshot,
    way: Way,
    flags: u8,
    ends: [SocketAddr; 2],
    now: Tick,
) -> Verdict {
    let port = if way == Way::Forward { UPLINK } else { LAN };
    Wire::new(&packet(TCP, flags, ends[0], ends[1], 64), port).through(engine, tables, now)
}

/// Handshake of a TCP flow. Returns the backend.
fn established(
    engine: &mut Engine,
    tables: &Snapshot,
    from: SocketAddr,
    to: SocketAddr,
    now: Tick,
) -> SocketAddr {
    let server = opened(engine, tables, (TCP, from, to), now).unwrap();
    assert_eq!(send(engine, tables, Way::Reply, SYN | ACK, [server, from], now), Verdict::Tx(UPLINK));
    assert_eq!(send(engine, tables, Way::Forward, ACK, [from, to], now), Verdict::Tx(LAN));
    server
}

fn records(engine: &Engine, now: Tick) -> Vec<FlowRecord> {
    let (mut records, mut cursor) = (Vec::with_capacity(64), 0);
    while let Some(next) = engine.dump(cursor, 3, now, &mut records) {
        cursor = next;
    }
    records
}

fn templates(engine: &Engine, now: Tick) -> Vec<FlowRecord> {
    records(engine, now).into_iter().filter(|record| record.client.1 == 0).collect()
}

fn sweep(engine: &mut Engine, now: Tick) {
    for _ in 0..100 {
        engine.sweep(now, &Snapshot::default());
    }
}

#[test]
fn a_client_stays_with_its_backend_and_others_are_scheduled() {
    let tables = snapshot(vec![persistent(service(TCP, 80, false, Mode::Nat), u32::MAX.into())], vec![]);
    let mut engine = engines(1, 64).remove(0);
    let to = at(vip(false), 80);
    for port in 1000..1003 {
        for host in 1..=4 {
            let server = opened(&mut engine, &tables, (TCP, client(host, port), to), Tick(0)).unwrap();
            assert_eq!(server, at(backend([1, 2, 3, 1][host as usize - 1], false), 8080), "client {host}");
        }
    }
    let persistent = |id| engine.core.setup.state.backend(BackendId(id)).unwrap().persistent.load(Relaxed);
    assert_eq!([0, 1, 2].map(persistent), [2, 1, 1]);
    assert_eq!((engine.flows(), engine.templates()), (12, 4));
}

#[test]
fn clients_that_the_mask_makes_one_share_a_backend() {
    for (v6, mask, one, same, other) in [
        (false, 0xffff_ff00, "172.16.5.1", "172.16.5.250", "172.16.6.1"),
        (true, u128::MAX << 64, "fd22::1", "fd22::ffff:1", "fd22:0:0:1::1"),
    ] {
        let tables = snapshot(vec![persistent(service(UDP, 80, v6, Mode::Nat), mask)], vec![]);
        let mut engine = engines(1, 64).remove(0);
        let [one, same, other] = [one, same, other].map(|host| {
            opened(&mut engine, &tables, (UDP, at(host.parse().unwrap(), 999), at(vip(v6), 80)), Tick(0))
                .unwrap()
                .ip()
        });
        assert_eq!([one, same, other], [backend(1, v6), backend(1, v6), backend(2, v6)]);
    }
}

#[test]
fn a_service_of_all_ports_keeps_the_port_and_the_client_on_all_of_them() {
    let both = vec![
        persistent(service(TCP, 0, false, Mode::Nat), u32::MAX.into()),
        service(TCP, 80, false, Mode::Nat),
    ];
    let tables = snapshot(both, vec![]);
    let mut engine = engines(1, 64).remove(0);
    for (host, port, number) in [(1, 443, 1), (1, 8080, 1), (2, 443, 2), (2, 8080, 2), (3, 22, 3), (1, 1, 1)]
    {
        let (from, to) = (client(host, 5000), at(vip(false), port));
        let server = established(&mut engine, &tables, from, to, Tick(0));
        assert_eq!(server, at(backend(number, false), port), "client {host} port {port}");
        let mut reply = Wire::new(&packet(TCP, ACK, server, from, 64), LAN);
        assert_eq!(reply.through(&mut engine, &tables, Tick(0)), Verdict::Tx(UPLINK));
        assert_eq!(reply.seen().0, to);
    }
    let server = opened(&mut engine, &tables, (TCP, client(3, 6000), at(vip(false), 80)), Tick(0));
    assert_eq!(server, Some(at(backend(1, false), 8080)), "a port's own service goes first");
    let listed: Vec<_> =
        templates(&engine, Tick(0)).iter().map(|record| (record.vip.1, record.backend)).collect();
    assert_eq!(listed, [1, 2, 3].map(|number| (0, (backend(number, false), 0))));
}

#[test]
fn data_connections_of_ftp_follow_the_control_connection_with_persistence_alone() {
    let to = |port| at(vip(false), port);
    let kept = persistent(service(TCP, 21, false, Mode::Nat), u32::MAX.into());
    let all_ports = persistent(service(TCP, 0, false, Mode::Nat), u32::MAX.into());
    let tables = snapshot(vec![kept, all_ports.clone()], vec![]);
    let mut engine = engines(1, 64).remove(0);
    let mut go =
        |host, port| opened(&mut engine, &tables, (TCP, client(host, 5000 + port), to(port)), Tick(0));
    assert_eq!(go(1, 21), Some(at(backend(1, false), 8021)));
    assert_eq!(go(2, 21), Some(at(backend(2, false), 8021)));
    assert_eq!(
        [go(1, 3333), go(2, 1024)],
        [Some(at(backend(1, false), 3333)), Some(at(backend(2, false), 1024))]
    );
    assert_eq!(go(2, 20), Some(at(backend(2, false), 20)), "active data");
    let lonely = snapshot(vec![service(TCP, 21, false, Mode::Nat), all_ports], vec![]);
    let mut engine = engines(1, 64).remove(0);
    let mut go = |port| opened(&mut engine, &lonely, (TCP, client(1, 5000 + port), to(port)), Tick(0));
    assert_eq!(
        [go(21), go(3333), go(1023)],
        [Some(at(backend(1, false), 8021)), None, Some(at(backend(1, false), 1023)),]
    );
}

#[test]
fn what_comes_from_the_port_of_ftp_data_opens_no_flow() {
    let tables = snapshot(vec![service(TCP, 80, false, Mode::Nat)], vec![]);
    let mut engine = engines(1, 64).remove(0);
    let ends = [client(1, 20), at(vip(false), 80)];
    let verdict = send(&mut engine, &tables, Way::Forward, SYN, ends, Tick(0));
    assert_eq!(verdict, Verdict::Reply(Some(DropReason::NoFlow)));
}

#[test]
fn a_template_outlives_its_flows_and_a_held_one_its_time() {
    let tables = snapshot(vec![persistent(service(UDP, 80, false, Mode::Nat), u32::MAX.into())], vec![]);
    let mut engine = engines(1, 64).remove(0);
    let expires =
        |engine: &Engine, now| templates(engine, seconds(now)).first().map(|record| record.expires_s);
    let go = |engine: &mut Engine, host, port, now| {
        opened(engine, &tables, (UDP, client(host, port), at(vip(false), 80)), seconds(now)).unwrap().ip()
    };
    assert_eq!(go(&mut engine, 1, 1000, 0), backend(1, false));
    assert_eq!(expires(&engine, 0), Some(TIMEOUT_S));
    // Packets of the flow do not prolong it, another flow does.
    go(&mut engine, 1, 1000, 40);
    assert_eq!(expires(&engine, 40), Some(TIMEOUT_S - 40));
    assert_eq!(go(&mut engine, 1, 1001, 50), backend(1, false));
    assert_eq!(expires(&engine, 50), Some(TIMEOUT_S));
    // The second flow (300 s from 50 s on) holds it: retried each 60 s from 150 s on.
    sweep(&mut engine, seconds(151));
    assert_eq!(expires(&engine, 151), Some(59));
    sweep(&mut engine, seconds(272));
    assert_eq!(expires(&engine, 272), Some(58));
    assert_eq!(go(&mut engine, 1, 1002, 290), backend(1, false), "its timeout is 60 s now");
    assert_eq!(expires(&engine, 290), Some(60));
    for now in [351, 411, 589] {
        sweep(&mut engine, seconds(now));
        assert_eq!((engine.templates(), expires(&engine, now)), (1, Some(60 - (now - 350) % 60)), "{now}");
    }
    sweep(&mut engine, seconds(601));
    assert_eq!((engine.flows(), engine.templates()), (0, 0));
    let counts = engine.core.setup.state.backend(BackendId(0)).unwrap();
    assert_eq!((counts.counts(), counts.persistent.load(Relaxed)), ((0, 0), 0));
    assert!(counts.is_unused());
    assert_eq!(go(&mut engine, 1, 1003, 700), backend(2, false), "forgotten");
}

#[test]
fn a_template_is_assured_by_an_established_flow_or_an_answer() {
    for proto in [TCP, UDP] {
        let tables =
            snapshot(vec![persistent(service(proto, 80, false, Mode::Nat), u32::MAX.into())], vec![]);
        let mut engine = engines(1, 64).remove(0);
        let (from, to) = (client(1, 1000), at(vip(false), 80));
        let server = opened(&mut engine, &tables, (proto, from, to), Tick(0)).unwrap();
        let state = |engine: &Engine| templates(engine, Tick(0))[0].state;
        assert_eq!(state(&engine), "NONE");
        let mut reply = Wire::new(&packet(proto, SYN | ACK, server, from, 64), LAN);
        assert_eq!(reply.through(&mut engine, &tables, Tick(0)), Verdict::Tx(UPLINK));
        assert_eq!(state(&engine), if proto == TCP { "NONE" } else { "ASSURED" });
        if proto == TCP {
            send(&mut engine, &tables, Way::Forward, ACK, [from, to], Tick(0));
        }
        let template = &templates(&engine, Tick(0))[0];
        let shown = (template.proto, template.client, template.vip, template.backend, template.state);
        let ends = [(from.ip(), 0), (to.ip(), 80), (server.ip(), 8080)];
        assert_eq!(shown, (proto, ends[0], ends[1], ends[2], "ASSURED"));
    }
}

#[test]
fn a_drained_or_overloaded_backend_keeps_its_clients_and_a_removed_one_loses_them() {
    let list = |change: &dyn Fn(&mut Vec<Backend>)| {
        let mut service = persistent(service(TCP, 80, false, Mode::Nat), u32::MAX.into());
        let mut backends = service.backends.to_vec();
        change(&mut backends);
        service.backends = backends.into();
        snapshot(vec![service], vec![])
    };
    let normal = list(&|_| {});
    let drained = list(&|backends| backends[0].weight = 0);
    let removed = list(&|backends| _ = backends.remove(0));
    let mut expiring = drained.clone();
    expiring.settings.expire_quiescent_template = true;
    for (name, tables, want) in [
        ("drained", &drained, 1),
        ("drained, and templates expire", &expiring, 2),
        ("removed", &removed, 2),
        ("overloaded", &normal, 1),
    ] {
        let mut engine = engines(1, 64).remove(0);
        let to = at(vip(false), 80);
        opened(&mut engine, &normal, (TCP, client(1, 1000), to), Tick(0)).unwrap();
        if name == "overloaded" {
            engine.core.setup.state.backend(BackendId(0)).unwrap().set_thresholds(1, 0);
        }
        for port in 1001..1003 {
            let server = opened(&mut engine, tables, (TCP, client(1, port), to), Tick(0)).unwrap();
            assert_eq!(server.ip(), backend(want, false), "{name}");
        }
        let shown: Vec<_> =
            templates(&engine, Tick(0)).iter().map(|record| (record.vip.1, record.backend)).collect();
        let kept = (80, (backend(want, false), 8080));
        let retired = (u16::MAX, (backend(1, false), u16::MAX));
        assert_eq!(shown, if want == 1 { vec![kept] } else { vec![retired, kept] }, "{name}");
        sweep(&mut engine, seconds(1000));
        sweep(&mut engine, seconds(1011));
        assert_eq!((engine.flows(), engine.templates()), (0, 0), "{name}");
        for id in 0..3 {
            assert!(engine.core.setup.state.backend(BackendId(id)).unwrap().is_unused(), "{name}");
        }
    }
}

#[test]
fn a_new_connection_on_the_port_of_an_ended_one_stays_with_the_clients_backend() {
    let tables = snapshot(vec![persistent(service(TCP, 80, false, Mode::Nat), u32::MAX.into())], vec![]);
    let mut engine = engines(1, 64).remove(0);
    let (from, to) = (client(1, 1000), at(vip(false), 80));
    let server = established(&mut engine, &tables, from, to, Tick(0));
    send(&mut engine, &tables, Way::Forward, FIN | ACK, [from, to], Tick(0));
    send(&mut engine, &tables, Way::Reply, FIN | ACK, [server, from], Tick(0));
    assert_eq!(records(&engine, Tick(0))[0].state, "TIME_WAIT");
    let counts = |engine: &Engine| engine.core.setup.state.backend(BackendId(0)).unwrap().counts();
    assert_eq!(counts(&engine), (0, 1));
    assert_eq!(opened(&mut engine, &tables, (TCP, from, to), Tick(9)), Some(server));
    let flow = &records(&engine, Tick(9))[0];
    assert_eq!((flow.state, flow.expires_s, counts(&engine)), ("SYN_RECV", 60, (1, 0)));
    assert_eq!((engine.flows(), engine.stats().flows_opened.get()), (1, 1));
}

/// A rule that gives the mark to packets to the destination's ports.
fn rule(mark: u32, dst: &str, len: u8, dports: std::ops::RangeInclusive<u16>) -> MarkRule {
    let (addr, v6) = bits(dst.parse().unwrap());
    MarkRule {
        src: None,
        dst: Some(Prefix { addr, len, v6 }),
        protocols: Protocols { sctp: false, ..Protocols::ALL },
        dports,
        sports: 0..=u16::MAX,
        port: None,
        mark: NonZeroU32::new(mark).unwrap(),
    }
}

fn marked(mark: u32, v6: bool, backend_port: u16) -> Service {
    let mut service = service(TCP, 0, v6, Mode::Nat);
    for backend in Arc::make_mut(&mut service.backends) {
        backend.port = backend_port;
    }
    Service { vips: vec![], mark: Some(Mark { value: NonZeroU32::new(mark).unwrap(), v6 }), ..service }
}

#[test]
fn a_mark_makes_a_service_of_port_ranges_and_whole_networks() {
    let rules = vec![
        rule(1, "10.0.0.100", 32, 8000..=8999),
        rule(2, "10.55.0.0", 16, 0..=u16::MAX),
        rule(2, "fd55::", 16, 0..=u16::MAX),
        // No service has it: as if there was no mark.
        rule(3, "10.0.0.100", 32, 80..=80),
    ];
    let services = vec![
        marked(1, false, 0),
        persistent(marked(2, false, 0), u32::MAX.into()),
        marked(2, true, 0),
        service(TCP, 80, false, Mode::Nat),
        service(TCP, 8500, false, Mode::Nat),
        marked(4, false, 9999),
    ];
    let tables = snapshot(services, rules);
    let mut engine = engines(1, 64).remove(0);
    for (name, proto, dst, number, port) in [
        ("first of the range", TCP, "10.0.0.100:8000", 1, 8000),
        ("last of the range, before the port's own service", TCP, "10.0.0.100:8500", 2, 8500),
        ("by another protocol", UDP, "10.0.0.100:8999", 3, 8999),
        ("a network", TCP, "10.55.1.2:443", 1, 443),
        ("a network by another protocol: one template", UDP, "10.55.200.7:53", 1, 53),
        ("a mark without a service", TCP, "10.0.0.100:80", 1, 8080),
        ("IPv6", TCP, "[fd55::9]:443", 1, 443),
    ] {
        let to: SocketAddr = dst.parse().unwrap();
        let v6 = to.is_ipv6();
        let from = if v6 { "[fd22::1]:7000".parse().unwrap() } else { client(1, 7000) };
        let server = opened(&mut engine, &tables, (proto, from, to), Tick(0));
        assert_eq!(server, Some(at(backend(number, v6), port)), "{name}");
        let mut reply = Wire::new(&packet(proto, SYN | ACK, server.unwrap(), from, 64), LAN);
        assert_eq!(reply.through(&mut engine, &tables, Tick(0)), Verdict::Tx(UPLINK), "{name}");
        assert_eq!(reply.seen().0, to, "{name}");
    }
    assert_eq!(
        opened(&mut engine, &tables, (TCP, client(1, 7001), "10.0.0.100:9000".parse().unwrap()), Tick(0)),
        None
    );
    let template = &templates(&engine, Tick(0))[0];
    assert_eq!((template.proto, template.vip), (0, ("0.0.0.2".parse().unwrap(), 0)));
    assert_eq!(template.backend, (backend(1, false), 0));
}

#[test]
fn a_port_of_a_marked_services_backends_counts_without_persistence_alone() {
    for (keeps, want) in [(false, 9999), (true, 8000)] {
        let service = marked(1, false, 9999);
        let service = if keeps { persistent(service, u32::MAX.into()) } else { service };
        let tables = snapshot(vec![service], vec![rule(1, "10.0.0.0", 8, 8000..=8999)]);
        let mut engine = engines(1, 64).remove(0);
        let to = at(vip(false), 8000);
        let server = opened(&mut engine, &tables, (TCP, client(1, 1000), to), Tick(0));
        assert_eq!(server, Some(at(backend(1, false), want)));
    }
}

#[test]
fn a_mark_is_of_the_protocols_that_its_rule_names() {
    let tables = snapshot(vec![marked(1, false, 0)], vec![rule(1, "10.0.0.0", 8, 0..=u16::MAX)]);
    let find = |proto, port| {
        let (dst, v6) = bits(vip(false));
        let key = crate::flow::key::FlowKey { src: 1, dst, sport: 2, dport: 3, proto, v6 };
        tables.services.find(&key, port).is_some()
    };
    assert_eq!([TCP, UDP, SCTP].map(|proto| find(proto, UPLINK)), [true, true, false]);
}

#[test]
fn every_datagram_of_a_one_packet_service_is_scheduled_and_no_flow_is_kept() {
    for v6 in [false, true] {
        let one_packet = Service { one_packet: true, ..service(UDP, 53, v6, Mode::Nat) };
        let tables = snapshot(vec![one_packet], vec![]);
        let mut engine = engines(1, 64).remove(0);
        let from = if v6 { "[fd22::1]:5000".parse().unwrap() } else { client(1, 5000) };
        for number in [1, 2, 3, 1] {
            let server = opened(&mut engine, &tables, (UDP, from, at(vip(v6), 53)), Tick(0));
            assert_eq!(server, Some(at(backend(number, v6), 8053)));
            let reply = packet(UDP, 0, server.unwrap(), from, 64);
            assert_eq!(Wire::new(&reply, LAN).through(&mut engine, &tables, Tick(0)), Verdict::Kernel);
        }
        assert_eq!((engine.flows(), engine.stats().flows_opened.get()), (0, 4));
        let counters = engine.stats().backend(BackendId(0)).unwrap();
        assert_eq!((counters.flows.get(), counters.packets_in.get()), (2, 2));
        assert_eq!(engine.core.setup.state.backend(BackendId(0)).unwrap().counts(), (0, 0));
    }
}

#[test]
fn a_one_packet_service_keeps_persistent_clients_on_their_backend_and_snat_flows_in_the_table() {
    let one_packet = |mode| Service { one_packet: true, ..service(UDP, 53, false, mode) };
    let kept = persistent(one_packet(Mode::Nat), u32::MAX.into());
    for (service, servers, left) in
        [(kept, [1, 1, 1], (0, 1)), (one_packet(Mode::FullNat), [1, 1, 1], (1, 0))]
    {
        let tables = snapshot(vec![service], vec![]);
        let mut engine = engines(1, 64).remove(0);
        for number in servers {
            let server = opened(&mut engine, &tables, (UDP, client(1, 5000), at(vip(false), 53)), Tick(0));
            assert_eq!(server, Some(at(backend(number, false), 8053)));
        }
        assert_eq!((engine.flows(), engine.templates()), left);
    }
}

#[test]
fn all_flows_of_a_client_are_one_workers_whichever_they_come_to() {
    let tables = snapshot(vec![persistent(service(TCP, 80, false, Mode::Nat), u32::MAX.into())], vec![]);
    let mut engines = engines(3, 256);
    let to = at(vip(false), 80);
    let mut keepers = [0; 3];
    for host in 1..=30 {
        let mut seen = std::collections::HashSet::new();
        for port in 1000..1006u16 {
            let first = usize::from(port) % 3;
            let mut wire = Wire::new(&packet(TCP, SYN, client(host, port), to, 64), UPLINK);
            let (owner, verdict) = match wire.through(&mut engines[first], &tables, Tick(0)) {
                Verdict::Handoff(owner) => {
                    wire.handed_over = true;
                    (owner.index(), wire.through(&mut engines[owner.index()], &tables, Tick(0)))
                }
                verdict => (first, verdict),
            };
            assert_eq!(verdict, Verdict::Tx(LAN));
            let (_, server, _) = wire.seen();
            seen.insert((owner, server));
            // Its further packets find it from anywhere.
            for (worker, engine) in engines.iter_mut().enumerate() {
                for (bytes, port) in [
                    (packet(TCP, ACK, client(host, port), to, 64), UPLINK),
                    (packet(TCP, ACK, server, client(host, port), 64), LAN),
                ] {
                    let verdict = Wire::new(&bytes, port).through(engine, &tables, Tick(0));
                    let handed = Verdict::Handoff(WorkerId(owner as u8));
                    assert!(if worker == owner {
                        matches!(verdict, Verdict::Tx(_))
                    } else {
                        verdict == handed
                    });
                }
            }
        }
        assert_eq!(seen.len(), 1, "one worker, one backend");
        keepers[seen.into_iter().next().unwrap().0] += 1;
    }
    assert!(keepers.iter().all(|clients| *clients > 3), "{keepers:?}");
    assert_eq!(engines.iter().map(Engine::templates).sum::<usize>(), 30);
}

#[test]
fn a_full_table_of_templates_forgets_who_was_never_established_and_serves_the_others_anyway() {
    let mut tables = snapshot(vec![persistent(service(TCP, 80, false, Mode::Nat), u32::MAX.into())], vec![]);
    tables.settings.half_open = 4;
    let mut engine = engines(1, 4).remove(0);
    let to = at(vip(false), 80);
    // Clients that only ever sent a SYN, and whose flows are over.
    for host in 1..=4 {
        opened(&mut engine, &tables, (TCP, client(host, 1000), to), seconds(1)).unwrap();
    }
    sweep(&mut engine, seconds(70));
    assert_eq!((engine.flows(), engine.templates()), (0, 4));
    for host in 5..=9 {
        let (from, now) = (client(host, 1000), 12 * host);
        established(&mut engine, &tables, from, to, seconds(now + 20));
        send(&mut engine, &tables, Way::Forward, RST, [from, to], seconds(now + 20));
        sweep(&mut engine, seconds(now + 31));
    }
    assert_eq!((engine.flows(), engine.templates(), engine.stats().templates_full.get()), (0, 5, 0));
    assert!(opened(&mut engine, &tables, (TCP, client(10, 1000), to), seconds(140)).is_some());
    assert_eq!((engine.flows(), engine.templates(), engine.stats().templates_full.get()), (1, 5, 1));
}

#[test]
fn a_half_open_flow_that_makes_room_takes_its_template_along() {
    let mut tables = snapshot(vec![persistent(service(TCP, 80, false, Mode::Nat), u32::MAX.into())], vec![]);
    tables.settings.half_open = 4;
    let mut engine = engines(1, 4).remove(0);
    let to = at(vip(false), 80);
    for host in 1..=50 {
        assert!(opened(&mut engine, &tables, (TCP, client(host, 1000), to), Tick(0)).is_some());
    }
    assert_eq!((engine.flows(), engine.templates(), engine.stats().templates_full.get()), (4, 4, 0));
}
