//! The part of the configuration that a reload can change: services, SNAT pools, node addresses, timeouts.

use std::net::IpAddr;
use std::sync::Arc;

use dataplane::schedule::{Flags, Kind};
use dataplane::snapshot::{Mode, Timeouts};
use ipnet::IpNet;

use super::reader::{Field, Map};
use super::settings::NODE_ADDRESSES_MAX;
use crate::model::{
    AddressRange, Backend, Draft, Family, POOL_ADDRESSES_MAX, Port, Protocol, Reason, Scheduling, Service,
    SnatPool, Unicast, Weight,
};

/// SNAT pools at most.
const POOLS_MAX: usize = 256;
/// VIPs of one service at most.
const VIPS_MAX: usize = 256;
/// Entries of a list of scheduler flags at most, faulty ones included.
const FLAGS_MAX: usize = 16;
const NAME_MAX: usize = 253;
/// 30 days.
const TIMEOUT_MAX_S: u32 = 2_592_000;
/// Keys of `timeouts.tcp`, in the order of the states' numbers.
const TCP_STATES: [&str; 11] = [
    "none_s",
    "established_s",
    "syn_sent_s",
    "syn_recv_s",
    "fin_wait_s",
    "time_wait_s",
    "close_s",
    "close_wait_s",
    "last_ack_s",
    "listen_s",
    "synack_s",
];
const MODES: [(&str, Mode); 3] = [("nat", Mode::Nat), ("fullnat", Mode::FullNat), ("dr", Mode::Dr)];

/// Where in the file the parts of a draft stand: parts with faults of their own are not in the draft, so its positions
/// are not the file's.
#[derive(Debug, Default)]
pub(super) struct Sources {
    /// The index in `services` of each service, and in its `backends` of each backend.
    pub services: Vec<(usize, Vec<usize>)>,
    /// The index in `snat_pools` of each pool, and in its `addresses` of each range.
    pub pools: Vec<(usize, Vec<usize>)>,
    /// The index in `node_addresses` of each.
    pub node_addresses: Vec<usize>,
    /// Whether all pools and node addresses of the file are in the draft: where not, what a service misses may just be
    /// faulty.
    pub complete: bool,
}

/// What the document says, with faults noted and what has them left out or set to a default. Each of the `workers`
/// needs a port of every SNAT pool.
pub(super) fn read(document: &Map<'_, '_>, workers: u8) -> (Draft, Sources) {
    let mut draft = Draft { timeouts: read_timeouts(document), ..Draft::default() };
    let mut sources = Sources::default();
    let faults = document.faults();
    if let Some(list) = document.optional("node_addresses") {
        (sources.node_addresses, draft.node_addresses) = indexed(&list, NODE_ADDRESSES_MAX, read_unicast);
    }
    if let Some(list) = document.optional("snat_pools") {
        let (indices, pools) = indexed(&list, POOLS_MAX, |field| read_pool(field, workers));
        let (entries, pools): (Vec<_>, _) = pools.into_iter().unzip();
        sources.pools = indices.into_iter().zip(entries).collect();
        draft.pools = pools;
    }
    sources.complete = document.faults() == faults;
    if let Some(list) = document.optional("services") {
        let (indices, services) = indexed(&list, usize::MAX, read_service);
        let (backends, services): (Vec<_>, _) = services.into_iter().unzip();
        sources.services = indices.into_iter().zip(backends).collect();
        draft.services = services;
    }
    (draft, sources)
}

/// The entries that `read` can make sense of, with their indices in the file.
fn indexed<T>(
    list: &Field<'_, '_>,
    most: usize,
    read: impl Fn(&Field<'_, '_>) -> Option<T>,
) -> (Vec<usize>, Vec<T>) {
    list.list(most).enumerate().filter_map(|(index, field)| Some((index, read(&field)?))).unzip()
}

fn read_timeouts(document: &Map<'_, '_>) -> Timeouts {
    let mut timeouts = Timeouts::default();
    let section = document.optional("timeouts");
    let Some(map) = section.as_ref().and_then(|field| field.map(&["tcp", "udp_s"])) else { return timeouts };
    let seconds = |field: Option<Field<'_, '_>>| field?.number(1..=TIMEOUT_MAX_S);
    if let Some(udp) = seconds(map.optional("udp_s")) {
        timeouts.udp_s = udp;
    }
    let section = map.optional("tcp");
    if let Some(tcp) = section.as_ref().and_then(|field| field.map(&TCP_STATES)) {
        for (state, timeout) in TCP_STATES.into_iter().zip(&mut timeouts.tcp_s) {
            *timeout = seconds(tcp.optional(state)).unwrap_or(*timeout);
        }
    }
    timeouts
}

fn read_name(map: &Map<'_, '_>) -> Option<Arc<str>> {
    let field = map.required("name")?;
    let name = field.text()?;
    if name.len() > NAME_MAX {
        field.refuse(format_args!("a name has at most {NAME_MAX} bytes"));
    } else if name.is_empty() || name.contains(|c: char| c.is_whitespace() || c.is_control()) {
        field.refuse("a name has no blanks and is not empty");
    } else {
        return Some(name.into());
    }
    None
}

fn read_unicast(field: &Field<'_, '_>) -> Option<Unicast> {
    Unicast::new(field.parse()?).map_err(|error| field.refuse(error)).ok()
}

fn read_port(field: &Field<'_, '_>) -> Option<Port> {
    Port::new(field.number(1..=u16::MAX)?)
}

/// A pool, and the index of each of its ranges.
fn read_pool(field: &Field<'_, '_>, workers: u8) -> Option<(Vec<usize>, SnatPool)> {
    let map = field.map(&["name", "addresses", "ports"])?;
    let name = read_name(&map);
    let addresses = map.required("addresses");
    let (entries, ranges): (Vec<_>, Vec<_>) =
        addresses.as_ref().map(|list| indexed(list, POOL_ADDRESSES_MAX, read_range)).unwrap_or_default();
    if let Some(list) = addresses {
        let count: usize = ranges.iter().map(AddressRange::count).sum();
        if list.is_empty_list() {
            list.refuse("a SNAT pool needs at least one address");
        } else if count > POOL_ADDRESSES_MAX {
            list.refuse(format_args!("{count} addresses are more than {POOL_ADDRESSES_MAX}"));
        }
    }
    let (low, high) = match map.optional("ports") {
        None => (1024, u16::MAX),
        Some(field) => read_ports(&field, workers)?,
    };
    Some((entries, SnatPool { name: name?, ranges, low: Port::new(low)?, high: Port::new(high)? }))
}

fn read_ports(field: &Field<'_, '_>, workers: u8) -> Option<(u16, u16)> {
    let text = field.text()?;
    let ends = text.split_once('-').and_then(|(low, high)| Some((low.parse().ok()?, high.parse().ok()?)));
    let Some((low, high)) = ends.filter(|(low, _)| *low > 0) else {
        field.refuse(format_args!("{text:?} is not a range of ports such as 1024-65535"));
        return None;
    };
    let count = u32::from(high) + 1;
    let count = count.saturating_sub(u32::from(low));
    if low <= high && count < u32::from(workers) {
        field.refuse(format_args!("{count} ports are too few: each of the {workers} workers needs one"));
    }
    Some((low, high))
}

/// `a`, `a-b` or `a/length`.
fn read_range(field: &Field<'_, '_>) -> Option<AddressRange> {
    let text = field.text()?;
    let parse = |addr: &str| {
        addr.parse::<IpAddr>().map_err(|error| field.refuse(format_args!("{addr:?}: {error}"))).ok()
    };
    let (first, last) = if let Some((first, last)) = text.split_once('-') {
        (parse(first.trim())?, parse(last.trim())?)
    } else if text.contains('/') {
        let net = field.parse::<IpNet>()?;
        if net.addr() != net.network() {
            field.refuse(format_args!("{net} has bits set behind its prefix: did you mean {}?", net.trunc()));
            return None;
        }
        (net.network(), net.broadcast())
    } else {
        let addr = parse(text)?;
        (addr, addr)
    };
    AddressRange::new(first, last).map_err(|error| field.refuse(error)).ok()
}

/// A service, and the index of each of its backends. Everything is read before anything is given up.
fn read_service(field: &Field<'_, '_>) -> Option<(Vec<usize>, Service)> {
    let map = field.map(&[
        "name",
        "vip",
        "vips",
        "port",
        "protocol",
        "node_port",
        "scheduler",
        "scheduler_flags",
        "mode",
        "snat_pool",
        "announce",
        "backends",
    ])?;
    let name = read_name(&map);
    let vips = read_vips(field, &map);
    let port = map.required("port").and_then(|field| read_port(&field));
    let protocol = match map.optional("protocol") {
        None => Some(Protocol::default()),
        Some(field) => read_protocol(&field),
    };
    let mode = map.optional("mode").and_then(|field| field.word(&MODES)).unwrap_or(Mode::Nat);
    // Looked at here and not when the draft is checked: other faults of the service must not hide it.
    let family = vips.as_ref().and_then(|vips| vips.first()).map(|vip| vip.family());
    let backends = map.optional("backends");
    let (indices, backends) = backends
        .map(|list| indexed(&list, usize::MAX, |field| read_backend(field, mode, family)))
        .unwrap_or_default();
    let service = Service {
        node_port: map.optional("node_port").and_then(|field| read_port(&field)),
        scheduling: read_scheduling(&map),
        pool: map.optional("snat_pool").and_then(|field| field.text().map(Into::into)),
        announce: map.optional("announce").and_then(|field| field.flag()).unwrap_or(true),
        name: name?,
        vips: vips?,
        port: port?,
        protocol: protocol?,
        backends,
    };
    Some((indices, service))
}

/// The addresses of `vip` or `vips`; `None` where there is a fault, so that no later check counts on them.
fn read_vips(service: &Field<'_, '_>, map: &Map<'_, '_>) -> Option<Vec<Unicast>> {
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

fn read_protocol(field: &Field<'_, '_>) -> Option<Protocol> {
    let words = [("tcp", Some(Protocol::Tcp)), ("udp", Some(Protocol::Udp)), ("sctp", None)];
    let known = field.word(&words)?;
    if known.is_none() {
        field.refuse("sctp is not available in this version");
    }
    known
}

fn read_scheduling(map: &Map<'_, '_>) -> Scheduling {
    let kind = map.optional("scheduler").and_then(|field| read_kind(&field));
    let mut flags = Flags::default();
    if let Some(list) = map.optional("scheduler_flags") {
        for field in list.list(FLAGS_MAX) {
            let Some(name) = field.text() else { continue };
            match flags.with(name) {
                Ok(with) if with == flags => field.refuse(format_args!("{name} is already in this list")),
                Ok(with) => flags = with,
                Err(error) => field.refuse(format_args!("{error}, known are {}", Flags::NAMES.join(", "))),
            }
        }
    }
    Scheduling { kind: kind.unwrap_or(Kind::Rr), flags }
}

fn read_kind(field: &Field<'_, '_>) -> Option<Kind> {
    let name = field.text()?;
    match name.parse::<Kind>() {
        Ok(kind) if kind.is_available() => return Some(kind),
        Ok(kind) => field.refuse(format_args!("scheduler {kind} is not available in this version")),
        Err(error) => {
            let names: Vec<_> = Kind::ALL.iter().map(|kind| kind.name()).collect();
            field.refuse(format_args!("{error}, known are {}", names.join(", ")));
        }
    }
    None
}

fn read_backend(field: &Field<'_, '_>, mode: Mode, family: Option<Family>) -> Option<Backend> {
    let map = field.map(&["address", "port", "weight", "mode"])?;
    let addr = map.required("address").and_then(|field| {
        let addr = read_unicast(&field)?;
        let family = family.filter(|family| *family != addr.family());
        let reason = family.map(|family| Reason::BackendFamily { addr: addr.ip(), family });
        reason.map_or(Some(addr), |reason| {
            field.refuse(reason);
            None
        })
    });
    let port = map.required("port").and_then(|field| read_port(&field));
    let weight = map.optional("weight").and_then(|field| field.number(0..=u16::MAX));
    let mode = map.optional("mode").and_then(|field| field.word(&MODES)).unwrap_or(mode);
    Some(Backend { addr: addr?, port: port?, weight: weight.map(Weight).unwrap_or_default(), mode })
}
