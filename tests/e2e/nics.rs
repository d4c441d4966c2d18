//! Weir on network cards with a driver of their own: in the guest of `make test-vm`.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use control::admin::protocol::{InterfaceRow, WorkerRow};
use testbed::servers::Servers;
use testbed::topology::{BACKENDS, Family, LAN, QUEUES, Topology, WAN, best_mode, has_nics, kernel_version};
use testbed::{Service, Weir, clients, load, run, servers};

use crate::{Setup, both, can_run, eventually, weir};

const LIMIT: Duration = Duration::from_secs(20);
/// The kernel from which on it is told of which packets a card hashes the ports.
const HASHED_TOLD_SINCE: (u32, u32) = (6, 17);

fn can_run_here() -> bool {
    if !has_nics() {
        println!("did not run: there are no network cards for tests here; make test-vm has some");
    }
    has_nics() && can_run()
}

/// Whether these spread frames over their queues by key and indirection table (`--rss`).
fn can_spread() -> bool {
    let has_rss = std::env::var("WEIR_TEST_NICS").is_ok_and(|nics| nics == "rss");
    if !has_rss {
        println!("did not run: there are no cards here that spread frames by a key");
    }
    has_rss && can_run_here()
}

fn ethtool(setup: &Setup, args: &[&str]) -> Result<()> {
    let said = run(setup.topology.gateway.command("ethtool").args(args), LIMIT)?;
    ensure!(said.status.success(), "ethtool {args:?}: {}", said.err);
    Ok(())
}

/// Has both of Weir's cards spread frames by the table that they have had since the guest started (`perf/vm/run.sh`): the
/// driver of virtio-net asks for its queues anew when a program is attached, and the emulator forgets the table over that.
fn spread(setup: &Setup) -> Result<()> {
    [WAN, LAN].into_iter().try_for_each(|name| {
        ethtool(setup, &["-X", name, "weight", "1", "1"])?;
        ethtool(setup, &["-K", name, "rxhash", "on"])
    })
}

/// Of so many frames that the engines were given while clients loaded the services, so many were handed over.
fn handed_over(setup: &Setup, services: &[Service]) -> Result<(u64, u64)> {
    let count = || -> Result<(u64, u64)> {
        let workers = setup.workers()?;
        let sum = |of: fn(&WorkerRow) -> u64| workers.iter().map(of).sum::<u64>();
        Ok((sum(|row| row.handed_over), sum(|row| row.frames)))
    };
    let before = count()?;
    for service in services {
        let load = load(&setup.topology.client, service.addr(), 100, 6)?;
        ensure!(load.failures.is_empty(), "{}: {:?}", service.addr(), load.failures);
    }
    let after = count()?;
    Ok((after.0 - before.0, after.1 - before.1))
}

#[test]
fn replies_come_to_the_worker_that_chose_the_port_unless_the_card_hashes_addresses_alone() -> Result<()> {
    if !can_spread() {
        return Ok(());
    }
    if kernel_version()? < HASHED_TOLD_SINCE {
        println!("did not run: this kernel does not tell of which packets a card hashes the ports");
        return Ok(());
    }
    let services = [Service::http(Family::V4.vip()).mode("fullnat")];
    let Some(setup) = Setup::start(&services)? else { return Ok(()) };
    let hash = |fields: &str| ethtool(&setup, &["-N", LAN, "rx-flow-hash", "tcp4", fields]);
    spread(&setup)?;
    hash("sd")?;
    eventually(LIMIT * 3, || {
        let told = setup.workers()?.first().context("a worker")?.snat_ports.join("\n");
        let begin = format!(
            "{LAN}: SNAT ports are by its hash for UDP over IPv4, TCP over IPv6, UDP over IPv6; each"
        );
        ensure!(told.contains(&begin) && told.contains("of which it hashes no ports"), "{told}");
        ensure!(setup.weir.log().contains(&begin), "{}", setup.weir.log());
        Ok(())
    })?;
    let (handed, frames) = handed_over(&setup, &services)?;
    println!("slices: {handed} of {frames} frames were handed over");
    ensure!((10..=50).contains(&(handed * 100 / frames)), "{handed} of {frames}");
    hash("sdfn")?;
    let again = format!("{LAN}: SNAT ports are by its hash for TCP over IPv4");
    eventually(LIMIT, || {
        let told = setup.workers()?.first().context("a worker")?.snat_ports.join("\n");
        ensure!(told.contains(&again), "{told}");
        Ok(())
    })?;
    let (handed, frames) = handed_over(&setup, &services)?;
    println!("by the hash again: {handed} of {frames} frames were handed over");
    ensure!(handed * 100 / frames <= 1, "{handed} of {frames}");
    Ok(())
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
