//! Frames of every kind that the parser knows.

use dataplane::wire::checksum::Sum;
use etherparse::{
    ArpHardwareId, ArpOperation, ArpPacket, EtherType, PacketBuilder, PacketBuilderStep, TcpHeader, VlanId,
};

pub const CLIENT_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x01];
pub const OWN_MAC: [u8; 6] = crate::model::OWN_MAC;
pub const CLIENT: [u8; 4] = [10, 0, 5, 5];
pub const VIP: [u8; 4] = [10, 0, 0, 100];
pub const BACKEND: [u8; 4] = [10, 1, 0, 77];
pub const CLIENT6: [u8; 16] = [0xfd, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5];
pub const VIP6: [u8; 16] = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0];
pub const BACKEND6: [u8; 16] = [0xfd, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x77];

/// First byte of the IP header in a frame without VLAN tags.
pub const L3: usize = 14;
/// First byte behind an IPv4 header without options.
pub const L4: usize = 34;
/// First byte behind an IPv6 header.
pub const L4_V6: usize = 54;

/// Finishes a packet of any builder step.
macro_rules! packet {
    ($step:expr, $payload:expr) => {{
        let mut bytes = Vec::new();
        $step.write(&mut bytes, $payload).unwrap();
        bytes
    }};
}

pub fn ethernet() -> PacketBuilderStep<etherparse::Ethernet2Header> {
    PacketBuilder::ethernet2(CLIENT_MAC, OWN_MAC)
}

pub fn bits(addr: [u8; 4]) -> u128 {
    u32::from_be_bytes(addr).into()
}

pub fn bits6(addr: [u8; 16]) -> u128 {
    u128::from_be_bytes(addr)
}

/// A header from port 4000 to port 80, sequence number 1000, with `flags` of the TCP header's byte.
pub fn segment(flags: u8) -> TcpHeader {
    let mut header = TcpHeader::new(4000, 80, 1000, 64_240);
    header.fin = flags & 0x01 != 0;
    header.syn = flags & 0x02 != 0;
    header.rst = flags & 0x04 != 0;
    header.psh = flags & 0x08 != 0;
    header.ack = flags & 0x10 != 0;
    if header.ack {
        header.acknowledgment_number = 77_000;
    }
    header
}

pub fn tcp(flags: u8, payload: &[u8]) -> Vec<u8> {
    packet!(ethernet().ipv4(CLIENT, VIP, 64).tcp_header(segment(flags)), payload)
}

pub fn tcp6(flags: u8, payload: &[u8]) -> Vec<u8> {
    packet!(ethernet().ipv6(CLIENT6, VIP6, 64).tcp_header(segment(flags)), payload)
}

pub fn udp(payload: &[u8]) -> Vec<u8> {
    packet!(ethernet().ipv4(CLIENT, VIP, 64).udp(4000, 53), payload)
}

pub fn udp6(payload: &[u8]) -> Vec<u8> {
    packet!(ethernet().ipv6(CLIENT6, VIP6, 64).udp(4000, 53), payload)
}

/// IPv4 with any protocol.
pub fn ip(protocol: u8, payload: &[u8]) -> Vec<u8> {
    edit(udp(payload), |bytes| {
        bytes.drain(L4..L4 + 8);
        bytes[L3 + 9] = protocol;
        let total = (20 + payload.len()) as u16;
        bytes[L3 + 2..L3 + 4].copy_from_slice(&total.to_be_bytes());
    })
}

/// IPv6 with any next header.
pub fn ip6(next: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = udp6(payload);
    bytes.drain(L4_V6..L4_V6 + 8);
    bytes[L3 + 6] = next;
    bytes[L3 + 4..L3 + 6].copy_from_slice(&(payload.len() as u16).to_be_bytes());
    bytes
}

/// IPv6 with these extension headers, each a (type, bytes behind its next-header field), before a UDP datagram.
pub fn extended(extensions: &[(u8, &[u8])]) -> Vec<u8> {
    let datagram = udp6(b"hello")[L4_V6..].to_vec();
    let types = extensions.iter().map(|(kind, _)| *kind).chain([17]);
    let mut chain = Vec::new();
    for (next, (_, body)) in types.skip(1).zip(extensions) {
        chain.push(next);
        chain.extend_from_slice(body);
    }
    chain.extend(datagram);
    ip6(extensions.first().map_or(17, |(kind, _)| *kind), &chain)
}

/// The first fragment of a datagram over IPv6.
pub fn first_fragment6() -> Vec<u8> {
    ip6(44, &[&[17, 0, 0, 1, 0, 0, 0, 9], &udp6(b"8 bytes!")[L4_V6..]].concat())
}

pub fn sctp() -> Vec<u8> {
    ip(132, &[0x0f, 0xa0, 0x00, 0x50, 1, 2, 3, 4, 5, 6, 7, 8, 1, 0, 0, 4])
}

pub fn echo(payload: &[u8]) -> Vec<u8> {
    packet!(ethernet().ipv4(CLIENT, VIP, 64).icmpv4_echo_request(7, 9), payload)
}

pub fn echo6(payload: &[u8]) -> Vec<u8> {
    packet!(ethernet().ipv6(CLIENT6, VIP6, 64).icmpv6_echo_request(7, 9), payload)
}

/// An ICMP error from the client about `quote`, an IP packet or its beginning.
pub fn error(kind: u8, code: u8, rest: u32, quote: &[u8]) -> Vec<u8> {
    packet!(ethernet().ipv4(CLIENT, VIP, 64).icmpv4_raw(kind, code, rest.to_be_bytes()), quote)
}

/// The same in ICMPv6.
pub fn error6(kind: u8, code: u8, rest: u32, quote: &[u8]) -> Vec<u8> {
    packet!(ethernet().ipv6(CLIENT6, VIP6, 64).icmpv6_raw(kind, code, rest.to_be_bytes()), quote)
}

/// What a frame without VLAN tags carries.
pub fn quote(frame: &[u8]) -> Vec<u8> {
    frame[L3..].to_vec()
}

pub fn arp(operation: ArpOperation, asker: [u8; 4]) -> Vec<u8> {
    let arp = ArpPacket::new(
        ArpHardwareId::ETHERNET,
        EtherType::IPV4,
        operation,
        &CLIENT_MAC,
        &asker,
        &[0; 6],
        &VIP,
    );
    let mut bytes = Vec::new();
    PacketBuilder::ethernet2(CLIENT_MAC, [0xff; 6]).arp(arp.unwrap()).write(&mut bytes).unwrap();
    bytes
}

/// The group that the holder of `VIP6` listens to.
pub const SOLICITED_NODE: [u8; 16] = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, 1, 0, 0];

/// A neighbour solicitation for `target`, with `options`.
pub fn solicitation(asker: [u8; 16], target: [u8; 16], hop_limit: u8, options: &[u8]) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2(CLIENT_MAC, [0x33, 0x33, 0xff, 1, 0, 0]);
    let payload = [&target, options].concat();
    packet!(builder.ipv6(asker, SOLICITED_NODE, hop_limit).icmpv6_raw(135, 0, [0; 4]), &payload)
}

/// Source link-layer address option.
pub const SOURCE_OPTION: [u8; 8] = [1, 1, 0x02, 0, 0, 0, 0, 0x01];

/// Applies `change` and makes the IPv4 header checksum right again, where there is one.
pub fn edit(mut bytes: Vec<u8>, change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    change(&mut bytes);
    if bytes[12..14] == [0x08, 0x00] {
        let end = (L3 + usize::from(bytes[L3] & 0x0f) * 4).clamp(L4, bytes.len());
        bytes[L3 + 10..L3 + 12].fill(0);
        let checksum = Sum::of(&bytes[L3..end]).checksum();
        bytes[L3 + 10..L3 + 12].copy_from_slice(&checksum.to_be_bytes());
    }
    bytes
}

/// Inserts `count` VLAN tags.
pub fn tagged(bytes: &[u8], count: usize) -> Vec<u8> {
    [&bytes[..12], &[0x81, 0x00, 0x20, 0x07].repeat(count), &bytes[12..]].concat()
}

/// Puts four bytes of IPv4 options (no operation) into the header.
pub fn with_options(bytes: Vec<u8>) -> Vec<u8> {
    edit(bytes, |bytes| {
        bytes[L3] = 0x46;
        let total = u16::from_be_bytes([bytes[L3 + 2], bytes[L3 + 3]]) + 4;
        bytes[L3 + 2..L3 + 4].copy_from_slice(&total.to_be_bytes());
        bytes.splice(L4..L4, [1; 4]);
    })
}

/// One of each, by name. They are the seeds of the fuzz target too.
pub fn all() -> Vec<(&'static str, Vec<u8>)> {
    let double = packet!(
        ethernet()
            .double_vlan(VlanId::try_new(7).unwrap(), VlanId::try_new(8).unwrap())
            .ipv6(CLIENT6, VIP6, 64)
            .udp(4000, 53),
        b"hello"
    );
    let options: &[u8] = &[0, 1, 4, 0, 0, 0, 0];
    let atomic: &[u8] = &[0, 0, 0, 0, 0, 0, 9];
    let routed: &[u8] = &[0, 4, 0, 0, 0, 0, 0];
    let quoted_extended = quote(&extended(&[(60, options), (44, atomic)]));
    vec![
        ("tcp_syn", tcp(0x02, b"")),
        ("tcp_data", tcp(0x18, b"GET / HTTP/1.1\r\n\r\n")),
        ("tcp_v6", tcp6(0x02, b"")),
        ("udp", udp(b"a question of some length")),
        ("udp_short", udp(b"x")),
        ("udp_v6", udp6(b"hello")),
        ("udp_ipv4_options", with_options(udp(b"hello"))),
        ("udp_vlan", tagged(&udp(b"a question of some length"), 1)),
        ("udp_v6_double_vlan", double),
        ("udp_v6_extended", extended(&[(0, options), (60, options), (43, routed), (44, atomic)])),
        ("udp_padded", edit(udp(b"x"), |bytes| bytes.resize(60, 0xee))),
        ("sctp", sctp()),
        ("fragment", edit(udp(b"8 bytes!"), |bytes| bytes[L3 + 6] = 0x20)),
        ("fragment_v6", first_fragment6()),
        ("fragment_later", edit(udp(b"hello"), |bytes| bytes[L3 + 7] = 2)),
        ("arp_request", arp(ArpOperation::REQUEST, CLIENT)),
        ("arp_probe", arp(ArpOperation::REQUEST, [0; 4])),
        ("arp_reply", arp(ArpOperation::REPLY, CLIENT)),
        ("solicitation", solicitation(CLIENT6, VIP6, 255, &SOURCE_OPTION)),
        ("solicitation_probe", solicitation([0; 16], VIP6, 255, &[])),
        ("echo", echo(b"ping")),
        ("echo_options", with_options(echo(b"ping"))),
        ("echo_v6", echo6(b"ping")),
        ("icmp_unreachable", error(3, 3, 0, &quote(&udp(b"hello"))[..28])),
        ("icmp_too_big", error(3, 4, 1400, &quote(&tcp(0x18, &[7; 100])))),
        ("icmp_time_exceeded", error(11, 0, 0, &quote(&sctp())[..28])),
        ("icmpv6_unreachable", error6(1, 4, 0, &quote(&udp6(b"hello")))),
        ("icmpv6_too_big", error6(2, 0, 1280, &quote(&tcp6(0x18, &[7; 100])))),
        ("icmpv6_extended", error6(3, 0, 0, &quoted_extended)),
        ("lldp", [&OWN_MAC[..], &CLIENT_MAC, &[0x88, 0xcc], &[0; 46]].concat()),
    ]
}
