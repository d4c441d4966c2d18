//! The configuration file: YAML text -> [`Config`], or every fault of the text with its place.
//!
//! The format is described in `docs/configuration.md`.

mod desired;
mod fault;
mod host;
pub mod kube_proxy;
pub mod kubernetes;
mod pools;
mod reader;
mod rules;
mod services;
mod settings;
mod sysctls;
mod tree;
mod write;

#[cfg(test)]
mod tests;

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::Path as FilePath;
use std::sync::Arc;

pub use fault::{Fault, Faults, Mark};
pub use host::HostReport;
pub use kube_proxy::KubeProxy;
pub use kubernetes::Section;
pub use settings::{
    INTERFACES_MAX, InterfaceName, KERNEL_PATH, KernelPath, Limits, SOCKET, Settings, WORKERS_MAX, Workers,
    Xdp, ZeroCopy,
};

pub use write::write;

use crate::model::{AddressRange, Conflict, DesiredState, Draft, Place, Reason, Service};
use desired::Sources;
use fault::Sink;
use kube_proxy::Timeout;
use reader::{Field, Step, Steps, find, locate};
use settings::SNAT_ADDRESSES_MAX;
use tree::{Node, Value};

/// The keys of the document.
const KEYS: [&str; 19] = [
    "interfaces",
    "workers",
    "flows",
    "limits",
    "xdp",
    "kernel_path",
    "admin",
    "health",
    "metrics",
    "node_addresses",
    "local_networks",
    "virtual_networks",
    "timeouts",
    "ipvs",
    "floods",
    "snat_pools",
    "match_rules",
    "services",
    "kubernetes",
];

/// Bytes of a configuration file at most.
const FILE_MAX: u64 = 64 << 20;

/// A configuration without faults.
#[derive(Clone, Debug)]
pub struct Config {
    /// What holds from start to stop.
    pub settings: Settings,
    /// What a reload can change.
    pub desired: DesiredState,
    /// How Kubernetes feeds Weir, if it does.
    pub kubernetes: Section,
    file: Arc<str>,
    interface_marks: Vec<Mark>,
    said: Said,
    filled_by: Option<(Arc<KubeProxy>, usize)>,
    /// What works, but perhaps not as meant.
    warnings: Faults,
}

/// What the file says of what kube-proxy's configuration may say too.
#[derive(Clone, Debug, Default)]
struct Said {
    timeouts: Vec<Timeout>,
    flow_limit: bool,
    /// Of services and of backends.
    limits: [bool; 2],
}

impl Config {
    /// The file that it was read from, as it was named.
    pub fn file(&self) -> &str {
        &self.file
    }

    /// The keys that differ from `old` although only a restart can change them.
    pub fn restart_needed(&self, old: &Self) -> Vec<String> {
        let mut keys = self.settings.differences(&old.settings);
        keys.extend(self.kubernetes.differences(&old.kubernetes));
        keys
    }

    /// Whether Kubernetes can feed Weir by this configuration, which need not have a section for it: there has to be a
    /// pool for masquerading.
    pub fn check_kubernetes(&self) -> Result<(), Faults> {
        let checked = self.kubernetes.check_pool(self.desired.pools());
        checked.map_err(|reason| Faults::whole_file(&self.file, format!("kubernetes: {reason}")))
    }

    /// Takes what kube-proxy's configuration sets where this file says nothing: where health and metrics are served,
    /// idle times of flows, and the size of the flow tables on so many `cores`. And makes room for a cluster.
    pub fn fill_in(&mut self, proxy: &Arc<KubeProxy>, cores: usize) {
        self.make_room_for_a_cluster();
        self.filled_by = Some((Arc::clone(proxy), cores));
        let listen = proxy.listen();
        self.settings.health = self.settings.health.or(listen.health);
        self.settings.metrics = self.settings.metrics.or(listen.metrics);
        if let Some(total) = proxy.flow_limit(cores).filter(|_| !self.said.flow_limit) {
            let each = total.div_ceil(self.settings.workers.count.get().into());
            self.settings.flow_limit = each.clamp(settings::FLOWS_MIN, settings::FLOWS_MAX);
        }
        let mut draft = self.desired.draft();
        for (timeout, seconds) in proxy.timeouts() {
            if !self.said.timeouts.contains(&timeout) {
                timeout.set(&mut draft.timeouts, seconds);
            }
        }
        if draft.timeouts != self.desired.timeouts()
            && let Ok(desired) = DesiredState::new(draft)
        {
            self.desired = desired;
        }
    }

    /// [`Self::fill_in`] as it was done with `other`, if it was.
    pub fn fill_in_like(&mut self, other: &Self) {
        if let Some((proxy, cores)) = &other.filled_by {
            self.fill_in(proxy, *cores);
        }
    }

    /// Makes room for the Services of a large cluster where this file says nothing of limits: 50,000 of them with ten
    /// endpoints each, which may all be replaced while flows of the old ones go on, and which are reached in several ways.
    fn make_room_for_a_cluster(&mut self) {
        let limits = &mut self.settings.limits;
        for (limit, said, room) in [
            (&mut limits.services, self.said.limits[0], settings::CLUSTER_SERVICES),
            (&mut limits.backends, self.said.limits[1], settings::CLUSTER_BACKENDS),
        ] {
            if !said {
                *limit = room;
            }
        }
    }

    /// What of the configuration this machine does not have (interfaces, RX queues, cores), and what may not be meant.
    pub fn check_host(&self) -> HostReport {
        host::check(self)
    }
}

/// The configuration in the file at `path`.
pub fn load(path: &FilePath) -> Result<Config, Faults> {
    parse(&path.display().to_string(), &read_file(path)?)
}

/// The text of the file at `path`.
fn read_file(path: &FilePath) -> Result<String, Faults> {
    let name = path.display().to_string();
    let unreadable =
        |reason: &dyn fmt::Display| Faults::whole_file(&name, format!("cannot be read: {reason}"));
    let file = File::open(path).map_err(|error| unreadable(&error))?;
    let mut bytes = Vec::new();
    file.take(FILE_MAX + 1).read_to_end(&mut bytes).map_err(|error| unreadable(&error))?;
    if bytes.len() as u64 > FILE_MAX {
        return Err(Faults::whole_file(&name, format!("larger than {} MiB", FILE_MAX >> 20)));
    }
    String::from_utf8(bytes).map_err(|error| {
        let valid = error.as_bytes().get(..error.utf8_error().valid_up_to()).unwrap_or_default();
        let line = 1 + valid.iter().filter(|byte| **byte == b'\n').count();
        Faults::whole_file(&name, format!("not UTF-8: a bad byte in line {line}"))
    })
}

/// The configuration in `text`. `file_name` is for messages alone.
pub fn parse(file_name: &str, text: &str) -> Result<Config, Faults> {
    let sink = Sink::new(file_name);
    let root = match tree::parse(text) {
        Ok(root) => root,
        Err(unreadable) => {
            sink.add(unreadable.at, "", unreadable.reason);
            return Err(sink.into_faults());
        }
    };
    if let Some(kind) = find(&root, &[Step::Key("kind")])
        && let Value::Scalar { text, .. } = &kind.value
        && matches!(&**text, "KubeProxyConfiguration" | "ConfigMap")
    {
        let reason = format!("this is a {text}: give it by --kube-proxy-config; Weir's own file is another");
        sink.add(Some(kind.at), "kind", reason);
        return Err(sink.into_faults());
    }
    let field = Field::root(&root, &sink);
    let Some(document) = field.map(&KEYS) else { return Err(sink.into_faults()) };
    let (settings, interface_marks) = settings::read(&document);
    let (draft, sources) = desired::read(&document, settings.workers.count.get(), &settings.interfaces);
    let places = Places { root: &root, sources: &sources, sink: &sink };
    places.check_limits(&draft, settings.limits);
    let kubernetes = kubernetes::read(&document, &draft.pools, sources.complete);
    let desired = DesiredState::new(draft).map_err(|conflicts| places.refuse(&conflicts));
    let count = sink.count();
    match desired {
        Ok(desired) if count == 0 => {
            let warnings = Sink::new(file_name);
            Places { sink: &warnings, ..places }.warn(&desired);
            let warnings = warnings.into_faults();
            let said = said(&root);
            Ok(Config {
                settings,
                desired,
                kubernetes,
                file: file_name.into(),
                interface_marks,
                said,
                filled_by: None,
                warnings,
            })
        }
        _ => Err(sink.into_faults()),
    }
}

fn said(root: &Node<'_>) -> Said {
    let says = |steps: &[Step]| find(root, steps).is_some_and(|node| !node.is_null());
    let tcp = (0..).zip(sysctls::TCP_STATES).filter_map(|(state, key)| {
        says(&[Step::Key("timeouts"), Step::Key("tcp"), Step::Key(key)]).then_some(Timeout::Tcp(state))
    });
    let udp = says(&[Step::Key("timeouts"), Step::Key("udp_s")]).then_some(Timeout::Udp);
    let limit = |of| says(&[Step::Key("limits"), Step::Key(of)]);
    Said {
        timeouts: tcp.chain(udp).collect(),
        flow_limit: says(&[Step::Key("flows"), Step::Key("limit")]),
        limits: [limit("services"), limit("backends")],
    }
}

/// Brings what is found in a draft back to its place in the file.
struct Places<'a> {
    root: &'a Node<'a>,
    sources: &'a Sources,
    sink: &'a Sink,
}

impl Places<'_> {
    fn check_limits(&self, draft: &Draft, limits: Limits) {
        let pools = draft.pools.iter().flat_map(|pool| &pool.ranges);
        let (vips, backends): (Vec<_>, Vec<_>) =
            draft.services.iter().map(|service| (slots(service), service.backends.len())).unzip();
        for (list, count, name, limit) in [
            ("services", vips.iter().sum(), "VIPs of services, limits.services is", limits.services),
            ("services", backends.iter().sum(), "backends, limits.backends is", limits.backends),
            (
                "snat_pools",
                pools.map(AddressRange::count).sum(),
                "SNAT addresses, the most are",
                SNAT_ADDRESSES_MAX,
            ),
        ] {
            let count: usize = count;
            if count > limit {
                self.add(&[Step::Key(list)], format_args!("{count} {name} {limit}"));
            }
        }
    }

    /// Says what gets no packets.
    fn warn(&self, desired: &DesiredState) {
        for (index, service) in desired.services().enumerate() {
            let (Some(mark), family) = (service.mark(), service.family()) else { continue };
            let rules = desired.rules();
            if !rules.iter().any(|rule| rule.mark == mark.value && rule.has_family(family)) {
                let reason = format_args!("no rule gives {} packets mark {}", family.name(), mark.value);
                self.add(&self.steps(Place::Mark(index)), reason);
            }
        }
    }

    fn refuse(&self, conflicts: &[Conflict]) {
        for conflict in conflicts {
            let misses = matches!(
                conflict.reason,
                Reason::UnknownPool(_) | Reason::PoolFamily { .. } | Reason::NoNodeAddress(_)
            );
            if misses && !self.sources.complete {
                continue;
            }
            let at = self.steps(conflict.at);
            match conflict.earlier.map(|earlier| locate(self.root, &self.steps(earlier))) {
                Some(earlier) => self.add(&at, format_args!("{} (at {earlier})", conflict.reason)),
                None => self.add(&at, &conflict.reason),
            }
        }
    }

    fn add(&self, steps: &[Step], reason: impl fmt::Display) {
        self.sink.add(Some(locate(self.root, steps)), Steps(steps), reason);
    }

    fn steps(&self, place: Place) -> Vec<Step> {
        match place {
            Place::Service(service) => self.service(service),
            Place::ServiceName(service) => self.of_service(service, "name"),
            Place::Vip(service, vip) => {
                let mut steps = self.of_service(service, "vips");
                if find(self.root, &steps).is_some() {
                    steps.push(Step::Index(vip));
                    steps
                } else {
                    self.of_service(service, "vip")
                }
            }
            Place::Port(service) => self.of_service(service, "port"),
            Place::Mark(service) => self.of_service(service, "mark"),
            Place::NodePort(service) => self.of_service(service, "node_port"),
            Place::Persistence(service) => with(self.of_service(service, "persistence"), "netmask"),
            Place::OnePacket(service) => self.of_service(service, "one_packet"),
            Place::Option(service, name) => self.of_service(service, name),
            Place::PoolOf(service) => self.of_service(service, "snat_pool"),
            Place::Backend(service, backend) => self.backend(service, backend),
            Place::BackendAddress(service, backend) => with(self.backend(service, backend), "address"),
            Place::BackendPort(service, backend) => with(self.backend(service, backend), "port"),
            Place::Tunnel(service, backend) => with(self.backend(service, backend), "tunnel"),
            Place::LowerThreshold(service, backend) => {
                with(self.backend(service, backend), "lower_threshold")
            }
            Place::PoolName(pool) => with(self.pool(pool), "name"),
            Place::PoolPorts(pool) => with(self.pool(pool), "ports"),
            Place::PoolRange(pool, range) => {
                let mut steps = with(self.pool(pool), "addresses");
                let source = self.sources.pools.get(pool).and_then(|(_, entries)| entries.get(range));
                steps.extend(source.map(|index| Step::Index(*index)));
                steps
            }
            Place::NodeAddress(addr) => {
                let source = self.sources.node_addresses.get(addr);
                let index = source.map(|index| Step::Index(*index));
                [Step::Key("node_addresses")].into_iter().chain(index).collect()
            }
            Place::Rule(rule) => {
                let index = self.sources.rules.get(rule).map(|index| Step::Index(*index));
                [Step::Key("match_rules")].into_iter().chain(index).collect()
            }
        }
    }

    fn service(&self, service: usize) -> Vec<Step> {
        let source = self.sources.services.get(service);
        let index = source.map(|(index, _)| Step::Index(*index));
        [Step::Key("services")].into_iter().chain(index).collect()
    }

    fn of_service(&self, service: usize, key: &'static str) -> Vec<Step> {
        with(self.service(service), key)
    }

    fn backend(&self, service: usize, backend: usize) -> Vec<Step> {
        let mut steps = self.of_service(service, "backends");
        let source = self.sources.services.get(service).and_then(|(_, backends)| backends.get(backend));
        steps.extend(source.map(|index| Step::Index(*index)));
        steps
    }

    fn pool(&self, pool: usize) -> Vec<Step> {
        let source = self.sources.pools.get(pool);
        let index = source.map(|(index, _)| Step::Index(*index));
        [Step::Key("snat_pools")].into_iter().chain(index).collect()
    }
}

/// How many services it counts for: one a VIP.
fn slots(service: &Service) -> usize {
    service.vips().len().max(1)
}

fn with(mut steps: Vec<Step>, key: &'static str) -> Vec<Step> {
    steps.push(Step::Key(key));
    steps
}
