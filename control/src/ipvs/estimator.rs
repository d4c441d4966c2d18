//! Counts and rates of services and servers, as the kernel's estimator has them (`ip_vs_est.c`): what `--stats` and
//! `--rate` tell.
//!
//! Each is looked at once in two seconds, so what is told may be that old, as with the kernel. Within those two seconds
//! the services take turns, that no moment has to look at all of them. A service's counts are the sum over its backends,
//! also of those that were removed.

use std::collections::HashMap;

use dataplane::ids::{BackendId, ServiceId};
use dataplane::snapshot::Services;

use super::command::Stats;
use crate::admin::protocol::Traffic;
use crate::compile::Fresh;

/// Milliseconds from one look at a counter to the next.
const ROUND_MS: u64 = 2000;

type Map<K, V> = HashMap<K, V, ahash::RandomState>;

/// The estimator of all services.
#[derive(Debug, Default)]
pub struct Estimator {
    tracks: Vec<Track>,
    places: Map<ServiceId, usize>,
    /// The next track of this round.
    next: usize,
    /// When this round began.
    begun_ms: u64,
}

/// A service and its backends.
#[derive(Debug)]
struct Track {
    id: ServiceId,
    total: Meter,
    /// With what its counters showed at the last look. Removed ones are here too, as long as their slot is theirs.
    backends: Map<BackendId, (Traffic, Meter)>,
}

impl Estimator {
    /// Follows a change of the tables. `read` says what a backend's counters show.
    ///
    /// A service that is new, or was away, begins at zero with all its backends.
    pub fn follow(&mut self, services: &Services, fresh: &Fresh, read: impl Fn(BackendId) -> Traffic) {
        let mut old: Map<ServiceId, Track> =
            std::mem::take(&mut self.tracks).into_iter().map(|track| (track.id, track)).collect();
        for id in &fresh.services {
            old.remove(id);
        }
        let is_fresh: std::collections::HashSet<BackendId, ahash::RandomState> =
            fresh.backends.iter().copied().collect();
        for service in services.iter() {
            let mut track = old.remove(&service.id).unwrap_or_else(|| Track {
                id: service.id,
                total: Meter::default(),
                backends: Map::default(),
            });
            track.backends.retain(|id, _| !is_fresh.contains(id));
            for backend in &*service.backends {
                track.backends.entry(backend.id).or_insert_with(|| (read(backend.id), Meter::default()));
            }
            self.places.insert(service.id, self.tracks.len());
            self.tracks.push(track);
        }
        // A slot that has another owner now, in whatever service.
        self.places.retain(|id, place| self.tracks.get(*place).is_some_and(|track| track.id == *id));
        self.next = self.next.min(self.tracks.len());
    }

    /// Looks at those services whose turn has come by `now_ms`, counted from anywhere. To be called many times in two
    /// seconds. `is_idle` says of a backend that is not in the tables any more whether nothing can come of it.
    pub fn tick(
        &mut self,
        now_ms: u64,
        read: impl Fn(BackendId) -> Traffic,
        is_over: impl Fn(BackendId) -> bool,
    ) {
        let past = now_ms.saturating_sub(self.begun_ms);
        if past >= ROUND_MS {
            self.look(self.tracks.len(), &read, &is_over);
            self.next = 0;
            // Where control was late, the rounds missed are not made up for.
            self.begun_ms = now_ms - past % ROUND_MS;
        }
        let past = now_ms.saturating_sub(self.begun_ms);
        let due = self.tracks.len() as u64 * past / ROUND_MS;
        self.look(usize::try_from(due).unwrap_or(usize::MAX), &read, &is_over);
    }

    /// Looks at all services from the next to `until`.
    fn look(
        &mut self,
        until: usize,
        read: &impl Fn(BackendId) -> Traffic,
        is_over: &impl Fn(BackendId) -> bool,
    ) {
        let until = until.min(self.tracks.len());
        for track in self.tracks.get_mut(self.next..until).unwrap_or_default() {
            track.look(read, is_over);
        }
        self.next = self.next.max(until);
    }

    /// Sets the counts of a service and its backends to zero, of all services without one.
    pub fn zero(&mut self, of: Option<ServiceId>) {
        let place = of.map(|id| self.places.get(&id).copied().unwrap_or(usize::MAX));
        let tracks = match place {
            None => self.tracks.as_mut_slice(),
            Some(place) => {
                self.tracks.get_mut(place..).and_then(|rest| rest.get_mut(..1)).unwrap_or_default()
            }
        };
        for track in tracks {
            track.total.zero();
            track.backends.values_mut().for_each(|(_, meter)| meter.zero());
        }
    }

    /// What is told of a service.
    pub fn service(&self, id: ServiceId) -> Stats {
        self.track(id).map(|track| track.total.stats()).unwrap_or_default()
    }

    /// What is told of one of its backends.
    pub fn backend(&self, service: ServiceId, id: BackendId) -> Stats {
        let found = self.track(service).and_then(|track| track.backends.get(&id));
        found.map(|(_, meter)| meter.stats()).unwrap_or_default()
    }

    fn track(&self, id: ServiceId) -> Option<&Track> {
        self.tracks.get(*self.places.get(&id)?)
    }
}

impl Track {
    fn look(&mut self, read: &impl Fn(BackendId) -> Traffic, is_over: &impl Fn(BackendId) -> bool) {
        let mut all = Traffic::default();
        self.backends.retain(|id, (before, meter)| {
            let now = read(*id);
            let more = since(now, *before);
            *before = now;
            meter.look(more);
            all += more;
            !is_over(*id)
        });
        self.total.look(all);
    }
}

/// What came between two looks at the same counters.
fn since(now: Traffic, before: Traffic) -> Traffic {
    Traffic {
        flows: now.flows.saturating_sub(before.flows),
        packets_in: now.packets_in.saturating_sub(before.packets_in),
        bytes_in: now.bytes_in.saturating_sub(before.bytes_in),
        packets_out: now.packets_out.saturating_sub(before.packets_out),
        bytes_out: now.bytes_out.saturating_sub(before.bytes_out),
    }
}

/// Counts since the last zeroing, and smoothed rates: a quarter of the way to the last two seconds' with each look.
#[derive(Clone, Copy, Debug, Default)]
struct Meter {
    total: Traffic,
    /// A second, in 1/1024.
    conns: Rate<10>,
    packets_in: Rate<10>,
    packets_out: Rate<10>,
    /// A second, in 1/32.
    bytes_in: Rate<5>,
    bytes_out: Rate<5>,
}

impl Meter {
    fn look(&mut self, more: Traffic) {
        self.total += more;
        self.conns.look(more.flows);
        self.packets_in.look(more.packets_in);
        self.packets_out.look(more.packets_out);
        self.bytes_in.look(more.bytes_in);
        self.bytes_out.look(more.bytes_out);
    }

    fn zero(&mut self) {
        *self = Self::default();
    }

    fn stats(&self) -> Stats {
        let Traffic { flows, packets_in, bytes_in, packets_out, bytes_out } = self.total;
        Stats {
            conns: flows,
            in_packets: packets_in,
            out_packets: packets_out,
            in_bytes: bytes_in,
            out_bytes: bytes_out,
            conns_rate: self.conns.per_second(),
            in_packets_rate: self.packets_in.per_second(),
            out_packets_rate: self.packets_out.per_second(),
            in_bytes_rate: self.bytes_in.per_second(),
            out_bytes_rate: self.bytes_out.per_second(),
        }
    }
}

/// A smoothed rate with so many bits behind the point.
#[derive(Clone, Copy, Debug, Default)]
struct Rate<const BITS: u32>(i64);

impl<const BITS: u32> Rate<BITS> {
    /// So many in the last two seconds.
    fn look(&mut self, more: u64) {
        let rate = i64::try_from(more).unwrap_or(i64::MAX).saturating_mul(1 << (BITS - 1));
        self.0 = self.0.saturating_add(rate.saturating_sub(self.0) >> 2);
    }

    /// Rounded, a half down.
    fn per_second(self) -> u64 {
        let half = (1 << (BITS - 1)) - 1;
        self.0.saturating_add(half).cast_unsigned() >> BITS
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use dataplane::snapshot::{Backend, Mode, Service};

    use super::*;

    const SERVICE: ServiceId = ServiceId(3);

    fn traffic(flows: u64, packets: u64, bytes: u64) -> Traffic {
        Traffic { flows, packets_in: packets, bytes_in: bytes, packets_out: 0, bytes_out: 0 }
    }

    /// Tables of one service with these backends.
    fn services(backends: &[u32]) -> Services {
        let backend = |id: &u32| Backend::new(BackendId(*id), [10, 0, 0, 1].into(), 80, 1, Mode::Nat);
        let backends = backends.iter().map(backend).collect();
        Services::new(vec![Service { id: SERVICE, backends, ..Service::default() }], Vec::new(), [])
    }

    #[test]
    fn counts_are_folded_every_two_seconds_and_rates_as_the_kernel_smooths_them() {
        let counters = RefCell::new(Traffic::default());
        let read = |_| *counters.borrow();
        let mut estimator = Estimator::default();
        estimator.follow(&services(&[1]), &Fresh::default(), read);
        estimator.tick(0, read, |_| false);
        // What was recorded of the kernel: 6 connections of 30 packets and 1716 bytes in all, four seconds ago.
        *counters.borrow_mut() = traffic(6, 30, 1716);
        estimator.tick(1900, read, |_| false);
        assert_eq!(estimator.service(SERVICE), Stats::default(), "not looked at yet");
        estimator.tick(2000, read, |_| false);
        estimator.tick(4000, read, |_| false);
        let stats = estimator.service(SERVICE);
        assert_eq!((stats.conns, stats.in_packets, stats.in_bytes), (6, 30, 1716));
        assert_eq!((stats.conns_rate, stats.in_packets_rate, stats.in_bytes_rate), (1, 3, 161));
        assert_eq!(estimator.backend(SERVICE, BackendId(1)), stats);
    }

    #[test]
    fn a_removed_backends_traffic_stays_with_the_service_and_a_new_owner_of_its_slot_begins_at_zero() {
        let counters = RefCell::new(traffic(5, 50, 500));
        let read = |_| *counters.borrow();
        let mut estimator = Estimator::default();
        estimator.follow(&services(&[1, 2]), &Fresh::default(), read);
        *counters.borrow_mut() = traffic(7, 70, 700);
        estimator.tick(ROUND_MS, read, |_| false);
        assert_eq!(estimator.service(SERVICE).conns, 4);
        estimator.follow(&services(&[1]), &Fresh::default(), read);
        *counters.borrow_mut() = traffic(8, 80, 800);
        estimator.tick(2 * ROUND_MS, read, |_| false);
        assert_eq!(estimator.service(SERVICE).conns, 6);
        estimator.follow(&services(&[1, 2]), &Fresh::default(), read);
        assert_eq!(estimator.backend(SERVICE, BackendId(2)).conns, 3, "it came back");
        let fresh = Fresh { services: vec![], backends: vec![BackendId(2)] };
        estimator.follow(&services(&[1, 2]), &fresh, read);
        assert_eq!(estimator.backend(SERVICE, BackendId(2)).conns, 0, "this is another");
        assert_eq!(estimator.service(SERVICE).conns, 6);
    }

    #[test]
    fn a_service_that_was_away_begins_at_zero_with_all_its_backends() {
        let counters = RefCell::new(Traffic::default());
        let read = |_| *counters.borrow();
        let mut estimator = Estimator::default();
        estimator.follow(&services(&[1]), &Fresh::default(), read);
        *counters.borrow_mut() = traffic(7, 70, 700);
        estimator.tick(ROUND_MS, read, |_| false);
        estimator.follow(&Services::default(), &Fresh::default(), read);
        estimator.follow(&services(&[1]), &Fresh::default(), read);
        assert_eq!(estimator.backend(SERVICE, BackendId(1)), Stats::default());
        assert_eq!(estimator.service(SERVICE), Stats::default());
    }

    #[test]
    fn zeroing_forgets_what_was_seen_and_not_what_is_still_to_be_looked_at() {
        let counters = RefCell::new(traffic(0, 0, 0));
        let read = |_| *counters.borrow();
        let mut estimator = Estimator::default();
        estimator.follow(&services(&[1]), &Fresh::default(), read);
        *counters.borrow_mut() = traffic(2, 20, 200);
        estimator.tick(ROUND_MS, read, |_| false);
        *counters.borrow_mut() = traffic(3, 30, 300);
        estimator.zero(Some(SERVICE));
        assert_eq!(estimator.service(SERVICE), Stats::default());
        estimator.tick(2 * ROUND_MS, read, |_| false);
        assert_eq!(estimator.service(SERVICE).conns, 1);
        estimator.zero(None);
        assert_eq!(estimator.backend(SERVICE, BackendId(1)), Stats::default());
        estimator.zero(Some(ServiceId(9)));
    }

    #[test]
    fn in_a_round_each_service_is_looked_at_once_in_its_turn() {
        let list = (0..100).map(|id| Service {
            id: ServiceId(id),
            backends: [Backend::new(BackendId(id), [10, 0, 0, 1].into(), 80, 1, Mode::Nat)].into(),
            ..Service::default()
        });
        let services = Services::new(list.collect(), Vec::new(), []);
        let looks = RefCell::new(0);
        let read = |_| {
            *looks.borrow_mut() += 1;
            Traffic::default()
        };
        let mut estimator = Estimator::default();
        estimator.follow(&services, &Fresh::default(), read);
        *looks.borrow_mut() = 0;
        for tick in 1..=40 {
            estimator.tick(50 * tick, read, |_| false);
            let looks = *looks.borrow();
            assert!((looks as u64).abs_diff(5 * tick / 2) <= 1, "{looks} after {tick} ticks");
        }
        assert_eq!(*looks.borrow(), 100);
    }
}
