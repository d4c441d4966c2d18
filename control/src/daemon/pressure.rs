//! Says in the log when something runs out that is sized in the configuration. Counters say how often; nobody looks at
//! them before being told.

use std::sync::Arc;
use std::time::{Duration, Instant};

use dataplane::stats::WorkerStats;
use dataplane::verdict::DropReason;

/// What can run out, and what to do about it.
const SCARCE: [(DropReason, &str); 2] = [
    (DropReason::FlowTableFull, "a worker's flow table is full: raise flows.limit and restart"),
    (DropReason::SnatExhausted, "a SNAT pool has no port left: give it more addresses or ports"),
];
/// One thing is said so often at most.
const INTERVAL: Duration = Duration::from_secs(60);

/// In percent of its limit: from here on a table is nearly full, and from there on it no longer is.
const TIGHT: usize = 90;
const EASED: usize = 80;

/// What was said of each of [`SCARCE`], and when; whether services and backends were said to be nearly too many.
#[derive(Debug, Default)]
pub(super) struct Pressure {
    said: [(u64, Option<Instant>); SCARCE.len()],
    tight: [bool; 2],
}

impl Pressure {
    /// What is to be said at `now`: each with the drops since it was last said.
    pub(super) fn news(
        &mut self,
        stats: &[Arc<WorkerStats>],
        now: Instant,
    ) -> impl Iterator<Item = (&'static str, u64)> {
        let of = |(reason, message), (seen, at): &mut (u64, Option<Instant>)| {
            let drops: u64 = stats.iter().map(|stats| stats.drops(reason)).sum();
            let news = drops.saturating_sub(*seen);
            if news == 0 || at.is_some_and(|at| now.saturating_duration_since(at) < INTERVAL) {
                return None;
            }
            (*seen, *at) = (drops, Some(now));
            Some((message, news))
        };
        let news: Vec<_> =
            SCARCE.into_iter().zip(&mut self.said).filter_map(|(scarce, said)| of(scarce, said)).collect();
        news.into_iter()
    }

    /// What is to be said of services and backends, of which so many are in use and so many may be: each once, when it
    /// gets tight.
    pub(super) fn room(&mut self, in_use: (usize, usize), limit: (usize, usize)) -> Vec<String> {
        let told = |(name, used, limit, is_tight): (&str, usize, usize, &mut bool)| {
            let share = used.saturating_mul(100) / limit.max(1);
            let was_tight = std::mem::replace(is_tight, share >= if *is_tight { EASED } else { TIGHT });
            let news = *is_tight && !was_tight;
            news.then(|| format!("{used} of {limit} {name} are in use: raise limits.{name} and restart"))
        };
        let [services, backends] = &mut self.tight;
        let all = [("services", in_use.0, limit.0, services), ("backends", in_use.1, limit.1, backends)];
        all.into_iter().filter_map(told).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nearly_full_table_is_told_of_once_until_it_has_eased() {
        let mut pressure = Pressure::default();
        let mut told = |services, backends| pressure.room((services, backends), (100, 1000)).len();
        assert_eq!(
            [told(89, 0), told(90, 0), told(95, 899), told(95, 900), told(100, 1000)],
            [0, 1, 0, 1, 0]
        );
        assert_eq!([told(85, 0), told(95, 0)], [0, 0], "not yet eased");
        assert_eq!([told(79, 0), told(95, 950)], [0, 2]);
    }

    #[test]
    fn what_runs_out_is_said_once_a_minute_with_all_drops_since() {
        let stats = [Arc::new(WorkerStats::new(1, 1)), Arc::new(WorkerStats::new(1, 1))];
        let drop = |worker: usize, reason| stats[worker].as_ref().drop(reason);
        let mut pressure = Pressure::default();
        let start = Instant::now();
        let mut at = |second| -> Vec<u64> {
            pressure.news(&stats, start + Duration::from_secs(second)).map(|(_, drops)| drops).collect()
        };
        assert!(at(0).is_empty());
        drop(0, DropReason::FlowTableFull);
        drop(1, DropReason::FlowTableFull);
        drop(1, DropReason::NoBackend);
        assert_eq!(at(1), [2]);
        drop(0, DropReason::FlowTableFull);
        assert!(at(60).is_empty());
        drop(0, DropReason::SnatExhausted);
        assert_eq!(at(60), [1]);
        drop(0, DropReason::FlowTableFull);
        assert_eq!(at(61), [2]);
        assert!(at(200).is_empty());
    }
}
