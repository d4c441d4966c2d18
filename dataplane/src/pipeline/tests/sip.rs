//! Persistence by SIP's Call-ID.

use std::sync::Arc;

use super::super::fixture::{LAN, UPLINK, backend, engines, net, vip};
use super::super::*;
use super::{Wire, at, client, packet};
use crate::flow::key::{TCP, UDP, VipKey, bits};
use crate::schedule::{Flags, Kind as Scheduling, Scheduler};
use crate::snapshot::{Backend, Engine as By, Persistence, Service, Services};
use crate::time::TICKS_PER_SECOND;
use crate::wire::tcp::SYN;
use std::net::SocketAddr;

const PORT: u16 = 5060;
const TIMEOUT_S: u32 = 60;

/// A service of three backends, rr and nat, that tells calls apart; clients are told apart by the bits of `mask`.
fn service(proto: u8, v6: bool, mask: u128) -> Service {
    let (addr, v6) = bits(vip(v6));
    let backends: Vec<_> =
        (0..3).map(|n| Backend::new(BackendId(n), backend(n as u8 + 1, v6), PORT, 1, Mode::Nat)).collect();
    Service {
        vips: vec![VipKey { addr, port: PORT, proto, v6 }],
        scheduler: Scheduler::compile(Scheduling::Rr, Flags::default(), &backends),
        backends: backends.into(),
        persistence: Some(Persistence { timeout_s: TIMEOUT_S, mask }),
        engine: Some(By::Sip),
        ..Service::default()
    }
}

fn snapshot(service: Service) -> Snapshot {
    let services = Services::new(vec![service], vec![], [vip(false), vip(true)]);
    Snapshot { services: Arc::new(services), net: Arc::new(net()), ..Snapshot::default() }
}

fn invite(call: &str) -> String {
    format!("INVITE sip:bob@example.org SIP/2.0\r\nVia: SIP/2.0/UDP pc33\r\nCall-ID: {call}\r\n\r\n")
}

/// A datagram with this text.
fn datagram(from: SocketAddr, to: SocketAddr, text: &str) -> Vec<u8> {
    let link = etherparse::PacketBuilder::ethernet2([2, 0, 0, 0, 9, 9], [2, 0, 0, 0, 0, 1]);
    let ip = match (from.ip(), to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => link.ipv4(from.octets(), to.octets(), 64),
        (IpAddr::V6(from), IpAddr::V6(to)) => link.ipv6(from.octets(), to.octets(), 64),
        _ => panic!("families differ"),
    };
    let mut bytes = Vec::new();
    ip.udp(from.port(), to.port()).write(&mut bytes, text.as_bytes()).unwrap();
    bytes
}

/// The number of the backend that a message from a client's port is sent to.
fn sent(engine: &mut Engine, tables: &Snapshot, from: SocketAddr, text: &str, now: Tick) -> u8 {
    let v6 = from.is_ipv6();
    let mut wire = Wire::new(&datagram(from, at(vip(v6), PORT), text), UPLINK);
    assert_eq!(wire.through(engine, tables, now), Verdict::Tx(LAN));
    let (source, to, _) = wire.seen();
    assert_eq!((source, to.port()), (from, PORT));
    (1..=3).find(|number| backend(*number, v6) == to.ip()).unwrap()
}

fn templates(engine: &Engine) -> Vec<FlowRecord> {
    let mut records = Vec::with_capacity(64);
    assert_eq!(engine.dump(MAX_FLOWS, 1000, Tick(0), &mut records), None);
    records
}

#[test]
fn a_call_stays_with_its_backend_whoever_sends_its_messages_where_the_mask_lets_it() {
    for v6 in [false, true] {
        for (mask, of_other) in [(0, 1), (if v6 { u128::MAX } else { u32::MAX.into() }, 3)] {
            for one_packet in [false, true] {
                let tables = snapshot(Service { one_packet, ..service(UDP, v6, mask) });
                let mut engine = engines(1, 64).remove(0);
                let mut next_port = 1000;
                let mut go = |number, call: &str| {
                    // Another port for each, so that no message belongs to a flow that is there.
                    next_port += 1;
                    let from = at(client(number, v6).ip(), next_port);
                    sent(&mut engine, &tables, from, &invite(call), Tick(0))
                };
                let went =
                    [go(1, "a@x"), go(1, "b@x"), go(1, "a@x"), go(2, "a@x"), go(1, "b@x"), go(2, "a@x")];
                let name = format!("IPv6 {v6}, mask {mask:x}, one packet {one_packet}");
                assert_eq!(went, [1, 2, 1, of_other, 2, of_other], "{name}");
                let clients = if mask == 0 { 2 } else { 3 };
                assert_eq!((engine.flows(), engine.templates()), (if one_packet { 0 } else { 6 }, clients));
            }
        }
    }
}

#[test]
fn calls_of_one_client_and_port_are_told_apart_by_single_packets_alone() {
    for (one_packet, want) in [(true, [1, 2, 1, 2]), (false, [1, 1, 1, 1])] {
        let tables = snapshot(Service { one_packet, ..service(UDP, false, 0) });
        let mut engine = engines(1, 64).remove(0);
        let from = client(1, false);
        let went = ["a", "b", "a", "b"].map(|call| sent(&mut engine, &tables, from, &invite(call), Tick(0)));
        assert_eq!(went, want, "one packet {one_packet}");
    }
}

#[test]
fn without_a_call_id_the_client_stays_with_its_backend() {
    let tables = snapshot(Service { one_packet: true, ..service(UDP, false, u32::MAX.into()) });
    let mut engine = engines(1, 64).remove(0);
    let longest = "x".repeat(255);
    let mut go = |number, text: &str| sent(&mut engine, &tables, client(number, false), text, Tick(0));
    assert_eq!([go(1, "\r\n\r\n"), go(1, &invite("a")), go(1, &invite(&longest))], [1, 2, 3]);
    // Another client's.
    assert_eq!(go(2, ""), 1);
    for text in ["", "\r\n\r\n", &invite(""), &invite("a b"), &invite(&format!("{longest}x"))] {
        assert_eq!(go(1, text), 1, "{text:?}");
    }
    assert_eq!([go(1, &invite("a")), go(1, &invite(&longest))], [2, 3]);
}

#[test]
fn a_service_of_tcp_has_ordinary_persistence() {
    let tables = snapshot(service(TCP, false, u32::MAX.into()));
    let mut engine = engines(1, 64).remove(0);
    let went = [1, 2, 1, 2].map(|number| {
        let from = at(client(number, false).ip(), 1000 + engine.flows() as u16);
        let mut wire = Wire::new(&packet(TCP, SYN, from, at(vip(false), PORT), 64), UPLINK);
        assert_eq!(wire.through(&mut engine, &tables, Tick(0)), Verdict::Tx(LAN));
        wire.seen().1.ip()
    });
    assert_eq!(went, [1, 2, 1, 2].map(|number| backend(number, false)));
}

#[test]
fn a_call_is_shown_with_its_client_and_call_id_until_it_is_forgotten() {
    let tables = snapshot(Service { one_packet: true, ..service(UDP, false, 0xffff_ff00) });
    let mut engine = engines(1, 64).remove(0);
    let from = client(1, false);
    let text = "f81d4fae-7dec-11d0@pc33.example";
    sent(&mut engine, &tables, from, &invite(text), Tick(0));
    sent(&mut engine, &tables, from, "", Tick(0));
    let shown = templates(&engine);
    let shown: Vec<_> = shown
        .iter()
        .map(|record| (record.client, record.vip.1, record.backend, record.expires_s, record.call_id.text()))
        .collect();
    let masked = ("172.16.0.0".parse().unwrap(), 0);
    let to = |number| (backend(number, false), PORT);
    assert_eq!(shown, [(masked, PORT, to(1), TIMEOUT_S, Some(text)), (masked, PORT, to(2), TIMEOUT_S, None)]);
    for _ in 0..100 {
        engine.sweep(Tick((TIMEOUT_S + 20) * TICKS_PER_SECOND), &tables);
    }
    assert_eq!(engine.templates(), 0);
    assert_eq!(sent(&mut engine, &tables, from, &invite(text), Tick(2000)), 3, "forgotten");
    assert_eq!(templates(&engine)[0].call_id.text(), Some(text));
}

#[test]
fn a_call_is_one_workers_whichever_its_messages_come_to() {
    let tables = snapshot(Service { one_packet: true, ..service(UDP, false, 0) });
    let mut engines = engines(3, 256);
    let mut keepers = [0; 3];
    for call in 0..30 {
        let mut seen = std::collections::HashSet::new();
        for number in 1..=6 {
            let first = usize::from(number) % 3;
            let text = invite(&format!("{call}@x"));
            let mut wire = Wire::new(&datagram(client(number, false), at(vip(false), PORT), &text), UPLINK);
            let (owner, verdict) = match wire.through(&mut engines[first], &tables, Tick(0)) {
                Verdict::Handoff(owner) => {
                    wire.handed_over = true;
                    (owner.index(), wire.through(&mut engines[owner.index()], &tables, Tick(0)))
                }
                verdict => (first, verdict),
            };
            assert_eq!(verdict, Verdict::Tx(LAN));
            seen.insert((owner, wire.seen().1));
        }
        assert_eq!(seen.len(), 1, "one worker, one backend");
        keepers[seen.into_iter().next().unwrap().0] += 1;
    }
    assert!(keepers.iter().all(|calls| *calls > 3), "{keepers:?}");
    assert_eq!(engines.iter().map(Engine::templates).sum::<usize>(), 30);
}
