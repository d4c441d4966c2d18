//! From what was watched to what is in force: changes are gathered, proposed to control one at a time, and what comes of
//! them is told.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::convert::Infallible;
use std::mem;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use super::event::Event;
use super::notice::{Notice, Outbox, Reason, Reference};
use super::object::Key;
use super::settings::NodePortAddresses;
use super::status::{Resource, Status};
use super::store::{Configured, HealthChange, Output, Store, Totals};
use crate::http::health;
use crate::http::node_port::{Check, Checks};
use crate::metrics::kubernetes::{Kubernetes, Objects, TrafficPolicy};
use crate::model::{Change, Family, Service};

/// Without the own Node nothing is put into force for so long: it says where node ports are, and which endpoints are
/// near.
const NODE_PATIENCE: Duration = Duration::from_secs(30);
/// What was refused is proposed again with the next change, and after this.
const RETRY: Duration = Duration::from_secs(30);
/// How often it is looked at how watching goes.
const LOOK: Duration = Duration::from_secs(1);

/// A change that control is asked to put into force.
#[derive(Debug)]
pub struct Proposal {
    /// The change.
    pub change: Change,
    /// What came of it.
    pub reply: oneshot::Sender<Outcome>,
}

/// What came of a change. The services that are not among the refused are in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// When all workers used it.
    pub at: std::time::Instant,
    /// Services that were refused, by name, and why. What they were before holds.
    pub refused: Vec<(Arc<str>, String)>,
    /// Why what services share, or what is gone, was refused.
    pub fault: Option<String>,
}

/// What control knows and Services are converted by.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Surroundings {
    /// The host's own addresses.
    pub addresses: Vec<IpAddr>,
    /// What the configuration has.
    pub configured: Configured,
}

/// Where what comes of changes is told.
#[derive(Clone, Debug)]
pub struct Ears {
    /// For health pages.
    pub health: Arc<health::State>,
    /// For metrics.
    pub counted: Kubernetes,
    /// For load balancers.
    pub checks: Arc<Checks>,
    /// For whoever owns the objects.
    pub outbox: Outbox,
}

/// See the module.
pub(super) struct Publisher<'a> {
    pub(super) store: &'a RefCell<Store>,
    pub(super) status: &'a Status,
    pub(super) ears: &'a Ears,
    pub(super) proposals: mpsc::Sender<Proposal>,
    pub(super) surroundings: watch::Receiver<Surroundings>,
    /// Something happened to an object.
    pub(super) news: Notify,
    begun: Instant,
    /// What was refused, by name.
    refused: RefCell<HashMap<Arc<str>, Service>>,
    families: RefCell<HashSet<Family>>,
    counted: Cell<Totals>,
    /// Whether control is gone.
    is_over: Cell<bool>,
}

impl<'a> Publisher<'a> {
    pub(super) fn new(
        store: &'a RefCell<Store>,
        status: &'a Status,
        ears: &'a Ears,
        proposals: mpsc::Sender<Proposal>,
        surroundings: watch::Receiver<Surroundings>,
    ) -> Self {
        Self {
            store,
            status,
            ears,
            proposals,
            surroundings,
            news: Notify::new(),
            begun: Instant::now(),
            refused: RefCell::default(),
            families: RefCell::default(),
            counted: Cell::default(),
            is_over: Cell::new(false),
        }
    }

    /// Takes in what happened to an object.
    pub(super) fn take(&self, event: Event) {
        self.store.borrow_mut().apply(event);
        self.news.notify_one();
    }

    /// Publishes for ever.
    pub(super) async fn run(&self) -> Infallible {
        let mut surroundings = self.surroundings.clone();
        surroundings.mark_changed();
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let min_period = self.store.borrow().settings().min_sync_period;
        let (mut is_due, mut next, mut retry) = (false, Instant::now(), None);
        loop {
            tokio::select! {
                () = self.news.notified() => is_due = true,
                Ok(()) = surroundings.changed() => {
                    self.surround(&surroundings.borrow_and_update());
                    is_due = true;
                }
                _ = look.tick() => {
                    self.look();
                    is_due |= retry.is_some_and(|at| at <= Instant::now());
                }
                () = sleep_until(next), if is_due && self.is_ready() => {
                    is_due = false;
                    let begun = Instant::now();
                    self.publish().await;
                    next = begun + min_period;
                    retry = (!self.refused.borrow().is_empty()).then(|| Instant::now() + RETRY);
                }
            }
            if self.is_over.get() {
                std::future::pending::<()>().await;
            }
            self.note_queued();
        }
    }

    fn surround(&self, surroundings: &Surroundings) {
        let mut store = self.store.borrow_mut();
        store.apply(Event::HostAddresses(surroundings.addresses.clone()));
        store.apply(Event::Configured(surroundings.configured.clone()));
    }

    /// Whether enough was read for anything to be put into force.
    fn is_ready(&self) -> bool {
        let has_node = self.status.is_read(Resource::Node) || self.begun.elapsed() > NODE_PATIENCE;
        has_node && self.store.borrow().is_synced()
    }

    /// How watching goes, and whether the cluster sends traffic here.
    fn look(&self) {
        let troubles = self.status.troubles();
        self.ears.health.trouble("Kubernetes", (!troubles.is_empty()).then(|| troubles.join("; ")));
        let store = self.store.borrow();
        let counts = store.settings().gates.draining_nodes && self.status.is_read(Resource::Node);
        self.ears.health.node(match store.node() {
            _ if !counts => health::Node::Eligible,
            None => health::Node::Leaving("there is no such Node"),
            Some(node) if node.leaving => health::Node::Leaving("it is deleted or marked by the autoscaler"),
            Some(_) => health::Node::Eligible,
        });
    }

    fn note_queued(&self) {
        let (totals, before) = (self.store.borrow().totals(), self.counted.get());
        let services = totals.service_changes - before.service_changes;
        let slices = totals.slice_changes - before.slice_changes;
        if services + slices == 0 {
            return;
        }
        self.counted.set(totals);
        let pending = |count| usize::try_from(count).unwrap_or(usize::MAX);
        let counted = &self.ears.counted;
        counted.changed(Objects::Services, services, pending(totals.pending_services));
        counted.changed(Objects::Endpoints, slices, pending(totals.pending_slices));
        if totals.pending_services + totals.pending_slices > 0 && self.status.is_synced() {
            for family in &*self.families.borrow() {
                self.ears.health.queued(*family, Instant::now().into_std());
                counted.queued(*family);
            }
        }
    }

    async fn publish(&self) {
        let begun = Instant::now();
        let output = self.store.borrow_mut().take_change();
        let mut output = output.unwrap_or_default();
        let mut change = mem::take(&mut output.change);
        self.add_refused(&mut change);
        let about: HashSet<Family> = change.put.iter().map(Service::family).collect();
        self.families.borrow_mut().extend(&about);
        let common = change.common.clone();
        let outcome = if change.is_empty() {
            Outcome { at: std::time::Instant::now(), refused: Vec::new(), fault: None }
        } else {
            let put: HashMap<_, _> = change.put.iter().map(|s| (Arc::clone(&s.name), s.clone())).collect();
            let Some(outcome) = self.propose(change).await else { return };
            self.keep_refused(put, &outcome);
            outcome
        };
        if let Some(common) = common {
            let is_all = self.store.borrow().settings().node_port_addresses == NodePortAddresses::All;
            let addresses = common.node_addresses.iter().map(|addr| addr.ip());
            self.ears.checks.listen_on(if is_all { Vec::new() } else { addresses.collect() });
        }
        self.tell(output, &about, &outcome, begun);
    }

    async fn propose(&self, change: Change) -> Option<Outcome> {
        let (reply, answer) = oneshot::channel();
        let sent = self.proposals.send(Proposal { change, reply }).await;
        let outcome = if sent.is_ok() { answer.await.ok() } else { None };
        self.is_over.set(outcome.is_none());
        outcome
    }

    /// What was refused is proposed again, unless it is something else by now.
    fn add_refused(&self, change: &mut Change) {
        let mut refused = self.refused.borrow_mut();
        change.remove.iter().for_each(|name| drop(refused.remove(name)));
        change.put.iter().for_each(|service| drop(refused.remove(&service.name)));
        change.put.extend(refused.drain().map(|(_, service)| service));
    }

    fn keep_refused(&self, mut put: HashMap<Arc<str>, Service>, outcome: &Outcome) {
        let mut refused = self.refused.borrow_mut();
        for (name, reason) in &outcome.refused {
            let Some(service) = put.remove(name) else { continue };
            if let Some(key) = service.group.as_deref().and_then(owner) {
                let object = Reference::service(key.namespace, key.name, None);
                self.ears.outbox.tell(Notice::warning(object, Reason::REFUSED, reason.clone()));
            }
            refused.insert(Arc::clone(name), service);
        }
        match (&outcome.fault, outcome.refused.first()) {
            (Some(fault), _) => self.ears.health.refused(format!("Kubernetes: {fault}")),
            (None, Some((name, reason))) => self.ears.health.refused(format!("Kubernetes: {name}: {reason}")),
            (None, None) => self.ears.health.accepted(),
        }
    }

    /// Tells what is in force, `about` these families.
    fn tell(&self, output: Output, about: &HashSet<Family>, outcome: &Outcome, begun: Instant) {
        let Ears { health, counted, checks, outbox } = self.ears;
        let families = self.families.borrow().clone();
        if outcome.refused.is_empty() && outcome.fault.is_none() {
            families.iter().for_each(|family| health.updated(*family, outcome.at));
        }
        let took = outcome.at.saturating_duration_since(begun.into_std());
        families.iter().for_each(|family| counted.synced(*family, took));
        let now = Timestamp::now();
        for trigger in &output.triggers {
            let latency = Duration::try_from(now.duration_since(*trigger)).unwrap_or_default();
            about.iter().for_each(|family| counted.programmed(*family, latency));
        }
        for (policy, of) in [
            (TrafficPolicy::Internal, output.no_local.internal),
            (TrafficPolicy::External, output.no_local.external),
        ] {
            for (family, count) in [Family::V4, Family::V6].into_iter().zip(of) {
                counted.no_local_endpoints(policy, family, count);
            }
        }
        let totals = self.store.borrow().totals();
        for (resource, count) in
            [(Resource::Services, totals.services), (Resource::EndpointSlices, totals.slices)]
        {
            counted.objects(resource.name(), count);
        }
        counted.objects("endpoints", totals.endpoints);
        counted.faults("service", totals.faulty);
        counted.faults("undecodable", usize::try_from(totals.undecodable).unwrap_or(usize::MAX));
        for HealthChange { service, uid, check } in output.health_checks {
            match check {
                None => checks.remove(&service),
                Some(check) => {
                    let (port, local_endpoints) = (check.port.number(), check.local);
                    checks.set(service, Check { uid, port, local_endpoints });
                }
            }
        }
        checks.synced();
        output.notices.into_iter().for_each(|notice| outbox.tell(notice));
    }
}

/// The Service that a group `namespace/name:port` or `namespace/name/v6` is of.
fn owner(group: &str) -> Option<Key> {
    let (namespace, rest) = group.split_once('/')?;
    let name = rest.split([':', '/']).next()?;
    Some(Key { namespace: namespace.into(), name: name.into() })
}
