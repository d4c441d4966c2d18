//! SYN floods: whoever is connected stays so, and new clients get through.

use std::time::Duration;

use anyhow::Result;
use testbed::flood::{Outcome, under_flood};
use testbed::topology::Family;
use testbed::{Load, Service};

use crate::{Setup, interfaces};

const KEPT: u32 = 200;
const LENGTH: Duration = Duration::from_secs(6);

#[test]
fn syn_cookies_let_every_client_through_a_flood() -> Result<()> {
    for mode in ["nat", "fullnat"] {
        let vip = if mode == "nat" { Family::V4.routed_vip() } else { Family::V4.vip() };
        let service = Service::http(vip).mode(mode).key("syn_proxy: always");
        let Some(setup) = Setup::start(std::slice::from_ref(&service))? else { return Ok(()) };
        let (met, told) = flood(&setup, &service)?;
        assert!(
            met.lost.is_empty() && met.kept.broken() == 0,
            "{mode}: established connections broke:\n{told}"
        );
        // Where a machine is so busy that frames get lost in front of Weir, who got no answer tells nothing of Weir.
        let excused = if lost_before_weir(&setup)? { met.new.unanswered } else { 0 };
        let failed = met.new.failures.len() - excused;
        assert!(failed * 100 <= attempts(&met.new), "{mode}: {:?}\n{told}", met.new.failures);
        assert!(met.grown < 4 << 20, "{mode}: memory grew:\n{told}");
    }
    Ok(())
}

#[test]
fn without_cookies_half_open_flows_go_first_and_established_ones_stay() -> Result<()> {
    let service = Service::http(Family::V4.routed_vip()).mode("nat");
    let Some(setup) = Setup::start(std::slice::from_ref(&service))? else { return Ok(()) };
    let bounded = testbed::config(&setup.topology, std::slice::from_ref(&service));
    setup.weir.reload(&(bounded + "floods: {half_open: 1024}\n"))?;
    let (met, told) = flood(&setup, &service)?;
    assert!(met.lost.is_empty() && met.kept.broken() == 0, "established connections broke:\n{told}");
    assert!(setup.workers()?.iter().all(|worker| worker.flows_evicted > 0), "none had to go:\n{told}");
    assert!(met.grown < 4 << 20, "memory grew:\n{told}");
    Ok(())
}

/// Floods a service for a while. What clients met, and the same in words, beside Weir's own counts.
fn flood(setup: &Setup, service: &Service) -> Result<(Outcome, String)> {
    let met = under_flood(&setup.topology, &setup.weir, service.addr(), KEPT, LENGTH)?;
    let told = format!(
        "{}: {:.0} SYNs a second; kept: {:?}, lost: {:?}; new: {} of {} failed, median {} us; memory grew by {} KiB\n\
         {}{}{}",
        service.mode,
        met.rate_pps,
        met.kept,
        met.lost,
        met.new.failures.len(),
        attempts(&met.new),
        met.new.latency_us.value_at_quantile(0.5),
        met.grown / 1024,
        setup.weir.table("workers")?,
        setup.weir.table("drops")?,
        setup.weir.table("interfaces")?,
    );
    println!("{told}");
    Ok((met, told))
}

/// Whether the kernel has found no room for a frame that was meant for Weir.
fn lost_before_weir(setup: &Setup) -> Result<bool> {
    Ok(interfaces(&setup.weir)?
        .iter()
        .flat_map(|interface| &interface.queues)
        .any(|queue| queue.rx_dropped + queue.rx_ring_full > 0))
}

/// Connections that were tried.
fn attempts(load: &Load) -> usize {
    load.failures.len() + load.answers.values().sum::<u32>() as usize
}
