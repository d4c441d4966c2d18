//! Topology: endpoints that are hinted for a zone, or a Node, are used there alone where all endpoints have hints and
//! some are for here (`trafficDistribution`, topology aware routing).

use super::object::Endpoint;
use super::settings::Gates;

/// Where Weir is, as hints have it.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// The own Node.
    pub node: &'a str,
    /// Its zone.
    pub zone: Option<&'a str>,
    /// Which hints count.
    pub gates: Gates,
}

/// By which hints endpoints are left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Topology {
    /// By none.
    #[default]
    None,
    /// By those for zones.
    Zone,
    /// By those for Nodes.
    Node,
}

/// What hints say, given every ready endpoint.
pub fn topology<'e>(ready: impl Iterator<Item = &'e Endpoint>, place: &Place<'_>) -> Topology {
    // Whether all have such hints, and whether one is for here.
    let (mut nodes, mut zones) = ((true, false), (true, false));
    for endpoint in ready {
        let note = |(all, here): &mut (bool, bool), hints: &[Box<str>], own: Option<&str>| {
            *all &= !hints.is_empty();
            *here |= names(hints, own);
        };
        let (of_nodes, of_zones) = hints(endpoint);
        note(&mut nodes, of_nodes, Some(place.node));
        note(&mut zones, of_zones, place.zone);
    }
    if place.gates.node_hints && nodes == (true, true) {
        Topology::Node
    } else if place.gates.zone_hints && zones == (true, true) {
        Topology::Zone
    } else {
        Topology::None
    }
}

impl Topology {
    /// Whether an endpoint is for here.
    pub fn admits(self, endpoint: &Endpoint, place: &Place<'_>) -> bool {
        let (nodes, zones) = hints(endpoint);
        match self {
            Self::None => true,
            Self::Zone => names(zones, place.zone),
            Self::Node => names(nodes, Some(place.node)),
        }
    }
}

fn hints(endpoint: &Endpoint) -> (&[Box<str>], &[Box<str>]) {
    endpoint.extra.as_ref().map_or((&[], &[]), |extra| (&extra.nodes, &extra.zones))
}

fn names(hints: &[Box<str>], own: Option<&str>) -> bool {
    own.is_some_and(|own| hints.iter().any(|hint| **hint == *own))
}
