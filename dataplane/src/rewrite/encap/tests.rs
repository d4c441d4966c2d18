//! Outer headers against the kernel's recordings, and against a reader that is not Weir's.

use etherparse::{NetHeaders, PacketBuilder, PacketHeaders, PayloadSlice, TransportHeader};
use proptest::prelude::*;

use super::*;
use crate::frame::MIN_HEADROOM;
use crate::ids::PortId;
use crate::packet::parse;
use crate::snapshot::net::{Hop, Link};

const MODES: [Mode; 3] = [Mode::Ipip, Mode::Gue, Mode::Gre];
const CHECKSUMS: [TunnelChecksum; 3] = [TunnelChecksum::None, TunnelChecksum::Full, TunnelChecksum::Remote];

/// A frame with 64 bytes of data over either IP version, with `tags` VLAN tags and some padding.
fn inner(v6: bool, udp: bool, tags: usize, (tos, ttl, dont_fragment): (u8, u8, bool)) -> Vec<u8> {
    let data = [b'x'; 64];
    let mut packet = Vec::new();
    let builder = if v6 {
        PacketBuilder::ipv6([0xfd; 16], [0xfe; 16], ttl)
    } else {
        PacketBuilder::ipv4([10, 0, 5, 5], [10, 0, 0, 100], ttl)
    };
    if udp {
        builder.udp(4000, 80).write(&mut packet, &data).unwrap();
    } else {
        builder.tcp(4000, 80, 1, 2).write(&mut packet, &data).unwrap();
    }
    if v6 {
        packet[0] = 0x60 | tos >> 4;
        packet[1] = tos << 4;
    } else {
        packet[1] = tos;
        packet[6] = if dont_fragment { 0x40 } else { 0 };
        packet[10..12].fill(0);
        let checksum = Sum::of(&packet[..20]).checksum();
        packet[10..12].copy_from_slice(&checksum.to_be_bytes());
    }
    let mut frame = vec![2; 12];
    frame.extend([0x81, 0, 0, 7].repeat(tags));
    frame.extend(if v6 { [0x86, 0xdd] } else { [0x08, 0x00] });
    frame.extend(packet);
    frame.extend([0xee; 5]);
    frame
}

fn hop(tags: usize) -> Hop {
    let vlans = [(0x88a8, 5), (0x8100, 6)].into_iter().skip(2 - tags).collect();
    Hop::new(&Link { port: PortId(1), vlans, mtu: 1500 }, [4; 6], [6; 6])
}

/// The frame that leaves.
fn sent(bytes: &[u8], outer: &Outer, tags: usize, unfinished: bool) -> Vec<u8> {
    let packet = parse(bytes).unwrap();
    let mut chunk = [&[0xa5; MIN_HEADROOM], bytes].concat();
    let mut frame = Frame::new(&mut chunk, MIN_HEADROOM, bytes.len(), PortId(0)).unwrap();
    if unfinished {
        assert!(nat::note_partial(&mut frame, &packet));
    }
    outer.encapsulate(&mut frame, &packet, unfinished).unwrap();
    l2::readdress(&mut frame, &packet, &hop(tags)).unwrap();
    assert_eq!(frame.checksum, Checksum::Complete);
    frame.bytes().to_vec()
}

fn outer(mode: Mode, checksum: TunnelChecksum, v6: bool) -> Outer {
    let (src, dst) =
        if v6 { (0xfd01 << 112 | 0xfe, 0xfd01 << 112 | 0x4d) } else { (0x0a01_00fe, 0x0a01_004d) };
    let tunnel = Tunnel { port: 6080, checksum };
    Outer { mode, tunnel, v6, src, dst, entropy: 0x1234_5678, id: 0x4242 }
}

/// The packet inside, read by etherparse and the RFCs; everything around it is checked on the way.
fn decapsulated(frame: &[u8], outer: &Outer) -> Vec<u8> {
    let headers = PacketHeaders::from_ethernet_slice(frame).unwrap();
    let PayloadSlice::Ip(ip) = (match headers.payload {
        PayloadSlice::Udp(data) => {
            let Some(TransportHeader::Udp(udp)) = headers.transport else { panic!("not UDP") };
            assert_eq!((udp.destination_port, usize::from(udp.length)), (6080, data.len() + 8));
            assert!(udp.source_port >= 49_152);
            let right = match headers.net.as_ref().unwrap() {
                NetHeaders::Ipv4(ip, _) => udp.calc_checksum_ipv4(ip, data).unwrap(),
                NetHeaders::Ipv6(ip, _) => udp.calc_checksum_ipv6(ip, data).unwrap(),
                NetHeaders::Arp(_) => panic!("ARP"),
            };
            let none = outer.tunnel.checksum == TunnelChecksum::None;
            assert_eq!(udp.checksum, if none { 0 } else { right }, "outer UDP checksum");
            return in_gue(data);
        }
        payload => payload,
    }) else {
        panic!("no IP payload")
    };
    if ip.ip_number.0 == 47 { in_gre(ip.payload, outer) } else { ip.payload.to_vec() }
}

fn in_gue(data: &[u8]) -> Vec<u8> {
    let (header, payload) = data.split_at(4 + usize::from(data[0]) * 4);
    let mut inner = payload.to_vec();
    assert_eq!(header[1], if inner[0] >> 4 == 6 { 41 } else { 4 });
    match header.len() {
        4 => assert_eq!(header, [0, header[1], 0, 0]),
        12 => {
            assert_eq!(header[..8], [2, header[1], 0, 1, 0x80, 0, 0, 0]);
            let [start, field] = [[header[8], header[9]], [header[10], header[11]]].map(u16::from_be_bytes);
            let checksum = Sum::of(&inner[start.into()..]).udp_checksum();
            inner[usize::from(field)..][..2].copy_from_slice(&checksum.to_be_bytes());
        }
        other => panic!("a GUE header of {other} bytes"),
    }
    inner
}

fn in_gre(payload: &[u8], outer: &Outer) -> Vec<u8> {
    let full = outer.tunnel.checksum == TunnelChecksum::Full;
    let (header, inner) = payload.split_at(if full { 8 } else { 4 });
    assert_eq!(header[..2], [if full { 0x80 } else { 0 }, 0]);
    assert_eq!(header[2..4], if inner[0] >> 4 == 6 { [0x86, 0xdd] } else { [8, 0] });
    assert!(!full || Sum::of(payload).verifies(), "GRE checksum");
    inner.to_vec()
}

/// The packet in `frame` with one hop less.
fn one_hop_less(frame: &[u8], tags: usize) -> Vec<u8> {
    let mut packet = frame[14 + tags * 4..frame.len() - 5].to_vec();
    if packet[0] >> 4 == 6 {
        packet[7] -= 1;
    } else {
        packet[8] -= 1;
        packet[10..12].fill(0);
        let checksum = Sum::of(&packet[..20]).checksum();
        packet[10..12].copy_from_slice(&checksum.to_be_bytes());
    }
    packet
}

proptest! {
    #[test]
    fn what_comes_out_of_a_tunnel_is_what_went_in_with_one_hop_less(
        (mode, checksum) in (proptest::sample::select(&MODES[..]), proptest::sample::select(&CHECKSUMS[..])),
        (v6, outer_v6, udp, unfinished) in any::<(bool, bool, bool, bool)>(),
        (tags, tags_after) in (0..3usize, 0..3usize),
        (tos, ttl, dont_fragment) in (any::<u8>(), 2..=255u8, any::<bool>()),
        (entropy, id) in any::<(u32, u16)>(),
    ) {
        let mut bytes = inner(v6, udp, tags, (tos, ttl, dont_fragment));
        let whole = one_hop_less(&bytes, tags);
        if unfinished {
            let packet = parse(&bytes).unwrap();
            let key = packet.key;
            let sum = Sum::pseudo_header(key.src, key.dst, key.proto, packet.end - packet.l4).fold();
            let at = usize::from(packet.l4 + nat::checksum_offset(&packet));
            bytes[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        }
        let outer = Outer { entropy, id, ..outer(mode, checksum, outer_v6) };
        let frame = sent(&bytes, &outer, tags_after, unfinished);
        let added = usize::from(outer.overhead(unfinished));
        prop_assert_eq!(frame.len(), 14 + tags_after * 4 + added + whole.len());
        prop_assert_eq!(&frame[..12 + tags_after * 4], &hop(tags_after).header[..]);
        prop_assert_eq!(decapsulated(&frame, &outer), whole);

        let headers = PacketHeaders::from_ethernet_slice(&frame).unwrap();
        let outer_tos = if tos & 3 == 3 { tos - 1 } else { tos };
        match headers.net.unwrap() {
            NetHeaders::Ipv4(ip, _) => {
                prop_assert_eq!(ip.header_checksum, ip.calc_header_checksum());
                prop_assert_eq!((ip.time_to_live, ip.dscp.value() << 2 | ip.ecn.value()), (ttl - 1, outer_tos));
                prop_assert_eq!(ip.dont_fragment, dont_fragment && !v6);
                prop_assert_eq!(ip.identification, if dont_fragment && !v6 { 0 } else { id });
            }
            NetHeaders::Ipv6(ip, _) => {
                prop_assert_eq!((ip.hop_limit, ip.traffic_class), (ttl - 1, outer_tos));
                prop_assert_ne!(ip.flow_label.value(), 0);
            }
            NetHeaders::Arp(_) => prop_assert!(false),
        }
    }
}

#[test]
fn a_frame_without_headroom_is_refused() {
    let bytes = inner(false, false, 0, (0, 64, true));
    let packet = parse(&bytes).unwrap();
    let mut chunk = [&[0; 19], &bytes[..]].concat();
    let mut frame = Frame::new(&mut chunk, 19, bytes.len(), PortId(0)).unwrap();
    let outer = outer(Mode::Ipip, TunnelChecksum::None, false);
    assert_eq!(outer.encapsulate(&mut frame, &packet, false), Err(DropReason::NoHeadroom));
}
