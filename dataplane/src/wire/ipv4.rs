//! IPv4 (RFC 791).

use zerocopy::big_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Protocol number of ICMP.
pub const ICMP: u8 = 1;
/// Protocol number of IPv4 within IP (RFC 2003).
pub const IN_IP: u8 = 4;

/// Version 4 and a header of five words, as the first byte has them.
pub const VERSION_NO_OPTIONS: u8 = 0x45;
/// Flag in the fragment field: do not fragment.
pub const DONT_FRAGMENT: u16 = 0x4000;
/// Flag in the fragment field: more fragments follow.
pub const MORE_FRAGMENTS: u16 = 0x2000;
/// Bits of the fragment field that hold the offset, in units of 8 bytes.
pub const OFFSET_MASK: u16 = 0x1fff;

/// IPv4 header without options: 20 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Ipv4 {
    /// Version (4 bits), header length in 4-byte words (4 bits).
    pub version_ihl: u8,
    /// Differentiated services (6 bits), congestion notification (2 bits).
    pub tos: u8,
    /// Length of header and payload in bytes.
    pub total_len: U16,
    /// Identification: the same in all fragments of a packet.
    pub id: U16,
    /// Flags (3 bits), fragment offset (13 bits).
    pub fragment: U16,
    /// Time to live, in hops.
    pub ttl: u8,
    /// Protocol of the payload.
    pub protocol: u8,
    /// One's-complement checksum of the header.
    pub checksum: U16,
    /// Source address.
    pub src: U32,
    /// Destination address.
    pub dst: U32,
}

impl Ipv4 {
    /// Length in bytes, without options.
    pub const LEN: usize = size_of::<Self>();

    /// IP version; 4 in a valid header.
    #[inline]
    pub fn version(&self) -> u8 {
        self.version_ihl >> 4
    }

    /// Length of the header with options in bytes, as it claims: 0 to 60; at least 20 in a valid header.
    #[inline]
    pub fn header_len(&self) -> usize {
        usize::from(self.version_ihl & 0x0f) * 4
    }

    /// Whether the packet is a fragment, the first one or a later one.
    #[inline]
    pub fn is_fragment(&self) -> bool {
        self.fragment.get() & (MORE_FRAGMENTS | OFFSET_MASK) != 0
    }

    /// Whether the packet is a fragment other than the first, so that it has no transport header.
    #[inline]
    pub fn is_later_fragment(&self) -> bool {
        self.fragment.get() & OFFSET_MASK != 0
    }
}

/// Whether a host can have sent with this source address: not unspecified, loopback, multicast or reserved.
#[inline]
pub fn is_host(addr: u32) -> bool {
    !matches!(addr >> 24, 0 | 127 | 224..)
}

/// Whether a header's options name routers that the packet has still to visit (RFC 791, section 3.1).
pub fn is_source_routed(mut options: &[u8]) -> bool {
    const END: u8 = 0;
    const NO_OPERATION: u8 = 1;
    const LOOSE_SOURCE_ROUTE: u8 = 131;
    const STRICT_SOURCE_ROUTE: u8 = 137;

    loop {
        options = match *options {
            [] | [END, ..] => return false,
            [NO_OPERATION, ref rest @ ..] => rest,
            [LOOSE_SOURCE_ROUTE | STRICT_SOURCE_ROUTE, len, pointer, ..] if pointer <= len => return true,
            [_, len, ..] if len >= 2 => options.get(len.into()..).unwrap_or_default(),
            _ => return false,
        };
    }
}

/// The IPv4 address in an address as keys hold it: the low 32 bits.
#[inline]
#[expect(clippy::cast_possible_truncation, reason = "an IPv4 address is the low 32 bits by contract")]
pub fn address(bits: u128) -> u32 {
    bits as u32
}
