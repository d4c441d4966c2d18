//! Tunnels, MTUs, and the addresses that tunnels begin at.

use super::*;
use crate::flow::key;
use crate::pipeline::fixture::{GUE_PORT, SPECIAL, Special, own};
use crate::snapshot::TunnelChecksum;
use crate::snapshot::net::Route;

/// The special services that are reached through a tunnel.
fn tunnels() -> impl Iterator<Item = Special> {
    SPECIAL.into_iter().filter(|special| special.mode.is_tunnel())
}

/// Bytes of the headers around a packet in the service's tunnel.
fn overhead(special: &Special, outer_v6: bool) -> usize {
    let shim = match (special.mode, special.checksum) {
        (Mode::Gue, _) => 12,
        (Mode::Gre, TunnelChecksum::Full) => 8,
        (Mode::Gre, _) => 4,
        _ => 0,
    };
    shim + if outer_v6 { 40 } else { 20 }
}

/// A UDP datagram whose IP packet has `len` bytes. IPv4 with DF where asked for.
fn datagram(from: SocketAddr, to: SocketAddr, len: usize, dont_fragment: bool) -> Vec<u8> {
    let link = PacketBuilder::ethernet2([2, 0, 0, 0, 9, 9], [2, 0, 0, 0, 0, 1]);
    let mut bytes = Vec::new();
    match (from.ip(), to.ip()) {
        (IpAddr::V4(from_ip), IpAddr::V4(to_ip)) => {
            let mut header = etherparse::Ipv4Header::new(
                0,
                64,
                etherparse::IpNumber::UDP,
                from_ip.octets(),
                to_ip.octets(),
            )
            .unwrap();
            header.dont_fragment = dont_fragment;
            let ip = link.ip(etherparse::IpHeaders::Ipv4(header, Default::default()));
            ip.udp(from.port(), to.port()).write(&mut bytes, &vec![7; len - 28]).unwrap();
        }
        (IpAddr::V6(from_ip), IpAddr::V6(to_ip)) => {
            let ip = link.ipv6(from_ip.octets(), to_ip.octets(), 64);
            ip.udp(from.port(), to.port()).write(&mut bytes, &vec![7; len - 48]).unwrap();
        }
        _ => panic!("families differ"),
    }
    bytes
}

/// The MTU that an ICMP error reports, and the TTL in its quote.
fn reported(wire: &Wire) -> (u16, u8) {
    let bytes = wire.bytes();
    let (icmp, ttl) = if bytes[12..14] == [8, 0] { (34, 8) } else { (54, 7) };
    (u16::from_be_bytes([bytes[icmp + 6], bytes[icmp + 7]]), bytes[icmp + 8 + ttl])
}

#[test]
fn a_tunnel_brings_the_whole_packet_to_the_backend() {
    let tables = tables();
    for special in tunnels() {
        for (v6, proto) in [(false, TCP), (false, UDP), (true, TCP), (true, UDP)] {
            let what = format!("{special:?} {v6} {proto}");
            let outer_v6 = v6 != special.across;
            let mut engine = engines(1, 64).remove(0);
            let sent = packet(proto, SYN, client(1, v6), at(vip(v6), special.port), 64);
            let mut wire = Wire::new(&sent, UPLINK);
            assert_eq!(wire.through(&mut engine, &tables, Tick(0)), Verdict::Tx(LAN), "{what}");
            let bytes = wire.bytes();
            assert_eq!(bytes[..12], [BACKEND_MAC, MACS[1]].concat());
            assert_eq!(bytes.len(), sent.len() + overhead(&special, outer_v6), "{what}");
            let inner = &bytes[14 + overhead(&special, outer_v6)..];
            let same = if v6 { 8.. } else { 12.. };
            assert_eq!(inner[same.clone()], sent[14..][same], "{what}");
            assert_eq!(inner[if v6 { 7 } else { 8 }], 63, "{what}");

            let outer = SlicedPacket::from_ethernet(bytes).unwrap().net.unwrap();
            let (src, dst): (IpAddr, IpAddr) = match outer {
                NetSlice::Ipv4(ip) => {
                    (ip.header().source_addr().into(), ip.header().destination_addr().into())
                }
                NetSlice::Ipv6(ip) => {
                    (ip.header().source_addr().into(), ip.header().destination_addr().into())
                }
                NetSlice::Arp(_) => panic!("ARP"),
            };
            assert_eq!((src, dst), (own(2, outer_v6), backend(1, outer_v6)), "{what}");
            if special.mode == Mode::Gue {
                let at = if outer_v6 { 56 } else { 36 };
                assert_eq!(bytes[at..at + 2], GUE_PORT.to_be_bytes(), "{what}");
            }
            // An answer of the backend does not come here, and the flow goes on.
            let mut records = Vec::with_capacity(4);
            engine.dump(0, 64, Tick(0), &mut records);
            let record = &records[0];
            assert_eq!((record.mode, record.snat), (special.mode, record.client), "{what}");
            assert_eq!(record.backend.0, backend(1, outer_v6), "{what}");
        }
    }
}

#[test]
fn a_tunnel_without_an_address_to_begin_at_carries_nothing() {
    let mut tables = tables();
    let net = Arc::get_mut(&mut tables.net).unwrap();
    for route in net.routes4.values_mut() {
        let Route::Via(paths) = route else { continue };
        paths.iter_mut().for_each(|path| path.source = None);
    }
    let mut engine = engines(1, 64).remove(0);
    for _ in 0..2 {
        let sent = packet(UDP, 0, client(1, false), at(vip(false), 90), 64);
        let verdict = Wire::new(&sent, UPLINK).through(&mut engine, &tables, Tick(0));
        assert_eq!(verdict, Verdict::Drop(DropReason::NoSource));
    }
}

#[test]
fn what_does_not_fit_a_tunnel_is_answered_with_what_does() {
    let tables = tables();
    for special in tunnels() {
        for v6 in [false, true] {
            let mut engine = engines(1, 64).remove(0);
            let largest = 1500 - overhead(&special, v6 != special.across);
            let (from, to) = (client(1, v6), at(vip(v6), special.port));
            for (len, want) in
                [(largest, Verdict::Tx(LAN)), (largest + 1, Verdict::Reply(Some(DropReason::MtuExceeded)))]
            {
                let mut wire = Wire::new(&datagram(from, to, len, true), UPLINK);
                assert_eq!(wire.through(&mut engine, &tables, Tick(0)), want, "{special:?} {v6} {len}");
                if want != Verdict::Tx(LAN) {
                    assert_eq!(reported(&wire), (largest as u16, 63), "{special:?} {v6}");
                }
            }
        }
    }
}

#[test]
fn the_mtu_of_a_route_holds_in_every_mode() {
    let tables = tables();
    let modes = [(80, 0), (81, 0), (82, 0), (90, 20), (91, 32), (92, 24), (98, 0)];
    for (port, overhead) in modes {
        for v6 in [false, true] {
            let mut engine = engines(1, 64).remove(0);
            let overhead = if v6 && overhead > 0 { overhead + 20 } else { overhead };
            // The third flow goes to the third backend, whose route is narrower.
            for number in 1..=2 {
                let sent = packet(UDP, 0, client(number, v6), at(vip(v6), port), 64);
                Wire::new(&sent, UPLINK).through(&mut engine, &tables, Tick(0));
            }
            let (from, to) = (client(3, v6), at(vip(v6), port));
            let mut fits = Wire::new(&datagram(from, to, 1400 - overhead, true), UPLINK);
            assert_eq!(fits.through(&mut engine, &tables, Tick(0)), Verdict::Tx(LAN), "{port} {v6}");
            let mut over = Wire::new(&datagram(from, to, 1401 - overhead, true), UPLINK);
            let verdict = over.through(&mut engine, &tables, Tick(0));
            assert_eq!(verdict, Verdict::Reply(Some(DropReason::MtuExceeded)), "{port} {v6}");
            assert_eq!(reported(&over), ((1400 - overhead) as u16, 63));
        }
    }
}

/// The first packet of a flow to the service with backends of the other family, and where it went to.
fn crossed(engine: &mut Engine, v6: bool, proto: u8) -> (Wire, SocketAddr) {
    let sent = packet(proto, SYN, client(1, v6), at(vip(v6), 96), 64);
    let mut wire = Wire::new(&sent, UPLINK);
    assert_eq!(wire.through(engine, &tables(), Tick(0)), Verdict::Tx(LAN));
    let (src, ..) = wire.seen();
    (wire, src)
}

#[test]
fn a_backend_of_the_other_family_sees_its_own_and_so_does_the_client() {
    for v6 in [false, true] {
        for proto in [TCP, UDP] {
            let mut engine = engines(1, 64).remove(0);
            let (wire, snat) = crossed(&mut engine, v6, proto);
            let server = at(backend(1, !v6), 8096);
            let own = if v6 { IpAddr::V4(SNAT4) } else { IpAddr::V6(SNAT6) };
            assert_eq!(wire.seen(), (at(own, snat.port()), server, 63));
            assert_eq!(wire.bytes()[..12], [BACKEND_MAC, MACS[1]].concat());
            assert!(wire.bytes().ends_with(b"eleven byte"));
            if v6 {
                assert_eq!(wire.bytes()[20] & 0x40, 0, "a small packet may be fragmented");
            }
            let mut reply = Wire::new(&packet(proto, SYN | ACK, server, snat, 64), LAN);
            assert_eq!(reply.through(&mut engine, &tables(), Tick(0)), Verdict::Tx(UPLINK));
            assert_eq!(reply.seen(), (at(vip(v6), 96), client(1, v6), 63));
            assert_eq!(reply.bytes()[..12], [GATEWAY_MAC, MACS[0]].concat());
        }
    }
}

#[test]
fn a_datagram_without_a_checksum_has_one_over_ipv6() {
    let mut engine = engines(1, 64).remove(0);
    let mut sent = packet(UDP, 0, client(1, false), at(vip(false), 96), 64);
    sent[40..42].fill(0);
    let mut wire = Wire::new(&sent, UPLINK);
    assert_eq!(wire.through(&mut engine, &tables(), Tick(0)), Verdict::Tx(LAN));
    wire.seen();
}

#[test]
fn the_other_familys_mtu_is_told_in_the_senders_own_measure() {
    // The link carries 1500 bytes both ways, so that 1480 of IPv4 and 1520 of IPv6 fit; no route to a client says less.
    for (v6, largest, dont_fragment) in [(false, 1480, true), (false, 1480, false), (true, 1520, true)] {
        let mut engine = engines(1, 64).remove(0);
        let (from, to) = (client(1, v6), at(vip(v6), 96));
        let mut fits = Wire::new(&datagram(from, to, largest, dont_fragment), UPLINK);
        assert_eq!(fits.through(&mut engine, &tables(), Tick(0)), Verdict::Tx(LAN));
        assert_eq!(fits.bytes().len(), 14 + 1500);
        let mut over = Wire::new(&datagram(from, to, largest + 1, dont_fragment), UPLINK);
        let verdict = over.through(&mut engine, &tables(), Tick(0));
        assert_eq!(verdict, Verdict::Reply(Some(DropReason::MtuExceeded)), "{v6}");
        assert_eq!(reported(&over), (largest as u16, 63));
    }
}

#[test]
fn an_icmp_error_is_told_in_the_other_familys_words() {
    // Type, code and the word behind the checksum, as a router of the backend's family says it and as the client hears it.
    type Case = (&'static str, [u8; 6], Option<[u8; 6]>);
    let to_v6: [Case; 7] = [
        ("port unreachable", [3, 3, 0, 0, 0, 0], Some([1, 4, 0, 0, 0, 0])),
        ("network unreachable", [3, 0, 0, 0, 0, 0], Some([1, 0, 0, 0, 0, 0])),
        ("prohibited", [3, 13, 0, 0, 0, 0], Some([1, 1, 0, 0, 0, 0])),
        ("fragmentation needed", [3, 4, 0, 0, 5, 120], Some([2, 0, 0, 0, 5, 140])),
        ("less than IPv6 can be told", [3, 4, 0, 0, 2, 64], Some([2, 0, 0, 0, 5, 0])),
        ("time exceeded", [11, 0, 0, 0, 0, 0], Some([3, 0, 0, 0, 0, 0])),
        ("source quench", [4, 0, 0, 0, 0, 0], None),
    ];
    let to_v4: [Case; 5] = [
        ("port unreachable", [1, 4, 0, 0, 0, 0], Some([3, 3, 0, 0, 0, 0])),
        ("no route", [1, 0, 0, 0, 0, 0], Some([3, 1, 0, 0, 0, 0])),
        ("too big", [2, 0, 0, 0, 5, 120], Some([3, 4, 0, 0, 5, 100])),
        ("hop limit", [3, 0, 0, 0, 0, 0], Some([11, 0, 0, 0, 0, 0])),
        ("failed policy", [1, 5, 0, 0, 0, 0], None),
    ];
    let cases = to_v6.map(|case| (true, case)).into_iter().chain(to_v4.map(|case| (false, case)));
    for (v6, (name, said, heard)) in cases {
        let mut engine = engines(1, 64).remove(0);
        let (at_backend, _) = crossed(&mut engine, v6, UDP);
        let error = error(said, &at_backend.bytes()[14..], !v6);
        let mut wire = Wire::new(&error, LAN);
        let verdict = wire.through(&mut engine, &tables(), Tick(0));
        let Some(heard) = heard else {
            assert_eq!(verdict, Verdict::Drop(DropReason::Unsupported), "{name}");
            continue;
        };
        assert_eq!(verdict, Verdict::Tx(UPLINK), "{name}");
        let bytes = wire.bytes();
        let icmp = if v6 { 54 } else { 34 };
        assert_eq!(bytes[icmp..icmp + 2], heard[..2], "{name}");
        assert_eq!(bytes[icmp + 4..icmp + 8], heard[2..], "{name}");
        // The quote is the datagram that the client has sent, but for the IPv4 identification.
        let parsed = crate::packet::parse(bytes).unwrap();
        assert_eq!(parsed.kind, Kind::IcmpError, "{name}: its checksum verifies");
        let key = parsed.key;
        let quoted =
            (SocketAddr::new(key.source(), key.sport), SocketAddr::new(key.destination(), key.dport));
        assert_eq!(quoted, (client(1, v6), at(vip(v6), 96)));
        let original = packet(UDP, 0, client(1, v6), at(vip(v6), 96), 64);
        let l4 = if v6 { 40 } else { 20 };
        assert_eq!(bytes[icmp + 8 + l4..], original[14 + l4..], "{name}: ports, length, checksum and data");
    }
}

/// An ICMP error of a router before the backend, about the packet `quote`.
fn error([kind, code, word @ ..]: [u8; 6], quote: &[u8], v6: bool) -> Vec<u8> {
    let link = PacketBuilder::ethernet2(BACKEND_MAC, MACS[1]);
    let mut bytes = Vec::new();
    if v6 {
        let router = Ipv6Addr::new(0xfd01, 0, 0, 0, 0, 0, 0, 0x77).octets();
        let ip = link.ipv6(router, SNAT6.octets(), 64);
        ip.icmpv6_raw(kind, code, word).write(&mut bytes, quote).unwrap();
    } else {
        let ip = link.ipv4([10, 1, 0, 77], SNAT4.octets(), 64);
        ip.icmpv4_raw(kind, code, word).write(&mut bytes, quote).unwrap();
    }
    bytes
}

/// A SYN or SYN-ACK that announces segments of `mss` bytes.
fn announcing(mss: u16, flags: u8, from: SocketAddr, to: SocketAddr) -> Vec<u8> {
    let link = PacketBuilder::ethernet2([2, 0, 0, 0, 9, 9], [2, 0, 0, 0, 0, 1]);
    let ip = match (from.ip(), to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => link.ipv4(from.octets(), to.octets(), 64),
        (IpAddr::V6(from), IpAddr::V6(to)) => link.ipv6(from.octets(), to.octets(), 64),
        _ => panic!("families differ"),
    };
    let mut tcp = ip.tcp(from.port(), to.port(), 1000, 5000).syn();
    if flags & ACK != 0 {
        tcp = tcp.ack(77);
    }
    let mut bytes = Vec::new();
    let options = [etherparse::TcpOptionElement::Noop, etherparse::TcpOptionElement::MaximumSegmentSize(mss)];
    tcp.options(&options).unwrap().write(&mut bytes, &[]).unwrap();
    bytes
}

/// The segment size that a frame announces, found from its end.
fn announced(bytes: &[u8]) -> u16 {
    let option = &bytes[bytes.len() - 8..];
    assert_eq!(option[..3], [1, 2, 4]);
    u16::from_be_bytes([option[3], option[4]])
}

#[test]
fn both_sides_are_told_of_segments_that_fit() {
    let tables = tables();
    // The service; the client's family; what a SYN and a SYN-ACK that say 9000 say afterwards.
    for (port, v6, want) in
        [(81, false, 9000), (98, false, 1200), (98, true, 1200), (96, false, 1440), (96, true, 1440)]
    {
        let mut engine = engines(1, 64).remove(0);
        let (from, to) = (client(1, v6), at(vip(v6), port));
        let mut snat = from;
        // A repeated SYN is treated like the first.
        for _ in 0..2 {
            let mut syn = Wire::new(&announcing(9000, SYN, from, to), UPLINK);
            assert_eq!(syn.through(&mut engine, &tables, Tick(0)), Verdict::Tx(LAN));
            assert_eq!(announced(syn.bytes()), want, "{port} {v6}");
            (snat, ..) = syn.seen();
        }
        let server = at(backend(1, v6 != (port == 96)), 8000 + port);
        let mut answer = Wire::new(&announcing(9000, SYN | ACK, server, snat), LAN);
        assert_eq!(answer.through(&mut engine, &tables, Tick(0)), Verdict::Tx(UPLINK));
        assert_eq!(announced(answer.bytes()), want, "{port} {v6}");
        answer.seen();
        let mut small = Wire::new(&announcing(500, SYN | ACK, server, snat), LAN);
        assert_eq!(small.through(&mut engine, &tables, Tick(0)), Verdict::Tx(UPLINK));
        assert_eq!(announced(small.bytes()), 500, "{port} {v6}: never raised");
    }
}

#[test]
fn through_a_tunnel_what_fits_is_less() {
    for (v6, want) in [(false, 1440), (true, 1400)] {
        let mut engine = engines(1, 64).remove(0);
        let syn = announcing(9000, SYN, client(1, v6), at(vip(v6), 90));
        let mut wire = Wire::new(&syn, UPLINK);
        assert_eq!(wire.through(&mut engine, &tables(), Tick(0)), Verdict::Tx(LAN));
        assert_eq!(announced(wire.bytes()), want);
    }
}

/// A router's report that the packet in `frame` does not fit `mtu` bytes.
fn too_big(frame: &[u8], mtu: u16, v6: bool, len: usize) -> Vec<u8> {
    let link = PacketBuilder::ethernet2(BACKEND_MAC, MACS[1]);
    let [high, low] = mtu.to_be_bytes();
    let quote = &frame[14..frame.len().min(14 + len)];
    let mut bytes = Vec::new();
    match own(2, v6) {
        IpAddr::V4(own) => {
            let ip = link.ipv4([10, 1, 0, 77], own.octets(), 64);
            ip.icmpv4_raw(3, 4, [0, 0, high, low]).write(&mut bytes, quote).unwrap();
        }
        IpAddr::V6(own) => {
            let router = Ipv6Addr::new(0xfd01, 0, 0, 0, 0, 0, 0, 0x77).octets();
            let ip = link.ipv6(router, own.octets(), 64);
            ip.icmpv6_raw(2, 0, [0, 0, high, low]).write(&mut bytes, quote).unwrap();
        }
    }
    bytes
}

#[test]
fn a_narrow_path_behind_a_tunnel_is_learned_and_told_to_the_client() {
    let tables = tables();
    for special in tunnels() {
        for v6 in [false, true] {
            let what = format!("{special:?} {v6}");
            let outer_v6 = v6 != special.across;
            let mut engine = engines(1, 64).remove(0);
            let (from, to) = (client(1, v6), at(vip(v6), special.port));
            let len = 1500 - overhead(&special, outer_v6);
            let mut wire = Wire::new(&datagram(from, to, len, true), UPLINK);
            assert_eq!(wire.through(&mut engine, &tables, Tick(0)), Verdict::Tx(LAN), "{what}");

            let fits = 1360 - overhead(&special, outer_v6);
            let heard = if v6 { fits.max(1280) } else { fits };
            // What no path may be as narrow as is not believed.
            for mtu in [if outer_v6 { 1279 } else { 575 }, 1360] {
                let before = engine.core.path_mtus.get(key::bits(backend(1, outer_v6)).0, Tick(0));
                assert_eq!(before, None, "{what}");
                let mut error = Wire::new(&too_big(wire.bytes(), mtu, outer_v6, 400), LAN);
                assert_eq!(error.through(&mut engine, &tables, Tick(0)), Verdict::Tx(UPLINK), "{what}");
                assert_eq!(error.bytes()[..12], [GATEWAY_MAC, MACS[0]].concat(), "{what}");
                if mtu == 1360 {
                    assert_eq!(reported(&error), (heard as u16, 63), "{what}");
                }
            }
            let mut again = Wire::new(&datagram(from, to, len, true), UPLINK);
            let verdict = again.through(&mut engine, &tables, Tick(0));
            assert_eq!(verdict, Verdict::Reply(Some(DropReason::MtuExceeded)), "{what}: it is known now");
            assert_eq!(reported(&again), (heard as u16, 63), "{what}");
        }
    }
}
