//! Weighted round robin (`ip_vs_wrr.c`).
//!
//! The list is walked once for each level from the largest weight down, in steps of the weights' greatest common
//! divisor; a pass takes every backend whose weight reaches its level. So a backend is chosen `weight / gcd` times
//! a round, spread over the passes.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use super::cursor::Cursor;
use super::eligible;
use crate::snapshot::Backend;
use crate::state::State;

/// The levels of one list of backends. Weights above 65,535, the largest that IPVS's tools take, count as 65,535.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Levels {
    /// From level to level (kernel: `di`): the greatest common divisor of the weights, 1 where all are 0.
    step: u16,
    /// The first level (kernel: `mw`), less by `step - 1` than the largest weight so that the last level is 1.
    /// 0 where all weights are 0.
    top: u16,
}

impl Levels {
    pub(super) fn of(backends: &[Backend]) -> Self {
        let divisor = backends.iter().map(weight).fold(0, gcd);
        Self::new(divisor, backends.iter().map(weight).max().unwrap_or(0))
    }

    /// The levels of weights with this greatest common divisor, 0 where all are 0, and with this one as the largest.
    fn new(divisor: u16, largest: u16) -> Self {
        let step = divisor.max(1);
        Self { step, top: largest.saturating_sub(step - 1) }
    }

    /// The level of the pass after the one at `level`.
    #[inline]
    fn below(self, level: u16) -> u16 {
        match level.saturating_sub(self.step) {
            0 => self.top,
            below => below,
        }
    }

    /// The highest level of which a pass chooses the backend.
    #[inline]
    fn reached_by(self, backend: &Backend) -> u16 {
        weight(backend).saturating_sub(self.step - 1).max(1)
    }

    /// `level` where it is one of these levels or between them, else the first.
    #[inline]
    fn clamp(self, level: u16) -> u16 {
        if (1..=self.top).contains(&level) { level } else { self.top }
    }

    /// The level that a list with these levels goes on at, when the one before it was at `level`.
    fn carried(self, level: u16) -> u16 {
        match level {
            0 => self.top,
            level if level > self.top => self.top,
            level if self.step > 1 => level / self.step * self.step + 1,
            level => level,
        }
    }
}

/// Moves on to the next backend.
#[inline]
pub(super) fn next<'a>(
    backends: &'a [Backend],
    levels: Levels,
    state: &State,
    cell: &AtomicU64,
) -> Option<&'a Backend> {
    Cursor::advance(cell, |cursor| step(backends, levels, state, cursor)).flatten()
}

/// The next backend, if there is one. `None` where nobody is found and the position stays.
#[inline]
pub(super) fn step<'a>(
    backends: &'a [Backend],
    levels: Levels,
    state: &State,
    cursor: Cursor,
) -> Option<(Cursor, Option<&'a Backend>)> {
    let (behind, before) = cursor.split(backends);
    let level = levels.clamp(cursor.level);
    let rest_of_pass = (before.len()..).zip(behind);
    let (level, (place, backend)) = match reaching(level, state, rest_of_pass) {
        Some(found) => (level, found),
        None => match next_pass(backends, levels.below(level), levels, state) {
            Some(found) => found,
            None => return given_up(cursor, levels).map(|moved| (moved, None)),
        },
    };
    Some((Cursor::at(place, backend.id, level), Some(backend)))
}

/// The place that is next, if the list is the same as before and the pass goes on there, and the position once its backend
/// was chosen.
#[inline]
pub(super) fn due(backends: &[Backend], levels: Levels, cursor: Cursor) -> Option<(usize, Cursor)> {
    let place = cursor.next_place(backends.len());
    let goes_on = cursor.is_kept(backends) && (place > 0 || cursor.last.is_none());
    let level = levels.clamp(cursor.level);
    let backend = backends.get(place).filter(|backend| goes_on && weight(backend) >= level)?;
    Some((place, Cursor::at(place, backend.id, level)))
}

/// Where a search ends that finds nobody, where that is another position: the kernel walks the passes down to the
/// lowest and starts over, except that a walk in the lowest pass comes back to the place where it began.
fn given_up(cursor: Cursor, levels: Levels) -> Option<Cursor> {
    let started_over = Cursor::head(levels.top);
    let stays = cursor.last.is_some() && levels.clamp(cursor.level) <= levels.step;
    (levels.top > 0 && !stays && cursor != started_over).then_some(started_over)
}

/// Back to the head of the list; the level stays where the new levels have it.
pub(super) fn carry(levels: Levels, cell: &AtomicU64) {
    Cursor::advance(cell, |cursor| Some((Cursor::head(levels.carried(cursor.level)), ())));
}

/// To the head of the list, at the level that adding its backends one by one, the last of the list first, leads to.
pub(super) fn start(backends: &[Backend], cell: &AtomicU64) {
    let (mut divisor, mut largest, mut level) = (0, 0, 0);
    for weight in backends.iter().rev().map(weight) {
        (divisor, largest) = (gcd(divisor, weight), largest.max(weight));
        level = Levels::new(divisor, largest).carried(level);
    }
    cell.store(Cursor::head(level).pack(), Relaxed);
}

/// The first place whose backend may be chosen in the pass at `level`.
#[inline]
fn reaching<'a>(
    level: u16,
    state: &State,
    mut places: impl Iterator<Item = (usize, &'a Backend)>,
) -> Option<(usize, &'a Backend)> {
    places.find(|(_, backend)| weight(backend) >= level && eligible(backend, state))
}

/// The level of the pass behind the present one, at most `level`, and the first place that it chooses.
#[inline]
fn next_pass<'a>(
    backends: &'a [Backend],
    level: u16,
    levels: Levels,
    state: &State,
) -> Option<(u16, (usize, &'a Backend))> {
    let from = |level| reaching(level, state, (0..).zip(backends));
    let found = from(level).filter(|(_, backend)| levels.reached_by(backend) >= level);
    if let Some(found) = found {
        // Its own weight shows that no pass has to be left out: others need not be looked at.
        return Some((level, found));
    }
    let level = highest(backends, levels, state)?.min(level);
    Some((level, from(level)?))
}

/// The highest level at which a pass chooses anything: passes above it find nobody and can be left out.
#[inline]
fn highest(backends: &[Backend], levels: Levels, state: &State) -> Option<u16> {
    backends.iter().filter(|backend| eligible(backend, state)).map(|backend| levels.reached_by(backend)).max()
}

#[inline]
fn weight(backend: &Backend) -> u16 {
    u16::try_from(backend.weight).unwrap_or(u16::MAX)
}

fn gcd(a: u16, b: u16) -> u16 {
    if b == 0 { a } else { gcd(b, a % b) }
}
