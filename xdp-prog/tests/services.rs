//! Services that have no port of their own, and tunnels: every port of an address, rules that give marks, what ICMP
//! errors quote of them and their fragments. Run by the kernel as in `rules.rs`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(clippy::indexing_slicing, reason = "a test fails by panicking")]

mod support;

use std::net::IpAddr;

use support::{
    Bench, ICMP, ICMPV6, SCTP, TCP, UDP, enter_namespace, fragment, framed, icmp, ip_packet, transport,
    veth_pair,
};
use xdp_prog::Counter::{self, *};
use xdp_prog::{Endpoint, Ours, Proto, Rule};

/// Addresses of one family.
struct Family {
    client: &'static str,
    /// TCP on every port; UDP 53.
    vip: &'static str,
    /// Replies over TCP from every port, over UDP from 53.
    backend: &'static str,
    /// Its TCP 443 and 8000 to 8999 bear a mark.
    marked: &'static str,
    /// In the same block: bears none.
    spared: &'static str,
    /// Backends behind tunnels: without and with a UDP port, 6080.
    tunnel: &'static str,
    gue: &'static str,
    /// Weir's own.
    own: &'static str,
    icmp: u8,
    too_big: u8,
}

const V4: Family = Family {
    client: "192.0.2.10",
    vip: "198.51.100.1",
    backend: "10.1.0.2",
    marked: "203.0.113.7",
    spared: "203.0.113.200",
    tunnel: "10.2.0.1",
    gue: "10.2.0.2",
    own: "10.2.0.254",
    icmp: ICMP,
    too_big: 3,
};

const V6: Family = Family {
    client: "2001:db8:1::10",
    vip: "2001:db8:2::1",
    backend: "fd00:1::2",
    marked: "2001:db8:3::7",
    spared: "2001:db8:3::c8",
    tunnel: "fd00:2::1",
    gue: "fd00:2::2",
    own: "fd00:2::fe",
    icmp: ICMPV6,
    too_big: 2,
};

fn addr(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn rule(dst: (&str, u8), dports: std::ops::RangeInclusive<u16>) -> Rule {
    Rule {
        src: None,
        dst: Some((addr(dst.0), dst.1)),
        protos: vec![Proto::Tcp],
        dports,
        sports: 0..=u16::MAX,
        port: None,
        ours: [true; 2],
    }
}

fn ours() -> Ours {
    let mut ours = Ours::default();
    for (f, length) in [(&V4, [24, 25]), (&V6, [120, 121])] {
        let endpoint = |at, port, proto| Endpoint { addr: addr(at), port, proto };
        ours.vips.extend([endpoint(f.vip, 0, Proto::Tcp), endpoint(f.vip, 53, Proto::Udp)]);
        ours.nat_backends.extend([endpoint(f.backend, 0, Proto::Tcp), endpoint(f.backend, 53, Proto::Udp)]);
        ours.tunnels.extend([(addr(f.tunnel), 0), (addr(f.gue), 6080)]);
        // The upper half of the block has a mark that no service has.
        let upper = Rule { ours: [false; 2], ..rule((f.spared, length[1]), 0..=u16::MAX) };
        let block = (f.marked, length[0]);
        ours.rules.extend([upper, rule(block, 443..=443), rule(block, 8000..=8999)]);
    }
    ours
}

fn check(bench: &mut Bench, rows: Vec<(&str, Vec<u8>, Counter)>, client: &str) {
    for (name, packet, want) in rows {
        assert_eq!(bench.judge(&framed(&packet)), want, "{name}, client {client}");
    }
}

fn packet(src: &str, sport: u16, dst: &str, dport: u16, proto: u8) -> Vec<u8> {
    ip_packet(addr(src), addr(dst), proto, &transport(sport, dport))
}

/// An ICMP error to `dst` about a packet, of whose transport header it has 8 bytes.
fn error(f: &Family, dst: &str, quoted: &[u8]) -> Vec<u8> {
    let quoted = &quoted[..quoted.len() - 12];
    ip_packet(addr(f.client), addr(dst), f.icmp, &icmp(f.too_big, quoted))
}

#[test]
fn a_service_on_every_port_has_its_protocol_alone() {
    if !enter_namespace("every port") {
        return;
    }
    let mut bench = Bench::patient(&ours());
    for f in [&V4, &V6] {
        let later = |src, dst, proto| fragment(addr(src), addr(dst), proto, 185, false, &transport(80, 80));
        let rows = vec![
            ("tcp to a port", packet(f.client, 9, f.vip, 80, TCP), Vip),
            ("tcp to another", packet(f.client, 9, f.vip, 65535, TCP), Vip),
            ("udp to the port of a service", packet(f.client, 9, f.vip, 53, UDP), Vip),
            ("udp to another", packet(f.client, 9, f.vip, 54, UDP), NotOurs),
            ("sctp", packet(f.client, 9, f.vip, 80, SCTP), NotOurs),
            ("tcp reply from a port", packet(f.backend, 80, f.client, 9, TCP), NatReply),
            ("tcp reply from another", packet(f.backend, 1, f.client, 9, TCP), NatReply),
            ("udp reply", packet(f.backend, 53, f.client, 9, UDP), NatReply),
            ("udp from another port", packet(f.backend, 54, f.client, 9, UDP), NotOurs),
            ("later fragment to it", later(f.client, f.vip, TCP), Fragment),
            ("later fragment from the backend", later(f.backend, f.client, TCP), Fragment),
            ("error about a reply", error(f, f.vip, &packet(f.vip, 80, f.client, 9, TCP)), IcmpError),
            (
                "error about a packet to the backend",
                { error(f, f.client, &packet(f.client, 9, f.backend, 80, TCP)) },
                IcmpError,
            ),
            (
                "error about another protocol",
                { error(f, f.client, &packet(f.client, 9, f.backend, 80, SCTP)) },
                NotOurs,
            ),
        ];
        check(&mut bench, rows, f.client);
    }
}

#[test]
fn rules_that_give_the_mark_of_a_service_are_tried_in_order() {
    if !enter_namespace("marks") {
        return;
    }
    let mut bench = Bench::patient(&ours());
    for f in [&V4, &V6] {
        let later = |dst, proto| fragment(addr(f.client), addr(dst), proto, 185, false, &transport(80, 80));
        let first = fragment(addr(f.client), addr(f.marked), TCP, 0, true, &transport(9, 443));
        let rows = vec![
            ("a port", packet(f.client, 9, f.marked, 443, TCP), Marked),
            ("first port of a range", packet(f.client, 9, f.marked, 8000, TCP), Marked),
            ("last port of a range", packet(f.client, 9, f.marked, 8999, TCP), Marked),
            ("port behind a range", packet(f.client, 9, f.marked, 9000, TCP), NotOurs),
            ("another protocol", packet(f.client, 9, f.marked, 443, UDP), NotOurs),
            ("outside of the block", packet(f.client, 9, f.own, 443, TCP), NotOurs),
            ("an earlier rule's", packet(f.client, 9, f.spared, 443, TCP), NotOurs),
            ("first fragment", first, Fragment),
            ("later fragment", later(f.marked, TCP), Fragment),
            ("later fragment of another protocol", later(f.marked, UDP), NotOurs),
            ("error about a reply", error(f, f.marked, &packet(f.marked, 443, f.client, 9, TCP)), IcmpError),
            (
                "error about a reply of another",
                { error(f, f.marked, &packet(f.marked, 80, f.client, 9, TCP)) },
                NotOurs,
            ),
        ];
        check(&mut bench, rows, f.client);
    }
}

#[test]
fn a_network_of_virtual_addresses_is_taken_but_for_addresses_that_are_left_out() {
    if !enter_namespace("virtual networks") {
        return;
    }
    let mut ours = Ours::default();
    for (f, [node, snat, nobodys], [host, short]) in [
        (&V4, ["198.51.100.5", "198.51.100.9", "198.51.100.77"], [32, 24]),
        (&V6, ["2001:db8:2::5", "2001:db8:2::9", "2001:db8:2::77"], [128, 112]),
    ] {
        ours.vips.insert(Endpoint { addr: addr(f.vip), port: 80, proto: Proto::Tcp });
        ours.node_addresses.insert(addr(node));
        ours.node_ports.insert((Proto::Tcp, 30080));
        ours.snat.insert(addr(snat), 40000..=49999);
        let all = |dst, ours| Rule {
            protos: vec![Proto::Tcp, Proto::Udp, Proto::Sctp],
            ours: [ours; 2],
            ..rule(dst, 0..=u16::MAX)
        };
        ours.rules.extend([all((node, host), false), all((snat, host), false), all((nobodys, short), true)]);
    }
    let mut bench = Bench::patient(&ours);
    for (f, [node, snat, nobodys]) in [
        (&V4, ["198.51.100.5", "198.51.100.9", "198.51.100.77"]),
        (&V6, ["2001:db8:2::5", "2001:db8:2::9", "2001:db8:2::77"]),
    ] {
        let later = |dst, proto| fragment(addr(f.client), addr(dst), proto, 185, false, &transport(80, 80));
        let rows = vec![
            ("a service", packet(f.client, 9, f.vip, 80, TCP), Vip),
            ("its address, no such port", packet(f.client, 9, f.vip, 81, TCP), Marked),
            ("its address, another protocol", packet(f.client, 9, f.vip, 80, UDP), Marked),
            ("nobody's address", packet(f.client, 9, nobodys, 80, SCTP), Marked),
            ("nobody's address, another IP protocol", packet(f.client, 9, nobodys, 80, 47), NotOurs),
            ("a node port", packet(f.client, 9, node, 30080, TCP), NodePort),
            ("ssh to the node", packet(f.client, 9, node, 22, TCP), NotOurs),
            ("a SNAT port", packet(f.client, 9, snat, 40000, TCP), Snat),
            ("beside the SNAT ports", packet(f.client, 9, snat, 80, TCP), NotOurs),
            ("from there", packet(nobodys, 9, f.client, 80, TCP), NotOurs),
            ("later fragment", later(nobodys, UDP), Fragment),
            ("later fragment to the node", later(node, UDP), NotOurs),
            ("error about a reply", error(f, f.vip, &packet(f.vip, 80, f.client, 9, TCP)), IcmpError),
        ];
        check(&mut bench, rows, f.client);
    }
}

#[test]
fn rules_look_at_source_interface_and_source_port() {
    if !enter_namespace("parts of rules") {
        return;
    }
    let narrow = Rule {
        src: Some((addr("192.0.2.0"), 24)),
        sports: 1024..=u16::MAX,
        port: Some(1),
        ..rule(("203.0.113.0", 24), 80..=80)
    };
    let sctp = Rule { dst: None, protos: vec![Proto::Sctp], ours: [true, false], ..narrow.clone() };
    let only_v4 =
        Rule { src: None, dst: None, port: None, ours: [true, false], ..rule(("0.0.0.0", 0), 81..=81) };
    let mut bench = Bench::patient(&Ours { rules: vec![narrow, sctp, only_v4], ..Ours::default() });
    let other = veth_pair("in1", "out1");
    bench.xdp.attach(1, other, false).expect("attach");
    let socket = support::xdp_socket();
    bench.xdp.register_socket(1, 0, std::os::fd::AsFd::as_fd(&socket)).expect("register");
    let first = bench.ifindex;
    for (name, packet, ifindex, want) in [
        ("all of it", packet(V4.client, 1024, V4.marked, 80, TCP), other, Marked),
        ("another interface", packet(V4.client, 1024, V4.marked, 80, TCP), first, NotOurs),
        ("another source", packet(V4.own, 1024, V4.marked, 80, TCP), other, NotOurs),
        ("another source port", packet(V4.client, 1023, V4.marked, 80, TCP), other, NotOurs),
        ("any destination", packet(V4.client, 1024, V4.vip, 80, SCTP), other, Marked),
        ("any destination, inside the block", packet(V4.client, 1024, V4.marked, 80, SCTP), other, Marked),
        ("any packet", packet(V4.own, 9, V4.vip, 81, TCP), first, Marked),
        ("any packet, of the other family", packet(V6.own, 9, V6.vip, 81, TCP), first, NotOurs),
        (
            "a quoted packet, from wherever the error comes",
            error(&V4, V4.marked, &packet(V4.marked, 80, V4.client, 1024, TCP)),
            first,
            IcmpError,
        ),
    ] {
        assert_eq!(bench.judge_at(&framed(&packet), ifindex, 0), want, "{name}");
    }
}

#[test]
fn errors_about_packets_in_tunnels_are_weirs() {
    if !enter_namespace("tunnels") {
        return;
    }
    let mut bench = Bench::patient(&ours());
    for f in [&V4, &V6] {
        let about = |dst, proto, dport| error(f, f.own, &packet(f.own, 9, dst, dport, proto));
        let rows = vec![
            ("IPv4 in IP", about(f.tunnel, 4, 0), IcmpError),
            ("IPv6 in IP", about(f.tunnel, 41, 0), IcmpError),
            ("GRE", about(f.tunnel, 47, 0), IcmpError),
            ("ESP", about(f.tunnel, 50, 0), NotOurs),
            ("UDP to a tunnel without a port", about(f.tunnel, UDP, 6080), NotOurs),
            ("UDP to a tunnel's port", about(f.gue, UDP, 6080), IcmpError),
            ("UDP to another port", about(f.gue, UDP, 53), NotOurs),
            ("TCP to a tunnel's host", about(f.gue, TCP, 6080), NotOurs),
            ("GRE to another host", about(f.client, 47, 0), NotOurs),
            ("what comes out of a tunnel", packet(f.tunnel, 9, f.own, 9, 47), NotOurs),
        ];
        check(&mut bench, rows, f.client);
    }
}
