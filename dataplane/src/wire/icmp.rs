//! ICMP (RFC 792) and ICMPv6 (RFC 4443) with neighbour discovery (RFC 4861).

use zerocopy::big_endian::{U16, U32, U128};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Numbers of ICMP for IPv4.
#[expect(missing_docs, reason = "the names are the RFC's")]
pub mod v4 {
    pub const ECHO_REPLY: u8 = 0;
    pub const UNREACHABLE: u8 = 3;
    pub const SOURCE_QUENCH: u8 = 4;
    pub const ECHO_REQUEST: u8 = 8;
    pub const TIME_EXCEEDED: u8 = 11;
    pub const PARAMETER_PROBLEM: u8 = 12;

    /// Code of [`UNREACHABLE`].
    pub const PORT_UNREACHABLE: u8 = 3;
    /// Code of [`UNREACHABLE`].
    pub const FRAGMENTATION_NEEDED: u8 = 4;
}

/// Numbers of ICMPv6.
#[expect(missing_docs, reason = "the names are the RFC's")]
pub mod v6 {
    pub const UNREACHABLE: u8 = 1;
    pub const PACKET_TOO_BIG: u8 = 2;
    pub const TIME_EXCEEDED: u8 = 3;
    pub const PARAMETER_PROBLEM: u8 = 4;
    pub const ECHO_REQUEST: u8 = 128;
    pub const ECHO_REPLY: u8 = 129;
    pub const NEIGHBOUR_SOLICITATION: u8 = 135;
    pub const NEIGHBOUR_ADVERTISEMENT: u8 = 136;

    /// Code of [`UNREACHABLE`].
    pub const PORT_UNREACHABLE: u8 = 4;
}

/// What every ICMP and ICMPv6 message starts with: 8 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Icmp {
    /// Type.
    pub kind: u8,
    /// Code.
    pub code: u8,
    /// Checksum of the message, for ICMPv6 with a pseudo-header.
    pub checksum: U16,
    /// By type: identifier and sequence number, MTU, flags.
    pub rest: U32,
}

impl Icmp {
    /// Length in bytes.
    pub const LEN: usize = size_of::<Self>();
    /// Where in the header the checksum lies, in bytes.
    pub const CHECKSUM: usize = 2;
}

/// Neighbour solicitation or advertisement without options: 24 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Neighbour {
    /// Type, code, checksum; the rest holds the advertisement's flags.
    pub icmp: Icmp,
    /// The address in question.
    pub target: U128,
}

impl Neighbour {
    /// Length in bytes.
    pub const LEN: usize = size_of::<Self>();
    /// Flag of an advertisement: sent in answer to a solicitation.
    pub const SOLICITED: u32 = 1 << 30;
    /// Flag of an advertisement: replaces what the receiver has cached.
    pub const OVERRIDE: u32 = 1 << 29;
}

/// Option that holds a MAC address: 8 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct LinkLayerOption {
    /// [`Self::SOURCE`] or [`Self::TARGET`].
    pub kind: u8,
    /// Length in 8-byte units: 1.
    pub len: u8,
    /// The address.
    pub mac: [u8; 6],
}

impl LinkLayerOption {
    /// Length in bytes.
    pub const LEN: usize = size_of::<Self>();
    /// Kind: the sender's address.
    pub const SOURCE: u8 = 1;
    /// Kind: the target's address.
    pub const TARGET: u8 = 2;
}
