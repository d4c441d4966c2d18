//! Traffic of services: whole, evenly shared, in every forwarding mode.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Result, ensure};
use testbed::clients::{self, Direction, Page, Transport};
use testbed::servers::{self, BLOB_BYTES};
use testbed::topology::{BACKENDS, Family};
use testbed::{Service, run};

use crate::{Setup, both, can_run_on_veth, eventually};

/// A VIP for each forwarding mode.
fn every_mode(family: Family, service: impl Fn(std::net::IpAddr) -> Service) -> [Service; 3] {
    [
        service(family.vip()).mode("fullnat"),
        service(family.routed_vip()).mode("nat"),
        service(family.shared_vip()).mode("dr"),
    ]
}

#[test]
fn two_thousand_requests_are_answered_and_evenly_shared() -> Result<()> {
    const REQUESTS: u32 = 2000;
    const AT_ONCE: u32 = 4;
    let services: Vec<Service> =
        Family::BOTH.into_iter().flat_map(|f| every_mode(f, Service::http)).collect();
    let Some(setup) = Setup::start(&services)? else { return Ok(()) };
    for service in &services {
        let pages = std::thread::scope(|scope| {
            let fetch = || clients::curl(&setup.topology.client, service.addr(), REQUESTS / AT_ONCE);
            let curls: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(fetch)).collect();
            curls.into_iter().map(|curl| curl.join().expect("no panic")).collect::<Result<Vec<_>>>()
        })?;
        let mut shares = BTreeMap::new();
        for Page { status, text } in pages.into_iter().flatten() {
            assert_eq!(status, 200, "{} {}", service.addr(), service.mode);
            *shares.entry(text).or_insert(0) += 1;
        }
        assert_eq!(shares.len(), usize::from(BACKENDS), "{shares:?}");
        assert_eq!(shares.values().sum::<u32>(), REQUESTS);
        // Round robin over 2000 is 666 or 667. A client port that is used again soon stays with its flow's backend,
        // and a busy kernel hands some out twice.
        for (backend, share) in &shares {
            assert!(
                share.abs_diff(REQUESTS / 3) <= 20,
                "{} {}: {backend} got {share}",
                service.addr(),
                service.mode
            );
        }
    }
    Ok(())
}

#[test]
fn large_downloads_come_whole_with_checksum_offload_on() -> Result<()> {
    let services: Vec<Service> =
        Family::BOTH.into_iter().flat_map(|f| every_mode(f, Service::http)).collect();
    let Some(setup) = Setup::start(&services)? else { return Ok(()) };
    let want = servers::blob();
    for service in &services {
        for _ in 0..BACKENDS {
            let got = clients::download(&setup.topology.client, service.addr())?;
            assert_eq!(got.len(), BLOB_BYTES, "{} {}", service.addr(), service.mode);
            assert!(got == want, "{} {}: content differs", service.addr(), service.mode);
        }
    }
    Ok(())
}

#[test]
fn dns_is_answered_and_evenly_shared() -> Result<()> {
    const QUESTIONS: u32 = 60;
    let services: Vec<Service> = Family::BOTH.into_iter().flat_map(|f| every_mode(f, Service::dns)).collect();
    let Some(setup) = Setup::start(&services)? else { return Ok(()) };
    for service in &services {
        let answers = clients::dig(&setup.topology.client, service.addr(), Transport::Udp, QUESTIONS)?;
        for number in 1..=BACKENDS {
            let name = servers::backend_name(number);
            let share = answers.iter().filter(|answer| **answer == name).count();
            assert!(
                share.abs_diff(QUESTIONS as usize / 3) <= 1,
                "{} {}: {answers:?}",
                service.addr(),
                service.mode
            );
        }
    }
    Ok(())
}

#[test]
fn bulk_goes_both_ways_in_every_mode() -> Result<()> {
    let services: Vec<Service> =
        Family::BOTH.into_iter().flat_map(|f| every_mode(f, Service::iperf3)).collect();
    let Some(setup) = Setup::start(&services)? else { return Ok(()) };
    for service in &services {
        for direction in [Direction::Upload, Direction::Download] {
            let rate =
                clients::iperf3(&setup.topology.client, service.vip, direction, Duration::from_secs(1))?;
            // A connection that limps from one retransmission to the next reaches a few Mbit/s.
            assert!(rate > 50e6, "{} {} {direction:?}: {rate} bit/s", service.addr(), service.mode);
        }
    }
    Ok(())
}

#[test]
fn a_reply_on_the_other_queue_is_handed_to_the_flows_worker() -> Result<()> {
    if !can_run_on_veth("a reply comes by the queue of its question") {
        return Ok(());
    }
    for mode in ["nat", "fullnat"] {
        let services = both(|family| Service::http(family.vip()).mode(mode));
        let Some(setup) = Setup::start(&services)? else { return Ok(()) };
        for service in &services {
            let load = testbed::load(&setup.topology.client, service.addr(), 200, 4)?;
            assert!(load.failures.is_empty(), "{mode}: {:?}", load.failures);
        }
        // The last segments of a closed connection may still be on their way.
        eventually(Duration::from_secs(1), || {
            let workers = setup.workers()?;
            let handed_over: u64 = workers.iter().map(|worker| worker.handed_over).sum();
            let taken_over: u64 = workers.iter().map(|worker| worker.taken_over).sum();
            ensure!(
                workers.iter().all(|worker| worker.frames > 100),
                "not both queues are used: {workers:?}"
            );
            // veth picks a reply's queue by a hash of its own: some of the replies are elsewhere.
            ensure!(handed_over > 100, "{mode}: {workers:?}");
            ensure!(handed_over == taken_over, "{mode}: some were lost on the way: {workers:?}");
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn a_tcp_flow_of_every_mode_is_shown_while_it_lasts() -> Result<()> {
    let services: Vec<Service> =
        Family::BOTH.into_iter().flat_map(|f| every_mode(f, Service::http)).collect();
    let Some(setup) = Setup::start(&services)? else { return Ok(()) };
    for service in &services {
        let addr = service.addr();
        let stream = setup.topology.client.enter(|| std::net::TcpStream::connect(addr))??;
        let flows = setup.weir.show("flows")?;
        let client = stream.local_addr()?.to_string();
        let rows = flows.get("flows").and_then(serde_json::Value::as_array).cloned().unwrap_or_default();
        let flow = rows.iter().find(|flow| flow.get("client").is_some_and(|it| *it == client.as_str()));
        let flow = flow.unwrap_or_else(|| panic!("no flow of {client} in {flows}"));
        assert_eq!(flow["vip"], addr.to_string(), "{flow}");
        assert_eq!(flow["mode"], service.mode, "{flow}");
        // Of a `dr` flow Weir sees the client's half alone, which IPVS calls established from the first ACK on.
        assert_eq!(flow["state"], "ESTABLISHED", "{flow}");
    }
    Ok(())
}

#[test]
fn an_idle_weir_sleeps() -> Result<()> {
    if !can_run_on_veth("they are emulated, and so is the processor, whose time says nothing") {
        return Ok(());
    }
    let Some(setup) = Setup::start(&both(|family| Service::http(family.vip())))? else { return Ok(()) };
    let ran = || -> Result<Duration> {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", setup.weir.pid()))?;
        let one = |task: std::fs::DirEntry| -> Result<u64> {
            let line = std::fs::read_to_string(task.path().join("schedstat"))?;
            Ok(line.split(' ').next().unwrap_or_default().parse()?)
        };
        Ok(Duration::from_nanos(tasks.flatten().map(one).sum::<Result<u64>>()?))
    };
    std::thread::sleep(Duration::from_secs(1));
    let (before, watched) = (ran()?, Duration::from_secs(3));
    std::thread::sleep(watched);
    let used = ran()? - before;
    // Less than a hundredth of a core where it is built to run fast, which tests are not.
    assert!(used * 50 < watched, "{used:?} in {watched:?}");
    Ok(())
}

#[test]
fn wrk_over_kept_connections_has_no_errors() -> Result<()> {
    let services = both(|family| Service::http(family.vip()));
    let Some(setup) = Setup::start(&services)? else { return Ok(()) };
    for service in &services {
        let mut command = setup.topology.client.command("wrk");
        command.args(["-t1", "-c16", "-d2s", &format!("http://{}/", service.addr())]);
        let said = run(&mut command, Duration::from_secs(10))?;
        let result = clients::wrk_result(&said.out)?;
        assert!(result.requests > 100 && result.errors() == 0, "{}", said.out);
    }
    Ok(())
}
