mod services;

use std::net::IpAddr;

use serde_json::{Value, json};

use super::*;
use crate::config::{Section, kube_proxy};
use crate::model::{Reach, WhenEmpty};
use crate::source::kubernetes::object::{Reduced, Watched};
use crate::source::kubernetes::settings::{DetectLocal, ExternalIps, NodePortAddresses};

fn read<T: Reduced>(value: &Value) -> T {
    let watched: Watched<T> = serde_json::from_str(&value.to_string()).unwrap();
    watched.object.unwrap()
}

fn settings() -> Settings {
    let proxy = kube_proxy::KubeProxy::without_file(&kube_proxy::Flags::default()).unwrap();
    Settings {
        local: DetectLocal::ClusterCidr(vec!["10.0.0.0/8".parse().unwrap()]),
        external_ips: ExternalIps::Allow(vec!["0.0.0.0/0".parse().unwrap(), "::/0".parse().unwrap()]),
        node_addresses: vec!["192.168.0.2".parse().unwrap()],
        ..kube_proxy::settings(&proxy, &Section::default(), "n1").unwrap()
    }
}

fn store() -> Store {
    Store::new(settings(), Configured::default(), "2026-01-01T00:00:00Z".parse().unwrap())
}

/// A Service `name` in `ns` with what `spec` says beside a ClusterIP and port 80.
fn service(name: &str, spec: Value) -> Service {
    let mut base = json!({
        "metadata": {"name": name, "namespace": "ns", "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {"clusterIP": "172.30.1.1", "ports": [{"port": 80}]},
    });
    merge(&mut base["spec"], spec);
    read(&base)
}

fn merge(base: &mut Value, more: Value) {
    match (base, more) {
        (Value::Object(base), Value::Object(more)) => {
            more.into_iter().for_each(|(key, value)| merge(base.entry(key).or_insert(Value::Null), value));
        }
        (base, more) => *base = more,
    }
}

/// A slice of Service `of`: addresses with what is said of each beside.
fn slice(name: &str, of: &str, endpoints: &[(&str, Value)]) -> EndpointSlice {
    let endpoints: Vec<_> = endpoints
        .iter()
        .map(|(addr, more)| {
            let mut endpoint = json!({"addresses": [addr]});
            merge(&mut endpoint, more.clone());
            endpoint
        })
        .collect();
    read(&json!({
        "metadata": {"name": name, "namespace": "ns", "labels": {"kubernetes.io/service-name": of}},
        "addressType": "IPv4", "ports": [{"name": "", "port": 8080, "protocol": "TCP"}], "endpoints": endpoints,
    }))
}

fn local() -> Value {
    json!({"nodeName": "n1"})
}

fn remote() -> Value {
    json!({"nodeName": "n2"})
}

impl Store {
    fn put(&mut self, service: Service) -> &mut Self {
        self.apply(Event::Service(Update::Applied(service)));
        self
    }

    fn put_all(&mut self, slices: impl IntoIterator<Item = EndpointSlice>) -> &mut Self {
        slices.into_iter().for_each(|slice| self.apply(Event::Slice(Update::Applied(slice))));
        self
    }

    fn sync(&mut self) -> &mut Self {
        self.apply(Event::Service(Update::Complete));
        self.apply(Event::Slice(Update::Complete));
        self
    }
}

fn key(name: &str) -> Key {
    Key { namespace: "ns".into(), name: name.into() }
}

/// The services that are put, by name, with their endpoints.
fn put(output: &Output) -> Vec<String> {
    let mut list: Vec<_> = output
        .change
        .put
        .iter()
        .map(|service| {
            let list =
                service.backends.iter().map(|backend| format!("{}*{}", backend.addr.ip(), backend.weight.0));
            let mut list: Vec<_> = list.collect();
            list.sort();
            format!("{} {}", service.name, list.join(" ")).trim_end().to_owned()
        })
        .collect();
    list.sort();
    list
}

#[test]
fn nothing_comes_out_before_both_kinds_are_listed() {
    let mut store = store();
    store.put(service("web", json!({})));
    store.apply(Event::Service(Update::Complete));
    assert!(store.take_change().is_none(), "no slices yet");
    store.put_all([slice("web-1", "web", &[("10.0.0.1", local())])]);
    assert!(store.take_change().is_none(), "not all slices yet");
    store.apply(Event::Slice(Update::Complete));
    let output = store.take_change().unwrap();
    assert_eq!(put(&output), ["ns/web/cluster 10.0.0.1*1"]);
    assert!(output.change.common.is_some());
    assert!(store.take_change().is_none(), "once");
}

#[test]
fn what_changes_nothing_comes_to_nothing() {
    let mut store = store();
    let endpoints = [("10.0.0.1", local()), ("10.0.0.2", json!({"conditions": {"ready": false}}))];
    store.put(service("web", json!({}))).put_all([slice("web-1", "web", &endpoints)]).sync();
    store.take_change().unwrap();
    store.put(service("web", json!({"selector": {"app": "other"}})));
    assert!(store.take_change().is_none(), "a field that does not matter");
    store.put_all([slice("web-1", "web", &endpoints)]);
    assert!(store.take_change().is_none(), "the same slice");
    store.put_all([slice("web-1", "web", &endpoints[..1])]);
    assert!(store.take_change().is_none(), "an endpoint that was not used");
    store.put_all([slice("other", "unknown", &endpoints)]);
    assert!(store.take_change().is_none(), "a slice of no Service");
}

#[test]
fn an_event_touches_the_services_that_it_is_about() {
    let mut store = store();
    for (name, ip) in [("a", "172.30.0.1"), ("b", "172.30.0.2")] {
        store.put(service(name, json!({"clusterIP": ip})));
        store.put_all([slice(name, name, &[("10.0.0.1", local())])]);
    }
    store.sync();
    assert_eq!(put(&store.take_change().unwrap()).len(), 2);
    store.put_all([slice("a", "a", &[("10.0.0.1", local()), ("10.0.0.2", remote())])]);
    let output = store.take_change().unwrap();
    assert_eq!(put(&output), ["ns/a/cluster 10.0.0.1*1 10.0.0.2*1"]);
    assert!(output.change.common.is_none() && output.change.remove.is_empty());
    store.apply(Event::Service(Update::Deleted(key("b"))));
    let Output { change, .. } = store.take_change().unwrap();
    assert_eq!((change.put.len(), &*change.remove), (0, &["ns/b/cluster".into()][..]));
}

/// 26, 29 and 60: ports come and go with their Services, and with what a Service is.
#[test]
fn ports_come_and_go_with_their_services() {
    let port =
        |name: &str, number: u16, protocol: &str| json!({"name": name, "port": number, "protocol": protocol});
    let (tcp, udp, sctp) = (port("t", 80, "TCP"), port("u", 1234, "UDP"), port("s", 9999, "SCTP"));
    let mut store = store();
    let balancer = |policy: &str| {
        json!({
            "clusterIP": "172.30.0.3", "type": "LoadBalancer", "externalTrafficPolicy": policy,
            "healthCheckNodePort": 345, "ports": [tcp.clone(), udp.clone()],
        })
    };
    store.put(service("cluster", json!({"clusterIP": "172.30.0.1", "ports": [tcp, udp, sctp]})));
    store.put(service("more", json!({"clusterIP": "172.30.0.2", "ports": [tcp, udp]})));
    store.put(service("local", balancer("Local"))).sync();
    let names = |store: &mut Store| -> (Vec<String>, Vec<String>, Vec<Option<u16>>) {
        let Some(Output { change, health_checks, .. }) = store.take_change() else {
            return Default::default();
        };
        let sorted = |names: &mut dyn Iterator<Item = String>| {
            let mut names: Vec<_> = names.collect();
            names.sort();
            names
        };
        (
            sorted(&mut change.put.iter().map(|service| service.name.to_string())),
            sorted(&mut change.remove.iter().map(ToString::to_string)),
            health_checks.into_iter().map(|c| c.check.map(|check| check.port.number())).collect(),
        )
    };
    let (first, none, checks) = names(&mut store);
    assert_eq!(
        first,
        [
            "ns/cluster:s/cluster",
            "ns/cluster:t/cluster",
            "ns/cluster:u/cluster",
            "ns/local:t/cluster",
            "ns/local:u/cluster",
            "ns/more:t/cluster",
            "ns/more:u/cluster",
        ]
    );
    assert_eq!((none.len(), &*checks), (0, &[Some(345)][..]));

    store.put(service("local", balancer("Local")));
    assert_eq!(names(&mut store), Default::default(), "60: the same again");
    store.put(service("local", json!({"clusterIP": "172.30.0.3", "ports": [tcp, udp]})));
    assert_eq!(names(&mut store).2, [None], "29: no health check where it is a ClusterIP again");

    store.put(service("cluster", json!({"clusterIP": "172.30.0.1", "ports": [udp]})));
    store.apply(Event::Service(Update::Deleted(key("more"))));
    store.apply(Event::Service(Update::Deleted(key("local"))));
    let (put, removed, _) = names(&mut store);
    assert_eq!(put, [] as [&str; 0]);
    let gone = ["cluster:s", "cluster:t", "local:t", "local:u", "more:t", "more:u"];
    assert_eq!(removed, gone.map(|name| format!("ns/{name}/cluster")));
}

#[test]
fn slices_of_a_service_are_merged_whatever_their_order() {
    let slices = [
        slice("s1", "web", &[("10.0.0.1", local()), ("10.0.0.2", remote())]),
        slice("s2", "web", &[("10.0.0.2", local()), ("10.0.0.3", remote())]),
        slice("s3", "web", &[("10.0.0.3", json!({"conditions": {"ready": false}}))]),
    ];
    let orders = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];
    for order in orders {
        let mut store = store();
        store.put(service("web", json!({"internalTrafficPolicy": "Local"})));
        store.put_all(order.map(|index| slices[index].clone())).sync();
        assert_eq!(put(&store.take_change().unwrap()), ["ns/web/cluster 10.0.0.1*1 10.0.0.2*1"], "{order:?}");
    }
}

#[test]
fn a_slice_that_gets_another_label_moves_to_another_service() {
    let mut store = store();
    for (name, ip) in [("a", "172.30.0.1"), ("b", "172.30.0.2")] {
        store.put(service(name, json!({"clusterIP": ip})));
    }
    store.put_all([slice("s", "a", &[("10.0.0.1", local())])]).sync();
    assert_eq!(put(&store.take_change().unwrap()), ["ns/a/cluster 10.0.0.1*1", "ns/b/cluster"]);
    store.put_all([slice("s", "b", &[("10.0.0.1", local())])]);
    assert_eq!(put(&store.take_change().unwrap()), ["ns/a/cluster", "ns/b/cluster 10.0.0.1*1"]);
    store.apply(Event::Slice(Update::Deleted(key("s"))));
    assert_eq!(put(&store.take_change().unwrap()), ["ns/b/cluster"]);
    assert_eq!((store.totals().slices, store.totals().endpoints), (0, 0));
}

#[test]
fn a_list_that_is_taken_again_blanks_nothing() {
    let mut store = store();
    for (name, ip) in [("a", "172.30.0.1"), ("b", "172.30.0.2"), ("c", "172.30.0.3")] {
        store.put(service(name, json!({"clusterIP": ip})));
        store.put_all([slice(name, name, &[("10.0.0.1", local())])]);
    }
    store.sync();
    store.take_change().unwrap();
    store.apply(Event::Service(Update::Restarted));
    store.apply(Event::Slice(Update::Restarted));
    assert!(store.take_change().is_none(), "as it was");
    store.put(service("a", json!({"clusterIP": "172.30.0.1"})));
    store.put(service("b", json!({"clusterIP": "172.30.0.9"})));
    let output = store.take_change().unwrap();
    assert_eq!((put(&output), output.change.remove.len()), (vec!["ns/b/cluster 10.0.0.1*1".into()], 0));
    store.apply(Event::Service(Update::Complete));
    assert_eq!(store.take_change().unwrap().change.remove, ["ns/c/cluster".into()]);
    store.put_all([slice("a", "a", &[("10.0.0.1", local())])]);
    assert!(store.take_change().is_none());
    store.apply(Event::Slice(Update::Complete));
    assert_eq!(put(&store.take_change().unwrap()), ["ns/b/cluster"]);
    assert_eq!((store.totals().services, store.totals().slices), (2, 1));
}

#[test]
fn of_services_that_ask_for_one_address_the_oldest_has_it() {
    let aged = |name: &str, day: &str, cluster: &str, spec: Value| {
        let mut service = service(name, spec);
        service.cluster_ips = vec![cluster.parse().unwrap()].into();
        service.created = Some(format!("2026-01-{day}T00:00:00Z").parse().unwrap());
        service
    };
    let balancer = |name, day, cluster| {
        let spec = json!({"type": "LoadBalancer", "ports": [{"port": 80, "nodePort": 3001}]});
        let mut service = aged(name, day, cluster, spec);
        let ip = "1.2.3.4".parse().unwrap();
        service.ingress = vec![crate::source::kubernetes::object::Ingress { ip, proxy: false }].into();
        service
    };
    let mut store = store();
    store.put(balancer("young", "05", "172.30.0.1")).put(balancer("old", "03", "172.30.0.2"));
    store.put(balancer("also-old", "03", "172.30.0.3")).sync();
    let output = store.take_change().unwrap();
    let want = ["ns/also-old/cluster", "ns/also-old/external", "ns/old/cluster", "ns/young/cluster"];
    assert_eq!(put(&output), want);
    let told: Vec<_> =
        output.notices.iter().map(|notice| (notice.object.name.to_string(), &*notice.message)).collect();
    let balancers = "status.loadBalancer.ingress: 1.2.3.4:80/tcp: Service ns/also-old has it";
    assert!(told.contains(&("old".into(), balancers)), "{told:?}");
    assert!(told.contains(&("young".into(), balancers)), "{told:?}");
    assert!(told.iter().any(|(_, message)| message.starts_with("spec.ports.nodePort: 192.168.0.2:3001/tcp")));
    assert_eq!(store.faults().count(), 2);
    assert_eq!(store.totals().faulty, 2);

    store.apply(Event::Service(Update::Deleted(key("also-old"))));
    let output = store.take_change().unwrap();
    assert_eq!(put(&output), ["ns/old/external"], "the next one comes in");
    assert_eq!(output.change.remove.len(), 2);
    // An older one comes: it takes over.
    store.put(balancer("first", "01", "172.30.0.4"));
    let output = store.take_change().unwrap();
    assert_eq!(put(&output), ["ns/first/cluster", "ns/first/external"]);
    assert_eq!(output.change.remove, ["ns/old/external".into()]);
}

#[test]
fn what_the_configuration_has_kubernetes_has_not() {
    let text = "interfaces: [{name: eth1}]\nnode_addresses: [192.168.0.2]\n\
        snat_pools: [{name: pool, addresses: [1.2.3.5]}]\n\
        services:\n  - {name: a, vip: 1.2.3.4, port: 80, node_port: 3001, snat_pool: pool}\n";
    let config = crate::config::parse("test.yaml", text).unwrap_or_else(|faults| panic!("{faults}"));
    let configured = Configured::of(&config.desired, &settings());
    let mut store = Store::new(settings(), configured.clone(), Timestamp::UNIX_EPOCH);
    let spec = json!({
        "type": "NodePort", "externalIPs": ["1.2.3.4", "1.2.3.5", "1.2.3.6"],
        "ports": [{"port": 80, "nodePort": 3001}],
    });
    store.put(service("web", spec)).sync();
    let output = store.take_change().unwrap();
    let external = output.change.put.iter().find(|service| &*service.name == "ns/web/external").unwrap();
    let Reach::Vips(vips) = &external.reach else { panic!("{external:?}") };
    let addresses: Vec<_> = vips.addresses.iter().map(|vip| vip.ip().to_string()).collect();
    assert_eq!((addresses, external.node_port), (vec!["1.2.3.6".to_owned()], None));
    let mut desired = config.desired;
    desired.change(output.change).unwrap();
    // Without the configured service all are Kubernetes's.
    store.apply(Event::Configured(configured));
    assert!(store.take_change().is_none(), "the same");
    store.apply(Event::Configured(Configured::default()));
    let output = store.take_change().unwrap();
    assert_eq!(put(&output), ["ns/web/external"]);
    assert_eq!(output.change.put[0].node_port.map(model::Port::number), Some(3001));
}

#[test]
fn only_services_with_hints_depend_on_the_zone() {
    let hint = |zone: &str| json!({"nodeName": "n2", "hints": {"forZones": [{"name": zone}]}});
    let node = |zone: &str| {
        let node = json!({"metadata": {"name": "n1", "labels": {"topology.kubernetes.io/zone": zone}}});
        Event::Node(Some(read(&node)))
    };
    let mut store = store();
    store.put(service("hinted", json!({"clusterIP": "172.30.0.1"})));
    store.put(service("plain", json!({"clusterIP": "172.30.0.2"})));
    store.put_all([
        slice("h", "hinted", &[("10.0.0.1", hint("a")), ("10.0.0.2", hint("b"))]),
        slice("p", "plain", &[("10.0.0.1", remote())]),
    ]);
    store.sync();
    assert_eq!(
        put(&store.take_change().unwrap()),
        ["ns/hinted/cluster 10.0.0.1*1 10.0.0.2*1", "ns/plain/cluster 10.0.0.1*1"]
    );
    store.apply(node("a"));
    assert_eq!(put(&store.take_change().unwrap()), ["ns/hinted/cluster 10.0.0.1*1"]);
    store.apply(node("a"));
    assert!(store.take_change().is_none());
    store.apply(node("b"));
    assert_eq!(put(&store.take_change().unwrap()), ["ns/hinted/cluster 10.0.0.2*1"]);
    store.apply(node("c"));
    assert_eq!(put(&store.take_change().unwrap()), ["ns/hinted/cluster 10.0.0.1*1 10.0.0.2*1"]);
}

/// T18: a port counts where it has endpoints, and its policy leaves none.
#[test]
fn ports_without_local_endpoints_are_counted_where_there_are_others() {
    let policy = |internal, external| {
        json!({
            "type": "NodePort", "internalTrafficPolicy": internal, "externalTrafficPolicy": external,
            "ports": [{"port": 80, "nodePort": 3001}],
        })
    };
    let (cluster, near) = ("Cluster", "Local");
    for (name, internal, external, endpoints, want) in [
        ("internal, local ones", near, cluster, &[local(), remote()][..], (0, 0)),
        ("external, local ones", cluster, near, &[local(), remote()], (0, 0)),
        ("both, local ones", near, near, &[local(), remote()], (0, 0)),
        ("internal, none local", near, cluster, &[remote()], (1, 0)),
        ("external, none local", cluster, near, &[remote()], (0, 1)),
        ("both, none local", near, near, &[remote()], (1, 1)),
        ("both, none at all", near, near, &[], (0, 0)),
        ("both, none that could be used", near, near, &[json!({"conditions": {"ready": false}})], (0, 0)),
        ("neither, none local", cluster, cluster, &[remote()], (0, 0)),
    ] {
        let mut store = store();
        let endpoints: Vec<_> = endpoints.iter().map(|more| ("10.0.0.1", more.clone())).collect();
        store.put(service("web", policy(internal, external)));
        store.put_all([slice("s", "web", &endpoints)]).sync();
        let NoLocal { internal, external } = store.take_change().unwrap().no_local;
        assert_eq!((internal[0], external[0], internal[1], external[1]), (want.0, want.1, 0, 0), "{name}");
        store.apply(Event::Service(Update::Deleted(key("web"))));
        assert_eq!(store.take_change().unwrap().no_local, NoLocal::default(), "{name}, deleted");
    }
}

/// T17 and 29, 41, 46: what a Service's health check says.
#[test]
fn the_health_of_a_service_is_its_ready_local_endpoints() {
    let balancer = |external, port| {
        let spec =
            json!({"type": "LoadBalancer", "externalTrafficPolicy": external, "healthCheckNodePort": port});
        service("web", spec)
    };
    let with = |ready: bool, serving: bool, terminating: bool| {
        json!({
            "nodeName": "n1", "conditions": {"ready": ready, "serving": serving, "terminating": terminating},
        })
    };
    let ready = || with(true, true, false);
    let mut store = store();
    store.put(balancer("Local", 30000));
    store.put_all([
        slice("s1", "web", &[("10.0.0.1", ready()), ("10.0.0.2", ready()), ("10.0.0.3", ready())]),
        slice(
            "s2",
            "web",
            &[("10.0.0.4", with(false, false, false)), ("10.0.0.1", ready()), ("10.0.0.5", remote())],
        ),
    ]);
    store.sync();
    let checks = |store: &mut Store| -> Vec<_> {
        let changes = store.take_change().unwrap().health_checks;
        changes
            .into_iter()
            .map(|change| change.check.map(|check| (check.port.number(), check.local)))
            .collect()
    };
    assert_eq!(checks(&mut store), [Some((30000, 3))]);
    let leaving = [
        ("10.0.0.1", with(false, true, false)),
        ("10.0.0.2", with(false, true, true)),
        ("10.0.0.3", with(false, true, true)),
    ];
    store.put_all([
        slice("s1", "web", &leaving),
        slice("s2", "web", &[("10.0.0.4", with(false, false, true))]),
    ]);
    assert_eq!(checks(&mut store), [Some((30000, 0))]);
    store.put(balancer("Local", 30001));
    assert_eq!(checks(&mut store), [Some((30001, 0))]);
    store.put(balancer("Cluster", 30001));
    assert_eq!(checks(&mut store), [None], "only for the policy Local");
    store.put(balancer("Local", 30001));
    assert_eq!(checks(&mut store), [Some((30001, 0))]);
    store.apply(Event::Service(Update::Deleted(key("web"))));
    assert_eq!(checks(&mut store), [None]);
}

#[test]
fn trigger_times_count_from_the_start_on_and_with_a_change_alone() {
    let mut store = store();
    let at = |time: &str, endpoints: &[(&str, Value)]| EndpointSlice {
        triggered: Some(time.parse().unwrap()),
        ..slice("s", "web", endpoints)
    };
    store.put(service("web", json!({})));
    store.put_all([at("2025-12-31T23:59:59Z", &[("10.0.0.1", local())])]).sync();
    assert_eq!(store.take_change().unwrap().triggers, [], "before the start");
    store.put_all([at("2026-01-01T00:00:01Z", &[("10.0.0.2", local())])]);
    assert_eq!(store.take_change().unwrap().triggers, ["2026-01-01T00:00:01Z".parse().unwrap()]);
    store.put_all([at("2026-01-01T00:00:02Z", &[("10.0.0.2", local())])]);
    assert!(store.take_change().is_none(), "nothing else has changed");
    store.put_all([at("2026-01-01T00:00:03Z", &[("10.0.0.3", local())])]);
    store.apply(Event::Slice(Update::Deleted(key("s"))));
    assert_eq!(store.take_change().unwrap().triggers, [], "what was deleted came about some other time");
}

#[test]
fn faults_are_told_once() {
    let mut store = store();
    let mut bad = service("web", json!({}));
    bad.annotations = vec![("weir.dev/scheduler".into(), "best".into())].into();
    store.put(bad.clone()).sync();
    let reasons = |output: Output| -> Vec<_> {
        output.notices.iter().map(|notice| (notice.reason.name, notice.object.to_string())).collect()
    };
    assert_eq!(reasons(store.take_change().unwrap()), [("BadAnnotation", "Service ns/web".to_owned())]);
    bad.internal_local = true;
    store.put(bad.clone());
    assert!(store.take_change().is_none_or(|output| output.notices.is_empty()), "told before");
    bad.annotations = vec![("weir.dev/scheduler".into(), "wlc".into())].into();
    store.put(bad);
    store.take_change().unwrap();
    assert_eq!(store.faults().count(), 0);
    let mut family = json!({"addresses": ["fd00::1"]});
    merge(&mut family, local());
    store.put_all([slice("s", "web", &[("10.0.0.1", local()), ("fd00::1", local())])]);
    let want = ("KubeProxyIncorrectIPVersion", "EndpointSlice ns/s".to_owned());
    assert_eq!(reasons(store.take_change().unwrap()), [want]);
    store.put_all([slice("s", "web", &[("10.0.0.2", local()), ("fd00::1", local())])]);
    assert_eq!(reasons(store.take_change().unwrap()), []);
}

#[test]
fn networks_of_virtual_addresses_leave_out_what_others_serve() {
    let cidr = |name: &str, cidrs: &[&str]| {
        let cidr = json!({"metadata": {"name": name}, "spec": {"cidrs": cidrs}});
        Event::Cidr(Update::Applied(read(&cidr)))
    };
    let networks = |store: &mut Store| -> Vec<_> {
        let common = store.take_change().unwrap().change.common.unwrap();
        common.virtual_networks.iter().map(ToString::to_string).collect()
    };
    let mut store = store();
    store.apply(cidr("kubernetes", &["172.30.0.0/30", "fd00::/120"]));
    store.sync();
    assert_eq!(networks(&mut store), ["172.30.0.0/30", "fd00::/120"]);
    let mut other = service("other", json!({"clusterIP": "172.30.0.2"}));
    other.proxy_name = Some("other".into());
    store.put(other);
    assert_eq!(networks(&mut store), ["172.30.0.0/31", "172.30.0.3/32", "fd00::/120"]);
    store.apply(Event::Service(Update::Deleted(key("other"))));
    assert_eq!(networks(&mut store), ["172.30.0.0/30", "fd00::/120"]);
    store.apply(Event::Cidr(Update::Restarted));
    store.apply(cidr("more", &["172.30.0.4/30"]));
    assert_eq!(networks(&mut store), ["172.30.0.0/29", "fd00::/120"]);
    store.apply(Event::Cidr(Update::Complete));
    assert_eq!(networks(&mut store), ["172.30.0.4/30"]);
    store.apply(Event::Cidr(Update::Deleted(Key { namespace: "".into(), name: "more".into() })));
    assert!(networks(&mut store).is_empty());
}

/// 30 and 62, 5.1 to 5.3.
#[test]
fn node_ports_are_reached_by_the_addresses_that_the_settings_say() {
    let ips = |texts: &[&str]| -> Vec<IpAddr> { texts.iter().map(|text| text.parse().unwrap()).collect() };
    let node: Node = read(&json!({"metadata": {"name": "n1"}, "status": {"addresses": [
        {"type": "ExternalIP", "address": "198.51.100.2"}, {"type": "InternalIP", "address": "192.168.0.2"},
        {"type": "InternalIP", "address": "192.168.1.2"}, {"type": "ExternalIP", "address": "2001:db8::2"},
    ]}}));
    let host = ips(&["127.0.0.1", "192.168.0.2", "192.168.1.2", "192.168.0.2", "10.1.0.1", "::1", "fe80::1"]);
    let within = |networks: &[&str], primary| NodePortAddresses::Networks {
        networks: networks.iter().map(|network| network.parse().unwrap()).collect(),
        primary,
    };
    let (primary, all) = (NodePortAddresses::Primary, NodePortAddresses::All);
    for (name, addresses, said, want) in [
        ("primary", primary.clone(), &[][..], &["192.168.0.2", "2001:db8::2"][..]),
        ("primary, another one said", primary.clone(), &["192.168.9.9"], &["192.168.9.9", "2001:db8::2"]),
        ("primary, all said", primary, &["192.168.1.2", "192.168.0.2"], &["192.168.0.2", "2001:db8::2"]),
        ("all", all, &[], &["10.1.0.1", "192.168.0.2", "192.168.1.2", "198.51.100.2", "2001:db8::2"]),
        ("of a network", within(&["192.168.1.0/24"], false), &[], &["192.168.1.2"]),
        ("of another", within(&["172.16.0.0/12"], false), &[], &[]),
        (
            "of a network, and primary",
            within(&["10.0.0.0/8"], true),
            &[],
            &["10.1.0.1", "192.168.0.2", "2001:db8::2"],
        ),
        ("loopback never", within(&["127.0.0.0/8", "::1/128"], false), &[], &[]),
        (
            "of all networks of one family",
            within(&["0.0.0.0/0"], false),
            &[],
            &["10.1.0.1", "192.168.0.2", "192.168.1.2", "198.51.100.2"],
        ),
    ] {
        let settings = Settings { node_port_addresses: addresses, node_addresses: ips(said), ..settings() };
        let found = surroundings::node_port_addresses(&settings, Some(&node), &host);
        assert_eq!(found.iter().map(|addr| addr.ip()).collect::<Vec<_>>(), ips(want), "{name}");
    }
}
