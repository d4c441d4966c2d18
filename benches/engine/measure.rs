//! Numbers of many short measurements.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// What becomes of the work of a section.
pub(crate) enum Meter {
    /// It is done under the clock: nanoseconds a packet, one number a section.
    Clock(Vec<f64>),
    /// It is done; somebody else measures.
    Done,
    /// It is left out.
    Omitted,
}

impl Meter {
    /// A meter that keeps time.
    pub(crate) fn clock() -> Self {
        Self::Clock(Vec::new())
    }

    /// Does the work on `packets` packets and returns how long it took (nothing, where nobody looks); `None` where
    /// it is left out.
    pub(crate) fn run(&mut self, packets: usize, work: impl FnOnce()) -> Option<Duration> {
        match self {
            Self::Clock(sections) => {
                let start = Instant::now();
                work();
                let elapsed = start.elapsed();
                sections.push(elapsed.as_nanos() as f64 / packets as f64);
                Some(elapsed)
            }
            Self::Done => {
                work();
                Some(Duration::ZERO)
            }
            Self::Omitted => None,
        }
    }

    /// What the clock said.
    pub(crate) fn summary(&self) -> Summary {
        Summary::of(self.sections())
    }

    /// How many times longer it took than `other`, turn by turn, a turn being so many sections of each: a machine
    /// that slows down or speeds up meanwhile does so for both.
    pub(crate) fn ratio(&self, other: &Self, turn: usize) -> Summary {
        let medians = |meter: &Self| -> Vec<f64> {
            meter.sections().chunks(turn).map(|sections| Summary::of(sections).median).collect()
        };
        let ratios: Vec<_> =
            medians(self).iter().zip(medians(other)).map(|(own, other)| own / other).collect();
        Summary::of(&ratios)
    }

    fn sections(&self) -> &[f64] {
        match self {
            Self::Clock(sections) => sections,
            Self::Done | Self::Omitted => panic!("nobody looked at the clock"),
        }
    }
}

/// What is told of many numbers. Medians, because other users of the machine only ever make a section slower.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Summary {
    /// The middle one.
    pub(crate) median: f64,
    /// One in ten is below.
    pub(crate) p10: f64,
    /// One in ten is above.
    pub(crate) p90: f64,
    /// How many there were.
    pub(crate) count: usize,
}

impl Summary {
    fn of(numbers: &[f64]) -> Self {
        let mut sorted = numbers.to_vec();
        sorted.sort_by(f64::total_cmp);
        let at = |share: f64| sorted[((sorted.len() - 1) as f64 * share).round() as usize];
        Self { median: at(0.5), p10: at(0.1), p90: at(0.9), count: sorted.len() }
    }
}
