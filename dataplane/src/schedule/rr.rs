//! Round robin (`ip_vs_rr.c`): the next eligible backend behind the one chosen last, weights apart from 0 ignored.

use std::collections::HashMap;
use std::sync::atomic::AtomicU64;

use super::cursor::Cursor;
use super::eligible;
use crate::snapshot::Backend;
use crate::state::State;

/// Moves on to the next backend.
#[inline]
pub(super) fn next<'a>(backends: &'a [Backend], state: &State, cell: &AtomicU64) -> Option<&'a Backend> {
    Cursor::advance(cell, |cursor| step(backends, state, cursor))
}

/// The next backend. Once around the list, the backend chosen last comes at the end.
#[inline]
pub(super) fn step<'a>(
    backends: &'a [Backend],
    state: &State,
    cursor: Cursor,
) -> Option<(Cursor, &'a Backend)> {
    let (behind, before) = cursor.split(backends);
    let mut places = (before.len()..).zip(behind).chain((0..).zip(before));
    let (place, backend) = places.find(|(_, backend)| eligible(backend, state))?;
    Some((Cursor::at(place, backend.id, 0), backend))
}

/// The place that is next, if the list is the same as before, and the position once its backend was chosen.
#[inline]
pub(super) fn due(backends: &[Backend], cursor: Cursor) -> Option<(usize, Cursor)> {
    let place = cursor.next_place(backends.len());
    let backend = backends.get(place).filter(|_| cursor.is_kept(backends))?;
    Some((place, Cursor::at(place, backend.id, 0)))
}

/// The position steps back over backends that are gone, to the nearest one in front of them that is left.
pub(super) fn carry(old: &[Backend], new: &[Backend], cell: &AtomicU64) {
    let places: HashMap<_, _> = (0..).zip(new).map(|(place, backend)| (backend.id, place)).collect();
    Cursor::advance(cell, |cursor| {
        cursor.last?;
        let (_, before) = cursor.split(old);
        let left = before.iter().rev().find_map(|backend| Some((*places.get(&backend.id)?, backend.id)));
        Some((left.map_or_else(Cursor::default, |(place, id)| Cursor::at(place, id, 0)), ()))
    });
}
