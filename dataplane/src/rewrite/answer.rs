//! Answers in place of the packet that they answer, sent back where it came from, with its VLAN tags.
//!
//! Each function turns the frame into the answer or fails and leaves no frame worth sending: `BadSource` where nobody
//! could be answered, `Unsupported` where the protocol forbids an answer, `NoHeadroom` where the chunk is too small.
//! `own_mac` is the address of the port that the frame came in by. An answer comes from the address that the packet
//! was sent to, as the kernel's IPVS has it.

use zerocopy::big_endian::U16;
use zerocopy::{FromZeros, IntoBytes};

use crate::flow::key::TCP;
use crate::frame::{Checksum, Frame};
use crate::packet::{Kind, Packet};
use crate::verdict::DropReason;
use crate::wire::arp::{self, Arp, Formats};
use crate::wire::checksum::{Sum, is_partial};
use crate::wire::ethernet::{Ethernet, is_group};
use crate::wire::icmp::{self, Icmp, LinkLayerOption, Neighbour};
use crate::wire::ipv4::{self, Ipv4};
use crate::wire::ipv6::{self, Ipv6};
use crate::wire::tcp::{ACK, FIN, RST, SYN, Tcp};
use crate::wire::{view, view_mut};

/// TTL or hop limit of an answer (RFC 1700).
const TTL: u8 = 64;
/// Hop limit of neighbour discovery: proves that no router was in between (RFC 4861, section 7.1).
const ON_LINK: u8 = 255;
/// An ICMP error with its IP header has at most so many bytes (RFC 1812, section 4.3.2.3).
const LARGEST_ERROR_V4: usize = 576;
/// The same for ICMPv6: the least MTU of a link (RFC 4443, section 2.4).
const LARGEST_ERROR_V6: usize = 1280;
/// Precedence "internetwork control" (RFC 1812, section 4.3.2.5).
const CONTROL: u8 = 0xc0;
/// Bits of the TOS octet that an error repeats: no precedence, no congestion notification.
const TOS: u8 = 0x1c;

/// Answers an ARP request: the target is at `own_mac`.
pub fn arp(frame: &mut Frame<'_>, packet: &Packet, own_mac: [u8; 6]) -> Result<(), DropReason> {
    if packet.kind != Kind::ArpRequest {
        return Err(DropReason::Unsupported);
    }
    let l3 = usize::from(packet.l3);
    let request: Arp = *view(frame.bytes(), l3)?;
    // A probe (RFC 5227) asks from the unspecified address.
    let asker = request.sender.get();
    if is_group(request.sender_mac) || asker != 0 && !ipv4::is_host(asker) {
        return Err(DropReason::BadSource);
    }
    turn_around(frame, own_mac)?;
    resize(frame, l3 + Arp::LEN)?;
    *view_mut(frame.bytes_mut(), l3)? = Arp {
        formats: Formats::IPV4_OVER_ETHERNET,
        operation: arp::REPLY.into(),
        sender_mac: own_mac,
        sender: request.target,
        target_mac: request.sender_mac,
        target: request.sender,
    };
    Ok(())
}

/// Answers a neighbour solicitation: the target is at `own_mac` (RFC 4861, section 7.2.4). Who asks in order to detect
/// a duplicate has no address yet and is told by way of all nodes.
pub fn neighbour(frame: &mut Frame<'_>, packet: &Packet, own_mac: [u8; 6]) -> Result<(), DropReason> {
    const ALL_NODES_MAC: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];

    if packet.kind != Kind::NeighbourSolicitation {
        return Err(DropReason::Unsupported);
    }
    let (asker, target) = (packet.key.src, packet.key.dst);
    let probe = asker == 0;
    if !probe && !ipv6::is_host(asker) {
        return Err(DropReason::BadSource);
    }
    turn_around(frame, own_mac)?;
    if probe {
        view_mut::<Ethernet>(frame.bytes_mut(), 0)?.dst = ALL_NODES_MAC;
    }
    let header = Header {
        v6: true,
        src: target,
        dst: if probe { ipv6::ALL_NODES } else { asker },
        protocol: ipv6::ICMPV6,
        tos: 0,
        ttl: ON_LINK,
        id: 0,
        fragment: 0,
    };
    let len = Neighbour::LEN + LinkLayerOption::LEN;
    resize(frame, usize::from(packet.l3) + Ipv6::LEN + len)?;
    let message = header.write(frame, packet.l3, len)?;
    let flags = Neighbour::OVERRIDE | if probe { 0 } else { Neighbour::SOLICITED };
    *view_mut(message, 0)? =
        Neighbour { icmp: icmp_header(icmp::v6::NEIGHBOUR_ADVERTISEMENT, 0, flags), target: target.into() };
    *view_mut(message, Neighbour::LEN)? =
        LinkLayerOption { kind: LinkLayerOption::TARGET, len: 1, mac: own_mac };
    header.seal(message, Icmp::CHECKSUM)
}

/// Answers an echo request. IP options and extension headers are not sent back.
pub fn echo(frame: &mut Frame<'_>, packet: &Packet, own_mac: [u8; 6]) -> Result<(), DropReason> {
    if packet.kind != Kind::EchoRequest {
        return Err(DropReason::Unsupported);
    }
    let mut header = Header::back(frame, packet)?;
    header.tos = tos(frame, packet)?;
    turn_around(frame, own_mac)?;
    let (l4, end) = (usize::from(packet.l4), usize::from(packet.end));
    let to = usize::from(packet.l3) + header.len();
    shift(frame, l4..end, to)?;
    resize(frame, to + end - l4)?;
    let message = header.write(frame, packet.l3, end - l4)?;
    view_mut::<Icmp>(message, 0)?.kind =
        if packet.key.v6 { icmp::v6::ECHO_REPLY } else { icmp::v4::ECHO_REPLY };
    header.seal(message, Icmp::CHECKSUM)
}

/// Answers a TCP segment for which there is no connection with RST (RFC 9293, section 3.10.7.1). A segment with RST
/// or with a wrong checksum gets none.
pub fn reset(frame: &mut Frame<'_>, packet: &Packet, own_mac: [u8; 6]) -> Result<(), DropReason> {
    if packet.kind != Kind::Transport || packet.key.proto != TCP || packet.tcp_flags & RST != 0 {
        return Err(DropReason::Unsupported);
    }
    let answer = reset_of(frame, packet)?;
    segment(frame, packet, own_mac, answer, &[], &[])
}

/// Sends a TCP segment back: its header with ports as they are here, its options in whole words, its data.
pub(super) fn segment(
    frame: &mut Frame<'_>,
    packet: &Packet,
    own_mac: [u8; 6],
    mut tcp: Tcp,
    options: &[u8],
    data: &[u8],
) -> Result<(), DropReason> {
    let mut header = Header::back(frame, packet)?;
    (header.id, header.fragment) = (0, ipv4::DONT_FRAGMENT);
    turn_around(frame, own_mac)?;
    let len = Tcp::LEN + options.len();
    tcp.data_offset = u8::try_from(len / 4).map_err(|_| DropReason::BadLength)? << 4;
    resize(frame, usize::from(packet.l3) + header.len() + len + data.len())?;
    let segment = header.write(frame, packet.l3, len + data.len())?;
    *view_mut(segment, 0)? = tcp;
    segment.get_mut(Tcp::LEN..len).ok_or(DropReason::Truncated)?.copy_from_slice(options);
    segment.get_mut(len..).ok_or(DropReason::Truncated)?.copy_from_slice(data);
    header.seal(segment, Tcp::CHECKSUM)
}

/// The header of a TCP segment and the checksum of all of it; fails where that is wrong.
pub(super) fn sound(frame: &Frame<'_>, packet: &Packet) -> Result<Tcp, DropReason> {
    let segment = frame.bytes().get(packet.l4.into()..packet.end.into()).ok_or(DropReason::Truncated)?;
    let tcp: &Tcp = view(segment, 0)?;
    let pseudo = Sum::pseudo_header(packet.key.src, packet.key.dst, TCP, packet.end - packet.l4);
    // A local sender may have left the checksum to the interface.
    if !(pseudo + Sum::of(segment)).verifies() && !is_partial(tcp.checksum.get(), pseudo) {
        return Err(DropReason::BadChecksum);
    }
    Ok(*tcp)
}

/// Refuses a packet: there is nobody at this port.
pub fn port_unreachable(frame: &mut Frame<'_>, packet: &Packet, own_mac: [u8; 6]) -> Result<(), DropReason> {
    let icmp = if packet.key.v6 {
        icmp_header(icmp::v6::UNREACHABLE, icmp::v6::PORT_UNREACHABLE, 0)
    } else {
        icmp_header(icmp::v4::UNREACHABLE, icmp::v4::PORT_UNREACHABLE, 0)
    };
    error(frame, packet, own_mac, icmp)
}

/// Refuses a packet that is larger than `mtu` bytes and will not be fragmented.
pub fn too_big(frame: &mut Frame<'_>, packet: &Packet, own_mac: [u8; 6], mtu: u16) -> Result<(), DropReason> {
    let icmp = if packet.key.v6 {
        icmp_header(icmp::v6::PACKET_TOO_BIG, 0, mtu.into())
    } else {
        icmp_header(icmp::v4::UNREACHABLE, icmp::v4::FRAGMENTATION_NEEDED, mtu.into())
    };
    error(frame, packet, own_mac, icmp)
}

/// Refuses a packet that has no hop left.
pub fn time_exceeded(frame: &mut Frame<'_>, packet: &Packet, own_mac: [u8; 6]) -> Result<(), DropReason> {
    let kind = if packet.key.v6 { icmp::v6::TIME_EXCEEDED } else { icmp::v4::TIME_EXCEEDED };
    error(frame, packet, own_mac, icmp_header(kind, 0, 0))
}

/// The error that another's error comes to for the sender of the packet in `frame`, of which no more than it quoted is
/// there. The layer-2 addresses are left to the caller.
pub(super) fn relayed(frame: &mut Frame<'_>, packet: &Packet, icmp: Icmp) -> Result<(), DropReason> {
    error(frame, packet, [0; 6], icmp)
}

/// An ICMP error that quotes the packet. There is none about ICMP errors, later fragments and what is not understood
/// (RFC 1122, section 3.2.2; RFC 4443, section 2.4).
fn error(frame: &mut Frame<'_>, packet: &Packet, own_mac: [u8; 6], icmp: Icmp) -> Result<(), DropReason> {
    if !matches!(packet.kind, Kind::Transport | Kind::FirstFragment | Kind::EchoRequest) {
        return Err(DropReason::Unsupported);
    }
    let mut header = Header::back(frame, packet)?;
    if !packet.key.v6 {
        header.protocol = ipv4::ICMP;
        header.tos = CONTROL | tos(frame, packet)? & TOS;
    } else {
        header.protocol = ipv6::ICMPV6;
    }
    turn_around(frame, own_mac)?;
    let l3 = usize::from(packet.l3);
    let before = header.len() + Icmp::LEN;
    let largest = if packet.key.v6 { LARGEST_ERROR_V6 } else { LARGEST_ERROR_V4 };
    let quote = usize::from(packet.end - packet.l3).min(largest - before);
    resize(frame, l3 + before + quote)?;
    shift(frame, l3..l3 + quote, l3 + before)?;
    let message = header.write(frame, packet.l3, Icmp::LEN + quote)?;
    *view_mut(message, 0)? = icmp;
    header.seal(message, Icmp::CHECKSUM)
}

/// The RST that answers the segment in `frame`, but for its checksum.
fn reset_of(frame: &Frame<'_>, packet: &Packet) -> Result<Tcp, DropReason> {
    let tcp = sound(frame, packet)?;
    let mut answer = Tcp { src_port: tcp.dst_port, dst_port: tcp.src_port, flags: RST, ..Tcp::new_zeroed() };
    if tcp.flags & ACK != 0 {
        answer.sequence = tcp.acknowledgement;
    } else {
        let data = u32::from(packet.end - packet.l4).wrapping_sub(u32::from(tcp.data_offset >> 4) * 4);
        let controls = [SYN, FIN].map(|flag| u32::from(tcp.flags & flag != 0));
        let len = data.wrapping_add(controls.into_iter().sum());
        answer.acknowledgement = tcp.sequence.get().wrapping_add(len).into();
        answer.flags = RST | ACK;
    }
    Ok(answer)
}

/// The IP header of an answer.
struct Header {
    v6: bool,
    src: u128,
    dst: u128,
    protocol: u8,
    tos: u8,
    ttl: u8,
    id: u16,
    fragment: u16,
}

impl Header {
    /// From where `packet` was sent to, back to its sender; with the IPv4 identification of the packet, which is as
    /// good as any: answers are too small to be fragmented. Fails where no unicast came from or went to one host.
    fn back(frame: &Frame<'_>, packet: &Packet) -> Result<Self, DropReason> {
        let (src, dst) = (packet.key.src, packet.key.dst);
        let ethernet: &Ethernet = view(frame.bytes(), 0)?;
        if !is_host(src, packet.key.v6) {
            return Err(DropReason::BadSource);
        }
        if !is_host(dst, packet.key.v6) || is_group(ethernet.dst) {
            return Err(DropReason::Unsupported);
        }
        let id = if packet.key.v6 { 0 } else { view::<Ipv4>(frame.bytes(), packet.l3.into())?.id.get() };
        let protocol = packet.key.proto;
        Ok(Self { v6: packet.key.v6, src: dst, dst: src, protocol, tos: 0, ttl: TTL, id, fragment: 0 })
    }

    fn len(&self) -> usize {
        if self.v6 { Ipv6::LEN } else { Ipv4::LEN }
    }

    /// Writes the header at `l3`, and returns the `payload` bytes behind it.
    fn write<'a>(
        &self,
        frame: &'a mut Frame<'_>,
        l3: u16,
        payload: usize,
    ) -> Result<&'a mut [u8], DropReason> {
        let bytes = frame.bytes_mut();
        let (l3, too_long) = (usize::from(l3), |_| DropReason::BadLength);
        if self.v6 {
            *view_mut(bytes, l3)? = Ipv6 {
                version_class_flow: (6 << 28 | u32::from(self.tos) << 20).into(),
                payload_len: u16::try_from(payload).map_err(too_long)?.into(),
                next_header: self.protocol,
                hop_limit: self.ttl,
                src: self.src.into(),
                dst: self.dst.into(),
            };
        } else {
            let ip: &mut Ipv4 = view_mut(bytes, l3)?;
            *ip = Ipv4 {
                version_ihl: ipv4::VERSION_NO_OPTIONS,
                tos: self.tos,
                total_len: u16::try_from(Ipv4::LEN + payload).map_err(too_long)?.into(),
                id: self.id.into(),
                fragment: self.fragment.into(),
                ttl: self.ttl,
                protocol: self.protocol,
                checksum: 0.into(),
                src: ipv4::address(self.src).into(),
                dst: ipv4::address(self.dst).into(),
            };
            ip.checksum = Sum::of(ip.as_bytes()).checksum().into();
        }
        let start = l3 + self.len();
        bytes.get_mut(start..start + payload).ok_or(DropReason::Truncated)
    }

    /// Computes the checksum of `payload`, whose field lies `field` bytes in.
    fn seal(&self, payload: &mut [u8], field: usize) -> Result<(), DropReason> {
        *view_mut(payload, field)? = U16::ZERO;
        let pseudo = if self.protocol == ipv4::ICMP {
            Sum::default()
        } else {
            let len = u16::try_from(payload.len()).map_err(|_| DropReason::BadLength)?;
            Sum::pseudo_header(self.src, self.dst, self.protocol, len)
        };
        let checksum = (pseudo + Sum::of(payload)).checksum();
        *view_mut(payload, field)? = U16::new(checksum);
        Ok(())
    }
}

/// Addresses the frame to who sent it.
fn turn_around(frame: &mut Frame<'_>, own_mac: [u8; 6]) -> Result<(), DropReason> {
    frame.checksum = Checksum::Complete;
    let ethernet: &mut Ethernet = view_mut(frame.bytes_mut(), 0)?;
    if is_group(ethernet.src) {
        return Err(DropReason::BadSource);
    }
    (ethernet.dst, ethernet.src) = (ethernet.src, own_mac);
    Ok(())
}

fn resize(frame: &mut Frame<'_>, len: usize) -> Result<(), DropReason> {
    if frame.resize(len) { Ok(()) } else { Err(DropReason::NoHeadroom) }
}

/// Copies the bytes at `from` to where `to` starts.
fn shift(frame: &mut Frame<'_>, from: std::ops::Range<usize>, to: usize) -> Result<(), DropReason> {
    let bytes = frame.bytes_mut();
    if from.start > from.end || from.end > bytes.len() || from.len() > bytes.len().saturating_sub(to) {
        return Err(DropReason::Truncated);
    }
    bytes.copy_within(from, to);
    Ok(())
}

/// The TOS octet or traffic class of the packet.
fn tos(frame: &Frame<'_>, packet: &Packet) -> Result<u8, DropReason> {
    let [first, second]: &[u8; 2] = view(frame.bytes(), packet.l3.into())?;
    Ok(if packet.key.v6 { first << 4 | second >> 4 } else { *second })
}

fn icmp_header(kind: u8, code: u8, rest: u32) -> Icmp {
    Icmp { kind, code, checksum: 0.into(), rest: rest.into() }
}

fn is_host(addr: u128, v6: bool) -> bool {
    if v6 { ipv6::is_host(addr) } else { ipv4::is_host(ipv4::address(addr)) }
}
