//! ICMP and ICMPv6 errors about a packet on its way through a tunnel: to the sender of the packet inside they become
//! errors about that one, as far as they quote it (RFC 2003, section 4).

use zerocopy::big_endian::U16;

use super::answer;
use crate::flow::key::UDP;
use crate::frame::Frame;
use crate::packet::{Kind, Packet, Quoted, quoted, quoted_addresses};
use crate::snapshot::Mode;
use crate::verdict::DropReason;
use crate::wire::ethernet;
use crate::wire::gre::{self, Gre};
use crate::wire::gue::Gue;
use crate::wire::icmp::{Icmp, v4, v6};
use crate::wire::udp::Udp;
use crate::wire::{ipv4, ipv6, view, view_mut};

/// An MTU that is never undercut: what every host can put together (RFC 791), and the least of an IPv6 link (RFC 8200,
/// section 5).
const LEAST_MTU: [u32; 2] = [576, 1280];

/// Code of an unreachable error: the host, by ICMP and by ICMPv6 (address).
const HOST: [u8; 2] = [1, 3];

/// A tunnel's packet in the quote of an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tunnelled {
    /// How it was encapsulated.
    pub mode: Mode,
    /// The tunnel's end: a backend.
    pub backend: (u128, bool),
    /// The packet inside: its five-tuple, where it lies in the frame, and no TCP flags.
    pub inner: Packet,
}

/// The tunnel's packet that the error in `frame` quotes; `None` where it quotes something else.
///
/// # Errors
/// `IcmpShortQuote` where it does not quote the ports inside; `Unsupported` where there are none inside.
pub fn find(frame: &Frame<'_>, packet: &Packet) -> Result<Option<Tunnelled>, DropReason> {
    let start = usize::from(packet.l4) + Icmp::LEN;
    let quote = frame.bytes().get(start..packet.end.into()).ok_or(DropReason::Truncated)?;
    let Some(Quoted { key, l4 }) = quoted_addresses(quote, packet.key.v6)? else { return Ok(None) };
    let behind = quote.get(l4..).unwrap_or_default();
    let found = match key.proto {
        ipv4::IN_IP => Some((Mode::Ipip, 0, false)),
        ipv6::IN_IP => Some((Mode::Ipip, 0, true)),
        gre::PROTOCOL => in_gre(behind)?,
        UDP => in_gue(behind)?,
        _ => None,
    };
    let Some((mode, len, is_v6)) = found else { return Ok(None) };
    let at = l4 + len;
    let short = |reason| if reason == DropReason::Truncated { DropReason::IcmpShortQuote } else { reason };
    let inside = quoted(quote.get(at..).unwrap_or_default(), is_v6).map_err(short)?;
    let inside = inside.ok_or(DropReason::Unsupported)?;
    let place = |offset: usize| u16::try_from(start + offset).map_err(|_| DropReason::BadLength);
    let inner = Packet {
        kind: Kind::Transport,
        key: inside.key,
        l3: place(at)?,
        l4: place(at + inside.l4)?,
        tcp_flags: 0,
        ..*packet
    };
    Ok(Some(Tunnelled { mode, backend: (key.dst, key.v6), inner }))
}

/// Length of the GRE header and what it carries, if that is IP.
fn in_gre(bytes: &[u8]) -> Result<Option<(Mode, usize, bool)>, DropReason> {
    let header: &Gre = view(bytes, 0).map_err(|_| DropReason::IcmpShortQuote)?;
    let len = match header.flags.get() {
        0 => Gre::LEN,
        gre::CHECKSUM => Gre::LEN + gre::Checksum::LEN,
        _ => return Ok(None),
    };
    Ok(match header.protocol.get() {
        ethernet::IPV4 => Some((Mode::Gre, len, false)),
        ethernet::IPV6 => Some((Mode::Gre, len, true)),
        _ => None,
    })
}

/// The same of UDP and GUE. That it is GUE, and not just any datagram, only its port could tell.
fn in_gue(bytes: &[u8]) -> Result<Option<(Mode, usize, bool)>, DropReason> {
    const VARIANT_AND_CONTROL: u8 = 0xe0;

    let Ok(header) = view::<Gue>(bytes, Udp::LEN) else { return Ok(None) };
    let options = usize::from(header.variant_len & !VARIANT_AND_CONTROL) * 4;
    let len = Udp::LEN + Gue::LEN + options;
    Ok(match (header.variant_len & VARIANT_AND_CONTROL, header.protocol) {
        (0, ipv4::IN_IP) => Some((Mode::Gue, len, false)),
        (0, ipv6::IN_IP) => Some((Mode::Gue, len, true)),
        _ => None,
    })
}

impl Tunnelled {
    /// Makes of the error in `frame` one about the packet inside, from where that was sent to, back to its sender. The
    /// layer-2 addresses are to be written afterwards. Returns where the new packet lies.
    ///
    /// # Errors
    /// `Unsupported` for an error that says nothing about the packet inside (source quench).
    pub fn relay(&self, frame: &mut Frame<'_>, packet: &Packet) -> Result<Packet, DropReason> {
        let error: &Icmp = view(frame.bytes(), packet.l4.into())?;
        let overhead = usize::from(self.inner.l3) - usize::from(packet.l4) - Icmp::LEN;
        let error = self.told(error, packet.key.v6, overhead).ok_or(DropReason::Unsupported)?;

        let (l3, from) = (usize::from(packet.l3), usize::from(self.inner.l3));
        let len = usize::from(packet.end).saturating_sub(from);
        let bytes = frame.bytes_mut();
        if from + len > bytes.len() || l3 > from {
            return Err(DropReason::Truncated);
        }
        bytes.copy_within(from..from + len, l3);
        let ethertype = if self.inner.key.v6 { ethernet::IPV6 } else { ethernet::IPV4 };
        let at = l3.checked_sub(size_of::<U16>()).ok_or(DropReason::Truncated)?;
        *view_mut(bytes, at)? = U16::new(ethertype);
        if !frame.resize(l3 + len) {
            return Err(DropReason::NoHeadroom);
        }
        let moved = self.inner.l3 - packet.l3;
        let inner =
            Packet { l3: packet.l3, l4: self.inner.l4 - moved, end: self.inner.end - moved, ..self.inner };
        answer::relayed(frame, &inner, error)?;
        Ok(inner)
    }

    /// The error in the words of the inner packet's family. Type and code are kept where they mean the same, as the
    /// kernel's IPVS keeps them; the MTU shrinks by the tunnel's headers.
    fn told(&self, error: &Icmp, from_v6: bool, overhead: usize) -> Option<Icmp> {
        let is_v6 = self.inner.key.v6;
        let is_too_big = if from_v6 {
            error.kind == v6::PACKET_TOO_BIG
        } else {
            (error.kind, error.code) == (v4::UNREACHABLE, v4::FRAGMENTATION_NEEDED)
        };
        let [least_v4, least_v6] = LEAST_MTU;
        let (kind, code, rest) = if is_too_big {
            let mtu = if from_v6 { error.rest.get() } else { error.rest.get() & 0xffff };
            let mtu = mtu.saturating_sub(u32::try_from(overhead).ok()?).min(u16::MAX.into());
            match is_v6 {
                true => (v6::PACKET_TOO_BIG, 0, mtu.max(least_v6)),
                false => (v4::UNREACHABLE, v4::FRAGMENTATION_NEEDED, mtu.max(least_v4)),
            }
        } else {
            let is_late = error.kind == if from_v6 { v6::TIME_EXCEEDED } else { v4::TIME_EXCEEDED };
            let is_unreachable = error.kind == if from_v6 { v6::UNREACHABLE } else { v4::UNREACHABLE };
            if !from_v6 && error.kind == v4::SOURCE_QUENCH {
                return None;
            }
            // A fault in the tunnel's own header is none of the sender's: the backend is not reached.
            let [host_v4, host_v6] = HOST;
            let code = match (is_unreachable, from_v6 == is_v6) {
                (true, true) => error.code,
                _ if is_v6 => host_v6,
                _ => host_v4,
            };
            match (is_late, is_v6) {
                (true, true) => (v6::TIME_EXCEEDED, 0, 0),
                (true, false) => (v4::TIME_EXCEEDED, 0, 0),
                (false, true) => (v6::UNREACHABLE, code, 0),
                (false, false) => (v4::UNREACHABLE, code, 0),
            }
        };
        Some(Icmp { kind, code, checksum: 0.into(), rest: rest.into() })
    }
}
