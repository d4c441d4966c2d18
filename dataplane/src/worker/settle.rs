//! The verdicts that concern other workers, the kernel and frames that have to wait, carried out before the I/O sees them.

use super::waiting::{For, Waiting};
use crate::frame::{Checksum, Frame};
use crate::ids::PortId;
use crate::io::handoff::Exchange;
use crate::stats::WorkerStats;
use crate::verdict::{DropReason, Verdict};
use crate::wire::ethernet::{Ethernet, SERVICE_VLAN, VLAN, VlanTag};

/// VLAN tags that a frame carries at most.
const TAGS: usize = 2;

/// Copies frames of other workers to them and frames that cannot be decided on yet to `waiting`, and turns verdicts for the
/// kernel into ones for the port that leads there. What is lost is counted in `stats`.
#[inline]
pub(super) fn settle(
    frames: &mut [Frame<'_>],
    verdicts: &mut [Verdict],
    kernel: Option<(PortId, [u8; 6])>,
    exchange: &mut Exchange,
    waiting: &mut Waiting,
    now_ns: u64,
    stats: &WorkerStats,
) {
    for (position, (frame, verdict)) in frames.iter_mut().zip(verdicts).enumerate() {
        let result = match *verdict {
            Verdict::Handoff(worker) => exchange.send(worker, frame),
            Verdict::Kernel => to_kernel(frame, kernel).map(|port| *verdict = Verdict::Tx(port)),
            Verdict::Unresolved => {
                stats.waited.add(1);
                keep(waiting, position, frame, For::Neighbour, now_ns)
            }
            Verdict::Early => {
                stats.fragments_early.add(1);
                keep(waiting, position, frame, For::FirstFragment, now_ns)
            }
            Verdict::Unanswered => {
                stats.unanswered.add(1);
                keep(waiting, position, frame, For::Backend, now_ns)
            }
            Verdict::Tx(_) | Verdict::Reply(_) | Verdict::Drop(_) => Ok(()),
        };
        if let Err(reason) = result {
            stats.drop(reason);
        }
    }
}

fn keep(
    waiting: &mut Waiting,
    position: usize,
    frame: &Frame<'_>,
    waits: For,
    now_ns: u64,
) -> Result<(), DropReason> {
    waiting.keep(position, frame, waits, now_ns).map_err(|_| waits.reason())
}

/// Addresses a frame to the local stack, without VLAN tags. One that came from there would only come again.
fn to_kernel(frame: &mut Frame<'_>, kernel: Option<(PortId, [u8; 6])>) -> Result<PortId, DropReason> {
    let (port, mac) = kernel.filter(|(port, _)| *port != frame.port).ok_or(DropReason::NoKernelPath)?;
    for _ in 0..TAGS {
        strip_tag(frame);
    }
    *frame.bytes_mut().first_chunk_mut().ok_or(DropReason::Truncated)? = mac;
    Ok(port)
}

/// Takes the outer VLAN tag off, where there is one.
fn strip_tag(frame: &mut Frame<'_>) {
    const ADDRESSES: usize = Ethernet::LEN - size_of::<u16>();
    let Some((header, _)) = frame.bytes_mut().split_first_chunk_mut::<{ Ethernet::LEN + VlanTag::LEN }>()
    else {
        return;
    };
    if !matches!(u16::from_be_bytes([header[12], header[13]]), VLAN | SERVICE_VLAN) {
        return;
    }
    header.copy_within(..ADDRESSES, VlanTag::LEN);
    frame.shrink_front(VlanTag::LEN);
    if let Checksum::Partial { start, .. } = &mut frame.checksum {
        *start = start.saturating_sub(4);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::WorkerId;
    use crate::io::handoff::mesh;

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];
    const UPLINK: PortId = PortId(0);
    const WEIR1: PortId = PortId(3);

    fn ethernet(tags: &[u16]) -> Vec<u8> {
        let mut bytes = vec![1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2];
        for tag in tags {
            bytes.extend(tag.to_be_bytes());
            bytes.extend([0, 77]);
        }
        bytes.extend([0x08, 0x00, 0x45, 0x00]);
        bytes
    }

    fn settled(
        bytes: &mut [u8],
        port: PortId,
        kernel: Option<(PortId, [u8; 6])>,
    ) -> (Verdict, Vec<u8>, Checksum, WorkerStats) {
        let mut exchange = mesh(1, 1, 100).unwrap().remove(0);
        let stats = WorkerStats::new(0, 0);
        let len = bytes.len();
        let mut frame = Frame::new(bytes, 0, len, port).unwrap();
        frame.checksum = Checksum::Partial { start: 42, offset: 6 };
        let (mut frames, mut verdicts) = ([frame], [Verdict::Kernel]);
        settle(&mut frames, &mut verdicts, kernel, &mut exchange, &mut Waiting::new(100, 1), 0, &stats);
        (verdicts[0], frames[0].bytes().to_vec(), frames[0].checksum, stats)
    }

    #[test]
    fn the_kernel_gets_frames_untagged_and_addressed_to_it() {
        let plain = [&MAC[..], &[2; 6], &[0x08, 0x00, 0x45, 0x00]].concat();
        for (name, tags, start) in
            [("untagged", &[][..], 42), ("tagged", &[VLAN], 38), ("tagged twice", &[SERVICE_VLAN, VLAN], 34)]
        {
            let (verdict, bytes, checksum, stats) = settled(&mut ethernet(tags), UPLINK, Some((WEIR1, MAC)));
            assert_eq!(verdict, Verdict::Tx(WEIR1), "{name}");
            assert_eq!(bytes, plain, "{name}");
            assert_eq!(checksum, Checksum::Partial { start, offset: 6 }, "{name}");
            assert_eq!(stats.drops(DropReason::NoKernelPath), 0, "{name}");
        }
    }

    #[test]
    fn without_a_way_to_the_kernel_frames_are_dropped_by_name() {
        for (name, port, kernel) in
            [("no path", UPLINK, None), ("came from the kernel itself", WEIR1, Some((WEIR1, MAC)))]
        {
            let (verdict, bytes, _, stats) = settled(&mut ethernet(&[VLAN]), port, kernel);
            assert_eq!((verdict, bytes), (Verdict::Kernel, ethernet(&[VLAN])), "{name}");
            assert_eq!(stats.drops(DropReason::NoKernelPath), 1, "{name}");
        }
    }

    #[test]
    fn every_truncation_is_survived() {
        for len in 0..ethernet(&[VLAN, VLAN]).len() {
            let (verdict, ..) = settled(&mut ethernet(&[VLAN, VLAN])[..len], UPLINK, Some((WEIR1, MAC)));
            assert_eq!(verdict, if len < 6 { Verdict::Kernel } else { Verdict::Tx(WEIR1) }, "{len} bytes");
        }
    }

    #[test]
    fn a_frame_without_a_neighbour_waits_or_is_counted() {
        let mut exchange = mesh(1, 1, 100).unwrap().remove(0);
        let (stats, mut waiting) = (WorkerStats::new(0, 0), Waiting::new(18, 1));
        let (mut fits, mut too_large) = (ethernet(&[]), ethernet(&[VLAN]));
        let mut frames = [&mut fits, &mut too_large].map(|bytes| {
            let len = bytes.len();
            Frame::new(bytes, 0, len, UPLINK).unwrap()
        });
        let mut verdicts = [Verdict::Unresolved; 2];
        settle(&mut frames, &mut verdicts, None, &mut exchange, &mut waiting, 0, &stats);
        assert_eq!(stats.drops(DropReason::NoNeighbour), 1);
        waiting.begin(1, (0, 0), 1);
        let mut room = [0; 100];
        let arrival = waiting.retry(&mut room, |_| panic!("it fits")).unwrap();
        assert_eq!((&room[..arrival.len], arrival.port), (&ethernet(&[])[..], UPLINK));
    }

    #[test]
    fn frames_of_other_workers_are_sent_to_them_or_counted() {
        let [mut here, mut there] = <[_; 2]>::try_from(mesh(2, 1, 100).unwrap()).unwrap();
        let stats = WorkerStats::new(0, 0);
        let (mut first, mut second) = (ethernet(&[]), ethernet(&[]));
        let mut frames = [&mut first, &mut second].map(|bytes| {
            let len = bytes.len();
            Frame::new(bytes, 0, len, UPLINK).unwrap()
        });
        let mut verdicts = [Verdict::Handoff(WorkerId(1)); 2];
        settle(&mut frames, &mut verdicts, None, &mut here, &mut Waiting::new(100, 1), 0, &stats);
        assert_eq!(stats.drops(DropReason::HandoffFull), 1);
        let mut room = [0; 100];
        let arrival = there.receive(&mut room, || panic!()).unwrap();
        assert_eq!(room[..arrival.len], ethernet(&[]));
        assert!(!there.has_mail());
    }
}
