//! Ethernet II and VLAN tags (IEEE 802.3, 802.1Q, 802.1ad).

use zerocopy::big_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// EtherType of IPv4.
pub const IPV4: u16 = 0x0800;
/// EtherType of ARP.
pub const ARP: u16 = 0x0806;
/// EtherType of IPv6.
pub const IPV6: u16 = 0x86dd;
/// EtherType of a customer VLAN tag (802.1Q).
pub const VLAN: u16 = 0x8100;
/// EtherType of a service VLAN tag (802.1ad).
pub const SERVICE_VLAN: u16 = 0x88a8;

/// Ethernet header: 14 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Ethernet {
    /// Destination MAC address.
    pub dst: [u8; 6],
    /// Source MAC address.
    pub src: [u8; 6],
    /// Protocol of what follows.
    pub ethertype: U16,
}

impl Ethernet {
    /// Length in bytes.
    pub const LEN: usize = size_of::<Self>();
}

/// What follows the EtherType of a VLAN tag: 4 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct VlanTag {
    /// Priority (3 bits), drop eligible (1), VLAN id (12).
    pub tci: U16,
    /// Protocol of what follows.
    pub ethertype: U16,
}

impl VlanTag {
    /// Length in bytes.
    pub const LEN: usize = size_of::<Self>();
}

/// Whether a MAC address is a group's: multicast or broadcast.
#[inline]
pub fn is_group(mac: [u8; 6]) -> bool {
    mac[0] & 1 != 0
}
