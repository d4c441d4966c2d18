//! What a frame still needs when it is handed to the kernel for sending: a place in its chunk that the kernel
//! accepts, and the rest of a partial checksum.

use super::port::Extent;
use crate::frame::{Checksum, Frame};
use crate::verdict::DropReason;
use crate::wire::checksum;

/// Bytes of TX metadata directly in front of a frame: `struct xsk_tx_metadata` of linux/if_xdp.h, Linux 6.8 and
/// newer. The kernel checks that a frame has them in front of it whether its descriptor uses them or not.
pub(super) const TX_METADATA_LEN: u32 = 24;
const METADATA: usize = TX_METADATA_LEN as usize;

const ETHERNET_HEADER_LEN: usize = 14;

/// Makes a frame ready for a TX descriptor. A partial checksum is left to the kernel by TX metadata where `offload`
/// says that it takes them, and completed in software otherwise.
///
/// The kernel never completes a descriptor that it finds invalid, and a request that it cannot follow blocks the
/// ring, so neither is let through.
#[inline]
pub(super) fn prepare(frame: &mut Frame<'_>, offload: bool) -> Result<Extent, DropReason> {
    if frame.headroom() < METADATA {
        return Err(DropReason::NoHeadroom);
    }
    if frame.len() < ETHERNET_HEADER_LEN {
        return Err(DropReason::Truncated);
    }
    let options = match frame.checksum {
        Checksum::Complete => 0,
        Checksum::Partial { start, offset } => complete(frame, start, offset, offload)?,
    };
    let len = u32::try_from(frame.len()).map_err(|_| DropReason::BadLength)?;
    Ok(Extent { offset: frame.offset(), len, options })
}

fn complete(frame: &mut Frame<'_>, start: u16, offset: u16, offload: bool) -> Result<u32, DropReason> {
    let (first, field) = (usize::from(start), usize::from(offset));
    if first + field + size_of::<u16>() > frame.len() {
        return Err(DropReason::BadLength);
    }
    if offload {
        request(frame, start, offset).ok_or(DropReason::NoHeadroom)?;
        return Ok(libc::XDP_TX_METADATA);
    }
    let covered = frame.bytes_mut().get_mut(first..).ok_or(DropReason::BadLength)?;
    checksum::complete(covered, field).then_some(0).ok_or(DropReason::BadLength)
}

fn request(frame: &mut Frame<'_>, start: u16, offset: u16) -> Option<()> {
    if !frame.grow_front(METADATA) {
        return None;
    }
    let mut metadata = [0; METADATA];
    let (flags, rest) = metadata.split_first_chunk_mut()?;
    *flags = u64::from(libc::XDP_TXMD_FLAGS_CHECKSUM).to_ne_bytes();
    let (csum_start, rest) = rest.split_first_chunk_mut()?;
    *csum_start = start.to_ne_bytes();
    *rest.first_chunk_mut()? = offset.to_ne_bytes();
    *frame.bytes_mut().first_chunk_mut()? = metadata;
    frame.shrink_front(METADATA);
    Some(())
}

#[cfg(test)]
#[allow(clippy::cast_possible_truncation, reason = "bytes that count up wrap")]
mod tests {
    use super::*;
    use crate::ids::PortId;

    const PARTIAL: Checksum = Checksum::Partial { start: 34, offset: 6 };

    fn prepared(
        offset: usize,
        len: usize,
        checksum: Checksum,
        offload: bool,
    ) -> (Result<Extent, DropReason>, [u8; 512]) {
        let mut chunk: [u8; 512] = std::array::from_fn(|i| i as u8);
        let mut frame = Frame::new(&mut chunk, offset, len, PortId(0)).unwrap();
        frame.checksum = checksum;
        let result = prepare(&mut frame, offload);
        assert_eq!((frame.offset(), frame.len()), (offset, len), "the frame itself stays in place");
        (result, chunk)
    }

    #[test]
    fn what_the_kernel_would_choke_on_is_refused() {
        for (name, offset, len, checksum, want) in [
            ("no room for metadata", 23, 60, Checksum::Complete, DropReason::NoHeadroom),
            ("shorter than an Ethernet header", 256, 13, Checksum::Complete, DropReason::Truncated),
            ("checksum field past the end", 256, 41, PARTIAL, DropReason::BadLength),
            (
                "offsets that would overflow",
                256,
                60,
                Checksum::Partial { start: u16::MAX, offset: u16::MAX },
                DropReason::BadLength,
            ),
        ] {
            for offload in [false, true] {
                assert_eq!(
                    prepared(offset, len, checksum, offload).0.unwrap_err(),
                    want,
                    "{name}, offload {offload}"
                );
            }
        }
    }

    #[test]
    fn metadata_lie_directly_in_front_of_the_frame() {
        let (extent, chunk) = prepared(256, 60, PARTIAL, true);
        assert_eq!(extent.unwrap().options, libc::XDP_TX_METADATA);
        assert_eq!(chunk[232..240], 2u64.to_ne_bytes());
        assert_eq!(chunk[240..242], 34u16.to_ne_bytes());
        assert_eq!(chunk[242..244], 6u16.to_ne_bytes());
        assert_eq!(chunk[244..256], [0; 12]);
        assert_eq!(chunk[256], 0, "the frame is untouched");
    }

    #[test]
    fn software_sums_from_start_to_the_end_of_the_frame() {
        let (extent, chunk) = prepared(256, 60, PARTIAL, false);
        assert_eq!(extent.unwrap().options, 0);
        let mut expected: [u8; 512] = std::array::from_fn(|i| i as u8);
        assert!(checksum::complete(&mut expected[256 + 34..256 + 60], 6));
        assert_eq!(chunk, expected);
    }

    #[test]
    fn a_complete_frame_is_left_alone() {
        let (extent, chunk) = prepared(256, 60, Checksum::Complete, true);
        let extent = extent.unwrap();
        assert_eq!((extent.offset, extent.len, extent.options), (256, 60, 0));
        assert_eq!(chunk, std::array::from_fn(|i| i as u8));
    }
}
