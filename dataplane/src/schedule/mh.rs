//! Maglev hashing (`ip_vs_mh.c`; Eisenbud et al., "Maglev", NSDI 2016): a client stays with one backend, and a changed
//! list of backends moves few clients of the others.
//!
//! A drained backend keeps its places in the table, by its latest weight that was not 0: without `mh-fallback` its
//! clients are refused, with it they are spread over the others, and nobody else moves.

use std::sync::Arc;

use super::{Flags, eligible, hash};
use crate::flow::key::FlowKey;
use crate::snapshot::Backend;
use crate::state::State;

/// The sizes of table that the kernel can be built with, from its default (`CONFIG_IP_VS_MH_TAB_INDEX` 12) on.
const SIZES: [u32; 6] = [4093, 8191, 16_381, 32_749, 65_521, 131_071];

/// The size of a table that does not grow up to 163 backends.
const STEADY_SIZE: u32 = 16_381;

/// Places for each backend that a table is to have, on average.
const PLACES_EACH: usize = 100;

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

/// A size of table for `backends` backends: the default, and for more than 40 the next one that leaves each a hundred
/// places; never less than `before`, since another size moves every client.
pub(super) fn size_for(backends: usize, before: u32) -> u32 {
    let enough = |size: &&u32| **size as usize >= backends * PLACES_EACH;
    let [.., largest] = SIZES;
    SIZES.iter().find(enough).copied().unwrap_or(largest).max(before)
}

/// The size of a table that is to be the same wherever the same backends are, whatever there was before: larger than
/// [`size_for`] would have it for most, since it should last.
pub(super) fn steady_size(backends: usize) -> u32 {
    size_for(backends, STEADY_SIZE)
}

impl Table {
    /// Fills a table of `size` places (a prime): backend by backend in the order of the list, over and over, each takes
    /// as many places as its weight says, along its own order of all places.
    pub(super) fn fill(size: u32, shares: &[Share]) -> Self {
        let mut places = vec![NOBODY; size as usize].into_boxed_slice();
        let weights = || shares.iter().map(|share| share.weight);
        let divisor = weights().fold(0, gcd);
        if let Some(largest) = weights().max().and_then(|largest| largest.checked_div(divisor)) {
            let cut = (u32::BITS - largest.leading_zeros()).saturating_sub(WEIGHT_BITS);
            let takers = shares.iter().zip(0..NOBODY).filter(|(share, _)| share.weight > 0);
            let mut takers: Vec<_> = takers
                .map(|(share, name)| Taker {
                    name,
                    turns: ((share.weight / divisor) >> cut).max(1),
                    at: share.hash(PLACE_KEY) % size,
                    step: share.hash(STEP_KEY) % (size - 1) + 1,
                })
                .collect();
            let mut left = size;
            while left > 0 && !takers.is_empty() {
                for taker in &mut takers {
                    let turns = taker.turns.min(left);
                    (0..turns).for_each(|_| taker.take(&mut places));
                    left -= turns;
                }
            }
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
    /// Places in a row.
    turns: u32,
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

impl Lookup {
    pub(super) fn new(table: Arc<Table>, flags: Flags) -> Self {
        Self { table, flags, order: None }
    }

    /// A lookup in a table over the backends in another `order` than that of the list.
    pub(super) fn ordered(table: Arc<Table>, flags: Flags, order: Arc<[u16]>) -> Self {
        Self { table, flags, order: Some(order) }
    }

    fn backend<'a>(&self, backends: &'a [Backend], name: u16) -> Option<&'a Backend> {
        let place = match &self.order {
            None => name,
            Some(order) => *order.get(usize::from(name))?,
        };
        backends.get(usize::from(place))
    }

    /// The backend whose place the client of `key` has, also if that takes no new flows: where a flow that is not known
    /// was opened, as long as the list of backends is the same.
    pub fn home<'a>(&self, backends: &'a [Backend], key: &FlowKey) -> Option<&'a Backend> {
        let port = if self.flags.port { key.sport } else { 0 };
        self.backend(backends, self.table.name(hash::fold(key.src), port, 0)?)
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
        let addr = hash::fold(key.src);
        let port = if self.flags.port { key.sport } else { 0 };
        let named = self.backend(backends, self.table.name(addr, port, 0)?)?;
        if eligible(named, state) {
            return Some(named);
        }
        if !self.flags.fallback {
            return None;
        }
        self.fall_back(backends, state, addr, port)
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
