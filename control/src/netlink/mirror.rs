//! A copy of the kernel's links, addresses, routes and neighbours, kept up to date by events.
//!
//! It knows which events it can follow and which leave it in doubt; for the latter it asks for a new dump.
//! Two such cases come from the kernel: routes that go with a link or an address are not announced
//! (`net/ipv4/fib_semantics.c`, `fib_sync_down_dev` and `fib_sync_down_addr`), and several routes may share one key.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use dataplane::snapshot::net::{Neighbour, Prefix4, Prefix6, Route};

use super::event::{Event, KernelLink, KernelNeighbour, KernelRoute, RouteKey};

/// Neighbours kept at most. The kernel's own limit (`gc_thresh3`) is 1024 unless raised.
pub const NEIGHBOUR_LIMIT: usize = 65_536;

/// What changed since it was last asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Changes {
    /// Links came, went or changed.
    pub links: bool,
    /// Addresses came or went.
    pub addresses: bool,
    /// Routes came, went or changed.
    pub routes: bool,
    /// Neighbours' MAC addresses came, went or changed.
    pub neighbours: bool,
}

impl Changes {
    /// Whether anything changed.
    pub fn any(self) -> bool {
        self != Self::default()
    }

    /// Whether neighbours changed and nothing else.
    pub fn only_neighbours(self) -> bool {
        self == Self { neighbours: true, ..Self::default() }
    }
}

/// What the mirror cannot know without reading it again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Doubts {
    /// Anything may have changed.
    pub all: bool,
    /// IPv4 routes.
    pub routes4: bool,
    /// IPv6 routes.
    pub routes6: bool,
}

/// Routes of one family, by table, destination and metric; several with one key in the kernel's order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteTable<P>(BTreeMap<RouteKey<P>, Vec<Route>>);

impl<P> Default for RouteTable<P> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

/// What an event did to a route table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Effect {
    Nothing,
    Changed,
    Doubt,
}

impl<P: Ord + Copy> RouteTable<P> {
    /// All routes: the local table first, within a destination the lowest metric first.
    pub fn iter(&self) -> impl Iterator<Item = (&RouteKey<P>, &Route)> {
        self.0.iter().flat_map(|(key, routes)| routes.iter().map(move |route| (key, route)))
    }

    /// Adds a route from a dump, behind those with the same key.
    pub fn append(&mut self, key: RouteKey<P>, route: Route) {
        self.0.entry(key).or_default().push(route);
    }

    fn insert(&mut self, key: RouteKey<P>, route: Route, replace: bool) -> Effect {
        let there = self.0.entry(key).or_default();
        match there.as_mut_slice() {
            [] => {
                there.push(route);
                Effect::Changed
            }
            [one] if *one == route => Effect::Nothing,
            [one] if replace => {
                *one = route;
                Effect::Changed
            }
            _ => Effect::Doubt,
        }
    }

    fn remove(&mut self, key: &RouteKey<P>, route: &Route) -> Effect {
        match self.0.get(key).map(Vec::as_slice) {
            None | Some([]) => Effect::Nothing,
            Some([one]) if one == route => {
                self.0.remove(key);
                Effect::Changed
            }
            Some(_) => Effect::Doubt,
        }
    }
}

/// The copy.
#[derive(Clone, Debug, Default)]
pub struct Mirror {
    /// Links by index.
    pub links: BTreeMap<u32, KernelLink>,
    /// Addresses as (link, address, prefix length).
    pub addresses: BTreeSet<(u32, IpAddr, u8)>,
    /// IPv4 routes.
    pub routes4: RouteTable<Prefix4>,
    /// IPv6 routes.
    pub routes6: RouteTable<Prefix6>,
    /// Neighbours.
    pub neighbours: HashMap<Neighbour, KernelNeighbour, ahash::RandomState>,
    /// What changed since [`Mirror::take_changes`].
    changes: Changes,
    /// What has to be read again.
    doubts: Doubts,
    /// How often notifications were lost.
    overruns: u64,
}

impl Mirror {
    /// What changed since [`Mirror::take_changes`].
    pub fn changes(&self) -> Changes {
        self.changes
    }

    /// Whether something has to be read again.
    pub fn is_in_doubt(&self) -> bool {
        self.doubts != Doubts::default()
    }

    /// What changed since the last call.
    pub fn take_changes(&mut self) -> Changes {
        std::mem::take(&mut self.changes)
    }

    /// Notes that all differs from what was known before.
    pub fn all_changed(&mut self) {
        self.changes = Changes { links: true, addresses: true, routes: true, neighbours: true };
    }

    /// What has to be read again, once.
    pub fn take_doubts(&mut self) -> Doubts {
        std::mem::take(&mut self.doubts)
    }

    /// Marks what could not be read again: the next [`Mirror::take_doubts`] names it once more.
    pub fn doubt(&mut self, doubts: Doubts) {
        self.doubts.all |= doubts.all;
        self.doubts.routes4 |= doubts.routes4;
        self.doubts.routes6 |= doubts.routes6;
    }

    /// How often notifications were lost, and all was read again.
    pub fn overruns(&self) -> u64 {
        self.overruns
    }

    /// The link with this name.
    pub fn link_named(&self, name: &str) -> Option<&KernelLink> {
        self.links.values().find(|link| &*link.name == name)
    }

    /// Takes over the IPv4 routes of a new dump.
    pub fn replace_routes4(&mut self, table: RouteTable<Prefix4>) {
        self.changes.routes |= self.routes4 != table;
        self.routes4 = table;
    }

    /// Takes over the IPv6 routes of a new dump.
    pub fn replace_routes6(&mut self, table: RouteTable<Prefix6>) {
        self.changes.routes |= self.routes6 != table;
        self.routes6 = table;
    }

    /// Takes over all of a new dump.
    pub fn replace_all(&mut self, dump: Mirror) {
        self.changes.links |= self.links != dump.links;
        self.changes.addresses |= self.addresses != dump.addresses;
        self.changes.neighbours |= self.neighbours != dump.neighbours;
        self.links = dump.links;
        self.addresses = dump.addresses;
        self.neighbours = dump.neighbours;
        self.replace_routes4(dump.routes4);
        self.replace_routes6(dump.routes6);
    }

    /// Follows one event.
    pub fn apply(&mut self, event: Event) {
        match event {
            Event::Link(link) => self.link(link),
            Event::LinkGone(index) => {
                self.changes.links |= self.links.remove(&index).is_some();
                self.addresses.retain(|(link, ..)| *link != index);
                self.doubt(Doubts { routes4: true, routes6: true, all: false });
            }
            Event::Address(link, addr, len) => {
                let new = self.addresses.insert((link, addr, len));
                self.address_changed(addr, new);
            }
            Event::AddressGone(link, addr, len) => {
                let gone = self.addresses.remove(&(link, addr, len));
                self.address_changed(addr, gone);
            }
            Event::Route { route: KernelRoute::V4(key, route), replace } => {
                let effect = self.routes4.insert(key, route, replace);
                self.route_changed(effect, false);
            }
            Event::Route { route: KernelRoute::V6(key, route), replace } => {
                let effect = self.routes6.insert(key, route, replace);
                self.route_changed(effect, true);
            }
            Event::RouteGone(KernelRoute::V4(key, route)) => {
                let effect = self.routes4.remove(&key, &route);
                self.route_changed(effect, false);
            }
            Event::RouteGone(KernelRoute::V6(key, route)) => {
                let effect = self.routes6.remove(&key, &route);
                self.route_changed(effect, true);
            }
            Event::Neighbour(place, entry) => self.neighbour(place, entry),
            Event::NeighbourGone(place) => {
                let gone = self.neighbours.remove(&place);
                self.changes.neighbours |= gone.is_some_and(|entry| entry.mac.is_some());
            }
            Event::Overrun => {
                self.overruns += 1;
                self.doubts.all = true;
            }
        }
    }

    fn link(&mut self, link: KernelLink) {
        let old = self.links.get(&link.index);
        if old == Some(&link) {
            return;
        }
        if old.is_none_or(|old| old.up != link.up) {
            self.doubt(Doubts { routes4: true, routes6: true, all: false });
        }
        self.changes.links = true;
        self.links.insert(link.index, link);
    }

    fn address_changed(&mut self, addr: IpAddr, changed: bool) {
        self.changes.addresses |= changed;
        self.doubt(Doubts {
            routes4: changed && addr.is_ipv4(),
            routes6: changed && addr.is_ipv6(),
            all: false,
        });
    }

    fn route_changed(&mut self, effect: Effect, v6: bool) {
        self.changes.routes |= effect == Effect::Changed;
        let doubt = effect == Effect::Doubt;
        self.doubt(Doubts { routes4: doubt && !v6, routes6: doubt && v6, all: false });
    }

    fn neighbour(&mut self, place: Neighbour, entry: KernelNeighbour) {
        if self.neighbours.len() >= NEIGHBOUR_LIMIT && !self.neighbours.contains_key(&place) {
            return;
        }
        let before = self.neighbours.insert(place, entry);
        self.changes.neighbours |= before.and_then(|entry| entry.mac) != entry.mac;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use dataplane::snapshot::net::Path;

    use super::super::event::Table;
    use super::*;

    const KEY: RouteKey<Prefix4> = RouteKey { table: Table::Main, prefix: (0x0a00_0000, 8), metric: 0 };

    fn via(link: u32) -> Route {
        Route::Via(vec![Path::new(link, None)])
    }

    fn added(link: u32, replace: bool) -> Event {
        Event::Route { route: KernelRoute::V4(KEY, via(link)), replace }
    }

    fn gone(link: u32) -> Event {
        Event::RouteGone(KernelRoute::V4(KEY, via(link)))
    }

    fn link(index: u32, up: bool) -> Event {
        let name = Arc::from(format!("eth{index}"));
        Event::Link(KernelLink { index, name, mac: [2; 6], mtu: 1500, up, vlan: None, veth: false })
    }

    #[test]
    fn route_events_are_followed_where_they_leave_no_doubt() {
        for (name, events, want, doubt) in [
            ("a new route", vec![added(1, false)], vec![via(1)], false),
            ("the same again", vec![added(1, false), added(1, false)], vec![via(1)], false),
            ("one in place of it", vec![added(1, false), added(2, true)], vec![via(2)], false),
            ("a second beside it", vec![added(1, false), added(2, false)], vec![via(1)], true),
            ("it goes", vec![added(1, false), gone(1)], vec![], false),
            ("another with its key goes", vec![added(1, false), gone(2)], vec![via(1)], true),
            ("one that was never seen goes", vec![gone(1)], vec![], false),
        ] {
            let mut mirror = Mirror::default();
            events.into_iter().for_each(|event| mirror.apply(event));
            let routes: Vec<_> = mirror.routes4.iter().map(|(_, route)| route.clone()).collect();
            assert_eq!(routes, want, "{name}");
            assert_eq!(mirror.take_doubts(), Doubts { routes4: doubt, ..Doubts::default() }, "{name}");
        }
    }

    #[test]
    fn a_link_or_address_that_changes_puts_routes_in_doubt() {
        let both = Doubts { routes4: true, routes6: true, all: false };
        let mut mirror = Mirror::default();
        for (name, event, want) in [
            ("a new link", link(1, true), both),
            ("the same link", link(1, true), Doubts::default()),
            ("it goes down", link(1, false), both),
            (
                "an address",
                Event::Address(1, [10, 0, 0, 1].into(), 24),
                Doubts { routes4: true, ..Doubts::default() },
            ),
            ("the same address", Event::Address(1, [10, 0, 0, 1].into(), 24), Doubts::default()),
            ("the link is removed", Event::LinkGone(1), both),
            ("lost notifications", Event::Overrun, Doubts { all: true, ..Doubts::default() }),
        ] {
            mirror.apply(event);
            assert_eq!(mirror.take_doubts(), want, "{name}");
        }
        assert!(mirror.addresses.is_empty(), "addresses go with their link");
    }

    #[test]
    fn a_neighbour_that_only_changes_its_state_is_no_change() {
        let place = Neighbour { link: 1, addr: [10, 0, 0, 2].into() };
        let entry = KernelNeighbour { mac: Some([2; 6]), fixed: false };
        let mut mirror = Mirror::default();
        mirror.apply(Event::Neighbour(place, entry));
        assert!(mirror.take_changes().neighbours);
        mirror.apply(Event::Neighbour(place, entry));
        assert!(!mirror.take_changes().any());
        mirror.apply(Event::NeighbourGone(place));
        assert!(mirror.take_changes().neighbours);
        mirror.apply(Event::Neighbour(place, KernelNeighbour { mac: None, fixed: false }));
        mirror.apply(Event::NeighbourGone(place));
        assert!(!mirror.take_changes().any(), "asked for in vain");
    }

    #[test]
    fn a_new_dump_reports_only_what_differs() {
        let mut mirror = Mirror::default();
        mirror.apply(link(1, true));
        mirror.apply(added(1, false));
        mirror.take_changes();
        let mut dump = mirror.clone();
        mirror.replace_all(dump.clone());
        assert!(!mirror.take_changes().any());
        dump.apply(gone(1));
        mirror.replace_all(dump);
        assert_eq!(mirror.take_changes(), Changes { routes: true, ..Changes::default() });
    }
}
