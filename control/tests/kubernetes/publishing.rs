//! What is proposed to control, and what is told of what came of it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use control::http::health::{self, Page};
use control::http::node_port::Checks;
use control::metrics::kubernetes::Kubernetes;
use control::source::kubernetes::notice::Outbox;
use control::source::kubernetes::publish::{Ears, Outcome, Proposal, Surroundings};
use control::source::kubernetes::status::Status;
use control::source::kubernetes::thread::{Parts, Thread};
use testbed::apiserver::{ApiServer, Cut, Fault, Resource};
use tokio::sync::mpsc;

use crate::world::{LIMIT, TOKEN, Way, change, kubernetes_settings, server};

struct Source {
    thread: Thread,
    proposals: mpsc::Receiver<Proposal>,
    ears: Ears,
    _way: Way,
}

impl Source {
    fn start(server: &ApiServer) -> Self {
        let way = Way::new(&server.kubeconfig(TOKEN));
        let counted = Kubernetes::default();
        let (outbox, notices) = Outbox::new(counted.clone());
        let health = Arc::new(health::State::new(Duration::from_secs(60)));
        let ears = Ears { health, counted: counted.clone(), checks: Arc::<Checks>::default(), outbox };
        let parts = Parts {
            server: way.server(),
            settings: kubernetes_settings(),
            status: Arc::new(Status::new(counted)),
            ears: ears.clone(),
            notices,
        };
        let mut thread = Thread::start(parts, Surroundings::default()).unwrap();
        Self { proposals: thread.take_proposals(), thread, ears, _way: way }
    }

    fn next_within(&mut self, limit: Duration) -> Option<Proposal> {
        let deadline = Instant::now() + limit;
        while Instant::now() < deadline {
            match self.proposals.try_recv() {
                Ok(proposal) => return Some(proposal),
                Err(mpsc::error::TryRecvError::Empty) => std::thread::sleep(Duration::from_millis(5)),
                Err(gone) => panic!("{gone}"),
            }
        }
        None
    }

    fn next(&mut self) -> Proposal {
        self.next_within(LIMIT).unwrap_or_else(|| panic!("no proposal: {:?}", self.thread.status.watched()))
    }

    /// What `/healthz` says beside the verdict.
    fn told(&self) -> (bool, Vec<String>) {
        let health = self.ears.health.health(Page::Health, Instant::now(), SystemTime::now());
        (health.healthy, [health.reasons, health.notes].concat())
    }

    fn until_told(&self, what: &str) {
        let deadline = Instant::now() + LIMIT;
        while !self.told().1.iter().any(|line| line.contains(what)) {
            assert!(Instant::now() < deadline, "{what}: {:?}", self.told());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn names(proposal: &Proposal) -> BTreeSet<String> {
    let group = |service: &control::model::Service| service.group.as_deref().unwrap_or_default().to_owned();
    proposal.change.put.iter().map(group).collect()
}

fn accept(proposal: Proposal) {
    let outcome = Outcome { at: Instant::now(), refused: Vec::new(), fault: None };
    proposal.reply.send(outcome).unwrap();
}

#[test]
fn nothing_is_proposed_before_services_and_slices_are_read() {
    let server = server(5);
    server.faults().set(Resource::EndpointSlices, None, Fault::Status(403));
    let mut source = Source::start(&server);
    source.until_told("endpointslices: HTTP 403");
    assert!(source.next_within(Duration::from_secs(2)).is_none());
    assert!(source.told().0, "it is healthy all the same");
    server.faults().clear();
    let proposal = source.next();
    assert_eq!(proposal.change.put.len(), 5);
    assert!(names(&proposal).contains("ns-3/service-3:http"), "{:?}", names(&proposal));
    assert!(proposal.change.common.is_some());
    accept(proposal);
}

#[test]
fn changes_are_gathered_while_one_is_put_into_force() {
    let server = server(20);
    let mut source = Source::start(&server);
    let first = source.next();
    for round in 0..10 {
        (0..5).for_each(|number| change(&server, number, round * 5 + u8::try_from(number).unwrap() + 1));
    }
    assert!(source.next_within(Duration::from_secs(1)).is_none(), "one at a time");
    accept(first);
    let second = source.next();
    let want: BTreeSet<_> = (0..5).map(|number| format!("ns-{number}/service-{number}:http")).collect();
    assert_eq!(names(&second), want);
    assert_eq!(second.change.put.len(), 5, "each as it is now");
    accept(second);
    assert!(source.next_within(Duration::from_secs(1)).is_none(), "nothing else has changed");
}

#[test]
fn what_is_refused_is_proposed_again_and_told() {
    let server = server(3);
    let mut source = Source::start(&server);
    let first = source.next();
    let service =
        first.change.put.iter().find(|s| s.group.as_deref() == Some("ns-1/service-1:http")).unwrap();
    let refused = vec![(Arc::clone(&service.name), "the table is full".to_owned())];
    first.reply.send(Outcome { at: Instant::now(), refused, fault: None }).unwrap();
    source.until_told("the table is full");
    change(&server, 2, 9);
    // In one proposal or in two: what was refused does not wait for what comes.
    let want = BTreeSet::from(["ns-1/service-1:http", "ns-2/service-2:http"].map(str::to_owned));
    let mut proposed = BTreeSet::new();
    while proposed != want {
        let next = source.next();
        assert!(proposed.is_disjoint(&names(&next)), "again: {:?}", names(&next));
        proposed.extend(names(&next));
        assert!(proposed.is_subset(&want), "{proposed:?}");
        accept(next);
    }
    let deadline = Instant::now() + LIMIT;
    while !source.told().1.is_empty() {
        assert!(Instant::now() < deadline, "{:?}", source.told());
        std::thread::sleep(Duration::from_millis(20));
    }
    // Its owner hears of it.
    while server.cluster().objects(Resource::Events).is_empty() {
        assert!(Instant::now() < deadline, "no Event");
        std::thread::sleep(Duration::from_millis(20));
    }
    let event = &server.cluster().objects(Resource::Events)[0];
    assert_eq!((&event["regarding"]["name"], &event["reason"]), (&"service-1".into(), &"Refused".into()));
}

#[test]
fn what_goes_is_proposed_and_losing_the_server_proposes_nothing() {
    let server = server(3);
    let mut source = Source::start(&server);
    accept(source.next());
    server.faults().set(None, None, Fault::Status(500));
    server.faults().cut(Cut::End);
    source.until_told("HTTP 500");
    assert!(source.next_within(Duration::from_secs(1)).is_none());
    server.cluster().delete(Resource::Services, "ns-1", "service-1").unwrap();
    server.faults().clear();
    let gone = source.next();
    assert_eq!((gone.change.remove.len(), gone.change.put.len()), (1, 0));
    assert!(gone.change.remove[0].contains("ns-1/service-1"), "{:?}", gone.change.remove);
    accept(gone);
}
