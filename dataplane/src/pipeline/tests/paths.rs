//! Tunnels, MTUs, and the addresses that tunnels begin at.

use super::*;
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
