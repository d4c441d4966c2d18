//! The single-producer single-consumer rings that AF_XDP shares with the kernel.
//!
//! Both ends keep their own index and a copy of the other end's, so that the shared cache lines are touched once a
//! batch: entries are written or read one by one, then published or released together. The rings know nothing of
//! sockets; any shared memory with two indices, flags and entries will do.
#![expect(unsafe_code, reason = "entries and indices lie in memory that is shared with the kernel")]

use std::mem::{align_of, size_of};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::sys::Mapping;

/// What a ring is made of.
///
/// # Safety
/// Any bytes are a valid value.
pub(super) unsafe trait Entry: Copy {}
// SAFETY: a plain integer.
unsafe impl Entry for u64 {}
// SAFETY: plain integers.
unsafe impl Entry for libc::xdp_desc {}

/// Why memory cannot be a ring.
#[derive(Debug, thiserror::Error)]
#[error("a ring of {entries} entries does not lie in its mapping of {len} bytes")]
pub(super) struct BadLayout {
    entries: u32,
    len: usize,
}

#[derive(Debug)]
struct Ring<T> {
    producer: NonNull<AtomicU32>,
    consumer: NonNull<AtomicU32>,
    flags: NonNull<AtomicU32>,
    entries: NonNull<T>,
    size: u32,
    /// Keeps what the pointers point to.
    _map: Arc<Mapping>,
}

// SAFETY: the pointers lie in the mapping, which may be used from any thread; `Producer` and `Consumer` need `&mut`
// for every access to entries.
unsafe impl<T: Entry + Send> Send for Ring<T> {}

impl<T: Entry> Ring<T> {
    /// The ring of `size` entries, a power of two, that lies in `map` as `layout` says.
    fn new(map: Arc<Mapping>, layout: &libc::xdp_ring_offset, size: u32) -> Result<Self, BadLayout> {
        let bad = BadLayout { entries: size, len: map.len() };
        if !size.is_power_of_two() {
            return Err(bad);
        }
        let place = |offset: u64, bytes: usize, align: usize| -> Option<NonNull<u8>> {
            let offset = usize::try_from(offset).ok()?;
            let inside = offset.checked_add(bytes)? <= map.len() && offset.is_multiple_of(align);
            // SAFETY: `offset` lies in the mapping, by the comparison in the line above.
            inside.then(|| unsafe { map.start().add(offset) })
        };
        let word = |offset| place(offset, size_of::<AtomicU32>(), align_of::<AtomicU32>());
        let entries = place(layout.desc, size as usize * size_of::<T>(), align_of::<T>());
        let (Some(producer), Some(consumer), Some(flags), Some(entries)) =
            (word(layout.producer), word(layout.consumer), word(layout.flags), entries)
        else {
            return Err(bad);
        };
        let (producer, consumer, flags) = (producer.cast(), consumer.cast(), flags.cast());
        Ok(Self { producer, consumer, flags, entries: entries.cast(), size, _map: map })
    }

    #[inline]
    fn producer(&self) -> &AtomicU32 {
        // SAFETY: in the mapping and aligned, by `new`; both ends use it only as an atomic.
        unsafe { self.producer.as_ref() }
    }

    #[inline]
    fn consumer(&self) -> &AtomicU32 {
        // SAFETY: as for `producer`.
        unsafe { self.consumer.as_ref() }
    }

    #[inline]
    fn needs_wakeup(&self) -> bool {
        // SAFETY: as for `producer`.
        unsafe { self.flags.as_ref() }.load(Ordering::Relaxed) & libc::XDP_RING_NEED_WAKEUP != 0
    }

    #[inline]
    fn entry(&self, index: u32) -> *mut T {
        // SAFETY: the masked index is below `size`, and `size` entries lie in the mapping, by `new`.
        unsafe { self.entries.as_ptr().add((index & (self.size - 1)) as usize) }
    }
}

/// The end that writes: TX and fill rings for Weir.
#[derive(Debug)]
pub(super) struct Producer<T> {
    ring: Ring<T>,
    /// Index of the next entry to write; published by [`Self::publish`].
    next: u32,
    /// The consumer's index as last seen.
    consumed: u32,
}

impl<T: Entry> Producer<T> {
    /// The writing end of the ring of `size` entries, a power of two, that lies in `map` as `layout` says.
    /// There must be one writing end only.
    pub(super) fn new(
        map: Arc<Mapping>,
        layout: &libc::xdp_ring_offset,
        size: u32,
    ) -> Result<Self, BadLayout> {
        let ring = Ring::new(map, layout, size)?;
        let next = ring.producer().load(Ordering::Relaxed);
        let consumed = ring.consumer().load(Ordering::Acquire);
        Ok(Self { ring, next, consumed })
    }

    /// Writes an entry, not to be seen before [`Self::publish`]; false where the ring is full.
    #[inline]
    #[must_use]
    pub(super) fn push(&mut self, entry: T) -> bool {
        if self.next.wrapping_sub(self.consumed) >= self.ring.size {
            self.consumed = self.ring.consumer().load(Ordering::Acquire);
            if self.next.wrapping_sub(self.consumed) >= self.ring.size {
                return false;
            }
        }
        // SAFETY: the pointer is valid by `Ring::entry`. The other end gave this entry up when it moved its index
        // past it, which the acquire load saw, and will not read it before `publish`.
        unsafe { self.ring.entry(self.next).write(entry) };
        self.next = self.next.wrapping_add(1);
        true
    }

    /// Shows all entries written so far to the other end.
    #[inline]
    pub(super) fn publish(&mut self) {
        self.ring.producer().store(self.next, Ordering::Release);
    }

    /// Entries that the other end has not taken yet, unpublished ones included.
    #[inline]
    pub(super) fn untaken(&mut self) -> u32 {
        self.consumed = self.ring.consumer().load(Ordering::Acquire);
        self.next.wrapping_sub(self.consumed)
    }

    /// Whether the other end sleeps until it is woken.
    #[inline]
    pub(super) fn needs_wakeup(&self) -> bool {
        self.ring.needs_wakeup()
    }

    /// Entries that the ring holds at most.
    pub(super) fn size(&self) -> u32 {
        self.ring.size
    }
}

/// The end that reads: RX and completion rings for Weir.
#[derive(Debug)]
pub(super) struct Consumer<T> {
    ring: Ring<T>,
    /// Index of the next entry to read; given back by [`Self::release`].
    next: u32,
    /// The producer's index as last seen.
    produced: u32,
}

impl<T: Entry> Consumer<T> {
    /// The reading end of the ring of `size` entries, a power of two, that lies in `map` as `layout` says.
    /// There must be one reading end only.
    pub(super) fn new(
        map: Arc<Mapping>,
        layout: &libc::xdp_ring_offset,
        size: u32,
    ) -> Result<Self, BadLayout> {
        let ring = Ring::new(map, layout, size)?;
        let next = ring.consumer().load(Ordering::Relaxed);
        Ok(Self { ring, next, produced: next })
    }

    /// Reads the next entry. Its place is the other end's again after [`Self::release`].
    #[inline]
    pub(super) fn pop(&mut self) -> Option<T> {
        if self.next == self.produced {
            self.produced = self.ring.producer().load(Ordering::Acquire);
            if self.next == self.produced {
                return None;
            }
        }
        // SAFETY: the pointer is valid by `Ring::entry`. The other end published this entry, which the acquire
        // load saw, and will not write it before `release`.
        let entry = unsafe { self.ring.entry(self.next).read() };
        self.next = self.next.wrapping_add(1);
        Some(entry)
    }

    /// Whether all that the other end has published was read.
    #[inline]
    pub(super) fn is_drained(&self) -> bool {
        self.next == self.ring.producer().load(Ordering::Relaxed)
    }

    /// Gives the places of all entries read so far back to the other end.
    #[inline]
    pub(super) fn release(&mut self) {
        self.ring.consumer().store(self.next, Ordering::Release);
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Where the parts of a ring lie in the memory that [`memory`] makes.
    pub(in super::super) const LAYOUT: libc::xdp_ring_offset =
        libc::xdp_ring_offset { producer: 0, consumer: 64, flags: 128, desc: 192 };

    /// Zeroed memory for a ring of `size` entries of at most 16 bytes.
    pub(in super::super) fn memory(size: u32) -> Arc<Mapping> {
        Arc::new(Mapping::anonymous(192 + size as usize * 16).unwrap())
    }

    /// Both ends of a ring.
    pub(in super::super) fn pair<T: Entry>(size: u32) -> (Producer<T>, Consumer<T>) {
        let map = memory(size);
        let producer = Producer::new(Arc::clone(&map), &LAYOUT, size).unwrap();
        (producer, Consumer::new(map, &LAYOUT, size).unwrap())
    }

    #[test]
    fn entries_are_seen_after_publish_and_places_are_free_after_release() {
        let (mut producer, mut consumer) = pair::<u64>(4);
        for value in 0..4 {
            assert!(producer.push(value));
        }
        assert!(!producer.push(4), "full");
        assert_eq!(consumer.pop(), None, "not published");
        producer.publish();
        assert_eq!(consumer.pop(), Some(0));
        assert!(!producer.push(4), "not released");
        consumer.release();
        assert_eq!(producer.untaken(), 3);
        assert!(producer.push(4));
        assert!(!producer.push(5));
    }

    #[test]
    fn indices_wrap_around() {
        let map = memory(4);
        let before_wrap = u32::MAX - 1;
        // SAFETY: offsets 0 and 64 lie in the mapping and are aligned.
        unsafe {
            map.start().cast::<AtomicU32>().as_ref().store(before_wrap, Ordering::Relaxed);
            map.start().add(64).cast::<AtomicU32>().as_ref().store(before_wrap, Ordering::Relaxed);
        }
        let mut producer = Producer::<u64>::new(Arc::clone(&map), &LAYOUT, 4).unwrap();
        let mut consumer = Consumer::<u64>::new(map, &LAYOUT, 4).unwrap();
        for round in 0..3 {
            for value in 0..4 {
                assert!(producer.push(round * 4 + value));
            }
            assert!(!producer.push(99));
            producer.publish();
            for value in 0..4 {
                assert_eq!(consumer.pop(), Some(round * 4 + value));
            }
            assert_eq!(consumer.pop(), None);
            consumer.release();
        }
    }

    #[test]
    fn what_does_not_lie_in_the_mapping_is_no_ring() {
        let outside = libc::xdp_ring_offset { desc: 192 + 16, ..LAYOUT };
        let crooked = libc::xdp_ring_offset { consumer: 63, ..LAYOUT };
        let huge = libc::xdp_ring_offset { flags: u64::MAX, ..LAYOUT };
        for (name, layout, size) in [
            ("entries past the end", outside, 4),
            ("unaligned index", crooked, 4),
            ("offset past the address space", huge, 4),
            ("size not a power of two", LAYOUT, 3),
            ("no entries", LAYOUT, 0),
        ] {
            let map = Arc::new(Mapping::anonymous(192 + 4 * 16).unwrap());
            assert!(Producer::<libc::xdp_desc>::new(map, &layout, size).is_err(), "{name}");
        }
    }

    #[test]
    fn an_index_that_makes_no_sense_leads_nowhere_outside() {
        let (mut producer, mut consumer) = pair::<u64>(4);
        consumer.ring.consumer().store(1000, Ordering::Relaxed);
        assert!((0..4).all(|value| producer.push(value)), "room by the index seen before");
        assert!(!producer.push(4));
        consumer.ring.producer().store(77, Ordering::Relaxed);
        assert_eq!(std::iter::from_fn(|| consumer.pop()).count(), 77);
    }

    #[test]
    fn two_threads_lose_and_repeat_nothing() {
        let total: u64 = if cfg!(miri) { 500 } else { 200_000 };
        let (mut producer, mut consumer) = pair::<u64>(64);
        let writer = std::thread::spawn(move || {
            let mut next = 0;
            while next < total {
                while next < total && next % 7 != 6 && producer.push(next) {
                    next += 1;
                }
                if next % 7 == 6 && producer.push(next) {
                    next += 1;
                }
                producer.publish();
                std::thread::yield_now();
            }
        });
        let mut expected = 0;
        while expected < total {
            while let Some(value) = consumer.pop() {
                assert_eq!(value, expected);
                expected += 1;
            }
            consumer.release();
            std::thread::yield_now();
        }
        writer.join().unwrap();
    }
}
