//! What the kernel says against what the workers get.

use dataplane::snapshot::net::NoHop;

use super::super::event::{Event, KernelNeighbour, KernelRoute};
use super::*;

const ETH1: u32 = 11;
const ETH2: u32 = 12;
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 0xaa];

fn link(index: u32, name: &str) -> KernelLink {
    let mac = [2, 0, 0, 0, 0, u8::try_from(index).unwrap()];
    KernelLink { index, name: Arc::from(name), mac, mtu: 1500, up: true, vlan: None, veth: false }
}

fn vlan(index: u32, lower: u32, tpid: u16, vid: u16) -> KernelLink {
    KernelLink { vlan: Some((lower, tpid, vid)), mtu: 1400, ..link(index, &format!("vlan{index}")) }
}

fn scope() -> Scope {
    Scope { served: vec!["eth1".into(), "eth2".into()], kernel_path: None }
}

fn mirror() -> Mirror {
    let mut mirror = Mirror::default();
    mirror.apply(Event::Link(link(ETH1, "eth1")));
    mirror.apply(Event::Link(link(ETH2, "eth2")));
    mirror
}

fn path(link: u32, gateway: Option<&str>, weight: u16) -> Path {
    Path { weight, ..Path::new(link, gateway.map(|text| text.parse().unwrap())) }
}

fn via(link: u32, gateway: Option<&str>) -> Route {
    Route::Via(vec![path(link, gateway, 1)])
}

/// Adds `10.0.0.0/8` or `fd00::/16`, say, to the mirror.
fn add(mirror: &mut Mirror, table: Table, prefix: &str, metric: u32, route: Route) {
    let (addr, len) = prefix.split_once('/').unwrap();
    let len = len.parse().unwrap();
    let route = match addr.parse().unwrap() {
        IpAddr::V4(v4) => KernelRoute::V4(RouteKey { table, prefix: (v4.to_bits(), len), metric }, route),
        IpAddr::V6(v6) => KernelRoute::V6(RouteKey { table, prefix: (v6.to_bits(), len), metric }, route),
    };
    mirror.apply(Event::Route { route, replace: false });
}

fn place(link: u32, addr: &str) -> Neighbour {
    Neighbour { link, addr: addr.parse().unwrap() }
}

fn neighbour(mirror: &mut Mirror, link: u32, addr: &str, mac: Option<[u8; 6]>) {
    mirror.apply(Event::Neighbour(place(link, addr), KernelNeighbour { mac, fixed: false }));
}

fn compiled(mirror: &Mirror) -> Net {
    compile(mirror, &scope(), &Net::default(), true, HOP_LIMIT)
}

/// Where a packet to `dst` goes: the neighbour that is asked for, or why there is none.
fn target(net: &Net, dst: &str) -> Result<(u32, String), NoHop> {
    match net.hop_to(dst.parse().unwrap(), 0) {
        Err(NoHop::Unresolved(place)) => Ok((place.link, place.addr.to_string())),
        Err(other) => Err(other),
        Ok(id) => panic!("no neighbour is resolved here, yet {id:?}"),
    }
}

#[test]
fn routes_mean_what_the_kernel_means_by_them() {
    use Table::{Local, Main};
    let down = |mirror: &mut Mirror, index: u32| {
        let link = KernelLink { up: false, ..mirror.links[&index].clone() };
        mirror.apply(Event::Link(link));
    };
    type Case = (&'static str, fn(&mut Mirror), &'static str, Result<(u32, &'static str), NoHop>);
    let cases: [Case; 16] = [
        ("no route", |_| (), "10.0.0.1", Err(NoHop::NoRoute)),
        (
            "on the link",
            |m| add(m, Main, "10.0.0.0/8", 0, via(ETH1, None)),
            "10.0.0.1",
            Ok((ETH1, "10.0.0.1")),
        ),
        (
            "by the default route",
            |m| add(m, Main, "0.0.0.0/0", 0, via(ETH1, Some("10.0.0.254"))),
            "192.0.2.1",
            Ok((ETH1, "10.0.0.254")),
        ),
        (
            "the longest prefix",
            |m| {
                add(m, Main, "10.0.0.0/8", 0, via(ETH1, None));
                add(m, Main, "10.1.0.0/16", 0, via(ETH2, None));
            },
            "10.1.0.1",
            Ok((ETH2, "10.1.0.1")),
        ),
        (
            "the lowest metric",
            |m| {
                add(m, Main, "10.0.0.0/8", 100, via(ETH1, None));
                add(m, Main, "10.0.0.0/8", 50, via(ETH2, None));
            },
            "10.0.0.1",
            Ok((ETH2, "10.0.0.1")),
        ),
        ("local", |m| add(m, Local, "10.0.0.1/32", 0, Route::Local), "10.0.0.1", Err(NoHop::Local)),
        (
            "local wins over a longer prefix of the main table",
            |m| {
                add(m, Local, "10.0.0.0/8", 0, Route::Local);
                add(m, Main, "10.1.0.0/16", 0, via(ETH1, None));
            },
            "10.1.0.1",
            Err(NoHop::Local),
        ),
        (
            "refused",
            |m| {
                add(m, Main, "0.0.0.0/0", 0, via(ETH1, None));
                add(m, Main, "10.0.0.0/8", 0, Route::Refused);
            },
            "10.0.0.1",
            Err(NoHop::NoRoute),
        ),
        (
            "a link that no port carries",
            |m| {
                m.apply(Event::Link(link(9, "docker0")));
                add(m, Main, "10.0.0.0/8", 0, via(9, None));
            },
            "10.0.0.1",
            Err(NoHop::NoPort),
        ),
        (
            "an encapsulating route",
            |m| add(m, Main, "10.0.0.0/8", 0, via(NO_LINK, None)),
            "10.0.0.1",
            Err(NoHop::NoPort),
        ),
        (
            "a link that is gone",
            |m| add(m, Main, "10.0.0.0/8", 0, via(99, None)),
            "10.0.0.1",
            Err(NoHop::NoRoute),
        ),
        (
            "a gateway of the other family",
            |m| add(m, Main, "0.0.0.0/0", 0, via(ETH1, Some("fe80::1"))),
            "192.0.2.1",
            Ok((ETH1, "fe80::1")),
        ),
        (
            "IPv6 by the default route",
            |m| add(m, Main, "::/0", 1024, via(ETH2, Some("fe80::1"))),
            "2001:db8::1",
            Ok((ETH2, "fe80::1")),
        ),
        (
            "IPv6 on the link",
            |m| add(m, Main, "fd00::/64", 256, via(ETH1, None)),
            "fd00::5",
            Ok((ETH1, "fd00::5")),
        ),
        ("IPv6 local", |m| add(m, Local, "fd00::1/128", 0, Route::Local), "fd00::1", Err(NoHop::Local)),
        (
            "IPv6 multicast",
            |m| add(m, Local, "ff00::/8", 256, Route::Refused),
            "ff02::1",
            Err(NoHop::NoRoute),
        ),
    ];
    for (name, build, dst, want) in cases {
        let mut mirror = mirror();
        build(&mut mirror);
        let want = want.map(|(link, addr)| (link, addr.to_owned()));
        assert_eq!(target(&compiled(&mirror), dst), want, "{name}");
    }
    let mut mirror = mirror();
    add(&mut mirror, Main, "10.0.0.0/8", 50, via(ETH1, None));
    add(&mut mirror, Main, "10.0.0.0/8", 100, via(ETH2, None));
    down(&mut mirror, ETH1);
    assert_eq!(
        target(&compiled(&mirror), "10.0.0.1"),
        Ok((ETH2, "10.0.0.1".into())),
        "the next metric takes over when a link is down"
    );
    down(&mut mirror, ETH2);
    assert_eq!(target(&compiled(&mirror), "10.0.0.1"), Err(NoHop::NoRoute), "no link is up");
}

#[test]
fn paths_by_links_that_are_down_leave_a_multipath_route() {
    let mut mirror = mirror();
    let paths = vec![path(ETH1, Some("10.0.0.1"), 1), path(ETH2, Some("10.0.1.1"), 3)];
    add(&mut mirror, Table::Main, "0.0.0.0/0", 0, Route::Via(paths.clone()));
    let net = compiled(&mirror);
    assert_eq!(net.routes4.get(&(0, 0)), Some(&Route::Via(paths.clone())));
    assert_eq!(
        next_neighbours(&net, [192, 0, 2, 1].into()).collect::<Vec<_>>(),
        [place(ETH1, "10.0.0.1"), place(ETH2, "10.0.1.1")]
    );
    mirror.apply(Event::Link(KernelLink { up: false, ..link(ETH1, "eth1") }));
    assert_eq!(compiled(&mirror).routes4.get(&(0, 0)), Some(&Route::Via(paths[1..].to_vec())));
}

#[test]
fn vlan_links_carry_their_tags_outer_first() {
    let mut mirror = mirror();
    mirror.apply(Event::Link(vlan(20, ETH2, 0x88a8, 5)));
    mirror.apply(Event::Link(vlan(21, 20, 0x8100, 7)));
    mirror.apply(Event::Link(vlan(22, 21, 0x8100, 8)));
    mirror.apply(Event::Link(vlan(23, 23, 0x8100, 9)));
    mirror.apply(Event::Link(vlan(24, 99, 0x8100, 9)));
    let net = compiled(&mirror);
    let tags = |index| net.links.get(&index).map(|link| (link.port, link.vlans.to_vec(), link.mtu));
    assert_eq!(tags(ETH2), Some((PortId(1), vec![], 1500)));
    assert_eq!(tags(20), Some((PortId(1), vec![(0x88a8, 5)], 1400)));
    assert_eq!(tags(21), Some((PortId(1), vec![(0x88a8, 5), (0x8100, 7)], 1400)));
    assert_eq!(tags(22), None, "three tags");
    assert_eq!(tags(23), None, "a link above itself");
    assert_eq!(tags(24), None, "the link below is unknown");
    neighbour(&mut mirror, 21, "10.0.0.2", Some(MAC));
    add(&mut mirror, Table::Main, "10.0.0.0/8", 0, via(21, None));
    let net = compiled(&mirror);
    let hop = net.hop(net.hop_to([10, 0, 0, 2].into(), 0).unwrap()).unwrap();
    let header = [&MAC[..], &[2, 0, 0, 0, 0, 21], &[0x88, 0xa8, 0, 5, 0x81, 0, 0, 7]].concat();
    assert_eq!((hop.port, hop.header.to_vec(), hop.mtu), (PortId(1), header, 1400));
}

#[test]
fn ports_are_in_the_order_of_the_configuration_and_keep_their_place() {
    let mut mirror = mirror();
    mirror.apply(Event::Link(KernelLink { veth: true, ..link(ETH1, "eth1") }));
    let first = compiled(&mirror);
    let ports: Vec<_> =
        first.ports.iter().map(|port| (&*port.name, port.ifindex, port.partial_checksums)).collect();
    assert_eq!(ports, [("eth1", ETH1, true), ("eth2", ETH2, false)]);
    mirror.apply(Event::LinkGone(ETH1));
    let second = compile(&mirror, &scope(), &first, true, HOP_LIMIT);
    assert_eq!(second.ports, first.ports);
    assert!(!second.links.contains_key(&ETH1));
    mirror.apply(Event::Link(KernelLink { mtu: 9000, ..link(31, "eth1") }));
    let third = compile(&mirror, &scope(), &second, true, HOP_LIMIT);
    assert_eq!((third.ports[0].ifindex, third.ports[0].mtu), (31, 9000), "it is back under another index");
}

#[test]
fn the_kernel_path_is_the_port_behind_the_served_ones() {
    let mut mirror = mirror();
    let scope = Scope { kernel_path: Some(("weir0".into(), "weir1".into())), ..scope() };
    let none = compile(&mirror, &scope, &Net::default(), true, HOP_LIMIT);
    assert_eq!(none.kernel, None, "the pair is not there yet");
    mirror.apply(Event::Link(link(40, "weir0")));
    mirror.apply(Event::Link(link(41, "weir1")));
    let net = compile(&mirror, &scope, &Net::default(), true, HOP_LIMIT);
    assert_eq!(net.kernel, Some((PortId(2), [2, 0, 0, 0, 0, 40])));
    assert_eq!(net.ports[2].ifindex, 41);
    assert!(!net.links.contains_key(&41), "no route leads by the kernel path");
}

#[test]
fn a_neighbour_keeps_its_id_while_it_comes_and_goes() {
    let mut mirror = mirror();
    add(&mut mirror, Table::Main, "10.0.0.0/8", 0, via(ETH1, None));
    neighbour(&mut mirror, ETH1, "10.0.0.3", Some(MAC));
    neighbour(&mut mirror, ETH1, "10.0.0.2", Some(MAC));
    neighbour(&mut mirror, ETH1, "10.0.0.4", None);
    let first = compiled(&mirror);
    assert_eq!(first.neighbours[&place(ETH1, "10.0.0.2")], HopId(0));
    assert_eq!(first.neighbours[&place(ETH1, "10.0.0.3")], HopId(1));
    assert_eq!(first.hops.len(), 2, "an unresolved neighbour has no id");

    neighbour(&mut mirror, ETH1, "10.0.0.3", None);
    neighbour(&mut mirror, ETH1, "10.0.0.1", Some(MAC));
    let second = compile(&mirror, &scope(), &first, false, HOP_LIMIT);
    assert_eq!(second.hop(HopId(1)), None);
    assert_eq!(second.hop_to([10, 0, 0, 3].into(), 0), Err(NoHop::Unresolved(place(ETH1, "10.0.0.3"))));
    assert_eq!(second.neighbours[&place(ETH1, "10.0.0.1")], HopId(2));

    let other = [2, 0, 0, 0, 0, 0xbb];
    neighbour(&mut mirror, ETH1, "10.0.0.3", Some(other));
    let third = compile(&mirror, &scope(), &second, false, HOP_LIMIT);
    assert_eq!(third.hop_to([10, 0, 0, 3].into(), 0), Ok(HopId(1)));
    assert_eq!(third.hop(HopId(1)).unwrap().header[..6], other);
    assert_eq!([first.epoch, second.epoch, third.epoch], [1, 1, 1], "neighbours do not change the epoch");
}

#[test]
fn an_id_changes_hands_only_when_all_are_taken_and_then_the_epoch_says_so() {
    let mut mirror = mirror();
    neighbour(&mut mirror, ETH1, "10.0.0.1", Some(MAC));
    neighbour(&mut mirror, ETH1, "10.0.0.2", Some(MAC));
    let first = compile(&mirror, &scope(), &Net::default(), true, 2);
    neighbour(&mut mirror, ETH1, "10.0.0.3", Some(MAC));
    let full = compile(&mirror, &scope(), &first, false, 2);
    assert_eq!((full.neighbours.len(), full.epoch), (2, first.epoch), "nobody makes way");
    mirror.apply(Event::NeighbourGone(place(ETH1, "10.0.0.1")));
    let reused = compile(&mirror, &scope(), &full, false, 2);
    assert_eq!(reused.neighbours.get(&place(ETH1, "10.0.0.3")), Some(&HopId(0)));
    assert_eq!(reused.neighbours.get(&place(ETH1, "10.0.0.1")), None);
    assert_eq!(reused.epoch, first.epoch + 1);
}

#[test]
fn the_epoch_changes_with_links_and_routes_alone() {
    let mut mirror = mirror();
    let mut net = compiled(&mirror);
    let mut step = |mirror: &Mirror| {
        let epoch = net.epoch;
        net = compile(mirror, &scope(), &net, true, HOP_LIMIT);
        net.epoch - epoch
    };
    assert_eq!(step(&mirror), 0, "nothing");
    add(&mut mirror, Table::Main, "10.0.0.0/8", 0, via(ETH1, None));
    assert_eq!(step(&mirror), 1, "a route");
    add(&mut mirror, Table::Main, "10.0.0.0/8", 100, via(ETH2, None));
    assert_eq!(step(&mirror), 0, "a route that is not used");
    neighbour(&mut mirror, ETH1, "10.0.0.1", Some(MAC));
    assert_eq!(step(&mirror), 0, "a neighbour");
    mirror.apply(Event::Link(KernelLink { mac: [2; 6], ..link(ETH1, "eth1") }));
    assert_eq!(step(&mirror), 0, "an interface's own MAC address: hops are made anew in place");
    mirror.apply(Event::Link(KernelLink { up: false, ..link(ETH1, "eth1") }));
    assert_eq!(step(&mirror), 1, "a link");
}

#[test]
fn gateways_are_those_by_carried_links() {
    let mut mirror = mirror();
    mirror.apply(Event::Link(link(9, "docker0")));
    add(&mut mirror, Table::Main, "0.0.0.0/0", 0, via(ETH1, Some("10.0.0.254")));
    add(&mut mirror, Table::Main, "10.0.0.0/8", 0, via(ETH1, None));
    add(&mut mirror, Table::Main, "172.17.0.0/16", 0, via(9, Some("172.17.0.1")));
    add(&mut mirror, Table::Main, "::/0", 0, via(ETH2, Some("fe80::1")));
    let net = compiled(&mirror);
    assert_eq!(gateways(&net).collect::<Vec<_>>(), [place(ETH1, "10.0.0.254"), place(ETH2, "fe80::1")]);
    assert_eq!(on_link(&net, [10, 1, 1, 1].into()), Some(ETH1));
    assert_eq!(on_link(&net, [192, 0, 2, 1].into()), None, "behind a gateway");
}

#[test]
fn a_path_has_the_source_address_that_the_kernel_would_select() {
    let on = |link, addr: &str, len| Event::Address(link, addr.parse().unwrap(), len);
    let preferred = |source: &str| {
        Route::Via(vec![Path { source: Some(source.parse().unwrap()), ..path(ETH1, Some("10.9.0.1"), 1) }])
    };
    type Case = (&'static str, Vec<Event>, &'static str, Route, &'static str, Option<&'static str>);
    let cases: [Case; 8] = [
        ("no address at all", vec![], "10.0.0.0/8", via(ETH1, None), "10.0.0.1", None),
        (
            "the preferred one",
            vec![on(ETH1, "10.9.0.7", 16)],
            "0.0.0.0/0",
            preferred("192.0.2.9"),
            "1.1.1.1",
            Some("192.0.2.9"),
        ),
        (
            "the one in the gateway's network",
            vec![on(ETH1, "10.8.0.7", 16), on(ETH1, "10.9.0.7", 16), on(ETH2, "10.9.0.8", 16)],
            "0.0.0.0/0",
            via(ETH1, Some("10.9.0.1")),
            "1.1.1.1",
            Some("10.9.0.7"),
        ),
        (
            "another of the link",
            vec![on(ETH1, "172.16.0.7", 16)],
            "0.0.0.0/0",
            via(ETH1, Some("10.9.0.1")),
            "1.1.1.1",
            Some("172.16.0.7"),
        ),
        (
            "one of another link",
            vec![on(ETH2, "172.16.0.7", 16)],
            "0.0.0.0/0",
            via(ETH1, Some("10.9.0.1")),
            "1.1.1.1",
            Some("172.16.0.7"),
        ),
        (
            "never loopback's",
            vec![on(1, "127.0.0.1", 8)],
            "0.0.0.0/0",
            via(ETH1, Some("10.9.0.1")),
            "1.1.1.1",
            None,
        ),
        (
            "behind a link-local gateway the link's global one",
            vec![on(ETH1, "fe80::1", 64), on(ETH1, "fd00::1", 64)],
            "::/0",
            via(ETH1, Some("fe80::99")),
            "fd77::1",
            Some("fd00::1"),
        ),
        (
            "of the packet's family",
            vec![on(ETH1, "10.0.0.1", 8)],
            "fd00::/16",
            via(ETH1, None),
            "fd00::9",
            None,
        ),
    ];
    for (name, addresses, prefix, route, dst, want) in cases {
        let mut mirror = mirror();
        addresses.into_iter().for_each(|event| mirror.apply(event));
        add(&mut mirror, Table::Main, prefix, 0, route);
        neighbour(&mut mirror, ETH1, "10.9.0.1", Some(MAC));
        neighbour(&mut mirror, ETH1, "fe80::99", Some(MAC));
        neighbour(&mut mirror, ETH1, dst, Some(MAC));
        let net = compiled(&mirror);
        let (_, path) = net.way_to(dst.parse().unwrap(), 0).unwrap();
        assert_eq!(path.source, want.map(|text| text.parse().unwrap()), "{name}");
    }
}
