//! Changes of the configuration under traffic.

use std::time::{Duration, Instant};

use anyhow::Result;
use testbed::clients::{self, Direction};
use testbed::topology::{Family, has_nics};
use testbed::{Process, Service};

use crate::{KeptAlive, Setup, both};

#[test]
fn reloads_100_ms_apart_lose_no_connection() -> Result<()> {
    const PAUSE: Duration = Duration::from_millis(100);
    // Beside this load a reload itself takes an emulated guest, which network cards are in, two seconds.
    let (lasts, wanted) = if has_nics() { (120, 30) } else { (30, 100) };
    let lasts = Duration::from_secs(lasts);
    let services: Vec<Service> =
        Family::BOTH.into_iter().flat_map(|f| [Service::http(f.vip()), Service::iperf3(f.vip())]).collect();
    let Some(setup) = Setup::start(&services)? else { return Ok(()) };
    let topology = &setup.topology;

    // Each second one drains a backend, adds a service, and removes it again.
    let changed: Vec<Service> = services
        .iter()
        .map(|service| service.clone().last_weight(if service.scheduler == "rr" { 0 } else { 1 }))
        .chain(both(|family| Service::http(family.routed_vip()).mode("nat")))
        .collect();
    let configs = [testbed::config(topology, &services), testbed::config(topology, &changed)];

    let mut wrks = both(|family| Service::http(family.vip()))
        .iter()
        .map(|service| {
            let log = topology.scratch().join(format!("wrk-{}", if service.vip.is_ipv4() { 4 } else { 6 }));
            clients::wrk(&topology.client, service.addr(), lasts, log)
        })
        .collect::<Result<Vec<Process>>>()?;
    let rates = std::thread::scope(|scope| -> Result<Vec<f64>> {
        let bulk =
            |family: Family| clients::iperf3(&topology.client, family.vip(), Direction::Download, lasts);
        let bulks = Family::BOTH.map(|family| scope.spawn(move || bulk(family)));
        let end = Instant::now() + lasts;
        let mut reloads = 0;
        for config in configs.iter().cycle() {
            if Instant::now() > end {
                break;
            }
            setup.weir.reload(config)?;
            reloads += 1;
            std::thread::sleep(PAUSE);
        }
        println!("{reloads} reloads in {lasts:?}");
        // A reload takes a moment itself, and more of one where two cores do everything.
        assert!(reloads > wanted, "only {reloads} reloads");
        bulks.into_iter().map(|bulk| bulk.join().expect("no panic")).collect()
    })?;
    assert!(rates.iter().all(|rate| *rate > 10e6), "{rates:?}");
    for wrk in &mut wrks {
        assert!(wrk.wait(Duration::from_secs(10))?.is_some(), "wrk did not end: {}", wrk.log());
        let result = clients::wrk_result(&wrk.log())?;
        assert!(result.requests > 1000 && result.errors() == 0, "{}", wrk.log());
    }
    Ok(())
}

#[test]
fn a_faulty_reload_is_refused_whole_and_the_old_services_go_on() -> Result<()> {
    let services = both(|family| Service::http(family.vip()));
    let Some(setup) = Setup::start(&services)? else { return Ok(()) };
    let [first, second] = Family::BOTH;
    let good = Service::http(first.routed_vip());
    let bad = Service::http(second.routed_vip()).scheduler("best");
    let refused = setup.weir.reload(&testbed::config(&setup.topology, &[good.clone(), bad]));
    let said = format!("{:#}", refused.expect_err("a fault refuses the reload"));
    let file = setup.weir.config_path().display().to_string();
    assert!(said.contains(&file) && said.contains("services[1].scheduler"), "{said}");
    for service in &services {
        let pages = clients::curl(&setup.topology.client, service.addr(), 6)?;
        assert!(pages.iter().all(|page| page.status == 200), "{pages:?}");
    }
    let of_refused = testbed::load(&setup.topology.client, good.addr(), 1, 1)?;
    assert_eq!(of_refused.failures.len(), 1, "nothing of a refused configuration holds: {of_refused:?}");
    Ok(())
}

#[test]
fn sighup_reloads_as_the_command_does() -> Result<()> {
    let services = both(|family| Service::http(family.vip()));
    let Some(setup) = Setup::start(&services)? else { return Ok(()) };
    let more = both(|family| Service::http(family.routed_vip()).mode("nat"));
    let all: Vec<Service> = services.iter().chain(&more).cloned().collect();
    std::fs::write(setup.weir.config_path(), testbed::config(&setup.topology, &all))?;
    setup.weir.signal(testbed::Signal::SIGHUP)?;
    for service in &all {
        crate::eventually(Duration::from_secs(2), || {
            clients::curl(&setup.topology.client, service.addr(), 1).map(drop)
        })?;
    }
    Ok(())
}

#[test]
fn a_drained_backend_keeps_its_flows_and_gets_no_new_ones() -> Result<()> {
    let service = Service::http(Family::V4.vip());
    let Some(setup) = Setup::start(std::slice::from_ref(&service))? else { return Ok(()) };
    let addr = service.addr();
    let mut streams = Vec::new();
    for _ in 0..3 {
        streams.push(KeptAlive::open(&setup.topology.client, addr)?);
    }
    let before = streams.iter_mut().map(KeptAlive::ask).collect::<Result<Vec<_>>>()?;
    assert!(before.iter().any(|page| page == "backend-3"), "{before:?}");

    setup.weir.reload(&testbed::config(&setup.topology, &[service.clone().last_weight(0)]))?;
    let after = streams.iter_mut().map(KeptAlive::ask).collect::<Result<Vec<_>>>()?;
    assert_eq!(before, after);
    let load = testbed::load(&setup.topology.client, addr, 60, 4)?;
    assert_eq!(load.answers.keys().collect::<Vec<_>>(), ["backend-1", "backend-2"], "{load:?}");
    Ok(())
}
