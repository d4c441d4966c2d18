//! What kube-proxy is held to, flow by flow, against the tables that the engine has: objects go through the code that
//! reads files, a packet through the engine itself.

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

#[test]
fn t02_terminating_endpoints_with_the_policy_local() {
    let of = |policy: &str| {
        let spec = json!({
            "type": "LoadBalancer", "clusterIP": "172.30.1.1", "externalTrafficPolicy": policy,
            "healthCheckNodePort": 30000,
        });
        service("svc1", spec, &["1.2.3.4"])
    };
    let (cluster, balancer) = ((POD, "172.30.1.1:80"), (CLIENT, "1.2.3.4:80"));
    for (name, list, to_cluster, to_balancer) in [
        (
            "a",
            &[
                ("10.0.1.1", "Rl"),
                ("10.0.1.2", "Rl"),
                ("10.0.1.3", "STl"),
                ("10.0.1.4", "Tl"),
                ("10.0.1.5", "R"),
            ][..],
            "10.0.1.1:80 10.0.1.2:80 10.0.1.5:80 N",
            "10.0.1.1:80 10.0.1.2:80 N",
        ),
        (
            "b",
            &[("10.0.1.2", "STl"), ("10.0.1.3", "STl"), ("10.0.1.4", "Tl"), ("10.0.1.5", "R")],
            "10.0.1.5:80 N",
            "10.0.1.2:80 10.0.1.3:80 N",
        ),
        ("c", &[("10.0.1.5", "ST")], "10.0.1.5:80 N", "DROP"),
        ("d", &[("10.0.1.4", "Tl"), ("10.0.1.5", "T")], "REJECT", "REJECT"),
        ("deleted", &[], "REJECT", "REJECT"),
    ] {
        let objects = [of("Local"), slice("svc1", p80(), &endpoints(list))];
        let flows = [(cluster.0, cluster.1, to_cluster), (balancer.0, balancer.1, to_balancer)];
        try_all(&format!("T02 {name}"), &objects, &flows);
    }
    // T03: the same with the policy Cluster.
    for (name, list, to) in [
        (
            "a",
            &[
                ("10.0.1.1", "Rl"),
                ("10.0.1.2", "Rl"),
                ("10.0.1.3", "ST"),
                ("10.0.1.4", "T"),
                ("10.0.1.5", "R"),
            ][..],
            "10.0.1.1:80 10.0.1.2:80 10.0.1.5:80",
        ),
        (
            "b",
            &[("10.0.1.2", "STl"), ("10.0.1.3", "STl"), ("10.0.1.4", "T"), ("10.0.1.5", "ST")],
            "10.0.1.2:80 10.0.1.3:80 10.0.1.5:80",
        ),
        ("c", &[("10.0.1.5", "ST")], "10.0.1.5:80"),
    ] {
        let objects = [of("Cluster"), slice("svc1", p80(), &endpoints(list))];
        let (to_cluster, to_balancer) = (format!("{to} N"), format!("{to} Y"));
        let flows = [(cluster.0, cluster.1, &*to_cluster), (balancer.0, balancer.1, &*to_balancer)];
        try_all(&format!("T03 {name}"), &objects, &flows);
    }
    let objects = [of("Cluster"), slice("svc1", p80(), &endpoints(&[("10.0.1.4", "Tl"), ("10.0.1.5", "T")]))];
    let rejected = [(cluster.0, cluster.1, "REJECT"), (balancer.0, balancer.1, "REJECT")];
    try_all("T03 d", &objects, &rejected);
    try_all("T03 deleted", &objects[..1], &rejected);
}

#[test]
fn t04_to_t06_external_ips_of_a_node_port() {
    for (name, policy, list, to_cluster, to_external) in [
        (
            "T04",
            "Local",
            &[
                ("10.0.1.1", "Rl"),
                ("10.0.1.2", "Rl"),
                ("10.0.1.3", "STl"),
                ("10.0.1.4", "Tl"),
                ("10.0.1.5", "R"),
            ][..],
            "10.0.1.1:80 10.0.1.2:80 10.0.1.5:80 N",
            "10.0.1.1:80 10.0.1.2:80 N",
        ),
        (
            "T05",
            "Local",
            &[
                ("10.0.1.1", "STl"),
                ("10.0.1.2", "STl"),
                ("10.0.1.3", "Tl"),
                ("10.0.1.4", "ST"),
                ("10.0.1.5", "R"),
            ],
            "10.0.1.5:80 N",
            "10.0.1.1:80 10.0.1.2:80 N",
        ),
        (
            "T06",
            "Cluster",
            &[
                ("10.0.1.1", "STl"),
                ("10.0.1.2", "STl"),
                ("10.0.1.3", "Tl"),
                ("10.0.1.4", "ST"),
                ("10.0.1.5", ""),
            ],
            "10.0.1.1:80 10.0.1.2:80 10.0.1.4:80 N",
            "10.0.1.1:80 10.0.1.2:80 10.0.1.4:80 Y",
        ),
        ("T04 deleted", "Local", &[], "REJECT", "REJECT"),
    ] {
        let spec = json!({
            "type": "NodePort", "clusterIP": "172.20.1.1", "externalIPs": ["1.2.3.4"],
            "internalTrafficPolicy": "Cluster", "externalTrafficPolicy": policy,
        });
        let objects = [service("svc1", spec, &[]), slice("svc1", p80(), &endpoints(list))];
        try_all(name, &objects, &[(POD, "172.20.1.1:80", to_cluster), (CLIENT, "1.2.3.4:80", to_external)]);
    }
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

#[test]
fn t08_and_38_to_40_the_external_policy_local() {
    let objects = [balancer("Local"), slice("svc1", p80(), &two())];
    for to in ADDRESSES {
        try_all("T08", &objects, &[(POD, to, "10.180.0.1:80 10.180.2.1:80 N")]);
    }
    for to in &ADDRESSES[1..] {
        try_all("T08", &objects, &[(CLIENT, to, "10.180.2.1:80 N")]);
    }
    // 3.8: the node itself is inside, and hidden.
    try_all("3.8", &objects, &[(NODE_IP, "1.2.3.4:80", "10.180.0.1:80 10.180.2.1:80 Y")]);
}

#[test]
fn t09_the_external_policy_cluster() {
    let objects = [balancer("Cluster"), slice("svc1", p80(), &two())];
    try_all("T09", &objects, &[(POD, ADDRESSES[0], "10.180.0.1:80 10.180.2.1:80 N")]);
    for to in &ADDRESSES[1..] {
        let want = "10.180.0.1:80 10.180.2.1:80 Y";
        try_all("T09", &objects, &[(POD, to, want), (CLIENT, to, want)]);
    }
}

#[test]
fn t10_without_endpoints_all_is_rejected() {
    let [cluster, external, by_balancer, node_port] = ADDRESSES;
    let flows = [
        (POD, cluster, "REJECT"),
        (CLIENT, external, "REJECT"),
        (POD, node_port, "REJECT"),
        (CLIENT, node_port, "REJECT"),
        (POD, by_balancer, "REJECT"),
        (CLIENT, by_balancer, "REJECT"),
    ];
    try_all("T10", &[balancer("Cluster")], &flows);
    try_all("T10, Local", &[balancer("Local")], &flows);
}

#[test]
fn t11_cluster_ips() {
    let port =
        |name: &str, number: u16, protocol: &str| json!({"name": name, "port": number, "protocol": protocol});
    let second = json!([
        port("p80", 80, "TCP"),
        port("p443", 443, "TCP"),
        port("p53u", 53, "UDP"),
        port("p53t", 53, "TCP"),
        port("p53s", 53, "SCTP"),
    ]);
    let behind = json!([
        port("p80", 80, "TCP"),
        port("p443", 8443, "TCP"),
        port("p53u", 53, "UDP"),
        port("p53t", 5353, "TCP"),
        port("p53s", 53, "SCTP"),
    ]);
    let objects = [
        cidr(),
        service("svc1", json!({"clusterIP": "172.30.0.41"}), &[]),
        slice("svc1", p80(), &[endpoint("10.180.0.1", "Rl")]),
        service("svc2", json!({"clusterIP": "172.30.0.42", "ports": second}), &[]),
        slice("svc2", behind, &[endpoint("10.180.0.1", "Rl"), endpoint("10.180.2.1", "R")]),
    ];
    let both = |port: u16| format!("10.180.0.1:{port} 10.180.2.1:{port} N");
    let pod = "10.180.0.2";
    try_all(
        "T11",
        &objects,
        &[
            (pod, "172.30.0.41:80", "10.180.0.1:80 N"),
            ("10.180.0.1", "172.30.0.41:80", "10.180.0.1:80 Y"),
            (pod, "172.30.0.42:80", &both(80)),
            (pod, "172.30.0.42:443", &both(8443)),
            (pod, "172.30.0.42:53/tcp", &both(5353)),
            (pod, "172.30.0.42:53/udp", &both(53)),
            (pod, "172.30.0.42:53/SCTP", &both(53)),
            (pod, "172.30.0.42:80/udp", "REJECT"),
            (pod, "172.30.0.41:443", "REJECT"),
            (pod, "172.30.0.50:80", "DROP"),
            (pod, "172.31.0.50:80", "PASS"),
        ],
    );
    // Where nobody says where ClusterIPs are, those that are there are known all the same.
    let flows = [
        (pod, "172.30.0.41:80", "10.180.0.1:80 N"),
        (pod, "172.30.0.42:80/udp", "REJECT"),
        (pod, "172.30.0.41:443", "REJECT"),
        (pod, "172.30.0.50:80", "PASS"),
    ];
    try_all("T11, no ServiceCIDR", &objects[1..], &flows);
}

#[test]
fn t13_the_internal_policy() {
    let of = |policy: &str| {
        service("svc1", json!({"clusterIP": "172.30.1.1", "internalTrafficPolicy": policy}), &[])
    };
    let three = |flags: [&str; 3]| -> Vec<Value> {
        ["10.0.1.1", "10.0.1.2", "10.0.1.3"]
            .iter()
            .zip(flags)
            .map(|(addr, flags)| endpoint(addr, flags))
            .collect()
    };
    for (name, policy, flags, want) in [
        ("Cluster", "Cluster", ["Rl", "R", "R"], "10.0.1.1:80 10.0.1.2:80 10.0.1.3:80 N"),
        ("one local", "Local", ["Rl", "R", "R"], "10.0.1.1:80 N"),
        ("two local", "Local", ["Rl", "Rl", "R"], "10.0.1.1:80 10.0.1.2:80 N"),
        ("none local", "Local", ["R", "R", "R"], "DROP"),
    ] {
        let objects = [of(policy), slice("svc1", p80(), &three(flags))];
        try_all(&format!("T13 {name}"), &objects, &[(POD, "172.30.1.1:80", want)]);
    }
    try_all("T13 deleted", &[of("Local")], &[(POD, "172.30.1.1:80", "REJECT")]);
    // 0d: reached from outside, too, the policy of ClusterIPs stays what it is.
    let spec = json!({
        "type": "NodePort", "clusterIP": "172.30.1.1", "internalTrafficPolicy": "Local",
        "ports": [{"name": "p80", "port": 80, "nodePort": 3001}],
    });
    let objects = [service("svc1", spec, &[]), slice("svc1", p80(), &three(["R", "R", ""]))];
    let flows = [(POD, "172.30.1.1:80", "DROP"), (CLIENT, "192.168.0.2:3001", "10.0.1.1:80 10.0.1.2:80 Y")];
    try_all("0d", &objects, &flows);
}

#[test]
fn source_ranges_are_for_load_balancers_alone() {
    let of = |ranges: Value| {
        let spec = json!({
            "type": "LoadBalancer", "clusterIP": "172.30.0.44", "externalIPs": ["192.168.99.22"],
            "loadBalancerSourceRanges": ranges,
            "ports": [{"name": "p80", "port": 80, "protocol": "TCP", "nodePort": 3004}],
        });
        [service("svc4", spec, &["5.6.7.8"]), slice("svc4", p80(), &[endpoint("10.180.0.1", "R")])]
    };
    let (served, kept) = ("10.180.0.1:80 Y", "10.180.0.1:80 N");
    for (name, ranges, admitted, refused) in [
        ("with a blank", json!([" 203.0.113.0/25"]), served, "DROP"),
        ("an unreadable one beside", json!(["203.0.113.0/25", "203.0.113.0/99"]), served, "DROP"),
        ("none can be read", json!(["nowhere"]), served, served),
        ("of the other family", json!(["2001:db8::/32"]), served, served),
    ] {
        let flows = [
            (CLIENT, "5.6.7.8:80", admitted),
            (BLOCKED, "5.6.7.8:80", refused),
            (POD, "5.6.7.8:80", refused),
            (BLOCKED, "192.168.99.22:80", served),
            (BLOCKED, "192.168.0.2:3004", served),
            (POD, "172.30.0.44:80", kept),
        ];
        try_all(name, &of(ranges), &flows);
    }
    let node = [(NODE_IP, "5.6.7.8:80", "DROP")];
    try_all("3.13: the node is in none", &of(json!(["203.0.113.0/25"])), &node);
    let node = [(NODE_IP, "5.6.7.8:80", "10.180.0.1:80 Y")];
    try_all("3.13: the node is in one", &of(json!(["192.168.0.0/24"])), &node);
}

#[test]
fn what_is_no_service_here_is_the_kernels() {
    let endpoints = [endpoint("10.0.1.1", "R")];
    let labelled = |label: &str, value: &str| {
        let mut service = service("svc1", json!({"clusterIP": "172.30.1.1"}), &[]);
        service["metadata"]["labels"] = json!({label: value});
        service
    };
    for (name, service) in [
        ("27 headless", service("svc1", json!({"clusterIP": "None", "externalIPs": ["172.30.1.1"]}), &[])),
        ("27 without a ClusterIP", service("svc1", json!({"externalIPs": ["172.30.1.1"]}), &[])),
        ("28 ExternalName", service("svc1", json!({"type": "ExternalName", "clusterIP": "172.30.1.1"}), &[])),
        ("1.14 another proxy's", labelled("service.kubernetes.io/service-proxy-name", "other")),
        ("1.14 another proxy's, unnamed", labelled("service.kubernetes.io/service-proxy-name", "")),
        ("1.15 the label headless", labelled("service.kubernetes.io/headless", "")),
        (
            "1.12 an unknown protocol",
            service(
                "svc1",
                json!({"clusterIP": "172.30.1.1", "ports": [{"name": "p80", "port": 80, "protocol": "DCCP"}]}),
                &[],
            ),
        ),
    ] {
        try_all(name, &[service, slice("svc1", p80(), &endpoints)], &[(POD, "172.30.1.1:80", "PASS")]);
    }
}

#[test]
fn t49_addresses_of_load_balancers_that_want_the_packets_themselves() {
    let of = |mode: Value| {
        let mut service = service("svc1", json!({"type": "LoadBalancer", "clusterIP": "172.30.1.1"}), &[]);
        service["status"] = json!({"loadBalancer": {"ingress": [
            {"ip": "1.2.3.4", "ipMode": mode}, {"hostname": "lb.example.com"},
        ]}});
        [service, slice("svc1", p80(), &[endpoint("10.0.1.1", "R")])]
    };
    let off = CONFIG.replace("featureGates: {", "featureGates: {LoadBalancerIPMode: false, ");
    for (name, config, mode, want) in [
        ("Proxy", CONFIG, json!("Proxy"), "PASS"),
        ("VIP", CONFIG, json!("VIP"), "10.0.1.1:80 Y"),
        ("nothing said", CONFIG, Value::Null, "10.0.1.1:80 Y"),
        ("Proxy, the gate off", &*off, json!("Proxy"), "10.0.1.1:80 Y"),
    ] {
        try_with(name, config, &[NODE_IP], &of(mode), &[(CLIENT, "1.2.3.4:80", want)]);
    }
}

#[test]
fn external_ips_are_denied_unless_they_are_allowed() {
    let objects = [balancer("Cluster"), slice("svc1", p80(), &two())];
    let external = "192.168.99.11:80";
    for (name, gates, want) in [
        ("nothing said", "{}", "PASS"),
        ("allowed", "{AllowServiceExternalIPs: true}", "10.180.0.1:80 10.180.2.1:80 Y"),
        ("off", "{AllowServiceExternalIPs: false}", "PASS"),
    ] {
        let config = CONFIG.replace("{AllowServiceExternalIPs: true}", gates);
        try_with(name, &config, &[NODE_IP], &objects, &[(CLIENT, external, want)]);
    }
    let config = CONFIG.replace("{AllowServiceExternalIPs: true}", "{}");
    let steps = ask(&config, &[NODE_IP], &objects, CLIENT, external).steps.join("\n");
    assert!(steps.contains("external IPs count only where they are allowed"), "{steps}");
}

#[test]
fn node_ports_are_reached_by_the_addresses_that_the_configuration_says() {
    let objects = [balancer("Cluster"), slice("svc1", p80(), &two())];
    let served = "10.180.0.1:80 10.180.2.1:80 Y";
    let both = ["192.168.0.2", "192.168.1.2"];
    for (name, mode, addresses, first, second) in [
        ("0g: primary in nftables", "nftables", "null", served, "PASS"),
        ("0g: all in ipvs", "ipvs", "null", served, served),
        ("all in iptables", "iptables", "null", served, served),
        ("4.6: one network", "nftables", "[192.168.0.0/24]", served, "PASS"),
        ("the other network", "ipvs", "[192.168.1.0/24]", "PASS", served),
        ("all networks", "nftables", "[0.0.0.0/0]", served, served),
        ("primary in ipvs", "ipvs", "[primary]", served, "PASS"),
    ] {
        let config =
            CONFIG.replace("mode: nftables", &format!("mode: {mode}\nnodePortAddresses: {addresses}"));
        let flows = [(CLIENT, "192.168.0.2:3001", first), (CLIENT, "192.168.1.2:3001", second)];
        try_with(name, &config, &both, &objects, &flows);
    }
    // Of the Node object where nothing else is said.
    let node = json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE.to_lowercase()},
        "status": {"addresses": [{"type": "InternalIP", "address": "192.168.0.7"}]},
    });
    let objects = [balancer("Cluster"), slice("svc1", p80(), &two()), node];
    let flows = [(CLIENT, "192.168.0.7:3001", served), (CLIENT, "192.168.0.2:3001", "PASS")];
    try_with("the Node's", CONFIG, &[], &objects, &flows);
}

#[test]
fn topology_hints_keep_traffic_where_it_is() {
    let node = |labels: Value| json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE.to_lowercase(), "labels": labels}});
    let hinted = |addr: &str, flags: &str, zones: &[&str], nodes: &[&str]| {
        let mut endpoint = endpoint(addr, flags);
        let names = |list: &[&str]| -> Vec<Value> { list.iter().map(|name| json!({"name": name})).collect() };
        endpoint["hints"] = json!({"forZones": names(zones), "forNodes": names(nodes)});
        endpoint
    };
    let zone = || node(json!({"topology.kubernetes.io/zone": "zone-a"}));
    let here: &[&str] = &[&NODE.to_lowercase()];
    let all = "10.0.1.1:80 10.0.1.2:80 N";
    let no_nodes = CONFIG.replace("featureGates: {", "featureGates: {PreferSameTrafficDistribution: false, ");
    let no_zones = CONFIG.replace("featureGates: {", "featureGates: {TopologyAwareHints: false, ");
    for (name, config, node, list, want) in [
        (
            "2.8",
            CONFIG,
            zone(),
            [hinted("10.0.1.1", "R", &["zone-a"], &[]), hinted("10.0.1.2", "R", &["zone-b"], &[])],
            "10.0.1.1:80 N",
        ),
        (
            "2.8 one without",
            CONFIG,
            zone(),
            [hinted("10.0.1.1", "R", &["zone-a"], &[]), hinted("10.0.1.2", "R", &[], &[])],
            all,
        ),
        (
            "2.8 none for here",
            CONFIG,
            zone(),
            [hinted("10.0.1.1", "R", &["zone-b"], &[]), hinted("10.0.1.2", "R", &["zone-c"], &[])],
            all,
        ),
        (
            "2.10 no zone",
            CONFIG,
            node(json!({})),
            [hinted("10.0.1.1", "R", &["zone-a"], &[]), hinted("10.0.1.2", "R", &["zone-b"], &[])],
            all,
        ),
        (
            "2.10 unready without",
            CONFIG,
            zone(),
            [hinted("10.0.1.1", "R", &["zone-a"], &[]), hinted("10.0.1.2", "", &[], &[])],
            "10.0.1.1:80 N",
        ),
        (
            "2.3 terminating: no topology",
            CONFIG,
            zone(),
            [hinted("10.0.1.1", "ST", &["zone-a"], &[]), hinted("10.0.1.2", "ST", &["zone-b"], &[])],
            all,
        ),
        (
            "2.9",
            CONFIG,
            zone(),
            [hinted("10.0.1.1", "R", &["zone-a"], &["other"]), hinted("10.0.1.2", "R", &["zone-b"], here)],
            "10.0.1.2:80 N",
        ),
        (
            "2.9 no node is this one",
            CONFIG,
            zone(),
            [hinted("10.0.1.1", "R", &["zone-a"], &["x"]), hinted("10.0.1.2", "R", &["zone-b"], &["y"])],
            "10.0.1.1:80 N",
        ),
        (
            "2.9 the gate off",
            &no_nodes,
            zone(),
            [hinted("10.0.1.1", "R", &["zone-a"], &["other"]), hinted("10.0.1.2", "R", &["zone-b"], here)],
            "10.0.1.1:80 N",
        ),
        (
            "17 the gate off",
            &no_zones,
            zone(),
            [hinted("10.0.1.1", "R", &["zone-a"], &[]), hinted("10.0.1.2", "R", &["zone-b"], &[])],
            all,
        ),
    ] {
        let objects =
            [node, service("svc1", json!({"clusterIP": "172.30.1.1"}), &[]), slice("svc1", p80(), &list)];
        try_with(name, config, &[NODE_IP], &objects, &[(POD, "172.30.1.1:80", want)]);
    }
    let list = [hinted("10.0.1.1", "Rl", &["zone-b"], &[]), hinted("10.0.1.2", "R", &["zone-a"], &[])];
    let spec = json!({"clusterIP": "172.30.1.1", "internalTrafficPolicy": "Local"});
    let objects = [zone(), service("svc1", spec, &[]), slice("svc1", p80(), &list)];
    try_all("2.10 Local", &objects, &[(POD, "172.30.1.1:80", "10.0.1.1:80 N")]);
}

#[test]
fn masquerade_of_cluster_ips_goes_by_who_is_local() {
    let objects = [
        service("svc1", json!({"clusterIP": "172.30.1.1"}), &[]),
        slice("svc1", p80(), &[endpoint("10.0.1.1", "R")]),
    ];
    let (kept, hidden) = ("10.0.1.1:80 N", "10.0.1.1:80 Y");
    let none = CONFIG.replace("clusterCIDR: 10.0.0.0/8\n", "");
    let all = CONFIG.replace("mode: nftables", "mode: nftables\nnftables: {masqueradeAll: true}");
    let by_node = CONFIG.replace("clusterCIDR: 10.0.0.0/8", "detectLocalMode: NodeCIDR");
    let node = json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE.to_lowercase()}, "spec": {"podCIDRs": ["10.0.0.0/24"]},
    });
    for (name, config, pod, other, outside) in [
        ("3.5 by clusterCIDR", CONFIG, kept, kept, hidden),
        ("3.5 no detector", &none, kept, kept, kept),
        ("3.5 masqueradeAll", &all, hidden, hidden, hidden),
        ("3.6 by podCIDRs", &by_node, kept, hidden, hidden),
    ] {
        let objects = [&objects[..], std::slice::from_ref(&node)].concat();
        let flows = [
            (POD, "172.30.1.1:80", pod),
            ("10.9.0.2", "172.30.1.1:80", other),
            (CLIENT, "172.30.1.1:80", outside),
        ];
        try_with(name, config, &[NODE_IP], &objects, &flows);
    }
    try_all("3.5 the node", &objects, &[(NODE_IP, "172.30.1.1:80", hidden)]);
}

#[test]
fn both_families_stand_side_by_side() {
    let spec = json!({
        "type": "NodePort", "clusterIP": "172.30.1.1", "clusterIPs": ["172.30.1.1", "fd00:30::1"],
        "externalIPs": ["192.168.99.11", "2001:db8:99::11"],
        "ports": [{"name": "p80", "port": 80, "nodePort": 3001}],
    });
    let objects = [
        service("svc1", spec, &[]),
        slice("svc1", p80(), &[endpoint("010.0.001.1", "R")]),
        slice_of("IPv6", "svc1", p80(), &[endpoint("fd00:10::1", "R"), endpoint("10.9.9.9", "R")]),
        slice_of("FQDN", "svc1", p80(), &[endpoint("example.com", "R")]),
    ];
    let config = CONFIG.replace("10.0.0.0/8", "\"10.0.0.0/8,fd00:10::/64\"");
    let flows = [
        (POD, "172.30.1.1:80", "10.0.1.1:80 N"),
        ("fd00:10::2", "[fd00:30::1]:80", "[fd00:10::1]:80 N"),
        ("2001:db8::7", "[fd00:30::1]:80", "[fd00:10::1]:80 Y"),
        (CLIENT, "192.168.99.11:80", "10.0.1.1:80 Y"),
        ("2001:db8::7", "[2001:db8:99::11]:80", "[fd00:10::1]:80 Y"),
        ("2001:db8::7", "[2001:db8::1]:3001", "[fd00:10::1]:80 Y"),
        (CLIENT, "192.168.0.2:3001", "10.0.1.1:80 Y"),
    ];
    try_with("1.21", &config, &[NODE_IP, "2001:db8::1"], &objects, &flows);
    // 1.18: what is of a family without a ClusterIP is left out.
    let spec = json!({"clusterIP": "172.30.1.1", "externalIPs": ["2001:db8:99::11"]});
    let objects = [service("svc1", spec, &[]), objects[1].clone(), objects[2].clone()];
    try_with("1.18", &config, &[NODE_IP], &objects, &[("2001:db8::7", "[2001:db8:99::11]:80", "PASS")]);
}

#[test]
fn a_port_of_both_protocols_is_two() {
    let port = |name: &str, protocol: &str| json!({"name": name, "port": 53, "protocol": protocol, "nodePort": 3053});
    let spec =
        json!({"type": "NodePort", "clusterIP": "172.30.1.1", "ports": [port("t", "TCP"), port("u", "UDP")]});
    let objects = [
        service("svc1", spec, &[]),
        slice(
            "svc1",
            json!([{"name": "t", "port": 5353, "protocol": "TCP"}, {"name": "u", "port": 5454, "protocol": "UDP"}, {"port": 1}]),
            &[endpoint("10.0.1.1", "R")],
        ),
    ];
    let flows = [
        (POD, "172.30.1.1:53/tcp", "10.0.1.1:5353 N"),
        (POD, "172.30.1.1:53/udp", "10.0.1.1:5454 N"),
        (CLIENT, "192.168.0.2:3053/tcp", "10.0.1.1:5353 Y"),
        (CLIENT, "192.168.0.2:3053/udp", "10.0.1.1:5454 Y"),
    ];
    try_all("1.1, 77", &objects, &flows);
}

#[test]
fn t32_node_ports_of_every_protocol_and_address() {
    let port = |protocol: &str| json!([{"name": "p80", "port": 80, "protocol": protocol, "nodePort": 3001}]);
    let behind = |protocol: &str| json!([{"name": "p80", "port": 80, "protocol": protocol}]);
    let config = CONFIG.replace("mode: nftables", "mode: ipvs");
    let nodes = ["192.168.0.2", "192.168.1.2", "2001:db8::1"];
    for protocol in ["TCP", "UDP", "SCTP"] {
        for (policy, local_only) in [("Cluster", false), ("Local", true)] {
            let spec = json!({
                "type": "NodePort", "clusterIP": "172.30.1.1", "clusterIPs": ["172.30.1.1", "fd00:30::1"],
                "externalTrafficPolicy": policy, "ports": port(protocol),
            });
            let service = service("svc1", spec, &[]);
            let pods = [endpoint("10.180.0.1", "Rl"), endpoint("10.180.2.1", "R")];
            let pods6 = [endpoint("fd00:10::1", "Rl"), endpoint("fd00:10::2", "R")];
            let with = [
                service.clone(),
                slice("svc1", behind(protocol), &pods),
                slice_of("IPv6", "svc1", behind(protocol), &pods6),
            ];
            let to = |addr: &str| format!("{addr}/{protocol}");
            let (first, second) = (to("192.168.0.2:3001"), to("192.168.1.2:3001"));
            let (third, cluster) = (to("[2001:db8::1]:3001"), to("172.30.1.1:80"));
            let (served, served6) = if local_only {
                ("10.180.0.1:80 N", "[fd00:10::1]:80 N")
            } else {
                ("10.180.0.1:80 10.180.2.1:80 Y", "[fd00:10::1]:80 [fd00:10::2]:80 Y")
            };
            let flows = [
                (CLIENT, &*first, served),
                (CLIENT, &*second, served),
                ("2001:db8:7::7", &*third, served6),
                (POD, &*cluster, "10.180.0.1:80 10.180.2.1:80 N"),
            ];
            try_with(&format!("32 {protocol} {policy}"), &config, &nodes, &with, &flows);
            let flows = flows.map(|(from, to, _)| (from, to, "REJECT"));
            try_with(&format!("32 {protocol} {policy}, no endpoints"), &config, &nodes, &[service], &flows);
        }
    }
}

#[test]
fn t35_to_t37_and_44_external_ips_and_the_ports_that_have_them_in_common() {
    let port = |number: u16| json!({"name": format!("p{number}"), "port": number, "protocol": "TCP"});
    let of = |policy: &str, numbers: &[u16]| {
        let ports: Vec<_> = numbers.iter().map(|number| port(*number)).collect();
        let spec = json!({
            "type": "NodePort", "clusterIP": "172.30.1.1", "externalIPs": ["50.60.70.81", "50.60.70.82"],
            "externalTrafficPolicy": policy, "ports": ports,
        });
        service("svc1", spec, &[])
    };
    let pods = [endpoint("10.180.0.1", "Rl"), endpoint("10.180.2.1", "R")];
    let slice = slice("svc1", json!([port(80), port(443)]), &pods);
    let (both, local) = ("10.180.0.1:80 10.180.2.1:80 Y", "10.180.0.1:80 N");
    let flows = |want| [(CLIENT, "50.60.70.81:80", want), (CLIENT, "50.60.70.82:80", want)];
    try_all("35", &[of("Cluster", &[80])], &flows("REJECT"));
    try_all("36", &[of("Cluster", &[80]), slice.clone()], &flows(both));
    try_all("37", &[of("Local", &[80]), slice.clone()], &flows(local));
    for (numbers, first, second) in [
        (&[80, 443][..], "10.180.0.1:80 N", "10.180.0.1:443 N"),
        (&[80], "10.180.0.1:80 N", "PASS"),
        (&[443], "PASS", "10.180.0.1:443 N"),
    ] {
        let flows = [(CLIENT, "50.60.70.81:80", first), (CLIENT, "50.60.70.81:443", second)];
        try_all(&format!("44 {numbers:?}"), &[of("Local", numbers), slice.clone()], &flows);
    }
    try_all("44 []", &[slice], &[(CLIENT, "50.60.70.81:80", "PASS"), (POD, "172.30.1.1:80", "PASS")]);
}
