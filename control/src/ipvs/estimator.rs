//! Counts and rates of services and servers, as the kernel's estimator has them (`ip_vs_est.c`): what `--stats` and
//! `--rate` tell.
//!
//! Each is looked at once in two seconds, so what is told may be that old, as with the kernel. Within those two seconds they
//! take turns, that no moment has to look at all of them. One whose counters stand still, and whose rates have come down to
//! nothing, is not looked at any more until a worker says that it stirs: what an idle cluster costs does not grow with it. A
//! service's counts are the sum over its backends, also of those that were removed; a backend that services share counts
//! with each of them.

use std::collections::HashMap;

use dataplane::ids::{BackendId, ServiceId};
use dataplane::snapshot::{Service, Services};

use super::command::Stats;
use crate::admin::protocol::Traffic;
use crate::compile::Built;

/// Turns from one look at a counter to the next: two seconds.
const TURNS: u64 = 40;
/// Milliseconds of a turn.
const TURN_MS: u64 = 50;

type Map<K, V> = HashMap<K, V, ahash::RandomState>;

/// The counters, as far as the estimator has to know of them.
pub trait Counters {
    /// Takes the backends that have had traffic since they were last said to rest.
    fn stirred(&self, see: &mut dyn FnMut(BackendId));

    /// Says that nobody looks at the backend any more until it stirs again.
    fn rest(&self, id: BackendId);

    /// What the backend's counters show since its slot is its own.
    fn read(&self, id: BackendId) -> Traffic;

    /// The services that have the backend, or had it when it was removed.
    fn services(&self, id: BackendId) -> Vec<ServiceId>;
}

/// The estimator of all services.
#[derive(Debug)]
pub struct Estimator {
    /// Those that have ever had traffic.
    backends: Map<BackendId, Seen>,
    /// Those whose backends have.
    services: Map<ServiceId, Sum>,
    turns: Vec<Turn>,
    /// The turn that came last, counted from anywhere.
    last: u64,
}

/// Who is looked at in a turn.
#[derive(Clone, Debug, Default)]
struct Turn {
    backends: Vec<BackendId>,
    services: Vec<ServiceId>,
}

/// A backend.
#[derive(Debug)]
struct Seen {
    /// What its counters showed at the last look.
    before: Traffic,
    meter: Meter,
    watch: Watch,
    turn: usize,
}

/// Whether a backend is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Watch {
    /// In its turn.
    Busy,
    /// Once more: it was said to rest at the last look, and traffic of just that moment may have missed that.
    Resting,
    /// Not until it stirs.
    Asleep,
}

/// A service.
#[derive(Debug, Default)]
struct Sum {
    /// What its backends have had since the last look.
    more: Traffic,
    meter: Meter,
    is_busy: bool,
}

impl Default for Estimator {
    fn default() -> Self {
        Self {
            backends: Map::default(),
            services: Map::default(),
            turns: (0..TURNS).map(|_| Turn::default()).collect(),
            last: 0,
        }
    }
}

/// The turn in which a service is looked at, and backends that were its own first.
fn turn_of(service: ServiceId) -> usize {
    usize::try_from(u64::from(service.0) % TURNS).unwrap_or_default()
}

impl Estimator {
    /// Follows a change of the tables from `old` to `new`.
    ///
    /// A service that is new, or was away, begins at zero with all its backends.
    pub fn follow(&mut self, old: &Services, new: &Services, built: &Built, counters: &impl Counters) {
        for service in built.before.iter().filter_map(|id| old.service(*id)) {
            if new.service(service.id).is_none() {
                self.forget_service(service.id);
                let gone = service.backends.iter().filter(|backend| new.backend(backend.id).is_none());
                gone.for_each(|backend| self.forget_backend(backend.id));
            }
        }
        built.reused.services.iter().for_each(|id| self.forget_service(*id));
        built.reused.backends.iter().for_each(|id| self.forget_backend(*id));
        for id in &built.returned {
            let own = new.backend(*id).map(|(service, _)| service.id);
            if own.is_some_and(|own| old.service(own).is_none()) {
                let begin =
                    |seen: &mut Seen| (seen.before, seen.meter) = (counters.read(*id), Meter::default());
                begin(self.backends.entry(*id).or_insert_with(Seen::asleep));
            }
        }
    }

    fn forget_service(&mut self, id: ServiceId) {
        if self.services.remove(&id).is_some_and(|sum| sum.is_busy)
            && let Some(turn) = self.turns.get_mut(turn_of(id))
        {
            turn.services.retain(|other| *other != id);
        }
    }

    fn forget_backend(&mut self, id: BackendId) {
        if let Some(seen) = self.backends.remove(&id).filter(|seen| seen.watch != Watch::Asleep)
            && let Some(turn) = self.turns.get_mut(seen.turn)
        {
            turn.backends.retain(|other| *other != id);
        }
    }

    /// Looks at those whose turn has come by `now_ms`, counted from anywhere. To be called many times in two seconds.
    pub fn tick(&mut self, now_ms: u64, counters: &impl Counters) {
        counters.stirred(&mut |id| self.wake(id, counters));
        let now = now_ms / TURN_MS;
        // Where control was late, the rounds missed are not made up for.
        let first = (self.last + 1).max(now.saturating_sub(TURNS - 1));
        for turn in first..=now {
            self.look(usize::try_from(turn % TURNS).unwrap_or_default(), counters);
        }
        self.last = self.last.max(now);
    }

    fn wake(&mut self, id: BackendId, counters: &impl Counters) {
        let seen = self.backends.entry(id).or_insert_with(Seen::asleep);
        if seen.watch == Watch::Asleep {
            seen.turn = counters.services(id).first().copied().map(turn_of).unwrap_or_default();
            if let Some(turn) = self.turns.get_mut(seen.turn) {
                turn.backends.push(id);
            }
        }
        seen.watch = Watch::Busy;
    }

    fn look(&mut self, at: usize, counters: &impl Counters) {
        let Some(turn) = self.turns.get_mut(at) else { return };
        let mut backends = std::mem::take(&mut turn.backends);
        backends.retain(|id| self.look_at(*id, counters));
        let Some(turn) = self.turns.get_mut(at) else { return };
        turn.backends = backends;
        turn.services.retain(|id| self.services.get_mut(id).is_some_and(Sum::look));
    }

    /// Looks at a backend. Returns whether it is to be looked at again.
    fn look_at(&mut self, id: BackendId, counters: &impl Counters) -> bool {
        let Some(seen) = self.backends.get_mut(&id) else { return false };
        let now = counters.read(id);
        let more = now.since(seen.before);
        seen.before = now;
        seen.meter.look(more);
        seen.watch = match seen.watch {
            _ if more != Traffic::default() || !seen.meter.is_still() => Watch::Busy,
            Watch::Busy => {
                counters.rest(id);
                Watch::Resting
            }
            Watch::Resting | Watch::Asleep => Watch::Asleep,
        };
        let goes_on = seen.watch != Watch::Asleep;
        if more != Traffic::default() {
            counters.services(id).into_iter().for_each(|service| self.add(service, more));
        }
        goes_on
    }

    fn add(&mut self, id: ServiceId, more: Traffic) {
        let sum = self.services.entry(id).or_default();
        sum.more += more;
        if !std::mem::replace(&mut sum.is_busy, true)
            && let Some(turn) = self.turns.get_mut(turn_of(id))
        {
            turn.services.push(id);
        }
    }

    /// Sets the counts of a service and its backends to zero, of all services without one.
    pub fn zero(&mut self, of: Option<&Service>) {
        let Some(of) = of else {
            self.services.values_mut().for_each(|sum| sum.meter = Meter::default());
            self.backends.values_mut().for_each(|seen| seen.meter = Meter::default());
            return;
        };
        if let Some(sum) = self.services.get_mut(&of.id) {
            sum.meter = Meter::default();
        }
        for backend in &*of.backends {
            if let Some(seen) = self.backends.get_mut(&backend.id) {
                seen.meter = Meter::default();
            }
        }
    }

    /// What is told of a service.
    pub fn service(&self, id: ServiceId) -> Stats {
        self.services.get(&id).map(|sum| sum.meter.stats()).unwrap_or_default()
    }

    /// What is told of a backend.
    pub fn backend(&self, id: BackendId) -> Stats {
        self.backends.get(&id).map(|seen| seen.meter.stats()).unwrap_or_default()
    }
}

impl Seen {
    fn asleep() -> Self {
        Self { before: Traffic::default(), meter: Meter::default(), watch: Watch::Asleep, turn: 0 }
    }
}

impl Sum {
    /// Returns whether it is to be looked at again.
    fn look(&mut self) -> bool {
        self.meter.look(std::mem::take(&mut self.more));
        self.is_busy = !self.meter.is_still();
        self.is_busy
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

    /// Whether no rate is left, so that it stays as it is without traffic.
    fn is_still(&self) -> bool {
        let small = [self.conns.0, self.packets_in.0, self.packets_out.0];
        small.into_iter().chain([self.bytes_in.0, self.bytes_out.0]).all(|rate| rate == 0)
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
    use std::cell::{Cell, RefCell};

    use dataplane::snapshot::{Backend, Mode};

    use super::*;
    use crate::compile::Fresh;

    /// Its turn comes at the end of each two seconds.
    const SERVICE: ServiceId = ServiceId(40);

    /// What backends' counters show, the backends that stir, and how often counters were read.
    struct World {
        tables: Services,
        traffic: RefCell<Map<BackendId, Traffic>>,
        stirred: RefCell<Vec<BackendId>>,
        resting: RefCell<Vec<BackendId>>,
        reads: Cell<u64>,
    }

    impl Counters for World {
        fn stirred(&self, see: &mut dyn FnMut(BackendId)) {
            self.stirred.take().into_iter().for_each(see);
        }

        fn rest(&self, id: BackendId) {
            self.resting.borrow_mut().push(id);
        }

        fn read(&self, id: BackendId) -> Traffic {
            self.reads.set(self.reads.get() + 1);
            self.traffic.borrow().get(&id).copied().unwrap_or_default()
        }

        fn services(&self, _: BackendId) -> Vec<ServiceId> {
            self.tables.iter().map(|service| service.id).collect()
        }
    }

    impl World {
        fn new(backends: &[u32]) -> Self {
            Self {
                tables: services(backends),
                traffic: RefCell::default(),
                stirred: RefCell::default(),
                resting: RefCell::default(),
                reads: Cell::new(0),
            }
        }

        /// The backend has had so much in all.
        fn show(&self, id: u32, flows: u64, packets: u64, bytes: u64) {
            let traffic =
                Traffic { flows, packets_in: packets, bytes_in: bytes, packets_out: 0, bytes_out: 0 };
            self.traffic.borrow_mut().insert(BackendId(id), traffic);
            self.resting.borrow_mut().retain(|other| *other != BackendId(id));
            self.stirred.borrow_mut().push(BackendId(id));
        }

        /// Tables of these backends come; those with these ids were somebody else's before, or were away.
        fn change(&mut self, estimator: &mut Estimator, tables: Services, reused: &[u32], returned: &[u32]) {
            let ids = |list: &[u32]| list.iter().copied().map(BackendId).collect();
            let built = Built {
                made: tables.iter().map(|service| service.id).collect(),
                before: self.tables.iter().map(|service| service.id).collect(),
                reused: Fresh { services: vec![], backends: ids(reused) },
                returned: ids(returned),
                ..Built::default()
            };
            let old = std::mem::replace(&mut self.tables, tables);
            estimator.follow(&old, &self.tables, &built, self);
        }
    }

    /// Tables of one service with these backends.
    fn services(backends: &[u32]) -> Services {
        let backend = |id: &u32| Backend::new(BackendId(*id), [10, 0, 0, 1].into(), 80, 1, Mode::Nat);
        let backends = backends.iter().map(backend).collect();
        Services::new(vec![Service { id: SERVICE, backends, ..Service::default() }], Vec::new(), [])
    }

    #[test]
    fn counts_are_folded_every_two_seconds_and_rates_as_the_kernel_smooths_them() {
        let (world, mut estimator) = (World::new(&[1]), Estimator::default());
        estimator.tick(0, &world);
        // What was recorded of the kernel: 6 connections of 30 packets and 1716 bytes in all, four seconds ago.
        world.show(1, 6, 30, 1716);
        estimator.tick(1900, &world);
        assert_eq!(estimator.service(SERVICE), Stats::default(), "not looked at yet");
        estimator.tick(2000, &world);
        estimator.tick(4000, &world);
        let stats = estimator.service(SERVICE);
        assert_eq!((stats.conns, stats.in_packets, stats.in_bytes), (6, 30, 1716));
        assert_eq!((stats.conns_rate, stats.in_packets_rate, stats.in_bytes_rate), (1, 3, 161));
        assert_eq!(estimator.backend(BackendId(1)), stats);
    }

    #[test]
    fn a_removed_backends_traffic_stays_with_the_service_and_a_new_owner_of_its_slot_begins_at_zero() {
        let (mut world, mut estimator) = (World::new(&[1, 2]), Estimator::default());
        [1, 2].into_iter().for_each(|id| world.show(id, 2, 20, 200));
        estimator.tick(2000, &world);
        assert_eq!(estimator.service(SERVICE).conns, 4);
        world.change(&mut estimator, services(&[1]), &[], &[]);
        [1, 2].into_iter().for_each(|id| world.show(id, 3, 30, 300));
        estimator.tick(4000, &world);
        assert_eq!(estimator.service(SERVICE).conns, 6);
        world.change(&mut estimator, services(&[1, 2]), &[], &[2]);
        assert_eq!(estimator.backend(BackendId(2)).conns, 3, "it came back");
        world.change(&mut estimator, services(&[1, 2]), &[2], &[]);
        assert_eq!(estimator.backend(BackendId(2)).conns, 0, "this is another");
        assert_eq!(estimator.service(SERVICE).conns, 6);
    }

    #[test]
    fn a_service_that_was_away_begins_at_zero_with_all_its_backends() {
        let (mut world, mut estimator) = (World::new(&[1]), Estimator::default());
        world.show(1, 7, 70, 700);
        estimator.tick(2000, &world);
        world.change(&mut estimator, Services::default(), &[], &[]);
        world.change(&mut estimator, services(&[1]), &[], &[1]);
        assert_eq!(estimator.backend(BackendId(1)), Stats::default());
        assert_eq!(estimator.service(SERVICE), Stats::default());
        world.show(1, 9, 90, 900);
        estimator.tick(4000, &world);
        assert_eq!((estimator.service(SERVICE).conns, estimator.backend(BackendId(1)).conns), (2, 2));
    }

    #[test]
    fn zeroing_forgets_what_was_seen_and_not_what_is_still_to_be_looked_at() {
        let (world, mut estimator) = (World::new(&[1]), Estimator::default());
        let service = world.tables.service(SERVICE).unwrap();
        world.show(1, 2, 20, 200);
        estimator.tick(2000, &world);
        world.show(1, 3, 30, 300);
        estimator.zero(Some(service));
        assert_eq!(estimator.service(SERVICE), Stats::default());
        estimator.tick(4000, &world);
        assert_eq!(estimator.service(SERVICE).conns, 1);
        estimator.zero(None);
        assert_eq!(estimator.backend(BackendId(1)), Stats::default());
        estimator.zero(Some(&Service { id: ServiceId(9), ..Service::default() }));
    }

    #[test]
    fn what_stands_still_is_not_looked_at_and_what_stirs_again_is_told_as_if_it_had_been() {
        let (world, mut estimator) = (World::new(&[1, 2, 3]), Estimator::default());
        let mut always = Meter::default();
        let mut shown = Traffic::default();
        let mut asleep = 0;
        for round in 1..1000 {
            // Traffic at first, in the middle, and in the very round after it was said to rest.
            let rests = world.resting.borrow().contains(&BackendId(2));
            let stirs = round < 5 || round == 500 || rests && shown.flows == 5;
            if stirs {
                let before = shown;
                let step =
                    Traffic { flows: 1, packets_in: 1000, bytes_in: 64_000, packets_out: 0, bytes_out: 0 };
                shown += step;
                world.show(2, shown.flows, shown.packets_in, shown.bytes_in);
                always.look(shown.since(before));
            } else {
                always.look(Traffic::default());
            }
            let reads = world.reads.get();
            estimator.tick(2000 * round, &world);
            assert_eq!(estimator.service(SERVICE), always.stats(), "{round}");
            assert_eq!(estimator.backend(BackendId(2)), always.stats(), "{round}");
            let looks = world.reads.get() - reads;
            assert!(looks <= 1, "{looks} in round {round}");
            asleep += u64::from(looks == 0);
        }
        assert_eq!(shown.flows, 6, "the last of it came while it was resting");
        assert!(asleep > 500, "{asleep}");
    }

    #[test]
    fn in_a_round_each_backend_is_looked_at_once_in_the_turn_of_its_service() {
        let list = (0..100).map(|id| Service {
            id: ServiceId(id),
            backends: [Backend::new(BackendId(id), [10, 0, 0, 1].into(), 80, 1, Mode::Nat)].into(),
            ..Service::default()
        });
        struct Own(World);
        impl Counters for Own {
            fn stirred(&self, see: &mut dyn FnMut(BackendId)) {
                self.0.stirred(see);
            }
            fn rest(&self, _: BackendId) {}
            fn read(&self, id: BackendId) -> Traffic {
                self.0.read(id)
            }
            fn services(&self, id: BackendId) -> Vec<ServiceId> {
                vec![ServiceId(id.0)]
            }
        }
        let world = Own(World { tables: Services::new(list.collect(), Vec::new(), []), ..World::new(&[]) });
        let mut estimator = Estimator::default();
        (0..100).for_each(|id| world.0.show(id, 1, 1, 1));
        for round in 0..3 {
            let before = world.0.reads.get();
            for turn in 1..=40 {
                let reads = world.0.reads.get();
                estimator.tick(2000 * round + 50 * turn, &world);
                let looks = world.0.reads.get() - reads;
                assert!((2..=3).contains(&looks), "{looks} in turn {turn}");
            }
            assert_eq!(world.0.reads.get() - before, 100);
        }
        let reads = world.0.reads.get();
        estimator.tick(60_000, &world);
        assert_eq!(world.0.reads.get() - reads, 100, "rounds missed are not made up for");
    }
}
