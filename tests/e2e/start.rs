//! Starts that cannot be: one sentence, an exit status, and nothing left behind.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use testbed::topology::Family;
use testbed::{Said, Service, Topology, Weir, run};

use crate::{LIMIT, both, can_run, eventually, weir};

/// A configuration in the topology's directory and what `weir run` says to it; `wrap` goes before the binary.
fn run_weir(topology: &Topology, wrap: &[&str], config: &str) -> Result<Said> {
    let file = topology.scratch().join("faulty.yaml");
    std::fs::write(&file, config)?;
    let mut words = wrap.iter().map(std::ffi::OsStr::new).chain([weir().as_os_str()]);
    let mut command: Command = topology.gateway.command(words.next().context("a program")?);
    run(command.args(words).arg("run").arg("--config").arg(file), LIMIT)
}

/// The links of the gateway, with what is attached to them.
fn links(topology: &Topology) -> Result<String> {
    Ok(run(topology.gateway.command("ip").args(["-oneline", "link", "show"]), LIMIT)?.out)
}

/// Asserts that `said` is a refusal of one line that contains all of `want`, with this exit status.
fn assert_refusal(name: &str, said: &Said, status: i32, want: &[&str]) {
    assert_eq!(said.status.code(), Some(status), "{name}: {said:?}");
    // Log lines may come before; the refusal is the last line.
    let sentence = said.err.trim().lines().last().unwrap_or_default();
    for part in want {
        assert!(sentence.contains(part), "{name}: {part:?} is not in {:?}", said.err);
    }
    assert!(!said.err.contains("panicked"), "{name}: {}", said.err);
}

#[test]
fn what_is_missing_is_named() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let topology = Topology::build()?;
    let before = links(&topology)?;
    let good = testbed::config(&topology, &both(|family| Service::http(family.vip())));
    let without = |capabilities: &'static str| vec!["setpriv", "--bounding-set", capabilities];
    let little_memory = [without("-ipc_lock,-sys_resource"), vec!["prlimit", "--memlock=65536"]].concat();
    let nobody = vec!["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];
    let queues = good.replace("{count: 2}", "{count: 3, cores: [0, 1, 2]}");
    for (name, wrap, config, status, want) in [
        ("no such interface", vec![], good.replace("name: wan", "name: wan9"), 2, ["faulty.yaml:2:", "wan9"]),
        ("no such queue", vec![], queues, 2, ["faulty.yaml:", "queue"]),
        ("unknown key", vec![], good.replace("workers:", "wrokers:"), 2, ["faulty.yaml:", "wrokers"]),
        ("no CAP_NET_ADMIN", without("-net_admin"), good.clone(), 1, ["weir:", "CAP_NET_ADMIN"]),
        ("no CAP_NET_RAW", without("-net_raw"), good.clone(), 1, ["weir:", "CAP_NET_RAW"]),
        ("no CAP_BPF", without("-bpf,-sys_admin"), good.clone(), 1, ["weir:", "CAP_BPF"]),
        ("little lockable memory", little_memory, good.clone(), 1, ["weir:", "RLIMIT_MEMLOCK"]),
        ("nobody", nobody, good.clone(), 1, ["weir:", "CAP_"]),
    ] {
        let said = run_weir(&topology, &wrap, &config)?;
        assert_refusal(name, &said, status, &want);
        assert_eq!(links(&topology)?, before, "{name}: everything is undone");
    }
    // And it was the fault alone that stood in the way.
    Weir::start(&topology, weir(), &good)?.stop()?;
    Ok(())
}

#[test]
fn a_signal_at_any_moment_of_the_start_leaves_nothing_behind() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let topology = Topology::build()?;
    let before = links(&topology)?;
    let file = topology.scratch().join("early.yaml");
    std::fs::write(&file, testbed::config(&topology, &both(|family| Service::http(family.vip()))))?;
    for delay_ms in [0, 20, 50, 100, 200, 400] {
        // `timeout` sends SIGTERM, and tells how the process ended.
        let mut command = topology.gateway.command("timeout");
        command.args(["--preserve-status", &format!("{}", f64::from(delay_ms) / 1000.0 + 0.01)]);
        run(command.arg(weir()).args(["run", "--config"]).arg(&file), LIMIT)?;
        eventually(LIMIT, || {
            let after = links(&topology)?;
            ensure!(after == before, "after {delay_ms} ms: {after}");
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn what_another_process_holds_is_left_to_it() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let topology = Topology::build()?;
    let config = testbed::config(&topology, &[Service::http(Family::V4.vip())]);
    let running = Weir::start(&topology, weir(), &config)?;
    let before = links(&topology)?;

    let said = run_weir(&topology, &[], &config)?;
    assert_refusal("the socket", &said, 1, &["weir.sock"]);
    let elsewhere = config.replace("weir.sock", "other.sock");
    let said = run_weir(&topology, &[], &elsewhere)?;
    assert_refusal("the interface", &said, 1, &["wan", "program"]);

    assert_eq!(links(&topology)?, before);
    running.show("workers").context("the first goes on")?;
    Ok(())
}
