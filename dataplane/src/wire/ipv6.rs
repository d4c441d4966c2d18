//! IPv6 and its extension headers (RFC 8200).

use zerocopy::big_endian::{U16, U32, U128};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{Truncated, view};

/// Next header: hop-by-hop options.
pub const HOP_BY_HOP: u8 = 0;
/// Protocol number of IPv6 within IP (RFC 2473).
pub const IN_IP: u8 = 41;
/// Next header: routing.
pub const ROUTING: u8 = 43;
/// Next header: fragment.
pub const FRAGMENT: u8 = 44;
/// Next header: ICMPv6.
pub const ICMPV6: u8 = 58;
/// Next header: nothing follows.
pub const NO_NEXT_HEADER: u8 = 59;
/// Next header: destination options.
pub const DESTINATION_OPTIONS: u8 = 60;

/// Extension headers followed at most; RFC 8504, section 5.3, lets a node set such a limit.
pub const MAX_EXTENSIONS: usize = 8;

/// The link's all-nodes group, ff02::1.
pub const ALL_NODES: u128 = 0xff02 << 112 | 1;

/// IPv6 header: 40 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Ipv6 {
    /// Version (4 bits), traffic class (8), flow label (20).
    pub version_class_flow: U32,
    /// Length of all that follows this header in bytes.
    pub payload_len: U16,
    /// Type of the header that follows.
    pub next_header: u8,
    /// Hops left.
    pub hop_limit: u8,
    /// Source address.
    pub src: U128,
    /// Destination address.
    pub dst: U128,
}

impl Ipv6 {
    /// Length in bytes.
    pub const LEN: usize = size_of::<Self>();

    /// IP version; 6 in a valid header.
    #[inline]
    pub fn version(&self) -> u32 {
        self.version_class_flow.get() >> 28
    }

    /// Traffic class: what IPv4 has as TOS octet.
    #[inline]
    pub fn traffic_class(&self) -> u8 {
        let [first, second, ..] = self.version_class_flow.get().to_be_bytes();
        first << 4 | second >> 4
    }
}

/// Start of a hop-by-hop, routing or destination options header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Extension {
    /// Type of the header that follows.
    pub next_header: u8,
    /// Length in 8-byte units, not counting the first.
    pub len: u8,
    /// In a routing header its type.
    pub routing_type: u8,
    /// In a routing header: how many nodes are still to be visited.
    pub segments_left: u8,
}

/// Fragment header: 8 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Fragment {
    /// Type of the header that follows in the whole packet.
    pub next_header: u8,
    /// Unused.
    pub reserved: u8,
    /// Offset in 8-byte units (13 bits), unused (2), more fragments (1).
    pub offset_more: U16,
    /// The same in all fragments of a packet.
    pub id: U32,
}

impl Fragment {
    /// Where the fragment starts in the packet, in units of 8 bytes.
    #[inline]
    pub fn offset(&self) -> u16 {
        self.offset_more.get() >> 3
    }

    /// Whether it is not the last.
    #[inline]
    pub fn has_more(&self) -> bool {
        self.offset_more.get() & 1 != 0
    }
}

/// Where the chain of extension headers ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Upper {
    /// Protocol of what follows: a transport, or a header that is not followed.
    pub protocol: u8,
    /// Its first byte, from the start of the bytes that were walked.
    pub offset: usize,
    /// The packet's place among fragments.
    pub part: Part,
    /// First byte of the fragment header, from the start of the bytes that were walked; only in a fragment.
    pub fragment: usize,
    /// A routing header names nodes still to be visited: the destination address is not the last.
    pub en_route: bool,
}

/// A packet's place among fragments. An atomic fragment (RFC 6946) is whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Not a fragment.
    Whole,
    /// The fragment with the transport header.
    First,
    /// A later one: what follows is not a transport header.
    Later,
}

/// Why a chain of extension headers was not followed to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChainError {
    /// The bytes end before it does.
    Truncated,
    /// Hop-by-hop options elsewhere than directly behind the IPv6 header (RFC 8200, section 4.1).
    Misplaced,
    /// More than [`MAX_EXTENSIONS`] headers.
    TooLong,
}

impl From<Truncated> for ChainError {
    fn from(_: Truncated) -> Self {
        Self::Truncated
    }
}

/// Follows the extension headers in `payload`, the bytes behind an IPv6 header whose next header is `first`.
///
/// Stops at a later fragment, and at a routing header with segments left, because what follows is not to be read.
pub fn upper(payload: &[u8], first: u8) -> Result<Upper, ChainError> {
    let mut upper = Upper { protocol: first, offset: 0, part: Part::Whole, fragment: 0, en_route: false };
    for position in 0..=MAX_EXTENSIONS {
        match upper.protocol {
            HOP_BY_HOP if position > 0 => return Err(ChainError::Misplaced),
            FRAGMENT => {
                let header: &Fragment = view(payload, upper.offset)?;
                upper.protocol = header.next_header;
                upper.fragment = upper.offset;
                upper.offset += size_of::<Fragment>();
                match (header.offset(), header.has_more()) {
                    (0, false) => {}
                    (0, true) => upper.part = Part::First,
                    _ => return Ok(Upper { part: Part::Later, ..upper }),
                }
            }
            HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS => {
                let header: &Extension = view(payload, upper.offset)?;
                if upper.protocol == ROUTING && header.segments_left != 0 {
                    return Ok(Upper { en_route: true, ..upper });
                }
                upper.protocol = header.next_header;
                upper.offset += (usize::from(header.len) + 1) * 8;
                if upper.offset > payload.len() {
                    return Err(ChainError::Truncated);
                }
            }
            _ => return Ok(upper),
        }
    }
    Err(ChainError::TooLong)
}

/// Whether an address is a multicast group's.
#[inline]
pub fn is_multicast(addr: u128) -> bool {
    addr >> 120 == 0xff
}

/// Whether a host can have sent with this source address: not unspecified, loopback or multicast.
#[inline]
pub fn is_host(addr: u128) -> bool {
    addr > 1 && !is_multicast(addr)
}
