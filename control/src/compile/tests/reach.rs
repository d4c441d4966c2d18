//! Services that are not found by address and port, and what bounds their backends.

use super::*;
use dataplane::schedule::Kind;
use dataplane::snapshot::marks::MARK_RULES_MAX;
use dataplane::snapshot::{Mark, Mode};
use xdp_prog::Rule;

fn mark(value: u32, v6: bool) -> Mark {
    Mark { value: value.try_into().unwrap(), v6 }
}

fn only(tables: &Compiled) -> &snapshot::Service {
    let mut services = tables.services.iter();
    let only = services.next().unwrap();
    assert!(services.next().is_none());
    only
}

const MARKS: &str = "
match_rules:
  - {mark: 9, sources: [198.51.100.0/24]}
  - {mark: 7, destinations: [203.0.113.7, 203.0.113.64/26, \"2001:db8::7\"], protocols: [tcp], destination_ports: [80, 443]}
services:
  - {name: a, mark: 7, backends: [{address: 10.1.0.1}, {address: 10.1.0.2, port: 8080}]}
";

#[test]
fn a_service_of_a_mark_is_found_by_mark_and_family() {
    let tables = compiled(&desired(MARKS));
    let service = tables.services.marked(mark(7, false)).unwrap();
    assert_eq!((&*service.name, service.vips.len(), service.backends.len()), ("a", 0, 2));
    assert!(
        tables.services.marked(mark(7, true)).is_none() && tables.services.marked(mark(9, false)).is_none()
    );
    assert_eq!(tables.services.rules().len(), 7);
}

#[test]
fn a_mark_of_the_other_family_is_another_service_and_the_same_mark_the_same_one() {
    let mut history = History::new();
    let v6 = MARKS.replace(
        "mark: 7, backends: [{address: 10.1.0.1}, {address: 10.1.0.2, port: 8080}]",
        "mark: 7, family: ipv6",
    );
    let first = history.next(&desired(MARKS)).unwrap();
    let renamed = history.next(&desired(&MARKS.replace("name: a", "name: b"))).unwrap();
    assert_eq!(only(&first).id, only(&renamed).id);
    assert_eq!(renamed.fresh, Fresh::default());
    let other = history.next(&desired(&v6)).unwrap();
    assert_ne!(only(&first).id, only(&other).id);
}

#[test]
fn the_xdp_program_is_told_rules_whose_marks_services_have() {
    let ours = compiled(&desired(MARKS)).ours;
    let rule = |rule: &Rule| (rule.dst.map(|(addr, _)| addr.to_string()), *rule.dports.start(), rule.ours);
    let want = [
        (None, 0, [false, false]),
        (Some("203.0.113.7"), 80, [true, false]),
        (Some("203.0.113.7"), 443, [true, false]),
        (Some("203.0.113.64"), 80, [true, false]),
        (Some("203.0.113.64"), 443, [true, false]),
        (Some("2001:db8::7"), 80, [true, false]),
        (Some("2001:db8::7"), 443, [true, false]),
    ];
    let want = want.map(|(dst, port, ours)| (dst.map(str::to_owned), port, ours));
    assert_eq!(ours.rules.iter().map(rule).collect::<Vec<_>>(), want);
    assert_eq!(ours.rules[1].protos, [Proto::Tcp]);
    let endpoint = |host, port| Endpoint { addr: [10, 1, 0, host].into(), port, proto: Proto::Tcp };
    assert_eq!(
        ours.nat_backends,
        [endpoint(1, 0), endpoint(2, 8080)].into(),
        "of the protocols of its rules"
    );
    assert!(ours.vips.is_empty());
    assert_eq!(ours.owned, ["203.0.113.7".parse().unwrap()].into(), "the one single address of its family");

    let nobodys = MARKS.replace("{name: a, mark: 7", "{name: a, vip: 10.0.0.1, port: 1");
    let ours = compiled(&desired(&nobodys)).ours;
    assert!(ours.rules.is_empty(), "where no service has a mark, nothing is looked at");
}

#[test]
fn a_mark_that_is_not_announced_owns_nothing() {
    let quiet = MARKS.replace("name: a", "name: a, announce: false");
    assert!(compiled(&desired(&quiet)).ours.owned.is_empty());
}

#[test]
fn a_service_on_every_port_and_its_backends_are_told_without_ports() {
    let text = "
services:
  - {name: a, vip: 10.0.0.1, port: 0, protocol: sctp, persistence: {timeout_s: 9, netmask: 16}, backends: [{address: 10.1.0.1, port: 80}]}
";
    let mut history = History::new();
    let tables = history.next(&desired(text)).unwrap();
    let service = only(&tables);
    assert_eq!((service.vips[0].port, service.vips[0].proto), (0, key::SCTP));
    let persistence = service.persistence.unwrap();
    assert_eq!((persistence.timeout_s, persistence.mask), (9, 0xffff_0000));
    let endpoint = |addr: [u8; 4]| Endpoint { addr: addr.into(), port: 0, proto: Proto::Sctp };
    assert_eq!(tables.ours.vips, [endpoint([10, 0, 0, 1])].into());
    assert_eq!(
        tables.ours.nat_backends,
        [endpoint([10, 1, 0, 1])].into(),
        "persistence keeps the client's port"
    );
    history.flows(service.backends[0].id, 1, 0);
    let removed = history.next(&desired("services: []\n")).unwrap();
    assert_eq!(removed.ours.nat_backends, [endpoint([10, 1, 0, 1])].into());
}

#[test]
fn replies_to_a_removed_mark_may_have_any_protocol_and_port() {
    let mut history = History::new();
    let first = history.next(&desired(MARKS)).unwrap();
    history.flows(only(&first).backends[0].id, 1, 0);
    history.flows(only(&first).backends[1].id, 1, 0);
    let removed = history.next(&desired("services: []\n")).unwrap();
    assert_eq!(removed.ours.nat_backends.len(), 6);
    assert!(removed.ours.nat_backends.iter().all(|endpoint| endpoint.port == 0));
}

#[test]
fn backends_behind_tunnels_are_told_until_their_last_flow_has_ended() {
    let text = "
services:
  - name: a
    vip: 10.0.0.1
    port: 80
    mode: gue
    tunnel: {port: 6080}
    backends: [{address: 10.1.0.1}, {address: 10.1.0.2, mode: gre}, {address: \"fd00::3\", mode: ipip}, {address: 10.1.0.4, mode: nat}]
";
    let mut history = History::new();
    let first = history.next(&desired(text)).unwrap();
    let tunnel = |addr: &str, port: u16| (addr.parse::<IpAddr>().unwrap(), port);
    let want = [tunnel("10.1.0.1", 6080), tunnel("10.1.0.2", 0), tunnel("fd00::3", 0)];
    assert_eq!(first.ours.tunnels, want.into());
    let gue = only(&first).backends.iter().find(|backend| backend.mode == Mode::Gue).unwrap();
    assert_eq!(gue.tunnel.port, 6080);
    history.flows(gue.id, 1, 0);
    let nothing = desired("services: []\n");
    history.next(&nothing).unwrap();
    history.flows(gue.id, 0, 0);
    assert!(history.ours().tunnels.contains(&tunnel("10.1.0.1", 6080)));
    history.reclaim();
    assert!(history.ours().tunnels.is_empty());
}

/// A service with one backend, which has `more` keys, and `of_service` keys of its own.
fn bounded(of_service: &str, more: &str) -> DesiredState {
    desired(&format!(
        "services:\n  - {{name: a, vip: 10.0.0.1, port: 80{of_service}, backends: [{{address: 10.1.0.1{more}}}]}}\n"
    ))
}

#[test]
fn thresholds_reach_the_slot_when_they_change() {
    let mut history = History::new();
    let mut before = Services::default();
    for (name, more, flows, want) in [
        ("none", "", 10, false),
        ("reached already", ", upper_threshold: 8, lower_threshold: 4", 10, true),
        ("between them it stays", ", upper_threshold: 20, lower_threshold: 4", 10, true),
        ("below the lower one", ", upper_threshold: 20, lower_threshold: 11", 10, false),
        ("reached again", ", upper_threshold: 10", 10, true),
        ("none any more", "", 10, false),
    ] {
        let tables = history.next(&bounded("", more)).unwrap();
        tables.prepare(&before, &history.state, Tick::default());
        let slot = history.state.backend(only(&tables).backends[0].id).unwrap();
        if before.iter().next().is_none() {
            (0..flows).for_each(|_| slot.opened());
        }
        assert_eq!(slot.is_overloaded(), want, "{name}");
        before = tables.services;
    }
}

#[test]
fn a_backend_that_returns_has_the_thresholds_that_it_returns_with() {
    let mut history = History::new();
    let first = history.next(&bounded("", ", upper_threshold: 1")).unwrap();
    first.prepare(&Services::default(), &history.state, Tick::default());
    let slot = only(&first).backends[0].id;
    history.state.backend(slot).unwrap().opened();
    assert!(history.state.backend(slot).unwrap().is_overloaded());
    let without = desired("services: [{name: a, vip: 10.0.0.1, port: 80}]\n");
    let second = history.next(&without).unwrap();
    second.prepare(&first.services, &history.state, Tick::default());
    let third = history.next(&bounded("", "")).unwrap();
    third.prepare(&second.services, &history.state, Tick::default());
    assert_eq!(only(&third).backends[0].id, slot);
    assert!(!history.state.backend(slot).unwrap().is_overloaded());
}

#[test]
fn a_drained_or_removed_backend_ends_when_its_service_says() {
    let empty = |drain: &str| desired(&format!("services: [{{name: a, vip: 10.0.0.1, port: 80{drain}}}]\n"));
    let drain = ", drain_s: 60";
    let mut history = History::new();
    let mut before = Services::default();
    let at = |second: u32| Tick::default().after_seconds(second);
    let steps = [
        ("it takes flows", bounded(drain, ""), None),
        ("drained in second 1", bounded(drain, ", weight: 0"), Some(61)),
        ("something else changes", bounded(drain, ", weight: 0, upper_threshold: 5"), Some(61)),
        ("the time changes in second 3", bounded(", drain_s: 10", ", weight: 0"), Some(13)),
        ("nobody bounds it", bounded("", ", weight: 0"), None),
        ("bounded again in second 5", bounded(drain, ", weight: 0"), Some(65)),
        ("it takes flows again", bounded(drain, ", weight: 3"), None),
        ("removed in second 7", empty(drain), Some(67)),
        ("still removed", empty(drain), Some(67)),
        ("it returns", bounded(drain, ""), None),
        ("drained in second 10", bounded(drain, ", weight: 0"), Some(70)),
        ("removed while it drains", empty(drain), Some(70)),
        ("it returns drained in second 12", bounded(drain, ", weight: 0"), Some(72)),
        ("removed, and nobody bounds it", empty(""), Some(72)),
    ];
    for (second, (name, desired, want)) in (0..).zip(steps) {
        let tables = history.next(&desired).unwrap();
        tables.prepare(&before, &history.state, at(second));
        let slot = history.state.backend(BackendId(0)).unwrap();
        assert_eq!(slot.ends(), want.map(at), "{name}");
        before = tables.services;
    }
}

#[test]
fn options_and_settings_come_through() {
    let text = "
ipvs: {sloppy_tcp: true}
timeouts: {sctp: {init_s: 5}}
services:
  - {name: a, vip: 10.0.0.1, port: 53, protocol: udp, one_packet: true, scheduler: nq, drain_s: 3, stateless_fallback: true}
";
    let tables = compiled(&desired(text));
    assert!(tables.settings.sloppy_tcp);
    assert_eq!(tables.timeouts.sctp_s[2], 5);
    let service = only(&tables);
    assert!(service.one_packet && service.options.stateless_fallback && service.scheduler.kind() == Kind::Nq);
    assert_eq!(service.options.drain_s, Some(3));
}

#[test]
fn as_many_rules_as_there_may_be_are_told_at_once() {
    let destinations: Vec<String> =
        (0..MARK_RULES_MAX).map(|n| format!("10.2.{}.{}/32", n / 256, n % 256)).collect();
    let text = format!(
        "match_rules: [{{mark: 1, destinations: [{}]}}]\nservices: [{{name: a, mark: 1}}]\n",
        destinations.join(", ")
    );
    let tables = compiled(&desired(&text));
    assert_eq!((tables.services.rules().len(), tables.ours.rules.len()), (MARK_RULES_MAX, MARK_RULES_MAX));
    assert_eq!(tables.ours.owned.len(), MARK_RULES_MAX);
}
