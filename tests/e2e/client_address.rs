//! The backend learns the client's address, where `fullnat` hides it: by PROXY protocol or by a TCP option.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use testbed::servers::{PROXIED_PORT, blob};
use testbed::topology::{ETH, Family};
use testbed::{Process, Service, clients};

use crate::{Setup, eventually};

const MODES: [&str; 2] = ["fullnat", "nat"];

fn service(family: Family, mode: &'static str) -> Service {
    let vip = if mode == "nat" { family.routed_vip() } else { family.vip() };
    Service::http(vip).mode(mode)
}

fn services(with: impl Fn(Service) -> Service) -> Vec<(Family, Service)> {
    let all = Family::BOTH.into_iter().flat_map(|family| MODES.map(|mode| (family, service(family, mode))));
    all.map(|(family, service)| (family, with(service))).collect()
}

fn start(services: &[(Family, Service)]) -> Result<Option<Setup>> {
    Setup::start(&services.iter().map(|(_, service)| service.clone()).collect::<Vec<_>>())
}

/// Every page is the client's address, and what is large comes and goes whole.
fn proxied(with: impl Fn(Service) -> Service) -> Result<()> {
    let services = services(|service| with(service.backend_port(PROXIED_PORT).key("proxy_protocol: true")));
    let Some(setup) = start(&services)? else { return Ok(()) };
    let body = setup.topology.scratch().join("body");
    std::fs::write(&body, blob())?;
    for (family, service) in &services {
        let what = format!("{} {}", service.addr(), service.mode);
        let client = &setup.topology.client;
        for page in clients::curl(client, service.addr(), 12)? {
            assert_eq!((page.status, page.text), (200, family.client().to_string()), "{what}");
        }
        assert!(clients::download(client, service.addr())? == blob(), "{what}: download");
        clients::upload(client, service.addr(), &body).context(what)?;
    }
    Ok(())
}

#[test]
fn a_proxy_protocol_header_tells_nginx_the_clients_address() -> Result<()> {
    proxied(|service| service)
}

#[test]
fn a_proxy_protocol_header_follows_a_handshake_by_cookie() -> Result<()> {
    proxied(|service| service.key("syn_proxy: always"))
}

#[test]
fn segments_of_a_flow_opened_by_cookie_are_numbered_right() -> Result<()> {
    let services = services(|service| service.key("syn_proxy: always"));
    let Some(setup) = start(&services)? else { return Ok(()) };
    let body = setup.topology.scratch().join("body");
    std::fs::write(&body, blob())?;
    for (_, service) in &services {
        let what = format!("{} {}", service.addr(), service.mode);
        let client = &setup.topology.client;
        let pages = clients::curl(client, service.addr(), 12)?;
        assert!(pages.iter().all(|page| page.status == 200), "{what}: {pages:?}");
        assert!(clients::download(client, service.addr())? == blob(), "{what}: download");
        clients::upload(client, service.addr(), &body).context(what)?;
    }
    Ok(())
}

#[test]
fn a_tcp_option_tells_the_backend_the_clients_address() -> Result<()> {
    const LIMIT: Duration = Duration::from_secs(10);
    let services = services(|service| service.one_backend().key("toa: true"));
    let Some(setup) = start(&services)? else { return Ok(()) };
    for (family, service) in &services {
        let what = format!("{} {}", service.addr(), service.mode);
        let backend = &setup.topology.backends[0];
        let log = setup.topology.scratch().join(format!("toa-{family:?}-{}.log", service.mode));
        let mut command = backend.command("tcpdump");
        // What comes in alone: the answers have no such option.
        command.args(["-i", ETH, "-Q", "in", "-n", "-l", "-x", "tcp port 80"]);
        let capture = Process::spawn("tcpdump", command, log)?;
        let address: String = match family.client() {
            IpAddr::V4(addr) => addr.octets().iter().map(|byte| format!("{byte:02x}")).collect(),
            IpAddr::V6(addr) => addr.octets().iter().map(|byte| format!("{byte:02x}")).collect(),
        };
        // Number and length.
        let option = format!("fe{:02x}", 4 + address.len() / 2);
        eventually(LIMIT, || {
            let pages = clients::curl(&setup.topology.client, service.addr(), 1)?;
            assert!(pages.iter().all(|page| page.status == 200), "{what}: {pages:?}");
            let said = capture.log();
            let told = digits(&said).match_indices(&option).any(|(at, _)| {
                // Two bytes of port go before the address.
                digits(&said).get(at + option.len() + 4..).is_some_and(|value| value.starts_with(&address))
            });
            anyhow::ensure!(told, "{what}: {said}");
            Ok(())
        })?;
    }
    Ok(())
}

/// The bytes of the packets that tcpdump has printed.
fn digits(log: &str) -> String {
    let rows = log.lines().filter_map(|line| line.trim_start().strip_prefix("0x"));
    rows.filter_map(|row| row.split_once(':')).flat_map(|(_, bytes)| bytes.split_whitespace()).collect()
}
