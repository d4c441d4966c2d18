//! Arrays of the XDP program's that this process writes through shared memory: the workers' signs of life, the settings.

#![expect(unsafe_code, reason = "memory shared with the kernel")]

use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::{fmt, io};

use memmap2::{MmapOptions, MmapRaw};

use crate::abi::{BeatLine, Bucket, MAX_QUEUES, Settings};

/// An element of a mapped array.
///
/// # Safety
/// Any bytes are a valid value, and what the kernel or another thread may write is reached through atomics only.
pub(crate) unsafe trait Element {}
// SAFETY: an atomic integer, and integers that nobody writes.
unsafe impl Element for BeatLine {}
// SAFETY: atomic integers.
unsafe impl Element for Settings {}
// SAFETY: as above.
unsafe impl Element for Bucket {}

/// A mapped array.
pub(crate) struct Shared<T> {
    map: MmapRaw,
    elements: PhantomData<T>,
}

impl<T: Element> Shared<T> {
    /// Maps the array; it needs `BPF_F_MMAPABLE` and so many elements.
    pub(crate) fn map(array: &impl AsFd, count: u32) -> io::Result<Self> {
        let length = count as usize * size_of::<T>();
        let map = MmapOptions::new().len(length).map_raw(array.as_fd().as_raw_fd())?;
        Ok(Self { map, elements: PhantomData })
    }

    /// The element with this index, `None` past the last.
    #[inline]
    pub(crate) fn at(&self, index: u32) -> Option<&T> {
        let start = (index as usize).checked_mul(size_of::<T>())?;
        let fits = start.checked_add(size_of::<T>())? <= self.map.len();
        // SAFETY: the element lies in the mapping by the comparison above, which lives as long as `self`; the mapping is
        // page-aligned, and a multiple of its own size into it an element is aligned, too. The rest is `Element`'s.
        fits.then(|| unsafe { &*self.map.as_mut_ptr().cast::<T>().wrapping_add(index as usize) })
    }
}

impl<T> fmt::Debug for Shared<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

/// A worker's sign of life. Outlives the loader; then nobody looks at it any more.
#[derive(Debug)]
pub struct Beat {
    lines: Arc<Shared<BeatLine>>,
    worker: u32,
}

impl Beat {
    /// The beat of a worker, `None` past [`MAX_QUEUES`].
    pub(crate) fn new(lines: Arc<Shared<BeatLine>>, worker: u32) -> Option<Self> {
        (worker < MAX_QUEUES).then_some(Self { lines, worker })
    }

    /// Says that the worker was alive at `now_ns` of `CLOCK_MONOTONIC`. One store to a cache line of the worker's own.
    #[inline]
    pub fn beat(&self, now_ns: u64) {
        if let Some(line) = self.lines.at(self.worker) {
            line.at_ns.store(now_ns, Ordering::Relaxed);
        }
    }

    /// Says that the worker takes no more frames; from now on they pass to the kernel.
    #[inline]
    pub fn stop(&self) {
        self.beat(0);
    }
}
