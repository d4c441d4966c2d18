//! kube-proxy's flags: one a field, by the names that kube-proxy gave them.

use std::borrow::Cow;

use super::super::fault::{Fault, Faults, Mark, Sink};
use super::super::reader::Field;
use super::super::tree::{Entry, Node, Value};
use super::document::{Document, HEALTH_PORT, METRICS_PORT};
use super::read::{self, Given};

/// A flag that stands for a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flag {
    /// Its name, without dashes.
    pub name: &'static str,
    /// The field.
    pub path: &'static str,
    /// What it takes.
    pub kind: Kind,
    /// What it is for.
    pub help: &'static str,
}

/// What a flag takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Text.
    Text,
    /// A number.
    Number,
    /// A duration of Go's.
    Duration,
    /// `true` or `false`; nothing is `true`.
    Switch,
    /// Texts with commas between.
    List,
    /// `name=true` or `name=false` with commas between.
    Gates,
    /// `pattern=number` with commas between.
    Modules,
    /// A port for an address that another flag may give; 0 serves nothing.
    Port,
}

impl Kind {
    /// A name for the value, for help.
    pub fn value_name(self) -> &'static str {
        match self {
            Self::Text => "TEXT",
            Self::Number => "NUMBER",
            Self::Duration => "DURATION",
            Self::Switch => "BOOL",
            Self::List => "LIST",
            Self::Gates => "GATE=BOOL,..",
            Self::Modules => "PATTERN=NUMBER,..",
            Self::Port => "PORT",
        }
    }
}

const fn flag(name: &'static str, path: &'static str, kind: Kind, help: &'static str) -> Flag {
    Flag { name, path, kind, help }
}

/// The flags that stand for fields, in the order of kube-proxy's documentation.
pub const FLAGS: [Flag; 47] = [
    flag(
        "feature-gates",
        "featureGates",
        Kind::Gates,
        "Feature gates; those that Weir knows are in the documentation",
    ),
    flag(
        "kubeconfig",
        "clientConnection.kubeconfig",
        Kind::Text,
        "Kubeconfig file; without, what a Pod finds in itself",
    ),
    flag("kube-api-content-type", "clientConnection.contentType", Kind::Text, "No effect: Weir reads JSON"),
    flag(
        "kube-api-burst",
        "clientConnection.burst",
        Kind::Number,
        "Requests to the API server that may come at once",
    ),
    flag("kube-api-qps", "clientConnection.qps", Kind::Number, "Requests to the API server a second"),
    flag(
        "hostname-override",
        "hostnameOverride",
        Kind::Text,
        "The own Node's name, instead of the host's name",
    ),
    flag(
        "bind-address",
        "bindAddress",
        Kind::Text,
        "Address that stands for the Node's own (nothing is bound to it)",
    ),
    flag("healthz-bind-address", "healthzBindAddress", Kind::Text, "Where /healthz is served: 0.0.0.0:10256"),
    flag(
        "metrics-bind-address",
        "metricsBindAddress",
        Kind::Text,
        "Where /metrics is served: 127.0.0.1:10249",
    ),
    flag(
        "bind-address-hard-fail",
        "bindAddressHardFail",
        Kind::Switch,
        "End where these addresses cannot be had",
    ),
    flag("profiling", "enableProfiling", Kind::Switch, "No effect: there are no profiles over HTTP"),
    flag(
        "show-hidden-metrics-for-version",
        "showHiddenMetricsForVersion",
        Kind::Text,
        "No effect: no metric is hidden",
    ),
    flag("proxy-mode", "mode", Kind::Text, "The mode of kube-proxy to follow: iptables, ipvs, nftables"),
    flag(
        "iptables-masquerade-bit",
        "iptables.masqueradeBit",
        Kind::Number,
        "No effect: Weir marks no packets",
    ),
    flag(
        "masquerade-all",
        "iptables.masqueradeAll",
        Kind::Switch,
        "Translate all sources of traffic to cluster addresses",
    ),
    flag(
        "iptables-localhost-nodeports",
        "iptables.localhostNodePorts",
        Kind::Switch,
        "No effect: node ports are not served on loopback addresses",
    ),
    flag(
        "iptables-sync-period",
        "iptables.syncPeriod",
        Kind::Duration,
        "See --ipvs-sync-period, for the mode iptables",
    ),
    flag(
        "iptables-min-sync-period",
        "iptables.minSyncPeriod",
        Kind::Duration,
        "How long changes are gathered, in the mode iptables",
    ),
    flag(
        "ipvs-sync-period",
        "ipvs.syncPeriod",
        Kind::Duration,
        "Half of how long a change may wait until /healthz fails, in the mode ipvs",
    ),
    flag(
        "ipvs-min-sync-period",
        "ipvs.minSyncPeriod",
        Kind::Duration,
        "How long changes are gathered, in the mode ipvs",
    ),
    flag("ipvs-scheduler", "ipvs.scheduler", Kind::Text, "The scheduler of Services, in the mode ipvs: rr"),
    flag(
        "ipvs-exclude-cidrs",
        "ipvs.excludeCIDRs",
        Kind::List,
        "Virtual addresses that are not Weir's, in the mode ipvs",
    ),
    flag(
        "ipvs-strict-arp",
        "ipvs.strictARP",
        Kind::Switch,
        "No effect: no interface of the kernel has the addresses",
    ),
    flag(
        "ipvs-tcp-timeout",
        "ipvs.tcpTimeout",
        Kind::Duration,
        "Idle time of TCP connections, in the mode ipvs",
    ),
    flag(
        "ipvs-tcpfin-timeout",
        "ipvs.tcpFinTimeout",
        Kind::Duration,
        "Idle time after a FIN, in the mode ipvs",
    ),
    flag("ipvs-udp-timeout", "ipvs.udpTimeout", Kind::Duration, "Idle time of UDP, in the mode ipvs"),
    flag(
        "detect-local-mode",
        "detectLocalMode",
        Kind::Text,
        "What tells pods from others: ClusterCIDR, NodeCIDR, BridgeInterface, InterfaceNamePrefix",
    ),
    flag(
        "pod-bridge-interface",
        "detectLocal.bridgeInterface",
        Kind::Text,
        "No effect: pods are told by their addresses",
    ),
    flag(
        "pod-interface-name-prefix",
        "detectLocal.interfaceNamePrefix",
        Kind::Text,
        "No effect: pods are told by their addresses",
    ),
    flag("cluster-cidr", "clusterCIDR", Kind::Text, "The network of pods, or one of IPv4 and one of IPv6"),
    flag(
        "nodeport-addresses",
        "nodePortAddresses",
        Kind::List,
        "Networks of the node's addresses on which node ports are reached, or primary",
    ),
    flag(
        "oom-score-adj",
        "oomScoreAdj",
        Kind::Number,
        "How likely the kernel is to end Weir when memory is short",
    ),
    flag("conntrack-max-per-core", "conntrack.maxPerCore", Kind::Number, "Flows, times the number of cores"),
    flag("conntrack-min", "conntrack.min", Kind::Number, "Flows at least"),
    flag(
        "conntrack-tcp-timeout-established",
        "conntrack.tcpEstablishedTimeout",
        Kind::Duration,
        "Idle time of TCP connections, in other modes than ipvs",
    ),
    flag(
        "conntrack-tcp-timeout-close-wait",
        "conntrack.tcpCloseWaitTimeout",
        Kind::Duration,
        "Idle time in CLOSE_WAIT, in other modes than ipvs",
    ),
    flag(
        "conntrack-tcp-be-liberal",
        "conntrack.tcpBeLiberal",
        Kind::Switch,
        "No effect: no windows are checked",
    ),
    flag(
        "conntrack-udp-timeout",
        "conntrack.udpTimeout",
        Kind::Duration,
        "Idle time of UDP where the next one is not given, in other modes than ipvs",
    ),
    flag(
        "conntrack-udp-timeout-stream",
        "conntrack.udpStreamTimeout",
        Kind::Duration,
        "Idle time of UDP, in other modes than ipvs",
    ),
    flag(
        "config-sync-period",
        "configSyncPeriod",
        Kind::Duration,
        "No effect: nothing is gone through again on a timer",
    ),
    flag("healthz-port", "healthzBindAddress", Kind::Port, "Deprecated: see --healthz-bind-address"),
    flag("metrics-port", "metricsBindAddress", Kind::Port, "Deprecated: see --metrics-bind-address"),
    flag("proxy-port-range", "portRange", Kind::Text, "No effect, nor has it to kube-proxy"),
    flag(
        "v",
        "logging.verbosity",
        Kind::Number,
        "How much is logged: 0 to 2 usual, 3 and 4 debugging, 5 and up all",
    ),
    flag("vmodule", "logging.vmodule", Kind::Modules, "No effect: Weir has other files"),
    flag("logging-format", "logging.format", Kind::Text, "The form of the log: text, json"),
    flag("log-flush-frequency", "logging.flushFrequency", Kind::Duration, "No effect: nothing is kept back"),
];

/// The flags that count beside a file.
const BESIDE_FILE: [&str; 4] = ["hostname-override", "v", "vmodule", "logging-format"];
/// The flags that say nothing of what kube-proxy does to packets: with them alone, its defaults do not count.
const NEUTRAL: [&str; 12] = [
    "kubeconfig",
    "kube-api-content-type",
    "kube-api-burst",
    "kube-api-qps",
    "hostname-override",
    "healthz-bind-address",
    "metrics-bind-address",
    "bind-address-hard-fail",
    "v",
    "vmodule",
    "logging-format",
    "log-flush-frequency",
];

/// The place of everything that is not in a file.
const NOWHERE: Mark = Mark { line: 0, column: 0 };

/// What was said by flags.
#[derive(Clone, Debug, PartialEq)]
pub struct Flags {
    pub(super) document: Document,
    pub(super) given: Given,
    pub(super) master: Option<String>,
    pub(super) ports: Ports,
    names: Vec<&'static str>,
}

/// The ports of listeners whose address has none; 0 serves nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ports {
    pub health: u16,
    pub metrics: u16,
}

impl Default for Ports {
    fn default() -> Self {
        Self { health: HEALTH_PORT, metrics: METRICS_PORT }
    }
}

impl Default for Flags {
    fn default() -> Self {
        Self {
            document: Document::empty(),
            given: Given::new(),
            master: None,
            ports: Ports::default(),
            names: Vec::new(),
        }
    }
}

impl Flags {
    /// What these flags of [`FLAGS`] say, each by its name with its value. `master` is that of `--master`, which stands
    /// for no field.
    pub fn parse(said: &[(&'static str, String)], master: Option<String>) -> Result<Self, Faults> {
        let sink = Sink::new("command line");
        let known: Vec<_> = said
            .iter()
            .filter_map(|(name, value)| Some((FLAGS.iter().find(|flag| flag.name == *name)?, value.as_str())))
            .collect();
        let root = tree(&known, &sink);
        let (mut document, given) = read::read_fields(&Field::root(&root, &sink));
        let mut ports = Ports {
            health: port(&known, "healthzBindAddress", HEALTH_PORT, &sink),
            metrics: port(&known, "metricsBindAddress", METRICS_PORT, &sink),
        };
        if sink.count() > 0 {
            return Err(by_flags(sink.into_faults()));
        }
        // Of a flag, other than of a field, an empty address is meant.
        let empty = |path, address: &str| given.contains(path) && address.is_empty();
        if empty("healthzBindAddress", &document.healthz_bind_address) {
            ports.health = 0;
        }
        if empty("metricsBindAddress", &document.metrics_bind_address) {
            ports.metrics = 0;
        }
        // The mode nftables has no flags of its own: these count for it too.
        document.nftables.masquerade_all = document.iptables.masquerade_all;
        document.nftables.sync_period = document.iptables.sync_period;
        document.nftables.min_sync_period = document.iptables.min_sync_period;
        let names = known.iter().map(|(flag, _)| flag.name).collect();
        Ok(Self { document, given, master: master.filter(|master| !master.is_empty()), ports, names })
    }

    /// Whether one of them is there that says what becomes of packets.
    pub(super) fn say_something(&self) -> bool {
        self.names.iter().any(|name| !NEUTRAL.contains(name))
    }

    /// Whether there are none, `--master` included.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty() && self.master.is_none()
    }

    /// Those that do not count beside a file.
    pub fn ignored(&self) -> impl Iterator<Item = &'static str> {
        self.names.iter().copied().filter(|name| !BESIDE_FILE.contains(name))
    }

    /// Sets what counts beside a file.
    pub(super) fn apply(&self, document: &mut Document, given: &mut Given) {
        if !self.document.hostname_override.is_empty() {
            document.hostname_override.clone_from(&self.document.hostname_override);
            given.insert("hostnameOverride".to_owned());
        }
        let (logging, own) = (&mut document.logging, &self.document.logging);
        if self.given.contains("logging.verbosity") {
            logging.verbosity = own.verbosity;
        }
        if self.given.contains("logging.format") {
            logging.format.clone_from(&own.format);
        }
        // Those of the command line come first, since the first that fits counts.
        logging.vmodule.splice(0..0, own.vmodule.iter().cloned());
        given.extend(self.given.iter().filter(|path| path.starts_with("logging.")).cloned());
    }
}

/// Faults in fields as faults of the flags that stand for them.
pub(super) fn by_flags(faults: Faults) -> Faults {
    faults.map(|fault| {
        let (path, index) = match fault.path.split_once('[') {
            Some((path, index)) => (path, format!("[{index}")),
            None => (fault.path.as_str(), String::new()),
        };
        let named = FLAGS.iter().find(|flag| {
            flag.path == path || path.strip_prefix(flag.path).is_some_and(|rest| rest.starts_with('.'))
        });
        let path = named.map_or(fault.path.clone(), |flag| format!("--{}{index}", flag.name));
        Fault { at: None, path, ..fault }
    })
}

/// The flags as a tree, as if they stood in a file.
fn tree(said: &[(&'static Flag, &str)], sink: &Sink) -> Node<'static> {
    let mut root = Vec::new();
    for (flag, value) in said.iter().filter(|(flag, _)| flag.kind != Kind::Port) {
        match node(flag, value) {
            Ok(node) => insert(&mut root, flag.path, node),
            Err(reason) => sink.add(None, flag.path, reason),
        }
    }
    map(root)
}

/// The port of the last such flag.
fn port(said: &[(&'static Flag, &str)], path: &str, default: u16, sink: &Sink) -> u16 {
    let flag = said.iter().rfind(|(flag, _)| flag.kind == Kind::Port && flag.path == path);
    let Some((flag, value)) = flag else { return default };
    value.parse().unwrap_or_else(|_| {
        sink.add(None, format_args!("--{}", flag.name), format_args!("{value:?} is not a port"));
        default
    })
}

fn node(flag: &Flag, value: &str) -> Result<Node<'static>, String> {
    let pairs = |what: &str| {
        let pairs = value.split(',').filter(|pair| !pair.trim().is_empty());
        let split = |pair: &str| {
            let pair = pair.trim().split_once('=').map(|(key, value)| (key.to_owned(), value.to_owned()));
            pair.ok_or_else(|| format!("{value:?} is not {what} with commas between"))
        };
        pairs.map(split).collect::<Result<Vec<_>, _>>()
    };
    Ok(match flag.kind {
        Kind::Text | Kind::Duration | Kind::Port => text(value.to_owned()),
        Kind::Number => plain(value.to_owned()),
        Kind::Switch => plain(truth(value)),
        Kind::List => {
            let entries = value.split(',').filter(|entry| !entry.is_empty());
            list(entries.map(|entry| text(entry.to_owned())).collect())
        }
        Kind::Gates => map(pairs("Gate=true")?
            .into_iter()
            .map(|(gate, value)| entry(gate, plain(truth(&value))))
            .collect()),
        Kind::Modules => list(
            pairs("pattern=number")?
                .into_iter()
                .map(|(pattern, verbosity)| {
                    let pattern = entry("filePattern".to_owned(), text(pattern));
                    map(vec![pattern, entry("verbosity".to_owned(), plain(verbosity))])
                })
                .collect(),
        ),
    })
}

/// As Go's `strconv.ParseBool` has it.
fn truth(value: &str) -> String {
    match value {
        "1" | "t" | "T" => "true",
        "0" | "f" | "F" => "false",
        other => other,
    }
    .to_owned()
}

fn insert(entries: &mut Vec<Entry<'static>>, path: &str, node: Node<'static>) {
    let Some((first, rest)) = path.split_once('.') else {
        entries.push(entry(path.to_owned(), node));
        return;
    };
    let known = entries.iter().position(|entry| entry.key == first);
    let index = known.unwrap_or_else(|| {
        entries.push(entry(first.to_owned(), map(Vec::new())));
        entries.len() - 1
    });
    if let Some(Value::Map(inner)) = entries.get_mut(index).map(|entry| &mut entry.value.value) {
        insert(inner, rest, node);
    }
}

fn entry(key: String, value: Node<'static>) -> Entry<'static> {
    Entry { key: Cow::Owned(key), at: NOWHERE, value }
}

fn map(entries: Vec<Entry<'static>>) -> Node<'static> {
    Node { at: NOWHERE, value: Value::Map(entries) }
}

fn list(nodes: Vec<Node<'static>>) -> Node<'static> {
    Node { at: NOWHERE, value: Value::List(nodes) }
}

fn text(text: String) -> Node<'static> {
    Node { at: NOWHERE, value: Value::Scalar { text: Cow::Owned(text), plain: false } }
}

fn plain(text: String) -> Node<'static> {
    Node { at: NOWHERE, value: Value::Scalar { text: Cow::Owned(text), plain: true } }
}
