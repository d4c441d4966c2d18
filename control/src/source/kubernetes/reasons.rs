//! Why Kubernetes has a packet go where it goes, in words: for commands that explain.

use std::net::{IpAddr, SocketAddr};

use super::endpoints::{Candidate, Choice, choose, left_out};
use super::exposure::{Exposure, Here, Vip, exposures, unserved};
use super::object::{EndpointSlice, Faults, Service, ServicePort};
use super::store::Store;
use super::topology::Topology;
use crate::model::{Family, Port, Protocol, Unicast, port_number, vip_key};

/// Endpoints that are told one by one.
const TOLD_MAX: usize = 20;

/// What Kubernetes's objects say of packets between these addresses.
pub fn reasons(store: &Store, from: IpAddr, to: SocketAddr, protocol: Protocol) -> Vec<String> {
    let Some(port) = Port::new(to.port()) else { return Vec::new() };
    let vip = vip_key(Unicast::unchecked(to.ip()), Some(port), protocol);
    let mut words = Vec::new();
    match store.service_at(&vip) {
        Some((service, slices)) => {
            let mut ignored = Faults::default();
            let all = exposures(service, &store.here(), &mut ignored);
            match all.iter().find(|exposure| exposure.keys().any(|key| key == vip)) {
                Some(exposure) => {
                    Teller { here: store.here(), service, slices, words: &mut words }
                        .tell(exposure, from, to);
                }
                None => words.push(format!("Service {} has the address", service.key)),
            }
        }
        None => others(store, to, protocol, &mut words),
    }
    words
}

/// Tells what a Service does with a packet that reaches it.
struct Teller<'a> {
    here: Here<'a>,
    service: &'a Service,
    slices: &'a [EndpointSlice],
    words: &'a mut Vec<String>,
}

impl Teller<'_> {
    fn tell(&mut self, exposure: &Exposure<'_>, from: IpAddr, to: SocketAddr) {
        let Exposure { port, family, vip, .. } = exposure;
        let name = if port.name.is_empty() { String::new() } else { format!(", port {}", port.name) };
        let (key, protocol) = (&self.service.key, port.protocol.name());
        self.words.push(format!("{to}/{protocol} is {} of Service {key}{name}", vip.described()));
        let client = self.client(from);
        self.words.push(format!("{from} is {}", client.name()));
        let near = self.policy(*vip, client);
        if *vip == Vip::Balancer {
            self.ranges(from, *family);
        }
        let choice = choose(self.slices, *family, port, &self.here.place());
        self.endpoints(&choice, near);
        if let Some(seconds) = self.service.affinity_s {
            self.words.push(format!("sessionAffinity: a client stays with its endpoint for {seconds} s"));
        }
    }

    fn client(&self, from: IpAddr) -> Client {
        if self.here.own.contains(&from) {
            Client::Node
        } else if self.here.local().iter().any(|network| network.contains(&from)) {
            Client::Local
        } else if self.here.detects_local() {
            Client::Outside
        } else {
            Client::Unknown
        }
    }

    /// Tells the policy; whether only endpoints on the own Node are used.
    fn policy(&mut self, vip: Vip, client: Client) -> bool {
        let service = self.service;
        let policy = |local| if local { "Local" } else { "Cluster" };
        if vip == Vip::Cluster {
            let local = service.internal_local;
            self.words.push(format!("internalTrafficPolicy is {}", policy(local)));
            self.words.push(match client {
                _ if self.here.settings.masquerade_all => {
                    "masqueradeAll: the client's address is hidden".into()
                }
                Client::Outside | Client::Node => {
                    "it is no pod's address: it is hidden from endpoints, so that replies come back".into()
                }
                Client::Local | Client::Unknown => "endpoints see the client's address".into(),
            });
            return local;
        }
        let local = service.external_policy_local();
        let inside = matches!(client, Client::Local | Client::Node);
        self.words.push(match (local, inside) {
            (true, true) => "externalTrafficPolicy is Local, but for traffic from inside the cluster all endpoints are used".into(),
            _ => format!("externalTrafficPolicy is {}", policy(local)),
        });
        self.words.push(match (local, client) {
            (false, _) | (true, Client::Node) => "the client's address is hidden from endpoints".into(),
            (true, _) => "endpoints see the client's address".into(),
        });
        local && !inside
    }

    fn ranges(&mut self, from: IpAddr, family: Family) {
        let ranges: Vec<_> = self.here.source_ranges(self.service, family).collect();
        if self.service.bad_source_ranges > 0 {
            let bad = self.service.bad_source_ranges;
            self.words.push(format!("{bad} of loadBalancerSourceRanges cannot be read and do not count"));
        }
        if !ranges.is_empty() {
            let admitted = ranges.iter().any(|range| range.contains(&from));
            let verb = if admitted { "is in" } else { "is in none of" };
            self.words.push(format!("{from} {verb} loadBalancerSourceRanges"));
        }
    }

    fn endpoints(&mut self, choice: &Choice<'_>, near: bool) {
        let used = |candidate: &&Candidate<'_>| {
            if near { candidate.near } else { candidate.cluster }
        };
        let count = choice.candidates.iter().filter(used).count();
        let all = choice.candidates.len();
        self.words.push(format!("{count} of {all} endpoints are used"));
        if !near && choice.topology != Topology::None {
            let what = if choice.topology == Topology::Node { "node" } else { "zone" };
            self.words.push(format!("every ready endpoint has a hint, and some are for this {what}"));
        }
        if count > 0
            && choice.candidates.iter().filter(used).all(|candidate| !candidate.endpoint.conditions.ready)
        {
            self.words.push("none is ready: those are used that are terminating and still serving".into());
        }
        if count == 0 {
            self.words.push(match choice.any {
                true => "there are endpoints, but none on this node: packets are dropped".into(),
                false => "there are no endpoints that could be used".into(),
            });
        }
        let reasons = choice.candidates.iter().filter_map(|candidate| {
            let reason = left_out(candidate, choice, near)?;
            let addr = SocketAddr::new(candidate.endpoint.addr, port_number(Some(candidate.port)));
            Some(format!("{addr} is left out: it {reason}"))
        });
        let reasons: Vec<_> = reasons.collect();
        let more = reasons.len().saturating_sub(TOLD_MAX);
        self.words.extend(reasons.into_iter().take(TOLD_MAX));
        if more > 0 {
            self.words.push(format!("{more} more are left out"));
        }
    }
}

/// Who the client is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Client {
    Node,
    Local,
    Outside,
    Unknown,
}

impl Client {
    fn name(self) -> &'static str {
        match self {
            Self::Node => "this node itself",
            Self::Local => "a pod, by the local networks",
            Self::Outside => "no pod, by the local networks",
            Self::Unknown => "a client of which nothing is known: there are no local networks (clusterCIDR)",
        }
    }
}

/// Tells what Services have to do with an address that none of them is served by.
fn others(store: &Store, to: SocketAddr, protocol: Protocol, words: &mut Vec<String>) {
    let mut services: Vec<_> = store.services().map(|(service, _)| service).collect();
    services.sort_unstable_by_key(|service| &service.key);
    for service in services {
        for (vip, ip) in addresses(service) {
            if ip == to.ip() {
                words.push(unused(store, service, vip, to, protocol));
            }
        }
        let node_port =
            |port: &&ServicePort| port.protocol == protocol && port_number(port.node_port) == to.port();
        if let Some(port) = service.ports.iter().find(node_port) {
            words.push(node_port_unused(store, service, port, to));
        }
    }
    if words.is_empty() {
        words.push("no Service has the address".into());
    }
}

fn addresses(service: &Service) -> impl Iterator<Item = (Vip, IpAddr)> {
    let cluster = service.cluster_ips.iter().map(|ip| (Vip::Cluster, *ip));
    let external = service.external_ips.iter().map(|ip| (Vip::External, *ip));
    let balancer = service.ingress.iter().map(|ingress| (Vip::Balancer, ingress.ip));
    cluster.chain(external).chain(balancer)
}

/// Why a Service is not served by an address that it has.
fn unused(store: &Store, service: &Service, vip: Vip, to: SocketAddr, protocol: Protocol) -> String {
    let here = store.here();
    let ip = to.ip();
    let what = format!("{ip} is {} of Service {}", vip.described(), service.key);
    if let Some(why) = unserved(service, here.settings) {
        return format!("{what}, which is not served: {}", why.name());
    }
    let proxied = || service.ingress.iter().any(|ingress| ingress.ip == ip && ingress.proxy);
    if service.cluster_ip(Family::of(ip)).is_none() {
        return format!("{what}, which has no ClusterIP of that family");
    }
    if here.excludes(ip) {
        return format!("{what}, but it is in excludeCIDRs");
    }
    match vip {
        Vip::External if !here.allows(ip) => format!(
            "{what}, but external IPs count only where they are allowed: by kubernetes.external_ips in the \
             configuration, or by the feature gate AllowServiceExternalIPs set to true in kube-proxy's"
        ),
        Vip::Balancer if !here.serves_class(service) => format!(
            "{what}, but its loadBalancerClass `{}` is not one of those that are served",
            service.class.as_deref().unwrap_or_default()
        ),
        Vip::Balancer if here.settings.gates.load_balancer_ip_mode && proxied() => {
            format!("{what}, but its ipMode is Proxy: packets are to reach the load balancer")
        }
        _ => format!("{what}, which has no port {}/{}", to.port(), protocol.name()),
    }
}

fn node_port_unused(store: &Store, service: &Service, port: &ServicePort, to: SocketAddr) -> String {
    let here = store.here();
    let (number, protocol) = (to.port(), port.protocol.name());
    let what = format!("{number}/{protocol} is a node port of Service {}", service.key);
    if let Some(why) = unserved(service, here.settings) {
        return format!("{what}, which is not served: {}", why.name());
    }
    let own = here.node_ports.iter().any(|own| own.ip() == to.ip());
    match own {
        true => format!("{what}, which is not served in that family"),
        false => format!("{what}, but {} is none of the addresses for node ports", to.ip()),
    }
}
