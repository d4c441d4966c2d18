//! Ports, routes and neighbours: where a packet with a given destination leaves, and with which layer-2 header.

use std::collections::HashMap;
use std::hash::{Hash, Hasher};
use std::net::IpAddr;
use std::ops::Deref;
use std::sync::Arc;

use arrayvec::ArrayVec;
use prefix_trie::{Prefix, PrefixMap};
use zerocopy::transmute;

use crate::ids::{HopId, PortId};

/// An interface that Weir serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Its name in the kernel.
    pub name: Arc<str>,
    /// Its index in the kernel.
    pub ifindex: u32,
    /// Its MAC address.
    pub mac: [u8; 6],
    /// Largest IP packet in bytes.
    pub mtu: u16,
    /// Whether senders may leave layer-4 checksums unfinished (a veth whose peer is a local stack).
    pub partial_checksums: bool,
}

/// How a destination is left for. All paths of a route are equal but for their weights.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// By one of these paths.
    Via(Vec<Path>),
    /// To this host itself: the kernel's.
    Local,
    /// Refused: blackhole, unreachable, prohibit.
    Refused,
}

/// One path of a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Path {
    /// The kernel's index of the egress link (a VLAN link has its own).
    pub link: u32,
    /// The gateway; `None` where the destination is on the link itself.
    pub gateway: Option<IpAddr>,
    /// Share of flows, at least 1.
    pub weight: u16,
    /// Address of this host that packets of its own carry as their source (the kernel's preferred source, or the one it
    /// would select on the link); `None` where there is none.
    pub source: Option<IpAddr>,
    /// Largest IP packet in bytes that the route is set to carry (`ip route .. mtu`); `None`: the link's.
    pub mtu: Option<u16>,
}

impl Path {
    /// A path by this link, of weight 1, that has neither source address nor MTU of its own.
    pub fn new(link: u32, gateway: Option<IpAddr>) -> Self {
        Self { link, gateway, weight: 1, source: None, mtu: None }
    }
}

/// A link as seen from the ports: the port that carries it and the VLAN tags on the wire, outer first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// The port that frames leave by.
    pub port: PortId,
    /// Tags as (TPID, VLAN id), outer first.
    pub vlans: ArrayVec<(u16, u16), 2>,
    /// Largest IP packet in bytes.
    pub mtu: u16,
}

/// A neighbour with a prepared layer-2 header. Half a cache line, so that none lies in two.
#[derive(Clone, Debug, PartialEq, Eq)]
#[repr(align(32))]
pub struct Hop {
    /// The port that frames leave by.
    pub port: PortId,
    /// What frames begin with.
    pub header: LinkHeader,
    /// Largest IP packet in bytes.
    pub mtu: u16,
}

/// Destination and source MAC and VLAN tags, without the EtherType of the payload. By the number of tags: whether a hop is
/// there and has none is then one comparison.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkHeader {
    /// No tag.
    Untagged([u8; 12]),
    /// One tag.
    Tagged([u8; 16]),
    /// Two tags.
    DoublyTagged([u8; 20]),
}

impl Deref for LinkHeader {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        match self {
            Self::Untagged(bytes) => bytes,
            Self::Tagged(bytes) => bytes,
            Self::DoublyTagged(bytes) => bytes,
        }
    }
}

impl Hop {
    /// The hop over `link` to the neighbour with the MAC address `neighbour`, sent from `own`.
    pub fn new(link: &Link, own: [u8; 6], neighbour: [u8; 6]) -> Self {
        let [a, b, c]: [[u8; 4]; 3] = transmute!([neighbour, own]);
        let tag =
            |(tpid, vid): (u16, u16)| -> [u8; 4] { transmute!([tpid.to_be_bytes(), vid.to_be_bytes()]) };
        let header = match *link.vlans.as_slice() {
            [] => LinkHeader::Untagged(transmute!([a, b, c])),
            [only] => LinkHeader::Tagged(transmute!([a, b, c, tag(only)])),
            [outer, inner, ..] => LinkHeader::DoublyTagged(transmute!([a, b, c, tag(outer), tag(inner)])),
        };
        Self { port: link.port, header, mtu: link.mtu }
    }
}

/// Why no hop was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoHop {
    /// No route, or one that refuses.
    NoRoute,
    /// The route leads by a link that no port carries.
    NoPort,
    /// The destination is this host itself.
    Local,
    /// The neighbour has to be asked for.
    Unresolved(Neighbour),
}

/// A neighbour's place: what ARP or neighbour discovery asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Neighbour {
    /// The kernel's index of the link.
    pub link: u32,
    /// Its IP address.
    pub addr: IpAddr,
}

impl Hash for Neighbour {
    /// A word or two, where the derived hash would go through every field and the lengths of arrays.
    #[inline]
    fn hash<H: Hasher>(&self, state: &mut H) {
        match self.addr {
            IpAddr::V4(v4) => state.write_u64(u64::from(self.link) << 32 | u64::from(v4.to_bits())),
            IpAddr::V6(v6) => {
                state.write_u128(v6.to_bits());
                state.write_u32(self.link);
            }
        }
    }
}

/// Where a destination is left for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Found<'n> {
    pub(crate) hop: HopId,
    pub(crate) path: &'n Path,
    /// Whether the path is its route's only one, so that all flows to the destination take it.
    pub(crate) is_only: bool,
}

/// The network half of a snapshot.
#[derive(Clone, Debug, Default)]
pub struct Net {
    /// Changes whenever a [`HopId`] that a flow remembers may lead elsewhere than the routes say. Neighbours that
    /// come or change their MAC address do not change it.
    pub epoch: u32,
    /// The served interfaces, by [`PortId`].
    pub ports: Vec<Port>,
    /// The kernel's link indices.
    pub links: HashMap<u32, Link, ahash::RandomState>,
    /// Hops by [`HopId`]; `None` where the neighbour is gone or unresolved at present.
    pub hops: Vec<Option<Hop>>,
    /// Which hop a neighbour is.
    pub neighbours: HashMap<Neighbour, HopId, ahash::RandomState>,
    /// IPv4 routes.
    pub routes4: PrefixMap<Prefix4, Route>,
    /// IPv6 routes.
    pub routes6: PrefixMap<Prefix6, Route>,
    /// Where the kernel's frames go: the port whose far end is the local stack, and that end's MAC address.
    pub kernel: Option<(PortId, [u8; 6])>,
}

/// An IPv4 prefix: address in host order and length.
pub type Prefix4 = (u32, u8);
/// An IPv6 prefix: address in host order and length.
pub type Prefix6 = (u128, u8);

impl Net {
    /// The port with this id.
    #[inline]
    pub fn port(&self, id: PortId) -> Option<&Port> {
        self.ports.get(id.index())
    }

    /// Whether senders on this port may leave layer-4 checksums unfinished.
    #[inline]
    pub fn leaves_checksums(&self, id: PortId) -> bool {
        self.port(id).is_some_and(|port| port.partial_checksums)
    }

    /// The hop with this id, if it is resolved.
    #[inline]
    pub fn hop(&self, id: HopId) -> Option<&Hop> {
        self.hops.get(id.index())?.as_ref()
    }

    /// The longest matching route's hop towards `dst`. `hash` picks among equal paths.
    pub fn hop_to(&self, dst: IpAddr, hash: u32) -> Result<HopId, NoHop> {
        self.way_to(dst, hash).map(|(id, _)| id)
    }

    /// The same, with the path that leads there.
    pub fn way_to(&self, dst: IpAddr, hash: u32) -> Result<(HopId, &Path), NoHop> {
        self.find(dst, hash).map(|found| (found.hop, found.path))
    }

    /// The same, with what it holds for.
    pub(crate) fn find(&self, dst: IpAddr, hash: u32) -> Result<Found<'_>, NoHop> {
        let route = match dst {
            IpAddr::V4(v4) => self.routes4.get_lpm(&Prefix4::from_repr_len(v4.to_bits(), 32)).map(|(_, r)| r),
            IpAddr::V6(v6) => {
                self.routes6.get_lpm(&Prefix6::from_repr_len(v6.to_bits(), 128)).map(|(_, r)| r)
            }
        };
        let (path, is_only) = match route.ok_or(NoHop::NoRoute)? {
            Route::Via(paths) => match paths.as_slice() {
                [path] => (path, true),
                several => (choose(several, hash).ok_or(NoHop::NoRoute)?, false),
            },
            Route::Local => return Err(NoHop::Local),
            Route::Refused => return Err(NoHop::NoRoute),
        };
        let neighbour = Neighbour { link: path.link, addr: path.gateway.unwrap_or(dst) };
        if let Some(hop) = self.neighbours.get(&neighbour).copied()
            && self.hop(hop).is_some()
        {
            return Ok(Found { hop, path, is_only });
        }
        let carried = self.links.contains_key(&path.link);
        Err(if carried { NoHop::Unresolved(neighbour) } else { NoHop::NoPort })
    }
}

/// Picks a path by its share of the hash space (the kernel's multipath rule, RFC 2992 in spirit).
fn choose(paths: &[Path], hash: u32) -> Option<&Path> {
    let total: u64 = paths.iter().map(|path| u64::from(path.weight)).sum();
    let mut point = (u64::from(hash) * total) >> 32;
    paths.iter().find(|path| {
        let weight = u64::from(path.weight);
        let here = point < weight;
        point = point.saturating_sub(weight);
        here
    })
}
