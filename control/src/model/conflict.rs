//! What does not go together in a [`Draft`].

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use dataplane::flow::key::VipKey;
use dataplane::schedule::Kind;
use dataplane::snapshot::Mode;
use thiserror::Error;

use super::{Draft, Family, Service, SnatPool, Unicast};

/// A part of a draft, by positions in its lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// A service.
    Service(usize),
    /// A service's name.
    ServiceName(usize),
    /// The VIP (second) of a service (first).
    Vip(usize, usize),
    /// A service's node port.
    NodePort(usize),
    /// A service's scheduler flags.
    Flags(usize),
    /// A service's reference to a SNAT pool.
    PoolOf(usize),
    /// The backend (second) of a service (first).
    Backend(usize, usize),
    /// The address of the backend (second) of a service (first).
    BackendAddress(usize, usize),
    /// The port of the backend (second) of a service (first).
    BackendPort(usize, usize),
    /// A SNAT pool's name.
    PoolName(usize),
    /// A SNAT pool's ports.
    PoolPorts(usize),
    /// The range (second) of a SNAT pool (first).
    PoolRange(usize, usize),
    /// One of the node's addresses.
    NodeAddress(usize),
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
    #[error("the service has {} VIPs, but node_addresses has no {} address", .0.name(), .0.name())]
    NoNodeAddress(Family),
    #[error("a node port needs nat or fullnat: dr leaves the port as it is, and backend {0} is dr")]
    NodePortWithDr(SocketAddr),
    #[error("only scheduler sh has these flags, and this is {0}")]
    FlagsWithout(&'static str),
    #[error("there is no SNAT pool {0}")]
    UnknownPool(Arc<str>),
    #[error("fullnat needs a SNAT pool: set snat_pool")]
    NoPool,
    #[error("SNAT pool {pool} has no {} address, which fullnat needs here", family.name())]
    PoolFamily { pool: Arc<str>, family: Family },
    #[error("{addr} is {}, the service's VIP is {}", Family::of(*addr).name(), family.name())]
    BackendFamily { addr: IpAddr, family: Family },
    #[error("backend {0} is already in this service")]
    BackendTwice(SocketAddr),
    #[error("dr leaves the port as it is: {port} has to be the service's port {service}")]
    DrPort { port: u16, service: u16 },
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
}

/// Every conflict of the draft, in the order of its lists.
pub(super) fn find(draft: &Draft) -> Vec<Conflict> {
    let mut finder = Finder { draft, found: Vec::new() };
    finder.node_addresses();
    finder.pools();
    finder.services();
    finder.found
}

struct Finder<'a> {
    draft: &'a Draft,
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
        for (index, addr) in self.draft.node_addresses.iter().enumerate() {
            let at = Place::NodeAddress(index);
            if let Some(earlier) = seen.insert(*addr, at) {
                self.refuse_second(at, earlier, Reason::NodeAddressTwice(addr.ip()));
            }
        }
    }

    fn pools(&mut self) {
        let mut names = Map::default();
        let mut holders: Map<IpAddr, (Place, &SnatPool)> = Map::default();
        let draft = self.draft;
        let vips: Map<IpAddr, Place> = draft.services.iter().enumerate().flat_map(vip_places).collect();
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

    fn services(&mut self) {
        let draft = self.draft;
        let pools: Map<&str, &SnatPool> = draft.pools.iter().map(|pool| (&*pool.name, pool)).collect();
        let mut names = Map::default();
        let mut taken = Map::default();
        for (index, service) in draft.services.iter().enumerate() {
            let at = Place::ServiceName(index);
            match names.entry(&*service.name) {
                Entry::Occupied(first) => {
                    self.refuse_second(at, *first.get(), Reason::NameTaken(Arc::clone(&service.name)));
                }
                Entry::Vacant(free) => {
                    free.insert(at);
                }
            }
            let Some(family) = service.family() else {
                self.refuse(Place::Service(index), Reason::NoVip);
                continue;
            };
            self.vips(index, service, family, &mut taken);
            self.scheduling(index, service);
            self.backends(index, service, family);
            self.pool_of(index, service, family, &pools);
        }
    }

    /// Every address, port and protocol belongs to one service, on VIPs and on the node's addresses alike.
    fn vips(
        &mut self,
        index: usize,
        service: &'a Service,
        family: Family,
        taken: &mut Map<VipKey, (Place, &'a str)>,
    ) {
        let on_vips = (0..).zip(&service.vips).map(|(at, vip)| (Place::Vip(index, at), *vip, service.port));
        let mut on_node = self.draft.node_addresses.iter().filter(|addr| addr.family() == family).peekable();
        let node_port = service.node_port;
        if node_port.is_some() && on_node.peek().is_none() {
            self.refuse(Place::NodePort(index), Reason::NoNodeAddress(family));
        }
        let on_node = on_node.flat_map(|addr| node_port.map(|port| (Place::NodePort(index), *addr, port)));
        for (at, addr, port) in on_vips.chain(on_node) {
            if addr.family() != family {
                self.refuse(at, Reason::VipFamily { vip: addr.ip(), family });
            }
            match taken.entry(service.key(addr, port)) {
                Entry::Occupied(first) => {
                    let vip = SocketAddr::new(addr.ip(), port.number());
                    let (earlier, other) = *first.get();
                    let reason =
                        Reason::VipTaken { vip, protocol: service.protocol.name(), other: other.into() };
                    self.refuse_second(at, earlier, reason);
                }
                Entry::Vacant(free) => {
                    free.insert((at, &service.name));
                }
            }
        }
    }

    fn scheduling(&mut self, index: usize, service: &Service) {
        let scheduling = service.scheduling;
        if scheduling.flags != Default::default() && scheduling.kind != Kind::Sh {
            self.refuse(Place::Flags(index), Reason::FlagsWithout(scheduling.kind.name()));
        }
    }

    fn backends(&mut self, index: usize, service: &Service, family: Family) {
        let mut seen: Map<SocketAddr, Place> = Map::default();
        for (number, backend) in service.backends.iter().enumerate() {
            let at = Place::Backend(index, number);
            let (addr, port) = (backend.addr.ip(), backend.port.number());
            if Family::of(addr) != family {
                let reason = Reason::BackendFamily { addr, family };
                self.refuse(Place::BackendAddress(index, number), reason);
            }
            let socket = SocketAddr::new(addr, port);
            if let Some(earlier) = seen.insert(socket, at) {
                self.refuse_second(at, earlier, Reason::BackendTwice(socket));
            }
            if backend.mode == Mode::Dr && backend.port != service.port {
                let reason = Reason::DrPort { port, service: service.port.number() };
                self.refuse(Place::BackendPort(index, number), reason);
            }
        }
        let dr = service.backends.iter().find(|backend| backend.mode == Mode::Dr);
        if let (Some(_), Some(dr)) = (service.node_port, dr) {
            let socket = SocketAddr::new(dr.addr.ip(), dr.port.number());
            self.refuse(Place::NodePort(index), Reason::NodePortWithDr(socket));
        }
    }

    fn pool_of(&mut self, index: usize, service: &Service, family: Family, pools: &Map<&str, &SnatPool>) {
        let translates = service.backends.iter().position(|backend| backend.mode == Mode::FullNat);
        let at = Place::PoolOf(index);
        match (&service.pool, translates) {
            (None, None) => {}
            (None, Some(first)) => self.refuse(Place::Backend(index, first), Reason::NoPool),
            (Some(name), translates) => match pools.get(&**name) {
                None => self.refuse(at, Reason::UnknownPool(Arc::clone(name))),
                Some(pool) if translates.is_some() && !pool.serves(family) => {
                    self.refuse(at, Reason::PoolFamily { pool: Arc::clone(name), family });
                }
                Some(_) => {}
            },
        }
    }
}

fn vip_places((index, service): (usize, &Service)) -> impl Iterator<Item = (IpAddr, Place)> {
    let places = (0..).map(move |at| Place::Vip(index, at));
    service.vips.iter().map(|vip: &Unicast| vip.ip()).zip(places)
}
