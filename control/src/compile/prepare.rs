//! What has to be done to the slabs that outlive generations, right before new tables are published.

use std::collections::HashSet;

use dataplane::ids::{BackendId, ServiceId};
use dataplane::schedule;
use dataplane::snapshot::{Backend, Service, Services};
use dataplane::state::State;
use dataplane::time::Tick;

use super::Built;

impl Built {
    /// Makes `state` ready for the tables `new` that were built out of `old`: empties the slots that have a new owner, sets
    /// thresholds and the ends of drained backends, and carries over what schedulers remember. Called at `now`, right
    /// before publishing.
    pub fn prepare(&self, old: &Services, new: &Services, state: &State, now: Tick) {
        let fresh: HashSet<ServiceId, ahash::RandomState> = self.reused.services.iter().copied().collect();
        let reused: HashSet<BackendId, ahash::RandomState> = self.reused.backends.iter().copied().collect();
        for slot in self.reused.backends.iter().filter_map(|id| state.backend(*id)) {
            slot.clear();
        }
        for service in self.made.iter().filter_map(|id| new.service(*id)) {
            for backend in &*service.backends {
                // Of services that share it, one says what bounds it.
                let bounding = new.backend(backend.id);
                if bounding.is_some_and(|(of, _)| of.id == service.id) {
                    bound(old.backend(backend.id), (service, backend), state, now);
                }
            }
            let Some(slot) = state.service(service.id) else { continue };
            let Some(before) = old.service(service.id).filter(|_| !fresh.contains(&service.id)) else {
                schedule::start(service, slot);
                continue;
            };
            service.scheduler.forget(|id| reused.contains(&id));
            if before.backends != service.backends || before.scheduler.kind() != service.scheduler.kind() {
                schedule::carry(before, service, slot);
            }
        }
        for service in self.before.iter().filter_map(|id| old.service(*id)) {
            let Some(drain_s) = service.options.drain_s else { continue };
            let removed = service.backends.iter().filter(|backend| new.backend(backend.id).is_none());
            for slot in removed.filter_map(|backend| state.backend(backend.id)) {
                // One that was draining already keeps its end.
                slot.set_ends(slot.ends().or(Some(now.after_seconds(drain_s))));
            }
        }
    }
}

/// Writes what bounds a backend into its slot, where that is not as it was `before`.
fn bound(before: Option<(&Service, &Backend)>, now_is: (&Service, &Backend), state: &State, now: Tick) {
    let (_, backend) = now_is;
    let Some(slot) = state.backend(backend.id) else { return };
    let thresholds = |backend: &Backend| (backend.upper, backend.lower);
    let drains =
        |(service, backend): (&Service, &Backend)| service.options.drain_s.filter(|_| backend.weight == 0);
    // A slot that is as it is made is left alone: it takes no memory yet.
    let (had, drained) = before.map_or_else(
        || (slot.thresholds(), slot.ends().map(|_| 0)),
        |before| (thresholds(before.1), drains(before)),
    );
    if had != thresholds(backend) {
        slot.set_thresholds(backend.upper, backend.lower);
    }
    let drain_s = drains(now_is);
    if drained != drain_s || before.is_none() && drain_s.is_some() {
        slot.set_ends(drain_s.map(|seconds| now.after_seconds(seconds)));
    }
}
