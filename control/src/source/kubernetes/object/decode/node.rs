//! Nodes and ServiceCIDRs.

use k8s_openapi::ClusterResourceScope;
use serde::Deserialize;

use super::{Metadata, Reader, Reduced, metadata, text};
use crate::source::kubernetes::object::lenient::{Many, Part, Scalar};
use crate::source::kubernetes::object::{Node, ServiceCidr, Undecodable};

pub(super) const ZONE: &str = "topology.kubernetes.io/zone";
/// The taint by which the cluster autoscaler marks a node that it is about to remove.
const AUTOSCALER_TAINT: &str = "ToBeDeletedByClusterAutoscaler";

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct RawNode {
    metadata: Part<Metadata>,
    spec: Part<RawNodeSpec>,
    status: Part<RawNodeStatus>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RawNodeSpec {
    #[serde(rename = "podCIDR")]
    pod_cidr: Scalar,
    #[serde(rename = "podCIDRs")]
    pod_cidrs: Many<Scalar>,
    taints: Many<Part<RawTaint>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RawTaint {
    key: Scalar,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RawNodeStatus {
    addresses: Many<Part<RawNodeAddress>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RawNodeAddress {
    r#type: Scalar,
    address: Scalar,
}

impl Reduced for Node {
    const KIND: &'static str = "Node";
    const GROUP: &'static str = "";
    const VERSION: &'static str = "v1";
    const PLURAL: &'static str = "nodes";
    type Scope = ClusterResourceScope;
    type Raw = RawNode;

    fn metadata(raw: &RawNode) -> &Metadata {
        metadata(&raw.metadata)
    }

    fn reduce(raw: RawNode) -> Result<Self, Undecodable> {
        let mut reader = Reader::default();
        let meta = reader.part(raw.metadata, "metadata");
        let name = meta.name(Self::KIND)?;
        let spec = reader.part(raw.spec, "spec");
        let status = reader.part(raw.status, "status");
        let (mut internal, mut external) = (Vec::new(), Vec::new());
        for (index, item) in reader.list(status.addresses, "status.addresses").into_iter().enumerate() {
            let item = reader.part(item, format_args!("status.addresses[{index}]"));
            let kind = match text(&item.r#type) {
                Some("InternalIP") => &mut internal,
                Some("ExternalIP") => &mut external,
                _ => continue,
            };
            kind.extend(reader.address(&item.address, format_args!("status.addresses[{index}].address")));
        }
        let mut networks = spec.pod_cidrs;
        if networks.items.is_empty() && text(&spec.pod_cidr).is_some_and(|network| !network.is_empty()) {
            networks.items.push(spec.pod_cidr);
        }
        let (pod_cidrs, _) = reader.networks(networks, "spec.podCIDRs");
        let taints = reader.list(spec.taints, "spec.taints");
        let marked = taints
            .into_iter()
            .any(|taint| text(&reader.part(taint, "spec.taints").key) == Some(AUTOSCALER_TAINT));
        Ok(Self {
            name,
            zone: meta.label(ZONE).filter(|zone| !zone.is_empty()).map(Into::into),
            internal,
            external,
            pod_cidrs,
            leaving: marked || !matches!(meta.deletion_timestamp, Scalar::None),
            faults: reader.faults,
        })
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct RawServiceCidr {
    metadata: Part<Metadata>,
    spec: Part<RawServiceCidrSpec>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RawServiceCidrSpec {
    cidrs: Many<Scalar>,
}

impl Reduced for ServiceCidr {
    const KIND: &'static str = "ServiceCIDR";
    const GROUP: &'static str = "networking.k8s.io";
    const VERSION: &'static str = "v1";
    const PLURAL: &'static str = "servicecidrs";
    type Scope = ClusterResourceScope;
    type Raw = RawServiceCidr;

    fn metadata(raw: &RawServiceCidr) -> &Metadata {
        metadata(&raw.metadata)
    }

    fn reduce(raw: RawServiceCidr) -> Result<Self, Undecodable> {
        let mut reader = Reader::default();
        let name = reader.part(raw.metadata, "metadata").name(Self::KIND)?;
        let spec = reader.part(raw.spec, "spec");
        let (cidrs, _) = reader.networks(spec.cidrs, "spec.cidrs");
        Ok(Self { name, cidrs, faults: reader.faults })
    }
}
