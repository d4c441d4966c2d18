//! The `kubernetes` section: how Kubernetes feeds Weir. What it says counts for more than a KubeProxyConfiguration.

mod write;

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use dataplane::snapshot::Mode;
use ipnet::IpNet;

use super::reader::{Field, Map};
use super::rules::read_prefix;
use super::services::{MODES, WHEN_EMPTY, read_scheduling};
use crate::model::{SECONDS_MAX, Scheduling, SnatPool, WhenEmpty};
use crate::source::kubernetes::settings::{
    DetectLocal, ExternalIps, LoadBalancerClass, NodePortAddresses, Profile,
};

/// Entries of one list at most.
const ENTRIES_MAX: usize = 1024;
/// Characters of a label's value at most.
const LABEL_MAX: usize = 63;
/// Characters of a name in Kubernetes at most.
const NAME_MAX: usize = 253;

pub(super) use write::write;

const KEYS: [&str; 24] = [
    "enabled",
    "kubeconfig",
    "master",
    "node_name",
    "profile",
    "scheduler",
    "scheduler_flags",
    "mode",
    "snat_pool",
    "masquerade_all",
    "cluster_cidrs",
    "node_cidr",
    "node_port_addresses",
    "service_proxy_name",
    "load_balancer_classes",
    "external_ips",
    "skip_services",
    "exclude_cidrs",
    "when_empty",
    "drop_unallocated",
    "announce",
    "drain_s",
    "min_sync_ms",
    "sync_s",
];

const PROFILES: [(&str, Profile); 2] = [("ipvs", Profile::Ipvs), ("nftables", Profile::Nftables)];

/// The section. What is `None` is left to the KubeProxyConfiguration, or to the defaults of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Section {
    /// Whether Kubernetes feeds Weir; `None`: if the command line says so.
    pub enabled: Option<bool>,
    /// The kubeconfig.
    pub kubeconfig: Option<PathBuf>,
    /// The API server's address instead of the one that the kubeconfig has.
    pub master: Option<String>,
    /// The own Node's name.
    pub node_name: Option<Arc<str>>,
    /// Which mode of kube-proxy is followed where its modes differ.
    pub profile: Option<Profile>,
    /// How services without an annotation choose.
    pub scheduling: Option<Scheduling>,
    /// How backends of services without an annotation get their packets.
    pub mode: Mode,
    /// The pool that masqueraded flows take their sources from: the one that is named, else the only one.
    pub snat_pool: Option<Arc<str>>,
    /// Whether all traffic to cluster addresses is masqueraded.
    pub masquerade_all: Option<bool>,
    /// What tells pods' addresses from others.
    pub local: Option<DetectLocal>,
    /// The node's addresses on which node ports are reached.
    pub node_port_addresses: Option<NodePortAddresses>,
    /// Only Services with this value of the label `service.kubernetes.io/service-proxy-name`.
    pub service_proxy_name: Option<Arc<str>>,
    /// Which Services of type LoadBalancer are served as such.
    pub load_balancer_class: LoadBalancerClass,
    /// Which `externalIPs` count; `None`: none, unless kube-proxy's feature gate says so.
    pub external_ips: Option<ExternalIps>,
    /// Services that are not Weir's, as `namespace/name`.
    pub skip: HashSet<Arc<str>>,
    /// Virtual addresses that are not Weir's.
    pub exclude: Option<Vec<IpNet>>,
    /// What a client of a Service without endpoints is told.
    pub when_empty: WhenEmpty,
    /// Whether traffic to an address of a ServiceCIDR that no Service has is dropped.
    pub drop_unallocated: bool,
    /// Whether Weir answers ARP, neighbour discovery and echo for load balancers' and external addresses.
    pub announce: bool,
    /// Seconds after which the remaining flows of a removed endpoint are ended.
    pub drain_s: Option<u32>,
    /// How long changes are gathered at least.
    pub min_sync_period: Option<Duration>,
    /// Half of how long a change may wait until `/healthz` fails.
    pub sync_period: Option<Duration>,
}

impl Default for Section {
    fn default() -> Self {
        Self {
            enabled: None,
            kubeconfig: None,
            master: None,
            node_name: None,
            profile: None,
            scheduling: None,
            mode: Mode::Nat,
            snat_pool: None,
            masquerade_all: None,
            local: None,
            node_port_addresses: None,
            service_proxy_name: None,
            load_balancer_class: LoadBalancerClass::default(),
            external_ips: None,
            skip: HashSet::new(),
            exclude: None,
            when_empty: WhenEmpty::default(),
            drop_unallocated: true,
            announce: false,
            drain_s: None,
            min_sync_period: None,
            sync_period: None,
        }
    }
}

/// The section in the document, with faults noted and defaults in their place. `pools` are those of the document;
/// `complete` says whether it has no others.
pub(super) fn read(document: &Map<'_, '_>, pools: &[SnatPool], complete: bool) -> Section {
    let mut section = Section::default();
    let field = document.optional("kubernetes");
    let map = field.as_ref().and_then(|field| field.map(&KEYS));
    if let Some(map) = &map {
        section.enabled = Some(map.optional("enabled").and_then(|field| field.flag()).unwrap_or(true));
        read_connection(map, &mut section);
        read_services(map, &mut section);
        read_traffic(map, &mut section);
        read_sync(map, &mut section);
    }
    let named = map.as_ref().and_then(|map| map.optional("snat_pool"));
    section.snat_pool = match (&named, pools) {
        (Some(field), _) => read_pool(field, pools, complete),
        (None, [only]) if complete => Some(Arc::clone(&only.name)),
        _ => None,
    };
    if let Some(field) = &field
        && section.enabled == Some(true)
        && named.is_none()
        && complete
        && let Err(reason) = section.check_pool(pools)
    {
        field.refuse(reason);
    }
    section
}

fn read_pool(field: &Field<'_, '_>, pools: &[SnatPool], complete: bool) -> Option<Arc<str>> {
    let name = field.text()?;
    if complete && !pools.iter().any(|pool| &*pool.name == name) {
        field.refuse(format_args!("there is no SNAT pool {name}"));
    }
    Some(name.into())
}

fn read_connection(map: &Map<'_, '_>, section: &mut Section) {
    let text = |key| map.optional(key).and_then(|field| Some((field, field.text()?)));
    if let Some((field, path)) = text("kubeconfig") {
        if path.is_empty() {
            field.refuse("is empty: leave it out for what a Pod finds in itself");
        }
        section.kubeconfig = Some(path.into());
    }
    if let Some((field, master)) = text("master") {
        if master.is_empty() {
            field.refuse("is empty: leave it out for the server of the kubeconfig");
        }
        section.master = Some(master.into());
    }
    if let Some((field, name)) = text("node_name") {
        let name = name.trim().to_lowercase();
        if name.is_empty() || name.len() > NAME_MAX {
            field.refuse(format_args!("a Node's name has 1 to {NAME_MAX} characters"));
        }
        section.node_name = Some(name.into());
    }
}

fn read_services(map: &Map<'_, '_>, section: &mut Section) {
    section.service_proxy_name = map.optional("service_proxy_name").and_then(|field| read_label(&field));
    if let Some(list) = map.optional("load_balancer_classes") {
        let classes = list.list(ENTRIES_MAX).filter_map(|field| field.text().map(Arc::from));
        section.load_balancer_class = LoadBalancerClass::Of(classes.collect());
    }
    if let Some(field) = map.optional("external_ips") {
        section.external_ips = Some(read_external_ips(&field));
    }
    if let Some(list) = map.optional("skip_services") {
        section.skip = list.list(ENTRIES_MAX).filter_map(|field| read_service_name(&field)).collect();
    }
    section.exclude = map.optional("exclude_cidrs").map(|list| read_nets(&list));
    if let Some(answer) = map.optional("when_empty").and_then(|field| field.word(&WHEN_EMPTY)) {
        section.when_empty = answer;
    }
    read_flag(map, "drop_unallocated", &mut section.drop_unallocated);
    read_flag(map, "announce", &mut section.announce);
}

fn read_traffic(map: &Map<'_, '_>, section: &mut Section) {
    section.profile = map.optional("profile").and_then(|field| field.word(&PROFILES));
    section.scheduling = map.optional("scheduler").map(|_| read_scheduling(map));
    if section.scheduling.is_none()
        && let Some(field) = map.optional("scheduler_flags")
    {
        field.refuse("flags are those of a scheduler: name it with \"scheduler\"");
    }
    if let Some(mode) = map.optional("mode").and_then(|field| field.word(&MODES)) {
        section.mode = mode;
    }
    section.masquerade_all = map.optional("masquerade_all").and_then(|field| field.flag());
    let networks = map.optional("cluster_cidrs");
    let node_cidr = map.optional("node_cidr");
    section.local = match (&networks, &node_cidr) {
        (Some(_), Some(field)) => {
            field.refuse("pods are told by \"cluster_cidrs\" or by \"node_cidr\", not both");
            None
        }
        (Some(list), None) => Some(match read_nets(list) {
            networks if networks.is_empty() => DetectLocal::Unknown,
            networks => DetectLocal::ClusterCidr(networks),
        }),
        (None, Some(field)) => field.flag().map(|by_node| match by_node {
            true => DetectLocal::NodeCidr,
            false => DetectLocal::Unknown,
        }),
        (None, None) => None,
    };
    section.node_port_addresses = map.optional("node_port_addresses").map(|list| read_node_ports(&list));
}

fn read_sync(map: &Map<'_, '_>, section: &mut Section) {
    section.drain_s = map.optional("drain_s").and_then(|field| field.number(0..=SECONDS_MAX));
    let time = |key, range, unit: fn(u64) -> Duration| {
        map.optional(key).and_then(|field| field.number::<u32>(range)).map(|number| unit(number.into()))
    };
    section.min_sync_period = time("min_sync_ms", 0..=60_000, Duration::from_millis);
    section.sync_period = time("sync_s", 1..=86_400, Duration::from_secs);
}

fn read_flag(map: &Map<'_, '_>, key: &'static str, flag: &mut bool) {
    *flag = map.optional(key).and_then(|field| field.flag()).unwrap_or(*flag);
}

fn read_label(field: &Field<'_, '_>) -> Option<Arc<str>> {
    let text = field.text()?;
    let known = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if text.is_empty() || text.len() > LABEL_MAX || !text.chars().all(known) {
        field.refuse(format_args!("{text:?} cannot be a label's value"));
        return None;
    }
    Some(text.into())
}

fn read_service_name(field: &Field<'_, '_>) -> Option<Arc<str>> {
    let text = field.text()?;
    let parts = text.split_once('/');
    if !parts.is_some_and(|(space, name)| !space.is_empty() && !name.is_empty() && !name.contains('/')) {
        field.refuse(format_args!("{text:?} is not a Service such as kube-system/kube-dns"));
        return None;
    }
    Some(text.into())
}

fn read_external_ips(field: &Field<'_, '_>) -> ExternalIps {
    if field.is_list() {
        return ExternalIps::Allow(read_nets(field));
    }
    field.word(&[("deny", ())]);
    ExternalIps::Deny
}

fn read_nets(list: &Field<'_, '_>) -> Vec<IpNet> {
    list.list(ENTRIES_MAX).filter_map(|field| read_prefix(&field)).collect()
}

fn read_node_ports(list: &Field<'_, '_>) -> NodePortAddresses {
    let (mut networks, mut primary, mut all) = (Vec::new(), false, false);
    for field in list.list(ENTRIES_MAX) {
        match field.text() {
            Some("primary") => primary = true,
            Some("all") => all = true,
            Some(_) => networks.extend(read_prefix(&field)),
            None => {}
        }
    }
    match (all, primary, networks.is_empty()) {
        (true, ..) => NodePortAddresses::All,
        (false, true, true) => NodePortAddresses::Primary,
        (false, primary, _) => NodePortAddresses::Networks { networks, primary },
    }
}

impl Section {
    /// Whether there is a pool for masquerading: without, most of what Services can ask for cannot be had. Backends that
    /// answer their clients themselves need none. The error says what to do.
    pub(super) fn check_pool(&self, pools: &[SnatPool]) -> Result<(), String> {
        if self.snat_pool.is_some() || !self.mode.has_replies() {
            return Ok(());
        }
        let names: Vec<_> = pools.iter().map(|pool| &*pool.name).collect();
        Err(match names.as_slice() {
            [] => "flows to node ports, load balancers and external addresses are masqueraded, and there is no pool in \
                   snat_pools to take sources from"
                .to_owned(),
            names => format!("flows are masqueraded: \"snat_pool\" has to be one of {}", names.join(", ")),
        })
    }

    /// The keys whose values differ from `old`: only a restart changes them.
    pub(super) fn differences(&self, old: &Self) -> Vec<String> {
        // Without a section, the pool is one by default and not by what somebody has written.
        if self.enabled.is_none() && old.enabled.is_none() {
            return Vec::new();
        }
        let differs = [
            ("enabled", self.enabled != old.enabled),
            ("kubeconfig", self.kubeconfig != old.kubeconfig),
            ("master", self.master != old.master),
            ("node_name", self.node_name != old.node_name),
            ("profile", self.profile != old.profile),
            ("scheduler", self.scheduling != old.scheduling),
            ("mode", self.mode != old.mode),
            ("snat_pool", self.snat_pool != old.snat_pool),
            ("masquerade_all", self.masquerade_all != old.masquerade_all),
            ("cluster_cidrs", self.local != old.local),
            ("node_port_addresses", self.node_port_addresses != old.node_port_addresses),
            ("service_proxy_name", self.service_proxy_name != old.service_proxy_name),
            ("load_balancer_classes", self.load_balancer_class != old.load_balancer_class),
            ("external_ips", self.external_ips != old.external_ips),
            ("skip_services", self.skip != old.skip),
            ("exclude_cidrs", self.exclude != old.exclude),
            ("when_empty", self.when_empty != old.when_empty),
            ("drop_unallocated", self.drop_unallocated != old.drop_unallocated),
            ("announce", self.announce != old.announce),
            ("drain_s", self.drain_s != old.drain_s),
            ("min_sync_ms", self.min_sync_period != old.min_sync_period),
            ("sync_s", self.sync_period != old.sync_period),
        ];
        let differs = differs.iter().filter(|(_, differs)| *differs);
        differs.map(|(key, _)| format!("kubernetes.{key}")).collect()
    }
}
