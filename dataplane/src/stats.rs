//! Per-worker counters, written by their worker alone and summed by whoever reads.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use zerocopy::FromZeros;

use crate::flow::entry::Way;
use crate::ids::{BackendId, PortId, ServiceId};
use crate::prefetch::prefetch_at;
use crate::snapshot::steering::Class;
use crate::verdict::{DropReason, Verdict};

/// A counter with one writer: no locked instruction, and readers see a value that was true a moment ago.
#[derive(Debug, Default, FromZeros)]
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

/// Traffic of one backend as one worker saw it. As long as a cache line, so that no two share one.
#[derive(Debug, Default, FromZeros)]
#[repr(C)]
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
    /// The next one in the list of busy backends, plus [`LISTED`]; [`LAST`] of the last one, 0 of one that is not in it.
    next: AtomicU32,
    _rest: [u32; 5],
}

/// See [`BackendCounters::next`].
const LAST: u32 = 1;
/// See [`BackendCounters::next`].
const LISTED: u32 = 2;

const _: () = assert!(size_of::<BackendCounters>() == 64);

/// Ports at most: as many as the XDP program knows.
const PORTS: usize = 32;

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
    arrivals: [[[Counter; 2]; Class::ALL.len()]; PORTS],
    drops: Box<[Counter]>,
    backends: Box<[BackendCounters]>,
    /// The first in the list of busy backends, plus [`LISTED`]; 0 for an empty list.
    busy: AtomicU32,
    services: Box<[Counter]>,
}

impl WorkerStats {
    /// Counters for so many services and backends. Those that are not used take no memory.
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
            arrivals: Default::default(),
            drops: DropReason::ALL.iter().map(|_| Counter::default()).collect(),
            backends: zeros(backends),
            busy: AtomicU32::new(0),
            services: zeros(services),
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

    /// A frame of this class came by `port` that was looked at: on the queue that the card says, or on another one.
    pub fn arrived(&self, port: PortId, class: Class, as_said: bool) {
        let counters = self.arrivals.get(port.index()).and_then(|port| port.get(class as usize));
        if let Some(counter) = counters.and_then(|counters| counters.get(usize::from(as_said))) {
            counter.add(1);
        }
    }

    /// How many such frames there were: on another queue, and on the one that the card says.
    pub fn arrivals(&self, port: PortId, class: Class) -> [u64; 2] {
        let counters = self.arrivals.get(port.index()).and_then(|port| port.get(class as usize));
        counters.map_or([0; 2], |counters| counters.each_ref().map(Counter::get))
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

    /// A flow to the backend was opened.
    #[inline]
    pub fn opened(&self, id: BackendId) {
        if let Some(counters) = self.backend(id) {
            counters.flows.add(1);
            self.stirs(id, counters);
        }
    }

    /// A packet of `bytes` bytes to or from the backend passed on `way`.
    #[inline]
    pub fn passed(&self, id: BackendId, way: Way, bytes: u16) {
        self.passed_again(id, way, bytes);
        self.stirred(id);
    }

    /// The same for one of a flow that the backend was [said to stir](Self::stirred) for already in this tick.
    #[inline]
    pub fn passed_again(&self, id: BackendId, way: Way, bytes: u16) {
        let Some(counters) = self.backend(id) else { return };
        let (packets, volume) = match way {
            Way::Forward => (&counters.packets_in, &counters.bytes_in),
            Way::Reply => (&counters.packets_out, &counters.bytes_out),
        };
        packets.add(1);
        volume.add(bytes.into());
    }

    /// Says that the backend has traffic. Of a flow it is enough to say so in each tick.
    #[inline]
    pub fn stirred(&self, id: BackendId) {
        if let Some(counters) = self.backend(id) {
            self.stirs(id, counters);
        }
    }

    /// Takes the list of busy backends: those that had traffic since they were last said to rest. Whoever takes them looks
    /// at their counters from then on, until these stand still, says that they rest, and looks once more some ticks later:
    /// traffic of just that moment, and what follows it in the same tick, may have missed it. One caller at a time.
    pub fn take_busy(&self, mut see: impl FnMut(BackendId)) {
        let mut at = self.busy.swap(0, Ordering::Acquire);
        while let Some(id) = at.checked_sub(LISTED).map(BackendId) {
            at = self.backend(id).map_or(0, |counters| counters.next.load(Ordering::Relaxed));
            see(id);
        }
    }

    /// Lists the backend again when it has traffic. See [`Self::take_busy`], whose caller says this of what it took.
    pub fn rests(&self, id: BackendId) {
        if let Some(counters) = self.backend(id) {
            counters.next.store(0, Ordering::Relaxed);
        }
    }

    /// Sees to it that a backend with traffic is in the list of busy ones, or was taken from it.
    #[inline]
    fn stirs(&self, id: BackendId, counters: &BackendCounters) {
        if counters.next.load(Ordering::Relaxed) == 0 {
            self.list(id, counters);
        }
    }

    #[cold]
    fn list(&self, id: BackendId, counters: &BackendCounters) {
        let mut first = self.busy.load(Ordering::Relaxed);
        let own = id.0.saturating_add(LISTED);
        loop {
            counters.next.store(first.max(LAST), Ordering::Relaxed);
            match self.busy.compare_exchange_weak(first, own, Ordering::Release, Ordering::Relaxed) {
                Ok(_) => return,
                Err(other) => first = other,
            }
        }
    }

    /// Brings the backend's counters into the cache.
    #[inline]
    pub(crate) fn prefetch_backend(&self, id: BackendId) {
        prefetch_at(&self.backends, id.index());
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

/// So many values that are zero, in memory that the system gives when it is first written to.
pub(crate) fn zeros<T: FromZeros + Default>(count: usize) -> Box<[T]> {
    <[T]>::new_box_zeroed_with_elems(count).unwrap_or_else(|_| (0..count).map(|_| T::default()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn busy(stats: &WorkerStats) -> Vec<u32> {
        let mut list = Vec::new();
        stats.take_busy(|id| list.push(id.0));
        list.sort_unstable();
        list
    }

    #[test]
    fn a_backend_with_traffic_is_listed_once_until_it_rests() {
        let stats = WorkerStats::new(1, 8);
        let pass = |id| stats.passed(BackendId(id), Way::Forward, 60);
        assert!(busy(&stats).is_empty());
        [7, 0, 7].into_iter().for_each(pass);
        stats.opened(BackendId(3));
        assert_eq!(busy(&stats), [0, 3, 7]);
        [7, 0, 5].into_iter().for_each(pass);
        assert_eq!(busy(&stats), [5], "the others are known");
        stats.rests(BackendId(7));
        assert!(busy(&stats).is_empty());
        [7, 3].into_iter().for_each(pass);
        assert_eq!(busy(&stats), [7]);
        pass(8);
        stats.rests(BackendId(8));
        assert!(busy(&stats).is_empty(), "past the slab");
    }

    #[test]
    fn no_busy_backend_is_missed_while_the_list_is_taken() {
        const BACKENDS: u32 = 512;
        let stats = WorkerStats::new(1, BACKENDS as usize);
        let mut seen = 0;
        std::thread::scope(|scope| {
            let worker = scope.spawn(|| (0..BACKENDS).for_each(|id| stats.opened(BackendId(id))));
            while !worker.is_finished() {
                seen += busy(&stats).len();
            }
        });
        assert_eq!(seen + busy(&stats).len(), BACKENDS as usize);
    }
}
