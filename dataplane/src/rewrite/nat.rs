//! Network address translation of TCP and UDP, with checksums updated and not recomputed (RFC 1624): what was wrong
//! before stays wrong, and its receiver finds out.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::flow::entry::{Entry, Tuple, Way};
use crate::flow::key::{self, FlowKey};
use crate::frame::{Checksum, Frame};
use crate::packet::Packet;
use crate::snapshot::net::Hop;
use crate::verdict::DropReason;
use crate::wire::checksum::{Delta, Sum, is_partial};
use crate::wire::ipv4::Ipv4;
use crate::wire::ipv6::Ipv6;
use crate::wire::tcp::Tcp;
use crate::wire::udp::Udp;
use crate::wire::{Truncated, view, view_mut};

/// How a flow's translation changes the checksums of a packet on one way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deltas {
    /// By the addresses.
    pub address: Delta,
    /// By addresses and ports.
    pub transport: Delta,
}

impl Deltas {
    /// Computes the deltas of a new flow and keeps them in its entry.
    pub fn prepare(entry: &mut Entry, tuple: &Tuple) {
        let (before, after) = (tuple.forward, tuple.translated(Way::Forward));
        let addresses = |key: &FlowKey| Sum::address(key.src) + Sum::address(key.dst);
        let ports = |key: &FlowKey| Sum::word(key.sport) + Sum::word(key.dport);
        entry.address_delta = Delta::between(addresses(&before), addresses(&after));
        let of_ports = Delta::between(ports(&before), ports(&after));
        entry.transport_delta = entry.address_delta.and(of_ports);
    }

    /// The deltas for a packet of the flow on `way`: a reply takes back what the forward way does.
    #[inline]
    pub fn of(entry: &Entry, way: Way) -> Self {
        let (address, transport) = (entry.address_delta, entry.transport_delta);
        match way {
            Way::Forward => Self { address, transport },
            Way::Reply => Self { address: address.inverse(), transport: transport.inverse() },
        }
    }
}

/// The headers of an untagged TCP segment over IPv4 without options.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Plain {
    macs: [u8; 12],
    ethertype: [u8; 2],
    ip: Ipv4,
    tcp: Tcp,
}

/// [`translate_v4`] and the hop's MAC addresses in one, for the most frequent packet: untagged on both sides, TCP, no
/// IP options, so that all headers lie at fixed places behind one check. Returns false, and changes nothing, for any
/// other.
#[inline]
pub fn translate_plain(
    bytes: &mut [u8],
    packet: &Packet,
    (addresses, ports): (u64, u32),
    deltas: Deltas,
    hop: &Hop,
) -> bool {
    let (L3_PLAIN, L4_PLAIN, Ok((plain, _))) = (packet.l3, packet.l4, Plain::mut_from_prefix(bytes)) else {
        return false;
    };
    let Ok(macs) = hop.header.as_slice().try_into() else { return false };
    let Plain { ip, tcp, .. } = plain;
    let ([src, dst], [sport, dport]) = (words(addresses), halves(ports));
    (ip.src, ip.dst) = (src.into(), dst.into());
    ip.ttl = ip.ttl.wrapping_sub(1);
    ip.checksum = deltas.address.and(Delta::TTL_LESS_ONE).apply(ip.checksum.get()).into();
    (tcp.src_port, tcp.dst_port) = (sport.into(), dport.into());
    tcp.checksum = deltas.transport.apply(tcp.checksum.get()).into();
    plain.macs = macs;
    true
}

const L3_PLAIN: u16 = 14;
const L4_PLAIN: u16 = 34;

/// Gives an IPv4 packet other addresses and ports and one hop less. Source in the high halves, destination in the
/// low. `unfinished` says that the transport checksum is only the pseudo-header's sum, and stays that.
pub fn translate_v4(
    bytes: &mut [u8],
    packet: &Packet,
    (addresses, ports): (u64, u32),
    deltas: Deltas,
    unfinished: bool,
) -> Result<(), DropReason> {
    let header: &mut Ipv4 = view_mut(bytes, packet.l3.into())?;
    let [src, dst] = words(addresses);
    header.src = src.into();
    header.dst = dst.into();
    header.ttl = header.ttl.wrapping_sub(1);
    header.checksum = deltas.address.and(Delta::TTL_LESS_ONE).apply(header.checksum.get()).into();
    transport(bytes, packet, halves(ports), deltas, unfinished)
}

/// [`translate_v4`] for IPv6, which has no header checksum.
pub fn translate_v6(
    bytes: &mut [u8],
    packet: &Packet,
    target: &FlowKey,
    deltas: Deltas,
    unfinished: bool,
) -> Result<(), DropReason> {
    let header: &mut Ipv6 = view_mut(bytes, packet.l3.into())?;
    header.src = target.src.into();
    header.dst = target.dst.into();
    header.hop_limit = header.hop_limit.wrapping_sub(1);
    transport(bytes, packet, [target.sport, target.dport], deltas, unfinished)
}

/// Ports and checksum of TCP or UDP.
fn transport(
    bytes: &mut [u8],
    packet: &Packet,
    [sport, dport]: [u16; 2],
    deltas: Deltas,
    unfinished: bool,
) -> Result<(), DropReason> {
    if packet.key.proto == key::TCP {
        let header: &mut Tcp = view_mut(bytes, packet.l4.into())?;
        (header.src_port, header.dst_port) = (sport.into(), dport.into());
        let before = header.checksum.get();
        let after =
            if unfinished { deltas.address.apply_partial(before) } else { deltas.transport.apply(before) };
        header.checksum = after.into();
    } else {
        let header: &mut Udp = view_mut(bytes, packet.l4.into())?;
        (header.src_port, header.dst_port) = (sport.into(), dport.into());
        let before = header.checksum.get();
        let after = if unfinished {
            deltas.address.apply_partial(before)
        } else {
            deltas.transport.apply_udp(before)
        };
        header.checksum = after.into();
    }
    Ok(())
}

/// One hop less and nothing else: for `dr`, whose backend knows the VIP as its own.
pub fn pass(bytes: &mut [u8], packet: &Packet) -> Result<(), DropReason> {
    if packet.key.v6 {
        let header: &mut Ipv6 = view_mut(bytes, packet.l3.into())?;
        header.hop_limit = header.hop_limit.wrapping_sub(1);
    } else {
        let header: &mut Ipv4 = view_mut(bytes, packet.l3.into())?;
        header.ttl = header.ttl.wrapping_sub(1);
        header.checksum = Delta::TTL_LESS_ONE.apply(header.checksum.get()).into();
    }
    Ok(())
}

/// Notes in the frame where its sender has left the transport checksum to the interface. Returns whether so.
///
/// Such a checksum is only the pseudo-header's sum. Where a complete checksum happens to look the same (1 in 65536),
/// the interface computes the same value anew.
#[inline(never)]
pub fn note_partial(frame: &mut Frame<'_>, packet: &Packet) -> bool {
    let bytes = frame.bytes();
    let field = match packet.key.proto {
        key::TCP => view::<Tcp>(bytes, packet.l4.into()).map(|header| header.checksum.get()),
        key::UDP => view::<Udp>(bytes, packet.l4.into()).map(|header| header.checksum.get()),
        _ => Err(Truncated),
    };
    let FlowKey { src, dst, proto, .. } = packet.key;
    let pseudo_header = Sum::pseudo_header(src, dst, proto, packet.end - packet.l4);
    let unfinished = field.is_ok_and(|field| is_partial(field, pseudo_header));
    if unfinished {
        frame.checksum = unfinished_at(packet);
    }
    unfinished
}

fn unfinished_at(packet: &Packet) -> Checksum {
    let offset = if packet.key.proto == key::TCP { 16 } else { 6 };
    Checksum::Partial { start: packet.l4, offset }
}

#[inline]
#[expect(clippy::cast_possible_truncation, reason = "the halves are what is wanted")]
fn words(addresses: u64) -> [u32; 2] {
    [(addresses >> 32) as u32, addresses as u32]
}

#[inline]
#[expect(clippy::cast_possible_truncation, reason = "the halves are what is wanted")]
fn halves(ports: u32) -> [u16; 2] {
    [(ports >> 16) as u16, ports as u16]
}
