//! SCTP's common header, its chunks' header and its checksum (RFC 9260).

use zerocopy::big_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// SCTP common header: 12 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Sctp {
    /// Source port.
    pub src_port: U16,
    /// Destination port.
    pub dst_port: U16,
    /// The receiver's tag of the association.
    pub verification_tag: U32,
    /// CRC32c of the packet, without a pseudo-header.
    pub checksum: U32,
}

impl Sctp {
    /// Length in bytes.
    pub const LEN: usize = size_of::<Self>();

    /// The CRC32c that the packet carries, lowest byte first on the wire (RFC 9260, appendix A).
    pub fn crc(&self) -> u32 {
        self.checksum.get().swap_bytes()
    }

    /// Sets [`Self::crc`].
    pub fn set_crc(&mut self, crc: u32) {
        self.checksum = crc.swap_bytes().into();
    }
}

/// Chunk type: the client or backend opens.
pub const INIT: u8 = 1;
/// Chunk type: answer to INIT, with a cookie.
pub const INIT_ACK: u8 = 2;
/// Chunk type: the association ends at once.
pub const ABORT: u8 = 6;
/// Chunk type: no more data will be sent.
pub const SHUTDOWN: u8 = 7;
/// Chunk type: answer to SHUTDOWN.
pub const SHUTDOWN_ACK: u8 = 8;
/// Chunk type: something was wrong.
pub const ERROR: u8 = 9;
/// Chunk type: the cookie given back.
pub const COOKIE_ECHO: u8 = 10;
/// Chunk type: answer to COOKIE ECHO.
pub const COOKIE_ACK: u8 = 11;
/// Chunk type: answer to SHUTDOWN ACK.
pub const SHUTDOWN_COMPLETE: u8 = 14;

/// Header of a chunk: 4 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Chunk {
    /// What it is.
    pub kind: u8,
    /// Flags of this kind of chunk.
    pub flags: u8,
    /// Length in bytes, this header included, padding to 4 bytes not.
    pub len: U16,
}

impl Chunk {
    /// Length in bytes.
    pub const LEN: usize = size_of::<Self>();
}

/// CRC32c (RFC 9260, appendix A): a polynomial over GF(2) in reversed bit order, so that the lowest bit is the highest
/// power.
pub mod crc {
    /// The polynomial of Castagnoli, reversed.
    const POLYNOMIAL: u32 = 0x82f6_3b78;
    /// The polynomial 1.
    const ONE: u32 = 1 << 31;

    /// By a byte: the remainder of that byte, eight bits further on.
    static BYTES: [u32; 256] = bytes();

    /// By `k`: the remainder of x to the power of 8·2^k.
    static POWERS: [u32; 16] = powers();

    /// Of a message in several pieces.
    pub fn checksum<'b>(pieces: impl IntoIterator<Item = &'b [u8]>) -> u32 {
        !pieces.into_iter().fold(!0, update)
    }

    /// By how much the CRC of a message changes when four of its bytes, `before` the last `behind` ones, change in the
    /// bits that are set in `change`: the CRC is linear, so that neither its start nor the other bytes matter.
    pub fn change(change: [u8; 4], behind: u16) -> u32 {
        let mut remainder = update(0, &change);
        let mut left = behind;
        for power in &POWERS {
            if left & 1 != 0 {
                remainder = multiply(remainder, *power);
            }
            left >>= 1;
        }
        remainder
    }

    #[expect(clippy::cast_possible_truncation, reason = "the low byte is what is wanted")]
    fn update(remainder: u32, bytes: &[u8]) -> u32 {
        bytes.iter().fold(remainder, |remainder, byte| {
            let index = remainder as u8 ^ byte;
            remainder >> 8 ^ BYTES.get(usize::from(index)).copied().unwrap_or_default()
        })
    }

    /// The product of two remainders.
    const fn multiply(a: u32, b: u32) -> u32 {
        let (mut product, mut shifted, mut bit) = (0, b, ONE);
        while bit != 0 {
            if a & bit != 0 {
                product ^= shifted;
            }
            shifted = times_x(shifted);
            bit >>= 1;
        }
        product
    }

    const fn times_x(remainder: u32) -> u32 {
        if remainder & 1 != 0 { remainder >> 1 ^ POLYNOMIAL } else { remainder >> 1 }
    }

    #[expect(clippy::indexing_slicing, reason = "evaluated at compile time")]
    #[expect(clippy::cast_possible_truncation, reason = "256 values fit a word")]
    const fn bytes() -> [u32; 256] {
        let mut table = [0; 256];
        let mut byte = 0;
        while byte < table.len() {
            let mut remainder = byte as u32;
            let mut bit = 0;
            while bit < 8 {
                remainder = times_x(remainder);
                bit += 1;
            }
            table[byte] = remainder;
            byte += 1;
        }
        table
    }

    #[expect(clippy::indexing_slicing, reason = "evaluated at compile time")]
    const fn powers() -> [u32; 16] {
        // x to the power of 8.
        let mut power = ONE >> 8;
        let mut table = [0; 16];
        let mut k = 0;
        while k < table.len() {
            table[k] = power;
            power = multiply(power, power);
            k += 1;
        }
        table
    }

    #[cfg(test)]
    mod tests {
        use proptest::prelude::*;

        use super::*;

        #[test]
        fn the_known_answers_are_given() {
            // RFC 3720, appendix B.4, and the check value of the catalogue of parametrised CRCs.
            assert_eq!(checksum([&b"123456789"[..]]), 0xe306_9283);
            assert_eq!(checksum([&[0; 32][..]]), 0x8a91_36aa);
            assert_eq!(checksum([&[0xff; 32][..]]), 0x62a8_ab43);
        }

        proptest! {
            #[test]
            fn an_incremental_crc_is_the_full_one(
                before in proptest::collection::vec(any::<u8>(), 0..40),
                [old, new] in any::<[[u8; 4]; 2]>(),
                behind in proptest::collection::vec(any::<u8>(), 0..3000),
            ) {
                let [was, is] = [old, new].map(|bytes| checksum([&before[..], &bytes[..], &behind[..]]));
                let bits: Vec<u8> = old.iter().zip(new).map(|(old, new)| old ^ new).collect();
                let change = change(bits.try_into().unwrap(), u16::try_from(behind.len()).unwrap());
                prop_assert_eq!(was ^ change, is);
                prop_assert_eq!(checksum([&before[..], &old[..]]), checksum([&[&before[..], &old].concat()[..]]));
            }
        }
    }
}
