//! What the far end of a flow says. It keeps no state: what a packet is answered with follows from the packet alone.

use crate::checksum::{finish, sum};
use crate::packet::{Packet, TCP, UDP};
use crate::tag::Tag;

/// Flags of a TCP header.
pub(crate) mod flag {
    /// No more data.
    pub(crate) const FIN: u8 = 0x01;
    /// A connection begins.
    pub(crate) const SYN: u8 = 0x02;
    /// Data for the program.
    pub(crate) const PSH: u8 = 0x08;
    /// The acknowledgement number counts.
    pub(crate) const ACK: u8 = 0x10;
}

/// Bytes of data in a segment that has any: what makes a frame of the least size.
pub(crate) const DATA: u16 = 6;

/// A TCP header's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    /// Sequence number.
    pub(crate) seq: u32,
    /// Acknowledgement number.
    pub(crate) ack: u32,
    /// Flags.
    pub(crate) flags: u8,
    /// Bytes of data behind a header without options.
    pub(crate) data: u16,
}

impl Segment {
    /// The segment of a TCP packet; `None` where it has options or is longer than any that is answered.
    pub(crate) fn read(frame: &[u8], packet: &Packet) -> Option<Self> {
        const NO_OPTIONS: u8 = 0x50;
        let header = frame.get(packet.l4..)?.first_chunk::<20>()?;
        let [_, _, _, _, s0, s1, s2, s3, a0, a1, a2, a3, offset, flags, ..] = *header;
        (offset & 0xf0 == NO_OPTIONS).then_some(())?;
        Some(Self {
            seq: u32::from_be_bytes([s0, s1, s2, s3]),
            ack: u32::from_be_bytes([a0, a1, a2, a3]),
            flags,
            data: u16::try_from(packet.end - packet.l4 - header.len()).ok()?,
        })
    }

    /// What the other end sends next in this connection: the same numbers seen from there, with these flags.
    pub(crate) fn reply(self, flags: u8, data: u16) -> Self {
        let counted = u32::from(self.data) + u32::from(self.flags & (flag::SYN | flag::FIN) != 0);
        Self { seq: self.ack, ack: self.seq.wrapping_add(counted), flags, data }
    }

    /// Writes it into the frame of another segment, whose addresses and ports stay. `None` where it does not fit.
    pub(crate) fn write(self, frame: &mut [u8], packet: &Packet) -> Option<()> {
        let end = packet.l4 + 20 + usize::from(self.data);
        let [s0, s1, s2, s3] = self.seq.to_be_bytes();
        let [a0, a1, a2, a3] = self.ack.to_be_bytes();
        let numbers = [s0, s1, s2, s3, a0, a1, a2, a3, 0x50, self.flags];
        frame.get_mut(packet.l4 + 4..packet.l4 + 14)?.copy_from_slice(&numbers);
        frame.get_mut(packet.l4 + 20..end)?.fill(0);
        let length = if packet.v6 { end - packet.l4 } else { end - packet.l3 };
        let at = packet.l3 + if packet.v6 { 4 } else { 2 };
        frame.get_mut(at..at + 2)?.copy_from_slice(&u16::try_from(length).ok()?.to_be_bytes());
        if !packet.v6 {
            frame.get_mut(packet.l3 + 10..packet.l3 + 12)?.fill(0);
            let value = finish(sum(frame.get(packet.l3..packet.l4)?));
            frame.get_mut(packet.l3 + 10..packet.l3 + 12)?.copy_from_slice(&value);
        }
        Packet { end, ..*packet }.complete(frame)
    }
}

/// Turns the packet round: MAC addresses, addresses and ports change places. Checksums stay right.
pub(crate) fn turn(frame: &mut [u8], packet: &Packet) -> Option<()> {
    let (addresses, len) = if packet.v6 { (packet.l3 + 8, 16) } else { (packet.l3 + 12, 4) };
    for (at, len) in [(0, 6), (addresses, len), (packet.l4, 2)] {
        let (first, second) = frame.get_mut(at..at + 2 * len)?.split_at_mut(len);
        first.swap_with_slice(second);
    }
    Some(())
}

/// Makes a frame the answer to itself: datagrams that ask for it as they are; a SYN that asks for it by SYN-ACK, data by
/// data, FIN by FIN. `None` where there is nothing to be answered.
pub(crate) fn answer(frame: &mut [u8], packet: &Packet) -> Option<()> {
    let asks = Tag::read(frame, packet).is_some_and(|tag| tag.answer);
    match packet.proto {
        UDP if asks && packet.is_unfinished(frame) => {
            turn(frame, packet)?;
            packet.complete(frame)
        }
        UDP if asks => turn(frame, packet),
        TCP => {
            let segment = Segment::read(frame, packet)?;
            let reply = match segment.flags {
                // The own first number is made of the client's, so that the client can tell that it was understood.
                flag::SYN if asks => Segment { seq: !segment.seq, ..segment.reply(SYN_ACK, 0) },
                DATA_ACK if segment.data == DATA => segment.reply(DATA_ACK, DATA),
                FIN_ACK => segment.reply(FIN_ACK, 0),
                _ => return None,
            };
            turn(frame, packet)?;
            reply.write(frame, packet)
        }
        _ => None,
    }
}

/// The flags of an accepted connection.
pub(crate) const SYN_ACK: u8 = flag::SYN | flag::ACK;
/// The flags of data.
pub(crate) const DATA_ACK: u8 = flag::PSH | flag::ACK;
/// The flags of an end.
pub(crate) const FIN_ACK: u8 = flag::FIN | flag::ACK;

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;

    use super::*;

    const SERVER: &str = "10.0.0.2";

    fn tcp(segment: Segment) -> Vec<u8> {
        let mut frame = Vec::new();
        let ip = PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64);
        ip.tcp(1000, 80, 0, 100).write(&mut frame, &[0; DATA as usize]).unwrap();
        let packet = Packet::find(&frame).unwrap();
        segment.write(&mut frame, &packet).unwrap();
        frame
    }

    fn asking_syn(seq: u32) -> Segment {
        let bytes = Tag { stream: 1, sequence: seq, answer: true }.bytes();
        let [_, _, _, _, rest @ ..] = bytes;
        Segment { seq, ack: u32::from_be_bytes(rest), flags: flag::SYN, data: 0 }
    }

    #[test]
    fn segments_are_answered_as_a_server_does() {
        let plain = |flags, data| Segment { seq: 100, ack: 200, flags, data };
        for (name, segment, want) in [
            ("a SYN", asking_syn(7), Some(Segment { seq: !7, ack: 8, flags: SYN_ACK, data: 0 })),
            ("a SYN that does not ask", plain(flag::SYN, 0), None),
            (
                "data",
                plain(DATA_ACK, DATA),
                Some(Segment { seq: 200, ack: 106, flags: DATA_ACK, data: DATA }),
            ),
            ("the end", plain(FIN_ACK, 0), Some(Segment { seq: 200, ack: 101, flags: FIN_ACK, data: 0 })),
            ("an acknowledgement", plain(flag::ACK, 0), None),
        ] {
            let mut frame = tcp(segment);
            let packet = Packet::find(&frame).unwrap();
            let answered = answer(&mut frame, &packet);
            assert_eq!(answered.is_some(), want.is_some(), "{name}");
            if want.is_some() {
                let packet = Packet::find(&frame).unwrap();
                assert_eq!(Segment::read(&frame, &packet), want, "{name}");
                assert!(packet.is_intact(&frame), "{name}");
                let ip = etherparse::Ipv4HeaderSlice::from_slice(&frame[14..34]).unwrap();
                assert_eq!(ip.source_addr().to_string(), SERVER, "{name}");
                assert_eq!(frame[..12], [2, 2, 2, 2, 2, 2, 4, 4, 4, 4, 4, 4], "{name}");
            }
        }
    }

    #[test]
    fn datagrams_that_ask_come_back_whole() {
        for asks in [false, true] {
            let mut frame = Vec::new();
            let ip = PacketBuilder::ethernet2([2; 6], [4; 6]).ipv6([1; 16], [2; 16], 64);
            let tag = Tag { stream: 0, sequence: 9, answer: asks };
            ip.udp(1000, 53).write(&mut frame, &tag.bytes()).unwrap();
            let packet = Packet::find(&frame).unwrap();
            assert_eq!(answer(&mut frame, &packet).is_some(), asks);
            assert!(packet.is_intact(&frame));
            assert_eq!(frame[22..38] == [2; 16], asks);
        }
    }
}
