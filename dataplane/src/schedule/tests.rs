//! The schedulers against a model that walks a list as the kernel's text says, and under several threads.

use std::net::{IpAddr, Ipv4Addr};

use std::sync::atomic::{AtomicU32, AtomicUsize};

use proptest::prelude::*;

use super::*;
use crate::ids::BackendId;
use crate::snapshot::{Mode, Settings};

const NOW: Tick = Tick(0);

fn backend(id: u32, weight: u32) -> Backend {
    let addr = IpAddr::V4(Ipv4Addr::from_bits(0x0a01_0000 | id));
    Backend::new(BackendId(id), addr, 80, weight, Mode::Nat)
}

fn service(kind: Kind, backends: Vec<Backend>) -> Service {
    let scheduler = Scheduler::compile(kind, Flags::default(), &backends);
    let backends = backends.into();
    Service { name: "test".into(), scheduler, backends, ..Service::default() }
}

fn weighted(kind: Kind, weights: &[u32]) -> Service {
    service(kind, (1..).zip(weights).map(|(id, weight)| backend(id, *weight)).collect())
}

/// With the settings that are the kernel's.
fn scheduled<'a>(service: &'a Service, state: &State, key: &FlowKey, now: Tick) -> Option<&'a Backend> {
    schedule(service, &Settings::default(), state, key, now)
}

fn pick(service: &Service, state: &State) -> Option<u32> {
    scheduled(service, state, &FlowKey::default(), NOW).map(|backend| backend.id.0)
}

fn load(state: &State, id: BackendId, active: u32, inactive: u32) {
    let counts = state.backend(id).unwrap();
    (0..active + inactive).for_each(|_| counts.opened());
    (0..active).for_each(|_| counts.moved(true));
}

/// rr and wrr as the kernel's text has them: one entry at a time, one level at a time.
#[derive(Default)]
struct Model {
    kind: Option<Kind>,
    list: Vec<Backend>,
    /// The entry chosen last; `None` is the head.
    at: Option<u32>,
    level: i64,
}

impl Model {
    fn levels(&self) -> (i64, i64) {
        let weights =
            || self.list.iter().map(|backend| i64::from(backend.weight)).filter(|weight| *weight > 0);
        let divides = |step: &i64| weights().all(|weight| weight % step == 0);
        let step = (1..=weights().min().unwrap_or(1)).rev().find(divides).unwrap_or(1);
        (step, weights().max().unwrap_or(0) - (step - 1))
    }

    fn place(&self, id: u32) -> usize {
        self.list.iter().position(|backend| backend.id.0 == id).unwrap()
    }

    fn changed(&mut self) {
        if self.kind == Some(Kind::Wrr) {
            let (step, top) = self.levels();
            self.at = None;
            if self.level > top || self.level == 0 {
                self.level = top;
            } else if step > 1 {
                self.level = self.level / step * step + 1;
            }
        }
    }

    fn add(&mut self, added: Backend) {
        self.list.insert(0, added);
        self.changed();
    }

    fn edit(&mut self, place: usize, weight: u32) {
        self.list[place].weight = weight;
        self.changed();
    }

    fn remove(&mut self, place: usize) {
        let gone = self.list.remove(place);
        if self.at == Some(gone.id.0) {
            self.at = place.checked_sub(1).map(|before| self.list[before].id.0);
        }
        self.changed();
    }

    fn next(&mut self) -> Option<u32> {
        let weighted = self.kind == Some(Kind::Wrr);
        let (step, top) = self.levels();
        if self.list.iter().all(|backend| backend.weight == 0) {
            return None;
        }
        let mut place = self.at.map_or(0, |id| self.place(id) + 1);
        loop {
            let Some(candidate) = self.list.get(place) else {
                place = 0;
                self.level = if self.level > step { self.level - step } else { top };
                continue;
            };
            let needed = if weighted { self.level } else { 1 };
            if i64::from(candidate.weight) >= needed {
                self.at = Some(candidate.id.0);
                return self.at;
            }
            place += 1;
        }
    }
}

#[derive(Clone, Debug)]
enum Op {
    Add(u32),
    Edit(prop::sample::Index, u32),
    Remove(prop::sample::Index),
    Pick(u8),
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let weight = prop_oneof![0..7u32, (0..5u32).prop_map(|tens| tens * 10), Just(65_535)];
    let op = prop_oneof![
        2 => weight.clone().prop_map(Op::Add),
        2 => (any::<prop::sample::Index>(), weight).prop_map(|(index, weight)| Op::Edit(index, weight)),
        1 => any::<prop::sample::Index>().prop_map(Op::Remove),
        4 => (1..20u8).prop_map(Op::Pick),
    ];
    prop::collection::vec(op, 1..60)
}

proptest! {
    #[test]
    fn rr_and_wrr_choose_as_the_kernels_text_says_through_every_change_of_the_list(
        ops in ops(),
        kind in prop::sample::select(vec![Kind::Rr, Kind::Wrr]),
    ) {
        let state = State::new(1, 100);
        let mut model = Model { kind: Some(kind), ..Model::default() };
        let mut current = service(kind, Vec::new());
        for (id, op) in (1..).zip(ops) {
            match op {
                Op::Add(weight) => model.add(backend(id, weight)),
                Op::Edit(index, weight) if !model.list.is_empty() => {
                    model.edit(index.index(model.list.len()), weight);
                }
                Op::Remove(index) if !model.list.is_empty() => model.remove(index.index(model.list.len())),
                Op::Pick(count) => {
                    for _ in 0..count {
                        prop_assert_eq!(pick(&current, &state), model.next());
                    }
                    continue;
                }
                Op::Edit(..) | Op::Remove(_) => continue,
            }
            let next = service(kind, model.list.clone());
            carry(&current, &next, state.service(next.id).unwrap());
            current = next;
        }
    }

    #[test]
    fn a_new_service_begins_where_adding_its_backends_one_by_one_leads_to(
        weights in prop::collection::vec(prop_oneof![0..7u32, (0..5u32).prop_map(|tens| tens * 10)], 0..8),
        kind in prop::sample::select(vec![Kind::Rr, Kind::Wrr]),
    ) {
        let state = State::new(1, 100);
        let mut model = Model { kind: Some(kind), ..Model::default() };
        (1..).zip(weights).for_each(|(id, weight)| model.add(backend(id, weight)));
        let new = service(kind, model.list.clone());
        start(&new, state.service(new.id).unwrap());
        for _ in 0..20 {
            prop_assert_eq!(pick(&new, &state), model.next());
        }
    }

    #[test]
    fn wrr_gives_each_backend_its_weight_in_every_round(weights in prop::collection::vec(0..40u32, 1..8)) {
        let state = State::new(1, 100);
        let service = weighted(Kind::Wrr, &weights);
        let step = weights.iter().copied().filter(|weight| *weight > 0).reduce(|a, b| {
            (1..=a.min(b)).rev().find(|d| a % d == 0 && b % d == 0).unwrap()
        });
        let mut chosen = vec![0; weights.len()];
        for _ in 0..weights.iter().sum::<u32>() / step.unwrap_or(1) {
            chosen[pick(&service, &state).unwrap() as usize - 1] += step.unwrap();
        }
        prop_assert_eq!(chosen, weights);
    }
}

#[test]
fn several_threads_share_one_round() {
    const THREADS: u32 = 4;
    const ROUNDS: u32 = 1_000;
    let weights = [5, 0, 3, 1, 1];
    for (kind, want) in [(Kind::Rr, [1, 0, 1, 1, 1]), (Kind::Wrr, weights)] {
        let (state, service) = (State::new(1, 10), weighted(kind, &weights));
        let picks = ROUNDS * want.iter().sum::<u32>();
        std::thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    for _ in 0..picks {
                        let id = BackendId(pick(&service, &state).unwrap());
                        state.backend(id).unwrap().opened();
                    }
                });
            }
        });
        let chosen = [1, 2, 3, 4, 5].map(|id| state.backend(BackendId(id)).unwrap().counts().1);
        assert_eq!(chosen, want.map(|share| share * ROUNDS * THREADS), "{kind}");
    }
}

#[test]
fn workers_on_the_old_and_the_new_list_do_not_lose_the_position() {
    let state = State::new(1, 10);
    let [old, new] = [&[1, 2, 3, 4][..], &[1, 3, 4]]
        .map(|ids| service(Kind::Rr, ids.iter().map(|id| backend(*id, 1)).collect()));
    assert_eq!([pick(&old, &state), pick(&old, &state)], [Some(1), Some(2)]);
    carry(&old, &new, state.service(old.id).unwrap());
    assert_eq!(pick(&old, &state), Some(2), "this worker has not seen the change yet");
    assert_eq!(pick(&new, &state), Some(3), "its position is gone here: on at its place");
    assert_eq!([pick(&old, &state), pick(&new, &state)], [Some(4), Some(1)]);
}

#[test]
fn a_position_past_the_hint_is_searched() {
    let state = State::new(1, 1);
    let many = service(Kind::Rr, (1..=70_000).map(|id| backend(id, 1)).collect());
    for want in (1..=70_000).chain([1, 2]) {
        assert_eq!(pick(&many, &state), Some(want));
    }
}

#[test]
fn another_scheduler_starts_afresh() {
    let state = State::new(1, 10);
    let [rr, wrr] = [Kind::Rr, Kind::Wrr].map(|kind| weighted(kind, &[1, 2]));
    assert_eq!(pick(&rr, &state), Some(1));
    carry(&rr, &wrr, state.service(rr.id).unwrap());
    assert_eq!([0; 3].map(|_| pick(&wrr, &state)), [Some(2), Some(1), Some(2)]);
}

#[test]
fn connections_are_weighed() {
    /// Weight, active and inactive connections.
    type Loaded = (u32, u32, u32);
    let rows: [(&str, Kind, &[Loaded], Option<u32>); 9] = [
        ("lc: the first of equals", Kind::Lc, &[(1, 1, 0), (1, 0, 0), (1, 0, 0)], Some(2)),
        ("lc: idle ones count", Kind::Lc, &[(1, 0, 2), (1, 0, 1)], Some(2)),
        ("lc: an active one outweighs 256 idle ones", Kind::Lc, &[(1, 1, 0), (1, 0, 256)], Some(2)),
        ("lc: 258 idle ones outweigh an active one", Kind::Lc, &[(1, 1, 0), (1, 0, 258)], Some(1)),
        ("lc: weight 0 is drained", Kind::Lc, &[(0, 0, 0), (1, 9, 9)], Some(2)),
        ("wlc: for its weight", Kind::Wlc, &[(1, 2, 0), (3, 5, 0)], Some(2)),
        ("wlc: the first of equals", Kind::Wlc, &[(1, 1, 0), (3, 3, 0)], Some(1)),
        ("wlc: the first that is not drained", Kind::Wlc, &[(0, 0, 0), (2, 1, 0), (2, 1, 0)], Some(2)),
        ("wlc: all drained", Kind::Wlc, &[(0, 0, 0), (0, 0, 0)], None),
    ];
    for (name, kind, backends, want) in rows {
        let state = State::new(1, 10);
        let weights: Vec<_> = backends.iter().map(|(weight, ..)| *weight).collect();
        for (id, (_, active, inactive)) in (1..).map(BackendId).zip(backends) {
            load(&state, id, *active, *inactive);
        }
        assert_eq!(pick(&weighted(kind, &weights), &state), want, "{name}");
    }
}

#[test]
fn sh_folds_an_ipv6_address_into_one_word() {
    let state = State::new(1, 10);
    let service = weighted(Kind::Sh, &[1, 1, 1]);
    let find =
        |src, v6| scheduled(&service, &state, &FlowKey { src, v6, ..FlowKey::default() }, NOW).unwrap().id;
    for v4 in 0x0a00_0000..0x0a00_1000u32 {
        let words = [0x2001_0db8, 0x1234_5678, 0xdead_beef, v4 ^ 0x2001_0db8 ^ 0x1234_5678 ^ 0xdead_beef];
        let v6 = words.iter().fold(0, |bits, word| bits << 32 | u128::from(*word));
        assert_eq!(find(v6, true), find(v4.into(), false));
    }
}

#[test]
fn sh_fallback_resumes_at_twice_the_hash() {
    // Buckets in turns of 64, 1 and 64; the drained backend holds 64 and 193.
    let backends: Vec<_> = [backend(1, 64), backend(2, 0), backend(3, 64)].into();
    let with = |flags| {
        let scheduler = Scheduler::compile(Kind::Sh, flags, &backends);
        Service { scheduler, ..service(Kind::Sh, backends.clone()) }
    };
    let fallback = Flags { fallback: true, ..Flags::default() };
    let state = State::new(1, 10);
    // Twice 64 is bucket 128, the last of 3's; twice 193 is 130, one of 1's.
    for (bucket, want) in [(64, 3), (193, 1), (63, 1), (65, 3)] {
        let hashes_to = |addr: &u32| addr.wrapping_mul(0x61c8_8647) >> 24 == bucket;
        let client = (0x0a00_0001..).find(hashes_to).unwrap();
        let key = FlowKey { src: client.into(), ..FlowKey::default() };
        let [plain, fallen] = [Flags::default(), fallback]
            .map(|flags| scheduled(&with(flags), &state, &key, NOW).map(|backend| backend.id.0));
        assert_eq!(fallen, Some(want), "bucket {bucket}");
        assert_eq!(plain, [63, 65].contains(&bucket).then_some(want), "bucket {bucket}");
    }
}

#[test]
fn wrr_skips_passes_that_find_nobody() {
    // The heaviest takes no new flows, yet the levels are made for it.
    let levels = wrr::Levels::of(&[backend(1, 6), backend(2, 3), backend(3, 1)]);
    let backends = [backend(1, 0), backend(2, 3), backend(3, 1)];
    let (state, cursor) = (State::new(0, 0), Default::default());
    let picks = [0; 8].map(|_| wrr::next(&backends, levels, &state, &cursor).unwrap().id.0);
    assert_eq!(picks, [2, 2, 2, 3, 2, 2, 2, 3]);
}

#[test]
fn nobody_is_chosen_where_nobody_may() {
    let state = State::new(1, 10);
    for kind in Kind::ALL.iter().copied() {
        for weights in [&[][..], &[0], &[0, 0, 0]] {
            assert_eq!(pick(&weighted(kind, weights), &state), None, "{kind} {weights:?}");
        }
    }
}

/// How many of 10,000 flows each backend gets from so many workers. A flow ends when the thousandth after it has come.
fn spread(kind: Kind, workers: u32) -> Vec<u32> {
    const FLOWS: usize = 10_000;
    const LENGTH: usize = 1000;
    const NOT_YET: u32 = u32::MAX;
    let weights = [500, 0, 300, 200, 400];
    let (state, service) = (State::new(1, 10), weighted(kind, &weights));
    let next = AtomicUsize::new(0);
    let chosen: Vec<_> = (0..FLOWS).map(|_| AtomicU32::new(NOT_YET)).collect();
    let open = |number: usize| {
        let key = FlowKey { src: number as u128, dst: (number % LENGTH) as u128, ..FlowKey::default() };
        // A hash may name the drained one, which is nobody: 0.
        let backend = scheduled(&service, &state, &key, NOW).map_or(BackendId(0), |backend| backend.id);
        load(&state, backend, 1, 0);
        chosen[number].store(backend.0, Relaxed);
    };
    let close = |number: usize| {
        while chosen[number].load(Relaxed) == NOT_YET {
            std::thread::yield_now();
        }
        state.backend(BackendId(chosen[number].load(Relaxed))).unwrap().closed(true);
    };
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                loop {
                    match next.fetch_add(1, Relaxed) {
                        number if number >= FLOWS => return,
                        number => {
                            open(number);
                            number.checked_sub(LENGTH).into_iter().for_each(close);
                        }
                    }
                }
            });
        }
    });
    let total = |id: u32| chosen.iter().filter(|chosen| chosen.load(Relaxed) == id).count();
    (1..=5).map(|id| u32::try_from(total(id)).unwrap()).collect()
}

#[test]
fn several_workers_spread_flows_as_one_does() {
    for kind in Kind::ALL.iter().copied() {
        let alone = spread(kind, 1);
        for workers in [2, 4, 8] {
            let together = spread(kind, workers);
            let apart = alone.iter().zip(&together).map(|(alone, together)| alone.abs_diff(*together)).max();
            assert!(apart <= Some(100), "{kind}, {workers} workers: {alone:?}, {together:?}");
        }
    }
}

#[test]
fn loads_decide_between_backends() {
    /// Weight, active and inactive connections.
    type Loaded = (u32, u32, u32);
    let rows: [(&str, Kind, &[Loaded], Option<u32>); 10] = [
        ("sed: the new connection counts", Kind::Sed, &[(1, 0, 0), (3, 1, 0)], Some(2)),
        ("sed: idle ones do not", Kind::Sed, &[(1, 0, 900), (1, 0, 0)], Some(1)),
        ("nq: an idle backend before a faster one", Kind::Nq, &[(9, 1, 0), (1, 0, 0)], Some(2)),
        ("nq: none idle: as sed", Kind::Nq, &[(1, 1, 0), (9, 2, 0)], Some(2)),
        ("fo: the heaviest, however loaded", Kind::Fo, &[(1, 0, 0), (3, 99, 0), (3, 0, 0)], Some(2)),
        ("ovf: full at one more than its weight", Kind::Ovf, &[(1, 0, 0), (3, 3, 0)], Some(2)),
        ("ovf: then the next", Kind::Ovf, &[(1, 0, 0), (3, 4, 0)], Some(1)),
        ("ovf: all full", Kind::Ovf, &[(1, 2, 0), (3, 4, 0)], None),
        ("lblc: first as wlc", Kind::Lblc, &[(1, 1, 0), (2, 1, 0)], Some(2)),
        ("twos: the only one", Kind::Twos, &[(0, 0, 0), (2, 9, 0)], Some(2)),
    ];
    for (name, kind, backends, want) in rows {
        let state = State::new(1, 10);
        for (id, (_, active, inactive)) in (1..).map(BackendId).zip(backends) {
            load(&state, id, *active, *inactive);
        }
        let weights: Vec<_> = backends.iter().map(|(weight, ..)| *weight).collect();
        assert_eq!(pick(&weighted(kind, &weights), &state), want, "{name}");
    }
}

#[test]
fn an_overloaded_backend_gets_nothing_new_from_any_scheduler() {
    for kind in Kind::ALL.iter().copied() {
        let (state, service) = (State::new(1, 10), weighted(kind, &[2, 2]));
        let full = state.backend(BackendId(1)).unwrap();
        full.set_thresholds(1, 0);
        full.opened();
        for number in 0..64u32 {
            let key = FlowKey { src: number.into(), dst: number.into(), ..FlowKey::default() };
            let chosen = scheduled(&service, &state, &key, NOW).map(|backend| backend.id.0);
            assert!(chosen != Some(1), "{kind}");
        }
        state.backend(BackendId(2)).unwrap().set_thresholds(1, 0);
        state.backend(BackendId(2)).unwrap().opened();
        assert_eq!(
            scheduled(&service, &state, &FlowKey { dst: 99, ..FlowKey::default() }, NOW),
            None,
            "{kind}"
        );
    }
}

#[test]
fn wrr_starts_over_where_thresholds_close_every_backend() {
    // Weights 4 and 2 make two passes: 1 alone, then 1 and 2. Closed behind 1 in the first pass it starts over; in the
    // second it stays where it is.
    for (picks, after) in [(1, [Some(1), Some(1)]), (2, [Some(2), Some(1)])] {
        let (state, service) = (State::new(1, 10), weighted(Kind::Wrr, &[4, 2]));
        (0..picks).for_each(|_| assert_eq!(pick(&service, &state), Some(1)));
        let set = |upper| {
            for id in [1, 2].map(BackendId) {
                state.backend(id).unwrap().set_thresholds(upper, 0);
            }
        };
        [1, 2].iter().for_each(|id| load(&state, BackendId(*id), 1, 0));
        set(1);
        assert_eq!(pick(&service, &state), None);
        set(0);
        assert_eq!([0; 2].map(|_| pick(&service, &state)), after, "after {picks}");
    }
}

#[test]
fn lblc_keeps_a_destination_until_its_backend_is_overrun_and_another_idles() {
    let (state, service) = (State::new(1, 10), weighted(Kind::Lblc, &[2, 4]));
    let to = |dst| {
        let key = FlowKey { dst, ..FlowKey::default() };
        scheduled(&service, &state, &key, NOW).map(|backend| backend.id.0)
    };
    let change = |id, active: i32| {
        let counts = state.backend(BackendId(id)).unwrap();
        (0..active).for_each(|_| {
            counts.opened();
            counts.moved(true);
        });
        (active..0).for_each(|_| counts.closed(true));
    };
    assert_eq!(to(1), Some(1));
    change(1, 3);
    assert_eq!(to(1), Some(2), "overrun, and the other has nothing");
    change(1, -3);
    assert_eq!(to(1), Some(2), "it has moved");
    change(2, 5);
    assert_eq!(to(2), Some(1), "another destination");
    change(1, 1);
    assert_eq!(to(1), Some(2), "overrun, but the other is half loaded");
    change(1, -1);
    assert_eq!(to(1), Some(1));
}

#[test]
fn lblcr_serves_a_destination_by_all_that_it_has_come_to() {
    let (state, service) = (State::new(1, 10), weighted(Kind::Lblcr, &[2, 2, 2]));
    let to = |now| {
        let key = FlowKey { dst: 1, ..FlowKey::default() };
        scheduled(&service, &state, &key, now).map(|backend| backend.id.0)
    };
    load(&state, BackendId(2), 1, 0);
    load(&state, BackendId(3), 1, 0);
    assert_eq!(to(NOW), Some(1));
    load(&state, BackendId(1), 3, 0);
    assert_eq!(to(NOW), Some(1), "overrun, but nobody idles");
    state.backend(BackendId(3)).unwrap().closed(true);
    assert_eq!([to(NOW), to(NOW)], [Some(3), Some(3)], "it joins, and is the lighter one");
    state.backend(BackendId(1)).unwrap().clear();
    load(&state, BackendId(3), 1, 0);
    assert_eq!(to(NOW), Some(1), "the first is still one of them");
    // A day without a change: the heaviest leaves the set, so that the lightest of the others serves.
    let day = (0..25).fold(NOW, |now, _| {
        let later = now.after_seconds(3601);
        assert_eq!(to(later), Some(1));
        later
    });
    load(&state, BackendId(1), 2, 0);
    assert_eq!(to(day), Some(1), "3 has left, and 1 is not overrun");
}

#[test]
fn lblc_and_lblcr_forget_a_destination_after_the_time_that_is_set() {
    let day = Settings::default();
    for (kind, minute) in [
        (Kind::Lblc, Settings { lblc_expiration_s: 60, ..day }),
        (Kind::Lblcr, Settings { lblcr_expiration_s: 60, ..day }),
    ] {
        for (settings, want) in [(minute, Some(2)), (day, Some(1))] {
            let (state, service) = (State::new(1, 10), weighted(kind, &[9, 9]));
            let at = |seconds| {
                let key = FlowKey { dst: 1, ..FlowKey::default() };
                let chosen = schedule(&service, &settings, &state, &key, NOW.after_seconds(seconds));
                chosen.map(|backend| backend.id.0)
            };
            assert_eq!(at(0), Some(1), "{kind}");
            load(&state, BackendId(1), 5, 0);
            assert_eq!(at(59), Some(1), "{kind}: remembered, and used again");
            assert_eq!(at(118), Some(1), "{kind}: still");
            assert_eq!(at(178), want, "{kind}: a minute later");
        }
    }
}

#[test]
fn equal_backends_share_a_table_and_generations_a_cache() {
    let mut compiler = Compiler::default();
    let [one, two] = [ServiceId(1), ServiceId(2)];
    let list = [backend(1, 1), backend(2, 5)];
    let elsewhere = [backend(8, 1), backend(9, 5)].map(|other| {
        let same = &list[other.id.0 as usize - 8];
        Backend { addr: same.addr, ..other }
    });
    let mut compile = |service, kind, backends: &[Backend]| {
        compiler.compile(service, kind, Flags::default(), backends, Some(1))
    };
    let table = |scheduler: &Scheduler| match scheduler {
        Scheduler::Mh(lookup) => Arc::as_ptr(lookup.table()),
        other => panic!("{other:?}"),
    };
    let cache = |scheduler: &Scheduler| match scheduler {
        Scheduler::Lblc(cache) => Arc::as_ptr(cache),
        other => panic!("{other:?}"),
    };
    let tables = [(one, &list), (two, &elsewhere)].map(|(service, list)| compile(service, Kind::Mh, list));
    assert_eq!(table(&tables[0]), table(&tables[1]));
    assert_ne!(table(&compile(one, Kind::Mh, &list[..1])), table(&tables[0]));
    let before = compile(one, Kind::Lblc, &list);
    assert_eq!(cache(&compile(one, Kind::Lblc, &list[..1])), cache(&before));
    assert_ne!(cache(&compile(two, Kind::Lblc, &list)), cache(&before));
}

#[test]
fn clients_of_a_drained_mh_backend_alone_move() {
    let flags = Flags { fallback: true, ..Flags::default() };
    // The kernel's size of table, and two larger ones.
    for backends in [3, 5, 10, 15, 25] {
        let list: Vec<_> = (1..=backends).map(|id| backend(id, id)).collect();
        let mut drained = list.clone();
        drained[2].weight = 0;
        let [before, after, refusing] = [(&list, flags), (&drained, flags), (&drained, Flags::default())]
            .map(|(list, flags)| {
                let scheduler = Scheduler::compile(Kind::Mh, flags, list);
                Service { scheduler, ..service(Kind::Mh, list.clone()) }
            });
        let state = State::new(1, 30);
        for client in 0..5000u32 {
            let key = FlowKey { src: client.into(), ..FlowKey::default() };
            let at = |service| scheduled(service, &state, &key, NOW).map(|backend| backend.id.0);
            if at(&before) == Some(3) {
                assert!(at(&after).is_some_and(|id| id != 3), "{backends} backends");
                assert_eq!(at(&refusing), None, "{backends} backends");
            } else {
                assert_eq!((at(&after), at(&refusing)), (at(&before), at(&before)), "{backends} backends");
            }
        }
    }
}

proptest! {
    #[test]
    fn what_is_foreseen_comes_true_unless_somebody_interferes(
        weights in proptest::collection::vec(0..4_u32, 1..6),
        overloaded in 0..6_u32,
        clients in proptest::collection::vec((any::<u32>(), any::<bool>(), 0..8_u32), 1..20),
    ) {
        for kind in Kind::ALL.iter().copied() {
            let service = weighted(kind, &weights);
            let state = State::new(1, 7);
            if let Some(counts) = state.backend(BackendId(overloaded)) {
                counts.set_thresholds(1, 0);
                counts.opened();
            }
            scheduled(&service, &state, &FlowKey::default(), NOW);
            let keys: Vec<_> = clients.iter().map(|(src, ..)| FlowKey { src: (*src).into(), ..FlowKey::default() }).collect();
            let cursor = &state.service(service.id).unwrap().cursor;
            let before = cursor.load(Relaxed);
            let mut position = before;
            let mut ahead = |key| foresee(&service, &state, key, first_asked(&service, key, position)?, &mut position);
            let foreseen: Vec<_> = keys.iter().map(&mut ahead).collect();
            prop_assert_eq!(cursor.load(Relaxed), before);
            if !matches!(kind, Kind::Rr | Kind::Wrr | Kind::Dh | Kind::Sh | Kind::Mh) {
                prop_assert!(foreseen.iter().all(Option::is_none), "{:?}", kind);
                continue;
            }
            let chosen: Vec<_> = keys.iter().map(|key| scheduled(&service, &state, key, NOW)).collect();
            let backends: Vec<_> = foreseen.iter().map(|found| found.map(|(backend, _)| backend)).collect();
            prop_assert_eq!(backends, chosen, "{:?}", kind);
            // Whatever others do meanwhile, what is confirmed is what would be chosen.
            cursor.store(before, Relaxed);
            for ((key, found), (_, interferes, filled)) in keys.iter().zip(foreseen).zip(&clients) {
                if *interferes {
                    scheduled(&service, &state, key, NOW);
                }
                if let Some(counts) = state.backend(BackendId(*filled)) {
                    counts.set_thresholds(1, 0);
                    counts.opened();
                }
                let seen = cursor.load(Relaxed);
                let Some(due) = found.and_then(|(_, due)| due) else { continue };
                let confirmed = confirm(&service, &state, &due);
                let after = cursor.load(Relaxed);
                if confirmed.is_none() {
                    prop_assert_eq!(after, seen, "{:?}", kind);
                    continue;
                }
                cursor.store(seen, Relaxed);
                prop_assert_eq!(scheduled(&service, &state, key, NOW), confirmed, "{:?}", kind);
                prop_assert_eq!(cursor.load(Relaxed), after, "{:?}", kind);
            }
        }
    }
}
