//! What each field of a KubeProxyConfiguration does in Weir.

use std::borrow::Cow;

use serde::Serialize;
use serde_json::Value;

use super::document::Document;
use super::duration::GoDuration;
use super::flags::Ports;
use super::read::Given;
use super::settings::Gate;
use super::{KubeProxy, Origin, ProxyMode};
use crate::config::Section;
use crate::source::kubernetes::settings::{DetectLocal, NodePortAddresses};

/// A field and what becomes of it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Field {
    /// Its path, such as `ipvs.scheduler`.
    pub field: String,
    /// Its value, defaults filled in.
    pub value: Value,
    /// Whether the file, or a flag, has it.
    pub given: bool,
    /// What becomes of it.
    pub effect: Effect,
    /// What that is, or why there is none.
    pub what: String,
    /// Whether Weir's own configuration says something else that counts instead.
    pub overruled: bool,
}

/// What becomes of a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Effect {
    /// What kube-proxy does with it.
    Honoured,
    /// Something like it, by Weir's own means.
    Mapped,
    /// Nothing.
    None,
}

impl Effect {
    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Honoured => "honoured",
            Self::Mapped => "mapped",
            Self::None => "none",
        }
    }
}

#[derive(Clone, Debug)]
struct Told {
    effect: Effect,
    what: Cow<'static, str>,
    overruled: bool,
}

fn told(effect: Effect, what: impl Into<Cow<'static, str>>) -> Told {
    Told { effect, what: what.into(), overruled: false }
}

impl Told {
    fn of(self, field: String, value: Value, given: bool) -> Field {
        let Self { effect, what, overruled } = self;
        Field { field, value, given, effect, what: what.into_owned(), overruled }
    }
}

fn honoured(what: impl Into<Cow<'static, str>>) -> Told {
    told(Effect::Honoured, what)
}

fn mapped(what: impl Into<Cow<'static, str>>) -> Told {
    told(Effect::Mapped, what)
}

fn none(why: impl Into<Cow<'static, str>>) -> Told {
    told(Effect::None, why)
}

/// What gives way to a key of Weir's own configuration.
fn unless(key: &str, said: bool, told: Told) -> Told {
    match said {
        true => Told {
            overruled: true,
            ..none(format!("kubernetes.{key} of Weir's own configuration counts instead"))
        },
        false => told,
    }
}

/// Every field, in the order of the serialized document, beside this section of Weir's own configuration.
pub(super) fn tell(proxy: &KubeProxy, section: &Section) -> Vec<Field> {
    let teller = Teller { proxy, document: &proxy.document, section };
    let value = serde_json::to_value(&proxy.document).unwrap_or_default();
    let mut fields = Vec::new();
    let groups = [
        teller.addresses(),
        teller.client(),
        teller.conntrack(),
        teller.local(),
        teller.iptables(),
        teller.ipvs(),
        teller.nftables(),
        teller.process(),
        teller.dead(),
    ];
    for (path, told) in groups.into_iter().flatten() {
        fields.push(told.of(path.to_owned(), at(&value, path).clone(), proxy.given.contains(path)));
    }
    for (gate, on) in &proxy.document.feature_gates {
        fields.push(tell_gate(gate).of(format!("featureGates.{gate}"), (*on).into(), true));
    }
    fields.sort_by(|a, b| a.field.cmp(&b.field));
    fields
}

/// What was said and has no effect: only where it is not what would be without it.
pub(super) fn warnings(proxy: &KubeProxy) -> Vec<(String, String)> {
    let mut usual = Document::empty();
    usual.set_defaults(Ports::default());
    let usual = serde_json::to_value(usual).unwrap_or_default();
    tell(proxy, &Section::default())
        .into_iter()
        .filter(|field| {
            field.given && field.effect == Effect::None && *at(&usual, &field.field) != field.value
        })
        .map(|field| (field.field, format!("no effect: {}", field.what)))
        .collect()
}

/// Takes out of `given` what stands in `said` only for a default, as `whole` has it: an empty text, a zero.
pub(super) fn retain_said(given: &mut Given, said: &Document, whole: &Document) {
    let [said, whole] = [said, whole].map(|document| serde_json::to_value(document).unwrap_or_default());
    given.retain(|path| {
        let value = at(&said, path);
        value == at(&whole, path) || !stands_for_default(value)
    });
}

fn stands_for_default(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty() || text == "0s",
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::Array(entries) => entries.is_empty(),
        Value::Bool(_) | Value::Object(_) => false,
    }
}

/// The value at a path, null where there is none.
fn at<'v>(value: &'v Value, path: &str) -> &'v Value {
    path.split('.').fold(value, |value, key| value.get(key).unwrap_or(&Value::Null))
}

fn tell_gate(gate: &str) -> Told {
    match Gate::by_name(gate) {
        Some(gate) => honoured(gate.meaning()),
        None => none("Weir has nothing that this gate switches"),
    }
}

struct Teller<'a> {
    proxy: &'a KubeProxy,
    document: &'a Document,
    section: &'a Section,
}

type Group = Vec<(&'static str, Told)>;

impl Teller<'_> {
    fn mode(&self) -> ProxyMode {
        self.proxy.meaning.mode
    }

    /// What counts only in one mode.
    fn only(&self, mode: ProxyMode, told: Told) -> Told {
        if self.mode() == mode { told } else { none(format!("the mode is {}", self.mode().name())) }
    }

    fn addresses(&self) -> Group {
        let bind = match self.proxy.meaning.node_address {
            Some(_) => "stands for the Node's own address of its family; nothing is bound to it",
            None => "replaces no address of the Node; of its family are the default listeners",
        };
        let hard_fail = match self.document.bind_address_hard_fail {
            true => "Weir ends where a listener's address cannot be had",
            false => "a listener's address that cannot be had is tried again",
        };
        let hostname = match (self.proxy.flag_hostname, self.document.hostname_override.is_empty()) {
            (true, _) => "the Node's name, as --hostname-override says",
            (false, false) => "the Node's name",
            (false, true) => "the Node's name is the host's",
        };
        let node_ports = match &self.proxy.meaning.node_ports {
            NodePortAddresses::All => {
                "node ports are reached on all addresses of the node, loopback ones aside"
            }
            NodePortAddresses::Primary => "node ports are reached on the Node's InternalIPs",
            NodePortAddresses::Networks { .. } => {
                "node ports are reached on the node's addresses in these networks, loopback ones aside"
            }
        };
        let by_section = self.section.node_name.is_some() && !self.proxy.flag_hostname;
        let listens = |address: &str, key: &str, what: &str| match address {
            "" => honoured("nothing is served"),
            _ => honoured(format!("{what} are served here, where {key} is not said")),
        };
        vec![
            ("bindAddress", honoured(bind)),
            ("bindAddressHardFail", honoured(hard_fail)),
            (
                "healthzBindAddress",
                listens(&self.document.healthz_bind_address, "health.listen", "/healthz and /livez"),
            ),
            (
                "metricsBindAddress",
                listens(
                    &self.document.metrics_bind_address,
                    "metrics.listen",
                    "/metrics, /proxyMode, /configz",
                ),
            ),
            ("hostnameOverride", unless("node_name", by_section, honoured(hostname))),
            (
                "nodePortAddresses",
                unless(
                    "node_port_addresses",
                    self.section.node_port_addresses.is_some(),
                    honoured(node_ports),
                ),
            ),
        ]
    }

    fn client(&self) -> Group {
        let kubeconfig = match self.document.client_connection.kubeconfig.as_str() {
            "" => "the API server is found as a Pod finds it",
            _ => "the API server and the credentials are those of this file",
        };
        let qps = match self.document.client_connection.qps > 0.0 {
            true => "requests to the API server a second",
            false => "requests to the API server are not limited",
        };
        vec![
            (
                "clientConnection.kubeconfig",
                unless("kubeconfig", self.section.kubeconfig.is_some(), honoured(kubeconfig)),
            ),
            ("clientConnection.acceptContentTypes", none("Weir asks for JSON")),
            ("clientConnection.contentType", none("Weir asks for JSON")),
            ("clientConnection.qps", honoured(qps)),
            ("clientConnection.burst", honoured("requests to the API server that may come at once")),
            ("configSyncPeriod", none("what is watched is not gone through again on a timer")),
        ]
    }

    fn conntrack(&self) -> Group {
        let conntrack = &self.document.conntrack;
        let (said, per_core) = (self.proxy.says_flows(), conntrack.max_per_core.unwrap_or(0));
        let flows = match (said, per_core) {
            (true, 1..) => mapped("flows of all workers together, where flows.limit is not said"),
            (true, _) => none("with maxPerCore 0 flows.limit of Weir's own configuration counts"),
            (false, _) => none("not said: flows.limit of Weir's own configuration counts"),
        };
        let time = |set: bool, key: &str, what: &str| match (self.proxy.origin, self.mode(), set) {
            (Origin::Nobody, ..) => none("not said: timeouts of Weir's own configuration count"),
            (_, ProxyMode::Ipvs, _) => none("in mode ipvs the block ipvs has the timeouts"),
            (_, _, true) => mapped(format!("{what}, where timeouts.{key} is not said")),
            (_, _, false) => mapped(format!("0 leaves timeouts.{key} as it is")),
        };
        let set = |time: Option<GoDuration>| time.is_some_and(|time| !time.is_zero());
        let stream = !conntrack.udp_stream_timeout.is_zero();
        let one_way = if stream {
            none("Weir has one time for UDP: udpStreamTimeout is it")
        } else {
            time(!conntrack.udp_timeout.is_zero(), "udp_s", "idle time of UDP flows")
        };
        vec![
            ("conntrack.maxPerCore", flows.clone()),
            ("conntrack.min", flows),
            (
                "conntrack.tcpEstablishedTimeout",
                time(set(conntrack.tcp_established_timeout), "tcp.established_s", "idle time of TCP flows"),
            ),
            (
                "conntrack.tcpCloseWaitTimeout",
                time(
                    set(conntrack.tcp_close_wait_timeout),
                    "tcp.close_wait_s",
                    "idle time of TCP in CLOSE_WAIT",
                ),
            ),
            (
                "conntrack.tcpBeLiberal",
                mapped("no segment is dropped for its sequence number, whatever is said here"),
            ),
            ("conntrack.udpStreamTimeout", time(stream, "udp_s", "idle time of UDP flows")),
            ("conntrack.udpTimeout", one_way),
        ]
    }

    fn local(&self) -> Group {
        let by_section = self.section.local.is_some();
        let mode = self.document.detect_local_mode.as_str();
        let by_interface = "Weir tells pods by their addresses, not by interfaces";
        let (told, cidr) = match (mode, &self.proxy.meaning.local) {
            ("ClusterCIDR", DetectLocal::Unknown) => {
                let nothing = "nothing tells pods from others: only masqueradeAll translates traffic to cluster addresses";
                (honoured("pods are told by clusterCIDR, which is empty"), honoured(nothing))
            }
            ("ClusterCIDR", _) => {
                (honoured("pods are told by clusterCIDR"), honoured("the networks of pods"))
            }
            ("NodeCIDR", _) => {
                let by_node = "pods are told by spec.podCIDRs of the Node";
                (honoured(by_node), none("detectLocalMode is NodeCIDR"))
            }
            (_, DetectLocal::ClusterCidr(_)) => (
                mapped(format!("{by_interface}: by clusterCIDR")),
                mapped("the networks of pods: Weir cannot go by detectLocalMode"),
            ),
            (mode, _) => (
                none(format!("{by_interface}: say clusterCIDR, or kubernetes.cluster_cidrs")),
                none(format!("is no list of networks, and detectLocalMode is {mode}")),
            ),
        };
        vec![
            ("detectLocalMode", unless("cluster_cidrs or node_cidr", by_section, told)),
            ("clusterCIDR", unless("cluster_cidrs or node_cidr", by_section, cidr)),
            ("detectLocal.bridgeInterface", none(by_interface)),
            ("detectLocal.interfaceNamePrefix", none(by_interface)),
        ]
    }

    /// The two periods of a mode.
    fn periods(&self, mode: ProxyMode, sync: &'static str, min: &'static str) -> Group {
        let sync_told = honoured("/healthz fails when a change has waited twice as long");
        let min_told = if self.proxy.meaning.min_sync_period.is_zero() {
            mapped("nothing is said: changes are published at once")
        } else {
            honoured("changes are gathered so long before they are published")
        };
        vec![
            (sync, unless("sync_s", self.section.sync_period.is_some(), self.only(mode, sync_told))),
            (min, unless("min_sync_ms", self.section.min_sync_period.is_some(), self.only(mode, min_told))),
        ]
    }

    fn masquerade_all(&self, counts: bool) -> Told {
        let told = honoured("whether the sources of all traffic to cluster addresses are translated");
        let told = if counts { told } else { none(format!("the mode is {}", self.mode().name())) };
        unless("masquerade_all", self.section.masquerade_all.is_some(), told)
    }

    fn iptables(&self) -> Group {
        let mut group = self.periods(ProxyMode::Iptables, "iptables.syncPeriod", "iptables.minSyncPeriod");
        group.extend([
            ("iptables.masqueradeAll", self.masquerade_all(self.mode() != ProxyMode::Nftables)),
            ("iptables.masqueradeBit", none("Weir marks no packets")),
            ("iptables.localhostNodePorts", none("node ports are not served on loopback addresses")),
        ]);
        group
    }

    fn ipvs(&self) -> Group {
        let ipvs = &self.document.ipvs;
        let mut group = self.periods(ProxyMode::Ipvs, "ipvs.syncPeriod", "ipvs.minSyncPeriod");
        let only = |told| self.only(ProxyMode::Ipvs, told);
        let scheduler = honoured(format!(
            "Services without an annotation choose by {}",
            self.proxy.meaning.scheduling.kind
        ));
        let time = |time: GoDuration, key: &str| match time.is_zero() {
            true => only(honoured(format!("0 leaves timeouts.{key} as it is"))),
            false => only(honoured(format!("idle time of flows, where timeouts.{key} is not said"))),
        };
        let exclude = mapped("Services do not get virtual addresses in these networks");
        let arp = "no interface of the kernel has the virtual addresses; kubernetes.announce says who answers for them";
        group.extend([
            ("ipvs.scheduler", unless("scheduler", self.section.scheduling.is_some(), only(scheduler))),
            ("ipvs.excludeCIDRs", unless("exclude_cidrs", self.section.exclude.is_some(), only(exclude))),
            ("ipvs.strictARP", none(arp)),
            ("ipvs.tcpTimeout", time(ipvs.tcp_timeout, "tcp.established_s")),
            ("ipvs.tcpFinTimeout", time(ipvs.tcp_fin_timeout, "tcp.fin_wait_s")),
            ("ipvs.udpTimeout", time(ipvs.udp_timeout, "udp_s")),
        ]);
        group
    }

    fn nftables(&self) -> Group {
        let mut group = self.periods(ProxyMode::Nftables, "nftables.syncPeriod", "nftables.minSyncPeriod");
        group.extend([
            ("nftables.masqueradeAll", self.masquerade_all(self.mode() == ProxyMode::Nftables)),
            ("nftables.masqueradeBit", none("Weir marks no packets")),
        ]);
        group
    }

    fn process(&self) -> Group {
        let mode = mapped(
            "where the modes of kube-proxy differ, Weir does as this one; packets go Weir's own way in all",
        );
        let level = format!("the log has level {}, where WEIR_LOG is not set", self.proxy.log_level());
        vec![
            ("mode", unless("profile", self.section.profile.is_some(), mode)),
            ("oomScoreAdj", honoured("set at start, where Weir may; a warning where not")),
            ("logging.format", honoured("the form of the log")),
            ("logging.verbosity", mapped(level)),
            ("logging.flushFrequency", none("Weir keeps no log entry back")),
            ("logging.vmodule", none("Weir has other files: WEIR_LOG sets the level of a module")),
            ("logging.options.json", none("the log goes to standard error, nothing is kept back")),
            ("logging.options.text", none("the log goes to standard error, nothing is kept back")),
            ("enableProfiling", none("Weir serves no profiles")),
        ]
    }

    fn dead(&self) -> Group {
        let windows = "of Windows";
        vec![
            ("portRange", none("kube-proxy does not use it either")),
            ("showHiddenMetricsForVersion", none("Weir hides no metric")),
            ("windowsRunAsService", none(windows)),
            ("winkernel.enableDSR", none(windows)),
            ("winkernel.forwardHealthCheckVip", none(windows)),
            ("winkernel.networkName", none(windows)),
            ("winkernel.rootHnsEndpointName", none(windows)),
            ("winkernel.sourceVip", none(windows)),
        ]
    }
}
