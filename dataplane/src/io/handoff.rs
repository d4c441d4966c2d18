//! Frames that one worker received and another owns.
//!
//! Between every two workers, each way, a fixed number of buffers circulates: full ones on one ring, empty ones back
//! on another, both with one writer and one reader. The sender copies a frame's bytes into a buffer, the owner copies
//! them into a chunk of its own UMEM; nothing is allocated after the start. The buffer that came back last is used
//! first, so that of a deep ring only what is in use occupies the caches. A worker that sleeps is woken by its [`Bell`].

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};

use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::frame::{Checksum, Frame};
use crate::ids::{PortId, WorkerId};
use crate::io::Arrival;
use crate::verdict::DropReason;

/// Wakes a worker that sleeps; costs no system call while it does not.
#[derive(Debug)]
pub struct Bell {
    asleep: AtomicBool,
    event: EventFd,
}

impl Bell {
    /// A bell that has not rung.
    pub fn new() -> io::Result<Self> {
        let event = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
        Ok(Self { asleep: AtomicBool::new(false), event })
    }

    /// Wakes the worker if it sleeps. What it is to find was written before.
    #[inline]
    pub fn ring(&self) {
        // Either this sees the worker asleep, or the worker, which looks again after `lie_down`, sees what was written.
        fence(Ordering::SeqCst);
        if self.asleep.load(Ordering::Relaxed) && self.asleep.swap(false, Ordering::Relaxed) {
            // It fails only when the counter is at its limit, and then the bell has rung often enough.
            let _ = self.event.write(1);
        }
    }

    /// The worker is about to sleep. It must look for work once more before it does.
    pub fn lie_down(&self) {
        self.asleep.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// The worker is awake. `readable`: the descriptor is, and is silenced. One that a bell makes readable only now, since
    /// it was rung at the last moment, wakes the worker once more.
    pub fn get_up(&self, readable: bool) {
        self.asleep.store(false, Ordering::Relaxed);
        if readable {
            // It does not block.
            let _ = self.event.read();
        }
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

/// A frame on its way between two workers.
#[derive(Debug)]
struct Parcel {
    bytes: Box<[u8]>,
    len: usize,
    port: PortId,
    checksum: Checksum,
}

/// To one other worker.
#[derive(Debug)]
struct Outbox {
    full: rtrb::Producer<Parcel>,
    empty: rtrb::Consumer<Parcel>,
    /// Those that came back, the latest last.
    spare: Vec<Parcel>,
    /// Bytes that a parcel holds.
    frame_len: usize,
    bell: Arc<Bell>,
    /// Whether something was sent since the bell was rung.
    unannounced: bool,
}

/// From one other worker.
#[derive(Debug)]
struct Inbox {
    full: rtrb::Consumer<Parcel>,
    empty: rtrb::Producer<Parcel>,
}

/// One worker's end of all handoffs.
#[derive(Debug)]
pub struct Exchange {
    /// By worker; none to itself.
    outboxes: Vec<Option<Outbox>>,
    inboxes: Vec<Inbox>,
    /// The inbox that is emptied next.
    next: usize,
    /// Bytes that a frame may have.
    frame_len: usize,
    bell: Arc<Bell>,
}

/// Frames that may be on their way to a worker from all others: a TCP connection's window (Linux allows 6 MiB) comes
/// without pause where its segments arrive on another queue than its worker's.
const DEPTH: usize = 4096;
/// Of these from each other worker at least.
const LEAST_DEPTH: usize = 512;

/// How many frames may be on their way between two of so many workers, each way.
pub fn depth(workers: usize) -> usize {
    (DEPTH / workers.saturating_sub(1).max(1)).max(LEAST_DEPTH)
}

/// An end for each of `workers` workers. Between every two of them, each way, `depth` frames of at most `frame_len`
/// bytes can be on their way.
pub fn mesh(workers: u8, depth: usize, frame_len: usize) -> io::Result<Vec<Exchange>> {
    let bells = (0..workers).map(|_| Bell::new().map(Arc::new)).collect::<io::Result<Vec<_>>>()?;
    let new = |bell: &Arc<Bell>| Exchange {
        outboxes: Vec::new(),
        inboxes: Vec::new(),
        next: 0,
        frame_len,
        bell: Arc::clone(bell),
    };
    let mut exchanges: Vec<_> = bells.iter().map(new).collect();
    for from in 0..exchanges.len() {
        for (to, bell) in bells.iter().enumerate() {
            let ends = (from != to).then(|| lane(depth, frame_len, Arc::clone(bell)));
            let (outbox, inbox) = ends.unzip();
            if let Some(exchange) = exchanges.get_mut(from) {
                exchange.outboxes.push(outbox);
            }
            if let Some(exchange) = exchanges.get_mut(to) {
                exchange.inboxes.extend(inbox);
            }
        }
    }
    Ok(exchanges)
}

fn lane(depth: usize, frame_len: usize, bell: Arc<Bell>) -> (Outbox, Inbox) {
    let (full, taken) = rtrb::RingBuffer::new(depth);
    let (back, empty) = rtrb::RingBuffer::new(depth);
    let parcel = |_| {
        let bytes = vec![0; frame_len].into_boxed_slice();
        Parcel { bytes, len: 0, port: PortId::default(), checksum: Checksum::Complete }
    };
    let spare = (0..depth).map(parcel).collect();
    (Outbox { full, empty, spare, frame_len, bell, unannounced: false }, Inbox { full: taken, empty: back })
}

impl Exchange {
    /// Copies `frame` into a buffer on its way to `worker`. [`Self::announce`] has to follow.
    #[inline]
    pub fn send(&mut self, worker: WorkerId, frame: &Frame<'_>) -> Result<(), DropReason> {
        let outbox = self.outboxes.get_mut(worker.index()).and_then(Option::as_mut);
        let outbox = outbox.ok_or(DropReason::HandoffFull)?;
        let bytes = frame.bytes();
        if bytes.len() > outbox.frame_len {
            return Err(DropReason::HandoffTooLarge);
        }
        let parcel = outbox.spare.pop().or_else(|| outbox.empty.pop().ok());
        let mut parcel = parcel.ok_or(DropReason::HandoffFull)?;
        if let Some(room) = parcel.bytes.get_mut(..bytes.len()) {
            room.copy_from_slice(bytes);
        }
        parcel.len = bytes.len();
        parcel.port = frame.port;
        parcel.checksum = frame.checksum;
        // As many parcels circulate as the ring has room for.
        let _ = outbox.full.push(parcel);
        outbox.unannounced = true;
        Ok(())
    }

    /// Wakes the workers that were sent something and sleep, and takes back the buffers that they have emptied.
    #[inline]
    pub fn announce(&mut self) {
        for outbox in self.outboxes.iter_mut().flatten().filter(|outbox| outbox.unannounced) {
            outbox.unannounced = false;
            outbox.bell.ring();
            // No more than circulate, which is what there is room for.
            if let Ok(emptied) = outbox.empty.read_chunk(outbox.empty.slots()) {
                outbox.spare.extend(emptied);
            }
        }
    }

    /// Copies the next frame that another worker sent to the start of `room`; `None` where there is none. One that is
    /// larger than `room` ends there: `too_large` is called.
    #[inline]
    pub fn receive(&mut self, room: &mut [u8], mut too_large: impl FnMut()) -> Option<Arrival> {
        for _ in 0..self.inboxes.len() {
            self.next = if self.next + 1 < self.inboxes.len() { self.next + 1 } else { 0 };
            let inbox = self.inboxes.get_mut(self.next)?;
            while let Ok(parcel) = inbox.full.pop() {
                let arrival = Arrival::handed_over(parcel.len, parcel.port, parcel.checksum);
                let fits = match (room.get_mut(..parcel.len), parcel.bytes.get(..parcel.len)) {
                    (Some(room), Some(bytes)) => {
                        room.copy_from_slice(bytes);
                        true
                    }
                    _ => false,
                };
                // As many parcels circulate as the ring has room for.
                let _ = inbox.empty.push(parcel);
                if fits {
                    return Some(arrival);
                }
                too_large();
            }
        }
        None
    }

    /// Whether another worker sent something.
    pub fn has_mail(&self) -> bool {
        self.inboxes.iter().any(|inbox| !inbox.full.is_empty())
    }

    /// Bytes that a frame may have at most.
    pub fn frame_len(&self) -> usize {
        self.frame_len
    }

    /// How many workers there are.
    pub fn workers(&self) -> usize {
        self.outboxes.len()
    }

    /// What wakes this worker.
    pub fn bell(&self) -> &Arc<Bell> {
        &self.bell
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(chunk: &mut [u8]) -> Frame<'_> {
        let len = chunk.len();
        Frame::new(chunk, 0, len, PortId(1)).unwrap()
    }

    #[test]
    fn a_frame_arrives_whole_with_its_port_and_checksum() {
        let [mut a, mut b, mut c] = <[_; 3]>::try_from(mesh(3, 4, 100).unwrap()).unwrap();
        let mut bytes = [7; 60];
        let mut sent = frame(&mut bytes);
        sent.checksum = Checksum::Partial { start: 34, offset: 16 };
        a.send(WorkerId(2), &sent).unwrap();
        assert!(c.has_mail() && !b.has_mail());
        let mut room = [0; 100];
        assert_eq!(b.receive(&mut room, || panic!()), None);
        let arrival = c.receive(&mut room, || panic!()).unwrap();
        let checksum = Checksum::Partial { start: 34, offset: 16 };
        assert_eq!(arrival, Arrival::handed_over(60, PortId(1), checksum));
        assert_eq!((&room[..60], &room[60..]), (&[7; 60][..], &[0; 40][..]));
    }

    #[test]
    fn a_full_ring_refuses_and_takes_again_after_a_receive() {
        let [mut a, mut b] = <[_; 2]>::try_from(mesh(2, 2, 100).unwrap()).unwrap();
        let mut bytes = [7; 60];
        let sent = frame(&mut bytes);
        for want in [Ok(()), Ok(()), Err(DropReason::HandoffFull)] {
            assert_eq!(a.send(WorkerId(1), &sent), want);
        }
        assert!(b.receive(&mut [0; 100], || panic!()).is_some());
        assert_eq!(a.send(WorkerId(1), &sent), Ok(()));
    }

    #[test]
    fn the_buffer_that_came_back_last_is_used_first() {
        let [mut a, mut b] = <[_; 2]>::try_from(mesh(2, 8, 100).unwrap()).unwrap();
        let mut bytes = [7; 60];
        let sent = frame(&mut bytes);
        let mut used = std::collections::HashSet::new();
        let mut pass = |count| {
            for _ in 0..count {
                a.send(WorkerId(1), &sent).unwrap();
            }
            let waiting = b.inboxes[0].full.read_chunk(count).unwrap();
            used.extend(waiting.as_slices().0.iter().chain(waiting.as_slices().1).map(|p| p.bytes.as_ptr()));
            while b.receive(&mut [0; 100], || panic!()).is_some() {}
            a.announce();
            used.len()
        };
        assert_eq!([1, 2, 2, 1, 2, 1, 2].map(&mut pass), [1, 2, 2, 2, 2, 2, 2]);
        assert_eq!(pass(8), 8);
    }

    #[test]
    fn what_does_not_fit_is_refused_with_its_reason() {
        let [mut a, mut b] = <[_; 2]>::try_from(mesh(2, 2, 100).unwrap()).unwrap();
        let (mut large, mut small) = ([7; 101], [7; 60]);
        for _ in 0..5 {
            assert_eq!(a.send(WorkerId(1), &frame(&mut large)), Err(DropReason::HandoffTooLarge));
        }
        for _ in 0..2 {
            a.send(WorkerId(1), &frame(&mut small)).unwrap();
        }
        let mut dropped = 0;
        assert_eq!(b.receive(&mut [0; 59], || dropped += 1), None);
        assert_eq!(dropped, 2);
        for worker in [WorkerId(0), WorkerId(2), WorkerId(255)] {
            assert_eq!(
                a.send(worker, &frame(&mut small)),
                Err(DropReason::HandoffFull),
                "{worker:?} is no other worker"
            );
        }
    }

    #[test]
    fn every_sender_has_its_turn() {
        let [mut a, mut b, mut c] = <[_; 3]>::try_from(mesh(3, 8, 100).unwrap()).unwrap();
        for _ in 0..8 {
            a.send(WorkerId(2), &frame(&mut [1; 60])).unwrap();
            b.send(WorkerId(2), &frame(&mut [2; 60])).unwrap();
        }
        let mut room = [0; 100];
        let mut first_of = |_| {
            c.receive(&mut room, || panic!()).unwrap();
            room[0]
        };
        let order: Vec<_> = (0..16).map(&mut first_of).collect();
        assert!(order.chunks(2).all(|pair| pair[0] != pair[1]), "{order:?}");
    }

    #[test]
    fn two_threads_lose_and_repeat_nothing_and_no_wakeup_is_missed() {
        let total: u32 = if cfg!(miri) { 50 } else { 100_000 };
        let [mut a, mut b] = <[_; 2]>::try_from(mesh(2, 16, 64).unwrap()).unwrap();
        let sender = std::thread::spawn(move || {
            for number in 0..total {
                let mut bytes = number.to_be_bytes();
                while a.send(WorkerId(1), &frame(&mut bytes)).is_err() {
                    std::thread::yield_now();
                }
                a.announce();
            }
        });
        let (mut expected, mut room) = (0, [0; 64]);
        while expected < total {
            while let Some(arrival) = b.receive(&mut room, || panic!()) {
                assert_eq!(room[..arrival.len], expected.to_be_bytes());
                expected += 1;
            }
            b.bell().lie_down();
            let sleeps = !b.has_mail() && expected < total;
            if sleeps {
                let mut fds = [nix::poll::PollFd::new(b.bell().as_fd(), nix::poll::PollFlags::POLLIN)];
                let rang = nix::poll::poll(&mut fds, 5000u16).unwrap();
                assert_eq!(rang, 1, "asleep with mail after {expected}");
            }
            b.bell().get_up(sleeps);
        }
        sender.join().unwrap();
    }

    #[test]
    fn the_bell_of_a_worker_that_is_awake_costs_no_event() {
        let bell = Bell::new().unwrap();
        bell.ring();
        assert!(bell.event.read().is_err(), "awake: no event");
        bell.lie_down();
        bell.ring();
        bell.ring();
        assert_eq!(bell.event.read().unwrap(), 1, "asleep: one event");
    }

    #[test]
    fn a_bell_that_rings_while_the_worker_gets_up_is_silenced_after_the_next_sleep() {
        let bell = Bell::new().unwrap();
        bell.lie_down();
        bell.ring();
        bell.get_up(false);
        bell.lie_down();
        bell.get_up(true);
        assert!(bell.event.read().is_err(), "silent");
    }
}
