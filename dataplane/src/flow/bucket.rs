//! One cache line of the flow index: eight tags and eight references to entries.

use super::entry::Way;
use crate::lanes::{LANES, equal};

/// Where an entry is and by which of its two keys it was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reference(u32);

const REPLY: u32 = 1;
const AWAY: u32 = 1 << 1;

impl Reference {
    /// To no entry.
    pub(super) const NONE: Self = Self(u32::MAX);

    #[inline]
    pub(super) fn new(slot: u32, way: Way) -> Self {
        Self(slot << 2 | if way == Way::Reply { REPLY } else { 0 })
    }

    #[inline]
    pub(super) fn slot(self) -> u32 {
        self.0 >> 2
    }

    #[inline]
    pub(super) fn way(self) -> Way {
        if self.0 & REPLY == 0 { Way::Forward } else { Way::Reply }
    }

    /// Whether it lies in the second of its two buckets.
    pub(super) fn is_away(self) -> bool {
        self.0 & AWAY != 0
    }

    pub(super) fn moved(self) -> Self {
        Self(self.0 ^ AWAY)
    }

    fn names(self, other: Self) -> bool {
        (self.0 ^ other.0) & !AWAY == 0
    }
}

/// Eight tags, eight references, and how many newcomers had to go elsewhere.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(super) struct Bucket {
    tags: [u16; LANES],
    references: [u32; LANES],
    /// References whose first bucket this is and that lie in their second one.
    pub(super) spilled: u32,
}

const _: () = assert!(size_of::<Bucket>() == 64);

/// The tag of a free lane.
const FREE: u16 = 0;

impl Bucket {
    pub(super) const EMPTY: Self = Self { tags: [FREE; LANES], references: [0; LANES], spilled: 0 };

    /// The references whose tag is `tag`.
    #[inline]
    pub(super) fn matching(&self, tag: u16) -> impl Iterator<Item = Reference> {
        self.lanes(tag).map(|lane| self.reference(lane))
    }

    /// The lanes whose tag is `tag`.
    #[inline]
    fn lanes(&self, tag: u16) -> Lanes {
        Lanes(equal(&self.tags, tag))
    }

    /// Puts a reference into a free lane; false where there is none.
    #[inline]
    pub(super) fn insert(&mut self, tag: u16, reference: Reference) -> bool {
        let free = self.lanes(FREE).next();
        if let Some(lane) = free {
            self.set(lane, tag, reference);
        }
        free.is_some()
    }

    /// Takes a reference out, wherever it has been moved between its buckets. Returns it as it lay here.
    pub(super) fn remove(&mut self, tag: u16, reference: Reference) -> Option<Reference> {
        let lane = self.lanes(tag).find(|lane| self.reference(*lane).names(reference))?;
        let found = self.reference(lane);
        self.set(lane, FREE, Reference(0));
        Some(found)
    }

    /// All references with their tags.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u16, Reference)> {
        self.tags.into_iter().zip(self.references.map(Reference)).filter(|(tag, _)| *tag != FREE)
    }

    #[inline]
    fn reference(&self, lane: usize) -> Reference {
        Reference(self.references.get(lane).copied().unwrap_or_default())
    }

    #[inline]
    fn set(&mut self, lane: usize, tag: u16, reference: Reference) {
        if let (Some(place), Some(named)) = (self.tags.get_mut(lane), self.references.get_mut(lane)) {
            (*place, *named) = (tag, reference.0);
        }
    }
}

/// Lanes as pairs of bits.
#[derive(Debug)]
struct Lanes(u32);

impl Iterator for Lanes {
    type Item = usize;

    #[inline]
    fn next(&mut self) -> Option<usize> {
        if self.0 == 0 {
            return None;
        }
        let lane = (self.0.trailing_zeros() / 2) as usize;
        self.0 &= self.0 - 1;
        self.0 &= self.0 - 1;
        Some(lane)
    }
}

#[cfg(test)]
#[allow(clippy::cast_possible_truncation, reason = "test numbers are small")]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_finds_what_it_holds_and_refuses_the_ninth() {
        let mut bucket = Bucket::EMPTY;
        for slot in 0..8u32 {
            assert!(bucket.insert(100 + slot as u16 % 3, Reference::new(slot, Way::Forward)));
        }
        assert!(!bucket.insert(7, Reference::new(9, Way::Reply)));
        for slot in 0..8u32 {
            assert!(bucket.matching(100 + slot as u16 % 3).any(|found| found.slot() == slot));
        }
        assert_eq!(bucket.matching(99).filter(|found| found.slot() > 8).count(), 0);
    }

    #[test]
    fn a_moved_reference_is_removed_by_its_name() {
        let mut bucket = Bucket::EMPTY;
        let reference = Reference::new(3, Way::Reply);
        bucket.insert(5, reference.moved());
        assert!(bucket.remove(5, Reference::new(3, Way::Forward)).is_none());
        assert!(bucket.remove(5, reference).is_some_and(Reference::is_away));
        assert_eq!(bucket.iter().count(), 0);
    }
}
