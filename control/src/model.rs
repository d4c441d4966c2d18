//! What Weir shall do, whoever said so: a file today, other sources beside it.
//!
//! The types here cannot hold what makes no sense by itself (port 0, a multicast VIP); [`DesiredState::new`] refuses
//! what makes no sense together (a VIP used twice) and names every such place.

mod conflict;

use std::net::IpAddr;
use std::num::NonZeroU16;
use std::sync::Arc;

use dataplane::flow::key;
use dataplane::flow::key::VipKey;
use dataplane::schedule;
use dataplane::snapshot::{Mode, Timeouts};
use thiserror::Error;

pub use conflict::{Conflict, Place, Reason};

/// Addresses that one SNAT pool holds at most.
pub const POOL_ADDRESSES_MAX: usize = 4096;

/// A TCP or UDP port, never 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Port(NonZeroU16);

impl Port {
    /// The port with this number; `None` for 0.
    pub fn new(number: u16) -> Option<Self> {
        NonZeroU16::new(number).map(Self)
    }

    /// Its number.
    pub fn number(self) -> u16 {
        self.0.get()
    }
}

/// A backend's share of new flows; 0 drains it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Weight(pub u16);

impl Default for Weight {
    fn default() -> Self {
        Self(1)
    }
}

/// A transport protocol that the engine carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Protocol {
    /// TCP.
    #[default]
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    /// The name as configuration and output have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }

    /// The IP protocol number.
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => key::TCP,
            Self::Udp => key::UDP,
        }
    }
}

/// An address that one host can have: what VIPs, backends, SNAT and node addresses are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Unicast(IpAddr);

/// Why an address is not [`Unicast`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum NotUnicast {
    /// 0.0.0.0 or ::.
    #[error("{0} is the unspecified address")]
    Unspecified(IpAddr),
    /// 127.0.0.0/8 or ::1.
    #[error("{0} is a loopback address")]
    Loopback(IpAddr),
    /// 224.0.0.0/4 or ff00::/8.
    #[error("{0} is a multicast address")]
    Multicast(IpAddr),
    /// 255.255.255.255.
    #[error("{0} is the broadcast address")]
    Broadcast(IpAddr),
    /// fe80::/10: says nothing without an interface.
    #[error("{0} is a link-local address")]
    LinkLocal(IpAddr),
    /// ::ffff:0:0/96: never on the wire.
    #[error("{0} is an IPv4 address in IPv6 form")]
    Mapped(IpAddr),
}

impl Unicast {
    /// The address, if one host can have it and a route can lead to it.
    pub fn new(addr: IpAddr) -> Result<Self, NotUnicast> {
        if addr.is_unspecified() {
            return Err(NotUnicast::Unspecified(addr));
        }
        if addr.is_loopback() {
            return Err(NotUnicast::Loopback(addr));
        }
        if addr.is_multicast() {
            return Err(NotUnicast::Multicast(addr));
        }
        match addr {
            IpAddr::V4(v4) if v4.is_broadcast() => Err(NotUnicast::Broadcast(addr)),
            IpAddr::V6(v6) if v6.is_unicast_link_local() => Err(NotUnicast::LinkLocal(addr)),
            IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => Err(NotUnicast::Mapped(addr)),
            _ => Ok(Self(addr)),
        }
    }

    /// The plain address.
    pub fn ip(self) -> IpAddr {
        self.0
    }

    /// Its family.
    pub fn family(self) -> Family {
        Family::of(self.0)
    }
}

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The family of an address.
    pub fn of(addr: IpAddr) -> Self {
        if addr.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// The name for messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }
}

/// How a service chooses among its backends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scheduling {
    /// The scheduler.
    pub kind: schedule::Kind,
    /// Its options.
    pub flags: schedule::Flags,
}

/// A backend of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backend {
    /// Its address.
    pub addr: Unicast,
    /// Its port, as packets towards it carry it.
    pub port: Port,
    /// Its share of new flows.
    pub weight: Weight,
    /// How it gets its packets.
    pub mode: Mode,
}

/// A virtual service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Its name in output, its own in the desired state.
    pub name: Arc<str>,
    /// The virtual addresses: at least one, of one family.
    pub vips: Vec<Unicast>,
    /// The port on the virtual addresses.
    pub port: Port,
    /// The protocol.
    pub protocol: Protocol,
    /// The port on the node's own addresses, if it is reached there too.
    pub node_port: Option<Port>,
    /// How backends are chosen.
    pub scheduling: Scheduling,
    /// Where `fullnat` backends' flows take their source addresses from.
    pub pool: Option<Arc<str>>,
    /// Whether Weir answers ARP, neighbour discovery and ICMP echo for the virtual addresses.
    pub announce: bool,
    /// The backends, in the order in which they were added.
    pub backends: Vec<Backend>,
}

impl Service {
    /// The family of its first virtual address, which in a [`DesiredState`] is the family of all.
    pub fn family(&self) -> Option<Family> {
        self.vips.first().map(|vip| vip.family())
    }

    /// What `addr` and `port` are found by, for this service's protocol.
    pub fn key(&self, addr: Unicast, port: Port) -> VipKey {
        let (addr, v6) = key::bits(addr.ip());
        VipKey { addr, port: port.number(), proto: self.protocol.number(), v6 }
    }
}

/// A run of addresses of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressRange {
    family: Family,
    first: u128,
    count: usize,
}

/// Why two addresses are not the ends of an [`AddressRange`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum BadRange {
    /// An address of each family.
    #[error("{0} and {1} are not of one family")]
    Families(IpAddr, IpAddr),
    /// The end lies before the start.
    #[error("{1} is before {0}")]
    Backwards(IpAddr, IpAddr),
    /// More than a pool can hold.
    #[error("{0} to {1} are more than {POOL_ADDRESSES_MAX} addresses")]
    TooLong(IpAddr, IpAddr),
    /// An address in it cannot be a host's.
    #[error(transparent)]
    NotUnicast(#[from] NotUnicast),
}

impl AddressRange {
    /// The addresses from `first` to `last`, both included.
    pub fn new(first: IpAddr, last: IpAddr) -> Result<Self, BadRange> {
        let ((low, v6), (high, _)) = (key::bits(first), key::bits(last));
        let family = Family::of(first);
        if family != Family::of(last) {
            return Err(BadRange::Families(first, last));
        }
        let more = high.checked_sub(low).ok_or(BadRange::Backwards(first, last))?;
        let count = usize::try_from(more).ok().and_then(|more| more.checked_add(1));
        let count =
            count.filter(|count| *count <= POOL_ADDRESSES_MAX).ok_or(BadRange::TooLong(first, last))?;
        for bits in low..=high {
            Unicast::new(key::address(bits, v6))?;
        }
        Ok(Self { family, first: low, count })
    }

    /// The family of all addresses.
    pub fn family(&self) -> Family {
        self.family
    }

    /// How many addresses there are, at least 1.
    pub fn count(&self) -> usize {
        self.count
    }

    /// The addresses, ascending.
    pub fn iter(&self) -> impl Iterator<Item = IpAddr> + use<> {
        let v6 = self.family == Family::V6;
        (self.first..).take(self.count).map(move |bits| key::address(bits, v6))
    }
}

/// Source addresses and ports for `fullnat`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnatPool {
    /// Its name, its own in the desired state.
    pub name: Arc<str>,
    /// Its addresses, as they were given.
    pub ranges: Vec<AddressRange>,
    /// First port.
    pub low: Port,
    /// Last port, inclusive.
    pub high: Port,
}

impl SnatPool {
    /// Whether it has an address of the family.
    pub fn serves(&self, family: Family) -> bool {
        self.ranges.iter().any(|range| range.family() == family)
    }
}

/// What a source has read, before it is known whether its parts go together.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Draft {
    /// The services.
    pub services: Vec<Service>,
    /// The SNAT pools.
    pub pools: Vec<SnatPool>,
    /// The node's own addresses, on which node ports are reached.
    pub node_addresses: Vec<Unicast>,
    /// Idle times of flows.
    pub timeouts: Timeouts,
}

/// A [`Draft`] whose parts go together: the input of [`crate::compile::compile`].
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct DesiredState(Draft);

impl DesiredState {
    /// The draft, if its parts go together; else everything that stands against it, in the order of the draft.
    pub fn new(draft: Draft) -> Result<Self, Vec<Conflict>> {
        let conflicts = conflict::find(&draft);
        if conflicts.is_empty() { Ok(Self(draft)) } else { Err(conflicts) }
    }

    /// The services, in the order of their source.
    pub fn services(&self) -> &[Service] {
        &self.0.services
    }

    /// The SNAT pools, in the order of their source.
    pub fn pools(&self) -> &[SnatPool] {
        &self.0.pools
    }

    /// The node's own addresses.
    pub fn node_addresses(&self) -> &[Unicast] {
        &self.0.node_addresses
    }

    /// Idle times of flows.
    pub fn timeouts(&self) -> Timeouts {
        self.0.timeouts
    }
}
