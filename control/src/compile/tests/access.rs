//! Services of one group, services for clients inside, and networks of virtual addresses.

use super::*;
use crate::model::{Clients, Draft, Reach, Unicast};
use dataplane::snapshot::{Masquerade, Mode, WhenEmpty};

/// Makes the service at this place another one.
fn changed(desired: &DesiredState, change: impl Fn(usize, &mut model::Service)) -> DesiredState {
    let mut draft: Draft = desired.draft();
    draft.services.iter_mut().enumerate().for_each(|(place, service)| change(place, service));
    DesiredState::new(draft).unwrap()
}

/// [`services`], all of one group.
fn grouped(lines: &[&str]) -> DesiredState {
    changed(&services(lines), |_, service| service.group = Some("ns/web:http".into()))
}

#[test]
fn services_of_a_group_share_backends_of_one_address_port_and_mode() {
    let mut history = History::new();
    let tables = history.next(&grouped(&["1: 1 2 3/fullnat", "2: 2 1 3"])).unwrap();
    for host in [1, 2] {
        assert_eq!(id(&tables, 1, host), id(&tables, 2, host), "{host}");
    }
    assert_ne!(id(&tables, 1, 3), id(&tables, 2, 3), "another mode is another backend");
    assert_eq!(tables.fresh.backends.len(), 4, "each id once");
    let [a, b] = [1, 2].map(|vip| service(&tables, vip).group.unwrap());
    assert_eq!((a.vip, a.place, b.vip, b.place), (service(&tables, 1).vips[0], 0, a.vip, 1));
    let apart = history.next(&services(&["3: 1", "4: 1"])).unwrap();
    assert_ne!(id(&apart, 3, 1), id(&apart, 4, 1));
    assert_eq!(service(&apart, 3).group, None);
}

#[test]
fn a_shared_backend_stays_until_the_last_service_of_its_group_lets_go() {
    let mut history = History::new();
    let first = history.next(&grouped(&["1: 1 2", "2: 1"])).unwrap();
    let (shared, own) = (id(&first, 1, 1), id(&first, 1, 2));
    history.flows(shared, 1, 0);
    history.flows(own, 1, 0);
    let second = history.next(&grouped(&["1: 2", "2: 1"])).unwrap();
    assert_eq!(id(&second, 2, 1), shared);
    assert_eq!(history.reclaim(), 0, "it has left one service, and is nobody's burden");
    let third = history.next(&grouped(&["1: 2 1", "2: 1"])).unwrap();
    assert_eq!((id(&third, 1, 1), third.fresh.backends.len()), (shared, 0), "back by way of the other");
    history.next(&grouped(&["1: 2", "2: "])).unwrap();
    assert_eq!(history.reclaim(), 1, "its last flow counts on it");
    let back = history.next(&grouped(&["1: 2", "2: 1"])).unwrap();
    assert_eq!((id(&back, 2, 1), back.fresh.backends.len()), (shared, 0));
    history.next(&grouped(&["1: 2", "2: "])).unwrap();
    history.flows(shared, 0, 0);
    assert_eq!(history.reclaim(), 0);
    let anew = history.next(&grouped(&["1: 2 1", "2: 1"])).unwrap();
    assert_eq!(anew.fresh.backends.len(), 1, "a new one, and one for both");
}

#[test]
fn a_backend_of_another_group_is_another_one() {
    let mut history = History::new();
    let first = history.next(&grouped(&["1: 1"])).unwrap();
    let moved = changed(&services(&["1: 1"]), |_, service| service.group = Some("ns/other:http".into()));
    let second = history.next(&moved).unwrap();
    assert_eq!(service(&first, 1).id, service(&second, 1).id, "the address is the same");
    assert_ne!(id(&first, 1, 1), id(&second, 1, 1));
    assert_eq!(history.reclaim(), 0);
    assert_eq!(history.next(&moved).unwrap().fresh, Fresh::default());
}

#[test]
fn a_shared_backend_drains_when_all_that_have_it_drain_it() {
    let mut history = History::new();
    let drain = |lines: &[&str]| changed(&grouped(lines), |_, service| service.options.drain_s = Some(9));
    let mut before = history.next(&drain(&["1: 1", "2: 1"])).unwrap();
    before.prepare(&Services::default(), &history.state, Tick(0));
    let shared = id(&before, 1, 1);
    for (name, lines, now, want) in [
        ("one of two", ["1: 1*0", "2: 1"], 1, None),
        ("one of two, again", ["1: 1*0", "2: 1"], 2, None),
        ("the other", ["1: 1", "2: 1*0"], 3, None),
        ("both", ["1: 1*0", "2: 1*0"], 4, Some(Tick(4).after_seconds(9))),
        ("out of one", ["1: 1*0", "2: "], 5, Some(Tick(4).after_seconds(9))),
        ("out of both", ["1: ", "2: "], 6, Some(Tick(4).after_seconds(9))),
        ("back", ["1: ", "2: 1"], 7, None),
    ] {
        let next = history.next(&drain(&lines)).unwrap();
        next.prepare(&before.services, &history.state, Tick(now));
        before = next;
        assert_eq!(history.state.backend(shared).unwrap().ends(), want, "{name}");
    }
}

const ACCESS: &str = "
node_addresses: [192.0.2.1, \"2001:db8::1\"]
local_networks: [10.244.0.0/16]
virtual_networks: [10.96.0.0/12, 192.0.2.0/28]
snat_pools: [{name: p, addresses: [10.111.0.4-10.111.0.7, 203.0.113.1]}]
services:
  - name: a
    vip: 10.96.0.1
    port: 80
    node_port: 30080
    snat_pool: p
    source_ranges: [198.51.100.0/24, 203.0.113.9]
    masquerade: not-local
    when_empty: drop
  - {name: b, vip: 10.96.0.2, port: 80, backends: [{address: 10.1.0.1}]}
";

fn bits(addr: &str) -> (u128, bool) {
    key::bits(addr.parse().unwrap())
}

#[test]
fn access_and_locality_are_what_the_configuration_says() {
    let tables = compiled(&desired(ACCESS));
    let service = tables.services.iter().next().unwrap();
    let access = &service.access;
    assert_eq!((access.masquerade, access.when_empty), (Masquerade::NotLocal, WhenEmpty::Drop));
    let locality = tables.services.locality();
    for (addr, sources, inside, for_services) in [
        ("198.51.100.255", true, false, false),
        ("203.0.113.9", true, false, false),
        ("203.0.113.10", false, false, false),
        ("10.244.9.9", false, true, false),
        ("192.0.2.1", false, true, false),
        ("2001:db8::1", false, true, false),
        ("10.111.255.255", false, false, true),
        ("10.112.0.0", false, false, false),
    ] {
        let (addr_bits, v6) = bits(addr);
        let found = access.sources.as_ref().unwrap().contains(addr_bits, v6);
        let place = (locality.is_inside(addr_bits, v6), locality.is_for_services(addr_bits, v6));
        assert_eq!((found, place), (sources, (inside, for_services)), "{addr}");
    }
}

#[test]
fn clients_inside_may_have_a_service_on_an_address_that_others_have() {
    let inside = changed(&desired(ACCESS), |place, service| {
        if let (1, Reach::Vips(vips)) = (place, &mut service.reach) {
            vips.addresses = vec![Unicast::new([10, 96, 0, 1].into()).unwrap()];
            vips.clients = Clients::Inside;
        }
    });
    let mut history = History::new();
    let tables = history.next(&inside).unwrap();
    let vip = |addr: &str, port| {
        let (addr, v6) = bits(addr);
        VipKey { addr, port, proto: key::TCP, v6 }
    };
    let name = |src: &str, vip: &VipKey| {
        tables.services.exact_for(bits(src).0, vip).map(|service| (&*service.name, service.id))
    };
    let virtual_ip = vip("10.96.0.1", 80);
    let outside = name("198.51.100.7", &virtual_ip).unwrap();
    let inside_id = name("10.244.0.1", &virtual_ip).unwrap();
    assert_eq!((outside.0, inside_id.0), ("a", "b"));
    assert_ne!(outside.1, inside_id.1, "each has an identity of its own");
    let node = vip("192.0.2.1", 30080);
    assert_eq!(name("10.244.0.1", &node).unwrap().0, "a", "none for clients inside there");
    let again = history.next(&inside).unwrap();
    assert_eq!(again.fresh, Fresh::default());
    let vips: Vec<_> =
        again.ours.vips.iter().filter(|vip| vip.addr == IpAddr::from([10, 96, 0, 1])).collect();
    assert_eq!(vips.len(), 1, "the XDP program sees one address");
}

#[test]
fn a_service_may_be_reached_by_its_node_port_alone() {
    let on_node = |port: u16| {
        changed(&desired(ACCESS), move |place, service| {
            if let (0, Reach::Vips(vips)) = (place, &mut service.reach) {
                vips.addresses.clear();
                service.node_port = model::Port::new(port);
                service.backends = [model::Backend::new(
                    Unicast::new([10, 1, 0, 1].into()).unwrap(),
                    model::Port::new(8080),
                    Mode::Nat,
                )]
                .into();
            }
        })
    };
    let mut history = History::new();
    let first = history.next(&on_node(30080)).unwrap();
    let only = first.services.iter().next().unwrap();
    let (addr, v6) = bits("192.0.2.1");
    assert_eq!(only.vips, [VipKey { addr, port: 30080, proto: key::TCP, v6 }]);
    assert!(!first.ours.vips.iter().any(|vip| vip.addr == IpAddr::from([10, 96, 0, 1])));
    assert_eq!(first.ours.node_ports, [(Proto::Tcp, 30080)].into());
    assert_eq!(history.next(&on_node(30080)).unwrap().fresh, Fresh::default());
    history.flows(only.backends[0].id, 1, 0);
    let moved = history.next(&on_node(30081)).unwrap();
    assert_eq!(moved.fresh.services.len(), 1, "another port is another service");
    let reply = Endpoint { addr: [10, 1, 0, 1].into(), port: 8080, proto: Proto::Tcp };
    history.next(&services(&[])).unwrap();
    assert!(history.ours().nat_backends.contains(&reply), "its flow goes on");
}

#[test]
fn the_xdp_program_takes_virtual_networks_but_for_addresses_that_are_not_services() {
    let tables = compiled(&desired(ACCESS));
    let rules: Vec<_> = tables.ours.rules.iter().map(|rule| (rule.dst.unwrap(), rule.ours[0])).collect();
    let net = |addr: [u8; 4], length: u8, ours| ((IpAddr::from(addr), length), ours);
    let want = [
        net([10, 111, 0, 4], 30, false),
        net([192, 0, 2, 1], 32, false),
        net([10, 96, 0, 0], 12, true),
        net([192, 0, 2, 0], 28, true),
    ];
    assert_eq!(rules, want);
    let rule = &tables.ours.rules[2];
    assert_eq!((rule.protos.len(), rule.dports.clone(), rule.sports.clone()), (3, 0..=65535, 0..=65535));
    assert_eq!((rule.src, rule.port), (None, None));
}
