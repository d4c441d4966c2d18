//! How many requests are made.

use std::time::{Duration, Instant};

/// A bucket of tokens, a request each: it holds `burst` and is filled at `rate` a second.
#[derive(Debug)]
pub(super) struct Bucket {
    /// `None`: no limit.
    rate: Option<f64>,
    burst: f64,
    /// Below zero: so many requests wait already.
    tokens: f64,
    filled: Instant,
}

impl Bucket {
    /// A full one.
    pub(super) fn new(rate: Option<f32>, burst: u32, now: Instant) -> Self {
        let burst = f64::from(burst.max(1));
        let rate = rate.filter(|rate| *rate > 0.0).map(f64::from);
        Self { rate, burst, tokens: burst, filled: now }
    }

    /// Takes a token, and says how long to wait until it is there.
    pub(super) fn take(&mut self, now: Instant) -> Duration {
        let Some(rate) = self.rate else { return Duration::ZERO };
        let since = now.saturating_duration_since(self.filled).as_secs_f64();
        self.tokens = (self.tokens + since * rate).min(self.burst) - 1.0;
        self.filled = self.filled.max(now);
        Duration::try_from_secs_f64((-self.tokens / rate).max(0.0)).unwrap_or(Duration::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_goes_at_once_and_the_rest_at_the_rate() {
        let start = Instant::now();
        let mut bucket = Bucket::new(Some(5.0), 3, start);
        let mut waits = |after_ms: u64| {
            let wait = bucket.take(start + Duration::from_millis(after_ms));
            u64::try_from(wait.as_millis()).unwrap()
        };
        assert_eq!([waits(0), waits(0), waits(0), waits(0), waits(0)], [0, 0, 0, 200, 400]);
        assert_eq!(waits(600), 0);
        assert_eq!(waits(600), 200);
        assert_eq!([waits(60_000), waits(60_000), waits(60_000), waits(60_000)], [0, 0, 0, 200]);
    }

    #[test]
    fn without_a_rate_nothing_waits() {
        let start = Instant::now();
        for rate in [None, Some(0.0), Some(-1.0)] {
            let mut bucket = Bucket::new(rate, 1, start);
            assert!((0..100).all(|_| bucket.take(start).is_zero()), "{rate:?}");
        }
        let mut bucket = Bucket::new(Some(f32::MIN_POSITIVE), 0, start);
        assert!(bucket.take(start).is_zero());
        assert!(bucket.take(start) > Duration::from_secs(1 << 30));
    }
}
