//! What the kernel says by rtnetlink, as types of Weir's own: each message is read once, here.

use std::net::IpAddr;
use std::sync::Arc;

use dataplane::snapshot::net::{Neighbour, Path, Prefix4, Prefix6, Route};
use rtnetlink::packet_core::{NLM_F_REPLACE, NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::packet_route::link::{
    InfoData, InfoKind, InfoVlan, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage,
};
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteMetric, RouteType, RouteVia,
};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};

/// A network interface of the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelLink {
    /// Its index.
    pub index: u32,
    /// Its name.
    pub name: Arc<str>,
    /// Its MAC address; zero for a link that is not Ethernet.
    pub mac: [u8; 6],
    /// Largest IP packet in bytes.
    pub mtu: u32,
    /// Administratively up, with a carrier.
    pub up: bool,
    /// For a VLAN link: the index of the link below, the TPID and the VLAN id.
    pub vlan: Option<(u32, u16, u16)>,
    /// Whether it is one end of a veth pair.
    pub veth: bool,
}

/// A neighbour entry of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelNeighbour {
    /// Its MAC address, where frames may be sent to it: `NUD_REACHABLE`, `STALE`, `DELAY`, `PROBE`, `PERMANENT`
    /// or `NOARP`.
    pub mac: Option<[u8; 6]>,
    /// Set by hand (`NUD_PERMANENT`) or by the kind of link (`NUD_NOARP`): it is never asked for.
    pub fixed: bool,
}

/// The routing tables that the default rules of the kernel look into, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Table {
    /// Table 255.
    Local,
    /// Table 254.
    Main,
}

/// What tells one route of the kernel from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RouteKey<P> {
    /// Its table.
    pub table: Table,
    /// Its destination.
    pub prefix: P,
    /// Its metric: of several routes with one destination the lowest is used.
    pub metric: u32,
}

/// A route of either family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KernelRoute {
    /// IPv4.
    V4(RouteKey<Prefix4>, Route),
    /// IPv6.
    V6(RouteKey<Prefix6>, Route),
}

/// One notification.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A link is new or changed.
    Link(KernelLink),
    /// A link is gone.
    LinkGone(u32),
    /// A link has this address and prefix length.
    Address(u32, IpAddr, u8),
    /// A link has lost this address.
    AddressGone(u32, IpAddr, u8),
    /// A route is there. It takes the place of its like where `replace` is set.
    Route {
        /// The route.
        route: KernelRoute,
        /// Whether it takes the place of the one that has its key.
        replace: bool,
    },
    /// A route is gone.
    RouteGone(KernelRoute),
    /// A neighbour is new or changed.
    Neighbour(Neighbour, KernelNeighbour),
    /// A neighbour is gone.
    NeighbourGone(Neighbour),
    /// Notifications were lost: all has to be read again.
    Overrun,
}

/// Reads one message; `None` for what Weir has no use for.
pub fn read(message: NetlinkMessage<RouteNetlinkMessage>) -> Option<Event> {
    use RouteNetlinkMessage as M;
    let replace = message.header.flags & NLM_F_REPLACE != 0;
    let inner = match message.payload {
        NetlinkPayload::InnerMessage(inner) => inner,
        NetlinkPayload::Overrun(_) => return Some(Event::Overrun),
        _ => return None,
    };
    match inner {
        M::NewLink(m) => link(&m).map(Event::Link),
        M::DelLink(m) => is_device(&m).then_some(Event::LinkGone(m.header.index)),
        M::NewAddress(m) => address(&m).map(|(link, addr, len)| Event::Address(link, addr, len)),
        M::DelAddress(m) => address(&m).map(|(link, addr, len)| Event::AddressGone(link, addr, len)),
        M::NewRoute(m) => route(&m).map(|route| Event::Route { route, replace }),
        M::DelRoute(m) => route(&m).map(Event::RouteGone),
        M::NewNeighbour(m) => neighbour(&m).map(|(place, entry)| Event::Neighbour(place, entry)),
        M::DelNeighbour(m) => neighbour(&m).map(|(place, _)| Event::NeighbourGone(place)),
        _ => None,
    }
}

/// Whether the message is about the device itself, not about its membership of a bridge.
fn is_device(message: &LinkMessage) -> bool {
    message.header.interface_family == AddressFamily::Unspec
}

/// Reads a link. `None` for messages about something else than the device and for those without a name.
pub fn link(message: &LinkMessage) -> Option<KernelLink> {
    if !is_device(message) {
        return None;
    }
    let header = &message.header;
    let up = header.flags.contains(LinkFlags::Up | LinkFlags::LowerUp);
    let mut name = None;
    let mut link = KernelLink {
        index: header.index,
        name: Arc::from(""),
        mac: [0; 6],
        mtu: 0,
        up,
        vlan: None,
        veth: false,
    };
    let (mut lower, mut elsewhere, mut tag) = (None, false, None);
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(value) => name = Some(Arc::from(value.as_str())),
            LinkAttribute::Mtu(value) => link.mtu = *value,
            LinkAttribute::Address(bytes) if header.link_layer_type == LinkLayerType::Ether => {
                link.mac = bytes.as_slice().try_into().unwrap_or_default();
            }
            LinkAttribute::Link(index) => lower = Some(*index),
            LinkAttribute::LinkNetNsId(_) => elsewhere = true,
            LinkAttribute::LinkInfo(infos) => {
                link.veth = infos.contains(&LinkInfo::Kind(InfoKind::Veth));
                tag = infos.iter().find_map(vlan_tag);
            }
            _ => {}
        }
    }
    link.name = name?;
    // The link below a VLAN link may lie in another namespace; its index then means nothing here.
    if let (Some(lower), Some((tpid, vid)), false) = (lower, tag, elsewhere) {
        link.vlan = Some((lower, tpid, vid));
    }
    Some(link)
}

/// TPID and VLAN id of a VLAN link.
fn vlan_tag(info: &LinkInfo) -> Option<(u16, u16)> {
    let LinkInfo::Data(InfoData::Vlan(attributes)) = info else { return None };
    let (mut tpid, mut vid) = (0x8100, None);
    for attribute in attributes {
        match attribute {
            InfoVlan::Id(value) => vid = Some(*value),
            InfoVlan::Protocol(value) => tpid = u16::from(*value),
            _ => {}
        }
    }
    vid.map(|vid| (tpid, vid))
}

/// Reads an address as (link, address, prefix length).
pub fn address(message: &AddressMessage) -> Option<(u32, IpAddr, u8)> {
    let mut found = None;
    for attribute in &message.attributes {
        match attribute {
            // On a point-to-point link `Address` is the peer's and `Local` this host's.
            AddressAttribute::Local(addr) => found = Some(*addr),
            AddressAttribute::Address(addr) => found = found.or(Some(*addr)),
            _ => {}
        }
    }
    Some((message.header.index, found?, message.header.prefix_len))
}

/// Reads a neighbour. `None` for bridge forwarding entries, proxies and multicast groups.
pub fn neighbour(message: &NeighbourMessage) -> Option<(Neighbour, KernelNeighbour)> {
    if message.header.flags.contains(NeighbourFlags::Proxy) {
        return None;
    }
    let mut addr = None;
    let mut mac = None;
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => addr = Some(IpAddr::V4(*v4)),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => addr = Some(IpAddr::V6(*v6)),
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = bytes.as_slice().try_into().ok(),
            _ => {}
        }
    }
    use NeighbourState as S;
    let state = message.header.state;
    let usable = matches!(state, S::Reachable | S::Stale | S::Delay | S::Probe | S::Permanent | S::Noarp);
    let fixed = matches!(state, S::Permanent | S::Noarp);
    let place = Neighbour { link: message.header.ifindex, addr: addr.filter(|addr| !addr.is_multicast())? };
    Some((place, KernelNeighbour { mac: mac.filter(|_| usable), fixed }))
}

/// Reads a route. `None` for other tables than local and main, for routes by type of service or source, for
/// cached clones and for types that say nothing about a destination.
pub fn route(message: &RouteMessage) -> Option<KernelRoute> {
    let header = &message.header;
    if header.tos != 0 || header.source_prefix_length != 0 || header.flags.contains(RouteFlags::Cloned) {
        return None;
    }
    let (mut number, mut metric, mut destination) = (u32::from(header.table), 0, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Table(value) => number = *value,
            RouteAttribute::Priority(value) => metric = *value,
            RouteAttribute::Destination(value) => destination = Some(value),
            _ => {}
        }
    }
    let table = match number {
        255 => Table::Local,
        254 => Table::Main,
        _ => return None,
    };
    let target = match header.kind {
        RouteType::Unicast => Route::Via(paths(&message.attributes)),
        RouteType::Local | RouteType::Anycast => Route::Local,
        // In the local table `throw` only sends the search on to the main table.
        RouteType::Throw if table == Table::Local => return None,
        RouteType::BlackHole
        | RouteType::Unreachable
        | RouteType::Prohibit
        | RouteType::Throw
        | RouteType::Broadcast
        | RouteType::Multicast => Route::Refused,
        _ => return None,
    };
    let len = header.destination_prefix_length;
    match (header.address_family, destination) {
        (AddressFamily::Inet, None) => {
            Some(KernelRoute::V4(RouteKey { table, prefix: (0, len), metric }, target))
        }
        (AddressFamily::Inet, Some(RouteAddress::Inet(v4))) => {
            Some(KernelRoute::V4(RouteKey { table, prefix: (v4.to_bits(), len), metric }, target))
        }
        (AddressFamily::Inet6, None) => {
            Some(KernelRoute::V6(RouteKey { table, prefix: (0, len), metric }, target))
        }
        (AddressFamily::Inet6, Some(RouteAddress::Inet6(v6))) => {
            Some(KernelRoute::V6(RouteKey { table, prefix: (v6.to_bits(), len), metric }, target))
        }
        _ => None,
    }
}

/// The paths of a unicast route. Preferred source and MTU are the route's, for all its paths.
fn paths(attributes: &[RouteAttribute]) -> Vec<Path> {
    let mut paths = bare_paths(attributes);
    for attribute in attributes {
        match attribute {
            RouteAttribute::PrefSource(RouteAddress::Inet(v4)) => {
                paths.iter_mut().for_each(|path| path.source = Some(IpAddr::V4(*v4)));
            }
            RouteAttribute::PrefSource(RouteAddress::Inet6(v6)) => {
                paths.iter_mut().for_each(|path| path.source = Some(IpAddr::V6(*v6)));
            }
            RouteAttribute::Metrics(metrics) => {
                let mtu = metrics.iter().find_map(|metric| match metric {
                    RouteMetric::Mtu(mtu) => Some(u16::try_from(*mtu).unwrap_or(u16::MAX)),
                    _ => None,
                });
                paths.iter_mut().for_each(|path| path.mtu = mtu.filter(|mtu| *mtu > 0));
            }
            _ => {}
        }
    }
    paths
}

fn bare_paths(attributes: &[RouteAttribute]) -> Vec<Path> {
    let multipath = attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::MultiPath(hops) => Some(hops),
        _ => None,
    });
    match multipath {
        Some(hops) => hops
            .iter()
            .map(|hop| path(hop.interface_index, &hop.attributes, u16::from(hop.hops) + 1))
            .collect(),
        None => {
            let link = attributes.iter().find_map(|attribute| match attribute {
                RouteAttribute::Oif(index) => Some(*index),
                _ => None,
            });
            vec![path(link.unwrap_or(NO_LINK), attributes, 1)]
        }
    }
}

/// The index of no link: a path by it exists, and no port carries it.
pub const NO_LINK: u32 = 0;

fn path(link: u32, attributes: &[RouteAttribute], weight: u16) -> Path {
    let mut path = Path { weight, ..Path::new(link, None) };
    for attribute in attributes {
        match attribute {
            RouteAttribute::Gateway(RouteAddress::Inet(v4)) | RouteAttribute::Via(RouteVia::Inet(v4)) => {
                path.gateway = Some(IpAddr::V4(*v4));
            }
            RouteAttribute::Gateway(RouteAddress::Inet6(v6)) | RouteAttribute::Via(RouteVia::Inet6(v6)) => {
                path.gateway = Some(IpAddr::V6(*v6));
            }
            // The kernel would encapsulate; Weir cannot send by such a path.
            RouteAttribute::EncapType(_) | RouteAttribute::Encap(_) => path.link = NO_LINK,
            _ => {}
        }
    }
    path
}
