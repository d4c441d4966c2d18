//! Weir on network cards with a driver of their own: in the guest of `make test-vm`.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use control::admin::protocol::InterfaceRow;
use testbed::servers::Servers;
use testbed::topology::{BACKENDS, LAN, QUEUES, Topology, WAN, has_nics};
use testbed::{Service, Weir, clients, load, run, servers};

use crate::{Setup, both, can_run, weir};

const LIMIT: Duration = Duration::from_secs(20);
/// The kernel from which on virtio-net has zero-copy both ways.
const ZERO_COPY_SINCE: (u32, u32) = (6, 13);

fn can_run_here() -> bool {
    if !has_nics() {
        println!("did not run: there are no network cards for tests here; make test-vm has some");
    }
    has_nics() && can_run()
}

/// The mode that this kernel's virtio-net can do.
fn best_mode() -> Result<&'static str> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let mut numbers = release.split(['.', '-']).map(str::parse);
    let version = (numbers.next().context("a version")??, numbers.next().context("a version")??);
    Ok(if version >= ZERO_COPY_SINCE { "zero-copy" } else { "copy" })
}

#[test]
fn both_queues_carry_traffic_in_the_best_mode_that_the_kernel_has_and_says() -> Result<()> {
    if !can_run_here() {
        return Ok(());
    }
    let services = both(|family| Service::http(family.vip()));
    let Some(setup) = Setup::start(&services)? else { return Ok(()) };
    for service in &services {
        let load = load(&setup.topology.client, service.addr(), 90, 6)?;
        ensure!(load.failures.is_empty(), "{}: {:?}", service.addr(), load.failures);
        let answers = clients::curl(&setup.topology.client, service.addr(), BACKENDS.into())?;
        ensure!(answers.iter().all(|page| page.status == 200), "{}: {answers:?}", service.addr());
        ensure!(clients::download(&setup.topology.client, service.addr())? == servers::blob());
    }
    let mode = best_mode()?;
    let shown: Vec<InterfaceRow> = serde_json::from_value(setup.weir.show("interfaces")?)?;
    for name in [WAN, LAN] {
        let row = shown.iter().find(|row| row.name == name).context("an interface is not shown")?;
        ensure!((row.xdp.as_str(), row.queues.len()) == ("native", QUEUES as usize), "{row:?}");
        for queue in &row.queues {
            ensure!(queue.mode == mode, "{name}: this kernel can do {mode}: {queue:?}");
            ensure!(queue.rx > 0 && queue.tx > 0, "{name}: a queue without traffic: {queue:?}");
            ensure!((queue.invalid_descriptors, queue.rx_dropped) == (0, 0), "{name}: {queue:?}");
        }
        println!("{name}: {}", serde_json::to_string(&row.queues)?);
    }
    Ok(())
}

#[test]
fn zero_copy_that_the_kernel_lacks_is_refused_where_it_is_required() -> Result<()> {
    if !can_run_here() {
        return Ok(());
    }
    let topology = Topology::build()?;
    let _servers = Servers::start(&topology)?;
    let services = both(|family| Service::http(family.vip()));
    let config = format!("{}xdp: {{zero_copy: require}}\n", testbed::config(&topology, &services));
    if best_mode()? == "zero-copy" {
        Weir::start(&topology, weir(), &config)?.stop()?;
        return Ok(());
    }
    let file = topology.scratch().join("required.yaml");
    std::fs::write(&file, config)?;
    let said = run(topology.gateway.command(weir()).args(["run", "--config"]).arg(&file), LIMIT)?;
    ensure!(said.status.code().is_some_and(|code| code != 0), "{said:?}");
    ensure!(said.err.contains("zero-copy") && said.err.contains("set"), "{}", said.err);
    Ok(())
}
