//! The mirror, the requests and the kernel path against the kernel itself, in namespaces.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod netns;

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::{IpAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use control::netlink::announce::Announcer;
use control::netlink::compile::{HOP_LIMIT, Scope, compile};
use control::netlink::kernel_path::{KernelPath, KernelPathError, names};
use control::netlink::mirror::Mirror;
use control::netlink::monitor::Monitor;
use dataplane::snapshot::Net;
use dataplane::snapshot::net::{Neighbour, NoHop, Route};
use etherparse::PacketBuilder;
use netns::{Netns, ip, is_root};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, bind, send, socket};
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(10);

/// Runs `work` in a namespace, in a tokio runtime.
fn block_on<T: Send>(netns: &Netns, work: impl AsyncFnOnce() -> T + Send) -> T {
    netns.enter(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(work())
    })
}

/// Follows the kernel until the mirror is as `wanted`.
async fn until(monitor: &mut Monitor, what: &str, wanted: impl Fn(&Mirror) -> bool) {
    let follow = async {
        loop {
            monitor.settle().await.unwrap();
            if wanted(monitor.mirror()) {
                return;
            }
            monitor.changed().await.unwrap();
        }
    };
    if timeout(PATIENCE, follow).await.is_err() {
        let mirror = monitor.mirror();
        let routes = (mirror.routes4.iter().count(), mirror.routes6.iter().count());
        panic!("the mirror never had: {what}; it has {:#?}, {routes:?} routes", mirror.neighbours);
    }
}

fn compiled(mirror: &Mirror) -> Net {
    let served = vec![Arc::from("eth1"), Arc::from("eth2")];
    compile(mirror, &Scope { served, kernel_path: None }, &Net::default(), true, HOP_LIMIT)
}

fn addr(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn link(mirror: &Mirror, name: &str) -> u32 {
    mirror.link_named(name).unwrap().index
}

/// The neighbour that packets to `dst` need, or why there is none.
fn next(mirror: &Mirror, dst: &str) -> Result<String, NoHop> {
    match compiled(mirror).hop_to(addr(dst), 0) {
        Ok(_) => Ok("resolved".into()),
        Err(NoHop::Unresolved(place)) => Ok(place.addr.to_string()),
        Err(other) => Err(other),
    }
}

/// Whether this kernel can make VLAN links; says so where not.
fn has_vlans() -> bool {
    let made = Command::new("ip")
        .args(["link", "add", "link", "eth1", "name", "probe", "type", "vlan", "id", "9"])
        .output();
    let made = made.unwrap().status.success();
    if made {
        ip("link del probe");
    } else {
        eprintln!("not run: this kernel has no VLAN links (8021q)");
    }
    made
}

#[test]
fn the_mirror_follows_links_addresses_routes_and_neighbours() {
    if !is_root() {
        return;
    }
    let (own, far) = (Netns::new(), Netns::new());
    own.connect("eth1", &far, "far1");
    own.connect("eth2", &far, "far2");
    own.ip("addr add 10.1.0.1/24 dev eth1");
    block_on(&own, async || {
        let mut monitor = Monitor::open().await.unwrap();
        let mirror = monitor.mirror();
        assert_eq!(next(mirror, "10.1.0.2"), Ok("10.1.0.2".into()), "what was there before is there");
        assert_eq!(next(mirror, "10.1.0.1"), Err(NoHop::Local));
        assert_eq!(next(mirror, "10.1.0.255"), Err(NoHop::NoRoute), "a broadcast address");
        assert!(mirror.link_named("eth1").unwrap().veth);
        let eth1 = link(mirror, "eth1");

        ip("addr add 10.2.0.1/24 dev eth2");
        until(&mut monitor, "a connected route", |m| next(m, "10.2.0.2") == Ok("10.2.0.2".into())).await;
        ip("route add default via 10.1.0.254");
        until(&mut monitor, "a default route", |m| next(m, "192.0.2.1") == Ok("10.1.0.254".into())).await;
        ip("route replace default via 10.2.0.254");
        until(&mut monitor, "one in its place", |m| next(m, "192.0.2.1") == Ok("10.2.0.254".into())).await;
        ip("route add 192.0.2.0/24 nexthop via 10.1.0.3 weight 2 nexthop via 10.2.0.3");
        let two = |m: &Mirror| matches!(compiled(m).routes4.get(&(0xc000_0200, 24)), Some(Route::Via(paths)) if paths.len() == 2);
        until(&mut monitor, "a multipath route", two).await;
        ip("route add blackhole 198.51.100.0/24");
        until(&mut monitor, "a blackhole", |m| next(m, "198.51.100.1") == Err(NoHop::NoRoute)).await;
        ip("route append 203.0.113.0/24 via 10.1.0.9 metric 7");
        ip("route append 203.0.113.0/24 via 10.2.0.9 metric 7");
        until(&mut monitor, "the first of two with one key", |m| {
            next(m, "203.0.113.1") == Ok("10.1.0.9".into())
        })
        .await;
        ip("route del 203.0.113.0/24 via 10.1.0.9 metric 7");
        until(&mut monitor, "the second", |m| next(m, "203.0.113.1") == Ok("10.2.0.9".into())).await;

        let path = |m: &Mirror, prefix| match compiled(m).routes4.get(&prefix) {
            Some(Route::Via(paths)) => paths.first().map(|path| (path.source, path.mtu)),
            _ => None,
        };
        ip("addr add 10.1.0.99/24 dev eth1");
        ip("route add 10.77.0.0/16 via 10.1.0.254 src 10.1.0.99 mtu 1300");
        until(&mut monitor, "a route with a source and an MTU", |m| {
            path(m, (0x0a4d_0000, 16)) == Some((Some(addr("10.1.0.99")), Some(1300)))
        })
        .await;
        let connected = path(monitor.mirror(), (0x0a02_0000, 24));
        assert_eq!(connected, Some((Some(addr("10.2.0.1")), None)), "the kernel's own route");

        ip("-6 addr add fd01::1/64 dev eth1 nodad");
        ip("-6 addr add fd02::1/64 dev eth2 nodad");
        until(&mut monitor, "IPv6", |m| next(m, "fd01::2") == Ok("fd01::2".into())).await;
        ip("-6 route add 2001:db8::/32 nexthop via fd01::9 nexthop via fd02::9");
        let paths6 = |m: &Mirror| match compiled(m).routes6.get(&(0x2001_0db8 << 96, 32)) {
            Some(Route::Via(paths)) => paths.len(),
            _ => 0,
        };
        until(&mut monitor, "an IPv6 multipath route", |m| paths6(m) == 2).await;
        ip("-6 route del 2001:db8::/32 via fd02::9");
        until(&mut monitor, "it with one path less", |m| paths6(m) == 1).await;

        let place = Neighbour { link: eth1, addr: addr("10.1.0.2") };
        let mac = |m: &Mirror| m.neighbours.get(&place).and_then(|entry| entry.mac);
        ip("neigh add 10.1.0.2 lladdr 02:00:00:00:00:02 dev eth1 nud stale");
        until(&mut monitor, "a neighbour", |m| mac(m) == Some([2, 0, 0, 0, 0, 2])).await;
        ip("neigh replace 10.1.0.2 lladdr 02:00:00:00:00:03 dev eth1 nud stale");
        until(&mut monitor, "its new MAC address", |m| mac(m) == Some([2, 0, 0, 0, 0, 3])).await;
        assert_eq!(next(monitor.mirror(), "10.1.0.2"), Ok("resolved".into()));
        ip("neigh del 10.1.0.2 dev eth1");
        until(&mut monitor, "no neighbour", |m| mac(m).is_none()).await;

        if has_vlans() {
            ip("link add link eth1 name tagged type vlan proto 802.1ad id 5");
            ip("link set tagged up");
            let tags = |m: &Mirror| {
                let index = m.link_named("tagged")?.index;
                Some(compiled(m).links.get(&index)?.vlans.to_vec())
            };
            until(&mut monitor, "a VLAN link", |m| tags(m) == Some(vec![(0x88a8, 5)])).await;
        }
        ip("link set eth1 address 02:00:00:00:00:77 mtu 1400");
        let port = |m: &Mirror| compiled(m).ports[0].clone();
        until(&mut monitor, "a new MAC address and MTU", |m| {
            (port(m).mac, port(m).mtu) == ([2, 0, 0, 0, 0, 0x77], 1400)
        })
        .await;

        // The kernel takes these routes away without a word about them.
        ip("link set eth2 down");
        until(&mut monitor, "no routes by a link that is down", |m| {
            next(m, "192.0.2.1") == Ok("10.1.0.3".into())
        })
        .await;
        until(&mut monitor, "no default route", |m| next(m, "8.8.8.8") == Err(NoHop::NoRoute)).await;
        ip("link del eth1");
        until(&mut monitor, "no eth1", |m| m.link_named("eth1").is_none() && m.neighbours.is_empty()).await;
    });
}

#[test]
fn lost_notifications_are_made_up_for() {
    const ROUTES: usize = 20_000;
    if !is_root() {
        return;
    }
    let (own, far) = (Netns::new(), Netns::new());
    own.connect("eth1", &far, "far1");
    own.ip("addr add 10.1.0.1/24 dev eth1");
    block_on(&own, async || {
        let mut monitor = Monitor::open().await.unwrap();
        // Nothing of this is read before all is there: the socket's buffer overflows.
        let mut batch = String::new();
        for number in 0..ROUTES {
            writeln!(batch, "route add 20.{}.{}.0/24 via 10.1.0.2", number >> 8, number & 0xff).unwrap();
        }
        let mut child = Command::new("ip").args(["-batch", "-"]).stdin(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(batch.as_bytes()).unwrap();
        assert!(child.wait().unwrap().success());
        let routes = |m: &Mirror| m.routes4.iter().filter(|(key, _)| key.prefix.0 >> 24 == 20).count();
        until(&mut monitor, "all routes", |m| routes(m) == ROUTES).await;
        ip("route add 20.255.0.0/24 via 10.1.0.2");
        until(&mut monitor, "one more", |m| routes(m) == ROUTES + 1).await;
        assert!(monitor.mirror().overruns() > 0, "this test is about lost notifications");
    });
}

#[test]
fn a_neighbour_that_is_asked_for_gets_resolved_and_a_stale_one_probed() {
    if !is_root() {
        return;
    }
    let (own, far) = (Netns::new(), Netns::new());
    own.connect("eth1", &far, "far1");
    own.ip("addr add 10.1.0.1/24 dev eth1");
    own.ip("-6 addr add fd01::1/64 dev eth1 nodad");
    far.ip("addr add 10.1.0.2/24 dev far1");
    far.ip("-6 addr add fd01::2/64 dev far1 nodad");
    for family in ["ipv4", "ipv6"] {
        own.sysctl(&format!("net/{family}/neigh/eth1/delay_first_probe_time"), "1");
    }
    block_on(&own, async || {
        let mut monitor = Monitor::open().await.unwrap();
        let eth1 = link(monitor.mirror(), "eth1");
        for text in ["10.1.0.2", "fd01::2"] {
            let place = Neighbour { link: eth1, addr: addr(text) };
            assert_eq!(monitor.mirror().neighbours.get(&place), None);
            monitor.ask(place).await.unwrap();
            until(&mut monitor, text, |m| m.neighbours.get(&place).is_some_and(|entry| entry.mac.is_some()))
                .await;

            let stale = ip(&format!("neigh show {text}"));
            let mac = stale.split_whitespace().skip_while(|word| *word != "lladdr").nth(1).unwrap();
            ip(&format!("neigh replace {text} lladdr {mac} dev eth1 nud stale"));
            assert!(ip(&format!("neigh show {text}")).contains("STALE"));
            monitor.ask(place).await.unwrap();
            let probed = async {
                while !ip(&format!("neigh show {text}")).contains("REACHABLE") {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            };
            assert!(timeout(PATIENCE, probed).await.is_ok(), "{text} was not probed");
        }
        let nobody = Neighbour { link: eth1, addr: addr("10.1.0.77") };
        monitor.ask(nobody).await.unwrap();
        until(&mut monitor, "an attempt that fails", |m| {
            m.neighbours.get(&nobody).is_some_and(|entry| entry.mac.is_none())
        })
        .await;
        monitor.ask(nobody).await.unwrap();
        let no_link = Neighbour { link: 9999, addr: addr("10.1.0.2") };
        assert!(monitor.ask(no_link).await.is_err(), "a link that does not exist");
    });
}

/// Sends a frame by the packet socket of an interface.
fn send_frame(interface: &str, frame: &[u8]) {
    let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None).unwrap();
    let mut interfaces = nix::ifaddrs::getifaddrs().unwrap();
    let is_it = |found: &nix::ifaddrs::InterfaceAddress| {
        let link = found.address.as_ref().and_then(|addr| addr.as_link_addr());
        found.interface_name == interface && link.is_some()
    };
    let address = interfaces.find(is_it).unwrap().address.unwrap();
    bind(socket.as_raw_fd(), &address).unwrap();
    assert_eq!(send(socket.as_raw_fd(), frame, MsgFlags::empty()).unwrap(), frame.len());
}

#[test]
fn what_is_sent_by_the_kernel_path_is_received_or_routed_on_by_the_kernel() {
    if !is_root() {
        return;
    }
    let (own, far) = (Netns::new(), Netns::new());
    own.connect("eth1", &far, "far1");
    own.ip("addr add 10.1.0.1/24 dev eth1");
    own.ip("-6 addr add fd01::1/64 dev eth1 nodad");
    far.ip("addr add 10.1.0.2/24 dev far1");
    far.ip("-6 addr add fd01::2/64 dev far1 nodad");
    own.ip("route add default via 10.1.0.2");
    own.ip("-6 route add default via fd01::2");
    own.sysctl("net/ipv4/ip_forward", "1");
    own.sysctl("net/ipv6/conf/all/forwarding", "1");
    for rp_filter in ["0", "1", "2"] {
        own.sysctl("net/ipv4/conf/all/rp_filter", rp_filter);
        let path = block_on(&own, async || {
            let monitor = Monitor::open().await.unwrap();
            KernelPath::create(monitor.handle(), &names("weir0"), 2, 9000).await.unwrap()
        });
        let details = own.ip("-d addr show weir1");
        assert!(details.contains("numtxqueues 2 numrxqueues 2"), "{details}");
        for name in ["weir0", "weir1"] {
            let shown = own.ip(&format!("addr show {name}"));
            let addresses = shown.matches("inet").count();
            let dummy = usize::from(name == "weir0" && rp_filter != "0");
            assert_eq!(addresses, dummy, "no addresses but the dummy: {shown}");
        }
        for (from, to, netns) in [
            ("198.51.100.7", "10.1.0.2", &far),
            ("198.51.100.7", "10.1.0.1", &own),
            ("2001:db8::7", "fd01::2", &far),
            ("2001:db8::7", "fd01::1", &own),
        ] {
            let receiver = netns.enter(|| UdpSocket::bind((addr(to), 5300)).unwrap());
            receiver.set_read_timeout(Some(PATIENCE)).unwrap();
            let builder = PacketBuilder::ethernet2([2; 6], path.kernel_end.mac);
            let mut frame = Vec::new();
            match (addr(from), addr(to)) {
                (IpAddr::V4(from), IpAddr::V4(to)) => {
                    builder
                        .ipv4(from.octets(), to.octets(), 64)
                        .udp(1111, 5300)
                        .write(&mut frame, b"hello")
                        .unwrap();
                }
                (IpAddr::V6(from), IpAddr::V6(to)) => {
                    builder
                        .ipv6(from.octets(), to.octets(), 64)
                        .udp(1111, 5300)
                        .write(&mut frame, b"hello")
                        .unwrap();
                }
                _ => unreachable!(),
            }
            own.enter(|| send_frame("weir1", &frame));
            let mut buffer = [0; 16];
            let (count, sender) = receiver
                .recv_from(&mut buffer)
                .unwrap_or_else(|error| panic!("{from} to {to}, rp_filter {rp_filter}: {error}"));
            assert_eq!((&buffer[..count], sender.ip()), (&b"hello"[..], addr(from)));
        }
    }
    block_on(&own, async || {
        let monitor = Monitor::open().await.unwrap();
        let again = KernelPath::create(monitor.handle(), &names("weir0"), 1, 1500).await.unwrap();
        again.remove(monitor.handle()).await.unwrap();
        assert!(!ip("link show").contains("weir"), "both ends are gone");
        ip("tuntap add weir1 mode tap");
        let taken = KernelPath::create(monitor.handle(), &names("weir0"), 1, 1500).await;
        assert!(matches!(taken, Err(KernelPathError::Taken { name }) if &*name == "weir1"));
        assert!(ip("link show weir1").contains("weir1"), "what is not Weir's stays");
    });
}

#[test]
fn owned_addresses_are_announced_and_their_groups_joined() {
    if !is_root() {
        return;
    }
    let (own, far) = (Netns::new(), Netns::new());
    own.connect("eth1", &far, "far1");
    own.ip("addr add 10.1.0.1/24 dev eth1");
    own.ip("-6 addr add fd01::1/64 dev eth1 nodad");
    far.ip("addr add 10.1.0.2/24 dev far1");
    far.ip("-6 addr add fd01::2/64 dev far1 nodad");
    far.sysctl("net/ipv4/neigh/far1/locktime", "0");
    let vips = ["10.1.0.10", "fd01::abcd:1234"];
    for vip in vips {
        far.ip(&format!("neigh add {vip} lladdr 02:00:00:00:00:99 dev far1 nud stale"));
    }
    block_on(&own, async || {
        let monitor = Monitor::open().await.unwrap();
        let scope = Scope { served: vec![Arc::from("eth1")], kernel_path: None };
        let net = compile(monitor.mirror(), &scope, &Net::default(), true, HOP_LIMIT);
        let mac = net.ports[0].mac.map(|byte| format!("{byte:02x}")).join(":");
        let mut announcer = Announcer::open(&net.ports).unwrap();
        announcer.follow(&net, vips.map(|vip| (addr(vip), true)));
        announcer.send_due(&net, 1);
        assert!(announcer.is_pending(), "no more than asked for");
        announcer.send_due(&net, 64);
        assert!(!announcer.is_pending());
        for vip in vips {
            let learned = async {
                while !far.ip(&format!("neigh show {vip}")).contains(&mac) {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            };
            assert!(timeout(PATIENCE, learned).await.is_ok(), "{vip}: {}", far.ip("neigh show"));
        }
        announcer.net_changed(&net, &net);
        assert!(!announcer.is_pending(), "nothing is new");
        let mut moved = net.clone();
        moved.ports[0].mac = [2, 0, 0, 0, 0, 0x88];
        announcer.net_changed(&net, &moved);
        announcer.net_changed(&Net::default(), &net);
        assert!(announcer.is_pending(), "another MAC address, a link that came up");
        announcer.send_due(&net, 64);

        let group = "33:33:ff:cd:12:34";
        assert!(ip("maddr show dev eth1").contains(group));
        announcer.follow(&net, [(addr("fd01::abcd:1234"), false)]);
        assert!(!ip("maddr show dev eth1").contains(group));
        announcer.follow(&net, vips.map(|vip| (addr(vip), true)));
        assert!(ip("maddr show dev eth1").contains(group));
        drop(announcer);
        assert!(!ip("maddr show dev eth1").contains(group), "memberships end with the process");
    });
}
