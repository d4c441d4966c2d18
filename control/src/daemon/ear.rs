//! How control hears at once that a worker misses a neighbour, and not more often than is good for it.

use std::future::poll_fn;
use std::sync::Arc;

use dataplane::snapshot::net::Neighbour;
use dataplane::wanted::Wanted;

/// Neighbours asked for in a round at most.
const ASKED: usize = 64;
/// What one hearing costs of a round's [`ASKED`], however little is asked for: bounds the hearings in a round.
const HEARD: usize = ASKED / 8;

/// Control's end of the workers' wishes. Time is divided into rounds by whoever calls [`Ear::begin`]; each has so much
/// to spend, in one go or bit by bit.
#[derive(Debug)]
pub(super) struct Ear {
    wanted: Arc<Wanted>,
    left: usize,
}

impl Ear {
    /// At the begin of a round.
    pub(super) fn new(wanted: Arc<Wanted>) -> Self {
        Self { wanted, left: ASKED }
    }

    /// Begins another round.
    pub(super) fn begin(&mut self) {
        self.left = ASKED;
    }

    /// How many neighbours may still be asked for in this round.
    pub(super) fn left(&self) -> usize {
        self.left
    }

    /// Waits until there is a wish. Nothing is lost where the future is dropped.
    pub(super) async fn heard(&self) {
        poll_fn(|context| self.wanted.poll(context)).await;
    }

    /// The wishes so far.
    pub(super) fn wishes(&self) -> impl Iterator<Item = Neighbour> {
        (0..self.wanted.len()).map_while(|_| self.wanted.pop())
    }

    /// So many neighbours were asked for after a hearing.
    pub(super) fn spend(&mut self, asked: usize) {
        self.left = self.left.saturating_sub(asked.max(HEARD));
    }
}
