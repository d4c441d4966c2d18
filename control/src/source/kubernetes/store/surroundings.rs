//! What all Services are converted in: the own Node, the host's addresses, ServiceCIDRs, the configuration.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use dataplane::flow::key::VipKey;
use ipnet::IpNet;

use crate::model::{Common, DesiredState, Family, Protocol, SnatPool, Unicast};
use crate::source::kubernetes::exposure::{Here, unserved};
use crate::source::kubernetes::object::{Node, Service, ServiceCidr};
use crate::source::kubernetes::settings::{NodePortAddresses, Settings};

/// Addresses inside ServiceCIDRs that are others' to serve, above which none are Weir's to refuse: every one of them
/// takes rules in the XDP program.
const FOREIGN_MAX: usize = 64;
/// ClusterIPs outside of ServiceCIDRs up to which what is for their other ports is refused: likewise.
const ALONE_MAX: usize = 64;

/// What the configuration has beside Kubernetes, and Kubernetes therefore not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Configured {
    vips: HashSet<VipKey, ahash::RandomState>,
    node_ports: HashSet<(Family, u16, Protocol), ahash::RandomState>,
    /// SNAT addresses.
    snat: HashSet<IpAddr, ahash::RandomState>,
    node_addresses: Vec<Unicast>,
    local: Vec<IpNet>,
    virtual_networks: Vec<IpNet>,
    /// The families that the SNAT pool of the settings has addresses of.
    pool: [bool; 2],
}

impl Configured {
    /// What the configuration has in `desired`.
    pub fn of(desired: &DesiredState, settings: &Settings) -> Self {
        let configured = desired.configured();
        let mut of = Self {
            node_addresses: configured.node_addresses.clone(),
            local: configured.local.clone(),
            virtual_networks: configured.virtual_networks.clone(),
            ..Self::default()
        };
        for service in desired.own_services() {
            of.vips.extend(service.keys());
            if let (Some(port), Some(protocol)) = (service.node_port, service.protocol()) {
                of.node_ports.insert((service.family(), port.number(), protocol));
            }
        }
        let ranges = desired.pools().iter().flat_map(|pool| &pool.ranges);
        of.snat = ranges.flat_map(|range| range.iter()).collect();
        let pool = desired.pools().iter().find(|pool| Some(&pool.name) == settings.snat_pool.as_ref());
        let serves = |pool: &SnatPool| [pool.serves(Family::V4), pool.serves(Family::V6)];
        of.pool = pool.map(serves).unwrap_or_default();
        of
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Surroundings {
    pub(super) settings: Settings,
    configured: Configured,
    node: Option<Node>,
    /// The host's own addresses.
    host: Vec<IpAddr>,
    cidrs: HashMap<Arc<str>, Vec<IpNet>>,
    /// ClusterIPs that are others' to serve, and how many Services have each.
    foreign: Addresses,
    /// ClusterIPs that are served, likewise.
    cluster: Addresses,
    node_ports: Vec<Unicast>,
    own: Vec<IpAddr>,
}

/// Addresses, and how many Services have each.
#[derive(Debug, Default)]
pub(super) struct Addresses(BTreeMap<IpAddr, usize>);

impl Addresses {
    fn add(&mut self, ip: IpAddr) {
        *self.0.entry(ip).or_insert(0) += 1;
    }

    fn remove(&mut self, ip: IpAddr) {
        let Some(count) = self.0.get_mut(&ip) else { return };
        *count -= 1;
        if *count == 0 {
            self.0.remove(&ip);
        }
    }
}

/// What a change of the surroundings asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    /// Nothing.
    None,
    /// Services that depend on where Weir is are to be looked at again.
    Hinted,
    /// All Services are, and what they share.
    All,
}

impl Surroundings {
    pub(super) fn new(settings: Settings, configured: Configured) -> Self {
        let mut new = Self {
            settings,
            configured,
            node: None,
            host: Vec::new(),
            cidrs: HashMap::new(),
            foreign: Addresses::default(),
            cluster: Addresses::default(),
            node_ports: Vec::new(),
            own: Vec::new(),
        };
        new.settle();
        new
    }

    pub(super) fn here(&self) -> Here<'_> {
        Here {
            settings: &self.settings,
            zone: self.node.as_ref().and_then(|node| node.zone.as_deref()),
            node_ports: &self.node_ports,
            own: &self.own,
            pod_cidrs: self.node.as_ref().map_or(&[], |node| &node.pod_cidrs),
            pool: self.configured.pool,
        }
    }

    /// Whether the configuration has the address and port.
    pub(super) fn is_configured(&self, vip: &VipKey) -> bool {
        let Configured { vips, node_ports, snat, .. } = &self.configured;
        if vips.contains(vip) {
            return true;
        }
        let (addr, family) = if vip.v6 {
            (IpAddr::from(vip.addr.to_be_bytes()), Family::V6)
        } else {
            let low = u32::try_from(vip.addr).unwrap_or_default();
            (IpAddr::from(low.to_be_bytes()), Family::V4)
        };
        let is_node_port = || {
            let protocol = Protocol::ALL.into_iter().find(|protocol| protocol.number() == vip.proto);
            protocol.is_some_and(|protocol| node_ports.contains(&(family, vip.port, protocol)))
        };
        snat.contains(&addr) || self.node_ports.iter().any(|own| own.ip() == addr) && is_node_port()
    }

    pub(super) fn set_configured(&mut self, configured: Configured) -> Effect {
        if configured == self.configured {
            return Effect::None;
        }
        self.configured = configured;
        self.settle();
        Effect::All
    }

    pub(super) fn set_node(&mut self, node: Option<Node>) -> Effect {
        let zone = |node: &Option<Node>| node.as_ref().and_then(|node| node.zone.clone());
        let pods = |node: &Option<Node>| node.as_ref().map(|node| node.pod_cidrs.clone()).unwrap_or_default();
        let hinted = zone(&node) != zone(&self.node);
        let all = pods(&node) != pods(&self.node);
        self.node = node;
        match self.settle() || all {
            true => Effect::All,
            false if hinted => Effect::Hinted,
            false => Effect::None,
        }
    }

    pub(super) fn node(&self) -> Option<&Node> {
        self.node.as_ref()
    }

    pub(super) fn set_host(&mut self, host: Vec<IpAddr>) -> Effect {
        self.host = host;
        if self.settle() { Effect::All } else { Effect::None }
    }

    pub(super) fn set_cidr(&mut self, cidr: ServiceCidr) {
        self.cidrs.insert(cidr.name, cidr.cidrs);
    }

    pub(super) fn remove_cidr(&mut self, name: &str) {
        self.cidrs.remove(name);
    }

    pub(super) fn cidr_names(&self) -> Vec<Arc<str>> {
        self.cidrs.keys().cloned().collect()
    }

    /// Notes the ClusterIPs of a Service.
    pub(super) fn add_cluster_ips(&mut self, service: &Service) {
        if let Some(list) = self.list_for(service) {
            service.cluster_ips.iter().for_each(|ip| list.add(*ip));
        }
    }

    /// Forgets those of a Service that is gone, or will be another.
    pub(super) fn remove_cluster_ips(&mut self, service: &Service) {
        if let Some(list) = self.list_for(service) {
            service.cluster_ips.iter().for_each(|ip| list.remove(*ip));
        }
    }

    fn list_for(&mut self, service: &Service) -> Option<&mut Addresses> {
        match unserved(service, &self.settings) {
            // What has no port that is served is no address of Weir's.
            None => (!service.ports.is_empty()).then_some(&mut self.cluster),
            Some(why) => why.is_foreign().then_some(&mut self.foreign),
        }
    }

    /// Works out which addresses are the node's. Returns whether they are others than before.
    fn settle(&mut self) -> bool {
        let mut own: Vec<IpAddr> = self.settings.node_addresses.clone();
        let node = self.node.as_ref();
        own.extend(node.into_iter().flat_map(|node| node.internal.iter().chain(&node.external)));
        own.extend(&self.host);
        own.sort_unstable();
        own.dedup();
        let mut node_ports = node_port_addresses(&self.settings, node, &self.host);
        let configured = self.configured.node_addresses.iter();
        node_ports.extend(configured.filter(|addr| !node_ports.contains(addr)).copied().collect::<Vec<_>>());
        let changed = own != self.own || node_ports != self.node_ports;
        (self.own, self.node_ports) = (own, node_ports);
        changed
    }

    /// What services share, the configuration's among it.
    pub(super) fn common(&self) -> Common {
        let Configured { local, virtual_networks, .. } = &self.configured;
        Common {
            node_addresses: self.node_ports.clone(),
            local: local.iter().chain(self.here().local()).copied().collect(),
            virtual_networks: virtual_networks.iter().copied().chain(self.virtual_networks()).collect(),
        }
    }

    /// What of the ServiceCIDRs nobody else serves, and ClusterIPs besides. Nothing of ServiceCIDRs where Weir only serves
    /// what has its label: it does not know then what the other proxy serves.
    fn virtual_networks(&self) -> Vec<IpNet> {
        let others = self.settings.service_proxy_name.is_some() || self.foreign.0.len() > FOREIGN_MAX;
        let mut networks = Vec::new();
        if !others && self.settings.drop_unallocated {
            let foreign = self.foreign.0.keys().map(|ip| IpNet::from(*ip));
            let holes: Vec<IpNet> = self.settings.exclude.iter().copied().chain(foreign).collect();
            let cidrs: Vec<IpNet> = self.cidrs.values().flatten().copied().collect();
            let cidrs = IpNet::aggregate(&cidrs);
            networks = cidrs.into_iter().flat_map(|network| without(network, &holes)).collect();
        }
        if self.cluster.0.len() <= ALONE_MAX {
            let alone = self.cluster.0.keys().filter(|ip| {
                !self.here().excludes(**ip) && !networks.iter().any(|network| network.contains(*ip))
            });
            let alone: Vec<_> = alone.map(|ip| IpNet::from(*ip)).collect();
            networks.extend(alone);
        }
        networks
    }
}

/// The network without the holes, in networks.
fn without(network: IpNet, holes: &[IpNet]) -> Vec<IpNet> {
    if holes.iter().any(|hole| hole.contains(&network)) {
        return Vec::new();
    }
    let within: Vec<IpNet> = holes.iter().filter(|hole| network.contains(*hole)).copied().collect();
    let halves = network.subnets(network.prefix_len() + 1);
    match halves {
        Ok(halves) if !within.is_empty() => halves.flat_map(|half| without(half, &within)).collect(),
        _ => vec![network],
    }
}

/// The addresses that node ports are reached by.
pub(super) fn node_port_addresses(settings: &Settings, node: Option<&Node>, host: &[IpAddr]) -> Vec<Unicast> {
    let known = || {
        let of_node = node.into_iter().flat_map(|node| node.internal.iter().chain(&node.external));
        host.iter().chain(&settings.node_addresses).chain(of_node).copied()
    };
    let mut addresses: Vec<IpAddr> = match &settings.node_port_addresses {
        NodePortAddresses::All => known().collect(),
        NodePortAddresses::Primary => primary(settings, node),
        NodePortAddresses::Networks { networks, primary: with_primary } => {
            let within = |ip: &IpAddr| networks.iter().any(|network| network.contains(ip));
            let primary = if *with_primary { primary(settings, node) } else { Vec::new() };
            known().filter(within).chain(primary).collect()
        }
    };
    addresses.sort_unstable();
    addresses.dedup();
    addresses.into_iter().filter_map(|ip| Unicast::new(ip).ok()).collect()
}

/// Of each family one: the first internal address of the Node, or else external one; of those that the settings say, if
/// they say any, the one that would be it without them, or else the first.
fn primary(settings: &Settings, node: Option<&Node>) -> Vec<IpAddr> {
    let of_node = || node.into_iter().flat_map(|node| node.internal.iter().chain(&node.external)).copied();
    let of_family = |family| {
        let said = settings.node_addresses.iter().copied().find(|ip| Family::of(*ip) == family);
        let mut of_node = of_node().filter(|ip| Family::of(*ip) == family);
        match said {
            None => of_node.next(),
            Some(first) => of_node.find(|ip| settings.node_addresses.contains(ip)).or(Some(first)),
        }
    };
    [Family::V4, Family::V6].into_iter().filter_map(of_family).collect()
}
