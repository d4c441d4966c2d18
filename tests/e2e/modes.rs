//! Every forwarding mode before real web servers: what reaches the backend in a tunnel is taken out of it by the
//! kernel's own devices, where this kernel has them.

use std::collections::BTreeSet;
use std::path::PathBuf;

use anyhow::Result;
use testbed::topology::{BACKENDS, Family, LAN, Topology};
use testbed::tunnels::{GUE_PORT, decapsulate};
use testbed::{Service, Weir, clients, servers};

use crate::{Setup, can_run, weir};

const TUNNELS: [&str; 3] = ["ipip", "gue", "gre"];

/// The web service in `mode`, on the VIP that suits it.
fn service(family: Family, mode: &'static str) -> Service {
    match mode {
        "fullnat" => Service::http(family.vip()).mode(mode),
        "nat" => Service::http(family.routed_vip()).mode(mode),
        "gue" => Service::http(family.shared_vip()).mode(mode).key(format!("tunnel: {{port: {GUE_PORT}}}")),
        _ => Service::http(family.shared_vip()).mode(mode),
    }
}

/// The network with backends that take `mode`'s packets; `None` where that cannot be, which it says.
fn start(services: &[Service], mode: &str) -> Result<Option<Setup>> {
    if !can_run() {
        return Ok(None);
    }
    let topology = Topology::build()?;
    if TUNNELS.contains(&mode) {
        for (number, backend) in (1..).zip(&topology.backends) {
            if let Err(error) = decapsulate(backend, number, mode) {
                println!(
                    "did not run: this kernel takes no packets out of {mode} tunnels ({error:#}); make test-vm has one \
                     that does"
                );
                return Ok(None);
            }
        }
    }
    let servers = servers::Servers::start(&topology)?;
    let weir = Weir::start(&topology, weir(), &testbed::config(&topology, services))?;
    Ok(Some(Setup { weir, _servers: servers, topology }))
}

/// A file as large as [`servers::blob`].
fn body(topology: &Topology) -> Result<PathBuf> {
    let path = topology.scratch().join("body");
    std::fs::write(&path, servers::blob())?;
    Ok(path)
}

fn works(setup: &Setup, service: &Service) -> Result<()> {
    let client = &setup.topology.client;
    let what = format!("{} {}", service.addr(), service.mode);
    let pages = clients::curl(client, service.addr(), 12)?;
    let answered: BTreeSet<_> = pages.into_iter().map(|page| (page.status, page.text)).collect();
    let all: BTreeSet<_> = (1..=BACKENDS).map(|number| (200, servers::backend_name(number))).collect();
    assert_eq!(answered, all, "{what}");
    assert!(clients::download(client, service.addr())? == servers::blob(), "{what}: download");
    clients::upload(client, service.addr(), &body(&setup.topology)?)
}

/// Pages, a download and an upload, on the way as it is and then with 1400 bytes at most behind Weir.
fn serves(mode: &'static str) -> Result<()> {
    let services = Family::BOTH.map(|family| service(family, mode));
    let Some(setup) = start(&services, mode)? else { return Ok(()) };
    for service in &services {
        works(&setup, service)?;
    }
    setup.topology.gateway.ip(&format!("link set {LAN} mtu 1400\n"))?;
    for service in &services {
        clients::upload(&setup.topology.client, service.addr(), &body(&setup.topology)?)?;
    }
    Ok(())
}

#[test]
fn nat_serves_and_tells_of_a_small_hop() -> Result<()> {
    serves("nat")
}

#[test]
fn fullnat_serves_and_tells_of_a_small_hop() -> Result<()> {
    serves("fullnat")
}

#[test]
fn dr_serves_and_tells_of_a_small_hop() -> Result<()> {
    serves("dr")
}

#[test]
fn ipip_serves_and_tells_of_a_small_hop() -> Result<()> {
    serves("ipip")
}

#[test]
fn gue_serves_and_tells_of_a_small_hop() -> Result<()> {
    serves("gue")
}

#[test]
fn gre_serves_and_tells_of_a_small_hop() -> Result<()> {
    serves("gre")
}

#[test]
fn tunnels_lead_through_a_network_of_the_other_family() -> Result<()> {
    for mode in ["ipip", "gre"] {
        let services = [(Family::V4, Family::V6), (Family::V6, Family::V4)]
            .map(|(inner, outer)| service(inner, mode).backends_of(outer));
        let Some(setup) = start(&services, mode)? else { return Ok(()) };
        for service in &services {
            works(&setup, service)?;
        }
    }
    Ok(())
}

#[test]
fn fullnat_translates_between_the_families() -> Result<()> {
    let services = [(Family::V4, Family::V6), (Family::V6, Family::V4)]
        .map(|(vip, backends)| Service::http(vip.vip()).backends_of(backends));
    let Some(setup) = start(&services, "fullnat")? else { return Ok(()) };
    for service in &services {
        works(&setup, service)?;
    }
    setup.topology.gateway.ip(&format!("link set {LAN} mtu 1400\n"))?;
    for service in &services {
        clients::upload(&setup.topology.client, service.addr(), &body(&setup.topology)?)?;
    }
    Ok(())
}
