//! By which addresses a Service is reached, and why it is not.

use std::net::IpAddr;

use dataplane::flow::key::VipKey;
use ipnet::IpNet;

use super::object::{FaultKind, Faults, Service, ServiceKind, ServicePort};
use super::settings::{DetectLocal, ExternalIps, LoadBalancerClass, Settings};
use super::topology::Place;
use crate::model::{Family, Port, Unicast, vip_key};

/// The surroundings that a Service is converted in.
#[derive(Clone, Copy, Debug)]
pub struct Here<'a> {
    /// How objects are to be understood.
    pub settings: &'a Settings,
    /// The own Node's zone.
    pub zone: Option<&'a str>,
    /// The addresses that node ports are reached by.
    pub node_ports: &'a [Unicast],
    /// The node's own addresses.
    pub own: &'a [IpAddr],
    /// `spec.podCIDRs` of the own Node.
    pub pod_cidrs: &'a [IpNet],
    /// The families that the SNAT pool has addresses of: IPv4, IPv6.
    pub pool: [bool; 2],
}

/// What kind of address it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vip {
    /// `spec.clusterIPs`.
    Cluster,
    /// `status.loadBalancer.ingress`.
    Balancer,
    /// `spec.externalIPs`.
    External,
    /// The node's own, by the node port.
    NodePort,
}

impl Vip {
    /// The field that it is from.
    pub fn field(self) -> &'static str {
        match self {
            Self::Cluster => "spec.clusterIPs",
            Self::Balancer => "status.loadBalancer.ingress",
            Self::External => "spec.externalIPs",
            Self::NodePort => "spec.ports.nodePort",
        }
    }

    /// Its name in explanations, with the article.
    pub fn described(self) -> &'static str {
        match self {
            Self::Cluster => "a ClusterIP",
            Self::Balancer => "a load balancer's address",
            Self::External => "an external IP",
            Self::NodePort => "a node port",
        }
    }
}

/// Addresses of one kind by which a port of a Service is reached.
#[derive(Clone, Debug)]
pub struct Exposure<'a> {
    /// The Service's port.
    pub port: &'a ServicePort,
    /// The family of the addresses.
    pub family: Family,
    /// What they are.
    pub vip: Vip,
    /// The port there.
    pub number: Port,
    /// They.
    pub addresses: Vec<Unicast>,
}

impl Exposure<'_> {
    /// What packets reach it by.
    pub fn keys(&self) -> impl Iterator<Item = VipKey> {
        self.addresses.iter().map(|addr| vip_key(*addr, Some(self.number), self.port.protocol))
    }
}

impl<'a> Here<'a> {
    /// Where this is, as topology hints have it.
    pub fn place(&self) -> Place<'a> {
        Place { node: &self.settings.node, zone: self.zone, gates: self.settings.gates }
    }

    /// The networks of local clients, as far as they are known.
    pub fn local(&self) -> &'a [IpNet] {
        match &self.settings.local {
            DetectLocal::Unknown => &[],
            DetectLocal::ClusterCidr(networks) => networks,
            DetectLocal::NodeCidr => self.pod_cidrs,
        }
    }

    /// Whether local clients can be told from others.
    pub fn detects_local(&self) -> bool {
        !self.local().is_empty()
    }

    /// Whether the SNAT pool has addresses of the family.
    pub fn has_pool(&self, family: Family) -> bool {
        let [v4, v6] = self.pool;
        self.settings.snat_pool.is_some() && if family == Family::V4 { v4 } else { v6 }
    }

    /// Whether load balancer's addresses of the Service are served.
    pub fn serves_class(&self, service: &Service) -> bool {
        match &self.settings.load_balancer_class {
            LoadBalancerClass::Any => true,
            LoadBalancerClass::Of(classes) => classes.contains(service.class.as_deref().unwrap_or_default()),
        }
    }

    /// The networks that a Service's load balancer lets in; none where it lets in all. Where the node may use it, it
    /// may, too, from the load balancer's address, which is what it has as a source if that is its own.
    pub fn source_ranges(&self, service: &'a Service, family: Family) -> impl Iterator<Item = IpNet> {
        let ranges = service.source_ranges.iter().filter(move |net| Family::of(net.addr()) == family);
        let admits_node = self.own.iter().any(|own| ranges.clone().any(|range| range.contains(own)));
        let vips =
            service.ingress.iter().filter(move |ingress| admits_node && Family::of(ingress.ip) == family);
        ranges.copied().chain(vips.map(|ingress| ingress.ip.into()))
    }

    /// Whether a port of a Service is reached by others than ClusterIPs.
    pub fn is_external(&self, service: &Service, port: &ServicePort, family: Family) -> bool {
        port.node_port.is_some()
            || self.balancer(service, family).next().is_some()
            || self.external(service, family).next().is_some()
    }

    /// The addresses of the load balancer that are served here.
    fn balancer(&self, service: &Service, family: Family) -> impl Iterator<Item = IpAddr> {
        let (mode, served) = (self.settings.gates.load_balancer_ip_mode, self.serves_class(service));
        let here = service.ingress.iter().filter(move |ingress| served && !(mode && ingress.proxy));
        here.map(|ingress| ingress.ip).filter(move |ip| Family::of(*ip) == family)
    }

    /// The external IPs that count.
    fn external(&self, service: &Service, family: Family) -> impl Iterator<Item = IpAddr> {
        let of_family = service.external_ips.iter().copied().filter(move |ip| Family::of(*ip) == family);
        of_family.filter(|ip| self.allows(*ip))
    }

    /// Whether an external IP counts.
    pub fn allows(&self, ip: IpAddr) -> bool {
        let allowed = match &self.settings.external_ips {
            ExternalIps::Deny => false,
            ExternalIps::Allow(networks) => networks.iter().any(|network| network.contains(&ip)),
        };
        allowed && self.settings.gates.external_ips
    }

    /// Whether an address is Weir's to serve.
    pub fn excludes(&self, ip: IpAddr) -> bool {
        self.settings.exclude.iter().any(|network| network.contains(&ip))
    }
}

impl Service {
    /// Whether only local endpoints serve what comes by other addresses than ClusterIPs.
    pub fn external_policy_local(&self) -> bool {
        let external = match self.kind {
            ServiceKind::NodePort | ServiceKind::LoadBalancer => true,
            ServiceKind::ClusterIp => !self.external_ips.is_empty(),
            ServiceKind::ExternalName => false,
        };
        self.external_local && external
    }

    /// Its ClusterIP of a family.
    pub fn cluster_ip(&self, family: Family) -> Option<IpAddr> {
        self.cluster_ips.iter().copied().find(|ip| Family::of(*ip) == family)
    }
}

/// Why a Service is not served at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unserved {
    /// It has no ClusterIP.
    Headless,
    /// It has the label `service.kubernetes.io/headless`.
    HeadlessLabel,
    /// It stands for a name.
    ExternalName,
    /// It is another proxy's.
    ProxyName,
    /// The settings leave it to others.
    Skipped,
}

impl Unserved {
    /// The reason in words.
    pub fn name(self) -> &'static str {
        match self {
            Self::Headless => "it is headless: it has no ClusterIP",
            Self::HeadlessLabel => "it has the label service.kubernetes.io/headless",
            Self::ExternalName => "its type is ExternalName",
            Self::ProxyName => "its label service.kubernetes.io/service-proxy-name makes it another proxy's",
            Self::Skipped => "the settings skip it",
        }
    }

    /// Whether its addresses are other's to serve.
    pub fn is_foreign(self) -> bool {
        matches!(self, Self::ProxyName | Self::Skipped | Self::HeadlessLabel)
    }
}

/// Why the Service is not served; `None` where it is.
pub fn unserved(service: &Service, settings: &Settings) -> Option<Unserved> {
    if service.proxy_name != settings.service_proxy_name {
        return Some(Unserved::ProxyName);
    }
    if service.headless_label {
        return Some(Unserved::HeadlessLabel);
    }
    if service.kind == ServiceKind::ExternalName {
        return Some(Unserved::ExternalName);
    }
    if service.cluster_ips.is_empty() {
        return Some(Unserved::Headless);
    }
    let skipped = !settings.skip.is_empty() && settings.skip.contains(&*service.key.to_string());
    skipped.then_some(Unserved::Skipped)
}

/// Every address that the Service would have, port by port, one family after the other. A family in which it has no
/// ClusterIP is left out. Not all are its own: others may have had them before.
pub fn exposures<'a>(service: &'a Service, here: &Here<'_>, faults: &mut Faults) -> Vec<Exposure<'a>> {
    let mut list = Vec::new();
    if unserved(service, here.settings).is_some() {
        return list;
    }
    for family in [Family::V4, Family::V6] {
        let Some(cluster) = service.cluster_ip(family) else { continue };
        for port in &service.ports {
            let mut add = |vip: Vip, number: Port, ips: &mut dyn Iterator<Item = IpAddr>| {
                let mut addresses: Vec<Unicast> = Vec::new();
                for ip in ips.filter(|ip| !here.excludes(*ip)) {
                    match Unicast::new(ip) {
                        Ok(addr) if !addresses.contains(&addr) => addresses.push(addr),
                        Ok(_) => {}
                        Err(error) => faults.push(FaultKind::Field, vip.field(), error),
                    }
                }
                if !addresses.is_empty() {
                    list.push(Exposure { port, family, vip, number, addresses });
                }
            };
            add(Vip::Cluster, port.port, &mut std::iter::once(cluster));
            add(Vip::Balancer, port.port, &mut here.balancer(service, family));
            add(Vip::External, port.port, &mut here.external(service, family));
            let own = here.node_ports.iter().map(|own| own.ip()).filter(|ip| Family::of(*ip) == family);
            if let Some(number) = port.node_port {
                add(Vip::NodePort, number, &mut own.into_iter());
            }
        }
    }
    list
}
