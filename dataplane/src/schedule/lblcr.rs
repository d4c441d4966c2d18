//! Locality-based least connections with replication (`ip_vs_lblcr.c`): as lblc, but each destination has a set of
//! backends, which grows when they are overrun and shrinks by one when it has not grown for as
//! long as a destination is remembered.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicU32, AtomicU64};

use super::cache::{self, Memory};
use super::lblc::is_overrun;
use super::{eligible, overhead, wlc};
use crate::flow::key::FlowKey;
use crate::snapshot::Backend;
use crate::state::State;
use crate::time::Tick;

/// The backends of each destination.
pub(super) type Cache = cache::Cache<Set>;

/// Backends of a set at most. The kernel has no limit; past this one the backend that joined first leaves.
const MEMBERS: usize = 16;

/// The backends of one destination, in no order: each has the number of its joining.
#[derive(Debug, Default)]
pub struct Set {
    /// The tick of the latest change.
    changed: AtomicU32,
    /// How many have joined.
    joined: AtomicU32,
    /// From bit 0 on: the id plus 1 (32 bits), the number of its joining (32). 0 for a free place.
    members: [AtomicU64; MEMBERS],
}

/// A member of a set: its word, its backend if that is in the list.
#[derive(Clone, Copy)]
struct Member<'a> {
    place: usize,
    word: u64,
    backend: Option<&'a Backend>,
}

impl Memory for Set {
    fn clear(&self) {
        self.members.iter().for_each(|member| member.store(0, Relaxed));
    }

    fn forget(&self, gone: &dyn Fn(u32) -> bool) {
        for member in &self.members {
            let word = member.load(Relaxed);
            if id(word).is_some_and(gone) {
                let _ = member.compare_exchange(word, 0, Relaxed, Relaxed);
            }
        }
    }
}

impl Set {
    fn members<'a>(&self, backends: &'a [Backend]) -> impl Iterator<Item = Member<'a>> {
        self.members.iter().enumerate().filter_map(|(place, member)| {
            let word = member.load(Relaxed);
            let id = id(word)?;
            Some(Member { place, word, backend: backends.iter().find(|backend| backend.id.0 == id) })
        })
    }

    /// The member with the smallest overhead for its weight, of equals the one that joined last.
    fn least<'a>(&self, backends: &'a [Backend], state: &State) -> Option<&'a Backend> {
        let present = self.members(backends).filter_map(|member| Some((member.backend?, member.word >> 32)));
        let candidates = present.filter(|(backend, _)| eligible(backend, state));
        let loaded = candidates.map(|(backend, joined)| ((backend, overhead(backend, state)), joined));
        let least = loaded.reduce(|least, other| {
            let less = wlc::outweighs(least.0, other.0);
            let same = !less && !wlc::outweighs(other.0, least.0);
            if less || same && other.1 > least.1 { other } else { least }
        });
        least.map(|((backend, _), _)| backend)
    }

    /// Takes the member with the largest overhead for its weight out, of equals the one that joined last; before that
    /// one whose backend is not in the list any more.
    fn shrink(&self, backends: &[Backend], state: &State, now: Tick) {
        let removed = self.members(backends).find(|member| member.backend.is_none());
        let loaded = self.members(backends).filter_map(|member| {
            let backend = member.backend.filter(|backend| backend.weight > 0)?;
            Some((member, (backend, overhead(backend, state))))
        });
        let most = loaded.reduce(|most, other| {
            let more = wlc::outweighs(other.1, most.1);
            let same = !more && !wlc::outweighs(most.1, other.1);
            if more || same && other.0.word > most.0.word { other } else { most }
        });
        if let Some(leaving) = removed.or(most.map(|(member, _)| member))
            && let Some(place) = self.members.get(leaving.place)
            && place.compare_exchange(leaving.word, 0, Relaxed, Relaxed).is_ok()
        {
            self.changed.store(now.0, Relaxed);
        }
    }

    /// Takes a backend in, unless it is a member.
    fn join(&self, backend: &Backend, backends: &[Backend], now: Tick) {
        let joining = backend.id.0.wrapping_add(1);
        if self.members(backends).any(|member| id(member.word) == Some(backend.id.0)) {
            return;
        }
        let word = u64::from(joining) | u64::from(self.joined.fetch_add(1, Relaxed)) << 32;
        let free =
            self.members.iter().find(|member| member.compare_exchange(0, word, Relaxed, Relaxed).is_ok());
        if free.is_none() {
            let removed = self.members(backends).find(|member| member.backend.is_none());
            let first = removed.or_else(|| self.members(backends).min_by_key(|member| member.word >> 32));
            let Some(place) = first.and_then(|first| self.members.get(first.place)) else { return };
            place.store(word, Relaxed);
        }
        self.changed.store(now.0, Relaxed);
    }
}

#[inline]
#[expect(clippy::cast_possible_truncation, reason = "the id is the lower half of the word")]
fn id(word: u64) -> Option<u32> {
    (word as u32).checked_sub(1)
}

#[inline]
pub(super) fn find<'a>(
    cache: &Cache,
    backends: &'a [Backend],
    state: &State,
    key: &FlowKey,
    now: Tick,
    lasts_s: u32,
) -> Option<&'a Backend> {
    if let Some(set) = cache.get(key.dst, now, lasts_s) {
        let least = set.least(backends, state);
        let expires = Tick(set.changed.load(Relaxed)).after_seconds(lasts_s);
        if expires.is_due(now) && expires != now && set.members(backends).count() > 1 {
            set.shrink(backends, state, now);
        }
        if let Some(least) = least.filter(|least| !is_overrun(least, backends, state)) {
            return Some(least);
        }
    }
    let chosen = wlc::least(backends, state)?;
    if let Some(set) = cache.entry(key.dst, now, lasts_s) {
        set.join(chosen, backends, now);
    }
    Some(chosen)
}
