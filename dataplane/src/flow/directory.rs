//! Which worker owns a flow: shared by all workers, without a lock.
//!
//! A frame may reach another worker than the one that opened its flow: the reply of a `nat` flow hashes to another
//! queue, or the interface's hash changes. The owner publishes both directions of each flow here, and a worker that
//! does not know a packet's flow asks here before it opens a new one.
//!
//! # Size and overflow
//!
//! A line holds 8 entries in the 64 bytes of a cache line. An entry may lie in either of two lines that its hash
//! names, and goes to the emptier one. At the flow limit, with two entries a flow, lines are half full on average:
//! 32 bytes a flow. Two choices keep the lines even (Azar, Broder, Karlin, Upfal: Balanced Allocations, 1999). Of
//! 10^8 flows that came and went at the limit none met two full lines; 20 % above the limit 5 in 10^6 did, 50 %
//! above it 9 in 1,000.
//!
//! A flow whose entry finds no place works, unknown to the other workers; the caller counts it.
//!
//! Fragmented packets are told of here too, by hashes of their own: later fragments reach the worker that the first one
//! reached by this. There are few of them at a time, and room for them besides.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use super::fragments;
use crate::ids::WorkerId;

/// Entries in a line.
const SLOTS: usize = 8;

/// Entries of a flow: one for each direction.
const DIRECTIONS: usize = 2;

/// Entries in a line at the flow limit, on average.
const LOAD: usize = 4;

/// Low bits of an entry: the worker's number plus 1. The rest is the tag.
const OWNER_BITS: u32 = 8;

/// An entry: 56 bits of the hash over the owner; 0 is free.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Line([AtomicU64; SLOTS]);

/// The owners of the flows of all workers.
///
/// All accesses are relaxed: an entry is whole in one word, and nothing else is read by way of it. A frame follows
/// its entry to the owner by a ring that orders what has to be.
#[derive(Debug)]
pub struct Directory {
    lines: Box<[Line]>,
}

impl Directory {
    /// Room for both directions of `flows` flows, of all workers together: 32 bytes a flow, all of it touched, and at
    /// most 128 KiB a worker for fragmented packets. With one worker there is nothing to look up, and it takes no memory,
    /// has no owners and is never full.
    pub fn new(flows: usize, workers: u8) -> Self {
        let fragments = flows.min(usize::from(workers) * fragments::MOST);
        let entries = flows.max(1).saturating_mul(DIRECTIONS).saturating_add(fragments);
        let entries = if workers > 1 { entries } else { 0 };
        Self { lines: (0..entries.div_ceil(LOAD)).map(|_| Line::default()).collect() }
    }

    /// Memory in bytes.
    pub fn bytes(&self) -> usize {
        size_of_val(&*self.lines)
    }

    /// Makes `worker` (below 255) known as owner of the flow with this hash. False where there is no room: then the
    /// flow stays unknown to the others. Published twice, an entry is there twice, each to be withdrawn.
    #[must_use]
    pub fn publish(&self, hash: u64, worker: WorkerId) -> bool {
        let Some([first, second]) = self.lines_of(hash) else { return true };
        let entry = entry(hash, worker);
        let [emptier, fuller] = if second.used() < first.used() { [second, first] } else { [first, second] };
        emptier.insert(entry) || fuller.insert(entry)
    }

    /// The worker that has published this hash. Where two have, which happens when the interface's hash moves a flow
    /// and its first owner has not let go yet, either of them. Once in some 2^52 misses a wrong one.
    #[inline]
    pub fn owner(&self, hash: u64) -> Option<WorkerId> {
        let [first, second] = self.lines_of(hash)?;
        first.owner(hash).or_else(|| second.owner(hash))
    }

    /// Takes back one entry that `worker` published for this hash. False where there is none.
    pub fn withdraw(&self, hash: u64, worker: WorkerId) -> bool {
        let entry = entry(hash, worker);
        self.lines_of(hash).is_some_and(|lines| lines.iter().any(|line| line.remove(entry)))
    }

    /// The two lines that an entry may lie in: one by the lower half of its hash, one by the upper. The same line
    /// twice, where both halves lead there, does no harm.
    #[inline]
    fn lines_of(&self, hash: u64) -> Option<[&Line; 2]> {
        let by = |half: u64| self.lines.get(scale(half, self.lines.len()));
        Some([by(hash & u64::from(u32::MAX))?, by(hash >> 32)?])
    }
}

impl Line {
    fn used(&self) -> usize {
        self.0.iter().filter(|slot| slot.load(Relaxed) != 0).count()
    }

    fn insert(&self, entry: u64) -> bool {
        self.0
            .iter()
            .any(|slot| slot.load(Relaxed) == 0 && slot.compare_exchange(0, entry, Relaxed, Relaxed).is_ok())
    }

    fn remove(&self, entry: u64) -> bool {
        self.0.iter().any(|slot| {
            slot.load(Relaxed) == entry && slot.compare_exchange(entry, 0, Relaxed, Relaxed).is_ok()
        })
    }

    #[inline]
    fn owner(&self, hash: u64) -> Option<WorkerId> {
        let tag = hash >> OWNER_BITS;
        let mut entries = self.0.iter().map(|slot| slot.load(Relaxed));
        let found = entries.find(|entry| entry >> OWNER_BITS == tag && *entry != 0)?;
        let [.., owner] = found.to_be_bytes();
        owner.checked_sub(1).map(WorkerId)
    }
}

#[inline]
fn entry(hash: u64, worker: WorkerId) -> u64 {
    hash >> OWNER_BITS << OWNER_BITS | u64::from(worker.0.saturating_add(1))
}

/// A number below `count` from 32 random bits, for up to 2^32 lines.
#[inline]
fn scale(random: u64, count: usize) -> usize {
    ((u128::from(random) * count as u128) >> 32) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::key::FlowKey;

    const W: [WorkerId; 3] = [WorkerId(0), WorkerId(1), WorkerId(2)];

    /// The hash of the `n`th flow direction.
    fn hash(n: u64) -> u64 {
        FlowKey { src: u128::from(n), v6: true, ..FlowKey::default() }.hash(0x9e37_79b9_7f4a_7c15)
    }

    /// The same for every hash: one line.
    fn smallest() -> Directory {
        Directory::new(1, 2)
    }

    #[test]
    fn an_owner_is_known_from_publication_to_withdrawal() {
        let directory = Directory::new(1_000, 2);
        assert_eq!(directory.owner(hash(1)), None);
        assert!(directory.publish(hash(1), W[1]));
        assert_eq!(directory.owner(hash(1)), Some(W[1]));
        assert_eq!(directory.owner(hash(2)), None);
        assert!(!directory.withdraw(hash(1), W[0]), "another worker's");
        assert!(!directory.withdraw(hash(2), W[1]), "another flow's");
        assert_eq!(directory.owner(hash(1)), Some(W[1]));
        assert!(directory.withdraw(hash(1), W[1]));
        assert_eq!(directory.owner(hash(1)), None);
        assert!(!directory.withdraw(hash(1), W[1]), "withdrawn before");
    }

    #[test]
    fn a_flow_that_moved_has_two_owners_until_the_first_lets_go() {
        let directory = Directory::new(1_000, 3);
        assert!(directory.publish(hash(1), W[0]) && directory.publish(hash(1), W[2]));
        assert!([Some(W[0]), Some(W[2])].contains(&directory.owner(hash(1))));
        assert!(directory.withdraw(hash(1), W[0]));
        assert_eq!(directory.owner(hash(1)), Some(W[2]));
    }

    #[test]
    fn a_full_line_takes_no_more_until_one_is_withdrawn() {
        let directory = smallest();
        let fit = (0..100).take_while(|n| directory.publish(hash(*n), W[0])).count();
        assert_eq!(fit, SLOTS);
        assert_eq!(directory.owner(hash(fit as u64)), None);
        assert!(directory.withdraw(hash(3), W[0]));
        assert!(directory.publish(hash(50), W[1]));
        let owners = [0, 1, 2, 3, 4, 50].map(|n| directory.owner(hash(n)));
        assert_eq!(owners, [Some(W[0]), Some(W[0]), Some(W[0]), None, Some(W[0]), Some(W[1])]);
    }

    #[test]
    fn hashes_at_the_ends_of_the_range_have_a_place() {
        for flows in [1, 2, 3, 1_000] {
            let directory = Directory::new(flows, 255);
            for hash in [0, 1, 255, 256, u64::MAX, u64::MAX << 32, u64::from(u32::MAX)] {
                assert!(directory.publish(hash, WorkerId(254)));
                assert_eq!(directory.owner(hash), Some(WorkerId(254)), "{hash:x}");
                assert!(directory.withdraw(hash, WorkerId(254)));
                assert_eq!(directory.owner(hash), None, "{hash:x}");
            }
        }
    }

    #[test]
    fn one_worker_needs_no_memory() {
        let directory = Directory::new(1_000_000, 1);
        assert_eq!(directory.bytes(), 0);
        assert!(directory.publish(hash(1), W[0]));
        assert_eq!(directory.owner(hash(1)), None);
        assert_eq!(Directory::new(1_000_000, 2).bytes(), 32_000_000 + 2 * 128 * 1024);
    }

    #[test]
    fn at_the_flow_limit_every_entry_finds_a_place_while_flows_come_and_go() {
        const ENTRIES: u64 = 2 * 32_768;
        let directory = Directory::new(32_768, 2);
        let mut live: Vec<_> = (0..ENTRIES).collect();
        let mut lost = live.iter().filter(|n| !directory.publish(hash(**n), W[0])).count();
        for n in ENTRIES..16 * ENTRIES {
            // Any of them ends, not the oldest first.
            let ends = &mut live[usize::try_from(hash(n) % ENTRIES).unwrap()];
            lost += usize::from(!directory.withdraw(hash(*ends), W[0]));
            *ends = n;
            lost += usize::from(!directory.publish(hash(n), W[0]));
        }
        assert_eq!(lost, 0);
    }

    #[test]
    fn threads_neither_lose_entries_nor_take_each_others() {
        const FLOWS: u64 = 4_000;
        let directory = Directory::new(12_000, 3);
        // Beside their own, all three publish the same hashes.
        let shared = 3 << 24..(3 << 24) + FLOWS / 4;
        std::thread::scope(|scope| {
            for worker in W {
                let (directory, shared) = (&directory, shared.clone());
                scope.spawn(move || {
                    let own = u64::from(worker.0) << 24..(u64::from(worker.0) << 24) + FLOWS;
                    for round in 0..20 {
                        for n in own.clone().chain(shared.clone()) {
                            assert!(directory.publish(hash(n), worker));
                        }
                        for n in own.clone() {
                            assert_eq!(directory.owner(hash(n)), Some(worker), "round {round}");
                        }
                        for n in own.clone().chain(shared.clone()) {
                            assert!(directory.withdraw(hash(n), worker), "round {round}");
                            if own.contains(&n) {
                                assert_eq!(directory.owner(hash(n)), None, "round {round}");
                            }
                        }
                    }
                });
            }
        });
        assert!(directory.lines.iter().all(|line| line.used() == 0));
    }
}
