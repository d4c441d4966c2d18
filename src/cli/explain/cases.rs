//! What kube-proxy is held to, flow by flow, against the tables that the engine has: objects go through the code that
//! reads files, a packet through the engine itself.

mod addresses;
mod policies;

use std::net::IpAddr;

use control::config::Section;
use control::config::kube_proxy::{self, Flags};
use control::model::Draft;
use control::source::kubernetes::manifest::Manifests;
use control::source::kubernetes::offline;
use serde_json::{Value, json};

use super::{Sender, Target, explain_objects};

const NODE: &str = "testNodeName";
const POD: &str = "10.0.0.2";
const CLIENT: &str = "203.0.113.2";
const BLOCKED: &str = "203.0.113.130";
const NODE_IP: &str = "192.168.0.2";

/// What all cases have in common: where pods are, and that external IPs count.
const CONFIG: &str = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nmode: nftables\n\
    clusterCIDR: 10.0.0.0/8\nfeatureGates: {AllowServiceExternalIPs: true}\n";

/// One flow: from, to, and what becomes of it: `REJECT`, `DROP`, `PASS`, or endpoints and whether the client's address is
/// hidden from them (`Y`, `N`).
type Flow<'a> = (&'a str, &'a str, &'a str);

fn ask(config: &str, node_addresses: &[&str], objects: &[Value], from: &str, to: &str) -> super::Explanation {
    let text: Vec<_> = objects.iter().map(ToString::to_string).collect();
    let mut manifests = Manifests::default();
    manifests.parse(&"test".into(), &text.join("\n---\n"));
    assert!(manifests.unreadable.is_empty(), "{:?}", manifests.unreadable);
    let flags = Flags::parse(&[("hostname-override", NODE.to_lowercase())], None).unwrap();
    let proxy = kube_proxy::parse("config", config, &flags).unwrap_or_else(|faults| panic!("{faults}"));
    let mut settings = kube_proxy::settings(&proxy, &Section::default(), "").unwrap();
    settings.node_addresses = node_addresses.iter().map(|ip| ip.parse().unwrap()).collect();
    let (from, to): (Sender, Target) = (from.parse().unwrap(), to.parse().unwrap());
    let others: [IpAddr; 2] = [from.0.ip(), to.address.ip()];
    let objects = manifests.objects.into_iter().map(|(_, object)| object);
    let offline = offline::desired(objects, settings, Draft::default(), &others).unwrap();
    explain_objects(&offline, None, from.0, to).unwrap()
}

fn outcome(explanation: &super::Explanation) -> String {
    match explanation.outcome {
        "reject" => "REJECT".into(),
        "drop" => "DROP".into(),
        "kernel" => "PASS".into(),
        _ => format!("{} {}", explanation.backends.join(" "), if explanation.masquerade { "Y" } else { "N" }),
    }
}

fn try_all(name: &str, objects: &[Value], flows: &[Flow<'_>]) {
    try_with(name, CONFIG, &[NODE_IP], objects, flows);
}

fn try_with(name: &str, config: &str, node_addresses: &[&str], objects: &[Value], flows: &[Flow<'_>]) {
    for (from, to, want) in flows {
        let explanation = ask(config, node_addresses, objects, from, to);
        assert_eq!(outcome(&explanation), *want, "{name}: {from} to {to}: {:#?}", explanation.steps);
    }
}

/// A Service with what `spec` says, and load balancer's addresses.
fn service(name: &str, mut spec: Value, ingress: &[&str]) -> Value {
    let ingress: Vec<_> = ingress.iter().map(|ip| json!({"ip": ip})).collect();
    if spec.get("ports").is_none() {
        spec["ports"] = json!([{"name": "p80", "port": 80, "protocol": "TCP"}]);
    }
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "ns1"},
        "spec": spec, "status": {"loadBalancer": {"ingress": ingress}},
    })
}

/// A slice of a Service: its endpoints, each with its conditions and Node, on ports.
fn slice(name: &str, ports: Value, endpoints: &[Value]) -> Value {
    slice_of("IPv4", name, ports, endpoints)
}

fn slice_of(family: &str, name: &str, ports: Value, endpoints: &[Value]) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "name": format!("{name}-{family}").to_lowercase(), "namespace": "ns1",
            "labels": {"kubernetes.io/service-name": name},
        },
        "addressType": family, "ports": ports, "endpoints": endpoints,
    })
}

fn p80() -> Value {
    json!([{"name": "p80", "port": 80, "protocol": "TCP"}])
}

/// `R`eady, `S`erving, `T`erminating, as far as `flags` has them, on this node (`l`) or another.
fn endpoint(addr: &str, flags: &str) -> Value {
    let has = |flag| flags.contains(flag);
    let mut endpoint = json!({
        "addresses": [addr],
        "conditions": {"ready": has('R'), "serving": has('S') || has('R'), "terminating": has('T')},
    });
    endpoint["nodeName"] = if has('l') { NODE.to_lowercase().into() } else { "host2".into() };
    endpoint
}

fn endpoints(list: &[(&str, &str)]) -> Vec<Value> {
    list.iter().map(|(addr, flags)| endpoint(addr, flags)).collect()
}

fn cidr() -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": "kubernetes"},
        "spec": {"cidrs": ["172.30.0.0/16"]},
    })
}

fn balancer(policy: &str) -> Value {
    let spec = json!({
        "type": "LoadBalancer", "clusterIP": "172.30.0.41", "externalIPs": ["192.168.99.11"],
        "externalTrafficPolicy": policy, "healthCheckNodePort": 30000,
        "ports": [{"name": "p80", "port": 80, "protocol": "TCP", "nodePort": 3001}],
    });
    service("svc1", spec, &["1.2.3.4"])
}

/// The endpoints of T08 and T09: of the first the Node is not known.
fn two() -> Vec<Value> {
    let mut first = endpoint("10.180.0.1", "R");
    first["nodeName"] = Value::Null;
    vec![first, endpoint("10.180.2.1", "Rl")]
}

const ADDRESSES: [&str; 4] = ["172.30.0.41:80", "192.168.99.11:80", "1.2.3.4:80", "192.168.0.2:3001"];
