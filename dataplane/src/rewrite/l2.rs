//! The layer-2 header of the next hop in place of the one that the frame came with.

use crate::frame::{Checksum, Frame};
use crate::packet::Packet;
use crate::snapshot::net::Hop;
use crate::verdict::DropReason;

/// Puts the hop's MAC addresses and VLAN tags in front of the IP header. The frame grows or shrinks at its front
/// where the tags differ in number; the EtherType of the payload stays where it is, right before the IP header.
pub fn readdress(frame: &mut Frame<'_>, packet: &Packet, hop: &Hop) -> Result<(), DropReason> {
    let (before, after) = (packet.l3.into(), hop.header.len() + 2);
    if before != after {
        resize_front(frame, before, after)?;
    }
    let to = frame.bytes_mut().get_mut(..hop.header.len()).ok_or(DropReason::Truncated)?;
    to.copy_from_slice(&hop.header);
    Ok(())
}

/// Moves the bytes from `before` on to where `after` is, by growing or shrinking the frame at its front.
pub(super) fn resize_front(frame: &mut Frame<'_>, before: usize, after: usize) -> Result<(), DropReason> {
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
