//! What the parser makes of a frame.

use dataplane::flow::key::{FlowKey, TCP, UDP};
use dataplane::flow::sctp::Event;
use dataplane::packet::{Kind, Packet, parse};
use dataplane::verdict::DropReason::{
    self, BadChecksum, BadHeader, BadLength, TinyFragment, Truncated, Unsupported,
};
use etherparse::ArpOperation;

use crate::samples::*;

fn expect(table: Vec<(&str, Vec<u8>, Result<Kind, DropReason>)>) {
    for (name, frame, want) in table {
        assert_eq!(parse(&frame).map(|packet| packet.kind), want, "{name}");
    }
}

#[test]
fn a_segment_is_read_whole() {
    let key = FlowKey { src: bits(CLIENT), dst: bits(VIP), sport: 4000, dport: 80, proto: TCP, v6: false };
    let want = Packet {
        kind: Kind::Transport,
        key,
        l3: 14,
        l4: 34,
        end: 59,
        tcp_flags: 0x12,
        sctp: Event::Nothing,
        ttl: 64,
    };
    assert_eq!(parse(&tcp(0x12, b"hello")), Ok(want));

    let tagged_twice = Packet { l3: 22, l4: 42, end: 67, ..want };
    assert_eq!(parse(&tagged(&tcp(0x12, b"hello"), 2)), Ok(tagged_twice));

    let with_four_more = Packet { l4: 38, end: 63, ..want };
    assert_eq!(parse(&with_options(tcp(0x12, b"hello"))), Ok(with_four_more));
}

#[test]
fn a_datagram_behind_extension_headers_is_read_whole() {
    let frame = extended(&[(0, &[0; 7]), (60, &[1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])]);
    let key = FlowKey { src: bits6(CLIENT6), dst: bits6(VIP6), sport: 4000, dport: 53, proto: UDP, v6: true };
    let want = Packet {
        kind: Kind::Transport,
        key,
        l3: 14,
        l4: 78,
        end: 91,
        tcp_flags: 0,
        sctp: Event::Nothing,
        ttl: 64,
    };
    assert_eq!(parse(&frame), Ok(want));
}

#[test]
fn padding_lies_behind_the_end() {
    let padded = edit(udp(b"x"), |bytes| bytes.resize(60, 0xee));
    assert_eq!(parse(&padded).unwrap().end, 43);
    let padded = edit(tcp(0x02, b""), |bytes| bytes.resize(60, 0xee));
    assert_eq!(parse(&padded).unwrap().end, 54);
}

#[test]
fn ethernet_carries_what_it_says() {
    let macs = [OWN_MAC, CLIENT_MAC].concat();
    expect(vec![
        ("two tags", tagged(&udp(b"hello"), 2), Ok(Kind::Transport)),
        ("three tags", tagged(&udp(b"hello"), 3), Err(BadHeader)),
        ("a tag and no more", [&macs[..], &[0x81, 0]].concat(), Err(Truncated)),
        ("LLDP", [&macs[..], &[0x88, 0xcc, 0, 0]].concat(), Ok(Kind::Other)),
        ("a length (802.3)", [&macs[..], &[0, 38], &[0x42; 38]].concat(), Ok(Kind::Other)),
        ("no EtherType", macs, Err(Truncated)),
        ("nothing", vec![], Err(Truncated)),
    ]);
}

#[test]
fn ipv4_faults_have_their_reasons() {
    let datagram = || udp(b"hello, hello");
    let first = |proto, payload: &[u8]| edit(ip(proto, payload), |b| b[L3 + 6] = 0x20);
    let later = |proto, offset: u16| {
        edit(ip(proto, &[0; 13]), |b| b[L3 + 6..L3 + 8].copy_from_slice(&offset.to_be_bytes()))
    };
    expect(vec![
        ("an end that has no number of 16 bits", tcp(0x12, &[0; 65_495]), Err(BadLength)),
        ("version 6", edit(datagram(), |b| b[L3] = 0x65), Err(BadHeader)),
        ("IHL 4", edit(datagram(), |b| b[L3] = 0x44), Err(BadHeader)),
        ("IHL past the frame", edit(datagram(), |b| b[L3] = 0x4f), Err(Truncated)),
        ("total length below the header", edit(datagram(), |b| b[L3 + 3] = 19), Err(BadLength)),
        ("total length past the frame", edit(datagram(), |b| b[L3 + 3] += 1), Err(BadLength)),
        ("total length past 64 KiB", edit(datagram(), |b| b[L3 + 2] = 0xff), Err(BadLength)),
        ("total length without a transport", edit(datagram(), |b| b[L3 + 3] = 27), Err(Truncated)),
        (
            "header checksum",
            {
                let mut b = datagram();
                b[L3 + 11] ^= 1;
                b
            },
            Err(BadChecksum),
        ),
        ("more fragments, 20 bytes", edit(datagram(), |b| b[L3 + 6] = 0x20), Err(BadLength)),
        ("more fragments, 24 bytes", first(UDP, &[0; 24]), Ok(Kind::FirstFragment)),
        ("more fragments of ICMP", first(1, &[8; 24]), Ok(Kind::Fragment)),
        ("a cut UDP header", first(UDP, &[]), Err(BadLength)),
        ("a cut TCP header", first(TCP, &[0x50; 16]), Err(TinyFragment)),
        ("TCP options cut", first(TCP, &[0x70; 24]), Err(TinyFragment)),
        ("a data offset of 4", first(TCP, &[0x40; 24]), Err(BadHeader)),
        ("a whole TCP header", first(TCP, &[0x60; 24]), Ok(Kind::FirstFragment)),
        ("a cut SCTP header", first(132, &[0; 8]), Err(TinyFragment)),
        ("a fragment offset", edit(datagram(), |b| b[L3 + 7] = 1), Ok(Kind::Fragment)),
        ("a fragment inside the TCP header", later(TCP, 2), Err(TinyFragment)),
        ("a fragment behind the TCP header", later(TCP, 3), Ok(Kind::Fragment)),
        ("a fragment that ends at 64 KiB", later(UDP, 8191 - 1), Ok(Kind::Fragment)),
        ("a fragment past 64 KiB", later(UDP, 8191), Err(BadLength)),
        ("do not fragment", edit(datagram(), |b| b[L3 + 6] = 0x40), Ok(Kind::Transport)),
        ("TTL 0 is only noted", edit(datagram(), |b| b[L3 + 8] = 0), Ok(Kind::Transport)),
        ("another protocol", ip(47, &[0; 8]), Ok(Kind::Other)),
        ("ICMPv6 in IPv4", ip(58, &[0; 8]), Ok(Kind::Other)),
    ]);
    let other = parse(&ip(47, &[0; 8])).unwrap();
    assert_eq!((other.key.src, other.key.dst, other.key.proto), (bits(CLIENT), bits(VIP), 47));
    let [whole, first] = [datagram(), first(UDP, &datagram()[L4..L4 + 16])].map(|b| parse(&b).unwrap());
    assert_eq!(first.key, whole.key);
    let later = parse(&later(UDP, 1)).unwrap();
    assert_eq!((later.key.sport, later.key.dport, later.key.proto), (0, 0, UDP));
}

#[test]
fn ipv6_faults_have_their_reasons() {
    let change = |at: usize, to: u8| {
        let mut b = udp6(b"hello, hello");
        b[at] = to;
        b
    };
    let nothing: &[u8] = &[0; 7];
    expect(vec![
        ("version 4", change(L3, 0x40), Err(BadHeader)),
        ("payload length past the frame", change(L3 + 5, 21), Err(BadLength)),
        ("payload length without a transport", change(L3 + 5, 7), Err(Truncated)),
        ("a jumbogram", edit(ip6(0, &[]), |b| b.extend([59, 0, 0xc2, 4, 0, 1, 0, 0])), Err(BadLength)),
        ("hop-by-hop first", extended(&[(0, nothing)]), Ok(Kind::Transport)),
        ("hop-by-hop second", extended(&[(60, nothing), (0, nothing)]), Err(BadHeader)),
        ("eight extension headers", extended(&[(60, nothing); 8]), Ok(Kind::Transport)),
        ("nine extension headers", extended(&[(60, nothing); 9]), Err(Unsupported)),
        ("an extension past the end", extended(&[(60, &[9, 0, 0, 0, 0, 0, 0])]), Err(Truncated)),
        ("a routing header at its end", extended(&[(43, nothing)]), Ok(Kind::Transport)),
        ("a routing header under way", extended(&[(43, &[0, 4, 1, 0, 0, 0, 0])]), Ok(Kind::Other)),
        ("an atomic fragment", extended(&[(44, nothing)]), Ok(Kind::Transport)),
        ("the first fragment", first_fragment6(), Ok(Kind::FirstFragment)),
        ("more fragments, 13 bytes", extended(&[(44, &[0, 0, 1, 0, 0, 0, 9])]), Err(BadLength)),
        ("a later fragment", extended(&[(44, &[0, 5, 0, 0, 0, 0, 9])]), Ok(Kind::Fragment)),
        ("ESP", ip6(50, &[0; 16]), Ok(Kind::Other)),
        ("AH", ip6(51, &[0; 16]), Ok(Kind::Other)),
        ("no next header", ip6(59, &[]), Ok(Kind::Other)),
        ("ICMP in IPv6", ip6(1, &[8, 0, 0, 0, 0, 0, 0, 0]), Ok(Kind::Other)),
    ]);
}

#[test]
fn transport_faults_have_their_reasons() {
    let segment = || tcp(0x02, b"hello");
    let datagram = || udp(b"hello, hello");
    let v6 = |at: usize, to: u8| {
        let mut b = udp6(b"hello, hello");
        b[L4_V6 + at] = to;
        b
    };
    expect(vec![
        ("data offset 4", edit(segment(), |b| b[L4 + 12] = 0x40), Err(BadHeader)),
        (
            "data offset at the segment's end",
            edit(tcp(2, b"hell"), |b| b[L4 + 12] = 0x60),
            Ok(Kind::Transport),
        ),
        ("data offset past the segment", edit(segment(), |b| b[L4 + 12] = 0x70), Err(BadHeader)),
        ("19 bytes of TCP", ip(6, &[0; 19]), Err(Truncated)),
        ("UDP length 0", edit(datagram(), |b| b[L4 + 5] = 0), Err(BadLength)),
        ("UDP length 7", edit(datagram(), |b| b[L4 + 5] = 7), Err(BadLength)),
        ("UDP length past the packet", edit(datagram(), |b| b[L4 + 5] += 1), Err(BadLength)),
        ("UDP length below the packet's", edit(datagram(), |b| b[L4 + 5] -= 1), Ok(Kind::Transport)),
        ("UDP length 0 over IPv6", v6(5, 0), Err(BadLength)),
        ("7 bytes of UDP", ip(17, &[0; 7]), Err(Truncated)),
        ("11 bytes of SCTP", ip(132, &[0; 11]), Err(Truncated)),
        ("SCTP", sctp(), Ok(Kind::Transport)),
    ]);
    let key = parse(&sctp()).unwrap().key;
    assert_eq!((key.sport, key.dport), (4000, 80));
}

#[test]
fn arp_requests_are_known() {
    let request = || arp(ArpOperation::REQUEST, CLIENT);
    let change = |at: usize, to: u8| {
        let mut b = request();
        b[L3 + at] = to;
        b
    };
    expect(vec![
        ("a request", request(), Ok(Kind::ArpRequest)),
        ("a reply", arp(ArpOperation::REPLY, CLIENT), Ok(Kind::Other)),
        ("not Ethernet", change(1, 6), Ok(Kind::Other)),
        ("not IPv4", change(2, 0x86), Ok(Kind::Other)),
        ("long hardware addresses", change(4, 8), Ok(Kind::Other)),
        ("long protocol addresses", change(5, 16), Ok(Kind::Other)),
        ("cut", request()[..41].to_vec(), Err(Truncated)),
    ]);
    let packet = parse(&request()).unwrap();
    assert_eq!((packet.key.src, packet.key.dst), (bits(CLIENT), bits(VIP)));
}

#[test]
fn solicitations_are_validated() {
    let good = || solicitation(CLIENT6, VIP6, 255, &SOURCE_OPTION);
    let to_host = {
        let mut frame = solicitation([0; 16], VIP6, 255, &[]);
        frame[L3 + 24..L3 + 40].copy_from_slice(&VIP6);
        icmpv6_resummed(frame)
    };
    let code = {
        let mut frame = good();
        frame[L4_V6 + 1] = 1;
        icmpv6_resummed(frame)
    };
    let flipped = {
        let mut frame = good();
        frame[L4_V6 + 3] ^= 1;
        frame
    };
    expect(vec![
        ("of a host", good(), Ok(Kind::NeighbourSolicitation)),
        ("without options", solicitation(CLIENT6, VIP6, 255, &[]), Ok(Kind::NeighbourSolicitation)),
        ("a probe", solicitation([0; 16], VIP6, 255, &[]), Ok(Kind::NeighbourSolicitation)),
        (
            "a nonce option (RFC 3971)",
            solicitation([0; 16], VIP6, 255, &[14, 1, 1, 2, 3, 4, 5, 6]),
            Ok(Kind::NeighbourSolicitation),
        ),
        ("a probe that names its MAC", solicitation([0; 16], VIP6, 255, &SOURCE_OPTION), Err(BadHeader)),
        ("a probe to one host", to_host, Err(BadHeader)),
        ("from beyond the link", solicitation(CLIENT6, VIP6, 254, &SOURCE_OPTION), Err(BadHeader)),
        ("code 1", code, Err(BadHeader)),
        ("for a group", solicitation(CLIENT6, SOLICITED_NODE, 255, &SOURCE_OPTION), Err(BadHeader)),
        (
            "an option of length 0",
            solicitation(CLIENT6, VIP6, 255, &[1, 0, 0, 0, 0, 0, 0, 0]),
            Err(BadHeader),
        ),
        (
            "an option past the end",
            solicitation(CLIENT6, VIP6, 255, &[1, 2, 0, 0, 0, 0, 0, 0]),
            Err(BadHeader),
        ),
        ("checksum", flipped, Err(BadChecksum)),
        ("without a target", error6(135, 0, 0, &[0; 15]), Err(Truncated)),
    ]);
    let packet = parse(&good()).unwrap();
    assert_eq!((packet.key.src, packet.key.dst), (bits6(CLIENT6), bits6(VIP6)));
    assert_eq!(packet.outer_addresses(&good()), Ok((bits6(CLIENT6), bits6(SOLICITED_NODE))));
}

#[test]
fn echo_requests_are_verified() {
    let flipped = |mut frame: Vec<u8>| {
        *frame.last_mut().unwrap() ^= 1;
        frame
    };
    expect(vec![
        ("a request", echo(b"ping"), Ok(Kind::EchoRequest)),
        ("a request over IPv6", echo6(b"ping"), Ok(Kind::EchoRequest)),
        ("a reply", error(0, 0, 0, b"ping"), Ok(Kind::Other)),
        ("a reply over IPv6", error6(129, 0, 0, b"ping"), Ok(Kind::Other)),
        ("code 1", error(8, 1, 0, b"ping"), Ok(Kind::Other)),
        ("checksum", flipped(echo(b"ping")), Err(BadChecksum)),
        ("checksum over IPv6", flipped(echo6(b"ping")), Err(BadChecksum)),
        ("7 bytes", ip(1, &[8, 0, 0, 0, 0, 0, 0]), Err(Truncated)),
    ]);
}

#[test]
fn icmp_errors_are_known_by_what_they_quote() {
    let datagram = || quote(&udp(b"hello"));
    let flipped = |mut frame: Vec<u8>| {
        *frame.last_mut().unwrap() ^= 1;
        frame
    };
    let later = quote(&edit(udp(b"hello"), |b| b[L3 + 7] = 1));
    let first = quote(&edit(udp(b"hello"), |b| b[L3 + 6] = 0x20));
    let bad_sum = {
        let mut bytes = datagram();
        bytes[10] ^= 1;
        bytes
    };
    expect(vec![
        ("8 bytes of UDP", error(3, 3, 0, &datagram()[..28]), Ok(Kind::IcmpError)),
        ("7 bytes of UDP", error(3, 3, 0, &datagram()[..27]), Err(Truncated)),
        ("a cut IP header", error(3, 3, 0, &datagram()[..19]), Err(Truncated)),
        ("8 bytes of TCP", error(3, 4, 1400, &quote(&tcp(2, b""))[..28]), Ok(Kind::IcmpError)),
        ("8 bytes of SCTP", error(11, 0, 0, &quote(&sctp())[..28]), Ok(Kind::IcmpError)),
        ("a source quench", error(4, 0, 0, &datagram()), Ok(Kind::IcmpError)),
        ("a parameter problem", error(12, 0, 0, &datagram()), Ok(Kind::IcmpError)),
        ("a redirect is none", error(5, 0, 0, &datagram()), Ok(Kind::Other)),
        ("options in the quote", error(3, 3, 0, &quote(&with_options(udp(b"hello")))), Ok(Kind::IcmpError)),
        ("a quoted header checksum", error(3, 3, 0, &bad_sum), Ok(Kind::IcmpError)),
        ("a quoted first fragment", error(3, 3, 0, &first), Ok(Kind::IcmpError)),
        ("a quoted later fragment", error(3, 3, 0, &later), Ok(Kind::Other)),
        ("a quoted echo", error(3, 1, 0, &quote(&echo(b"ping"))), Ok(Kind::Other)),
        ("a quote of the other family", error(3, 1, 0, &quote(&udp6(b"hello"))), Err(BadHeader)),
        ("checksum", flipped(error(3, 3, 0, &datagram())), Err(BadChecksum)),
    ]);
    let packet = parse(&error(3, 3, 0, &datagram())).unwrap();
    assert_eq!((packet.key.src, packet.key.sport, packet.key.dport), (bits(CLIENT), 4000, 53));
}

#[test]
fn icmpv6_errors_are_known_by_what_they_quote() {
    let datagram = || quote(&udp6(b"hello"));
    let fragment = |offset: &[u8]| quote(&extended(&[(44, offset)]));
    let flipped = |mut frame: Vec<u8>| {
        *frame.last_mut().unwrap() ^= 1;
        frame
    };
    expect(vec![
        ("unreachable", error6(1, 4, 0, &datagram()), Ok(Kind::IcmpError)),
        ("8 bytes of UDP", error6(2, 0, 1280, &datagram()[..48]), Ok(Kind::IcmpError)),
        ("7 bytes of UDP", error6(2, 0, 1280, &datagram()[..47]), Err(Truncated)),
        ("time exceeded", error6(3, 0, 0, &quote(&tcp6(2, b""))), Ok(Kind::IcmpError)),
        ("a parameter problem", error6(4, 0, 0, &quote(&extended(&[(60, &[0; 7])]))), Ok(Kind::IcmpError)),
        (
            "a cut extension header",
            error6(1, 4, 0, &quote(&extended(&[(60, &[0; 7])]))[..44]),
            Err(Truncated),
        ),
        ("a quoted first fragment", error6(1, 4, 0, &fragment(&[0, 0, 1, 0, 0, 0, 9])), Ok(Kind::IcmpError)),
        ("a quoted later fragment", error6(1, 4, 0, &fragment(&[0, 8, 0, 0, 0, 0, 9])), Ok(Kind::Other)),
        ("a quoted echo", error6(1, 4, 0, &quote(&echo6(b"ping"))), Ok(Kind::Other)),
        (
            "a quote of the other family",
            error6(1, 4, 0, &[quote(&udp(b"hello")), vec![0; 40]].concat()),
            Err(BadHeader),
        ),
        ("checksum", flipped(error6(1, 4, 0, &datagram())), Err(BadChecksum)),
    ]);
}

/// Makes the ICMPv6 checksum of a frame without extension headers right again.
fn icmpv6_resummed(mut frame: Vec<u8>) -> Vec<u8> {
    use dataplane::wire::checksum::Sum;

    frame[L4_V6 + 2..L4_V6 + 4].fill(0);
    let [src, dst] = [8, 24].map(|at| u128::from_be_bytes(frame[L3 + at..L3 + at + 16].try_into().unwrap()));
    let message = &frame[L4_V6..];
    let checksum = (Sum::pseudo_header(src, dst, 58, message.len() as u16) + Sum::of(message)).checksum();
    frame[L4_V6 + 2..L4_V6 + 4].copy_from_slice(&checksum.to_be_bytes());
    frame
}
