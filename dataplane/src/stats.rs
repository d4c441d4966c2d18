//! Per-worker counters, written by their worker alone and summed by whoever reads.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::flow::entry::Way;
use crate::ids::{BackendId, ServiceId};
use crate::verdict::{DropReason, Verdict};

/// A counter with one writer: no locked instruction, and readers see a value that was true a moment ago.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `count`. Only the owner calls this.
    #[inline]
    pub fn add(&self, count: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(count), Ordering::Relaxed);
    }

    /// The value.
    #[inline]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A value with one writer that goes up and down.
#[derive(Debug, Default)]
pub struct Gauge(AtomicU64);

impl Gauge {
    /// Sets the value. Only the owner calls this.
    #[inline]
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// The value.
    #[inline]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Traffic of one backend as one worker saw it.
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct BackendCounters {
    /// Flows opened.
    pub flows: Counter,
    /// Packets from clients.
    pub packets_in: Counter,
    /// Bytes from clients, IP header on.
    pub bytes_in: Counter,
    /// Packets to clients.
    pub packets_out: Counter,
    /// Bytes to clients, IP header on.
    pub bytes_out: Counter,
}

impl BackendCounters {
    /// A packet of `bytes` bytes passed on `way`.
    #[inline]
    pub fn passed(&self, way: Way, bytes: u16) {
        let (packets, volume) = match way {
            Way::Forward => (&self.packets_in, &self.bytes_in),
            Way::Reply => (&self.packets_out, &self.bytes_out),
        };
        packets.add(1);
        volume.add(bytes.into());
    }
}

/// What one worker counts.
#[derive(Debug)]
pub struct WorkerStats {
    /// Frames given to the engine.
    pub frames: Counter,
    /// Frames sent on.
    pub forwarded: Counter,
    /// Frames answered in place.
    pub answered: Counter,
    /// Frames left to the kernel.
    pub kernel: Counter,
    /// Frames handed to another worker.
    pub handed_over: Counter,
    /// Frames taken from another worker.
    pub taken_over: Counter,
    /// Times that a frame was to be kept until its neighbour is known.
    pub waited: Counter,
    /// First fragments.
    pub fragmented: Counter,
    /// Later fragments that were sent after their first one.
    pub fragments_followed: Counter,
    /// Times that a later fragment was to be kept until the first one comes.
    pub fragments_early: Counter,
    /// Fragmented packets that were forgotten before their time to make room for another.
    pub fragments_evicted: Counter,
    /// Packets that were sent in pieces, because they were larger than their path.
    pub split: Counter,
    /// Flows opened.
    pub flows_opened: Counter,
    /// Flows that ended by their timeout.
    pub flows_expired: Counter,
    /// Flows that were ended to make room for another: half-open ones, and those of a single datagram.
    pub flows_evicted: Counter,
    /// Flows that were ended because their drained backend's time was up.
    pub flows_drained: Counter,
    /// Flows that `drop_entry` ended.
    pub flows_dropped: Counter,
    /// Flows whose handshake is not complete.
    pub half_open: Gauge,
    /// SYNs that were answered by a cookie.
    pub cookies_sent: Counter,
    /// Flows that were opened by a cookie.
    pub cookies_accepted: Counter,
    /// Times that a client's segment was to be kept until its backend answers.
    pub unanswered: Counter,
    /// Clients of persistent services that were not remembered because the table of templates was full.
    pub templates_full: Counter,
    /// Packets without a flow that went where consistent hashing says.
    pub stateless: Counter,
    /// Flows and fragmented packets whose owner could not be published to the other workers (the directory's line was
    /// full).
    pub directory_full: Counter,
    /// Neighbours that could not be asked for because the request ring was full.
    pub wanted_lost: Counter,
    drops: Box<[Counter]>,
    backends: Box<[BackendCounters]>,
    services: Box<[Counter]>,
}

impl WorkerStats {
    /// Counters for so many services and backends.
    pub fn new(services: usize, backends: usize) -> Self {
        Self {
            frames: Counter::default(),
            forwarded: Counter::default(),
            answered: Counter::default(),
            kernel: Counter::default(),
            handed_over: Counter::default(),
            taken_over: Counter::default(),
            waited: Counter::default(),
            fragmented: Counter::default(),
            fragments_followed: Counter::default(),
            fragments_early: Counter::default(),
            fragments_evicted: Counter::default(),
            split: Counter::default(),
            flows_opened: Counter::default(),
            flows_expired: Counter::default(),
            flows_evicted: Counter::default(),
            flows_drained: Counter::default(),
            flows_dropped: Counter::default(),
            half_open: Gauge::default(),
            cookies_sent: Counter::default(),
            cookies_accepted: Counter::default(),
            unanswered: Counter::default(),
            templates_full: Counter::default(),
            stateless: Counter::default(),
            directory_full: Counter::default(),
            wanted_lost: Counter::default(),
            drops: DropReason::ALL.iter().map(|_| Counter::default()).collect(),
            backends: (0..backends).map(|_| BackendCounters::default()).collect(),
            services: (0..services).map(|_| Counter::default()).collect(),
        }
    }

    /// Counts a packet that was not delivered.
    #[inline]
    pub fn drop(&self, reason: DropReason) {
        if let Some(counter) = self.drops.get(reason as usize) {
            counter.add(1);
        }
    }

    /// How many packets were not delivered for this reason.
    pub fn drops(&self, reason: DropReason) -> u64 {
        self.drops.get(reason as usize).map_or(0, Counter::get)
    }

    /// Counts what became of a frame.
    #[inline]
    pub fn verdict(&self, verdict: Verdict) {
        match verdict {
            Verdict::Tx(_) => self.forwarded.add(1),
            Verdict::Reply(refusal) => {
                self.answered.add(1);
                if let Some(reason) = refusal {
                    self.drop(reason);
                }
            }
            Verdict::Handoff(_) => self.handed_over.add(1),
            Verdict::Kernel => self.kernel.add(1),
            // Counted by who keeps it, or fails to.
            Verdict::Unresolved | Verdict::Early | Verdict::Unanswered => {}
            Verdict::Drop(reason) => self.drop(reason),
        }
    }

    /// The backend's counters.
    #[inline]
    pub fn backend(&self, id: BackendId) -> Option<&BackendCounters> {
        self.backends.get(id.index())
    }

    /// New flows of the service that were refused.
    #[inline]
    pub fn refused(&self, id: ServiceId) -> Option<&Counter> {
        self.services.get(id.index())
    }
}
