//! Services, backends and next hops of one generation: immutable, compiled by control, read by workers.
//!
//! What outlives a generation (cursors, connection counts) lies in [`crate::state::State`].

pub mod access;
mod chunks;
pub mod marks;
pub mod net;
pub mod publish;
mod services;
pub mod settings;
mod shards;
pub mod steering;

use std::net::IpAddr;
use std::sync::Arc;

use crate::flow::key::VipKey;
use crate::ids::{BackendId, PoolId, ServiceId};
use crate::schedule::{Lookup, Scheduler};
pub use access::{Access, Clients, Group, Locality, Masquerade, Networks, WhenEmpty};
pub use marks::{Mark, MarkRule};
pub use net::Net;
pub use services::Services;
pub use settings::{Defence, Settings, Timeouts};
pub use steering::Steering;

/// How a backend gets its packets (IPVS: the packet-forwarding method).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Mode {
    /// Destination rewritten, client address kept; replies come back through Weir (IPVS: masquerading).
    Nat,
    /// Destination rewritten, source replaced by an address and port of the service's SNAT pool.
    FullNat,
    /// Only the MAC address rewritten; the backend owns the VIP and answers the client itself (IPVS: gatewaying).
    Dr,
    /// The packet inside an IP packet (RFC 2003, RFC 2473) to the backend, which answers the client itself (IPVS:
    /// tunneling).
    Ipip,
    /// [`Mode::Ipip`] in UDP by Generic UDP Encapsulation (draft-ietf-intarea-gue).
    Gue,
    /// [`Mode::Ipip`] by Generic Routing Encapsulation (RFC 2784).
    Gre,
}

impl Mode {
    /// Every mode.
    pub const ALL: [Self; 6] = [Self::Nat, Self::FullNat, Self::Dr, Self::Ipip, Self::Gue, Self::Gre];

    /// The name as configuration and output have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nat => "nat",
            Self::FullNat => "fullnat",
            Self::Dr => "dr",
            Self::Ipip => "ipip",
            Self::Gue => "gue",
            Self::Gre => "gre",
        }
    }

    /// Whether replies come back through Weir, which translates them. Else the backend answers the client itself.
    #[inline]
    pub fn has_replies(self) -> bool {
        matches!(self, Self::Nat | Self::FullNat)
    }

    /// Whether packets reach the backend inside other packets.
    #[inline]
    pub fn is_tunnel(self) -> bool {
        matches!(self, Self::Ipip | Self::Gue | Self::Gre)
    }
}

/// What a tunnel's outer header says besides the addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Tunnel {
    /// Destination port of `gue`.
    pub port: u16,
    /// Checksum of `gue` and `gre`.
    pub checksum: TunnelChecksum,
}

/// Whether a tunnel's outer header carries a checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum TunnelChecksum {
    /// None (`--tun-nocsum`).
    #[default]
    None,
    /// Over the whole outer payload (`--tun-csum`).
    Full,
    /// `gue` only: of the inner packet, which leaves out its own (`--tun-remcsum`).
    Remote,
}

/// A backend of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    /// Its id, kept across generations.
    pub id: BackendId,
    /// Its address.
    pub addr: IpAddr,
    /// Its port, as packets towards it carry it; 0 where the service is on every port and keeps the client's choice.
    pub port: u16,
    /// Share of new flows; 0 drains.
    pub weight: u32,
    /// The latest weight that was not 0, or 0 where there was none: mh keeps a drained backend's places by it.
    pub last_weight: u32,
    /// How it gets its packets.
    pub mode: Mode,
    /// How it gets them where `mode` is a tunnel.
    pub tunnel: Tunnel,
    /// Flows, active and inactive, from which on it takes no new ones; 0: no limit (IPVS: `--u-threshold`).
    pub upper: u32,
    /// Flows below which a backend that reached `upper` takes new ones again; 0: three quarters of `upper`
    /// (IPVS: `--l-threshold`).
    pub lower: u32,
}

impl Backend {
    /// A backend without thresholds or tunnel parameters.
    pub fn new(id: BackendId, addr: IpAddr, port: u16, weight: u32, mode: Mode) -> Self {
        let tunnel = Tunnel::default();
        Self { id, addr, port, weight, last_weight: weight, mode, tunnel, upper: 0, lower: 0 }
    }
}

/// A client's flows go to the backend that its first one went to (IPVS: persistent service).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Persistence {
    /// Seconds that a client is remembered after its last flow ended.
    pub timeout_s: u32,
    /// Which bits of the client's address count: all clients that agree on these are one. An IPv4 mask lies in the low
    /// 32 bits.
    pub mask: u128,
}

/// What else than its address a client of a persistent service is told by (IPVS: persistence engine).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Engine {
    /// The Call-ID of a SIP message over UDP: each call of a client stays with its own backend.
    Sip,
}

impl Engine {
    /// All of them.
    pub const ALL: [Self; 1] = [Self::Sip];

    /// The name as configuration and output have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sip => "sip",
        }
    }
}

/// When a service answers SYNs itself, by a cookie, and opens a flow only when the client has answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum SynProxy {
    /// Never.
    #[default]
    Off,
    /// While a worker has more half-open flows than this.
    Above(u32),
    /// Always.
    Always,
}

/// What a service does beyond IPVS. Nothing by default.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Options {
    /// A packet in the middle of a flow that is not known goes where consistent hashing says.
    pub stateless_fallback: bool,
    /// The backend learns the client's address from a PROXY protocol header, version 2, in front of the data.
    pub proxy_protocol: bool,
    /// The backend learns the client's address from a TCP option (TOA, number 254).
    pub toa: bool,
    /// The largest TCP segment that either side is told of; `None` leaves what they say. 0: what fits the path.
    pub mss: Option<u16>,
    /// Whether SYN cookies are used.
    pub syn_proxy: SynProxy,
    /// Seconds after which the remaining flows of a drained backend are ended.
    pub drain_s: Option<u32>,
    /// A UDP flow whose backend was removed is scheduled anew with its next packet. One that drains keeps its flows.
    pub move_udp: bool,
}

/// A virtual service.
#[derive(Clone, Debug, Default)]
pub struct Service {
    /// Its id, kept across generations.
    pub id: ServiceId,
    /// Its name in configuration and output.
    pub name: Arc<str>,
    /// Every address, port and protocol that it is reached by; the first is the one that output shows. Port 0 is every
    /// port that no other service has. None for a service that is reached by a mark.
    pub vips: Vec<VipKey>,
    /// Which clients reach it by those.
    pub clients: Clients,
    /// The firewall mark that it is reached by (IPVS: `-f`).
    pub mark: Option<Mark>,
    /// What it is a part of.
    pub group: Option<Group>,
    /// How backends are chosen, with its prepared tables.
    pub scheduler: Scheduler,
    /// Where consistent hashing sends clients, for a service with [`Options::stateless_fallback`]. Of a service whose
    /// scheduler is mh this is its scheduler's table.
    pub steady: Option<Lookup>,
    /// The backends, newest first: the order in which IPVS walks its list. Services with the same ones share the list.
    pub backends: Arc<[Backend]>,
    /// Where `fullnat` takes its source addresses from.
    pub pool: Option<PoolId>,
    /// Whether a client stays with its backend.
    pub persistence: Option<Persistence>,
    /// What else than their address its clients are told by. Nothing without persistence.
    pub engine: Option<Engine>,
    /// Every datagram is scheduled by itself, and no flow is kept (IPVS: `-o`). Only for UDP.
    pub one_packet: bool,
    /// Who may use it.
    pub access: Access,
    /// What it does beyond IPVS.
    pub options: Options,
}

impl Service {
    /// Whether all that it wants of a packet that opens a flow is that its client may come, and a backend: nothing that has
    /// to be remembered or changed besides.
    #[inline]
    pub fn is_plain(&self) -> bool {
        let Self { persistence, engine, one_packet, options, .. } = self;
        *options == Options::default() && persistence.is_none() && engine.is_none() && !one_packet
    }
}

/// Source addresses and ports for `fullnat`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnatPool {
    /// Its name in the configuration.
    pub name: Arc<str>,
    /// IPv4 addresses, in host order.
    pub v4: Vec<u32>,
    /// IPv6 addresses, in host order.
    pub v6: Vec<u128>,
    /// First port.
    pub low: u16,
    /// Last port, inclusive. Each worker takes an equal slice of `low..=high`.
    pub high: u16,
}

/// Port of FTP's control connections.
pub const FTP: u16 = 21;

/// All compiled tables of one generation.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Counts up with every publication.
    pub generation: u64,
    /// Services, backends, SNAT pools.
    pub services: Arc<Services>,
    /// Ports, routes, neighbours.
    pub net: Arc<Net>,
    /// Idle times.
    pub timeouts: Timeouts,
    /// What IPVS has as sysctls, and limits.
    pub settings: Settings,
    /// Which SNAT ports bring replies to their worker; `None` where no card tells, or with one worker.
    pub steering: Option<Arc<Steering>>,
}
