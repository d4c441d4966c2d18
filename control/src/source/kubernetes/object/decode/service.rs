//! Services.

use std::net::IpAddr;

use k8s_openapi::NamespaceResourceScope;
use serde::Deserialize;

use super::{HEADLESS, Metadata, PROXY_NAME, Reader, Reduced, metadata, text};
use crate::source::kubernetes::object::lenient::{Many, Part, Scalar};
use crate::source::kubernetes::object::{Ingress, Service, ServiceKind, ServicePort, Undecodable};

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct RawService {
    metadata: Part<Metadata>,
    spec: Part<RawServiceSpec>,
    status: Part<RawServiceStatus>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct RawServiceSpec {
    r#type: Scalar,
    #[serde(rename = "clusterIP")]
    cluster_ip: Scalar,
    #[serde(rename = "clusterIPs")]
    cluster_ips: Many<Scalar>,
    #[serde(rename = "externalIPs")]
    external_ips: Many<Scalar>,
    load_balancer_source_ranges: Many<Scalar>,
    load_balancer_class: Scalar,
    ports: Many<Part<RawServicePort>>,
    session_affinity: Scalar,
    session_affinity_config: Part<RawAffinity>,
    external_traffic_policy: Scalar,
    internal_traffic_policy: Scalar,
    health_check_node_port: Scalar,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct RawServicePort {
    name: Scalar,
    protocol: Scalar,
    port: Scalar,
    node_port: Scalar,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RawAffinity {
    #[serde(rename = "clientIP")]
    client_ip: Part<RawClientIp>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct RawClientIp {
    timeout_seconds: Scalar,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct RawServiceStatus {
    load_balancer: Part<RawLoadBalancer>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RawLoadBalancer {
    ingress: Many<Part<RawIngress>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct RawIngress {
    ip: Scalar,
    ip_mode: Scalar,
}

/// What a client stays with its endpoint for, where nothing else is said: 3 hours, as in the API.
const AFFINITY_DEFAULT_S: u32 = 10_800;
/// The longest time that the API takes.
const AFFINITY_MAX_S: u32 = 86_400;

impl Reduced for Service {
    const KIND: &'static str = "Service";
    const GROUP: &'static str = "";
    const VERSION: &'static str = "v1";
    const PLURAL: &'static str = "services";
    type Scope = NamespaceResourceScope;
    type Raw = RawService;

    fn metadata(raw: &RawService) -> &Metadata {
        metadata(&raw.metadata)
    }

    fn reduce(raw: RawService) -> Result<Self, Undecodable> {
        let mut reader = Reader::default();
        let meta = reader.part(raw.metadata, "metadata");
        let key = meta.key(Self::KIND)?;
        let spec = reader.part(raw.spec, "spec");
        let kinds = [
            ("ClusterIP", ServiceKind::ClusterIp),
            ("NodePort", ServiceKind::NodePort),
            ("LoadBalancer", ServiceKind::LoadBalancer),
            ("ExternalName", ServiceKind::ExternalName),
        ];
        let policies = [("Cluster", false), ("Local", true)];
        let affinities = [("None", false), ("ClientIP", true)];
        let (source_ranges, bad_source_ranges) =
            reader.networks(spec.load_balancer_source_ranges, "spec.loadBalancerSourceRanges");
        let affinity = reader.choice(&spec.session_affinity, &affinities, "spec.sessionAffinity");
        Ok(Self {
            uid: text(&meta.uid).unwrap_or_default().into(),
            created: Metadata::time(
                &meta.creation_timestamp,
                "metadata.creationTimestamp",
                &mut reader.faults,
            ),
            proxy_name: meta.label(PROXY_NAME).map(Into::into),
            headless_label: meta.label(HEADLESS).is_some(),
            kind: reader.choice(&spec.r#type, &kinds, "spec.type"),
            cluster_ips: cluster_ips(&mut reader, &spec.cluster_ip, spec.cluster_ips).into(),
            external_ips: reader.addresses(spec.external_ips, "spec.externalIPs").into(),
            ingress: ingress(&mut reader, raw.status).into(),
            source_ranges: source_ranges.into(),
            bad_source_ranges,
            class: reader.text(spec.load_balancer_class, "spec.loadBalancerClass").map(Into::into),
            ports: service_ports(&mut reader, spec.ports).into(),
            affinity_s: affinity.then(|| affinity_s(&mut reader, spec.session_affinity_config)),
            external_local: reader.choice(
                &spec.external_traffic_policy,
                &policies,
                "spec.externalTrafficPolicy",
            ),
            internal_local: reader.choice(
                &spec.internal_traffic_policy,
                &policies,
                "spec.internalTrafficPolicy",
            ),
            health_check_port: reader.port(&spec.health_check_node_port, "spec.healthCheckNodePort"),
            annotations: meta.annotations.entries.into(),
            key,
            faults: reader.faults,
        })
    }
}

/// A `clusterIP` of `None` makes a Service headless, whatever else is there.
fn cluster_ips(reader: &mut Reader, one: &Scalar, all: Many<Scalar>) -> Vec<IpAddr> {
    let headless = |scalar: &Scalar| text(scalar) == Some("None");
    if headless(one) || all.items.iter().any(headless) {
        return Vec::new();
    }
    let unset = |scalar: &Scalar| matches!(scalar, Scalar::None) || text(scalar) == Some("");
    if !all.items.is_empty() || all.wrong {
        return reader.addresses(all, "spec.clusterIPs");
    }
    if unset(one) {
        return Vec::new();
    }
    reader.address(one, "spec.clusterIP").into_iter().collect()
}

fn ingress(reader: &mut Reader, status: Part<RawServiceStatus>) -> Vec<Ingress> {
    let status = reader.part(status, "status");
    let balancer = reader.part(status.load_balancer, "status.loadBalancer");
    let mut all = Vec::new();
    for (index, item) in reader.list(balancer.ingress, "status.loadBalancer.ingress").into_iter().enumerate()
    {
        let field = format!("status.loadBalancer.ingress[{index}]");
        let item = reader.part(item, &field);
        // One that has a host name only is none of ours.
        if matches!(item.ip, Scalar::None) || text(&item.ip) == Some("") {
            continue;
        }
        let Some(ip) = reader.address(&item.ip, format_args!("{field}.ip")) else { continue };
        let modes = [("VIP", false), ("Proxy", true)];
        let proxy = reader.choice(&item.ip_mode, &modes, &format!("{field}.ipMode"));
        all.push(Ingress { ip, proxy });
    }
    all
}

fn service_ports(reader: &mut Reader, list: Many<Part<RawServicePort>>) -> Vec<ServicePort> {
    let mut ports = Vec::new();
    for (index, item) in reader.list(list, "spec.ports").into_iter().enumerate() {
        let field = format!("spec.ports[{index}]");
        let item = reader.part(item, &field);
        let protocol = reader.protocol(&item.protocol, format_args!("{field}.protocol"));
        if matches!(item.port, Scalar::None | Scalar::Number(0)) {
            reader.faults.add(format_args!("{field}.port"), "is missing");
            continue;
        }
        let port = reader.port(&item.port, format_args!("{field}.port"));
        let node_port = reader.port(&item.node_port, format_args!("{field}.nodePort"));
        let name = reader.text(item.name, format_args!("{field}.name")).unwrap_or_default();
        if let (Some(protocol), Some(port)) = (protocol, port) {
            ports.push(ServicePort { name: name.into(), protocol, port, node_port });
        }
    }
    ports
}

fn affinity_s(reader: &mut Reader, config: Part<RawAffinity>) -> u32 {
    let field = "spec.sessionAffinityConfig.clientIP.timeoutSeconds";
    let config = reader.part(config, "spec.sessionAffinityConfig");
    let seconds = reader.part(config.client_ip, "spec.sessionAffinityConfig.clientIP").timeout_seconds;
    match seconds {
        Scalar::None => return AFFINITY_DEFAULT_S,
        Scalar::Number(number) => {
            if let Ok(seconds) = u32::try_from(number)
                && (1..=AFFINITY_MAX_S).contains(&seconds)
            {
                return seconds;
            }
        }
        _ => {}
    }
    reader.faults.add(field, format_args!("{seconds} is not 1 to 86400; 10800 instead"));
    AFFINITY_DEFAULT_S
}
