//! Frames as a fuzzer's bytes spell them: right in all that is not asked to be wrong.

use super::kept;
use crate::flow::key::{FlowKey, TCP, UDP};
use crate::wire::checksum::Sum;
use crate::wire::{icmp, ipv4, ipv6};

/// What the checksum field of a TCP segment or UDP datagram holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Field {
    Right,
    Wrong,
    /// Only the pseudo-header's sum.
    Partial,
    Zero,
}

/// A frame from its Ethernet header up to the IP header.
#[derive(Clone, Copy, Debug)]
pub(super) struct Outer {
    pub(super) mac: [u8; 6],
    pub(super) tags: usize,
    pub(super) ttl: u8,
    /// IPv4: an option; IPv6: an extension header.
    pub(super) extended: bool,
    /// IPv4: the flags and offset of the header.
    pub(super) fragment: u16,
}

impl Outer {
    fn ethernet(&self, ethertype: u16) -> Vec<u8> {
        let mut bytes = [self.mac, [2, 0, 0, 0, 9, 9]].concat();
        for tag in 0..self.tags {
            bytes.extend(if tag == 0 && self.tags > 1 { [0x88, 0xa8, 0, 5] } else { [0x81, 0, 0x20, 77] });
        }
        bytes.extend(ethertype.to_be_bytes());
        bytes
    }

    /// The frame around an upper-layer message.
    fn ip(&self, v6: bool, src: u128, dst: u128, proto: u8, message: &[u8]) -> Vec<u8> {
        let extension = usize::from(self.extended) * if v6 { 8 } else { 4 };
        let len = extension + message.len() + if v6 { 0 } else { 20 };
        let [high, low] = u16::try_from(len).expect("a frame is shorter").to_be_bytes();
        let mut bytes = self.ethernet(if v6 { 0x86dd } else { 0x0800 });
        if v6 {
            bytes.extend([0x60, 0, 0, 0, high, low, if self.extended { 0 } else { proto }, self.ttl]);
            bytes.extend([src.to_be_bytes(), dst.to_be_bytes()].concat());
            bytes.extend(&[proto, 0, 1, 4, 0, 0, 0, 0][..extension]);
        } else {
            let [flags, offset] = self.fragment.to_be_bytes();
            let ihl = if self.extended { 0x46 } else { 0x45 };
            let mut header = vec![ihl, 0, high, low, 0x12, 0x34, flags, offset, self.ttl, proto, 0, 0];
            header
                .extend([&src.to_be_bytes()[12..], &dst.to_be_bytes()[12..], &[1; 4][..extension]].concat());
            let checksum = Sum::of(&header).checksum();
            header[10..12].copy_from_slice(&checksum.to_be_bytes());
            bytes.extend(header);
        }
        bytes.extend(message);
        bytes
    }

    /// An ICMP or ICMPv6 message with its checksum.
    fn icmp(&self, v6: bool, src: u128, dst: u128, mut message: Vec<u8>) -> Vec<u8> {
        let proto = if v6 { ipv6::ICMPV6 } else { ipv4::ICMP };
        let covered = if v6 { Sum::pseudo_header(src, dst, proto, len(&message)) } else { Sum::default() };
        let checksum = (covered + Sum::of(&message)).checksum();
        message[2..4].copy_from_slice(&checksum.to_be_bytes());
        self.ip(v6, src, dst, proto, &message)
    }

    /// A TCP segment, UDP datagram, or just ports in any other protocol.
    /// A segment's own number and the one that it acknowledges are `numbers`.
    pub(super) fn transport(
        &self,
        key: &FlowKey,
        flags: u8,
        numbers: [u32; 2],
        payload: usize,
        field: Field,
    ) -> Vec<u8> {
        let [[s0, s1], [d0, d1]] = [key.sport, key.dport].map(u16::to_be_bytes);
        let payload = kept::payload(key.dport, payload);
        let (mut segment, at) = match key.proto {
            TCP => {
                let [own, acknowledged] = numbers.map(u32::to_be_bytes);
                let header =
                    [&[s0, s1, d0, d1][..], &own, &acknowledged, &[0x50, flags, 0x20, 0, 0, 0, 0, 0]];
                (header.concat(), 16)
            }
            _ => {
                let [high, low] = (8 + len(&payload)).to_be_bytes();
                (vec![s0, s1, d0, d1, high, low, 0, 0], 6)
            }
        };
        segment.extend(payload);
        let pseudo_header = Sum::pseudo_header(key.src, key.dst, key.proto, len(&segment));
        let sum = pseudo_header + Sum::of(&segment);
        let right = if key.proto == UDP { sum.udp_checksum() } else { sum.checksum() };
        let field = match field {
            Field::Right => right,
            Field::Wrong => right ^ 0x0101,
            Field::Partial => pseudo_header.fold(),
            Field::Zero => 0,
        };
        segment[at..at + 2].copy_from_slice(&field.to_be_bytes());
        self.ip(key.v6, key.src, key.dst, key.proto, &segment)
    }

    /// An ICMP error about the IP packet that starts with `quote`, from `src` to `dst`. `kind` picks which.
    pub(super) fn error(&self, kind: u8, v6: bool, src: u128, dst: u128, quote: &[u8]) -> Vec<u8> {
        use icmp::{v4, v6};

        let [kind, code] = match (v6, kind % 3) {
            (false, 0) => [v4::UNREACHABLE, 3],
            (false, 1) => [v4::UNREACHABLE, v4::FRAGMENTATION_NEEDED],
            (false, _) => [v4::TIME_EXCEEDED, 0],
            (true, 0) => [v6::UNREACHABLE, 4],
            (true, 1) => [v6::PACKET_TOO_BIG, 0],
            (true, _) => [v6::TIME_EXCEEDED, 0],
        };
        self.icmp(v6, src, dst, [&[kind, code, 0, 0, 0, 0, 5, 0], quote].concat())
    }

    /// An echo request.
    pub(super) fn echo(&self, v6: bool, src: u128, dst: u128) -> Vec<u8> {
        let kind = if v6 { icmp::v6::ECHO_REQUEST } else { icmp::v4::ECHO_REQUEST };
        self.icmp(v6, src, dst, vec![kind, 0, 0, 0, 0, 1, 0, 2, b'p', b'i', b'n', b'g'])
    }

    /// An ARP request or a neighbour solicitation for `target`. A solicitation from no address goes to the group of
    /// the target (RFC 4861, section 7.1.1).
    pub(super) fn who_has(&self, v6: bool, src: u128, target: u128) -> Vec<u8> {
        if v6 {
            let message =
                [&[icmp::v6::NEIGHBOUR_SOLICITATION, 0, 0, 0, 0, 0, 0, 0], &target.to_be_bytes()[..]];
            let group = 0xff02 << 112 | 0x0001_ff00_0000 | target & 0x00ff_ffff;
            let dst = if src == 0 { group } else { target };
            return Self { ttl: 255, ..*self }.icmp(true, src, dst, message.concat());
        }
        let mut bytes = self.ethernet(0x0806);
        bytes.extend([0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 9, 9]);
        bytes.extend([&src.to_be_bytes()[12..], &[0; 6], &target.to_be_bytes()[12..]].concat());
        bytes
    }
}

fn len(bytes: &[u8]) -> u16 {
    u16::try_from(bytes.len()).expect("a frame is shorter")
}
