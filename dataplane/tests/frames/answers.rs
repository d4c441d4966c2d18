//! What is sent back, field by field.

use dataplane::frame::{Checksum, Frame};
use dataplane::ids::PortId;
use dataplane::packet::{Kind, Packet, parse};
use dataplane::rewrite::answer;
use dataplane::verdict::DropReason;
use dataplane::wire::checksum::Sum;
use etherparse::{ArpOperation, NetSlice, SlicedPacket, TransportSlice};

use crate::model;
use crate::samples::*;

type Answer = fn(&mut Frame<'_>, &Packet, [u8; 6]) -> Result<(), DropReason>;

/// Answers `frame`, which has `room` bytes behind it.
fn answered(frame: &[u8], room: usize, answer: Answer) -> Result<Vec<u8>, DropReason> {
    let packet = parse(frame)?;
    let mut chunk = frame.to_vec();
    chunk.resize(frame.len() + room, 0xa5);
    let mut frame = Frame::new(&mut chunk, 0, frame.len(), PortId(0)).unwrap();
    answer(&mut frame, &packet, OWN_MAC)?;
    Ok(frame.bytes().to_vec())
}

fn too_big(frame: &mut Frame<'_>, packet: &Packet, own_mac: [u8; 6]) -> Result<(), DropReason> {
    answer::too_big(frame, packet, own_mac, 1400)
}

#[test]
fn an_arp_request_learns_the_own_mac() {
    for (asker, name) in [(CLIENT, "a host"), ([0; 4], "a probe")] {
        let mut padded = arp(ArpOperation::REQUEST, asker);
        padded.resize(60, 0);
        let reply = answered(&padded, 0, answer::arp).unwrap();
        assert_eq!(reply.len(), 42);
        assert_eq!((&reply[..6], &reply[6..12]), (&CLIENT_MAC[..], &OWN_MAC[..]), "{name}");
        let sliced = SlicedPacket::from_ethernet(&reply).unwrap();
        let Some(NetSlice::Arp(arp)) = sliced.net else { panic!("{name}") };
        assert_eq!(arp.operation(), ArpOperation::REPLY);
        assert_eq!((arp.sender_hw_addr(), arp.sender_protocol_addr()), (&OWN_MAC[..], &VIP[..]));
        assert_eq!((arp.target_hw_addr(), arp.target_protocol_addr()), (&CLIENT_MAC[..], &asker[..]));
    }
}

#[test]
fn a_solicitation_is_advertised_to_the_asker_and_a_probe_to_all() {
    let all_nodes = {
        let mut addr = [0; 16];
        (addr[0], addr[1], addr[15]) = (0xff, 2, 1);
        addr
    };
    for (name, asker, options, to, mac, flags) in [
        ("a host", CLIENT6, &SOURCE_OPTION[..], CLIENT6, CLIENT_MAC, 0x60),
        ("a probe", [0; 16], &[][..], all_nodes, [0x33, 0x33, 0, 0, 0, 1], 0x20),
    ] {
        let reply = answered(&solicitation(asker, VIP6, 255, options), 8, answer::neighbour).unwrap();
        assert_eq!((&reply[..6], &reply[6..12]), (&mac[..], &OWN_MAC[..]), "{name}");
        assert_eq!(&reply[L3 + 8..L3 + 24], VIP6, "{name}: source");
        assert_eq!(&reply[L3 + 24..L3 + 40], to, "{name}: destination");
        assert_eq!(reply[L3 + 7], 255, "{name}: hop limit");
        let message = &reply[L4_V6..];
        assert_eq!((message[0], message[1], message[4]), (136, 0, flags), "{name}");
        assert_eq!(&message[8..24], VIP6, "{name}: target");
        assert_eq!(&message[24..], [&[2, 1][..], &OWN_MAC].concat(), "{name}: target link-layer address");
        assert!(model::checksum_holds(&reply, &parse(&reply).unwrap()), "{name}");
    }
}

#[test]
fn an_echo_comes_back_without_options() {
    for (name, request, l4) in [
        ("IPv4", echo(b"ping"), L4),
        ("IPv4 with options", with_options(echo(b"ping")), L4),
        ("IPv6", echo6(b"ping"), L4_V6),
    ] {
        let reply = answered(&tagged(&request, 1), 0, answer::echo).unwrap();
        assert_eq!(reply[12..16], [0x81, 0, 0x20, 7], "{name}: tag");
        let message = &reply[l4 + 4..];
        assert_eq!(message[0], if l4 == L4 { 0 } else { 129 }, "{name}");
        assert_eq!(message[4..], *b"\0\x07\0\x09ping", "{name}: identifier, sequence number, data");
        let packet = parse(&reply).unwrap();
        assert_eq!((packet.kind, packet.ttl), (Kind::Other, 64));
        assert_eq!((packet.key.src, packet.key.dst), {
            let key = parse(&request).unwrap().key;
            (key.dst, key.src)
        });
        assert!(model::checksum_holds(&reply, &packet), "{name}");
    }
}

/// The reply to an echo request of zeros is all zeros but for its checksum, whose update would give the wrong zero.
#[test]
fn an_echo_of_zeros_has_a_right_checksum() {
    let zeros = packet_of_zeros();
    let reply = answered(&zeros, 0, answer::echo).unwrap();
    assert_eq!(reply[L4 + 2..L4 + 4], [0xff, 0xff]);
}

fn packet_of_zeros() -> Vec<u8> {
    let mut frame = echo(&[0; 8]);
    frame[L4 + 2..L4 + 8].fill(0);
    let checksum = Sum::of(&frame[L4..]).checksum();
    frame[L4 + 2..L4 + 4].copy_from_slice(&checksum.to_be_bytes());
    frame
}

#[test]
fn the_class_of_service_comes_back_with_an_echo_and_in_part_with_an_error() {
    const CLASS: u8 = 0xb9; // expedited forwarding, ECT(1)
    let classed = |frame: Vec<u8>| edit(frame, |bytes| bytes[L3 + 1] = CLASS);
    let classed6 = |mut frame: Vec<u8>| {
        (frame[L3], frame[L3 + 1]) = (0x60 | CLASS >> 4, CLASS << 4);
        frame
    };
    let reply = answered(&classed(echo(b"ping")), 0, answer::echo).unwrap();
    assert_eq!(reply[L3 + 1], CLASS);
    let reply = answered(&classed6(echo6(b"ping")), 0, answer::echo).unwrap();
    assert_eq!(reply[L3..L3 + 4], [0x60 | CLASS >> 4, CLASS << 4, 0, 0]);
    let refusal = answered(&classed(udp(b"x")), 28, answer::port_unreachable).unwrap();
    assert_eq!(refusal[L3 + 1], 0xc0 | 0x18, "internetwork control, and not capable of ECN");
    let refusal = answered(&classed6(udp6(b"x")), 48, answer::port_unreachable).unwrap();
    assert_eq!(refusal[L3..L3 + 4], [0x60, 0, 0, 0]);
}

#[test]
fn an_answer_has_its_checksum_complete() {
    let request = tcp(0x02, b"");
    let (mut chunk, packet) = (request.clone(), parse(&request).unwrap());
    let mut frame = Frame::new(&mut chunk, 0, request.len(), PortId(0)).unwrap();
    frame.checksum = Checksum::Partial { start: 34, offset: 16 };
    answer::reset(&mut frame, &packet, OWN_MAC).unwrap();
    assert_eq!(frame.checksum, Checksum::Complete);
}

#[test]
fn a_reset_follows_rfc_9293() {
    const FIN: u8 = 0x01;
    const SYN: u8 = 0x02;
    const ACK: u8 = 0x10;
    for (name, flags, data, sequence, acknowledgement) in [
        ("SYN", SYN, &b""[..], 0, Some(1001)),
        ("SYN with data", SYN, b"hello", 0, Some(1006)),
        ("SYN and FIN", SYN | FIN, b"", 0, Some(1002)),
        ("nothing", 0, b"hello", 0, Some(1005)),
        ("ACK", ACK, b"hello", 77_000, None),
        ("SYN and ACK", SYN | ACK, b"", 77_000, None),
    ] {
        for (family, segment) in [("IPv4", tcp(flags, data)), ("IPv6", tcp6(flags, data))] {
            let reply = answered(&segment, 0, answer::reset).unwrap();
            let sliced = SlicedPacket::from_ethernet(&reply).unwrap();
            let Some(TransportSlice::Tcp(tcp)) = sliced.transport else { panic!("{name}") };
            assert!(tcp.rst() && !tcp.syn() && !tcp.fin(), "{name}, {family}");
            assert_eq!(tcp.ack(), acknowledgement.is_some(), "{name}, {family}");
            assert_eq!(tcp.sequence_number(), sequence, "{name}, {family}");
            assert_eq!(tcp.acknowledgment_number(), acknowledgement.unwrap_or(0), "{name}, {family}");
            assert_eq!((tcp.source_port(), tcp.destination_port(), tcp.window_size()), (80, 4000, 0));
            assert!(model::checksum_holds(&reply, &parse(&reply).unwrap()), "{name}, {family}");
        }
    }
}

#[test]
fn a_segment_with_an_unfinished_checksum_is_reset_one_with_a_wrong_one_is_not() {
    let mut unfinished = tcp(0x02, b"hello");
    let pseudo = Sum::pseudo_header(bits(CLIENT), bits(VIP), 6, 25).fold();
    unfinished[L4 + 16..L4 + 18].copy_from_slice(&pseudo.to_be_bytes());
    assert!(answered(&unfinished, 0, answer::reset).is_ok());

    let mut wrong = tcp(0x02, b"hello");
    wrong[L4 + 16] ^= 1;
    assert_eq!(answered(&wrong, 0, answer::reset), Err(DropReason::BadChecksum));
}

#[test]
fn errors_quote_as_much_as_they_may() {
    let many = udp(&[7; 1400]);
    for (name, frame, answer, head, total) in [
        ("port unreachable", &many, answer::port_unreachable as Answer, [3, 3, 0, 0], 576),
        ("fragmentation needed", &many, too_big, [3, 4, 0x05, 0x78], 576),
        ("time exceeded", &many, answer::time_exceeded, [11, 0, 0, 0], 576),
        ("short", &udp(b"x"), answer::time_exceeded, [11, 0, 0, 0], 57),
        ("port unreachable, IPv6", &udp6(&[7; 1400]), answer::port_unreachable, [1, 4, 0, 0], 1280),
        ("packet too big", &udp6(&[7; 1400]), too_big, [2, 0, 0x05, 0x78], 1280),
        ("about an echo", &echo(b"ping"), answer::time_exceeded, [11, 0, 0, 0], 60),
        ("time exceeded, IPv6", &udp6(b"x"), answer::time_exceeded, [3, 0, 0, 0], 97),
    ] {
        let reply = answered(frame, 48, answer).unwrap();
        assert_eq!(reply.len() - L3, total, "{name}");
        let packet = parse(&reply).unwrap();
        let message = &reply[packet.l4.into()..];
        assert_eq!([message[0], message[1], message[6], message[7]], head, "{name}");
        assert_eq!(message[8..], frame[L3..L3 + message.len() - 8], "{name}: the quote");
        if parse(frame).unwrap().kind == Kind::Transport {
            assert_eq!((packet.kind, packet.key), (Kind::IcmpError, parse(frame).unwrap().key), "{name}");
        }
    }
}

#[test]
fn some_packets_get_no_answer() {
    let all: [(&str, Answer); 3] = [
        ("port unreachable", answer::port_unreachable),
        ("too big", too_big),
        ("time exceeded", answer::time_exceeded),
    ];
    let from = |addr: [u8; 4]| edit(udp(b"x"), |bytes| bytes[L3 + 12..L3 + 16].copy_from_slice(&addr));
    let to = |addr: [u8; 4]| edit(udp(b"x"), |bytes| bytes[L3 + 16..L3 + 20].copy_from_slice(&addr));
    let with_mac = |at: usize, mac: [u8; 6]| edit(udp(b"x"), |bytes| bytes[at..at + 6].copy_from_slice(&mac));
    for (name, frame, want) in [
        ("an ICMP error", error(3, 3, 0, &quote(&udp(b"hello"))), DropReason::Unsupported),
        ("an ICMPv6 error", error6(1, 4, 0, &quote(&udp6(b"hello"))), DropReason::Unsupported),
        ("a fragment", edit(udp(b"x"), |bytes| bytes[L3 + 7] = 1), DropReason::Unsupported),
        ("an unknown protocol", ip(47, &[0; 8]), DropReason::Unsupported),
        ("from nobody", from([0; 4]), DropReason::BadSource),
        ("from a loopback address", from([127, 0, 0, 1]), DropReason::BadSource),
        ("from a group", from([224, 0, 0, 1]), DropReason::BadSource),
        ("from all", from([255; 4]), DropReason::BadSource),
        ("to a group", to([224, 0, 0, 1]), DropReason::Unsupported),
        ("to all", to([255; 4]), DropReason::Unsupported),
        ("from a group's MAC", with_mac(6, [0x01, 0, 0x5e, 0, 0, 1]), DropReason::BadSource),
        ("to all MACs", with_mac(0, [0xff; 6]), DropReason::Unsupported),
    ] {
        for (kind, answer) in all {
            assert_eq!(answered(&frame, 48, answer), Err(want), "{name}: {kind}");
        }
    }
    for (name, frame, answer) in [
        ("RST for RST", tcp(0x04, b""), answer::reset as Answer),
        ("RST for UDP", udp(b"x"), answer::reset),
        ("echo for a datagram", udp(b"x"), answer::echo),
        ("ARP for a datagram", udp(b"x"), answer::arp),
        ("advertisement for a datagram", udp6(b"x"), answer::neighbour),
    ] {
        assert_eq!(answered(&frame, 48, answer), Err(DropReason::Unsupported), "{name}");
    }
}

#[test]
fn nobody_is_told_an_address_who_cannot_have_asked() {
    let loopback = {
        let mut addr = [0; 16];
        addr[15] = 1;
        addr
    };
    let group_mac = edit(arp(ArpOperation::REQUEST, CLIENT), |bytes| bytes[L3 + 8] = 0x03);
    for (name, frame, answer) in [
        ("ARP from a group's address", arp(ArpOperation::REQUEST, [224, 0, 0, 1]), answer::arp as Answer),
        ("ARP from a loopback address", arp(ArpOperation::REQUEST, [127, 0, 0, 1]), answer::arp),
        ("ARP from a group's MAC", group_mac, answer::arp),
        ("solicitation from a loopback address", solicitation(loopback, VIP6, 255, &[]), answer::neighbour),
        ("solicitation from a group", solicitation(SOLICITED_NODE, VIP6, 255, &[]), answer::neighbour),
    ] {
        assert_eq!(answered(&frame, 48, answer), Err(DropReason::BadSource), "{name}");
    }
}

#[test]
fn an_answer_that_does_not_fit_is_not_made() {
    assert_eq!(answered(&udp(b"x"), 27, answer::port_unreachable), Err(DropReason::NoHeadroom));
    assert!(answered(&udp(b"x"), 28, answer::port_unreachable).is_ok());
    let probe = solicitation([0; 16], VIP6, 255, &[]);
    assert_eq!(answered(&probe, 7, answer::neighbour), Err(DropReason::NoHeadroom));
}
