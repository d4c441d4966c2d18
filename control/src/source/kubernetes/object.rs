//! Kubernetes's objects, reduced to what is needed as they are read.
//!
//! Reading is lenient, since one bad field must lose neither the object nor the list that it came in: what cannot be
//! used is left out and noted in [`Faults`], as kube-proxy leaves it out and logs it. An object is [`Undecodable`] only
//! where it has no name.

mod decode;
mod lenient;
pub mod sloppy;

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use jiff::Timestamp;
use thiserror::Error;

pub use decode::{Reduced, Watched};

use crate::model::{Family, Port, Protocol};

/// Prefix of the annotations and labels that are Weir's own.
pub const PREFIX: &str = "weir.dev/";
/// Faults of one object that are kept; what is beyond is counted.
const FAULTS_KEPT: usize = 8;

/// What tells objects of one kind apart.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// The namespace.
    pub namespace: Arc<str>,
    /// The name.
    pub name: Arc<str>,
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// An object that cannot be told from others.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("a {kind} without a usable metadata.name (namespace `{namespace}`)")]
pub struct Undecodable {
    /// Its kind.
    pub kind: &'static str,
    /// Its namespace, as far as it has one.
    pub namespace: Box<str>,
}

/// A field that was left out, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The field, as `spec.ports[2].protocol`.
    pub field: Box<str>,
    /// Why.
    pub reason: Box<str>,
    /// What kind of fault it is.
    pub kind: FaultKind,
}

/// See [`Fault::kind`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum FaultKind {
    /// A field that cannot be read.
    #[default]
    Field,
    /// An endpoint's address that is of another family than its EndpointSlice.
    WrongFamily,
    /// One of Weir's own annotations.
    Annotation,
    /// An address and port that another service has.
    Taken,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.reason)
    }
}

/// What is wrong with one object: the first 8, and how many more.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Faults(Option<Box<FaultList>>);

#[derive(Clone, Debug, PartialEq, Eq, Default)]
struct FaultList {
    kept: Vec<Fault>,
    more: usize,
}

impl Faults {
    /// Notes that `field` was left out.
    pub fn add(&mut self, field: impl fmt::Display, reason: impl fmt::Display) {
        self.push(FaultKind::Field, field, reason);
    }

    /// Notes that `field` was left out by a fault of this kind.
    pub fn push(&mut self, kind: FaultKind, field: impl fmt::Display, reason: impl fmt::Display) {
        let list = self.0.get_or_insert_default();
        if list.kept.len() < FAULTS_KEPT {
            let (field, reason) = (field.to_string().into(), reason.to_string().into());
            list.kept.push(Fault { field, reason, kind });
        } else {
            list.more += 1;
        }
    }

    /// Those that are kept.
    pub fn iter(&self) -> impl Iterator<Item = &Fault> {
        self.0.iter().flat_map(|list| &list.kept)
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.as_ref().map_or(0, |list| list.kept.len() + list.more)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }
}

/// A Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Its namespace and name.
    pub key: Key,
    /// `metadata.uid`, for Events about it.
    pub uid: Box<str>,
    /// `metadata.creationTimestamp`.
    pub created: Option<Timestamp>,
    /// The label `service.kubernetes.io/service-proxy-name`.
    pub proxy_name: Option<Arc<str>>,
    /// Whether it has the label `service.kubernetes.io/headless`.
    pub headless_label: bool,
    /// Weir's own annotations.
    pub annotations: Box<[(Box<str>, Box<str>)]>,
    /// `spec.type`.
    pub kind: ServiceKind,
    /// `spec.clusterIPs`, or `spec.clusterIP` where there are none. None for a headless Service.
    pub cluster_ips: Box<[IpAddr]>,
    /// `spec.externalIPs`.
    pub external_ips: Box<[IpAddr]>,
    /// `status.loadBalancer.ingress`, as far as it has addresses.
    pub ingress: Box<[Ingress]>,
    /// `spec.loadBalancerSourceRanges`, as far as they can be read.
    pub source_ranges: Box<[IpNet]>,
    /// How many of them cannot be read.
    pub bad_source_ranges: u32,
    /// `spec.loadBalancerClass`.
    pub class: Option<Arc<str>>,
    /// `spec.ports`, as far as they can be served.
    pub ports: Box<[ServicePort]>,
    /// Seconds that a client stays with its endpoint, where `spec.sessionAffinity` is `ClientIP`.
    pub affinity_s: Option<u32>,
    /// Whether `spec.externalTrafficPolicy` is `Local`.
    pub external_local: bool,
    /// Whether `spec.internalTrafficPolicy` is `Local`.
    pub internal_local: bool,
    /// `spec.healthCheckNodePort`.
    pub health_check_port: Option<Port>,
    /// What was left out.
    pub faults: Faults,
}

/// See [`Service::kind`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum ServiceKind {
    /// `ClusterIP`, and what is unknown.
    #[default]
    ClusterIp,
    /// `NodePort`.
    NodePort,
    /// `LoadBalancer`.
    LoadBalancer,
    /// `ExternalName`.
    ExternalName,
}

/// See [`Service::ingress`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ingress {
    /// The address.
    pub ip: IpAddr,
    /// Whether `ipMode` is `Proxy`: packets for it shall reach the load balancer.
    pub proxy: bool,
}

/// See [`Service::ports`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Its name; empty where it has none.
    pub name: Arc<str>,
    /// Its protocol.
    pub protocol: Protocol,
    /// Its port on the addresses.
    pub port: Port,
    /// Its port on nodes.
    pub node_port: Option<Port>,
}

/// An EndpointSlice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointSlice {
    /// Its namespace and name.
    pub key: Key,
    /// The Service that it belongs to: the label `kubernetes.io/service-name`.
    pub service: Option<Arc<str>>,
    /// The label `service.kubernetes.io/service-proxy-name`.
    pub proxy_name: Option<Arc<str>>,
    /// Whether it has the label `service.kubernetes.io/headless`.
    pub headless_label: bool,
    /// When what it says came about: `endpoints.kubernetes.io/last-change-trigger-time`.
    pub triggered: Option<Timestamp>,
    /// `addressType`; `None` where its endpoints are not addresses.
    pub family: Option<Family>,
    /// The ports that every endpoint has.
    pub ports: Box<[SlicePort]>,
    /// The endpoints.
    pub endpoints: Box<[Endpoint]>,
    /// What was left out.
    pub faults: Faults,
}

/// See [`EndpointSlice::ports`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlicePort {
    /// The name of the Service's port that it is for.
    pub name: Arc<str>,
    /// The protocol.
    pub protocol: Protocol,
    /// The port.
    pub port: Port,
}

/// An endpoint, all its ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The Node that it is on.
    pub node: Option<Arc<str>>,
    /// What few endpoints have, and many have alike.
    pub extra: Option<Arc<Extra>>,
    /// Its address: the first one.
    pub addr: IpAddr,
    /// Its conditions.
    pub conditions: Conditions,
}

/// See [`Endpoint::extra`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Extra {
    /// `hostname`: the name of a StatefulSet's pod.
    pub hostname: Option<Box<str>>,
    /// `hints.forZones`.
    pub zones: Box<[Box<str>]>,
    /// `hints.forNodes`.
    pub nodes: Box<[Box<str>]>,
}

/// An endpoint's conditions, each with its default where it was left open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conditions {
    /// It takes new flows.
    pub ready: bool,
    /// It answers.
    pub serving: bool,
    /// It is on its way out.
    pub terminating: bool,
}

/// The own Node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its name.
    pub name: Arc<str>,
    /// The label `topology.kubernetes.io/zone`.
    pub zone: Option<Arc<str>>,
    /// Its addresses of type `InternalIP`, in its order.
    pub internal: Vec<IpAddr>,
    /// Its addresses of type `ExternalIP`, in its order.
    pub external: Vec<IpAddr>,
    /// `spec.podCIDRs`.
    pub pod_cidrs: Vec<IpNet>,
    /// Whether it goes away: it is deleted, or the autoscaler has marked it.
    pub leaving: bool,
    /// What was left out.
    pub faults: Faults,
}

/// A ServiceCIDR.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceCidr {
    /// Its name.
    pub name: Arc<str>,
    /// `spec.cidrs`.
    pub cidrs: Vec<IpNet>,
    /// What was left out.
    pub faults: Faults,
}

#[cfg(test)]
mod tests;
