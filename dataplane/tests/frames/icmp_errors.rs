//! ICMP errors about translated flows, both ways.

use dataplane::flow::key::{FlowKey, TCP};
use dataplane::frame::Frame;
use dataplane::ids::PortId;
use dataplane::packet::{Kind, Packet, parse};
use dataplane::rewrite::icmp::translate;
use dataplane::verdict::DropReason;

use crate::model;
use crate::samples::*;

/// Translates `frame`: from the VIP, to the client, quoting `tuple`.
fn translated(
    frame: &[u8],
    src: Option<u128>,
    dst: u128,
    tuple: &FlowKey,
    less: u16,
) -> Result<Vec<u8>, DropReason> {
    let packet = parse(frame)?;
    let mut chunk = frame.to_vec();
    let len = chunk.len();
    translate(&mut Frame::new(&mut chunk, 0, len, PortId(0)).unwrap(), &packet, src, dst, tuple, less)?;
    Ok(chunk)
}

/// `packet` as translation to the backend leaves it: the quote that a router behind Weir sends back.
fn towards_backend(frame: &[u8], v6: bool) -> Vec<u8> {
    use dataplane::wire::checksum::{Delta, Sum};

    let mut frame = frame.to_vec();
    let (to, l4) = if v6 { (L3 + 24, L4_V6) } else { (L3 + 16, L4) };
    let (old, new) = if v6 { (bits6(VIP6), bits6(BACKEND6)) } else { (bits(VIP), bits(BACKEND)) };
    let dport = u16::from_be_bytes([frame[l4 + 2], frame[l4 + 3]]);
    let address = Delta::between(Sum::address(old), Sum::address(new));
    let all = address.and(Delta::between(Sum::word(dport), Sum::word(8080)));
    if v6 {
        frame[to..to + 16].copy_from_slice(&BACKEND6)
    } else {
        frame[to..to + 4].copy_from_slice(&BACKEND)
    }
    frame[l4 + 2..l4 + 4].copy_from_slice(&8080_u16.to_be_bytes());
    let tcp = if v6 { frame[L3 + 6] == 6 } else { frame[L3 + 9] == 6 };
    let mut update = |at: usize, delta: Delta| {
        let field = u16::from_be_bytes([frame[at], frame[at + 1]]);
        frame[at..at + 2].copy_from_slice(&delta.apply(field).to_be_bytes());
    };
    update(l4 + if tcp { 16 } else { 6 }, all);
    if !v6 {
        update(L3 + 10, address);
    }
    frame
}

/// However much of the packet is quoted, the client gets back byte for byte what it sent. Only half a checksum, which
/// nobody can update, stays as it was.
#[test]
fn the_client_finds_its_own_packet_in_the_error() {
    for (name, sent, v6) in [
        ("TCP", tcp(0x18, b"hello"), false),
        ("UDP", udp(b"hello"), false),
        ("TCP over IPv6", tcp6(0x18, b"hello"), true),
        ("UDP over IPv6", udp6(b"hello"), true),
    ] {
        let key = parse(&sent).unwrap().key;
        let quoted = quote(&towards_backend(&sent, v6));
        let own = quote(&sent);
        let halved = if key.proto == TCP { b"hello".len() + 3 } else { usize::MAX };
        let least = if v6 { 48 } else { 28 };
        for len in least..=quoted.len() {
            if quoted.len() - len == halved {
                continue;
            }
            let error = if v6 { error6(1, 3, 0, &quoted[..len]) } else { error(3, 1, 0, &quoted[..len]) };
            let (vip, client) = if v6 { (bits6(VIP6), bits6(CLIENT6)) } else { (bits(VIP), bits(CLIENT)) };
            let got = translated(&error, Some(vip), client, &key, 0).unwrap();
            let packet = parse(&got).unwrap();
            assert_eq!(got[usize::from(packet.l4) + 8..], own[..len], "{name}, {len} bytes quoted");
            assert_eq!((packet.kind, packet.key, packet.ttl), (Kind::IcmpError, key, 63), "{name}");
            assert_eq!(packet.outer_addresses(&got), Ok((vip, client)), "{name}");
            assert!(model::checksum_holds(&got, &packet), "{name}");
        }
    }
}

#[test]
fn a_quoted_datagram_without_checksum_keeps_none() {
    let mut quoted = quote(&udp(b"hello"));
    quoted[26..28].fill(0);
    let tuple = FlowKey { dst: 1, dport: 1, ..parse(&udp(b"hello")).unwrap().key };
    let got = translated(&error(3, 3, 0, &quoted), None, 2, &tuple, 0).unwrap();
    assert_eq!(got[L4 + 8 + 26..L4 + 8 + 28], [0, 0]);
    assert_eq!(parse(&got).unwrap().outer_addresses(&got), Ok((bits(CLIENT), 2)), "the sender stays");
}

#[test]
fn the_overhead_comes_off_the_mtu() {
    let [v4, v6] = [tcp(0x18, b"hello"), tcp6(0x18, b"hello")];
    let keys = [&v4, &v6].map(|frame| parse(frame).unwrap().key);
    for (name, reported, less, want) in [
        ("none", 1400, 0, [1400, 1400]),
        ("some", 1400, 40, [1360, 1360]),
        ("down to the least", 1300, 1000, [576, 1280]),
        ("less than the least is believed", 500, 40, [500, 500]),
        ("unknown stays unknown", 0, 40, [0, 0]),
    ] {
        let got = translated(&error(3, 4, reported, &quote(&v4)), None, 1, &keys[0], less).unwrap();
        assert_eq!(u16::from_be_bytes([got[L4 + 6], got[L4 + 7]]), want[0], "{name}");
        let got = translated(&error6(2, 0, reported, &quote(&v6)), None, 1, &keys[1], less).unwrap();
        assert_eq!(u16::from_be_bytes([got[L4_V6 + 6], got[L4_V6 + 7]]), want[1], "{name}, IPv6");
    }
    let got = translated(&error(3, 1, 1400, &quote(&v4)), None, 1, &keys[0], 40).unwrap();
    assert_eq!(got[L4 + 4..L4 + 8], 1400_u32.to_be_bytes(), "only where the error reports an MTU");
}

#[test]
fn what_cannot_be_translated_is_refused() {
    let key = parse(&udp(b"hello")).unwrap().key;
    let about = error(3, 3, 0, &quote(&udp(b"hello")));
    let at_its_end = edit(about.clone(), |bytes| bytes[L3 + 8] = 1);
    let other_family = FlowKey { v6: true, ..key };
    let other_protocol = FlowKey { proto: 6, ..key };
    for (name, frame, tuple, want) in [
        ("the last hop", at_its_end, key, DropReason::TtlExceeded),
        ("a tuple of the other family", about.clone(), other_family, DropReason::Unsupported),
        ("a tuple of another protocol", about, other_protocol, DropReason::Unsupported),
    ] {
        assert_eq!(translated(&frame, None, 1, &tuple, 0), Err(want), "{name}");
    }
    let mut datagram = udp(b"hello");
    let len = datagram.len();
    let packet: Packet = parse(&datagram).unwrap();
    let mut frame = Frame::new(&mut datagram, 0, len, PortId(0)).unwrap();
    assert!(translate(&mut frame, &packet, None, 1, &key, 0).is_err(), "no ICMP error at all");
}
