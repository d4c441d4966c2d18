//! Services, backends and next hops of one generation: immutable, compiled by control, read by workers.
//!
//! What outlives a generation (cursors, connection counts) lies in [`crate::state::State`].

pub mod access;
pub mod marks;
pub mod net;
pub mod publish;
pub mod settings;

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use crate::flow::key::{self, FlowKey, VipKey};
use crate::ids::{BackendId, PoolId, PortId, ServiceId};
use crate::schedule::{Lookup, Scheduler};
pub use access::{Access, Clients, Group, Locality, Masquerade, Networks, WhenEmpty};
use marks::Marks;
pub use marks::{Mark, MarkRule};
pub use net::Net;
pub use settings::{Defence, Settings, Timeouts};

/// How a backend gets its packets (IPVS: the packet-forwarding method).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Mode {
    /// Destination rewritten, client address kept; replies come back through Weir (IPVS: masquerading).
    Nat,
    /// Destination rewritten, source replaced by an address and port of the service's SNAT pool.
    FullNat,
    /// Only the MAC address rewritten; the backend owns the VIP and answers the client itself (IPVS: gatewaying).
    Dr,
    /// The packet inside an IP packet (RFC 2003, RFC 2473) to the backend, which answers the client itself (IPVS:
    /// tunneling).
    Ipip,
    /// [`Mode::Ipip`] in UDP by Generic UDP Encapsulation (draft-ietf-intarea-gue).
    Gue,
    /// [`Mode::Ipip`] by Generic Routing Encapsulation (RFC 2784).
    Gre,
}

impl Mode {
    /// Every mode.
    pub const ALL: [Self; 6] = [Self::Nat, Self::FullNat, Self::Dr, Self::Ipip, Self::Gue, Self::Gre];

    /// The name as configuration and output have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nat => "nat",
            Self::FullNat => "fullnat",
            Self::Dr => "dr",
            Self::Ipip => "ipip",
            Self::Gue => "gue",
            Self::Gre => "gre",
        }
    }

    /// Whether replies come back through Weir, which translates them. Else the backend answers the client itself.
    #[inline]
    pub fn has_replies(self) -> bool {
        matches!(self, Self::Nat | Self::FullNat)
    }

    /// Whether packets reach the backend inside other packets.
    #[inline]
    pub fn is_tunnel(self) -> bool {
        matches!(self, Self::Ipip | Self::Gue | Self::Gre)
    }
}

/// What a tunnel's outer header says besides the addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Tunnel {
    /// Destination port of `gue`.
    pub port: u16,
    /// Checksum of `gue` and `gre`.
    pub checksum: TunnelChecksum,
}

/// Whether a tunnel's outer header carries a checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum TunnelChecksum {
    /// None (`--tun-nocsum`).
    #[default]
    None,
    /// Over the whole outer payload (`--tun-csum`).
    Full,
    /// `gue` only: of the inner packet, which leaves out its own (`--tun-remcsum`).
    Remote,
}

/// A backend of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    /// Its id, kept across generations.
    pub id: BackendId,
    /// Its address.
    pub addr: IpAddr,
    /// Its port, as packets towards it carry it; 0 where the service is on every port and keeps the client's choice.
    pub port: u16,
    /// Share of new flows; 0 drains.
    pub weight: u32,
    /// The latest weight that was not 0, or 0 where there was none: mh keeps a drained backend's places by it.
    pub last_weight: u32,
    /// How it gets its packets.
    pub mode: Mode,
    /// How it gets them where `mode` is a tunnel.
    pub tunnel: Tunnel,
    /// Flows, active and inactive, from which on it takes no new ones; 0: no limit (IPVS: `--u-threshold`).
    pub upper: u32,
    /// Flows below which a backend that reached `upper` takes new ones again; 0: three quarters of `upper`
    /// (IPVS: `--l-threshold`).
    pub lower: u32,
}

impl Backend {
    /// A backend without thresholds or tunnel parameters.
    pub fn new(id: BackendId, addr: IpAddr, port: u16, weight: u32, mode: Mode) -> Self {
        let tunnel = Tunnel::default();
        Self { id, addr, port, weight, last_weight: weight, mode, tunnel, upper: 0, lower: 0 }
    }
}

/// A client's flows go to the backend that its first one went to (IPVS: persistent service).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Persistence {
    /// Seconds that a client is remembered after its last flow ended.
    pub timeout_s: u32,
    /// Which bits of the client's address count: all clients that agree on these are one. An IPv4 mask lies in the low
    /// 32 bits.
    pub mask: u128,
}

/// What else than its address a client of a persistent service is told by (IPVS: persistence engine).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Engine {
    /// The Call-ID of a SIP message over UDP: each call of a client stays with its own backend.
    Sip,
}

impl Engine {
    /// All of them.
    pub const ALL: [Self; 1] = [Self::Sip];

    /// The name as configuration and output have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sip => "sip",
        }
    }
}

/// When a service answers SYNs itself, by a cookie, and opens a flow only when the client has answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum SynProxy {
    /// Never.
    #[default]
    Off,
    /// While a worker has more half-open flows than this.
    Above(u32),
    /// Always.
    Always,
}

/// What a service does beyond IPVS. Nothing by default.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Options {
    /// A packet in the middle of a flow that is not known goes where consistent hashing says.
    pub stateless_fallback: bool,
    /// The backend learns the client's address from a PROXY protocol header, version 2, in front of the data.
    pub proxy_protocol: bool,
    /// The backend learns the client's address from a TCP option (TOA, number 254).
    pub toa: bool,
    /// The largest TCP segment that either side is told of; `None` leaves what they say. 0: what fits the path.
    pub mss: Option<u16>,
    /// Whether SYN cookies are used.
    pub syn_proxy: SynProxy,
    /// Seconds after which the remaining flows of a drained backend are ended.
    pub drain_s: Option<u32>,
    /// A UDP flow whose backend was removed is scheduled anew with its next packet. One that drains keeps its flows.
    pub move_udp: bool,
}

/// A virtual service.
#[derive(Clone, Debug, Default)]
pub struct Service {
    /// Its id, kept across generations.
    pub id: ServiceId,
    /// Its name in configuration and output.
    pub name: Arc<str>,
    /// Every address, port and protocol that it is reached by; the first is the one that output shows. Port 0 is every
    /// port that no other service has. None for a service that is reached by a mark.
    pub vips: Vec<VipKey>,
    /// Which clients reach it by those.
    pub clients: Clients,
    /// The firewall mark that it is reached by (IPVS: `-f`).
    pub mark: Option<Mark>,
    /// What it is a part of.
    pub group: Option<Group>,
    /// How backends are chosen, with its prepared tables.
    pub scheduler: Scheduler,
    /// Where consistent hashing sends clients, for a service with [`Options::stateless_fallback`]. Of a service whose
    /// scheduler is mh this is its scheduler's table.
    pub steady: Option<Lookup>,
    /// The backends, newest first: the order in which IPVS walks its list.
    pub backends: Box<[Backend]>,
    /// Where `fullnat` takes its source addresses from.
    pub pool: Option<PoolId>,
    /// Whether a client stays with its backend.
    pub persistence: Option<Persistence>,
    /// What else than their address its clients are told by. Nothing without persistence.
    pub engine: Option<Engine>,
    /// Every datagram is scheduled by itself, and no flow is kept (IPVS: `-o`). Only for UDP.
    pub one_packet: bool,
    /// Who may use it.
    pub access: Access,
    /// What it does beyond IPVS.
    pub options: Options,
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
    /// The services of [`Clients::Inside`].
    inside: HashMap<VipKey, u32, ahash::RandomState>,
    locality: Locality,
    /// By [`ServiceId`]; `u32::MAX` for one that is not in the tables.
    by_id: Vec<u32>,
    by_mark: HashMap<Mark, u32, ahash::RandomState>,
    marks: Marks,
    /// Where a backend stands, by its id: service and place in its list. `u32::MAX` for one that is not in the tables.
    /// Of several services that share it, the first one that does not drain it.
    by_backend: Vec<(u32, u32)>,
    /// Backends of services whose flows consistent hashing tells, by address and port.
    by_real: HashMap<VipKey, (u32, u32), ahash::RandomState>,
    has_ftp: bool,
    moves_udp: bool,
    list: Vec<Service>,
    /// VIPs and SNAT addresses that Weir answers ARP, neighbour discovery and ICMP echo for.
    owned: HashSet<(u128, bool), ahash::RandomState>,
    /// All VIPs, owned or the node's.
    addresses: HashSet<(u128, bool), ahash::RandomState>,
    snat: HashMap<(u128, bool), PoolId, ahash::RandomState>,
    pools: Vec<SnatPool>,
}

/// The backends of services whose flows consistent hashing tells: over TCP, of one VIP, translated, and in no other
/// service.
fn by_real(list: &[Service]) -> HashMap<VipKey, (u32, u32), ahash::RandomState> {
    let mut real = HashMap::default();
    if list.iter().all(|service| service.steady.is_none()) {
        return real;
    }
    for (position, service) in (0u32..).zip(list) {
        let is_told = service.steady.is_some() && service.persistence.is_none() && service.vips.len() == 1;
        for (place, backend) in (0u32..).zip(&service.backends) {
            let (addr, v6) = key::bits(backend.addr);
            let is_told = is_told
                && backend.mode == Mode::Nat
                && service.vips.iter().all(|vip| vip.proto == key::TCP && vip.v6 == v6);
            let key = VipKey { addr, port: backend.port, proto: key::TCP, v6 };
            let at = real.entry(key).or_insert((position, place));
            if !is_told || *at != (position, place) {
                *at = NOWHERE;
            }
        }
    }
    real.retain(|_, at| *at != NOWHERE);
    real
}

fn is_ftp(service: &Service) -> bool {
    service.vips.iter().any(|vip| vip.port == FTP && vip.proto == key::TCP)
        && service.backends.iter().any(|backend| backend.mode.has_replies())
}

/// Port of FTP's control connections.
pub const FTP: u16 = 21;

/// Whether packets to this address and port may be data of FTP: active, answers to port 20; passive, to a port that
/// any process may listen on.
fn may_be_ftp_data(vip: &VipKey) -> bool {
    vip.proto == key::TCP && (vip.port == FTP - 1 || vip.port >= 1024)
}

fn weight(list: &[Service], (service, place): (u32, u32)) -> Option<u32> {
    list.get(service as usize)?.backends.get(place as usize).map(|backend| backend.weight)
}

/// Of a backend that is not in the tables.
const NOWHERE: (u32, u32) = (u32::MAX, u32::MAX);

impl Services {
    /// Tables over `list`, `pools` (by [`PoolId`]) and the `owned` addresses, to which the pools' are added.
    /// Of two services with one VIP for the same clients the later wins; control refuses such a configuration before.
    pub fn new(
        mut list: Vec<Service>,
        pools: Vec<SnatPool>,
        owned: impl IntoIterator<Item = IpAddr>,
    ) -> Self {
        let mut tables = Self { owned: owned.into_iter().map(key::bits).collect(), ..Self::default() };
        for service in &mut list {
            // Weir can stand between client and backend only where both directions pass it.
            if service.backends.iter().any(|backend| !backend.mode.has_replies()) {
                service.options.syn_proxy = SynProxy::Off;
            }
        }
        for (position, service) in (0u32..).zip(&list) {
            for (place, backend) in (0u32..).zip(&service.backends) {
                let index = backend.id.index();
                if tables.by_backend.len() <= index {
                    tables.by_backend.resize(index + 1, NOWHERE);
                }
                if let Some(at) = tables.by_backend.get_mut(index)
                    && (*at == NOWHERE || backend.weight > 0 && weight(&list, *at) == Some(0))
                {
                    *at = (position, place);
                }
            }
            let index = service.id.index();
            if tables.by_id.len() <= index {
                tables.by_id.resize(index + 1, u32::MAX);
            }
            if let Some(at) = tables.by_id.get_mut(index) {
                *at = position;
            }
            if let Some(mark) = service.mark {
                tables.by_mark.insert(mark, position);
            }
            for vip in &service.vips {
                let by_vip = match service.clients {
                    Clients::All => &mut tables.by_vip,
                    Clients::Inside => &mut tables.inside,
                };
                by_vip.insert(*vip, position);
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
        tables.by_real = by_real(&list);
        tables.has_ftp = list.iter().any(is_ftp);
        tables.moves_udp = list.iter().any(|service| service.options.move_udp);
        tables.list = list;
        tables.pools = pools;
        tables
    }

    /// These tables with rules that give marks; the first that matches a packet counts.
    #[must_use]
    pub fn with_rules(self, rules: Vec<MarkRule>) -> Self {
        Self { marks: Marks::new(rules), ..self }
    }

    /// These tables, told where clients and virtual addresses are.
    #[must_use]
    pub fn with_locality(self, locality: Locality) -> Self {
        Self { locality, ..self }
    }

    /// Where clients and virtual addresses are.
    #[inline]
    pub fn locality(&self) -> &Locality {
        &self.locality
    }

    /// The rules that give marks.
    pub fn rules(&self) -> &[MarkRule] {
        self.marks.rules()
    }

    /// The service of a mark.
    #[inline]
    pub fn marked(&self, mark: Mark) -> Option<&Service> {
        self.list.get(*self.by_mark.get(&mark)? as usize)
    }

    /// The service with this id.
    #[inline]
    pub fn service(&self, id: ServiceId) -> Option<&Service> {
        self.list.get(*self.by_id.get(id.index())? as usize)
    }

    /// The service that has exactly this address, port and protocol, for clients that are not inside.
    #[inline]
    pub fn exact(&self, vip: &VipKey) -> Option<&Service> {
        self.list.get(*self.by_vip.get(vip)? as usize)
    }

    /// The service that has exactly this address, port and protocol for the client with the address `src`.
    #[inline]
    pub fn exact_for(&self, src: u128, vip: &VipKey) -> Option<&Service> {
        self.inside(src, vip).or_else(|| self.exact(vip))
    }

    /// The service of a client inside, where that is one of its own.
    #[inline]
    fn inside(&self, src: u128, vip: &VipKey) -> Option<&Service> {
        if self.inside.is_empty() {
            return None;
        }
        let position = *self.inside.get(vip)?;
        self.locality.is_inside(src, vip.v6).then(|| self.list.get(position as usize)).flatten()
    }

    /// The service that takes packets with `key`, which came in by `port`: that of their mark, else that of their
    /// address, port and protocol, else the one whose FTP data they may be, else that of all ports of their address
    /// (`ip_vs_service_find`).
    #[inline]
    pub fn find(&self, key: &FlowKey, port: PortId) -> Option<&Service> {
        let vip = key.vip();
        let marked = self.marks.mark(key, port).and_then(|mark| self.marked(mark));
        marked.or_else(|| self.exact_for(key.src, &vip)).or_else(|| self.other(key.src, vip))
    }

    /// The service of an address that has none on this port.
    fn other(&self, src: u128, vip: VipKey) -> Option<&Service> {
        let ftp = may_be_ftp_data(&vip).then(|| self.exact_for(src, &VipKey { port: FTP, ..vip })).flatten();
        match ftp {
            // Without persistence nothing says whose data it is: no service, not even one of all ports, has it.
            Some(service) => service.persistence.is_some().then_some(service),
            None => self.exact_for(src, &VipKey { port: 0, ..vip }),
        }
    }

    /// The backend with this id and its service, of several services that share it the first that does not drain it;
    /// `None` for one that was removed from all.
    #[inline]
    pub fn backend(&self, id: BackendId) -> Option<(&Service, &Backend)> {
        let (service, place) = *self.by_backend.get(id.index())?;
        let service = self.list.get(service as usize)?;
        Some((service, service.backends.get(place as usize)?))
    }

    /// The backend with this id as `service` has it; `None` where that one does not, whoever else does.
    #[inline]
    pub fn backend_in<'s>(&self, service: &'s Service, id: BackendId) -> Option<&'s Backend> {
        // Services that share backends mostly have all of them, in one order.
        let (_, place) = *self.by_backend.get(id.index())?;
        let at = service.backends.get(place as usize).filter(|backend| backend.id == id);
        at.or_else(|| service.backends.iter().find(|backend| backend.id == id))
    }

    /// The backend of a flow and its service: that one which the flow came by, as long as it has the backend; else any
    /// other that does. `None` for one that was removed from all.
    pub fn backend_of(&self, service: ServiceId, id: BackendId) -> Option<(&Service, &Backend)> {
        let own = self.service(service).and_then(|own| Some((own, self.backend_in(own, id)?)));
        own.or_else(|| self.backend(id))
    }

    /// The backend with this address and port and its service, if packets from there can belong to no other service and
    /// consistent hashing tells their flows ([`Options::stateless_fallback`]).
    #[inline]
    pub fn behind(&self, real: &VipKey) -> Option<(&Service, &Backend)> {
        let (service, place) = *self.by_real.get(real)?;
        let service = self.list.get(service as usize)?;
        Some((service, service.backends.get(place as usize)?))
    }

    /// Whether there are services of FTP whose replies pass Weir: what they announce has to be looked at.
    #[inline]
    pub fn has_ftp(&self) -> bool {
        self.has_ftp
    }

    /// Whether a UDP flow of this service goes elsewhere, its backend being removed ([`Options::move_udp`]).
    #[inline]
    pub fn moves(&self, service: ServiceId, backend: BackendId) -> bool {
        let at = || self.by_backend.get(backend.index());
        self.moves_udp
            && at().is_none_or(|at| *at == NOWHERE)
            && self.service(service).is_some_and(|service| service.options.move_udp)
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
    /// What IPVS has as sysctls, and limits.
    pub settings: Settings,
}
