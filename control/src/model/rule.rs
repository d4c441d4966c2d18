//! Rules that give packets their firewall mark.

use std::num::NonZeroU32;
use std::ops::RangeInclusive;
use std::sync::Arc;

use dataplane::flow::key;
use dataplane::ids::PortId;
use dataplane::snapshot::MarkRule;
use dataplane::snapshot::marks::{Prefix, Protocols};
use ipnet::IpNet;

use super::{Family, Protocol};

/// A run of ports: `low` to `high`, both included, and not backwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortRange {
    low: u16,
    high: u16,
}

impl PortRange {
    /// Every port.
    pub const ALL: Self = Self { low: 0, high: u16::MAX };

    /// The ports from `low` to `high`; `None` where these are backwards.
    pub fn new(low: u16, high: u16) -> Option<Self> {
        (low <= high).then_some(Self { low, high })
    }

    /// First and last port.
    pub fn ends(self) -> (u16, u16) {
        (self.low, self.high)
    }
}

/// An interface that Weir serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its id.
    pub id: PortId,
    /// Its name.
    pub name: Arc<str>,
}

/// Packets that match all of it bear the mark. An empty list matches everything, another what one entry matches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MatchRule {
    /// The mark.
    pub mark: NonZeroU32,
    /// Where they come from. No prefix has bits set behind its length.
    pub sources: Vec<IpNet>,
    /// Where they go, likewise.
    pub destinations: Vec<IpNet>,
    /// Their protocols.
    pub protocols: Vec<Protocol>,
    /// Their destination ports.
    pub destination_ports: Vec<PortRange>,
    /// Their source ports.
    pub source_ports: Vec<PortRange>,
    /// The interface that they come in by.
    pub interface: Option<Interface>,
}

impl MatchRule {
    /// A rule that matches every packet of TCP, UDP and SCTP.
    pub fn new(mark: NonZeroU32) -> Self {
        Self {
            mark,
            sources: Vec::new(),
            destinations: Vec::new(),
            protocols: Vec::new(),
            destination_ports: Vec::new(),
            source_ports: Vec::new(),
            interface: None,
        }
    }

    /// Whether packets of the family can match.
    pub fn has_family(&self, family: Family) -> bool {
        [&self.sources, &self.destinations]
            .iter()
            .all(|list| list.is_empty() || list.iter().any(|net| Family::of(net.addr()) == family))
    }

    /// Whether packets of the protocol can match.
    pub fn has_protocol(&self, protocol: Protocol) -> bool {
        self.protocols.is_empty() || self.protocols.contains(&protocol)
    }

    /// How many rules of single prefixes and port ranges it makes.
    pub fn count(&self) -> usize {
        let of = |list: &[IpNet], family| list.iter().filter(|net| Family::of(net.addr()) == family).count();
        let pairs = match (&*self.sources, &*self.destinations) {
            ([], []) => 1,
            ([], list) | (list, []) => list.len(),
            (sources, destinations) => {
                let pairs = |family| of(sources, family).saturating_mul(of(destinations, family));
                pairs(Family::V4).saturating_add(pairs(Family::V6))
            }
        };
        let ports = [&self.destination_ports, &self.source_ports].map(|list| list.len().max(1));
        ports.into_iter().fold(pairs, usize::saturating_mul)
    }

    /// The rules of single prefixes and port ranges that it stands for.
    pub fn spread(&self) -> impl Iterator<Item = MarkRule> {
        let protocols = Protocols {
            tcp: self.has_protocol(Protocol::Tcp),
            udp: self.has_protocol(Protocol::Udp),
            sctp: self.has_protocol(Protocol::Sctp),
        };
        let (sources, destinations) = (prefixes(&self.sources), prefixes(&self.destinations));
        let (dports, sports) = (ports(&self.destination_ports), ports(&self.source_ports));
        let mut rules = Vec::new();
        for dst in &destinations {
            for src in sources.iter().filter(|src| !matches!((src, dst), (Some(a), Some(b)) if a.v6 != b.v6))
            {
                for dports in &dports {
                    for sports in &sports {
                        rules.push(MarkRule {
                            src: *src,
                            dst: *dst,
                            protocols,
                            dports: dports.clone(),
                            sports: sports.clone(),
                            port: self.interface.as_ref().map(|interface| interface.id),
                            mark: self.mark,
                        });
                    }
                }
            }
        }
        rules.into_iter()
    }
}

/// The prefixes of a list, or the one thing that matches everything.
fn prefixes(list: &[IpNet]) -> Vec<Option<Prefix>> {
    let prefix = |net: &IpNet| {
        let (addr, v6) = key::bits(net.network());
        Some(Prefix { addr, len: net.prefix_len(), v6 })
    };
    if list.is_empty() { vec![None] } else { list.iter().map(prefix).collect() }
}

fn ports(list: &[PortRange]) -> Vec<RangeInclusive<u16>> {
    let all = [PortRange::ALL];
    let list = if list.is_empty() { &all } else { list };
    list.iter().map(|range| range.low..=range.high).collect()
}
