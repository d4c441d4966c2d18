//! Services and their backends.

use std::net::Ipv4Addr;
use std::num::NonZeroU32;

use dataplane::schedule::{Flags, Kind};
use dataplane::snapshot::{Engine, Mode, Options, SynProxy, Tunnel, TunnelChecksum};

use super::desired::{indexed, read_name, read_unicast};
use super::reader::{Field, Map};
use super::rules::{read_list, read_mark, read_prefix};
use crate::model::{
    Access, Backend, Clients, Family, Masquerade, Netmask, Origin, Persistence, Port, Protocol, Reach,
    Reason, SECONDS_MAX, Scheduling, Service, Unicast, Vips, WEIGHT_MAX, Weight, WhenEmpty,
};

/// VIPs of one service at most.
const VIPS_MAX: usize = 256;
/// Entries of a list of scheduler flags at most, faulty ones included.
const FLAGS_MAX: usize = 16;
/// How long ipvsadm remembers a client where nothing else is said.
const PERSISTENCE_S: u32 = 360;
/// Largest segments that make sense: what every IPv4 host takes at least once, less two headers, to what fits a packet.
const MSS: std::ops::RangeInclusive<u16> = 64..=65_495;
pub(super) const MODES: [(&str, Mode); 6] = [
    ("nat", Mode::Nat),
    ("fullnat", Mode::FullNat),
    ("dr", Mode::Dr),
    ("ipip", Mode::Ipip),
    ("gue", Mode::Gue),
    ("gre", Mode::Gre),
];
const ENGINES: [(&str, Engine); 1] = [("sip", Engine::Sip)];
pub(super) const PROTOCOLS: [(&str, Protocol); 3] =
    [("tcp", Protocol::Tcp), ("udp", Protocol::Udp), ("sctp", Protocol::Sctp)];
const CHECKSUMS: [(&str, TunnelChecksum); 3] =
    [("none", TunnelChecksum::None), ("full", TunnelChecksum::Full), ("remote", TunnelChecksum::Remote)];
pub(super) const MASQUERADES: [(&str, Masquerade); 3] =
    [("hairpin", Masquerade::Hairpin), ("not-local", Masquerade::NotLocal), ("always", Masquerade::Always)];
pub(super) const WHEN_EMPTY: [(&str, WhenEmpty); 2] =
    [("reject", WhenEmpty::Reject), ("drop", WhenEmpty::Drop)];
pub(super) const CLIENTS: [(&str, Clients); 2] = [("all", Clients::All), ("inside", Clients::Inside)];
/// Keys that a service with a mark has not.
const OF_VIPS: [&str; 5] = ["vip", "vips", "port", "protocol", "clients"];

/// What the backends of a service take from it.
struct Defaults {
    family: Option<Family>,
    port: Option<Port>,
    mode: Mode,
    tunnel: Tunnel,
}

/// A service, and the index of each of its backends. Everything is read before anything is given up.
pub(super) fn read_service(field: &Field<'_, '_>) -> Option<(Vec<usize>, Service)> {
    let map = field.map(&[
        "name",
        "vip",
        "vips",
        "port",
        "protocol",
        "mark",
        "family",
        "node_port",
        "clients",
        "scheduler",
        "scheduler_flags",
        "persistence",
        "persistence_engine",
        "one_packet",
        "mode",
        "tunnel",
        "snat_pool",
        "announce",
        "source_ranges",
        "masquerade",
        "when_empty",
        "stateless_fallback",
        "proxy_protocol",
        "toa",
        "mss",
        "syn_proxy",
        "drain_s",
        "move_udp",
        "backends",
    ])?;
    let name = read_name(&map);
    let reach = read_reach(field, &map);
    // Looked at here and not when the draft is checked: other faults of the service must not hide it.
    let family = reach.family;
    let defaults = Defaults {
        family,
        port: reach.port,
        mode: map.optional("mode").and_then(|field| field.word(&MODES)).unwrap_or(Mode::Nat),
        tunnel: read_tunnel(&map).unwrap_or_default(),
    };
    let backends = map.optional("backends");
    let (indices, backends) = backends
        .map(|list| indexed(&list, usize::MAX, |field| read_backend(field, &defaults)))
        .unwrap_or_default();
    let flag = |key| map.optional(key).and_then(|field| field.flag());
    let service = Service {
        group: None,
        access: read_access(&map, family),
        node_port: map.optional("node_port").and_then(|field| read_port(&field)),
        scheduling: read_scheduling(&map),
        persistence: map.optional("persistence").and_then(|field| read_persistence(&field, family)),
        engine: map.optional("persistence_engine").and_then(|field| field.word(&ENGINES)),
        one_packet: flag("one_packet").unwrap_or(false),
        options: read_options(&map),
        pool: map.optional("snat_pool").and_then(|field| field.text().map(Into::into)),
        announce: flag("announce").unwrap_or(true),
        backends: backends.into(),
        origin: Origin::Configuration,
        name: name?,
        reach: reach.reach?,
    };
    Some((indices, service))
}

/// What of a service's reach is known, whatever else of it is faulty.
#[derive(Default)]
struct Known {
    reach: Option<Reach>,
    family: Option<Family>,
    port: Option<Port>,
}

fn read_reach(service: &Field<'_, '_>, map: &Map<'_, '_>) -> Known {
    let Some(mark) = map.optional("mark") else { return read_vips(service, map) };
    for key in OF_VIPS {
        if let Some(field) = map.optional(key) {
            field.refuse(format_args!("a service has \"mark\" or {key:?}, not both"));
        }
    }
    let families = [("ipv4", Family::V4), ("ipv6", Family::V6)];
    let family = match map.optional("family") {
        None => Some(Family::V4),
        Some(field) => field.word(&families),
    };
    let mark = read_mark(&mark);
    let reach = mark.zip(family).map(|(mark, family)| Reach::Mark { mark, family });
    Known { reach, family, port: None }
}

fn read_vips(service: &Field<'_, '_>, map: &Map<'_, '_>) -> Known {
    if let Some(field) = map.optional("family") {
        field.refuse("only a service with a mark is told its family");
    }
    let addresses = read_addresses(service, map);
    let port = map.required("port").and_then(|field| field.number(0..=u16::MAX));
    let protocol = match map.optional("protocol") {
        None => Some(Protocol::default()),
        Some(field) => field.word(&PROTOCOLS),
    };
    let clients = map.optional("clients").and_then(|field| field.word(&CLIENTS)).unwrap_or_default();
    let family = addresses.as_ref().and_then(|vips| vips.first()).map(|vip| vip.family());
    let known = Known { reach: None, family, port: port.and_then(Port::new) };
    let (Some(addresses), Some(port), Some(protocol)) = (addresses, port, protocol) else { return known };
    Known {
        reach: family
            .map(|family| Reach::Vips(Vips { family, addresses, port: Port::new(port), protocol, clients })),
        ..known
    }
}

fn read_access(map: &Map<'_, '_>, family: Option<Family>) -> Access {
    let sources = map.optional("source_ranges").map(|_| {
        let of_family = |field: &Field<'_, '_>| {
            let net = read_prefix(field)?;
            let other = family.filter(|family| *family != Family::of(net.addr()));
            if let Some(family) = other {
                field.refuse(format_args!(
                    "{net} is {}, the service is {}",
                    family.other().name(),
                    family.name()
                ));
            }
            Some(net)
        };
        read_list(map, "source_ranges", of_family).into()
    });
    Access {
        sources,
        masquerade: map.optional("masquerade").and_then(|field| field.word(&MASQUERADES)).unwrap_or_default(),
        when_empty: map.optional("when_empty").and_then(|field| field.word(&WHEN_EMPTY)).unwrap_or_default(),
    }
}

/// The addresses of `vip` or `vips`; `None` where there is a fault, so that no later check counts on them.
fn read_addresses(service: &Field<'_, '_>, map: &Map<'_, '_>) -> Option<Vec<Unicast>> {
    match (map.optional("vip"), map.optional("vips")) {
        (Some(_), Some(_)) => service.refuse("give \"vip\" or \"vips\", not both"),
        (None, None) => service.refuse("\"vip\" is missing"),
        (Some(vip), None) => return Some(vec![read_unicast(&vip)?]),
        (None, Some(list)) => {
            let faults = map.faults();
            let (_, vips) = indexed(&list, VIPS_MAX, read_unicast);
            if list.is_empty_list() {
                list.refuse("a service needs at least one VIP");
            }
            return (map.faults() == faults).then_some(vips);
        }
    }
    None
}

fn read_port(field: &Field<'_, '_>) -> Option<Port> {
    Port::new(field.number(1..=u16::MAX)?)
}

fn read_persistence(field: &Field<'_, '_>, family: Option<Family>) -> Option<Persistence> {
    let map = field.map(&["timeout_s", "netmask"])?;
    let timeout = match map.optional("timeout_s") {
        None => Some(PERSISTENCE_S),
        Some(field) => field.number(1..=SECONDS_MAX),
    };
    let netmask = map.optional("netmask").and_then(|field| read_netmask(&field, family?));
    Some(Persistence { timeout_s: NonZeroU32::new(timeout?)?, netmask })
}

/// The length of a prefix, or a mask of IPv4 as an address.
fn read_netmask(field: &Field<'_, '_>, family: Family) -> Option<Netmask> {
    match family {
        Family::V4 if !field.is_number() => field.parse::<Ipv4Addr>().map(Netmask::V4),
        Family::V4 => {
            let len: u8 = field.number(0..=32)?;
            let bits = u32::MAX.checked_shl(32 - u32::from(len)).unwrap_or(0);
            Some(Netmask::V4(Ipv4Addr::from_bits(bits)))
        }
        Family::V6 => field.number(1..=128).map(Netmask::V6),
    }
}

fn read_options(map: &Map<'_, '_>) -> Options {
    let flag = |key| map.optional(key).and_then(|field| field.flag()).unwrap_or(false);
    Options {
        stateless_fallback: flag("stateless_fallback"),
        proxy_protocol: flag("proxy_protocol"),
        toa: flag("toa"),
        mss: map.optional("mss").and_then(|field| read_mss(&field)),
        syn_proxy: map.optional("syn_proxy").and_then(|field| read_syn_proxy(&field)).unwrap_or_default(),
        drain_s: map.optional("drain_s").and_then(|field| field.number(0..=SECONDS_MAX)),
        move_udp: flag("move_udp"),
    }
}

/// A number, or 0 for `auto`.
fn read_mss(field: &Field<'_, '_>) -> Option<u16> {
    if field.is_number() { field.number(MSS) } else { field.word(&[("auto", 0)]) }
}

/// `off`, `always` or `{above: number}`.
fn read_syn_proxy(field: &Field<'_, '_>) -> Option<SynProxy> {
    if field.is_map() {
        let map = field.map(&["above"])?;
        return map.required("above")?.number(0..=u32::MAX).map(SynProxy::Above);
    }
    field.word(&[("off", SynProxy::Off), ("always", SynProxy::Always)])
}

/// The scheduler with its flags, `rr` where nothing is said.
pub(super) fn read_scheduling(map: &Map<'_, '_>) -> Scheduling {
    let kind = map.optional("scheduler").map_or(Some(Kind::Rr), |field| read_kind(&field));
    let mut flags = Flags::default();
    // The names of flags depend on the scheduler: without it there is nothing to say about them.
    if let (Some(kind), Some(list)) = (kind, map.optional("scheduler_flags")) {
        for field in list.list(FLAGS_MAX) {
            let Some(name) = field.text() else { continue };
            match flags.with(kind, name) {
                Ok(with) if with == flags => field.refuse(format_args!("{name} is already in this list")),
                Ok(with) => flags = with,
                Err(error) => {
                    field.refuse(format_args!("{error}, known are {}", Flags::known(kind).join(", ")));
                }
            }
        }
    }
    Scheduling { kind: kind.unwrap_or(Kind::Rr), flags }
}

fn read_kind(field: &Field<'_, '_>) -> Option<Kind> {
    let name = field.text()?;
    match name.parse::<Kind>() {
        Ok(kind) => return Some(kind),
        Err(error) => {
            let names: Vec<_> = Kind::ALL.iter().map(|kind| kind.name()).collect();
            field.refuse(format_args!("{error}, known are {}", names.join(", ")));
        }
    }
    None
}

fn read_tunnel(map: &Map<'_, '_>) -> Option<Tunnel> {
    let section = map.optional("tunnel")?;
    let map = section.map(&["port", "checksum"])?;
    Some(Tunnel {
        port: map.optional("port").and_then(|field| field.number(1..=u16::MAX)).unwrap_or(0),
        checksum: map.optional("checksum").and_then(|field| field.word(&CHECKSUMS)).unwrap_or_default(),
    })
}

fn read_backend(field: &Field<'_, '_>, service: &Defaults) -> Option<Backend> {
    let map =
        field.map(&["address", "port", "weight", "mode", "tunnel", "upper_threshold", "lower_threshold"])?;
    let mode = map.optional("mode").and_then(|field| field.word(&MODES)).unwrap_or(service.mode);
    let crosses = mode == Mode::FullNat || mode.is_tunnel();
    let addr = map.required("address").and_then(|field| {
        let addr = read_unicast(&field)?;
        let family = service.family.filter(|family| *family != addr.family() && !crosses);
        let reason = family.map(|family| Reason::BackendFamily { addr: addr.ip(), family });
        reason.map_or(Some(addr), |reason| {
            field.refuse(reason);
            None
        })
    });
    let port = match map.optional("port") {
        None => Some(service.port),
        Some(field) => field.number(0..=u16::MAX).map(Port::new),
    };
    let number = |key, most| map.optional(key).and_then(|field| field.number(0..=most));
    let weight = number("weight", WEIGHT_MAX).map(Weight).unwrap_or_default();
    // What the service says of its tunnels is about the ones of its own mode.
    let inherited = if mode == service.mode { service.tunnel } else { Tunnel::default() };
    let tunnel = read_tunnel(&map).unwrap_or(inherited);
    let upper = number("upper_threshold", u32::MAX).unwrap_or(0);
    let lower = number("lower_threshold", u32::MAX).unwrap_or(0);
    Some(Backend { addr: addr?, port: port?, weight, mode, tunnel, upper, lower })
}
