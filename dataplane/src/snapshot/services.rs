//! The service half of a snapshot: the tables in which packets find services and backends.
//!
//! The tables of the next generation are an edited copy of the present ones ([`Services::change`]) and share with them
//! whatever is the same: an edit costs what it is about, not what exists.

#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::hash::{Hash, Hasher};
use std::net::IpAddr;
use std::sync::Arc;

use super::chunks::Chunks;
use super::marks::Marks;
use super::shards::Shards;
use super::{Backend, Clients, FTP, Locality, Mark, MarkRule, Mode, Service, SnatPool, SynProxy};
use crate::flow::key::{self, FlowKey, VipKey};
use crate::ids::{BackendId, PoolId, PortId, ServiceId};

type Map<K, V> = HashMap<K, V, ahash::RandomState>;
/// An address, and whether it is IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Addr(u128, bool);

impl Addr {
    fn of(addr: IpAddr) -> Self {
        let (bits, v6) = key::bits(addr);
        Self(bits, v6)
    }
}

impl Hash for Addr {
    /// A word of IPv4, two of IPv6.
    #[inline]
    fn hash<H: Hasher>(&self, state: &mut H) {
        match u64::try_from(self.0) {
            Ok(low) if !self.1 => state.write_u64(low),
            _ => state.write_u128(self.0),
        }
    }
}

/// The service half of a snapshot.
#[derive(Clone, Debug, Default)]
pub struct Services {
    /// By id.
    list: Chunks<Option<Arc<Service>>, 256>,
    len: usize,
    by_vip: Shards<VipKey, ServiceId>,
    /// The services of [`Clients::Inside`].
    inside: Shards<VipKey, ServiceId>,
    by_mark: Shards<Mark, ServiceId>,
    /// Where a backend stands, by its id. Of several services that share it, the first one that does not drain it.
    by_backend: Chunks<Option<Seat>, 1024>,
    /// All backends by address and port, as long as there are services whose flows consistent hashing tells.
    by_real: Shards<VipKey, Behind>,
    /// How many such services there are.
    steady: usize,
    /// How many services are of FTP and see its replies.
    ftp: usize,
    /// How many services move UDP flows from removed backends.
    moving: usize,
    /// The VIPs and SNAT addresses that Weir answers ARP, neighbour discovery and ICMP echo for, and how often each is
    /// owned.
    owned: Shards<Addr, u32>,
    /// All VIPs, owned or the node's, and all that is owned besides; how many services have each, and how often it is owned.
    addresses: Shards<Addr, u32>,
    locality: Arc<Locality>,
    marks: Arc<Marks>,
    pools: Arc<Pools>,
}

/// The SNAT pools, by id and by address.
#[derive(Debug, Default)]
struct Pools {
    list: Vec<SnatPool>,
    by_addr: Map<Addr, PoolId>,
}

/// A backend's service, and its place from the end of that one's list: new ones come first, so it rarely changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seat {
    service: ServiceId,
    rank: u32,
}

/// The backends with one address and port.
#[derive(Clone, Copy, Debug)]
struct Behind {
    /// How many there are, over all services.
    count: u32,
    /// The sum of their seats, as numbers: the seat of the only one.
    seats: u64,
}

impl Seat {
    fn number(self) -> u64 {
        u64::from(self.service.0) << 32 | u64::from(self.rank)
    }

    #[expect(clippy::cast_possible_truncation, reason = "the halves are taken one by one")]
    fn numbered(number: u64) -> Self {
        Self { service: ServiceId((number >> 32) as u32), rank: number as u32 }
    }
}

/// Whether packets without a flow that come from such a backend are those of the service, if no other has it: over TCP,
/// of one VIP, translated, and told by consistent hashing.
fn is_told(service: &Service, backend: &Backend) -> bool {
    let (_, v6) = key::bits(backend.addr);
    let on_vip = |vip: &VipKey| vip.proto == key::TCP && vip.v6 == v6;
    service.steady.is_some()
        && service.persistence.is_none()
        && service.vips.len() == 1
        && backend.mode == Mode::Nat
        && service.vips.iter().all(on_vip)
}

fn real(backend: &Backend) -> VipKey {
    let (addr, v6) = key::bits(backend.addr);
    VipKey { addr, port: backend.port, proto: key::TCP, v6 }
}

fn is_ftp(service: &Service) -> bool {
    service.vips.iter().any(|vip| vip.port == FTP && vip.proto == key::TCP)
        && service.backends.iter().any(|backend| backend.mode.has_replies())
}

/// Whether packets to this address and port may be data of FTP: active, answers to port 20; passive, to a port that
/// any process may listen on.
fn may_be_ftp_data(vip: &VipKey) -> bool {
    vip.proto == key::TCP && (vip.port == FTP - 1 || vip.port >= 1024)
}

/// Whether the same packets find both.
fn same_reach(a: &Service, b: &Service) -> bool {
    (&a.vips, a.clients, a.mark) == (&b.vips, b.clients, b.mark)
}

impl Services {
    /// Tables over `list`, `pools` (by [`PoolId`]) and the `owned` addresses, to which the pools' are added.
    /// Of two services with one VIP for the same clients the later wins; control refuses such a configuration before.
    pub fn new(list: Vec<Service>, pools: Vec<SnatPool>, owned: impl IntoIterator<Item = IpAddr>) -> Self {
        let mut tables = Self::default().with_pools(pools);
        let of_pools: Vec<_> =
            tables.pools.by_addr.keys().map(|Addr(bits, v6)| key::address(*bits, *v6)).collect();
        owned.into_iter().chain(of_pools).for_each(|addr| tables.own(addr));
        tables.change(&[], list);
        tables
    }

    /// These tables with rules that give marks; the first that matches a packet counts.
    #[must_use]
    pub fn with_rules(self, rules: Vec<MarkRule>) -> Self {
        Self { marks: Arc::new(Marks::new(rules)), ..self }
    }

    /// These tables, told where clients and virtual addresses are.
    #[must_use]
    pub fn with_locality(self, locality: Locality) -> Self {
        Self { locality: Arc::new(locality), ..self }
    }

    /// These tables with other SNAT pools, whose addresses are owned as far as [`Self::own`] says.
    #[must_use]
    pub fn with_pools(self, list: Vec<SnatPool>) -> Self {
        let mut by_addr = Map::default();
        for (id, pool) in (0u16..).map(PoolId).zip(&list) {
            let v4 = pool.v4.iter().map(|addr| Addr((*addr).into(), false));
            let v6 = pool.v6.iter().map(|addr| Addr(*addr, true));
            by_addr.extend(v4.chain(v6).map(|addr| (addr, id)));
        }
        Self { pools: Arc::new(Pools { list, by_addr }), ..self }
    }

    /// One more reason to answer for the address.
    pub fn own(&mut self, addr: IpAddr) {
        self.owned.hold(Addr::of(addr));
        self.addresses.hold(Addr::of(addr));
    }

    /// One reason less to answer for the address.
    pub fn disown(&mut self, addr: IpAddr) {
        if self.owned.get(&Addr::of(addr)).is_some() {
            self.owned.release(Addr::of(addr));
            self.addresses.release(Addr::of(addr));
        }
    }

    /// Takes the services with the ids `gone` out, then puts others in or in the place of those with their ids. Services
    /// that share backends change together: the first one in `put` that does not drain a backend stands for it.
    pub fn change(&mut self, gone: &[ServiceId], put: Vec<Service>) {
        let put: Vec<_> = put.into_iter().map(|service| Arc::new(able(service))).collect();
        let was_steady = self.steady > 0;
        let gone: Vec<_> = gone.iter().filter_map(|id| self.list.take(id.index())).collect();
        let replaced: Vec<_> = put.iter().map(|new| self.list.take(new.id.index())).collect();
        gone.iter().for_each(|service| self.unlink(service));
        let is_moved = |(before, new): &(&Option<Arc<Service>>, &Arc<Service>)| {
            before.as_ref().is_none_or(|before| !same_reach(before, new))
        };
        let pairs = || replaced.iter().zip(&put);
        pairs().filter(is_moved).filter_map(|(before, _)| before.as_ref()).for_each(|old| self.unlink(old));
        for (_, new) in pairs().filter(is_moved) {
            self.link(new);
        }
        for new in &put {
            self.list.set(new.id.index(), Some(Arc::clone(new)));
        }
        let old: Vec<_> = gone.into_iter().chain(replaced.into_iter().flatten()).collect();
        self.seat(&old, &put);
        self.count(&old, &put);
        self.tell(was_steady, &old, &put);
    }

    /// Has packets find the service.
    fn link(&mut self, service: &Service) {
        if let Some(mark) = service.mark {
            self.by_mark.insert(mark, service.id);
        }
        for vip in &service.vips {
            let by_vip = match service.clients {
                Clients::All => &mut self.by_vip,
                Clients::Inside => &mut self.inside,
            };
            by_vip.insert(*vip, service.id);
            self.addresses.hold(Addr(vip.addr, vip.v6));
        }
    }

    /// Has packets not find the service any more.
    fn unlink(&mut self, service: &Service) {
        let but_its = |at: Option<ServiceId>| at.filter(|id| *id != service.id);
        if let Some(mark) = service.mark {
            self.by_mark.edit(mark, but_its);
        }
        for vip in &service.vips {
            let by_vip = match service.clients {
                Clients::All => &mut self.by_vip,
                Clients::Inside => &mut self.inside,
            };
            by_vip.edit(*vip, but_its);
            self.addresses.release(Addr(vip.addr, vip.v6));
        }
    }

    /// Notes where backends stand now. The list has the services of `put` already.
    fn seat(&mut self, old: &[Arc<Service>], put: &[Arc<Service>]) {
        let leaving: HashSet<_, ahash::RandomState> = old.iter().map(|service| service.id).collect();
        let mut seats: Map<BackendId, Option<Seat>> = Map::default();
        for backend in old.iter().flat_map(|service| &*service.backends) {
            let now = self.by_backend.get(backend.id.index()).copied().flatten();
            seats.insert(backend.id, now.filter(|seat| !leaving.contains(&seat.service)));
        }
        for (seat, backend) in put.iter().flat_map(|service| seats_of(service)) {
            // Where nothing leaves, what is there can be compared with at once.
            let now = match seats.get(&backend.id) {
                Some(known) => *known,
                None => self.by_backend.get(backend.id.index()).copied().flatten(),
            };
            let is_drained = |seat| self.at(seat).is_some_and(|(_, backend)| backend.weight == 0);
            if now.is_some_and(|now| backend.weight == 0 || !is_drained(now)) {
                continue;
            }
            if old.is_empty() {
                self.by_backend.set(backend.id.index(), Some(seat));
            } else {
                seats.insert(backend.id, Some(seat));
            }
        }
        for (id, seat) in seats {
            if self.by_backend.get(id.index()) != Some(&seat) {
                self.by_backend.set(id.index(), seat);
            }
        }
    }

    /// Counts services.
    fn count(&mut self, old: &[Arc<Service>], put: &[Arc<Service>]) {
        let count = |of: &dyn Fn(&Service) -> bool, before: usize| {
            let [old, new] = [old, put].map(|list| list.iter().filter(|service| of(service)).count());
            before + new - old
        };
        self.len = count(&|_| true, self.len);
        self.ftp = count(&is_ftp, self.ftp);
        self.moving = count(&|service| service.options.move_udp, self.moving);
        self.steady = count(&|service| service.steady.is_some(), self.steady);
    }

    /// Notes which backends consistent hashing tells flows of.
    fn tell(&mut self, was_steady: bool, old: &[Arc<Service>], put: &[Arc<Service>]) {
        if self.steady == 0 {
            if was_steady {
                self.by_real = Shards::default();
            }
            return;
        }
        if !was_steady {
            let all: Vec<_> = self.list.iter().flatten().cloned().collect();
            all.iter().for_each(|service| self.stand(service, true));
            return;
        }
        old.iter().for_each(|service| self.stand(service, false));
        put.iter().for_each(|service| self.stand(service, true));
    }

    /// Counts a service's backends among those with their addresses and ports, or no longer.
    fn stand(&mut self, service: &Service, comes: bool) {
        for (seat, backend) in seats_of(service) {
            self.by_real.edit(real(backend), |before| {
                let Behind { count, seats } = before.unwrap_or(Behind { count: 0, seats: 0 });
                let (count, seats) = if comes {
                    (count.saturating_add(1), seats.wrapping_add(seat.number()))
                } else {
                    (count.saturating_sub(1), seats.wrapping_sub(seat.number()))
                };
                (count > 0).then_some(Behind { count, seats })
            });
        }
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
        self.service(self.by_mark.get(&mark)?)
    }

    /// The service with this id.
    #[inline]
    pub fn service(&self, id: ServiceId) -> Option<&Service> {
        self.list.get(id.index())?.as_deref()
    }

    /// The service that has exactly this address, port and protocol, for clients that are not inside.
    #[inline]
    pub fn exact(&self, vip: &VipKey) -> Option<&Service> {
        self.service(self.by_vip.get(vip)?)
    }

    /// The service that has exactly this address, port and protocol for the client with the address `src`.
    #[inline]
    pub fn exact_for(&self, src: u128, vip: &VipKey) -> Option<&Service> {
        self.inside(src, vip).or_else(|| self.exact(vip))
    }

    /// The service of a client inside, where that is one of its own.
    #[inline]
    fn inside(&self, src: u128, vip: &VipKey) -> Option<&Service> {
        if !self.tells_clients_apart() {
            return None;
        }
        let found = self.exact_inside(vip)?;
        self.locality.is_inside(src, vip.v6).then_some(found)
    }

    /// The service of clients inside that has exactly this address, port and protocol.
    #[inline]
    pub fn exact_inside(&self, vip: &VipKey) -> Option<&Service> {
        self.service(self.inside.get(vip)?)
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

    /// [`Self::find`] where nothing but the address, port and protocol tells, with its id; `None` says only that more may.
    /// Of the service itself nothing is read.
    #[inline]
    pub(crate) fn find_plain(&self, key: &FlowKey) -> Option<(ServiceId, &Service)> {
        if self.has_ftp() || !self.marks.rules().is_empty() {
            return None;
        }
        let vip = key.vip();
        if let Some(service) = self.inside(key.src, &vip) {
            return Some((service.id, service));
        }
        let id = self.by_vip.get(&vip)?;
        Some((id, self.service(id)?))
    }

    /// Whether one address, port and protocol may be those of two services, for different clients.
    #[inline]
    pub fn tells_clients_apart(&self) -> bool {
        self.inside.len() > 0
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

    /// What stands there.
    #[inline]
    fn at(&self, Seat { service, rank }: Seat) -> Option<(&Service, &Backend)> {
        let service = self.service(service)?;
        Some((service, ranked(service, rank)?))
    }

    /// The backend with this id and its service, of several services that share it the first that does not drain it;
    /// `None` for one that was removed from all.
    #[inline]
    pub fn backend(&self, id: BackendId) -> Option<(&Service, &Backend)> {
        self.at((*self.by_backend.get(id.index())?)?)
    }

    /// The backend with this id as `service` has it; `None` where that one does not, whoever else does.
    #[inline]
    pub fn backend_in<'s>(&self, service: &'s Service, id: BackendId) -> Option<&'s Backend> {
        // Services that share backends mostly have all of them, in one order.
        let Seat { rank, .. } = (*self.by_backend.get(id.index())?)?;
        let at = ranked(service, rank).filter(|backend| backend.id == id);
        at.or_else(|| service.backends.iter().find(|backend| backend.id == id))
    }

    /// The backend of a flow and its service: that one which the flow came by, as long as it has the backend; else any
    /// other that does. `None` for one that was removed from all.
    pub fn backend_of(&self, service: ServiceId, id: BackendId) -> Option<(&Service, &Backend)> {
        let own = self.service(service).and_then(|own| Some((own, self.backend_in(own, id)?)));
        own.or_else(|| self.backend(id))
    }

    /// The backend with this address and port and its service, if packets from there can belong to no other service and
    /// consistent hashing tells their flows ([`super::Options::stateless_fallback`]).
    #[inline]
    pub fn behind(&self, real: &VipKey) -> Option<(&Service, &Backend)> {
        if self.steady == 0 {
            return None;
        }
        let Behind { count: 1, seats } = self.by_real.get(real)? else { return None };
        self.at(Seat::numbered(seats)).filter(|(service, backend)| is_told(service, backend))
    }

    /// Whether there are services of FTP whose replies pass Weir: what they announce has to be looked at.
    #[inline]
    pub fn has_ftp(&self) -> bool {
        self.ftp > 0
    }

    /// Whether a UDP flow of this service goes elsewhere, its backend being removed ([`super::Options::move_udp`]).
    #[inline]
    pub fn moves(&self, service: ServiceId, backend: BackendId) -> bool {
        self.moving > 0
            && self.by_backend.get(backend.index()).is_none_or(Option::is_none)
            && self.service(service).is_some_and(|service| service.options.move_udp)
    }

    /// All services, by id.
    pub fn iter(&self) -> impl Iterator<Item = &Service> {
        self.list.iter().filter_map(Option::as_deref)
    }

    /// How many services there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no services.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The pool with this id.
    pub fn pool(&self, id: PoolId) -> Option<&SnatPool> {
        self.pools().get(id.index())
    }

    /// All pools, by id.
    pub fn pools(&self) -> &[SnatPool] {
        &self.pools.list
    }

    /// The pool that a SNAT address belongs to.
    #[inline]
    pub fn snat_pool(&self, addr: u128, v6: bool) -> Option<&SnatPool> {
        self.pool(*self.pools.by_addr.get(&Addr(addr, v6))?)
    }

    /// Whether Weir answers ARP, neighbour discovery and echo for the address.
    #[inline]
    pub fn owns(&self, addr: u128, v6: bool) -> bool {
        self.owned.get(&Addr(addr, v6)).is_some()
    }

    /// Whether the address is a VIP (owned or the node's) or a SNAT address.
    #[inline]
    pub fn is_virtual(&self, addr: u128, v6: bool) -> bool {
        self.addresses.get(&Addr(addr, v6)).is_some()
    }

    /// Every address that Weir answers for.
    pub fn owned(&self) -> impl Iterator<Item = IpAddr> {
        self.owned.iter().map(|(Addr(bits, v6), _)| key::address(bits, v6))
    }
}

/// The service without what it cannot have: Weir can stand between client and backend only where both directions pass
/// it.
fn able(mut service: Service) -> Service {
    if service.backends.iter().any(|backend| !backend.mode.has_replies()) {
        service.options.syn_proxy = SynProxy::Off;
    }
    service
}

/// The backends of a service with their seats, in the order of its list.
fn seats_of(service: &Service) -> impl Iterator<Item = (Seat, &Backend)> {
    let last = u32::try_from(service.backends.len()).unwrap_or(u32::MAX);
    let ranks = (0..last).rev();
    ranks.zip(&*service.backends).map(|(rank, backend)| (Seat { service: service.id, rank }, backend))
}

/// The backend with this rank in the list of its service.
#[inline]
fn ranked(service: &Service, rank: u32) -> Option<&Backend> {
    let place = service.backends.len().checked_sub(1)?.checked_sub(rank as usize)?;
    service.backends.get(place)
}
