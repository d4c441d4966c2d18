//! The layer-2 header of the next hop in place of the one that the frame came with.

use crate::frame::{Checksum, Frame};
use crate::packet::Packet;
use crate::snapshot::net::Hop;
use crate::verdict::DropReason;

/// Puts the hop's MAC addresses into a frame without tags, where the hop has none either. Returns false, and changes
/// nothing, where one of them has.
#[inline]
pub fn overwrite(bytes: &mut [u8], packet: &Packet, hop: &Hop) -> bool {
    if let (12, 14) = (hop.header.len(), packet.l3)
        && let (Some(to), Some(from)) = (bytes.first_chunk_mut::<12>(), hop.header.first_chunk())
    {
        *to = *from;
        return true;
    }
    false
}

/// Puts the hop's MAC addresses and VLAN tags in front of the IP header. The frame grows or shrinks at its front
/// where the tags differ in number; the EtherType of the payload stays where it is, right before the IP header.
#[inline(never)]
pub fn readdress(frame: &mut Frame<'_>, packet: &Packet, hop: &Hop) -> Result<(), DropReason> {
    resize_front(frame, packet.l3.into(), hop.header.len() + 2)?;
    let to = frame.bytes_mut().get_mut(..hop.header.len()).ok_or(DropReason::Truncated)?;
    to.copy_from_slice(&hop.header);
    Ok(())
}

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
