//! Where frames come from and go to. The engine knows none of it.

use crate::frame::Frame;
use crate::verdict::Verdict;

/// A source and sink of frames: AF_XDP, memory or pcap.
pub trait Io {
    /// Receives at most [`crate::frame::BATCH`] frames, lets `work` decide on each, and carries every verdict out.
    /// Both slices have the same length; `work` fills `verdicts` in. Every frame is given a verdict, so none leaks.
    /// Returns how many frames there were; `work` is not called for none.
    fn turn(&mut self, work: impl FnOnce(&mut [Frame<'_>], &mut [Verdict])) -> usize;
}
