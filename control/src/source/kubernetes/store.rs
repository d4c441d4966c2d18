//! Kubernetes's objects, and the services that they come to: pure, and no event costs more than the Services that it
//! is about.
//!
//! Nothing comes out before both Services and EndpointSlices have been listed once. A list that is taken again blanks
//! nothing: what was there stays until the list is complete without it.

mod claims;
mod names;
mod surroundings;

#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::mem;
use std::sync::Arc;

use dataplane::flow::key::VipKey;
use jiff::Timestamp;

use super::convert::{Conversion, HealthCheck, Holder, NoLocal, convert};
use super::event::{Event, Update};
use super::exposure::{Exposure, Here, exposures};
use super::notice::{Kind, Notice, Reason, Reference};
use super::object::{EndpointSlice, Fault, FaultKind, Faults, Key, Node, Service, ServiceCidr};
use super::settings::Settings;
use crate::model::{self, Change, Common};
use claims::Claims;
use names::Names;
pub use surroundings::Configured;
use surroundings::{Effect, Surroundings};

type Map<K, V> = HashMap<K, V, ahash::RandomState>;

/// Trigger times that are kept until they are handed on; those beyond are let go of.
const TRIGGERS_MAX: usize = 10_000;

/// What has changed since it was asked last.
#[derive(Debug, Default)]
pub struct Output {
    /// Of the services.
    pub change: Change,
    /// When what the changes are about came about: EndpointSlices say so. Only what came after the start.
    pub triggers: Vec<Timestamp>,
    /// Services whose health is asked for in another way, or is another.
    pub health_checks: Vec<HealthChange>,
    /// What is to be told about objects.
    pub notices: Vec<Notice>,
    /// Ports of Services without local endpoints: all of them.
    pub no_local: NoLocal,
}

/// What is new about a Service's health.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthChange {
    /// The Service.
    pub service: Key,
    /// Its uid, as far as it is known.
    pub uid: Option<Arc<str>>,
    /// How it is asked for, and what it is; `None`: it is no longer asked for.
    pub check: Option<HealthCheck>,
}

/// How much there is, and how much of it was not as it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Totals {
    /// Services.
    pub services: usize,
    /// EndpointSlices that belong to a Service.
    pub slices: usize,
    /// Endpoints in them.
    pub endpoints: usize,
    /// Services with faults.
    pub faulty: usize,
    /// Objects so far that could not be read.
    pub undecodable: u64,
    /// Changes of Services so far.
    pub service_changes: u64,
    /// Changes of EndpointSlices so far.
    pub slice_changes: u64,
    /// Changes of Services that were not handed on yet.
    pub pending_services: u64,
    /// Changes of EndpointSlices that were not handed on yet.
    pub pending_slices: u64,
}

/// See the module.
#[derive(Debug)]
pub struct Store {
    around: Surroundings,
    started: Timestamp,
    names: Names,
    entries: Map<Arc<Key>, Entry>,
    /// Where each EndpointSlice is.
    slices: Map<Key, Placed>,
    claims: Claims,
    services_list: Listing,
    slices_list: Listing,
    cidrs_list: Option<HashSet<Arc<str>>>,
    dirty: HashSet<Arc<Key>, ahash::RandomState>,
    triggers: Vec<(Arc<Key>, Timestamp)>,
    notices: Vec<Notice>,
    /// What services share, as it was handed on.
    common: Option<Common>,
    no_local: NoLocal,
    totals: Totals,
}

/// How far the list of a kind is.
#[derive(Clone, Copy, Debug, Default)]
struct Listing {
    /// Which list it is: what was seen in an earlier one, and not in this, is gone once it is complete.
    number: u32,
    /// Whether one was complete.
    synced: bool,
}

/// A Service and what belongs to it, as far as it is there.
#[derive(Debug, Default)]
struct Entry {
    service: Option<Box<Service>>,
    /// The list that it was seen in last.
    seen: u32,
    slices: Vec<EndpointSlice>,
    /// The services that it came to, with a print of each.
    made: Vec<(Arc<str>, u64)>,
    health: Option<HealthCheck>,
    no_local: NoLocal,
    faults: Faults,
    hinted: bool,
}

#[derive(Debug)]
struct Placed {
    owner: Arc<Key>,
    seen: u32,
}

impl Store {
    /// A store without objects. `configured` is what the configuration has beside it, `started` the time from which on
    /// trigger times count.
    pub fn new(settings: Settings, configured: Configured, started: Timestamp) -> Self {
        Self {
            around: Surroundings::new(settings, configured),
            started,
            names: Names::default(),
            entries: Map::default(),
            slices: Map::default(),
            claims: Claims::default(),
            services_list: Listing::default(),
            slices_list: Listing::default(),
            cidrs_list: None,
            dirty: HashSet::default(),
            triggers: Vec::new(),
            notices: Vec::new(),
            common: None,
            no_local: NoLocal::default(),
            totals: Totals::default(),
        }
    }

    /// How objects are understood.
    pub fn settings(&self) -> &Settings {
        &self.around.settings
    }

    /// The own Node, if it is there.
    pub fn node(&self) -> Option<&Node> {
        self.around.node()
    }

    /// Whether Services and EndpointSlices have both been listed.
    pub fn is_synced(&self) -> bool {
        self.services_list.synced && self.slices_list.synced
    }

    /// How much there is.
    pub fn totals(&self) -> Totals {
        self.totals
    }

    /// Services with faults, and these.
    pub fn faults(&self) -> impl Iterator<Item = (&Key, &Faults)> {
        let faulty = self.entries.iter().filter(|(_, entry)| !entry.faults.is_empty());
        faulty.map(|(key, entry)| (&**key, &entry.faults))
    }

    /// The surroundings that Services are converted in.
    pub fn here(&self) -> Here<'_> {
        self.around.here()
    }

    /// Every Service with its EndpointSlices.
    pub fn services(&self) -> impl Iterator<Item = (&Service, &[EndpointSlice])> {
        self.entries.values().filter_map(|entry| Some((&**entry.service.as_ref()?, &*entry.slices)))
    }

    /// Who has an address and port, as `key` sees it.
    pub fn holder(&self, key: &Key, vip: &VipKey) -> Holder {
        if self.around.is_configured(vip) {
            return Holder::Configured;
        }
        match self.claims.holder(vip) {
            Some(other) if **other != *key => Holder::Other(Arc::clone(other)),
            _ => Holder::Itself,
        }
    }

    /// The Service that has an address and port.
    pub fn service_at(&self, vip: &VipKey) -> Option<(&Service, &[EndpointSlice])> {
        let entry = self.entries.get(self.claims.holder(vip)?)?;
        Some((entry.service.as_ref()?, &entry.slices))
    }

    /// Takes in what happened.
    pub fn apply(&mut self, event: Event) {
        match event {
            Event::Service(update) => self.update_services(update),
            Event::Slice(update) => self.update_slices(update),
            Event::Node(node) => {
                let effect = self.around.set_node(node);
                self.react(effect);
            }
            Event::HostAddresses(addresses) => {
                let effect = self.around.set_host(addresses);
                self.react(effect);
            }
            Event::Configured(configured) => {
                let effect = self.around.set_configured(configured);
                self.react(effect);
            }
            Event::Cidr(update) => self.update_cidrs(update),
        }
    }

    /// What has changed since the last call; `None` where nothing has, or not everything was listed yet.
    pub fn take_change(&mut self) -> Option<Output> {
        if !self.is_synced() {
            return None;
        }
        let mut output = Output { notices: mem::take(&mut self.notices), ..Output::default() };
        for key in mem::take(&mut self.dirty) {
            self.renew(&key, &mut output);
        }
        let common = self.around.common();
        if self.common.as_ref() != Some(&common) {
            self.common = Some(common.clone());
            output.change.common = Some(common);
        }
        output.triggers = mem::take(&mut self.triggers).into_iter().map(|(_, time)| time).collect();
        output.no_local = self.no_local;
        (self.totals.pending_services, self.totals.pending_slices) = (0, 0);
        let Output { change, triggers, health_checks, notices, .. } = &output;
        let nothing =
            change.is_empty() && triggers.is_empty() && health_checks.is_empty() && notices.is_empty();
        (!nothing).then_some(output)
    }

    fn update_services(&mut self, update: Update<Service>) {
        match update {
            Update::Restarted => self.services_list.number = self.services_list.number.wrapping_add(1),
            Update::Applied(service) => self.put_service(service),
            Update::Deleted(key) => self.remove_service(&key),
            Update::Undecodable(_) => self.totals.undecodable += 1,
            Update::Complete => {
                self.services_list.synced = true;
                let missing =
                    |entry: &Entry| entry.service.is_some() && entry.seen != self.services_list.number;
                let gone = self.entries.iter().filter(|(_, entry)| missing(entry));
                let gone: Vec<_> = gone.map(|(key, _)| Arc::clone(key)).collect();
                gone.iter().for_each(|key| self.remove_service(key));
            }
        }
    }

    fn put_service(&mut self, mut service: Service) {
        self.names.service(&mut service);
        let number = self.services_list.number;
        let key = self.entry_of(&service.key);
        let Some(entry) = self.entries.get_mut(&key) else { return };
        entry.seen = number;
        if entry.service.as_deref() == Some(&service) {
            return;
        }
        let before = entry.service.take();
        self.totals.services += usize::from(before.is_none());
        self.note_service_change();
        if let Some(before) = &before {
            self.withdraw(&key, before);
        }
        self.enter(&key, &service);
        if let Some(entry) = self.entries.get_mut(&key) {
            entry.service = Some(Box::new(service));
        }
        self.dirty.insert(key);
    }

    fn remove_service(&mut self, key: &Key) {
        let Some((key, _)) = self.entries.get_key_value(key) else { return };
        let key = Arc::clone(key);
        let Some(before) = self.entries.get_mut(&key).and_then(|entry| entry.service.take()) else { return };
        self.totals.services -= 1;
        self.note_service_change();
        self.withdraw(&key, &before);
        self.triggers.retain(|(of, _)| *of != key);
        self.dirty.insert(key);
    }

    fn note_service_change(&mut self) {
        self.totals.service_changes += 1;
        self.totals.pending_services += 1;
    }

    /// The key of an entry, which is made where there is none.
    fn entry_of(&mut self, key: &Key) -> Arc<Key> {
        if let Some((known, _)) = self.entries.get_key_value(key) {
            return Arc::clone(known);
        }
        let mut key = key.clone();
        self.names.key(&mut key);
        let key = Arc::new(key);
        self.entries.insert(Arc::clone(&key), Entry::default());
        key
    }

    /// Claims the addresses of a Service.
    fn enter(&mut self, key: &Arc<Key>, service: &Service) {
        self.around.add_cluster_ips(service);
        let order = age(service);
        let is_later = |other: &Key| {
            let other = self.entries.get(other).and_then(|entry| entry.service.as_deref());
            other.is_none_or(|other| age(other) > order)
        };
        for vip in keys(service, &self.around.here()) {
            self.claims.add(vip, key, is_later, |other| _ = self.dirty.insert(Arc::clone(other)));
        }
    }

    /// Gives the addresses of a Service up.
    fn withdraw(&mut self, key: &Key, service: &Service) {
        self.around.remove_cluster_ips(service);
        for vip in keys(service, &self.around.here()) {
            self.claims.remove(&vip, key, |other| _ = self.dirty.insert(Arc::clone(other)));
        }
    }

    fn update_slices(&mut self, update: Update<EndpointSlice>) {
        match update {
            Update::Restarted => self.slices_list.number = self.slices_list.number.wrapping_add(1),
            Update::Applied(slice) => self.put_slice(slice),
            Update::Deleted(key) => self.remove_slice(&key),
            Update::Undecodable(_) => self.totals.undecodable += 1,
            Update::Complete => {
                self.slices_list.synced = true;
                let number = self.slices_list.number;
                let gone = self.slices.iter().filter(|(_, placed)| placed.seen != number);
                let gone: Vec<_> = gone.map(|(key, _)| key.clone()).collect();
                gone.iter().for_each(|key| self.remove_slice(key));
            }
        }
    }

    fn put_slice(&mut self, mut slice: EndpointSlice) {
        let Some(name) = slice.service.clone().filter(|_| self.is_ours(&slice)) else {
            // One that was ours may have lost its label.
            return self.remove_slice(&slice.key);
        };
        let owner = Key { namespace: Arc::clone(&slice.key.namespace), name };
        if self.slices.get(&slice.key).is_some_and(|placed| *placed.owner != owner) {
            self.remove_slice(&slice.key);
        }
        self.names.slice(&mut slice);
        let key = self.entry_of(&owner);
        let seen = self.slices_list.number;
        self.slices.insert(slice.key.clone(), Placed { owner: Arc::clone(&key), seen });
        let Some(entry) = self.entries.get_mut(&key) else { return };
        let place = entry.slices.iter().position(|other| other.key == slice.key);
        let before = place.and_then(|place| entry.slices.get_mut(place));
        let time = slice.triggered;
        match before {
            Some(before) if same(before, &slice) => {
                before.triggered = time;
                return;
            }
            Some(before) => {
                self.totals.endpoints -= before.endpoints.len();
                self.totals.endpoints += slice.endpoints.len();
                let new = slice.faults.iter().find(|fault| !before.faults.iter().any(|old| old == *fault));
                self.notices.extend(new.and_then(|fault| wrong_family(&slice, fault)));
                *before = slice;
            }
            None => {
                self.totals.slices += 1;
                self.totals.endpoints += slice.endpoints.len();
                self.notices.extend(slice.faults.iter().find_map(|fault| wrong_family(&slice, fault)));
                entry.slices.push(slice);
            }
        }
        self.note_slice_change();
        if let Some(time) = time.filter(|time| *time > self.started && self.triggers.len() < TRIGGERS_MAX) {
            self.triggers.push((Arc::clone(&key), time));
        }
        self.dirty.insert(key);
    }

    /// Whether a slice is one that this proxy looks at. With a name of its own it goes by the Services alone: slices
    /// that are made by hand have no such label.
    fn is_ours(&self, slice: &EndpointSlice) -> bool {
        let named = self.around.settings.service_proxy_name.is_some();
        !slice.headless_label && (named || slice.proxy_name.is_none())
    }

    fn remove_slice(&mut self, key: &Key) {
        let Some(Placed { owner, .. }) = self.slices.remove(key) else { return };
        if let Some(entry) = self.entries.get_mut(&owner) {
            let place = entry.slices.iter().position(|slice| slice.key == *key);
            if let Some(place) = place {
                let gone = entry.slices.swap_remove(place);
                self.totals.slices -= 1;
                self.totals.endpoints -= gone.endpoints.len();
            }
        }
        self.note_slice_change();
        self.triggers.retain(|(of, _)| *of != owner);
        self.dirty.insert(owner);
    }

    fn note_slice_change(&mut self) {
        self.totals.slice_changes += 1;
        self.totals.pending_slices += 1;
    }

    fn update_cidrs(&mut self, update: Update<ServiceCidr>) {
        match update {
            Update::Restarted => self.cidrs_list = Some(HashSet::new()),
            Update::Applied(cidr) => {
                if let Some(seen) = &mut self.cidrs_list {
                    seen.insert(Arc::clone(&cidr.name));
                }
                self.around.set_cidr(cidr);
            }
            Update::Deleted(key) => self.around.remove_cidr(&key.name),
            Update::Undecodable(_) => self.totals.undecodable += 1,
            Update::Complete => {
                let Some(seen) = self.cidrs_list.take() else { return };
                let gone: Vec<_> = self.around.cidr_names();
                gone.iter()
                    .filter(|name| !seen.contains(*name))
                    .for_each(|name| self.around.remove_cidr(name));
            }
        }
    }

    /// Has Services looked at again, as a change of the surroundings asks for.
    fn react(&mut self, effect: Effect) {
        match effect {
            Effect::None => {}
            Effect::Hinted => {
                let hinted = self.entries.iter().filter(|(_, entry)| entry.hinted);
                self.dirty.extend(hinted.map(|(key, _)| Arc::clone(key)));
            }
            Effect::All => {
                self.dirty.extend(self.entries.keys().cloned());
                self.claims.clear();
                let here = self.around.here();
                for (key, service) in
                    self.entries.iter().filter_map(|(key, entry)| Some((key, entry.service.as_deref()?)))
                {
                    let order = age(service);
                    let is_later = |other: &Key| {
                        let other = self.entries.get(other).and_then(|entry| entry.service.as_deref());
                        other.is_none_or(|other| age(other) > order)
                    };
                    for vip in keys(service, &here) {
                        self.claims.add(vip, key, is_later, |_| {});
                    }
                }
            }
        }
    }

    /// Converts a Service again and notes what is different.
    fn renew(&mut self, key: &Arc<Key>, output: &mut Output) {
        let Some(entry) = self.entries.get(key) else { return };
        let of = match &entry.service {
            Some(service) => {
                convert(service, &entry.slices, &self.around.here(), |vip| self.holder(key, vip))
            }
            None => Conversion::default(),
        };
        let Some(entry) = self.entries.get_mut(key) else { return };
        let made: Vec<_> =
            of.services.iter().map(|service| (Arc::clone(&service.name), print(service))).collect();
        let is_kept = |name: &Arc<str>| made.iter().any(|(kept, _)| kept == name);
        let gone = entry.made.iter().filter(|(name, _)| !is_kept(name));
        output.change.remove.extend(gone.map(|(name, _)| Arc::clone(name)));
        let services = of.services.into_iter().zip(&made);
        let new = services.filter(|(_, print)| !entry.made.contains(print));
        output.change.put.extend(new.map(|(service, _)| service));
        if entry.health != of.health_check {
            let service = (**key).clone();
            output.health_checks.push(HealthChange { service, uid: uid(entry), check: of.health_check });
        }
        for fault in of.faults.iter().filter(|fault| !entry.faults.iter().any(|old| old == *fault)) {
            output.notices.extend(notice(key, uid(entry), fault));
        }
        self.totals.faulty -= usize::from(!entry.faults.is_empty());
        self.totals.faulty += usize::from(!of.faults.is_empty());
        let NoLocal { internal, external } = &mut self.no_local;
        for (total, before, now) in [
            (internal, entry.no_local.internal, of.no_local.internal),
            (external, entry.no_local.external, of.no_local.external),
        ] {
            for (total, (before, now)) in total.iter_mut().zip(before.into_iter().zip(now)) {
                *total = *total + now - before;
            }
        }
        (entry.made, entry.health, entry.no_local) = (made, of.health_check, of.no_local);
        (entry.faults, entry.hinted) = (of.faults, of.hinted);
        if entry.service.is_none() && entry.slices.is_empty() {
            self.entries.remove(key);
        }
    }
}

/// Of two Services that ask for the same, the one that comes first here has it.
fn age(service: &Service) -> (bool, Option<Timestamp>, &Key) {
    (service.created.is_none(), service.created, &service.key)
}

/// Every address and port that a Service asks for.
fn keys(service: &Service, here: &Here<'_>) -> Vec<VipKey> {
    let mut ignored = Faults::default();
    exposures(service, here, &mut ignored).iter().flat_map(Exposure::keys).collect()
}

/// Whether two versions of a slice mean the same.
fn same(one: &EndpointSlice, other: &EndpointSlice) -> bool {
    let parts = |of: &EndpointSlice| (of.family, of.faults.count());
    parts(one) == parts(other) && one.ports == other.ports && one.endpoints == other.endpoints
}

/// A number that is another for another service.
fn print(service: &model::Service) -> u64 {
    let mut hasher = DefaultHasher::new();
    service.hash(&mut hasher);
    hasher.finish()
}

fn uid(entry: &Entry) -> Option<Arc<str>> {
    let uid = entry.service.as_ref().map(|service| &*service.uid);
    uid.filter(|uid| !uid.is_empty()).map(Into::into)
}

fn wrong_family(slice: &EndpointSlice, fault: &Fault) -> Option<Notice> {
    let Key { namespace, name } = slice.key.clone();
    let object = Reference { kind: Kind::EndpointSlice, namespace: Some(namespace), name, uid: None };
    let is_it = fault.kind == FaultKind::WrongFamily;
    is_it.then(|| Notice::warning(object, Reason::WRONG_FAMILY, fault.to_string()))
}

/// What its owner should know of a Service. Fields that cannot be read are the API server's affair.
fn notice(key: &Key, uid: Option<Arc<str>>, fault: &Fault) -> Option<Notice> {
    let reason = match fault.kind {
        FaultKind::Annotation => Reason::BAD_ANNOTATION,
        FaultKind::Taken => Reason::ADDRESS_CONFLICT,
        FaultKind::Field | FaultKind::WrongFamily => return None,
    };
    let Key { namespace, name } = key.clone();
    Some(Notice::warning(Reference::service(namespace, name, uid), reason, fault.to_string()))
}
