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
}
