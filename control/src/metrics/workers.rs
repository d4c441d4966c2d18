//! What workers count, each by itself or all together, and their sockets.

use std::fmt;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use dataplane::io::xsk::PortSocket;
use dataplane::stats::{Counter, WorkerStats};
use dataplane::verdict::DropReason;
use dataplane::worker::WorkerView;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;

use super::process;
use super::write::{Labels, Writer};
use crate::daemon::Served;

/// Reads the workers' own counters when asked.
#[derive(Debug)]
pub(super) struct Workers {
    workers: Vec<Watched>,
    flow_limit: usize,
}

#[derive(Debug)]
struct Watched {
    number: String,
    stats: Arc<WorkerStats>,
    view: Arc<WorkerView>,
    sockets: Vec<PortSocket>,
}

/// Which of a worker's counters.
type Of = fn(&WorkerStats) -> &Counter;

/// Counters that every worker has: name, help, which.
type Row = (&'static str, &'static str, Of);

/// Those that are told by worker.
const BY_WORKER: [Row; 5] = [
    ("weir_worker_frames", "Frames given to the engine", |stats| &stats.frames),
    ("weir_worker_handed_over", "Frames handed to another worker", |stats| &stats.handed_over),
    ("weir_worker_taken_over", "Frames taken from another worker", |stats| &stats.taken_over),
    ("weir_worker_flows_opened", "Flows opened", |stats| &stats.flows_opened),
    ("weir_worker_directory_full", "Flows that other workers could not be told of", |stats| {
        &stats.directory_full
    }),
];

/// Those that are told as a sum.
const TOGETHER: [Row; 9] = [
    ("weir_frames_waited", "Times that a frame was kept until its neighbour was known", |stats| {
        &stats.waited
    }),
    ("weir_segments_kept", "Times that a segment was kept until its backend had answered", |stats| {
        &stats.unanswered
    }),
    ("weir_stateless", "Packets that were sent on without a flow, by consistent hashing", |stats| {
        &stats.stateless
    }),
    ("weir_cookies_sent", "SYNs that were answered by a cookie", |stats| &stats.cookies_sent),
    ("weir_cookies_accepted", "Flows that were opened by a cookie", |stats| &stats.cookies_accepted),
    ("weir_split", "Packets that were sent in pieces, because they were larger than their path", |stats| {
        &stats.split
    }),
    ("weir_templates_full", "Clients that persistence could not remember for want of room", |stats| {
        &stats.templates_full
    }),
    ("weir_neighbours_unasked", "Neighbours that workers could not ask control for", |stats| {
        &stats.wanted_lost
    }),
    ("weir_fragmented", "Packets that came in fragments", |stats| &stats.fragmented),
];

/// What becomes of frames besides being dropped, as a label.
const VERDICTS: [(&str, Of); 4] = [
    ("forwarded", |stats| &stats.forwarded),
    ("answered", |stats| &stats.answered),
    ("kernel", |stats| &stats.kernel),
    ("handed_over", |stats| &stats.handed_over),
];

/// Why flows end, as a label.
const ENDS: [(&str, Of); 4] = [
    ("expired", |stats| &stats.flows_expired),
    ("evicted", |stats| &stats.flows_evicted),
    ("drained", |stats| &stats.flows_drained),
    ("dropped", |stats| &stats.flows_dropped),
];

/// What becomes of later fragments, as a label.
const FRAGMENTS: [(&str, Of); 3] = [
    ("followed", |stats| &stats.fragments_followed),
    ("early", |stats| &stats.fragments_early),
    ("evicted", |stats| &stats.fragments_evicted),
];

impl Workers {
    /// `flow_limit` is that of each worker.
    pub(super) fn new(served: &[Served], flow_limit: usize) -> Self {
        let watched = |served: &Served| Watched {
            number: served.handle.id.0.to_string(),
            stats: Arc::clone(&served.handle.stats),
            view: Arc::clone(&served.handle.view),
            sockets: served.sockets.clone(),
        };
        Self { workers: served.iter().map(watched).collect(), flow_limit }
    }

    fn sum(&self, of: Of) -> u64 {
        self.workers.iter().map(|worker| of(&worker.stats).get()).sum()
    }

    /// One row a worker.
    fn each(&self, of: impl Fn(&Watched) -> u64) -> impl Iterator<Item = (Labels<1>, u64)> {
        self.workers.iter().map(move |worker| (worker.labels(), of(worker)))
    }

    fn write_workers(&self, writer: &mut Writer<'_>) -> fmt::Result {
        for (name, help, of) in BY_WORKER {
            writer.counters(name, help, self.each(|worker| of(&worker.stats).get()))?;
        }
        let up = self.each(|worker| u64::from(!worker.view.is_over()));
        writer.gauges("weir_worker_up", "Whether the worker's thread runs", up)?;
        let turns = self.each(|worker| worker.view.turns.get());
        writer.counters("weir_worker_turns", "Rounds of the worker's loop", turns)?;
        let sleeps = self.each(|worker| worker.view.sleeps.get());
        writer.counters("weir_worker_sleeps", "Times that the worker slept for want of work", sleeps)?;
        let flows = self.each(|worker| worker.view.flows.load(Ordering::Relaxed));
        writer.gauges("weir_worker_flows", "Flows in the worker's table", flows)?;
        let limit = self.each(|_| self.flow_limit as u64);
        writer.gauges("weir_worker_flows_limit", "Flows that the worker's table holds", limit)?;
        let half_open = self.each(|worker| worker.stats.half_open.get());
        writer.gauges("weir_worker_flows_half_open", "Flows whose handshake is not complete", half_open)?;
        self.write_time(writer)
    }

    /// The processor time of each worker's thread.
    fn write_time(&self, writer: &mut Writer<'_>) -> fmt::Result {
        let tasks = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
        let stats = tasks.filter_map(|task| fs::read_to_string(task.path().join("stat")).ok());
        let times: Vec<_> = stats.filter_map(|stat| process::thread_time(&stat)).collect();
        let help = "Processor time of the worker's thread, in seconds";
        let mut family =
            writer.0.encode_descriptor("weir_worker_cpu_seconds", help, None, MetricType::Counter)?;
        for worker in &self.workers {
            let name = format!("weir-w{}", worker.number);
            if let Some((_, seconds)) = times.iter().find(|(thread, _)| *thread == name) {
                ConstCounter::new(*seconds).encode(family.encode_family(&worker.labels())?)?;
            }
        }
        Ok(())
    }

    fn write_packets(&self, writer: &mut Writer<'_>) -> fmt::Result {
        for (name, help, of) in TOGETHER {
            writer.counters(name, help, [(Labels([]), self.sum(of))])?;
        }
        let labelled = |label, (name, of): (&'static str, Of)| (Labels([(label, name.into())]), self.sum(of));
        let verdicts = VERDICTS.map(|row| labelled("verdict", row));
        writer.counters("weir_packets", "Frames that the engine decided on and did not drop", verdicts)?;
        let ends = ENDS.map(|row| labelled("cause", row));
        writer.counters("weir_flows_ended", "Flows that ended otherwise than by their protocol", ends)?;
        let fragments = FRAGMENTS.map(|row| labelled("fate", row));
        writer.counters("weir_fragments", "Later fragments, by what became of them", fragments)?;
        let drops = DropReason::ALL.iter().map(|reason| {
            let count = self.workers.iter().map(|worker| worker.stats.drops(*reason)).sum();
            (Labels([("reason", reason.name().into())]), count)
        });
        writer.counters("weir_drops", "Packets that were not delivered, by reason", drops)
    }

    fn write_sockets(&self, writer: &mut Writer<'_>) -> fmt::Result {
        let queues: Vec<_> =
            self.workers.iter().flat_map(|worker| &worker.sockets).map(Queue::read).collect();
        let modes = queues.iter().map(|queue| {
            let [interface, number] = queue.labels().0;
            (Labels([interface, number, ("mode", queue.mode.into())]), 1)
        });
        writer.gauges(
            "weir_queue_mode",
            "How frames get to and from the driver, as the kernel says",
            modes,
        )?;
        for (name, help, of) in QUEUES {
            writer.counters(name, help, queues.iter().map(|queue| (queue.labels(), of(queue))))?;
        }
        Ok(())
    }
}

impl Watched {
    fn labels(&self) -> Labels<1> {
        Labels([("worker", self.number.clone().into())])
    }
}

/// A socket's counters at one moment.
struct Queue<'a> {
    socket: &'a PortSocket,
    number: String,
    mode: &'static str,
    rx_dropped: u64,
    rx_ring_full: u64,
    fill_ring_empty: u64,
    invalid: u64,
}

/// Counters of a queue: name, help, which.
type QueueRow = (&'static str, &'static str, fn(&Queue<'_>) -> u64);

const QUEUES: [QueueRow; 6] = [
    ("weir_queue_rx_frames", "Frames received", |queue| queue.socket.counters.rx.get()),
    ("weir_queue_tx_frames", "Frames sent", |queue| queue.socket.counters.tx.get()),
    ("weir_queue_rx_ring_full", "Frames that the kernel lost because the RX ring was full", |queue| {
        queue.rx_ring_full
    }),
    ("weir_queue_rx_dropped", "Frames that the kernel lost for other reasons", |queue| queue.rx_dropped),
    ("weir_queue_fill_ring_empty", "Times that the kernel found the fill ring empty", |queue| {
        queue.fill_ring_empty
    }),
    ("weir_queue_invalid_descriptors", "Descriptors that the kernel refused", |queue| queue.invalid),
];

impl<'a> Queue<'a> {
    fn read(socket: &'a PortSocket) -> Self {
        let statistics = socket.statistics().and_then(Result::ok).unwrap_or_default();
        Self {
            socket,
            number: socket.queue.to_string(),
            mode: socket.mode.name(),
            rx_dropped: statistics.rx_dropped,
            rx_ring_full: statistics.rx_ring_full,
            fill_ring_empty: statistics.fill_ring_empty,
            invalid: statistics.rx_invalid + statistics.tx_invalid,
        }
    }

    fn labels(&self) -> Labels<2> {
        let interface = self.socket.interface.to_string();
        Labels([("interface", interface.into()), ("queue", self.number.clone().into())])
    }
}

impl Collector for Workers {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut writer = Writer(encoder);
        self.write_workers(&mut writer)?;
        self.write_packets(&mut writer)?;
        self.write_sockets(&mut writer)
    }
}
