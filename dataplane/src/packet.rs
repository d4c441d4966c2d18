//! A frame's headers as offsets and a key: read once, used by every later stage.

mod plain;

use zerocopy::big_endian::{U16, U32};
use zerocopy::transmute;

use crate::flow::key::{FlowKey, SCTP, TCP, UDP};
use crate::flow::sctp::{self, Event::Nothing};
use crate::verdict::DropReason;
use crate::wire::arp::{self, Arp, Formats};
use crate::wire::checksum::Sum;
use crate::wire::ethernet::{self, Ethernet, VlanTag};
use crate::wire::gre;
use crate::wire::icmp::{self, Icmp, LinkLayerOption, Neighbour};
use crate::wire::ipv4::{self, Ipv4};
use crate::wire::ipv6::{self, ChainError, Ipv6, Part};
use crate::wire::sctp::Sctp;
use crate::wire::tcp::{SYN, Tcp};
use crate::wire::udp::Udp;
use crate::wire::{Truncated, view};
pub(crate) type Plain = plain::Plain<Ipv4>;

/// What a packet is to a load balancer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// TCP, UDP or SCTP: `key` is its five-tuple.
    Transport,
    /// An ICMP or ICMPv6 error: `key` is the five-tuple of the packet that it quotes.
    IcmpError,
    /// An ICMP or ICMPv6 error about a packet of IP in IP or GRE: `key` has the addresses and the protocol that it quotes.
    TunnelError,
    /// An ICMP or ICMPv6 echo request: `key` has its addresses.
    EchoRequest,
    /// A neighbour solicitation: `key.src` is the asker, `key.dst` the target.
    NeighbourSolicitation,
    /// An ARP request for IPv4 over Ethernet: `key.src` is the asker, `key.dst` the target.
    ArpRequest,
    /// The first fragment of a TCP, UDP or SCTP packet, with all of its transport header: `key` is its five-tuple.
    FirstFragment,
    /// A later fragment, or one of another protocol: `key` has addresses and protocol, no ports. Of IPv6 the protocol is
    /// the one that the fragment header names, which may be another extension header.
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
    /// What an SCTP packet says; `Nothing` for any other.
    pub sctp: sctp::Event,
    /// TTL or hop limit.
    pub ttl: u8,
}

impl Packet {
    /// Whether it starts a connection: a TCP segment with SYN, whatever else it has, or an SCTP INIT.
    #[inline]
    pub fn is_first(&self) -> bool {
        match self.key.proto {
            TCP => self.tcp_flags & SYN != 0,
            SCTP => self.sctp == sctp::Event::Init,
            _ => false,
        }
    }

    /// Source and destination of the IP header itself, which those of the key are not where the packet is an ICMP
    /// error or a neighbour solicitation. Only for IP packets.
    pub fn outer_addresses(&self, frame: &[u8]) -> Result<(u128, u128), DropReason> {
        if self.key.v6 {
            let ip: &Ipv6 = view(frame, self.l3.into())?;
            Ok((ip.src.get(), ip.dst.get()))
        } else {
            let ip: &Ipv4 = view(frame, self.l3.into())?;
            Ok((ip.src.get().into(), ip.dst.get().into()))
        }
    }
}

/// Reads the headers of one Ethernet frame: up to two VLAN tags, IPv4 with options, IPv6 with a bounded number of
/// extension headers.
///
/// # Errors
/// - `Truncated`: a header runs past the end of the frame, or of what its IP header says there is.
/// - `BadLength`: a length field is smaller than its header or larger than what there is; an IPv6 jumbogram; a fragment
///   that is empty, ends past 64 KiB, or is not the last and no multiple of 8 bytes long.
/// - `TinyFragment`: a transport header that is cut off by the end of the first fragment, or a later fragment that starts
///   inside of one (RFC 1858, RFC 7112).
/// - `BadHeader`: IP version, IHL, TCP data offset, a third VLAN tag, misplaced hop-by-hop options, or a neighbour
///   solicitation that RFC 4861, section 7.1.1, has discarded.
/// - `BadChecksum`: of an IPv4 header, an ICMP error, an echo request or a neighbour solicitation.
/// - `Unsupported`: more than [`ipv6::MAX_EXTENSIONS`] extension headers.
#[inline]
pub fn parse(frame: &[u8]) -> Result<Packet, DropReason> {
    Plain::of(frame).map_or_else(|| uncommon(frame), |plain| Ok(plain.packet()))
}

/// Not inlined: IPv4 is to have the registers for itself.
#[inline(never)]
pub(crate) fn uncommon(frame: &[u8]) -> Result<Packet, DropReason> {
    plain::parse_v6(frame).map_or_else(|| general(frame), Ok)
}

/// Any frame, header by header.
#[inline(never)]
fn general(frame: &[u8]) -> Result<Packet, DropReason> {
    let ethernet: &Ethernet = view(frame, 0)?;
    let mut ethertype = ethernet.ethertype.get();
    let mut l3 = Ethernet::LEN;
    while matches!(ethertype, ethernet::VLAN | ethernet::SERVICE_VLAN) {
        if l3 == Ethernet::LEN + 2 * VlanTag::LEN {
            return Err(DropReason::BadHeader);
        }
        let tag: &VlanTag = view(frame, l3)?;
        ethertype = tag.ethertype.get();
        l3 += VlanTag::LEN;
    }
    match ethertype {
        ethernet::IPV4 => in_ipv4(frame, l3),
        ethernet::IPV6 => in_ipv6(frame, l3),
        ethernet::ARP => in_arp(frame, l3),
        _ => other(FlowKey::default(), [l3, l3, frame.len()], 0),
    }
}

fn in_ipv4(frame: &[u8], l3: usize) -> Result<Packet, DropReason> {
    let ip: &Ipv4 = view(frame, l3)?;
    if ip.version() != 4 || ip.header_len() < Ipv4::LEN {
        return Err(DropReason::BadHeader);
    }
    let l4 = l3 + ip.header_len();
    let end = l3 + usize::from(ip.total_len.get());
    let header = frame.get(l3..l4).ok_or(DropReason::Truncated)?;
    let segment = frame.get(l4..end).ok_or(DropReason::BadLength)?;
    if !Sum::of(header).verifies() {
        return Err(DropReason::BadChecksum);
    }
    let (src, dst) = (ip.src.get().into(), ip.dst.get().into());
    let key = FlowKey { src, dst, proto: ip.protocol, ..FlowKey::default() };
    let packet = other(key, [l3, l4, end], ip.ttl)?;
    if !ip.is_fragment() {
        return in_segment(packet, segment);
    }
    let (fragment, more) = (ip.fragment.get(), ip.fragment.get() & ipv4::MORE_FRAGMENTS != 0);
    in_fragment(packet, Piece { offset: fragment & ipv4::OFFSET_MASK, more, len: segment.len() }, segment)
}

fn in_ipv6(frame: &[u8], l3: usize) -> Result<Packet, DropReason> {
    let ip: &Ipv6 = view(frame, l3)?;
    if ip.version() != 6 {
        return Err(DropReason::BadHeader);
    }
    let start = l3 + Ipv6::LEN;
    let end = start + usize::from(ip.payload_len.get());
    let payload = frame.get(start..end).ok_or(DropReason::BadLength)?;
    if payload.is_empty() && ip.next_header == ipv6::HOP_BY_HOP {
        return Err(DropReason::BadLength); // a jumbogram, whose length is in an option
    }
    let upper = ipv6::upper(payload, ip.next_header)?;
    let (src, dst) = (ip.src.get(), ip.dst.get());
    let key = FlowKey { src, dst, proto: upper.protocol, v6: true, ..FlowKey::default() };
    let packet = other(key, [l3, start + upper.offset, end], ip.hop_limit)?;
    let segment = payload.get(upper.offset..).unwrap_or_default();
    match upper.part {
        Part::Whole if upper.en_route => Ok(packet),
        Part::Whole => in_segment(packet, segment),
        Part::First | Part::Later => {
            let header: &ipv6::Fragment = view(payload, upper.fragment)?;
            let data = payload.len() - (upper.fragment + size_of::<ipv6::Fragment>()).min(payload.len());
            in_fragment(
                packet,
                Piece { offset: header.offset(), more: header.has_more(), len: data },
                segment,
            )
        }
    }
}

/// What of a packet a fragment holds.
#[derive(Clone, Copy, Debug)]
struct Piece {
    /// Where it starts in the packet, in units of 8 bytes.
    offset: u16,
    /// Whether it is not the last.
    more: bool,
    /// Its bytes.
    len: usize,
}

/// A fragment. `segment` is what follows all headers that could be read.
fn in_fragment(packet: Packet, piece: Piece, segment: &[u8]) -> Result<Packet, DropReason> {
    let start = usize::from(piece.offset) * 8;
    if piece.len == 0
        || start + piece.len > usize::from(u16::MAX)
        || piece.more && !piece.len.is_multiple_of(8)
    {
        return Err(DropReason::BadLength);
    }
    let least = match packet.key.proto {
        TCP => Tcp::LEN,
        UDP => Udp::LEN,
        SCTP => Sctp::LEN,
        _ => return Ok(Packet { kind: Kind::Fragment, ..packet }),
    };
    if start > 0 {
        let is_overlapping = start < least;
        let later = Packet { kind: Kind::Fragment, ..packet };
        return if is_overlapping { Err(DropReason::TinyFragment) } else { Ok(later) };
    }
    let ports: &[U16; 2] = view(segment, 0).map_err(|_| DropReason::TinyFragment)?;
    let [sport, dport] = ports.map(U16::get);
    let mut first =
        Packet { kind: Kind::FirstFragment, key: FlowKey { sport, dport, ..packet.key }, ..packet };
    let mut header_len = least;
    if packet.key.proto == TCP {
        let tcp: &Tcp = view(segment, 0).map_err(|_| DropReason::TinyFragment)?;
        if tcp.header_len() < Tcp::LEN {
            return Err(DropReason::BadHeader);
        }
        header_len = tcp.header_len();
        first.tcp_flags = tcp.flags;
    } else if packet.key.proto == SCTP {
        first.sctp = sctp::Event::of(segment);
    }
    if header_len > segment.len() { Err(DropReason::TinyFragment) } else { Ok(first) }
}

/// What all fragments of one packet have in common and no other packet has for the time being (RFC 791, RFC 8200,
/// section 4.5), as a key: the identification takes the place of the ports. IPv6 does not count the protocol in, because
/// only the first fragment need tell it.
pub fn fragment_key(frame: &[u8], packet: &Packet) -> Result<FlowKey, DropReason> {
    let (id, proto) = if packet.key.v6 {
        let ip: &Ipv6 = view(frame, packet.l3.into())?;
        let payload = frame.get(usize::from(packet.l3) + Ipv6::LEN..).unwrap_or_default();
        let upper = ipv6::upper(payload, ip.next_header)?;
        (view::<ipv6::Fragment>(payload, upper.fragment)?.id.get(), ipv6::FRAGMENT)
    } else {
        (view::<Ipv4>(frame, packet.l3.into())?.id.get().into(), packet.key.proto)
    };
    let [high, low]: [U16; 2] = transmute!(U32::new(id));
    Ok(FlowKey { sport: high.get(), dport: low.get(), proto, ..packet.key })
}

fn in_arp(frame: &[u8], l3: usize) -> Result<Packet, DropReason> {
    let formats: &Formats = view(frame, l3)?;
    if *formats != Formats::IPV4_OVER_ETHERNET {
        return other(FlowKey::default(), [l3, l3, frame.len()], 0);
    }
    let arp: &Arp = view(frame, l3)?;
    let end = l3 + Arp::LEN;
    let key = FlowKey { src: arp.sender.get().into(), dst: arp.target.get().into(), ..FlowKey::default() };
    let packet = other(key, [l3, end, end], 0)?;
    Ok(Packet { kind: if arp.operation == arp::REQUEST { Kind::ArpRequest } else { Kind::Other }, ..packet })
}

/// A packet of which no more is known. `offsets` are those of layers 3 and 4 and of the end.
fn other(key: FlowKey, offsets: [usize; 3], ttl: u8) -> Result<Packet, DropReason> {
    // Only a frame longer than 64 KiB does not fit.
    let [Ok(l3), Ok(l4), Ok(end)] = offsets.map(u16::try_from) else { return Err(DropReason::BadLength) };
    Ok(Packet { kind: Kind::Other, key, l3, l4, end, tcp_flags: 0, sctp: Nothing, ttl })
}

/// What a whole IP packet carries.
fn in_segment(mut packet: Packet, segment: &[u8]) -> Result<Packet, DropReason> {
    let (sport, dport) = match (packet.key.proto, packet.key.v6) {
        (TCP, _) => {
            let tcp: &Tcp = view(segment, 0)?;
            if !(Tcp::LEN..=segment.len()).contains(&tcp.header_len()) {
                return Err(DropReason::BadHeader);
            }
            packet.tcp_flags = tcp.flags;
            (tcp.src_port, tcp.dst_port)
        }
        (UDP, _) => {
            let udp: &Udp = view(segment, 0)?;
            if !(Udp::LEN..=segment.len()).contains(&udp.len.get().into()) {
                return Err(DropReason::BadLength);
            }
            (udp.src_port, udp.dst_port)
        }
        (SCTP, _) => {
            let sctp: &Sctp = view(segment, 0)?;
            packet.sctp = sctp::Event::of(segment);
            (sctp.src_port, sctp.dst_port)
        }
        (ipv4::ICMP, false) => return in_icmp(packet, segment),
        (ipv6::ICMPV6, true) => return in_icmpv6(packet, segment),
        _ => return Ok(packet),
    };
    packet.kind = Kind::Transport;
    packet.key.sport = sport.get();
    packet.key.dport = dport.get();
    Ok(packet)
}

fn in_icmp(packet: Packet, message: &[u8]) -> Result<Packet, DropReason> {
    use icmp::v4::{ECHO_REQUEST, PARAMETER_PROBLEM, SOURCE_QUENCH, TIME_EXCEEDED, UNREACHABLE};

    let header: &Icmp = view(message, 0)?;
    let sum = Sum::of(message);
    match (header.kind, header.code) {
        (ECHO_REQUEST, 0) => verified(sum, Packet { kind: Kind::EchoRequest, ..packet }),
        (UNREACHABLE | SOURCE_QUENCH | TIME_EXCEEDED | PARAMETER_PROBLEM, _) => {
            in_error(packet, message, sum)
        }
        _ => Ok(packet),
    }
}

fn in_icmpv6(packet: Packet, message: &[u8]) -> Result<Packet, DropReason> {
    use icmp::v6::{
        ECHO_REQUEST, NEIGHBOUR_SOLICITATION, PACKET_TOO_BIG, PARAMETER_PROBLEM, TIME_EXCEEDED, UNREACHABLE,
    };

    let header: &Icmp = view(message, 0)?;
    let FlowKey { src, dst, proto, .. } = packet.key;
    let len = packet.end - packet.l4;
    let sum = Sum::pseudo_header(src, dst, proto, len) + Sum::of(message);
    match (header.kind, header.code) {
        (ECHO_REQUEST, 0) => verified(sum, Packet { kind: Kind::EchoRequest, ..packet }),
        (NEIGHBOUR_SOLICITATION, _) => in_solicitation(verified(sum, packet)?, message),
        (UNREACHABLE | PACKET_TOO_BIG | TIME_EXCEEDED | PARAMETER_PROBLEM, _) => {
            in_error(packet, message, sum)
        }
        _ => Ok(packet),
    }
}

fn in_error(packet: Packet, message: &[u8], sum: Sum) -> Result<Packet, DropReason> {
    let packet = verified(sum, packet)?;
    let quote = message.get(Icmp::LEN..).unwrap_or_default();
    if let Some(Quoted { key, .. }) = quoted(quote, packet.key.v6)? {
        return Ok(Packet { kind: Kind::IcmpError, key, ..packet });
    }
    let is_tunnel = |found: &Quoted| matches!(found.key.proto, ipv4::IN_IP | ipv6::IN_IP | gre::PROTOCOL);
    Ok(match quoted_addresses(quote, packet.key.v6)?.filter(is_tunnel) {
        Some(Quoted { key, .. }) => Packet { kind: Kind::TunnelError, key, ..packet },
        None => packet,
    })
}

/// A neighbour solicitation, checked as RFC 4861, section 7.1.1, demands.
fn in_solicitation(mut packet: Packet, message: &[u8]) -> Result<Packet, DropReason> {
    const SOLICITED_NODE: u128 = 0xff02_0000_0000_0000_0000_0001_ff00_0000;

    let header: &Neighbour = view(message, 0)?;
    let options = message.get(Neighbour::LEN..).unwrap_or_default();
    let target = header.target.get();
    let probe = packet.key.src == 0; // duplicate address detection: the asker has no address yet
    let to_group = packet.key.dst >> 24 == SOLICITED_NODE >> 24;
    if packet.ttl != 255
        || header.icmp.code != 0
        || ipv6::is_multicast(target)
        || probe && !to_group
        || !options_hold(options, !probe)
    {
        return Err(DropReason::BadHeader);
    }
    packet.kind = Kind::NeighbourSolicitation;
    packet.key.dst = target;
    Ok(packet)
}

/// Whether the options of a neighbour solicitation fill `options` exactly, with a source address only where allowed.
fn options_hold(mut options: &[u8], source_allowed: bool) -> bool {
    while let [kind, len, ..] = *options {
        let rest = options.get(usize::from(len) * 8..);
        match rest {
            Some(rest) if len > 0 && (source_allowed || kind != LinkLayerOption::SOURCE) => options = rest,
            _ => return false,
        }
    }
    options.is_empty()
}

fn verified(sum: Sum, packet: Packet) -> Result<Packet, DropReason> {
    if sum.verifies() { Ok(packet) } else { Err(DropReason::BadChecksum) }
}

/// The packet that an ICMP error quotes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Quoted {
    /// Its five-tuple.
    pub(crate) key: FlowKey,
    /// First byte of its transport header in the quote; at least [`QUOTED_TRANSPORT`] bytes are there, by [`quoted`].
    pub(crate) l4: usize,
}

/// Bytes of the transport header that every ICMP error quotes (RFC 792). The rest may be missing.
pub(crate) const QUOTED_TRANSPORT: usize = 8;

/// Reads what an ICMP error quotes, cut off anywhere behind the ports. The length fields and the header checksum of
/// the quoted packet are not looked at: routers quote what they had already changed. `None` where it is not TCP, UDP
/// or SCTP, or is a later fragment.
pub(crate) fn quoted(quote: &[u8], v6: bool) -> Result<Option<Quoted>, DropReason> {
    let Some(Quoted { key, l4 }) = quoted_addresses(quote, v6)?.filter(|found| is_transport(found.key.proto))
    else {
        return Ok(None);
    };
    // All three transports start with the ports.
    let ports: &[u8; QUOTED_TRANSPORT] = view(quote, l4)?;
    let [s0, s1, d0, d1, ..] = *ports;
    let (sport, dport) = (u16::from_be_bytes([s0, s1]), u16::from_be_bytes([d0, d1]));
    Ok(Some(Quoted { key: FlowKey { sport, dport, ..key }, l4 }))
}

/// [`quoted`] of any protocol, without ports, of which nothing need be there behind the IP header.
pub(crate) fn quoted_addresses(quote: &[u8], v6: bool) -> Result<Option<Quoted>, DropReason> {
    let (src, dst, proto, l4, readable) = if v6 {
        let ip: &Ipv6 = view(quote, 0)?;
        if ip.version() != 6 {
            return Err(DropReason::BadHeader);
        }
        let upper = ipv6::upper(quote.get(Ipv6::LEN..).unwrap_or_default(), ip.next_header)?;
        let readable = upper.part != Part::Later && !upper.en_route;
        (ip.src.get(), ip.dst.get(), upper.protocol, Ipv6::LEN + upper.offset, readable)
    } else {
        let ip: &Ipv4 = view(quote, 0)?;
        if ip.version() != 4 || ip.header_len() < Ipv4::LEN {
            return Err(DropReason::BadHeader);
        }
        let readable = !ip.is_later_fragment();
        (ip.src.get().into(), ip.dst.get().into(), ip.protocol, ip.header_len(), readable)
    };
    let key = FlowKey { src, dst, proto, v6, ..FlowKey::default() };
    Ok(readable.then_some(Quoted { key, l4 }))
}

fn is_transport(proto: u8) -> bool {
    matches!(proto, TCP | UDP | SCTP)
}

impl From<Truncated> for DropReason {
    fn from(_: Truncated) -> Self {
        Self::Truncated
    }
}

impl From<ChainError> for DropReason {
    fn from(error: ChainError) -> Self {
        match error {
            ChainError::Truncated => Self::Truncated,
            ChainError::Misplaced => Self::BadHeader,
            ChainError::TooLong => Self::Unsupported,
        }
    }
}
