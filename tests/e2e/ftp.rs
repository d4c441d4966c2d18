//! FTP with a real server: the data connections go where the control connection went.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use testbed::servers::{FTP_LINES, FTP_PORT, backend_name, vsftpd};
use testbed::topology::{BACKENDS, Family, Topology};
use testbed::{Service, Weir, run};

use crate::{can_run, weir};

/// The name that each line of the file `name` has, which comes by one connection for commands and one for data. `how` are curl's
/// options on the latter.
fn fetch(topology: &Topology, server: SocketAddr, how: &[&str]) -> Result<String> {
    let mut command = topology.client.command("curl");
    command
        .args(["--silent", "--show-error", "--max-time", "10"])
        .args(how)
        .arg(format!("ftp://{server}/name"));
    let said = run(&mut command, Duration::from_secs(15))?;
    ensure!(said.status.success(), "{how:?}: {}", said.err);
    let name = said.out.lines().next().unwrap_or_default();
    ensure!(
        said.out.lines().count() == FTP_LINES && said.out.lines().all(|line| line == name),
        "{how:?}: {} bytes, the first line {name:?}",
        said.out.len()
    );
    Ok(name.to_owned())
}

#[test]
fn data_of_active_and_passive_ftp_passes() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let topology = Topology::build()?;
    let mut servers = Vec::new();
    for (number, backend) in (1..).zip(&topology.backends) {
        let directory = topology.scratch().join(format!("ftp-{number}"));
        std::fs::create_dir(&directory)?;
        servers.push(vsftpd(backend, number, &directory)?);
    }
    let persistent = |service: Service| service.key("persistence: {timeout_s: 60}");
    let plain = Family::BOTH.map(|family| Service::new(family.routed_vip(), FTP_PORT, "tcp").mode("nat"));
    let kept = Family::BOTH.map(|family| persistent(Service::new(family.vip(), FTP_PORT, "tcp").mode("nat")));
    let services: Vec<_> = plain.iter().chain(&kept).cloned().collect();
    let _weir = Weir::start(&topology, weir(), &testbed::config(&topology, &services))?;
    for service in &services {
        let mut answered = Vec::new();
        for _ in 0..BACKENDS {
            for how in [
                &["--ftp-pasv", "--disable-epsv"][..],
                &["--ftp-pasv"],
                &["--ftp-port", "-", "--disable-eprt"],
                &["--ftp-port", "-"],
            ] {
                if service.vip.is_ipv6() && how.iter().any(|option| option.starts_with("--disable")) {
                    continue; // those commands have no room for its addresses
                }
                let name = fetch(&topology, service.addr(), how);
                answered.push(name.map_err(|error| error.context(format!("{}", service.addr())))?);
            }
        }
        answered.sort();
        answered.dedup();
        if plain.iter().any(|plain| plain.addr() == service.addr()) {
            assert_eq!(answered, (1..=BACKENDS).map(backend_name).collect::<Vec<_>>(), "{}", service.addr());
        } else {
            assert_eq!(answered.len(), 1, "{}: one client, one backend: {answered:?}", service.addr());
        }
    }
    Ok(())
}
