//! Who gets a packet: policies, terminating endpoints, topology.

use super::*;

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
