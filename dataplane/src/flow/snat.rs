//! SNAT ports: which worker owns one, and which ones a worker tries for a new flow.
//!
//! Each worker has an equal, contiguous slice of a pool's ports, on each of the pool's addresses. Of a reply the
//! owner is so known from its destination port, without a table. A port is not taken from a list: the reply's whole
//! five-tuple has to be new, so one port serves as many flows as there are backend addresses and ports, and the
//! flow table is the only record. Ports whose replies arrive on the worker's own queue are tried first, where it is
//! known which those are ([`suited`](super::suited)).

use std::ops::Range;

use crate::flow::suited::Suited;
use crate::ids::WorkerId;
use crate::snapshot::SnatPool;

/// Candidates for one flow at most: bounds the work that a packet can cause in an exhausted pool.
pub const TRIES: u32 = 64;
/// Of these come first, beyond [`TRIES`], so many whose replies arrive on the worker's own queue. With a share `u` of them
/// in use towards one backend address and port, all fail with probability `u^16`: 0.3 % at 70 % use, 19 % at 90 %.
pub const SUITED_TRIES: u32 = 16;

/// The worker whose slice of `pool` holds `port`; `None` for a port outside the pool or without workers.
#[inline]
pub fn owner(pool: &SnatPool, port: u16, workers: u8) -> Option<WorkerId> {
    let total = total(pool);
    let offset = u32::from(port.checked_sub(pool.low)?);
    if offset >= total {
        return None;
    }
    // The inverse of `slice`: the last worker whose slice starts at or before the port. At most 2^24.
    let owner = ((offset + 1) * u32::from(workers)).checked_sub(1)? / total;
    u8::try_from(owner).ok().map(WorkerId)
}

/// The ports of one worker, as offsets from the pool's lowest. The slices of all workers follow each other without a
/// gap and differ by one port at most; empty for a worker that does not exist.
pub(crate) fn slice(pool: &SnatPool, worker: WorkerId, workers: u8) -> Range<u32> {
    let (worker, workers) = (u32::from(worker.0), u32::from(workers));
    if workers == 1 && worker == 0 {
        // As below, without dividing.
        return 0..total(pool);
    }
    if worker >= workers {
        return 0..0;
    }
    let start = |worker: u32| worker * total(pool) / workers;
    start(worker)..start(worker + 1)
}

/// Ports in the pool: 0 to 65,536.
fn total(pool: &SnatPool) -> u32 {
    (u32::from(pool.high) + 1).saturating_sub(u32::from(pool.low))
}

/// Pairs of source address and port to try for one flow, at most [`TRIES`].
///
/// Where the worker has no more pairs than that, all come, once each. Else every try is drawn at random from all of
/// them, so with a share `u` of the pairs in use towards one backend address and port, none of the tries is free
/// with probability `u^64`: 0.1 % at 90 % use, 3.8 % at 95 %, 53 % at 99 %. A client's retransmissions draw again, as
/// long as the caller varies `spread`: at 99 % use one of four attempts succeeds with 92 %. Draws are independent
/// rather than consecutive because consecutive ones pile flows up in runs, and a run makes all tries fail together.
#[derive(Clone, Debug)]
pub struct Candidates<'a> {
    pool: &'a SnatPool,
    v6: bool,
    ports: Range<u32>,
    addresses: u64,
    /// Pairs to choose from.
    space: u64,
    /// State of the generator; in a small space the pair to start at.
    random: u64,
    left: u32,
    suited: Option<Suited<'a>>,
    suited_left: u32,
}

impl<'a> Candidates<'a> {
    /// The candidates of `worker`, one of `workers`, among the pool's IPv6 or IPv4 addresses. `spread` decides
    /// which: a keyed hash of the flow, mixed with something that changes from attempt to attempt.
    #[inline]
    pub fn new(pool: &'a SnatPool, worker: WorkerId, workers: u8, v6: bool, spread: u64) -> Self {
        let ports = slice(pool, worker, workers);
        let addresses = if v6 { pool.v6.len() } else { pool.v4.len() } as u64;
        let space = addresses * u64::from(ports.end - ports.start);
        let left = u32::try_from(space).unwrap_or(TRIES).min(TRIES);
        Self { pool, v6, ports, addresses, space, random: spread, left, suited: None, suited_left: 0 }
    }

    /// The same, with [`SUITED_TRIES`] of these before.
    #[must_use]
    pub fn preferring(self, suited: Option<Suited<'a>>) -> Self {
        Self { suited_left: if suited.is_some() { SUITED_TRIES } else { 0 }, suited, ..self }
    }

    /// The next one whose replies arrive on the worker's own queue.
    #[inline]
    fn next_suited(&mut self) -> Option<(u128, u16)> {
        let suited = self.suited?;
        while self.suited_left > 0 {
            self.suited_left -= 1;
            self.random = self.random.wrapping_add(GOLDEN_RATIO);
            if let Some(pair) = suited.pick(mix(self.random)) {
                return Some(pair);
            }
        }
        None
    }

    /// The next pair to try, as the places of its address and its port.
    #[inline]
    fn draw(&mut self) -> (u64, u64) {
        let ports = u64::from(self.ports.end - self.ports.start);
        if self.space <= u64::from(TRIES) {
            // `left` counts down from `space`, so every pair comes once.
            let number = (scale(mix(self.random), self.space) + u64::from(self.left)) % self.space;
            return (number / ports, number % ports);
        }
        self.random = self.random.wrapping_add(GOLDEN_RATIO);
        split(mix(self.random), self.addresses, ports)
    }
}

/// The places of an address and of a port, by a half of the random number for each: 32 bits are many more than either has
/// places.
#[inline]
fn split(random: u64, addresses: u64, ports: u64) -> (u64, u64) {
    (scale(random, addresses), scale(random << 32, ports))
}

/// The first of [`Candidates`] over IPv4, without the state that further ones take. `None` where there is none, and where
/// there are so few that all come in turn.
#[inline]
pub(crate) fn first(pool: &SnatPool, worker: WorkerId, workers: u8, spread: u64) -> Option<(u32, u16)> {
    let ports = slice(pool, worker, workers);
    let (addresses, count) = (pool.v4.len() as u64, u64::from(ports.end - ports.start));
    if addresses * count <= u64::from(TRIES) {
        return None;
    }
    let (address, port) = split(mix(spread.wrapping_add(GOLDEN_RATIO)), addresses, count);
    #[expect(
        clippy::cast_possible_truncation,
        reason = "places in the list, and in a slice of 65,536 ports at most"
    )]
    let (address, port) = (address as usize, port as u32);
    Some((*pool.v4.get(address)?, u16::try_from(u32::from(pool.low) + ports.start + port).ok()?))
}

impl Iterator for Candidates<'_> {
    type Item = (u128, u16);

    #[inline]
    fn next(&mut self) -> Option<(u128, u16)> {
        if self.suited_left > 0
            && let Some(pair) = self.next_suited()
        {
            return Some(pair);
        }
        if self.left == 0 {
            return None;
        }
        let (address, port) = self.draw();
        self.left -= 1;
        let address = usize::try_from(address).ok()?;
        let address = match self.v6 {
            true => *self.pool.v6.get(address)?,
            false => u128::from(*self.pool.v4.get(address)?),
        };
        let offset = u64::from(self.ports.start) + port;
        Some((address, u16::try_from(u64::from(self.pool.low) + offset).ok()?))
    }
}

/// Step of SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014).
const GOLDEN_RATIO: u64 = 0x9e37_79b9_7f4a_7c15;

/// Output function of SplitMix64.
#[inline]
pub(crate) fn mix(state: u64) -> u64 {
    let state = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let state = (state ^ state >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    state ^ state >> 31
}

/// A number below `space` from 64 random bits (Lemire: Fast Random Integer Generation in an Interval, 2019).
#[inline]
pub(crate) fn scale(random: u64, space: u64) -> u64 {
    ((u128::from(random) * u128::from(space)) >> 64) as u64
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;
    use crate::flow::key::{FlowKey, TCP};

    pub(crate) fn pool(low: u16, high: u16, addresses: u32) -> SnatPool {
        let v4 = (0..addresses).map(|n| 0x0a00_0001 + n).collect();
        let v6 = (0..addresses).map(|n| 0xfd00 << 112 | u128::from(n)).collect();
        SnatPool { name: "test".into(), v4, v6, low, high }
    }

    proptest! {
        #[test]
        fn slices_cover_the_pool_without_overlap_and_owner_inverts_them(
            (low, high) in (any::<u16>(), any::<u16>()).prop_map(|(a, b)| (a.min(b), a.max(b))),
            workers in 1..=255u8,
        ) {
            let pool = pool(low, high, 1);
            let mut next = 0;
            for worker in (0..workers).map(WorkerId) {
                let slice = slice(&pool, worker, workers);
                prop_assert_eq!(slice.start, next);
                next = slice.end;
                let fair = total(&pool) / u32::from(workers);
                prop_assert!((fair..=fair + 1).contains(&(slice.end - slice.start)));
                // The owner changes nowhere else than at an end of a slice.
                for offset in [slice.clone().next(), slice.clone().next_back()].into_iter().flatten() {
                    let port = u16::try_from(u32::from(low) + offset).unwrap();
                    prop_assert_eq!(owner(&pool, port, workers), Some(worker));
                }
            }
            prop_assert_eq!(next, total(&pool));
            prop_assert!(slice(&pool, WorkerId(workers), workers).is_empty());
            for outside in [low.checked_sub(1), high.checked_add(1)].into_iter().flatten() {
                prop_assert_eq!(owner(&pool, outside, workers), None);
            }
            prop_assert_eq!(owner(&pool, low, 0), None);
        }

        #[test]
        fn candidates_are_the_workers_own(
            low in 1u16..60_000,
            count in 1u16..5_000,
            addresses in 0..20u32,
            (workers, worker) in (1..=8u8).prop_flat_map(|workers| (Just(workers), 0..workers)),
            v6: bool,
            spread: u64,
        ) {
            let pool = pool(low, low + (count - 1), addresses);
            let worker = WorkerId(worker);
            let space = addresses * (slice(&pool, worker, workers).end - slice(&pool, worker, workers).start);
            let candidates: Vec<_> = Candidates::new(&pool, worker, workers, v6, spread).collect();
            prop_assert_eq!(candidates.len(), space.min(TRIES) as usize);
            for (address, port) in &candidates {
                prop_assert_eq!(owner(&pool, *port, workers), Some(worker));
                let known = if v6 { pool.v6.contains(address) } else { pool.v4.iter().any(|a| u128::from(*a) == *address) };
                prop_assert!(known);
            }
            let first = first(&pool, worker, workers, spread);
            let pair = |(address, port): &(u128, u16)| (u32::try_from(*address).unwrap(), *port);
            if space > TRIES && !v6 {
                prop_assert_eq!(first, candidates.first().map(pair));
            }
            if space <= TRIES {
                prop_assert_eq!(first, None);
                let distinct: HashSet<_> = candidates.iter().collect();
                prop_assert_eq!(distinct.len(), candidates.len(), "a small space is tried whole");
            }
        }
    }

    #[test]
    fn those_that_suit_come_first_and_then_all_as_without() {
        use crate::flow::suited::{Sorted, Spread};
        use crate::flow::toeplitz::tests::KEY;
        let (pool, worker) = (pool(2_000, 2_039, 1), WorkerId(1));
        let spread = Spread::new(&KEY, &[0, 1, 1, 0]).unwrap();
        let sorted = Sorted::new(&pool, false, 2, &spread);
        let (src, sport) = (0x0a01_0203, 80);
        let suited = sorted.suited(worker, spread.toeplitz().of_source(src, false, sport)).unwrap();
        let candidates = Candidates::new(&pool, worker, 2, false, 7).preferring(Some(suited));
        let all: Vec<_> = candidates.collect();
        let (first, others) = all.split_at(all.len() - 20);
        assert!((1..=SUITED_TRIES as usize).contains(&first.len()));
        assert!(first.iter().all(|(dst, dport)| {
            let reply = FlowKey { src, sport, dst: *dst, dport: *dport, proto: TCP, v6: false };
            spread.queue(spread.toeplitz().hash(&reply)) == Some(1)
        }));
        let distinct: HashSet<_> = others.iter().collect();
        assert_eq!(distinct.len(), 20, "the whole slice of the worker");
        // A card whose table has none of the worker's queues.
        let nowhere = Spread::new(&KEY, &[0]).unwrap();
        let sorted = Sorted::new(&pool, false, 2, &nowhere);
        let candidates = Candidates::new(&pool, worker, 2, false, 7).preferring(sorted.suited(worker, 0));
        assert_eq!(candidates.count(), 20);
    }

    #[test]
    fn every_port_has_one_owner() {
        let pool = pool(1_024, u16::MAX, 1);
        for workers in [1, 2, 3, 7, 16, 255] {
            let mut share = vec![0; usize::from(workers)];
            for port in pool.low..=pool.high {
                share[owner(&pool, port, workers).unwrap().index()] += 1;
            }
            let slices = (0..workers).map(|worker| slice(&pool, WorkerId(worker), workers).len());
            assert!(slices.eq(share), "{workers} workers");
        }
    }

    #[test]
    fn a_space_in_use_up_to_a_share_is_found_exhausted_as_often_as_documented() {
        const FLOWS: u32 = 20_000;
        let pool = pool(1_024, u16::MAX, 2);
        let worker = WorkerId(1);
        let pairs = 2 * slice(&pool, worker, 2).len();
        for (percent, most, least) in [(90, 0.003, 0.0), (95, 0.045, 0.03), (99, 0.55, 0.50)] {
            // Filled the way it is in service: each flow takes its first free candidate.
            let mut used = HashSet::new();
            let mut spread = 0;
            while used.len() * 100 < pairs * percent {
                spread += 1;
                let free = Candidates::new(&pool, worker, 2, false, spread).find(|pair| !used.contains(pair));
                used.extend(free);
            }
            let failed = (0..FLOWS).filter(|flow| {
                let spread = u64::from(*flow) << 32;
                Candidates::new(&pool, worker, 2, false, spread).all(|pair| used.contains(&pair))
            });
            let rate = failed.count() as f64 / f64::from(FLOWS);
            assert!((least..most).contains(&rate), "{percent} % in use: {rate}");
        }
    }
}
