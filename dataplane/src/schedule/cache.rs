//! Which destination was last served by which backend: the memory of lblc and lblcr.
//!
//! A table of fixed size without a lock, shared by all workers and by the generations of one service. It has the
//! kernel's bounds (`ip_vs_lblc.c`): 1,024 buckets, 24,576 destinations (one and a half times the 16,384 that the kernel
//! aims at). An entry that was not used for as long as the settings say is gone. Where a bucket is full, the entry that was not used for
//! longest makes room if that is six minutes; else the new destination is not remembered, and the next flow to it
//! is scheduled as one of an unknown destination.
//!
//! Workers may meet in an entry while it changes owner. The worst that comes of it is that a destination finds the
//! backend of another one, once; whoever reads an entry checks that the backend is in its list.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicU32, AtomicU64};

use super::hash;
use crate::time::Tick;

/// Buckets at most (kernel: `IP_VS_LBLC_TAB_SIZE`).
const BUCKETS_MAX: usize = 1024;
/// Buckets at least.
const BUCKETS_MIN: usize = 8;
/// Entries of a bucket.
const WAYS: usize = 24;
/// Seconds without use after which an entry makes room for another (kernel: `ENTRY_TIMEOUT`).
const IDLE_S: u32 = 6 * 60;

/// What is remembered of a destination.
pub trait Memory: Default {
    /// Forgets all.
    fn clear(&self);
    /// Forgets the backends of which `gone` says so.
    fn forget(&self, gone: &dyn Fn(u32) -> bool);
}

/// Destinations and what is remembered of each.
#[derive(Debug)]
pub struct Cache<M> {
    buckets: Box<[[Entry<M>; WAYS]]>,
}

#[derive(Debug, Default)]
struct Entry<M> {
    /// Which destination; 0 for none.
    tag: AtomicU64,
    /// The tick of its last use.
    used: AtomicU32,
    memory: M,
}

impl<M: Memory> Cache<M> {
    /// A cache for a service that is reached by so many addresses; `None` where they are not known.
    pub(super) fn new(addresses: Option<usize>) -> Self {
        Self { buckets: (0..Self::buckets_for(addresses)).map(|_| Default::default()).collect() }
    }

    fn buckets_for(addresses: Option<usize>) -> usize {
        // A third full, so that hardly any bucket overflows.
        let needed = addresses.map_or(BUCKETS_MAX, |addresses| addresses.div_ceil(WAYS / 3));
        needed.clamp(BUCKETS_MIN, BUCKETS_MAX).next_power_of_two()
    }

    /// Whether it has the size that [`Self::new`] would give it.
    pub(super) fn fits(&self, addresses: Option<usize>) -> bool {
        self.buckets.len() == Self::buckets_for(addresses)
    }

    #[inline]
    fn bucket(&self, tag: u64) -> &[Entry<M>] {
        // The number of buckets is a power of two.
        let mask = self.buckets.len().wrapping_sub(1) as u64;
        let place = usize::try_from(tag & mask).unwrap_or_default();
        self.buckets.get(place).map_or(&[], |bucket| bucket)
    }

    /// What is remembered of the destination, which is used now, unless that is `lasts_s` seconds ago.
    #[inline]
    pub(super) fn get(&self, destination: u128, now: Tick, lasts_s: u32) -> Option<&M> {
        let tag = tag(destination);
        let entry = self.bucket(tag).iter().find(|entry| entry.tag.load(Relaxed) == tag)?;
        if entry.is_idle(lasts_s, now) {
            return None;
        }
        entry.touch(now);
        Some(&entry.memory)
    }

    /// Where to remember something of the destination: its entry, or a new one that is empty. `None` where there is no
    /// room. What was not used for `lasts_s` seconds is forgotten.
    pub(super) fn entry(&self, destination: u128, now: Tick, lasts_s: u32) -> Option<&M> {
        let tag = tag(destination);
        let bucket = self.bucket(tag);
        if let Some(own) = bucket.iter().find(|entry| entry.tag.load(Relaxed) == tag) {
            if own.is_idle(lasts_s, now) {
                own.memory.clear();
            }
            own.touch(now);
            return Some(&own.memory);
        }
        for entry in bucket.iter().filter(|entry| entry.tag.load(Relaxed) == 0) {
            match entry.tag.compare_exchange(0, tag, Relaxed, Relaxed) {
                Ok(_) => return Some(entry.reset(now)),
                // Another worker was first, with the same destination.
                Err(seen) if seen == tag => return Some(&entry.memory),
                Err(_) => {}
            }
        }
        let age = |entry: &&Entry<M>| now.0.wrapping_sub(entry.used.load(Relaxed));
        let idle = bucket.iter().filter(|entry| entry.is_idle(IDLE_S, now)).max_by_key(age)?;
        let before = idle.tag.load(Relaxed);
        idle.tag.compare_exchange(before, tag, Relaxed, Relaxed).ok()?;
        Some(idle.reset(now))
    }

    /// Forgets every destination.
    pub(super) fn clear(&self) {
        for entry in self.buckets.iter().flatten() {
            entry.tag.store(0, Relaxed);
            entry.memory.clear();
        }
    }

    /// Forgets the backends of which `gone` says so.
    pub(super) fn forget(&self, gone: &dyn Fn(u32) -> bool) {
        self.buckets.iter().flatten().for_each(|entry| entry.memory.forget(gone));
    }
}

impl<M: Memory> Entry<M> {
    #[inline]
    fn is_idle(&self, seconds: u32, now: Tick) -> bool {
        Tick(self.used.load(Relaxed)).after_seconds(seconds).is_due(now)
    }

    #[inline]
    fn touch(&self, now: Tick) {
        if self.used.load(Relaxed) != now.0 {
            self.used.store(now.0, Relaxed);
        }
    }

    fn reset(&self, now: Tick) -> &M {
        self.touch(now);
        self.memory.clear();
        &self.memory
    }
}

/// One word for an address. IPv4 addresses have one each; two IPv6 addresses hardly ever share one, and if they do,
/// they share a backend.
#[inline]
#[expect(clippy::cast_possible_truncation, reason = "the halves are taken one by one")]
fn tag(destination: u128) -> u64 {
    let (high, low) = ((destination >> 64) as u64, destination as u64);
    hash::mix(hash::mix(high) ^ low).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Memory for AtomicU32 {
        fn clear(&self) {
            self.store(0, Relaxed);
        }
        fn forget(&self, _: &dyn Fn(u32) -> bool) {}
    }

    const NOW: Tick = Tick(u32::MAX - 100);
    const DAY: u32 = 24 * 60 * 60;

    #[test]
    fn a_destination_is_remembered_for_a_time_after_its_last_use() {
        for lasts_s in [1, 60, DAY] {
            let cache = Cache::<AtomicU32>::new(Some(1));
            let last = NOW.after_seconds(5);
            cache.entry(7, last, lasts_s).unwrap().store(42, Relaxed);
            assert!(cache.get(8, last, lasts_s).is_none());
            assert_eq!(cache.get(7, last, lasts_s).unwrap().load(Relaxed), 42);
            let soon = Tick(last.after_seconds(lasts_s).0.wrapping_sub(1));
            assert!(cache.get(7, soon, lasts_s).is_some(), "and is used again now");
            let late = last.after_seconds(2 * lasts_s);
            assert!(cache.get(7, late, lasts_s).is_none());
            assert!(cache.get(7, late, 2 * lasts_s).is_some(), "with a longer time");
            let later = late.after_seconds(lasts_s);
            assert_eq!(cache.entry(7, later, lasts_s).unwrap().load(Relaxed), 0, "as if it were new");
        }
    }

    #[test]
    fn a_worker_whose_clock_is_behind_forgets_nothing() {
        let cache = Cache::<AtomicU32>::new(None);
        cache.entry(7, NOW.after_seconds(1), DAY).unwrap().store(42, Relaxed);
        assert_eq!(cache.get(7, NOW, DAY).unwrap().load(Relaxed), 42);
    }

    #[test]
    fn a_full_bucket_gives_up_only_what_is_idle() {
        let cache = Cache::<AtomicU32>::new(Some(1));
        let room = BUCKETS_MIN * WAYS;
        let mut kept = (0..100_000).filter(|address| cache.entry(*address, NOW, DAY).is_some());
        assert_eq!(kept.by_ref().take(room).count(), room);
        assert_eq!(kept.next(), None);
        let soon = Tick(NOW.after_seconds(IDLE_S).0.wrapping_sub(1));
        assert!(cache.entry(200_000, soon, DAY).is_none());
        assert!(cache.entry(200_000, NOW.after_seconds(IDLE_S), DAY).is_some());
    }

    #[test]
    fn it_is_as_large_as_its_service_needs() {
        for (addresses, buckets) in
            [(Some(0), 8), (Some(64), 8), (Some(65), 16), (Some(99_999), 1024), (None, 1024)]
        {
            assert_eq!(Cache::<AtomicU32>::buckets_for(addresses), buckets);
        }
    }
}
