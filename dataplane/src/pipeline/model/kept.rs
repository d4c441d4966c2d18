//! Services whose flows depend on more than the flow table: persistent ones, of a mark and of every port, of single
//! packets, of SIP's calls, with consistent hashing, and of FTP.

use std::num::NonZeroU32;
use std::sync::Arc;

use super::Arrival;
use super::Outcome;
use super::judge::transport_checksum;
use crate::flow::key::{TCP, UDP, bits};
use crate::ids::{BackendId, ServiceId};
use crate::packet::{Packet, parse};
use crate::pipeline::fixture::{tables, vip};
use crate::schedule::{Compiler, Flags, Kind, Scheduler};
use crate::snapshot::marks::{Mark, MarkRule, Prefix, Protocols};
use crate::snapshot::{Engine, FTP, Mode, Persistence, Service, Snapshot};
use crate::verdict::Verdict;

/// Ports of the VIPs that lead to [`services`].
pub(super) const PORTS: [u16; 9] = [70, 71, 72, 73, 74, 75, FTP, 2000, SIP];

/// The port of the service that keeps calls together.
const SIP: u16 = 5060;

/// Seconds that clients are remembered.
const TIMEOUT_S: u32 = 20;

/// The services, with ids behind those of the fixture.
pub(super) fn services() -> Vec<Service> {
    let usual = tables().services;
    let mut list = Vec::new();
    for v6 in [false, true] {
        let like = |proto, mode: Mode| {
            let fits = |service: &&Service| {
                let [vip] = *service.vips else { return false };
                let port = if mode == Mode::Dr { 82 } else { 80 };
                (vip.proto, vip.port, vip.v6) == (proto, port, v6)
            };
            usual.iter().find(fits).expect("the fixture has it").clone()
        };
        let on = |mut service: Service, port, backend_port| {
            service.vips[0].port = port;
            Arc::make_mut(&mut service.backends).iter_mut().for_each(|backend| backend.port = backend_port);
            service
        };
        let mask = if v6 { u128::MAX << 1 } else { 0xffff_fffe };
        let persistence = Some(Persistence { timeout_s: TIMEOUT_S, mask });
        let steady = |mut service: Service| {
            let steady = Compiler::default().steady(Kind::Mh, Flags::default(), &service.backends);
            service.scheduler = Scheduler::Mh(steady.clone());
            service.steady = Some(steady);
            service
        };
        let mark = Some(Mark { value: NonZeroU32::MIN, v6 });
        list.extend([
            Service { persistence, ..on(like(TCP, Mode::Nat), 70, 8070) },
            Service { persistence, ..on(like(UDP, Mode::Nat), 70, 8070) },
            Service { one_packet: true, ..on(like(UDP, Mode::Nat), 71, 8071) },
            Service {
                one_packet: true,
                persistence,
                engine: Some(Engine::Sip),
                ..on(like(UDP, Mode::Nat), SIP, SIP)
            },
            Service { persistence, mark, vips: Vec::new(), ..on(like(TCP, Mode::Nat), 0, 0) },
            steady(on(like(TCP, Mode::Dr), 74, 74)),
            steady(on(like(TCP, Mode::Nat), 75, 8075)),
            on(like(TCP, Mode::Nat), FTP, 2121),
            Service { persistence, ..on(like(TCP, Mode::Nat), 0, 0) },
        ]);
    }
    let first = u32::try_from(usual.iter().count()).expect("a few");
    for (id, service) in (first..).zip(&mut list) {
        service.id = ServiceId(id);
        for (number, backend) in (0..).zip(Arc::make_mut(&mut service.backends)) {
            backend.id = BackendId(id * 3 + number);
        }
    }
    list
}

/// A payload of so many bytes to a port: of SIP a message of one of a few calls, if it is long enough.
pub(super) fn payload(port: u16, len: usize) -> Vec<u8> {
    let call = len % 4;
    let start = if port == SIP { format!("BYE\r\ni: {call}@x\r\n") } else { String::new() };
    start.bytes().chain((0..=255).cycle()).take(len).collect()
}

/// The rules for the service of a mark.
pub(super) fn rules() -> Vec<MarkRule> {
    let rule = |v6| {
        let (addr, _) = bits(vip(v6));
        MarkRule {
            src: None,
            dst: Some(Prefix { addr, len: if v6 { 128 } else { 32 }, v6 }),
            protocols: Protocols::ALL,
            dports: 72..=73,
            sports: 0..=u16::MAX,
            port: None,
            mark: NonZeroU32::MIN,
        }
    };
    [false, true].map(rule).to_vec()
}

/// A packet that was sent on and is of no flow.
pub(super) fn single(tables: &Snapshot, (arrival, before): (&Arrival, &Packet), outcome: &Outcome) {
    let service = tables.services.find(&before.key, arrival.port).expect("what is sent belongs to a flow");
    assert!(service.one_packet || service.steady.is_some(), "a packet without a flow");
    let after = parse(&outcome.bytes).expect("what is sent can be parsed");
    assert_eq!((after.kind, after.ttl), (before.kind, before.ttl - 1));
    assert_eq!((after.tcp_flags, after.end - after.l3), (before.tcp_flags, before.end - before.l3));
    assert_eq!((after.key.src, after.key.sport), (before.key.src, before.key.sport));
    let backend = service.backends.iter().find(|backend| {
        let (addr, _) = bits(backend.addr);
        let direct = backend.mode == Mode::Dr && after.key == before.key;
        direct || (after.key.dst, after.key.dport) == (addr, backend.port)
    });
    let target = backend.expect("one of its backends").addr;
    if after.key != before.key {
        let hop = tables.net.hop_to(target, 0).ok().and_then(|hop| tables.net.hop(hop)).expect("a way to go");
        assert_eq!(outcome.verdict, Verdict::Tx(hop.port));
        assert_eq!(outcome.bytes[..usize::from(after.l3) - 2], hop.header[..], "layer-2 header");
    }
    transport_checksum(tables, (arrival, before), (outcome, &after));
}
