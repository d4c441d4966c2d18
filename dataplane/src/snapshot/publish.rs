//! How a snapshot reaches the workers without a lock, and how the old one is freed without them.
//!
//! A [`Reader`] compares one shared number a batch and, only when it has changed, takes the new snapshot. The
//! [`Publisher`] keeps a reference to every snapshot that some reader may still hold, so dropping a reader's
//! reference never frees anything; [`Publisher::collect`] does, in the control thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;

use super::Snapshot;
use crate::ids::WorkerId;

#[derive(Debug)]
struct Shared {
    generation: AtomicU64,
    current: ArcSwap<Snapshot>,
    seen: Box<[AtomicU64]>,
}

/// The control thread's end.
#[derive(Debug)]
pub struct Publisher {
    shared: Arc<Shared>,
    kept: Vec<Arc<Snapshot>>,
}

/// A worker's end.
#[derive(Debug)]
pub struct Reader {
    shared: Arc<Shared>,
    worker: WorkerId,
    snapshot: Arc<Snapshot>,
}

impl Publisher {
    /// Starts with `first` for so many workers.
    pub fn new(first: Snapshot, workers: usize) -> Self {
        let first = Arc::new(first);
        let shared = Shared {
            generation: AtomicU64::new(first.generation),
            current: ArcSwap::new(Arc::clone(&first)),
            seen: (0..workers).map(|_| AtomicU64::new(0)).collect(),
        };
        Self { shared: Arc::new(shared), kept: vec![first] }
    }

    /// The end for `worker`.
    pub fn reader(&self, worker: WorkerId) -> Reader {
        Reader { shared: Arc::clone(&self.shared), worker, snapshot: self.shared.current.load_full() }
    }

    /// An end that only looks.
    pub fn watch(&self) -> Watch {
        Watch(Arc::clone(&self.shared))
    }

    /// The snapshot that was published last.
    pub fn current(&self) -> Arc<Snapshot> {
        self.shared.current.load_full()
    }

    /// Gives `next` the following generation and hands it to the workers. Returns the generation.
    pub fn publish(&mut self, mut next: Snapshot) -> u64 {
        let generation = self.current().generation + 1;
        next.generation = generation;
        let next = Arc::new(next);
        self.kept.push(Arc::clone(&next));
        self.shared.current.store(next);
        self.shared.generation.store(generation, Ordering::Release);
        generation
    }

    /// Whether every worker uses this generation or a later one.
    pub fn is_seen(&self, generation: u64) -> bool {
        self.shared.seen.iter().all(|seen| seen.load(Ordering::Acquire) >= generation)
    }

    /// Frees the snapshots that no reader holds any more. Returns how many are kept.
    pub fn collect(&mut self) -> usize {
        let current = self.current().generation;
        // A count of 1 is this list's own; a reader can only take the current one, which stays.
        self.kept.retain(|kept| kept.generation == current || Arc::strong_count(kept) > 1);
        self.kept.len()
    }
}

/// An end for whoever wants to see what is published and is no worker. What it holds is freed by the publisher.
#[derive(Clone, Debug)]
pub struct Watch(Arc<Shared>);

impl Watch {
    /// The snapshot that was published last.
    pub fn current(&self) -> Arc<Snapshot> {
        self.0.current.load_full()
    }
}

impl Reader {
    /// Whether there is a newer snapshot than the one of the last [`Self::read`].
    #[inline]
    pub fn is_outdated(&self) -> bool {
        self.shared.generation.load(Ordering::Acquire) != self.snapshot.generation
    }

    /// The newest snapshot, for one batch.
    #[inline]
    pub fn read(&mut self) -> &Snapshot {
        if self.is_outdated() {
            self.snapshot = self.shared.current.load_full();
        }
        if let Some(seen) = self.shared.seen.get(self.worker.index()) {
            seen.store(self.snapshot.generation, Ordering::Release);
        }
        &self.snapshot
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_snapshots_are_freed_by_the_publisher_once_every_reader_moved_on() {
        let mut publisher = Publisher::new(Snapshot::default(), 2);
        let mut readers = [publisher.reader(WorkerId(0)), publisher.reader(WorkerId(1))];
        let generation = publisher.publish(Snapshot::default());
        assert_eq!(publisher.collect(), 2, "both readers still hold the first");
        assert_eq!(readers[0].read().generation, generation);
        assert!(!publisher.is_seen(generation));
        assert_eq!(publisher.collect(), 2, "one reader still holds the first");
        assert_eq!(readers[1].read().generation, generation);
        assert!(publisher.is_seen(generation));
        assert_eq!(publisher.collect(), 1);
    }
}
