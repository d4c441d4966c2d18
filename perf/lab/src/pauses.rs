//! How much of the time the cores stand still for the lab: on a virtual machine because others have them meanwhile, which it
//! is not told. What lasts some milliseconds a few times a second decides on the 99th percentile of latencies.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

/// What was missing while every core was busy.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Pauses {
    /// Of the time of that core which stood still longest.
    pub(crate) share: f64,
    /// The longest one of any core.
    pub(crate) longest_ms: f64,
}

/// Reads the clock on each of the cores for as long as `length`.
pub(crate) fn of_cores(cores: &[usize], length: Duration) -> Result<Pauses> {
    ensure!(!cores.is_empty(), "no core to look at");
    let found = std::thread::scope(|scope| {
        let watches: Vec<_> = cores.iter().map(|core| scope.spawn(|| watch(*core, length))).collect();
        watches
            .into_iter()
            .map(|watch| watch.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect::<Result<Vec<_>>>()
    })?;
    Ok(Pauses {
        share: found.iter().map(|pauses| pauses.share).fold(0.0, f64::max),
        longest_ms: found.iter().map(|pauses| pauses.longest_ms).fold(0.0, f64::max),
    })
}

fn watch(core: usize, length: Duration) -> Result<Pauses> {
    let mut only = CpuSet::new();
    only.set(core)?;
    sched_setaffinity(Pid::from_raw(0), &only)?;
    let start = Instant::now();
    let (mut last, mut all, mut longest) = (start, Duration::ZERO, Duration::ZERO);
    while last - start < length {
        let now = Instant::now();
        if let Some(pause) = pause(now - last) {
            all += pause;
            longest = longest.max(pause);
        }
        last = now;
    }
    let share = all.as_secs_f64() / (last - start).as_secs_f64();
    Ok(Pauses { share, longest_ms: longest.as_secs_f64() * 1e3 })
}

/// The time between two readings of the clock, where that is more than an interrupt takes.
fn pause(between: Duration) -> Option<Duration> {
    (between > Duration::from_micros(500)).then_some(between)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_is_longer_than_an_interrupt() {
        for (between_us, want_us) in [(0, None), (500, None), (501, Some(501)), (9800, Some(9800))] {
            assert_eq!(pause(Duration::from_micros(between_us)), want_us.map(Duration::from_micros));
        }
    }

    #[test]
    fn the_first_core_stands_still_for_less_than_all_of_the_time() {
        let pauses = of_cores(&[0], Duration::from_millis(50)).unwrap();
        assert!((0.0..1.0).contains(&pauses.share) && pauses.longest_ms < 1e4, "{pauses:?}");
        assert!(of_cores(&[], Duration::ZERO).is_err());
    }
}
