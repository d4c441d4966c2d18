//! The network without Weir: servers answer, the kernel routes, and nothing is left behind.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use testbed::clients::{self, Direction, Transport};
use testbed::servers::{self, DNS_PORT, HTTP_PORT, Servers};
use testbed::topology::{ETH, Family, LAN, QUEUES, Topology, WAN};

const LIMIT: Duration = Duration::from_secs(5);

/// Whether namespaces can be made; says why not.
fn can_run() -> bool {
    let can = testbed::is_root();
    if !can {
        println!("did not run: network namespaces need root");
    }
    can
}

#[test]
fn every_server_answers_by_way_of_the_gateways_kernel() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let topology = Topology::build()?;
    let _servers = Servers::start(&topology)?;
    for family in Family::BOTH {
        for number in 1..=3 {
            let backend = family.backend(number);
            let name = servers::backend_name(number);
            let http = SocketAddr::new(backend, HTTP_PORT);
            let pages = clients::curl(&topology.client, http, 3)?;
            assert!(
                pages.len() == 3 && pages.iter().all(|page| page.status == 200 && page.text == name),
                "{pages:?}"
            );
            let load = testbed::load(&topology.client, http, 20, 4)?;
            assert!(load.failures.is_empty(), "{:?}", load.failures);
            assert_eq!((load.answers.get(&name), load.latency_us.len()), (Some(&20), 20));
            for transport in [Transport::Udp, Transport::Tcp] {
                let dns = SocketAddr::new(backend, DNS_PORT);
                assert_eq!(clients::dig(&topology.client, dns, transport, 2)?, [&*name, &*name]);
            }
        }
        let backend = family.backend(1);
        assert!(clients::download(&topology.client, SocketAddr::new(backend, HTTP_PORT))? == servers::blob());
        assert!(clients::ping(&topology.client, family.gateway())?);
        assert!(!clients::ping(&topology.client, family.routed_vip())?, "nobody has the address");
        for direction in [Direction::Upload, Direction::Download] {
            let rate = clients::iperf3(&topology.client, backend, direction, Duration::from_secs(1))?;
            assert!(rate > 1e6, "{direction:?}: {rate} bit/s");
        }
    }
    Ok(())
}

#[test]
fn the_gateway_has_its_queues_and_everybody_checksum_offload() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let topology = Topology::build()?;
    let ends = topology.backends.iter().chain([&topology.client]).map(|end| (end, ETH));
    let gateway = [(&topology.gateway, WAN), (&topology.gateway, LAN)];
    for (namespace, name) in ends.chain(gateway) {
        let features = testbed::run(namespace.command("ethtool").args(["-k", name]), LIMIT)?;
        assert!(features.out.contains("tx-checksumming: on"), "{name}: {}", features.out);
    }
    for (namespace, name) in gateway {
        let link = testbed::run(namespace.command("ip").args(["-details", "link", "show", name]), LIMIT)?;
        for direction in ["numtxqueues", "numrxqueues"] {
            assert!(link.out.contains(&format!("{direction} {QUEUES} ")), "{name}: {}", link.out);
        }
    }
    Ok(())
}

#[test]
fn nothing_is_left_behind() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let topology = Topology::build()?;
    let servers = Servers::start(&topology)?;
    let name = topology.client.name().to_owned();
    let scratch = topology.scratch().to_owned();
    assert!(Path::new("/run/netns").join(&name).exists() && scratch.exists());
    drop(topology);
    assert!(!Path::new("/run/netns").join(&name).exists() && !scratch.exists());
    drop(servers);
    Ok(())
}
