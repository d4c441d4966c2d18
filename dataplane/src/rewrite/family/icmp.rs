//! ICMP errors as ICMPv6 errors and the reverse (RFC 7915, sections 4.2, 4.5, 5.2 and 5.5), with the packets that they
//! quote.

use super::{DIFFERENCE, Header, set_ethertype};
use crate::flow::key::{FlowKey, TCP, UDP};
use crate::frame::Frame;
use crate::packet::{Packet, Quoted, quoted};
use crate::rewrite::l2;
use crate::verdict::DropReason;
use crate::wire::checksum::{Delta, Sum};
use crate::wire::icmp::{Icmp, v4, v6};
use crate::wire::ipv4::{self, Ipv4};
use crate::wire::ipv6::{self, Ipv6};
use crate::wire::tcp::Tcp;
use crate::wire::udp::Udp;
use crate::wire::{view, view_mut};

/// The largest ICMPv6 error: the least MTU of a link (RFC 4443, section 2.4).
const LARGEST_ERROR: usize = 1280;
/// The least MTU of an IPv6 link (RFC 8200, section 5), and of a path that an IPv4 host need believe in (RFC 791).
const LEAST_MTU: [u32; 2] = [1280, 68];
/// MTUs to try for a router that does not tell its own (RFC 1191, section 7.1).
const PLATEAUS: [u32; 8] = [65_535, 32_000, 17_914, 8166, 4352, 2002, 1492, 1280];

/// Type, code, and the word behind the checksum.
type Message = (u8, u8, u32);

/// Translates an ICMP error in place. It goes from `src` to `dst`, with one hop less, and quotes a packet with the
/// addresses, ports and family of `tuple`, which is what the receiver sent.
///
/// # Errors
/// `Unsupported`: an error that the other family has no word for, or about something else than `tuple`'s protocol.
pub fn translate(
    frame: &mut Frame<'_>,
    packet: &Packet,
    [src, dst]: [u128; 2],
    tuple: &FlowKey,
) -> Result<(), DropReason> {
    let message = packet.l4.into()..packet.end.into();
    let message = frame.bytes_mut().get_mut(message).ok_or(DropReason::Truncated)?;
    let (icmp, quote) = message.split_at_mut_checked(Icmp::LEN).ok_or(DropReason::Truncated)?;
    let icmp: &Icmp = view(icmp, 0)?;
    let found = quoted(quote, packet.key.v6)?.filter(|found| tuple.proto == found.key.proto);
    let found = found.filter(|_| tuple.v6 != packet.key.v6).ok_or(DropReason::Unsupported)?;
    let old = Quote::read(quote, &found)?;
    let (kind, code, rest) =
        if tuple.v6 { as_v6(icmp, old.len) } else { as_v4(icmp) }.ok_or(DropReason::Unsupported)?;
    let end = message_end(icmp, quote.len(), packet.key.v6);
    requote(quote, &found, tuple);

    let ip_len = if tuple.v6 { Ipv6::LEN } else { Ipv4::LEN };
    let kept = usize::from(packet.l4) + Icmp::LEN + found.l4;
    let before = usize::from(packet.l3) + ip_len + Icmp::LEN + ip_len;
    let transport = end.saturating_sub(found.l4).min(LARGEST_ERROR - 2 * ip_len - Icmp::LEN);
    let ttl = packet.ttl.wrapping_sub(1);
    let tos = if packet.key.v6 { view::<Ipv6>(frame.bytes(), packet.l3.into())?.traffic_class() } else { 0 };
    l2::resize_front(frame, kept, before)?;
    if !frame.resize(before + transport) {
        return Err(DropReason::NoHeadroom);
    }
    set_ethertype(frame, packet, tuple.v6)?;

    let bytes = frame.bytes_mut().get_mut(packet.l3.into()..).ok_or(DropReason::Truncated)?;
    let (header, message) = bytes.split_at_mut_checked(ip_len).ok_or(DropReason::Truncated)?;
    old.write(message.get_mut(Icmp::LEN..).ok_or(DropReason::Truncated)?, tuple)?;
    let protocol = if tuple.v6 { ipv6::ICMPV6 } else { ipv4::ICMP };
    let len = u16::try_from(message.len()).map_err(|_| DropReason::BadLength)?;
    let outer = FlowKey { src, dst, ..*tuple };
    Header { tos, ttl, protocol, id: 0, dont_fragment: true }.write(header, &outer, len)?;
    *view_mut(message, 0)? = Icmp { kind, code, checksum: 0.into(), rest: rest.into() };
    let pseudo = if tuple.v6 { Sum::pseudo_header(src, dst, protocol, len) } else { Sum::default() };
    let checksum = (pseudo + Sum::of(message)).checksum();
    view_mut::<Icmp>(message, 0)?.checksum = checksum.into();
    Ok(())
}

/// The header of a quoted packet and the length of all behind it.
struct Quote {
    header: Header,
    len: u16,
}

impl Quote {
    fn read(quote: &[u8], found: &Quoted) -> Result<Self, DropReason> {
        let protocol = found.key.proto;
        if found.key.v6 {
            let ip: &Ipv6 = view(quote, 0)?;
            let extensions = u16::try_from(found.l4 - Ipv6::LEN).unwrap_or(u16::MAX);
            let (tos, ttl) = (ip.traffic_class(), ip.hop_limit);
            let header = Header { tos, ttl, protocol, id: 0, dont_fragment: true };
            return Ok(Self { header, len: ip.payload_len.get().saturating_sub(extensions) });
        }
        let ip: &Ipv4 = view(quote, 0)?;
        let headers = u16::try_from(found.l4).unwrap_or(u16::MAX);
        let header = Header { tos: ip.tos, ttl: ip.ttl, protocol, id: 0, dont_fragment: true };
        Ok(Self { header, len: ip.total_len.get().saturating_sub(headers) })
    }

    fn write(&self, bytes: &mut [u8], tuple: &FlowKey) -> Result<(), DropReason> {
        self.header.write(bytes, tuple, self.len.min(u16::MAX - DIFFERENCE))
    }
}

/// Gives the quoted transport header the ports of `tuple`, and its checksum, where it is there, their change and that of
/// the addresses.
fn requote(quote: &mut [u8], found: &Quoted, tuple: &FlowKey) {
    let covered = |key: &FlowKey| {
        Sum::address(key.src) + Sum::address(key.dst) + Sum::word(key.sport) + Sum::word(key.dport)
    };
    let change = Delta::between(covered(&found.key), covered(tuple));
    let Some(transport) = quote.get_mut(found.l4..) else { return };
    if let Some(ports) = transport.first_chunk_mut() {
        let ([s0, s1], [d0, d1]) = (tuple.sport.to_be_bytes(), tuple.dport.to_be_bytes());
        *ports = [s0, s1, d0, d1];
    }
    let field = match tuple.proto {
        TCP => Tcp::CHECKSUM,
        UDP => Udp::CHECKSUM,
        _ => return,
    };
    let Some(field) = transport.get_mut(field..).and_then(|rest| rest.first_chunk_mut()) else { return };
    let before = u16::from_be_bytes(*field);
    let after = if tuple.proto == UDP { change.apply_udp(before) } else { change.apply(before) };
    *field = after.to_be_bytes();
}

/// Where the quote ends: what follows are extensions (RFC 4884), which are left behind.
fn message_end(icmp: &Icmp, quote: usize, v6: bool) -> usize {
    let [first, second, ..] = icmp.rest.get().to_be_bytes();
    let has_extensions = match icmp.kind {
        v4::UNREACHABLE | v4::TIME_EXCEEDED | v4::PARAMETER_PROBLEM if !v6 => usize::from(second) * 4,
        v6::UNREACHABLE | v6::TIME_EXCEEDED if v6 => usize::from(first) * 8,
        _ => 0,
    };
    if has_extensions == 0 { quote } else { quote.min(has_extensions) }
}

/// RFC 7915, section 4.2. `len` is that of the quoted packet without its header.
fn as_v6(icmp: &Icmp, len: u16) -> Option<Message> {
    let rest = icmp.rest.get();
    Some(match (icmp.kind, icmp.code) {
        (v4::UNREACHABLE, v4::FRAGMENTATION_NEEDED) => {
            let mtu = match rest & 0xffff {
                0 => {
                    let sent = u32::from(len) + u32::from(DIFFERENCE);
                    PLATEAUS.into_iter().find(|plateau| *plateau < sent).unwrap_or(0)
                }
                mtu => mtu,
            };
            let [least, _] = LEAST_MTU;
            (v6::PACKET_TOO_BIG, 0, (mtu + u32::from(DIFFERENCE)).max(least))
        }
        (v4::UNREACHABLE, 0 | 1 | 5..=8 | 11 | 12) => (v6::UNREACHABLE, 0, 0),
        (v4::UNREACHABLE, 2) => (v6::PARAMETER_PROBLEM, 1, 6),
        (v4::UNREACHABLE, v4::PORT_UNREACHABLE) => (v6::UNREACHABLE, v6::PORT_UNREACHABLE, 0),
        (v4::UNREACHABLE, 9 | 10 | 13 | 15) => (v6::UNREACHABLE, 1, 0),
        (v4::TIME_EXCEEDED, code) => (v6::TIME_EXCEEDED, code, 0),
        (v4::PARAMETER_PROBLEM, 0 | 2) => {
            let pointer = match rest >> 24 {
                same @ (0 | 1) => same,
                2 | 3 => 4,
                8 => 7,
                9 => 6,
                12..=15 => 8,
                16..=19 => 24,
                _ => return None,
            };
            (v6::PARAMETER_PROBLEM, 0, pointer)
        }
        _ => return None,
    })
}

/// RFC 7915, section 5.2.
fn as_v4(icmp: &Icmp) -> Option<Message> {
    let rest = icmp.rest.get();
    Some(match (icmp.kind, icmp.code) {
        (v6::UNREACHABLE, 0 | 2 | 3) => (v4::UNREACHABLE, 1, 0),
        (v6::UNREACHABLE, 1) => (v4::UNREACHABLE, 10, 0),
        (v6::UNREACHABLE, v6::PORT_UNREACHABLE) => (v4::UNREACHABLE, v4::PORT_UNREACHABLE, 0),
        (v6::PACKET_TOO_BIG, _) => {
            let [_, least] = LEAST_MTU;
            let mtu = rest.saturating_sub(DIFFERENCE.into()).clamp(least, 0xffff);
            (v4::UNREACHABLE, v4::FRAGMENTATION_NEEDED, mtu)
        }
        (v6::TIME_EXCEEDED, code) => (v4::TIME_EXCEEDED, code, 0),
        (v6::PARAMETER_PROBLEM, 0) => {
            let pointer = match rest {
                same @ (0 | 1) => same,
                4 | 5 => 2,
                6 => 9,
                7 => 8,
                8..=23 => 12,
                24..=39 => 16,
                _ => return None,
            };
            (v4::PARAMETER_PROBLEM, 0, pointer << 24)
        }
        (v6::PARAMETER_PROBLEM, 1) => (v4::UNREACHABLE, 2, 0),
        _ => return None,
    })
}
