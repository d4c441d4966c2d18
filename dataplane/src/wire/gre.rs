//! Generic Routing Encapsulation (RFC 2784).

use zerocopy::big_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Protocol number of GRE.
pub const PROTOCOL: u8 = 47;

/// Flag: a [`Checksum`] follows.
pub const CHECKSUM: u16 = 0x8000;

/// GRE header without options: 4 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Gre {
    /// Flags (13 bits), version (3).
    pub flags: U16,
    /// EtherType of the payload.
    pub protocol: U16,
}

/// What follows where [`CHECKSUM`] is set: 4 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Checksum {
    /// Of the GRE header and all behind it.
    pub checksum: U16,
    /// Zero.
    pub reserved: U16,
}

impl Gre {
    /// Length in bytes, without options.
    pub const LEN: usize = size_of::<Self>();
}

impl Checksum {
    /// Length in bytes.
    pub const LEN: usize = size_of::<Self>();
}
