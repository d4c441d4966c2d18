//! What does not go together in a [`Draft`].

mod others;
mod service;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::sync::Arc;

use dataplane::snapshot::marks::MARK_RULES_MAX;
use thiserror::Error;

use super::{DesiredState, Draft, Family, Order, Service, SnatPool, Unicast};

/// A part of a draft, by positions in its lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// A service.
    Service(usize),
    /// A service's name.
    ServiceName(usize),
    /// The VIP (second) of a service (first).
    Vip(usize, usize),
    /// A service's port.
    Port(usize),
    /// A service's mark.
    Mark(usize),
    /// A service's node port.
    NodePort(usize),
    /// A service's persistence.
    Persistence(usize),
    /// Whether a service is scheduled datagram by datagram.
    OnePacket(usize),
    /// One of a service's options, by its name in the configuration.
    Option(usize, &'static str),
    /// A service's reference to a SNAT pool.
    PoolOf(usize),
    /// The backend (second) of a service (first).
    Backend(usize, usize),
    /// The address of the backend (second) of a service (first).
    BackendAddress(usize, usize),
    /// The port of the backend (second) of a service (first).
    BackendPort(usize, usize),
    /// What a tunnel to the backend (second) of a service (first) is like.
    Tunnel(usize, usize),
    /// The lower threshold of the backend (second) of a service (first).
    LowerThreshold(usize, usize),
    /// A SNAT pool's name.
    PoolName(usize),
    /// A SNAT pool's ports.
    PoolPorts(usize),
    /// The range (second) of a SNAT pool (first).
    PoolRange(usize, usize),
    /// One of the node's addresses.
    NodeAddress(usize),
    /// A rule that gives marks.
    Rule(usize),
}

/// Something that does not go with something else.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{reason}")]
pub struct Conflict {
    /// What is refused.
    pub at: Place,
    /// What stood there before, where it is the other half of the conflict.
    pub earlier: Option<Place>,
    /// Why.
    pub reason: Reason,
}

/// Why parts of a draft do not go together.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum Reason {
    #[error("the name {0} is already used")]
    NameTaken(Arc<str>),
    #[error("a service needs at least one VIP")]
    NoVip,
    #[error("{vip} is {}, the service's first VIP is {}", Family::of(*vip).name(), family.name())]
    VipFamily { vip: IpAddr, family: Family },
    #[error("{vip}/{protocol} is already used by service {other}")]
    VipTaken { vip: SocketAddr, protocol: &'static str, other: Arc<str> },
    #[error("mark {mark} is already used by {} service {other}", family.name())]
    MarkTaken { mark: NonZeroU32, family: Family, other: Arc<str> },
    #[error(
        "a service on every port needs persistence (one that does without is made by a mark, see match_rules)"
    )]
    EveryPort,
    #[error("the service has {} VIPs, but node_addresses has no {} address", .0.name(), .0.name())]
    NoNodeAddress(Family),
    #[error("a service that is reached by a mark has no node port")]
    NodePortOfMark,
    #[error(
        "a node port needs nat or fullnat: {mode} leaves the port as it is, and backend {backend} is {mode}"
    )]
    NodePortUntranslated { backend: SocketAddr, mode: &'static str },
    #[error("a service on every port has no node port")]
    NodePortOfEveryPort,
    #[error("the netmask is for {}, the service is {}", mask.name(), family.name())]
    NetmaskFamily { mask: Family, family: Family },
    #[error("only udp is scheduled packet by packet, and this is {0}")]
    OnePacket(&'static str),
    #[error("{option} is for tcp, and this is {protocol}")]
    OptionProtocol { option: &'static str, protocol: &'static str },
    #[error("{option} needs nat or fullnat, and backend {backend} is {mode}")]
    OptionMode { option: &'static str, backend: SocketAddr, mode: &'static str },
    #[error("there is no SNAT pool {0}")]
    UnknownPool(Arc<str>),
    #[error("fullnat needs a SNAT pool: set snat_pool")]
    NoPool,
    #[error("service {0} masquerades and has no SNAT pool: set snat_pool")]
    MasqueradePool(Arc<str>),
    #[error("SNAT pool {pool} has no {} address, which fullnat needs here", family.name())]
    PoolFamily { pool: Arc<str>, family: Family },
    #[error(
        "{addr} is {}, the service is {}: only fullnat and tunnels lead to the other family",
        Family::of(*addr).name(), family.name()
    )]
    BackendFamily { addr: IpAddr, family: Family },
    #[error("backend {0} is already in this service")]
    BackendTwice(SocketAddr),
    #[error("{mode} leaves the port as it is: {port} has to be the service's port {service}")]
    PortUntranslated { mode: &'static str, port: u16, service: u16 },
    #[error("{mode} leaves the port as it is, and the service is on every port: leave the port out")]
    PortOfEveryPort { mode: &'static str },
    #[error("lower_threshold {lower} is above upper_threshold {upper}")]
    Thresholds { upper: u32, lower: u32 },
    #[error("lower_threshold needs an upper_threshold")]
    LowerAlone,
    #[error("gue needs a destination port: set tunnel.port")]
    TunnelPort,
    #[error("only gue has a port, and this is {0}")]
    TunnelPortWithout(&'static str),
    #[error("{mode} has no {checksum} checksum")]
    TunnelChecksum { mode: &'static str, checksum: &'static str },
    #[error("first port {low} is above last port {high}")]
    PortsBackwards { low: u16, high: u16 },
    #[error("{addr} is already in SNAT pool {pool}")]
    SnatTaken { addr: IpAddr, pool: Arc<str> },
    #[error("SNAT address {0} is also a VIP")]
    SnatIsVip(IpAddr),
    #[error("SNAT address {0} is also one of the node's own")]
    SnatIsNode(IpAddr),
    #[error("{0} is already in this list")]
    NodeAddressTwice(IpAddr),
    #[error("sources and destinations have no address family in common")]
    RuleFamilies,
    #[error(
        "with this one there are {0} rules of single prefixes and port ranges, the most are {most}",
        most = MARK_RULES_MAX
    )]
    TooManyRules(usize),
}

/// Every conflict of the draft, in the order of its lists.
pub(super) fn find(draft: &Draft) -> Vec<Conflict> {
    let services = draft.services.iter().collect();
    let mut finder = Finder { services, around: draft, others: None, found: Vec::new() };
    finder.node_addresses();
    finder.pools();
    finder.services();
    finder.rules();
    finder.found
}

/// Every conflict that comes of putting the services `put` into `state`, out of which those at the places `leaving` go,
/// with `around` beside them.
pub(super) fn find_in(
    state: &DesiredState,
    leaving: &HashSet<Order, ahash::RandomState>,
    put: &[&Service],
    around: &Arc<Draft>,
) -> Vec<Conflict> {
    let others = Others { state, leaving };
    let mut finder = Finder { services: put.to_vec(), around, others: Some(others), found: Vec::new() };
    if !Arc::ptr_eq(around, state.around()) {
        finder.node_addresses();
        finder.pools();
        finder.rules();
        finder.others_around(state.around());
    }
    finder.services();
    finder.found
}

/// The services that stay while others change.
#[derive(Clone, Copy)]
struct Others<'a> {
    state: &'a DesiredState,
    leaving: &'a HashSet<Order, ahash::RandomState>,
}

struct Finder<'a> {
    services: Vec<&'a Service>,
    /// What there is besides services.
    around: &'a Draft,
    others: Option<Others<'a>>,
    found: Vec<Conflict>,
}

type Map<K, V> = HashMap<K, V, ahash::RandomState>;

impl<'a> Finder<'a> {
    fn refuse(&mut self, at: Place, reason: Reason) {
        self.found.push(Conflict { at, earlier: None, reason });
    }

    fn refuse_second(&mut self, at: Place, earlier: Place, reason: Reason) {
        self.found.push(Conflict { at, earlier: Some(earlier), reason });
    }

    fn node_addresses(&mut self) {
        let mut seen = Map::default();
        for (index, addr) in self.around.node_addresses.iter().enumerate() {
            let at = Place::NodeAddress(index);
            if let Some(earlier) = seen.insert(*addr, at) {
                self.refuse_second(at, earlier, Reason::NodeAddressTwice(addr.ip()));
            }
        }
    }

    fn pools(&mut self) {
        let mut names = Map::default();
        let mut holders: Map<IpAddr, (Place, &SnatPool)> = Map::default();
        let draft = self.around;
        let services = self.services.iter().copied().enumerate();
        let vips: Map<IpAddr, Place> = services.flat_map(vip_places).collect();
        let node: Map<IpAddr, Place> =
            draft.node_addresses.iter().map(|own| own.ip()).zip((0..).map(Place::NodeAddress)).collect();
        for (index, pool) in draft.pools.iter().enumerate() {
            let at = Place::PoolName(index);
            if let Some(earlier) = names.insert(&pool.name, at) {
                self.refuse_second(at, earlier, Reason::NameTaken(Arc::clone(&pool.name)));
            }
            let (low, high) = (pool.low.number(), pool.high.number());
            if low > high {
                self.refuse(Place::PoolPorts(index), Reason::PortsBackwards { low, high });
            }
            for (entry, range) in pool.ranges.iter().enumerate() {
                let at = Place::PoolRange(index, entry);
                // Of two ranges over one another the first common address says enough.
                let mut told = HashSet::<_, ahash::RandomState>::default();
                for addr in range.iter() {
                    if let Some((earlier, holder)) = holders.insert(addr, (at, pool))
                        && told.insert(earlier)
                    {
                        let reason = Reason::SnatTaken { addr, pool: Arc::clone(&holder.name) };
                        self.refuse_second(at, earlier, reason);
                    }
                    if let Some(earlier) = vips.get(&addr) {
                        self.refuse_second(at, *earlier, Reason::SnatIsVip(addr));
                    } else if let Some(earlier) = node.get(&addr) {
                        self.refuse_second(at, *earlier, Reason::SnatIsNode(addr));
                    }
                }
            }
        }
    }

    fn rules(&mut self) {
        let mut total = 0_usize;
        for (index, rule) in self.around.rules.iter().enumerate() {
            if !rule.has_family(Family::V4) && !rule.has_family(Family::V6) {
                self.refuse(Place::Rule(index), Reason::RuleFamilies);
            }
            let before = total;
            total = total.saturating_add(rule.count());
            if before <= MARK_RULES_MAX && total > MARK_RULES_MAX {
                self.refuse(Place::Rule(index), Reason::TooManyRules(total));
            }
        }
    }
}

fn vip_places((index, service): (usize, &Service)) -> impl Iterator<Item = (IpAddr, Place)> {
    let places = (0..).map(move |at| Place::Vip(index, at));
    service.vips().iter().map(|vip: &Unicast| vip.ip()).zip(places)
}
