//! The worker's side of the rings against a kernel that the test plays.
#![expect(unsafe_code, reason = "the kernel's side writes into the frame memory")]

#[path = "ports_large_test.rs"]
mod large;

use std::cell::RefCell;
use std::io;
use std::ptr::NonNull;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use super::*;
use crate::io::PortCounters;
use crate::io::xsk::port::Rings;
use crate::io::xsk::ring::tests::{LAYOUT, memory};
use crate::io::xsk::ring::{Consumer, Producer};
use crate::io::xsk::sys::Mapping;

const RING: u32 = 128;
const CHUNK: u32 = 2048;
const UPLINK: PortId = PortId(0);
const DOWNLINK: PortId = PortId(1);

/// The kernel's end of one socket.
struct Kernel {
    rx: Producer<libc::xdp_desc>,
    tx: Consumer<libc::xdp_desc>,
    fill: Consumer<u64>,
    completion: Producer<u64>,
    umem: NonNull<u8>,
    tx_flags: Arc<Mapping>,
    /// Whether the interface takes frames.
    up: bool,
    /// Whether it does nothing but while it is called for receiving.
    polled: bool,
    /// Frames that come with such calls.
    arriving: Vec<u8>,
    wakeups: usize,
    polls: usize,
    /// First byte and options of every chunk sent.
    sent: Vec<(u8, u32)>,
    /// The chunks sent, whole.
    bytes: Vec<Vec<u8>>,
}

// SAFETY: the memory behind `umem` outlives every test's kernel and is written by the side that a chunk is lent to.
unsafe impl Send for Kernel {}

impl Kernel {
    /// Receives a frame; false where there is no chunk for it.
    fn deliver(&mut self, first: u8) -> bool {
        let Some(addr) = self.fill.pop() else { return false };
        self.fill.release();
        let addr = addr + HEADROOM as u64;
        // SAFETY: the chunk came from the fill ring, so it lies in the UMEM and is the kernel's.
        unsafe { self.umem.add(addr as usize).write(first) };
        assert!(self.rx.push(libc::xdp_desc { addr, len: 60, options: 0 }), "as many chunks as RX entries");
        self.rx.publish();
        true
    }

    /// Receives a frame in several chunks.
    fn deliver_parts(&mut self, parts: &[&[u8]]) {
        for (number, part) in parts.iter().enumerate() {
            let addr = self.fill.pop().unwrap() + HEADROOM as u64;
            self.fill.release();
            // SAFETY: as in `deliver`; no part is larger than a chunk behind its headroom.
            unsafe {
                self.umem.add(addr as usize).copy_from_nonoverlapping(NonNull::from(*part).cast(), part.len())
            };
            let options = if number + 1 < parts.len() { libc::XDP_PKT_CONTD } else { 0 };
            assert!(self.rx.push(libc::xdp_desc { addr, len: part.len() as u32, options }));
        }
        self.rx.publish();
    }

    /// Sends at most `budget` frames; returns how many.
    fn transmit(&mut self, budget: usize) -> usize {
        let before = self.sent.len();
        for _ in 0..budget {
            let Some(descriptor) = self.tx.pop() else { break };
            // SAFETY: the chunk came from the TX ring, so it lies in the UMEM and is the kernel's.
            let bytes = unsafe {
                std::slice::from_raw_parts(
                    self.umem.add(descriptor.addr as usize).as_ptr(),
                    descriptor.len as usize,
                )
            };
            self.sent.push((bytes[0], descriptor.options));
            self.bytes.push(bytes.to_vec());
            assert!(self.completion.push(descriptor.addr), "as many completions as TX entries");
        }
        self.tx.release();
        self.completion.publish();
        self.sent.len() - before
    }

    fn ask_for_wakeups(&self) {
        // SAFETY: the flags lie at this offset, aligned.
        let flags = unsafe { self.tx_flags.start().add(LAYOUT.flags as usize).cast::<AtomicU32>().as_ref() };
        flags.store(libc::XDP_RING_NEED_WAKEUP, Ordering::Relaxed);
    }
}

/// Copy mode: every call sends 32 frames at most.
impl Wake for Rc<RefCell<Kernel>> {
    fn tx(&self) -> io::Result<()> {
        let mut kernel = self.borrow_mut();
        kernel.wakeups += 1;
        if !kernel.up {
            return Err(io::Error::from_raw_os_error(libc::ENETDOWN));
        }
        if kernel.transmit(32) < 32 { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::EAGAIN)) }
    }

    fn rx(&self) {
        let mut kernel = self.borrow_mut();
        kernel.polls += 1;
        let count = kernel.arriving.len().min(BATCH);
        for first in kernel.arriving.drain(..count).collect::<Vec<_>>() {
            assert!(kernel.deliver(first), "a chunk for each");
        }
        if kernel.up {
            kernel.transmit(BATCH);
        }
    }

    fn is_polled(&self) -> bool {
        self.borrow().polled
    }
}

/// A kernel in a thread of its own needs no wakeups.
struct Awake;

impl Wake for Awake {
    fn tx(&self) -> io::Result<()> {
        unreachable!("not asked for")
    }

    fn rx(&self) {
        unreachable!("not asked for")
    }

    fn is_polled(&self) -> bool {
        false
    }
}

fn socket(umem: &Umem) -> (Rings, Kernel) {
    let (rx, tx, fill, completion) = (memory(RING), memory(RING), memory(RING), memory(RING));
    let base = NonNull::new(std::ptr::with_exposed_provenance_mut(umem.extent().0 as usize)).unwrap();
    let kernel = Kernel {
        rx: Producer::new(Arc::clone(&rx), &LAYOUT, RING).unwrap(),
        tx: Consumer::new(Arc::clone(&tx), &LAYOUT, RING).unwrap(),
        fill: Consumer::new(Arc::clone(&fill), &LAYOUT, RING).unwrap(),
        completion: Producer::new(Arc::clone(&completion), &LAYOUT, RING).unwrap(),
        umem: base,
        tx_flags: Arc::clone(&tx),
        up: true,
        polled: false,
        arriving: Vec::new(),
        wakeups: 0,
        polls: 0,
        sent: Vec::new(),
        bytes: Vec::new(),
    };
    let rings = Rings {
        rx: Consumer::new(rx, &LAYOUT, RING).unwrap(),
        tx: Producer::new(tx, &LAYOUT, RING).unwrap(),
        fill: Producer::new(fill, &LAYOUT, RING).unwrap(),
        completion: Consumer::new(completion, &LAYOUT, RING).unwrap(),
    };
    (rings, kernel)
}

type Shared = Rc<RefCell<Kernel>>;

/// Two ports, whose kernel sends when it is woken, for frames that fit a chunk.
fn two_ports() -> (Ports<Shared>, [Shared; 2], [Arc<PortCounters>; 2]) {
    two_ports_for(None)
}

/// The same, for frames of so many bytes.
fn two_ports_for(large: Option<usize>) -> (Ports<Shared>, [Shared; 2], [Arc<PortCounters>; 2]) {
    let chunks = 2 * 2 * RING as usize + BATCH;
    let umem = Umem::over(Mapping::anonymous(chunks * CHUNK as usize).unwrap(), CHUNK);
    let counters: [Arc<PortCounters>; 2] = Default::default();
    let sockets = [socket(&umem), socket(&umem)];
    let mut kernels = Vec::new();
    let mut ports = Vec::new();
    for ((rings, kernel), counters) in sockets.into_iter().zip(&counters) {
        kernel.ask_for_wakeups();
        let kernel = Rc::new(RefCell::new(kernel));
        ports.push(Port::new(rings, Rc::clone(&kernel), 0, true, Arc::clone(counters)));
        kernels.push(kernel);
    }
    (Ports::new(umem, ports, large), kernels.try_into().ok().unwrap(), counters)
}

fn assert_whole(ports: &Ports<impl Wake>) {
    assert!(ports.umem.is_balanced());
    let lent: usize = ports.iter().map(Port::lent).sum();
    assert_eq!((ports.umem.balance().held, ports.umem.balance().lent), (0, lent));
}

#[test]
fn verdicts_are_carried_out_and_every_chunk_comes_back() {
    let (mut ports, [uplink, downlink], counters) = two_ports();
    for first in 0..6 {
        assert!(uplink.borrow_mut().deliver(first));
    }
    let turn = ports.turn(|frames, verdicts| {
        assert!(frames.iter().all(|f| f.port == UPLINK && f.headroom() == HEADROOM && f.len() == 60));
        assert!(frames.iter().all(|f| f.headroom() >= crate::frame::MIN_HEADROOM && !f.handed_over));
        verdicts.copy_from_slice(&[
            Verdict::Tx(DOWNLINK),
            Verdict::Reply(None),
            Verdict::Drop(DropReason::Land),
            Verdict::Kernel,
            Verdict::Tx(PortId(2)),
            Verdict::Tx(DOWNLINK),
        ]);
        frames[5].bytes_mut()[0] = 50;
    });
    assert_eq!((turn.frames, &turn.lost[..]), (6, &[DropReason::NoPort][..]));
    assert_eq!(downlink.borrow().sent, [(0, 0), (50, 0)]);
    assert_eq!(uplink.borrow().sent, [(1, 0)]);
    assert_eq!(ports.turn(|_, _| panic!("not called for no frames")), Turn::default());
    assert_whole(&ports);
    let counts = counters.each_ref().map(|c| (c.rx.get(), c.tx.get(), c.bad_descriptors.get()));
    assert_eq!(counts, [(6, 1, 0), (0, 2, 0)]);
}

/// Puts an IPv4 packet of 800 bytes into a frame, to be cut to 100.
fn to_be_cut(frame: &mut Frame<'_>) {
    assert!(frame.resize(14 + 800));
    let header = [0x45, 0, 3, 32, 0, 1, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
    frame.bytes_mut()[14..34].copy_from_slice(&header);
    frame.split = Some(Split { mtu: 100, l3: 14 });
}

#[test]
fn a_frame_is_sent_in_pieces_and_every_chunk_comes_back() {
    let (mut ports, [uplink, downlink], counters) = two_ports();
    for first in 0..2 {
        uplink.borrow_mut().deliver(first);
    }
    let turn = ports.turn(|frames, verdicts| {
        to_be_cut(&mut frames[0]);
        verdicts.fill(Verdict::Tx(DOWNLINK));
    });
    assert_eq!((turn.frames, turn.lost.len()), (2, 0));
    // 780 bytes of data, 80 in each piece: they leave in order, before the frame behind.
    assert_eq!(downlink.borrow().sent, [vec![(0, 0); 10], vec![(1, 0)]].concat());
    ports.turn(|_, _| ());
    assert_eq!(counters[1].tx.get(), 11);
    assert_whole(&ports);
}

#[test]
fn without_room_for_all_pieces_none_is_sent() {
    let (mut ports, [uplink, downlink], _) = two_ports();
    downlink.borrow_mut().up = false;
    let mut lost = Vec::new();
    for first in 0..14 {
        uplink.borrow_mut().deliver(first);
        let turn = ports.turn(|frames, verdicts| {
            to_be_cut(&mut frames[0]);
            verdicts.fill(Verdict::Tx(DOWNLINK));
        });
        lost.extend(turn.lost);
        assert_whole(&ports);
    }
    assert_eq!(lost, [DropReason::TxRingFull; 2], "of 128 entries 12 packets take 120");
    downlink.borrow_mut().up = true;
    ports.push_out();
    assert_eq!(downlink.borrow().sent.len(), 120);
    ports.turn(|_, _| ());
    assert_whole(&ports);
}

#[test]
fn copy_mode_is_woken_until_all_is_sent() {
    let (mut ports, [uplink, downlink], _) = two_ports();
    for first in 0..64 {
        uplink.borrow_mut().deliver(first);
    }
    ports.turn(|_, verdicts| verdicts.fill(Verdict::Tx(DOWNLINK)));
    assert_eq!(downlink.borrow().sent.len(), 64);
    assert_eq!(downlink.borrow().wakeups, 2);
    ports.turn(|_, _| ());
    assert_eq!(downlink.borrow().wakeups, 2, "nothing to send, no call");
    assert_whole(&ports);
}

#[test]
fn a_polled_queue_sends_and_receives_by_one_call_a_turn() {
    let (mut ports, [uplink, downlink], counters) = two_ports();
    for kernel in [&uplink, &downlink] {
        kernel.borrow_mut().polled = true;
    }
    let polls = || [&uplink, &downlink].map(|kernel| std::mem::take(&mut kernel.borrow_mut().polls));
    uplink.borrow_mut().arriving = (0..100).collect();
    assert_eq!(ports.turn(|_, _| panic!("nothing has come")), Turn::default());
    assert_eq!(polls(), [1, 1]);
    for count in [64, 36] {
        let turn = ports.turn(|_, verdicts| verdicts.fill(Verdict::Tx(DOWNLINK)));
        assert_eq!((turn.frames, polls()), (count, [1, 1]));
    }
    assert_eq!(downlink.borrow().sent.len(), 100);
    ports.turn(|_, _| ());
    assert_eq!((counters[0].rx.get(), counters[1].tx.get()), (100, 100));
    polls();

    // What waits from before is read first.
    for first in 0..65 {
        uplink.borrow_mut().deliver(first);
    }
    ports.turn(|_, _| ());
    assert_eq!(polls(), [0, 1]);
    ports.turn(|_, _| ());
    assert_eq!(polls(), [1, 1]);

    // What is not sent is tried again, and where the ring is full at once.
    downlink.borrow_mut().up = false;
    uplink.borrow_mut().arriving = vec![7; RING as usize + 1];
    ports.turn(|_, _| ());
    let lost: usize =
        (0..3).map(|_| ports.turn(|_, verdicts| verdicts.fill(Verdict::Tx(DOWNLINK))).lost.len()).sum();
    assert_eq!((lost, polls()), (1, [4, 5]));
    assert!(ports.push_out(), "frames wait");
    assert_eq!(downlink.borrow().wakeups, 0);
    assert_whole(&ports);
    // No longer polled: they go by a wakeup.
    downlink.borrow_mut().polled = false;
    downlink.borrow_mut().up = true;
    assert!(!ports.push_out());
    assert_eq!((downlink.borrow().sent.len(), downlink.borrow().wakeups > 0), (100 + RING as usize, true));
    assert_whole(&ports);
}

#[test]
fn an_interface_that_is_down_loses_frames_by_name_and_blocks_nobody() {
    let (mut ports, [uplink, downlink], counters) = two_ports();
    downlink.borrow_mut().up = false;
    let (mut delivered, mut lost) = (0, 0);
    for first in 0..250 {
        delivered += usize::from(uplink.borrow_mut().deliver(first));
        lost += ports.turn(|_, verdicts| verdicts.fill(Verdict::Tx(DOWNLINK))).lost.len();
    }
    assert_eq!((delivered, lost), (250, 250 - RING as usize));
    assert!(ports.push_out(), "frames wait");
    assert!(counters[1].failed_wakeups.get() > 0);
    assert_whole(&ports);
    downlink.borrow_mut().up = true;
    assert!(!ports.push_out());
    ports.turn(|_, _| ());
    assert_eq!(downlink.borrow().sent.len(), RING as usize);
    assert_whole(&ports);
}

#[test]
fn a_busy_port_does_not_keep_another_waiting() {
    let (mut ports, [uplink, downlink], _) = two_ports();
    let mut waited = 0;
    for _ in 0..20 {
        while uplink.borrow_mut().deliver(1) {}
        downlink.borrow_mut().deliver(2);
        let mut seen = false;
        ports.turn(|frames, _| seen = frames.iter().any(|frame| frame.port == DOWNLINK));
        waited = if seen { 0 } else { waited + 1 };
        assert!(waited < 2);
    }
}

#[test]
fn injected_frames_are_part_of_the_next_batch() {
    let (mut ports, [uplink, downlink], _) = two_ports();
    for first in 0..64 {
        uplink.borrow_mut().deliver(first);
    }
    let mut room_len = 0;
    let taken = ports.inject(|room| {
        room_len = room.len();
        room[..60].fill(200);
        Some(Arrival::handed_over(60, UPLINK, Checksum::Partial { start: 34, offset: 6 }))
    });
    assert_eq!((taken, room_len), (INJECTED, CHUNK as usize - HEADROOM));
    let turn = ports.turn(|frames, verdicts| {
        for (position, frame) in frames.iter().enumerate() {
            assert_eq!(frame.handed_over, position < INJECTED);
        }
        verdicts.fill(Verdict::Tx(DOWNLINK));
    });
    assert_eq!(turn, Turn { frames: BATCH, ..Turn::default() });
    assert_eq!(downlink.borrow().sent[..INJECTED], [(200, libc::XDP_TX_METADATA); INJECTED]);
    assert_eq!(ports.inject(|_| None), 0);
    assert_eq!(
        ports.inject(|room| Some(Arrival::handed_over(room.len() + 1, UPLINK, Checksum::Complete))),
        0
    );
    ports.turn(|_, _| ());
    assert_whole(&ports);
}

#[test]
fn addresses_that_the_kernel_was_not_lent_are_counted_and_not_used() {
    let (mut ports, [uplink, _], counters) = two_ports();
    let address = uplink.borrow_mut().fill.pop().unwrap();
    for addr in [address, address, u64::MAX, 1 << 40] {
        assert!(uplink.borrow_mut().rx.push(libc::xdp_desc {
            addr: addr.wrapping_add(256),
            len: 60,
            options: 0
        }));
    }
    uplink.borrow_mut().rx.publish();
    assert_eq!(ports.turn(|_, _| ()).frames, 1, "the same chunk twice, and two outside");
    assert_eq!(counters[0].bad_descriptors.get(), 3);
    let too_long =
        libc::xdp_desc { addr: uplink.borrow_mut().fill.pop().unwrap() + 256, len: CHUNK, options: 0 };
    assert!(uplink.borrow_mut().rx.push(too_long));
    uplink.borrow_mut().rx.publish();
    ports.turn(|frames, _| panic!("a frame that runs past its chunk: {frames:?}"));
    assert_eq!(counters[0].bad_descriptors.get(), 4);
    assert_whole(&ports);
}

#[test]
fn a_kernel_thread_and_a_worker_thread_lose_nothing() {
    let total: usize = if cfg!(miri) { 300 } else { 100_000 };
    let umem = Umem::over(Mapping::anonymous((2 * RING as usize + BATCH) * CHUNK as usize).unwrap(), CHUNK);
    let (rings, mut kernel) = socket(&umem);
    let done = Arc::new(AtomicBool::new(false));
    let mut ports = Ports::new(umem, vec![Port::new(rings, Awake, 0, false, Arc::default())], None);
    let nic = std::thread::spawn({
        let done = Arc::clone(&done);
        move || {
            let mut next = 0;
            while kernel.sent.len() < total {
                while next < total && next - kernel.sent.len() < 100 && kernel.deliver(next as u8) {
                    next += 1;
                }
                kernel.transmit(7);
                std::thread::yield_now();
            }
            done.store(true, Ordering::Release);
            kernel.sent
        }
    });
    while !done.load(Ordering::Acquire) {
        let turn = ports.turn(|frames, verdicts| {
            for frame in frames.iter_mut() {
                frame.bytes_mut()[0] ^= 0xff;
            }
            verdicts.fill(Verdict::Reply(None));
        });
        assert!(turn.lost.is_empty());
        if turn.frames == 0 {
            std::thread::yield_now();
        }
    }
    let sent = nic.join().unwrap();
    assert!(sent.iter().enumerate().all(|(number, (first, _))| *first == number as u8 ^ 0xff));
    ports.turn(|_, _| ());
    assert_whole(&ports);
}
