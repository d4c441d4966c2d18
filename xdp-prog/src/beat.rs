//! The workers' signs of life, in memory shared with the XDP program.

#![expect(unsafe_code, reason = "memory shared with the kernel")]

use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::{fmt, io};

use memmap2::{MmapOptions, MmapRaw};

use crate::abi::{BeatLine, MAX_QUEUES};

/// The mapped array `beats`.
pub(crate) struct BeatLines(MmapRaw);

impl BeatLines {
    /// Maps the array; it needs `BPF_F_MMAPABLE` and [`MAX_QUEUES`] elements.
    pub(crate) fn map(array: &impl AsFd) -> io::Result<Self> {
        let length = MAX_QUEUES as usize * size_of::<BeatLine>();
        MmapOptions::new().len(length).map_raw(array.as_fd().as_raw_fd()).map(Self)
    }

    /// The beat of a worker. Panics past [`MAX_QUEUES`]; [`Beat`]s are made below it only.
    fn line(&self, worker: u32) -> &AtomicU64 {
        assert!(worker < MAX_QUEUES, "no such worker");
        let line = self.0.as_mut_ptr().cast::<BeatLine>().wrapping_add(worker as usize);
        // SAFETY: the mapping has MAX_QUEUES elements and lives as long as `self`; `at_ns` is the first field of an
        // element and 8-byte aligned in the page-aligned mapping; this process reaches it through atomics only.
        unsafe { AtomicU64::from_ptr(line.cast()) }
    }
}

impl fmt::Debug for BeatLines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BeatLines").finish_non_exhaustive()
    }
}

/// A worker's sign of life. Outlives the loader; then nobody looks at it any more.
#[derive(Debug)]
pub struct Beat {
    lines: Arc<BeatLines>,
    worker: u32,
}

impl Beat {
    /// The beat of a worker, `None` past [`MAX_QUEUES`].
    pub(crate) fn new(lines: Arc<BeatLines>, worker: u32) -> Option<Self> {
        (worker < MAX_QUEUES).then_some(Self { lines, worker })
    }

    /// Says that the worker was alive at `now_ns` of `CLOCK_MONOTONIC`. One store to a cache line of the worker's own.
    #[inline]
    pub fn beat(&self, now_ns: u64) {
        self.lines.line(self.worker).store(now_ns, Ordering::Relaxed);
    }

    /// Says that the worker takes no more frames; from now on they pass to the kernel.
    #[inline]
    pub fn stop(&self) {
        self.beat(0);
    }
}
