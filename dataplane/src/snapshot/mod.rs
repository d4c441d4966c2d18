//! Services, backends and next hops of one generation: immutable, compiled by control, read by workers.
//!
//! What outlives a generation (cursors, connection counts) lies in [`crate::state::State`].

pub mod net;
pub mod publish;

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use crate::flow::key::{self, VipKey};
use crate::ids::{BackendId, PoolId, ServiceId};
use crate::schedule::Scheduler;
pub use net::Net;

/// How a backend gets its packets (IPVS: the packet-forwarding method).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    /// Destination rewritten, client address kept; replies come back through Weir (IPVS: masquerading).
    Nat,
    /// Destination rewritten, source replaced by an address and port of the service's SNAT pool.
    FullNat,
    /// Only the MAC address rewritten; the backend owns the VIP and answers the client itself (IPVS: gatewaying).
    Dr,
}

impl Mode {
    /// The name as configuration and output have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nat => "nat",
            Self::FullNat => "fullnat",
            Self::Dr => "dr",
        }
    }
}

/// A backend of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    /// Its id, kept across generations.
    pub id: BackendId,
    /// Its address.
    pub addr: IpAddr,
    /// Its port, as packets towards it carry it.
    pub port: u16,
    /// Share of new flows; 0 drains.
    pub weight: u32,
    /// How it gets its packets.
    pub mode: Mode,
}

/// A virtual service.
#[derive(Clone, Debug)]
pub struct Service {
    /// Its id, kept across generations.
    pub id: ServiceId,
    /// Its name in configuration and output.
    pub name: Arc<str>,
    /// Every address, port and protocol that it is reached by; the first is the one that output shows.
    pub vips: Vec<VipKey>,
    /// How backends are chosen, with its prepared tables.
    pub scheduler: Scheduler,
    /// The backends, newest first: the order in which IPVS walks its list.
    pub backends: Box<[Backend]>,
    /// Where `fullnat` takes its source addresses from.
    pub pool: Option<PoolId>,
}

/// Source addresses and ports for `fullnat`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnatPool {
    /// Its name in the configuration.
    pub name: Arc<str>,
    /// IPv4 addresses, in host order.
    pub v4: Vec<u32>,
    /// IPv6 addresses, in host order.
    pub v6: Vec<u128>,
    /// First port.
    pub low: u16,
    /// Last port, inclusive. Each worker takes an equal slice of `low..=high`.
    pub high: u16,
}

/// The service half of a snapshot.
#[derive(Debug, Default)]
pub struct Services {
    by_vip: HashMap<VipKey, u32, ahash::RandomState>,
    list: Vec<Service>,
    /// VIPs and SNAT addresses that Weir answers ARP, neighbour discovery and ICMP echo for.
    owned: HashSet<(u128, bool), ahash::RandomState>,
    /// All VIPs, owned or the node's.
    addresses: HashSet<(u128, bool), ahash::RandomState>,
    snat: HashMap<(u128, bool), PoolId, ahash::RandomState>,
    pools: Vec<SnatPool>,
}

impl Services {
    /// Tables over `list`, `pools` (by [`PoolId`]) and the `owned` addresses, to which the pools' are added.
    /// Of two services with one VIP the later wins; control refuses such a configuration before.
    pub fn new(list: Vec<Service>, pools: Vec<SnatPool>, owned: impl IntoIterator<Item = IpAddr>) -> Self {
        let mut tables = Self { owned: owned.into_iter().map(key::bits).collect(), ..Self::default() };
        for (position, service) in (0u32..).zip(&list) {
            for vip in &service.vips {
                tables.by_vip.insert(*vip, position);
                tables.addresses.insert((vip.addr, vip.v6));
            }
        }
        for (id, pool) in (0u16..).map(PoolId).zip(&pools) {
            let v4 = pool.v4.iter().map(|addr| (u128::from(*addr), false));
            let v6 = pool.v6.iter().map(|addr| (*addr, true));
            for addr in v4.chain(v6) {
                tables.snat.insert(addr, id);
                tables.owned.insert(addr);
            }
        }
        tables.list = list;
        tables.pools = pools;
        tables
    }

    /// The service reached by `vip`.
    #[inline]
    pub fn find(&self, vip: &VipKey) -> Option<&Service> {
        self.list.get(*self.by_vip.get(vip)? as usize)
    }

    /// All services, in the order of the configuration.
    pub fn iter(&self) -> impl Iterator<Item = &Service> {
        self.list.iter()
    }

    /// The pool with this id.
    pub fn pool(&self, id: PoolId) -> Option<&SnatPool> {
        self.pools.get(id.index())
    }

    /// All pools, by id.
    pub fn pools(&self) -> &[SnatPool] {
        &self.pools
    }

    /// The pool that a SNAT address belongs to.
    #[inline]
    pub fn snat_pool(&self, addr: u128, v6: bool) -> Option<&SnatPool> {
        self.pool(*self.snat.get(&(addr, v6))?)
    }

    /// Whether Weir answers ARP, neighbour discovery and echo for the address.
    #[inline]
    pub fn owns(&self, addr: u128, v6: bool) -> bool {
        self.owned.contains(&(addr, v6))
    }

    /// Whether the address is a VIP (owned or the node's) or a SNAT address.
    #[inline]
    pub fn is_virtual(&self, addr: u128, v6: bool) -> bool {
        self.addresses.contains(&(addr, v6)) || self.owned.contains(&(addr, v6))
    }

    /// Every address that Weir answers for.
    pub fn owned(&self) -> impl Iterator<Item = IpAddr> {
        self.owned.iter().map(|(bits, v6)| key::address(*bits, *v6))
    }
}

/// Idle times after which a flow is forgotten, in seconds, as IPVS names its states.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// TCP, by the state numbers of [`crate::flow::tcp::State`].
    pub tcp_s: [u32; 11],
    /// UDP.
    pub udp_s: u32,
}

impl Default for Timeouts {
    /// The kernel's: `net/netfilter/ipvs/ip_vs_proto_tcp.c` and `ip_vs_proto_udp.c`.
    fn default() -> Self {
        Self { tcp_s: [2, 900, 120, 60, 120, 120, 10, 60, 30, 120, 120], udp_s: 300 }
    }
}

/// All compiled tables of one generation.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Counts up with every publication.
    pub generation: u64,
    /// Services, backends, SNAT pools.
    pub services: Arc<Services>,
    /// Ports, routes, neighbours.
    pub net: Arc<Net>,
    /// Idle times.
    pub timeouts: Timeouts,
}
