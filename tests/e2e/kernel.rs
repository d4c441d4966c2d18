//! What is not Weir's is the kernel's, with and without a Weir that works.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use testbed::Signal;
use testbed::clients::{self, Transport};
use testbed::servers::{self, DNS_PORT, HTTP_PORT};
use testbed::topology::{Family, LAN, WAN};
use testbed::{Service, Topology, Weir};

use crate::{LIMIT, Setup, both, eventually, weir};

const SECOND: Duration = Duration::from_secs(1);

/// Services by `nat`: a backend's replies to whoever asked it directly look like replies of a service.
fn nat_services() -> Vec<Service> {
    both(|family| Service::http(family.vip()).mode("nat"))
}

/// The client reaches every backend's own address by way of the gateway's kernel.
fn direct_works(topology: &Topology) -> Result<()> {
    for family in Family::BOTH {
        let backend = SocketAddr::new(family.backend(1), HTTP_PORT);
        let load = testbed::load(&topology.client, backend, 1, 1)?;
        ensure!(load.failures.is_empty(), "{:?}", load.failures);
    }
    Ok(())
}

fn service_works(topology: &Topology, services: &[Service]) -> Result<()> {
    for service in services {
        let load = testbed::load(&topology.client, service.addr(), 6, 1)?;
        ensure!(load.failures.is_empty(), "{:?}", load.failures);
    }
    Ok(())
}

#[test]
fn traffic_of_no_service_reaches_its_kernel() -> Result<()> {
    let Some(setup) = Setup::start(&nat_services())? else { return Ok(()) };
    let client = &setup.topology.client;
    for family in Family::BOTH {
        assert!(clients::ping(client, family.gateway())?, "the gateway's own address");
        assert!(clients::ping(client, family.backend(2))?, "through the gateway");

        let ssh = SocketAddr::new(family.gateway(), 22);
        let listener = setup.topology.gateway.enter(|| TcpListener::bind(ssh))??;
        let stream =
            client.enter(|| TcpStream::connect_timeout(&ssh, SECOND))?.context("the gateway's ssh port")?;
        assert_eq!(listener.accept()?.1, stream.local_addr()?);

        let name = servers::backend_name(2);
        let dns = SocketAddr::new(family.backend(2), DNS_PORT);
        for transport in [Transport::Udp, Transport::Tcp] {
            assert_eq!(
                clients::dig(client, dns, transport, 1)?,
                [&*name],
                "another port of a backend, {transport:?}"
            );
        }
    }
    Ok(())
}

#[test]
fn a_client_may_speak_to_a_nat_backend_directly() -> Result<()> {
    let Some(setup) = Setup::start(&nat_services())? else { return Ok(()) };
    for family in Family::BOTH {
        let backend = SocketAddr::new(family.backend(1), HTTP_PORT);
        let pages = clients::curl(&setup.topology.client, backend, 50)?;
        assert!(pages.iter().all(|page| page.text == servers::backend_name(1)), "{pages:?}");
        assert!(clients::download(&setup.topology.client, backend)? == servers::blob());
    }
    Ok(())
}

#[test]
fn the_kernels_path_is_back_within_a_second_of_a_kill() -> Result<()> {
    let services = nat_services();
    let Some(Setup { weir: killed, _servers, topology }) = Setup::start(&services)? else { return Ok(()) };
    service_works(&topology, &services)?;
    direct_works(&topology)?;

    killed.kill()?;
    let started = Instant::now();
    eventually(SECOND, || direct_works(&topology))?;
    assert!(started.elapsed() < SECOND, "{:?}", started.elapsed());
    for name in [WAN, LAN] {
        let link = testbed::run(topology.gateway.command("ip").args(["link", "show", name]), LIMIT)?;
        assert!(!link.out.contains("xdp"), "{}", link.out);
    }

    // What the killed one left (its veth pair, its socket) does not stop the next.
    let _next = Weir::start(&topology, weir(), &testbed::config(&topology, &services))?;
    service_works(&topology, &services)?;
    direct_works(&topology)
}

#[test]
fn a_stopped_worker_gets_no_frames_once_its_limit_is_over() -> Result<()> {
    let services = nat_services();
    let Some(setup) = Setup::start(&services)? else { return Ok(()) };
    setup.weir.signal(Signal::SIGSTOP)?;
    // The limit of the configuration's default is one second.
    std::thread::sleep(SECOND + SECOND / 2);
    direct_works(&setup.topology).context("with stopped workers")?;
    for family in Family::BOTH {
        assert!(clients::ping(&setup.topology.client, family.gateway())?);
        assert!(clients::ping(&setup.topology.client, family.backend(1))?);
    }

    setup.weir.signal(Signal::SIGCONT)?;
    eventually(SECOND, || service_works(&setup.topology, &services)).context("with workers that go on")?;
    direct_works(&setup.topology)
}

#[test]
fn an_orderly_stop_leaves_the_gateway_as_it_was() -> Result<()> {
    let services = nat_services();
    if !crate::can_run() {
        return Ok(());
    }
    let topology = Topology::build()?;
    let links = || -> Result<String> {
        // Indexes and counters aside; a link's flags and its XDP program are in there.
        let said = testbed::run(topology.gateway.command("ip").args(["-oneline", "address", "show"]), LIMIT)?;
        let links = testbed::run(topology.gateway.command("ip").args(["-oneline", "link", "show"]), LIMIT)?;
        Ok(said.out + &links.out)
    };
    let before = links()?;
    let weir = Weir::start(&topology, weir(), &testbed::config(&topology, &services))?;
    assert_ne!(links()?, before, "a running Weir shows");
    let socket = weir.socket().to_owned();
    assert!(socket.exists());
    assert!(weir.stop()?.success());
    assert_eq!(links()?, before);
    assert!(!socket.exists());
    Ok(())
}
