//! The thread that a worker runs in, and what others hold of it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

use super::flows::{FlowDesk, Mailbox};
use super::waiting::Waiting;
use super::{Handler, LastBeat, Parts, Worker, WorkerView};
use crate::ids::WorkerId;
use crate::io::LiveIo;
use crate::io::handoff::Bell;
use crate::stats::WorkerStats;

/// A running worker. Dropping the handle leaves it running; [`Self::stop`] and [`Self::join`] end it.
#[derive(Debug)]
pub struct WorkerHandle {
    /// Which worker it is.
    pub id: WorkerId,
    /// The core that it is pinned to.
    pub core: Option<usize>,
    /// What it shows of itself.
    pub view: Arc<WorkerView>,
    /// Its counters.
    pub stats: Arc<WorkerStats>,
    mailbox: Arc<Mailbox>,
    bell: Arc<Bell>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

/// A worker ended by a panic: a bug. Its frames went to the kernel from then on.
#[derive(Debug, thiserror::Error)]
#[error("worker {} panicked: {message}", worker.0)]
pub struct WorkerPanic {
    /// Which worker it was.
    pub worker: WorkerId,
    /// What the panic said.
    pub message: Box<str>,
}

/// Why a worker's thread did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The thread may not run on the core.
    #[error("no thread can run on core {core} ({source}): give one of the cores that `taskset -cp $$` shows")]
    Core {
        /// The core wanted.
        core: usize,
        /// What the system said.
        source: io::Error,
    },
    /// The system has no thread left.
    #[error("a worker's thread cannot be started ({0}): raise the limit of tasks (ulimit -u, TasksMax=)")]
    Thread(#[from] io::Error),
}

/// Starts a worker in a thread of its own, pinned to its core.
pub fn spawn<I, H, B>(parts: Parts<I, H, B>) -> Result<WorkerHandle, StartError>
where
    I: LiveIo + Send + 'static,
    H: Handler + Send + 'static,
    B: Fn(u64) + Send + 'static,
{
    let Parts { id, core, io, handler, exchange, snapshots, stats, beat, idle } = parts;
    let (view, mailbox) = (Arc::new(WorkerView::default()), Arc::new(Mailbox::new()));
    let (bell, stop) = (Arc::clone(exchange.bell()), Arc::new(AtomicBool::new(false)));
    let worker = Worker {
        io,
        handler,
        waiting: Waiting::new(exchange.frame_len(), exchange.workers()),
        exchange,
        snapshots,
        stats: Arc::clone(&stats),
        beat: LastBeat { beat, view: Arc::clone(&view) },
        idle,
        view: Arc::clone(&view),
        mailbox: Arc::clone(&mailbox),
        stop: Arc::clone(&stop),
    };
    let (pinned, is_pinned) = std::sync::mpsc::sync_channel(1);
    let thread = named(id).spawn(move || {
        let result = core.map_or(Ok(()), pin);
        let is_ok = result.is_ok();
        // Nobody listens only where `spawn` itself is gone.
        let _ = pinned.send(result);
        if is_ok {
            worker.run();
        }
    })?;
    // The thread says something before all else.
    is_pinned.recv().map_err(io::Error::other)??;
    Ok(WorkerHandle { id, core, view, stats, mailbox, bell, stop, thread })
}

/// Runs `work` in a thread that is pinned to `core`, so that the memory which it faults in is near that core.
pub fn on_core<T: Send>(core: Option<usize>, work: impl FnOnce() -> T + Send) -> Result<T, StartError> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("weir-setup".into()).spawn_scoped(scope, || {
            core.map_or(Ok(()), pin)?;
            Ok(work())
        })?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

#[expect(clippy::disallowed_macros, reason = "once, at start")]
fn named(id: WorkerId) -> std::thread::Builder {
    std::thread::Builder::new().name(format!("weir-w{}", id.0))
}

fn pin(core: usize) -> Result<(), StartError> {
    let mut cores = CpuSet::new();
    let this_thread = Pid::from_raw(0);
    let result = cores.set(core).and_then(|()| sched_setaffinity(this_thread, &cores));
    result.map_err(|errno| StartError::Core { core, source: errno.into() })
}

impl WorkerHandle {
    /// Asks the worker to end after its turn.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
        self.bell.ring();
    }

    /// Wakes the worker if it sleeps, for it to see a new snapshot.
    pub fn wake(&self) {
        self.bell.ring();
    }

    /// Whether the worker has ended, by itself or by a panic.
    pub fn is_finished(&self) -> bool {
        self.thread.is_finished()
    }

    /// Where the worker is asked about its flows.
    pub fn flow_desk(&self) -> FlowDesk {
        FlowDesk::new(Arc::clone(&self.mailbox), Arc::clone(&self.bell))
    }

    /// Waits for the worker's end.
    pub fn join(self) -> Result<(), WorkerPanic> {
        self.thread.join().map_err(|panic| {
            let message = match panic.downcast::<String>() {
                Ok(text) => text.into_boxed_str(),
                Err(panic) => {
                    panic.downcast::<&str>().map_or_else(|_| "no message".into(), |text| (*text).into())
                }
            };
            WorkerPanic { worker: self.id, message }
        })
    }
}
