//! Locality-based least connections (`ip_vs_lblc.c`): packets to one address go to the backend that had the last ones,
//! until that one is overrun while another idles; then wlc chooses.

use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::Relaxed;

use super::cache::{self, Memory};
use super::{active, wlc};
use crate::flow::key::FlowKey;
use crate::snapshot::Backend;
use crate::state::State;
use crate::time::Tick;

/// The backend of each destination.
pub(super) type Cache = cache::Cache<Last>;

/// The id of a backend, plus one; 0 for none.
#[derive(Debug, Default)]
pub struct Last(AtomicU32);

impl Memory for Last {
    fn clear(&self) {
        self.0.store(0, Relaxed);
    }

    fn forget(&self, gone: &dyn Fn(u32) -> bool) {
        let id = self.0.load(Relaxed);
        if id.checked_sub(1).is_some_and(gone) {
            // Where another worker has written meanwhile, that stays.
            let _ = self.0.compare_exchange(id, 0, Relaxed, Relaxed);
        }
    }
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
    let last = cache.get(key.dst, now, lasts_s).and_then(|last| last.0.load(Relaxed).checked_sub(1));
    let known = last.and_then(|id| backends.iter().find(|backend| backend.id.0 == id));
    // As in the kernel, a backend that its thresholds have closed keeps its destinations.
    if let Some(known) = known.filter(|known| known.weight > 0 && !is_overrun(known, backends, state)) {
        return Some(known);
    }
    let chosen = wlc::least(backends, state)?;
    if let Some(last) = cache.entry(key.dst, now, lasts_s) {
        last.0.store(chosen.id.0.wrapping_add(1), Relaxed);
    }
    Some(chosen)
}

/// Whether a backend has more active connections than its weight while another has less than half of its own.
#[inline]
pub(super) fn is_overrun(backend: &Backend, backends: &[Backend], state: &State) -> bool {
    let idles = |other: &Backend| u64::from(active(other, state)) * 2 < u64::from(other.weight);
    active(backend, state) > backend.weight && backends.iter().any(idles)
}
