//! Which neighbours the kernel is asked to resolve, and when.
//!
//! The kernel sees no traffic of AF_XDP sockets: it neither resolves the neighbours that such traffic needs nor
//! learns that they are alive. So control asks in its place, for the neighbours that lead to backends and for
//! gateways as long as they are wanted (standing), and for those that a worker missed for a while (wanted).
//!
//! Pure but for the time, which the caller gives.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use dataplane::snapshot::net::Neighbour;

/// Neighbours in the table at most.
pub const LIMIT: usize = 8192;
/// How often a resolved neighbour is asked for again, so that the kernel probes it once its entry is stale.
pub const REFRESH: Duration = Duration::from_secs(30);
/// First wait after an attempt without success; doubles up to [`RETRY_MOST`]. The kernel's own attempt takes 3 s:
/// `mcast_solicit` times `retrans_time_ms`.
pub const RETRY: Duration = Duration::from_secs(1);
/// Longest wait after attempts without success.
pub const RETRY_MOST: Duration = Duration::from_secs(8);
/// Shortest wait after an attempt without success, for a neighbour that a worker misses. While the kernel's own attempt
/// goes on another changes nothing; but it may have ended, and a frame waits.
pub const RETRY_WANTED: Duration = Duration::from_millis(100);
/// How long a neighbour that a worker missed is kept fresh after that.
pub const KEEP_WANTED: Duration = Duration::from_secs(300);

/// What the mirror knows of a neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// No usable entry.
    Missing,
    /// Frames can be sent to it.
    Usable,
    /// Frames can be sent to it, and asking would undo what an administrator set.
    Fixed,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    next: Instant,
    /// When it was last looked at, once it was.
    last: Option<Instant>,
    /// Until when a worker's request keeps it; `None` for a standing one.
    until: Option<Instant>,
    failures: u32,
}

/// Who is asked for when: the next first.
type Queue = BTreeSet<(Instant, u32, IpAddr)>;

/// The table of neighbours to ask for.
#[derive(Debug, Default)]
pub struct Resolver {
    entries: HashMap<Neighbour, Entry, ahash::RandomState>,
    queue: Queue,
    /// Standing ones that found no room yet.
    waiting: BTreeSet<Neighbour>,
    /// Wanted ones that found no room.
    refused: u64,
}

impl Resolver {
    /// A worker missed this neighbour at `now`.
    pub fn want(&mut self, place: Neighbour, now: Instant) {
        let until = now + KEEP_WANTED;
        let Some(entry) = self.entries.get_mut(&place) else {
            if self.entries.len() < LIMIT {
                self.add(place, now, Some(until));
            } else {
                self.refused += 1;
            }
            return;
        };
        entry.until = entry.until.map(|_| until);
        let soonest = entry.last.map_or(now, |last| now.max(last + RETRY_WANTED));
        if entry.failures > 0 && soonest < entry.next {
            replan(&mut self.queue, place, entry, soonest);
        }
    }

    /// Keeps a neighbour resolved from now on.
    pub fn stand(&mut self, place: Neighbour, now: Instant) {
        if let Some(entry) = self.entries.get_mut(&place) {
            entry.until = None;
        } else if self.entries.len() < LIMIT {
            self.add(place, now, None);
        } else {
            self.waiting.insert(place);
        }
    }

    /// Keeps it resolved no longer.
    pub fn let_go(&mut self, place: Neighbour, now: Instant) {
        self.waiting.remove(&place);
        if let Some(entry) = self.entries.get_mut(&place) {
            entry.until.get_or_insert(now);
        }
    }

    /// A neighbour has been resolved: its failures are forgotten.
    pub fn found(&mut self, place: Neighbour, now: Instant) {
        if let Some(entry) = self.entries.get_mut(&place) {
            entry.failures = 0;
            replan(&mut self.queue, place, entry, now + REFRESH);
        }
    }

    /// A neighbour's entry has gone bad: it is asked for at once, within the bounds of its retries.
    pub fn lost(&mut self, place: Neighbour, now: Instant) {
        if let Some(entry) = self.entries.get_mut(&place)
            && entry.failures == 0
        {
            replan(&mut self.queue, place, entry, now);
        }
    }

    fn add(&mut self, place: Neighbour, now: Instant, until: Option<Instant>) {
        self.entries.insert(place, Entry { next: now, last: None, until, failures: 0 });
        self.queue.insert((now, place.link, place.addr));
    }

    /// At most `count` neighbours that are to be asked for at `now`. Each is planned anew by what is `known` of it.
    pub fn due(&mut self, now: Instant, count: usize, known: impl Fn(&Neighbour) -> Known) -> Vec<Neighbour> {
        let mut asked = Vec::new();
        while asked.len() < count
            && let Some(&(next, link, addr)) = self.queue.first()
            && next <= now
        {
            self.queue.pop_first();
            let place = Neighbour { link, addr };
            let Some(entry) = self.entries.get_mut(&place) else { continue };
            if entry.until.is_some_and(|until| until <= now) {
                self.entries.remove(&place);
                if let Some(next) = self.waiting.pop_first() {
                    self.stand(next, now);
                }
                continue;
            }
            let known = known(&place);
            let wait = match known {
                Known::Missing => RETRY.saturating_mul(1 << entry.failures.min(8)).min(RETRY_MOST),
                Known::Usable | Known::Fixed => REFRESH,
            };
            entry.failures = if known == Known::Missing { entry.failures + 1 } else { 0 };
            (entry.next, entry.last) = (now + wait, Some(now));
            self.queue.insert((entry.next, link, addr));
            if known != Known::Fixed {
                asked.push(place);
            }
        }
        asked
    }

    /// How many neighbours are in the table.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether the table is empty.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// How many neighbours found no room: standing ones that still wait for it, and all that workers ever missed.
    pub fn refused(&self) -> u64 {
        self.refused + self.waiting.len() as u64
    }
}

fn replan(queue: &mut Queue, place: Neighbour, entry: &mut Entry, next: Instant) {
    queue.remove(&(entry.next, place.link, place.addr));
    entry.next = next;
    queue.insert((next, place.link, place.addr));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(host: u8) -> Neighbour {
        Neighbour { link: 7, addr: IpAddr::from([10, 0, 0, host]) }
    }

    fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    #[test]
    fn a_missing_neighbour_is_asked_for_at_once_and_then_ever_more_rarely() {
        let start = Instant::now();
        let mut resolver = Resolver::default();
        resolver.want(place(1), start);
        let mut asked = Vec::new();
        for second in 0..32 {
            if !resolver.due(start + seconds(second), 10, |_| Known::Missing).is_empty() {
                asked.push(second);
            }
        }
        assert_eq!(asked, [0, 1, 3, 7, 15, 23, 31]);
    }

    #[test]
    fn a_missing_neighbour_that_workers_keep_missing_is_asked_for_ten_times_a_second() {
        let start = Instant::now();
        let mut resolver = Resolver::default();
        let mut asked = Vec::new();
        for tick in 0..200 {
            let now = start + Duration::from_millis(tick * 50);
            if tick == 0 || (20..30).contains(&tick) || tick == 175 {
                resolver.want(place(1), now);
            }
            if !resolver.due(now, 10, |_| Known::Missing).is_empty() {
                asked.push(tick);
            }
        }
        assert_eq!(asked, [0, 20, 22, 24, 26, 28, 30, 175]);
    }

    #[test]
    fn a_resolved_neighbour_is_refreshed_until_nobody_wants_it() {
        let start = Instant::now();
        let mut resolver = Resolver::default();
        resolver.stand(place(1), start);
        resolver.want(place(2), start);
        let mut asked = Vec::new();
        for second in 0..400 {
            asked.extend(resolver.due(start + seconds(second), 10, |_| Known::Usable));
        }
        let times = |host| asked.iter().filter(|asked| **asked == place(host)).count();
        assert_eq!(times(1), 14, "0, 30, .. 390: for ever");
        assert_eq!(times(2), 10, "0, 30, .. 270: for 300 s");
        assert_eq!(resolver.len(), 1);
    }

    #[test]
    fn what_is_set_by_hand_is_never_asked_for() {
        let start = Instant::now();
        let mut resolver = Resolver::default();
        resolver.stand(place(1), start);
        assert!(resolver.due(start, 10, |_| Known::Fixed).is_empty());
        assert_eq!(resolver.due(start + REFRESH, 10, |_| Known::Missing), [place(1)]);
    }

    #[test]
    fn a_standing_neighbour_that_is_no_longer_wanted_goes() {
        let start = Instant::now();
        let mut resolver = Resolver::default();
        [1, 2].into_iter().for_each(|host| resolver.stand(place(host), start));
        assert_eq!(resolver.due(start, 10, |_| Known::Usable).len(), 2);
        resolver.let_go(place(1), start + seconds(1));
        assert_eq!(resolver.due(start + REFRESH, 10, |_| Known::Usable), [place(2)]);
        assert_eq!(resolver.len(), 1);
    }

    #[test]
    fn a_lost_neighbour_is_asked_for_at_once_but_not_again_and_again() {
        let start = Instant::now();
        let mut resolver = Resolver::default();
        resolver.stand(place(1), start);
        assert_eq!(resolver.due(start, 10, |_| Known::Usable).len(), 1);
        let lost = start + seconds(2);
        resolver.lost(place(1), lost);
        assert_eq!(resolver.due(lost, 10, |_| Known::Missing).len(), 1);
        resolver.lost(place(1), lost);
        assert!(resolver.due(lost, 10, |_| Known::Missing).is_empty());
        resolver.found(place(1), lost);
        resolver.lost(place(1), lost);
        assert_eq!(resolver.due(lost, 10, |_| Known::Missing).len(), 1, "it was there again in the meantime");
    }

    #[test]
    fn the_table_and_a_round_are_bounded() {
        let start = Instant::now();
        let mut resolver = Resolver::default();
        for host in 0..=u32::try_from(LIMIT).unwrap() {
            resolver.want(Neighbour { link: 7, addr: IpAddr::V4(host.into()) }, start);
        }
        assert_eq!((resolver.len(), resolver.refused()), (LIMIT, 1));
        assert_eq!(resolver.due(start, 64, |_| Known::Missing).len(), 64);
        let late = place(9);
        resolver.stand(late, start);
        assert_eq!((resolver.len(), resolver.refused()), (LIMIT, 2));
        // Those that workers missed go; the one that is to stand takes the place of the first of them.
        let asked = resolver.due(start + KEEP_WANTED, LIMIT, |_| Known::Missing);
        assert_eq!((asked, resolver.len(), resolver.refused()), (vec![late], 1, 1));
    }
}
