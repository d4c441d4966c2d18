use kube::Resource as _;
use serde_json::json;

use super::*;

fn read<T: Reduced>(value: serde_json::Value) -> T {
    let watched: Watched<T> = serde_json::from_str(&value.to_string()).unwrap();
    watched.object.unwrap()
}

fn faults(faults: &Faults) -> Vec<String> {
    faults.iter().map(ToString::to_string).collect()
}

fn ips(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

#[test]
fn a_service_is_reduced_to_what_is_needed() {
    let service: Service = read(json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {
            "name": "web", "namespace": "shop", "uid": "u1", "resourceVersion": "7",
            "creationTimestamp": "2026-01-02T03:04:05Z",
            "managedFields": [{"fieldsV1": {"f:spec": {}}}],
            "labels": {"app": "web"},
            "annotations": {"weir.dev/scheduler": "wlc", "other": "x"},
        },
        "spec": {
            "type": "LoadBalancer",
            "clusterIP": "172.30.0.41", "clusterIPs": ["172.30.0.41", "fd00::41"],
            "externalIPs": ["192.168.99.11"],
            "loadBalancerSourceRanges": [" 203.0.113.0/25", "10.0.0.1/8 "],
            "loadBalancerClass": "example.com/weir",
            "sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60}},
            "externalTrafficPolicy": "Local", "internalTrafficPolicy": "Cluster",
            "healthCheckNodePort": 30000,
            "selector": {"app": "web"},
            "ports": [{"name": "p80", "protocol": "TCP", "port": 80, "targetPort": "http", "nodePort": 3001}],
        },
        "status": {"loadBalancer": {"ingress": [
            {"ip": "1.2.3.4", "ipMode": "VIP"}, {"ip": "5.6.7.8", "ipMode": "Proxy"}, {"hostname": "lb.example.com"},
        ]}},
    }));
    assert_eq!(faults(&service.faults), [""; 0]);
    assert_eq!(service.key.to_string(), "shop/web");
    assert_eq!(service.created, Some("2026-01-02T03:04:05Z".parse().unwrap()));
    assert_eq!(service.kind, ServiceKind::LoadBalancer);
    assert_eq!(*service.cluster_ips, ips(&["172.30.0.41", "fd00::41"]));
    assert_eq!(*service.external_ips, ips(&["192.168.99.11"]));
    let ingress: Vec<_> =
        service.ingress.iter().map(|ingress| (ingress.ip.to_string(), ingress.proxy)).collect();
    assert_eq!(ingress, [("1.2.3.4".into(), false), ("5.6.7.8".into(), true)]);
    let ranges: Vec<_> = service.source_ranges.iter().map(ToString::to_string).collect();
    assert_eq!(ranges, ["203.0.113.0/25", "10.0.0.0/8"]);
    assert_eq!(service.class.as_deref(), Some("example.com/weir"));
    assert_eq!(service.affinity_s, Some(60));
    assert!(service.external_local && !service.internal_local);
    assert_eq!(service.health_check_port.map(Port::number), Some(30000));
    assert_eq!(service.annotations.len(), 1);
    let [port] = &*service.ports else { panic!("{:?}", service.ports) };
    assert_eq!((&*port.name, port.protocol), ("p80", Protocol::Tcp));
    assert_eq!((port.port.number(), port.node_port.map(Port::number)), (80, Some(3001)));
}

#[test]
fn what_watching_needs_is_kept_beside_the_object() {
    let text = json!({"metadata": {"name": "web", "namespace": "shop", "resourceVersion": "7"}}).to_string();
    let watched: Watched<Service> = serde_json::from_str(&text).unwrap();
    assert_eq!(watched.meta().name.as_deref(), Some("web"));
    assert_eq!(watched.meta().namespace.as_deref(), Some("shop"));
    assert_eq!(watched.meta().resource_version.as_deref(), Some("7"));
    assert_eq!(Watched::<EndpointSlice>::url_path(&(), None), "/apis/discovery.k8s.io/v1/endpointslices");
    assert_eq!(Watched::<Service>::url_path(&(), None), "/api/v1/services");
    assert_eq!(Watched::<ServiceCidr>::url_path(&(), None), "/apis/networking.k8s.io/v1/servicecidrs");
}

#[test]
fn a_headless_service_has_no_addresses() {
    for (name, spec) in [
        ("None", json!({"clusterIP": "None"})),
        ("None beside a list", json!({"clusterIP": "None", "clusterIPs": ["10.0.0.1"]})),
        ("None in the list", json!({"clusterIPs": ["None"]})),
        ("empty", json!({"clusterIP": ""})),
        ("nothing", json!({})),
        ("null", json!({"clusterIP": null, "clusterIPs": null})),
    ] {
        let service: Service = read(json!({"metadata": {"name": "web"}, "spec": spec}));
        assert!(service.cluster_ips.is_empty(), "{name}");
        assert!(service.faults.is_empty(), "{name}: {:?}", service.faults);
    }
}

#[test]
fn a_bad_field_of_a_service_is_left_out_alone() {
    for (name, spec, want) in [
        ("no mapping", json!([1]), "spec: is not a mapping"),
        ("type", json!({"type": "Fancy"}), "spec.type: `Fancy` is unknown"),
        ("address", json!({"clusterIP": "1.2.3"}), "spec.clusterIP: `1.2.3` is no IP address"),
        ("number as address", json!({"clusterIPs": [7]}), "spec.clusterIPs[0]: 7 is no IP address"),
        ("addresses", json!({"externalIPs": {}}), "spec.externalIPs: is not a list"),
        ("port", json!({"ports": [{"port": 70000}]}), "spec.ports[0].port: 70000 is no port (1 to 65535)"),
        ("no port", json!({"ports": [{"name": "x"}]}), "spec.ports[0].port: is missing"),
        (
            "port as text",
            json!({"ports": [{"port": "80"}]}),
            "spec.ports[0].port: `80` is no port (1 to 65535)",
        ),
        (
            "protocol",
            json!({"ports": [{"port": 80, "protocol": "tcp"}]}),
            "spec.ports[0].protocol: `tcp` is none of TCP, UDP and SCTP",
        ),
        ("port is text", json!({"ports": ["80"]}), "spec.ports[0]: is not a mapping"),
        (
            "range",
            json!({"loadBalancerSourceRanges": ["10.0.0.0/33"]}),
            "spec.loadBalancerSourceRanges[0]: `10.0.0.0/33` is no network (address/length)",
        ),
        (
            "timeout",
            json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 0}}}),
            "spec.sessionAffinityConfig.clientIP.timeoutSeconds: 0 is not 1 to 86400; 10800 instead",
        ),
        ("policy", json!({"externalTrafficPolicy": true}), "spec.externalTrafficPolicy: true is unknown"),
    ] {
        let service: Service = read(json!({"metadata": {"name": "web"}, "spec": spec}));
        assert_eq!(faults(&service.faults).first().map(String::as_str), Some(want), "{name}");
    }
}

#[test]
fn only_some_faults_of_an_object_are_kept_and_all_are_counted() {
    let ports: Vec<_> = (0..100).map(|_| json!({"port": 0})).collect();
    let service: Service = read(json!({"metadata": {"name": "web"}, "spec": {"ports": ports}}));
    assert_eq!((service.faults.iter().count(), service.faults.count()), (FAULTS_KEPT, 100));
}

#[test]
fn a_service_without_a_name_is_undecodable_and_the_list_goes_on() {
    let list = json!({"metadata": {}, "items": [
        {"metadata": {"namespace": "shop"}}, 7, {"metadata": {"name": ["x"]}}, {"metadata": {"name": "web"}},
    ]});
    let list: kube::core::ObjectList<Watched<Service>> = serde_json::from_str(&list.to_string()).unwrap();
    let names: Vec<_> =
        list.items.into_iter().map(|item| item.object.map(|service| service.key.to_string())).collect();
    let none = |namespace: &str| Err(Undecodable { kind: "Service", namespace: namespace.into() });
    assert_eq!(names, [none("shop"), none(""), none(""), Ok("default/web".into())]);
}

#[test]
fn an_endpoint_slice_is_reduced_to_what_is_needed() {
    let slice: EndpointSlice = read(json!({
        "metadata": {
            "name": "web-1", "namespace": "shop", "labels": {"kubernetes.io/service-name": "web", "x": "y"},
            "annotations": {"endpoints.kubernetes.io/last-change-trigger-time": "2026-01-02T03:04:05.5Z"},
        },
        "addressType": "IPv4",
        "ports": [
            {"name": "p80", "port": 8080, "protocol": "TCP"}, {"name": "", "port": 53, "protocol": "UDP"},
            {"port": 1}, {"name": "all"}, {"name": "zero", "port": 0},
        ],
        "endpoints": [
            {"addresses": ["10.0.0.1", "10.0.0.9"], "conditions": {"ready": true}, "nodeName": "n1",
             "targetRef": {"kind": "Pod", "name": "web-0"}, "hostname": "web-0",
             "hints": {"forZones": [{"name": "a"}, {"name": "b"}], "forNodes": [{"name": "n1"}]}},
            {"addresses": ["010.0.00.2"]},
            {"addresses": ["10.0.0.3"], "conditions": {"ready": false, "serving": true, "terminating": true}},
            {"addresses": []}, {"addresses": ["fd00::1"]}, {"addresses": ["ten"]}, 7,
        ],
    }));
    assert_eq!((slice.service.as_deref(), slice.family), (Some("web"), Some(Family::V4)));
    assert_eq!(slice.triggered, Some("2026-01-02T03:04:05.5Z".parse().unwrap()));
    let ports: Vec<_> = slice.ports.iter().map(|port| (&*port.name, port.port.number())).collect();
    assert_eq!(ports, [("p80", 8080), ("", 53)]);
    let addresses: Vec<_> = slice.endpoints.iter().map(|endpoint| endpoint.addr).collect();
    assert_eq!(addresses, ips(&["10.0.0.1", "10.0.0.2", "10.0.0.3"]));
    let [first, second, third] = &*slice.endpoints else { panic!("{:?}", slice.endpoints) };
    assert_eq!(first.node.as_deref(), Some("n1"));
    let extra = first.extra.as_ref().unwrap();
    assert_eq!(extra.hostname.as_deref(), Some("web-0"));
    assert_eq!((extra.zones.len(), extra.nodes.len()), (2, 1));
    assert_eq!(second.conditions, Conditions { ready: true, serving: true, terminating: false });
    assert_eq!(third.conditions, Conditions { ready: false, serving: true, terminating: true });
    assert_eq!(
        faults(&slice.faults),
        [
            "ports[2].name: is missing (the API server makes it \"\" where it is left out)",
            "endpoints[3].addresses: is empty",
            "endpoints[4].addresses[0]: fd00::1 is not of the slice's addressType",
            "endpoints[5].addresses[0]: `ten` is no IP address",
            "endpoints[6]: is not a mapping",
            "endpoints[6].addresses: is empty",
        ]
    );
    assert_eq!(slice.faults.iter().filter(|fault| fault.kind == FaultKind::WrongFamily).count(), 1);
}

#[test]
fn a_slice_of_names_has_no_endpoints() {
    for kind in ["FQDN", "IPv5"] {
        let slice: EndpointSlice = read(json!({
            "metadata": {"name": "web-1"}, "addressType": kind, "endpoints": [{"addresses": ["web.example.com"]}],
        }));
        assert!(slice.endpoints.is_empty() && slice.family.is_none(), "{kind}");
    }
}

#[test]
fn a_node_is_reduced_to_what_is_needed() {
    let node: Node = read(json!({
        "metadata": {"name": "n1", "labels": {"topology.kubernetes.io/zone": "a"}},
        "spec": {"podCIDR": "10.1.0.0/24", "podCIDRs": ["10.1.0.0/24", "fd00:1::/64"]},
        "status": {"addresses": [
            {"type": "Hostname", "address": "n1"}, {"type": "InternalIP", "address": "192.168.0.2"},
            {"type": "ExternalIP", "address": "198.51.100.2"}, {"type": "InternalIP", "address": "2001:db8::1"},
        ]},
    }));
    assert_eq!((&*node.name, node.zone.as_deref(), node.leaving), ("n1", Some("a"), false));
    assert_eq!(node.internal, ips(&["192.168.0.2", "2001:db8::1"]));
    assert_eq!(node.external, ips(&["198.51.100.2"]));
    assert_eq!(node.pod_cidrs.len(), 2);
    for (name, more) in [
        (
            "marked",
            json!({"metadata": {"name": "n"}, "spec": {"taints": [{"key": "ToBeDeletedByClusterAutoscaler"}]}}),
        ),
        ("deleted", json!({"metadata": {"name": "n", "deletionTimestamp": "2026-01-02T03:04:05Z"}})),
    ] {
        assert!(read::<Node>(more).leaving, "{name}");
    }
}

#[test]
fn a_service_cidr_is_its_networks() {
    let cidr: ServiceCidr =
        read(json!({"metadata": {"name": "kubernetes"}, "spec": {"cidrs": ["172.30.0.0/16", "x"]}}));
    assert_eq!(cidr.cidrs, ["172.30.0.0/16".parse().unwrap()]);
    assert_eq!(faults(&cidr.faults), ["spec.cidrs[1]: `x` is no network (address/length)"]);
}

#[test]
fn addresses_are_read_as_go_reads_them() {
    for (text, want) in [
        ("10.0.0.1", Some("10.0.0.1")),
        ("010.000.00.08", Some("10.0.0.8")),
        ("256.0.0.1", None),
        ("10.0.0", None),
        ("10.0.0.0.1", None),
        ("10.0.0.+1", None),
        ("", None),
        ("::ffff:10.0.0.1", Some("10.0.0.1")),
        ("::ffff:010.0.0.1", Some("10.0.0.1")),
        ("64:ff9b::192.0.2.033", Some("64:ff9b::c000:221")),
        ("FD00::1", Some("fd00::1")),
        ("fe80::1%eth0", None),
        (":10.0.0.1", None),
    ] {
        assert_eq!(sloppy::address(text), want.map(|want| want.parse().unwrap()), "{text}");
    }
    for (text, want) in [
        (" 203.0.113.0/25\n", Some("203.0.113.0/25")),
        ("010.1.2.3/08", Some("10.0.0.0/8")),
        ("::ffff:10.0.0.0/104", Some("10.0.0.0/8")),
        ("::ffff:10.0.0.0/8", None),
        ("10.0.0.0/33", None),
        ("10.0.0.0", None),
        ("10.0.0.0/-1", None),
        ("fd00::/8", Some("fd00::/8")),
    ] {
        assert_eq!(sloppy::network(text), want.map(|want| want.parse().unwrap()), "{text}");
    }
}

#[test]
fn an_endpoint_is_small() {
    assert!(size_of::<Endpoint>() <= 48, "{}", size_of::<Endpoint>());
}
