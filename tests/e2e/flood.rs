//! SYN floods: whoever is connected stays so, and new clients get through.

use std::time::Duration;

use anyhow::Result;
use testbed::flood::under_flood;
use testbed::topology::Family;
use testbed::{Load, Service};

use crate::Setup;

const KEPT: u32 = 200;

#[test]
fn syn_cookies_let_every_client_through_a_flood() -> Result<()> {
    for mode in ["nat", "fullnat"] {
        let vip = if mode == "nat" { Family::V4.routed_vip() } else { Family::V4.vip() };
        let service = Service::http(vip).mode(mode).key("syn_proxy: always");
        let Some(setup) = Setup::start(std::slice::from_ref(&service))? else { return Ok(()) };
        let length = Duration::from_secs(8);
        let met = under_flood(&setup.topology, &setup.weir, service.addr(), KEPT, length)?;
        println!(
            "{mode}: {:.0} SYNs a second; kept: {:?}; new: {} of {} failed, median {} us; memory grew by {} KiB",
            met.rate_pps,
            met.kept,
            met.new.failures.len(),
            attempts(&met.new),
            met.new.latency_us.value_at_quantile(0.5),
            met.grown / 1024
        );
        assert_eq!(met.kept.errors, 0, "{mode}: established connections broke: {:?}", met.kept);
        assert!(met.new.failures.len() * 100 <= attempts(&met.new), "{mode}: {:?}", met.new.failures);
        assert!(met.grown < 4 << 20, "{mode}: {} bytes more", met.grown);
    }
    Ok(())
}

#[test]
fn without_cookies_half_open_flows_go_first_and_established_ones_stay() -> Result<()> {
    let service = Service::http(Family::V4.routed_vip()).mode("nat");
    let Some(setup) = Setup::start(std::slice::from_ref(&service))? else { return Ok(()) };
    let met = under_flood(&setup.topology, &setup.weir, service.addr(), KEPT, Duration::from_secs(8))?;
    println!(
        "{:.0} SYNs a second; kept: {:?}; new: {} of {} failed",
        met.rate_pps,
        met.kept,
        met.new.failures.len(),
        attempts(&met.new)
    );
    assert_eq!(met.kept.errors, 0, "established connections broke: {:?}", met.kept);
    assert!(met.grown < 4 << 20, "{} bytes more", met.grown);
    Ok(())
}

/// Connections that were tried.
fn attempts(load: &Load) -> usize {
    load.failures.len() + load.answers.values().sum::<u32>() as usize
}
