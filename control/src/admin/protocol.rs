//! Requests and replies, as both ends have them. One JSON object a line.
//!
//! Addresses with ports are text as `10.0.0.1:80` or `[fd00::1]:80`; counts are totals since the start.

use serde::{Deserialize, Serialize};

use crate::ipvs::command::{Command, Key, Refusal, ServiceEntry, Timeouts};

/// Bytes of a request line at most, its newline included.
pub const REQUEST_LIMIT: usize = 1 << 20;
/// Bytes of a reply line at most, as the client takes it.
pub const REPLY_LIMIT: u64 = 1 << 30;
/// Flows in a reply where the request does not say.
pub const FLOWS_DEFAULT: usize = 1000;
/// Flows in a reply at most.
pub const FLOWS_LIMIT: usize = 100_000;

/// What can be asked for: `{"request":"flows","limit":10}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Version, uptime, the state of the configuration.
    Status {},
    /// Services.
    Services {},
    /// Backends.
    Backends {
        /// Of this service alone.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        service: Option<String>,
    },
    /// Flows.
    Flows {
        /// How many at most.
        #[serde(default = "flows_default")]
        limit: usize,
        /// Of this service alone.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        service: Option<String>,
        /// From this client address alone.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        client: Option<std::net::IpAddr>,
        /// Those behind the ones of an earlier reply: its [`Flows::next`].
        #[serde(default, skip_serializing_if = "Option::is_none")]
        after: Option<FlowsCursor>,
    },
    /// Workers.
    Workers {},
    /// What was not delivered, and why; and the counters of the XDP program.
    Drops {
        /// The reasons that never happened too.
        #[serde(default)]
        all: bool,
    },
    /// Served interfaces with their queues.
    Interfaces {},
    /// Read the configuration file again.
    Reload {},
    /// The configuration in force, as a file would have it.
    Config {},
    /// Changes by `ipvsadm`: live at once, and part of the desired state until the file is read again.
    Ipvs {
        /// What is to be done, in this order; [`COMMANDS_MAX`](crate::ipvs::command::COMMANDS_MAX) at most.
        commands: Vec<Command>,
    },
    /// Services as `ipvsadm` lists them.
    IpvsList {
        /// This one alone.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        service: Option<Key>,
    },
    /// The idle times that `ipvsadm --set` sets.
    IpvsTimeouts {},
}

fn flows_default() -> usize {
    FLOWS_DEFAULT
}

/// The answer to the request of the same name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reply", content = "body", rename_all = "snake_case")]
#[expect(missing_docs, reason = "the variants are the requests' own")]
pub enum Reply {
    Status(Status),
    Services(Vec<ServiceRow>),
    Backends(Vec<BackendRow>),
    Flows(Flows),
    Workers(Vec<WorkerRow>),
    Drops(Drops),
    Interfaces(Vec<InterfaceRow>),
    Reload(Reload),
    Config(String),
    /// Why each command was refused, `None` for one that was carried out.
    Ipvs(Vec<Option<Refusal>>),
    IpvsList(Vec<ServiceEntry>),
    IpvsTimeouts(Timeouts),
    /// The request could not be read or carried out.
    Error {
        /// Why.
        message: String,
    },
}

/// The process as a whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Version of the binary.
    pub version: String,
    /// Its process id.
    pub pid: u32,
    /// Seconds since it started.
    pub uptime_s: u64,
    /// The configuration file.
    pub config: String,
    /// Number of the published tables; counts up with every change.
    pub generation: u64,
    /// Tables that some worker may still use.
    pub generations_kept: usize,
    /// Workers that run, of all.
    pub workers: (usize, usize),
    /// Services.
    pub services: usize,
    /// Backends of all services.
    pub backends: usize,
    /// Neighbours with a known MAC address, of all that ever had one.
    pub neighbours: (usize, usize),
    /// Neighbours that are not asked for because the table of requests is full.
    pub neighbours_refused: u64,
    /// The last reload, if there was one.
    pub last_reload: Option<Reload>,
    /// Kubernetes, where it feeds Weir.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kubernetes: Option<Kubernetes>,
}

/// How Kubernetes does as a source. Whatever it says, what was read last is in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kubernetes {
    /// The API server's URL; empty until it is known.
    pub server: String,
    /// The own Node's name.
    pub node: String,
    /// Whether Services and EndpointSlices were read.
    pub synced: bool,
    /// What is watched.
    pub resources: Vec<KubernetesResource>,
}

/// How watching a resource goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KubernetesResource {
    /// Its name.
    pub name: String,
    /// Whether all its objects were read once.
    pub synced: bool,
    /// How often all its objects were read.
    pub lists: u64,
    /// What is wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
    /// For how many seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble_s: Option<u64>,
}

/// How a reload went.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reload {
    /// When, in seconds since 1970.
    pub at_unix_s: u64,
    /// How many reloads there were, this one included.
    pub count: u64,
    /// Why it was refused, one fault an element; empty where it was accepted.
    pub faults: Vec<String>,
    /// The tables that came of it; those before it where it was refused.
    pub generation: u64,
}

/// A service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceRow {
    /// Its name.
    pub name: String,
    /// The addresses with port and protocol that it is reached by, as `10.0.0.1:80/tcp`.
    pub vips: Vec<String>,
    /// Whether it is for clients inside alone.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub inside: bool,
    /// Its scheduler.
    pub scheduler: String,
    /// Its backends that take new flows.
    pub backends: usize,
    /// Its backends that drain: weight 0.
    pub draining: usize,
    /// Flows in an active state.
    pub active: u64,
    /// Other flows.
    pub inactive: u64,
    /// New flows that were refused.
    pub refused: u64,
    /// Traffic of its present backends.
    #[serde(flatten)]
    pub traffic: Traffic,
}

/// A backend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendRow {
    /// Its service.
    pub service: String,
    /// Its address and port.
    pub address: String,
    /// Its share of new flows; 0 drains.
    pub weight: u32,
    /// Its forwarding mode.
    pub mode: String,
    /// Flows in an active state.
    pub active: u64,
    /// Other flows.
    pub inactive: u64,
    /// Its traffic.
    #[serde(flatten)]
    pub traffic: Traffic,
}

/// Flows and packets that came and went; bytes from the IP header on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Traffic {
    /// Flows opened.
    pub flows: u64,
    /// Packets from clients.
    pub packets_in: u64,
    /// Bytes from clients.
    pub bytes_in: u64,
    /// Packets to clients.
    pub packets_out: u64,
    /// Bytes to clients.
    pub bytes_out: u64,
}

impl Traffic {
    /// What came since the same counters were at `before`.
    pub fn since(self, before: Self) -> Self {
        Self {
            flows: self.flows.saturating_sub(before.flows),
            packets_in: self.packets_in.saturating_sub(before.packets_in),
            bytes_in: self.bytes_in.saturating_sub(before.bytes_in),
            packets_out: self.packets_out.saturating_sub(before.packets_out),
            bytes_out: self.bytes_out.saturating_sub(before.bytes_out),
        }
    }
}

impl std::ops::AddAssign for Traffic {
    fn add_assign(&mut self, other: Self) {
        self.flows += other.flows;
        self.packets_in += other.packets_in;
        self.bytes_in += other.bytes_in;
        self.packets_out += other.packets_out;
        self.bytes_out += other.bytes_out;
    }
}

/// Some of the flows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flows {
    /// The flows.
    pub flows: Vec<FlowRow>,
    /// Whether there are more than were asked for.
    pub more: bool,
    /// Where the others begin, if there are more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<FlowsCursor>,
    /// Workers that did not answer in time.
    pub silent: Vec<u8>,
}

/// A place among all flows. Flows that come or go meanwhile may be missed, but none is told twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowsCursor {
    /// The worker.
    pub worker: u8,
    /// The place in its table.
    pub slot: usize,
}

/// A flow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowRow {
    /// The worker that it belongs to.
    pub worker: u8,
    /// Its protocol.
    pub protocol: String,
    /// The client.
    pub client: String,
    /// The virtual address.
    pub vip: String,
    /// The source that the backend sees, where it is not the client.
    pub snat: Option<String>,
    /// The backend.
    pub backend: String,
    /// The service; empty where that is gone.
    pub service: String,
    /// The forwarding mode.
    pub mode: String,
    /// The state, as IPVS names it.
    pub state: String,
    /// Seconds until it is forgotten if nothing comes.
    pub expires_s: u32,
    /// What keeps a call of SIP with its backend: the Call-ID.
    pub call_id: Option<String>,
}

/// A worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerRow {
    /// Its number: the queue index that it serves on every interface.
    pub worker: u8,
    /// The core that it is pinned to, if it is.
    pub core: Option<u16>,
    /// Whether its thread runs.
    pub alive: bool,
    /// Rounds of its loop.
    pub turns: u64,
    /// How often it went to sleep for want of work.
    pub sleeps: u64,
    /// Frames given to the engine.
    pub frames: u64,
    /// Frames sent on.
    pub forwarded: u64,
    /// Frames answered in place.
    pub answered: u64,
    /// Frames left to the kernel.
    pub kernel: u64,
    /// Frames not delivered, for any reason.
    pub dropped: u64,
    /// Frames handed to another worker.
    pub handed_over: u64,
    /// Frames taken from another worker.
    pub taken_over: u64,
    /// Times that a frame was kept until its neighbour was known.
    pub waited: u64,
    /// Flows in its table.
    pub flows: u64,
    /// Flows opened.
    pub flows_opened: u64,
    /// Flows that ended by their timeout.
    pub flows_expired: u64,
    /// Flows whose handshake is not complete.
    pub half_open: u64,
    /// Flows that were ended to make room for others.
    pub flows_evicted: u64,
    /// Flows that `drop_entry` ended.
    pub flows_dropped: u64,
    /// SYNs that were answered by a cookie.
    pub cookies_sent: u64,
    /// Flows that were opened by a cookie.
    pub cookies_accepted: u64,
    /// Flows that were ended because their backend had drained for long enough.
    pub flows_drained: u64,
    /// Packets that were sent on without a flow.
    pub stateless: u64,
    /// Fragments that were sent where their first one went.
    pub fragments_followed: u64,
    /// Fragments that came before their first one, and were kept.
    pub fragments_early: u64,
    /// Packets that were larger than their path and were sent in fragments.
    pub split: u64,
    /// Clients of persistent services that could not be remembered for want of room.
    pub templates_full: u64,
    /// Flows that other workers could not be told of.
    pub directory_full: u64,
    /// By what its SNAT ports are chosen, one sentence an interface; none where it is the only worker.
    pub snat_ports: Vec<String>,
}

/// What was not delivered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drops {
    /// By the workers, by reason.
    pub drops: Vec<Count>,
    /// What the XDP program decided, by kind.
    pub xdp: Vec<Count>,
}

/// A named number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Count {
    /// Of what.
    pub name: String,
    /// How often.
    pub count: u64,
}

/// A served interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfaceRow {
    /// Its name.
    pub name: String,
    /// Its index in the kernel.
    pub ifindex: u32,
    /// Its MAC address.
    pub mac: String,
    /// Largest IP packet in bytes.
    pub mtu: u16,
    /// Whether it is up and has a carrier.
    pub up: bool,
    /// Whether it was deleted: another one that has its name now is served only after a restart.
    pub gone: bool,
    /// Its own addresses with prefix lengths.
    pub addresses: Vec<String>,
    /// How the XDP program is attached, as the kernel says; `none` for the kernel path.
    pub xdp: String,
    /// Its queues that Weir serves.
    pub queues: Vec<QueueRow>,
}

/// One queue of an interface; the counts are the kernel's (`XDP_STATISTICS`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueRow {
    /// Its index, and that of its worker.
    pub queue: u32,
    /// `zero-copy` or `copy`, as the kernel says.
    pub mode: String,
    /// Whether its worker polls it in place of interrupts.
    pub polled: bool,
    /// Frames received.
    pub rx: u64,
    /// Frames sent.
    pub tx: u64,
    /// Frames lost for other reasons than a full ring.
    pub rx_dropped: u64,
    /// Frames lost because the RX ring was full.
    pub rx_ring_full: u64,
    /// Times that the fill ring was empty.
    pub fill_ring_empty: u64,
    /// Descriptors that the kernel refused, both ways.
    pub invalid_descriptors: u64,
}
