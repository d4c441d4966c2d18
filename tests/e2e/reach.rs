//! Services that are not found by one address and port: by a mark, and on every port of an address.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use anyhow::{Result, ensure};
use testbed::servers::{HTTP_PORT, Servers, backend_name};
use testbed::topology::{BACKENDS, Family, Topology};
use testbed::{Weir, clients};

use crate::{can_run, weir};

/// The names of the backends that answer `requests` requests to this port of an address.
fn answered(topology: &Topology, addr: SocketAddr, requests: u32) -> Result<BTreeSet<String>> {
    Ok(clients::curl(&topology.client, addr, requests)?.into_iter().map(|page| page.text).collect())
}

/// All backends of the family, as YAML; with `port` at the web servers' port.
fn backends(family: Family, port: bool) -> String {
    let port = if port { format!(", port: {HTTP_PORT}") } else { String::new() };
    let backend = |number| format!("{{address: \"{}\"{port}}}", family.backend(number));
    (1..=BACKENDS).map(backend).collect::<Vec<_>>().join(", ")
}

#[test]
fn a_range_of_ports_of_an_address_is_a_service_by_its_mark() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let topology = Topology::build()?;
    let _servers = Servers::start(&topology)?;
    let all: BTreeSet<_> = (1..=BACKENDS).map(backend_name).collect();
    for mode in ["fullnat", "nat"] {
        let vip = |family: Family| if mode == "nat" { family.routed_vip() } else { family.vip() };
        let [v4, v6] = Family::BOTH;
        let services = format!(
            "services:\n  - {{name: v4, mark: 7, mode: {mode}, snat_pool: pool, backends: [{}]}}\n  - {{name: v6, mark: 7, \
             family: ipv6, mode: {mode}, snat_pool: pool, backends: [{}]}}\n\
             match_rules:\n  - {{mark: 1, destination_ports: [8005]}}\n  - {{mark: 7, destinations: [\"{}\", \"{}\"], \
             protocols: [tcp], destination_ports: [8000-8010]}}\n",
            backends(v4, true),
            backends(v6, true),
            vip(v4),
            vip(v6)
        );
        let config = testbed::config(&topology, &[]).replace("services: []\n", &services);
        let weir = Weir::start(&topology, weir(), &config)?;
        for family in Family::BOTH {
            for port in [8000, 8010] {
                let addr = SocketAddr::new(vip(family), port);
                ensure!(answered(&topology, addr, 12)? == all, "{mode} {addr}");
            }
            for port in [8005, 8011] {
                let addr = SocketAddr::new(vip(family), port);
                ensure!(answered(&topology, addr, 1).is_err(), "{mode} {addr} is nobody's");
            }
        }
        weir.stop()?;
    }
    Ok(())
}

#[test]
fn every_port_of_an_address_leads_to_one_backend_of_each_client() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let topology = Topology::build()?;
    let _servers = Servers::start(&topology)?;
    let service = |family: Family| {
        format!(
            "  - {{name: \"{}\", vip: \"{}\", port: 0, persistence: {{}}, mode: nat, backends: [{}]}}\n",
            family.routed_vip(),
            family.routed_vip(),
            backends(family, false)
        )
    };
    let services: String = Family::BOTH.map(service).concat();
    let config = testbed::config(&topology, &[]).replace("services: []\n", &format!("services:\n{services}"));
    let weir = Weir::start(&topology, weir(), &config)?;
    for family in Family::BOTH {
        let addr = SocketAddr::new(family.routed_vip(), HTTP_PORT);
        ensure!(answered(&topology, addr, 12)?.len() == 1, "a client stays with its backend: {addr}");
        let closed = SocketAddr::new(family.routed_vip(), 1);
        let error = answered(&topology, closed, 1).unwrap_err().to_string();
        ensure!(
            error.contains("refused") || error.contains("connect"),
            "the backend answers itself: {error}"
        );
    }
    weir.stop()?;
    Ok(())
}
