//! Generic UDP Encapsulation, variant 0 (draft-ietf-intarea-gue), with the one option that Linux knows: remote checksum
//! offload (draft-herbert-remotecsumoffload; `include/net/gue.h`).

use zerocopy::big_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Flag: a word of private flags follows.
pub const PRIVATE: u16 = 0x0001;
/// Private flag: a [`RemoteChecksum`] follows.
pub const REMOTE_CHECKSUM: u32 = 0x8000_0000;

/// GUE header without options: 4 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Gue {
    /// Variant (2 bits), control message (1), length of the options in 4-byte words (5).
    pub variant_len: u8,
    /// IP protocol number of the payload.
    pub protocol: u8,
    /// Which options there are.
    pub flags: U16,
}

/// The options of a packet whose inner transport checksum its receiver computes: 8 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct RemoteChecksum {
    /// Private flags.
    pub flags: U32,
    /// First byte that the checksum covers, from the end of the GUE header with its options.
    pub start: U16,
    /// Where the checksum lies, from there too.
    pub field: U16,
}

impl Gue {
    /// Length in bytes, without options.
    pub const LEN: usize = size_of::<Self>();
}

impl RemoteChecksum {
    /// Length in bytes.
    pub const LEN: usize = size_of::<Self>();
}
