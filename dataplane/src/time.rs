//! Coarse time: the worker reads the clock once a batch and hands it to the engine as a [`Tick`].

/// Ticks in a second: one tick is 100 ms, fine enough for IPVS's shortest timeout (2 s).
pub const TICKS_PER_SECOND: u32 = 10;

/// A point in time, in ticks since some start that all users of one table share. Wraps after 13 years.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Tick(pub u32);

impl Tick {
    /// The tick that a monotonic time of `ns` nanoseconds falls into.
    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "wrapping after 13 years is the contract")]
    pub fn from_ns(ns: u64) -> Self {
        Self((ns / (1_000_000_000 / u64::from(TICKS_PER_SECOND))) as u32)
    }

    /// `seconds` later: at most 6 years.
    #[inline]
    #[must_use]
    pub fn after_seconds(self, seconds: u32) -> Self {
        Self(self.0.wrapping_add(seconds.wrapping_mul(TICKS_PER_SECOND)))
    }

    /// Whether `self` lies at or before `now`, up to 6 years apart.
    #[inline]
    pub fn is_due(self, now: Tick) -> bool {
        now.0.wrapping_sub(self.0) < u32::MAX / 2
    }

    /// Whole seconds from `now` until `self`; 0 where that has passed.
    pub fn seconds_from(self, now: Tick) -> u32 {
        if self.is_due(now) { 0 } else { self.0.wrapping_sub(now.0) / TICKS_PER_SECOND }
    }
}
