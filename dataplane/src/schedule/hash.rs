//! The hashes of IPVS, which sh, dh and mh share: for one table everywhere they have to be exactly the kernel's.

/// The golden ratio's hash multiplier (`include/linux/hash.h`, `GOLDEN_RATIO_32`).
const GOLDEN_RATIO: u32 = 0x61c8_8647;

/// An address as one word, in host order: of an IPv6 address the four words are combined by exclusive or, of an IPv4
/// address the upper three are 0 anyway.
#[inline]
#[expect(clippy::cast_possible_truncation, reason = "the fold takes the words one by one")]
pub(super) fn fold(addr: u128) -> u32 {
    let halves = addr ^ addr >> 64;
    (halves ^ halves >> 32) as u32
}

/// `hash_32(value, 8)`: the upper byte of the product.
#[inline]
pub(super) fn byte(value: u32) -> u8 {
    let [top, ..] = value.wrapping_mul(GOLDEN_RATIO).to_be_bytes();
    top
}

/// `hsiphash` of one 32-bit word as 64-bit kernels have it (`lib/siphash.c`): SipHash-1-3 with both halves of the key
/// equal, the lower 32 bits of the result.
#[inline]
#[expect(clippy::cast_possible_truncation, reason = "hsiphash is the lower half")]
pub(super) fn sip13(value: u32, key: u64) -> u32 {
    let mut v = [
        key ^ 0x736f_6d65_7073_6575,
        key ^ 0x646f_7261_6e64_6f6d,
        key ^ 0x6c79_6765_6e65_7261,
        key ^ 0x7465_6462_7974_6573,
    ];
    // The last block: the length of the input, 4 bytes, above the input itself.
    let block = 4 << 56 | u64::from(value);
    v[3] ^= block;
    round(&mut v);
    v[0] ^= block;
    v[2] ^= 0xff;
    round(&mut v);
    round(&mut v);
    round(&mut v);
    (v[0] ^ v[1] ^ v[2] ^ v[3]) as u32
}

#[inline]
fn round([v0, v1, v2, v3]: &mut [u64; 4]) {
    *v0 = v0.wrapping_add(*v1);
    *v1 = v1.rotate_left(13) ^ *v0;
    *v0 = v0.rotate_left(32);
    *v2 = v2.wrapping_add(*v3);
    *v3 = v3.rotate_left(16) ^ *v2;
    *v0 = v0.wrapping_add(*v3);
    *v3 = v3.rotate_left(21) ^ *v0;
    *v2 = v2.wrapping_add(*v1);
    *v1 = v1.rotate_left(17) ^ *v2;
    *v2 = v2.rotate_left(32);
}

/// Spreads the bits of a word over the whole word, one to one (the finalizer of MurmurHash3).
#[inline]
pub(super) fn mix(word: u64) -> u64 {
    let word = (word ^ word >> 33).wrapping_mul(0xff51_afd7_ed55_8ccd);
    let word = (word ^ word >> 33).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    word ^ word >> 33
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sip13_is_the_standard_librarys_for_a_key_of_0() {
        use std::hash::Hasher;
        for value in [0, 1, 80, 0x0a00_0001, u32::MAX] {
            let mut std = std::collections::hash_map::DefaultHasher::new();
            std.write(&value.to_le_bytes());
            assert_eq!(u64::from(sip13(value, 0)), std.finish() & 0xffff_ffff);
        }
    }
}
