//! What has to hold for packets that leave inside others, or in the other IP version.

use std::net::IpAddr;

use super::judge::{fits, verifies};
use super::{Arrival, Outcome};
use crate::flow::entry::{Tuple, Way};
use crate::flow::extra::Extra;
use crate::flow::key::{FlowKey, TCP, UDP, bits};
use crate::frame::Checksum;
use crate::packet::{Kind, Packet, parse};
use crate::pipeline::fixture::GUE_PORT;
use crate::snapshot::net::Hop;
use crate::snapshot::{Mode, Snapshot, TunnelChecksum};
use crate::verdict::Verdict;
use crate::wire::checksum::{Sum, complete, is_partial};
use crate::wire::tcp::SYN;

/// The path towards `target`, where what is sent has to go: its hop, the largest packet, and Weir's own address.
fn path(tables: &Snapshot, target: IpAddr, outcome: &Outcome) -> (Hop, u16, Option<IpAddr>) {
    let (id, path) = tables.net.way_to(target, 0).expect("what is sent has a way to go");
    let hop = tables.net.hop(id).expect("what is sent has a next hop");
    assert_eq!(outcome.verdict, Verdict::Tx(hop.port));
    assert_eq!(outcome.bytes[..hop.header.len()], hop.header[..], "layer-2 header");
    (hop.clone(), path.mtu.unwrap_or(hop.mtu).min(hop.mtu), path.source)
}

/// A packet that left through a tunnel: inside is the one that came, with one hop less.
pub(super) fn tunnelled(
    tables: &Snapshot,
    (tuple, mode, extra): (&Tuple, Mode, &Extra),
    (arrival, before): (&Arrival, &Packet),
    outcome: &Outcome,
) {
    let backend = tuple.reply.source();
    let (hop, mtu, source) = path(tables, backend, outcome);
    assert_eq!(outcome.checksum, Checksum::Complete);
    let (ethertype, packet) = outcome.bytes[hop.header.len()..].split_at(2);
    fits(outcome, packet.len(), mtu);
    let v6 = backend.is_ipv6();
    assert_eq!(ethertype, if v6 { [0x86, 0xdd] } else { [8, 0] });
    let ends = [source.expect("a tunnel begins somewhere"), backend].map(|addr| bits(addr).0);
    let (protocol, payload) = outer(packet, v6, ends);
    let unfinished = before.kind == Kind::Transport
        && tables.net.leaves_checksums(arrival.port)
        && is_partial(field(&arrival.bytes, before), pseudo_header(before));
    let inner_protocol = if before.key.v6 { 41 } else { 4 };
    let mut inner = match mode {
        Mode::Gue => in_gue(protocol, payload, ends, inner_protocol, extra.tunnel.checksum),
        Mode::Gre => in_gre(protocol, payload, before.key.v6, extra.tunnel.checksum),
        _ => {
            assert_eq!(protocol, inner_protocol);
            payload.to_vec()
        }
    };
    let mut came = arrival.bytes[before.l3.into()..before.end.into()].to_vec();
    if before.key.v6 {
        came[7] -= 1;
    } else {
        came[8] -= 1;
        came[10..12].fill(0);
        let header = usize::from(came[0] & 15) * 4;
        let checksum = Sum::of(&came[..header]).checksum();
        came[10..12].copy_from_slice(&checksum.to_be_bytes());
        assert!(Sum::of(&inner[..header]).verifies(), "inner header checksum");
        inner[10..12].copy_from_slice(&checksum.to_be_bytes());
    }
    if unfinished {
        let l4 = usize::from(before.l4 - before.l3);
        let sum = pseudo_header(before) + Sum::of(&inner[l4..]);
        assert!(sum.verifies(), "finished");
        let at = l4 + if before.key.proto == TCP { 16 } else { 6 };
        came[at..at + 2].copy_from_slice(&inner[at..at + 2]);
    }
    assert_eq!(inner, came, "what went into the tunnel");
}

/// Protocol and payload of an outer header.
fn outer(packet: &[u8], v6: bool, [src, dst]: [u128; 2]) -> (u8, &[u8]) {
    if v6 {
        assert_eq!(packet[0] >> 4, 6);
        assert_eq!(usize::from(u16::from_be_bytes([packet[4], packet[5]])), packet.len() - 40);
        assert_eq!(packet[8..40], [src.to_be_bytes(), dst.to_be_bytes()].concat());
        return (packet[6], &packet[40..]);
    }
    assert_eq!(packet[0], 0x45);
    assert_eq!(usize::from(u16::from_be_bytes([packet[2], packet[3]])), packet.len());
    assert!(Sum::of(&packet[..20]).verifies(), "outer header checksum");
    assert_eq!(packet[12..20], [&src.to_be_bytes()[12..], &dst.to_be_bytes()[12..]].concat());
    (packet[9], &packet[20..])
}

fn in_gue(
    protocol: u8,
    datagram: &[u8],
    [src, dst]: [u128; 2],
    inner: u8,
    checksum: TunnelChecksum,
) -> Vec<u8> {
    assert_eq!((protocol, &datagram[2..4]), (UDP, &GUE_PORT.to_be_bytes()[..]));
    let len = u16::from_be_bytes([datagram[4], datagram[5]]);
    assert_eq!(usize::from(len), datagram.len());
    if checksum == TunnelChecksum::None {
        assert_eq!(datagram[6..8], [0, 0]);
    } else {
        assert!((Sum::pseudo_header(src, dst, UDP, len) + Sum::of(datagram)).verifies(), "outer checksum");
    }
    let (header, payload) = datagram[8..].split_at(4 + usize::from(datagram[8] & 31) * 4);
    assert_eq!((header[0] >> 5, header[1]), (0, inner));
    let mut payload = payload.to_vec();
    if header.len() > 4 {
        assert_eq!((checksum, header.len()), (TunnelChecksum::Remote, 12));
        assert_eq!(header[2..8], [0, 1, 0x80, 0, 0, 0]);
        let [start, field] = [[header[8], header[9]], [header[10], header[11]]].map(u16::from_be_bytes);
        let finished = Sum::of(&payload[start.into()..]).udp_checksum();
        payload[usize::from(field)..][..2].copy_from_slice(&finished.to_be_bytes());
    }
    payload
}

fn in_gre(protocol: u8, payload: &[u8], v6: bool, checksum: TunnelChecksum) -> Vec<u8> {
    let full = checksum == TunnelChecksum::Full;
    assert_eq!((protocol, payload[0]), (47, if full { 0x80 } else { 0 }));
    assert_eq!(payload[2..4], if v6 { [0x86, 0xdd] } else { [8, 0] });
    assert!(!full || Sum::of(payload).verifies(), "outer checksum");
    payload[if full { 8 } else { 4 }..].to_vec()
}

/// A packet that left in the other IP version.
pub(super) fn crossed(
    tables: &Snapshot,
    (tuple, way): (&Tuple, Way),
    (arrival, before): (&Arrival, &Packet),
    outcome: &Outcome,
) {
    let after = parse(&outcome.bytes).expect("what is sent can be parsed");
    let is_error = before.kind == Kind::IcmpError;
    let seen = if is_error { after.key.reversed() } else { after.key };
    let wanted = tuple.translated(way);
    assert_eq!((after.kind, after.ttl, seen), (before.kind, before.ttl - 1, wanted), "translation");
    let (_, mtu, _) = path(tables, wanted.destination(), outcome);
    fits(outcome, (after.end - after.l3).into(), mtu);
    assert_eq!((outcome.checksum, outcome.split), (Checksum::Complete, None));
    assert_eq!(usize::from(after.end), outcome.bytes.len() - padding(arrival, before, is_error));
    if is_error {
        assert!(verifies(&outcome.bytes, &after), "ICMP checksum");
        return;
    }
    assert_eq!((after.tcp_flags, after.end - after.l4), (before.tcp_flags, before.end - before.l4));
    let ip_len = if wanted.v6 { 40 } else { 20 };
    assert_eq!(after.l4 - after.l3, ip_len, "no options and no extensions");
    let from = if before.key.proto == TCP { 20 } else { 8 };
    assert_eq!(
        outcome.bytes[usize::from(after.l4) + from..after.end.into()],
        arrival.bytes[usize::from(before.l4) + from..before.end.into()],
        "payload"
    );
    checksum(tables, (arrival, before), (outcome, &after));
}

/// A packet of a flow whose segments are renumbered, and whose backend may be told of the client.
pub(super) fn shaped(
    tables: &Snapshot,
    (tuple, way): (&Tuple, Way),
    (arrival, before): (&Arrival, &Packet),
    outcome: &Outcome,
) {
    let after = parse(&outcome.bytes).expect("what is sent can be parsed");
    let is_error = before.kind == Kind::IcmpError;
    let seen = if is_error { after.key.reversed() } else { after.key };
    let wanted = tuple.translated(way);
    assert_eq!((after.kind, after.ttl, seen), (before.kind, before.ttl - 1, wanted), "translation");
    let (_, mtu, _) = path(tables, wanted.destination(), outcome);
    fits(outcome, (after.end - after.l3).into(), mtu);
    if is_error {
        assert!(verifies(&outcome.bytes, &after), "ICMP checksum");
        return;
    }
    let longer = i32::from(after.end - after.l4) - i32::from(before.end - before.l4);
    let is_remade = before.tcp_flags & SYN == 0 && after.tcp_flags == SYN;
    assert!(longer <= 52 + 20, "more than a header and an option");
    assert!(way == Way::Forward || longer == 0, "the client is told nothing");
    let is_finished = outcome.split.is_some()
        && before.kind == Kind::Transport
        && tables.net.leaves_checksums(arrival.port)
        && is_partial(field(&arrival.bytes, before), pseudo_header(before));
    if let Checksum::Partial { offset, .. } = outcome.checksum {
        let mut finished = outcome.bytes.clone();
        let range = after.l4.into()..after.end.into();
        assert!(complete(&mut finished[range], offset.into()) && verifies(&finished, &after), "partial");
    } else if is_remade || is_finished {
        assert!(verifies(&outcome.bytes, &after), "checksum of a segment made anew");
    } else if before.key.proto == UDP && field(&arrival.bytes, before) == 0 {
        let is_whole = before.kind == Kind::Transport && udp_len(arrival, before) == before.end - before.l4;
        assert!(!is_whole || before.key.v6 || verifies(&outcome.bytes, &after), "a checksum is made");
    } else if wanted.v6 == before.key.v6 {
        assert_eq!(verifies(&outcome.bytes, &after), verifies(&arrival.bytes, before), "checksum");
    }
}

fn checksum(
    tables: &Snapshot,
    (arrival, before): (&Arrival, &Packet),
    (outcome, after): (&Outcome, &Packet),
) {
    let (was, is) = (field(&arrival.bytes, before), field(&outcome.bytes, after));
    let is_udp = before.key.proto == UDP;
    let unfinished = tables.net.leaves_checksums(arrival.port) && is_partial(was, pseudo_header(before));
    if unfinished {
        assert!(verifies(&outcome.bytes, after), "a partial checksum is finished");
    } else if is_udp && was == 0 {
        let len = udp_len(arrival, before);
        assert_ne!(is, 0, "a missing checksum is computed");
        assert!(len != before.end - before.l4 || verifies(&outcome.bytes, after));
    } else {
        assert_eq!(verifies(&outcome.bytes, after), verifies(&arrival.bytes, before), "{was:#x} to {is:#x}");
    }
}

/// What a UDP datagram says of its own length.
fn udp_len(arrival: &Arrival, before: &Packet) -> u16 {
    let at = usize::from(before.l4) + 4;
    u16::from_be_bytes([arrival.bytes[at], arrival.bytes[at + 1]])
}

/// Bytes behind the packet, which an error loses.
fn padding(arrival: &Arrival, before: &Packet, is_error: bool) -> usize {
    if is_error { 0 } else { arrival.bytes.len() - usize::from(before.end) }
}

/// The checksum field of a TCP segment or UDP datagram.
fn field(bytes: &[u8], packet: &Packet) -> u16 {
    let at = usize::from(packet.l4) + if packet.key.proto == TCP { 16 } else { 6 };
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn pseudo_header(packet: &Packet) -> Sum {
    let FlowKey { src, dst, proto, .. } = packet.key;
    Sum::pseudo_header(src, dst, proto, packet.end - packet.l4)
}
