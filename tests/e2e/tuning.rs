//! Settings that Weir makes for as long as it runs.

use anyhow::{Result, ensure};
use testbed::topology::{Family, LAN, WAN};
use testbed::{Service, Signal, Topology, Weir, clients, run};

use crate::{LIMIT, can_run, eventually, weir};

/// Polls and timer of both interfaces.
fn settings(topology: &Topology) -> Result<Vec<String>> {
    let files = [WAN, LAN].map(|name| {
        ["napi_defer_hard_irqs", "gro_flush_timeout"].map(|file| format!("/sys/class/net/{name}/{file}"))
    });
    let said = run(topology.gateway.command("cat").args(files.as_flattened()), LIMIT)?;
    Ok(said.out.split_whitespace().map(str::to_owned).collect())
}

#[test]
fn a_profile_holds_while_weir_runs_and_a_killed_ones_is_put_back_by_the_next() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let topology = Topology::build()?;
    let _servers = testbed::servers::Servers::start(&topology)?;
    let service = Service::http(Family::V4.vip());
    let config = testbed::config(&topology, std::slice::from_ref(&service));
    let untouched = ["0"; 4];
    ensure!(settings(&topology)? == untouched, "before: {:?}", settings(&topology)?);
    for (profile, want) in [
        ("off", untouched),
        ("shared", ["1", "20000", "1", "20000"]),
        ("gateway", ["2", "50000", "2", "50000"]),
    ] {
        let running = Weir::start_with(&topology, weir(), &config, &["--tuning", profile])?;
        eventually(LIMIT, || {
            let now = settings(&topology)?;
            ensure!(now == want, "{profile}: {now:?}");
            Ok(())
        })?;
        ensure!(clients::curl(&topology.client, service.addr(), 6)?.len() == 6, "{profile}");
        let told = running.log().contains("napi_defer_hard_irqs of lan is");
        ensure!(told == (profile != "off"), "{profile}: {}", running.log());
        running.signal(Signal::SIGTERM)?;
        eventually(LIMIT, || {
            ensure!(!running.socket().exists(), "{profile}: still listens");
            Ok(())
        })?;
        // At once: another Weir could start now.
        let now = settings(&topology)?;
        ensure!(now == untouched, "after {profile}: {now:?}");
        running.stop()?;
    }

    let killed = Weir::start_with(&topology, weir(), &config, &["--tuning", "gateway"])?;
    eventually(LIMIT, || {
        ensure!(settings(&topology)? != untouched);
        Ok(())
    })?;
    killed.kill()?;
    ensure!(settings(&topology)? != untouched, "nobody was there to put it back");
    let next = Weir::start(&topology, weir(), &config)?;
    eventually(LIMIT, || {
        let now = settings(&topology)?;
        ensure!(now == untouched, "after a killed one: {now:?}");
        Ok(())
    })?;
    ensure!(next.log().contains("napi_defer_hard_irqs of wan is 0 again"), "{}", next.log());
    next.stop()?;
    Ok(())
}
