//! SCTP's common header (RFC 9260).

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
}
