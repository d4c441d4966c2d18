//! How long frames are under way, from the time that each was due by the generator's clock: a generator that is late
//! counts against what it measures, not for it (coordinated omission).

use anyhow::{Context, Result};
use hdrhistogram::Histogram;
use serde::Serialize;

/// When a stream's frames were due.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Schedule {
    /// The first one, by the monotonic clock.
    pub(crate) start_ns: u64,
    /// Frames a second of one stream.
    pub(crate) rate_pps: f64,
}

impl Schedule {
    /// When frame `sequence` was due.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "float to integer saturates")]
    pub(crate) fn due_ns(&self, sequence: u64) -> u64 {
        self.start_ns.saturating_add((sequence as f64 * 1e9 / self.rate_pps) as u64)
    }
}

/// Times between two events.
#[derive(Clone, Debug)]
pub(crate) struct Latencies(Histogram<u64>);

/// What percentiles are told, in percent.
const PERCENTILES: [f64; 5] = [50.0, 90.0, 99.0, 99.9, 99.99];

/// The 99th percentile of each tenth of a second. A virtual machine whose processors stop for some milliseconds a few times a
/// second has these pauses in the 99th percentile of all times, and in that of few tenths.
#[derive(Clone, Debug)]
pub(crate) struct Tenths {
    times: Histogram<u64>,
    end_ns: Option<u64>,
    p99_ns: Vec<u64>,
}

/// The whole tenths of a second of all threads.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(crate) struct TenthsReport {
    count: usize,
    /// The middle one of their 99th percentiles.
    p99_ns: u64,
}

/// Latencies in nanoseconds.
#[derive(Debug, Serialize)]
pub(crate) struct LatencyReport {
    count: u64,
    min_ns: u64,
    mean_ns: f64,
    p50_ns: u64,
    p90_ns: u64,
    p99_ns: u64,
    p999_ns: u64,
    p9999_ns: u64,
    max_ns: u64,
}

impl Latencies {
    /// Up to a minute, to three digits.
    pub(crate) fn new() -> Result<Self> {
        Ok(Self(Histogram::new_with_bounds(1, 60_000_000_000, 3).context("histogram")?))
    }

    /// Counts a time; one beyond the limit counts as the limit.
    pub(crate) fn record(&mut self, ns: u64) {
        self.0.saturating_record(ns.max(1));
    }

    /// Adds what another thread has counted.
    pub(crate) fn add(&mut self, other: &Self) -> Result<()> {
        self.0.add(&other.0).context("histogram")
    }

    /// What there is to tell; `None` where nothing was counted.
    pub(crate) fn report(&self) -> Option<LatencyReport> {
        let all = &self.0;
        let [p50_ns, p90_ns, p99_ns, p999_ns, p9999_ns] =
            PERCENTILES.map(|percent| all.value_at_percentile(percent));
        (!all.is_empty()).then(|| LatencyReport {
            count: all.len(),
            min_ns: all.min(),
            mean_ns: all.mean(),
            p50_ns,
            p90_ns,
            p99_ns,
            p999_ns,
            p9999_ns,
            max_ns: all.max(),
        })
    }
}

impl Tenths {
    const LENGTH_NS: u64 = 100_000_000;

    /// Up to a minute, to two digits: closing one takes some microseconds, in which frames wait.
    pub(crate) fn new() -> Result<Self> {
        let times = Histogram::new_with_bounds(1, 60_000_000_000, 2).context("histogram")?;
        Ok(Self { times, end_ns: None, p99_ns: Vec::new() })
    }

    /// Counts a time that was taken at `now_ns`.
    pub(crate) fn record(&mut self, now_ns: u64, ns: u64) {
        if self.end_ns.is_none_or(|end_ns| now_ns >= end_ns) {
            if !self.times.is_empty() {
                self.p99_ns.push(self.times.value_at_percentile(99.0));
                self.times.reset();
            }
            self.end_ns = Some(now_ns.saturating_add(Self::LENGTH_NS));
        }
        self.times.saturating_record(ns.max(1));
    }

    /// What there is to tell of several threads; `None` where none saw a whole tenth.
    pub(crate) fn report<'a>(threads: impl IntoIterator<Item = &'a Self>) -> Option<TenthsReport> {
        let mut all: Vec<u64> =
            threads.into_iter().flat_map(|tenths| tenths.p99_ns.iter().copied()).collect();
        all.sort_unstable();
        let p99_ns = *all.get(all.len().checked_sub(1)? / 2)?;
        Some(TenthsReport { count: all.len(), p99_ns })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_due_at_the_rate() {
        let schedule = Schedule { start_ns: 1000, rate_pps: 2e6 };
        assert_eq!([0, 1, 2_000_000].map(|sequence| schedule.due_ns(sequence)), [1000, 1500, 1_000_001_000]);
    }

    #[test]
    fn percentiles_of_two_threads_are_those_of_all_their_times() {
        let [mut one, mut other] = [Latencies::new().unwrap(), Latencies::new().unwrap()];
        (1..=900).for_each(|ns| one.record(ns));
        (901..=1000).for_each(|ns| other.record(ns));
        one.add(&other).unwrap();
        let report = one.report().unwrap();
        assert_eq!((report.count, report.p50_ns, report.p90_ns, report.p99_ns), (1000, 500, 900, 990));
        assert!(Latencies::new().unwrap().report().is_none());
    }

    #[test]
    fn a_pause_shows_in_its_own_tenth_of_a_second() {
        let mut tenths = Tenths::new().unwrap();
        for ms in 0..=500 {
            // Every frame of the third tenth comes ten milliseconds late.
            let late = (200..300).contains(&ms);
            tenths.record(ms * 1_000_000, if late { 10_000_000 } else { 100 });
        }
        let report = Tenths::report([&tenths]).unwrap();
        assert_eq!(report, TenthsReport { count: 5, p99_ns: 100 });
        assert_eq!(tenths.p99_ns.iter().filter(|ns| **ns > 9_000_000).count(), 1);
        let mut short = Tenths::new().unwrap();
        short.record(0, 100);
        assert_eq!(Tenths::report([&short]), None, "a tenth that has not ended");
    }
}
