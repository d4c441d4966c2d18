//! What Weir shall do, whoever said so: a file, `ipvsadm`, other sources beside them.
//!
//! The types here cannot hold what makes no sense by itself (a multicast VIP); [`DesiredState::new`] refuses what makes
//! no sense together (a VIP used twice) and names every such place.

mod address;
mod change;
mod conflict;
mod desired;
mod rule;

use std::net::Ipv4Addr;
use std::num::{NonZeroU16, NonZeroU32};
use std::sync::Arc;

use dataplane::flow::key;
use dataplane::flow::key::VipKey;
use dataplane::schedule;
use dataplane::snapshot::{Engine, Mark, Mode, Options, Settings, Timeouts, Tunnel};
use ipnet::IpNet;

pub use address::{AddressRange, BadRange, Family, NotUnicast, POOL_ADDRESSES_MAX, Unicast};
pub use change::{Change, Common};
pub use conflict::{Conflict, Place, Reason};
pub use dataplane::snapshot::{Clients, Masquerade, WhenEmpty};
pub(crate) use desired::{Applied, Touched};
pub use desired::{DesiredState, Order};
pub use rule::{Interface, MatchRule, PortRange};

/// The largest weight that ipvsadm takes.
pub const WEIGHT_MAX: u32 = i32::MAX.unsigned_abs();
/// The longest time that ipvsadm takes, for persistence and for timeouts: 31 days.
pub const SECONDS_MAX: u32 = 31 * 86_400;

/// A port of TCP, UDP or SCTP, never 0.
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

/// A backend's share of new flows, at most [`WEIGHT_MAX`]; 0 drains it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Weight(pub u32);

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
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// Every protocol.
    pub const ALL: [Self; 3] = [Self::Tcp, Self::Udp, Self::Sctp];

    /// The name as configuration and output have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }

    /// The IP protocol number.
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => key::TCP,
            Self::Udp => key::UDP,
            Self::Sctp => key::SCTP,
        }
    }
}

/// How a service chooses among its backends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Scheduling {
    /// The scheduler.
    pub kind: schedule::Kind,
    /// Its options.
    pub flags: schedule::Flags,
}

/// A backend of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Backend {
    /// Its address.
    pub addr: Unicast,
    /// Its port, as packets towards it carry it; `None` keeps the one that the client asked for.
    pub port: Option<Port>,
    /// Its share of new flows.
    pub weight: Weight,
    /// How it gets its packets.
    pub mode: Mode,
    /// How it gets them where `mode` is a tunnel.
    pub tunnel: Tunnel,
    /// Flows from which on it takes no new ones; 0: no limit (ipvsadm: `--u-threshold`).
    pub upper: u32,
    /// Flows below which it then takes new ones again; 0: three quarters of `upper` (ipvsadm: `--l-threshold`).
    pub lower: u32,
}

impl Backend {
    /// A backend of weight 1 without thresholds or tunnel parameters.
    pub fn new(addr: Unicast, port: Option<Port>, mode: Mode) -> Self {
        Self { addr, port, weight: Weight::default(), mode, tunnel: Tunnel::default(), upper: 0, lower: 0 }
    }

    /// The number of its port, 0 where it keeps the client's.
    pub fn port_number(&self) -> u16 {
        port_number(self.port)
    }
}

/// The number of a port, 0 for none, as IPVS has it.
pub fn port_number(port: Option<Port>) -> u16 {
    port.map_or(0, Port::number)
}

/// What leads packets to a service.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Reach {
    /// Addresses of its own.
    Vips(Vips),
    /// A firewall mark, in one address family (ipvsadm: `-f`, `-f` with `-6`). [`MatchRule`]s give marks.
    Mark {
        /// The mark.
        mark: NonZeroU32,
        /// The family.
        family: Family,
    },
}

/// Virtual addresses with a protocol and a port.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Vips {
    /// The family of all addresses and of the service's clients.
    pub family: Family,
    /// The addresses: at least one, unless the service is reached by its node port alone.
    pub addresses: Vec<Unicast>,
    /// The port; `None` is every port that no other service has.
    pub port: Option<Port>,
    /// The protocol.
    pub protocol: Protocol,
    /// Which clients reach it by them.
    pub clients: Clients,
}

/// Who may use a service, and what becomes of who does.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub struct Access {
    /// The networks whose hosts may; the packets of others are dropped. `None`: all.
    pub sources: Option<Arc<[IpNet]>>,
    /// Whose address `nat` backends do not get to see.
    pub masquerade: Masquerade,
    /// What a client is told where there is no backend.
    pub when_empty: WhenEmpty,
}

/// A client's flows go to the backend that its first one went to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Persistence {
    /// Seconds that a client is remembered after its last flow ended: 1 to [`SECONDS_MAX`].
    pub timeout_s: NonZeroU32,
    /// Which bits of the client's address count; `None`: all.
    pub netmask: Option<Netmask>,
}

/// The bits of an address that count for persistence, as ipvsadm takes them (`-M`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Netmask {
    /// Of IPv4: any bits.
    V4(Ipv4Addr),
    /// Of IPv6: so many in front, 1 to 128.
    V6(u8),
}

impl Netmask {
    /// The family that it is for.
    pub fn family(self) -> Family {
        match self {
            Self::V4(_) => Family::V4,
            Self::V6(_) => Family::V6,
        }
    }

    /// The bits; those of IPv4 lie in the low 32.
    pub fn bits(self) -> u128 {
        match self {
            Self::V4(mask) => mask.to_bits().into(),
            Self::V6(len) => u128::MAX.checked_shl(128_u32.saturating_sub(len.into())).unwrap_or(0),
        }
    }
}

/// A virtual service.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Service {
    /// Its name in output, its own in the desired state.
    pub name: Arc<str>,
    /// What it is a part of, together with other services: their backends of one address, port and mode are the same
    /// ones, with the same counts, and a client that persistence keeps with one is kept with it by all of them. One of
    /// Kubernetes's service ports, whose addresses are used in different ways, is several services of a group.
    pub group: Option<Arc<str>>,
    /// What leads packets to it.
    pub reach: Reach,
    /// The port on the node's own addresses, if it is reached there too.
    pub node_port: Option<Port>,
    /// How backends are chosen.
    pub scheduling: Scheduling,
    /// Whether a client stays with its backend.
    pub persistence: Option<Persistence>,
    /// What else than their address its clients are told by (ipvsadm: `--pe`). Nothing without persistence, and only for
    /// the protocol that it is of.
    pub engine: Option<Engine>,
    /// Every datagram is scheduled by itself (ipvsadm: `-o`).
    pub one_packet: bool,
    /// Who may use it.
    pub access: Access,
    /// What it does beyond IPVS.
    pub options: Options,
    /// Where `fullnat` backends' flows take their source addresses from.
    pub pool: Option<Arc<str>>,
    /// Whether Weir answers ARP, neighbour discovery and ICMP echo for the virtual addresses; of a mark: for the single
    /// addresses that its rules have as destinations.
    pub announce: bool,
    /// The backends, in the order in which they were added. Services with the same ones share the list.
    pub backends: Arc<[Backend]>,
    /// Whose it is.
    pub origin: Origin,
}

/// Where a service comes from: whoever reads that source again replaces its services and no others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Origin {
    /// The configuration file, or `ipvsadm`.
    #[default]
    Configuration,
    /// Kubernetes.
    Kubernetes,
}

/// What makes a service the same one from generation to generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Identity {
    /// Its first VIP, with port and protocol, and who reaches it there.
    Vip(VipKey, Clients),
    /// Its node port, where it has no VIP, and who reaches it there.
    Node {
        /// The port.
        port: Port,
        /// Its protocol.
        protocol: Protocol,
        /// Its family.
        family: Family,
        /// Who reaches it.
        clients: Clients,
    },
    /// Its mark.
    Mark(Mark),
}

impl Service {
    /// A service without backends or anything that it need not have.
    pub fn new(name: Arc<str>, reach: Reach, scheduling: Scheduling) -> Self {
        Self {
            name,
            group: None,
            reach,
            node_port: None,
            scheduling,
            persistence: None,
            engine: None,
            one_packet: false,
            access: Access::default(),
            options: Options::default(),
            pool: None,
            announce: true,
            backends: Arc::default(),
            origin: Origin::default(),
        }
    }

    /// Its virtual addresses; none for a service that is reached by a mark.
    pub fn vips(&self) -> &[Unicast] {
        match &self.reach {
            Reach::Vips(vips) => &vips.addresses,
            Reach::Mark { .. } => &[],
        }
    }

    /// The mark that it is reached by.
    pub fn mark(&self) -> Option<Mark> {
        match self.reach {
            Reach::Vips(_) => None,
            Reach::Mark { mark, family } => Some(Mark { value: mark, v6: family == Family::V6 }),
        }
    }

    /// The family of its clients, which in a [`DesiredState`] is that of all its virtual addresses.
    pub fn family(&self) -> Family {
        match &self.reach {
            Reach::Vips(vips) => vips.family,
            Reach::Mark { family, .. } => *family,
        }
    }

    /// Which clients reach it.
    pub fn clients(&self) -> Clients {
        match &self.reach {
            Reach::Vips(vips) => vips.clients,
            Reach::Mark { .. } => Clients::All,
        }
    }

    /// Its protocol; `None` for a service that is reached by a mark, which may carry all.
    pub fn protocol(&self) -> Option<Protocol> {
        match &self.reach {
            Reach::Vips(vips) => Some(vips.protocol),
            Reach::Mark { .. } => None,
        }
    }

    /// Its port; `None` for a service on every port and one that is reached by a mark.
    pub fn port(&self) -> Option<Port> {
        match &self.reach {
            Reach::Vips(vips) => vips.port,
            Reach::Mark { .. } => None,
        }
    }

    /// Whether backends are asked on the port that the client asked for, whatever port of their own they have: a
    /// persistent service that is not on one port, as in IPVS.
    pub fn keeps_ports(&self) -> bool {
        self.port().is_none() && self.persistence.is_some()
    }

    /// Every address that it is reached by, its first VIP first; none for a mark.
    pub fn keys(&self) -> impl Iterator<Item = VipKey> {
        let (port, protocol) = (self.port(), self.protocol());
        self.vips().iter().filter_map(move |vip| Some(vip_key(*vip, port, protocol?)))
    }

    /// What makes it the same service after a change; `None` where nothing leads to it.
    pub fn identity(&self) -> Option<Identity> {
        let vips = match &self.reach {
            Reach::Vips(vips) => vips,
            Reach::Mark { .. } => return self.mark().map(Identity::Mark),
        };
        let (protocol, family, clients) = (vips.protocol, vips.family, vips.clients);
        let on_node = || self.node_port.map(|port| Identity::Node { port, protocol, family, clients });
        self.keys().next().map(|key| Identity::Vip(key, clients)).or_else(on_node)
    }
}

/// What packets of `protocol` to `addr` and `port` are found by; `None` is every port.
pub fn vip_key(addr: Unicast, port: Option<Port>, protocol: Protocol) -> VipKey {
    let (addr, v6) = key::bits(addr.ip());
    VipKey { addr, port: port_number(port), proto: protocol.number(), v6 }
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
    /// Where local clients are: pods, to Kubernetes ([`Clients::Inside`], [`Masquerade::NotLocal`]).
    pub local: Vec<IpNet>,
    /// Networks of virtual addresses: what is for one of them and no service is refused where some service has the
    /// address, and dropped where none has. TCP, UDP and SCTP only; the rest is the kernel's.
    pub virtual_networks: Vec<IpNet>,
    /// The rules that give marks, by precedence.
    pub rules: Vec<MatchRule>,
    /// Idle times of flows.
    pub timeouts: Timeouts,
    /// What IPVS has as sysctls, and limits.
    pub settings: Settings,
}
