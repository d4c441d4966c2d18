//! The desired state, and how it changes.
//!
//! Services lie in the order of their sources. Who has a name, an address, a node port or a mark is found by indexes, so a
//! change costs what it is about.

mod index;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use dataplane::flow::key::VipKey;
use dataplane::snapshot::{Mark, Settings, Timeouts};
use ipnet::IpNet;

use self::index::Index;
use super::conflict;
use super::{
    Change, Clients, Common, Conflict, Draft, Family, Identity, MatchRule, Origin, Port, Protocol, Service,
    SnatPool, Unicast,
};

/// Where a service stands: those of one origin together, in the order in which they came. It is a service's own as long
/// as there is one of its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Order(u64);

/// The first place of services that are not the configuration's.
const OTHERS: Order = Order(1 << 63);

/// A [`Draft`] whose parts go together, and what other sources have put beside it.
#[derive(Clone, Debug)]
pub struct DesiredState {
    services: BTreeMap<Order, Arc<Service>>,
    /// The next places: of the configuration's services, and of others'.
    next: [Order; 2],
    /// By name; by address, port, protocol and clients; by node port; by mark; by group.
    names: Index,
    vips: Index,
    node_ports: Index,
    marks: Index,
    groups: Index,
    /// What the configuration says besides services.
    configured: Arc<Draft>,
    /// What other sources say besides services.
    common: Arc<Common>,
    /// Both together.
    around: Arc<Draft>,
}

impl Default for DesiredState {
    fn default() -> Self {
        Self {
            services: BTreeMap::new(),
            next: [Order(0), OTHERS],
            names: Index::default(),
            vips: Index::default(),
            node_ports: Index::default(),
            marks: Index::default(),
            groups: Index::default(),
            configured: Arc::default(),
            common: Arc::default(),
            around: Arc::default(),
        }
    }
}

impl PartialEq for DesiredState {
    fn eq(&self, other: &Self) -> bool {
        self.services().eq(other.services())
            && (&self.configured, &self.common) == (&other.configured, &other.common)
    }
}

impl Eq for DesiredState {}

/// What a node port is taken by.
type NodePort = (Family, Protocol, Port, Clients);

/// What a change was about.
#[derive(Debug, Default)]
pub(crate) struct Applied {
    /// The services that went, came or became others.
    pub(crate) services: Vec<Touched>,
    /// What there was besides services, where that became something else.
    pub(crate) around: Option<Arc<Draft>>,
    shared: Option<(Arc<Draft>, Arc<Common>)>,
}

/// A service before and after a change.
#[derive(Clone, Debug)]
pub(crate) struct Touched {
    pub(crate) order: Order,
    pub(crate) before: Option<Arc<Service>>,
    pub(crate) after: Option<Arc<Service>>,
}

impl Applied {
    /// As if all of `desired` had come out of nothing.
    pub(crate) fn all(desired: &DesiredState) -> Self {
        let came = |(order, service): (Order, &Arc<Service>)| Touched {
            order,
            before: None,
            after: Some(Arc::clone(service)),
        };
        let around = Some(Arc::default());
        Self { services: desired.places().map(came).collect(), around, shared: None }
    }

    /// Whether nothing changed.
    pub(crate) fn is_empty(&self) -> bool {
        self.services.is_empty() && self.shared.is_none()
    }
}

/// What a change is made of, once names are places.
#[derive(Debug, Default)]
struct Edit {
    gone: HashSet<Order, ahash::RandomState>,
    /// Services that are new or take the place of those with their names.
    put: Vec<Arc<Service>>,
    configured: Option<Arc<Draft>>,
    common: Option<Arc<Common>>,
}

impl DesiredState {
    /// The draft, if its parts go together; else everything that stands against it, in the order of the draft.
    pub fn new(mut draft: Draft) -> Result<Self, Vec<Conflict>> {
        let conflicts = conflict::find(&draft);
        if !conflicts.is_empty() {
            return Err(conflicts);
        }
        let mut state = Self::default();
        let put = std::mem::take(&mut draft.services).into_iter().map(Arc::new).collect();
        let edit = Edit { put, configured: Some(Arc::new(draft)), ..Edit::default() };
        let around = state.around_with(&edit);
        state.apply(edit, around);
        Ok(state)
    }

    /// What the configuration has: to be changed and made into another.
    pub fn draft(&self) -> Draft {
        Draft { services: self.own_services().cloned().collect(), ..Draft::clone(&self.configured) }
    }

    /// What the configuration says besides services.
    pub fn configured(&self) -> &Draft {
        &self.configured
    }

    /// The configuration's services, in its order.
    pub fn own_services(&self) -> impl Iterator<Item = &Service> {
        self.services.range(..OTHERS).map(|(_, service)| &**service)
    }

    /// The services, those of the configuration first, in the order of their sources.
    pub fn services(&self) -> impl DoubleEndedIterator<Item = &Service> {
        self.services.values().map(|service| &**service)
    }

    /// How many services there are.
    pub fn len(&self) -> usize {
        self.services.len()
    }

    /// Whether there are no services.
    pub fn is_empty(&self) -> bool {
        self.services.is_empty()
    }

    /// The service with this name.
    pub fn service(&self, name: &str) -> Option<&Service> {
        self.at(self.named(name)?).map(|service| &**service)
    }

    /// The SNAT pools, in the order of the configuration.
    pub fn pools(&self) -> &[SnatPool] {
        &self.around.pools
    }

    /// The node's own addresses.
    pub fn node_addresses(&self) -> &[Unicast] {
        &self.around.node_addresses
    }

    /// Where local clients are.
    pub fn local(&self) -> &[IpNet] {
        &self.around.local
    }

    /// Networks of virtual addresses.
    pub fn virtual_networks(&self) -> &[IpNet] {
        &self.around.virtual_networks
    }

    /// The rules that give marks, by precedence.
    pub fn rules(&self) -> &[MatchRule] {
        &self.around.rules
    }

    /// Idle times of flows.
    pub fn timeouts(&self) -> Timeouts {
        self.around.timeouts
    }

    /// What IPVS has as sysctls, and limits.
    pub fn settings(&self) -> Settings {
        self.around.settings
    }

    /// All services with their places.
    pub(crate) fn places(&self) -> impl Iterator<Item = (Order, &Arc<Service>)> {
        self.services.iter().map(|(order, service)| (*order, service))
    }

    /// All that there is besides services.
    pub(crate) fn around(&self) -> &Arc<Draft> {
        &self.around
    }

    /// The service at a place.
    pub(crate) fn at(&self, order: Order) -> Option<&Arc<Service>> {
        self.services.get(&order)
    }

    /// The services of a group, in order.
    pub(crate) fn group(&self, name: &str) -> Vec<Order> {
        let is_of = |order| self.at(order).is_some_and(|of| of.group.as_deref() == Some(name));
        let mut members: Vec<_> = self.groups.all(&name, is_of).collect();
        members.sort_unstable();
        members
    }

    /// Where the service with this name stands.
    pub(crate) fn named(&self, name: &str) -> Option<Order> {
        self.names.find(&name, |order| self.at(order).is_some_and(|service| *service.name == *name))
    }

    /// The service that has the address.
    pub(super) fn holder(&self, vip: &VipKey, clients: Clients) -> Option<Order> {
        let has = |of: &Arc<Service>| of.clients() == clients && of.keys().any(|key| key == *vip);
        self.vips.find(&(*vip, clients), |order| self.at(order).is_some_and(has))
    }

    /// The service that has the node port.
    pub(super) fn on_node(&self, node_port: &NodePort) -> Option<Order> {
        self.node_ports
            .find(node_port, |order| self.at(order).and_then(|of| node_port_of(of)) == Some(*node_port))
    }

    /// The service that has the mark.
    pub(super) fn marked(&self, mark: Mark) -> Option<Order> {
        self.marks.find(&mark, |order| self.at(order).and_then(|of| of.mark()) == Some(mark))
    }

    /// The service with this identity.
    pub(crate) fn identified(&self, identity: &Identity) -> Option<Order> {
        match *identity {
            Identity::Vip(vip, clients) => self.holder(&vip, clients),
            Identity::Node { port, protocol, family, clients } => {
                self.on_node(&(family, protocol, port, clients))
            }
            Identity::Mark(mark) => self.marked(mark),
        }
    }

    /// Carries a change of another source than the configuration out, or says all that stands against it and leaves
    /// everything as it was. The services of a [`super::Place`] are then those of [`Change::put`].
    pub fn change(&mut self, change: Change) -> Result<(), Vec<Conflict>> {
        self.follow(change).map(drop)
    }

    /// [`Self::change`], and what it was about.
    pub(crate) fn follow(&mut self, change: Change) -> Result<Applied, Vec<Conflict>> {
        let Change { remove, put, common } = change;
        let others = |order: &Order| *order >= OTHERS;
        self.edit(Edit {
            gone: remove.iter().filter_map(|name| self.named(name)).filter(others).collect(),
            put: put.into_iter().map(Arc::new).collect(),
            configured: None,
            common: common.map(Arc::new),
        })
    }

    /// Puts what `configuration` has in the place of what the configuration had, beside other sources' services, and tells
    /// what that was about. Where it does not go with those, everything stays as it was; the services of a
    /// [`super::Place`] are then those that are not as they were before.
    pub(crate) fn configure(&mut self, configuration: &Self) -> Result<Applied, Vec<Conflict>> {
        let own = || self.services.range(..OTHERS);
        let new = || configuration.services.range(..OTHERS).map(|(_, service)| service);
        let stays: HashSet<&str, ahash::RandomState> = new().map(|service| &*service.name).collect();
        let mut gone: HashSet<_, ahash::RandomState> =
            own().filter(|(_, service)| !stays.contains(&*service.name)).map(|(order, _)| *order).collect();
        // Places are given by order of arrival: where that is not the configuration's order, all arrive anew.
        let mut places = new().map(|service| self.named(&service.name).unwrap_or(OTHERS));
        if !places.by_ref().is_sorted() {
            gone = own().map(|(order, _)| *order).collect();
        }
        let edit = Edit {
            gone,
            put: new().cloned().collect(),
            configured: Some(Arc::clone(&configuration.configured)),
            common: None,
        };
        self.edit(edit)
    }

    fn edit(&mut self, mut edit: Edit) -> Result<Applied, Vec<Conflict>> {
        let [configured, common] = [
            edit.configured.as_ref().is_some_and(|new| *new != self.configured),
            edit.common.as_ref().is_some_and(|new| *new != self.common),
        ];
        edit.configured = edit.configured.filter(|_| configured);
        edit.common = edit.common.filter(|_| common);
        let around = self.around_with(&edit);
        let replaced = edit.put.iter().filter_map(|new| {
            self.named(&new.name).filter(|place| (*place < OTHERS) == (new.origin == Origin::Configuration))
        });
        let leaving: HashSet<Order, ahash::RandomState> = edit.gone.iter().copied().chain(replaced).collect();
        let put: Vec<&Service> = edit.put.iter().map(|service| &**service).collect();
        let conflicts = conflict::find_in(self, &leaving, &put, &around);
        if !conflicts.is_empty() {
            return Err(conflicts);
        }
        let same = |new: &Arc<Service>| {
            let place = self.named(&new.name).filter(|place| !edit.gone.contains(place));
            place.and_then(|place| self.at(place)).is_some_and(|old| Arc::ptr_eq(old, new) || old == new)
        };
        edit.put.retain(|new| !same(new));
        Ok(self.apply(edit, around))
    }

    /// Takes back what a change was about.
    pub(crate) fn undo(&mut self, applied: Applied) {
        let Applied { services, around, shared } = applied;
        for Touched { order, after, .. } in &services {
            if let Some(after) = after {
                self.unlink(*order, after);
            }
        }
        for Touched { order, before, .. } in services {
            if let Some(before) = before {
                self.link(order, before);
            }
        }
        if let Some((configured, common)) = shared {
            (self.configured, self.common) = (configured, common);
        }
        if let Some(around) = around {
            self.around = around;
        }
    }

    fn apply(&mut self, edit: Edit, around: Arc<Draft>) -> Applied {
        let mut applied = Applied::default();
        if edit.configured.is_some() || edit.common.is_some() {
            applied.shared = Some((Arc::clone(&self.configured), Arc::clone(&self.common)));
            if around != self.around {
                applied.around = Some(std::mem::replace(&mut self.around, around));
            }
            self.configured = edit.configured.unwrap_or_else(|| Arc::clone(&self.configured));
            self.common = edit.common.unwrap_or_else(|| Arc::clone(&self.common));
        }
        let mut gone: Vec<_> = edit.gone.into_iter().collect();
        gone.sort_unstable();
        for order in gone {
            if let Some(before) = self.at(order).cloned() {
                self.unlink(order, &before);
                applied.services.push(Touched { order, before: Some(before), after: None });
            }
        }
        let placed: Vec<_> = edit.put.into_iter().map(|new| (self.named(&new.name), new)).collect();
        for (order, _) in &placed {
            if let Some((order, before)) = order.and_then(|order| Some((order, self.at(order).cloned()?))) {
                self.unlink(order, &before);
                applied.services.push(Touched { order, before: Some(before), after: None });
            }
        }
        let mut replaced =
            applied.services.len() - placed.iter().filter(|(order, _)| order.is_some()).count();
        for (order, new) in placed {
            let after = Some(Arc::clone(&new));
            match order {
                Some(order) => {
                    self.link(order, new);
                    if let Some(touched) = applied.services.get_mut(replaced) {
                        touched.after = after;
                    }
                    replaced += 1;
                }
                None => {
                    let order = self.next_place(new.origin);
                    self.link(order, new);
                    applied.services.push(Touched { order, before: None, after });
                }
            }
        }
        applied
    }

    fn next_place(&mut self, origin: Origin) -> Order {
        let [own, others] = &mut self.next;
        let next = if origin == Origin::Configuration { own } else { others };
        let place = *next;
        next.0 += 1;
        place
    }

    /// What there will be besides services.
    fn around_with(&self, edit: &Edit) -> Arc<Draft> {
        if edit.configured.is_none() && edit.common.is_none() {
            return Arc::clone(&self.around);
        }
        let common = edit.common.as_ref().unwrap_or(&self.common);
        let mut around = Draft::clone(edit.configured.as_ref().unwrap_or(&self.configured));
        add(&mut around.node_addresses, &common.node_addresses);
        add(&mut around.local, &common.local);
        add(&mut around.virtual_networks, &common.virtual_networks);
        Arc::new(around)
    }

    fn link(&mut self, order: Order, service: Arc<Service>) {
        self.names.insert(&&*service.name, order);
        for key in service.keys() {
            self.vips.insert(&(key, service.clients()), order);
        }
        if let Some(node_port) = node_port_of(&service) {
            self.node_ports.insert(&node_port, order);
        }
        if let Some(mark) = service.mark() {
            self.marks.insert(&mark, order);
        }
        if let Some(group) = &service.group {
            self.groups.insert(&&**group, order);
        }
        self.services.insert(order, service);
    }

    fn unlink(&mut self, order: Order, service: &Service) {
        self.names.remove(&&*service.name, order);
        for key in service.keys() {
            self.vips.remove(&(key, service.clients()), order);
        }
        if let Some(node_port) = node_port_of(service) {
            self.node_ports.remove(&node_port, order);
        }
        if let Some(mark) = service.mark() {
            self.marks.remove(&mark, order);
        }
        if let Some(group) = &service.group {
            self.groups.remove(&&**group, order);
        }
        self.services.remove(&order);
    }
}

/// Adds what is not there yet.
fn add<T: Clone + PartialEq>(list: &mut Vec<T>, more: &[T]) {
    for one in more {
        if !list.contains(one) {
            list.push(one.clone());
        }
    }
}

fn node_port_of(service: &Service) -> Option<NodePort> {
    Some((service.family(), service.protocol()?, service.node_port?, service.clients()))
}
