//! Numbers of many short measurements.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// Nanoseconds a packet, one number a section.
#[derive(Default)]
pub(crate) struct Series(Vec<f64>);

/// What becomes of the work of a section.
pub(crate) enum Meter {
    /// It is done under the clock.
    Clock(Series),
    /// It is done; somebody else measures.
    Done,
    /// It is left out.
    Omitted,
}

impl Meter {
    /// A meter that keeps time.
    pub(crate) fn clock() -> Self {
        Self::Clock(Series::default())
    }

    /// Does the work on `packets` packets and returns how long it took (nothing, where nobody looks); `None` where
    /// it is left out.
    pub(crate) fn run(&mut self, packets: usize, work: impl FnOnce()) -> Option<Duration> {
        match self {
            Self::Clock(series) => {
                let start = Instant::now();
                work();
                let elapsed = start.elapsed();
                series.0.push(elapsed.as_nanos() as f64 / packets as f64);
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
        match self {
            Self::Clock(series) => series.summary(),
            Self::Done | Self::Omitted => panic!("nobody looked at the clock"),
        }
    }
}

/// What is told of a series.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Summary {
    /// The middle one.
    pub(crate) median: f64,
    /// One in ten is below.
    pub(crate) p10: f64,
    /// One in ten is above.
    pub(crate) p90: f64,
    /// How many there were.
    pub(crate) sections: usize,
}

impl Series {
    /// The middle and the spread. Medians, because other users of the machine only ever make a section slower.
    fn summary(&self) -> Summary {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let at = |share: f64| sorted[((sorted.len() - 1) as f64 * share).round() as usize];
        Summary { median: at(0.5), p10: at(0.1), p90: at(0.9), sections: sorted.len() }
    }
}

/// Marsaglia's xorshift64*: flows in no order that a cache could foresee.
pub(crate) struct Random(u64);

impl Random {
    /// The same numbers each time.
    pub(crate) fn new() -> Self {
        Self(0x853c_49e6_748f_ea9b)
    }

    /// A number below `bound`.
    pub(crate) fn below(&mut self, bound: u32) -> u32 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let high = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32;
        ((high * u64::from(bound)) >> 32) as u32
    }
}
