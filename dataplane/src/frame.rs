//! A frame in the memory of its I/O: a chunk with headroom before the packet and tailroom behind it.

use std::ops::Range;

use crate::ids::PortId;
use crate::rewrite::split::Split;
use crate::wire::Header;

/// Bytes that every I/O leaves in front of a received packet at least: room for TX metadata (24) and, later, an
/// outer IPv6 header with UDP and GUE (56), in whole words.
pub const MIN_HEADROOM: usize = 96;

/// Frames in a batch at most.
pub const BATCH: usize = 64;

/// What the sender of a frame leaves to the egress interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Checksum {
    /// The layer-4 checksum is complete (or was wrong on arrival and still is).
    #[default]
    Complete,
    /// The checksum field holds the uncomplemented pseudo-header sum; the egress fills the rest in.
    /// Offsets in bytes: `start` from the first byte of the frame, `offset` from `start`.
    Partial {
        /// First byte that the checksum covers.
        start: u16,
        /// Where in the covered bytes the checksum field lies.
        offset: u16,
    },
}

/// One layer-2 frame, borrowed from the I/O for the time of a batch.
#[derive(Debug)]
pub struct Frame<'a> {
    chunk: &'a mut [u8],
    /// 32 bits, so that the two together and a few bytes more cannot overflow.
    start: u32,
    len: u32,
    /// The port it came in by.
    pub port: PortId,
    /// Set where another worker handed it over: it is not handed on again.
    pub handed_over: bool,
    /// Set where it was kept for as long as a fragment is kept ([`Verdict::Early`]): it is decided on now.
    ///
    /// [`Verdict::Early`]: crate::verdict::Verdict::Early
    pub overdue: bool,
    /// What the egress interface has still to fill in.
    pub checksum: Checksum,
    /// Set where the packet is larger than its path: it is sent in pieces. Its checksum is complete then.
    pub split: Option<Split>,
}

impl<'a> Frame<'a> {
    /// A frame of `len` bytes at `start` in `chunk`; `None` where it does not lie inside, or behind 4 GiB of it.
    pub fn new(chunk: &'a mut [u8], start: usize, len: usize, port: PortId) -> Option<Self> {
        let end = start.checked_add(len)?;
        (end <= chunk.len()).then_some(Self {
            chunk,
            start: start.try_into().ok()?,
            len: len.try_into().ok()?,
            port,
            handed_over: false,
            overdue: false,
            checksum: Checksum::Complete,
            split: None,
        })
    }

    /// The frame's bytes, from the Ethernet header on.
    #[inline]
    pub fn bytes(&self) -> &[u8] {
        match self.chunk.get(self.range()) {
            Some(bytes) => bytes,
            None => outside(),
        }
    }

    /// The frame's bytes, to be changed in place.
    #[inline]
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        match self.chunk.get_mut(self.range()) {
            Some(bytes) => bytes,
            None => outside_mut(),
        }
    }

    /// The frame's first bytes as headers; `None` where it is shorter.
    #[inline]
    pub fn head<H: Header>(&self) -> Option<&H> {
        let (head, _) = H::ref_from_prefix(self.bytes()).ok()?;
        Some(head)
    }

    /// The same, to be changed in place, of a frame that was found to be as long: asks only whether its chunk is.
    #[inline]
    pub fn known_head_mut<H: Header>(&mut self) -> Option<&mut H> {
        debug_assert!(size_of::<H>() <= self.len());
        let range = self.start as usize..self.start as usize + size_of::<H>();
        H::mut_from_bytes(self.chunk.get_mut(range)?).ok()
    }

    #[inline]
    fn range(&self) -> Range<usize> {
        self.start as usize..self.end()
    }

    #[inline]
    fn end(&self) -> usize {
        self.start as usize + self.len as usize
    }

    /// Length in bytes, Ethernet header included, frame check sequence not.
    #[inline]
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// Whether the frame has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Where the frame starts in its chunk, in bytes.
    pub fn offset(&self) -> usize {
        self.start as usize
    }

    /// Bytes free in front of the frame.
    pub fn headroom(&self) -> usize {
        self.start as usize
    }

    /// Bytes free behind the frame.
    pub fn tailroom(&self) -> usize {
        self.chunk.len() - self.end()
    }

    /// Moves the start of the frame `count` bytes forward into the headroom. The new bytes hold garbage.
    /// Returns false, and changes nothing, where the headroom is too small.
    #[must_use]
    pub fn grow_front(&mut self, count: usize) -> bool {
        let grown = u32::try_from(count).ok().and_then(|count| {
            let start = self.start.checked_sub(count)?;
            Some((start, self.len.checked_add(count)?))
        });
        (self.start, self.len) = grown.unwrap_or((self.start, self.len));
        grown.is_some()
    }

    /// Cuts `count` bytes off the front (all, where it has fewer).
    pub fn shrink_front(&mut self, count: usize) {
        let count = u32::try_from(count).unwrap_or(u32::MAX).min(self.len);
        self.start = self.start.saturating_add(count);
        self.len -= count;
    }

    /// Sets the length to `len` bytes: cuts the tail, or takes in tailroom (which holds garbage).
    /// Returns false, and changes nothing, where the chunk is too small.
    #[must_use]
    pub fn resize(&mut self, len: usize) -> bool {
        let fits = len <= self.chunk.len() - self.start as usize;
        let len = u32::try_from(len).ok().filter(|_| fits);
        self.len = len.unwrap_or(self.len);
        len.is_some()
    }
}

/// Never called: `start <= end <= chunk.len()` holds by construction. Cold, so that the compiler makes the check a
/// branch that is not taken.
#[cold]
fn outside() -> &'static [u8] {
    &[]
}

#[cold]
fn outside_mut() -> &'static mut [u8] {
    &mut []
}
