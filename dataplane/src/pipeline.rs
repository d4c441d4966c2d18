//! The whole path of a packet on one screen.

use std::net::IpAddr;
use std::sync::Arc;

use crossbeam_queue::ArrayQueue;

use crate::frame::Frame;
use crate::ids::{BackendId, ServiceId, WorkerId};
use crate::snapshot::net::Neighbour;
use crate::snapshot::{Mode, Snapshot};
use crate::state::State;
use crate::stats::WorkerStats;
use crate::time::Tick;
use crate::verdict::Verdict;

/// What an engine is made with.
#[derive(Debug)]
pub struct Setup {
    /// Which worker it serves.
    pub worker: WorkerId,
    /// How many workers there are.
    pub workers: u8,
    /// Flows at most.
    pub flow_limit: usize,
    /// Counts shared by all workers.
    pub state: Arc<State>,
    /// This worker's counters.
    pub stats: Arc<WorkerStats>,
    /// Neighbours that control should ask for.
    pub wanted: Arc<ArrayQueue<Neighbour>>,
    /// Random for each process: keys the hashes.
    pub seed: u64,
}

/// One flow, for `weir show flows`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields are what their names say")]
pub struct FlowRecord {
    pub proto: u8,
    pub client: (IpAddr, u16),
    pub vip: (IpAddr, u16),
    pub snat: (IpAddr, u16),
    pub backend: (IpAddr, u16),
    pub service_id: ServiceId,
    pub backend_id: BackendId,
    pub mode: Mode,
    pub state: &'static str,
    pub expires_s: u32,
}

/// The packet engine of one worker, with the worker's own state.
#[derive(Debug)]
pub struct Engine {
    setup: Setup,
}

impl Engine {
    /// An engine with an empty flow table. Allocates and faults in all memory that it will ever use.
    pub fn new(setup: Setup) -> Self {
        Self { setup }
    }

    /// Decides on every frame of a batch and rewrites it in place. `verdicts` has the length of `frames`.
    pub fn process(&mut self, _frames: &mut [Frame<'_>], _verdicts: &mut [Verdict], _now: Tick, _tables: &Snapshot) {}

    /// Forgets flows whose time is up: a bounded sweep, called once a turn whether there were frames or not.
    pub fn sweep(&mut self, _now: Tick, _tables: &Snapshot) {}

    /// Copies live flows into `out` until its capacity is used or `limit` slots were looked at, from slot `cursor`
    /// on. Returns the next cursor, `None` at the end of the table. Allocates nothing.
    pub fn dump(&self, _cursor: usize, _limit: usize, _now: Tick, _out: &mut Vec<FlowRecord>) -> Option<usize> {
        None
    }

    /// Flows in the table.
    pub fn flows(&self) -> usize {
        0
    }

    /// This worker's counters.
    pub fn stats(&self) -> &WorkerStats {
        &self.setup.stats
    }
}
