//! Datagrams that do not fit a frame, and what their senders are told when they do not arrive.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Result, ensure};
use testbed::echo::{Echo, socket};
use testbed::topology::{ETH, Family, LAN, Topology};
use testbed::{Namespace, Service, Weir, run};

use crate::{Setup, can_run, eventually, weir};

pub(crate) const PORT: u16 = 7007;
/// Six fragments on Ethernet.
pub(crate) const LARGE: usize = 8192;

pub(crate) fn service(family: Family, mode: &'static str) -> Service {
    let vip = match mode {
        "fullnat" => family.vip(),
        "nat" => family.routed_vip(),
        _ => family.shared_vip(),
    };
    Service::new(vip, PORT, "udp").mode(mode)
}

/// Echoes in all backends, at their own addresses and at the VIP that they have themselves.
pub(crate) fn echoes(topology: &Topology, families: &[Family]) -> Result<Vec<Echo>> {
    let mut echoes = Vec::new();
    for (number, backend) in (1..).zip(&topology.backends) {
        for family in families {
            for own in [family.backend(number), family.shared_vip()] {
                echoes.push(Echo::start(backend, own, PORT)?);
            }
        }
    }
    Ok(echoes)
}

/// What comes back for a datagram of `len` bytes, sent from `port`.
pub(crate) fn exchange(
    topology: &Topology,
    from: IpAddr,
    port: u16,
    to: SocketAddr,
    len: usize,
) -> Result<()> {
    // A child that another test has just forked holds the last socket until it runs its own program.
    let client =
        eventually(Duration::from_secs(10), || socket(&topology.client, SocketAddr::new(from, port)))?;
    client.set_read_timeout(Some(Duration::from_secs(1)))?;
    client.connect(to)?;
    let question: Vec<u8> = (0..251).cycle().skip(usize::from(port) % 251).step_by(7).take(len).collect();
    let mut answer = vec![0; LARGE * 2];
    // The first ones may go while neighbours are asked for, and of six fragments more wait than are kept.
    eventually(Duration::from_secs(10), || {
        client.send(&question)?;
        let got = client.recv(&mut answer)?;
        ensure!(answer.get(..got) == Some(question.as_slice()), "{got} bytes came back, or others");
        Ok(())
    })
}

#[test]
fn datagrams_of_8_kb_pass_both_ways_in_pieces() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let services: Vec<_> = Family::BOTH
        .into_iter()
        .flat_map(|family| ["nat", "fullnat", "dr"].map(|mode| service(family, mode)))
        .collect();
    let topology = Topology::build()?;
    let _echoes = echoes(&topology, &Family::BOTH)?;
    let weir = Weir::start(&topology, weir(), &testbed::config(&topology, &services))?;
    for service in &services {
        let family = if service.vip.is_ipv4() { Family::V4 } else { Family::V6 };
        // Many ports, so that flows belong to either worker while their fragments arrive by one queue.
        for port in 40_000..40_008 {
            for len in [100, LARGE, 100, LARGE] {
                exchange(&topology, family.client(), port, service.addr(), len).map_err(|error| {
                    error.context(format!(
                        "{} {} from port {port}, {len} bytes",
                        service.addr(),
                        service.mode
                    ))
                })?;
            }
        }
    }
    drop(weir);
    Ok(())
}

/// Has the hosts of a namespace send without DF, and take no notice of the path.
pub(crate) fn without_df(namespace: &Namespace) -> Result<()> {
    namespace.sysctl("net/ipv4/ip_no_pmtu_disc", "1")
}

#[test]
fn datagrams_without_df_pass_a_link_that_is_too_small_for_them() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let services: Vec<_> = ["nat", "fullnat", "dr"].map(|mode| service(Family::V4, mode)).into();
    let topology = Topology::build()?;
    without_df(&topology.client)?;
    let _echoes = echoes(&topology, &[Family::V4])?;
    let weir = Weir::start(&topology, weir(), &testbed::config(&topology, &services))?;
    // The client's link stays as it is, and so does what it sends: the one who can cut it is Weir.
    topology.gateway.ip(&format!("link set {LAN} mtu 1400\n"))?;
    for backend in &topology.backends {
        backend.ip(&format!("link set {ETH} mtu 1400\n"))?;
    }
    for service in &services {
        // A whole datagram, and one of which the client makes fragments of 1500 bytes.
        for (port, len) in (41_000..).zip([1472, 4000, 1372, 1373]) {
            exchange(&topology, Family::V4.client(), port, service.addr(), len)
                .map_err(|error| error.context(format!("{}, {len} bytes", service.mode)))?;
        }
    }
    drop(weir);
    Ok(())
}

#[test]
fn traceroute_sees_weir_as_a_hop_and_the_vip_as_the_end() -> Result<()> {
    let services: Vec<_> = Family::BOTH
        .into_iter()
        .flat_map(|family| {
            ["nat", "fullnat", "dr"].map(|mode| Service { port: PORT, ..service(family, mode) })
        })
        .collect();
    let Some(setup) = Setup::start(&services)? else { return Ok(()) };
    for service in &services {
        // Nobody listens: the backend's port unreachable is the end of the way. The kernel limits how often it says so.
        let said = eventually(Duration::from_secs(20), || {
            let mut command = setup.topology.client.command("traceroute");
            command.args([
                "-n",
                "-q",
                "1",
                "-w",
                "1",
                "-m",
                "4",
                "-U",
                "-p",
                &PORT.to_string(),
                &service.vip.to_string(),
            ]);
            let said = run(&mut command, Duration::from_secs(20))?;
            ensure!(said.status.success(), "{}", said.err);
            let hops: Vec<_> = said.out.lines().skip(1).map(str::trim_start).collect();
            let last = hops.last().copied().unwrap_or_default();
            ensure!(last.contains(&service.vip.to_string()), "{}", said.out);
            Ok(said.out)
        })
        .map_err(|error| error.context(format!("{} {}", service.addr(), service.mode)))?;
        let hops = said.lines().skip(1).count();
        assert!((1..=3).contains(&hops), "{} {}: {said}", service.addr(), service.mode);
    }
    Ok(())
}

#[test]
fn a_client_is_told_by_the_vip_that_nobody_listens() -> Result<()> {
    let services: Vec<_> = Family::BOTH
        .into_iter()
        .flat_map(|family| ["nat", "fullnat", "dr"].map(|mode| service(family, mode)))
        .collect();
    let Some(setup) = Setup::start(&services)? else { return Ok(()) };
    for service in &services {
        let family = if service.vip.is_ipv4() { Family::V4 } else { Family::V6 };
        let client = socket(&setup.topology.client, SocketAddr::new(family.client(), 0))?;
        client.set_read_timeout(Some(Duration::from_secs(1)))?;
        client.connect(service.addr())?;
        // A connected socket hears of an error only where that quotes its own packet.
        eventually(Duration::from_secs(10), || {
            client.send(b"anybody?")?;
            let error = client.recv(&mut [0; 16]).err().map(|error| error.kind());
            ensure!(error == Some(std::io::ErrorKind::ConnectionRefused), "{error:?}");
            Ok(())
        })
        .map_err(|error| error.context(format!("{} {}", service.addr(), service.mode)))?;
    }
    Ok(())
}
