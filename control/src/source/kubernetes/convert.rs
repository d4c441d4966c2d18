//! A Service and its EndpointSlices become services of the desired state: a pure function.
//!
//! A port of a Service in one family becomes up to five of them, a group: one for each way in which its addresses are
//! used.
//!
//! | Name ends in | Reached by | Endpoints by | Client's address |
//! |---|---|---|---|
//! | `/cluster` | ClusterIP | `internalTrafficPolicy` | kept for local clients |
//! | `/external` | external IPs, the node port, load balancer's addresses without source ranges | `externalTrafficPolicy` | kept by `Local` only |
//! | `/balancer` | load balancer's addresses with source ranges | `externalTrafficPolicy` | kept by `Local` only |
//! | `/external-inside`, `/balancer-inside` | the same, by clients inside, where the policy is `Local` | all | kept for local clients |
//! | `/node-port`, `/node-port-inside` | the node port, where the others forward without translation | as above | as above |

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::num::NonZeroU32;
use std::sync::Arc;

use dataplane::flow::key::VipKey;
use dataplane::schedule::Kind;
use dataplane::snapshot::{Mode, Options};
use ipnet::IpNet;

use super::annotations::{self, Wishes};
use super::endpoints::{Candidate, Choice, choose};
use super::exposure::{Exposure, Here, Vip, exposures};
use super::object::{EndpointSlice, FaultKind, Faults, Key, Service, ServiceKind, ServicePort};
use super::topology::Topology;
use crate::model::{
    self, Access, Backend, Clients, Family, Masquerade, Origin, Persistence, Port, Protocol, Reach, Unicast,
    Vips, WhenEmpty,
};

/// What a Service becomes.
#[derive(Clone, Debug, Default)]
pub struct Conversion {
    /// The services.
    pub services: Vec<model::Service>,
    /// Where its health is asked for, and how many endpoints on the own Node are ready.
    pub health_check: Option<HealthCheck>,
    /// Its ports that have endpoints, but none that their policy lets be used here.
    pub no_local: NoLocal,
    /// What is wrong with it.
    pub faults: Faults,
    /// Whether it depends on where Weir is.
    pub hinted: bool,
}

/// The health of a Service on this Node (`healthCheckNodePort`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// The port that is asked.
    pub port: Port,
    /// Addresses of endpoints that are ready, here.
    pub local: usize,
}

/// Ports of Services without local endpoints, by the policy that asks for them. Only those that have endpoints
/// elsewhere count. By family: IPv4, IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct NoLocal {
    /// `internalTrafficPolicy`.
    pub internal: [usize; 2],
    /// `externalTrafficPolicy`.
    pub external: [usize; 2],
}

/// Who has an address and port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Holder {
    /// The Service that asks.
    Itself,
    /// Another Service.
    Other(Arc<Key>),
    /// The configuration.
    Configured,
}

/// Converts a Service; `holder` says who has an address.
pub fn convert<'s>(
    service: &Service,
    slices: impl IntoIterator<Item = &'s EndpointSlice> + Clone,
    here: &Here<'_>,
    holder: impl Fn(&VipKey) -> Holder,
) -> Conversion {
    let mut of = Conversion { faults: service.faults.clone(), ..Conversion::default() };
    let wishes = annotations::read(service, here.settings, &mut of.faults);
    let mut seen = HashSet::new();
    let mut all = exposures(service, here, &mut of.faults);
    all.retain_mut(|exposure| keep_own(exposure, &mut seen, &holder, &mut of.faults));
    let mut rest = &*all;
    while let Some(first) = rest.first() {
        let same =
            |other: &Exposure<'_>| other.family == first.family && std::ptr::eq(other.port, first.port);
        let (group, others) = rest.split_at(rest.iter().take_while(|other| same(other)).count());
        rest = others;
        let choice = choose(slices.clone(), first.family, first.port, &here.place());
        of.hinted |= choice.topology != Topology::None || hinted(&choice);
        let maker = Maker { service, port: first.port, family: first.family, here, wishes: &wishes };
        maker.make(group, &choice, &mut of);
    }
    of.health_check = health_check(service, slices, here);
    of
}

/// Takes out of an exposure the addresses that somebody else has; `false` where none is left. A node port is given up
/// whole.
fn keep_own(
    exposure: &mut Exposure<'_>,
    seen: &mut HashSet<VipKey>,
    holder: &impl Fn(&VipKey) -> Holder,
    faults: &mut Faults,
) -> bool {
    let mut lost = false;
    let (number, protocol) = (exposure.number, exposure.port.protocol);
    let before = exposure.addresses.len();
    exposure.addresses.retain(|addr| {
        let key = model::vip_key(*addr, Some(number), protocol);
        let who = match holder(&key) {
            // By one of its own addresses of another kind: that is the same.
            Holder::Itself => return seen.insert(key),
            Holder::Other(other) => format!("Service {other} has it"),
            Holder::Configured => "the configuration has it".to_owned(),
        };
        let (ip, number, protocol) = (addr.ip(), number.number(), protocol.name());
        let taken = std::net::SocketAddr::new(ip, number);
        faults.push(FaultKind::Taken, exposure.vip.field(), format_args!("{taken}/{protocol}: {who}"));
        lost = true;
        false
    });
    if exposure.vip == Vip::NodePort && (lost || exposure.addresses.len() < before) {
        exposure.addresses.clear();
    }
    !exposure.addresses.is_empty()
}

fn hinted(choice: &Choice<'_>) -> bool {
    let has_hints = |candidate: &Candidate<'_>| {
        let extra = candidate.endpoint.extra.as_ref();
        extra.is_some_and(|extra| !extra.zones.is_empty() || !extra.nodes.is_empty())
    };
    choice.candidates.iter().any(has_hints)
}

fn health_check<'s>(
    service: &Service,
    slices: impl IntoIterator<Item = &'s EndpointSlice>,
    here: &Here<'_>,
) -> Option<HealthCheck> {
    let asked = service.kind == ServiceKind::LoadBalancer && service.external_local;
    let port = service.health_check_port.filter(|_| asked && here.serves_class(service))?;
    let endpoints =
        slices.into_iter().filter(|slice| !slice.ports.is_empty()).flat_map(|slice| &*slice.endpoints);
    let local = endpoints.filter(|endpoint| {
        endpoint.conditions.ready && endpoint.node.as_deref() == Some(&*here.settings.node)
    });
    let local: HashSet<_> = local.map(|endpoint| endpoint.addr).collect();
    Some(HealthCheck { port, local: local.len() })
}

/// What the services of a group have in common.
struct Maker<'a> {
    service: &'a Service,
    port: &'a ServicePort,
    family: Family,
    here: &'a Here<'a>,
    wishes: &'a Wishes,
}

/// One of the services of a group.
struct Variant<'a> {
    suffix: &'a str,
    addresses: Vec<Unicast>,
    node_port: bool,
    announce: bool,
    sources: Option<Arc<[IpNet]>>,
}

/// Lists of endpoints that the services of a group share.
struct Lists {
    cluster: Arc<[Backend]>,
    near: Arc<[Backend]>,
    any: bool,
    mode: Mode,
}

impl Maker<'_> {
    fn make(&self, group: &[Exposure<'_>], choice: &Choice<'_>, of: &mut Conversion) {
        let mode = self.mode(group, choice, &mut of.faults);
        let lists = Lists {
            cluster: self.backends(choice, mode, |candidate| candidate.cluster),
            near: self.backends(choice, mode, |candidate| candidate.near),
            any: choice.any,
            mode,
        };
        self.count_no_local(choice, of);
        let named = |vip: Vip| group.iter().filter(move |exposure| exposure.vip == vip);
        let addresses = |vip: Vip| named(vip).flat_map(|exposure| exposure.addresses.iter().copied());
        let cluster: Vec<_> = addresses(Vip::Cluster).collect();
        if !cluster.is_empty() {
            let variant = Variant { announce: false, ..Variant::new("cluster", cluster) };
            of.services.push(self.cluster(variant, &lists));
        }
        let ranges: Vec<_> = self.here.source_ranges(self.service, self.family).collect();
        let mut external: Vec<_> = addresses(Vip::External).collect();
        let mut variants = Vec::new();
        let balancer: Vec<_> = addresses(Vip::Balancer).collect();
        if ranges.is_empty() {
            external.extend(balancer);
        } else if !balancer.is_empty() {
            variants.push(Variant { sources: Some(ranges.into()), ..Variant::new("balancer", balancer) });
        }
        let node_port = named(Vip::NodePort).next().is_some();
        // Only a translated packet can lose the node's port.
        let apart = node_port && !mode.has_replies();
        if apart {
            variants.push(Variant { node_port, ..Variant::new("node-port", Vec::new()) });
        }
        if !external.is_empty() || node_port && !apart {
            variants.push(Variant { node_port: node_port && !apart, ..Variant::new("external", external) });
        }
        // A list for the node port alone is of another mode.
        for variant in variants {
            let translated = (apart && variant.node_port).then(|| Lists {
                cluster: self.backends(choice, Mode::Nat, |candidate| candidate.cluster),
                near: self.backends(choice, Mode::Nat, |candidate| candidate.near),
                mode: Mode::Nat,
                any: lists.any,
            });
            self.external(variant, translated.as_ref().unwrap_or(&lists), &mut of.services);
        }
    }

    fn count_no_local(&self, choice: &Choice<'_>, of: &mut Conversion) {
        if !choice.any || choice.candidates.iter().any(|candidate| candidate.near) {
            return;
        }
        let family = match self.family {
            Family::V4 => 0,
            Family::V6 => 1,
        };
        let count = |counts: &mut [usize; 2], counted: bool| {
            if let Some(count) = counts.get_mut(family) {
                *count += usize::from(counted);
            }
        };
        count(&mut of.no_local.internal, self.service.internal_local);
        let external = self.here.is_external(self.service, self.port, self.family);
        count(&mut of.no_local.external, self.service.external_policy_local() && external);
    }

    /// How endpoints get their packets: as the Service wants it, where that can be.
    fn mode(&self, group: &[Exposure<'_>], choice: &Choice<'_>, faults: &mut Faults) -> Mode {
        let mode = self.wishes.mode;
        let mut refuse = |reason: std::fmt::Arguments<'_>| {
            let field = format_args!("metadata.annotations[weir.dev/forwarding-mode]");
            faults.push(FaultKind::Annotation, field, reason);
            Mode::Nat
        };
        if mode == Mode::FullNat && !self.here.has_pool(self.family) {
            return refuse(format_args!("fullnat needs a SNAT pool with {} addresses", self.family.name()));
        }
        let moved = choice.candidates.iter().find(|candidate| candidate.port != self.port.port);
        if let Some(moved) = moved.filter(|_| !mode.has_replies() && !group.is_empty()) {
            let (port, to) = (self.port.port.number(), moved.port.number());
            return refuse(format_args!(
                "{} leaves the port as it is, and port {port} leads to port {to}: nat instead",
                mode.name()
            ));
        }
        mode
    }

    /// The endpoints, the chosen ones with their weights. Those that answer still keep the datagrams that they have had
    /// so far by a weight of 0, where the scheduler can do with such.
    fn backends(
        &self,
        choice: &Choice<'_>,
        mode: Mode,
        chosen: impl Fn(&Candidate<'_>) -> bool,
    ) -> Arc<[Backend]> {
        let keeps = self.port.protocol == Protocol::Udp && self.wishes.scheduling.kind != Kind::Dh;
        let tunnel = if mode == self.wishes.mode { self.wishes.tunnel } else { Default::default() };
        let mut list: Vec<_> = choice
            .candidates
            .iter()
            .filter(|candidate| chosen(candidate) || keeps && candidate.answers())
            .filter_map(|candidate| {
                let weight =
                    if chosen(candidate) { self.wishes.weight(candidate.endpoint) } else { model::Weight(0) };
                let addr = Unicast::new(candidate.endpoint.addr).ok()?;
                Some(Backend { weight, tunnel, ..Backend::new(addr, Some(candidate.port), mode) })
            })
            .collect();
        if !self.is_hashed() && !list.is_empty() {
            let start = usize::try_from(self.turn() % list.len() as u64).unwrap_or(0);
            list.rotate_left(start);
        }
        list.into()
    }

    /// Whether other gateways have to choose alike.
    fn is_hashed(&self) -> bool {
        let by_hash = matches!(self.wishes.scheduling.kind, Kind::Mh | Kind::Sh | Kind::Dh);
        by_hash || self.wishes.options.stateless_fallback
    }

    /// Where the list of endpoints begins on this Node: the first flows of many Nodes shall not meet on one of them.
    fn turn(&self) -> u64 {
        let mut hash = DefaultHasher::new();
        (&self.here.settings.node, &self.service.key, &self.port.name).hash(&mut hash);
        hash.finish()
    }

    fn cluster(&self, variant: Variant<'_>, lists: &Lists) -> model::Service {
        let settings = self.here.settings;
        let masquerade = match () {
            () if settings.masquerade_all => Masquerade::Always,
            () if self.here.detects_local() => Masquerade::NotLocal,
            () => Masquerade::Hairpin,
        };
        let local = self.service.internal_local;
        let list = if local { &lists.near } else { &lists.cluster };
        self.service(variant, list, masquerade, lists, local)
    }

    fn external(&self, variant: Variant<'_>, lists: &Lists, into: &mut Vec<model::Service>) {
        if !self.service.external_policy_local() {
            into.push(self.service(variant, &lists.cluster, Masquerade::Always, lists, false));
            return;
        }
        let suffix = format!("{}-inside", variant.suffix);
        let inside = Variant {
            suffix: &suffix,
            addresses: variant.addresses.clone(),
            sources: variant.sources.clone(),
            ..variant
        };
        let mut inside = self.service(inside, &lists.cluster, Masquerade::NotLocal, lists, false);
        if let Reach::Vips(vips) = &mut inside.reach {
            vips.clients = Clients::Inside;
        }
        into.push(self.service(variant, &lists.near, Masquerade::Hairpin, lists, true));
        into.push(inside);
    }

    fn service(
        &self,
        variant: Variant<'_>,
        backends: &Arc<[Backend]>,
        masquerade: Masquerade,
        lists: &Lists,
        local: bool,
    ) -> model::Service {
        let settings = self.here.settings;
        let group = group_name(&self.service.key, self.service, self.port, self.family);
        let Variant { suffix, addresses, node_port, announce, sources } = variant;
        let reach = Reach::Vips(Vips {
            family: self.family,
            addresses,
            port: Some(self.port.port),
            protocol: self.port.protocol,
            clients: Clients::All,
        });
        let mut scheduling = self.wishes.scheduling;
        // One of weight 0 would else keep its share of the hash, and have clients refused.
        if matches!(scheduling.kind, Kind::Mh | Kind::Sh) && self.port.protocol == Protocol::Udp {
            scheduling.flags.fallback = true;
        }
        let mut options = Options { move_udp: self.port.protocol == Protocol::Udp, ..self.wishes.options };
        options.proxy_protocol &= self.port.protocol != Protocol::Sctp && lists.mode.has_replies();
        let has_pool = self.here.has_pool(self.family);
        let elsewhere = local && lists.any;
        model::Service {
            group: Some(Arc::clone(&group)),
            node_port: self.port.node_port.filter(|_| node_port),
            persistence: self
                .service
                .affinity_s
                .and_then(NonZeroU32::new)
                .map(|timeout_s| Persistence { timeout_s, netmask: None }),
            access: Access {
                sources,
                masquerade: if has_pool { masquerade } else { Masquerade::Hairpin },
                when_empty: if elsewhere { WhenEmpty::Drop } else { settings.when_empty },
            },
            options,
            pool: settings.snat_pool.clone().filter(|_| has_pool),
            announce: announce && settings.announce,
            backends: Arc::clone(backends),
            origin: Origin::Kubernetes,
            ..model::Service::new(format!("{group}/{suffix}").into(), reach, scheduling)
        }
    }
}

impl<'a> Variant<'a> {
    fn new(suffix: &'a str, addresses: Vec<Unicast>) -> Self {
        Self { suffix, addresses, node_port: false, announce: true, sources: None }
    }
}

/// What the services of a port are called in common: `namespace/name:port`, as kube-proxy has it; IPv6 has groups of its
/// own, and so has a protocol whose port has a name that another one has, too.
pub fn group_name(key: &Key, service: &Service, port: &ServicePort, family: Family) -> Arc<str> {
    let mut name = key.to_string();
    if !port.name.is_empty() {
        name = format!("{name}:{}", port.name);
    }
    let first = service.ports.iter().find(|other| other.name == port.name);
    if first.is_some_and(|first| first.protocol != port.protocol) {
        name = format!("{name}/{}", port.protocol.name());
    }
    if family == Family::V6 {
        name.push_str("/v6");
    }
    name.into()
}
