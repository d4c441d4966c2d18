//! What frames are Weir's, in the words of the control path.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::ops::RangeInclusive;

/// A layer-4 protocol that services have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Proto {
    /// Transmission Control Protocol.
    Tcp,
    /// User Datagram Protocol.
    Udp,
    /// Stream Control Transmission Protocol.
    Sctp,
}

/// A place that packets are sent to or come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Endpoint {
    /// Its address.
    pub addr: IpAddr,
    /// Its port; 0 for every one.
    pub port: u16,
    /// Its protocol.
    pub proto: Proto,
}

/// A rule that gives a mark. What is `None` matches everything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Sources: an address and how many bits of it count.
    pub src: Option<(IpAddr, u8)>,
    /// Destinations, of the same family.
    pub dst: Option<(IpAddr, u8)>,
    /// Protocols.
    pub protos: Vec<Proto>,
    /// Destination ports.
    pub dports: RangeInclusive<u16>,
    /// Source ports.
    pub sports: RangeInclusive<u16>,
    /// The port number of the interface that packets come in by.
    pub port: Option<u8>,
    /// Whether IPv4 packets with the mark are a service's, and IPv6 packets.
    pub ours: [bool; 2],
}

/// One thing that makes frames Weir's. Any number may claim the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Claim {
    /// See [`Ours::vips`].
    Vip(Endpoint),
    /// See [`Ours::nat_backends`].
    NatBackend(Endpoint),
    /// See [`Ours::node_addresses`].
    NodeAddress(IpAddr),
    /// See [`Ours::node_ports`].
    NodePort(Proto, u16),
    /// See [`Ours::snat`]: the address, its first and its last port.
    Snat(IpAddr, u16, u16),
    /// See [`Ours::tunnels`].
    Tunnel(IpAddr, u16),
    /// See [`Ours::owned`].
    Owned(IpAddr),
}

/// What changes in what the XDP program is to hand over.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Delta {
    /// Claims that are given up, each of them made before.
    pub gone: Vec<Claim>,
    /// Claims that are made.
    pub new: Vec<Claim>,
    /// All rules that give marks, where they change.
    pub rules: Option<Vec<Rule>>,
}

impl Delta {
    /// What changes from one state of things to another.
    pub fn between(before: &Ours, after: &Ours) -> Self {
        let (old, new): (HashSet<_>, HashSet<_>) = (before.claims().collect(), after.claims().collect());
        Self {
            gone: old.difference(&new).copied().collect(),
            new: new.difference(&old).copied().collect(),
            rules: (before.rules != after.rules).then(|| after.rules.clone()),
        }
    }

    /// Whether nothing changes.
    pub fn is_empty(&self) -> bool {
        self.gone.is_empty() && self.new.is_empty() && self.rules.is_none()
    }
}

/// All that the XDP program is to hand over. What is in none of these sets is the kernel's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ours {
    /// The services' virtual addresses with port and protocol.
    pub vips: HashSet<Endpoint>,
    /// The backends of services in `nat` mode: what comes from one of these is a reply.
    pub nat_backends: HashSet<Endpoint>,
    /// The node's own addresses on which [`node_ports`](Self::node_ports) are reached.
    pub node_addresses: HashSet<IpAddr>,
    /// The NodePorts.
    pub node_ports: HashSet<(Proto, u16)>,
    /// SNAT addresses, each with its first and last port.
    pub snat: HashMap<IpAddr, RangeInclusive<u16>>,
    /// Backends at the other end of a tunnel, each with the UDP port of the tunnel where it has one, else 0: ICMP errors
    /// about packets to them are Weir's.
    pub tunnels: HashSet<(IpAddr, u16)>,
    /// Rules that give marks: the first that a packet matches decides.
    pub rules: Vec<Rule>,
    /// Addresses that Weir answers ARP, neighbour discovery and ICMP echo for.
    pub owned: HashSet<IpAddr>,
}

impl Ours {
    /// Each of it, but for the rules, as a claim.
    pub fn claims(&self) -> impl Iterator<Item = Claim> {
        let vips = self.vips.iter().copied().map(Claim::Vip);
        let backends = self.nat_backends.iter().copied().map(Claim::NatBackend);
        let node = self.node_addresses.iter().copied().map(Claim::NodeAddress);
        let node_ports = self.node_ports.iter().map(|(proto, port)| Claim::NodePort(*proto, *port));
        let snat = self.snat.iter().map(|(addr, ports)| Claim::Snat(*addr, *ports.start(), *ports.end()));
        let tunnels = self.tunnels.iter().map(|(addr, port)| Claim::Tunnel(*addr, *port));
        let owned = self.owned.iter().copied().map(Claim::Owned);
        vips.chain(backends).chain(node).chain(node_ports).chain(snat).chain(tunnels).chain(owned)
    }
}
