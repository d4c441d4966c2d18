//! Whether this node does its work: what `/healthz` and `/livez` say.
//!
//! As kube-proxy has it: healthy from the start, and until a change waits for longer than a limit to get into force.
//! Beside that, Weir tells of itself: a worker that has ended or does not turn, control that does not turn. What is wrong
//! but takes no traffic away (an API server that does not answer, a file that was refused) is told and changes nothing:
//! the state from before holds, and a node taken out of service would help nobody.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use dataplane::worker::WorkerView;
use jiff::Timestamp;
use serde::Serialize;

use crate::model::Family;

/// Control notes a sign of life about once a second; without one for so long it hangs.
const CONTROL_PATIENCE: Duration = Duration::from_secs(30);

/// Whether the cluster lets traffic come to this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Node {
    /// It does, or the Node is not known yet.
    Eligible,
    /// It does not.
    Leaving(&'static str),
}

/// What is noted, and what comes of it. Shared by who notes and who asks; nobody holds it for long.
#[derive(Debug)]
pub struct State {
    /// How long a change may wait.
    limit: Duration,
    noted: Mutex<Noted>,
}

#[derive(Debug)]
struct Noted {
    families: BTreeMap<&'static str, Progress>,
    node: Node,
    refused: Option<String>,
    troubles: BTreeMap<&'static str, String>,
    workers: Workers,
    control: Option<Instant>,
}

/// How far the changes of an address family are.
#[derive(Clone, Copy, Debug, Default)]
struct Progress {
    updated: Option<Instant>,
    /// When the oldest change came that is not in force.
    queued: Option<Instant>,
}

#[derive(Debug, Default)]
struct Workers {
    /// How long one may take for a turn.
    patience: Duration,
    all: Vec<Watched>,
}

/// A worker with the turn that it was last seen in, and since when.
#[derive(Debug)]
struct Watched {
    view: Arc<WorkerView>,
    turns: u64,
    since: Instant,
}

/// The answer, as it is sent. `nodeEligible` is left out of `/livez`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Health {
    /// When changes last got into force; now, where all is well.
    pub last_updated: String,
    /// Now.
    pub current_time: String,
    /// Whether the cluster lets traffic come to this node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_eligible: Option<bool>,
    /// The verdict.
    pub healthy: bool,
    /// By family, for those that were ever in force.
    pub status: BTreeMap<&'static str, FamilyHealth>,
    /// Why it is not healthy.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub reasons: Vec<String>,
    /// What is wrong and does not count.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// The same of one family.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FamilyHealth {
    /// When its changes last got into force.
    pub last_updated: String,
    /// Whether none waits for too long.
    pub healthy: bool,
}

/// Which page asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Page {
    /// `/healthz`: shall traffic come here?
    Health,
    /// `/livez`: shall this process live on?
    Life,
}

impl State {
    /// Healthy, as long as no change waits for `limit`: twice `syncPeriod`.
    pub fn new(limit: Duration) -> Self {
        let noted = Noted {
            families: BTreeMap::new(),
            node: Node::Eligible,
            refused: None,
            troubles: BTreeMap::new(),
            workers: Workers::default(),
            control: None,
        };
        Self { limit, noted: Mutex::new(noted) }
    }

    /// A change has come that concerns this family and is not in force yet.
    pub fn queued(&self, family: Family, now: Instant) {
        self.lock().families.entry(family.name()).or_default().queued.get_or_insert(now);
    }

    /// All changes of this family are in force.
    pub fn updated(&self, family: Family, now: Instant) {
        let mut noted = self.lock();
        *noted.families.entry(family.name()).or_default() = Progress { updated: Some(now), queued: None };
        noted.refused = None;
    }

    /// The tables did not take a change, or a file was refused, for this reason; what was before is in force. Until
    /// [`Self::accepted`] or [`Self::updated`].
    pub fn refused(&self, reason: impl Into<String>) {
        self.lock().refused = Some(reason.into());
    }

    /// The last change is in force.
    pub fn accepted(&self) {
        self.lock().refused = None;
    }

    /// What the own Node says.
    pub fn node(&self, node: Node) {
        self.lock().node = node;
    }

    /// What is wrong with a source (`"Services: .."`), by its name; `None`: nothing any more.
    pub fn trouble(&self, source: &'static str, what: Option<String>) {
        let troubles = &mut self.lock().troubles;
        match what {
            Some(what) => drop(troubles.insert(source, what)),
            None => drop(troubles.remove(source)),
        }
    }

    /// Has these workers looked after. None takes longer than a quarter of `beat_limit` for a turn, so one that is in
    /// the same turn after twice that limit hangs.
    pub fn watch(&self, workers: impl Iterator<Item = Arc<WorkerView>>, beat_limit: Duration, now: Instant) {
        let watched = |view: Arc<WorkerView>| Watched { turns: view.turns.get(), view, since: now };
        self.lock().workers = Workers { patience: 2 * beat_limit, all: workers.map(watched).collect() };
    }

    /// Control turns.
    pub fn control_beat(&self, now: Instant) {
        self.lock().control = Some(now);
    }

    /// Looks at what workers do. To be called from time to time, or a request that comes after a long pause would find
    /// each in another turn than before.
    pub fn look(&self, now: Instant) {
        self.lock().workers.look(now);
    }

    /// Whether changes get into force and workers work: what a Service's health check counts besides its endpoints.
    pub fn is_serving(&self, now: Instant) -> bool {
        self.lock().judge(self.limit, now).is_empty()
    }

    /// The answer at `now`, which is `wall` on the clock.
    pub fn health(&self, page: Page, now: Instant, wall: SystemTime) -> Health {
        let mut noted = self.lock();
        let mut reasons = noted.judge(self.limit, now);
        let node_eligible = (page == Page::Health).then(|| match noted.node {
            Node::Eligible => true,
            Node::Leaving(why) => {
                reasons.push(format!("the node is leaving: {why}"));
                false
            }
        });
        let healthy = reasons.is_empty();
        let at = |moment: Option<Instant>| {
            let then = moment.and_then(|moment| wall.checked_sub(now.saturating_duration_since(moment)));
            text(then)
        };
        let current_time = text(Some(wall));
        let last = noted.families.values().filter_map(|progress| progress.updated).max();
        let status = noted.families.iter().filter(|(_, progress)| progress.updated.is_some());
        let family = |(name, progress): (&&'static str, &Progress)| {
            let healthy = progress.late(self.limit, now).is_none();
            (*name, FamilyHealth { last_updated: at(progress.updated), healthy })
        };
        let troubles = noted.troubles.iter().map(|(source, what)| format!("{source}: {what}"));
        let refused = noted.refused.iter().map(|why| format!("the last change was refused: {why}"));
        Health {
            last_updated: if healthy { current_time.clone() } else { at(last) },
            current_time,
            node_eligible,
            healthy,
            status: status.map(family).collect(),
            reasons,
            notes: troubles.chain(refused).collect(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Noted> {
        self.noted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Noted {
    /// What stands against this node but for the cluster's own wish.
    fn judge(&mut self, limit: Duration, now: Instant) -> Vec<String> {
        self.workers.look(now);
        let late = self.families.iter().filter_map(|(family, progress)| {
            let late = progress.updated.and(progress.late(limit, now))?;
            Some(format!("a change of {family} waits for {} s", late.as_secs()))
        });
        let mut reasons: Vec<_> = late.chain(self.workers.faults(now)).collect();
        let silent = self.control.map_or(Duration::ZERO, |beat| now.saturating_duration_since(beat));
        if silent >= CONTROL_PATIENCE {
            reasons.push(format!("control has not turned for {} s", silent.as_secs()));
        }
        reasons
    }
}

impl Progress {
    /// For how long a change has waited, where that is too long.
    fn late(&self, limit: Duration, now: Instant) -> Option<Duration> {
        let waited = now.saturating_duration_since(self.queued?);
        (waited >= limit).then_some(waited)
    }
}

impl Workers {
    fn look(&mut self, now: Instant) {
        for worker in &mut self.all {
            let turns = worker.view.turns.get();
            if turns != worker.turns {
                (worker.turns, worker.since) = (turns, now);
            }
        }
    }

    fn faults(&self, now: Instant) -> impl Iterator<Item = String> {
        (0..).zip(&self.all).filter_map(move |(number, worker): (u32, _)| {
            if worker.view.is_over() {
                return Some(format!("worker {number} has ended"));
            }
            let silent = now.saturating_duration_since(worker.since);
            (silent >= self.patience).then(|| format!("worker {number} has not turned for {silent:.1?}"))
        })
    }
}

/// A time as Go's JSON has it; year 1 for none.
fn text(time: Option<SystemTime>) -> String {
    let stamp = time.and_then(|time| Timestamp::try_from(time).ok());
    stamp.map_or_else(|| "0001-01-01T00:00:00Z".into(), |stamp| stamp.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(60);
    const WALL: SystemTime = SystemTime::UNIX_EPOCH;

    fn after(start: Instant, seconds: u64) -> Instant {
        start + Duration::from_secs(seconds)
    }

    /// What happens, and what both pages then say.
    type Row = (&'static str, u64, fn(&State, Instant), bool, bool);

    #[test]
    fn health_follows_changes_and_the_node_as_kube_proxys_does() {
        let rows: [Row; 15] = [
            ("at the start", 0, |_, _| {}, true, true),
            (
                "a change before anything was in force",
                0,
                |state, at| state.queued(Family::V4, at),
                true,
                true,
            ),
            ("however long it waits", 500, |_, _| {}, true, true),
            ("the first tables", 500, |state, at| state.updated(Family::V4, at), true, true),
            ("long after them", 1000, |_, _| {}, true, true),
            ("a change waits", 1000, |state, at| state.queued(Family::V4, at), true, true),
            ("a second one does not put it off", 1059, |state, at| state.queued(Family::V4, at), true, true),
            ("for too long", 1060, |_, _| {}, false, false),
            ("the other family does not help", 1061, |state, at| state.updated(Family::V6, at), false, false),
            ("it is in force", 1062, |state, at| state.updated(Family::V4, at), true, true),
            ("the other family waits", 1062, |state, at| state.queued(Family::V6, at), true, true),
            ("this one does not help", 1122, |state, at| state.updated(Family::V4, at), false, false),
            ("all in force", 1123, |state, at| state.updated(Family::V6, at), true, true),
            ("the node leaves", 1124, |state, _| state.node(Node::Leaving("a taint")), false, true),
            ("it stays", 1125, |state, _| state.node(Node::Eligible), true, true),
        ];
        let (state, start) = (State::new(LIMIT), Instant::now());
        for (what, second, happens, health, life) in rows {
            let now = after(start, second);
            happens(&state, now);
            assert_eq!(state.health(Page::Health, now, WALL).healthy, health, "{what}: healthz");
            let livez = state.health(Page::Life, now, WALL);
            assert_eq!(livez.healthy, life, "{what}: livez");
            assert_eq!(livez.reasons.is_empty(), life, "{what}");
            assert_eq!(livez.node_eligible, None, "{what}");
            assert_eq!(state.is_serving(now), life, "{what}");
        }
    }

    #[test]
    fn the_answer_tells_times_and_families() {
        let (state, start) = (State::new(LIMIT), Instant::now());
        let wall = WALL + Duration::from_secs(1_700_000_100);
        let fresh = serde_json::to_value(state.health(Page::Health, start, wall)).unwrap();
        let now = "2023-11-14T22:15:00Z";
        let want = serde_json::json!({
            "lastUpdated": now, "currentTime": now, "nodeEligible": true, "healthy": true, "status": {},
        });
        assert_eq!(fresh, want);
        state.updated(Family::V6, start);
        state.updated(Family::V4, after(start, 10));
        state.queued(Family::V6, after(start, 20));
        let late = serde_json::to_value(state.health(Page::Life, after(start, 100), wall)).unwrap();
        let want = serde_json::json!({
            "lastUpdated": "2023-11-14T22:13:30Z", "currentTime": now, "healthy": false,
            "status": {
                "IPv4": {"lastUpdated": "2023-11-14T22:13:30Z", "healthy": true},
                "IPv6": {"lastUpdated": "2023-11-14T22:13:20Z", "healthy": false},
            },
            "reasons": ["a change of IPv6 waits for 80 s"],
        });
        assert_eq!(late, want);
    }

    #[test]
    fn an_unhealthy_node_that_never_had_tables_says_year_one() {
        let state = State::new(LIMIT);
        state.node(Node::Leaving("it is being deleted"));
        let health = state.health(Page::Health, Instant::now(), WALL);
        assert_eq!(health.last_updated, "0001-01-01T00:00:00Z");
        assert_eq!(health.reasons, ["the node is leaving: it is being deleted"]);
    }

    #[test]
    fn troubles_and_refusals_are_told_and_do_not_count() {
        let (state, now) = (State::new(LIMIT), Instant::now());
        state.trouble("Services", Some("the API server answers 403".into()));
        state.refused("too many services");
        let health = state.health(Page::Health, now, WALL);
        assert!(health.healthy);
        let notes =
            ["Services: the API server answers 403", "the last change was refused: too many services"];
        assert_eq!(health.notes, notes);
        state.trouble("Services", None);
        state.accepted();
        assert!(state.health(Page::Health, now, WALL).notes.is_empty());
        state.refused("again");
        state.updated(Family::V4, now);
        assert!(state.health(Page::Health, now, WALL).notes.is_empty(), "what came later is in force");
    }

    #[test]
    fn workers_that_end_or_hang_count() {
        let (state, start) = (State::new(LIMIT), Instant::now());
        let views = [Arc::new(WorkerView::default()), Arc::new(WorkerView::default())];
        state.watch(views.iter().cloned(), Duration::from_secs(1), start);
        let reasons = |at| state.health(Page::Life, at, WALL).reasons;
        assert!(reasons(after(start, 1)).is_empty());
        assert_eq!(
            reasons(after(start, 2)),
            ["worker 0 has not turned for 2.0s", "worker 1 has not turned for 2.0s"]
        );
        views.iter().for_each(|view| view.turns.add(1));
        assert!(reasons(after(start, 3)).is_empty());
        views[1].turns.add(1);
        views[0].end();
        assert_eq!(reasons(after(start, 4)), ["worker 0 has ended"]);
        assert!(!state.is_serving(after(start, 4)));
    }

    #[test]
    fn control_that_hangs_counts() {
        let (state, start) = (State::new(LIMIT), Instant::now());
        assert!(state.is_serving(after(start, 1000)), "it has not begun");
        state.control_beat(start);
        assert!(state.is_serving(after(start, 29)));
        let reasons = state.health(Page::Health, after(start, 31), WALL).reasons;
        assert_eq!(reasons, ["control has not turned for 31 s"]);
    }
}
