//! A frame's headers as offsets and a key: read once, used by every later stage.

use crate::flow::key::FlowKey;
use crate::verdict::DropReason;

/// What a packet is to a load balancer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// TCP, UDP or SCTP: `key` is its five-tuple.
    Transport,
    /// An ICMP or ICMPv6 error: `key` is the five-tuple of the packet that it quotes.
    IcmpError,
    /// An ICMP or ICMPv6 echo request: `key` has its addresses.
    EchoRequest,
    /// A neighbour solicitation: `key.src` is the asker, `key.dst` the target.
    NeighbourSolicitation,
    /// An ARP request for IPv4 over Ethernet: `key.src` is the asker, `key.dst` the target.
    ArpRequest,
    /// A fragment of an IP packet: `key` has addresses and protocol, no ports.
    Fragment,
    /// Anything else: another EtherType, IP protocol or ICMP type. `key` has the addresses where there are any.
    Other,
}

/// One parsed packet. Offsets are in bytes from the start of the frame and were checked against its length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// What it is.
    pub kind: Kind,
    /// What it is looked up by.
    pub key: FlowKey,
    /// First byte of the IP (or ARP) header: 14, 18 or 22.
    pub l3: u16,
    /// First byte of the transport or ICMP header.
    pub l4: u16,
    /// First byte behind the IP packet; what follows is Ethernet padding.
    pub end: u16,
    /// TCP flags of a TCP segment, else 0.
    pub tcp_flags: u8,
    /// TTL or hop limit.
    pub ttl: u8,
}

/// Reads the headers of one Ethernet frame, up to two VLAN tags, IPv4 with options, IPv6 with a bounded number of
/// extension headers.
pub fn parse(_frame: &[u8]) -> Result<Packet, DropReason> {
    Err(DropReason::Truncated)
}
