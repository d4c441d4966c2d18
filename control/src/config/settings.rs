//! The part of the configuration that holds from start to stop.

use std::net::SocketAddr;
use std::num::NonZeroU8;
use std::path::PathBuf;
use std::time::Duration;

use dataplane::snapshot::marks::MARK_RULES_MAX;

use super::fault::Mark;
use super::reader::{Field, Map};

/// Interfaces at most: the XDP program's 32 ports, less one for the path to the kernel.
pub const INTERFACES_MAX: usize = 31;
/// Workers at most: the queues that the XDP program knows of an interface.
pub const WORKERS_MAX: u8 = 128;
/// The admin socket, unless a file says otherwise.
pub const SOCKET: &str = "/run/weir/weir.sock";
/// The kernel's end of the path to the kernel.
pub const KERNEL_PATH: &str = "weir0";

/// Services where Kubernetes feeds Weir.
pub(super) const CLUSTER_SERVICES: usize = 1 << 18;
/// Backends where Kubernetes feeds Weir.
pub(super) const CLUSTER_BACKENDS: usize = 1 << 20;
/// Flows of one worker at least.
pub(super) const FLOWS_MIN: usize = 1024;
/// Flows of one worker at most.
pub(super) const FLOWS_MAX: usize = 100_000_000;
/// SNAT addresses of all pools at most.
pub(super) const SNAT_ADDRESSES_MAX: usize = 16_384;
/// Node addresses at most.
pub(super) const NODE_ADDRESSES_MAX: usize = 256;

/// Services that metrics tell of one by one, where nothing is said.
const METRICS_SERVICES: usize = 1000;
const INTERFACE_NAME_MAX: usize = 15;
const SOCKET_PATH_MAX: usize = 107;

/// What a reload cannot change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The served interfaces, in the order of their port ids: at least one, no name twice.
    pub interfaces: Vec<InterfaceName>,
    /// The workers.
    pub workers: Workers,
    /// Flows that one worker's table holds at most.
    pub flow_limit: usize,
    /// What slabs and maps are made for.
    pub limits: Limits,
    /// How frames are taken from the interfaces.
    pub xdp: Xdp,
    /// How the kernel gets what Weir took and does not want.
    pub kernel_path: KernelPath,
    /// The admin socket.
    pub socket: PathBuf,
    /// Where `/healthz` and `/livez` are served; `None`: nowhere.
    pub health: Option<SocketAddr>,
    /// Where `/metrics` is served; `None`: nowhere.
    pub metrics: Option<SocketAddr>,
    /// Services that metrics tell of one by one, at most.
    pub metrics_services: usize,
}

/// A name that the kernel can give to a network interface.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct InterfaceName(Box<str>);

impl InterfaceName {
    /// The name, if it has 1 to 15 bytes without blanks, `/` and `:` and is not `.` or `..` (the kernel's
    /// `dev_valid_name`).
    pub fn new(name: &str) -> Option<Self> {
        let bad = |c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control();
        let valid = (1..=INTERFACE_NAME_MAX).contains(&name.len()) && !name.contains(bad);
        (valid && name != "." && name != "..").then(|| Self(name.into()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// One core and one queue index each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workers {
    /// How many there are.
    pub count: NonZeroU8,
    /// The core of each, by worker id; `None`: the first ones that the process may run on.
    pub cores: Option<Vec<u16>>,
    /// How long a worker without traffic spins before it sleeps.
    pub spin: Duration,
    /// Whether it never sleeps.
    pub busy_poll: bool,
    /// Frames pass to the kernel once their worker's last sign of life is older than this.
    pub beat_limit: Duration,
}

/// Room for services and backends, taken at start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Services, one with several VIPs counted once a VIP.
    pub services: usize,
    /// Backends, one of several services counted once a service, a removed one until its last flow has ended.
    pub backends: usize,
}

impl Limits {
    /// What the XDP program's maps are made for. No configuration within these limits overfills them, but one in which
    /// `nat` backends of marks, which take an entry for each protocol of their rules, are most of all.
    pub fn xdp(self) -> xdp_prog::Limits {
        let entries = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        let others = SNAT_ADDRESSES_MAX + NODE_ADDRESSES_MAX + MARK_RULES_MAX;
        xdp_prog::Limits {
            vips: entries(self.services),
            nat_backends: entries(self.backends),
            addresses: entries(self.services + self.backends + others),
            large_frames: false,
        }
    }
}

/// How frames are taken from the interfaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Xdp {
    /// Whether XDP may run in generic mode where the driver has no native one.
    pub allow_generic: bool,
    /// Whether sockets share the driver's buffers.
    pub zero_copy: ZeroCopy,
}

/// Whether AF_XDP sockets share the driver's buffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ZeroCopy {
    /// Where the driver can.
    Auto,
    /// Not even then.
    Never,
    /// Or Weir does not start.
    Require,
}

/// How the kernel gets frames that Weir took and does not want.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KernelPath {
    /// Through a veth pair of Weir's own, whose kernel end is [`KERNEL_PATH`].
    Veth,
    /// Not at all: they are dropped and counted.
    None,
}

/// The settings in the document, with faults noted and defaults in their place, and where each interface stands.
pub(super) fn read(document: &Map<'_, '_>) -> (Settings, Vec<Mark>) {
    let (interfaces, marks) = read_interfaces(document);
    let (metrics, metrics_services) = read_metrics(document);
    let settings = Settings {
        interfaces,
        workers: read_workers(document),
        flow_limit: read_flow_limit(document),
        limits: read_limits(document),
        xdp: read_xdp(document),
        kernel_path: document
            .optional("kernel_path")
            .and_then(|field| field.word(&[(KERNEL_PATH, KernelPath::Veth), ("none", KernelPath::None)]))
            .unwrap_or(KernelPath::Veth),
        socket: read_socket(document),
        health: read_health(document),
        metrics,
        metrics_services,
    };
    (settings, marks)
}

fn read_interfaces(document: &Map<'_, '_>) -> (Vec<InterfaceName>, Vec<Mark>) {
    let mut names: Vec<InterfaceName> = Vec::new();
    let mut marks: Vec<Mark> = Vec::new();
    let Some(list) = document.required("interfaces") else { return (names, marks) };
    for entry in list.list(INTERFACES_MAX) {
        let Some(map) = entry.map(&["name"]) else { continue };
        let Some(field) = map.required("name") else { continue };
        let Some(text) = field.text() else { continue };
        let Some(name) = InterfaceName::new(text) else {
            field.refuse(format_args!("{text:?} cannot be an interface's name"));
            continue;
        };
        if let Some((_, first)) = names.iter().zip(&marks).find(|(earlier, _)| **earlier == name) {
            field.refuse(format_args!("interface {text} is already at {first}"));
        } else if text == KERNEL_PATH {
            field.refuse(format_args!("{text} is Weir's own: see kernel_path"));
        } else {
            names.push(name);
            marks.push(field.at());
        }
    }
    if list.is_empty_list() {
        list.refuse("Weir needs at least one interface");
    }
    (names, marks)
}

fn read_workers(document: &Map<'_, '_>) -> Workers {
    let section = document.optional("workers");
    let map = section
        .as_ref()
        .and_then(|field| field.map(&["count", "cores", "spin_us", "busy_poll", "beat_limit_ms"]));
    let key = |name| map.as_ref().and_then(|map| map.optional(name));
    let given = key("count").and_then(|field| field.number(1..=WORKERS_MAX));
    let cores = key("cores").map(|field| read_cores(&field, given));
    let by_cores = cores.as_ref().and_then(|cores| u8::try_from(cores.len()).ok());
    let count = given.or(by_cores).and_then(NonZeroU8::new).unwrap_or(NonZeroU8::MIN);
    let duration = |name, range, default, unit: fn(u64) -> Duration| {
        unit(key(name).and_then(|field| field.number::<u32>(range)).unwrap_or(default).into())
    };
    Workers {
        count,
        cores,
        spin: duration("spin_us", 0..=1_000_000, 50, Duration::from_micros),
        busy_poll: key("busy_poll").and_then(|field| field.flag()).unwrap_or(false),
        beat_limit: duration("beat_limit_ms", 100..=60_000, 1000, Duration::from_millis),
    }
}

fn read_cores(list: &Field<'_, '_>, workers: Option<u8>) -> Vec<u16> {
    let mut cores: Vec<u16> = Vec::new();
    let mut named = 0;
    for field in list.list(WORKERS_MAX.into()) {
        named += 1;
        match field.number(0..=u16::MAX) {
            Some(core) if cores.contains(&core) => {
                field.refuse(format_args!("core {core} already has a worker"));
            }
            Some(core) => cores.push(core),
            None => {}
        }
    }
    if let Some(workers) = workers
        && named != usize::from(workers)
    {
        list.refuse(format_args!("{workers} workers need {workers} cores, here are {named}"));
    } else if list.is_empty_list() {
        list.refuse("the list is empty: leave it out for the first cores that Weir may run on");
    }
    cores
}

fn read_flow_limit(document: &Map<'_, '_>) -> usize {
    let section = document.optional("flows");
    let map = section.as_ref().and_then(|field| field.map(&["limit"]));
    let limit = map.and_then(|map| map.optional("limit")?.number(FLOWS_MIN as u64..=FLOWS_MAX as u64));
    limit.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(1_000_000)
}

fn read_limits(document: &Map<'_, '_>) -> Limits {
    let section = document.optional("limits");
    let map = section.as_ref().and_then(|field| field.map(&["services", "backends"]));
    let number = |name, most: u32, default| {
        let field = map.as_ref().and_then(|map| map.optional(name));
        field.and_then(|field| usize::try_from(field.number(1..=most)?).ok()).unwrap_or(default)
    };
    Limits {
        services: number("services", 1_000_000, 16_384),
        backends: number("backends", 10_000_000, 65_536),
    }
}

fn read_xdp(document: &Map<'_, '_>) -> Xdp {
    let section = document.optional("xdp");
    let map = section.as_ref().and_then(|field| field.map(&["mode", "zero_copy"]));
    let key = |name| map.as_ref().and_then(|map| map.optional(name));
    let modes = [("native", false), ("generic-allowed", true)];
    let zero_copy = [("auto", ZeroCopy::Auto), ("never", ZeroCopy::Never), ("require", ZeroCopy::Require)];
    Xdp {
        allow_generic: key("mode").and_then(|field| field.word(&modes)).unwrap_or(false),
        zero_copy: key("zero_copy").and_then(|field| field.word(&zero_copy)).unwrap_or(ZeroCopy::Auto),
    }
}

fn read_socket(document: &Map<'_, '_>) -> PathBuf {
    let section = document.optional("admin");
    let map = section.as_ref().and_then(|field| field.map(&["socket"]));
    let field = map.as_ref().and_then(|map| map.optional("socket"));
    let path = field.as_ref().and_then(|field| field.text()).unwrap_or(SOCKET);
    if let Some(field) = &field {
        if !path.starts_with('/') || path.ends_with('/') {
            field.refuse("expected an absolute path of a file");
        } else if path.len() > SOCKET_PATH_MAX {
            field.refuse(format_args!("a socket's path has at most {SOCKET_PATH_MAX} bytes"));
        }
    }
    path.into()
}

/// Where health is served.
fn read_health(document: &Map<'_, '_>) -> Option<SocketAddr> {
    let section = document.optional("health")?;
    read_listen(&section.map(&["listen"])?)
}

/// Where metrics are served, and how many services they tell of one by one.
fn read_metrics(document: &Map<'_, '_>) -> (Option<SocketAddr>, usize) {
    let section = document.optional("metrics");
    let Some(map) = section.as_ref().and_then(|field| field.map(&["listen", "services"])) else {
        return (None, METRICS_SERVICES);
    };
    let limit = map.optional("services").and_then(|field| field.number(0..=100_000_u32));
    let limit = limit.and_then(|limit| usize::try_from(limit).ok());
    (read_listen(&map), limit.unwrap_or(METRICS_SERVICES))
}

fn read_listen(map: &Map<'_, '_>) -> Option<SocketAddr> {
    let field = map.optional("listen")?;
    let address: SocketAddr = field.parse()?;
    if address.port() == 0 {
        field.refuse("port 0 is no port");
        return None;
    }
    Some(address)
}

impl Settings {
    /// The keys whose values differ from `old`.
    pub(super) fn differences(&self, old: &Self) -> Vec<String> {
        let (workers, was) = (&self.workers, &old.workers);
        let differs = [
            ("interfaces", self.interfaces != old.interfaces),
            ("workers.count", workers.count != was.count),
            ("workers.cores", workers.cores != was.cores),
            ("workers.spin_us", workers.spin != was.spin),
            ("workers.busy_poll", workers.busy_poll != was.busy_poll),
            ("workers.beat_limit_ms", workers.beat_limit != was.beat_limit),
            ("flows.limit", self.flow_limit != old.flow_limit),
            ("limits.services", self.limits.services != old.limits.services),
            ("limits.backends", self.limits.backends != old.limits.backends),
            ("xdp.mode", self.xdp.allow_generic != old.xdp.allow_generic),
            ("xdp.zero_copy", self.xdp.zero_copy != old.xdp.zero_copy),
            ("kernel_path", self.kernel_path != old.kernel_path),
            ("admin.socket", self.socket != old.socket),
            ("health.listen", self.health != old.health),
            ("metrics.listen", self.metrics != old.metrics),
            ("metrics.services", self.metrics_services != old.metrics_services),
        ];
        differs.iter().filter(|(_, differs)| *differs).map(|(key, _)| (*key).to_owned()).collect()
    }
}
