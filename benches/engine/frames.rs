//! Frames in memory, laid out as AF_XDP has them: one a chunk, behind the kernel's headroom.

use dataplane::flow::key::{self, FlowKey};
use dataplane::frame::{BATCH, Frame};
use dataplane::ids::PortId;

/// Bytes of a chunk, as in a UMEM.
const CHUNK: usize = 2048;
/// Where a received frame starts in its chunk: XDP's headroom.
const START: usize = 256;
/// Frames that are prepared, then processed under the clock: enough batches to make reading the clock cheap, few
/// enough to lie in the second-level cache, as frames do that a driver has just written.
pub(crate) const SECTION: usize = 16 * BATCH;

/// Bytes behind the TCP header: what makes an IPv4 frame 60 bytes long, the shortest on Ethernet.
const PAYLOAD: usize = 6;
/// Ethernet, IPv4 without options and TCP without options.
pub(crate) const HEADERS_V4: usize = 14 + 20 + 20;
const HEADERS_V6: usize = 14 + 40 + 20;

/// TCP flags of a first packet.
pub(crate) const SYN: u8 = 0x02;
/// TCP flags of the answer to it.
pub(crate) const SYN_ACK: u8 = 0x12;
/// TCP flags of a packet in the middle of a flow.
pub(crate) const ACK: u8 = 0x10;

/// The memory of one section.
pub(crate) struct Chunks(Vec<u8>);

impl Chunks {
    /// Memory with every page faulted in.
    pub(crate) fn new() -> Self {
        Self(vec![0xff; SECTION * CHUNK])
    }

    /// Writes a section: the packets that `next` gives, as received by `port`.
    pub(crate) fn fill(
        &mut self,
        port: PortId,
        count: usize,
        mut next: impl FnMut() -> (FlowKey, u8),
    ) -> Vec<Frame<'_>> {
        let chunks = self.0.chunks_exact_mut(CHUNK).take(count);
        chunks
            .map(|chunk| {
                let (key, flags) = next();
                let len = write(&mut chunk[START..], &key, flags);
                Frame::new(chunk, START, len, port).expect("the frame lies in its chunk")
            })
            .collect()
    }
}

/// Writes a whole TCP segment to `to`. Returns its length.
fn write(to: &mut [u8], key: &FlowKey, flags: u8) -> usize {
    to[..12].copy_from_slice(&[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 9]);
    let l4 = if key.v6 { write_v6(to, key) } else { write_v4(to, key) };
    let segment = &mut to[l4..l4 + 20 + PAYLOAD];
    segment.fill(0);
    segment[..2].copy_from_slice(&key.sport.to_be_bytes());
    segment[2..4].copy_from_slice(&key.dport.to_be_bytes());
    segment[12] = 5 << 4;
    segment[13] = flags;
    segment[14..16].copy_from_slice(&0xffff_u16.to_be_bytes());
    let value = finish(sum(segment) + pseudo_header(key));
    segment[16..18].copy_from_slice(&value.to_be_bytes());
    l4 + 20 + PAYLOAD
}

fn write_v4(to: &mut [u8], key: &FlowKey) -> usize {
    to[12..14].copy_from_slice(&[0x08, 0x00]);
    let header = &mut to[14..34];
    header.copy_from_slice(&[
        0x45,
        0,
        0,
        20 + 20 + PAYLOAD as u8,
        0,
        0,
        0x40,
        0,
        64,
        key::TCP,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
    ]);
    header[12..16].copy_from_slice(&(key.src as u32).to_be_bytes());
    header[16..20].copy_from_slice(&(key.dst as u32).to_be_bytes());
    let value = finish(sum(header));
    header[10..12].copy_from_slice(&value.to_be_bytes());
    34
}

fn write_v6(to: &mut [u8], key: &FlowKey) -> usize {
    to[12..14].copy_from_slice(&[0x86, 0xdd]);
    let header = &mut to[14..54];
    header[..8].copy_from_slice(&[0x60, 0, 0, 0, 0, 20 + PAYLOAD as u8, key::TCP, 64]);
    header[8..24].copy_from_slice(&key.src.to_be_bytes());
    header[24..40].copy_from_slice(&key.dst.to_be_bytes());
    54
}

/// The key of a frame that [`write`] made or the engine rewrote; `None` where a length, a TTL or a checksum is wrong.
pub(crate) fn read(frame: &[u8]) -> Option<FlowKey> {
    let v6 = frame.get(12..14)? == [0x86, 0xdd];
    let l4 = if v6 { 54 } else { 34 };
    let whole = frame.len() == PAYLOAD + if v6 { HEADERS_V6 } else { HEADERS_V4 };
    let word = |at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
    whole.then_some(())?;
    let (src, dst) = if v6 {
        let address =
            |at: usize| frame[at..at + 16].iter().fold(0, |bits, byte| bits << 8 | u128::from(*byte));
        (address(22), address(38))
    } else {
        let address = |at: usize| u128::from(word(at)) << 16 | u128::from(word(at + 2));
        (address(26), address(30))
    };
    let key = FlowKey { src, dst, sport: word(l4), dport: word(l4 + 2), proto: key::TCP, v6 };
    let header = v6 || finish(sum(&frame[14..34])) == 0;
    (header && finish(sum(&frame[l4..]) + pseudo_header(&key)) == 0).then_some(key)
}

fn pseudo_header(key: &FlowKey) -> u64 {
    sum(&key.src.to_be_bytes()) + sum(&key.dst.to_be_bytes()) + u64::from(key::TCP) + (20 + PAYLOAD) as u64
}

fn sum(bytes: &[u8]) -> u64 {
    bytes.chunks_exact(2).map(|word| u64::from(u16::from_be_bytes([word[0], word[1]]))).sum()
}

fn finish(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}
