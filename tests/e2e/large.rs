//! Frames that do not fit a page, on links with an MTU of 9000: they come and go in several buffers.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use control::admin::protocol::WorkerRow;
use testbed::clients::{self, Direction};
use testbed::echo::socket;
use testbed::servers::{self, Servers};
use testbed::topology::{ETH, Family, LAN, Topology};
use testbed::{Service, Weir};

use crate::datagrams::{LARGE, PORT, echoes, exchange, service, without_df};
use crate::{can_run_on_veth, eventually, interfaces, weir};

const JUMBO: u16 = 9000;
const NO_JUMBO: &str = "the bridges between them have an MTU of 1500";
const MODES: [&str; 3] = ["nat", "fullnat", "dr"];

/// How many fragments a namespace has made and put together.
fn fragments(topology: &Topology) -> Result<u64> {
    let namespaces = topology.backends.iter().chain([&topology.client, &topology.gateway]);
    let mut sum = 0;
    for namespace in namespaces {
        let [v4, v6] = ["/proc/thread-self/net/snmp", "/proc/thread-self/net/snmp6"]
            .map(|file| namespace.enter(|| std::fs::read_to_string(file)));
        let (v4, v6) = (v4??, v6??);
        let mut rows = v4.lines().filter(|line| line.starts_with("Ip:")).map(str::split_whitespace);
        if let (Some(names), Some(values)) = (rows.next(), rows.next()) {
            let of_fragments =
                names.zip(values).filter(|(name, _)| name.starts_with("Frag") || name.starts_with("Reasm"));
            sum += of_fragments.map(|(_, value)| value.parse::<u64>().unwrap_or(0)).sum::<u64>();
        }
        let of_fragments =
            v6.lines().filter(|line| line.starts_with("Ip6Frag") || line.starts_with("Ip6Reasm"));
        sum +=
            of_fragments.filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok()).sum::<u64>();
    }
    Ok(sum)
}

#[test]
fn datagrams_of_8_kb_pass_in_one_frame_both_ways() -> Result<()> {
    if !can_run_on_veth(NO_JUMBO) {
        return Ok(());
    }
    let services: Vec<_> =
        Family::BOTH.into_iter().flat_map(|f| MODES.map(|mode| service(f, mode))).collect();
    let topology = Topology::build()?;
    topology.set_mtu(JUMBO)?;
    let _echoes = echoes(&topology, &Family::BOTH)?;
    let weir = Weir::start(&topology, weir(), &testbed::config(&topology, &services))?;
    let before = fragments(&topology)?;
    for service in &services {
        let family = if service.vip.is_ipv4() { Family::V4 } else { Family::V6 };
        // Many ports, so that some are handed from one worker to the other.
        for port in 40_000..40_008 {
            for len in [100, 3800, 3900, LARGE, 8900] {
                exchange(&topology, family.client(), port, service.addr(), len)
                    .map_err(|error| error.context(format!("{}, port {port}, {len} bytes", service.mode)))?;
            }
        }
    }
    assert_eq!(fragments(&topology)?, before, "nobody had to cut anything");
    let workers: Vec<WorkerRow> = serde_json::from_value(weir.show("workers")?)?;
    assert!(workers.iter().any(|worker| worker.handed_over > 0), "{workers:?}");
    Ok(())
}

#[test]
fn connections_with_large_segments_are_whole_and_fast() -> Result<()> {
    if !can_run_on_veth(NO_JUMBO) {
        return Ok(());
    }
    let services: Vec<_> = Family::BOTH
        .into_iter()
        .flat_map(|family| {
            [
                Service::http(family.vip()),
                Service::iperf3(family.vip()),
                Service::http(family.routed_vip()).mode("nat"),
            ]
        })
        .collect();
    let topology = Topology::build()?;
    topology.set_mtu(JUMBO)?;
    let _servers = Servers::start(&topology)?;
    let weir = Weir::start(&topology, weir(), &testbed::config(&topology, &services))?;
    let want = servers::blob();
    for service in services.iter().filter(|service| service.port == servers::HTTP_PORT) {
        for _ in &topology.backends {
            assert!(clients::download(&topology.client, service.addr())? == want, "{}", service.addr());
        }
    }
    for family in Family::BOTH {
        for direction in [Direction::Upload, Direction::Download] {
            let rate = clients::iperf3(&topology.client, family.vip(), direction, Duration::from_secs(1))?;
            // A connection that limps from one retransmission to the next reaches a few Mbit/s.
            assert!(rate > 50e6, "{family:?} {direction:?}: {rate} bit/s");
        }
    }
    drop(weir);
    Ok(())
}

#[test]
fn a_large_datagram_is_cut_for_a_smaller_link_or_its_sender_is_told() -> Result<()> {
    if !can_run_on_veth(NO_JUMBO) {
        return Ok(());
    }
    let services: Vec<_> = MODES.map(|mode| service(Family::V4, mode)).into();
    let topology = Topology::build()?;
    topology.set_mtu(JUMBO)?;
    let _echoes = echoes(&topology, &Family::BOTH)?;
    let weir = Weir::start(&topology, weir(), &testbed::config(&topology, &services))?;
    topology.gateway.ip(&format!("link set {LAN} mtu 1500\n"))?;
    for backend in &topology.backends {
        backend.ip(&format!("link set {ETH} mtu 1500\n"))?;
    }
    // With DF the first one is answered by an ICMP error, and the client cuts those that follow.
    for (mode, port) in MODES.iter().zip(42_000..) {
        exchange(&topology, Family::V4.client(), port, service(Family::V4, mode).addr(), LARGE)
            .map_err(|error| error.context(format!("{mode}, with DF")))?;
    }
    topology.client.ip("route flush cache\n")?;
    without_df(&topology.client)?;
    for (mode, port) in MODES.iter().zip(43_000..) {
        exchange(&topology, Family::V4.client(), port, service(Family::V4, mode).addr(), LARGE)
            .map_err(|error| error.context(format!("{mode}, without DF")))?;
    }
    drop(weir);
    Ok(())
}

#[test]
fn what_is_the_kernels_reaches_it_in_one_frame() -> Result<()> {
    if !can_run_on_veth(NO_JUMBO) {
        return Ok(());
    }
    let services: Vec<_> = Family::BOTH.map(|family| service(family, "nat")).into();
    let topology = Topology::build()?;
    topology.set_mtu(JUMBO)?;
    let weir = Weir::start(&topology, weir(), &testbed::config(&topology, &services))?;
    for (family, backend) in Family::BOTH.into_iter().zip(&topology.backends) {
        // From a service's port, and of no flow: Weir takes it, and finds that it is none of its own.
        let from = socket(backend, (family.backend(if family == Family::V4 { 1 } else { 2 }), PORT).into())?;
        let to = socket(&topology.client, (family.client(), 44_000).into())?;
        to.set_read_timeout(Some(Duration::from_millis(500)))?;
        let (sent, mut got) = ([7; LARGE], [0; 2 * LARGE]);
        eventually(Duration::from_secs(10), || {
            from.send_to(&sent, to.local_addr()?)?;
            let len = to.recv(&mut got)?;
            ensure!(got.get(..len) == Some(&sent), "{len} bytes came, or others");
            Ok(())
        })?;
    }
    let interfaces = interfaces(&weir)?;
    let path = interfaces.iter().find(|row| row.name == "weir1");
    let path = path.context("no kernel path")?;
    let sent: u64 = path.queues.iter().map(|queue| queue.tx).sum();
    assert!(path.mtu == JUMBO && sent >= 2, "{path:?}");
    Ok(())
}
