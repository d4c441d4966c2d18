//! What changes come to, and that what they leave alone stays.

use std::net::IpAddr;

use proptest::prelude::*;

use super::*;
use crate::config;
use crate::model::{Place, Reach, Reason};

const NODE: &str = "192.0.2.1";

/// Services as a file has them.
fn configured(services: &[&str]) -> DesiredState {
    let list: String = services.iter().map(|service| format!("  - {{{service}, mode: nat}}\n")).collect();
    let text = format!("interfaces: [{{name: eth1}}]\nnode_addresses: [{NODE}]\nservices:\n{list}");
    config::parse("test.yaml", &text).unwrap_or_else(|faults| panic!("{faults}\n{text}")).desired
}

/// Services as Kubernetes has them.
fn put(services: &[&str]) -> Vec<Service> {
    let kubernetes = |service: &Service| Service { origin: Origin::Kubernetes, ..service.clone() };
    configured(services).services().map(kubernetes).collect()
}

fn names(state: &DesiredState) -> Vec<&str> {
    state.services().map(|service| &*service.name).collect()
}

#[test]
fn services_are_removed_replaced_and_added_and_keep_their_places() {
    let mut state = configured(&["name: f, vip: 10.0.0.9, port: 80"]);
    let change = |remove: &[&str], services: &[&str]| Change {
        remove: remove.iter().map(|name| (*name).into()).collect(),
        put: put(services),
        common: None,
    };
    state
        .change(change(&[], &["name: a, vip: 10.0.0.1, port: 80", "name: b, vip: 10.0.0.2, port: 80"]))
        .unwrap();
    assert_eq!(names(&state), ["f", "a", "b"]);
    // One address changes hands, and the configuration's service is nobody else's to remove.
    let swapped = ["name: a, vip: 10.0.0.3, port: 80", "name: c, vip: 10.0.0.2, port: 80"];
    state.change(change(&["b", "unknown", "f"], &swapped)).unwrap();
    assert_eq!(names(&state), ["f", "a", "c"]);
    assert_eq!(state.service("a").unwrap().vips()[0].ip(), IpAddr::from([10, 0, 0, 3]));
    let same = state.follow(change(&["unknown"], &swapped)).unwrap();
    assert!(same.is_empty(), "{same:?}");
}

#[test]
fn a_change_with_a_conflict_leaves_everything_as_it_was() {
    let mut state = configured(&["name: f, vip: 10.0.0.9, port: 80"]);
    let three = put(&[
        "name: a, vip: 10.0.0.1, port: 80",
        "name: b, vip: 10.0.0.2, port: 80, node_port: 30000",
        "name: e, vip: 10.0.0.5, port: 80",
    ]);
    state.change(Change { put: three, ..Change::default() }).unwrap();
    let before = state.clone();
    for (name, service, want, taken_by) in [
        ("a VIP of its own kind", "name: d, vip: 10.0.0.2, port: 80", Place::Vip(1, 0), "b"),
        ("a VIP of the configuration", "name: d, vip: 10.0.0.9, port: 80", Place::Vip(1, 0), "f"),
        ("a node port", "name: d, vip: 10.0.0.4, port: 80, node_port: 30000", Place::NodePort(1), "b"),
        ("a VIP that is a node port", "name: d, vip: 192.0.2.1, port: 30000", Place::Vip(1, 0), "b"),
    ] {
        // The first one is as it was before, and counts all the same.
        let put = put(&["name: e, vip: 10.0.0.5, port: 80", service]);
        let conflicts = state.change(Change { remove: vec!["a".into()], put, common: None }).unwrap_err();
        assert_eq!(state, before, "{name}");
        let [Conflict { at, earlier, reason }] = &*conflicts else { panic!("{name}: {conflicts:?}") };
        assert_eq!((*at, *earlier), (want, None), "{name}");
        assert!(matches!(reason, Reason::VipTaken { other, .. } if &**other == taken_by), "{name}: {reason}");
    }
    let named = Change { put: put(&["name: f, vip: 10.0.0.4, port: 80"]), ..Change::default() };
    let conflicts = state.change(named).unwrap_err();
    assert!(matches!(&*conflicts, [Conflict { reason: Reason::NameTaken(_), .. }]), "{conflicts:?}");
}

#[test]
fn a_configuration_replaces_its_own_services_alone_and_has_its_own_order() {
    let mut state = configured(&["name: a, vip: 10.0.0.1, port: 80", "name: b, vip: 10.0.0.2, port: 80"]);
    state.change(Change { put: put(&["name: k, vip: 10.0.0.7, port: 80"]), ..Change::default() }).unwrap();
    for (name, services, want, touched) in [
        ("the same", vec!["a, vip: 10.0.0.1", "b, vip: 10.0.0.2"], vec!["a", "b", "k"], 0),
        ("one is another", vec!["a, vip: 10.0.0.5", "b, vip: 10.0.0.2"], vec!["a", "b", "k"], 1),
        ("one goes, one comes last", vec!["b, vip: 10.0.0.2", "c, vip: 10.0.0.3"], vec!["b", "c", "k"], 2),
        ("one comes first", vec!["a, vip: 10.0.0.1", "b, vip: 10.0.0.2"], vec!["a", "b", "k"], 4),
    ] {
        let services: Vec<_> = services.iter().map(|service| format!("name: {service}, port: 80")).collect();
        let services: Vec<_> = services.iter().map(String::as_str).collect();
        let applied = state.configure(&configured(&services)).unwrap();
        assert_eq!(names(&state), want, "{name}");
        assert_eq!(applied.services.len(), touched, "{name}");
    }
    let before = state.clone();
    let taken = configured(&["name: x, vip: 10.0.0.7, port: 80"]);
    let conflicts = state.configure(&taken).unwrap_err();
    assert!(matches!(&*conflicts, [Conflict { reason: Reason::VipTaken { .. }, .. }]), "{conflicts:?}");
    assert_eq!(state, before);
}

#[test]
fn what_sources_say_besides_services_goes_together() {
    let mut state = configured(&[]);
    let unicast = |addr: &str| Unicast::new(addr.parse().unwrap()).unwrap();
    let common = |node: &[&str]| {
        let node_addresses = node.iter().map(|addr| unicast(addr)).collect();
        let local = vec!["10.244.0.0/16".parse().unwrap()];
        Change { common: Some(Common { node_addresses, local, ..Common::default() }), ..Change::default() }
    };
    state.change(common(&["192.0.2.2", NODE])).unwrap();
    assert_eq!(state.node_addresses(), [unicast(NODE), unicast("192.0.2.2")]);
    assert_eq!(state.draft().node_addresses, [unicast(NODE)], "the configuration's alone");
    assert!(state.follow(common(&["192.0.2.2", NODE])).unwrap().is_empty());
    let services =
        put(&["name: a, vip: 192.0.2.3, port: 30000", "name: b, vip: 10.0.0.1, port: 80, node_port: 30000"]);
    state.change(Change { put: services, ..Change::default() }).unwrap();
    let before = state.clone();
    let conflicts = state.change(common(&["192.0.2.3"])).unwrap_err();
    let at: Vec<_> = conflicts.iter().map(|conflict| conflict.at).collect();
    assert_eq!((at, &state), (vec![Place::NodeAddress(1)], &before), "{conflicts:?}");
}

/// Name, VIPs, node port, whether for clients inside.
type Recipe = (u8, Vec<u8>, Option<u8>, bool);

fn recipe() -> impl Strategy<Value = Recipe> {
    (0..5_u8, proptest::collection::vec(0..4_u8, 1..3), proptest::option::of(0..2_u8), any::<bool>())
}

fn service((name, vips, node_port, inside): &Recipe) -> Service {
    let mut service = put(&["name: x, vip: 10.0.0.1, port: 80"]).remove(0);
    service.name = format!("s{name}").into();
    service.group = (*name > 1).then(|| format!("g{}", name % 2).into());
    service.node_port = node_port.and_then(|port| Port::new(30_000 + u16::from(port)));
    let Reach::Vips(reach) = &mut service.reach else { panic!("no VIPs") };
    // The last one is the node's own.
    let vip = |host: &u8| {
        Unicast::new(if *host == 3 { NODE.parse().unwrap() } else { IpAddr::from([10, 0, 0, *host]) })
    };
    reach.addresses = vips.iter().map(|host| vip(host).unwrap()).collect();
    reach.port = Port::new(30_000);
    reach.clients = if *inside { Clients::Inside } else { Clients::All };
    service
}

/// All that can be looked up.
fn seen(state: &DesiredState) -> String {
    let place =
        |order: Option<Order>| order.and_then(|order| state.at(order)).map(|service| service.name.clone());
    let mut seen = format!("{:?}", state.services().collect::<Vec<_>>());
    for clients in [Clients::All, Clients::Inside] {
        for host in 0..4 {
            let vip = service(&(0, vec![host], None, false));
            seen += &format!(
                "{:?}",
                vip.keys().map(|key| place(state.holder(&key, clients))).collect::<Vec<_>>()
            );
        }
        for port in 30_000..30_002 {
            let node_port = (Family::V4, Protocol::Tcp, Port::new(port).unwrap(), clients);
            seen += &format!("{:?}", place(state.on_node(&node_port)));
        }
    }
    for name in 0..5 {
        seen += &format!("{:?}", place(state.named(&format!("s{name}"))));
        let members = state.group(&format!("g{name}")).into_iter().map(|order| place(Some(order)));
        seen += &format!("{:?}", members.collect::<Vec<_>>());
    }
    seen
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn a_change_is_refused_where_a_draft_with_it_would_be_and_can_be_taken_back(
        changes in proptest::collection::vec(
            (proptest::collection::vec(0..5_u8, 0..2), proptest::collection::vec(recipe(), 0..3)), 1..10,
        ),
    ) {
        let mut state = configured(&[]);
        for (remove, put) in changes {
            let remove: Vec<Arc<str>> = remove.iter().map(|name| format!("s{name}").into()).collect();
            let put: Vec<Service> = put.iter().map(service).collect();
            let mut after: Vec<_> = state.services().cloned().collect();
            after.retain(|old| !remove.contains(&old.name) && put.iter().all(|new| new.name != old.name));
            after.extend(put.iter().cloned());
            let want = DesiredState::new(Draft { services: after.clone(), ..state.draft() });
            let before = seen(&state);
            match state.follow(Change { remove, put, common: None }) {
                Err(_) => {
                    prop_assert!(want.is_err());
                    prop_assert_eq!(seen(&state), before);
                }
                Ok(applied) => {
                    prop_assert!(want.is_ok(), "{:?}", want);
                    let sorted = |mut list: Vec<Service>| { list.sort_by(|a, b| a.name.cmp(&b.name)); list };
                    prop_assert_eq!(sorted(state.services().cloned().collect()), sorted(after));
                    let changed = state.clone();
                    state.undo(applied);
                    prop_assert_eq!(seen(&state), before);
                    state = changed;
                }
            }
        }
    }
}
