//! Tunnels: a packet inside another one to its backend, by IP in IP (RFC 2003, RFC 2473), GUE or GRE. The headers are
//! those that the kernel's IPVS writes (`net/netfilter/ipvs/ip_vs_xmit.c`), so that a backend that serves it serves Weir.

use zerocopy::IntoBytes;
use zerocopy::big_endian::U16;

use super::{l2, nat};
use crate::flow::key;
use crate::frame::{Checksum, Frame};
use crate::packet::Packet;
use crate::snapshot::{Mode, Tunnel, TunnelChecksum};
use crate::verdict::DropReason;
use crate::wire::checksum::{Sum, complete};
use crate::wire::ethernet;
use crate::wire::gre::{self, Gre};
use crate::wire::gue::{self, Gue, RemoteChecksum};
use crate::wire::ipv4::{self, Ipv4};
use crate::wire::ipv6::{self, Ipv6};
use crate::wire::udp::Udp;
use crate::wire::{view, view_mut};

/// First of the ports that a GUE packet may come from, and how many there are: the dynamic ports (RFC 6335), as the
/// draft recommends in section 5.6.1.
const SOURCE_PORTS: (u16, u32) = (49_152, 16_384);
/// Bits of the traffic class or TOS octet that are for congestion notification (RFC 3168).
const ECN: u8 = 0x03;
/// Congestion was experienced.
const CE: u8 = 0x03;
/// Able to be told of congestion.
const ECT_0: u8 = 0x02;

/// The tunnel of a flow, and what its next packet takes of it.
#[derive(Clone, Copy, Debug)]
pub struct Outer {
    /// [`Mode::Ipip`], [`Mode::Gue`] or [`Mode::Gre`].
    pub mode: Mode,
    /// Its parameters.
    pub tunnel: Tunnel,
    /// Whether the outer addresses are IPv6.
    pub v6: bool,
    /// Weir's own address.
    pub src: u128,
    /// The backend's address.
    pub dst: u128,
    /// A hash of the flow: what spreads the flows of one tunnel over the links and queues behind it. It becomes the
    /// source port of GUE and the flow label of IPv6.
    pub entropy: u32,
    /// Identification of an IPv4 header, where routers may fragment the packet.
    pub id: u16,
}

/// What of the inner header shows in the outer one.
#[derive(Clone, Copy)]
struct Inner {
    v6: bool,
    tos: u8,
    ttl: u8,
    dont_fragment: bool,
}

impl Outer {
    /// Bytes that it adds to a packet whose transport checksum is left to others to be finished, or not.
    pub fn overhead(&self, unfinished: bool) -> u16 {
        let ip = if self.v6 { 40 } else { 20 };
        let rest = match (self.mode, self.tunnel.checksum) {
            (Mode::Gue, TunnelChecksum::Remote) if unfinished => 8 + 4 + 8,
            (Mode::Gue, _) => 8 + 4,
            (Mode::Gre, TunnelChecksum::Full) => 4 + 4,
            (Mode::Gre, _) => 4,
            _ => 0,
        };
        ip + rest
    }

    /// Takes one hop off the packet and puts it into the tunnel. `unfinished` says that its transport checksum is only
    /// the pseudo-header's sum: it is left to the backend where the tunnel can say so, else finished.
    ///
    /// The frame grows at its front; its layer-2 addresses are to be written afterwards, and its padding is gone.
    pub fn encapsulate(
        &self,
        frame: &mut Frame<'_>,
        packet: &Packet,
        unfinished: bool,
    ) -> Result<(), DropReason> {
        let remote = unfinished && self.mode == Mode::Gue && self.tunnel.checksum == TunnelChecksum::Remote;
        if unfinished && !remote {
            finish(frame, packet)?;
        }
        frame.checksum = Checksum::Complete;
        nat::pass(frame.bytes_mut(), packet)?;
        let inner = Inner::of(frame, packet)?;
        if !frame.resize(packet.end.into()) {
            return Err(DropReason::NoHeadroom);
        }
        let (l3, added) = (usize::from(packet.l3), self.overhead(unfinished));
        l2::resize_front(frame, l3, l3 + usize::from(added))?;
        let len = (packet.end - packet.l3).checked_add(added).ok_or(DropReason::BadLength)?;
        let bytes = frame.bytes_mut();
        let ethertype = if self.v6 { ethernet::IPV6 } else { ethernet::IPV4 };
        *view_mut(bytes, l3 - size_of::<U16>())? = U16::new(ethertype);
        let payload = self.write_ip(bytes, l3, len, inner)?;
        match self.mode {
            Mode::Gue => self.write_gue(payload, packet, inner, remote),
            Mode::Gre => self.write_gre(payload, inner),
            _ => Ok(()),
        }
    }

    /// Writes the IP header of a packet of `len` bytes at `l3`, and returns what is behind it.
    fn write_ip<'b>(
        &self,
        bytes: &'b mut [u8],
        l3: usize,
        len: u16,
        inner: Inner,
    ) -> Result<&'b mut [u8], DropReason> {
        let protocol = match self.mode {
            Mode::Gue => key::UDP,
            Mode::Gre => gre::PROTOCOL,
            _ => inner.protocol(),
        };
        let header_len = if self.v6 {
            *view_mut(bytes, l3)? = Ipv6 {
                version_class_flow: (6 << 28 | u32::from(inner.outer_tos()) << 20 | self.flow_label()).into(),
                payload_len: (len - 40).into(),
                next_header: protocol,
                hop_limit: inner.ttl,
                src: self.src.into(),
                dst: self.dst.into(),
            };
            Ipv6::LEN
        } else {
            let ip: &mut Ipv4 = view_mut(bytes, l3)?;
            *ip = Ipv4 {
                version_ihl: ipv4::VERSION_NO_OPTIONS,
                tos: inner.outer_tos(),
                total_len: len.into(),
                id: if inner.dont_fragment { 0 } else { self.id }.into(),
                fragment: if inner.dont_fragment { ipv4::DONT_FRAGMENT } else { 0 }.into(),
                ttl: inner.ttl,
                protocol,
                checksum: 0.into(),
                src: ipv4::address(self.src).into(),
                dst: ipv4::address(self.dst).into(),
            };
            ip.checksum = Sum::of(ip.as_bytes()).checksum().into();
            Ipv4::LEN
        };
        bytes.get_mut(l3 + header_len..).ok_or(DropReason::Truncated)
    }

    /// UDP and GUE headers. With `remote` the options say which checksum the backend has to finish.
    fn write_gue(
        &self,
        payload: &mut [u8],
        packet: &Packet,
        inner: Inner,
        remote: bool,
    ) -> Result<(), DropReason> {
        let len = u16::try_from(payload.len()).map_err(|_| DropReason::BadLength)?;
        *view_mut(payload, 0)? = Udp {
            src_port: self.source_port().into(),
            dst_port: self.tunnel.port.into(),
            len: len.into(),
            checksum: 0.into(),
        };
        let (words, flags) = if remote { (2, gue::PRIVATE) } else { (0, 0) };
        *view_mut(payload, Udp::LEN)? =
            Gue { variant_len: words, protocol: inner.protocol(), flags: flags.into() };
        if remote {
            let start = packet.l4 - packet.l3;
            *view_mut(payload, Udp::LEN + Gue::LEN)? = RemoteChecksum {
                flags: gue::REMOTE_CHECKSUM.into(),
                start: start.into(),
                field: (start + nat::checksum_offset(packet)).into(),
            };
        }
        if self.tunnel.checksum != TunnelChecksum::None {
            let pseudo = Sum::pseudo_header(self.src, self.dst, key::UDP, len);
            let checksum = (pseudo + Sum::of(payload)).udp_checksum();
            view_mut::<Udp>(payload, 0)?.checksum = checksum.into();
        }
        Ok(())
    }

    fn write_gre(&self, payload: &mut [u8], inner: Inner) -> Result<(), DropReason> {
        let protocol = if inner.v6 { ethernet::IPV6 } else { ethernet::IPV4 };
        let with_checksum = self.tunnel.checksum == TunnelChecksum::Full;
        let flags = if with_checksum { gre::CHECKSUM } else { 0 };
        *view_mut(payload, 0)? = Gre { flags: flags.into(), protocol: protocol.into() };
        if with_checksum {
            *view_mut(payload, Gre::LEN)? = gre::Checksum { checksum: 0.into(), reserved: 0.into() };
            let checksum = Sum::of(payload).checksum();
            view_mut::<gre::Checksum>(payload, Gre::LEN)?.checksum = checksum.into();
        }
        Ok(())
    }

    fn source_port(&self) -> u16 {
        let (first, count) = SOURCE_PORTS;
        first | u16::try_from(self.entropy % count).unwrap_or_default()
    }

    /// Never 0, which would say that there is none (RFC 6437).
    fn flow_label(&self) -> u32 {
        (self.entropy & 0x000f_ffff).max(1)
    }
}

impl Inner {
    fn of(frame: &Frame<'_>, packet: &Packet) -> Result<Self, DropReason> {
        if packet.key.v6 {
            let ip: &Ipv6 = view(frame.bytes(), packet.l3.into())?;
            let (tos, ttl) = (ip.traffic_class(), ip.hop_limit);
            return Ok(Self { v6: true, tos, ttl, dont_fragment: false });
        }
        let ip: &Ipv4 = view(frame.bytes(), packet.l3.into())?;
        let dont_fragment = ip.fragment.get() & ipv4::DONT_FRAGMENT != 0;
        Ok(Self { v6: false, tos: ip.tos, ttl: ip.ttl, dont_fragment })
    }

    /// The protocol number of the packet within IP.
    fn protocol(self) -> u8 {
        if self.v6 { ipv6::IN_IP } else { ipv4::IN_IP }
    }

    /// The same class of service. Congestion that the packet has already met is no news of the tunnel (RFC 3168, section
    /// 9.1.1, the full functionality).
    fn outer_tos(self) -> u8 {
        if self.tos & ECN == CE { self.tos & !ECN | ECT_0 } else { self.tos }
    }
}

/// Finishes a transport checksum that its sender has left to an interface.
pub(crate) fn finish(frame: &mut Frame<'_>, packet: &Packet) -> Result<(), DropReason> {
    let range = packet.l4.into()..packet.end.into();
    let segment = frame.bytes_mut().get_mut(range).ok_or(DropReason::Truncated)?;
    let done = complete(segment, nat::checksum_offset(packet).into());
    frame.checksum = Checksum::Complete;
    if done { Ok(()) } else { Err(DropReason::Truncated) }
}

#[cfg(test)]
#[allow(clippy::cast_possible_truncation, reason = "test packets are small")]
mod tests;
