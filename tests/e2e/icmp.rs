//! ICMP errors on the way: of Weir itself, and of routers, translated.

use std::net::IpAddr;

use anyhow::{Result, ensure};
use testbed::topology::{ETH, Family, Topology, WAN, veth};
use testbed::{Namespace, Service, clients, run, servers};

use crate::{LIMIT, Setup, both};

const SMALL_MTU: u32 = 1400;

/// A host behind the client, which routes for it; the way back to the host takes packets of [`SMALL_MTU`] bytes only,
/// but the host itself does not know.
fn host_behind_the_client(topology: &Topology) -> Result<(Namespace, [IpAddr; 2])> {
    let host = topology.add("host")?;
    let addresses: [(IpAddr, IpAddr, u8); 2] =
        [("10.5.0.2".parse()?, "10.5.0.1".parse()?, 24), ("fd00:5::2".parse()?, "fd00:5::1".parse()?, 64)];
    topology.client.sysctl("net/ipv4/ip_forward", "1")?;
    topology.client.sysctl("net/ipv6/conf/all/forwarding", "1")?;
    veth(&topology.client, "behind", &host, ETH, 1)?;
    for (family, (own, router, prefix)) in Family::BOTH.into_iter().zip(addresses) {
        topology.client.ip(&format!("address add {router}/{prefix} dev behind\n"))?;
        host.ip(&format!("address add {own}/{prefix} dev {ETH}\nroute add default via {router}\n"))?;
        topology.gateway.ip(&format!("route add {own} via {}\n", family.client()))?;
    }
    topology.client.ip(&format!("link set behind mtu {SMALL_MTU}\n"))?;
    Ok((host, addresses.map(|(own, ..)| own)))
}

/// The path MTUs that a backend has learnt, of any destination.
fn learnt(topology: &Topology, towards: IpAddr) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for backend in &topology.backends {
        let said = run(backend.command("ip").args(["route", "get", &towards.to_string()]), LIMIT)?;
        ensure!(said.status.success(), "{}", said.err);
        found.push(said.out);
    }
    Ok(found)
}

fn assert_learnt(topology: &Topology, towards: IpAddr, mode: &str) -> Result<()> {
    let routes = learnt(topology, towards)?;
    assert!(routes.iter().any(|route| route.contains(&format!("mtu {SMALL_MTU}"))), "{mode}: {routes:?}");
    Ok(())
}

#[test]
fn a_routers_too_big_reaches_the_backend_about_its_own_packets() -> Result<()> {
    for mode in ["nat", "fullnat"] {
        let services = both(|family| Service::http(family.vip()).mode(mode));
        let Some(setup) = Setup::start(&services)? else { return Ok(()) };
        let (host, own) = host_behind_the_client(&setup.topology)?;
        for ((service, family), own) in services.iter().zip(Family::BOTH).zip(own) {
            assert!(
                clients::download(&host, service.addr())? == servers::blob(),
                "{} {mode}",
                service.addr()
            );
            // The backend sent its packets to whom it sees, and so that is whose path it learnt about.
            let towards = if mode == "nat" { own } else { family.snat() };
            assert_learnt(&setup.topology, towards, mode)?;
        }
    }
    Ok(())
}

#[test]
fn weir_says_too_big_itself_where_the_next_link_is_small() -> Result<()> {
    for mode in ["nat", "fullnat"] {
        let services = both(|family| Service::http(family.vip()).mode(mode));
        let Some(setup) = Setup::start(&services)? else { return Ok(()) };
        // The client's own MTU stays, and so does the segment size that it offers.
        setup.topology.gateway.ip(&format!("link set {WAN} mtu {SMALL_MTU}\n"))?;
        for (service, family) in services.iter().zip(Family::BOTH) {
            let got = clients::download(&setup.topology.client, service.addr())?;
            assert!(got == servers::blob(), "{} {mode}", service.addr());
            let towards = if mode == "nat" { family.client() } else { family.snat() };
            assert_learnt(&setup.topology, towards, mode)?;
        }
    }
    Ok(())
}
