//! Where rr and wrr stand in their list: one word, so that workers move it with one compare-and-swap.
//!
//! The word names the backend chosen last by its id, which stays true when the list changes. It also holds the
//! place where that backend stood, so that it need not be searched for as long as the list is the same.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use crate::ids::BackendId;
use crate::snapshot::Backend;

/// A position in the list. The default stands before the first backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(super) struct Cursor {
    /// The backend chosen last; `None` at the head of the list.
    pub(super) last: Option<BackendId>,
    /// Its place in the list it was chosen from. Only a hint, past 65,535 a wrong one.
    hint: u16,
    /// wrr: the weight that a backend needs in the current pass; 0 before the first choice. rr: 0.
    pub(super) level: u16,
}

impl Cursor {
    /// The position before the first backend.
    pub(super) fn head(level: u16) -> Self {
        Self { level, ..Self::default() }
    }

    /// The position after the choice of `last` at `place` in the list.
    #[inline]
    pub(super) fn at(place: usize, last: BackendId, level: u16) -> Self {
        Self { last: Some(last), hint: u16::try_from(place).unwrap_or(u16::MAX), level }
    }

    /// From bit 0 on: the id plus 1, or 0 (32 bits), the hint (16), the level (16).
    #[inline]
    pub(super) fn pack(self) -> u64 {
        let id = self.last.map_or(0, |BackendId(id)| id.wrapping_add(1));
        u64::from(id) | u64::from(self.hint) << 32 | u64::from(self.level) << 48
    }

    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "the fields are cut out of the word")]
    pub(super) fn unpack(word: u64) -> Self {
        let last = (word as u32).checked_sub(1).map(BackendId);
        Self { last, hint: (word >> 32) as u16, level: (word >> 48) as u16 }
    }

    /// Splits `backends` where the walk resumes: what lies behind the backend chosen last, and the rest up to and
    /// including that backend. Where the list does not have it, the walk resumes at the place where it stood.
    #[inline]
    pub(super) fn split<'a>(&self, backends: &'a [Backend]) -> (&'a [Backend], &'a [Backend]) {
        let hint = usize::from(self.hint);
        let start = match self.last {
            None => 0,
            Some(last) if backends.get(hint).is_some_and(|backend| backend.id == last) => hint + 1,
            Some(last) => {
                backends.iter().position(|backend| backend.id == last).map_or(hint, |place| place + 1)
            }
        };
        backends.split_at_checked(start).map_or((&[], backends), |(before, behind)| (behind, before))
    }

    /// The place behind that of the backend chosen last, in a list of so many that is still the same.
    #[inline]
    pub(super) fn next_place(self, count: usize) -> usize {
        let next = if self.last.is_some() { usize::from(self.hint) + 1 } else { 0 };
        if next < count { next } else { 0 }
    }

    /// Whether the backend chosen last, if there is one, still stands where it did.
    #[inline]
    pub(super) fn is_kept(self, backends: &[Backend]) -> bool {
        self.last
            .is_none_or(|last| backends.get(usize::from(self.hint)).is_some_and(|backend| backend.id == last))
    }

    /// What `step` chooses at the position in `word`, which moves on.
    #[inline]
    pub(super) fn look_ahead<T>(word: &mut u64, step: impl Fn(Self) -> Option<(Self, T)>) -> Option<T> {
        let (next, chosen) = step(Self::unpack(*word))?;
        *word = next.pack();
        Some(chosen)
    }

    /// Moves the position in `cell` by `step`, which gives the next position and what was chosen; `None` from it
    /// leaves the position alone. `step` may be called again when another worker moved first.
    #[inline]
    pub(super) fn advance<T>(cell: &AtomicU64, step: impl Fn(Self) -> Option<(Self, T)>) -> Option<T> {
        let mut seen = cell.load(Relaxed);
        loop {
            let (next, chosen) = step(Self::unpack(seen))?;
            // Relaxed: the word is all there is, nothing else is read by way of it.
            match cell.compare_exchange_weak(seen, next.pack(), Relaxed, Relaxed) {
                Ok(_) => return Some(chosen),
                Err(moved) => seen = moved,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_word_holds_every_field_whole() {
        assert_eq!(Cursor::default().pack(), 0);
        for cursor in [
            Cursor::default(),
            Cursor::head(u16::MAX),
            Cursor::at(0, BackendId(0), 0),
            Cursor::at(3, BackendId(u32::MAX - 1), 1),
            Cursor::at(usize::MAX, BackendId(7), u16::MAX),
        ] {
            assert_eq!(Cursor::unpack(cursor.pack()), cursor);
        }
    }
}
