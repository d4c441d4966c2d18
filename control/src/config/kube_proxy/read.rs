//! A tree -> the fields of a KubeProxyConfiguration, as kube-proxy decodes them: a key that nobody knows or that stands
//! twice is a warning, a value of the wrong type a fault, nothing behind a key as if the key were left out.

use std::collections::BTreeSet;

use super::super::reader::{Field, Map};
use super::document::{API_VERSION, Document, KIND, StreamOptions, VModule};
use super::duration::GoDuration;

/// Entries of a list or a mapping of the file at most.
const ENTRIES_MAX: usize = 4096;

/// YAML 1.1's booleans, which Kubernetes's reader knows.
const TRUE: [&str; 11] = ["true", "True", "TRUE", "y", "Y", "yes", "Yes", "YES", "on", "On", "ON"];
const FALSE: [&str; 11] = ["false", "False", "FALSE", "n", "N", "no", "No", "NO", "off", "Off", "OFF"];

const KEYS: [&str; 27] = [
    "apiVersion",
    "bindAddress",
    "bindAddressHardFail",
    "clientConnection",
    "clusterCIDR",
    "configSyncPeriod",
    "conntrack",
    "detectLocal",
    "detectLocalMode",
    "enableProfiling",
    "featureGates",
    "healthzBindAddress",
    "hostnameOverride",
    "iptables",
    "ipvs",
    "kind",
    "logging",
    "metricsBindAddress",
    "mode",
    "nftables",
    "nodePortAddresses",
    "oomScoreAdj",
    "portRange",
    "showHiddenMetricsForVersion",
    "windowsRunAsService",
    "winkernel",
    "udpIdleTimeout",
];

/// What has been said, by paths such as `conntrack.min`.
pub(super) type Given = BTreeSet<String>;

/// A type of a field.
trait Value: Sized {
    /// The value; a fault is noted where there is none.
    fn read(field: &Field<'_, '_>) -> Option<Self>;
}

impl Value for String {
    fn read(field: &Field<'_, '_>) -> Option<Self> {
        field.text().map(str::to_owned)
    }
}

impl Value for bool {
    fn read(field: &Field<'_, '_>) -> Option<Self> {
        match field.plain() {
            Some(text) if TRUE.contains(&text) => Some(true),
            Some(text) if FALSE.contains(&text) => Some(false),
            _ => {
                field.refuse_type("true or false");
                None
            }
        }
    }
}

impl Value for i32 {
    fn read(field: &Field<'_, '_>) -> Option<Self> {
        read_number(field, "a whole number of 32 bits")
    }
}

impl Value for u32 {
    fn read(field: &Field<'_, '_>) -> Option<Self> {
        read_number(field, "a whole number of 32 bits that is not negative")
    }
}

impl Value for f32 {
    fn read(field: &Field<'_, '_>) -> Option<Self> {
        let number: Self = read_number(field, "a number")?;
        if !number.is_finite() {
            field.refuse("is out of range");
            return None;
        }
        Some(number)
    }
}

fn read_number<T: std::str::FromStr>(field: &Field<'_, '_>, wanted: &str) -> Option<T> {
    let number = field.plain().and_then(|text| text.parse().ok());
    if number.is_none() {
        match field.plain() {
            Some(text) if field.is_number() => {
                field.refuse(format_args!("expected {wanted}, found {}", text.escape_debug()));
            }
            _ => field.refuse_type(wanted),
        }
    }
    number
}

impl Value for GoDuration {
    fn read(field: &Field<'_, '_>) -> Option<Self> {
        if field.is_number() {
            field.refuse("expected a duration in quotes with a unit, such as \"30s\"");
            return None;
        }
        // Go takes no empty text; here it is what `null` is.
        if field.text()?.is_empty() {
            field.warn("an empty duration counts as left out; kube-proxy does not start with it");
            return None;
        }
        field.parse()
    }
}

impl Value for Vec<String> {
    fn read(field: &Field<'_, '_>) -> Option<Self> {
        Some(field.list(ENTRIES_MAX).filter_map(|entry| String::read(&entry)).collect())
    }
}

impl<T: Value> Value for Option<T> {
    fn read(field: &Field<'_, '_>) -> Option<Self> {
        T::read(field).map(Some)
    }
}

impl Value for StreamOptions {
    fn read(field: &Field<'_, '_>) -> Option<Self> {
        let mut options = Self::default();
        let map = field.map(&["infoBufferSize", "splitStream"])?;
        if let Some(size) = map.optional("infoBufferSize") {
            // A quantity: a number or a text such as 64Ki.
            match size.plain() {
                Some(number) if size.is_number() => number.clone_into(&mut options.info_buffer_size),
                _ => options.info_buffer_size = String::read(&size).unwrap_or_default(),
            }
        }
        options.split_stream =
            map.optional("splitStream").and_then(|field| bool::read(&field)).unwrap_or(false);
        Some(options)
    }
}

impl Value for VModule {
    fn read(field: &Field<'_, '_>) -> Option<Self> {
        let map = field.map(&["filePattern", "verbosity"])?;
        Some(Self {
            file_pattern: map
                .optional("filePattern")
                .and_then(|field| Value::read(&field))
                .unwrap_or_default(),
            verbosity: map.optional("verbosity").and_then(|field| Value::read(&field)).unwrap_or_default(),
        })
    }
}

/// A mapping of the document and what was found of it.
struct Block<'m, 'n, 'f, 'g> {
    map: &'m Map<'n, 'f>,
    prefix: &'static str,
    given: &'g mut Given,
}

impl Block<'_, '_, '_, '_> {
    /// Reads the value of a key, if the file has the key.
    fn read<T: Value>(&mut self, key: &'static str, into: &mut T) {
        let Some(field) = self.map.optional(key) else { return };
        if let Some(value) = T::read(&field) {
            *into = value;
            self.given.insert(format!("{}{key}", self.prefix));
        }
    }
}

/// The document, nothing defaulted, and which fields it has. Its kind has to be the known one.
pub(super) fn read(root: &Field<'_, '_>) -> (Document, Given) {
    check_kind(root);
    read_fields(root)
}

/// The fields of a document, nothing defaulted, and which ones there are.
pub(super) fn read_fields(root: &Field<'_, '_>) -> (Document, Given) {
    let mut document = Document::empty();
    let mut given = Given::new();
    let Some(map) = root.map(&KEYS) else { return (document, given) };
    read_top(&map, &mut document, &mut given);
    read_blocks(&map, &mut document, &mut given);
    read_logging(&map, &mut document, &mut given);
    if let Some(field) = map.optional("featureGates") {
        for (gate, value) in field.entries(ENTRIES_MAX) {
            if let Some(value) = bool::read(&value) {
                document.feature_gates.insert(gate.to_owned(), value);
                given.insert(format!("featureGates.{gate}"));
            }
        }
    }
    if let Some(field) = map.optional("udpIdleTimeout") {
        field.warn("no effect: of a proxy mode that is no more");
    }
    (document, given)
}

fn check_kind(root: &Field<'_, '_>) {
    let Some(map) = root.peek() else { return };
    for (key, wanted) in [("apiVersion", API_VERSION), ("kind", KIND)] {
        match map.optional(key) {
            None => root.refuse(format_args!("{key:?} is missing: expected {wanted}")),
            Some(field) => {
                if let Some(found) = field.text()
                    && found != wanted
                {
                    field.refuse(format_args!("{found:?} is not {wanted}"));
                }
            }
        }
    }
}

fn read_top(map: &Map<'_, '_>, document: &mut Document, given: &mut Given) {
    let mut top = Block { map, prefix: "", given };
    top.read("bindAddress", &mut document.bind_address);
    top.read("bindAddressHardFail", &mut document.bind_address_hard_fail);
    top.read("clusterCIDR", &mut document.cluster_cidr);
    top.read("configSyncPeriod", &mut document.config_sync_period);
    top.read("detectLocalMode", &mut document.detect_local_mode);
    top.read("enableProfiling", &mut document.enable_profiling);
    top.read("healthzBindAddress", &mut document.healthz_bind_address);
    top.read("hostnameOverride", &mut document.hostname_override);
    top.read("metricsBindAddress", &mut document.metrics_bind_address);
    top.read("mode", &mut document.mode);
    top.read("nodePortAddresses", &mut document.node_port_addresses);
    top.read("oomScoreAdj", &mut document.oom_score_adj);
    top.read("portRange", &mut document.port_range);
    top.read("showHiddenMetricsForVersion", &mut document.show_hidden_metrics_for_version);
    top.read("windowsRunAsService", &mut document.windows_run_as_service);
}

/// Reads a mapping with these keys, if the document has it.
macro_rules! block {
    ($map:expr, $given:expr, $name:literal, { $($key:literal => $into:expr),* $(,)? }) => {
        let field = $map.optional($name);
        if let Some(map) = field.as_ref().and_then(|field| field.map(&[$($key),*])) {
            let mut block = Block { map: &map, prefix: concat!($name, "."), given: $given };
            $(block.read($key, $into);)*
        }
    };
}

fn read_blocks(map: &Map<'_, '_>, document: &mut Document, given: &mut Given) {
    let client = &mut document.client_connection;
    block!(map, given, "clientConnection", {
        "acceptContentTypes" => &mut client.accept_content_types,
        "burst" => &mut client.burst,
        "contentType" => &mut client.content_type,
        "kubeconfig" => &mut client.kubeconfig,
        "qps" => &mut client.qps,
    });
    let conntrack = &mut document.conntrack;
    block!(map, given, "conntrack", {
        "maxPerCore" => &mut conntrack.max_per_core,
        "min" => &mut conntrack.min,
        "tcpBeLiberal" => &mut conntrack.tcp_be_liberal,
        "tcpCloseWaitTimeout" => &mut conntrack.tcp_close_wait_timeout,
        "tcpEstablishedTimeout" => &mut conntrack.tcp_established_timeout,
        "udpStreamTimeout" => &mut conntrack.udp_stream_timeout,
        "udpTimeout" => &mut conntrack.udp_timeout,
    });
    block!(map, given, "detectLocal", {
        "bridgeInterface" => &mut document.detect_local.bridge_interface,
        "interfaceNamePrefix" => &mut document.detect_local.interface_name_prefix,
    });
    let iptables = &mut document.iptables;
    block!(map, given, "iptables", {
        "localhostNodePorts" => &mut iptables.localhost_node_ports,
        "masqueradeAll" => &mut iptables.masquerade_all,
        "masqueradeBit" => &mut iptables.masquerade_bit,
        "minSyncPeriod" => &mut iptables.min_sync_period,
        "syncPeriod" => &mut iptables.sync_period,
    });
    let ipvs = &mut document.ipvs;
    block!(map, given, "ipvs", {
        "excludeCIDRs" => &mut ipvs.exclude_cidrs,
        "minSyncPeriod" => &mut ipvs.min_sync_period,
        "scheduler" => &mut ipvs.scheduler,
        "strictARP" => &mut ipvs.strict_arp,
        "syncPeriod" => &mut ipvs.sync_period,
        "tcpFinTimeout" => &mut ipvs.tcp_fin_timeout,
        "tcpTimeout" => &mut ipvs.tcp_timeout,
        "udpTimeout" => &mut ipvs.udp_timeout,
    });
    let nftables = &mut document.nftables;
    block!(map, given, "nftables", {
        "masqueradeAll" => &mut nftables.masquerade_all,
        "masqueradeBit" => &mut nftables.masquerade_bit,
        "minSyncPeriod" => &mut nftables.min_sync_period,
        "syncPeriod" => &mut nftables.sync_period,
    });
    let winkernel = &mut document.winkernel;
    block!(map, given, "winkernel", {
        "enableDSR" => &mut winkernel.enable_dsr,
        "forwardHealthCheckVip" => &mut winkernel.forward_health_check_vip,
        "networkName" => &mut winkernel.network_name,
        "rootHnsEndpointName" => &mut winkernel.root_hns_endpoint_name,
        "sourceVip" => &mut winkernel.source_vip,
    });
}

fn read_logging(map: &Map<'_, '_>, document: &mut Document, given: &mut Given) {
    let logging = &mut document.logging;
    let section = map.optional("logging");
    let keys = &["flushFrequency", "format", "options", "verbosity", "vmodule"];
    let Some(map) = section.as_ref().and_then(|field| field.map(keys)) else { return };
    let mut block = Block { map: &map, prefix: "logging.", given };
    block.read("format", &mut logging.format);
    block.read("verbosity", &mut logging.verbosity);
    if let Some(field) = map.optional("flushFrequency") {
        // Once it was a number of nanoseconds.
        let nanos = field.plain().filter(|_| field.is_number()).and_then(|text| text.parse().ok());
        let read = nanos.map(GoDuration::from_nanos).or_else(|| GoDuration::read(&field));
        if let Some(duration) = read {
            logging.flush_frequency = duration;
            block.given.insert("logging.flushFrequency".to_owned());
        }
    }
    if let Some(field) = map.optional("vmodule") {
        logging.vmodule = field.list(ENTRIES_MAX).filter_map(|entry| VModule::read(&entry)).collect();
        block.given.insert("logging.vmodule".to_owned());
    }
    let options = map.optional("options");
    if let Some(map) = options.as_ref().and_then(|field| field.map(&["json", "text"])) {
        let mut block = Block { map: &map, prefix: "logging.options.", given };
        block.read("json", &mut logging.options.json);
        block.read("text", &mut logging.options.text);
    }
}
