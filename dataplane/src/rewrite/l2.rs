//! The layer-2 header of the next hop in place of the one that the frame came with.

use crate::frame::{Checksum, Frame};
use crate::packet::Packet;
use crate::snapshot::net::Hop;
use crate::verdict::DropReason;

/// Puts the hop's MAC addresses and VLAN tags in front of the IP header. The frame grows or shrinks at its front
/// where the tags differ in number; the EtherType of the payload stays where it is, right before the IP header.
#[inline]
pub fn readdress(frame: &mut Frame<'_>, packet: &Packet, hop: &Hop) -> Result<(), DropReason> {
    let before = usize::from(packet.l3);
    let after = hop.header.len() + 2;
    if before != after {
        resize_front(frame, before, after)?;
    }
    let to = frame.bytes_mut();
    match (to.first_chunk_mut::<12>(), hop.header.first_chunk::<12>()) {
        (Some(to), Some(from)) if hop.header.len() == 12 => *to = *from,
        _ => to.get_mut(..hop.header.len()).ok_or(DropReason::Truncated)?.copy_from_slice(&hop.header),
    }
    Ok(())
}

#[cold]
fn resize_front(frame: &mut Frame<'_>, before: usize, after: usize) -> Result<(), DropReason> {
    if after > before {
        if !frame.grow_front(after - before) {
            return Err(DropReason::NoHeadroom);
        }
    } else {
        frame.shrink_front(before - after);
    }
    if let Checksum::Partial { start, .. } = &mut frame.checksum {
        *start = u16::try_from(usize::from(*start) + after - before).map_err(|_| DropReason::BadLength)?;
    }
    Ok(())
}
