//! The mirror as the workers' tables: ports, links, routes and next hops.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use arrayvec::ArrayVec;
use dataplane::flow::key::address;
use dataplane::ids::{HopId, PortId};
use dataplane::snapshot::Net;
use dataplane::snapshot::net::{Hop, Link, Neighbour, Path, Port, Prefix4, Prefix6, Route};
use prefix_trie::{Prefix, PrefixMap};

use super::event::{KernelLink, NO_LINK, RouteKey, Table};
use super::mirror::{Mirror, RouteTable};

/// Hop ids at most. Past it the ids of neighbours that are gone are given to others.
pub const HOP_LIMIT: usize = 65_536;

/// What of the host is Weir's business.
#[derive(Clone, Debug, Default)]
pub struct Scope {
    /// Names of the served interfaces, in the order of the configuration.
    pub served: Vec<Arc<str>>,
    /// Names of the kernel path's ends: the kernel's and the workers'.
    pub kernel_path: Option<(Arc<str>, Arc<str>)>,
}

/// The tables that follow from what the kernel says. Pure: equal input, equal tables.
///
/// A neighbour keeps its [`HopId`] from `previous`, resolved or not. `epoch` counts up when links or routes differ
/// from `previous`, or when an id changed hands. Takes the routes of `previous` where `reroute` says that neither
/// routes nor links changed since.
pub fn compile(mirror: &Mirror, scope: &Scope, previous: &Net, reroute: bool, hop_limit: usize) -> Net {
    let ports = ports(mirror, scope, previous);
    let links = links(mirror, &ports, scope.served.len());
    let (routes4, routes6) = if reroute {
        (routes(&mirror.routes4, mirror), routes(&mirror.routes6, mirror))
    } else {
        (previous.routes4.clone(), previous.routes6.clone())
    };
    let mut net =
        Net { kernel: kernel_path(mirror, scope), ports, links, routes4, routes6, ..Net::default() };
    let reused = hops(mirror, &mut net, previous, hop_limit);
    let moved = net.links != previous.links
        || reroute && (net.routes4 != previous.routes4 || net.routes6 != previous.routes6);
    net.epoch = if moved || reused { previous.epoch.wrapping_add(1) } else { previous.epoch };
    net
}

/// The served interfaces and, behind them, the workers' end of the kernel path. One that is gone keeps its place.
fn ports(mirror: &Mirror, scope: &Scope, previous: &Net) -> Vec<Port> {
    let workers_end = scope.kernel_path.iter().map(|(_, workers_end)| workers_end);
    let names = scope.served.iter().chain(workers_end);
    let port = |(position, name): (usize, &Arc<str>)| match mirror.link_named(name) {
        Some(link) => Port {
            name: Arc::clone(name),
            ifindex: link.index,
            mac: link.mac,
            mtu: mtu(link),
            partial_checksums: link.veth,
        },
        None => previous.ports.get(position).cloned().unwrap_or_else(|| Port {
            name: Arc::clone(name),
            ifindex: NO_LINK,
            mac: [0; 6],
            mtu: 0,
            partial_checksums: false,
        }),
    };
    names.enumerate().map(port).collect()
}

fn mtu(link: &KernelLink) -> u16 {
    u16::try_from(link.mtu).unwrap_or(u16::MAX)
}

fn kernel_path(mirror: &Mirror, scope: &Scope) -> Option<(PortId, [u8; 6])> {
    let (kernel_end, workers_end) = scope.kernel_path.as_ref()?;
    let port = u8::try_from(scope.served.len()).ok()?;
    mirror.link_named(workers_end)?;
    Some((PortId(port), mirror.link_named(kernel_end)?.mac))
}

/// The links that are up and carried by one of the first `served` ports.
fn links(mirror: &Mirror, ports: &[Port], served: usize) -> HashMap<u32, Link, ahash::RandomState> {
    let carried = |link: &KernelLink| Some((link.index, carrier(mirror, ports.get(..served)?, link)?));
    mirror.links.values().filter(|link| link.up).filter_map(carried).collect()
}

/// Follows VLAN links down to a port, two tags at most.
fn carrier(mirror: &Mirror, ports: &[Port], link: &KernelLink) -> Option<Link> {
    let mut vlans = ArrayVec::<_, 2>::new();
    let mut here = link;
    loop {
        if let Some(port) = ports.iter().position(|port| port.ifindex == here.index) {
            vlans.reverse();
            return Some(Link { port: PortId(u8::try_from(port).ok()?), vlans, mtu: mtu(link) });
        }
        let (lower, tpid, vid) = here.vlan?;
        vlans.try_push((tpid, vid)).ok()?;
        here = mirror.links.get(&lower)?;
    }
}

/// The routes of one family as the kernel's default rules see them: the local table before the main one, then the
/// longest prefix, then the lowest metric of those that lead somewhere.
fn routes<P>(table: &RouteTable<P>, mirror: &Mirror) -> PrefixMap<P, Route>
where
    P: Prefix + Ord + Copy,
    P::R: Into<u128>,
{
    let mut map = PrefixMap::new();
    // Only a prefix of the local table hides what the main table has inside of it.
    let mut local = PrefixMap::<P, ()>::new();
    for (RouteKey { table, prefix, .. }, route) in table.iter() {
        let hidden = *table == Table::Main && local.get_lpm(prefix).is_some();
        if hidden || map.contains_key(prefix) {
            continue;
        }
        if let Some(mut route) = alive(route, mirror) {
            if let Route::Via(paths) = &mut route {
                paths.iter_mut().for_each(|path| choose_source(path, network(prefix), mirror));
            }
            map.insert(*prefix, route);
            if *table == Table::Local {
                local.insert(*prefix, ());
            }
        }
    }
    map
}

/// The route without the paths by links that are down; `None` where no path is left.
fn alive(route: &Route, mirror: &Mirror) -> Option<Route> {
    let Route::Via(paths) = route else { return Some(route.clone()) };
    let is_up =
        |path: &&Path| path.link == NO_LINK || mirror.links.get(&path.link).is_some_and(|link| link.up);
    let paths: Vec<_> = paths.iter().filter(is_up).copied().collect();
    (!paths.is_empty()).then_some(Route::Via(paths))
}

/// The address that a prefix starts with.
fn network<P: Prefix>(prefix: &P) -> IpAddr
where
    P::R: Into<u128>,
{
    let bits: u128 = prefix.repr().into();
    if size_of::<P::R>() == size_of::<u32>() { address(bits, false) } else { address(bits, true) }
}

/// Gives a path that prefers no source address the one that the kernel would select: on the path's link, of those the one
/// whose network the gateway (or else the destination) is in, else the one that has most leading bits with it in common.
/// A link without addresses borrows one of another link. Addresses that are only good on a link are never taken.
fn choose_source(path: &mut Path, destination: IpAddr, mirror: &Mirror) {
    if path.source.is_some() {
        return;
    }
    let near =
        path.gateway.filter(|gateway| gateway.is_ipv4() == destination.is_ipv4()).unwrap_or(destination);
    let rank = |addr: IpAddr, len: u8| {
        let common = common_bits(addr, near);
        (common >= u32::from(len), common)
    };
    let of_family = |addr: &IpAddr| addr.is_ipv4() == near.is_ipv4() && is_global(*addr);
    let first = (path.link, IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);
    let own = mirror.addresses.range(first..).take_while(|(link, ..)| *link == path.link);
    let best =
        own.filter(|(_, addr, _)| of_family(addr)).min_by_key(|(_, addr, len)| Reverse(rank(*addr, *len)));
    let borrowed = || mirror.addresses.iter().find(|(_, addr, _)| of_family(addr));
    path.source = best.or_else(borrowed).map(|(_, addr, _)| *addr);
}

/// Leading bits that two addresses of one family have in common.
fn common_bits(one: IpAddr, other: IpAddr) -> u32 {
    match (one, other) {
        (IpAddr::V4(one), IpAddr::V4(other)) => (one.to_bits() ^ other.to_bits()).leading_zeros(),
        (IpAddr::V6(one), IpAddr::V6(other)) => (one.to_bits() ^ other.to_bits()).leading_zeros(),
        _ => 0,
    }
}

/// Whether an address means the same on every link.
fn is_global(addr: IpAddr) -> bool {
    match addr {
        IpAddr::V4(v4) => !v4.is_loopback() && !v4.is_link_local() && !v4.is_unspecified(),
        IpAddr::V6(v6) => !v6.is_loopback() && !v6.is_unicast_link_local() && !v6.is_unspecified(),
    }
}

/// Fills in hops and neighbours. Returns whether an id changed hands.
fn hops(mirror: &Mirror, net: &mut Net, previous: &Net, limit: usize) -> bool {
    net.neighbours = previous.neighbours.clone();
    net.hops = vec![None; previous.hops.len()];
    let mut newcomers = Vec::new();
    for (place, entry) in &mirror.neighbours {
        let (Some(mac), Some(link)) = (entry.mac, net.links.get(&place.link)) else { continue };
        let own = mirror.links.get(&place.link).map_or([0; 6], |link| link.mac);
        let hop = Hop::new(link, own, mac);
        match net.neighbours.get(place).and_then(|id| net.hops.get_mut(id.index())) {
            Some(slot) => *slot = Some(hop),
            None => newcomers.push((*place, hop)),
        }
    }
    // In a fixed order, so that equal input gives equal ids.
    newcomers.sort_unstable_by_key(|(place, _)| (place.link, place.addr));
    let mut vacant = None;
    let mut reused = false;
    for (place, hop) in newcomers {
        let next = net.hops.len();
        let id = if next < limit {
            net.hops.push(Some(hop));
            u32::try_from(next).ok().map(HopId)
        } else {
            let vacant = vacant.get_or_insert_with(|| vacancies(net));
            let id = vacant.pop();
            reused |= id.is_some();
            id.and_then(|(old, id)| {
                net.neighbours.remove(&old);
                *net.hops.get_mut(id.index())? = Some(hop);
                Some(id)
            })
        };
        if let Some(id) = id {
            net.neighbours.insert(place, id);
        }
    }
    reused
}

/// Neighbours that have an id and no MAC address at present.
fn vacancies(net: &Net) -> Vec<(Neighbour, HopId)> {
    let vacant = |(_, id): &(&Neighbour, &HopId)| net.hop(**id).is_none();
    let mut list: Vec<_> = net.neighbours.iter().filter(vacant).map(|(place, id)| (*place, *id)).collect();
    list.sort_unstable_by_key(|(_, id)| *id);
    list
}

/// The neighbours that packets to `dst` would be sent to: one for each path of its route that a port carries.
pub fn next_neighbours(net: &Net, dst: IpAddr) -> impl Iterator<Item = Neighbour> {
    let route = match dst {
        IpAddr::V4(v4) => net.routes4.get_lpm(&Prefix4::from_repr_len(v4.to_bits(), 32)).map(|(_, r)| r),
        IpAddr::V6(v6) => net.routes6.get_lpm(&Prefix6::from_repr_len(v6.to_bits(), 128)).map(|(_, r)| r),
    };
    paths(route)
        .filter(|path| net.links.contains_key(&path.link))
        .map(move |path| Neighbour { link: path.link, addr: path.gateway.unwrap_or(dst) })
}

/// The gateways of all routes by links that a port carries.
pub fn gateways(net: &Net) -> impl Iterator<Item = Neighbour> {
    let routes = net.routes4.values().chain(net.routes6.values());
    routes
        .flat_map(|route| paths(Some(route)))
        .filter(|path| net.links.contains_key(&path.link))
        .filter_map(|path| Some(Neighbour { link: path.link, addr: path.gateway? }))
}

/// The link by which the network of `addr` is reached without a gateway, if a port carries it.
pub fn on_link(net: &Net, addr: IpAddr) -> Option<u32> {
    next_neighbours(net, addr).find(|neighbour| neighbour.addr == addr).map(|neighbour| neighbour.link)
}

fn paths(route: Option<&Route>) -> impl Iterator<Item = &Path> {
    let paths = match route {
        Some(Route::Via(paths)) => paths.as_slice(),
        _ => &[],
    };
    paths.iter()
}

#[cfg(test)]
mod tests;
