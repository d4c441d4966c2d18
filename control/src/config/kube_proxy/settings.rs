//! What the Kubernetes source, the engine and the flow table are told by a KubeProxyConfiguration.

use std::sync::Arc;

use dataplane::snapshot::Timeouts;
use ipnet::{Ipv4Net, Ipv6Net};
use thiserror::Error;

use super::document::Document;
use super::duration::GoDuration;
use super::{KubeProxy, Origin, ProxyMode};
use crate::config::Section;
use crate::config::sysctls::TCP_STATES;
use crate::model::SECONDS_MAX;
use crate::source::kubernetes::settings::{ExternalIps, Gates, Profile, Settings};

/// What says nothing about the own Node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the host has no name to take for the Node's: say --hostname-override or kubernetes.node_name")]
pub struct NoNodeName;

/// The settings of the Kubernetes source. What the section says counts for more than what `proxy` says, but the command
/// line for more than both. `host` is the host's name, which is the Node's where nothing else is said.
pub fn settings(proxy: &KubeProxy, section: &Section, host: &str) -> Result<Settings, NoNodeName> {
    let meaning = &proxy.meaning;
    let document = &proxy.document;
    Ok(Settings {
        node: node_name(proxy, section, host).ok_or(NoNodeName)?,
        node_addresses: meaning.node_address.into_iter().collect(),
        profile: section.profile.unwrap_or(match meaning.mode {
            ProxyMode::Nftables => Profile::Nftables,
            ProxyMode::Iptables | ProxyMode::Ipvs => Profile::Ipvs,
        }),
        scheduling: section.scheduling.unwrap_or(meaning.scheduling),
        mode: section.mode,
        snat_pool: section.snat_pool.clone(),
        masquerade_all: section.masquerade_all.unwrap_or(masquerade_all(document, meaning.mode)),
        local: section.local.clone().unwrap_or_else(|| meaning.local.clone()),
        node_port_addresses: section
            .node_port_addresses
            .clone()
            .unwrap_or_else(|| meaning.node_ports.clone()),
        service_proxy_name: section.service_proxy_name.clone(),
        load_balancer_class: section.load_balancer_class.clone(),
        external_ips: section.external_ips.clone().unwrap_or_else(|| external_ips(document)),
        exclude: section.exclude.clone().unwrap_or_else(|| meaning.exclude.clone()),
        skip: section.skip.clone(),
        drop_unallocated: section.drop_unallocated,
        when_empty: section.when_empty,
        announce: section.announce,
        drain_s: section.drain_s,
        gates: gates(document),
        min_sync_period: section.min_sync_period.unwrap_or(meaning.min_sync_period.time()),
        sync_period: section.sync_period.unwrap_or(meaning.sync_period.time()),
    })
}

fn node_name(proxy: &KubeProxy, section: &Section, host: &str) -> Option<Arc<str>> {
    let host = host.trim().to_lowercase();
    let of_proxy = proxy.meaning.hostname.clone();
    let by_flag = of_proxy.clone().filter(|_| proxy.flag_hostname);
    by_flag
        .or_else(|| section.node_name.clone())
        .or(of_proxy)
        .or_else(|| (!host.is_empty()).then(|| host.into()))
}

/// Whoever sets the gate wants external IPs; its default says nothing.
fn external_ips(document: &Document) -> ExternalIps {
    if document.feature_gates.get("AllowServiceExternalIPs") == Some(&true) {
        ExternalIps::Allow(vec![Ipv4Net::default().into(), Ipv6Net::default().into()])
    } else {
        ExternalIps::Deny
    }
}

/// The mode ipvs reads the block of iptables.
fn masquerade_all(document: &Document, mode: ProxyMode) -> bool {
    match mode {
        ProxyMode::Iptables | ProxyMode::Ipvs => document.iptables.masquerade_all,
        ProxyMode::Nftables => document.nftables.masquerade_all,
    }
}

/// A feature gate of kube-proxy that switches something in Weir too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Gate {
    NodeHints,
    ZoneHints,
    TrafficDistribution,
    LoadBalancerIpMode,
    DrainingNodes,
    ExternalIps,
}

impl Gate {
    pub(super) const ALL: [Self; 6] = [
        Self::NodeHints,
        Self::ZoneHints,
        Self::TrafficDistribution,
        Self::LoadBalancerIpMode,
        Self::DrainingNodes,
        Self::ExternalIps,
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::NodeHints => "PreferSameTrafficDistribution",
            Self::ZoneHints => "TopologyAwareHints",
            Self::TrafficDistribution => "ServiceTrafficDistribution",
            Self::LoadBalancerIpMode => "LoadBalancerIPMode",
            Self::DrainingNodes => "KubeProxyDrainingTerminatingNodes",
            Self::ExternalIps => "AllowServiceExternalIPs",
        }
    }

    pub(super) fn by_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|gate| gate.name() == name)
    }

    pub(super) fn meaning(self) -> &'static str {
        match self {
            Self::NodeHints => "whether hints for nodes choose endpoints",
            Self::ZoneHints | Self::TrafficDistribution => "whether hints for zones choose endpoints",
            Self::LoadBalancerIpMode => "whether load balancers' addresses of mode Proxy are left out",
            Self::DrainingNodes => "whether /healthz fails on a node that goes away",
            Self::ExternalIps => {
                "true allows all externalIPs where kubernetes.external_ips is not said, false none at all"
            }
        }
    }
}

fn gates(document: &Document) -> Gates {
    let gate = |gate: Gate| document.feature_gates.get(gate.name()).copied().unwrap_or(true);
    Gates {
        node_hints: gate(Gate::NodeHints),
        zone_hints: gate(Gate::ZoneHints) && gate(Gate::TrafficDistribution),
        load_balancer_ip_mode: gate(Gate::LoadBalancerIpMode),
        draining_nodes: gate(Gate::DrainingNodes),
        external_ips: gate(Gate::ExternalIps),
    }
}

/// An idle time that a KubeProxyConfiguration sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timeout {
    /// Of TCP in the state with this number.
    Tcp(usize),
    /// Of UDP.
    Udp,
}

impl Timeout {
    /// Sets this time.
    pub(crate) fn set(self, timeouts: &mut Timeouts, seconds: u32) {
        match self {
            Self::Udp => timeouts.udp_s = seconds,
            Self::Tcp(state) => {
                if let Some(time) = timeouts.tcp_s.get_mut(state) {
                    *time = seconds;
                }
            }
        }
    }

    fn tcp(key: &str) -> Self {
        Self::Tcp(TCP_STATES.iter().position(|state| *state == key).unwrap_or_default())
    }
}

impl KubeProxy {
    /// The idle times that it sets, in seconds: IPVS's own in mode ipvs, else those of connection tracking.
    pub fn timeouts(&self) -> Vec<(Timeout, u32)> {
        let (ipvs, conntrack) = (&self.document.ipvs, &self.document.conntrack);
        let times = match (self.origin, self.meaning.mode) {
            (Origin::Nobody, _) => Vec::new(),
            (_, ProxyMode::Ipvs) => vec![
                (Timeout::tcp("established_s"), ipvs.tcp_timeout),
                (Timeout::tcp("fin_wait_s"), ipvs.tcp_fin_timeout),
                (Timeout::Udp, ipvs.udp_timeout),
            ],
            (_, ProxyMode::Iptables | ProxyMode::Nftables) => vec![
                (Timeout::tcp("established_s"), conntrack.tcp_established_timeout.unwrap_or_default()),
                (Timeout::tcp("close_wait_s"), conntrack.tcp_close_wait_timeout.unwrap_or_default()),
                (Timeout::Udp, udp_timeout(conntrack.udp_stream_timeout, conntrack.udp_timeout)),
            ],
        };
        let set = times.into_iter().filter(|(_, time)| !time.is_zero());
        set.map(|(timeout, time)| (timeout, whole_seconds(time))).collect()
    }

    /// Flows that the tables of all workers together should hold on so many cores, where the configuration says it.
    /// kube-proxy's own defaults count as nothing said: they are smaller than Weir's.
    pub fn flow_limit(&self, cores: usize) -> Option<usize> {
        let (per_core, min) = (self.document.conntrack.max_per_core?, self.document.conntrack.min?);
        if per_core <= 0 || !self.says_flows() {
            return None;
        }
        let number = |count: i32| usize::try_from(count).unwrap_or(0);
        Some(number(per_core).saturating_mul(cores).max(number(min)))
    }

    pub(super) fn says_flows(&self) -> bool {
        ["conntrack.maxPerCore", "conntrack.min"].iter().any(|path| self.given.contains(*path))
    }

    /// The least severe level that is logged, by klog's numbers: up to 2 is usual, 3 and 4 tell what is done, from 5 on
    /// everything.
    pub fn log_level(&self) -> tracing::Level {
        match self.document.logging.verbosity {
            0..=2 => tracing::Level::INFO,
            3..=4 => tracing::Level::DEBUG,
            5.. => tracing::Level::TRACE,
        }
    }
}

/// Weir has one time for UDP: that of flows with traffic both ways counts, since the other is shorter.
fn udp_timeout(stream: GoDuration, one_way: GoDuration) -> GoDuration {
    if stream.is_zero() { one_way } else { stream }
}

fn whole_seconds(time: GoDuration) -> u32 {
    u32::try_from(time.seconds()).unwrap_or(SECONDS_MAX).clamp(1, SECONDS_MAX)
}
