//! What is a service: addresses, ports, families, and who may use them.

use super::*;

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
