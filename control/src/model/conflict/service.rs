//! What does not go together in a service, or in two of them.

use std::collections::hash_map::Entry;
use std::net::SocketAddr;
use std::sync::Arc;

use dataplane::flow::key::VipKey;
use dataplane::snapshot::{Mark, Mode, SynProxy, Tunnel, TunnelChecksum};

use super::{Finder, Map, Place, Reason};
use crate::model::{
    Backend, Clients, Family, Masquerade, Origin, Port, Protocol, Service, SnatPool, port_number, vip_key,
};

/// What services have taken: names, addresses, marks, and who had them first.
#[derive(Default)]
struct Taken<'a> {
    names: Map<&'a str, Place>,
    vips: Map<(VipKey, Clients), (Place, &'a str)>,
    marks: Map<Mark, (Place, &'a Arc<str>)>,
}

impl<'a> Finder<'a> {
    pub(super) fn services(&mut self) {
        let pools: Map<&str, &SnatPool> = self.around.pools.iter().map(|pool| (&*pool.name, pool)).collect();
        let mut taken = Taken::default();
        for (index, service) in self.services.clone().into_iter().enumerate() {
            let at = Place::ServiceName(index);
            match taken.names.entry(&*service.name) {
                Entry::Occupied(first) => {
                    self.refuse_second(at, *first.get(), Reason::NameTaken(Arc::clone(&service.name)));
                }
                Entry::Vacant(free) => {
                    free.insert(at);
                }
            }
            if self.others.is_some_and(|others| others.has_name(&service.name)) {
                self.refuse(at, Reason::NameTaken(Arc::clone(&service.name)));
            }
            let family = service.family();
            if service.identity().is_none() {
                self.refuse(Place::Service(index), Reason::NoVip);
                continue;
            }
            match (service.mark(), service.protocol()) {
                (Some(mark), _) => self.mark(index, service, mark, family, &mut taken),
                (None, Some(protocol)) => self.vips(index, service, protocol, family, &mut taken),
                (None, None) => {}
            }
            self.scheduling(index, service, family);
            self.options(index, service);
            self.backends(index, service, family);
            self.pool_of(index, service, family, &pools);
        }
    }

    /// Every mark belongs to one service of each family.
    fn mark(
        &mut self,
        index: usize,
        service: &'a Service,
        mark: Mark,
        family: Family,
        taken: &mut Taken<'a>,
    ) {
        let at = Place::Mark(index);
        match taken.marks.entry(mark) {
            Entry::Occupied(first) => {
                let (earlier, other) = *first.get();
                let reason = Reason::MarkTaken { mark: mark.value, family, other: Arc::clone(other) };
                self.refuse_second(at, earlier, reason);
            }
            Entry::Vacant(free) => {
                free.insert((at, &service.name));
            }
        }
        if let Some(other) = self.others.and_then(|others| others.with_mark(mark)) {
            let other = Arc::clone(other);
            self.refuse(at, Reason::MarkTaken { mark: mark.value, family, other });
        }
        if service.node_port.is_some() {
            self.refuse(Place::NodePort(index), Reason::NodePortOfMark);
        }
    }

    /// Every address, port and protocol belongs to one service, on VIPs and on the node's addresses alike; for clients
    /// inside it may be another one.
    fn vips(
        &mut self,
        index: usize,
        service: &'a Service,
        protocol: Protocol,
        family: Family,
        taken: &mut Taken<'a>,
    ) {
        let port = service.port();
        if port.is_none() && service.persistence.is_none() {
            self.refuse(Place::Port(index), Reason::EveryPort);
        }
        let on_vips = (0..).zip(service.vips()).map(|(at, vip)| (Place::Vip(index, at), *vip, port));
        let around = self.around;
        let mut on_node = around.node_addresses.iter().filter(|addr| addr.family() == family).peekable();
        let node_port = service.node_port;
        if node_port.is_some() && port.is_none() {
            self.refuse(Place::NodePort(index), Reason::NodePortOfEveryPort);
        }
        // Kubernetes may say later which addresses the node has.
        let configured = service.origin == Origin::Configuration;
        if node_port.is_some() && on_node.peek().is_none() && configured {
            self.refuse(Place::NodePort(index), Reason::NoNodeAddress(family));
        }
        let on_node =
            on_node.flat_map(|addr| node_port.map(|port| (Place::NodePort(index), *addr, Some(port))));
        for (at, addr, port) in on_vips.chain(on_node) {
            if addr.family() != family {
                self.refuse(at, Reason::VipFamily { vip: addr.ip(), family });
            }
            match taken.vips.entry((vip_key(addr, port, protocol), service.clients())) {
                Entry::Occupied(first) => {
                    let vip = SocketAddr::new(addr.ip(), port_number(port));
                    let (earlier, other) = *first.get();
                    let reason = Reason::VipTaken { vip, protocol: protocol.name(), other: other.into() };
                    self.refuse_second(at, earlier, reason);
                }
                Entry::Vacant(free) => {
                    free.insert((at, &service.name));
                }
            }
            self.of_others(at, addr, port, protocol, service.clients());
        }
    }

    fn scheduling(&mut self, index: usize, service: &Service, family: Family) {
        let netmask = service.persistence.and_then(|persistence| persistence.netmask);
        if let Some(mask) = netmask.map(|mask| mask.family()).filter(|mask| *mask != family) {
            self.refuse(Place::Persistence(index), Reason::NetmaskFamily { mask, family });
        }
        if let Some(protocol) = service.protocol().filter(|protocol| *protocol != Protocol::Udp)
            && service.one_packet
        {
            self.refuse(Place::OnePacket(index), Reason::OnePacket(protocol.name()));
        }
    }

    fn options(&mut self, index: usize, service: &Service) {
        let options = &service.options;
        let other = service.protocol().filter(|protocol| *protocol != Protocol::Tcp);
        let past = service.backends.iter().find(|backend| !backend.mode.has_replies());
        // The second says whether Weir has to see the replies, too.
        for (option, both_ways, is_set) in [
            ("proxy_protocol", true, options.proxy_protocol),
            ("toa", true, options.toa),
            ("mss", false, options.mss.is_some()),
            ("syn_proxy", true, options.syn_proxy != SynProxy::Off),
        ] {
            if !is_set {
                continue;
            }
            let at = Place::Option(index, option);
            // A datagram can carry the header, too.
            let takes = |protocol: &Protocol| option == "proxy_protocol" && *protocol == Protocol::Udp;
            if let Some(protocol) = other.filter(|protocol| !takes(protocol)).map(Protocol::name) {
                self.refuse(at, Reason::OptionProtocol { option, protocol });
            } else if let Some(past) = past.filter(|_| both_ways) {
                let reason = Reason::OptionMode { option, backend: socket(past), mode: past.mode.name() };
                self.refuse(at, reason);
            }
        }
    }

    fn backends(&mut self, index: usize, service: &Service, family: Family) {
        let mut seen: Map<SocketAddr, Place> = Map::default();
        for (number, backend) in service.backends.iter().enumerate() {
            let at = Place::Backend(index, number);
            let crosses = backend.mode == Mode::FullNat || backend.mode.is_tunnel();
            if backend.addr.family() != family && !crosses {
                let reason = Reason::BackendFamily { addr: backend.addr.ip(), family };
                self.refuse(Place::BackendAddress(index, number), reason);
            }
            if let Some(earlier) = seen.insert(socket(backend), at) {
                self.refuse_second(at, earlier, Reason::BackendTwice(socket(backend)));
            }
            if let Some(reason) = untranslated(service, backend) {
                self.refuse(Place::BackendPort(index, number), reason);
            }
            self.thresholds((index, number), backend);
            self.tunnel((index, number), backend);
        }
        let past = service.backends.iter().find(|backend| !backend.mode.has_replies());
        if let (Some(_), Some(past)) = (service.node_port, past) {
            let reason = Reason::NodePortUntranslated { backend: socket(past), mode: past.mode.name() };
            self.refuse(Place::NodePort(index), reason);
        }
    }

    fn thresholds(&mut self, (service, backend): (usize, usize), of: &Backend) {
        let at = Place::LowerThreshold(service, backend);
        match (of.upper, of.lower) {
            (_, 0) => {}
            (0, _) => self.refuse(at, Reason::LowerAlone),
            (upper, lower) if lower > upper => self.refuse(at, Reason::Thresholds { upper, lower }),
            _ => {}
        }
    }

    fn tunnel(&mut self, (service, backend): (usize, usize), of: &Backend) {
        let Tunnel { port, checksum } = of.tunnel;
        let mode = of.mode.name();
        match (of.mode, port) {
            (Mode::Gue, 0) => self.refuse(Place::Backend(service, backend), Reason::TunnelPort),
            (Mode::Gue, _) | (_, 0) => {}
            _ => self.refuse(Place::Tunnel(service, backend), Reason::TunnelPortWithout(mode)),
        }
        let checksum = match (of.mode, checksum) {
            (_, TunnelChecksum::None) | (Mode::Gue, _) | (Mode::Gre, TunnelChecksum::Full) => return,
            (_, TunnelChecksum::Full) => "full",
            (_, TunnelChecksum::Remote) => "remote",
        };
        self.refuse(Place::Tunnel(service, backend), Reason::TunnelChecksum { mode, checksum });
    }

    pub(super) fn pool_of(
        &mut self,
        index: usize,
        service: &Service,
        family: Family,
        pools: &Map<&str, &SnatPool>,
    ) {
        let mut translated =
            (0..).zip(&*service.backends).filter(|(_, backend)| backend.mode == Mode::FullNat);
        let at = Place::PoolOf(index);
        let hides = service.access.masquerade != Masquerade::Hairpin
            && service.backends.iter().any(|backend| backend.mode == Mode::Nat);
        let pool = service.pool.as_ref().map(|name| (name, pools.get(&**name)));
        match pool {
            None => {
                if let Some((first, _)) = translated.next() {
                    self.refuse(Place::Backend(index, first), Reason::NoPool);
                }
                if hides {
                    let reason = Reason::MasqueradePool(Arc::clone(&service.name));
                    self.refuse(Place::Option(index, "masquerade"), reason);
                }
            }
            Some((name, None)) => self.refuse(at, Reason::UnknownPool(Arc::clone(name))),
            Some((name, Some(pool))) => {
                // The source has to be of the family that packets towards the backend have.
                let towards = translated.map(|(_, backend)| backend.addr.family());
                let needed: Vec<Family> = towards.chain(hides.then_some(family)).collect();
                for family in [family, family.other()] {
                    if needed.contains(&family) && !pool.serves(family) {
                        self.refuse(at, Reason::PoolFamily { pool: Arc::clone(name), family });
                    }
                }
            }
        }
    }
}

/// Why the backend cannot have its port, where its mode leaves the client's in the packet.
fn untranslated(service: &Service, backend: &Backend) -> Option<Reason> {
    let mode = backend.mode.name();
    let port = backend.port.filter(|_| !backend.mode.has_replies()).map(Port::number)?;
    // IPVS takes any port for a mark, and has no use for it.
    service.protocol()?;
    match service.port().map(Port::number) {
        None => Some(Reason::PortOfEveryPort { mode }),
        Some(service) if service != port => Some(Reason::PortUntranslated { mode, port, service }),
        Some(_) => None,
    }
}

fn socket(backend: &Backend) -> SocketAddr {
    SocketAddr::new(backend.addr.ip(), backend.port_number())
}
