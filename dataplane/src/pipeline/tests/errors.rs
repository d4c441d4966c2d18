//! ICMP errors about packets in tunnels, and clients that are backends.

use super::*;
use crate::packet::{Kind, parse};
use crate::pipeline::fixture::{SPECIAL, Special, own};
use crate::snapshot::{Service, Services, TunnelChecksum};

fn tunnels() -> impl Iterator<Item = Special> {
    SPECIAL.into_iter().filter(|special| special.mode.is_tunnel())
}

/// An ICMP error of a router before the backends to where the tunnels begin.
fn error([kind, code]: [u8; 2], mtu: u16, quote: &[u8], v6: bool) -> Vec<u8> {
    let [high, low] = mtu.to_be_bytes();
    let link = PacketBuilder::ethernet2(BACKEND_MAC, MACS[1]);
    let mut bytes = Vec::new();
    match own(2, v6) {
        IpAddr::V4(to) => {
            let message =
                link.ipv4([10, 1, 0, 77], to.octets(), 64).icmpv4_raw(kind, code, [0, 0, high, low]);
            message.write(&mut bytes, quote).unwrap();
        }
        IpAddr::V6(to) => {
            let router = Ipv6Addr::new(0xfd01, 0, 0, 0, 0, 0, 0, 0x77).octets();
            let message = link.ipv6(router, to.octets(), 64).icmpv6_raw(kind, code, [0, 0, high, low]);
            message.write(&mut bytes, quote).unwrap();
        }
    }
    bytes
}

/// Which error, by ICMP and by ICMPv6: too big, unreachable, late.
const ERRORS: [[[u8; 2]; 2]; 3] = [[[3, 4], [2, 0]], [[3, 1], [1, 3]], [[11, 0], [3, 0]]];

/// A packet in a tunnel as Weir sent it, from its outer IP header on, and how many bytes of it are the tunnel's.
fn tunnelled(
    engine: &mut Engine,
    tables: &Snapshot,
    special: &Special,
    proto: u8,
    v6: bool,
) -> (Vec<u8>, usize) {
    let sent = packet(proto, SYN, client(1, v6), at(vip(v6), special.port), 64);
    let mut wire = Wire::new(&sent, UPLINK);
    assert_eq!(wire.through(engine, tables, Tick(0)), Verdict::Tx(LAN));
    (wire.bytes()[14..].to_vec(), wire.len - sent.len())
}

#[test]
fn an_error_about_a_tunnels_packet_becomes_one_about_the_clients() {
    let tables = tables();
    for special in tunnels() {
        for (v6, proto, what) in
            [false, true].into_iter().flat_map(|v6| [(v6, TCP, 0), (v6, UDP, 0), (v6, UDP, 1), (v6, TCP, 2)])
        {
            let outer_v6 = v6 != special.across;
            let name = format!("{special:?} v6 {v6} {proto} {what}");
            let mut engine = engines(1, 64).remove(0);
            let (quote, overhead) = tunnelled(&mut engine, &tables, &special, proto, v6);
            // The whole packet, and what a router quotes that knows only RFC 792 but counts from the inner header.
            let headers = if v6 { 48 } else { 28 };
            for len in [quote.len(), overhead + headers] {
                let bytes = error(ERRORS[what][usize::from(outer_v6)], 1400, &quote[..len], outer_v6);
                let mut wire = Wire::new(&bytes, LAN);
                assert_eq!(wire.through(&mut engine, &tables, Tick(0)), Verdict::Tx(UPLINK), "{name}");
                let told = parse(wire.bytes()).unwrap();
                assert_eq!(told.kind, Kind::IcmpError, "{name}");
                let sent = parse(&packet(proto, SYN, client(1, v6), at(vip(v6), special.port), 64)).unwrap();
                assert_eq!(told.key, sent.key, "{name}: the client's own packet");
                assert_eq!(told.outer_addresses(wire.bytes()), Ok((sent.key.dst, sent.key.src)), "{name}");
                assert_eq!(wire.bytes()[..12], [GATEWAY_MAC, MACS[0]].concat(), "{name}");
                let icmp = usize::from(told.l4);
                assert_eq!(wire.bytes()[icmp..icmp + 2], ERRORS[what][usize::from(v6)], "{name}");
                let mtu = u16::from_be_bytes([wire.bytes()[icmp + 6], wire.bytes()[icmp + 7]]);
                let want = if what == 0 { 1400 - overhead as u16 } else { 0 };
                assert_eq!(mtu, want, "{name}");
                assert_eq!(wire.bytes()[icmp + 8..], quote[overhead..len], "{name}: as far as it was quoted");
            }
        }
    }
}

#[test]
fn what_a_tunnel_error_cannot_tell_is_not_told() {
    let tables = tables();
    for special in tunnels().filter(|special| !special.across) {
        let mut engine = engines(1, 64).remove(0);
        let (quote, overhead) = tunnelled(&mut engine, &tables, &special, TCP, false);
        let mut run = |bytes: &[u8]| Wire::new(bytes, LAN).through(&mut engine, &tables, Tick(0));
        let name = format!("{special:?}");
        let short = error([3, 4], 1400, &quote[..overhead + 8], false);
        assert_eq!(
            run(&short),
            Verdict::Drop(DropReason::IcmpShortQuote),
            "{name}: eight bytes of the outer payload"
        );
        let quench = error([4, 0], 0, &quote, false);
        assert_eq!(run(&quench), Verdict::Drop(DropReason::Unsupported), "{name}: source quench");
        let mut elsewhere = quote.clone();
        elsewhere[19] ^= 3; // another backend
        assert_eq!(
            run(&error([3, 1], 0, &elsewhere, false)),
            Verdict::Kernel,
            "{name}: not this flow's tunnel"
        );
        let mut unknown = quote.clone();
        unknown[overhead + 15] ^= 7; // another client
        assert_eq!(run(&error([3, 1], 0, &unknown, false)), Verdict::Kernel, "{name}: no flow");
    }
}

#[test]
fn an_error_about_a_tunnels_packet_reaches_the_worker_of_its_flow() {
    let tables = tables();
    for special in tunnels() {
        let [mut here, mut there] = <[_; 2]>::try_from(engines(2, 64)).unwrap();
        let (quote, _) = tunnelled(&mut there, &tables, &special, UDP, false);
        let outer_v6 = special.across;
        let mut wire = Wire::new(&error(ERRORS[1][usize::from(outer_v6)], 0, &quote, outer_v6), LAN);
        assert_eq!(wire.through(&mut here, &tables, Tick(0)), Verdict::Handoff(WorkerId(1)), "{special:?}");
        wire.handed_over = true;
        assert_eq!(wire.through(&mut there, &tables, Tick(0)), Verdict::Tx(UPLINK), "{special:?}");
    }
}

/// The services of the fixture, each changed.
fn with_services(tables: &Snapshot, change: impl Fn(&mut Service)) -> Snapshot {
    let mut list: Vec<_> = tables.services.iter().cloned().collect();
    list.iter_mut().for_each(change);
    let services = Services::new(list, tables.services.pools().to_vec(), [vip(false), vip(true)]);
    Snapshot { services: Arc::new(services), ..tables.clone() }
}

#[test]
fn a_backend_that_is_its_own_client_is_answered_by_way_of_the_snat_pool() {
    let tables = tables();
    let bare = with_services(&tables, |service| service.pool = None);
    for v6 in [false, true] {
        let snat: IpAddr = if v6 { SNAT6.into() } else { SNAT4.into() };
        let this = at(backend(1, v6), 40_000);
        for port in [80, 81] {
            let service = at(vip(v6), port);
            let mut engine = engines(1, 64).remove(0);
            let mut sent = Wire::new(&packet(TCP, SYN, this, service, 64), LAN);
            assert_eq!(sent.through(&mut engine, &tables, Tick(0)), Verdict::Tx(LAN), "{port} v6 {v6}");
            let (src, dst, _) = sent.seen();
            assert_eq!((src.ip(), dst), (snat, at(this.ip(), 8000 + port)), "{port} v6 {v6}");
            let mut reply = Wire::new(&packet(TCP, SYN | ACK, dst, src, 64), LAN);
            assert_eq!(reply.through(&mut engine, &tables, Tick(0)), Verdict::Tx(LAN), "{port} v6 {v6}");
            assert_eq!(reply.seen(), (service, this, 63), "{port} v6 {v6}");
        }
        let mut engine = engines(1, 64).remove(0);
        let mut sent = Wire::new(&packet(TCP, SYN, this, at(vip(v6), 80), 64), LAN);
        let hairpin = Verdict::Drop(DropReason::Hairpin);
        assert_eq!(sent.through(&mut engine, &bare, Tick(0)), hairpin, "without a pool, v6 {v6}");
        assert_eq!(engine.flows(), 0);
        // Another backend than the client itself gets the client's address, as ever.
        let mut sent = Wire::new(&packet(TCP, SYN, this, at(vip(v6), 80), 64), LAN);
        assert_eq!(sent.through(&mut engine, &bare, Tick(0)), Verdict::Tx(LAN));
        assert_eq!(sent.seen().0, this);
    }
}

#[test]
fn no_less_than_the_least_mtu_is_told() {
    let tables = tables();
    let special = tunnels().find(|special| special.checksum == TunnelChecksum::None).unwrap();
    let mut engine = engines(1, 64).remove(0);
    for (v6, at) in [(false, 34 + 6), (true, 54 + 6)] {
        let (quote, _) = tunnelled(&mut engine, &tables, &special, TCP, v6);
        let mut wire = Wire::new(&error(ERRORS[0][usize::from(v6)], 0, &quote, v6), LAN);
        assert_eq!(wire.through(&mut engine, &tables, Tick(0)), Verdict::Tx(UPLINK));
        let least: u16 = if v6 { 1280 } else { 576 };
        assert_eq!(wire.bytes()[at..at + 2], least.to_be_bytes(), "what no router may say is not believed");
    }
}
