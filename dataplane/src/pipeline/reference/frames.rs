//! Frames with right checksums, as plain as they can be.

use super::kernel::{SCTP, Seen, TCP};
use crate::flow::key::FlowKey;
use crate::wire::checksum::Sum;
use crate::wire::sctp::crc;

/// A frame between the ends of `key`.
pub(super) fn frame(key: &FlowKey, seen: Seen) -> Vec<u8> {
    let segment = segment(key, seen);
    let len = u16::try_from(segment.len()).expect("a short segment");
    let mut frame = vec![2, 0, 0, 0, 9, 8, 2, 0, 0, 0, 9, 9];
    if key.v6 {
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
        frame.extend(len.to_be_bytes());
        frame.extend([key.proto, 64]);
        frame.extend([key.src.to_be_bytes(), key.dst.to_be_bytes()].concat());
    } else {
        let mut header = vec![0x45, 0];
        header.extend((len + 20).to_be_bytes());
        header.extend([0x12, 0x34, 0x40, 0, 64, key.proto, 0, 0]);
        header.extend([&key.src.to_be_bytes()[12..], &key.dst.to_be_bytes()[12..]].concat());
        let checksum = Sum::of(&header).checksum();
        header[10..12].copy_from_slice(&checksum.to_be_bytes());
        frame.extend([8, 0]);
        frame.extend(header);
    }
    frame.extend(segment);
    frame
}

fn segment(key: &FlowKey, seen: Seen) -> Vec<u8> {
    let mut segment = [key.sport.to_be_bytes(), key.dport.to_be_bytes()].concat();
    let field = match key.proto {
        TCP => {
            segment.extend([0, 0, 0, 1, 0, 0, 0, 2, 0x50, seen.flags, 0x20, 0, 0, 0, 0, 0]);
            16
        }
        SCTP => {
            segment.extend([7; 4]);
            segment.extend([0; 4]);
            segment.extend(seen.chunk.into_iter().flat_map(|kind| [kind, 0, 0, 4]));
            let crc = crc::checksum([&segment[..]]);
            segment[8..12].copy_from_slice(&crc.to_le_bytes());
            return segment;
        }
        _ => {
            segment.extend([0, 12, 0, 0, 1, 2, 3, 4]);
            6
        }
    };
    let len = u16::try_from(segment.len()).expect("a short segment");
    let sum = Sum::pseudo_header(key.src, key.dst, key.proto, len) + Sum::of(&segment);
    segment[field..field + 2].copy_from_slice(&sum.udp_checksum().to_be_bytes());
    segment
}
