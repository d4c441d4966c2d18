//! UDP (RFC 768).

use zerocopy::big_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// UDP header: 8 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Udp {
    /// Source port.
    pub src_port: U16,
    /// Destination port.
    pub dst_port: U16,
    /// Length of header and payload in bytes.
    pub len: U16,
    /// Checksum of pseudo-header and datagram; 0 over IPv4: none.
    pub checksum: U16,
}

impl Udp {
    /// Length in bytes.
    pub const LEN: usize = size_of::<Self>();
    /// Where in the header the checksum lies, in bytes.
    pub const CHECKSUM: usize = 6;
}
