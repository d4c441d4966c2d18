//! Every rule of the XDP program, run by the kernel (`BPF_PROG_TEST_RUN`) on hand-made frames.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(clippy::indexing_slicing, clippy::cast_possible_truncation, reason = "a test fails by panicking")]

mod support;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use etherparse::{EtherType, Ipv4Options};
use support::{
    Bench, ICMP, ICMPV6, SCTP, TCP, UDP, arp, enter_namespace, ethernet, fragment, framed, icmp, ip_packet,
    ipv4, ipv6, shift, tagged, transport,
};
use xdp_prog::Counter::{self, *};
use xdp_prog::{Endpoint, Ours, Proto};

/// The addresses of one family and the numbers that differ between the two.
#[derive(Clone, Copy)]
struct Family {
    client: IpAddr,
    /// Owned; TCP 80, UDP 53, SCTP 5060.
    vip: IpAddr,
    /// The node's; NodePorts TCP 30080 and UDP 30053.
    node: IpAddr,
    /// The node's, with a service of its own: UDP 514.
    node_vip: IpAddr,
    /// Owned; ports 40000 to 49999.
    snat: IpAddr,
    /// TCP 8080 and UDP 5353 in `nat` mode.
    backend: IpAddr,
    /// Owned, with no service on it.
    bare: IpAddr,
    other: IpAddr,
    icmp: u8,
    echo_request: u8,
    echo_reply: u8,
    errors: &'static [u8],
    not_errors: &'static [u8],
}

const V4: Family = Family {
    client: IpAddr::V4(Ipv4Addr::new(192, 0, 2, 10)),
    vip: IpAddr::V4(Ipv4Addr::new(198, 51, 100, 1)),
    node: IpAddr::V4(Ipv4Addr::new(203, 0, 113, 5)),
    node_vip: IpAddr::V4(Ipv4Addr::new(203, 0, 113, 6)),
    snat: IpAddr::V4(Ipv4Addr::new(198, 51, 100, 9)),
    backend: IpAddr::V4(Ipv4Addr::new(10, 1, 0, 2)),
    bare: IpAddr::V4(Ipv4Addr::new(198, 51, 100, 7)),
    other: IpAddr::V4(Ipv4Addr::new(203, 0, 113, 99)),
    icmp: ICMP,
    echo_request: 8,
    echo_reply: 0,
    errors: &[3, 11, 12],
    not_errors: &[4, 5, 13],
};

const V6: Family = Family {
    client: IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 10)),
    vip: IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 1)),
    node: IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 3, 0, 0, 0, 0, 5)),
    node_vip: IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 3, 0, 0, 0, 0, 6)),
    snat: IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 9)),
    backend: IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2)),
    bare: IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 7)),
    other: IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 3, 0, 0, 0, 0, 0x99)),
    icmp: ICMPV6,
    echo_request: 128,
    echo_reply: 129,
    errors: &[1, 2, 3, 4],
    not_errors: &[0, 100, 133, 134, 136],
};

fn ours() -> Ours {
    let mut ours = Ours { node_ports: [(Proto::Tcp, 30080), (Proto::Udp, 30053)].into(), ..Ours::default() };
    for family in [V4, V6] {
        let endpoint = |addr, port, proto| Endpoint { addr, port, proto };
        ours.vips.extend([
            endpoint(family.vip, 80, Proto::Tcp),
            endpoint(family.vip, 53, Proto::Udp),
            endpoint(family.vip, 5060, Proto::Sctp),
            endpoint(family.node_vip, 514, Proto::Udp),
        ]);
        ours.nat_backends
            .extend([endpoint(family.backend, 8080, Proto::Tcp), endpoint(family.backend, 5353, Proto::Udp)]);
        ours.node_addresses.extend([family.node, family.node_vip]);
        ours.snat.insert(family.snat, 40000..=49999);
        ours.owned.extend([family.vip, family.snat, family.bare]);
    }
    ours
}

/// Name, IP packet, expectation.
type Row = (String, Vec<u8>, Counter);

fn transport_rows(f: &Family) -> Vec<Row> {
    [
        ("vip over tcp", f.client, 1024, f.vip, 80, TCP, Vip),
        ("vip over udp", f.client, 1024, f.vip, 53, UDP, Vip),
        ("vip over sctp", f.client, 1024, f.vip, 5060, SCTP, Vip),
        ("vip, protocol of another port", f.client, 1024, f.vip, 80, UDP, NotOurs),
        ("vip, no such port", f.client, 1024, f.vip, 22, TCP, NotOurs),
        ("vip, port 0", f.client, 1024, f.vip, 0, TCP, NotOurs),
        ("vip, a NodePort's number", f.client, 1024, f.vip, 30080, TCP, NotOurs),
        ("vip as source", f.vip, 80, f.client, 1024, TCP, NotOurs),
        ("NodePort over tcp", f.client, 1024, f.node, 30080, TCP, NodePort),
        ("NodePort over udp", f.client, 1024, f.node, 30053, UDP, NodePort),
        ("NodePort of another protocol", f.client, 1024, f.node, 30080, UDP, NotOurs),
        ("NodePort of no protocol", f.client, 1024, f.node, 30080, SCTP, NotOurs),
        ("port beside the NodePort", f.client, 1024, f.node, 30081, TCP, NotOurs),
        ("64 ports beside the NodePort", f.client, 1024, f.node, 30080 + 64, TCP, NotOurs),
        ("ssh to the node", f.client, 1024, f.node, 22, TCP, NotOurs),
        ("NodePort on another host", f.client, 1024, f.other, 30080, TCP, NotOurs),
        ("service on a node's address", f.client, 1024, f.node_vip, 514, UDP, Vip),
        ("that service's port over another protocol", f.client, 1024, f.node_vip, 514, TCP, NotOurs),
        ("NodePort beside that service", f.client, 1024, f.node_vip, 30053, UDP, NodePort),
        ("snat, first port", f.backend, 9, f.snat, 40000, TCP, Snat),
        ("snat, last port", f.backend, 9, f.snat, 49999, UDP, Snat),
        ("snat over sctp", f.backend, 9, f.snat, 45000, SCTP, Snat),
        ("snat, below the range", f.backend, 9, f.snat, 39999, TCP, NotOurs),
        ("snat, above the range", f.backend, 9, f.snat, 50000, TCP, NotOurs),
        ("reply of a nat backend", f.backend, 8080, f.client, 1024, TCP, NatReply),
        ("reply of a nat backend over udp", f.backend, 5353, f.client, 1024, UDP, NatReply),
        ("nat backend, other port", f.backend, 8081, f.client, 1024, TCP, NotOurs),
        ("nat backend, other protocol", f.backend, 8080, f.client, 1024, UDP, NotOurs),
        ("to the nat backend", f.client, 1024, f.backend, 8080, TCP, NotOurs),
        ("reply to a SNAT port, from a nat backend", f.backend, 8080, f.snat, 40001, TCP, Snat),
        ("between strangers", f.client, 1024, f.other, 80, TCP, NotOurs),
        ("another IP protocol", f.client, 80, f.vip, 80, 47, NotOurs),
    ]
    .into_iter()
    .map(|(name, src, sport, dst, dport, proto, want)| {
        (name.into(), ip_packet(src, dst, proto, &transport(sport, dport)), want)
    })
    .collect()
}

fn icmp_rows(f: &Family) -> Vec<Row> {
    let message = |dst, kind, body: &[u8]| ip_packet(f.client, dst, f.icmp, &icmp(kind, body));
    let quote = |src, sport, dst, dport, proto| {
        let mut packet = ip_packet(src, dst, proto, &transport(sport, dport));
        packet.truncate(packet.len() - 12);
        packet
    };
    let mut rows: Vec<Row> = [
        ("quotes vip to client", f.vip, quote(f.vip, 80, f.client, 9, TCP), IcmpError),
        ("quotes vip over sctp", f.vip, quote(f.vip, 5060, f.client, 9, SCTP), IcmpError),
        ("quotes NodePort to client", f.node, quote(f.node, 30080, f.client, 9, TCP), IcmpError),
        ("quotes snat to backend", f.snat, quote(f.snat, 45000, f.other, 9, UDP), IcmpError),
        ("quotes client to nat backend", f.client, quote(f.client, 9, f.backend, 8080, TCP), IcmpError),
        ("quotes the node's own", f.node, quote(f.node, 22, f.client, 9, TCP), NotOurs),
        ("quotes a vip's other port", f.vip, quote(f.vip, 81, f.client, 9, TCP), NotOurs),
        ("quotes snat outside of its range", f.snat, quote(f.snat, 1, f.other, 9, UDP), NotOurs),
        ("quotes a backend's other port", f.client, quote(f.client, 9, f.backend, 8081, TCP), NotOurs),
        ("quotes packets to the vip", f.client, quote(f.client, 9, f.vip, 80, TCP), NotOurs),
        ("quotes another protocol", f.vip, quote(f.vip, 80, f.client, 9, 47), NotOurs),
        ("quotes a header cut short", f.vip, quote(f.vip, 80, f.client, 9, TCP)[..16].to_vec(), Malformed),
    ]
    .into_iter()
    .flat_map(|(name, dst, quoted, want)| {
        let rows = f
            .errors
            .iter()
            .map(move |kind| (format!("error {kind} {name}"), *kind, dst, quoted.clone(), want));
        rows.map(|(name, kind, dst, quoted, want)| (name, message(dst, kind, &quoted), want))
    })
    .collect();
    for kind in f.not_errors {
        let packet = message(f.vip, *kind, &quote(f.vip, 80, f.client, 9, TCP));
        rows.push((format!("icmp type {kind} is no error"), packet, NotOurs));
    }
    for (name, kind, dst, want) in [
        ("ping of an owned vip", f.echo_request, f.vip, Owned),
        ("ping of an owned SNAT address", f.echo_request, f.snat, Owned),
        ("ping of the node", f.echo_request, f.node, NotOurs),
        ("ping of a backend", f.echo_request, f.backend, NotOurs),
        ("echo reply to an owned vip", f.echo_reply, f.vip, NotOurs),
    ] {
        rows.push((name.into(), message(dst, kind, &[0; 16]), want));
    }
    let later = fragment(f.vip, f.client, TCP, 185, false, &transport(80, 9));
    rows.push(("error quotes a later fragment".into(), message(f.vip, f.errors[0], &later), NotOurs));
    let first = fragment(f.vip, f.client, TCP, 0, true, &transport(80, 9));
    rows.push(("error quotes a first fragment".into(), message(f.vip, f.errors[0], &first), IcmpError));
    let foreign = if f.icmp == ICMP { V6 } else { V4 };
    let ping = ip_packet(f.client, f.vip, foreign.icmp, &icmp(foreign.echo_request, &[]));
    rows.push(("ping in the other family's icmp".into(), ping, NotOurs));
    rows
}

fn fragment_rows(f: &Family) -> Vec<Row> {
    let first = |src, sport, dst, dport, proto| fragment(src, dst, proto, 0, true, &transport(sport, dport));
    // Looks like ports of something else: later fragments must not be read for ports.
    let later = |src, dst, proto| fragment(src, dst, proto, 185, false, &transport(80, 80));
    let echo = fragment(f.client, f.vip, f.icmp, 0, true, &icmp(f.echo_request, &[0; 16]));
    let short = fragment(f.client, f.vip, UDP, 0, true, &transport(9, 53)[..2]);
    [
        ("first, to a vip", first(f.client, 9, f.vip, 53, UDP), Fragment),
        ("first, to a vip's other port", first(f.client, 9, f.vip, 54, UDP), NotOurs),
        ("first, to a NodePort", first(f.client, 9, f.node, 30053, UDP), Fragment),
        ("first, to a SNAT port", first(f.other, 9, f.snat, 40000, TCP), Fragment),
        ("first, from a nat backend", first(f.backend, 5353, f.client, 9, UDP), Fragment),
        ("first, of a ping to an owned vip", echo, Fragment),
        ("first, without its ports", short, Malformed),
        ("whole, with a fragment header", fragment(f.client, f.vip, UDP, 0, false, &transport(9, 53)), Vip),
        ("later, to a vip", later(f.client, f.vip, UDP), Fragment),
        ("later, to a vip, other protocol", later(f.client, f.vip, 47), NotOurs),
        ("later, to a vip, icmp", later(f.client, f.vip, f.icmp), Fragment),
        ("later, to an owned address without a service", later(f.client, f.bare, UDP), NotOurs),
        ("later, to an owned address without a service, icmp", later(f.client, f.bare, f.icmp), Fragment),
        ("later, to a backend, icmp", later(f.client, f.backend, f.icmp), NotOurs),
        ("later, to another host, icmp", later(f.client, f.other, f.icmp), NotOurs),
        ("later, to a SNAT address", later(f.other, f.snat, TCP), Fragment),
        ("later, from a nat backend", later(f.backend, f.client, UDP), Fragment),
        ("later, from a nat backend, other protocol", later(f.backend, f.client, SCTP), NotOurs),
        ("later, from a nat backend to the node", later(f.backend, f.node, UDP), NotOurs),
        ("later, to the node", later(f.client, f.node, UDP), NotOurs),
        ("later, to a service on a node's address", later(f.client, f.node_vip, UDP), NotOurs),
        ("later, between strangers", later(f.client, f.other, UDP), NotOurs),
    ]
    .into_iter()
    .map(|(name, packet, want)| (format!("fragment: {name}"), packet, want))
    .collect()
}

fn rows(f: &Family) -> Vec<Row> {
    [transport_rows(f), icmp_rows(f), fragment_rows(f)].concat()
}

fn v4(addr: IpAddr) -> Ipv4Addr {
    match addr {
        IpAddr::V4(v4) => v4,
        IpAddr::V6(_) => panic!("IPv4"),
    }
}

fn v6(addr: IpAddr) -> Ipv6Addr {
    match addr {
        IpAddr::V6(v6) => v6,
        IpAddr::V4(_) => panic!("IPv6"),
    }
}

#[test]
fn every_rule_holds_in_both_families_and_behind_vlan_tags() {
    if !enter_namespace("rules") {
        return;
    }
    let mut bench = Bench::patient(&ours());
    for family in [V4, V6] {
        for (name, packet, want) in rows(&family) {
            for tags in [&[][..], &[100], &[100, 0], &[7, 8]] {
                let got = bench.judge(&tagged(tags, &packet));
                assert_eq!(got, want, "{name}, client {}, tags {tags:?}", family.client);
            }
            assert_eq!(bench.judge(&tagged(&[1, 2, 3], &packet)), NotOurs, "{name}, three tags");
        }
    }
}

#[test]
fn ipv4_options_are_skipped_and_bad_headers_left_to_the_kernel() {
    if !enter_namespace("IPv4 headers") {
        return;
    }
    let mut bench = Bench::patient(&ours());
    let (client, vip) = (v4(V4.client), v4(V4.vip));
    for options in [4, 8, 40] {
        let packet = ipv4(client, vip, TCP, &transport(9, 80), |header| {
            header.options = Ipv4Options::try_from(vec![1u8; options].as_slice()).unwrap();
        });
        assert_eq!(bench.judge(&framed(&packet)), Vip, "{options} bytes of options");
        let mut quoting = ip_packet(V4.client, V4.vip, ICMP, &icmp(3, &[]));
        let quoted = ipv4(vip, client, TCP, &transport(80, 9), |header| {
            header.options = Ipv4Options::try_from(vec![1u8; options].as_slice()).unwrap();
        });
        let length = u16::try_from(quoting.len() + quoted.len()).unwrap();
        quoting[2..4].copy_from_slice(&length.to_be_bytes());
        quoting.extend(quoted);
        assert_eq!(bench.judge(&framed(&quoting)), IcmpError, "{options} bytes of options, quoted");
    }
    let good = ip_packet(V4.client, V4.vip, TCP, &transport(9, 80));
    for (name, at, bytes) in [
        ("version 6 under IPv4's EtherType", 0, vec![0x65]),
        ("version 0", 0, vec![0x05]),
        ("header shorter than a header", 0, vec![0x44]),
        ("header longer than the packet", 0, vec![0x4f]),
        ("total length 0", 2, vec![0, 0]),
        ("total length of the header alone", 2, vec![0, 20]),
        ("total length without the ports", 2, vec![0, 23]),
    ] {
        let mut packet = good.clone();
        packet[at..at + bytes.len()].copy_from_slice(&bytes);
        assert_eq!(bench.judge(&ethernet(&[], &packet, EtherType::IPV4)), Malformed, "{name}");
    }
}

/// Extension headers in front of a TCP header: kind and length in bytes of each.
fn extended(kinds: &[(u8, usize)], change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut payload = Vec::new();
    for (position, (kind, length)) in kinds.iter().enumerate() {
        let next = kinds.get(position + 1).map_or(TCP, |(kind, _)| *kind);
        let mut header = vec![0; *length];
        header[0] = next;
        header[1] = match *kind {
            44 => 0,
            51 => u8::try_from(length / 4 - 2).unwrap(),
            _ => u8::try_from(length / 8 - 1).unwrap(),
        };
        payload.extend(header);
    }
    payload.extend(transport(9, 80));
    change(&mut payload);
    let first = kinds.first().map_or(TCP, |(kind, _)| *kind);
    ipv6(v6(V6.client), v6(V6.vip), first, &payload)
}

#[test]
fn ipv6_extension_headers_are_followed_up_to_the_limit() {
    if !enter_namespace("IPv6 headers") {
        return;
    }
    let mut bench = Bench::patient(&ours());
    let (hop, routing, atomic, auth, dest) = ((0, 8), (43, 24), (44, 8), (51, 24), (60, 16));
    for (name, kinds, want) in [
        ("hop-by-hop", vec![hop], Vip),
        ("routing, at its last segment", vec![routing], Vip),
        ("authentication", vec![auth], Vip),
        ("destination options of 264 bytes", vec![(60, 264)], Vip),
        ("all kinds", vec![hop, dest, routing, atomic, auth, dest], Vip),
        ("eight", vec![dest; 8], Vip),
        ("nine", vec![dest; 9], NotOurs),
        ("encrypted", vec![(50, 8)], NotOurs),
    ] {
        assert_eq!(bench.judge(&framed(&extended(&kinds, |_| ()))), want, "{name}");
    }
    let on_its_way = extended(&[routing], |payload| payload[3] = 1);
    assert_eq!(bench.judge(&framed(&on_its_way)), NotOurs, "segments left");
    let too_long = extended(&[dest], |payload| payload[1] = 255);
    assert_eq!(bench.judge(&framed(&too_long)), Malformed, "longer than the packet");
    let fragmented = extended(&[hop, atomic, dest], |payload| payload[8 + 3] = 1);
    assert_eq!(bench.judge(&framed(&fragmented)), Fragment, "first fragment behind a hop-by-hop header");
    let later = extended(&[atomic], |payload| payload[3] = 8);
    assert_eq!(bench.judge(&framed(&later)), Fragment, "later fragment");

    let unfollowed = extended(&[atomic, dest], |payload| {
        payload[3] = 8;
        payload[8] = UDP;
    });
    assert_eq!(bench.judge(&framed(&unfollowed)), NotOurs, "what follows a later fragment's header is data");

    for (name, length) in [("cuts the extension", 8), ("leaves the ports out", 19)] {
        let mut packet = extended(&[dest], |_| ());
        packet[4..6].copy_from_slice(&u16::to_be_bytes(length));
        assert_eq!(bench.judge(&framed(&packet)), Malformed, "payload length {name}");
    }

    let mut version = extended(&[], |_| ());
    version[0] = 0x45;
    assert_eq!(bench.judge(&ethernet(&[], &version, EtherType::IPV6)), Malformed, "version 4");
    let mut empty = extended(&[], |_| ());
    empty[5] = 3;
    assert_eq!(bench.judge(&framed(&empty)), Malformed, "payload length without the ports");
}

#[test]
fn owned_addresses_are_answered_for() {
    if !enter_namespace("owned addresses") {
        return;
    }
    let mut bench = Bench::patient(&ours());
    for (name, frame, want) in [
        ("request for an owned vip", arp(1, v4(V4.vip)), Owned),
        ("request for an owned SNAT address", arp(1, v4(V4.snat)), Owned),
        ("request for the node", arp(1, v4(V4.node)), NotOurs),
        ("request for another host", arp(1, v4(V4.other)), NotOurs),
        ("reply", arp(2, v4(V4.vip)), NotOurs),
        ("request cut short", arp(1, v4(V4.vip))[..41].to_vec(), Malformed),
    ] {
        assert_eq!(bench.judge(&frame), want, "ARP {name}");
    }
    let token_ring = {
        let mut frame = arp(1, v4(V4.vip));
        frame[15] = 6;
        frame
    };
    assert_eq!(bench.judge(&token_ring), NotOurs, "ARP of another link layer");

    let group = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00, 1);
    for (name, dst, target, want) in [
        ("for an owned vip", group, V6.vip, Owned),
        ("for an owned vip, unicast", v6(V6.vip), V6.vip, Owned),
        ("for the node", group, V6.node, NotOurs),
        ("for another host", group, V6.other, NotOurs),
    ] {
        let message = icmp(135, &v6(target).octets());
        let packet = ipv6(v6(V6.client), dst, ICMPV6, &message);
        assert_eq!(bench.judge(&framed(&packet)), want, "solicitation {name}");
    }
}

#[test]
fn no_truncation_is_handed_over_wrongly() {
    if !enter_namespace("truncation") {
        return;
    }
    let mut bench = Bench::patient(&ours());
    for family in [V4, V6] {
        for (name, packet, want) in rows(&family) {
            let frame = tagged(&[100, 200], &packet);
            for length in 14..=frame.len() {
                let got = bench.judge(&frame[..length]);
                let fits = got == want || got == Malformed || got == NotOurs;
                assert!(fits, "{name}, client {}: {got:?} at {length} of {}", family.client, frame.len());
            }
        }
    }
}

#[test]
fn a_frame_is_ours_as_soon_as_what_decides_is_there() {
    if !enter_namespace("thresholds") {
        return;
    }
    let mut bench = Bench::patient(&ours());
    for (family, header) in [(V4, 20), (V6, 40)] {
        let quoted = ip_packet(family.vip, family.client, TCP, &transport(80, 9));
        let error = icmp(family.errors[0], &quoted);
        let ports = transport(9, 80);
        for (name, packet, want, needed) in [
            ("ports", ip_packet(family.client, family.vip, TCP, &ports), Vip, header + 4),
            (
                "echo",
                ip_packet(family.client, family.vip, family.icmp, &icmp(family.echo_request, &[0; 8])),
                Owned,
                header + 8,
            ),
            (
                "error",
                ip_packet(family.client, family.vip, family.icmp, &error),
                IcmpError,
                header + 8 + header + 4,
            ),
            (
                "later fragment",
                fragment(family.client, family.vip, UDP, 9, false, &ports),
                Fragment,
                if header == 20 { 20 } else { 44 },
            ),
        ] {
            for tags in [&[][..], &[5], &[5, 6]] {
                let frame = tagged(tags, &packet);
                let start = 14 + 4 * tags.len();
                for length in 14..=frame.len() {
                    let want = if length < start + needed { Malformed } else { want };
                    assert_eq!(bench.judge(&frame[..length]), want, "{name}, {length} bytes, tags {tags:?}");
                }
            }
        }
    }
}

#[test]
fn other_traffic_is_the_kernels() {
    if !enter_namespace("other traffic") {
        return;
    }
    let mut bench = Bench::patient(&ours());
    for (name, kind) in
        [("LLDP", 0x88cc), ("MPLS", 0x8847), ("PPPoE", 0x8864), ("802.3 length", 46), ("RARP", 0x8035)]
    {
        assert_eq!(bench.judge(&ethernet(&[], &[0x45; 60], EtherType(kind))), NotOurs, "{name}");
    }
    shift(&mut bench.xdp, &ours(), &Ours::default());
    for (name, packet, _) in rows(&V4).into_iter().chain(rows(&V6)) {
        let got = bench.judge(&framed(&packet));
        assert!(matches!(got, NotOurs | Malformed), "{name}: {got:?}");
    }
}
