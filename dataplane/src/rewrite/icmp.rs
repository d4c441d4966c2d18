//! ICMP and ICMPv6 errors about a translated flow: the receiver finds in them the packet as it sent it itself.

use zerocopy::big_endian::U16;

use crate::flow::key::{FlowKey, TCP, UDP};
use crate::frame::Frame;
use crate::packet::{Packet, Quoted, quoted};
use crate::verdict::DropReason;
use crate::wire::checksum::{Delta, Sum};
use crate::wire::icmp::{self, Icmp};
use crate::wire::ipv4::{self, Ipv4};
use crate::wire::ipv6::{self, Ipv6};
use crate::wire::tcp::Tcp;
use crate::wire::udp::Udp;
use crate::wire::view_mut;

/// An MTU of IPv4 that is never undercut by [`translate`]: what every host can reassemble (RFC 791).
const LEAST_MTU_V4: u32 = 576;
/// The least MTU of an IPv6 link (RFC 8200, section 5).
const LEAST_MTU_V6: u32 = 1280;

/// Translates an ICMP error in place. It goes to `dst`, from `src` (`None`: from whom it came), with one hop less,
/// and quotes a packet with the addresses and ports of `tuple`, which is what the receiver sent.
///
/// Only 8 bytes of the quoted transport header need be there. Its checksum, where it is among the quoted bytes, is
/// updated too, which the kernel's IPVS omits; an SCTP checksum is not, because it covers the whole packet. An MTU
/// in the error shrinks by `mtu_less` bytes, the overhead of the path behind the sender, but not below what every
/// path carries.
///
/// # Errors
/// `TtlExceeded`; `Unsupported` where the packet is no ICMP error or `tuple` of the other family.
pub fn translate(
    frame: &mut Frame<'_>,
    packet: &Packet,
    src: Option<u128>,
    dst: u128,
    tuple: &FlowKey,
    mtu_less: u16,
) -> Result<(), DropReason> {
    if packet.ttl <= 1 {
        return Err(DropReason::TtlExceeded);
    }
    let v6 = packet.key.v6;
    let headers = usize::from(packet.l4 - packet.l3);
    let bytes =
        frame.bytes_mut().get_mut(packet.l3.into()..packet.end.into()).ok_or(DropReason::Truncated)?;
    let (header, message) = bytes.split_at_mut_checked(headers).ok_or(DropReason::Truncated)?;

    let (icmp, quote) = message.split_at_mut_checked(Icmp::LEN).ok_or(DropReason::Truncated)?;
    match quoted(quote, v6)? {
        Some(found) if tuple.v6 == v6 && tuple.proto == found.key.proto => requote(quote, &found, tuple)?,
        _ => return Err(DropReason::Unsupported),
    }
    lower_mtu(icmp, v6, mtu_less)?;

    let covered =
        if v6 { readdress_v6(header, src, dst, message.len())? } else { readdress_v4(header, src, dst)? };
    let icmp: &mut Icmp = view_mut(message, 0)?;
    icmp.checksum = 0.into();
    let checksum = (covered + Sum::of(message)).checksum();
    view_mut::<Icmp>(message, 0)?.checksum = checksum.into();
    Ok(())
}

/// Gives the quoted packet the addresses and ports of `tuple`, and all checksums that are there their change.
fn requote(quote: &mut [u8], found: &Quoted, tuple: &FlowKey) -> Result<(), DropReason> {
    let addresses = |key: &FlowKey| Sum::address(key.src) + Sum::address(key.dst);
    let ports = |key: &FlowKey| Sum::word(key.sport) + Sum::word(key.dport);
    let readdressed = Delta::between(addresses(&found.key), addresses(tuple));
    let transport = readdressed.and(Delta::between(ports(&found.key), ports(tuple)));

    if tuple.v6 {
        let ip: &mut Ipv6 = view_mut(quote, 0)?;
        (ip.src, ip.dst) = (tuple.src.into(), tuple.dst.into());
    } else {
        let ip: &mut Ipv4 = view_mut(quote, 0)?;
        (ip.src, ip.dst) = (ipv4::address(tuple.src).into(), ipv4::address(tuple.dst).into());
        ip.checksum = readdressed.apply(ip.checksum.get()).into();
    }
    let [sport, dport]: &mut [U16; 2] = view_mut(quote, found.l4)?;
    (*sport, *dport) = (tuple.sport.into(), tuple.dport.into());
    match tuple.proto {
        TCP => {
            // Beyond the bytes that every error quotes.
            if let Ok(field) = view_mut::<U16>(quote, found.l4 + Tcp::CHECKSUM) {
                *field = transport.apply(field.get()).into();
            }
        }
        UDP => {
            let field: &mut U16 = view_mut(quote, found.l4 + Udp::CHECKSUM)?;
            *field = transport.apply_udp(field.get()).into();
        }
        _ => {}
    }
    Ok(())
}

/// Takes `less` off the MTU that the error reports, if it does: never below the least MTU, and never raising it.
fn lower_mtu(header: &mut [u8], v6: bool, less: u16) -> Result<(), DropReason> {
    let icmp: &mut Icmp = view_mut(header, 0)?;
    let least = match (v6, icmp.kind, icmp.code) {
        (true, icmp::v6::PACKET_TOO_BIG, _) => LEAST_MTU_V6,
        (false, icmp::v4::UNREACHABLE, icmp::v4::FRAGMENTATION_NEEDED) => LEAST_MTU_V4,
        _ => return Ok(()),
    };
    // RFC 1191 has 16 bits for the MTU, behind 16 that extensions use (RFC 4884).
    let word = icmp.rest.get();
    let (kept, mtu) = if v6 { (0, word) } else { (word & 0xffff_0000, word & 0xffff) };
    icmp.rest = (kept | mtu.saturating_sub(less.into()).max(least).min(mtu)).into();
    Ok(())
}

/// New addresses, one hop less and a new checksum. ICMP has no pseudo-header: the sum returned is empty.
fn readdress_v4(header: &mut [u8], src: Option<u128>, dst: u128) -> Result<Sum, DropReason> {
    let ip: &mut Ipv4 = view_mut(header, 0)?;
    ip.src = src.map_or(ip.src, |src| ipv4::address(src).into());
    ip.dst = ipv4::address(dst).into();
    ip.ttl = ip.ttl.saturating_sub(1);
    ip.checksum = 0.into();
    let checksum = Sum::of(header).checksum();
    view_mut::<Ipv4>(header, 0)?.checksum = checksum.into();
    Ok(Sum::default())
}

/// New addresses and one hop less. Returns the sum of the pseudo-header of a message of `len` bytes.
fn readdress_v6(header: &mut [u8], src: Option<u128>, dst: u128, len: usize) -> Result<Sum, DropReason> {
    let ip: &mut Ipv6 = view_mut(header, 0)?;
    ip.src = src.map_or(ip.src, Into::into);
    ip.dst = dst.into();
    ip.hop_limit = ip.hop_limit.saturating_sub(1);
    let len = u16::try_from(len).map_err(|_| DropReason::BadLength)?;
    Ok(Sum::pseudo_header(ip.src.get(), dst, ipv6::ICMPV6, len))
}
