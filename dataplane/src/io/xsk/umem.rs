//! The memory that frames live in, and who holds each piece of it.
//!
//! A UMEM is an array of equal chunks. Every chunk is free, held by the worker or lent to the kernel (in a fill, TX
//! or completion ring, or inside a driver), and the three counts add up to the whole at any time. A held chunk is a
//! [`Held`]: there is one of them a chunk at most, so borrowing it mutably is borrowing the chunk's bytes.
#![expect(unsafe_code, reason = "chunks are handed out as slices of memory that is shared with the kernel")]

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::sys::{self, Mapping};

const HUGE_PAGE: usize = 2 << 20;

/// Who holds a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Free,
    Held,
    Lent,
}

/// A chunk that the worker holds. Not to be dropped but given back, sent or lent: a dropped one is never used again.
#[derive(Debug)]
#[must_use = "a chunk that is dropped is lost"]
pub(super) struct Held(u32);

/// How many chunks are where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Balance {
    /// Not in use.
    pub(super) free: usize,
    /// With the worker.
    pub(super) held: usize,
    /// With the kernel.
    pub(super) lent: usize,
}

/// The memory of one worker.
#[derive(Debug)]
pub(super) struct Umem {
    map: Mapping,
    memfd: Option<OwnedFd>,
    huge: bool,
    chunk_shift: u32,
    /// Free chunks, the last used on top: its bytes are likely still in the cache.
    free: Vec<u32>,
    places: Box<[Place]>,
    balance: Balance,
}

/// Bytes of the memory for at least `chunks` chunks of `chunk_size` bytes: whole huge pages.
pub(super) fn len(chunks: u32, chunk_size: u32) -> usize {
    (chunks as usize * chunk_size as usize).next_multiple_of(HUGE_PAGE)
}

impl Umem {
    /// Memory for at least `chunks` chunks of `chunk_size` bytes (a power of two), in a memfd, on huge pages of 2 MiB
    /// where the system has them free and on normal pages otherwise. All pages are faulted in.
    pub(super) fn new(chunks: u32, chunk_size: u32) -> io::Result<Self> {
        let len = len(chunks, chunk_size);
        let mapped = |flags| {
            let memfd = sys::memfd(len, flags)?;
            Ok::<_, io::Error>((Mapping::of(memfd.as_fd(), len, 0)?, memfd))
        };
        let (huge, (map, memfd)) = match mapped(libc::MFD_HUGETLB | libc::MFD_HUGE_2MB) {
            Ok(mapped) => (true, mapped),
            Err(_) => (false, mapped(0)?),
        };
        Ok(Self { memfd: Some(memfd), huge, ..Self::over(map, chunk_size) })
    }

    /// As many chunks as fit into `map`.
    pub(super) fn over(map: Mapping, chunk_size: u32) -> Self {
        let chunk_shift = chunk_size.ilog2();
        let count = u32::try_from(map.len() >> chunk_shift).unwrap_or(u32::MAX);
        let free: Vec<u32> = (0..count).rev().collect();
        let balance = Balance { free: free.len(), held: 0, lent: 0 };
        let places = vec![Place::Free; free.len()].into_boxed_slice();
        Self { map, memfd: None, huge: false, chunk_shift, free, places, balance }
    }

    /// Takes a free chunk.
    #[inline]
    pub(super) fn take(&mut self) -> Option<Held> {
        let index = self.free.pop()?;
        self.balance.free -= 1;
        self.balance.held += 1;
        self.set(index, Place::Held);
        Some(Held(index))
    }

    /// Frees a chunk.
    #[inline]
    pub(super) fn give_back(&mut self, chunk: Held) {
        self.set(chunk.0, Place::Free);
        self.balance.held -= 1;
        self.balance.free += 1;
        self.free.push(chunk.0);
    }

    /// Lends a chunk to the kernel. The result is the address for a ring entry that points `offset` bytes into it.
    #[inline]
    pub(super) fn lend(&mut self, chunk: Held, offset: usize) -> u64 {
        debug_assert!(offset < self.chunk_size());
        self.set(chunk.0, Place::Lent);
        self.balance.held -= 1;
        self.balance.lent += 1;
        (u64::from(chunk.0) << self.chunk_shift) + offset as u64
    }

    /// Takes the chunk back that an address from a ring points into. The result has the offset in the chunk too.
    /// `None` for an address that is no lent chunk's: the kernel is not trusted to name a chunk twice.
    #[inline]
    pub(super) fn reclaim(&mut self, address: u64) -> Option<(Held, usize)> {
        let index = u32::try_from(address >> self.chunk_shift).ok()?;
        let place = self.places.get_mut(index as usize)?;
        if *place != Place::Lent {
            return None;
        }
        *place = Place::Held;
        self.balance.lent -= 1;
        self.balance.held += 1;
        #[expect(clippy::cast_possible_truncation, reason = "masked to the size of a chunk")]
        let offset = address as usize & (self.chunk_size() - 1);
        Some((Held(index), offset))
    }

    /// The bytes of a held chunk.
    #[inline]
    pub(super) fn bytes<'a>(&'a self, chunk: &'a mut Held) -> &'a mut [u8] {
        debug_assert_eq!(self.places.get(chunk.0 as usize), Some(&Place::Held));
        // SAFETY: a `Held` is made by `take` and `reclaim` only, for an index below the number of chunks, all of
        // which lie in the mapping; it never leaves the I/O that owns this UMEM. The chunk's place was not `Held`
        // before, so this `Held` is the only one for it, and its mutable borrow the only borrow of these bytes. The
        // kernel does not touch a chunk that is not lent.
        unsafe {
            let start = self.map.start().add((chunk.0 as usize) << self.chunk_shift);
            std::slice::from_raw_parts_mut(start.as_ptr(), self.chunk_size())
        }
    }

    #[inline]
    fn set(&mut self, index: u32, place: Place) {
        if let Some(entry) = self.places.get_mut(index as usize) {
            *entry = place;
        }
    }

    /// Bytes in a chunk.
    #[inline]
    pub(super) fn chunk_size(&self) -> usize {
        1 << self.chunk_shift
    }

    /// How many chunks are where.
    pub(super) fn balance(&self) -> Balance {
        self.balance
    }

    /// All chunks.
    pub(super) fn chunks(&self) -> usize {
        self.places.len()
    }

    /// Whether it lies on huge pages.
    pub(super) fn is_huge(&self) -> bool {
        self.huge
    }

    /// The descriptor that another process can map the memory by.
    pub(super) fn memfd(&self) -> Option<BorrowedFd<'_>> {
        self.memfd.as_ref().map(AsFd::as_fd)
    }

    /// Address, length and bytes in a chunk, as the kernel registers it.
    pub(super) fn extent(&self) -> (u64, u64, u32) {
        (self.map.start().as_ptr().expose_provenance() as u64, self.map.len() as u64, 1 << self.chunk_shift)
    }

    /// Whether every chunk is free, held or lent, and the counts say so. Walks all chunks.
    #[cfg(test)]
    pub(super) fn is_balanced(&self) -> bool {
        let count = |place| self.places.iter().filter(|&&p| p == place).count();
        let counted =
            Balance { free: count(Place::Free), held: count(Place::Held), lent: count(Place::Lent) };
        counted == self.balance && counted.free == self.free.len()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn umem(chunks: usize) -> Umem {
        Umem::over(Mapping::anonymous(chunks * 2048).unwrap(), 2048)
    }

    #[test]
    fn a_chunk_goes_round_and_keeps_its_bytes() {
        let mut umem = umem(2);
        let mut chunk = umem.take().unwrap();
        umem.bytes(&mut chunk)[300] = 7;
        let address = umem.lend(chunk, 256);
        assert_eq!(umem.balance(), Balance { free: 1, held: 0, lent: 1 });
        let (mut chunk, offset) = umem.reclaim(address + 4).unwrap();
        assert_eq!(offset, 260);
        assert_eq!(umem.bytes(&mut chunk)[300], 7);
        umem.give_back(chunk);
        assert_eq!(umem.balance(), Balance { free: 2, held: 0, lent: 0 });
    }

    #[test]
    fn chunks_are_disjoint_and_borrowed_at_once() {
        let mut umem = umem(3);
        let mut held: Vec<_> = std::iter::from_fn(|| umem.take()).collect();
        assert_eq!(held.len(), 3);
        let mut slices: Vec<_> = held.iter_mut().map(|chunk| umem.bytes(chunk)).collect();
        for (value, slice) in (1u8..).zip(&mut slices) {
            slice.fill(value);
        }
        for (value, slice) in (1u8..).zip(&slices) {
            assert!(slice.iter().all(|byte| *byte == value));
        }
    }

    #[test]
    fn the_kernel_cannot_return_what_it_was_not_lent() {
        let mut umem = umem(2);
        let held = umem.take().unwrap();
        let lent = umem.take().unwrap();
        let address = umem.lend(lent, 0);
        for (name, address) in
            [("held", u64::from(held.0) * 2048), ("past the end", 2 * 2048), ("far past the end", u64::MAX)]
        {
            assert!(umem.reclaim(address).is_none(), "{name}");
        }
        assert!(umem.reclaim(address).is_some());
        assert!(umem.reclaim(address).is_none(), "twice");
        assert!(umem.is_balanced());
    }

    #[test]
    #[cfg_attr(miri, ignore = "Miri has no memfd")]
    fn memory_is_rounded_up_and_can_be_mapped_again() {
        let mut umem = Umem::new(100, 2048).unwrap();
        assert_eq!(umem.chunks(), 1024, "2 MiB");
        let mut chunk = umem.take().unwrap();
        umem.bytes(&mut chunk)[0] = 42;
        let again = Mapping::of(umem.memfd().unwrap(), 2 << 20, 0).unwrap();
        // SAFETY: the first byte of the mapping, which nobody writes at present.
        assert_eq!(unsafe { again.start().read() }, 42, "chunk 0 is taken first");
        umem.give_back(chunk);
    }

    proptest! {
        #![proptest_config(ProptestConfig {
            cases: if cfg!(miri) { 4 } else { 256 },
            failure_persistence: None,
            ..ProptestConfig::default()
        })]
        #[test]
        fn every_chunk_is_in_one_place_whatever_happens(steps in prop::collection::vec((0u8..4, any::<u16>()), 0..200)) {
            let mut umem = umem(8);
            let (mut held, mut lent) = (Vec::new(), Vec::new());
            for (step, pick) in steps {
                match step {
                    0 => held.extend(umem.take()),
                    1 => if let Some(chunk) = held.pop() { umem.give_back(chunk) },
                    2 => if let Some(chunk) = held.pop() { lent.push(umem.lend(chunk, usize::from(pick) % 2048)) },
                    _ => {
                        let address = lent.pop().unwrap_or(u64::from(pick) * 64);
                        held.extend(umem.reclaim(address).map(|(chunk, _)| chunk));
                    }
                }
                prop_assert!(umem.is_balanced());
                prop_assert_eq!(umem.balance(), Balance { free: 8 - held.len() - lent.len(), held: held.len(), lent: lent.len() });
            }
        }
    }
}
