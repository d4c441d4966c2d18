//! Weir on network cards with a driver of their own: in the guest of `make test-vm`.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use control::admin::protocol::{QueueRow, WorkerRow};
use serde_json::Value;
use testbed::config::GENERIC;
use testbed::flood::Flood;
use testbed::servers::Servers;
use testbed::topology::{BACKENDS, Family, LAN, QUEUES, Topology, WAN, has_nics};
use testbed::{Card, Namespace, Service, Signal, Weir, clients, kernel_version, load, run, servers};

use crate::{LIMIT, Setup, both, can_run, eventually, interfaces, weir};

/// Long enough for more frames than the rings of all queues hold.
const FLOOD_LENGTH: Duration = Duration::from_secs(5);
/// The kernel from which on it is told of which packets a card hashes the ports.
const HASHED_TOLD_SINCE: (u32, u32) = (6, 17);

fn can_run_here() -> bool {
    if !has_nics() {
        println!("did not run: there are no network cards for tests here; make test-vm has some");
    }
    has_nics() && can_run()
}

/// Whether the emulator spreads frames over the queues by the card's key and indirection table (`--rss`).
fn has_rss() -> bool {
    std::env::var_os("WEIR_TEST_RSS").is_some()
}

fn can_spread() -> bool {
    if !has_rss() {
        println!("did not run: there are no cards here that spread frames by a key");
    }
    has_rss() && can_run_here()
}

fn ethtool(gateway: &Namespace, args: &[&str]) -> Result<()> {
    let said = run(gateway.command("ethtool").args(args), LIMIT)?;
    ensure!(said.status.success(), "ethtool {args:?}: {}", said.err);
    Ok(())
}

/// Has both of Weir's cards spread frames by the table that they have had since the guest started (`perf/vm/run.sh`): the
/// driver of virtio-net asks for its queues anew when a program is attached, and the emulator forgets the table over that.
fn spread(setup: &Setup) -> Result<()> {
    [WAN, LAN].into_iter().try_for_each(|name| {
        ethtool(&setup.topology.gateway, &["-X", name, "weight", "1", "1"])?;
        ethtool(&setup.topology.gateway, &["-K", name, "rxhash", "on"])
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
    let hash = |fields: &str| ethtool(&setup.topology.gateway, &["-N", LAN, "rx-flow-hash", "tcp4", fields]);
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
fn every_queue_carries_traffic_in_the_best_mode_that_the_kernel_has_and_says() -> Result<()> {
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
    let card = setup.topology.card.context("no card")?;
    let mode = card.mode()?;
    let shown = interfaces(&setup.weir)?;
    for name in [WAN, LAN] {
        let row = shown.iter().find(|row| row.name == name).context("an interface is not shown")?;
        ensure!((row.xdp.as_str(), row.queues.len()) == (card.xdp(), card.queues() as usize), "{row:?}");
        for queue in &row.queues {
            ensure!(queue.mode == mode, "{name}: this kernel can do {mode}: {queue:?}");
            let carries = queue.rx > 0 && queue.tx > 0;
            ensure!(
                carries || (queue.queue > 0 && !card.spreads()),
                "{name}: a queue without traffic: {queue:?}"
            );
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
    let config = testbed::config(&topology, &services).replace(GENERIC, "");
    let config = format!("{config}xdp: {{mode: generic-allowed, zero_copy: require}}\n");
    if topology.card.context("no card")?.mode()? == "zero-copy" {
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

/// What `weir doctor` says of one of Weir's interfaces.
fn doctor(topology: &Topology, name: &str) -> Result<Value> {
    let mut command = topology.gateway.command(weir());
    command.args(["doctor", name, "-o", "json", "--workers", &topology.queues().to_string()]);
    let report: Value = serde_json::from_str(&run(&mut command, LIMIT)?.out)?;
    report.pointer("/interfaces/0").cloned().context("no interface in the report")
}

/// Whether one of its findings about an interface contains this.
fn finds(interface: &Value, weight: &str, what: &str) -> bool {
    let findings = interface["findings"].as_array().map(Vec::as_slice).unwrap_or_default();
    let says = |finding: &Value| finding["text"].as_str().is_some_and(|text| text.contains(what));
    findings.iter().any(|finding| finding["weight"] == weight && says(finding))
}

#[test]
fn doctor_tells_of_a_card_what_it_turns_out_to_be() -> Result<()> {
    if !can_run_here() {
        return Ok(());
    }
    let topology = Topology::build()?;
    let card = topology.card.context("no card")?;
    for name in [WAN, LAN] {
        let told = doctor(&topology, name)?;
        println!("{told}");
        ensure!(told["driver"] == card.driver(), "{told:#}");
        ensure!(told.pointer("/queues/rx") == Some(&card.queues().into()), "{told:#}");
        let (native, zero_copy) = (card.xdp() == "native", card.mode()? == "zero-copy");
        ensure!(told.pointer("/xdp/native") == Some(&native.into()), "{told:#}");
        ensure!(told.pointer("/xdp/zero_copy") == Some(&zero_copy.into()), "{told:#}");
        ensure!(finds(&told, "refuses", "has no native XDP") != native, "{told:#}");
        ensure!(finds(&told, "notes", "cannot do zero-copy") != zero_copy, "{told:#}");
        ensure!(finds(&told, "notes", "lets in frames of those VLANs alone"), "{told:#}");
        ensure!(
            finds(&told, "notes", "tells no RSS key") == (card == Card::Igb || card == Card::Vmxnet3),
            "{told:#}"
        );
    }
    Ok(())
}

/// Cards with more queues than Weir has workers, until this goes out of scope.
struct Paired<'a>(&'a Topology);

impl Drop for Paired<'_> {
    fn drop(&mut self) {
        for name in [WAN, LAN] {
            for args in [&["-X", name, "default"][..], &["-L", name, "combined", &QUEUES.to_string()]] {
                // It ends a test; the next one says how many queues it finds.
                let _ = ethtool(&self.0.gateway, args);
            }
        }
    }
}

/// Does what doctor says about igb, where it says it.
fn pair_the_interrupts(topology: &Topology) -> Result<Paired<'_>> {
    let paired = Paired(topology);
    const TRAP: &str = "receives nothing any more";
    for name in [WAN, LAN] {
        let told = doctor(topology, name)?;
        ensure!(finds(&told, "costs", TRAP) == (kernel_version()? < (7, 0)), "{told:#}");
        if finds(&told, "costs", TRAP) {
            let most = told.pointer("/queues/rx_max").context("no most queues")?.to_string();
            ethtool(&topology.gateway, &["-L", name, "combined", &most])?;
            ethtool(&topology.gateway, &["-X", name, "equal", &topology.queues().to_string()])?;
            let told = doctor(topology, name)?;
            ensure!(!finds(&told, "costs", TRAP), "{told:#}");
        }
    }
    topology.wait_for_carriers()?;
    Ok(paired)
}

/// Packets that the kernel received while a program polled for them.
fn polled_packets(topology: &Topology) -> Result<u64> {
    let said = run(topology.gateway.command("cat").arg("/proc/net/netstat"), LIMIT)?;
    let mut rows = said.out.lines().filter(|line| line.starts_with("TcpExt:"));
    let (names, values) = rows.next().zip(rows.next()).context("no TcpExt")?;
    let mut pairs = names.split_whitespace().zip(values.split_whitespace());
    Ok(pairs.find(|(name, _)| *name == "BusyPollRxPackets").context("no BusyPollRxPackets")?.1.parse()?)
}

#[test]
fn workers_poll_queues_that_one_napi_instance_serves_both_ways_and_no_others() -> Result<()> {
    if !can_run_here() {
        return Ok(());
    }
    let topology = Topology::build()?;
    let card = topology.card.context("no card")?;
    let _servers = Servers::start(&topology)?;
    let service = Service::http(Family::V4.vip());
    let config = testbed::config(&topology, std::slice::from_ref(&service));
    // Awake from one packet of a connection to the next; a worker that sleeps is woken up by an interrupt.
    let config = config.replace("workers: {", "workers: {spin_us: 20000, ");
    let weir = Weir::start_with(&topology, weir(), &config, &["--tuning", "gateway"])?;
    let works = |when: &str| {
        let load = load(&topology.client, service.addr(), 60, 6)?;
        ensure!(load.failures.is_empty(), "{when}: {:?}", load.failures);
        Ok(())
    };
    let polled = |weir: &Weir| -> Result<Vec<bool>> {
        let shown = interfaces(weir)?;
        let queues =
            shown.iter().filter(|row| row.name == WAN || row.name == LAN).flat_map(|row| &row.queues);
        Ok(queues.map(|queue| queue.polled).collect())
    };
    let why = match card {
        _ if card.mode()? != "zero-copy" => "frames are copied",
        Card::Igb => "sending and receiving have a NAPI instance each",
        _ => "the kernel does not tell what serves them both ways",
    };
    let told = format!("{LAN}: the kernel polls its queues, not the workers: {why}");
    ensure!(weir.log().contains(&told), "{told}: {}", weir.log());
    ensure!(polled(&weir)?.iter().all(|polled| !polled), "{:?}", polled(&weir)?);
    works("not polled")?;
    weir.stop()?;
    if card != Card::Igb {
        return Ok(());
    }

    let paired = pair_the_interrupts(&topology)?;
    let told = doctor(&topology, LAN)?;
    ensure!(finds(&told, "notes", "would have the workers poll the queues"), "{told:#}");
    let weir = Weir::start_with(&topology, crate::weir(), &config, &["--tuning", "gateway"])?;
    let told = format!("{LAN}: workers poll queues 0, 1 in place of interrupts");
    ensure!(weir.log().contains(&told), "{told}: {}", weir.log());
    ensure!(polled(&weir)? == [true; 4], "{:?}", polled(&weir)?);
    let before = polled_packets(&topology)?;
    eventually(LIMIT, || works("polled"))?;
    ensure!(clients::download(&topology.client, service.addr())? == servers::blob());
    // How many is the emulator's choice: its igb raises interrupts that the driver has not enabled again (QEMU 10), and then
    // the kernel is often first. What is sent goes by these polls alone.
    let count = polled_packets(&topology)? - before;
    println!("{count} frames came while a worker polled");
    ensure!(count > 0, "no frame came while a worker polled");
    weir.signal(Signal::SIGSTOP)?;
    std::thread::sleep(Duration::from_secs(1));
    weir.signal(Signal::SIGCONT)?;
    works("after a pause")?;

    // The driver makes its queues anew, and nobody asks Weir.
    drop(paired);
    eventually(LIMIT * 3, || {
        ensure!(weir.log().contains(&format!("{LAN}: the kernel polls queues 0, 1: ")), "{}", weir.log());
        Ok(())
    })?;
    ensure!(polled(&weir)? == [false; 4], "{:?}", polled(&weir)?);
    topology.wait_for_carriers()?;
    eventually(LIMIT * 3, || works("no longer polled"))?;
    weir.stop()?;
    Ok(())
}

#[test]
fn a_queue_whose_buffers_are_all_full_receives_again_after_its_worker_paused() -> Result<()> {
    if has_rss() {
        println!(
            "did not run: with the emulator's RSS a queue without buffers stops the frames for all others"
        );
    }
    if has_rss() || !can_run_here() {
        return Ok(());
    }
    let topology = Topology::build()?;
    let is_igb = topology.card == Some(Card::Igb);
    let _paired = is_igb.then(|| pair_the_interrupts(&topology)).transpose()?;
    let _servers = Servers::start(&topology)?;
    let service = Service::http(Family::V4.vip());
    // As a worker that is slow, not as one that is given up.
    let config = testbed::config(&topology, std::slice::from_ref(&service));
    let config = config.replace("workers: {", "workers: {beat_limit_ms: 60000, ");
    let weir = Weir::start(&topology, weir(), &config)?;
    let works = |when: &str| {
        eventually(LIMIT, || {
            let load = load(&topology.client, service.addr(), 60, 6)?;
            ensure!(load.failures.is_empty(), "{when}: {:?}", load.failures);
            Ok(())
        })
    };
    works("before")?;
    let flood = Flood::start(&topology, service.addr())?;
    weir.signal(Signal::SIGSTOP)?;
    std::thread::sleep(FLOOD_LENGTH);
    drop(flood);
    weir.signal(Signal::SIGCONT)?;
    works("after")?;
    let shown = interfaces(&weir)?;
    let wan = shown.iter().find(|row| row.name == WAN).context("an interface is not shown")?;
    println!("{}", serde_json::to_string(&wan.queues)?);
    let is_overrun = |queue: &QueueRow| queue.rx_ring_full + queue.fill_ring_empty > 0;
    ensure!(wan.queues.iter().any(is_overrun), "the flood was too small: {wan:?}");
    Ok(())
}
