//! A packet of one IP version as one of the other (RFC 7915): for `fullnat` services whose backends are of the other
//! family than their VIP.

pub mod icmp;

use zerocopy::IntoBytes;
use zerocopy::big_endian::U16;

use super::{encap, l2, nat};
use crate::flow::key::FlowKey;
use crate::frame::{Checksum, Frame};
use crate::packet::{Kind, Packet};
use crate::verdict::DropReason;
use crate::wire::checksum::Sum;
use crate::wire::ethernet;
use crate::wire::ipv4::{self, Ipv4};
use crate::wire::ipv6::Ipv6;
use crate::wire::{view, view_mut};

/// By so many bytes an IPv6 packet is longer than the IPv4 packet with the same payload, options and extensions aside.
pub const DIFFERENCE: u16 = 20;

/// IPv4 packets up to this size are made such that routers may fragment them (RFC 7915, section 5.1): an IPv6 host need
/// not send less.
const MAY_BE_FRAGMENTED: u16 = 1260;

/// The header of a packet that was translated, without what both families have in common.
#[derive(Clone, Copy)]
struct Header {
    tos: u8,
    ttl: u8,
    protocol: u8,
    id: u16,
    dont_fragment: bool,
}

/// Gives a TCP, UDP or SCTP packet an IP header of the other family, the addresses and ports of `target`, and one hop
/// less. `deltas` are the flow's. IPv4 options and IPv6 extension headers are left behind; a checksum that the sender
/// left to an interface (`unfinished`) is finished, and one that UDP has left out is computed. `id` becomes the
/// identification of an IPv4 packet that may be fragmented.
///
/// # Errors
/// `Fragment`: a fragment, whose header has no place in the other family's. `Unsupported`: an IPv4 source route whose end
/// is not reached. `NoHeadroom`.
pub fn translate(
    frame: &mut Frame<'_>,
    packet: &Packet,
    target: &FlowKey,
    deltas: &nat::Deltas,
    unfinished: bool,
    id: u16,
) -> Result<(), DropReason> {
    if packet.kind != Kind::Transport {
        return Err(DropReason::Fragment);
    }
    if unfinished {
        encap::finish(frame, packet)?;
    }
    frame.checksum = Checksum::Complete;
    let len = packet.end - packet.l4;
    let header = Header::read(frame.bytes(), packet, len, id)?;
    nat::transport(frame.bytes_mut(), packet, [target.sport, target.dport], deltas, false)?;
    nat::sign(frame.bytes_mut(), packet, target.src, target.dst)?;
    let header_len = if target.v6 { Ipv6::LEN } else { Ipv4::LEN };
    l2::resize_front(frame, packet.l4.into(), usize::from(packet.l3) + header_len)?;
    set_ethertype(frame, packet, target.v6)?;
    let bytes = frame.bytes_mut().get_mut(packet.l3.into()..).ok_or(DropReason::Truncated)?;
    header.write(bytes, target, len)
}

/// Sets the EtherType in front of the IP header.
fn set_ethertype(frame: &mut Frame<'_>, packet: &Packet, v6: bool) -> Result<(), DropReason> {
    let at = usize::from(packet.l3).checked_sub(size_of::<U16>()).ok_or(DropReason::Truncated)?;
    *view_mut(frame.bytes_mut(), at)? = U16::new(if v6 { ethernet::IPV6 } else { ethernet::IPV4 });
    Ok(())
}

impl Header {
    /// What of the packet's header is carried over, with one hop less.
    fn read(bytes: &[u8], packet: &Packet, len: u16, id: u16) -> Result<Self, DropReason> {
        let protocol = packet.key.proto;
        if packet.key.v6 {
            let ip: &Ipv6 = view(bytes, packet.l3.into())?;
            let dont_fragment = len > MAY_BE_FRAGMENTED - DIFFERENCE;
            let id = if dont_fragment { 0 } else { id };
            return Ok(Self {
                tos: ip.traffic_class(),
                ttl: ip.hop_limit.wrapping_sub(1),
                protocol,
                id,
                dont_fragment,
            });
        }
        let ip: &Ipv4 = view(bytes, packet.l3.into())?;
        let options = packet.l3.into()..packet.l4.into();
        let options = bytes.get(options).and_then(|header| header.get(Ipv4::LEN..)).unwrap_or_default();
        if ipv4::is_source_routed(options) {
            return Err(DropReason::Unsupported);
        }
        Ok(Self { tos: ip.tos, ttl: ip.ttl.wrapping_sub(1), protocol, id: 0, dont_fragment: true })
    }

    /// Writes the header of a packet with the addresses and the family of `target` and `len` bytes behind it.
    fn write(&self, bytes: &mut [u8], target: &FlowKey, len: u16) -> Result<(), DropReason> {
        if target.v6 {
            *view_mut(bytes, 0)? = Ipv6 {
                version_class_flow: (6 << 28 | u32::from(self.tos) << 20).into(),
                payload_len: len.into(),
                next_header: self.protocol,
                hop_limit: self.ttl,
                src: target.src.into(),
                dst: target.dst.into(),
            };
            return Ok(());
        }
        let ip: &mut Ipv4 = view_mut(bytes, 0)?;
        *ip = Ipv4 {
            version_ihl: ipv4::VERSION_NO_OPTIONS,
            tos: self.tos,
            total_len: len.checked_add(DIFFERENCE).ok_or(DropReason::BadLength)?.into(),
            id: self.id.into(),
            fragment: if self.dont_fragment { ipv4::DONT_FRAGMENT } else { 0 }.into(),
            ttl: self.ttl,
            protocol: self.protocol,
            checksum: 0.into(),
            src: ipv4::address(target.src).into(),
            dst: ipv4::address(target.dst).into(),
        };
        ip.checksum = Sum::of(ip.as_bytes()).checksum().into();
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::cast_possible_truncation, reason = "test packets are small")]
mod tests;
