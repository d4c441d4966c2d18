//! What a document with defaults means: its texts as types, or what is wrong with it by kube-proxy's rules.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use dataplane::schedule::{Flags, Kind};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::document::{Conntrack, Document, Logging};
use super::duration::GoDuration;
use super::listener;
use crate::config::InterfaceName;
use crate::model::Scheduling;
use crate::source::kubernetes::object::sloppy;
use crate::source::kubernetes::settings::{DetectLocal, NodePortAddresses};

/// Which of its modes kube-proxy would run in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyMode {
    /// Also where the file says nothing.
    Iptables,
    /// The one with IPVS's schedulers and timeouts.
    Ipvs,
    /// The newest one.
    Nftables,
}

impl ProxyMode {
    /// As `mode` and `/proxyMode` have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Iptables => "iptables",
            Self::Ipvs => "ipvs",
            Self::Nftables => "nftables",
        }
    }
}

/// See [`super::KubeProxy`], which gives access to all of this.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Meaning {
    pub mode: ProxyMode,
    pub node_address: Option<IpAddr>,
    pub health: Option<SocketAddr>,
    pub metrics: Option<SocketAddr>,
    pub hostname: Option<Arc<str>>,
    pub scheduling: Scheduling,
    pub local: DetectLocal,
    pub node_ports: NodePortAddresses,
    pub exclude: Vec<IpNet>,
    pub sync_period: GoDuration,
    pub min_sync_period: GoDuration,
}

/// What is found in a document: where, and what.
#[derive(Debug, Default)]
pub(super) struct Findings {
    pub faults: Vec<(String, String)>,
    pub warnings: Vec<(String, String)>,
}

impl Findings {
    pub(super) fn refuse(&mut self, path: impl Into<String>, reason: impl fmt::Display) {
        self.faults.push((path.into(), reason.to_string()));
    }

    pub(super) fn warn(&mut self, path: impl Into<String>, reason: impl fmt::Display) {
        self.warnings.push((path.into(), reason.to_string()));
    }
}

/// The meaning. What is wrong has some value, and stands among the findings' faults.
pub(super) fn understand(document: &Document, found: &mut Findings) -> Meaning {
    let mode = read_mode(document, found);
    check_numbers(document, found);
    check_conntrack(&document.conntrack, found);
    check_logging(&document.logging, found);
    // kube-proxy looks into the block of iptables in every mode.
    let iptables = (document.iptables.sync_period, document.iptables.min_sync_period);
    check_periods("iptables", iptables, found);
    let (sync_period, min_sync_period) = match mode {
        ProxyMode::Iptables => iptables,
        ProxyMode::Ipvs => {
            let periods = (document.ipvs.sync_period, document.ipvs.min_sync_period);
            check_periods("ipvs", periods, found);
            periods
        }
        ProxyMode::Nftables => {
            let periods = (document.nftables.sync_period, document.nftables.min_sync_period);
            check_periods("nftables", periods, found);
            periods
        }
    };
    let (scheduling, exclude) = read_ipvs(document, mode, found);
    Meaning {
        mode,
        node_address: read_bind_address(document, found),
        health: read_listener("healthzBindAddress", &document.healthz_bind_address, found),
        metrics: read_listener("metricsBindAddress", &document.metrics_bind_address, found),
        hostname: read_hostname(document, found),
        scheduling,
        local: read_local(document, found),
        node_ports: read_node_ports(document, found),
        exclude,
        sync_period,
        min_sync_period,
    }
}

fn read_mode(document: &Document, found: &mut Findings) -> ProxyMode {
    match document.mode.as_str() {
        "iptables" => ProxyMode::Iptables,
        "ipvs" => ProxyMode::Ipvs,
        "nftables" => ProxyMode::Nftables,
        other => {
            let why = match other {
                "kernelspace" => ": that is the mode of Windows",
                "userspace" => ": Kubernetes 1.26 removed it",
                _ => "",
            };
            found.refuse("mode", format_args!("{other:?} is not one of iptables, ipvs, nftables{why}"));
            ProxyMode::Iptables
        }
    }
}

fn check_numbers(document: &Document, found: &mut Findings) {
    let bits = [
        ("iptables.masqueradeBit", document.iptables.masquerade_bit, true),
        ("nftables.masqueradeBit", document.nftables.masquerade_bit, document.mode == "nftables"),
    ];
    for (path, bit, counts) in bits {
        if counts && bit.is_some_and(|bit| !(0..=31).contains(&bit)) {
            found.refuse(path, "not from 0 to 31");
        }
    }
    if document.oom_score_adj.is_some_and(|score| !(-1000..=1000).contains(&score)) {
        found.refuse("oomScoreAdj", "not from -1000 to 1000");
    }
    if document.client_connection.burst < 0 {
        found.refuse("clientConnection.burst", "is negative");
    }
    if document.config_sync_period <= GoDuration::ZERO {
        let period = document.config_sync_period;
        found.refuse("configSyncPeriod", format_args!("{period} is not above 0"));
    }
    if !is_port_range(&document.port_range) {
        found.refuse("portRange", format_args!("{:?} is not a range of ports", document.port_range));
    }
}

/// `a`, `a-b` or `a+more`.
fn is_port_range(text: &str) -> bool {
    let port = |text: &str| text.trim().parse::<u16>().ok();
    if text.trim().is_empty() {
        return true;
    }
    if let Some((first, last)) = text.split_once('-') {
        return matches!((port(first), port(last)), (Some(first), Some(last)) if first <= last);
    }
    if let Some((first, more)) = text.split_once('+') {
        return matches!((port(first), port(more)), (Some(first), Some(more)) if first.checked_add(more).is_some());
    }
    port(text).is_some()
}

fn check_conntrack(conntrack: &Conntrack, found: &mut Findings) {
    for (path, number) in [("conntrack.maxPerCore", conntrack.max_per_core), ("conntrack.min", conntrack.min)]
    {
        if number.is_some_and(i32::is_negative) {
            found.refuse(path, "is negative");
        }
    }
    for (path, timeout) in [
        ("conntrack.tcpEstablishedTimeout", conntrack.tcp_established_timeout.unwrap_or_default()),
        ("conntrack.tcpCloseWaitTimeout", conntrack.tcp_close_wait_timeout.unwrap_or_default()),
        ("conntrack.udpTimeout", conntrack.udp_timeout),
        ("conntrack.udpStreamTimeout", conntrack.udp_stream_timeout),
    ] {
        check_not_negative(path, timeout, found);
    }
}

fn check_not_negative(path: &str, duration: GoDuration, found: &mut Findings) {
    if duration < GoDuration::ZERO {
        found.refuse(path, format_args!("{duration} is negative"));
    }
}

fn check_logging(logging: &Logging, found: &mut Findings) {
    if !matches!(logging.format.as_str(), "text" | "json") {
        found.refuse("logging.format", format_args!("{:?} is not one of text, json", logging.format));
    }
    if i32::try_from(logging.verbosity).is_err() {
        found.refuse("logging.verbosity", format_args!("{} is above {}", logging.verbosity, i32::MAX));
    }
    if logging.format == "json" && !logging.vmodule.is_empty() {
        found.refuse("logging.vmodule", "only the format text has it");
    }
    for (index, module) in logging.vmodule.iter().enumerate() {
        let path = format!("logging.vmodule[{index}]");
        if module.file_pattern.is_empty() || module.file_pattern.contains(['=', ',']) {
            found.refuse(path, "filePattern is empty or has a = or , in it");
        } else if i32::try_from(module.verbosity).is_err() {
            found.refuse(path, format_args!("verbosity {} is above {}", module.verbosity, i32::MAX));
        }
    }
}

fn check_periods(block: &str, (sync, min): (GoDuration, GoDuration), found: &mut Findings) {
    if sync <= GoDuration::ZERO {
        found.refuse(format!("{block}.syncPeriod"), format_args!("{sync} is not above 0"));
    }
    check_not_negative(&format!("{block}.minSyncPeriod"), min, found);
    if min > sync {
        found.refuse(
            format!("{block}.syncPeriod"),
            format_args!("{sync} is shorter than minSyncPeriod, {min}"),
        );
    }
}

fn read_bind_address(document: &Document, found: &mut Findings) -> Option<IpAddr> {
    let addr = sloppy::address(&document.bind_address);
    if addr.is_none() {
        found.refuse("bindAddress", format_args!("{:?} is not an IP address", document.bind_address));
    }
    addr.filter(|addr| !addr.is_unspecified())
}

/// `None` for an empty text too: nothing is served.
fn read_listener(path: &str, text: &str, found: &mut Findings) -> Option<SocketAddr> {
    if text.is_empty() {
        return None;
    }
    listener::parse(text).map_err(|reason| found.refuse(path, reason)).ok()
}

fn read_hostname(document: &Document, found: &mut Findings) -> Option<Arc<str>> {
    let name = &document.hostname_override;
    let trimmed = name.trim().to_lowercase();
    if trimmed.is_empty() && !name.is_empty() {
        found.refuse("hostnameOverride", "is blank");
    }
    (!trimmed.is_empty()).then(|| trimmed.into())
}

/// Scheduler and excluded networks: the block counts in its own mode alone.
fn read_ipvs(document: &Document, mode: ProxyMode, found: &mut Findings) -> (Scheduling, Vec<IpNet>) {
    let mut scheduling = Scheduling { kind: Kind::Rr, flags: Flags::default() };
    let ipvs = &document.ipvs;
    if mode != ProxyMode::Ipvs {
        return (scheduling, Vec::new());
    }
    for (path, timeout) in [
        ("ipvs.tcpTimeout", ipvs.tcp_timeout),
        ("ipvs.tcpFinTimeout", ipvs.tcp_fin_timeout),
        ("ipvs.udpTimeout", ipvs.udp_timeout),
    ] {
        check_not_negative(path, timeout, found);
    }
    match ipvs.scheduler.parse() {
        Ok(kind) => scheduling.kind = kind,
        Err(_) if ipvs.scheduler.is_empty() => {}
        Err(error) => {
            let names: Vec<_> = Kind::ALL.iter().map(|kind| kind.name()).collect();
            found.refuse("ipvs.scheduler", format_args!("{error}: known are {}", names.join(", ")));
        }
    }
    // As kube-proxy sets it for this scheduler.
    scheduling.flags.port = scheduling.kind == Kind::Mh;
    let exclude = read_nets("ipvs.excludeCIDRs", ipvs.exclude_cidrs.as_deref().unwrap_or_default(), found);
    (scheduling, exclude)
}

fn read_nets(path: &str, texts: &[String], found: &mut Findings) -> Vec<IpNet> {
    let read = |(index, text): (usize, &String)| {
        let net = sloppy::network(text);
        if net.is_none() {
            found.refuse(
                format!("{path}[{index}]"),
                format_args!("{text:?} is not a network such as 10.0.0.0/8"),
            );
        }
        net
    };
    texts.iter().enumerate().filter_map(read).collect()
}

fn read_local(document: &Document, found: &mut Findings) -> DetectLocal {
    let local = &document.detect_local;
    match document.detect_local_mode.as_str() {
        "ClusterCIDR" => read_cluster_cidr(&document.cluster_cidr, found),
        "NodeCIDR" => DetectLocal::NodeCidr,
        "BridgeInterface" => {
            check_interface("detectLocal.bridgeInterface", &local.bridge_interface, found);
            cluster_cidr_instead(&document.cluster_cidr)
        }
        "InterfaceNamePrefix" => {
            check_interface("detectLocal.interfaceNamePrefix", &local.interface_name_prefix, found);
            cluster_cidr_instead(&document.cluster_cidr)
        }
        other => {
            found.refuse(
                "detectLocalMode",
                format_args!(
                    "{other:?} is not one of ClusterCIDR, NodeCIDR, BridgeInterface, InterfaceNamePrefix"
                ),
            );
            DetectLocal::Unknown
        }
    }
}

fn read_cluster_cidr(text: &str, found: &mut Findings) -> DetectLocal {
    const PATH: &str = "clusterCIDR";
    if text.is_empty() {
        found.warn(
            PATH,
            "empty: pods' addresses cannot be told from others, so traffic from outside to cluster addresses keeps its \
             source, and node ports and load balancers with externalTrafficPolicy Local use local endpoints for pods too",
        );
        return DetectLocal::Unknown;
    }
    let texts: Vec<_> = text.split(',').collect();
    let mut nets = Vec::new();
    for text in &texts {
        match sloppy::network(text) {
            Some(net) => nets.push(net),
            None => found.refuse(PATH, format_args!("{text:?} is not a network such as 10.244.0.0/16")),
        }
    }
    match nets.as_slice() {
        _ if texts.len() > 2 => found.refuse(PATH, "more than one network of IPv4 and one of IPv6"),
        [IpNet::V4(_), IpNet::V4(_)] | [IpNet::V6(_), IpNet::V6(_)] => {
            found.refuse(PATH, "two networks have to be one of IPv4 and one of IPv6");
        }
        _ => {}
    }
    DetectLocal::ClusterCidr(nets)
}

/// For modes that go by interfaces, where Weir goes by addresses. kube-proxy does not look at the networks then, so they
/// may be wrong.
fn cluster_cidr_instead(text: &str) -> DetectLocal {
    match text.split(',').map(sloppy::network).collect::<Option<Vec<_>>>() {
        Some(networks) if !networks.is_empty() => DetectLocal::ClusterCidr(networks),
        _ => DetectLocal::Unknown,
    }
}

fn check_interface(path: &str, name: &str, found: &mut Findings) {
    if name.is_empty() {
        found.refuse(path, "is empty: detectLocalMode needs it");
    } else if InterfaceName::new(name).is_none() {
        found.refuse(path, format_args!("{name:?} cannot be an interface's name"));
    }
}

fn read_node_ports(document: &Document, found: &mut Findings) -> NodePortAddresses {
    const PATH: &str = "nodePortAddresses";
    let texts = document.node_port_addresses.as_deref().unwrap_or_default();
    if texts.is_empty() {
        return NodePortAddresses::All;
    }
    let (mut networks, mut primary, mut all, mut localhost) = (Vec::new(), false, false, false);
    for (index, text) in texts.iter().enumerate() {
        match text.as_str() {
            "primary" => primary = true,
            "all" => all = true,
            "localhost" => {
                localhost = true;
                found.warn(format!("{PATH}[{index}]"), "node ports are not served on loopback addresses");
            }
            text => match sloppy::network(text) {
                Some(net) => {
                    if net.prefix_len() > 0 && net.network().is_loopback() {
                        let reason = "node ports are not served on loopback addresses";
                        found.warn(format!("{PATH}[{index}]"), reason);
                    }
                    networks.push(net);
                }
                None => found.refuse(
                    format!("{PATH}[{index}]"),
                    format_args!(
                        "{text:?} is neither a network such as 10.0.0.0/8 nor primary, localhost or all"
                    ),
                ),
            },
        }
    }
    if all {
        return NodePortAddresses::All;
    }
    if networks.is_empty() && primary && !localhost {
        return NodePortAddresses::Primary;
    }
    if !primary && !localhost {
        all_of_families_without(&mut networks);
    }
    NodePortAddresses::Networks { networks, primary }
}

/// A family of which the list has no network is not restricted.
fn all_of_families_without(networks: &mut Vec<IpNet>) {
    let (v4, v6) = (IpNet::V4(Ipv4Net::default()), IpNet::V6(Ipv6Net::default()));
    for all in [v4, v6] {
        if !networks.iter().any(|net| matches!(net, IpNet::V4(_)) == matches!(all, IpNet::V4(_))) {
            networks.push(all);
        }
    }
}
