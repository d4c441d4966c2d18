//! ARP for IPv4 over Ethernet (RFC 826).

use zerocopy::big_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Operation: who has the target address?
pub const REQUEST: u16 = 1;
/// Operation: the sender has it.
pub const REPLY: u16 = 2;

/// ARP packet with 6-byte hardware and 4-byte protocol addresses: 28 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Arp {
    /// Hardware type, hardware and protocol address length, protocol type.
    pub formats: Formats,
    /// [`REQUEST`] or [`REPLY`].
    pub operation: U16,
    /// MAC address of the sender.
    pub sender_mac: [u8; 6],
    /// IPv4 address of the sender.
    pub sender: U32,
    /// MAC address of the target; of no meaning in a request.
    pub target_mac: [u8; 6],
    /// IPv4 address of the target.
    pub target: U32,
}

impl Arp {
    /// Length in bytes.
    pub const LEN: usize = size_of::<Self>();
}

/// Which kinds of addresses an ARP packet holds: 6 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Formats {
    /// Hardware type; Ethernet is 1.
    pub hardware: U16,
    /// Protocol as an EtherType.
    pub protocol: U16,
    /// Bytes in a hardware address.
    pub hardware_len: u8,
    /// Bytes in a protocol address.
    pub protocol_len: u8,
}

impl Formats {
    /// IPv4 over Ethernet.
    pub const IPV4_OVER_ETHERNET: Self = Self {
        hardware: U16::new(1),
        protocol: U16::new(super::ethernet::IPV4),
        hardware_len: 6,
        protocol_len: 4,
    };
}
