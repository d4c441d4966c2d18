//! Where frames come from and go to. The engine knows none of it.
//!
//! An [`Io`] hands out a batch of frames and takes a verdict for each back, so no frame can leak. AF_XDP ([`xsk`]) and
//! memory ([`memory`]) share the trait; captures ([`pcap`]) are files of frames. What crosses from one worker to another
//! goes by [`handoff`].

pub mod handoff;
pub mod huge;
pub mod memory;
pub mod pcap;
pub mod xsk;

use std::os::fd::BorrowedFd;
use std::time::Duration;

use arrayvec::ArrayVec;

use crate::frame::{BATCH, Checksum, Frame};
use crate::ids::PortId;
use crate::stats::Counter;
use crate::verdict::{DropReason, Verdict};

/// A source and sink of frames.
pub trait Io {
    /// Receives at most [`BATCH`] frames, lets `work` decide on each, and carries the verdicts out. Both slices have
    /// the same length; `work` fills `verdicts` in and is not called for no frames.
    ///
    /// [`Verdict::Tx`] and [`Verdict::Reply`] send the frame, all pieces of it or none. Every other verdict ends it here: what
    /// [`Verdict::Handoff`], [`Verdict::Kernel`], [`Verdict::Unresolved`] and [`Verdict::Early`] ask for, `work` has done
    /// before it returns.
    fn turn(&mut self, work: impl FnOnce(&mut [Frame<'_>], &mut [Verdict])) -> Turn;
}

/// An [`Io`] under a worker: it takes frames from other workers in, and can be waited for.
pub trait LiveIo: Io {
    /// Lets `fill` write frames into free chunks. They are the first frames of the next turn, in this order. Asks again and again until `fill` has no more, or there is no chunk, or half a
    /// batch waits. Returns how many frames were taken in.
    fn inject(&mut self, fill: impl FnMut(&mut [u8]) -> Option<Arrival>) -> usize;

    /// Sleeps until a frame arrives, `bell` becomes readable or `timeout` is over, and not longer. It may end early.
    /// Returns whether `bell` is readable.
    fn wait(&mut self, bell: BorrowedFd<'_>, timeout: Duration) -> bool;
}

/// A frame that was written into a chunk by [`LiveIo::inject`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// Bytes written, from the start of the slice on.
    pub len: usize,
    /// The port that the frame came in by.
    pub port: PortId,
    /// What its sender left to the egress interface.
    pub checksum: Checksum,
    /// See [`Frame::handed_over`].
    pub handed_over: bool,
    /// See [`Frame::overdue`].
    pub overdue: bool,
}

impl Arrival {
    /// Of a frame from another worker.
    pub fn handed_over(len: usize, port: PortId, checksum: Checksum) -> Self {
        Self { len, port, checksum, handed_over: true, overdue: false }
    }

    /// The frame that starts at `start` in `chunk`; `None` where it does not lie inside.
    #[inline]
    pub fn frame<'a>(&self, chunk: &'a mut [u8], start: usize) -> Option<Frame<'a>> {
        let mut frame = Frame::new(chunk, start, self.len, self.port)?;
        (frame.checksum, frame.handed_over, frame.overdue) = (self.checksum, self.handed_over, self.overdue);
        Some(frame)
    }
}

/// What a turn came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Turn {
    /// Frames in the batch.
    pub frames: usize,
    /// Why frames that should have been sent were not, one entry a frame.
    pub lost: ArrayVec<DropReason, BATCH>,
}

/// What an I/O counts on one port.
#[derive(Debug, Default)]
pub struct PortCounters {
    /// Frames received.
    pub rx: Counter,
    /// Frames sent.
    pub tx: Counter,
    /// Wakeups of the kernel that failed; frames to be sent wait for the next one.
    pub failed_wakeups: Counter,
    /// Ring entries that named memory which the kernel did not have.
    pub bad_descriptors: Counter,
}

/// The port that a frame leaves by; `None` where it ends here.
#[inline]
fn egress(verdict: Verdict, frame: &Frame<'_>) -> Option<PortId> {
    match verdict {
        Verdict::Tx(port) => Some(port),
        Verdict::Reply(_) => Some(frame.port),
        Verdict::Handoff(_)
        | Verdict::Kernel
        | Verdict::Unresolved
        | Verdict::Early
        | Verdict::Unanswered
        | Verdict::Drop(_) => None,
    }
}

/// What verdicts are before the engine has given any.
const UNDECIDED: Verdict = Verdict::Drop(DropReason::Unsupported);
