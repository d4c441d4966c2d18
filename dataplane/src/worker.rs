//! One core, one queue index, one loop.
//!
//! A turn reads the clock once and the snapshot once, takes frames that waited, from other workers
//! and from every port, has the [`Handler`] decide on them, and carries the verdicts out. Between turns with nothing to do the worker spins for a
//! while and then sleeps in poll(2), from which frames, handoffs and control wake it; its beat goes on, for it never
//! sleeps longer than a quarter of the beat's limit.
//!
//! The loop takes no lock, allocates nothing, and its only system calls are ring wakeups and, when idle, poll(2).

mod clock;
mod flows;
mod settle;
mod thread;
mod waiting;

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

pub use self::clock::monotonic_ns;
pub use self::flows::{FlowDesk, FlowPage, FlowsUnavailable};
pub use self::thread::{StartError, WorkerHandle, WorkerPanic, on_core, spawn};

use self::flows::Mailbox;
use self::waiting::Waiting;
use crate::frame::Frame;
use crate::ids::WorkerId;
use crate::io::LiveIo;
use crate::io::handoff::Exchange;
use crate::pipeline::{Engine, FlowRecord};
use crate::snapshot::Snapshot;
use crate::snapshot::publish::Reader;
use crate::stats::{Counter, WorkerStats};
use crate::time::Tick;
use crate::verdict::{DropReason, Verdict};

/// What decides on frames: the [`Engine`], or a test.
pub trait Handler {
    /// Decides on every frame of a batch. Both slices have the same length.
    fn process(&mut self, frames: &mut [Frame<'_>], verdicts: &mut [Verdict], now: Tick, tables: &Snapshot);

    /// Does a bounded piece of what has to be done from time to time. Returns whether more of it is due now.
    fn sweep(&mut self, now: Tick, tables: &Snapshot) -> bool;

    /// As [`Engine::dump`].
    fn dump(&self, cursor: usize, limit: usize, now: Tick, out: &mut Vec<FlowRecord>) -> Option<usize>;

    /// How many flows it knows.
    fn flows(&self) -> usize;

    /// As [`Engine::news`].
    fn news(&self) -> (u64, u64) {
        (0, 0)
    }
}

impl Handler for Engine {
    #[inline]
    fn process(&mut self, frames: &mut [Frame<'_>], verdicts: &mut [Verdict], now: Tick, tables: &Snapshot) {
        self.process(frames, verdicts, now, tables);
    }

    #[inline]
    fn sweep(&mut self, now: Tick, tables: &Snapshot) -> bool {
        self.sweep(now, tables)
    }

    fn dump(&self, cursor: usize, limit: usize, now: Tick, out: &mut Vec<FlowRecord>) -> Option<usize> {
        self.dump(cursor, limit, now, out)
    }

    #[inline]
    fn flows(&self) -> usize {
        self.flows()
    }

    #[inline]
    fn news(&self) -> (u64, u64) {
        self.news()
    }
}

/// What a worker does without work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Idle {
    /// How long it spins before it sleeps.
    pub spin: Duration,
    /// Whether it spins for ever.
    pub busy_poll: bool,
    /// After how long without a beat the XDP program takes the worker for dead.
    pub beat_limit: Duration,
}

impl Default for Idle {
    /// 50 us of spinning; dead after a second.
    fn default() -> Self {
        Self { spin: Duration::from_micros(50), busy_poll: false, beat_limit: Duration::from_secs(1) }
    }
}

/// What a worker is made of. `beat` is told the time in nanoseconds of `CLOCK_MONOTONIC` every turn, and 0 when the
/// worker ends, however it ends.
#[derive(Debug)]
pub struct Parts<I, H, B> {
    /// Which worker it is.
    pub id: WorkerId,
    /// The core that it is pinned to.
    pub core: Option<usize>,
    /// Its frames' source and sink.
    pub io: I,
    /// What decides on frames.
    pub handler: H,
    /// Its end of the handoffs.
    pub exchange: Exchange,
    /// Where new snapshots come from.
    pub snapshots: Reader,
    /// Its counters, which the handler counts on too.
    pub stats: Arc<WorkerStats>,
    /// Its sign of life.
    pub beat: B,
    /// What it does without work.
    pub idle: Idle,
}

/// What a worker shows of itself beside [`WorkerStats`].
#[derive(Debug, Default)]
pub struct WorkerView {
    /// Turns, with frames or without.
    pub turns: Counter,
    /// Times that it went to sleep.
    pub sleeps: Counter,
    /// Flows in its table.
    pub flows: AtomicU64,
    over: AtomicBool,
}

impl WorkerView {
    /// Whether the worker has ended, by itself or by a panic.
    pub fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    /// The worker has ended.
    pub fn end(&self) {
        self.over.store(true, Ordering::Relaxed);
    }
}

/// Ends the beat when the worker ends, also by a panic: the XDP program then gives its frames to the kernel at once.
struct LastBeat<B: Fn(u64)> {
    beat: B,
    view: Arc<WorkerView>,
}

impl<B: Fn(u64)> Drop for LastBeat<B> {
    fn drop(&mut self) {
        (self.beat)(0);
        self.view.end();
    }
}

struct Worker<I, H, B: Fn(u64)> {
    io: I,
    handler: H,
    exchange: Exchange,
    waiting: Waiting,
    snapshots: Reader,
    stats: Arc<WorkerStats>,
    beat: LastBeat<B>,
    idle: Idle,
    view: Arc<WorkerView>,
    mailbox: Arc<Mailbox>,
    stop: Arc<AtomicBool>,
}

impl<I: LiveIo, H: Handler, B: Fn(u64)> Worker<I, H, B> {
    fn run(mut self) {
        let spin_ns = u64::try_from(self.idle.spin.as_nanos()).unwrap_or(u64::MAX);
        let mut active_ns = monotonic_ns();
        while !self.stop.load(Ordering::Relaxed) {
            let now_ns = monotonic_ns();
            if self.turn(now_ns) {
                active_ns = now_ns;
            } else if self.idle.busy_poll || now_ns.saturating_sub(active_ns) < spin_ns {
                std::hint::spin_loop();
            } else {
                self.sleep(now_ns);
            }
        }
    }

    /// Returns whether there was something to do, so that there may be more.
    fn turn(&mut self, now_ns: u64) -> bool {
        let Self { io, handler, exchange, waiting, snapshots, stats, .. } = self;
        let (stats, now) = (&**stats, Tick::from_ns(now_ns));
        let tables = snapshots.read();
        let is_behind = handler.sweep(now, tables);
        for _ in 0..waiting.begin(tables.generation, handler.news(), now_ns) {
            stats.drop(DropReason::NoNeighbour);
        }
        let injected = io.inject(|room| {
            let again = waiting.retry(room, |waits| stats.drop(waits.reason()));
            again.or_else(|| exchange.receive(room, || stats.drop(DropReason::HandoffTooLarge)))
        });
        stats.taken_over.add((injected - waiting.came_back()) as u64);
        let turn = io.turn(|frames, verdicts| {
            handler.process(frames, verdicts, now, tables);
            settle::settle(frames, verdicts, tables.net.kernel, exchange, waiting, now_ns, stats);
        });
        for reason in &turn.lost {
            stats.drop(*reason);
        }
        exchange.announce();
        let is_asked = self.mailbox.serve(handler, now);
        self.view.flows.store(self.handler.flows() as u64, Ordering::Relaxed);
        self.view.turns.add(1);
        (self.beat.beat)(now_ns);
        turn.frames != 0 || is_behind || is_asked
    }

    fn sleep(&mut self, now_ns: u64) {
        let bell = Arc::clone(self.exchange.bell());
        bell.lie_down();
        let is_called = self.exchange.has_mail()
            || self.mailbox.has_query()
            || self.snapshots.is_outdated()
            || self.stop.load(Ordering::Relaxed);
        let mut is_rung = false;
        if !is_called {
            self.view.sleeps.add(1);
            let most = self.idle.beat_limit / 4;
            let timeout = self.waiting.patience(now_ns).map_or(most, |patience| most.min(patience));
            is_rung = self.io.wait(bell.as_fd(), timeout);
        }
        bell.get_up(is_rung);
    }
}

#[cfg(test)]
#[allow(clippy::cast_possible_truncation, reason = "test numbers are small")]
mod tests;
