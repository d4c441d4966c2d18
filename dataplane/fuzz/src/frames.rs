//! One frame through the parser, every answer and the translation of ICMP errors.

use dataplane::flow::key::{FlowKey, TCP};
use dataplane::frame::Frame;
use dataplane::ids::PortId;
use dataplane::packet::{Kind, Packet, parse};
use dataplane::rewrite::{answer, icmp};
use dataplane::verdict::DropReason;
use dataplane::wire::checksum::Sum;
use dataplane::wire::{ethernet, ipv4, ipv6, tcp};
use etherparse::{NetSlice, SlicedPacket, TransportSlice};

/// MAC address of the port that frames come in by.
pub const OWN_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0xfe];

/// Bytes behind the frame: every answer fits.
const ROOM: usize = 256;
/// MTU in the error that says so.
const MTU: u16 = 1400;

type Answer = fn(&mut Frame<'_>, &Packet) -> Result<(), DropReason>;

const ANSWERS: [(&str, Answer); 7] = [
    ("arp", |frame, packet| answer::arp(frame, packet, OWN_MAC)),
    ("neighbour", |frame, packet| answer::neighbour(frame, packet, OWN_MAC)),
    ("echo", |frame, packet| answer::echo(frame, packet, OWN_MAC)),
    ("reset", |frame, packet| answer::reset(frame, packet, OWN_MAC)),
    ("port unreachable", |frame, packet| answer::port_unreachable(frame, packet, OWN_MAC)),
    ("too big", |frame, packet| answer::too_big(frame, packet, OWN_MAC, MTU)),
    ("time exceeded", |frame, packet| answer::time_exceeded(frame, packet, OWN_MAC)),
];

/// Checks all that is said here about `bytes`, a frame from its Ethernet header on, and about the same frame with
/// right checksums, which a fuzzer would hardly ever hit upon.
pub fn check(bytes: &[u8]) {
    holds(bytes);
    let mut repaired = bytes.to_vec();
    if repair(&mut repaired).is_some() {
        holds(&repaired);
    }
}

/// Makes the checksums of an IPv4 header and of an ICMP message right, in a frame without tags, IP options and
/// extension headers. `None` where there is nothing of the kind.
fn repair(frame: &mut [u8]) -> Option<()> {
    let (head, ip) = frame.split_at_mut_checked(14)?;
    let (icmp, at, pseudo) = if head[12..] == [0x08, 0x00] && ip.first() == Some(&0x45) {
        ip.get_mut(10..12)?.fill(0);
        let checksum = Sum::of(ip.get(..20)?).checksum();
        ip[10..12].copy_from_slice(&checksum.to_be_bytes());
        let total = usize::from(u16::from_be_bytes([ip[2], ip[3]]));
        (ip[9] == ipv4::ICMP, 20..total, Sum::default())
    } else if head[12..] == [0x86, 0xdd] && ip.len() >= 40 {
        let len = u16::from_be_bytes([ip[4], ip[5]]);
        let [src, dst] = [8, 24].map(|at| u128::from_be_bytes(*ip[at..].first_chunk().expect("40 bytes")));
        let pseudo = Sum::pseudo_header(src, dst, ipv6::ICMPV6, len);
        (ip[6] == ipv6::ICMPV6, 40..40 + usize::from(len), pseudo)
    } else {
        return None;
    };
    if icmp && let Some(message) = ip.get_mut(at) {
        message.get_mut(2..4)?.fill(0);
        let checksum = (pseudo + Sum::of(message)).checksum();
        message[2..4].copy_from_slice(&checksum.to_be_bytes());
    }
    Some(())
}

fn holds(bytes: &[u8]) {
    let parsed = parse(bytes);
    a_tag_changes_nothing_else(bytes, parsed);
    let Ok(packet) = parsed else { return };
    let Packet { l3, l4, end, .. } = packet;
    assert!(14 <= l3 && l3 <= l4 && l4 <= end && usize::from(end) <= bytes.len(), "{packet:?}");
    another_parser_agrees(bytes, &packet);
    for (name, answer) in ANSWERS {
        is_answered(bytes, &packet, name, answer);
    }
    if packet.kind == Kind::IcmpError {
        is_translated(bytes, &packet);
    }
}

/// The short way and the long way through the parser say the same: a VLAN tag forces the long one.
fn a_tag_changes_nothing_else(bytes: &[u8], parsed: Result<Packet, DropReason>) {
    let Some((macs, rest)) = bytes.split_at_checked(12) else { return };
    let tagged_already = rest.first_chunk().is_some_and(|ethertype| {
        matches!(u16::from_be_bytes(*ethertype), ethernet::VLAN | ethernet::SERVICE_VLAN)
    });
    if tagged_already || bytes.len() > 60_000 {
        return;
    }
    let tagged = [macs, &[0x81, 0, 0, 7], rest].concat();
    let shifted =
        |packet: Packet| Packet { l3: packet.l3 + 4, l4: packet.l4 + 4, end: packet.end + 4, ..packet };
    assert_eq!(parse(&tagged), parsed.map(shifted));
}

/// Where etherparse knows the transport too, it sees the same tuple.
fn another_parser_agrees(bytes: &[u8], packet: &Packet) {
    let Ok(sliced) = SlicedPacket::from_ethernet(bytes) else { return };
    let ports = match sliced.transport {
        Some(TransportSlice::Tcp(tcp)) => (tcp.source_port(), tcp.destination_port()),
        Some(TransportSlice::Udp(udp)) => (udp.source_port(), udp.destination_port()),
        _ => return,
    };
    if packet.kind != Kind::Transport {
        return; // a routing header with segments left, which etherparse does not look at
    }
    assert_eq!((packet.key.sport, packet.key.dport), ports);
    let addresses = match sliced.net {
        Some(NetSlice::Ipv4(ip)) => {
            (u32::from(ip.header().source_addr()).into(), u32::from(ip.header().destination_addr()).into())
        }
        Some(NetSlice::Ipv6(ip)) => {
            (ip.header().source_addr().to_bits(), ip.header().destination_addr().to_bits())
        }
        _ => unreachable!("a transport without IP"),
    };
    assert_eq!((packet.key.src, packet.key.dst), addresses);
}

fn is_answered(bytes: &[u8], packet: &Packet, name: &str, answer: Answer) {
    let mut tight = bytes.to_vec();
    let len = tight.len();
    let _ = answer(&mut frame(&mut tight, len), packet); // without room it may fail, but does not panic

    let mut chunk = bytes.to_vec();
    chunk.resize(len + ROOM, 0xa5);
    let mut frame = frame(&mut chunk, len);
    if let Err(reason) = answer(&mut frame, packet) {
        let known = [DropReason::BadSource, DropReason::Unsupported, DropReason::BadChecksum];
        assert!(known.contains(&reason), "{name}: {reason:?}");
        return;
    }
    let sent = frame.bytes();
    assert_eq!(sent[6..12], OWN_MAC, "{name}");
    assert_eq!(sent[12..packet.l3.into()], bytes[12..packet.l3.into()], "{name}: tags and EtherType");
    SlicedPacket::from_ethernet(sent).unwrap_or_else(|error| panic!("{name}: {error}"));

    let headers = usize::from(packet.l4 - packet.l3);
    let parsed = match parse(sent) {
        Ok(parsed) => parsed,
        // Extension headers that fill the quote leave no room for the ports in it.
        Err(DropReason::Truncated) if packet.kind == Kind::Transport && headers > 1200 => return,
        Err(reason) => panic!("{name}: {reason:?}"),
    };
    assert_eq!(parsed.l3, packet.l3, "{name}");
    assert_eq!(usize::from(parsed.end), sent.len(), "{name}: nothing behind the packet");
    if name == "arp" {
        return;
    }
    assert!(checksum_holds(sent, &parsed), "{name}");
    match name {
        "neighbour" => assert_eq!(sent[usize::from(parsed.l4)], 136),
        "echo" => assert_eq!(sent[usize::from(parsed.l4)], if packet.key.v6 { 129 } else { 0 }),
        "reset" => {
            assert_eq!(parsed.key, packet.key.reversed());
            assert_ne!(parsed.tcp_flags & tcp::RST, 0);
        }
        _ => {
            let (src, dst) = parsed.outer_addresses(sent).unwrap();
            assert_eq!((src, dst), (packet.key.dst, packet.key.src), "{name}");
            assert!(sent.len() - usize::from(parsed.l3) <= if packet.key.v6 { 1280 } else { 576 }, "{name}");
            if packet.kind == Kind::Transport {
                assert_eq!((parsed.kind, parsed.key), (Kind::IcmpError, packet.key), "{name}");
            }
        }
    }
}

fn is_translated(bytes: &[u8], packet: &Packet) {
    let (src, dst) =
        if packet.key.v6 { (0xfd00 << 112 | 1, 0xfd00 << 112 | 2) } else { (0x0a00_0001, 0x0a00_0002) };
    let tuple = FlowKey { src: dst, dst: src, sport: 40_000, dport: 53, ..packet.key };
    let mut chunk = bytes.to_vec();
    let len = chunk.len();
    let mut frame = frame(&mut chunk, len);
    let translated = icmp::translate(&mut frame, packet, Some(src), dst, &tuple, 0);
    if packet.ttl <= 1 {
        assert_eq!(translated, Err(DropReason::TtlExceeded));
        return;
    }
    assert_eq!(translated, Ok(()));
    let want = Packet { key: tuple, ttl: packet.ttl - 1, ..*packet };
    assert_eq!(parse(frame.bytes()), Ok(want));
    assert_eq!(want.outer_addresses(frame.bytes()), Ok((src, dst)));
    assert!(checksum_holds(frame.bytes(), &want));
    assert_eq!(frame.bytes()[packet.end.into()..], bytes[packet.end.into()..], "what follows the packet");
}

fn frame(chunk: &mut [u8], len: usize) -> Frame<'_> {
    Frame::new(chunk, 0, len, PortId(0)).expect("the frame lies in its chunk")
}

/// Whether the TCP, UDP, ICMP or ICMPv6 checksum of a whole packet is right: RFC 1071, word by word.
pub fn checksum_holds(bytes: &[u8], packet: &Packet) -> bool {
    let segment = &bytes[packet.l4.into()..packet.end.into()];
    let proto = if packet.kind == Kind::IcmpError {
        if packet.key.v6 { ipv6::ICMPV6 } else { ipv4::ICMP }
    } else {
        packet.key.proto
    };
    let mut covered = segment.to_vec();
    if covered.len() % 2 == 1 {
        covered.push(0);
    }
    if proto != ipv4::ICMP {
        debug_assert!(proto == TCP || proto == 17 || proto == ipv6::ICMPV6);
        let (src, dst) = packet.outer_addresses(bytes).expect("an IP packet");
        covered.extend(src.to_be_bytes());
        covered.extend(dst.to_be_bytes());
        covered.extend([0, proto]);
        covered.extend((packet.end - packet.l4).to_be_bytes());
    }
    let sum: u64 = covered.chunks(2).map(|word| u64::from(word[0]) << 8 | u64::from(word[1])).sum();
    sum != 0 && sum.is_multiple_of(0xffff)
}
