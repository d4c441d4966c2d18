//! Objects as the API server and its controllers make them, with all that real ones carry besides.

use std::net::{IpAddr, Ipv4Addr};

use serde_json::{Value, json};

/// An endpoint of a slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Its address.
    pub addr: IpAddr,
    /// The node that it is on.
    pub node: Option<String>,
    /// Its conditions: ready, serving, terminating.
    pub conditions: (bool, bool, bool),
}

impl Endpoint {
    /// One that is ready.
    pub fn ready(addr: IpAddr, node: &str) -> Self {
        Self { addr, node: Some(node.to_owned()), conditions: (true, true, false) }
    }

    /// The same, going away and still serving.
    #[must_use]
    pub fn terminating(self) -> Self {
        Self { conditions: (false, true, true), ..self }
    }

    fn json(&self) -> Value {
        let (ready, serving, terminating) = self.conditions;
        json!({
            "addresses": [self.addr],
            "conditions": {"ready": ready, "serving": serving, "terminating": terminating},
            "nodeName": self.node,
            "zone": "zone-a",
            "targetRef": {
                "kind": "Pod", "namespace": "default", "name": format!("pod-{}", self.addr),
                "uid": "6f1f6c5e-3f0a-4a8e-9d0e-6a5c1c1d2b3e",
            },
        })
    }
}

/// A Service with a cluster address and one port per `ports`: name, number and protocol.
pub fn service(namespace: &str, name: &str, cluster_ip: IpAddr, ports: &[(&str, u16, &str)]) -> Value {
    let family = if cluster_ip.is_ipv4() { "IPv4" } else { "IPv6" };
    let ports: Vec<_> = ports
        .iter()
        .map(|(name, port, protocol)| json!({"name": name, "port": port, "protocol": protocol, "targetPort": port}))
        .collect();
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {
            "namespace": namespace, "name": name,
            "labels": {"app.kubernetes.io/name": name, "app.kubernetes.io/managed-by": "Helm"},
            "annotations": {"meta.helm.sh/release-name": name, "meta.helm.sh/release-namespace": namespace},
            "managedFields": managed("helm", &["f:ports", "f:selector", "f:sessionAffinity", "f:type"]),
        },
        "spec": {
            "ports": ports, "selector": {"app.kubernetes.io/name": name}, "clusterIP": cluster_ip,
            "clusterIPs": [cluster_ip], "type": "ClusterIP", "sessionAffinity": "None", "ipFamilies": [family],
            "ipFamilyPolicy": "SingleStack", "internalTrafficPolicy": "Cluster",
        },
        "status": {"loadBalancer": {}},
    })
}

/// An EndpointSlice of a Service, with the same ports for all endpoints.
pub fn slice(
    namespace: &str,
    service: &str,
    slice: &str,
    ports: &[(&str, u16, &str)],
    endpoints: &[Endpoint],
) -> Value {
    let is_v6 = endpoints.first().is_some_and(|first| first.addr.is_ipv6());
    let ports: Vec<_> = ports
        .iter()
        .map(|(name, port, protocol)| json!({"name": name, "port": port, "protocol": protocol}))
        .collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "namespace": namespace, "name": slice, "generateName": format!("{service}-"), "generation": 1,
            "labels": {
                "app.kubernetes.io/name": service,
                "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
                "kubernetes.io/service-name": service,
            },
            "ownerReferences": [{
                "apiVersion": "v1", "kind": "Service", "name": service, "controller": true,
                "uid": "0d9f2b0c-6d3f-4f64-9f5c-0e6a4d1c7b11", "blockOwnerDeletion": true,
            }],
            "managedFields": managed("kube-controller-manager", &["f:addressType", "f:endpoints", "f:ports"]),
        },
        "addressType": if is_v6 { "IPv6" } else { "IPv4" },
        "ports": ports,
        "endpoints": endpoints.iter().map(Endpoint::json).collect::<Vec<_>>(),
    })
}

/// A Node with its addresses and the networks of its pods.
pub fn node(name: &str, addresses: &[IpAddr], pod_cidrs: &[&str]) -> Value {
    let mut of: Vec<_> =
        addresses.iter().map(|addr| json!({"type": "InternalIP", "address": addr})).collect();
    of.push(json!({"type": "Hostname", "address": name}));
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {
            "name": name,
            "labels": {
                "kubernetes.io/hostname": name, "kubernetes.io/os": "linux",
                "topology.kubernetes.io/region": "region", "topology.kubernetes.io/zone": "zone-a",
            },
            "managedFields": managed("kubelet", &["f:addresses", "f:conditions", "f:images"]),
        },
        "spec": {"podCIDR": pod_cidrs.first(), "podCIDRs": pod_cidrs},
        "status": {
            "addresses": of,
            "capacity": {"cpu": "8", "memory": "32Gi", "pods": "110"},
            "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady"}],
            "nodeInfo": {"kubeletVersion": "v1.36.0", "operatingSystem": "linux", "architecture": "amd64"},
        },
    })
}

/// A range of addresses of Services.
pub fn service_cidr(name: &str, cidrs: &[&str]) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": name},
        "spec": {"cidrs": cidrs},
        "status": {"conditions": [{"type": "Ready", "status": "True", "reason": "", "message": "ready"}]},
    })
}

/// The Service with this number of a large cluster, and its slice of so many endpoints. They are spread over 100 nodes,
/// `node-0` to `node-99`.
pub fn numbered(number: u32, endpoints: u32) -> [Value; 2] {
    let (namespace, name) = (format!("ns-{}", number % 50), format!("service-{number}"));
    let cluster_ip = Ipv4Addr::from_bits(u32::from(Ipv4Addr::new(10, 96, 0, 0)) + 10 + number);
    let ports = [("http", 80, "TCP")];
    let endpoint = |index| numbered_endpoint(number * endpoints + index);
    let endpoints: Vec<_> = (0..endpoints).map(endpoint).collect();
    [
        service(&namespace, &name, cluster_ip.into(), &ports),
        slice(&namespace, &name, &format!("{name}-abcde"), &[("http", 8080, "TCP")], &endpoints),
    ]
}

/// The slice of [`numbered`] with its first endpoint at another address, which no other `change` has, and that address:
/// 11.0.0.1 and on.
pub fn numbered_moved(number: u32, endpoints: u32, change: u32) -> (Value, IpAddr) {
    let (namespace, name) = (format!("ns-{}", number % 50), format!("service-{number}"));
    let mut all: Vec<_> = (0..endpoints).map(|index| numbered_endpoint(number * endpoints + index)).collect();
    let addr = Ipv4Addr::from_bits(u32::from(Ipv4Addr::new(11, 0, 0, 0)) + 1 + change).into();
    if let Some(first) = all.first_mut() {
        first.addr = addr;
    }
    (slice(&namespace, &name, &format!("{name}-abcde"), &[("http", 8080, "TCP")], &all), addr)
}

/// The endpoint with this number of a large cluster: 172.16.0.0 and on.
pub fn numbered_endpoint(number: u32) -> Endpoint {
    let addr = Ipv4Addr::from_bits(u32::from(Ipv4Addr::new(172, 16, 0, 0)) + 1 + number);
    Endpoint::ready(addr.into(), &format!("node-{}", number % 100))
}

fn managed(manager: &str, fields: &[&str]) -> Value {
    let fields: serde_json::Map<String, Value> =
        fields.iter().map(|field| ((*field).to_owned(), json!({".": {}, "f:spec": {}}))).collect();
    json!([{
        "manager": manager, "operation": "Update", "apiVersion": "v1", "time": "2026-01-01T00:00:00Z",
        "fieldsType": "FieldsV1",
        "fieldsV1": {"f:metadata": {"f:annotations": {".": {}}, "f:labels": {".": {}}}, "f:spec": fields},
    }])
}
