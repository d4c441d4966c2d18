//! The mark that tells a sink which generated frame it sees: the sender's stream and a sequence number. A load
//! balancer changes neither: in UDP the mark is the start of the payload, in TCP the sequence and acknowledgement numbers.

use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use etherparse::PacketBuilder;

use crate::checksum::{finish, sum};
use crate::packet::{Packet, TCP, word};

/// First two bytes of the mark's second word.
const MAGIC: u16 = 0x57e1;
/// The bit of the stream that asks for an answer.
const ANSWER: u16 = 0x8000;
/// Bytes of a mark.
const TAG: usize = 8;

/// Stream and sequence number of a generated frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tag {
    /// Which sending thread, below [`Tag::STREAMS`].
    pub(crate) stream: u16,
    /// Its how many-th frame, from 0 on.
    pub(crate) sequence: u32,
    /// Whether the sink shall answer.
    pub(crate) answer: bool,
}

impl Tag {
    /// Sending threads at most.
    pub(crate) const STREAMS: u16 = ANSWER;

    pub(crate) fn bytes(self) -> [u8; TAG] {
        let stream = self.stream | if self.answer { ANSWER } else { 0 };
        let word = u64::from(self.sequence) << 32 | u64::from(MAGIC) << 16 | u64::from(stream);
        word.to_be_bytes()
    }

    /// The mark of a packet; `None` where it has none.
    pub(crate) fn read(frame: &[u8], packet: &Packet) -> Option<Self> {
        let at = tag_at(packet);
        let [s0, s1, s2, s3, m0, m1, t0, t1] = *frame.get(at..packet.end)?.first_chunk::<TAG>()?;
        let stream = u16::from_be_bytes([t0, t1]);
        let tag = Self {
            stream: stream & !ANSWER,
            sequence: u32::from_be_bytes([s0, s1, s2, s3]),
            answer: stream & ANSWER != 0,
        };
        (u16::from_be_bytes([m0, m1]) == MAGIC).then_some(tag)
    }
}

fn tag_at(packet: &Packet) -> usize {
    packet.l4 + if packet.proto == TCP { 4 } else { 8 }
}

/// What generated packets are.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Protocol {
    /// UDP.
    Udp,
    /// TCP with SYN alone, without data: each the first packet of its flow, with padding where frames are longer.
    TcpSyn,
    /// TCP with ACK alone: a packet in the middle of its flow. The first of a new flow is a SYN of 60 bytes.
    TcpAck,
}

/// What all frames of a generator have in common.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    /// Ethernet source.
    pub(crate) src_mac: [u8; 6],
    /// Ethernet destination.
    pub(crate) dst_mac: [u8; 6],
    /// First source address.
    pub(crate) src: IpAddr,
    /// First destination address.
    pub(crate) dst: IpAddr,
    /// How many destination addresses there are; a flow's number counts through them.
    pub(crate) dsts: u32,
    /// First source port. A flow's number counts through the ports from here on, then through the addresses.
    pub(crate) sport: u16,
    /// Destination port.
    pub(crate) dport: u16,
    /// Protocol and flags.
    pub(crate) protocol: Protocol,
    /// Bytes of a frame, Ethernet header included, frame check sequence not.
    pub(crate) size: usize,
}

/// Writes frames of one [`Shape`]: only what differs between them, with the checksums that this makes.
#[derive(Debug)]
pub(crate) struct Writer {
    shape: Shape,
    template: Vec<u8>,
    packet: Packet,
    /// Last 32 bits of the first source and destination address.
    src: u32,
    dst: u32,
    header_sum: u64,
    transport_sum: u64,
}

impl Writer {
    /// A writer. Fails for addresses of two families and for a size that the headers and the mark do not fit in.
    pub(crate) fn new(shape: Shape) -> Result<Self> {
        let mut template = build(&shape)?;
        let packet = Packet::find(&template).context("template")?;
        // With the changing fields at zero, the sums of the rest are the same for every frame.
        let src = src_at(&packet);
        let mut zero = |at: usize, len: usize| -> Option<()> {
            template.get_mut(at..at + len)?.fill(0);
            Some(())
        };
        let zeroed = zero(src, 4)
            .and_then(|()| zero(dst_at(&packet), 4))
            .and_then(|()| zero(packet.l4, 2))
            .and_then(|()| zero(tag_at(&packet), TAG))
            .and_then(|()| zero(packet.checksum_at(), 2))
            .and_then(|()| if packet.v6 { Some(()) } else { zero(packet.l3 + 10, 2) });
        zeroed.context("template")?;
        let header = template.get(packet.l3..packet.l4).unwrap_or_default();
        let header_sum = sum(header);
        let transport_sum = packet.transport_sum(&template).context("template")?;
        let (src, dst) = (low(shape.src), low(shape.dst));
        Ok(Self { shape, template, packet, src, dst, header_sum, transport_sum })
    }

    /// How many flows have tuples of their own.
    pub(crate) fn flow_limit(&self) -> u64 {
        self.ports() << 32
    }

    fn ports(&self) -> u64 {
        0x1_0000 - u64::from(self.shape.sport)
    }

    /// Writes all of a frame but what [`Writer::write`] does.
    pub(crate) fn prepare(&self, frame: &mut [u8]) {
        if let Some(frame) = frame.get_mut(..self.template.len()) {
            frame.copy_from_slice(&self.template);
        }
    }

    /// Bytes of a frame.
    pub(crate) fn size(&self) -> usize {
        self.template.len()
    }

    /// Last 32 bits of the source address, and source port, of a flow.
    #[expect(clippy::cast_possible_truncation, reason = "ports are below 65,536, addresses wrap by contract")]
    fn source(&self, flow: u64) -> (u32, u16) {
        let ports = self.ports();
        (self.src.wrapping_add((flow / ports) as u32), self.shape.sport + (flow % ports) as u16)
    }

    /// The flow whose packets come from this address (its last 32 bits) and port.
    pub(crate) fn flow_from(&self, addr: u32, port: u16) -> Option<u64> {
        let port = u64::from(port.checked_sub(self.shape.sport)?);
        Some(u64::from(addr.wrapping_sub(self.src)) * self.ports() + port)
    }

    /// Last 32 bits of the destination address of a flow.
    #[expect(clippy::cast_possible_truncation, reason = "the remainder is below a 32-bit number")]
    pub(crate) fn destination(&self, flow: u64) -> u32 {
        self.dst.wrapping_add((flow % u64::from(self.shape.dsts)) as u32)
    }

    /// Makes a prepared frame the one of `flow` with `tag`. `None` where the frame is shorter than the shape.
    pub(crate) fn write(&self, frame: &mut [u8], flow: u64, tag: Tag) -> Option<()> {
        let packet = &self.packet;
        let (src, sport) = self.source(flow);
        let (src, dst) = (src.to_be_bytes(), self.destination(flow).to_be_bytes());
        let tag = tag.bytes();
        put(frame, src_at(packet), &src)?;
        put(frame, dst_at(packet), &dst)?;
        put(frame, packet.l4, &sport.to_be_bytes())?;
        put(frame, tag_at(packet), &tag)?;
        let addresses = sum(&src) + sum(&dst);
        if !packet.v6 {
            put(frame, packet.l3 + 10, &finish(self.header_sum + addresses))?;
        }
        let value = finish(self.transport_sum + addresses + word(sport) + sum(&tag));
        // Zero would say that there is none (RFC 768); in TCP both forms of zero are right.
        let value = if value == [0, 0] { [0xff, 0xff] } else { value };
        put(frame, packet.checksum_at(), &value)
    }
}

/// Where the last 32 bits of the source address lie.
fn src_at(packet: &Packet) -> usize {
    packet.l3 + if packet.v6 { 20 } else { 12 }
}

/// Where the last 32 bits of the destination address lie.
fn dst_at(packet: &Packet) -> usize {
    packet.l3 + if packet.v6 { 36 } else { 16 }
}

/// Last 32 bits of an address.
pub(crate) fn low(addr: IpAddr) -> u32 {
    match addr {
        IpAddr::V4(v4) => v4.to_bits(),
        IpAddr::V6(v6) => {
            let [.., high, low] = v6.segments();
            u32::from(high) << 16 | u32::from(low)
        }
    }
}

fn put(frame: &mut [u8], at: usize, bytes: &[u8]) -> Option<()> {
    frame.get_mut(at..at + bytes.len())?.copy_from_slice(bytes);
    Some(())
}

fn build(shape: &Shape) -> Result<Vec<u8>> {
    let ethernet = PacketBuilder::ethernet2(shape.src_mac, shape.dst_mac);
    let (ip, ip_len) = match (shape.src, shape.dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => (ethernet.ipv4(src.octets(), dst.octets(), 64), 20),
        (IpAddr::V6(src), IpAddr::V6(dst)) => (ethernet.ipv6(src.octets(), dst.octets(), 64), 40),
        (src, dst) => anyhow::bail!("{src} and {dst} are of different families"),
    };
    // The mark is payload in UDP only.
    let (transport_len, least) = match shape.protocol {
        Protocol::Udp => (8, TAG),
        Protocol::TcpSyn | Protocol::TcpAck => (20, 0),
    };
    let headers = 14 + ip_len + transport_len;
    ensure!(
        shape.size >= headers + least,
        "frames of {} bytes are too short: {} at least",
        shape.size,
        headers + least
    );
    let payload = vec![0; shape.size - headers];
    let mut frame = Vec::with_capacity(shape.size);
    match shape.protocol {
        Protocol::Udp => ip.udp(shape.sport, shape.dport).write(&mut frame, &payload)?,
        Protocol::TcpSyn => {
            ip.tcp(shape.sport, shape.dport, 0, u16::MAX).syn().write(&mut frame, &[])?;
            frame.resize(shape.size, 0);
        }
        Protocol::TcpAck => {
            ip.tcp(shape.sport, shape.dport, 0, u16::MAX).ack(0).write(&mut frame, &payload)?
        }
    }
    Ok(frame)
}

#[cfg(test)]
pub(crate) mod tests {
    use etherparse::SlicedPacket;

    use super::*;

    fn shape(v6: bool, protocol: Protocol, size: usize) -> Shape {
        let (src, dst) = if v6 { ("fd00::1:0", "fd00::2") } else { ("10.1.0.0", "10.2.0.1") };
        let [src, dst] = [src, dst].map(|addr| addr.parse().unwrap());
        Shape {
            src_mac: [2; 6],
            dst_mac: [4; 6],
            src,
            dst,
            dsts: 3,
            sport: 65_000,
            dport: 80,
            protocol,
            size,
        }
    }

    /// A writer of the shortest UDP frames.
    pub(crate) fn udp_writer() -> Writer {
        Writer::new(shape(false, Protocol::Udp, 60)).unwrap()
    }

    #[test]
    fn written_frames_are_whole_and_carry_their_tag() {
        for v6 in [false, true] {
            for protocol in [Protocol::Udp, Protocol::TcpSyn, Protocol::TcpAck] {
                for size in [90, 91, 1514] {
                    let writer = Writer::new(shape(v6, protocol, size)).unwrap();
                    let mut frame = vec![0xee; size];
                    writer.prepare(&mut frame);
                    for (number, answer) in
                        [(0, false), (1, true), (535, false), (536, true), (70_000, false)]
                    {
                        let tag = Tag { stream: 3, sequence: u32::MAX - 5, answer };
                        writer.write(&mut frame, number, tag).unwrap();
                        let packet = Packet::find(&frame).unwrap();
                        let headers = if v6 { 74 } else { 54 };
                        let data = !matches!(protocol, Protocol::TcpSyn);
                        assert_eq!(packet.end, if data { size } else { headers });
                        assert!(packet.is_intact(&frame), "{protocol:?} v6 {v6} size {size} flow {number}");
                        assert_eq!(Tag::read(&frame, &packet), Some(tag));
                        let (addr, port) = writer.source(number);
                        assert_eq!(writer.flow_from(addr, port), Some(number));
                    }
                }
            }
        }
    }

    #[test]
    fn every_flow_has_a_tuple_of_its_own() {
        let writer = udp_writer();
        let mut frame = vec![0; 60];
        writer.prepare(&mut frame);
        let tuples: std::collections::HashSet<_> = (0..5000)
            .map(|number| {
                let tag = Tag { stream: 0, sequence: 0, answer: false };
                writer.write(&mut frame, number, tag).unwrap();
                let sliced = SlicedPacket::from_ethernet(&frame).unwrap();
                let Some(etherparse::NetSlice::Ipv4(ip)) = sliced.net else { panic!("not IPv4") };
                let Some(etherparse::TransportSlice::Udp(udp)) = sliced.transport else { panic!("not UDP") };
                (ip.header().source_addr(), udp.source_port())
            })
            .collect();
        assert_eq!(tuples.len(), 5000);
    }

    #[test]
    fn shapes_that_cannot_be_are_refused() {
        assert!(Writer::new(shape(false, Protocol::Udp, 49)).is_err());
        assert!(Writer::new(shape(false, Protocol::Udp, 50)).is_ok());
        let mixed = Shape { dst: "fd00::2".parse().unwrap(), ..shape(false, Protocol::Udp, 100) };
        assert!(Writer::new(mixed).is_err());
    }
}
