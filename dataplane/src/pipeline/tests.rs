mod access;
mod conntrack;
mod ends;
mod errors;
mod first;
mod floods;
mod fragments;
mod ftp;
mod persistence;
mod proxied;
mod sip;
mod split;
mod stateless;
mod steering;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TransportSlice};
use proptest::prelude::*;

mod paths;

use super::fixture::{
    BACKEND_MAC, GATEWAY_MAC, LAN, MACS, SNAT4, SNAT6, UPLINK, backend, engines, tables, vip,
};
use super::*;
use crate::flow::key::{FlowKey, TCP, UDP};
use crate::frame::{Checksum, MIN_HEADROOM};
use crate::ids::PortId;
use crate::rewrite::split::Split;
use crate::wire::checksum::Sum;
use crate::wire::tcp::{ACK, FIN, RST, SYN};

/// A frame with room around it, as a NIC would give it.
struct Wire {
    chunk: Vec<u8>,
    start: usize,
    len: usize,
    port: PortId,
    checksum: Checksum,
    handed_over: bool,
    overdue: bool,
    split: Option<Split>,
}

impl Wire {
    fn new(bytes: &[u8], port: PortId) -> Self {
        let chunk = [vec![0; MIN_HEADROOM], bytes.to_vec(), vec![0; 1600]].concat();
        Self {
            chunk,
            start: MIN_HEADROOM,
            len: bytes.len(),
            port,
            checksum: Checksum::Complete,
            handed_over: false,
            overdue: false,
            split: None,
        }
    }

    fn through(&mut self, engine: &mut Engine, tables: &Snapshot, now: Tick) -> Verdict {
        let mut frame = Frame::new(&mut self.chunk, self.start, self.len, self.port).unwrap();
        (frame.handed_over, frame.overdue) = (self.handed_over, self.overdue);
        let mut verdict = [Verdict::Kernel];
        engine.process(std::slice::from_mut(&mut frame), &mut verdict, now, tables);
        let (start, len, checksum) = (frame.offset(), frame.len(), frame.checksum);
        self.split = frame.split;
        (self.start, self.len, self.checksum) = (start, len, checksum);
        verdict[0]
    }

    /// What leaves, in pieces where it was larger than its path.
    fn departing(&mut self) -> Vec<Vec<u8>> {
        let mut frame = Frame::new(&mut self.chunk, self.start, self.len, self.port).unwrap();
        frame.split = self.split;
        crate::rewrite::split::departing(&frame)
    }

    fn bytes(&self) -> &[u8] {
        &self.chunk[self.start..self.start + self.len]
    }

    /// Source, destination and TTL of the packet; panics where a checksum is wrong.
    fn seen(&self) -> (SocketAddr, SocketAddr, u8) {
        let packet = SlicedPacket::from_ethernet(self.bytes()).unwrap();
        let (src, dst, ttl): (IpAddr, IpAddr, u8) = match packet.net.as_ref().unwrap() {
            NetSlice::Ipv4(ip) => {
                let header = ip.header();
                assert_eq!(header.header_checksum(), header.to_header().calc_header_checksum());
                (header.source_addr().into(), header.destination_addr().into(), header.ttl())
            }
            NetSlice::Ipv6(ip) => {
                let header = ip.header();
                (header.source_addr().into(), header.destination_addr().into(), header.hop_limit())
            }
            NetSlice::Arp(_) => panic!("ARP"),
        };
        let (sport, dport) = match packet.transport.unwrap() {
            TransportSlice::Tcp(tcp) => {
                let right = match (src, dst) {
                    (IpAddr::V4(s), IpAddr::V4(d)) => tcp.calc_checksum_ipv4(s.octets(), d.octets()),
                    (IpAddr::V6(s), IpAddr::V6(d)) => tcp.calc_checksum_ipv6(s.octets(), d.octets()),
                    _ => unreachable!(),
                };
                assert_eq!(tcp.checksum(), right.unwrap(), "TCP checksum");
                (tcp.source_port(), tcp.destination_port())
            }
            TransportSlice::Udp(udp) => {
                let header = udp.to_header();
                let right = match (src, dst) {
                    (IpAddr::V4(s), IpAddr::V4(d)) => {
                        header.calc_checksum_ipv4_raw(s.octets(), d.octets(), udp.payload())
                    }
                    (IpAddr::V6(s), IpAddr::V6(d)) => {
                        header.calc_checksum_ipv6_raw(s.octets(), d.octets(), udp.payload())
                    }
                    _ => unreachable!(),
                };
                assert_eq!(udp.checksum(), right.unwrap(), "UDP checksum");
                (udp.source_port(), udp.destination_port())
            }
            other => panic!("{other:?}"),
        };
        (SocketAddr::new(src, sport), SocketAddr::new(dst, dport), ttl)
    }
}

fn client(number: u16, v6: bool) -> SocketAddr {
    let host: IpAddr = if v6 {
        Ipv6Addr::new(0xfd22, 0, 0, 0, 0, 0, 0, number).into()
    } else {
        Ipv4Addr::new(172, 16, 0, number as u8).into()
    };
    SocketAddr::new(host, 40_000 + number)
}

fn at(ip: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(ip, port)
}

/// One packet with a payload of 11 bytes: an odd number, so that checksums are tried on one.
fn packet(proto: u8, flags: u8, from: SocketAddr, to: SocketAddr, ttl: u8) -> Vec<u8> {
    let link = PacketBuilder::ethernet2([2, 0, 0, 0, 9, 9], [2, 0, 0, 0, 0, 1]);
    let ip = match (from.ip(), to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => link.ipv4(from.octets(), to.octets(), ttl),
        (IpAddr::V6(from), IpAddr::V6(to)) => link.ipv6(from.octets(), to.octets(), ttl),
        _ => panic!("families differ"),
    };
    let mut bytes = Vec::new();
    if proto == UDP {
        ip.udp(from.port(), to.port()).write(&mut bytes, b"eleven byte").unwrap();
        return bytes;
    }
    let mut tcp = ip.tcp(from.port(), to.port(), 1000, 5000);
    if flags & SYN != 0 {
        tcp = tcp.syn();
    }
    if flags & ACK != 0 {
        tcp = tcp.ack(77);
    }
    if flags & FIN != 0 {
        tcp = tcp.fin();
    }
    if flags & RST != 0 {
        tcp = tcp.rst();
    }
    tcp.write(&mut bytes, b"eleven byte").unwrap();
    bytes
}

#[test]
fn a_flow_goes_to_its_backend_and_its_replies_to_the_client() {
    let tables = tables();
    for v6 in [false, true] {
        for proto in [TCP, UDP] {
            let mut engine = engines(1, 64).remove(0);
            let (client, nat, fullnat) = (client(1, v6), at(vip(v6), 80), at(vip(v6), 81));
            let snat: IpAddr = if v6 { SNAT6.into() } else { SNAT4.into() };
            for service in [nat, fullnat] {
                let server = at(backend(1, v6), 8000 + service.port());
                let mut sent = Wire::new(&packet(proto, SYN, client, service, 64), UPLINK);
                assert_eq!(sent.through(&mut engine, &tables, Tick(0)), Verdict::Tx(LAN));
                let (src, dst, ttl) = sent.seen();
                assert_eq!((dst, ttl), (server, 63));
                assert_eq!(sent.bytes()[..12], [BACKEND_MAC, MACS[1]].concat());
                if service == nat {
                    assert_eq!(src, client);
                } else {
                    assert_eq!(src.ip(), snat);
                }
                let mut reply = Wire::new(&packet(proto, SYN | ACK, server, src, 64), LAN);
                assert_eq!(reply.through(&mut engine, &tables, Tick(0)), Verdict::Tx(UPLINK));
                assert_eq!(reply.seen(), (service, client, 63));
                assert_eq!(reply.bytes()[..12], [GATEWAY_MAC, MACS[0]].concat());
            }
            assert_eq!(engine.flows(), 2);
        }
    }
}

#[test]
fn dr_changes_the_mac_addresses_alone() {
    let tables = tables();
    for v6 in [false, true] {
        let mut engine = engines(1, 64).remove(0);
        let sent = packet(TCP, SYN, client(1, v6), at(vip(v6), 82), 64);
        let mut wire = Wire::new(&sent, UPLINK);
        assert_eq!(wire.through(&mut engine, &tables, Tick(0)), Verdict::Tx(LAN));
        assert_eq!(wire.seen(), (client(1, v6), at(vip(v6), 82), 63));
        assert_eq!(wire.bytes()[..6], BACKEND_MAC);
    }
}

#[test]
fn a_backend_behind_a_vlan_gets_tagged_frames_and_its_replies_lose_the_tag() {
    let tables = tables();
    let mut engine = engines(1, 64).remove(0);
    for number in 1..=3 {
        let mut wire = Wire::new(&packet(UDP, 0, client(number, false), at(vip(false), 80), 64), UPLINK);
        assert_eq!(wire.through(&mut engine, &tables, Tick(0)), Verdict::Tx(LAN));
        let tagged = wire.bytes()[12..16] == [0x81, 0x00, 0, 77];
        assert_eq!(tagged, wire.seen().1.ip() == backend(3, false), "{:?}", wire.seen());
        let mut reply = packet(UDP, 0, wire.seen().1, client(number, false), 64);
        if tagged {
            reply.splice(12..12, [0x81, 0x00, 0, 77]);
        }
        let mut reply = Wire::new(&reply, LAN);
        assert_eq!(reply.through(&mut engine, &tables, Tick(0)), Verdict::Tx(UPLINK));
        assert_eq!(reply.seen().0, at(vip(false), 80));
        assert_eq!(reply.bytes()[12..14], [0x08, 0x00]);
    }
}

#[test]
fn what_is_not_forwarded_has_its_verdict() {
    let tables = tables();
    let (c4, vip4) = (client(1, false), at(vip(false), 80));
    let odd = |ip: [u8; 4]| at(Ipv4Addr::from(ip).into(), 1000);
    let unknown = at(Ipv4Addr::new(10, 0, 0, 101).into(), 80);
    let rows = [
        ("other destination", packet(TCP, SYN, c4, unknown, 64), Verdict::Kernel),
        ("other port of a VIP", packet(TCP, SYN, c4, at(vip(false), 22), 64), Verdict::Kernel),
        ("mid-flow", packet(TCP, ACK, c4, vip4, 64), Verdict::Reply(Some(DropReason::NoFlow))),
        ("reset of no flow", packet(TCP, RST, c4, vip4, 64), Verdict::Drop(DropReason::NoFlow)),
        (
            "no backend",
            packet(TCP, SYN, c4, at(vip(false), 83), 64),
            Verdict::Reply(Some(DropReason::NoBackend)),
        ),
        (
            "no backend, UDP",
            packet(UDP, 0, c4, at(vip(false), 83), 64),
            Verdict::Reply(Some(DropReason::NoBackend)),
        ),
        ("TTL 1", packet(TCP, SYN, c4, vip4, 1), Verdict::Reply(Some(DropReason::TtlExceeded))),
        (
            "from the VIP",
            packet(TCP, SYN, at(vip(false), 99), vip4, 64),
            Verdict::Drop(DropReason::SourceIsVip),
        ),
        (
            "from the SNAT address",
            packet(UDP, 0, at(SNAT4.into(), 99), vip4, 64),
            Verdict::Drop(DropReason::SourceIsVip),
        ),
        ("land", packet(TCP, SYN, vip4, vip4, 64), Verdict::Drop(DropReason::Land)),
        (
            "from loopback",
            packet(UDP, 0, odd([127, 0, 0, 1]), vip4, 64),
            Verdict::Drop(DropReason::BadSource),
        ),
        (
            "from multicast",
            packet(UDP, 0, odd([224, 0, 0, 1]), vip4, 64),
            Verdict::Drop(DropReason::BadSource),
        ),
        ("from nowhere", packet(UDP, 0, odd([0, 0, 0, 0]), vip4, 64), Verdict::Drop(DropReason::BadSource)),
        (
            "SNAT port of no flow",
            packet(TCP, ACK, c4, at(SNAT4.into(), 2000), 64),
            Verdict::Drop(DropReason::NoFlow),
        ),
        ("truncated", packet(TCP, SYN, c4, vip4, 64)[..40].to_vec(), Verdict::Drop(DropReason::BadLength)),
    ];
    for (name, bytes, want) in rows {
        let mut engine = engines(1, 64).remove(0);
        assert_eq!(Wire::new(&bytes, UPLINK).through(&mut engine, &tables, Tick(0)), want, "{name}");
        if let Verdict::Drop(reason) | Verdict::Reply(Some(reason)) = want {
            assert_eq!(engine.stats().drops(reason), 1, "{name}");
        }
    }
}

#[test]
fn a_flow_lives_as_long_as_its_state_says_and_counts_for_its_backend() {
    let tables = tables();
    let mut engine = engines(1, 64).remove(0);
    let (c, v) = (client(1, false), at(vip(false), 80));
    let counts = |engine: &Engine| engine.core.setup.state.backend(BackendId(0)).unwrap().counts();
    let send = |engine: &mut Engine, flags, seconds: u32| {
        Wire::new(&packet(TCP, flags, c, v, 64), UPLINK).through(
            engine,
            &tables,
            Tick(0).after_seconds(seconds),
        )
    };
    send(&mut engine, SYN, 0);
    assert_eq!(counts(&engine), (1, 0), "SYN_RECV is active");
    send(&mut engine, ACK, 59);
    assert_eq!(send(&mut engine, ACK, 59 + 899), Verdict::Tx(LAN), "900 s when established");
    send(&mut engine, FIN | ACK, 1000);
    assert_eq!(counts(&engine), (0, 1), "CLOSE_WAIT is not");
    assert_eq!(send(&mut engine, ACK, 1061), Verdict::Reply(Some(DropReason::NoFlow)), "60 s in CLOSE_WAIT");
    assert_eq!((counts(&engine), engine.flows()), ((0, 0), 0));
}

#[test]
fn in_each_tick_that_a_flow_has_packets_in_its_backend_is_said_to_have_traffic() {
    let tables = tables();
    let mut engine = engines(1, 64).remove(0);
    let (c, v) = (client(1, false), at(vip(false), 80));
    let send = |engine: &mut Engine, flags, tick| {
        let mut wire = Wire::new(&packet(TCP, flags, c, v, 64), UPLINK);
        assert_eq!(wire.through(engine, &tables, Tick(tick)), Verdict::Tx(LAN));
        let (snat, backend, _) = wire.seen();
        packet(TCP, ACK, backend, snat, 64)
    };
    send(&mut engine, SYN, 0);
    send(&mut engine, ACK, 0);
    for tick in 1..5 {
        let mut busy = Vec::new();
        engine.stats().take_busy(|id| busy.push(id));
        assert_eq!(busy, [BackendId(0)], "before tick {tick}");
        engine.stats().rests(BackendId(0));
        let answer = send(&mut engine, ACK, 2 * tick);
        engine.stats().take_busy(|id| assert_eq!(id, BackendId(0)));
        engine.stats().rests(BackendId(0));
        let mut reply = Wire::new(&answer, LAN);
        assert_eq!(reply.through(&mut engine, &tables, Tick(2 * tick + 1)), Verdict::Tx(UPLINK));
    }
    let counters = engine.stats().backend(BackendId(0)).unwrap();
    assert_eq!([&counters.packets_in, &counters.packets_out].map(crate::stats::Counter::get), [6, 4]);
}

#[test]
fn the_sweep_ends_flows_that_nobody_touches() {
    let tables = tables();
    let mut engine = engines(1, 2048).remove(0);
    for number in 0..200 {
        Wire::new(&packet(UDP, 0, client(number, true), at(vip(true), 80), 64), UPLINK).through(
            &mut engine,
            &tables,
            Tick(0),
        );
    }
    for second in 0..311 {
        while engine.sweep(Tick(0).after_seconds(second), &tables) {}
        assert_eq!(engine.flows(), if second < 300 { 200 } else { engine.flows() }, "second {second}");
    }
    assert_eq!((engine.flows(), engine.stats().flows_expired.get()), (0, 200));
}

#[test]
fn a_full_table_gives_up_half_open_flows_and_never_established_ones() {
    let tables = tables();
    let mut engine = engines(1, 8).remove(0);
    let send = |engine: &mut Engine, number, flags| {
        Wire::new(&packet(TCP, flags, client(number, false), at(vip(false), 80), 64), UPLINK).through(
            engine,
            &tables,
            Tick(0),
        )
    };
    for number in 0..8 {
        send(&mut engine, number, SYN);
        if number < 7 {
            send(&mut engine, number, ACK);
        }
    }
    assert_eq!(send(&mut engine, 8, SYN), Verdict::Tx(LAN), "in place of the half-open eighth");
    assert_eq!(engine.stats().flows_evicted.get(), 1);
    send(&mut engine, 8, ACK);
    assert_eq!(send(&mut engine, 9, SYN), Verdict::Drop(DropReason::FlowTableFull));
    for number in (0..7).chain([8]) {
        assert_eq!(send(&mut engine, number, ACK), Verdict::Tx(LAN), "flow {number}");
    }
}

#[test]
fn a_frame_of_another_workers_flow_is_handed_to_it_unchanged() {
    let tables = tables();
    for v6 in [false, true] {
        for port in [80, 81] {
            let mut workers = engines(2, 64);
            let (client, service) = (client(1, v6), at(vip(v6), port));
            let mut sent = Wire::new(&packet(TCP, SYN, client, service, 64), UPLINK);
            sent.through(&mut workers[1], &tables, Tick(0));
            let (src, server, _) = sent.seen();

            let original = packet(TCP, SYN | ACK, server, src, 64);
            let mut reply = Wire::new(&original, LAN);
            assert_eq!(reply.through(&mut workers[0], &tables, Tick(0)), Verdict::Handoff(WorkerId(1)));
            assert_eq!(reply.bytes(), original);
            reply.handed_over = true;
            assert_eq!(reply.through(&mut workers[1], &tables, Tick(0)), Verdict::Tx(UPLINK));
            assert_eq!(reply.seen(), (service, client, 63));

            let mut moved = Wire::new(&packet(TCP, ACK, client, service, 64), UPLINK);
            assert_eq!(
                moved.through(&mut workers[0], &tables, Tick(0)),
                Verdict::Handoff(WorkerId(1)),
                "RSS moved"
            );
            assert_eq!(workers[0].flows(), 0);
        }
    }
}

#[test]
fn a_reply_that_its_owner_no_longer_knows_is_not_handed_on_again() {
    let tables = tables();
    let mut workers = engines(2, 64);
    let mut stray =
        Wire::new(&packet(TCP, ACK, at(backend(1, false), 8081), at(SNAT4.into(), 60_000), 64), LAN);
    assert_eq!(stray.through(&mut workers[0], &tables, Tick(0)), Verdict::Handoff(WorkerId(1)));
    stray.handed_over = true;
    assert_eq!(stray.through(&mut workers[1], &tables, Tick(0)), Verdict::Drop(DropReason::NoFlow));
}

#[test]
fn one_snat_port_serves_many_backends() {
    let mut tables = tables();
    let services = Arc::get_mut(&mut tables.services).unwrap();
    let list: Vec<_> = services.iter().cloned().collect();
    let tiny = crate::snapshot::SnatPool { low: 5000, high: 5000, ..services.pools()[0].clone() };
    *services = crate::snapshot::Services::new(list, vec![tiny], [vip(false), vip(true)]);
    let mut engine = engines(1, 64).remove(0);
    for number in 0..4 {
        let mut wire = Wire::new(&packet(UDP, 0, client(number, false), at(vip(false), 81), 64), UPLINK);
        let verdict = wire.through(&mut engine, &tables, Tick(0));
        if number < 3 {
            assert_eq!(verdict, Verdict::Tx(LAN));
            assert_eq!(wire.seen().0, at(SNAT4.into(), 5000));
        } else {
            assert_eq!(
                verdict,
                Verdict::Drop(DropReason::SnatExhausted),
                "the fourth meets the first backend again"
            );
        }
    }
}

#[test]
fn a_syn_on_an_ended_connection_is_scheduled_anew() {
    let tables = tables();
    let mut engine = engines(1, 64).remove(0);
    let (c, v) = (client(1, false), at(vip(false), 80));
    let mut backends = Vec::new();
    for flags in [SYN, ACK, RST | ACK, SYN] {
        let mut wire = Wire::new(&packet(TCP, flags, c, v, 64), UPLINK);
        assert_eq!(wire.through(&mut engine, &tables, Tick(0)), Verdict::Tx(LAN));
        backends.push(wire.seen().1.ip());
    }
    assert_eq!(backends, [1, 1, 1, 2].map(|number| backend(number, false)));
    assert_eq!(engine.flows(), 1);
}

/// Leaves the checksum of a segment or datagram to the interface, as a local sender does.
fn leave_checksum(bytes: &mut [u8]) {
    let packet = packet::parse(bytes).unwrap();
    let FlowKey { src, dst, proto, .. } = packet.key;
    let pseudo = Sum::pseudo_header(src, dst, proto, packet.end - packet.l4);
    let offset = if proto == TCP { 16 } else { 6 };
    bytes[usize::from(packet.l4) + offset..][..2].copy_from_slice(&pseudo.fold().to_be_bytes());
}

#[test]
fn a_partial_checksum_stays_partial_under_translation_and_for_the_kernel() {
    let tables = tables();
    for v6 in [false, true] {
        for (proto, offset) in [(TCP, 16), (UDP, 6)] {
            let mut engine = engines(1, 64).remove(0);
            let mut sent = Wire::new(&packet(proto, SYN, client(1, v6), at(vip(v6), 80), 64), UPLINK);
            sent.through(&mut engine, &tables, Tick(0));
            for (to, want) in [(client(1, v6), Verdict::Tx(UPLINK)), (client(2, v6), Verdict::Kernel)] {
                let mut bytes = packet(proto, SYN | ACK, sent.seen().1, to, 64);
                let parsed = packet::parse(&bytes).unwrap();
                let field = usize::from(parsed.l4) + offset;
                let FlowKey { src, dst, .. } = parsed.key;
                let pseudo = |src, dst| Sum::pseudo_header(src, dst, proto, parsed.end - parsed.l4).fold();
                leave_checksum(&mut bytes);
                let mut reply = Wire::new(&bytes, LAN);
                assert_eq!(reply.through(&mut engine, &tables, Tick(0)), want);
                assert_eq!(reply.checksum, Checksum::Partial { start: parsed.l4, offset: offset as u16 });
                let src = if want == Verdict::Kernel { src } else { crate::flow::key::bits(vip(v6)).0 };
                assert_eq!(reply.bytes()[field..field + 2], pseudo(src, dst).to_be_bytes());
            }
        }
    }
}

/// The first packet of a flow and one in its middle, from senders that have finished their checksums and from such that have not.
#[test]
fn on_a_port_that_leaves_checksums_each_packet_keeps_what_its_sender_made_of_its_own() {
    let mut tables = tables();
    Arc::get_mut(&mut tables.net).unwrap().ports[0].partial_checksums = true;
    for (proto, offset) in [(TCP, 16), (UDP, 6)] {
        for port in [80, 81] {
            for unfinished in [[false; 2], [true; 2], [false, true], [true, false]] {
                let mut engine = engines(1, 64).remove(0);
                for (flags, is_unfinished) in [SYN, ACK].into_iter().zip(unfinished) {
                    let mut bytes = packet(proto, flags, client(1, false), at(vip(false), port), 64);
                    let parsed = packet::parse(&bytes).unwrap();
                    if is_unfinished {
                        leave_checksum(&mut bytes);
                    }
                    let mut wire = Wire::new(&bytes, UPLINK);
                    let verdict = wire.through(&mut engine, &tables, Tick(0));
                    assert_eq!(verdict, Verdict::Tx(LAN), "{proto} {port} {unfinished:?}");
                    let mut want = wire.bytes().to_vec();
                    leave_checksum(&mut want);
                    if is_unfinished {
                        let at = Checksum::Partial { start: parsed.l4, offset: offset as u16 };
                        assert_eq!((wire.checksum, wire.bytes()), (at, &want[..]));
                    } else {
                        assert_eq!(wire.checksum, Checksum::Complete);
                        assert_eq!(wire.seen().1.ip(), backend(1, false), "with a right checksum");
                    }
                }
                assert_eq!(engine.flows(), 1);
            }
        }
    }
}

#[test]
fn unresolved_neighbours_are_asked_for_both_ways_and_the_frame_is_left_as_it_was() {
    let mut tables = tables();
    let net = Arc::get_mut(&mut tables.net).unwrap();
    net.hops.fill(None);
    let mut engine = engines(1, 64).remove(0);
    let mut wire = Wire::new(&packet(UDP, 0, client(1, false), at(vip(false), 80), 64), UPLINK);
    let before = wire.bytes().to_vec();
    assert_eq!(wire.through(&mut engine, &tables, Tick(0)), Verdict::Unresolved);
    assert_eq!(wire.bytes(), before);
    let wanted = std::iter::from_fn(|| engine.core.setup.wanted.pop());
    let wanted: Vec<_> = wanted.map(|place| (place.link, place.addr)).collect();
    assert_eq!(
        wanted,
        [(1, IpAddr::from([10, 0, 0, 1])), (2, backend(1, false))],
        "the client's gateway first"
    );
    tables.net = Arc::new(super::fixture::net());
    assert_eq!(wire.through(&mut engine, &tables, Tick(0)), Verdict::Tx(LAN), "the same frame again");
    assert_eq!(engine.flows(), 1, "the first packet's flow");
    assert_eq!(
        engine.stats().drops(DropReason::NoNeighbour),
        0,
        "who keeps frames counts those that are lost"
    );
}

#[test]
fn changed_routes_move_established_flows() {
    let mut tables = tables();
    let mut engine = engines(1, 64).remove(0);
    let sent = packet(UDP, 0, client(1, false), at(vip(false), 80), 64);
    assert_eq!(Wire::new(&sent, UPLINK).through(&mut engine, &tables, Tick(0)), Verdict::Tx(LAN));
    let net = Arc::get_mut(&mut tables.net).unwrap();
    let uplink = net.routes4.get(&(0, 0)).cloned().unwrap();
    net.routes4.insert((Ipv4Addr::new(10, 1, 0, 0).to_bits(), 24), uplink);
    net.epoch += 1;
    assert_eq!(Wire::new(&sent, UPLINK).through(&mut engine, &tables, Tick(0)), Verdict::Tx(UPLINK));
}

#[test]
fn a_packet_over_the_egress_mtu_is_answered_with_the_mtu() {
    let mut tables = tables();
    for hop in Arc::get_mut(&mut tables.net).unwrap().hops.iter_mut().flatten() {
        hop.mtu = 50;
    }
    for v6 in [false, true] {
        let mut engine = engines(1, 64).remove(0);
        let mut wire = Wire::new(&packet(UDP, 0, client(1, v6), at(vip(v6), 80), 64), UPLINK);
        let verdict = wire.through(&mut engine, &tables, Tick(0));
        if v6 {
            assert_eq!(verdict, Verdict::Drop(DropReason::MtuExceeded), "nobody could send less");
        } else {
            assert_eq!(verdict, Verdict::Tx(LAN), "39 bytes of IPv4 fit");
        }
    }
}

#[test]
fn an_icmp_error_without_a_hop_left_or_over_the_egress_mtu_goes_no_further() {
    for (mode, port) in [("nat", 80), ("dr", 82)] {
        for (name, ttl, mtu, want) in [
            ("goes on", 2, 1500, Verdict::Tx(LAN)),
            ("last hop", 1, 1500, Verdict::Drop(DropReason::TtlExceeded)),
            ("no hop", 0, 1500, Verdict::Drop(DropReason::TtlExceeded)),
            ("too large", 2, 60, Verdict::Drop(DropReason::MtuExceeded)),
        ] {
            let mut tables = tables();
            let mut engine = engines(1, 64).remove(0);
            let (from, to) = (client(1, false), at(vip(false), port));
            Wire::new(&packet(UDP, 0, from, to, 64), UPLINK).through(&mut engine, &tables, Tick(0));
            for hop in Arc::get_mut(&mut tables.net).unwrap().hops.iter_mut().flatten() {
                hop.mtu = mtu;
            }
            let quoted = packet(UDP, 0, to, from, 64).split_off(14);
            let (IpAddr::V4(src), IpAddr::V4(dst)) = (from.ip(), to.ip()) else { unreachable!() };
            let error = PacketBuilder::ethernet2([2, 0, 0, 0, 9, 9], [2, 0, 0, 0, 0, 1])
                .ipv4(src.octets(), dst.octets(), ttl)
                .icmpv4_raw(3, 3, [0; 4]);
            let mut bytes = Vec::new();
            error.write(&mut bytes, &quoted).unwrap();
            let verdict = Wire::new(&bytes, UPLINK).through(&mut engine, &tables, Tick(0));
            assert_eq!(verdict, want, "{mode}, {name}");
        }
    }
}

#[test]
fn the_batch_and_the_single_packet_take_the_same_path() {
    let tables = tables();
    let (mut batch, mut single) = (engines(1, 64).remove(0), engines(1, 64).remove(0));
    let packets: Vec<_> = (0..40)
        .map(|number| {
            packet(
                TCP,
                if number % 3 == 2 { ACK } else { SYN },
                client(number / 3, false),
                at(vip(false), 80 + number % 4),
                64,
            )
        })
        .collect();
    let mut wires: Vec<_> = packets.iter().map(|bytes| Wire::new(bytes, UPLINK)).collect();
    let mut frames: Vec<_> = wires
        .iter_mut()
        .map(|wire| Frame::new(&mut wire.chunk, wire.start, wire.len, UPLINK).unwrap())
        .collect();
    let mut verdicts = vec![Verdict::Kernel; frames.len()];
    batch.process(&mut frames, &mut verdicts, Tick(0), &tables);
    for ((bytes, frame), verdict) in packets.iter().zip(&frames).zip(&verdicts) {
        let mut wire = Wire::new(bytes, UPLINK);
        let mut alone = Frame::new(&mut wire.chunk, wire.start, wire.len, UPLINK).unwrap();
        assert_eq!(single.process_one(&mut alone, Tick(0), &tables, &mut Vec::new()), *verdict);
        assert_eq!(alone.bytes(), frame.bytes());
    }
    assert_eq!(batch.flows(), single.flows());
}

#[test]
fn the_seeds_of_the_fuzzer_hold() {
    let seeds = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/seeds/pipeline")).unwrap();
    let seeds: Vec<_> = seeds.map(|seed| std::fs::read(seed.unwrap().path()).unwrap()).collect();
    assert!(!seeds.is_empty());
    seeds.iter().for_each(|seed| super::model::check(seed));
}

proptest! {
    #[test]
    fn whatever_comes_is_handled_as_it_should_be(steps in proptest::collection::vec(any::<u8>(), 0..400)) {
        super::model::check(&steps);
    }
}
