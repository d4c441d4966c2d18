//! Where the headers of a frame lie: Ethernet with at most one VLAN tag, IPv4 or IPv6 without extension headers.

use crate::checksum::{finish, sum};

/// Protocol number of TCP.
pub(crate) const TCP: u8 = 6;
/// Protocol number of UDP.
pub(crate) const UDP: u8 = 17;

/// A TCP or UDP packet in a frame; offsets in bytes from the start of the frame, checked against its length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Packet {
    /// First byte of the IP header.
    pub(crate) l3: usize,
    /// First byte of the transport header.
    pub(crate) l4: usize,
    /// First byte behind the packet: what follows is Ethernet padding.
    pub(crate) end: usize,
    /// [`TCP`] or [`UDP`].
    pub(crate) proto: u8,
    /// IPv6 rather than IPv4.
    pub(crate) v6: bool,
}

impl Packet {
    /// Finds the headers. `None` for anything but a whole TCP or UDP packet.
    pub(crate) fn find(frame: &[u8]) -> Option<Self> {
        let (ethertype, l3) = match u16_at(frame, 12)? {
            0x8100 => (u16_at(frame, 16)?, 18),
            other => (other, 14),
        };
        let packet = match ethertype {
            0x0800 => Self::v4(frame, l3)?,
            0x86dd => Self::v6(frame, l3)?,
            _ => return None,
        };
        let shortest = match packet.proto {
            TCP => 20,
            UDP => 8,
            _ => return None,
        };
        (packet.l4 + shortest <= packet.end && packet.end <= frame.len()).then_some(packet)
    }

    fn v4(frame: &[u8], l3: usize) -> Option<Self> {
        const MORE_OR_OFFSET: u16 = 0x3fff;
        if u16_at(frame, l3 + 6)? & MORE_OR_OFFSET != 0 {
            return None;
        }
        let header = usize::from(frame.get(l3)? & 0xf) * 4;
        let (l4, end) = (l3 + header, l3 + usize::from(u16_at(frame, l3 + 2)?));
        (header >= 20).then_some(())?;
        Some(Self { l3, l4, end, proto: *frame.get(l3 + 9)?, v6: false })
    }

    fn v6(frame: &[u8], l3: usize) -> Option<Self> {
        let l4 = l3 + 40;
        let end = l4 + usize::from(u16_at(frame, l3 + 4)?);
        Some(Self { l3, l4, end, proto: *frame.get(l3 + 6)?, v6: true })
    }

    /// Offset of the transport checksum in the frame.
    pub(crate) fn checksum_at(&self) -> usize {
        self.l4 + if self.proto == TCP { 16 } else { 6 }
    }

    /// Sum over the pseudo-header and the transport packet, its checksum field included.
    pub(crate) fn transport_sum(&self, frame: &[u8]) -> Option<u64> {
        Some(self.pseudo_header_sum(frame)? + sum(frame.get(self.l4..self.end)?))
    }

    fn pseudo_header_sum(&self, frame: &[u8]) -> Option<u64> {
        let addresses = if self.v6 { self.l3 + 8..self.l3 + 40 } else { self.l3 + 12..self.l3 + 20 };
        let length = u16::try_from(self.end - self.l4).ok()?;
        Some(sum(frame.get(addresses)?) + word(u16::from(self.proto)) + word(length))
    }

    /// Whether the IPv4 header's and the transport's checksums are right.
    pub(crate) fn is_intact(&self, frame: &[u8]) -> bool {
        self.has_intact_header(frame) && self.transport_sum(frame).is_some_and(|sum| finish(sum) == [0, 0])
    }

    fn has_intact_header(&self, frame: &[u8]) -> bool {
        self.v6 || frame.get(self.l3..self.l4).is_some_and(|header| finish(sum(header)) == [0, 0])
    }

    /// Whether the transport checksum is left to the interface: its field has the pseudo-header's sum. On a veth no interface
    /// ever computes it. What translates packets may leave a finished checksum that looks like that to the interface,
    /// which makes it what it was.
    pub(crate) fn is_unfinished(&self, frame: &[u8]) -> bool {
        let pseudo_header = self.pseudo_header_sum(frame);
        let field = frame.get(self.checksum_at()..).and_then(|field| field.first_chunk::<2>());
        self.has_intact_header(frame)
            && field.zip(pseudo_header).is_some_and(|([high, low], sum)| finish(sum) == [!high, !low])
    }

    /// Writes the transport checksum. Leaves a UDP packet over IPv4 alone that says it has none (RFC 768).
    pub(crate) fn complete(&self, frame: &mut [u8]) -> Option<()> {
        let at = self.checksum_at();
        let field = frame.get_mut(at..at + 2)?;
        if self.proto == UDP && !self.v6 && *field == [0, 0] {
            return Some(());
        }
        field.copy_from_slice(&[0, 0]);
        let value = finish(self.transport_sum(frame)?);
        let value = if self.proto == UDP && value == [0, 0] { [0xff, 0xff] } else { value };
        frame.get_mut(at..at + 2)?.copy_from_slice(&value);
        Some(())
    }
}

/// What a 16-bit field adds to a [`sum`].
pub(crate) fn word(value: u16) -> u64 {
    u64::from(value.to_be())
}

/// The 16-bit field at `at`, in host order.
pub(crate) fn u16_at(frame: &[u8], at: usize) -> Option<u16> {
    frame.get(at..)?.first_chunk().map(|bytes| u16::from_be_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;

    use super::*;

    fn samples() -> Vec<(&'static str, Vec<u8>)> {
        let ethernet = || PacketBuilder::ethernet2([2; 6], [4; 6]);
        let (src, dst) = ([10, 0, 0, 1], [10, 0, 0, 2]);
        let build = |payload: &[u8], write: &dyn Fn(&mut Vec<u8>, &[u8])| {
            let mut frame = Vec::new();
            write(&mut frame, payload);
            frame
        };
        vec![
            (
                "udp4",
                build(b"odd", &|out, data| ethernet().ipv4(src, dst, 9).udp(1, 2).write(out, data).unwrap()),
            ),
            (
                "tcp4",
                build(b"", &|out, data| {
                    ethernet().ipv4(src, dst, 9).tcp(1, 2, 3, 4).write(out, data).unwrap()
                }),
            ),
            (
                "tcp6, one tag",
                build(b"four", &|out, data| {
                    let tagged = ethernet().single_vlan(7.try_into().unwrap());
                    tagged.ipv6([1; 16], [2; 16], 9).tcp(1, 2, 3, 4).write(out, data).unwrap();
                }),
            ),
        ]
    }

    #[test]
    fn a_spoilt_checksum_is_noticed_and_completed() {
        for (name, whole) in samples() {
            let packet = Packet::find(&whole).unwrap();
            assert!(packet.is_intact(&whole), "{name}");
            let mut frame = whole.clone();
            let at = packet.checksum_at();
            frame[at] ^= 0x5a;
            assert!(!packet.is_intact(&frame), "{name}");
            packet.complete(&mut frame).unwrap();
            assert_eq!(frame, whole, "{name}");
        }
    }

    #[test]
    fn a_checksum_that_is_left_to_the_interface_is_known_and_completed() {
        for (name, whole) in samples() {
            let packet = Packet::find(&whole).unwrap();
            assert!(!packet.is_unfinished(&whole), "{name}");
            let mut frame = whole.clone();
            let pseudo_header = finish(packet.pseudo_header_sum(&frame).unwrap()).map(|byte| !byte);
            frame[packet.checksum_at()..][..2].copy_from_slice(&pseudo_header);
            assert!(packet.is_unfinished(&frame) && !packet.is_intact(&frame), "{name}");
            packet.complete(&mut frame).unwrap();
            assert_eq!(frame, whole, "{name}");
        }
    }

    #[test]
    fn no_truncation_is_taken_for_a_packet() {
        for (name, whole) in samples() {
            for len in 0..whole.len() {
                assert_eq!(Packet::find(&whole[..len]), None, "{name} cut to {len}");
            }
        }
    }
}
