//! What the threads of all commands share: their core, their end, and what they cost.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;
use serde::Serialize;
use signal_hook::consts::{SIGINT, SIGTERM};

/// Set by SIGINT, SIGTERM, or the first thread that ends with an error.
#[derive(Clone, Debug)]
pub(crate) struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Raised by SIGINT and SIGTERM.
    pub(crate) fn on_signals() -> Result<Self> {
        let flag = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM] {
            signal_hook::flag::register(signal, Arc::clone(&flag)).context("signal handler")?;
        }
        Ok(Self(flag))
    }

    /// Ends all threads.
    pub(crate) fn raise(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether the threads shall end.
    pub(crate) fn is_raised(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// CPU time that one thread took (`RUSAGE_THREAD`), with what the kernel did in its name: on a veth that is the
/// transmission and, until it wakes `ksoftirqd`, the reception on the other end.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Cpu {
    /// The core that the thread was bound to.
    core: Option<usize>,
    user_s: f64,
    system_s: f64,
}

impl Cpu {
    fn now(core: Option<usize>) -> Result<Self> {
        let usage = getrusage(UsageWho::RUSAGE_THREAD).context("getrusage")?;
        let seconds =
            |time: nix::sys::time::TimeVal| Duration::from_micros(time.num_microseconds().unsigned_abs());
        Ok(Self {
            core,
            user_s: seconds(usage.user_time()).as_secs_f64(),
            system_s: seconds(usage.system_time()).as_secs_f64(),
        })
    }

    fn since(self, start: Self) -> Self {
        Self { user_s: self.user_s - start.user_s, system_s: self.system_s - start.system_s, ..self }
    }
}

/// A thread's result and cost.
#[derive(Debug)]
pub(crate) struct Done<T> {
    /// What the thread returned.
    pub(crate) value: T,
    /// What it cost.
    pub(crate) cpu: Cpu,
    /// How long it ran.
    pub(crate) elapsed: Duration,
}

/// Runs one thread for each of `jobs`, on the core of the same position in `cores` where there is one.
/// When one fails, all are stopped and the first error is returned.
pub(crate) fn run_all<J: Send, T: Send>(
    jobs: Vec<J>,
    cores: &[usize],
    stop: &Stop,
    work: impl Fn(J) -> Result<T> + Sync,
) -> Result<Vec<Done<T>>> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = jobs
            .into_iter()
            .enumerate()
            .map(|(index, job)| {
                let core = cores.get(index).copied();
                let work = &work;
                scope.spawn(move || measured(core, || work(job)).inspect_err(|_| stop.raise()))
            })
            .collect();
        let results: Vec<_> = threads.into_iter().map(|thread| thread.join()).collect();
        results
            .into_iter()
            .map(|result| result.unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    })
}

/// CPU time of the calling thread.
pub(crate) fn cpu_time() -> Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).context("clock")?.into())
}

/// Has the calling thread run before all threads that are not realtime ones.
#[expect(unsafe_code, reason = "no safe wrapper sets the policy of a thread")]
pub(crate) fn run_first() -> Result<()> {
    let parameters = libc::sched_param { sched_priority: 1 };
    // SAFETY: `parameters` is valid for reads until the call returns.
    let status = unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const parameters) };
    Errno::result(status).context("SCHED_FIFO").map(drop)
}

fn measured<T>(core: Option<usize>, work: impl FnOnce() -> Result<T>) -> Result<Done<T>> {
    if let Some(core) = core {
        let mut set = CpuSet::new();
        set.set(core).with_context(|| format!("core {core}"))?;
        sched_setaffinity(Pid::from_raw(0), &set).with_context(|| format!("core {core}"))?;
    }
    let (start, began) = (Cpu::now(core)?, Instant::now());
    let value = work()?;
    Ok(Done { value, cpu: Cpu::now(core)?.since(start), elapsed: began.elapsed() })
}
