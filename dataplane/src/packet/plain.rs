//! What nearly all packets are: TCP or UDP, whole, in an untagged frame, behind an IP header without options or
//! extensions. Their headers lie at fixed places, so that one check of the length serves all of them.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned, transmute};

use super::{Kind, Packet};
use crate::flow::key::{self, FlowKey, TCP, UDP};
use crate::flow::sctp::Event::Nothing;
use crate::wire::checksum::ipv4_verifies;
use crate::wire::ethernet::{self, Ethernet};
use crate::wire::ipv4::{self, Ipv4};
use crate::wire::ipv6::Ipv6;
use crate::wire::tcp::Tcp;
use crate::wire::udp::Udp;

/// First byte of the IP header.
const L3: u16 = 14;

/// The first bytes of a frame. Of a UDP datagram the TCP header's place holds the UDP header and data.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct Plain<Ip> {
    ethernet: Ethernet,
    ip: Ip,
    transport: Tcp,
}

impl Plain<Ipv4> {
    const L4: u16 = 34;

    /// The headers of a frame that holds such a packet, with nothing wrong. `None` says only that somebody has to look
    /// more closely; a datagram too short to be TCP is rare and goes the long way.
    #[inline]
    pub(crate) fn of(frame: &[u8]) -> Option<&Self> {
        // A longer one may hold a packet whose end has no number of 16 bits.
        if frame.len() > usize::from(u16::MAX) {
            return None;
        }
        let (plain, _) = Self::ref_from_prefix(frame).ok()?;
        let Self { ethernet, ip, transport } = plain;
        let len = ip.total_len.get().into();
        let is_plain = ethernet.ethertype == ethernet::IPV4
            && ip.version_ihl == ipv4::VERSION_NO_OPTIONS
            && !ip.is_fragment()
            && usize::from(L3) + len <= frame.len()
            && ipv4_verifies(ip)
            && is_whole(ip.protocol, transport, size_of::<Ipv4>(), len);
        is_plain.then_some(plain)
    }

    /// Protocol number: [`TCP`] or [`UDP`].
    #[inline]
    pub(crate) fn protocol(&self) -> u8 {
        self.ip.protocol
    }

    /// [`FlowKey::hash`] of its key, whose protocol this is: told by who has asked for it, so that it is a constant there.
    #[inline]
    pub(crate) fn hash(&self, protocol: u8, seed: u64) -> u64 {
        let addresses: [u8; 8] = transmute!([self.ip.src, self.ip.dst]);
        let ports: [u8; 4] = transmute!([self.transport.src_port, self.transport.dst_port]);
        key::hash_v4(u64::from_ne_bytes(addresses), u32::from_ne_bytes(ports), protocol, seed)
    }

    /// The packet.
    #[inline]
    pub(crate) fn packet(&self) -> Packet {
        let Self { ip, transport, .. } = self;
        let key = FlowKey {
            src: ip.src.get().into(),
            dst: ip.dst.get().into(),
            sport: transport.src_port.get(),
            dport: transport.dst_port.get(),
            proto: ip.protocol,
            v6: false,
        };
        let end = L3.saturating_add(ip.total_len.get());
        Packet {
            kind: Kind::Transport,
            key,
            l3: L3,
            l4: Self::L4,
            end,
            tcp_flags: if ip.protocol == TCP { transport.flags } else { 0 },
            sctp: Nothing,
            ttl: ip.ttl,
        }
    }
}

/// The same in IPv6.
#[inline]
pub(super) fn parse_v6(frame: &[u8]) -> Option<Packet> {
    const L4: u16 = 54;

    let (Plain { ethernet, ip, transport }, _) = Plain::<Ipv6>::ref_from_prefix(frame).ok()?;
    let end = L4.checked_add(ip.payload_len.get())?;
    if ethernet.ethertype != ethernet::IPV6
        || ip.version() != 6
        || usize::from(end) > frame.len()
        || !is_whole(ip.next_header, transport, 0, ip.payload_len.get().into())
    {
        return None;
    }
    let key = FlowKey {
        src: ip.src.get(),
        dst: ip.dst.get(),
        sport: transport.src_port.get(),
        dport: transport.dst_port.get(),
        proto: ip.next_header,
        v6: true,
    };
    let tcp_flags = if key.proto == TCP { transport.flags } else { 0 };
    Some(Packet {
        kind: Kind::Transport,
        key,
        l3: L3,
        l4: L4,
        end,
        tcp_flags,
        sctp: Nothing,
        ttl: ip.hop_limit,
    })
}

/// Whether `len` bytes, of which `before` are of other headers, hold the TCP or UDP header and what it says there is.
#[inline]
fn is_whole(protocol: u8, transport: &Tcp, before: usize, len: usize) -> bool {
    let fits = |least, claimed| least <= claimed && before + claimed <= len;
    match protocol {
        TCP => fits(Tcp::LEN, transport.header_len()),
        UDP => fits(Udp::LEN, udp_len(transport)),
        _ => false,
    }
}

/// The length field, were it UDP.
#[inline]
fn udp_len(transport: &Tcp) -> usize {
    let [_, _, _, _, high, low, ..]: [u8; Tcp::LEN] = transmute!(*transport);
    u16::from_be_bytes([high, low]).into()
}
