//! What `ipvsadm` and a running Weir say to each other: services, real servers and commands as IPVS knows them.
//!
//! A service is found by its address, port and protocol, or by its mark and family, never by a name.

use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroU32;

use serde::{Deserialize, Serialize};

/// Commands in one request at most.
pub const COMMANDS_MAX: usize = 1024;

/// A transport protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the names say it")]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
    /// Its number.
    pub fn number(self) -> u8 {
        use dataplane::flow::key;
        match self {
            Self::Tcp => key::TCP,
            Self::Udp => key::UDP,
            Self::Sctp => key::SCTP,
        }
    }
}

/// What a service is found by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Key {
    /// `-t`, `-u`, `--sctp-service`. Port 0 is every port.
    Address {
        /// The protocol.
        protocol: Protocol,
        /// The virtual address.
        addr: IpAddr,
        /// The port.
        port: u16,
    },
    /// `-f`.
    Mark {
        /// The mark.
        mark: NonZeroU32,
        /// Whether it is for IPv6 (`-6`).
        v6: bool,
    },
}

impl Key {
    /// Whether its clients and, but for tunnels, its servers have IPv6 addresses.
    pub fn is_v6(self) -> bool {
        match self {
            Self::Address { addr, .. } => addr.is_ipv6(),
            Self::Mark { v6, .. } => v6,
        }
    }
}

/// Which clients count as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Netmask {
    /// An IPv4 mask, of any form.
    V4(Ipv4Addr),
    /// The length of an IPv6 prefix.
    V6(u8),
}

impl Netmask {
    /// Whether every client counts by itself.
    pub fn is_single(self) -> bool {
        matches!(self, Self::V4(Ipv4Addr::BROADCAST) | Self::V6(128))
    }
}

/// The flags of a scheduler (`-b`). What they mean is the scheduler's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SchedulerFlags {
    /// `flag-1`, `sh-fallback`, `mh-fallback`.
    pub first: bool,
    /// `flag-2`, `sh-port`, `mh-port`.
    pub second: bool,
    /// `flag-3`.
    pub third: bool,
}

/// A virtual service as it is to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// What it is found by.
    pub key: Key,
    /// Its scheduler.
    pub scheduler: String,
    /// The scheduler's flags.
    pub flags: SchedulerFlags,
    /// Seconds of persistence.
    pub persistent_s: Option<u32>,
    /// Which clients persistence takes for one.
    pub netmask: Netmask,
    /// Whether each datagram is scheduled by itself.
    pub one_packet: bool,
    /// Its persistence engine; empty for none.
    pub engine: String,
}

/// How a real server gets its packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Forward {
    /// `-m`.
    Masq,
    /// `-g`.
    Route,
    /// `-i`.
    Tunnel {
        /// `--tun-type`.
        kind: TunnelKind,
        /// `--tun-port`: for `gue` alone, else 0.
        port: u16,
        /// `--tun-nocsum`, `--tun-csum`, `--tun-remcsum`.
        checksum: TunnelChecksum,
    },
    /// Weir's `fullnat`, which IPVS has not: listed, and never in a command.
    FullNat,
}

/// What packets of a tunnel are put into.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the names say it")]
pub enum TunnelKind {
    #[default]
    Ipip,
    Gue,
    Gre,
}

/// Checksum of a tunnel's outer header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the names say it")]
pub enum TunnelChecksum {
    #[default]
    None,
    Full,
    Remote,
}

/// A real server as it is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Server {
    /// Its address.
    pub addr: IpAddr,
    /// Its port; 0 is the one that the client asked for.
    pub port: u16,
    /// How it gets its packets.
    pub forward: Forward,
    /// Its share of new connections.
    pub weight: u32,
    /// Connections from which on it takes no new ones; 0: no limit.
    pub upper: u32,
    /// Connections below which it takes new ones again.
    pub lower: u32,
}

/// What a real server is found by in its service.
pub type ServerKey = (IpAddr, u16);

impl Server {
    /// What it is found by.
    pub fn key(&self) -> ServerKey {
        (self.addr, self.port)
    }
}

/// Idle times that `--set` knows, in seconds. In a command 0 leaves what there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timeouts {
    /// Established TCP connections.
    pub tcp_s: u32,
    /// TCP connections that one side has closed.
    pub tcp_fin_s: u32,
    /// UDP.
    pub udp_s: u32,
}

/// What the daemon of connection synchronisation was to be started or stopped as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the names say it")]
pub enum SyncRole {
    Master,
    Backup,
}

/// Something to be done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Command {
    /// `-A`.
    AddService(Service),
    /// `-E`.
    EditService(Service),
    /// `-D`.
    DeleteService(Key),
    /// `-a`.
    AddServer(Key, Server),
    /// `-e`.
    EditServer(Key, Server),
    /// `-d`.
    DeleteServer(Key, ServerKey),
    /// `-C`.
    Flush,
    /// `-Z`, of one service or of all.
    Zero(Option<Key>),
    /// `--set`.
    SetTimeouts(Timeouts),
    /// `--start-daemon`.
    StartDaemon(SyncRole),
    /// `--stop-daemon`.
    StopDaemon(SyncRole),
}

/// Why a command was not carried out: the kernel's error codes, and what is Weir's own to refuse.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// EEXIST.
    Exists,
    /// ESRCH: no such service or daemon.
    NoService,
    /// ENOENT: no such server, scheduler or persistence engine.
    NoEntry,
    /// EINVAL.
    Invalid,
    /// ERANGE.
    Range,
    /// ENOMEM: the tables are full.
    NoMemory,
    /// What IPVS has and Weir has not, or the other way round.
    Weir(String),
}

/// Counts since the last zeroing, and present rates a second, as the estimator last saw them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Stats {
    pub conns: u64,
    pub in_packets: u64,
    pub out_packets: u64,
    pub in_bytes: u64,
    pub out_bytes: u64,
    pub conns_rate: u64,
    pub in_packets_rate: u64,
    pub out_packets_rate: u64,
    pub in_bytes_rate: u64,
    pub out_bytes_rate: u64,
}

/// A service with its real servers, newest first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceEntry {
    /// What it is.
    pub service: Service,
    /// Its traffic.
    pub stats: Stats,
    /// Its servers.
    pub servers: Vec<ServerEntry>,
}

/// A real server with its connections and traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerEntry {
    /// What it is.
    pub server: Server,
    /// Connections in an active state.
    pub active: u32,
    /// Other connections.
    pub inactive: u32,
    /// Clients that persistence keeps with it.
    pub persistent: u32,
    /// Its traffic.
    pub stats: Stats,
}
