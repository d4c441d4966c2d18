//! Maglev hashing (`ip_vs_mh.c`; Eisenbud et al., "Maglev", NSDI 2016): a client stays with one backend, and a changed
//! list of backends moves few clients of the others.
//!
//! A drained backend keeps its places in the table, by its latest weight that was not 0: without `mh-fallback` its
//! clients are refused, with it they are spread over the others, and nobody else moves.
//!
//! Up to ten backends the table is the kernel's own, place by place. That one gives a backend as many places in a row
//! as its weight says, and when a backend is removed some percent of the clients of others may move. Services with more
//! backends get a larger table in which backends take turns one place at a time: there it stays below 1 %.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;

use super::{Flags, eligible, hash};
use crate::flow::key::FlowKey;
use crate::snapshot::Backend;
use crate::state::State;

/// Places of the kernel's table (`CONFIG_IP_VS_MH_TAB_INDEX` 12).
const DEFAULT: u32 = 4093;

/// Backends at most, and the places that so many need: sizes that the kernel can be built with, all of them primes.
const SIZES: [(usize, u32); 3] = [(10, DEFAULT), (20, 32_749), (80, STEADY_SIZE)];

/// Places for more backends than that.
const LARGEST: u32 = 131_071;

/// The size of a table that does not grow up to 80 backends.
const STEADY_SIZE: u32 = 65_521;

/// Keys of the hashes of a place in the table and of the steps between two (kernel: `hash1`, `hash2`).
const PLACE_KEY: u64 = 2_654_435_761;
const STEP_KEY: u64 = 2_654_446_892;

/// Half of the index of the kernel's table size: weights are cut to so many bits (`IP_VS_MH_TAB_BITS`).
const WEIGHT_BITS: u32 = 6;

/// Names no backend: all weights are and were 0.
const NOBODY: u16 = u16::MAX;

/// Draws of the fallback after which it asks whether there is anybody to draw.
const DRAWS: u32 = 64;

/// A table with the flags of one service.
#[derive(Clone, Debug)]
pub struct Lookup {
    table: Arc<Table>,
    flags: Flags,
    /// The places in the list of backends that the table's names stand for; `None` where these are the places.
    order: Option<Arc<[u16]>>,
}

/// Which backend each place names: 2 bytes a place, 8 KiB at the default size, 256 KiB at the largest.
#[derive(Debug, PartialEq, Eq)]
pub struct Table {
    places: Box<[u16]>,
}

/// All of a backend that its places depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Share {
    addr: u32,
    port: u16,
    weight: u32,
}

impl Share {
    pub(super) fn of(backend: &Backend) -> Self {
        let (bits, _) = crate::flow::key::bits(backend.addr);
        Self { addr: hash::fold(bits), port: backend.port, weight: backend.last_weight }
    }

    fn hash(self, key: u64) -> u32 {
        hash::sip13(self.addr.wrapping_add(self.port.into()), key)
    }
}

/// A size of table for so many backends; never less than `before`, since another size moves every client.
pub(super) fn size_for(backends: usize, before: u32) -> u32 {
    let enough = SIZES.iter().find(|(most, _)| backends <= *most);
    enough.map_or(LARGEST, |(_, size)| *size).max(before)
}

/// The size of a table that is to be the same wherever the same backends are, whatever there was before: larger than
/// [`size_for`] would have it for most, since it should last.
pub(super) fn steady_size(backends: usize) -> u32 {
    size_for(backends, STEADY_SIZE)
}

impl Table {
    /// Fills a table of `size` places (a prime): the backends take turns, and each takes the next free place along its
    /// own order of all places.
    pub(super) fn fill(size: u32, shares: &[Share]) -> Self {
        let mut places = vec![NOBODY; size as usize].into_boxed_slice();
        let mut takers: Vec<_> = shares
            .iter()
            .zip(0..NOBODY)
            .filter(|(share, _)| share.weight > 0)
            .map(|(share, name)| Taker {
                name,
                weight: share.weight,
                at: share.hash(PLACE_KEY) % size,
                step: share.hash(STEP_KEY) % (size - 1) + 1,
            })
            .collect();
        if size == DEFAULT {
            in_rows(&mut places, &mut takers)
        } else {
            in_turns(&mut places, &mut takers)
        }
        Self { places }
    }

    #[inline]
    fn name(&self, addr: u32, port: u16, offset: u32) -> Option<u16> {
        let hash = hash::sip13(offset.wrapping_add(port.into()).wrapping_add(addr), PLACE_KEY);
        let place = hash as usize % self.places.len().max(1);
        self.places.get(place).copied().filter(|name| *name != NOBODY)
    }

    /// Places in the table.
    pub(super) fn size(&self) -> usize {
        self.places.len()
    }
}

/// A backend while the table is filled.
struct Taker {
    name: u16,
    weight: u32,
    at: u32,
    step: u32,
}

impl Taker {
    /// Takes the next free place. There is one: the size is a prime, so the steps pass every place.
    fn take(&mut self, places: &mut [u16]) {
        let size = u32::try_from(places.len()).unwrap_or(u32::MAX);
        for _ in 0..size {
            if let Some(place) = places.get_mut(self.at as usize)
                && *place == NOBODY
            {
                *place = self.name;
                return;
            }
            // Both are below the size, which is far from the end of 32 bits.
            self.at += self.step;
            if self.at >= size {
                self.at -= size;
            }
        }
    }
}

/// The kernel's filling: round by round, each backend takes as many places in a row as its weight says, in units of the
/// weights' greatest common divisor, and cut to six bits.
fn in_rows(places: &mut [u16], takers: &mut [Taker]) {
    let divisor = takers.iter().map(|taker| taker.weight).fold(0, gcd);
    let largest = takers.iter().map(|taker| taker.weight).max();
    let Some(largest) = largest.and_then(|largest| largest.checked_div(divisor)) else { return };
    let cut = (u32::BITS - largest.leading_zeros()).saturating_sub(WEIGHT_BITS);
    let mut left = u32::try_from(places.len()).unwrap_or(u32::MAX);
    while left > 0 {
        for taker in takers.iter_mut() {
            let row = ((taker.weight / divisor) >> cut).clamp(1, left.max(1)).min(left);
            (0..row).for_each(|_| taker.take(places));
            left -= row;
        }
    }
}

/// One place at a time to the backend that has least for its weight, of equals the first in the list. So the order of
/// any two does not depend on a third one, and few places change hands when that one goes.
fn in_turns(places: &mut [u16], takers: &mut [Taker]) {
    // When a backend takes its place number `taken`, on a clock that all share: 40 bits of fraction, and at most 17 bits
    // of places.
    let time = |taken: u64, weight: u32| (taken << 40) / u64::from(weight.max(1));
    let first = takers.iter().enumerate().map(|(at, taker)| Reverse((time(1, taker.weight), at, 1)));
    let mut turns: BinaryHeap<_> = first.collect();
    for _ in 0..places.len() {
        let Some(mut turn) = turns.peek_mut() else { return };
        let Reverse((_, at, taken)) = *turn;
        let Some(taker) = takers.get_mut(at) else { return };
        taker.take(places);
        *turn = Reverse((time(taken + 1, taker.weight), at, taken + 1));
    }
}

impl Lookup {
    pub(super) fn new(table: Arc<Table>, flags: Flags) -> Self {
        Self { table, flags, order: None }
    }

    /// A lookup in a table over the backends in another `order` than that of the list.
    pub(super) fn ordered(table: Arc<Table>, flags: Flags, order: Arc<[u16]>) -> Self {
        Self { table, flags, order: Some(order) }
    }

    #[inline]
    fn backend<'a>(&self, backends: &'a [Backend], name: u16) -> Option<&'a Backend> {
        backends.get(self.place(name)?)
    }

    #[inline]
    fn place(&self, name: u16) -> Option<usize> {
        match &self.order {
            None => Some(usize::from(name)),
            Some(order) => order.get(usize::from(name)).map(|place| usize::from(*place)),
        }
    }

    /// The place in the list of the backend whose place in the table the client of `key` has.
    #[inline]
    pub(super) fn named(&self, key: &FlowKey) -> Option<usize> {
        let port = if self.flags.port { key.sport } else { 0 };
        self.place(self.table.name(hash::fold(key.src), port, 0)?)
    }

    /// The backend whose place the client of `key` has, also if that takes no new flows: where a flow that is not known
    /// was opened, as long as the list of backends is the same.
    #[inline]
    pub fn home<'a>(&self, backends: &'a [Backend], key: &FlowKey) -> Option<&'a Backend> {
        backends.get(self.named(key)?)
    }

    /// The table, which services with equal backends share.
    pub fn table(&self) -> &Arc<Table> {
        &self.table
    }

    /// The backend for the client of `key`.
    #[inline]
    pub(super) fn find<'a>(
        &self,
        backends: &'a [Backend],
        state: &State,
        key: &FlowKey,
    ) -> Option<&'a Backend> {
        let named = self.home(backends, key)?;
        if eligible(named, state) {
            return Some(named);
        }
        if !self.flags.fallback {
            return None;
        }
        let port = if self.flags.port { key.sport } else { 0 };
        self.fall_back(backends, state, hash::fold(key.src), port)
    }

    /// Draws on from the hash, which the offset goes into, until it finds somebody.
    #[cold]
    fn fall_back<'a>(
        &self,
        backends: &'a [Backend],
        state: &State,
        addr: u32,
        port: u16,
    ) -> Option<&'a Backend> {
        let size = u32::try_from(self.table.size()).unwrap_or(u32::MAX);
        let first = hash::sip13(u32::from(port).wrapping_add(addr), PLACE_KEY) % size.max(1);
        for drawn in 0..size {
            if drawn == DRAWS && !backends.iter().any(|backend| eligible(backend, state)) {
                return None;
            }
            let name = self.table.name(addr, port, (first + drawn) % size)?;
            let found = self.backend(backends, name).filter(|backend| eligible(backend, state));
            if found.is_some() {
                return found;
            }
        }
        None
    }
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
#[allow(clippy::cast_possible_truncation, reason = "test numbers are small")]
mod tests {
    use super::*;

    fn shares(count: u32, weight: impl Fn(u32) -> u32) -> Vec<Share> {
        (0..count).map(|n| Share { addr: 0x0a01_0001 + n, port: 8080, weight: weight(n) }).collect()
    }

    /// Weights that differ in every way: all equal, some, by orders of magnitude, at random.
    const WEIGHTS: [fn(u32) -> u32; 4] =
        [|_| 7, |n| n % 5 + 1, |n| [1, 100][n as usize % 2], |n| hash::mix(n.into()) as u16 as u32 + 1];

    #[test]
    fn a_backends_places_are_its_share() {
        for weight in WEIGHTS {
            for count in [11, 50, 200] {
                let shares = shares(count, weight);
                let table = Table::fill(size_for(shares.len(), 0), &shares);
                let sum: f64 = shares.iter().map(|share| f64::from(share.weight)).sum();
                for (name, share) in (0..).zip(&shares) {
                    let places = table.places.iter().filter(|place| **place == name).count() as f64;
                    let fair = f64::from(share.weight) / sum * table.size() as f64;
                    assert!((places - fair).abs() <= 2.0, "{places} of {fair}, {count} backends");
                }
            }
        }
    }

    #[test]
    fn few_clients_move_from_backends_that_stay() {
        for weight in WEIGHTS {
            for count in [11u32, 20, 80, 300] {
                let all = shares(count, weight);
                let size = size_for(all.len(), 0);
                let before = Table::fill(size, &all);
                for gone in [0, count / 2, count - 1] {
                    let moved = moved(&before, &all, gone);
                    assert!(moved < 1.0, "{moved:.2} %: {gone} of {count} gone");
                }
            }
        }
    }

    /// Of a table over `all`, the percentage of places that one backend's end takes from another.
    fn moved(before: &Table, all: &[Share], gone: u32) -> f64 {
        let mut left = all.to_vec();
        left.remove(gone as usize);
        let after = Table::fill(before.size() as u32, &left);
        let moved = before.places.iter().zip(&after.places).filter(|(before, after)| {
            let (before, after) = (u32::from(**before), u32::from(**after));
            before != gone && before != after + u32::from(after >= gone)
        });
        moved.count() as f64 * 100.0 / before.size() as f64
    }

    /// What `docs/schedulers.md` says of the kernel's table.
    #[test]
    fn more_clients_move_in_the_kernels_table() {
        const LISTS: u32 = 40;
        /// Backends, and percent with equal weights, with weights of 1 to 5, and of 1 and 100.
        const WORST: [(u32, [f64; 3]); 9] = [
            (2, [0.0, 0.0, 0.0]),
            (3, [0.8, 0.8, 1.3]),
            (4, [2.1, 1.3, 1.9]),
            (5, [2.2, 3.8, 2.8]),
            (6, [2.0, 2.4, 2.1]),
            (7, [1.6, 2.2, 2.7]),
            (8, [2.1, 2.3, 3.1]),
            (9, [2.1, 2.1, 4.0]),
            (10, [2.0, 2.5, 3.6]),
        ];
        for (count, want) in WORST {
            for (weight, want) in WEIGHTS.into_iter().zip(want) {
                let lists = (0..LISTS).map(|list| {
                    let addr = |n: u32| hash::mix((list * count + n).into()) as u32;
                    let share = |n| Share { addr: addr(n), port: 8080, weight: weight(n) };
                    (0..count).map(share).collect::<Vec<_>>()
                });
                let worst = lists.map(|all| {
                    let before = Table::fill(DEFAULT, &all);
                    (0..count).map(|gone| moved(&before, &all, gone)).fold(0.0, f64::max)
                });
                let worst = worst.fold(0.0, f64::max);
                assert!((worst - want).abs() <= 0.05, "{worst:.2} %, not {want} %: one of {count} gone");
            }
        }
    }

    #[test]
    fn a_table_never_shrinks_while_its_service_lives() {
        let sizes = [(1, 0), (10, 0), (11, 4093), (21, 0), (81, 0), (5000, 0), (3, 65_521)];
        let want = [4093, 4093, 32_749, 65_521, 131_071, 131_071, 65_521];
        assert_eq!(sizes.map(|(backends, before)| size_for(backends, before)), want);
    }

    #[test]
    fn nobody_is_named_where_all_weights_always_were_0() {
        for count in [0, 3, 30] {
            let table = Table::fill(size_for(count as usize, 0), &shares(count, |_| 0));
            assert!(table.places.iter().all(|place| *place == NOBODY));
        }
    }
}
