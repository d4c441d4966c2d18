//! The numbers of a TCP flow whose two ends do not count alike, because Weir answered the client before there was a
//! backend (SYN proxy), or because it puts data in front of the client's (PROXY protocol).
//!
//! ```text
//!           client                      Weir                      backend
//!   sequence       n   ---------------->  n + header  ------------>
//!   acknowledged   a   ---------------->  a - offset  ------------>
//!   sequence      <----------------  m + offset  <---------------- m
//!   acknowledged  <----------------  b - header  <---------------- b
//! ```
//!
//! Selective acknowledgements go as acknowledgements do, timestamps as sequence numbers do. All wraps at 2^32.

use crate::time::Tick;

/// What a flow's segments are changed by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Sequence {
    /// Number of the client's first byte of data.
    pub first: u32,
    /// Added to the backend's numbers. While the backend is awaited: Weir's own first number, the cookie.
    pub offset: u32,
    /// Added to the backend's timestamps. While the backend is awaited: Weir's own timestamp, as the client repeated it.
    pub clock: u32,
    /// The client's timestamp when it completed its handshake.
    pub client_clock: u32,
    /// When the backend was sent a SYN last.
    pub asked: Tick,
    /// The client's window when it completed its handshake.
    pub window: u16,
    /// Bytes of the header in front of the client's data; 0: there is none.
    pub header: u8,
    /// Segments of the client that are still to tell the backend its address by an option.
    pub told: u8,
    /// By how many bits windows are shifted on their way to the backend, and to the client.
    pub scale: [i8; 2],
    flags: u8,
}

/// The backend has not answered yet.
const AWAITED: u8 = 1;
/// The backend was sent a SYN.
const ASKED: u8 = 1 << 1;
/// The client sends timestamps.
const TIMED: u8 = 1 << 2;
/// The header was sent.
const SENT: u8 = 1 << 3;
/// The header has arrived.
const ARRIVED: u8 = 1 << 4;
/// Weir answered the client itself.
const PROXIED: u8 = 1 << 5;

/// What becomes of a segment's own number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placed {
    /// It is this one.
    At(u32),
    /// It stays, and the header goes in front of the data.
    BehindHeader,
}

impl Sequence {
    /// Of a flow whose SYN Weir has answered by `cookie`, and whose client's first byte of data is `first`.
    pub fn awaiting(first: u32, cookie: u32) -> Self {
        Self { first, offset: cookie, flags: AWAITED | PROXIED, ..Self::default() }
    }

    /// The same of a flow whose backend is told of the client: by a header of so many bytes, and by options of so many
    /// segments.
    #[must_use]
    pub fn telling(self, header: u8, told: u8) -> Self {
        Self { header, told, ..self }
    }

    /// Whether the backend has not answered yet.
    #[inline]
    pub fn is_awaited(&self) -> bool {
        self.flags & AWAITED != 0
    }

    /// Whether Weir has answered the client itself.
    pub fn is_proxied(&self) -> bool {
        self.flags & PROXIED != 0
    }

    /// Whether the flow's segments carry timestamps.
    pub fn is_timed(&self) -> bool {
        self.flags & TIMED != 0
    }

    /// Notes the timestamps of the client's last segment: its own, and Weir's that it repeats.
    pub fn set_clocks(&mut self, client: u32, own: u32) {
        self.flags |= TIMED;
        (self.client_clock, self.clock) = (client, own);
    }

    /// Whether it is time to send the backend a SYN, at first or once more after `patience` ticks.
    pub fn may_ask(&self, now: Tick, patience: u32) -> bool {
        self.flags & ASKED == 0 || now.0.wrapping_sub(self.asked.0) >= patience
    }

    /// Notes that the backend was sent a SYN.
    pub fn set_asked(&mut self, now: Tick) {
        self.flags |= ASKED;
        self.asked = now;
    }

    /// Has the backend asked again by the client's next segment.
    pub fn ask_again(&mut self) {
        self.flags &= !ASKED;
    }

    /// The backend has answered with the number `own` and, if any, the timestamp `clock`: from now on the difference is
    /// known.
    pub fn answered(&mut self, own: u32, clock: Option<u32>) {
        self.flags &= !AWAITED;
        self.offset = self.offset.wrapping_sub(own);
        self.clock = clock.map_or(0, |clock| self.clock.wrapping_sub(clock));
    }

    /// Whether the header has not arrived yet, for all that is known.
    #[inline]
    pub fn owes_header(&self) -> bool {
        self.header != 0 && self.flags & ARRIVED == 0
    }

    /// The client opens with a SYN whose number is `number`. One that repeats another does not change anything, nor does
    /// one that comes when the flow has begun.
    pub fn open(&mut self, number: u32) {
        if self.flags & (SENT | PROXIED) == 0 {
            self.first = number.wrapping_add(1);
        }
    }

    /// Where a segment of the client that is no SYN goes. A reset takes no data along.
    #[inline]
    pub fn place(&mut self, number: u32, is_reset: bool) -> Placed {
        let moved = number.wrapping_add(self.header.into());
        if !self.owes_header() || number != self.first {
            Placed::At(moved)
        } else if is_reset {
            Placed::At(if self.flags & SENT != 0 { moved } else { number })
        } else {
            self.flags |= SENT;
            Placed::BehindHeader
        }
    }

    /// The number of a byte of the backend as the client knows it.
    #[inline]
    pub fn to_client(&self, number: u32) -> u32 {
        number.wrapping_add(self.offset)
    }

    /// The number of a byte of the backend, as the client knows it, as the backend does.
    #[inline]
    pub fn to_backend(&self, number: u32) -> u32 {
        number.wrapping_sub(self.offset)
    }

    /// The client's byte that the backend acknowledges by `number`. As long as that is within the header it is the first.
    #[inline]
    pub fn acknowledged(&self, number: u32) -> u32 {
        let header = u32::from(self.header);
        let into = number.wrapping_sub(self.first);
        if into < header { self.first } else { number.wrapping_sub(header) }
    }

    /// Notes what the backend acknowledges. Returns whether its client's data has begun to arrive.
    #[inline]
    pub fn note(&mut self, number: u32) -> bool {
        let into = number.wrapping_sub(self.first);
        if (u32::from(self.header)..1 << 31).contains(&into) {
            self.flags |= ARRIVED;
        }
        (u32::from(self.header) + 1..1 << 31).contains(&into)
    }

    /// Whether every segment passes unchanged from now on.
    pub fn is_over(&self) -> bool {
        (self.header, self.offset, self.clock, self.told, self.scale) == (0, 0, 0, 0, [0; 2])
            && self.flags & (AWAITED | PROXIED) == 0
    }
}

/// A window, shifted by `bits`: to the left where that is positive, at most to the largest there is.
#[inline]
pub fn scaled(window: u16, bits: i8) -> u16 {
    let window = u32::from(window);
    let shifted = if bits >= 0 {
        window.checked_shl(bits.unsigned_abs().into()).unwrap_or(u32::MAX)
    } else {
        // Some of a window that was open stays open.
        (window >> bits.unsigned_abs().min(16)).max(window.min(1))
    };
    u16::try_from(shifted).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn with_header(header: u8, first: u32) -> Sequence {
        let mut sequence = Sequence { header, ..Sequence::default() };
        sequence.open(first.wrapping_sub(1));
        sequence
    }

    proptest! {
        #[test]
        fn both_ways_take_each_other_back(cookie: u32, own: u32, clock: u32, backend_clock: u32, number: u32) {
            let mut sequence = Sequence::awaiting(1, cookie);
            sequence.set_clocks(7, clock);
            sequence.answered(own, Some(backend_clock));
            prop_assert_eq!(sequence.to_backend(sequence.to_client(number)), number);
            prop_assert_eq!(sequence.to_client(own), cookie, "the first numbers are each other's");
            prop_assert_eq!(backend_clock.wrapping_add(sequence.clock), clock);
        }

        #[test]
        fn what_is_moved_behind_the_header_is_acknowledged_where_it_was(
            first: u32, into in 0..1u32 << 30, header in prop::sample::select(vec![28u8, 52]),
        ) {
            let mut sequence = with_header(header, first);
            prop_assert_eq!(sequence.place(first, false), Placed::BehindHeader);
            prop_assert!(!sequence.note(first.wrapping_add(header.into())));
            prop_assert!(!sequence.owes_header());
            let number = first.wrapping_add(into);
            let Placed::At(moved) = sequence.place(number, false) else { panic!("behind the header") };
            prop_assert_eq!(moved, number.wrapping_add(header.into()));
            prop_assert_eq!(sequence.acknowledged(moved), number);
        }

        #[test]
        fn an_acknowledgement_never_falls_behind_the_first_byte(first: u32, into in 0u32..52) {
            let sequence = with_header(52, first);
            prop_assert_eq!(sequence.acknowledged(first.wrapping_add(into)), first);
        }
    }

    #[test]
    fn the_header_is_sent_until_it_has_arrived() {
        for first in [1, u32::MAX - 10, u32::MAX] {
            let mut sequence = with_header(28, first);
            for _ in 0..3 {
                assert_eq!(sequence.place(first, false), Placed::BehindHeader);
                for into in [0, 1, 27] {
                    assert!(!sequence.note(first.wrapping_add(into)));
                }
                assert!(sequence.owes_header());
            }
            assert!(!sequence.note(first.wrapping_add(28)), "the header alone");
            assert_eq!(sequence.place(first, false), Placed::At(first.wrapping_add(28)));
            assert!(sequence.note(first.wrapping_add(29)));
        }
    }

    #[test]
    fn a_reset_is_placed_by_what_the_backend_has() {
        let mut sequence = with_header(28, 100);
        assert_eq!(sequence.place(100, true), Placed::At(100), "nothing was sent");
        sequence.place(100, false);
        assert_eq!(sequence.place(100, true), Placed::At(128));
    }

    #[test]
    fn a_second_syn_counts_until_the_header_is_sent() {
        let mut sequence = with_header(28, 100);
        sequence.open(499);
        assert_eq!(sequence.place(500, false), Placed::BehindHeader);
        sequence.open(899);
        assert_eq!(sequence.first, 500);
    }

    #[test]
    fn windows_keep_within_their_bounds() {
        for (name, window, bits, want) in [
            ("as it is", 1000, 0, 1000),
            ("to the left", 1000, 3, 8000),
            ("too large", 40_000, 1, u16::MAX),
            ("to the right", 65_535, -7, 511),
            ("shut stays shut", 0, -7, 0),
            ("open stays open", 1, -7, 1),
            ("beyond all bits", 5, 127, u16::MAX),
            ("beyond all bits, to the right", 5, -128, 1),
        ] {
            assert_eq!(scaled(window, bits), want, "{name}");
        }
    }
}
