//! Flows that go on without being known: consistent hashing.

use std::net::SocketAddr;
use std::sync::Arc;

use super::super::fixture::{BACKEND_MAC, LAN, UPLINK, backend, engines, net, vip};
use super::super::*;
use super::{Wire, at, packet};
use crate::flow::entry::Way;
use crate::flow::key::{TCP, VipKey, bits};
use crate::schedule::{Compiler, Flags, Kind as Scheduling, Scheduler};
use crate::snapshot::net::{Hop, Neighbour};
use crate::snapshot::{Backend, Options, Service, Services};
use crate::wire::tcp::{ACK, FIN, PSH, RST, SYN};

/// A gateway's tables: eight backends of unequal weights, added in this `order`, with ids from `first` on.
fn gateway(
    kind: Scheduling,
    mode: Mode,
    order: &[u8],
    first: u32,
    change: &dyn Fn(&mut Backend),
) -> Snapshot {
    let (addr, v6) = bits(vip(false));
    let backends: Vec<_> = order
        .iter()
        .map(|number| {
            let id = BackendId(first + u32::from(*number));
            let mut backend =
                Backend::new(id, backend(*number, false), 8080, 1 + u32::from(*number) % 3, mode);
            change(&mut backend);
            backend
        })
        .collect();
    let mut compiler = Compiler::default();
    let flags = Flags { port: true, ..Flags::default() };
    let steady = compiler.steady(kind, flags, &backends);
    let scheduler = if kind == Scheduling::Mh {
        Scheduler::Mh(steady.clone())
    } else {
        Scheduler::compile(kind, Flags::default(), &backends)
    };
    let service = Service {
        vips: vec![VipKey { addr, port: 80, proto: TCP, v6 }],
        scheduler,
        steady: Some(steady),
        backends: backends.into(),
        options: Options { stateless_fallback: true, ..Options::default() },
        ..Service::default()
    };
    let mut net = net();
    let link = net.links[&2].clone();
    for number in 4..=8 {
        let id = crate::ids::HopId(net.hops.len() as u32);
        net.hops.push(Some(Hop::new(&link, [2, 0, 0, 0, 0, 2], BACKEND_MAC)));
        net.neighbours.insert(Neighbour { link: 2, addr: backend(number, false) }, id);
    }
    Snapshot {
        services: Arc::new(Services::new(vec![service], vec![], [vip(false)])),
        net: Arc::new(net),
        ..Snapshot::default()
    }
}

const ORDERS: [[u8; 8]; 2] = [[1, 2, 3, 4, 5, 6, 7, 8], [5, 3, 8, 1, 7, 2, 6, 4]];

fn client(number: u16) -> SocketAddr {
    at([172, 16, (number >> 8) as u8, 1 + (number & 0x7f) as u8].into(), 10_000 + number)
}

/// One segment. Where it goes and where it seems to come from, if it is sent on.
fn go(
    engine: &mut Engine,
    tables: &Snapshot,
    way: Way,
    flags: u8,
    ends: (SocketAddr, SocketAddr),
) -> Result<(SocketAddr, SocketAddr), Verdict> {
    let port = if way == Way::Forward { UPLINK } else { LAN };
    let mut wire = Wire::new(&packet(TCP, flags, ends.0, ends.1, 64), port);
    match wire.through(engine, tables, Tick(0)) {
        Verdict::Tx(_) => Ok((wire.seen().0, wire.seen().1)),
        other => Err(other),
    }
}

#[test]
fn a_second_gateway_carries_on_what_mh_chose_on_the_first() {
    let to = at(vip(false), 80);
    let first = gateway(Scheduling::Mh, Mode::Nat, &ORDERS[0], 0, &|_| {});
    let second = gateway(Scheduling::Mh, Mode::Nat, &ORDERS[1], 100, &|_| {});
    // Meanwhile backends were drained; their flows go on.
    let drained = gateway(Scheduling::Mh, Mode::Nat, &ORDERS[1], 100, &|backend| {
        if backend.id.0.is_multiple_of(2) {
            backend.weight = 0;
        }
    });
    let mut chosen = std::collections::HashSet::new();
    let [mut opened, mut resumed, mut replied] = [(); 3].map(|()| engines(1, 1024).remove(0));
    for number in 0..200 {
        let from = client(number);
        let (_, server) = go(&mut opened, &first, Way::Forward, SYN, (from, to)).unwrap();
        chosen.insert(server);
        let tables = if number % 2 == 0 { &second } else { &drained };
        assert_eq!(go(&mut resumed, tables, Way::Forward, ACK | PSH, (from, to)), Ok((from, server)));
        assert_eq!(go(&mut resumed, tables, Way::Reply, ACK, (server, from)), Ok((to, from)));
        // The backend may be first.
        assert_eq!(go(&mut replied, tables, Way::Reply, ACK, (server, from)), Ok((to, from)));
        assert_eq!(go(&mut replied, tables, Way::Forward, ACK, (from, to)), Ok((from, server)));
    }
    assert_eq!(chosen.len(), 8);
    for engine in [&resumed, &replied] {
        assert_eq!((engine.flows(), engine.stats().stateless.get()), (200, 200));
        let mut records = Vec::with_capacity(300);
        engine.dump(0, 2000, Tick(0), &mut records);
        assert!(records.iter().all(|flow| flow.state == "ESTABLISHED" && flow.expires_s == 900));
    }
}

#[test]
fn the_table_does_not_depend_on_where_backends_stand_and_removing_one_moves_its_clients_alone() {
    let tables = ORDERS.map(|order| gateway(Scheduling::Mh, Mode::Nat, &order, 0, &|_| {}));
    let without = gateway(Scheduling::Mh, Mode::Nat, &ORDERS[0][1..], 0, &|_| {});
    let home = |tables: &Snapshot, number| {
        let ((src, v6), (dst, _)) = (bits(client(number).ip()), bits(vip(false)));
        let key =
            crate::flow::key::FlowKey { src, dst, sport: client(number).port(), dport: 80, proto: TCP, v6 };
        let service = tables.services.iter().next().unwrap();
        service.steady.as_ref().unwrap().home(&service.backends, &key).unwrap().addr
    };
    let mut moved = 0;
    for number in 0..2000 {
        let before = home(&tables[0], number);
        assert_eq!(before, home(&tables[1], number));
        moved += u32::from(before != backend(1, false) && before != home(&without, number));
    }
    assert!(moved < 40, "{moved} of 2000");
}

#[test]
fn what_is_not_in_the_middle_of_a_flow_that_can_go_on_is_refused_as_before() {
    let to = at(vip(false), 80);
    let refused = Err(Verdict::Reply(Some(DropReason::NoFlow)));
    for (name, kind, mode, flags, want) in [
        ("data", Scheduling::Mh, Mode::Nat, ACK, Ok(())),
        ("an end", Scheduling::Mh, Mode::Nat, FIN | ACK, Ok(())),
        ("a reset passes and leaves nothing", Scheduling::Mh, Mode::Nat, RST, Ok(())),
        ("dr", Scheduling::Mh, Mode::Dr, ACK, Ok(())),
        ("another scheduler", Scheduling::Rr, Mode::Nat, ACK, Ok(())),
        ("the SNAT port is not known", Scheduling::Mh, Mode::FullNat, ACK, refused),
    ] {
        let tables = gateway(kind, mode, &ORDERS[0], 0, &|_| {});
        let mut engine = engines(1, 64).remove(0);
        assert_eq!(
            go(&mut engine, &tables, Way::Forward, flags, (client(1), to)).map(|_| ()),
            want,
            "{name}"
        );
        let kept = want.is_ok() && flags & RST == 0;
        assert_eq!(engine.flows(), usize::from(kept), "{name}");
    }
    let mut tables = gateway(Scheduling::Mh, Mode::Nat, &ORDERS[0], 0, &|_| {});
    let mut service = tables.services.iter().next().unwrap().clone();
    service.steady = None;
    tables.services = Arc::new(Services::new(vec![service], vec![], [vip(false)]));
    let mut engine = engines(1, 64).remove(0);
    assert_eq!(go(&mut engine, &tables, Way::Forward, ACK, (client(1), to)).map(|_| ()), refused);
    let server = at(backend(1, false), 8080);
    assert_eq!(
        go(&mut engine, &tables, Way::Reply, ACK, (server, client(1))).map(|_| ()),
        Err(Verdict::Kernel)
    );
}

#[test]
fn segments_out_of_nothing_are_half_open_flows_until_more_comes() {
    let mut tables = gateway(Scheduling::Mh, Mode::Nat, &ORDERS[0], 0, &|_| {});
    tables.settings.half_open = 10;
    let mut engine = engines(1, 256).remove(0);
    let to = at(vip(false), 80);
    for number in 0..200 {
        assert!(go(&mut engine, &tables, Way::Forward, ACK, (client(number), to)).is_ok());
    }
    assert_eq!(engine.flows(), 10);
}

#[test]
fn without_room_or_over_the_limit_packets_still_go_where_replies_need_no_flow() {
    let to = at(vip(false), 80);
    for (mode, passes) in [(Mode::Dr, true), (Mode::Nat, false)] {
        let mut limited = gateway(Scheduling::Mh, mode, &ORDERS[0], 0, &|_| {});
        limited.settings.new_flows_per_s = 5;
        let full = gateway(Scheduling::Mh, mode, &ORDERS[0], 0, &|_| {});
        for (tables, reason) in [(&limited, DropReason::NewFlowLimit), (&full, DropReason::FlowTableFull)] {
            let mut engine = engines(1, 5).remove(0);
            for number in 0..20 {
                for flags in [SYN, ACK, ACK] {
                    let passed = go(&mut engine, tables, Way::Forward, flags, (client(number), to));
                    let has_room = number < 5;
                    if has_room || passes {
                        assert!(passed.is_ok(), "{number} {flags}: {passed:?}");
                    } else {
                        assert_eq!(passed, Err(Verdict::Drop(reason)), "{number} {flags}");
                    }
                }
            }
            assert_eq!((engine.flows(), engine.stats().flows_opened.get()), (5, 5));
            assert_eq!(engine.stats().stateless.get(), if passes { 45 } else { 0 });
        }
    }
}

#[test]
fn nothing_is_sent_without_a_flow_to_a_backend_that_takes_none() {
    let mut tables = gateway(Scheduling::Mh, Mode::Dr, &ORDERS[0], 0, &|backend| backend.weight = 0);
    tables.settings.new_flows_per_s = 1;
    let mut engine = engines(1, 5).remove(0);
    let to = at(vip(false), 80);
    for (flags, want) in [
        (SYN, Err(Verdict::Reply(Some(DropReason::NoBackend)))),
        (SYN, Err(Verdict::Drop(DropReason::NewFlowLimit))),
        (ACK, Ok(())),
    ] {
        assert_eq!(go(&mut engine, &tables, Way::Forward, flags, (client(1), to)).map(|_| ()), want);
    }
}
