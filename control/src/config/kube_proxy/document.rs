//! The fields of a KubeProxyConfiguration v1alpha1, with kube-proxy's defaults.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde::Serialize;
use thiserror::Error;

use super::duration::GoDuration;
use super::flags::Ports;
use super::meaning::ProxyMode;
use crate::source::kubernetes::object::sloppy;

/// The only known version.
pub(super) const API_VERSION: &str = "kubeproxy.config.k8s.io/v1alpha1";
/// The kind.
pub(super) const KIND: &str = "KubeProxyConfiguration";

/// The port of `/healthz`.
pub(super) const HEALTH_PORT: u16 = 10256;
/// The port of `/metrics`.
pub(super) const METRICS_PORT: u16 = 10249;

const SYNC_PERIOD: GoDuration = GoDuration::from_secs(30);
const MIN_SYNC_PERIOD: GoDuration = GoDuration::from_secs(1);

/// A KubeProxyConfiguration. Its serialized form is what kube-proxy writes and shows.
///
/// What stands in the fields is as the author wrote it: in what mode and whether it makes sense is found out afterwards,
/// since kube-proxy does not look into the blocks of modes that are not selected.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(
    missing_docs,
    reason = "the fields are documented by Kubernetes, and what Weir does with each in `effects`"
)]
pub struct Document {
    pub api_version: &'static str,
    pub bind_address: String,
    pub bind_address_hard_fail: bool,
    pub client_connection: ClientConnection,
    #[serde(rename = "clusterCIDR")]
    pub cluster_cidr: String,
    pub config_sync_period: GoDuration,
    pub conntrack: Conntrack,
    pub detect_local: DetectLocal,
    pub detect_local_mode: String,
    pub enable_profiling: bool,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub feature_gates: BTreeMap<String, bool>,
    pub healthz_bind_address: String,
    pub hostname_override: String,
    pub iptables: Iptables,
    pub ipvs: Ipvs,
    pub kind: &'static str,
    pub logging: Logging,
    pub metrics_bind_address: String,
    pub mode: String,
    pub nftables: Nftables,
    pub node_port_addresses: Option<Vec<String>>,
    pub oom_score_adj: Option<i32>,
    pub port_range: String,
    pub show_hidden_metrics_for_version: String,
    pub windows_run_as_service: bool,
    pub winkernel: Winkernel,
}

#[derive(Clone, Debug, PartialEq, Serialize, Default)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "see `Document`")]
pub struct ClientConnection {
    pub accept_content_types: String,
    pub burst: i32,
    pub content_type: String,
    pub kubeconfig: String,
    pub qps: f32,
}

#[derive(Clone, Debug, PartialEq, Serialize, Default)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "see `Document`")]
pub struct Conntrack {
    pub max_per_core: Option<i32>,
    pub min: Option<i32>,
    pub tcp_be_liberal: bool,
    pub tcp_close_wait_timeout: Option<GoDuration>,
    pub tcp_established_timeout: Option<GoDuration>,
    pub udp_stream_timeout: GoDuration,
    pub udp_timeout: GoDuration,
}

#[derive(Clone, Debug, PartialEq, Serialize, Default)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "see `Document`")]
pub struct DetectLocal {
    pub bridge_interface: String,
    pub interface_name_prefix: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Default)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "see `Document`")]
pub struct Iptables {
    pub localhost_node_ports: Option<bool>,
    pub masquerade_all: bool,
    pub masquerade_bit: Option<i32>,
    pub min_sync_period: GoDuration,
    pub sync_period: GoDuration,
}

#[derive(Clone, Debug, PartialEq, Serialize, Default)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "see `Document`")]
pub struct Ipvs {
    #[serde(rename = "excludeCIDRs")]
    pub exclude_cidrs: Option<Vec<String>>,
    pub min_sync_period: GoDuration,
    pub scheduler: String,
    #[serde(rename = "strictARP")]
    pub strict_arp: bool,
    pub sync_period: GoDuration,
    pub tcp_fin_timeout: GoDuration,
    pub tcp_timeout: GoDuration,
    pub udp_timeout: GoDuration,
}

#[derive(Clone, Debug, PartialEq, Serialize, Default)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "see `Document`")]
pub struct Logging {
    pub flush_frequency: GoDuration,
    pub format: String,
    pub options: LoggingOptions,
    pub verbosity: u32,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub vmodule: Vec<VModule>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Default)]
#[allow(missing_docs, reason = "see `Document`")]
pub struct LoggingOptions {
    pub json: StreamOptions,
    pub text: StreamOptions,
}

#[derive(Clone, Debug, PartialEq, Serialize, Default)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "see `Document`")]
pub struct StreamOptions {
    pub info_buffer_size: String,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub split_stream: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize, Default)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "see `Document`")]
pub struct VModule {
    pub file_pattern: String,
    pub verbosity: u32,
}

#[derive(Clone, Debug, PartialEq, Serialize, Default)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "see `Document`")]
pub struct Nftables {
    pub masquerade_all: bool,
    pub masquerade_bit: Option<i32>,
    pub min_sync_period: GoDuration,
    pub sync_period: GoDuration,
}

#[derive(Clone, Debug, PartialEq, Serialize, Default)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "see `Document`")]
pub struct Winkernel {
    #[serde(rename = "enableDSR")]
    pub enable_dsr: bool,
    pub forward_health_check_vip: bool,
    pub network_name: String,
    pub root_hns_endpoint_name: String,
    pub source_vip: String,
}

/// A document that YAML cannot say.
#[derive(Debug, Error)]
#[error("cannot write the configuration as YAML: {0}")]
pub struct Unwritable(#[from] serde_saphyr::ser::Error);

impl Document {
    /// Nothing said, nothing defaulted.
    pub fn empty() -> Self {
        Self {
            api_version: API_VERSION,
            bind_address: String::new(),
            bind_address_hard_fail: false,
            client_connection: ClientConnection::default(),
            cluster_cidr: String::new(),
            config_sync_period: GoDuration::ZERO,
            conntrack: Conntrack::default(),
            detect_local: DetectLocal::default(),
            detect_local_mode: String::new(),
            enable_profiling: false,
            feature_gates: BTreeMap::new(),
            healthz_bind_address: String::new(),
            hostname_override: String::new(),
            iptables: Iptables::default(),
            ipvs: Ipvs::default(),
            kind: KIND,
            logging: Logging::default(),
            metrics_bind_address: String::new(),
            mode: String::new(),
            nftables: Nftables::default(),
            node_port_addresses: None,
            oom_score_adj: None,
            port_range: String::new(),
            show_hidden_metrics_for_version: String::new(),
            windows_run_as_service: false,
            winkernel: Winkernel::default(),
        }
    }

    /// As a file has it.
    pub fn to_yaml(&self) -> Result<String, Unwritable> {
        Ok(serde_saphyr::to_string(self)?)
    }

    /// `minSyncPeriod` of the block that a mode goes by.
    pub(super) fn min_sync_period(&self, mode: ProxyMode) -> GoDuration {
        match mode {
            ProxyMode::Iptables => self.iptables.min_sync_period,
            ProxyMode::Ipvs => self.ipvs.min_sync_period,
            ProxyMode::Nftables => self.nftables.min_sync_period,
        }
    }

    /// Fills in kube-proxy's defaults for what is left out: for v1alpha1 that is also an empty string, and a zero where
    /// the default is none.
    pub(super) fn set_defaults(&mut self, ports: Ports) {
        set(&mut self.bind_address, "0.0.0.0");
        let (health, metrics) = default_listeners(&self.bind_address);
        set_listener(&mut self.healthz_bind_address, health, ports.health);
        set_listener(&mut self.metrics_bind_address, metrics, ports.metrics);
        set(&mut self.mode, "iptables");
        set(&mut self.detect_local_mode, "ClusterCIDR");
        if self.mode == "nftables" && self.node_port_addresses.as_ref().is_none_or(Vec::is_empty) {
            self.node_port_addresses = Some(vec!["primary".to_owned()]);
        }
        self.oom_score_adj.get_or_insert(-999);
        set_period(&mut self.config_sync_period, GoDuration::from_secs(15 * 60));
        set_period(&mut self.iptables.sync_period, SYNC_PERIOD);
        set_period(&mut self.iptables.min_sync_period, MIN_SYNC_PERIOD);
        set_period(&mut self.ipvs.sync_period, SYNC_PERIOD);
        set_period(&mut self.nftables.sync_period, SYNC_PERIOD);
        set_period(&mut self.nftables.min_sync_period, MIN_SYNC_PERIOD);
        self.iptables.masquerade_bit.get_or_insert(14);
        self.iptables.localhost_node_ports.get_or_insert(true);
        self.nftables.masquerade_bit.get_or_insert(14);
        let conntrack = &mut self.conntrack;
        conntrack.max_per_core.get_or_insert(32 * 1024);
        conntrack.min.get_or_insert(128 * 1024);
        conntrack.tcp_established_timeout.get_or_insert(GoDuration::from_secs(24 * 3600));
        conntrack.tcp_close_wait_timeout.get_or_insert(GoDuration::from_secs(3600));
        let client = &mut self.client_connection;
        set(&mut client.content_type, "application/vnd.kubernetes.protobuf");
        if client.qps == 0.0 {
            client.qps = 5.0;
        }
        if client.burst == 0 {
            client.burst = 10;
        }
        let logging = &mut self.logging;
        set(&mut logging.format, "text");
        set_period(&mut logging.flush_frequency, GoDuration::from_secs(5));
        set(&mut logging.options.json.info_buffer_size, "0");
        set(&mut logging.options.text.info_buffer_size, "0");
    }
}

fn set(field: &mut String, default: &str) {
    if field.is_empty() {
        default.clone_into(field);
    }
}

fn set_period(field: &mut GoDuration, default: GoDuration) {
    if field.is_zero() {
        *field = default;
    }
}

/// Where health and metrics are served with this `bindAddress`. What is no address counts as IPv6, as to kube-proxy.
fn default_listeners(bind_address: &str) -> (&'static str, &'static str) {
    match sloppy::address(bind_address) {
        Some(addr) if addr.is_ipv4() => ("0.0.0.0", "127.0.0.1"),
        _ => ("[::]", "[::1]"),
    }
}

/// An address alone gets the port; with port 0 there is no address.
fn set_listener(field: &mut String, default: &str, port: u16) {
    if port == 0 {
        field.clear();
    } else if field.is_empty() {
        *field = format!("{default}:{port}");
    } else if let Some(addr) = sloppy::address(field) {
        *field = SocketAddr::new(addr, port).to_string();
    }
}
