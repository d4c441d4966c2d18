//! TCP segments with other numbers and options, and packets with something put in between: lengths and checksums follow.
//!
//! As in translation, checksums are updated and not recomputed; `unfinished` says that a transport checksum is only the
//! pseudo-header's sum, and stays that.

use std::ops::Range;

use zerocopy::FromBytes;
use zerocopy::big_endian::{U16, U32};

use crate::flow::key::TCP;
use crate::frame::Frame;
use crate::packet::{Packet, quoted};
use crate::verdict::DropReason;
use crate::wire::checksum::{Delta, Sum};
use crate::wire::icmp::Icmp;
use crate::wire::ipv4::Ipv4;
use crate::wire::ipv6::Ipv6;
use crate::wire::tcp::{FIN, PSH, Tcp};
use crate::wire::tcp_options;
use crate::wire::udp::Udp;
use crate::wire::{view, view_mut};

/// Has `change` alter the header of a TCP segment and its options, but for its length.
pub fn edit(
    bytes: &mut [u8],
    packet: &Packet,
    unfinished: bool,
    change: impl FnOnce(&mut Tcp, &mut [u8]),
) -> Result<(), DropReason> {
    let len = header_len(bytes, packet)?;
    let start = usize::from(packet.l4);
    let header = bytes.get_mut(start..start + len).ok_or(DropReason::Truncated)?;
    let before = Sum::of(header);
    let (tcp, options) = Tcp::mut_from_prefix(header).map_err(|_| DropReason::Truncated)?;
    let checksum = tcp.checksum;
    change(tcp, options);
    tcp.checksum = checksum;
    let delta = Delta::between(before, Sum::of(header));
    if !unfinished {
        view_mut::<Tcp>(header, 0)?.checksum = delta.apply(checksum.get()).into();
    }
    Ok(())
}

/// Applies `number` to the numbers in the options that acknowledge data, and adds to the timestamps.
pub fn renumber_options(options: &mut [u8], number: impl Fn(u32) -> u32, own: u32, repeated: u32) {
    tcp_options::each(options, |kind, value| match kind {
        tcp_options::SACK => {
            for edge in value.as_chunks_mut::<4>().0 {
                *edge = number(u32::from_be_bytes(*edge)).to_be_bytes();
            }
        }
        tcp_options::TIMESTAMPS => {
            if let ([first, second], []) = value.as_chunks_mut::<4>() {
                *first = u32::from_be_bytes(*first).wrapping_add(own).to_be_bytes();
                // Without ACK nothing is repeated, and the field is 0.
                if *second != [0; 4] {
                    *second = u32::from_be_bytes(*second).wrapping_add(repeated).to_be_bytes();
                }
            }
        }
        _ => {}
    });
}

/// Applies `number` to the number of the TCP segment that an ICMP error quotes. The error's own checksum is wrong then.
pub fn renumber_quote(
    bytes: &mut [u8],
    packet: &Packet,
    number: impl Fn(u32) -> u32,
) -> Result<(), DropReason> {
    const NUMBER: usize = 4;

    let range = usize::from(packet.l4) + Icmp::LEN..packet.end.into();
    let quote = bytes.get_mut(range).ok_or(DropReason::Truncated)?;
    let Some(found) = quoted(quote, packet.key.v6)?.filter(|found| found.key.proto == TCP) else {
        return Ok(());
    };
    let field: &mut U32 = view_mut(quote, found.l4 + NUMBER)?;
    let (before, after) = (field.get(), number(field.get()));
    *field = after.into();
    // Beyond the bytes that every error quotes.
    if let Ok(field) = view_mut::<U16>(quote, found.l4 + Tcp::CHECKSUM) {
        let delta = Delta::between(Sum::address(before.into()), Sum::address(after.into()));
        *field = delta.apply(field.get()).into();
    }
    Ok(())
}

/// Lowers the largest segment that a SYN or SYN-ACK speaks of by `by` bytes.
pub fn lower_mss(options: &mut [u8], by: u16) {
    tcp_options::each(options, |kind, value| {
        if kind == tcp_options::MSS
            && let Ok(size) = <&mut [u8; 2]>::try_from(value)
        {
            *size = u16::from_be_bytes(*size).saturating_sub(by).max(1).to_be_bytes();
        }
    });
}

/// Bytes of the transport header, with its options.
pub fn header_len(bytes: &[u8], packet: &Packet) -> Result<usize, DropReason> {
    if packet.key.proto != TCP {
        return Ok(Udp::LEN);
    }
    let len = view::<Tcp>(bytes, packet.l4.into())?.header_len();
    if usize::from(packet.l4) + len > usize::from(packet.end) {
        return Err(DropReason::Truncated);
    }
    Ok(len.max(Tcp::LEN))
}

/// Puts options, in whole words, behind those that a TCP segment has. They have to fit its header.
pub fn add_options(
    frame: &mut Frame<'_>,
    packet: &mut Packet,
    options: &[u8],
    unfinished: bool,
) -> Result<(), DropReason> {
    let words = u8::try_from(options.len() / 4).map_err(|_| DropReason::BadLength)?;
    insert(frame, packet, options, unfinished)?;
    edit_offset(frame.bytes_mut(), packet, words, unfinished)
}

/// Puts data in front of what a TCP segment or UDP datagram carries: an even number of bytes.
pub fn insert(
    frame: &mut Frame<'_>,
    packet: &mut Packet,
    data: &[u8],
    unfinished: bool,
) -> Result<(), DropReason> {
    let at = usize::from(packet.l4) + header_len(frame.bytes(), packet)?;
    let end = usize::from(packet.end);
    // Ethernet padding goes.
    if !frame.resize(end + data.len()) {
        return Err(DropReason::NoHeadroom);
    }
    let bytes = frame.bytes_mut();
    bytes.copy_within(at..end, at + data.len());
    bytes.get_mut(at..at + data.len()).ok_or(DropReason::Truncated)?.copy_from_slice(data);
    let len = u16::try_from(data.len()).map_err(|_| DropReason::BadLength)?;
    let longer = packet.end.checked_add(len).ok_or(DropReason::BadLength)?;
    resized(bytes, packet, longer, Delta::between(Sum::default(), Sum::of(data)), unfinished)
}

/// Puts `text` in place of a `range` of what a TCP segment carries.
pub fn replace(
    frame: &mut Frame<'_>,
    packet: &mut Packet,
    range: Range<usize>,
    text: &[u8],
    unfinished: bool,
) -> Result<(), DropReason> {
    let data = usize::from(packet.l4) + header_len(frame.bytes(), packet)?;
    let (start, gone, end) = (data + range.start, data + range.end, usize::from(packet.end));
    if gone > end || start > gone {
        return Err(DropReason::Truncated);
    }
    let (behind, new_end) = (start + text.len(), end - (gone - start) + text.len());
    let sum = |bytes: &[u8], end| bytes.get(data..end).map(Sum::of).ok_or(DropReason::Truncated);
    let before = sum(frame.bytes(), end)?;
    if !frame.resize(end.max(new_end)) {
        return Err(DropReason::NoHeadroom);
    }
    let bytes = frame.bytes_mut();
    bytes.copy_within(gone..end, behind);
    bytes.get_mut(start..behind).ok_or(DropReason::Truncated)?.copy_from_slice(text);
    let change = Delta::between(before, sum(bytes, new_end)?);
    let new_end = u16::try_from(new_end).map_err(|_| DropReason::BadLength)?;
    resized(bytes, packet, new_end, change, unfinished)?;
    if frame.resize(new_end.into()) { Ok(()) } else { Err(DropReason::NoHeadroom) }
}

/// Takes the data out of a TCP segment, and with it what says that more or nothing follows. Its sender sends it again.
pub fn cut(frame: &mut Frame<'_>, packet: &mut Packet, unfinished: bool) -> Result<(), DropReason> {
    let at = usize::from(packet.l4) + header_len(frame.bytes(), packet)?;
    let bytes = frame.bytes_mut();
    let data = bytes.get(at..packet.end.into()).ok_or(DropReason::Truncated)?;
    let gone = Delta::between(Sum::of(data), Sum::default());
    let end = u16::try_from(at).map_err(|_| DropReason::BadLength)?;
    resized(bytes, packet, end, gone, unfinished)?;
    edit(bytes, packet, unfinished, |tcp, _| tcp.flags &= !(FIN | PSH))?;
    packet.tcp_flags &= !(FIN | PSH);
    if frame.resize(at) { Ok(()) } else { Err(DropReason::NoHeadroom) }
}

/// Notes everywhere that the packet ends at `end` now. `data` is what that does to the sum of its bytes.
fn resized(
    bytes: &mut [u8],
    packet: &mut Packet,
    end: u16,
    data: Delta,
    unfinished: bool,
) -> Result<(), DropReason> {
    let (before, after) = (packet.end - packet.l4, end.checked_sub(packet.l4).ok_or(DropReason::BadLength)?);
    let (l3, l4) = (usize::from(packet.l3), usize::from(packet.l4));
    let length = Delta::between(Sum::word(before), Sum::word(after));
    if packet.key.v6 {
        let ip: &mut Ipv6 = view_mut(bytes, l3)?;
        let longer = ip.payload_len.get().wrapping_sub(before).wrapping_add(after);
        ip.payload_len = longer.into();
    } else {
        let ip: &mut Ipv4 = view_mut(bytes, l3)?;
        ip.total_len = (end - packet.l3).into();
        // The same difference, of another field.
        ip.checksum = length.apply(ip.checksum.get()).into();
    }
    if packet.key.proto == TCP {
        let tcp: &mut Tcp = view_mut(bytes, l4)?;
        let field = tcp.checksum.get();
        let checksum = if unfinished { length.apply_partial(field) } else { length.and(data).apply(field) };
        tcp.checksum = checksum.into();
    } else {
        let udp: &mut Udp = view_mut(bytes, l4)?;
        // Of what lies behind the datagram's own end, no more than before becomes part of it.
        let len = udp.len.get().checked_add(after).and_then(|sum| sum.checked_sub(before));
        udp.len = len.ok_or(DropReason::BadLength)?.into();
        let field = udp.checksum.get();
        // The length counts in the pseudo-header and in the header.
        let whole = length.and(length).and(data);
        let checksum = if unfinished { length.apply_partial(field) } else { whole.apply_udp(field) };
        udp.checksum = checksum.into();
    }
    packet.end = end;
    Ok(())
}

/// Has the header of a TCP segment end `words` words later.
fn edit_offset(bytes: &mut [u8], packet: &Packet, words: u8, unfinished: bool) -> Result<(), DropReason> {
    let tcp: &mut Tcp = view_mut(bytes, packet.l4.into())?;
    let word = |tcp: &Tcp| Sum::word(u16::from_be_bytes([tcp.data_offset, tcp.flags]));
    let before = word(tcp);
    tcp.data_offset = tcp.data_offset.checked_add(words << 4).ok_or(DropReason::BadHeader)?;
    if !unfinished {
        tcp.checksum = Delta::between(before, word(tcp)).apply(tcp.checksum.get()).into();
    }
    Ok(())
}
