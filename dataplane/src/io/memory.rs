//! Frames in memory: the [`Io`] of tests.
//!
//! A [`Wire`] is the world at the other side: it puts frames in and takes out what was sent, from any thread.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

use arrayvec::ArrayVec;
use crossbeam_queue::ArrayQueue;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{Arrival, Io, LiveIo, Turn, UNDECIDED, egress};
use crate::frame::{BATCH, Checksum, Frame};
use crate::ids::PortId;
use crate::rewrite::split;
use crate::verdict::{DropReason, Verdict};

const HEADROOM: usize = 256;
const CHUNK: usize = 4096;

/// A frame outside of the I/O.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// The port that it came in by, or left by.
    pub port: PortId,
    /// From the Ethernet header on.
    pub bytes: Vec<u8>,
    /// What its sender left to the egress interface.
    pub checksum: Checksum,
}

/// The other side of a [`MemoryIo`].
#[derive(Debug)]
pub struct Wire {
    inward: ArrayQueue<Packet>,
    outward: ArrayQueue<Packet>,
}

impl Wire {
    /// Puts a frame in. Gives it back where the queue is full.
    pub fn put(&self, packet: Packet) -> Result<(), Packet> {
        self.inward.push(packet)
    }

    /// Sends all that a frame comes to, or nothing where there is no room for all.
    fn send(&self, frames: Vec<Vec<u8>>, port: PortId, checksum: Checksum) -> bool {
        let has_room = self.outward.capacity() - self.outward.len() >= frames.len();
        // Only this side puts frames in, so what there is room for stays there.
        has_room
            && frames.into_iter().all(|bytes| self.outward.push(Packet { port, bytes, checksum }).is_ok())
    }

    /// The next frame that was sent.
    pub fn take(&self) -> Option<Packet> {
        self.outward.pop()
    }
}

/// An I/O over queues of so many frames in memory.
#[derive(Debug)]
pub struct MemoryIo {
    wire: Arc<Wire>,
    chunks: Box<[u8]>,
    injected: ArrayVec<Arrival, BATCH>,
    ports: u8,
}

impl MemoryIo {
    /// An I/O of so many ports, and its other side. Each direction holds `depth` frames (at least 1).
    pub fn new(ports: u8, depth: usize) -> (Self, Arc<Wire>) {
        let depth = depth.max(1);
        let wire = Arc::new(Wire { inward: ArrayQueue::new(depth), outward: ArrayQueue::new(depth) });
        let chunks = vec![0; BATCH * CHUNK].into_boxed_slice();
        (Self { wire: Arc::clone(&wire), chunks, injected: ArrayVec::new(), ports }, wire)
    }
}

impl Io for MemoryIo {
    fn turn(&mut self, work: impl FnOnce(&mut [Frame<'_>], &mut [Verdict])) -> Turn {
        let mut frames: ArrayVec<Frame<'_>, BATCH> = ArrayVec::new();
        let mut injected = self.injected.drain(..);
        for chunk in self.chunks.chunks_exact_mut(CHUNK) {
            let Some(arrival) = injected.next().or_else(|| take(&self.wire, chunk)) else { break };
            frames.extend(arrival.frame(chunk, HEADROOM));
        }
        let mut turn = Turn { frames: frames.len(), ..Turn::default() };
        if frames.is_empty() {
            return turn;
        }
        let mut verdicts = [UNDECIDED; BATCH];
        let verdicts = verdicts.get_mut(..frames.len()).unwrap_or_default();
        work(&mut frames, verdicts);
        for (frame, verdict) in frames.iter().zip(verdicts) {
            let Some(port) = egress(*verdict, frame) else { continue };
            let checksum = frame.checksum;
            if port.0 >= self.ports {
                turn.lost.push(DropReason::NoPort);
            } else if !self.wire.send(split::departing(frame), port, checksum) {
                turn.lost.push(DropReason::TxRingFull);
            }
        }
        turn
    }
}

/// Copies the next frame of the wire into `chunk`. One that does not fit is lost, as on a wire.
fn take(wire: &Wire, chunk: &mut [u8]) -> Option<Arrival> {
    loop {
        let Packet { port, bytes, checksum } = wire.inward.pop()?;
        if let Some(room) = chunk.get_mut(HEADROOM..).and_then(|room| room.get_mut(..bytes.len())) {
            room.copy_from_slice(&bytes);
            return Some(Arrival { handed_over: false, ..Arrival::handed_over(bytes.len(), port, checksum) });
        }
    }
}

impl LiveIo for MemoryIo {
    fn inject(&mut self, mut fill: impl FnMut(&mut [u8]) -> Option<Arrival>) -> usize {
        let before = self.injected.len();
        let free = self.chunks.chunks_exact_mut(CHUNK).take(BATCH / 2).skip(before);
        for room in free.filter_map(|chunk| chunk.get_mut(HEADROOM..)) {
            let Some(arrival) = fill(room) else { break };
            self.injected.push(arrival);
        }
        self.injected.len() - before
    }

    fn wait(&mut self, bell: BorrowedFd<'_>, timeout: Duration) -> bool {
        let timeout = PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX);
        let timeout = if self.wire.inward.is_empty() { timeout } else { PollTimeout::ZERO };
        // A frame on the wire wakes nobody; the timeout, or the bell, does.
        poll(&mut [PollFd::new(bell, PollFlags::POLLIN)], timeout).is_ok_and(|ready| ready > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(first: u8, len: usize) -> Packet {
        let mut bytes = vec![0; len];
        bytes[0] = first;
        Packet { port: PortId(0), bytes, checksum: Checksum::Complete }
    }

    #[test]
    fn verdicts_are_carried_out() {
        let (mut io, wire) = MemoryIo::new(2, 8);
        for first in 0..5 {
            wire.put(packet(first, 60)).unwrap();
        }
        let turn = io.turn(|frames, verdicts| {
            assert!(frames.iter().all(|frame| frame.headroom() >= crate::frame::MIN_HEADROOM));
            verdicts[0] = Verdict::Tx(PortId(1));
            verdicts[1] = Verdict::Reply(None);
            verdicts[2] = Verdict::Tx(PortId(2));
            verdicts[3] = Verdict::Kernel;
        });
        assert_eq!((turn.frames, &turn.lost[..]), (5, &[DropReason::NoPort][..]));
        let sent: Vec<_> = std::iter::from_fn(|| wire.take()).map(|p| (p.bytes[0], p.port)).collect();
        assert_eq!(sent, [(0, PortId(1)), (1, PortId(0))]);
    }

    #[test]
    fn injected_frames_come_first_and_are_marked() {
        let (mut io, wire) = MemoryIo::new(1, 128);
        for _ in 0..BATCH {
            wire.put(packet(1, 60)).unwrap();
        }
        let mut left = 100;
        let taken = io.inject(|room| {
            left -= 1;
            room[0] = 2;
            Some(Arrival::handed_over(60, PortId(0), Checksum::Complete))
        });
        assert_eq!((taken, left), (BATCH / 2, 100 - BATCH / 2));
        io.turn(|frames, _| {
            assert_eq!(frames.len(), BATCH);
            for (position, frame) in frames.iter().enumerate() {
                assert_eq!(
                    (frame.bytes()[0], frame.handed_over),
                    if position < BATCH / 2 { (2, true) } else { (1, false) }
                );
            }
        });
    }

    #[test]
    fn a_full_wire_loses_with_a_reason() {
        let (mut io, wire) = MemoryIo::new(1, 2);
        let mut sent = 0;
        for _ in 0..2 {
            while wire.put(packet(0, 60)).is_ok() {}
            let turn = io.turn(|_, verdicts| verdicts.fill(Verdict::Tx(PortId(0))));
            sent += turn.frames - turn.lost.len();
        }
        assert_eq!(sent, 2);
        assert!(io.turn(|_, _| panic!("not called for no frames")).lost.is_empty());
    }
}
