//! Frames of several chunks.

use super::*;

const CONTD: u32 = libc::XDP_PKT_CONTD;
/// Bytes of the largest frame.
const LARGE: usize = 5000;
/// Bytes of a chunk behind the headroom, as the kernel fills it.
const RECEIVED: usize = CHUNK as usize - HEADROOM;
/// Bytes that a sent chunk carries at most.
const SENT: usize = CHUNK as usize - PIECE_OFFSET;

fn frame(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at % 251) as u8).collect()
}

fn deliver(kernel: &Shared, bytes: &[u8]) {
    kernel.borrow_mut().deliver_parts(&bytes.chunks(RECEIVED).collect::<Vec<_>>());
}

fn send_all(ports: &mut Ports<Shared>) -> Turn {
    ports.turn(|_, verdicts| verdicts.fill(Verdict::Tx(DOWNLINK)))
}

#[test]
fn a_frame_of_several_chunks_is_one_to_the_engine_and_leaves_whole() {
    let (mut ports, [uplink, downlink], counters) = two_ports_for(Some(LARGE));
    for len in [60, RECEIVED + 1, LARGE] {
        deliver(&uplink, &frame(len));
    }
    let turn = ports.turn(|frames, verdicts| {
        assert_eq!(frames.iter().map(Frame::len).collect::<Vec<_>>(), [60, RECEIVED + 1, LARGE]);
        for seen in frames.iter_mut() {
            assert_eq!(seen.bytes(), frame(seen.len()));
            assert!(seen.headroom() >= crate::frame::MIN_HEADROOM);
            seen.bytes_mut()[0] = 7;
        }
        frames[2].checksum = Checksum::Partial { start: 34, offset: 6 };
        verdicts.fill(Verdict::Tx(DOWNLINK));
    });
    assert_eq!(turn, Turn { frames: 3, ..Turn::default() });
    let kernel = downlink.borrow();
    let options: Vec<_> = kernel.sent.iter().map(|(_, options)| *options).collect();
    assert_eq!(
        options,
        [0, 0, CONTD | libc::XDP_TX_METADATA, CONTD, 0],
        "1793 bytes fit one chunk to be sent"
    );
    let lens: Vec<_> = kernel.bytes.iter().map(Vec::len).collect();
    assert_eq!(lens, [60, RECEIVED + 1, SENT, SENT, LARGE - 2 * SENT]);
    let mut sent = kernel.bytes[2..].concat();
    sent[0] = 0;
    assert_eq!(sent, frame(LARGE));
    drop(kernel);
    ports.turn(|_, _| ());
    assert_eq!(counters.each_ref().map(|c| (c.rx.get(), c.tx.get())), [(3, 0), (0, 3)]);
    assert_whole(&ports);
}

#[test]
fn what_the_metadata_say_goes_along() {
    let (mut ports, [uplink, downlink], _) = two_ports_for(Some(LARGE));
    deliver(&uplink, &frame(LARGE));
    ports.turn(|frames, verdicts| {
        frames[0].checksum = Checksum::Partial { start: 34, offset: 6 };
        verdicts.fill(Verdict::Tx(DOWNLINK));
        downlink.borrow_mut().up = false;
    });
    let descriptor = downlink.borrow_mut().tx.pop().unwrap();
    let metadata = descriptor.addr as usize - PIECE_OFFSET;
    // SAFETY: in front of a chunk's frame, in the UMEM, and nobody's but the kernel's.
    let flags = unsafe { downlink.borrow().umem.add(metadata).cast::<[u16; 6]>().read_unaligned() };
    assert_eq!(flags, [2, 0, 0, 0, 34, 6]);
}

#[test]
fn what_is_too_large_or_torn_is_lost_by_name_and_what_follows_is_not() {
    let (mut ports, [uplink, _], counters) = two_ports_for(Some(LARGE));
    deliver(&uplink, &frame(LARGE + 1));
    deliver(&uplink, &frame(100));
    {
        let mut kernel = uplink.borrow_mut();
        let addr = kernel.fill.pop().unwrap();
        for (addr, options) in [(1 << 40, CONTD), (addr, CONTD), (1 << 41, 0)] {
            assert!(kernel.rx.push(libc::xdp_desc { addr, len: 60, options }));
        }
        let addr = kernel.fill.pop().unwrap();
        for (addr, options) in [(addr, CONTD), (1 << 41, 0)] {
            assert!(kernel.rx.push(libc::xdp_desc { addr, len: 60, options }));
        }
        kernel.fill.release();
        kernel.rx.publish();
    }
    deliver(&uplink, &frame(101));
    let turn = ports.turn(|frames, _| {
        let lens: Vec<_> = frames.iter().map(Frame::len).collect();
        assert_eq!(lens, [100, 101]);
    });
    // The one whose first descriptor makes no sense was never a frame.
    assert_eq!((turn.frames, &turn.lost[..]), (4, &[DropReason::FrameTooLarge; 2][..]));
    assert_eq!((counters[0].rx.get(), counters[0].bad_descriptors.get()), (4, 3));
    let addr = uplink.borrow_mut().fill.pop().unwrap();
    assert!(uplink.borrow_mut().rx.push(libc::xdp_desc { addr, len: 60, options: CONTD }));
    uplink.borrow_mut().rx.publish();
    assert_eq!(send_all(&mut ports).lost[..], [DropReason::FrameTooLarge], "it goes on in nothing");
    assert_whole(&ports);
}

#[test]
fn where_all_frames_fit_a_chunk_others_are_lost_by_name() {
    let (mut ports, [uplink, downlink], _) = two_ports();
    deliver(&uplink, &frame(RECEIVED + 1));
    deliver(&uplink, &frame(RECEIVED));
    let turn = send_all(&mut ports);
    assert_eq!((turn.frames, &turn.lost[..]), (2, &[DropReason::FrameTooLarge][..]));
    assert_eq!(downlink.borrow().bytes, [frame(RECEIVED)]);
    ports.turn(|_, _| ());
    assert_whole(&ports);
}

#[test]
fn frames_of_other_workers_may_be_large() {
    let (mut ports, [uplink, downlink], _) = two_ports_for(Some(LARGE));
    let mut lens = [LARGE, 60, 3000].into_iter();
    let injected = ports.inject(|room| {
        let len = lens.next()?;
        room[..len].copy_from_slice(&frame(len));
        Some(Arrival::handed_over(len, UPLINK, Checksum::Complete))
    });
    assert_eq!(injected, 3);
    deliver(&uplink, &frame(LARGE - 1));
    let turn = ports.turn(|frames, verdicts| {
        for (seen, (len, handed_over)) in
            frames.iter().zip([(LARGE, true), (60, true), (3000, true), (LARGE - 1, false)])
        {
            assert_eq!((seen.bytes(), seen.handed_over), (&frame(len)[..], handed_over));
        }
        verdicts.fill(Verdict::Tx(DOWNLINK));
    });
    assert_eq!(turn, Turn { frames: 4, ..Turn::default() });
    assert_eq!(downlink.borrow().bytes.concat(), [LARGE, 60, 3000, LARGE - 1].map(frame).concat());
    ports.turn(|_, _| ());
    assert_whole(&ports);
}

#[test]
fn a_large_frame_is_cut_for_a_smaller_path() {
    let (mut ports, [uplink, downlink], _) = two_ports_for(Some(LARGE));
    for mtu in [1500, u16::MAX] {
        let mut bytes = frame(14 + 4820);
        bytes[14..34]
            .copy_from_slice(&[0x45, 0, 18, 212, 0, 1, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        deliver(&uplink, &bytes);
        downlink.borrow_mut().bytes.clear();
        let turn = ports.turn(|frames, verdicts| {
            frames[0].split = Some(Split { mtu, l3: 14 });
            verdicts.fill(Verdict::Tx(DOWNLINK));
        });
        assert_eq!(turn, Turn { frames: 1, ..Turn::default() });
        let pieces = &downlink.borrow().bytes;
        let data: Vec<_> = pieces.iter().flat_map(|piece| &piece[34..]).copied().collect();
        assert_eq!(data, bytes[34..], "{mtu}");
        assert_eq!(pieces.len(), if mtu == 1500 { 4 } else { 3 }, "a piece is no larger than a chunk");
    }
    ports.turn(|_, _| ());
    assert_whole(&ports);
}

#[test]
fn without_room_for_all_of_a_frame_nothing_of_it_is_sent() {
    let (mut ports, [uplink, downlink], _) = two_ports_for(Some(LARGE));
    downlink.borrow_mut().up = false;
    let mut lost = Vec::new();
    for _ in 0..44 {
        deliver(&uplink, &frame(LARGE));
        lost.extend(send_all(&mut ports).lost);
        assert_whole(&ports);
    }
    assert_eq!(lost, [DropReason::TxRingFull; 2], "of 128 entries 42 frames take 126");
    downlink.borrow_mut().up = true;
    ports.push_out();
    assert_eq!(downlink.borrow().bytes.concat(), frame(LARGE).repeat(42));
    ports.turn(|_, _| ());
    assert_whole(&ports);
}
