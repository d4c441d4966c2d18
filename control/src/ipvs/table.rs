//! The desired state while commands change it.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::command::{Command, Forward, Key, Refusal, Server, ServerKey, Service, Timeouts, TunnelKind};
use super::convert::{self, address, backend, engine, free_name, keys, persistence, reach, scheduling};
use crate::model::{self, Clients, Draft, Family, Origin, Reach, SECONDS_MAX};

type Map<K, V> = HashMap<K, V, ahash::RandomState>;

/// The states that `--set` is about, by their numbers in [`model::Draft::timeouts`].
const ESTABLISHED: usize = 1;
const FIN_WAIT: usize = 4;

/// Where a key leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// To the service at this position.
    Own(usize),
    /// To a node address of one, which only the configuration changes.
    OnNode,
}

/// A draft under the commands of ipvsadm. Each is carried out whole or refused, as the kernel does.
#[derive(Debug)]
pub struct Table {
    draft: Draft,
    /// The draft's services; `None` for those that were deleted.
    services: Vec<Option<model::Service>>,
    places: Map<Key, Place>,
    names: HashSet<Arc<str>, ahash::RandomState>,
    /// The addresses that this machine has itself.
    own: HashSet<IpAddr, ahash::RandomState>,
    room: Room,
    left: Room,
    zeroed: Vec<Option<Key>>,
    changed: bool,
}

/// How many more services (each address counts) and servers there is room for.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    /// Services.
    pub services: usize,
    /// Servers of all services.
    pub servers: usize,
}

impl Room {
    /// What is left of it beside these services.
    fn beside<'s>(self, services: impl Iterator<Item = &'s model::Service>) -> Self {
        services.fold(self, |room, service| Self {
            services: room.services.saturating_sub(keys(service).len()),
            servers: room.servers.saturating_sub(service.backends.len()),
        })
    }
}

impl Table {
    /// A table of what `draft` has. `own` are the addresses that this machine has.
    /// `room` is there for all services together.
    pub fn new(mut draft: Draft, own: HashSet<IpAddr, ahash::RandomState>, room: Room) -> Self {
        let services: Vec<_> = std::mem::take(&mut draft.services).into_iter().map(Some).collect();
        let left = room.beside(services.iter().flatten());
        let mut table = Self {
            draft,
            services,
            places: Map::default(),
            names: HashSet::default(),
            own,
            room,
            left,
            zeroed: Vec::new(),
            changed: false,
        };
        for (position, service) in table.services.iter().enumerate() {
            let Some(service) = service else { continue };
            table.names.insert(Arc::clone(&service.name));
            table.places.extend(keys(service).into_iter().map(|key| (key, Place::Own(position))));
            let on_node = on_node(service, &table.draft).map(|key| (key, Place::OnNode));
            table.places.extend(on_node);
        }
        table
    }

    /// Carries out a command.
    pub fn run(&mut self, command: &Command) -> Result<(), Refusal> {
        match command {
            Command::Zero(key) => {
                if let Some(key) = key {
                    self.places.get(key).ok_or(Refusal::NoService)?;
                }
                self.zeroed.push(*key);
                return Ok(());
            }
            Command::StartDaemon(_) => {
                return Err(Refusal::Weir("weir does not synchronise connections in this version".into()));
            }
            Command::StopDaemon(_) => return Err(Refusal::NoService),
            Command::AddService(service) => self.add_service(service)?,
            Command::EditService(service) => self.edit_service(service)?,
            Command::DeleteService(key) => self.delete_service(*key)?,
            Command::AddServer(key, server) => self.add_server(*key, server)?,
            Command::EditServer(key, server) => self.edit_server(*key, server)?,
            Command::DeleteServer(key, server) => self.delete_server(*key, *server)?,
            Command::Flush => self.flush(),
            Command::SetTimeouts(timeouts) => self.set_timeouts(*timeouts)?,
        }
        self.changed = true;
        Ok(())
    }

    /// Takes away all services but Kubernetes's.
    fn flush(&mut self) {
        let services = std::mem::take(&mut self.services).into_iter().flatten();
        let theirs = services.filter(|service| service.origin == Origin::Kubernetes).collect();
        let draft = Draft { services: theirs, ..std::mem::take(&mut self.draft) };
        let (own, zeroed) = (std::mem::take(&mut self.own), std::mem::take(&mut self.zeroed));
        *self = Self { zeroed, ..Self::new(draft, own, self.room) };
    }

    /// Whether a command changed anything but counters.
    pub fn is_changed(&self) -> bool {
        self.changed
    }

    /// The draft after all commands, and the services (`None`: all) whose counters were set to zero, in order.
    pub fn finish(mut self) -> (Draft, Vec<Option<Key>>) {
        self.draft.services = self.services.into_iter().flatten().collect();
        (self.draft, self.zeroed)
    }

    fn add_service(&mut self, of: &Service) -> Result<(), Refusal> {
        if self.places.contains_key(&of.key) {
            return Err(Refusal::Exists);
        }
        let (scheduling, engine) = (scheduling(of)?, engine(of)?);
        let left = self.left.services.checked_sub(1).ok_or(Refusal::NoMemory)?;
        let mut service = model::Service::new(
            free_name(of.key, |name| self.names.contains(name)),
            reach(of.key),
            scheduling,
        );
        service.persistence = persistence(of)?;
        service.engine = engine;
        service.one_packet = of.one_packet;
        // In IPVS whoever makes a service gives the address to an interface himself; here nobody needs to.
        service.announce = match of.key {
            Key::Address { addr, .. } => convert::is_a_hosts(addr) && !self.own.contains(&addr),
            Key::Mark { .. } => true,
        };
        self.insert(of.key, service);
        self.left.services = left;
        // One of this key that was deleted right before leaves it nothing.
        self.zeroed.push(Some(of.key));
        Ok(())
    }

    fn insert(&mut self, key: Key, service: model::Service) {
        self.names.insert(Arc::clone(&service.name));
        self.places.insert(key, Place::Own(self.services.len()));
        self.services.push(Some(service));
    }

    fn edit_service(&mut self, of: &Service) -> Result<(), Refusal> {
        let service = self.own_service(of.key)?;
        let (scheduling, engine, persistence) = (scheduling(of)?, engine(of)?, persistence(of)?);
        service.scheduling = scheduling;
        service.persistence = persistence;
        service.engine = engine;
        service.one_packet = of.one_packet;
        Ok(())
    }

    fn delete_service(&mut self, key: Key) -> Result<(), Refusal> {
        let slot = self.slot(key)?;
        if let Some(service) = self.services.get_mut(slot)
            && let Some(gone) = service
        {
            self.left.services += 1;
            if !without(gone, key) {
                self.left.servers += gone.backends.len();
                for key in on_node(gone, &self.draft) {
                    self.places.remove(&key);
                }
                self.names.remove(&gone.name);
                *service = None;
            }
            self.places.remove(&key);
        }
        Ok(())
    }

    fn add_server(&mut self, key: Key, server: &Server) -> Result<(), Refusal> {
        let service = self.service(key)?;
        check(service, server)?;
        if find(service, server.key()).is_some() {
            return Err(Refusal::Exists);
        }
        if self.left.servers == 0 {
            return Err(Refusal::NoMemory);
        }
        let backend = backend(server)?;
        let service = self.own_service(key)?;
        service.backends = service.backends.iter().copied().chain([backend]).collect();
        self.left.servers = self.left.servers.saturating_sub(1);
        Ok(())
    }

    fn edit_server(&mut self, key: Key, server: &Server) -> Result<(), Refusal> {
        let service = self.service(key)?;
        check(service, server)?;
        let place = find(service, server.key()).ok_or(Refusal::NoEntry)?;
        let backend = backend(server)?;
        if let Some(old) = Arc::make_mut(&mut self.own_service(key)?.backends).get_mut(place) {
            *old = backend;
        }
        Ok(())
    }

    fn delete_server(&mut self, key: Key, server: ServerKey) -> Result<(), Refusal> {
        let place = find(self.service(key)?, server).ok_or(Refusal::NoEntry)?;
        let service = self.own_service(key)?;
        let others = (0..).zip(&*service.backends).filter(|(at, _)| *at != place);
        service.backends = others.map(|(_, backend)| *backend).collect();
        self.left.servers += 1;
        Ok(())
    }

    fn set_timeouts(&mut self, of: Timeouts) -> Result<(), Refusal> {
        let given = [of.tcp_s, of.tcp_fin_s, of.udp_s];
        if given.into_iter().any(|seconds| seconds > SECONDS_MAX) {
            return Err(Refusal::Invalid);
        }
        let timeouts = &mut self.draft.timeouts;
        let tcp = &mut timeouts.tcp_s;
        for (seconds, timeout) in
            [(of.tcp_s, tcp.get_mut(ESTABLISHED)), (of.udp_s, Some(&mut timeouts.udp_s))]
        {
            set(seconds, timeout);
        }
        set(of.tcp_fin_s, timeouts.tcp_s.get_mut(FIN_WAIT));
        Ok(())
    }

    fn slot(&self, key: Key) -> Result<usize, Refusal> {
        match self.places.get(&key) {
            None => Err(Refusal::NoService),
            Some(Place::Own(position)) => {
                let service = self.services.get(*position).and_then(Option::as_ref);
                if service.is_some_and(|service| service.origin == Origin::Kubernetes) {
                    let message = "this service is Kubernetes's: only its objects there change it";
                    return Err(Refusal::Weir(message.into()));
                }
                Ok(*position)
            }
            Some(Place::OnNode) => Err(Refusal::Weir(
                "this is a service's node port: only the configuration of weir changes it".into(),
            )),
        }
    }

    fn service(&self, key: Key) -> Result<&model::Service, Refusal> {
        let slot = self.slot(key)?;
        self.services.get(slot).and_then(Option::as_ref).ok_or(Refusal::NoService)
    }

    /// The service with this key, to be changed: one that has other addresses too is parted from them first, since in
    /// IPVS every address is a service by itself.
    fn own_service(&mut self, key: Key) -> Result<&mut model::Service, Refusal> {
        let mut slot = self.slot(key)?;
        let shared = self.services.get_mut(slot).and_then(Option::as_mut);
        if let Some(shared) = shared.filter(|shared| shared.vips().len() > 1) {
            let mut parted = shared.clone();
            without(shared, key);
            parted.name = free_name(key, |name| self.names.contains(name));
            parted.reach = reach(key);
            parted.node_port = None;
            slot = self.services.len();
            self.left.servers = self.left.servers.saturating_sub(parted.backends.len());
            self.insert(key, parted);
        }
        self.services.get_mut(slot).and_then(Option::as_mut).ok_or(Refusal::NoService)
    }
}

fn set(seconds: u32, timeout: Option<&mut u32>) {
    if let Some(timeout) = timeout
        && seconds > 0
    {
        *timeout = seconds;
    }
}

/// Takes an address from a service. Returns whether it has others.
fn without(service: &mut model::Service, key: Key) -> bool {
    let (Reach::Vips(vips), Key::Address { addr, .. }) = (&mut service.reach, key) else { return false };
    vips.addresses.retain(|vip| vip.ip() != addr);
    !vips.addresses.is_empty()
}

/// The keys by which the service is reached on the node's addresses.
fn on_node(service: &model::Service, draft: &Draft) -> impl Iterator<Item = Key> {
    let ours = service.node_port.zip(service.protocol()).filter(|_| service.clients() == Clients::All);
    let family = service.family();
    let own: Vec<_> = draft.node_addresses.iter().filter(|addr| addr.family() == family).copied().collect();
    own.into_iter().filter_map(move |addr| {
        let (port, protocol) = ours?;
        Some(address(addr, Some(port), protocol))
    })
}

fn find(service: &model::Service, server: ServerKey) -> Option<usize> {
    service.backends.iter().position(|backend| (backend.addr.ip(), backend.port_number()) == server)
}

/// What the kernel looks at before it looks for the server.
fn check(service: &model::Service, server: &Server) -> Result<(), Refusal> {
    let tunnels = matches!(server.forward, Forward::Tunnel { .. });
    if service.family() != Family::of(server.addr) && !tunnels {
        return Err(Refusal::Invalid);
    }
    if server.weight > model::WEIGHT_MAX || server.lower > server.upper {
        return Err(Refusal::Range);
    }
    match server.forward {
        Forward::Tunnel { kind: TunnelKind::Gue, port: 0, .. } => Err(Refusal::Invalid),
        _ => Ok(()),
    }
}
