//! Where CPU time goes.
//!
//! Two counts of the same window. *Charged* is what the lab's own threads and the kernel's `ksoftirqd` took
//! (`/proc/PID/task/TID/schedstat`, in nanoseconds): on a veth pair the kernel carries a packet in the name of whoever sends
//! it, or of `ksoftirqd`, so nothing of its way is missing, and what else runs on the machine does not count. *Busy* is
//! all the time that the machine's cores were not idle (`/proc/stat`). On a machine that does nothing else the two agree, but
//! for what the generator waits; the difference says how much else went on. Where packets come from a NIC, the kernel's work is in
//! nobody's name, and only the second count has it.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// A point in time.
pub(crate) struct Mark {
    at: Instant,
    charged: Duration,
    softirq: Duration,
    cores: Cores,
}

/// What happened between two marks.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Window {
    /// Wall-clock seconds.
    pub(crate) elapsed_s: f64,
    /// CPU seconds of the programs asked for.
    pub(crate) charged_s: f64,
    /// CPU seconds of `ksoftirqd` on all cores.
    pub(crate) softirq_s: f64,
    /// CPU seconds that all cores together were not idle.
    pub(crate) busy_s: f64,
    /// CPU seconds that the hypervisor gave to others.
    pub(crate) stolen_s: f64,
}

impl Mark {
    /// Now, for these programs.
    pub(crate) fn now(pids: &[u32]) -> Result<Self> {
        let charged = pids.iter().map(|pid| process(*pid)).sum::<Result<_>>()?;
        let softirq = softirq_threads()?.into_iter().map(process).sum::<Result<_>>()?;
        let cores = Cores::of(&fs::read_to_string("/proc/stat")?)?;
        Ok(Self { at: Instant::now(), charged, softirq, cores })
    }

    /// What happened since.
    pub(crate) fn until(&self, end: &Self) -> Window {
        let elapsed = end.at.duration_since(self.at);
        let since = |new: Duration, old: Duration| new.saturating_sub(old).as_secs_f64();
        Window {
            elapsed_s: elapsed.as_secs_f64(),
            charged_s: since(end.charged, self.charged),
            softirq_s: since(end.softirq, self.softirq),
            busy_s: (elapsed * end.cores.count).as_secs_f64() - since(end.cores.idle, self.cores.idle),
            stolen_s: since(end.cores.stolen, self.cores.stolen),
        }
    }
}

/// CPU time of all threads of a process that still runs.
fn process(pid: u32) -> Result<Duration> {
    let tasks = Path::new("/proc").join(pid.to_string()).join("task");
    let entries = fs::read_dir(&tasks).with_context(|| format!("process {pid} has ended"))?;
    let mut sum = Duration::ZERO;
    for task in entries {
        // A thread that ended meanwhile takes its time with it; none of a measured program does.
        let Ok(text) = fs::read_to_string(task?.path().join("schedstat")) else { continue };
        let ns = text.split_whitespace().next().and_then(|ns| ns.parse().ok());
        sum += Duration::from_nanos(ns.with_context(|| format!("schedstat of {pid}: {text}"))?);
    }
    Ok(sum)
}

/// The kernel's threads that process packets for which nobody else does.
fn softirq_threads() -> Result<Vec<u32>> {
    let mut threads = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let comm = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        if comm.starts_with("ksoftirqd/") || comm.starts_with("napi/") {
            threads.push(pid);
        }
    }
    Ok(threads)
}

/// All cores of the machine together, whichever of them the lab may run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cores {
    count: u32,
    idle: Duration,
    stolen: Duration,
}

impl Cores {
    /// From the text of `/proc/stat`: a line of sums, then one a core.
    fn of(stat: &str) -> Result<Self> {
        // sysconf(_SC_CLK_TCK) is 100 on every Linux that Weir runs on (include/asm-generic/param.h, USER_HZ).
        const TICK_MS: u64 = 10;
        let mut lines = stat.lines().filter(|line| line.starts_with("cpu"));
        let line = lines.find(|line| line.starts_with("cpu ")).context("/proc/stat without cores")?;
        let fields = line.split_whitespace().skip(1).map(str::parse).collect::<Result<Vec<u64>, _>>();
        let fields = fields.with_context(|| format!("/proc/stat: {line}"))?;
        let [_user, _nice, _system, idle, iowait, _irq, _softirq, steal, ..] = *fields else {
            anyhow::bail!("/proc/stat: {line}");
        };
        let time = |ticks: u64| Some(Duration::from_millis(ticks.checked_mul(TICK_MS)?));
        let idle = idle.checked_add(iowait).and_then(time);
        let (idle, stolen) = idle.zip(time(steal)).with_context(|| format!("/proc/stat: {line}"))?;
        Ok(Self { count: u32::try_from(lines.count())?, idle, stolen })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cores_and_their_idle_and_stolen_time_are_found_among_the_fields() {
        let core = "1 1 1 1 1 1 1 1 1 1";
        for (name, stat, want) in [
            (
                "two cores",
                format!("cpu  1 2 3 400 5 6 7 80 9 10\ncpu0 {core}\ncpu1 {core}\nintr 1\n"),
                Some((2, 4050, 800)),
            ),
            (
                "more than 32 bits of idle ticks",
                format!("cpu  1 2 3 5000000000 5 6 7 80 9 10\ncpu0 {core}\n"),
                Some((1, 50_000_000_050, 800)),
            ),
            ("no number", "cpu  1 2 3 x 5 6 7 80 9 10\n".to_owned(), None),
            ("more than 64 bits", format!("cpu  1 2 3 {} 5 6 7 80 9 10\n", u64::MAX), None),
            ("too few fields", "cpu  1 2 3\n".to_owned(), None),
            ("nothing", String::new(), None),
        ] {
            let got = Cores::of(&stat)
                .ok()
                .map(|Cores { count, idle, stolen }| (count, idle.as_millis(), stolen.as_millis()));
            assert_eq!(got, want, "{name}");
        }
    }

    #[test]
    fn work_of_this_process_is_charged_and_busy() {
        let own = std::process::id();
        let start = Mark::now(&[own]).unwrap();
        let begun = Instant::now();
        let mut turns = 0_u64;
        while begun.elapsed() < Duration::from_millis(200) {
            turns = std::hint::black_box(turns + 1);
        }
        let window = start.until(&Mark::now(&[own]).unwrap());
        assert!(window.charged_s > 0.0 && window.elapsed_s >= 0.2, "{window:?}");
        assert!(Mark::now(&[u32::MAX]).is_err());
    }
}
