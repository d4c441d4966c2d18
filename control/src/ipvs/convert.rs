//! Between the words of IPVS and those of the model.

use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroU32;
use std::sync::Arc;

use dataplane::schedule::{Flags, Kind};
use dataplane::snapshot::{Engine, Mode, Tunnel, TunnelChecksum as Checksum};

use super::command::{
    Forward, Key, Netmask, Protocol, Refusal, SchedulerFlags, Server, Service, TunnelChecksum, TunnelKind,
};
use crate::model::{
    self, Backend, Clients, Family, Persistence, Port, Reach, Scheduling, Unicast, Vips, Weight,
};

/// The protocol as the model has it.
pub(super) fn protocol(protocol: Protocol) -> model::Protocol {
    match protocol {
        Protocol::Tcp => model::Protocol::Tcp,
        Protocol::Udp => model::Protocol::Udp,
        Protocol::Sctp => model::Protocol::Sctp,
    }
}

fn protocol_of(protocol: model::Protocol) -> Protocol {
    match protocol {
        model::Protocol::Tcp => Protocol::Tcp,
        model::Protocol::Udp => Protocol::Udp,
        model::Protocol::Sctp => Protocol::Sctp,
    }
}

fn family(v6: bool) -> Family {
    if v6 { Family::V6 } else { Family::V4 }
}

/// What leads packets to the service with this key.
pub(super) fn reach(key: Key) -> Reach {
    match key {
        Key::Address { protocol: of, addr, port } => Reach::Vips(Vips {
            family: Family::of(addr),
            addresses: vec![Unicast::unchecked(addr)],
            port: Port::new(port),
            protocol: protocol(of),
            clients: Clients::All,
        }),
        Key::Mark { mark, v6 } => Reach::Mark { mark, family: family(v6) },
    }
}

/// The keys that a service is found by, without its node port. None of one for clients inside: IPVS knows no such, and
/// the same addresses lead others to another service.
pub(super) fn keys(service: &model::Service) -> Vec<Key> {
    match &service.reach {
        Reach::Vips(Vips { clients: Clients::Inside, .. }) => Vec::new(),
        Reach::Vips(vips) => {
            vips.addresses.iter().map(|vip| address(*vip, vips.port, vips.protocol)).collect()
        }
        Reach::Mark { mark, family } => vec![Key::Mark { mark: *mark, v6: *family == Family::V6 }],
    }
}

/// The key of an address, port and protocol.
pub(super) fn address(addr: Unicast, port: Option<Port>, protocol: model::Protocol) -> Key {
    Key::Address { protocol: protocol_of(protocol), addr: addr.ip(), port: model::port_number(port) }
}

/// A name for a service that was not given one.
pub(super) fn name(key: Key) -> String {
    match key {
        Key::Address { protocol: of, addr, port } => format!("{}-{addr}-{port}", protocol(of).name()),
        Key::Mark { mark, v6: false } => format!("mark-{mark}"),
        Key::Mark { mark, v6: true } => format!("mark-{mark}-ipv6"),
    }
}

/// How the service chooses; the kernel's error where there is no such scheduler.
pub(super) fn scheduling(of: &Service) -> Result<Scheduling, Refusal> {
    let kind: Kind = of.scheduler.parse().map_err(|_| Refusal::NoEntry)?;
    Ok(Scheduling { kind, flags: flags(of.flags) })
}

fn flags(of: SchedulerFlags) -> Flags {
    Flags { fallback: of.first, port: of.second, third: of.third }
}

fn flags_of(flags: Flags) -> SchedulerFlags {
    SchedulerFlags { first: flags.fallback, second: flags.port, third: flags.third }
}

/// The persistence engine, which a service may have without persistence; the kernel's error where there is no such one.
pub(super) fn engine(of: &Service) -> Result<Option<Engine>, Refusal> {
    if of.engine.is_empty() {
        return Ok(None);
    }
    let named = Engine::ALL.into_iter().find(|engine| engine.name() == of.engine);
    named.map(Some).ok_or(Refusal::NoEntry)
}

/// Whether, and how, clients stay with their server.
pub(super) fn persistence(of: &Service) -> Result<Option<Persistence>, Refusal> {
    let Some(seconds) = of.persistent_s else { return Ok(None) };
    let timeout_s = NonZeroU32::new(seconds).filter(|seconds| seconds.get() <= model::SECONDS_MAX);
    let netmask = match of.netmask {
        mask if mask.is_single() => None,
        Netmask::V4(mask) => Some(model::Netmask::V4(mask)),
        Netmask::V6(len @ 1..=128) => Some(model::Netmask::V6(len)),
        Netmask::V6(_) => return Err(Refusal::Invalid),
    };
    Ok(Some(Persistence { timeout_s: timeout_s.ok_or(Refusal::Invalid)?, netmask }))
}

/// The server as the model has it.
pub(super) fn backend(of: &Server) -> Result<Backend, Refusal> {
    let (mode, tunnel) = match of.forward {
        Forward::Masq => (Mode::Nat, Tunnel::default()),
        Forward::Route => (Mode::Dr, Tunnel::default()),
        Forward::Tunnel { kind, port, checksum } => {
            let mode = match kind {
                TunnelKind::Ipip => Mode::Ipip,
                TunnelKind::Gue => Mode::Gue,
                TunnelKind::Gre => Mode::Gre,
            };
            let checksum = match checksum {
                TunnelChecksum::None => Checksum::None,
                TunnelChecksum::Full => Checksum::Full,
                TunnelChecksum::Remote => Checksum::Remote,
            };
            (mode, Tunnel { port, checksum })
        }
        Forward::FullNat => return Err(Refusal::Invalid),
    };
    Ok(Backend {
        addr: Unicast::new(of.addr).map_err(|_| Refusal::Invalid)?,
        port: Port::new(of.port),
        weight: Weight(of.weight),
        mode,
        tunnel,
        upper: of.upper,
        lower: of.lower,
    })
}

/// The service as IPVS has it, under one of its keys.
pub(super) fn service_of(key: Key, service: &model::Service) -> Service {
    let single = if key.is_v6() { Netmask::V6(128) } else { Netmask::V4(Ipv4Addr::BROADCAST) };
    let netmask = service.persistence.and_then(|persistence| persistence.netmask);
    Service {
        key,
        scheduler: service.scheduling.kind.name().to_owned(),
        flags: flags_of(service.scheduling.flags),
        persistent_s: service.persistence.map(|persistence| persistence.timeout_s.get()),
        netmask: match netmask {
            None => single,
            Some(model::Netmask::V4(mask)) => Netmask::V4(mask),
            Some(model::Netmask::V6(len)) => Netmask::V6(len),
        },
        one_packet: service.one_packet,
        engine: service.engine.map(Engine::name).unwrap_or_default().to_owned(),
    }
}

/// The backend as IPVS has it.
pub(super) fn server_of(backend: &dataplane::snapshot::Backend) -> Server {
    let checksum = match backend.tunnel.checksum {
        Checksum::None => TunnelChecksum::None,
        Checksum::Full => TunnelChecksum::Full,
        Checksum::Remote => TunnelChecksum::Remote,
    };
    let tunnel = |kind| Forward::Tunnel { kind, port: backend.tunnel.port, checksum };
    Server {
        addr: backend.addr,
        port: backend.port,
        forward: match backend.mode {
            Mode::Nat => Forward::Masq,
            Mode::FullNat => Forward::FullNat,
            Mode::Dr => Forward::Route,
            Mode::Ipip => tunnel(TunnelKind::Ipip),
            Mode::Gue => tunnel(TunnelKind::Gue),
            Mode::Gre => tunnel(TunnelKind::Gre),
        },
        weight: backend.weight,
        upper: backend.upper,
        lower: backend.lower,
    }
}

/// Whether a host may have this address, so that Weir can answer for it.
pub(super) fn is_a_hosts(addr: IpAddr) -> bool {
    Unicast::new(addr).is_ok()
}

/// A name that is not `taken`.
pub(super) fn free_name(key: Key, taken: impl Fn(&str) -> bool) -> Arc<str> {
    let name = name(key);
    if !taken(&name) {
        return name.into();
    }
    let mut others = (2_u32..).map(|number| format!("{name}-{number}"));
    others.find(|name| !taken(name)).unwrap_or(name).into()
}
