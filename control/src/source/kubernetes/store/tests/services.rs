//! What one Service comes to.

use super::*;

/// The services that one Service comes to, with its endpoints, where it has annotations.
fn made(
    spec: Value,
    annotations: &[(&str, &str)],
    slices: &[EndpointSlice],
) -> (Vec<model::Service>, Vec<String>) {
    let mut service = service("web", spec);
    let text = |(key, value): &(&str, &str)| (format!("weir.dev/{key}").into(), (*value).into());
    service.annotations = annotations.iter().map(text).collect();
    let mut store = store();
    store.put(service).put_all(slices.iter().cloned()).sync();
    let output = store.take_change().unwrap();
    let faults = store.faults().flat_map(|(_, faults)| faults.iter().map(ToString::to_string)).collect();
    (output.change.put, faults)
}

/// T22: every address has the affinity, and all have it in common.
#[test]
fn affinity_is_that_of_the_service_port() {
    let spec = |affinity: Value| {
        let mut spec = json!({
            "type": "NodePort", "externalIPs": ["1.2.3.4"], "externalTrafficPolicy": "Local",
            "ports": [{"port": 80, "nodePort": 3001}],
        });
        merge(&mut spec, affinity);
        spec
    };
    for (name, affinity, want) in [
        ("none", json!({}), None),
        ("None", json!({"sessionAffinity": "None"}), None),
        ("by default", json!({"sessionAffinity": "ClientIP"}), Some(10_800)),
        (
            "said",
            json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 5}}}),
            Some(5),
        ),
    ] {
        let (services, _) = made(spec(affinity), &[], &[]);
        assert_eq!(services.len(), 3, "{name}");
        for service in services {
            let timeout = service.persistence.map(|persistence| persistence.timeout_s.get());
            assert_eq!(
                (timeout, service.group.as_deref()),
                (want, Some("ns/web")),
                "{name}: {}",
                service.name
            );
        }
    }
}

#[test]
fn a_datagram_flow_stays_with_an_endpoint_that_still_answers() {
    let conditions = |ready: bool, serving: bool, terminating: bool| {
        json!({
            "nodeName": "n1", "conditions": {"ready": ready, "serving": serving, "terminating": terminating},
        })
    };
    let mut list = slice(
        "s",
        "web",
        &[
            ("10.0.0.1", conditions(true, true, false)),
            ("10.0.0.2", conditions(false, true, true)),
            ("10.0.0.3", conditions(false, false, true)),
            ("10.0.0.4", conditions(false, true, false)),
        ],
    );
    let of = |protocol: &str, scheduler: &str, list: &EndpointSlice| {
        let spec = json!({"ports": [{"port": 80, "protocol": protocol}]});
        let (services, _) = made(spec, &[("scheduler", scheduler)], std::slice::from_ref(list));
        let [service] = &*services else { panic!("{services:?}") };
        let mut weights: Vec<_> = service
            .backends
            .iter()
            .map(|backend| (backend.addr.ip().to_string(), backend.weight.0))
            .collect();
        weights.sort();
        let last =
            |(ip, weight): (String, u32)| format!("{}*{weight}", ip.rsplit('.').next().unwrap_or_default());
        let weights: Vec<_> = weights.into_iter().map(last).collect();
        (weights.join(" "), service.options.move_udp, service.scheduling.flags.fallback)
    };
    assert_eq!(of("TCP", "mh", &list), ("1*1".into(), false, false));
    list.ports[0].protocol = model::Protocol::Udp;
    assert_eq!(of("UDP", "rr", &list), ("1*1 2*0 4*0".into(), true, false));
    assert_eq!(of("UDP", "mh", &list), ("1*1 2*0 4*0".into(), true, true), "else its share would be refused");
    assert_eq!(of("UDP", "dh", &list), ("1*1".into(), true, false), "which can do no better");
}

#[test]
fn annotations_say_how_a_service_is_served() {
    let endpoints = [
        ("10.0.0.1", local()),
        ("10.0.0.2", remote()),
        ("10.0.0.3", json!({"hostname": "web-0", "nodeName": "n2"})),
    ];
    let annotations = [
        ("scheduler", "mh"),
        ("scheduler-flags", "mh-port, mh-fallback"),
        ("weights", "10.0.0.1=5, n2=3,web-0=0"),
        ("drain-cap-seconds", "60"),
        ("stateless-fallback", "true"),
        ("proxy-protocol", "true"),
    ];
    let (services, faults) = made(json!({}), &annotations, &[slice("s", "web", &endpoints)]);
    assert_eq!(faults, [""; 0]);
    let [service] = &*services else { panic!("{services:?}") };
    assert_eq!(service.scheduling.kind, dataplane::schedule::Kind::Mh);
    assert!(service.scheduling.flags.port && service.scheduling.flags.fallback);
    assert_eq!(service.options.drain_s, Some(60));
    assert!(service.options.stateless_fallback && service.options.proxy_protocol);
    let weights: Vec<_> = service.backends.iter().map(|backend| backend.weight.0).collect();
    assert_eq!(weights, [5, 3, 0], "by address");
}

#[test]
fn a_faulty_annotation_is_left_out_and_told() {
    for (name, value, want) in [
        ("scheduler", "best", "unknown"),
        ("scheduler-flags", "mh-port", "rr knows"),
        ("forwarding-mode", "teleport", "is none of nat, fullnat"),
        ("weights", "10.0.0.1", "is not NAME=WEIGHT"),
        ("weights", "10.0.0.1=-1", "is no number from 0"),
        ("drain-cap-seconds", "soon", "is no number from 0"),
        ("stateless-fallback", "yes", "is neither true nor false"),
        ("proxy-protocol", "v2", "is neither true nor false"),
        ("tunnel-port", "0", "is no number from 1"),
        ("wheights", "", "did you mean weir.dev/weights?"),
        ("mode-of-operation", "", "is unknown, known are"),
    ] {
        let (services, faults) = made(json!({}), &[(name, value)], &[]);
        let (plain, _) = made(json!({}), &[], &[]);
        assert_eq!(services, plain, "{name}");
        let [fault] = &*faults else { panic!("{name}: {faults:?}") };
        assert!(fault.contains(want) && fault.contains(name), "{name}: {fault}");
    }
}

#[test]
fn a_mode_that_leaves_ports_alone_is_for_ports_that_stay() {
    let spec = |port: u16| {
        json!({
            "type": "NodePort", "externalIPs": ["1.2.3.4"], "ports": [{"port": port, "nodePort": 3001}],
        })
    };
    let list = [slice("s", "web", &[("10.0.0.1", local())])];
    let modes = |port: u16, mode: &str| {
        let (services, faults) = made(spec(port), &[("forwarding-mode", mode)], &list);
        let modes: Vec<_> = services
            .iter()
            .map(|service| {
                let variant = service.name.rsplit('/').next().unwrap_or_default();
                format!("{variant} {}", service.backends[0].mode.name())
            })
            .collect();
        (modes, faults.len())
    };
    let want = ["cluster dr", "node-port nat", "external dr"].map(String::from).to_vec();
    assert_eq!(modes(8080, "dr"), (want, 0), "a node port is always translated");
    let nat = ["cluster nat", "external nat"].map(String::from).to_vec();
    assert_eq!(modes(80, "ipip"), (nat.clone(), 1));
    assert_eq!(modes(80, "nat"), (nat.clone(), 0));
    assert_eq!(modes(80, "fullnat"), (nat, 1), "without a pool");
    let (services, _) = made(spec(8080), &[("forwarding-mode", "gue")], &list);
    assert_eq!(services[0].backends[0].tunnel.port, 6080);
}

#[test]
fn without_a_pool_no_address_is_hidden() {
    let mut store = store();
    store.put(service("web", json!({"externalIPs": ["1.2.3.4"]}))).sync();
    let output = store.take_change().unwrap();
    let masquerade: Vec<_> = output.change.put.iter().map(|service| service.access.masquerade).collect();
    assert_eq!(masquerade, [model::Masquerade::Hairpin; 2]);
    assert!(output.change.put.iter().all(|service| service.pool.is_none()));
    assert!(output.change.put.iter().all(|service| service.access.when_empty == WhenEmpty::Reject));
}
