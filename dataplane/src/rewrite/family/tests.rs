//! Both ways against a reader that is not Weir's.

use etherparse::{NetHeaders, PacketBuilder, PacketHeaders, TransportHeader};
use proptest::prelude::*;

use super::*;
use crate::frame::MIN_HEADROOM;
use crate::ids::PortId;
use crate::packet::parse;
use crate::rewrite::nat::Deltas;
use crate::wire::checksum::Delta;

const V4: [u128; 2] = [0x0a01_0909, 0x0a01_004d];
const V6: [u128; 2] = [0xfd01 << 112 | 0x909, 0xfd01 << 112 | 0x4d];

/// A frame of either family, with options or an extension header where asked for, and `data`.
fn frame(v6: bool, udp: bool, extended: bool, tos: u8, data: &[u8]) -> Vec<u8> {
    let mut segment = Vec::new();
    let ip = if v6 {
        PacketBuilder::ipv6(V6[0].to_be_bytes(), V6[1].to_be_bytes(), 9)
    } else {
        let address = |bits: u128| (bits as u32).to_be_bytes();
        PacketBuilder::ipv4(address(V4[0]), address(V4[1]), 9)
    };
    if udp {
        ip.udp(4000, 80).write(&mut segment, data).unwrap();
    } else {
        ip.tcp(4000, 80, 1, 2).write(&mut segment, data).unwrap();
    }
    let (header, transport) = segment.split_at(if v6 { 40 } else { 20 });
    let mut header = header.to_vec();
    if v6 {
        (header[0], header[1]) = (0x60 | tos >> 4, tos << 4 | 0xb);
        if extended {
            let next = std::mem::replace(&mut header[6], 60);
            header.extend([next, 0, 1, 4, 0, 0, 0, 0]);
        }
        let len = (header.len() - 40 + transport.len()) as u16;
        header[4..6].copy_from_slice(&len.to_be_bytes());
    } else {
        header[1] = tos;
        if extended {
            header[0] = 0x46;
            header.extend([1, 1, 1, 0]);
        }
        let len = (header.len() + transport.len()) as u16;
        header[2..4].copy_from_slice(&len.to_be_bytes());
        header[10..12].fill(0);
        let checksum = Sum::of(&header).checksum();
        header[10..12].copy_from_slice(&checksum.to_be_bytes());
    }
    let mut bytes = vec![2; 12];
    bytes.extend(if v6 { [0x86, 0xdd] } else { [8, 0] });
    bytes.extend(header);
    bytes.extend(transport);
    bytes
}

fn target(v6: bool, proto: u8) -> FlowKey {
    let [src, dst] = if v6 { V6 } else { V4 };
    FlowKey { src, dst, sport: 1234, dport: 8080, proto, v6 }
}

/// The deltas that a flow would have.
fn deltas(before: &FlowKey, after: &FlowKey) -> Deltas {
    let covered = |key: &FlowKey| {
        Sum::address(key.src) + Sum::address(key.dst) + Sum::word(key.sport) + Sum::word(key.dport)
    };
    Deltas { header: Delta::NONE, transport: Delta::between(covered(before), covered(after)) }
}

fn translated(bytes: &[u8], unfinished: bool) -> Result<Vec<u8>, DropReason> {
    let packet = parse(bytes).unwrap();
    let target = target(!packet.key.v6, packet.key.proto);
    let mut chunk = [&[0xa5; MIN_HEADROOM], bytes].concat();
    let mut frame = Frame::new(&mut chunk, MIN_HEADROOM, bytes.len(), PortId(0)).unwrap();
    if unfinished {
        assert!(nat::note_partial(&mut frame, &packet));
    }
    translate(&mut frame, &packet, &target, &deltas(&packet.key, &target), unfinished, 77)?;
    assert_eq!(frame.checksum, Checksum::Complete);
    Ok(frame.bytes().to_vec())
}

proptest! {
    #[test]
    fn a_packet_is_the_same_in_the_other_family(
        (v6, udp, extended, unfinished) in any::<(bool, bool, bool, bool)>(),
        tos: u8,
        data in proptest::collection::vec(any::<u8>(), 0..1400),
    ) {
        let mut bytes = frame(v6, udp, extended, tos, &data);
        if unfinished {
            let packet = parse(&bytes).unwrap();
            let key = packet.key;
            let sum = Sum::pseudo_header(key.src, key.dst, key.proto, packet.end - packet.l4).fold();
            let at = usize::from(packet.l4 + nat::checksum_offset(&packet));
            bytes[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        }
        let after = translated(&bytes, unfinished).unwrap();
        let headers = PacketHeaders::from_ethernet_slice(&after).unwrap();
        let (net, transport) = (headers.net.unwrap(), headers.transport.unwrap());
        prop_assert_eq!(headers.payload.slice(), &data[..]);
        match net {
            NetHeaders::Ipv6(ref ip, _) => {
                prop_assert!(!v6);
                prop_assert_eq!((ip.hop_limit, ip.traffic_class), (8, tos));
                prop_assert_eq!([ip.source, ip.destination].map(u128::from_be_bytes), V6);
                prop_assert_eq!(after.len(), 54 + usize::from(ip.payload_length));
            }
            NetHeaders::Ipv4(ref ip, _) => {
                prop_assert!(v6);
                prop_assert_eq!((ip.time_to_live, ip.dscp.value() << 2 | ip.ecn.value()), (8, tos));
                prop_assert_eq!(ip.header_checksum, ip.calc_header_checksum());
                prop_assert_eq!(ip.dont_fragment, ip.total_len > 1260);
                prop_assert_eq!(ip.identification, if ip.dont_fragment { 0 } else { 77 });
                prop_assert_eq!(after.len(), 14 + usize::from(ip.total_len));
            }
            NetHeaders::Arp(_) => prop_assert!(false),
        }
        match transport {
            TransportHeader::Udp(ref udp) => {
                prop_assert_eq!((udp.source_port, udp.destination_port), (1234, 8080));
                let right = match net {
                    NetHeaders::Ipv4(ip, _) => udp.calc_checksum_ipv4(&ip, &data),
                    NetHeaders::Ipv6(ip, _) => udp.calc_checksum_ipv6(&ip, &data),
                    NetHeaders::Arp(_) => unreachable!(),
                };
                prop_assert_eq!(udp.checksum, right.unwrap());
            }
            TransportHeader::Tcp(ref tcp) => {
                prop_assert_eq!((tcp.source_port, tcp.destination_port), (1234, 8080));
                let right = match net {
                    NetHeaders::Ipv4(ip, _) => tcp.calc_checksum_ipv4(&ip, &data),
                    NetHeaders::Ipv6(ip, _) => tcp.calc_checksum_ipv6(&ip, &data),
                    NetHeaders::Arp(_) => unreachable!(),
                };
                prop_assert_eq!(tcp.checksum, right.unwrap());
            }
            other => prop_assert!(false, "{other:?}"),
        }
    }
}

#[test]
fn a_packet_with_routers_still_to_visit_is_not_translated() {
    for (name, options, want) in [
        ("one to visit", [131, 7, 4, 10, 0, 0, 9, 0], true),
        ("all visited", [131, 7, 8, 10, 0, 0, 9, 0], false),
        ("strictly", [1, 137, 7, 4, 10, 0, 0, 9], true),
        ("behind the end", [0, 131, 7, 4, 10, 0, 0, 9], false),
        ("an option of no length", [7, 0, 131, 7, 4, 1, 1, 1], false),
        ("an option past the end", [7, 40, 4, 1, 1, 1, 1, 1], false),
        ("behind another", [7, 3, 4, 131, 7, 4, 1, 1], true),
    ] {
        assert_eq!(ipv4::is_source_routed(&options), want, "{name}");
        let mut bytes = frame(false, false, false, 0, b"");
        bytes.splice(34..34, options);
        bytes[14] = 0x47;
        bytes[17] += 8;
        bytes[24..26].fill(0);
        let checksum = Sum::of(&bytes[14..42]).checksum();
        bytes[24..26].copy_from_slice(&checksum.to_be_bytes());
        assert_eq!(translated(&bytes, false).err(), want.then_some(DropReason::Unsupported), "{name}");
    }
}
