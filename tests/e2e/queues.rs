//! Queues that are changed while Weir runs.

use std::io;
use std::net::{SocketAddr, UdpSocket};

use anyhow::{Context, Result, ensure};
use control::admin::protocol::Drops;
use testbed::topology::{Family, veth};
use testbed::{Service, Topology, Weir, clients, run, servers};

use crate::{LIMIT, can_run, eventually, weir};

/// Another link between client and gateway, with four queues of which two are in use.
const NEAR: &str = "near";
const FAR: &str = "far";

fn set_queues(topology: &Topology, near_rx: u32, far_tx: u32) -> Result<()> {
    let change = |namespace: &testbed::Namespace, args: &[&str]| {
        let said = run(namespace.command("ethtool").arg("-L").args(args), LIMIT)?;
        ensure!(said.status.success(), "ethtool -L {args:?}: {}", said.err);
        Ok(())
    };
    // The peer has no more TX queues than there are RX queues at any time.
    let near = || change(&topology.gateway, &[NEAR, "rx", &near_rx.to_string()]);
    let far = || change(&topology.client, &[FAR, "tx", &far_tx.to_string()]);
    if far_tx > 2 { near().and_then(|()| far()) } else { far().and_then(|()| near()) }
}

#[test]
fn queues_that_come_while_weir_runs_are_told_of_and_so_are_their_frames() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let topology = Topology::build()?;
    let _servers = servers::Servers::start(&topology)?;
    let (gateway, client) = (&topology.gateway, &topology.client);
    veth(gateway, NEAR, client, FAR, 4)?;
    set_queues(&topology, 2, 2)?;
    gateway.ip(&format!("address add 10.77.0.1/24 dev {NEAR}\n"))?;
    let vip = Family::V4.routed_vip();
    client.ip(&format!("address add 10.77.0.2/24 dev {FAR}\nroute add {vip} via 10.77.0.1\n"))?;
    let services = [Service::http(vip), Service::dns(vip)];
    let config = testbed::config(&topology, &services).replace("name: wan", &format!("name: {NEAR}"));
    let weir = Weir::start(&topology, weir(), &config)?;
    let http = services.first().context("a service")?.addr();
    ensure!(clients::curl(client, http, 6)?.len() == 6);

    // The kernel keeps the queues that sockets are bound to.
    ensure!(set_queues(&topology, 1, 1).is_err(), "a queue in use was taken away");
    ensure!(clients::curl(client, http, 6)?.len() == 6);

    set_queues(&topology, 4, 4)?;
    said(
        &weir,
        "near has 4 RX queues now and had 2, for 2 workers: what arrives on queues 2 and up passes Weir by",
    )?;
    weir.stop()?;

    // Of a veth only queues that were there when the program was attached run it.
    let weir = Weir::start(&topology, crate::weir(), &config)?;
    said(&weir, "near has 4 RX queues for 2 workers: what arrives on queues 2 and up passes Weir by")?;
    // Each socket's frames take a queue of their own, so some of many come on those.
    let to = SocketAddr::new(vip, 53);
    let sockets =
        client.enter(|| (0..64).map(|_| UdpSocket::bind("0.0.0.0:0")).collect::<io::Result<Vec<_>>>())??;
    for socket in &sockets {
        socket.send_to(b"not a question", to)?;
    }
    said(&weir, "frames for Weir came on queues that no worker serves, and went to the kernel")?;
    let drops: Drops = serde_json::from_value(weir.show("drops")?)?;
    let strays =
        drops.xdp.iter().find(|count| count.name == "no_socket").context("no_socket is not shown")?;
    ensure!((1..64).contains(&strays.count), "{} of 64 frames", strays.count);
    Ok(())
}

fn said(weir: &Weir, what: &str) -> Result<()> {
    eventually(LIMIT, || {
        ensure!(weir.log().contains(what), "{what:?} is not in:\n{}", weir.log());
        Ok(())
    })
}
