//! TCP (RFC 9293).

use zerocopy::big_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Flag: no more data from the sender.
pub const FIN: u8 = 0x01;
/// Flag: synchronise sequence numbers.
pub const SYN: u8 = 0x02;
/// Flag: reset the connection.
pub const RST: u8 = 0x04;
/// Flag: push.
pub const PSH: u8 = 0x08;
/// Flag: the acknowledgement number counts.
pub const ACK: u8 = 0x10;

/// TCP header without options: 20 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Tcp {
    /// Source port.
    pub src_port: U16,
    /// Destination port.
    pub dst_port: U16,
    /// Sequence number of the first byte.
    pub sequence: U32,
    /// Sequence number expected next from the other side.
    pub acknowledgement: U32,
    /// Header length in 4-byte words (4 bits), reserved (4).
    pub data_offset: u8,
    /// Flags.
    pub flags: u8,
    /// Bytes that the sender is ready to receive.
    pub window: U16,
    /// Checksum of pseudo-header and segment.
    pub checksum: U16,
    /// Where urgent data ends.
    pub urgent: U16,
}

impl Tcp {
    /// Length in bytes, without options.
    pub const LEN: usize = size_of::<Self>();
    /// Where in the header the checksum lies, in bytes.
    pub const CHECKSUM: usize = 16;

    /// Length of the header with options in bytes, as it claims: 0 to 60; at least 20 in a valid header.
    #[inline]
    pub fn header_len(&self) -> usize {
        usize::from(self.data_offset >> 4) * 4
    }
}
