//! Loading, attaching, sockets, beats and the maps, on interfaces of the test's own.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsFd;
use std::thread::sleep;
use std::time::{Duration, Instant};

use libbpf_rs::query::{MapInfo, MapInfoIter};
use libbpf_rs::{MapCore as _, MapFlags, MapHandle};
use support::{
    Bench, TCP, enter_namespace, framed, ifindex, ip, ip_packet, monotonic_ns, shift, transport, veth_pair,
    xdp_socket,
};
use xdp_prog::Counter::{NoSocket, NotOurs, Snat, StaleWorker, UnknownPort, Vip};
use xdp_prog::{
    AttachError, Delta, Endpoint, Limits, LoadError, MAX_PORTS, MAX_QUEUES, Mode, Ours, Proto, SocketError,
    SyncError, SyncReport, Xdp,
};

const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 10));
const VIP: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 1));
const SNAT: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 9));

fn vip(port: u16) -> Endpoint {
    Endpoint { addr: VIP, port, proto: Proto::Tcp }
}

fn vips(ports: impl IntoIterator<Item = u16>) -> Ours {
    Ours { vips: ports.into_iter().map(vip).collect(), ..Ours::default() }
}

fn tcp_to(addr: IpAddr, port: u16) -> Vec<u8> {
    framed(&ip_packet(CLIENT, addr, TCP, &transport(9, port)))
}

fn load() -> Xdp {
    Xdp::load(&Limits::default()).expect("load")
}

/// What `ip` says about the program on an interface.
fn shown(name: &str) -> String {
    ip(&format!("-d link show {name}"))
}

/// Waits until no program is on the interface. Another test's child, between fork and exec, may hold a copy of the
/// link for a moment.
fn wait_until_free(name: &str) {
    let deadline = Instant::now() + Duration::from_secs(2);
    while shown(name).contains("xdp") {
        assert!(Instant::now() < deadline, "{}", shown(name));
        sleep(Duration::from_millis(5));
    }
}

#[test]
fn native_mode_is_taken_and_read_back() {
    if !enter_namespace("native mode") {
        return;
    }
    let index = veth_pair("nat0", "nat1");
    let mut xdp = load();
    assert_eq!(xdp.attach(3, index, false).expect("attach"), Mode::Native);
    assert_eq!(xdp.mode(3).expect("mode"), Mode::Native);
    assert!(shown("nat0").contains("prog/xdp id"), "{}", shown("nat0"));
    assert!(!shown("nat0").contains("xdpgeneric"));
}

#[test]
fn generic_mode_is_taken_only_when_allowed() {
    if !enter_namespace("generic mode") {
        return;
    }
    let mut xdp = load();
    let refused = xdp.attach(0, ifindex("lo"), false);
    assert!(matches!(refused, Err(AttachError::NoNative { .. })), "{refused:?}");
    assert!(!shown("lo").contains("xdp"));
    assert_eq!(xdp.attach(0, ifindex("lo"), true).expect("attach"), Mode::Generic);
    assert_eq!(xdp.mode(0).expect("mode"), Mode::Generic);
    assert!(shown("lo").contains("xdpgeneric"));
}

#[test]
fn another_program_on_the_interface_is_named() {
    if !enter_namespace("another program") {
        return;
    }
    let index = veth_pair("two0", "two1");
    let mut first = load();
    first.attach(0, index, false).expect("attach");
    let mut second = load();
    for allow_generic in [false, true] {
        match second.attach(0, index, allow_generic) {
            Err(AttachError::Occupied { program, mode: Mode::Native }) => {
                assert!(shown("two0").contains(&format!("prog/xdp id {program} ")), "{program}");
            }
            other => panic!("{other:?}"),
        }
    }
    drop(first);
    wait_until_free("two0");
    assert_eq!(second.attach(0, index, false).expect("the interface is free again"), Mode::Native);
}

#[test]
fn what_the_driver_cannot_do_now_is_explained() {
    if !enter_namespace("driver's refusal") {
        return;
    }
    ip("link add few0 numrxqueues 1 numtxqueues 1 type veth peer name many0 numrxqueues 4 numtxqueues 4");
    ip("link set few0 up");
    ip("link set many0 up");
    ip("link add big0 type veth peer name big1");
    ip("link set big0 mtu 9000");
    ip("link set big1 mtu 9000");
    let mut xdp = load();
    for name in ["few0", "big0"] {
        let refused = xdp.attach(0, ifindex(name), false);
        assert!(matches!(refused, Err(AttachError::Settings { .. })), "{name}: {refused:?}");
        assert!(!shown(name).contains("xdp"), "{name}");
        assert_eq!(xdp.attach(0, ifindex(name), true).expect("generic"), Mode::Generic, "{name}");
        xdp.detach(0);
        wait_until_free(name);
    }
}

#[test]
fn wrong_interfaces_and_port_numbers_are_refused() {
    if !enter_namespace("wrong interfaces") {
        return;
    }
    let index = veth_pair("ok0", "ok1");
    let mut xdp = load();
    for index in [4_000_000, u32::MAX] {
        let refused = xdp.attach(0, index, true);
        assert!(matches!(refused, Err(AttachError::NoInterface(i)) if i == index), "{refused:?}");
    }
    let port = u8::try_from(MAX_PORTS).unwrap();
    assert!(matches!(xdp.attach(port, index, true), Err(AttachError::TooManyPorts(_))));
    xdp.attach(port - 1, index, false).expect("the last port number");
    assert!(matches!(xdp.attach(port - 1, ifindex("ok1"), false), Err(AttachError::PortInUse(_))));
    assert!(matches!(xdp.mode(0), Err(AttachError::Gone)));
}

#[test]
fn the_program_leaves_with_its_owner() {
    if !enter_namespace("leaving") {
        return;
    }
    let (one, two) = (veth_pair("own0", "own1"), veth_pair("own2", "own3"));
    let mut xdp = load();
    xdp.attach(0, one, false).expect("attach");
    xdp.attach(1, two, false).expect("attach");
    xdp.detach(0);
    xdp.detach(0);
    wait_until_free("own0");
    assert!(shown("own2").contains("xdp"));
    drop(xdp);
    wait_until_free("own2");
}

#[test]
fn frames_of_a_worker_that_is_not_alive_pass_to_the_kernel() {
    if !enter_namespace("beats") {
        return;
    }
    let mut bench = Bench::new(&vips([80]));
    let frame = tcp_to(VIP, 80);
    bench.beat.stop();
    assert_eq!(bench.judge(&frame), NoSocket, "never beaten");
    bench.beat.beat(monotonic_ns());
    assert_eq!(bench.judge(&frame), Vip);
    bench.beat.beat(monotonic_ns() + 1_000_000_000);
    assert_eq!(bench.judge(&frame), Vip, "beaten meanwhile on another core");

    bench.beat.beat(monotonic_ns() - 2_000_000_000);
    assert_eq!(bench.judge(&frame), StaleWorker, "two seconds ago, of one");
    bench.xdp.set_beat_limit(Duration::from_secs(60)).expect("set");
    assert_eq!(bench.judge(&frame), Vip, "two seconds ago, of sixty");

    bench.xdp.set_beat_limit(Duration::from_millis(200)).expect("set");
    bench.beat.beat(monotonic_ns());
    assert_eq!(bench.judge(&frame), Vip);
    sleep(Duration::from_millis(250));
    assert_eq!(bench.judge(&frame), StaleWorker, "the kernel's clock is the same");

    for limit in [Duration::ZERO, Duration::from_micros(999), Duration::from_secs(3601), Duration::MAX] {
        assert!(matches!(bench.xdp.set_beat_limit(limit), Err(SyncError::BeatLimit(_))), "{limit:?}");
    }
}

#[test]
fn each_worker_beats_for_its_own_queue() {
    if !enter_namespace("beats of two workers") {
        return;
    }
    let mut bench = Bench::new(&vips([80]));
    let frame = tcp_to(VIP, 80);
    let socket = xdp_socket();
    bench.xdp.register_socket(0, 1, socket.as_fd()).expect("register");
    assert_eq!(bench.judge_at(&frame, bench.ifindex, 1), NoSocket);
    let beat = bench.xdp.beat(1).expect("worker 1");
    beat.beat(monotonic_ns());
    assert_eq!(bench.judge_at(&frame, bench.ifindex, 1), Vip);
    bench.beat.stop();
    assert_eq!(bench.judge(&frame), NoSocket);
    assert_eq!(bench.judge_at(&frame, bench.ifindex, 1), Vip);

    assert!(bench.xdp.beat(MAX_QUEUES - 1).is_some());
    assert!(bench.xdp.beat(MAX_QUEUES).is_none());
}

#[test]
fn a_beat_outlives_the_loader() {
    if !enter_namespace("beat after the loader") {
        return;
    }
    let beat = load().beat(0).expect("worker 0");
    beat.beat(monotonic_ns());
}

#[test]
fn frames_without_a_socket_pass_to_the_kernel() {
    if !enter_namespace("sockets") {
        return;
    }
    let mut bench = Bench::new(&vips([80]));
    let frame = tcp_to(VIP, 80);
    assert_eq!(bench.judge(&frame), Vip);
    bench.xdp.unregister_socket(0, 0).expect("unregister");
    bench.xdp.unregister_socket(0, 0).expect("twice is no fault");
    assert_eq!(bench.judge(&frame), NoSocket, "unregistered");
    bench.xdp.register_socket(0, 0, bench.socket.as_fd()).expect("register");
    assert_eq!(bench.judge(&frame), Vip);
    bench.socket = xdp_socket();
    assert_eq!(bench.judge(&frame), NoSocket, "closed");

    bench.xdp.register_socket(1, 0, bench.socket.as_fd()).expect("register");
    assert_eq!(bench.judge(&frame), NoSocket, "another port's");
    assert_eq!(bench.judge_at(&frame, ifindex("out0"), 0), UnknownPort);
    bench.xdp.attach(1, ifindex("out0"), false).expect("attach");
    assert_eq!(bench.judge_at(&frame, ifindex("out0"), 0), Vip, "its own");
    bench.xdp.detach(1);
    assert_eq!(bench.judge_at(&frame, ifindex("out0"), 0), UnknownPort);

    let socket = bench.socket.as_fd();
    let past = bench.xdp.register_socket(u8::try_from(MAX_PORTS).unwrap(), 0, socket);
    assert!(matches!(past, Err(SocketError::OutOfRange { .. })), "{past:?}");
    let past = bench.xdp.register_socket(0, MAX_QUEUES, socket);
    assert!(matches!(past, Err(SocketError::OutOfRange { .. })), "{past:?}");
    let wrong = std::net::UdpSocket::bind("127.0.0.1:0").expect("a socket");
    let wrong = bench.xdp.register_socket(0, 0, wrong.as_fd());
    assert!(matches!(wrong, Err(SocketError::Kernel { .. })), "{wrong:?}");
}

#[test]
fn a_change_costs_what_it_changes() {
    if !enter_namespace("changes") {
        return;
    }
    let mut xdp = load();
    let all = 1..=5000;
    // 5000 VIPs on one address.
    let report = |written, deleted| SyncReport { written, deleted };
    let (none, all) = (Ours::default(), vips(all));
    assert_eq!(shift(&mut xdp, &none, &all), report(5001, 0));
    assert_eq!(shift(&mut xdp, &none, &all), report(0, 0), "everything is claimed twice");
    assert_eq!(shift(&mut xdp, &all, &none), report(0, 0), "and once again");
    assert_eq!(shift(&mut xdp, &all, &vips(2..=5001)), report(1, 1));
    let mut more = vips(2..=5001);
    more.node_ports = [(Proto::Udp, 30000), (Proto::Udp, 30001), (Proto::Tcp, 30000)].into();
    assert_eq!(shift(&mut xdp, &vips(2..=5001), &more), report(2, 0), "a word of the bitmap holds 64 ports");
    assert_eq!(shift(&mut xdp, &more, &none), report(2, 5001));
    assert_eq!(shift(&mut xdp, &none, &all), report(5001, 0), "as in the beginning");
}

#[test]
fn a_vip_is_told_whether_its_bucket_has_room_or_not() {
    if !enter_namespace("buckets") {
        return;
    }
    // 128 places, of which some buckets' four do not do.
    let limits = Limits { vips: 64, ..Limits::default() };
    let (all, half) = (vips(1..=64), vips((2..=64).step_by(2)));
    let mut bench = Bench::with_limits(&all, &limits).made_patient();
    let judged =
        |bench: &mut Bench| (1..=66).map(|port| bench.judge(&tcp_to(VIP, port)) == Vip).collect::<Vec<_>>();
    assert_eq!(judged(&mut bench), (1..=66).map(|port| port <= 64).collect::<Vec<_>>());
    shift(&mut bench.xdp, &all, &half);
    assert_eq!(judged(&mut bench), (1..=66).map(|port| port <= 64 && port % 2 == 0).collect::<Vec<_>>());
    shift(&mut bench.xdp, &half, &all);
    assert_eq!(judged(&mut bench), (1..=66).map(|port| port <= 64).collect::<Vec<_>>());
}

#[test]
fn removing_comes_before_and_adding_after_the_workers_know() {
    if !enter_namespace("phases") {
        return;
    }
    let before = Ours { snat: [(SNAT, 1000..=2000)].into(), ..vips([80, 81]) };
    let after = Ours { snat: [(SNAT, 1500..=3000)].into(), ..vips([81, 82]) };
    let mut bench = Bench::new(&before);
    let frames = [tcp_to(VIP, 80), tcp_to(VIP, 81), tcp_to(VIP, 82)];
    let snat = [1400, 1600, 2400].map(|port| tcp_to(SNAT, port));
    let seen = |bench: &mut Bench| {
        (frames.clone().map(|frame| bench.judge(&frame)), snat.clone().map(|frame| bench.judge(&frame)))
    };
    assert_eq!(seen(&mut bench), ([Vip, Vip, NotOurs], [Snat, Snat, NotOurs]));
    bench.xdp.begin(&Delta::between(&before, &after)).expect("begin");
    assert_eq!(seen(&mut bench), ([NotOurs, Vip, NotOurs], [NotOurs, Snat, NotOurs]));
    // What was new is given up again before it was ever handed over, and something else begun.
    let other = Ours { snat: after.snat.clone(), ..vips([80, 81]) };
    bench.xdp.begin(&Delta::between(&after, &other)).expect("begin");
    assert_eq!(seen(&mut bench), ([NotOurs, Vip, NotOurs], [NotOurs, Snat, NotOurs]));
    bench.xdp.begin(&Delta::between(&other, &after)).expect("begin");
    bench.xdp.finish().expect("finish");
    assert_eq!(seen(&mut bench), ([NotOurs, Vip, Vip], [NotOurs, Snat, Snat]));
    assert_eq!(bench.xdp.finish().expect("finish"), SyncReport::default());
}

#[test]
fn a_full_map_is_named_before_anything_changes() {
    if !enter_namespace("full maps") {
        return;
    }
    let limits = Limits { vips: 3, nat_backends: 2, addresses: 2, ..Limits::default() };
    let mut xdp = Xdp::load(&limits).expect("load");
    shift(&mut xdp, &Ours::default(), &vips([1, 2, 3]));
    shift(&mut xdp, &vips([1, 2, 3]), &vips([4, 5, 6]));
    let backends = Ours { nat_backends: [vip(1), vip(2), vip(3)].into(), ..Ours::default() };
    let owned = [1, 2, 3].map(|host| IpAddr::from([10, 0, 0, host]));
    let addresses = Ours { owned: owned.into(), ..Ours::default() };
    for (name, limit, wanted, ours) in
        [("vips", 3, 4, vips([1, 2, 3, 4])), ("backends", 2, 3, backends), ("addresses", 2, 3, addresses)]
    {
        let result = xdp.begin(&Delta::between(&vips([4, 5, 6]), &ours));
        let Err(SyncError::Full { map, limit: said, wanted: asked }) = result else { panic!("{result:?}") };
        assert_eq!((map, said, asked), (name, limit, wanted));
        let result = Xdp::load(&limits).expect("load").begin(&Delta::between(&Ours::default(), &ours));
        assert!(matches!(result, Err(SyncError::Full { map, .. }) if map == name), "{result:?}");
    }
    assert_eq!(xdp.finish().expect("finish"), SyncReport::default());
    assert_eq!(shift(&mut xdp, &vips([4, 5, 6]), &Ours::default()), SyncReport { written: 0, deleted: 4 });
    let zero = Xdp::load(&Limits { nat_backends: 0, ..limits });
    assert!(matches!(zero, Err(LoadError::ZeroLimit("backends"))), "{zero:?}");
}

/// The map of this name that was made for so many entries, as others of the machine have it.
fn map_of(name: &str, limit: u32) -> MapHandle {
    let ours = |map: &MapInfo| map.name.as_encoded_bytes() == name.as_bytes() && map.max_entries == limit;
    let mut found = MapInfoIter::default().filter(ours);
    let map = found.next().expect("the map");
    assert!(found.next().is_none(), "only one has this limit");
    MapHandle::from_map_id(map.id).expect("a map")
}

/// A key that nobody has who means it.
fn foreign_key(map: &MapHandle, number: u32) -> Vec<u8> {
    let mut key = vec![0xee; map.key_size() as usize];
    key.splice(..4, number.to_ne_bytes());
    key
}

#[test]
fn of_a_change_that_the_kernel_refuses_at_its_begin_nothing_is_left() {
    if !enter_namespace("a refusal at the begin") {
        return;
    }
    let before = Ours { snat: [(SNAT, 1000..=2000)].into(), ..vips([80]) };
    let after = Ours { snat: [(SNAT, 1500..=3000)].into(), ..vips([81]) };
    // No other test has maps of these sizes.
    let limits = Limits { vips: 4801, addresses: 4813, ..Limits::default() };
    let mut bench = Bench::with_limits(&before, &limits).made_patient();
    let (vips, addresses) = (map_of("vips", limits.vips), map_of("addresses", limits.addresses));
    let services: Vec<_> = vips.keys().collect();
    // Somebody takes the addresses out and fills the map, so that none can be narrowed.
    let own: Vec<_> = addresses.keys().map(|key| (addresses.lookup(&key, MapFlags::ANY), key)).collect();
    own.iter().for_each(|(_, key)| addresses.delete(key).expect("it is there"));
    for number in 0..limits.addresses {
        addresses
            .update(
                &foreign_key(&addresses, number),
                &vec![0; addresses.value_size() as usize],
                MapFlags::ANY,
            )
            .expect("room");
    }
    let refused = bench.xdp.begin(&Delta::between(&before, &after));
    assert!(matches!(refused, Err(SyncError::Kernel { map: "addresses", .. })), "{refused:?}");
    for number in 0..limits.addresses {
        addresses.delete(&foreign_key(&addresses, number)).expect("it is there");
    }
    for (value, key) in &own {
        let value = value.as_ref().expect("read").as_ref().expect("it was there");
        addresses.update(key, value, MapFlags::ANY).expect("room");
    }
    bench.xdp.finish().expect("there is room again");
    assert_eq!(vips.keys().collect::<Vec<_>>(), services, "the services of before, and no other");
    let judged = [tcp_to(VIP, 80), tcp_to(VIP, 81), tcp_to(SNAT, 1400)].map(|frame| bench.judge(&frame));
    assert_eq!(judged, [Vip, NotOurs, Snat]);
}

#[test]
fn what_the_kernel_refuses_in_the_middle_is_put_right_by_the_next_call() {
    if !enter_namespace("a refusal") {
        return;
    }
    let before = Ours { snat: [(SNAT, 1000..=2000)].into(), ..vips([80, 81]) };
    let after = Ours { snat: [(SNAT, 1500..=3000)].into(), ..vips([81, 82, 83]) };
    // No other test has maps of this size.
    let limits = Limits { vips: 4919, ..Limits::default() };
    let mut bench = Bench::with_limits(&before, &limits).made_patient();
    let frames = [80, 81, 82, 83].map(|port| tcp_to(VIP, port));
    let snat = [1400, 1600, 2400].map(|port| tcp_to(SNAT, port));
    let seen = |bench: &mut Bench| {
        (frames.clone().map(|frame| bench.judge(&frame)), snat.clone().map(|frame| bench.judge(&frame)))
    };
    let at_first = ([Vip, Vip, NotOurs, NotOurs], [Snat, Snat, NotOurs]);
    assert_eq!(seen(&mut bench), at_first);

    // Somebody fills the map, but for the place of the one that goes.
    let others = map_of("vips", limits.vips);
    for number in 0..limits.vips - 2 {
        others.update(&foreign_key(&others, number), &[1], MapFlags::ANY).expect("room");
    }
    bench.xdp.begin(&Delta::between(&before, &after)).expect("nothing is put in yet");
    let refused = bench.xdp.finish();
    assert!(matches!(refused, Err(SyncError::Kernel { map: "vips", .. })), "{refused:?}");
    let (vips_seen, snat_seen) = seen(&mut bench);
    assert_eq!((vips_seen[0], vips_seen[1]), (NotOurs, Vip), "what went is gone, what stays is there");
    assert_eq!(snat_seen, [NotOurs, Snat, NotOurs], "no more than what is in both");
    // A change that begins meanwhile is refused, and is as if it had not been asked for.
    let refused = bench.xdp.begin(&Delta::between(&after, &before));
    assert!(matches!(refused, Err(SyncError::Kernel { map: "vips", .. })), "{refused:?}");
    for number in 0..limits.vips - 2 {
        others.delete(&foreign_key(&others, number)).expect("it is there");
    }
    bench.xdp.finish().expect("there is room again");
    assert_eq!(seen(&mut bench), ([NotOurs, Vip, Vip, Vip], [NotOurs, Snat, Snat]));
    shift(&mut bench.xdp, &after, &before);
    assert_eq!(seen(&mut bench), at_first);
    assert_eq!(others.keys().count(), 2, "nothing is left over");
}
