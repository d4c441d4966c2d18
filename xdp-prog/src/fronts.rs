//! The services over IPv4 as the XDP program finds them in one cache line: a hash of buckets in shared memory.
//!
//! Only most of them: where a bucket is full, a service is looked up in the map of VIPs, as all over IPv6 are. What is here
//! has to be there, too.

use std::sync::atomic::Ordering;

use crate::abi::{Bucket, Settings};
use crate::claims::Held;
use crate::shared::Shared;

/// 2^64 divided by the golden ratio: multiplicative hashing, Knuth, The Art of Computer Programming, section 6.4.
const MIX: u64 = 0x9e37_79b9_7f4a_7c15;

/// Buckets for so many services: places are twice as many at least, so few find their bucket full.
pub(crate) fn buckets(services: u32) -> u32 {
    const MOST: u32 = 1 << 20;
    (services / 2).clamp(1, MOST).next_power_of_two()
}

/// The buckets. This process alone writes them.
#[derive(Debug)]
pub(crate) struct Fronts {
    shared: Shared<Bucket>,
    mask: u32,
}

impl Fronts {
    /// Over a mapped array of so many buckets, a power of two. Tells the program how they are found.
    pub(crate) fn new(shared: Shared<Bucket>, count: u32, settings: &Settings) -> Self {
        let mask = count - 1;
        settings.front_mix.store(MIX, Ordering::Relaxed);
        settings.front_mask.store(mask, Ordering::Relaxed);
        Self { shared, mask }
    }

    /// Adds what is held, if it is such a service and there is room.
    pub(crate) fn add(&self, held: Held) {
        let Some((bucket, place)) = self.find(held) else { return };
        let is = |wanted: u64| bucket.places.iter().find(|slot| slot.load(Ordering::Relaxed) == wanted);
        if let (None, Some(free)) = (is(place), is(0)) {
            free.store(place, Ordering::Relaxed);
        }
    }

    /// Takes it out.
    pub(crate) fn remove(&self, held: Held) {
        let Some((bucket, place)) = self.find(held) else { return };
        for slot in bucket.places.iter().filter(|slot| slot.load(Ordering::Relaxed) == place) {
            slot.store(0, Ordering::Relaxed);
        }
    }

    fn find(&self, held: Held) -> Option<(&Bucket, u64)> {
        let (addr, port, proto) = held.front()?;
        let place = u64::from(addr) << 32 | u64::from(port) << 16 | (u64::from(proto) + 1);
        let index = (place.wrapping_mul(MIX) >> 32) as u32 & self.mask;
        Some((self.shared.at(index)?, place))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_two_places_a_service_and_buckets_are_a_power_of_two() {
        for (services, want) in [(1, 1), (2, 1), (3, 1), (1000, 512), (65_536, 32_768), (u32::MAX, 1 << 20)] {
            assert_eq!(buckets(services), want, "{services}");
        }
    }
}
