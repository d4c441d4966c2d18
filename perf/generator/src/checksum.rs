//! The Internet checksum (RFC 1071) of whole packets.

/// One's complement sum of `bytes`, as if they were zero-padded to an even length. Not folded, and in the machine's
/// byte order, which the sum does not depend on (RFC 1071, section 2 B).
pub(crate) fn sum(bytes: &[u8]) -> u64 {
    let (words, tail) = bytes.as_chunks::<4>();
    let mut last = [0; 4];
    for (to, from) in last.iter_mut().zip(tail) {
        *to = *from;
    }
    words.iter().map(|word| u64::from(u32::from_ne_bytes(*word))).sum::<u64>()
        + u64::from(u32::from_ne_bytes(last))
}

/// The checksum field for the sum of all that it covers, in the machine's byte order.
#[expect(clippy::cast_possible_truncation, reason = "the carries are folded in before")]
pub(crate) fn finish(sum: u64) -> [u8; 2] {
    let mut folded = sum;
    while folded > 0xffff {
        folded = (folded & 0xffff) + (folded >> 16);
    }
    (!(folded as u16)).to_ne_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_rfc_1071_comes_out_as_printed() {
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(finish(sum(&bytes)), [!0xdd, !0xf2]);
    }

    #[test]
    fn odd_lengths_count_as_zero_padded() {
        for len in 0..9 {
            let bytes: Vec<u8> = (1..=len).collect();
            let mut padded = bytes.clone();
            padded.resize(12, 0);
            assert_eq!(finish(sum(&bytes)), finish(sum(&padded)), "{len} bytes");
        }
    }
}
