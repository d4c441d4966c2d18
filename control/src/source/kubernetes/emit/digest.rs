//! From notices to Events: what is said again becomes a count, and not another Event. Pure.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::{Event, EventSeries};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};

use super::super::notice::{Notice, Reference};

/// Who tells it.
const CONTROLLER: &str = "weir";
/// The namespace of Events about what has none.
const NAMESPACE: &str = "default";
/// What is said again within so long is the same Event.
const MEMORY: Duration = Duration::from_secs(360);
/// An Event's count is brought up to date no more often than this.
const REFRESH: Duration = Duration::from_secs(60);
/// Events that are remembered at most.
const SERIES_MAX: usize = 4096;
/// Bytes of a note at most, as the API server has it.
const NOTE_MAX: usize = 1024;
/// Bytes of an object's name that go into an Event's: with the rest it has 253 at most.
const NAME_MAX: usize = 230;

/// What is to be sent.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Job {
    /// A new Event.
    Create(Box<Event>),
    /// Another count for one.
    Count {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// How often, and when last.
        series: EventSeries,
    },
}

/// What was told of late.
#[derive(Debug)]
pub(super) struct Digest {
    instance: String,
    series: HashMap<Notice, Series, ahash::RandomState>,
    /// Distinguishes Events of one moment.
    serial: i128,
}

#[derive(Debug)]
struct Series {
    namespace: String,
    name: String,
    count: i32,
    last: Instant,
    last_at: Timestamp,
    /// The count that was sent last, and when.
    sent: (i32, Instant),
}

impl Digest {
    /// For the own Node's name.
    pub(super) fn new(node: &str) -> Self {
        Self { instance: format!("{CONTROLLER}-{node}"), series: HashMap::default(), serial: 0 }
    }

    /// Takes a notice in: what is to be sent of it at once.
    pub(super) fn take(&mut self, notice: Notice, now: Instant, at: Timestamp) -> Option<Job> {
        if let Some(series) = self.series.get_mut(&notice) {
            series.count = series.count.saturating_add(1);
            (series.last, series.last_at) = (now, at);
            return None;
        }
        if self.series.len() >= SERIES_MAX
            && let Some(oldest) = self.series.iter().min_by_key(|(_, series)| series.last)
        {
            let oldest = oldest.0.clone();
            self.series.remove(&oldest);
        }
        let event = self.event(&notice, at);
        let (namespace, name) = (event.metadata.namespace.clone(), event.metadata.name.clone());
        let series = Series {
            namespace: namespace.unwrap_or_default(),
            name: name.unwrap_or_default(),
            count: 1,
            last: now,
            last_at: at,
            sent: (1, now),
        };
        self.series.insert(notice, series);
        Some(Job::Create(Box::new(event)))
    }

    /// What else is to be sent by now; what was not said again for long is forgotten.
    pub(super) fn due(&mut self, now: Instant) -> Vec<Job> {
        let mut jobs = Vec::new();
        self.series.retain(|_, series| {
            let is_over = now.saturating_duration_since(series.last) >= MEMORY;
            let (count, sent_at) = series.sent;
            if series.count > count && (is_over || now.saturating_duration_since(sent_at) >= REFRESH) {
                series.sent = (series.count, now);
                jobs.push(series.job());
            }
            !is_over
        });
        jobs
    }

    /// The Event is not there, or is there no more: said again, it becomes another.
    pub(super) fn forget(&mut self, job: &Job) {
        let lost = match job {
            Job::Create(event) => event.metadata.name.as_deref().unwrap_or_default(),
            Job::Count { name, .. } => name,
        };
        self.series.retain(|_, series| series.name != lost);
    }

    fn event(&mut self, notice: &Notice, at: Timestamp) -> Event {
        let Notice { object, severity, reason, message } = notice;
        self.serial = at.as_nanosecond().max(self.serial + 1);
        let object_name: &str = shorten(&object.name, NAME_MAX).trim_end_matches(['.', '-']);
        let namespace = object.namespace.as_deref().unwrap_or(NAMESPACE);
        Event {
            action: Some(reason.action.into()),
            event_time: Some(MicroTime(at)),
            metadata: ObjectMeta {
                name: Some(format!("{object_name}.{:x}", self.serial)),
                namespace: Some(namespace.into()),
                ..ObjectMeta::default()
            },
            note: Some(shorten(message, NOTE_MAX).into()),
            reason: Some(reason.name.into()),
            regarding: Some(regarding(object)),
            reporting_controller: Some(CONTROLLER.into()),
            reporting_instance: Some(shorten(&self.instance, 128).into()),
            type_: Some(severity.name().into()),
            ..Event::default()
        }
    }
}

impl Series {
    fn job(&self) -> Job {
        Job::Count {
            namespace: self.namespace.clone(),
            name: self.name.clone(),
            series: EventSeries { count: self.count, last_observed_time: MicroTime(self.last_at) },
        }
    }
}

fn regarding(object: &Reference) -> ObjectReference {
    let text = |part: &Option<Arc<str>>| part.as_deref().map(str::to_owned);
    ObjectReference {
        api_version: Some(object.kind.api_version().into()),
        kind: Some(object.kind.name().into()),
        name: Some(object.name.to_string()),
        namespace: text(&object.namespace),
        uid: text(&object.uid),
        ..ObjectReference::default()
    }
}

/// As much of the text as has at most so many bytes.
fn shorten(text: &str, most: usize) -> &str {
    text.get(..text.floor_char_boundary(most)).unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use super::super::super::notice::Reason;
    use super::*;

    fn notice(name: &str, message: &str) -> Notice {
        let object = Reference::service("shop".into(), name.into(), Some("3f".into()));
        Notice::warning(object, Reason::BAD_ANNOTATION, message)
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + second).unwrap()
    }

    /// A digest with its clock.
    struct Told {
        digest: Digest,
        start: Instant,
    }

    impl Told {
        fn new() -> Self {
            Self { digest: Digest::new("node-1"), start: Instant::now() }
        }

        fn take(&mut self, second: u32, notice: Notice) -> Option<Job> {
            self.digest.take(notice, self.start + Duration::from_secs(second.into()), at(second.into()))
        }

        fn due(&mut self, second: u32) -> Vec<Job> {
            self.digest.due(self.start + Duration::from_secs(second.into()))
        }
    }

    #[test]
    fn a_notice_becomes_an_event_as_the_api_has_it() {
        let Some(Job::Create(event)) = Told::new().take(0, notice("web", "no such scheduler")) else {
            panic!("nothing to send")
        };
        let want = serde_json::json!({
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": {"name": "web.17979cfe362a0000", "namespace": "shop"},
            "eventTime": "2023-11-14T22:13:20.000000Z",
            "reportingController": "weir",
            "reportingInstance": "weir-node-1",
            "action": "ReadService",
            "reason": "BadAnnotation",
            "regarding": {
                "apiVersion": "v1", "kind": "Service", "namespace": "shop", "name": "web", "uid": "3f",
            },
            "note": "no such scheduler",
            "type": "Warning",
        });
        assert_eq!(serde_json::to_value(&event).unwrap(), want);
    }

    #[test]
    fn events_of_nodes_are_in_the_default_namespace() {
        let node = Notice::warning(Reference::node("n1".into()), Reason::METRICS_SERVER, "x");
        let Some(Job::Create(event)) = Told::new().take(0, node) else { panic!("nothing to send") };
        assert_eq!(event.metadata.namespace.as_deref(), Some("default"));
        assert_eq!(event.regarding.unwrap().namespace, None);
    }

    #[test]
    fn what_is_said_again_is_counted_once_a_minute_and_in_the_end() {
        let mut told = Told::new();
        let Some(Job::Create(event)) = told.take(0, notice("web", "a")) else { panic!("nothing to send") };
        assert!(told.due(59).is_empty(), "nothing was said again");
        assert_eq!(told.take(10, notice("web", "a")), None);
        assert_eq!(told.take(20, notice("web", "a")), None);
        assert!(matches!(told.take(20, notice("web", "b")), Some(Job::Create(_))), "something else");
        assert!(told.due(59).is_empty());
        let count = |count, second| Job::Count {
            namespace: "shop".into(),
            name: event.metadata.name.clone().unwrap(),
            series: EventSeries { count, last_observed_time: MicroTime(at(second)) },
        };
        assert_eq!(told.due(60), [count(3, 20)]);
        assert!(told.due(200).is_empty());
        assert_eq!(told.take(210, notice("web", "a")), None);
        assert_eq!(told.take(211, notice("web", "a")), None);
        assert_eq!(told.due(212), [count(5, 211)]);
        assert_eq!(told.take(213, notice("web", "a")), None);
        assert_eq!(told.due(213 + 360), [count(6, 213)], "before it is forgotten");
        assert!(matches!(told.take(600, notice("web", "a")), Some(Job::Create(_))), "long after");
    }

    #[test]
    fn what_never_got_there_is_sent_anew() {
        let mut told = Told::new();
        let job = told.take(0, notice("web", "a")).unwrap();
        told.digest.forget(&job);
        assert!(matches!(told.take(1, notice("web", "a")), Some(Job::Create(_))));
    }

    #[test]
    fn names_and_notes_have_a_bound_and_events_of_one_moment_are_told_apart() {
        let mut told = Told::new();
        let long = "x".repeat(229) + "-" + &"y".repeat(23);
        let mut names = std::collections::BTreeSet::new();
        for message in ["é".repeat(2000), "b".repeat(1024), String::new()] {
            let Some(Job::Create(event)) = told.take(0, notice(&long, &message)) else { panic!("nothing") };
            let (name, note) = (event.metadata.name.unwrap(), event.note.unwrap());
            assert!(name.len() <= 253 && name.starts_with(&("x".repeat(229) + ".")), "{name}");
            assert!(note.len() <= 1024 && message.starts_with(&note), "{note}");
            assert!(names.insert(name));
        }
    }

    #[test]
    fn the_oldest_is_forgotten_where_there_are_too_many() {
        let mut told = Told::new();
        for number in 0..=u32::try_from(SERIES_MAX).unwrap() {
            told.take(number / 100, notice(&format!("s{number}"), "a"));
        }
        assert_eq!(told.digest.series.len(), SERIES_MAX);
        assert_eq!(told.take(50, notice("s4000", "a")), None);
    }
}
