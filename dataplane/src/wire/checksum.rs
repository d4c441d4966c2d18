//! The Internet checksum (RFC 1071), its incremental update (RFC 1624) and checksums left partial by a local sender.
//!
//! Values are in host order, as the header types give them.

use std::ops::Add;

use zerocopy::big_endian::U16;
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned, transmute_ref};

use super::ipv4::Ipv4;

/// A one's-complement sum of 16-bit words, not yet folded or complemented.
///
/// Wider integers may be added as they are, since 2^16 is 1 modulo 65535.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sum(u64);

impl Sum {
    /// Of bytes; an odd last byte counts as if a zero followed.
    #[inline]
    pub fn of(bytes: &[u8]) -> Self {
        // Byte order does not matter until the end (RFC 1071, section 2B), and 128 bits hold all carries.
        let (words, rest) = bytes.as_chunks::<8>();
        let whole: u128 = words.iter().map(|word| u128::from(u64::from_ne_bytes(*word))).sum();
        let mut tail = [0; 8];
        for (to, from) in tail.iter_mut().zip(rest) {
            *to = *from;
        }
        let [high, low] = halves(whole + u128::from(u64::from_ne_bytes(tail)));
        Self::word(u16::from_be(fold(add_around(low, high))))
    }

    /// Of one word.
    #[inline]
    pub fn word(word: u16) -> Self {
        Self(u64::from(word))
    }

    /// Of an address; an IPv4 address in the low 32 bits.
    #[inline]
    pub fn address(bits: u128) -> Self {
        let [high, low] = halves(bits);
        Self((high >> 32) + (high & LOW_32) + (low >> 32) + (low & LOW_32))
    }

    /// Of the pseudo-header of a segment of `len` bytes (RFC 9293, section 3.1; RFC 8200, section 8.1).
    #[inline]
    pub fn pseudo_header(src: u128, dst: u128, protocol: u8, len: u16) -> Self {
        Self::address(src) + Self::address(dst) + Self::word(protocol.into()) + Self::word(len)
    }

    /// Folded to 16 bits.
    #[inline]
    pub fn fold(self) -> u16 {
        fold(self.0)
    }

    /// The checksum of what was summed up.
    #[inline]
    pub fn checksum(self) -> u16 {
        !self.fold()
    }

    /// The UDP checksum of what was summed up: 0 means "none" and becomes its other form, 0xffff (RFC 768).
    #[inline]
    pub fn udp_checksum(self) -> u16 {
        never_zero(self.checksum())
    }

    /// Whether this is the sum of data that includes its right checksum.
    #[inline]
    pub fn verifies(self) -> bool {
        self.fold() == 0xffff
    }
}

impl Add for Sum {
    type Output = Self;

    /// Sums of folded and 32-bit parts: four thousand million of them fit.
    #[inline]
    fn add(self, other: Self) -> Self {
        Self(self.0.wrapping_add(other.0))
    }
}

/// By how much a one's-complement sum changes: prepared once a flow, applied to each packet by one addition.
///
/// Deltas add up: [`Delta::and`] joins those of several fields that one checksum covers.
///
/// Kept in the order of the wire (RFC 1071, section 2B): no packet's checksum has to be turned round for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Delta(u16);

impl Delta {
    /// Of nothing.
    pub const NONE: Self = Self(0);

    /// Of an IPv4 header whose TTL becomes one less.
    pub const TTL_LESS_ONE: Self = Self((!0x0100_u16).to_be());

    /// From data whose sum is `old` to data whose sum is `new`. Both must lie at the same, even, offsets.
    #[inline]
    pub fn between(old: Sum, new: Sum) -> Self {
        Self(add16(!old.fold(), new.fold()).to_be())
    }

    /// [`Self::between`] for data that fits a word, in the order of the wire.
    #[inline]
    pub fn between_words(old: u64, new: u64) -> Self {
        let sum = |word: u64| fold((word >> 32) + (word & LOW_32));
        Self(add16(!sum(old), sum(new)))
    }

    /// This change and `other` in one.
    #[inline]
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self(add16(self.0, other.0))
    }

    /// The change that takes this one back.
    #[inline]
    #[must_use]
    pub fn inverse(self) -> Self {
        Self(!self.0)
    }

    /// The same change at an odd offset (RFC 1071, section 2B).
    #[inline]
    #[must_use]
    pub fn swapped(self) -> Self {
        Self(self.0.swap_bytes())
    }

    /// The checksum after the change.
    #[inline]
    pub fn apply(self, checksum: u16) -> u16 {
        self.update(checksum.into()).get()
    }

    /// [`Delta::apply`] to a field of a header (RFC 1624, equation 4: subtraction with end-around borrow, the same bit by
    /// bit as equation 3).
    #[inline]
    #[must_use]
    pub fn update(self, field: U16) -> U16 {
        let (less, borrow) = u16::from_ne_bytes(field.to_bytes()).overflowing_sub(self.0);
        U16::from_bytes(less.wrapping_sub(borrow.into()).to_ne_bytes())
    }

    /// [`Delta::apply`] for UDP: 0 is "none" and stays, and is never the result otherwise.
    #[inline]
    pub fn apply_udp(self, checksum: u16) -> u16 {
        if checksum == 0 { 0 } else { never_zero(self.apply(checksum)) }
    }

    /// The value of a partial checksum field after a change of the pseudo-header. The change must be of addresses,
    /// protocol and length only: the egress sums up the ports itself.
    #[inline]
    pub fn apply_partial(self, field: u16) -> u16 {
        add16(field, u16::from_be(self.0))
    }
}

/// An IPv4 header in few words. The addresses are one, as they are for whoever hashes them.
#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Words {
    first: [u8; 4],
    middle: [u8; 8],
    addresses: [u8; 8],
}

/// Whether the checksum of an IPv4 header without options is right. As [`Sum::verifies`], in a handful of instructions.
#[inline]
pub fn ipv4_verifies(header: &Ipv4) -> bool {
    let Words { first, middle, addresses } = transmute_ref!(header);
    let first = u64::from(u32::from_ne_bytes(*first));
    let rest = add_around(u64::from_ne_bytes(*middle), first);
    let sum = add_around(rest, u64::from_ne_bytes(*addresses));
    // Folding to 0xffff, in either byte order, means to be a multiple of it, but not zero. Multiplied by the inverse of
    // 0xffff modulo 2^64, a multiple gives the quotient, anything else a number larger than all quotients.
    const INVERSE: u64 = 0xfffe_fffe_fffe_ffff;
    let quotient = sum.wrapping_mul(INVERSE);
    quotient.wrapping_sub(1) < u64::MAX / 0xffff
}

/// Whether a checksum field holds what a local sender leaves to the hardware: the folded, uncomplemented sum of the
/// pseudo-header. Of complete checksums one in 65536 looks the same.
#[inline]
pub fn is_partial(field: u16, pseudo_header: Sum) -> bool {
    field == pseudo_header.fold()
}

/// [`is_partial`] for a segment of `len` bytes over IPv4, whose addresses are as they lie in its header.
#[inline]
pub fn is_partial_v4(field: U16, addresses: [u8; 8], protocol: u8, len: u16) -> bool {
    let addresses = u64::from_ne_bytes(addresses);
    let rest = u64::from(u16::from(protocol).to_be()) + u64::from(len.to_be());
    u16::from_ne_bytes(field.to_bytes()) == fold((addresses >> 32) + (addresses & LOW_32) + rest)
}

/// Completes the partial checksum of a UDP datagram or TCP segment in software. The field lies `offset` bytes into
/// `segment` and holds the pseudo-header's sum. Does nothing, and returns false, where there is no such field.
#[must_use]
pub fn complete(segment: &mut [u8], offset: usize) -> bool {
    // Never zero: for TCP both forms of zero verify, for UDP it has to be this one.
    let checksum = Sum::of(segment).udp_checksum();
    let field = segment.get_mut(offset..).and_then(|rest| rest.first_chunk_mut());
    field.map(|field| *field = checksum.to_be_bytes()).is_some()
}

const LOW_32: u64 = 0xffff_ffff;

#[inline]
fn never_zero(checksum: u16) -> u16 {
    if checksum == 0 { 0xffff } else { checksum }
}

/// One's-complement addition.
#[inline]
fn add16(a: u16, b: u16) -> u16 {
    let (sum, carry) = a.overflowing_add(b);
    sum + u16::from(carry)
}

/// One's-complement addition.
#[inline]
fn add_around(a: u64, b: u64) -> u64 {
    let (sum, carry) = a.overflowing_add(b);
    sum + u64::from(carry)
}

/// Adds the four words of `sum` up, with the carries. The rotated copy brings each half's carry into the other.
#[inline]
fn fold(sum: u64) -> u16 {
    let half = (sum.wrapping_add(sum.rotate_left(32)) >> 32) as u32;
    (half.wrapping_add(half.rotate_left(16)) >> 16) as u16
}

#[inline]
#[expect(clippy::cast_possible_truncation, reason = "the halves are what is wanted")]
fn halves(word: u128) -> [u64; 2] {
    [(word >> 64) as u64, word as u64]
}

#[cfg(test)]
#[allow(clippy::cast_possible_truncation, reason = "folded sums and short segments fit")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// RFC 1071, section 4.1, word by word.
    fn by_the_book(bytes: &[u8]) -> u16 {
        let mut sum: u64 =
            bytes.chunks(2).map(|w| u64::from(w[0]) << 8 | u64::from(*w.get(1).unwrap_or(&0))).sum();
        while sum >> 16 != 0 {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }

    #[test]
    fn the_example_of_rfc_1071_sums_up() {
        let sum = Sum::of(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]);
        assert_eq!(sum.fold(), 0xddf2);
    }

    proptest! {
        #[test]
        fn words_in_the_order_of_the_wire_differ_by_the_same(old: u64, new: u64, zeros in 0..3_u8) {
            let (old, new) = (if zeros == 1 { 0 } else { old }, if zeros == 2 { 0 } else { new });
            let sum = |word: u64| Sum::address(u64::from_be(word).into());
            prop_assert_eq!(Delta::between_words(old, new), Delta::between(sum(old), sum(new)));
        }
    }

    proptest! {
        #[test]
        fn over_ipv4_a_partial_checksum_is_known_in_the_same_way(
            addresses in prop_oneof![Just([0; 8]), any::<[u8; 8]>()],
            protocol: u8,
            len: u16,
            other: Option<u16>,
        ) {
            let [src, dst] = [&addresses[..4], &addresses[4..]].map(|half| u32::from_be_bytes(half.try_into().unwrap()));
            let pseudo_header = Sum::pseudo_header(src.into(), dst.into(), protocol, len);
            let field = other.unwrap_or(pseudo_header.fold());
            let known = is_partial_v4(U16::new(field), addresses, protocol, len);
            prop_assert_eq!(known, is_partial(field, pseudo_header));
        }
    }

    #[test]
    fn the_example_of_rfc_1624_updates() {
        let delta = Delta::between(Sum::word(0x5555), Sum::word(0x3285));
        assert_eq!(delta.apply(0xdd2f), 0x0000);
    }

    #[test]
    fn a_udp_checksum_keeps_its_zero_and_never_becomes_it() {
        let delta = Delta::between(Sum::word(0x5555), Sum::word(0x3285));
        assert_eq!(delta.apply_udp(0), 0, "no checksum stays none");
        assert_eq!(delta.apply_udp(0xdd2f), 0xffff, "a result of zero takes its other form");
        assert_eq!(delta.apply(0xdd2f), 0, "TCP keeps it");
    }

    #[test]
    fn a_header_of_zeros_does_not_verify() {
        assert!(!ipv4_verifies(Ipv4::ref_from_bytes(&[0; 20]).unwrap()));
        assert!(!Sum::of(&[0; 20]).verifies());
    }

    #[test]
    fn completing_needs_the_field_inside() {
        assert!(!complete(&mut [1, 2, 3], 2));
        assert!(!complete(&mut [1, 2, 3], 9));
    }

    proptest! {
        #[test]
        fn the_fast_sum_is_the_sum(bytes: Vec<u8>) {
            prop_assert_eq!(Sum::of(&bytes).fold(), by_the_book(&bytes));
        }

        #[test]
        fn a_header_verifies_as_its_bytes(mut bytes: [u8; 20], right: bool) {
            if right {
                bytes[10..12].fill(0);
                let checksum = Sum::of(&bytes).checksum();
                bytes[10..12].copy_from_slice(&checksum.to_be_bytes());
            }
            let header = Ipv4::ref_from_bytes(&bytes).unwrap();
            prop_assert_eq!(ipv4_verifies(header), by_the_book(&bytes) == 0xffff);
            prop_assert!(!right || ipv4_verifies(header));
        }

        #[test]
        fn an_address_sums_up_as_its_bytes(bits: u128) {
            prop_assert_eq!(Sum::address(bits).fold(), by_the_book(&bits.to_be_bytes()));
        }

        /// An unchanged word that is not zero stands for the version or protocol that every covered range has.
        #[test]
        fn incremental_is_full(old in any::<[u16; 9]>(), new in any::<[u16; 9]>(), fixed in 1..=u16::MAX) {
            let sum = |words: &[u16]| words.iter().fold(Sum::default(), |sum, word| sum + Sum::word(*word));
            let [before, after] = [sum(&old), sum(&new)].map(|sum| sum + Sum::word(fixed));
            let delta = Delta::between(sum(&old), sum(&new));
            prop_assert_eq!(delta.apply(before.checksum()), after.checksum());
            prop_assert_eq!(delta.inverse().apply(after.checksum()), before.checksum());
            prop_assert_eq!(delta.apply_udp(before.udp_checksum()), after.udp_checksum());

            let (left, right) = (sum(&old[..4]), sum(&new[..4]));
            let parts = Delta::between(left, right).and(Delta::between(sum(&old[4..]), sum(&new[4..])));
            prop_assert_eq!(parts.apply(before.checksum()), after.checksum());
        }

        #[test]
        fn one_hop_less_is_its_delta(mut bytes: [u8; 20], ttl in 1..=u8::MAX) {
            bytes[0] = 0x45;
            bytes[8] = ttl;
            let before = Sum::of(&bytes).checksum();
            bytes[8] -= 1;
            prop_assert_eq!(Delta::TTL_LESS_ONE.apply(before), Sum::of(&bytes).checksum());
        }

        #[test]
        fn a_partial_checksum_is_known_moved_and_completed(
            (src, dst, new) in any::<(u128, u128, u128)>(),
            mut segment in proptest::collection::vec(any::<u8>(), 20..200),
        ) {
            let len = segment.len() as u16;
            let pseudo = Sum::pseudo_header(src, dst, 6, len);
            segment[16..18].copy_from_slice(&pseudo.fold().to_be_bytes());
            prop_assert!(is_partial(pseudo.fold(), pseudo));

            let moved = Sum::pseudo_header(src, new, 6, len);
            let field = Delta::between(Sum::address(dst), Sum::address(new)).apply_partial(pseudo.fold());
            prop_assert_eq!(field, moved.fold());
            segment[16..18].copy_from_slice(&field.to_be_bytes());
            prop_assert!(complete(&mut segment, 16));
            prop_assert!((moved + Sum::of(&segment)).verifies());
        }
    }
}
