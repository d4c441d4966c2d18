//! Notices on their way to the API server, as Events.
//!
//! Whoever has something to tell never waits ([`Outbox::tell`](super::notice::Outbox::tell)). What is said again is
//! counted in the Event that there is; after a burst one request a second goes out at most; a server that does not answer
//! is tried for some minutes, and then the notice is let go of. All of that is counted.

mod digest;

use std::time::{Duration, Instant};

use http::{Method, Request, header};
use jiff::Timestamp;
use serde::Serialize;
use tokio::sync::mpsc;
use tokio::time::{interval, sleep};

use self::digest::{Digest, Job};
use super::client::{Connection, Server};
use super::notice::Notice;
use super::trouble::Kind;
use crate::metrics::kubernetes::{EventFate, Kubernetes};

/// Requests that may go out at once.
const BURST: u32 = 25;
/// And then one each.
const PACE: Duration = Duration::from_secs(1);
/// How often what is due is looked for.
const LOOK: Duration = Duration::from_secs(10);
/// How often a request is tried.
const TRIES: u32 = 12;
/// The longest pause between two tries.
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// How a request failed.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Failure {
    /// It may go another time.
    Passing(String),
    /// It will not go.
    Lasting(String),
}

/// Sends what comes by `notices` to `server` until that ends, by a connection of its own: what is told must not hold up
/// what is watched. Only from a runtime of one thread.
pub async fn send(server: Server, notices: mpsc::Receiver<Notice>, node: &str, counted: &Kubernetes) {
    let connection = Connection::new(server);
    let post = async |request| match connection.send(request).await {
        Ok(_) => Ok(()),
        Err(trouble) => Err(match trouble.kind {
            Kind::Forbidden | Kind::Missing | Kind::Gone | Kind::Malformed | Kind::Other => {
                Failure::Lasting(trouble.to_string())
            }
            Kind::Credentials
            | Kind::Unreachable
            | Kind::Timeout
            | Kind::Unauthorized
            | Kind::Throttled
            | Kind::Server => Failure::Passing(trouble.to_string()),
        }),
    };
    run(notices, node, counted, post).await;
}

/// Sends what comes by `notices` until that ends. `post` sends one request to the API server, whose path it begins with.
async fn run(
    mut notices: mpsc::Receiver<Notice>,
    node: &str,
    counted: &Kubernetes,
    post: impl AsyncFn(Request<Vec<u8>>) -> Result<(), Failure>,
) {
    let mut digest = Digest::new(node);
    let mut pace = Pace { left: BURST, since: Instant::now() };
    let mut look = interval(LOOK);
    loop {
        let jobs = tokio::select! {
            notice = notices.recv() => match notice {
                None => return,
                Some(notice) => {
                    let job = digest.take(notice, Instant::now(), Timestamp::now());
                    if job.is_none() {
                        counted.event(EventFate::Repeated);
                    }
                    Vec::from_iter(job)
                }
            },
            _ = look.tick() => digest.due(Instant::now()),
        };
        for job in jobs {
            sleep(pace.wait(Instant::now())).await;
            let fate = deliver(&job, &post).await;
            counted.event(fate);
            if fate == EventFate::Failed {
                digest.forget(&job);
            }
        }
    }
}

async fn deliver(job: &Job, post: &impl AsyncFn(Request<Vec<u8>>) -> Result<(), Failure>) -> EventFate {
    let mut pause = Duration::from_secs(1);
    for _ in 0..TRIES {
        match post(request(job)).await {
            Ok(()) => return EventFate::Sent,
            Err(Failure::Lasting(reason)) => {
                tracing::warn!(%reason, "an Event was refused");
                return EventFate::Failed;
            }
            Err(Failure::Passing(reason)) => tracing::debug!(%reason, "an Event waits"),
        }
        sleep(pause).await;
        pause = (2 * pause).min(PAUSE_MAX);
    }
    tracing::warn!("an Event was given up: the API server did not take it for minutes");
    EventFate::Failed
}

/// What goes out for a job.
fn request(job: &Job) -> Request<Vec<u8>> {
    let events = |namespace: &str| format!("/apis/events.k8s.io/v1/namespaces/{namespace}/events");
    let (method, path, media, body) = match job {
        Job::Create(event) => {
            let namespace = event.metadata.namespace.as_deref().unwrap_or_default();
            (Method::POST, events(namespace), "application/json", json(event))
        }
        Job::Count { namespace, name, series } => {
            let path = format!("{}/{name}", events(namespace));
            let patch = serde_json::json!({ "series": series });
            (Method::PATCH, path, "application/merge-patch+json", json(&patch))
        }
    };
    let mut request = Request::new(body);
    *request.method_mut() = method;
    // Names of Kubernetes's objects need no escape.
    if let Ok(uri) = path.parse() {
        *request.uri_mut() = uri;
    }
    request.headers_mut().insert(header::CONTENT_TYPE, http::HeaderValue::from_static(media));
    request
}

fn json(body: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(body).unwrap_or_default()
}

/// Lets a burst out at once, and then one request after the other.
struct Pace {
    left: u32,
    since: Instant,
}

impl Pace {
    /// How long the next request has to wait.
    fn wait(&mut self, now: Instant) -> Duration {
        let past = now.saturating_duration_since(self.since);
        let earned = u32::try_from(past.as_nanos() / PACE.as_nanos()).unwrap_or(BURST).min(BURST);
        self.left = (self.left + earned).min(BURST);
        if earned > 0 {
            self.since = now;
        }
        match self.left.checked_sub(1) {
            Some(left) => {
                self.left = left;
                Duration::ZERO
            }
            None => {
                let wait = PACE.saturating_sub(past);
                self.since = now + wait;
                wait
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::super::notice::{Outbox, Reason, Reference};
    use super::*;

    #[test]
    fn after_a_burst_a_request_a_second_goes_out() {
        let start = Instant::now();
        let mut pace = Pace { left: BURST, since: start };
        for _ in 0..BURST {
            assert_eq!(pace.wait(start), Duration::ZERO);
        }
        let mut now = start;
        for second in 1..=5 {
            now += pace.wait(now);
            assert_eq!(now, start + second * PACE);
        }
        now += 10 * PACE;
        for _ in 0..10 {
            assert_eq!(pace.wait(now), Duration::ZERO);
        }
        assert_eq!(pace.wait(now), PACE);
    }

    /// Notices through the loop, with a server that answers so, in a time that passes by itself; what it was asked, as
    /// (method, path).
    async fn sent(notices: &[&str], answers: &[Result<(), Failure>]) -> (Vec<(Method, String)>, Kubernetes) {
        let counted = Kubernetes::default();
        let (outbox, receiver) = Outbox::new(counted.clone());
        for message in notices {
            let object = Reference::service("shop".into(), "web".into(), None);
            outbox.tell(Notice::warning(object, Reason::BAD_ANNOTATION, *message));
        }
        drop(outbox);
        let (asked, answers) = (RefCell::new(Vec::new()), RefCell::new(answers.iter()));
        let post = async |request: Request<Vec<u8>>| {
            let (parts, body) = request.into_parts();
            let _: serde_json::Value = serde_json::from_slice(&body).unwrap();
            asked.borrow_mut().push((parts.method, parts.uri.path().to_owned()));
            answers.borrow_mut().next().cloned().unwrap_or(Ok(()))
        };
        run(receiver, "node-1", &counted, post).await;
        (asked.into_inner(), counted)
    }

    fn counts(counted: &Kubernetes) -> [u64; 4] {
        [EventFate::Sent, EventFate::Repeated, EventFate::Failed, EventFate::Lost]
            .map(|fate| counted.events(fate))
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_said_twice_is_one_event() {
        let (asked, counted) = sent(&["a", "b", "a"], &[]).await;
        let path = "/apis/events.k8s.io/v1/namespaces/shop/events".to_owned();
        assert_eq!(asked, [(Method::POST, path.clone()), (Method::POST, path)]);
        assert_eq!(counts(&counted), [2, 1, 0, 0]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_does_not_answer_is_tried_again_and_one_that_refuses_is_not() {
        let passing = || Err(Failure::Passing("503".into()));
        let (asked, counted) = sent(&["a", "b"], &[passing(), passing(), Ok(())]).await;
        assert_eq!((asked.len(), counts(&counted)), (4, [2, 0, 0, 0]));
        let refusal = Err(Failure::Lasting("403".into()));
        let (asked, counted) = sent(&["a", "a"], &[refusal.clone(), refusal]).await;
        assert_eq!(
            (asked.len(), counts(&counted)),
            (2, [0, 0, 2, 0]),
            "a refused one is no Event to count on"
        );
        let never: Vec<_> = (0..TRIES).map(|_| passing()).collect();
        let (asked, counted) = sent(&["a", "b"], &never).await;
        assert_eq!((asked.len(), counts(&counted)), (13, [1, 0, 1, 0]));
    }
}
