//! An IPv4 packet that is larger than its path, cut into fragments (RFC 791, section 3.2).
//!
//! The engine gives one verdict a frame, so it finishes such a packet whole and says in [`Frame::split`] how it is to be
//! cut. Whoever carries the verdict out sends [`Pieces`] of it. The cuts are those of the kernel (`ip_do_fragment`): as
//! many bytes as fit in each, in whole units of eight, and what is a fragment already is cut on.

use zerocopy::FromBytes;

use crate::frame::Frame;
use crate::verdict::DropReason;
use crate::wire::checksum::Sum;
use crate::wire::ipv4::{DONT_FRAGMENT, Ipv4, MORE_FRAGMENTS, OFFSET_MASK};
use crate::wire::view_mut;

/// What fragment offsets count in, bytes.
const UNIT: usize = 8;
/// Pieces of a packet at most: what the largest packet comes to where the path takes 576 bytes, as every host does. One
/// that would become more is refused, so that a narrow path does not make a flood of one packet.
const MOST: usize = 120;
/// Options with this bit stand in every fragment, others in the first one only.
const COPIED: u8 = 0x80;
const END_OF_OPTIONS: u8 = 0;
const NO_OPERATION: u8 = 1;

/// How a frame's packet is to be cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Split {
    /// Bytes of the largest piece, IP header included.
    pub mtu: u16,
    /// Where the IP header begins in the frame.
    pub l3: u16,
}

/// A frame, to be sent as several.
#[derive(Clone, Copy, Debug)]
pub struct Pieces<'a> {
    link: &'a [u8],
    header: &'a [u8],
    data: &'a [u8],
    /// Fragment offset of the first byte of the data, in units.
    offset: u16,
    /// Whether fragments follow that are not in this packet.
    more: bool,
    /// Bytes of data in a piece at most.
    room: usize,
}

impl<'a> Pieces<'a> {
    /// The pieces of a frame. What is behind its packet is padding, and no part of them.
    ///
    /// # Errors
    /// [`DropReason::MtuExceeded`] where it must not be cut or would become too many; what is wrong with it otherwise.
    pub fn of(frame: &'a [u8], Split { mtu, l3 }: Split) -> Result<Self, DropReason> {
        let (link, packet) = frame.split_at_checked(l3.into()).ok_or(DropReason::Truncated)?;
        let (ip, _) = Ipv4::ref_from_prefix(packet).map_err(|_| DropReason::Truncated)?;
        if ip.version() != 4 || ip.fragment.get() & DONT_FRAGMENT != 0 {
            return Err(DropReason::MtuExceeded);
        }
        let packet = packet.get(..ip.total_len.get().into()).ok_or(DropReason::BadLength)?;
        let (header, data) = packet.split_at_checked(ip.header_len()).ok_or(DropReason::BadLength)?;
        if header.len() < Ipv4::LEN {
            return Err(DropReason::BadHeader);
        }
        let fragment = ip.fragment.get();
        let offset = fragment & OFFSET_MASK;
        if usize::from(offset) + data.len() / UNIT > OFFSET_MASK.into() {
            return Err(DropReason::BadLength); // past the largest packet
        }
        let room = usize::from(mtu).saturating_sub(header.len());
        let pieces = Self { link, header, data, offset, more: fragment & MORE_FRAGMENTS != 0, room };
        if room < UNIT || pieces.count() > MOST {
            return Err(DropReason::MtuExceeded);
        }
        Ok(pieces)
    }

    /// Bytes of data in every piece but the last.
    fn step(&self) -> usize {
        self.room / UNIT * UNIT
    }

    /// How many there are: 1 where the packet fits as it is.
    pub fn count(&self) -> usize {
        1 + self.data.len().saturating_sub(self.room).div_ceil(self.step())
    }

    /// Bytes of the largest of them, as a frame.
    pub fn longest(&self) -> usize {
        self.link.len() + self.header.len() + self.data.len().min(self.room)
    }

    /// Writes the piece of this number, from 0 on, to the start of `room`, and returns its length. `None` where `room` is
    /// too small, or there is none of this number.
    pub fn write(&self, number: usize, room: &mut [u8]) -> Option<usize> {
        let behind = self.count().checked_sub(number)?.checked_sub(1)?;
        let start = number * self.step();
        let left = self.data.get(start..)?;
        let is_last = behind == 0;
        let data = if is_last { left } else { left.get(..self.step())? };
        let parts = [self.link, self.header, data];
        let len = parts.iter().map(|part| part.len()).sum();
        let mut rest = room.get_mut(..len)?;
        for part in parts {
            let (to, behind) = rest.split_at_mut_checked(part.len())?;
            to.copy_from_slice(part);
            rest = behind;
        }
        let header = room.get_mut(self.link.len()..)?.get_mut(..self.header.len())?;
        if number > 0 {
            leave_out(header.get_mut(Ipv4::LEN..)?);
        }
        let more = if is_last && !self.more { 0 } else { MORE_FRAGMENTS };
        let ip: &mut Ipv4 = view_mut(header, 0).ok()?;
        ip.total_len = u16::try_from(self.header.len() + data.len()).ok()?.into();
        let offset = self.offset + u16::try_from(start / UNIT).ok()?;
        ip.fragment = (offset | more).into();
        ip.checksum = 0.into();
        let checksum = Sum::of(header).checksum();
        view_mut::<Ipv4>(header, 0).ok()?.checksum = checksum.into();
        Some(len)
    }
}

/// Replaces the options that stand in a packet's first fragment only, as the kernel does (`ip_options_fragment`).
fn leave_out(mut options: &mut [u8]) {
    loop {
        let len = match *options {
            [] | [END_OF_OPTIONS, ..] => return,
            [NO_OPERATION, ..] => 1,
            [_, len, ..] if len >= 2 => usize::from(len),
            _ => return,
        };
        let Some((option, rest)) = options.split_at_mut_checked(len) else { return };
        if option.first().is_some_and(|kind| kind & COPIED == 0) {
            option.fill(NO_OPERATION);
        }
        options = rest;
    }
}

/// All that a frame to be sent comes to on the wire: itself, or its pieces. For tools and tests; it allocates.
pub fn departing(frame: &Frame<'_>) -> Vec<Vec<u8>> {
    let Some(pieces) = frame.split.and_then(|split| Pieces::of(frame.bytes(), split).ok()) else {
        return vec![frame.bytes().to_vec()];
    };
    let piece = |number| {
        let mut room = vec![0; pieces.longest()];
        let len = pieces.write(number, &mut room)?;
        room.truncate(len);
        Some(room)
    };
    (0..pieces.count()).filter_map(piece).collect()
}

#[cfg(test)]
#[allow(clippy::cast_possible_truncation, reason = "test packets are small")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LINK: [u8; 14] = [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0];

    /// A frame with `len` bytes of data that count up, and padding.
    fn frame(options: &[u8], fragment: u16, len: usize) -> Vec<u8> {
        let header_len = Ipv4::LEN + options.len();
        let mut header = [
            &[0x40 | (header_len / 4) as u8, 0x12][..],
            &((header_len + len) as u16).to_be_bytes(),
            &[0x34, 0x56],
            &fragment.to_be_bytes(),
            &[63, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2],
            options,
        ]
        .concat();
        let checksum = Sum::of(&header).checksum();
        header[10..12].copy_from_slice(&checksum.to_be_bytes());
        let data: Vec<u8> = (0..len).map(|at| (at % 251) as u8).collect();
        [&LINK[..], &header, &data, &[0xee; 5]].concat()
    }

    fn cut(frame: &[u8], mtu: u16) -> Result<Vec<Vec<u8>>, DropReason> {
        let pieces = Pieces::of(frame, Split { mtu, l3: 14 })?;
        let mut room = vec![0xaa; pieces.longest()];
        let each = (0..pieces.count()).map(|number| {
            let len = pieces.write(number, &mut room).unwrap();
            room[..len].to_vec()
        });
        let each = each.collect();
        assert_eq!(pieces.write(pieces.count(), &mut room), None, "no more than are counted");
        assert_eq!(pieces.write(0, &mut []), None, "no room");
        Ok(each)
    }

    fn ip(piece: &[u8]) -> &Ipv4 {
        Ipv4::ref_from_prefix(&piece[14..]).unwrap().0
    }

    #[test]
    fn pieces_are_as_large_as_the_path_takes() {
        for (name, options, fragment, len, mtu, want) in [
            ("fits", 0, 0, 1260, 1280, &[(0x0000, 1280)][..]),
            ("one byte more", 0, 0, 1261, 1280, &[(0x2000, 1276), (157, 25)]),
            ("the last one may use all", 0, 0, 2516, 1280, &[(0x2000, 1276), (157, 1280)]),
            ("a first fragment", 0, 0x2000, 1480, 1400, &[(0x2000, 1396), (0x2000 | 172, 124)]),
            ("a later one", 0, 0x2000 | 185, 1480, 1400, &[(0x2000 | 185, 1396), (0x2000 | 357, 124)]),
            ("the last one", 0, 370, 1480, 1400, &[(0x2000 | 370, 1396), (542, 124)]),
            ("with options", 40, 0, 24, 68, &[(0x2000, 68), (0x2001, 68), (2, 68)]),
            ("the reserved flag goes", 0, 0x8000, 16, 28, &[(0x2000, 28), (1, 28)]),
        ] {
            let pieces = cut(&frame(&vec![NO_OPERATION; options], fragment, len), mtu).unwrap();
            let got: Vec<_> = pieces.iter().map(|p| (ip(p).fragment.get(), ip(p).total_len.get())).collect();
            assert_eq!(got, want, "{name}");
            for piece in &pieces {
                assert_eq!(piece.len(), 14 + usize::from(ip(piece).total_len.get()), "{name}");
            }
        }
    }

    #[test]
    fn what_cannot_be_cut_is_refused() {
        let mut v6 = frame(&[], 0, 1400);
        v6[14] = 0x60;
        let mut short = frame(&[], 0, 1400);
        short.truncate(1000);
        for (name, frame, mtu, want) in [
            ("DF", frame(&[], 0x4000, 1400), 1280, DropReason::MtuExceeded),
            ("IPv6", v6, 1280, DropReason::MtuExceeded),
            ("no room for data", frame(&[], 0, 1400), 27, DropReason::MtuExceeded),
            ("too many", frame(&[], 0, 121 * 8), 28, DropReason::MtuExceeded),
            ("past the largest packet", frame(&[], 8190, 24), 28, DropReason::BadLength),
            ("longer than its frame", short, 1280, DropReason::BadLength),
            ("no header", vec![0; 20], 1280, DropReason::Truncated),
        ] {
            assert_eq!(cut(&frame, mtu).unwrap_err(), want, "{name}");
        }
        assert_eq!(cut(&frame(&[], 0, 120 * 8), 28).unwrap().len(), 120);
    }

    #[test]
    fn options_without_the_copy_bit_stand_in_the_first_piece_only() {
        let (record_route, alert) = ([7, 7, 4, 0, 0, 0, 0], [148, 4, 0, 0]);
        let options = [&record_route[..], &[NO_OPERATION], &alert].concat();
        let pieces = cut(&frame(&options, 0, 100), 76).unwrap();
        assert_eq!(pieces.len(), 3);
        assert_eq!(pieces[0][34..46], options[..]);
        for piece in &pieces[1..] {
            assert_eq!(piece[34..46], [&[NO_OPERATION; 8][..], &alert].concat());
        }
        for hostile in [[7, 0, 0, 0], [7, 9, 0, 0], [0, 7, 3, 0], [7, 1, 0, 0]] {
            assert_eq!(cut(&frame(&hostile, 0, 100), 76).unwrap()[1][34..38], hostile, "left as it is");
        }
    }

    proptest! {
        #[test]
        fn the_pieces_put_together_are_the_packet(
            words in 0usize..=10,
            offset in 0u16..6000,
            more in any::<bool>(),
            len in 1usize..1600,
            mtu in 68u16..1700,
        ) {
            let len = if more { len.next_multiple_of(UNIT) } else { len };
            let fragment = offset | if more { MORE_FRAGMENTS } else { 0 };
            let whole = frame(&vec![0x83; words * 4], fragment, len);
            let Ok(pieces) = cut(&whole, mtu) else {
                prop_assert!(len.div_ceil((usize::from(mtu) - 20 - words * 4) / 8 * 8) >= MOST);
                return Ok(());
            };
            let header = 14 + Ipv4::LEN + words * 4;
            let mut together = Vec::new();
            for (number, piece) in pieces.iter().enumerate() {
                let ip = ip(piece);
                prop_assert!(ip.total_len.get() <= mtu);
                prop_assert!(Sum::of(&piece[14..header]).verifies());
                prop_assert_eq!(usize::from(ip.fragment.get() & OFFSET_MASK), usize::from(offset) + together.len() / 8);
                let is_last = number + 1 == pieces.len();
                prop_assert_eq!(ip.fragment.get() & MORE_FRAGMENTS != 0, more || !is_last);
                prop_assert!(is_last || (piece.len() - header).is_multiple_of(UNIT));
                prop_assert_eq!((ip.id.get(), ip.tos, ip.ttl, ip.protocol), (0x3456, 0x12, 63, 17));
                prop_assert_eq!((&piece[..14], &piece[26..34]), (&whole[..14], &whole[26..34]));
                together.extend_from_slice(&piece[header..]);
            }
            prop_assert_eq!(&together[..], &whole[header..header + len]);
        }

        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..200), mtu in any::<u16>(), l3 in 0u16..100) {
            if let Ok(pieces) = Pieces::of(&bytes, Split { mtu, l3 }) {
                let mut room = vec![0; pieces.longest()];
                for number in 0..pieces.count() {
                    prop_assert!(pieces.write(number, &mut room).is_some());
                }
            }
        }
    }
}
