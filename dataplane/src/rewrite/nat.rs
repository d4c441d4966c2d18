//! Network address translation of TCP, UDP and SCTP, with checksums updated and not recomputed (RFC 1624): what was wrong
//! before stays wrong, and its receiver finds out.

use crate::flow::entry::{self, Entry, Tuple, Way};
use crate::flow::key::{self, FlowKey};
use crate::frame::{Checksum, Frame};
use crate::packet::{Kind, Packet};
use crate::verdict::DropReason;
use crate::wire::checksum::{Delta, Sum, is_partial};
use crate::wire::ipv4::Ipv4;
use crate::wire::ipv6::Ipv6;
use crate::wire::sctp::{Sctp, crc};
use crate::wire::tcp::Tcp;
use crate::wire::udp::Udp;
use crate::wire::{Truncated, view, view_mut};

/// How a flow's translation changes the checksums of a packet on one way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deltas {
    /// By addresses and one hop less: the IPv4 header's.
    pub header: Delta,
    /// By addresses and ports.
    pub transport: Delta,
}

impl Deltas {
    /// Of a translation that changes nothing.
    pub const NONE: Self = Self { header: Delta::TTL_LESS_ONE, transport: Delta::NONE };

    /// Computes the deltas of a new flow and keeps them in its entry: a reply takes back what the forward way does.
    pub fn prepare(entry: &mut Entry, tuple: &Tuple) {
        let (before, after) = (tuple.forward, tuple.translated(Way::Forward));
        let addresses = |key: &FlowKey| Sum::address(key.src) + Sum::address(key.dst);
        let ports = |key: &FlowKey| Sum::word(key.sport) + Sum::word(key.dport);
        let address = Delta::between(addresses(&before), addresses(&after));
        entry.deltas = Self::both(address, Delta::between(ports(&before), ports(&after)));
    }

    /// The same where addresses and ports before and after are words in the order of the wire.
    #[inline]
    pub fn of_words(before: (u64, u32), after: (u64, u32)) -> [Self; 2] {
        let address = Delta::between_words(before.0, after.0);
        Self::both(address, Delta::between_words(before.1.into(), after.1.into()))
    }

    #[inline]
    fn both(address: Delta, ports: Delta) -> [Self; 2] {
        let transport = address.and(ports);
        [(address, transport), (address.inverse(), transport.inverse())]
            .map(|(address, transport)| Self { header: address.and(Delta::TTL_LESS_ONE), transport })
    }

    /// By the addresses alone.
    pub fn address(&self) -> Delta {
        self.header.and(Delta::TTL_LESS_ONE.inverse())
    }
}

/// Gives an IPv4 packet other addresses and ports, in the order of the wire, and one hop less. `unfinished` says that the
/// transport checksum is only the pseudo-header's sum, and stays that.
pub fn translate_v4(
    bytes: &mut [u8],
    packet: &Packet,
    (addresses, ports): (u64, u32),
    deltas: &Deltas,
    unfinished: bool,
) -> Result<(), DropReason> {
    let header: &mut Ipv4 = view_mut(bytes, packet.l3.into())?;
    let [src, dst] = entry::addresses(addresses);
    header.src = src.into();
    header.dst = dst.into();
    header.ttl = header.ttl.wrapping_sub(1);
    header.checksum = deltas.header.update(header.checksum);
    transport(bytes, packet, entry::ports(ports), deltas, unfinished)?;
    sign(bytes, packet, src.into(), dst.into())
}

/// [`translate_v4`] for IPv6, which has no header checksum.
pub fn translate_v6(
    bytes: &mut [u8],
    packet: &Packet,
    ([src, dst], ports): ([u128; 2], u32),
    deltas: &Deltas,
    unfinished: bool,
) -> Result<(), DropReason> {
    let header: &mut Ipv6 = view_mut(bytes, packet.l3.into())?;
    header.src = src.into();
    header.dst = dst.into();
    header.hop_limit = header.hop_limit.wrapping_sub(1);
    transport(bytes, packet, entry::ports(ports), deltas, unfinished)?;
    sign(bytes, packet, src, dst)
}

/// Ports and checksum of TCP, UDP or SCTP.
pub(super) fn transport(
    bytes: &mut [u8],
    packet: &Packet,
    [sport, dport]: [u16; 2],
    deltas: &Deltas,
    unfinished: bool,
) -> Result<(), DropReason> {
    if packet.kind == Kind::Fragment {
        return Ok(()); // the ports and the checksum are in the first one
    }
    match packet.key.proto {
        key::TCP => {
            let header: &mut Tcp = view_mut(bytes, packet.l4.into())?;
            (header.src_port, header.dst_port) = (sport.into(), dport.into());
            let before = header.checksum.get();
            let after = if unfinished {
                deltas.address().apply_partial(before)
            } else {
                deltas.transport.apply(before)
            };
            header.checksum = after.into();
        }
        key::SCTP => sctp_ports(bytes, packet, [sport, dport])?,
        _ => {
            let header: &mut Udp = view_mut(bytes, packet.l4.into())?;
            (header.src_port, header.dst_port) = (sport.into(), dport.into());
            let before = header.checksum.get();
            let after = if unfinished {
                deltas.address().apply_partial(before)
            } else {
                deltas.transport.apply_udp(before)
            };
            header.checksum = after.into();
        }
    }
    Ok(())
}

/// Ports and CRC32c of SCTP, which covers no addresses. How much a port changes it depends on how far it is from the
/// end, which a fragment does not tell.
#[cold]
#[inline(never)]
fn sctp_ports(bytes: &mut [u8], packet: &Packet, ports: [u16; 2]) -> Result<(), DropReason> {
    let header: &mut Sctp = view_mut(bytes, packet.l4.into())?;
    let number = |[sport, dport]: [u16; 2]| u32::from(sport) << 16 | u32::from(dport);
    let change = number([header.src_port.get(), header.dst_port.get()]) ^ number(ports);
    if change == 0 {
        return Ok(());
    }
    if packet.kind == Kind::FirstFragment {
        return Err(DropReason::Fragment);
    }
    let behind = (packet.end - packet.l4).saturating_sub(4);
    let crc = header.crc() ^ crc::change(change.to_be_bytes(), behind);
    (header.src_port, header.dst_port) = (ports[0].into(), ports[1].into());
    header.set_crc(crc);
    Ok(())
}

/// Computes the checksum of a whole UDP datagram that has none, as the kernel's IPVS does. `src` and `dst` are what it leaves
/// with.
pub(super) fn sign(bytes: &mut [u8], packet: &Packet, src: u128, dst: u128) -> Result<(), DropReason> {
    if packet.key.proto != key::UDP || packet.kind != Kind::Transport {
        return Ok(());
    }
    let datagram = bytes.get_mut(packet.l4.into()..packet.end.into()).ok_or(DropReason::Truncated)?;
    let udp: &Udp = view(datagram, 0)?;
    if udp.checksum.get() != 0 {
        return Ok(());
    }
    // What is behind the datagram's own length is not covered.
    let len = udp.len.get();
    let covered = datagram.get(..len.into()).ok_or(DropReason::BadLength)?;
    let sum = Sum::pseudo_header(src, dst, key::UDP, len) + Sum::of(covered);
    view_mut::<Udp>(datagram, 0)?.checksum = sum.udp_checksum().into();
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
        header.checksum = Delta::TTL_LESS_ONE.update(header.checksum);
    }
    Ok(())
}

/// Notes in the frame where its sender has left the transport checksum to the interface. Returns whether so. That of SCTP,
/// which no TX metadata can ask for, is computed at once.
///
/// Such a checksum is only the pseudo-header's sum. Where a complete checksum happens to look the same (1 in 65536), the
/// interface computes the same value anew. A fragment has none such, for who fragments has finished the checksum; nor has
/// an ICMP message.
#[inline(never)]
pub fn note_partial(frame: &mut Frame<'_>, packet: &Packet) -> bool {
    if packet.kind != Kind::Transport {
        return false;
    }
    if packet.key.proto == key::SCTP {
        finish_sctp(frame, packet);
        return false;
    }
    let unfinished = is_unfinished(frame, packet);
    if unfinished {
        frame.checksum = unfinished_at(packet);
    }
    unfinished
}

/// Whether the checksum of a TCP segment or UDP datagram looks as if its sender had left it to the interface.
#[inline]
pub fn is_unfinished(frame: &Frame<'_>, packet: &Packet) -> bool {
    let bytes = frame.bytes();
    let field = match packet.key.proto {
        key::TCP => view::<Tcp>(bytes, packet.l4.into()).map(|header| header.checksum.get()),
        key::UDP => view::<Udp>(bytes, packet.l4.into()).map(|header| header.checksum.get()),
        _ => Err(Truncated),
    };
    let FlowKey { src, dst, proto, .. } = packet.key;
    let pseudo_header = Sum::pseudo_header(src, dst, proto, packet.end - packet.l4);
    field.is_ok_and(|field| is_partial(field, pseudo_header))
}

/// Computes the CRC32c that a local sender has left to the interface: its field then is 0, which of complete ones one in
/// 2^32 is.
#[cold]
fn finish_sctp(frame: &mut Frame<'_>, packet: &Packet) {
    let segment = frame.bytes_mut().get_mut(packet.l4.into()..packet.end.into()).unwrap_or_default();
    if view::<Sctp>(segment, 0).is_ok_and(|header| header.checksum.get() == 0) {
        let crc = crc::checksum([&*segment]);
        if let Ok(header) = view_mut::<Sctp>(segment, 0) {
            header.set_crc(crc);
        }
    }
}

fn unfinished_at(packet: &Packet) -> Checksum {
    Checksum::Partial { start: packet.l4, offset: checksum_offset(packet) }
}

/// Where in a TCP segment or UDP datagram the checksum lies, in bytes.
pub(super) fn checksum_offset(packet: &Packet) -> u16 {
    if packet.key.proto == key::TCP { 16 } else { 6 }
}
