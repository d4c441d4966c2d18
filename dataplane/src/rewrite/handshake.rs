//! The segments of a handshake that Weir leads itself (SYN proxy): each is made of the one that it answers, or that it
//! stands for.
//!
//! As everywhere, a frame in is a frame out:
//!
//! ```text
//! client                               Weir                                backend
//!   SYN n         ------------------>
//!                 <------------------  SYN-ACK cookie, n + 1                  [`welcome`]
//!   ACK cookie    ------------------>  SYN n          ------------------>     [`open`]
//!                                                     <------------------  SYN-ACK m, n + 1
//!                                      ACK m + 1      ------------------>     [`complete`]
//! ```

use zerocopy::FromZeros;

use super::answer;
use crate::flow::key::TCP;
use crate::frame::{Checksum, Frame};
use crate::packet::Packet;
use crate::verdict::DropReason;
use crate::wire::checksum::{Delta, Sum};
use crate::wire::ipv4::Ipv4;
use crate::wire::ipv6::Ipv6;
use crate::wire::tcp::{ACK, PSH, SYN, Tcp};
use crate::wire::tcp_options::{Offer, Options};
use crate::wire::{view, view_mut};

/// The header of a TCP segment and what its options offer; fails where its checksum is wrong.
pub fn read(frame: &mut Frame<'_>, packet: &Packet) -> Result<(Tcp, Offer), DropReason> {
    let tcp = answer::sound(frame, packet)?;
    let (start, len) = (usize::from(packet.l4), tcp.header_len());
    let options = frame.bytes_mut().get_mut(start + Tcp::LEN..start + len).ok_or(DropReason::Truncated)?;
    Ok((tcp, Offer::read(options)))
}

/// Answers the client's SYN `syn` with the number `own`.
pub fn welcome(
    frame: &mut Frame<'_>,
    packet: &Packet,
    own_mac: [u8; 6],
    syn: &Tcp,
    (own, window): (u32, u16),
    offer: &Offer,
) -> Result<(), DropReason> {
    let mut options = Options::default();
    offer.write(&mut options);
    let answer = Tcp {
        src_port: syn.dst_port,
        dst_port: syn.src_port,
        sequence: own.into(),
        acknowledgement: syn.sequence.get().wrapping_add(1).into(),
        flags: SYN | ACK,
        window: window.into(),
        ..Tcp::new_zeroed()
    };
    answer::segment(frame, packet, own_mac, answer, options.bytes(), &[])
}

/// Makes a segment of the client the SYN with which it would have opened: number `number`, the client's window and the
/// options of `offer`. What data it has is lost, and comes again.
pub fn open(
    frame: &mut Frame<'_>,
    packet: &mut Packet,
    number: u32,
    window: u16,
    offer: &Offer,
) -> Result<(), DropReason> {
    let mut options = Options::default();
    offer.write(&mut options);
    let tcp: &Tcp = view(frame.bytes(), packet.l4.into())?;
    let len = Tcp::LEN + options.bytes().len();
    let syn = Tcp {
        src_port: tcp.src_port,
        dst_port: tcp.dst_port,
        sequence: number.into(),
        data_offset: u8::try_from(len / 4).map_err(|_| DropReason::BadLength)? << 4,
        flags: SYN,
        window: window.into(),
        ..Tcp::new_zeroed()
    };
    let (l3, l4) = (usize::from(packet.l3), usize::from(packet.l4));
    let end = u16::try_from(l4 + len).map_err(|_| DropReason::BadLength)?;
    if !frame.resize(end.into()) {
        return Err(DropReason::NoHeadroom);
    }
    frame.checksum = Checksum::Complete;
    let bytes = frame.bytes_mut();
    if packet.key.v6 {
        let ip: &mut Ipv6 = view_mut(bytes, l3)?;
        ip.payload_len = ip.payload_len.get().wrapping_sub(packet.end).wrapping_add(end).into();
    } else {
        let ip: &mut Ipv4 = view_mut(bytes, l3)?;
        let length = Delta::between(Sum::word(ip.total_len.get()), Sum::word(end - packet.l3));
        ip.total_len = (end - packet.l3).into();
        ip.checksum = length.apply(ip.checksum.get()).into();
    }
    let segment = bytes.get_mut(l4..).ok_or(DropReason::Truncated)?;
    *view_mut(segment, 0)? = syn;
    segment.get_mut(Tcp::LEN..).ok_or(DropReason::Truncated)?.copy_from_slice(options.bytes());
    let pseudo = Sum::pseudo_header(packet.key.src, packet.key.dst, TCP, end - packet.l4);
    let checksum = (pseudo + Sum::of(segment)).checksum();
    view_mut::<Tcp>(segment, 0)?.checksum = checksum.into();
    (packet.end, packet.tcp_flags) = (end, SYN);
    Ok(())
}

/// Answers the backend's SYN-ACK in the client's stead, with `options` and the first `data`.
pub fn complete(
    frame: &mut Frame<'_>,
    packet: &Packet,
    own_mac: [u8; 6],
    syn_ack: &Tcp,
    window: u16,
    options: &Options,
    data: &[u8],
) -> Result<(), DropReason> {
    let answer = Tcp {
        src_port: syn_ack.dst_port,
        dst_port: syn_ack.src_port,
        sequence: syn_ack.acknowledgement,
        acknowledgement: syn_ack.sequence.get().wrapping_add(1).into(),
        flags: if data.is_empty() { ACK } else { ACK | PSH },
        window: window.into(),
        ..Tcp::new_zeroed()
    };
    answer::segment(frame, packet, own_mac, answer, options.bytes(), data)
}
