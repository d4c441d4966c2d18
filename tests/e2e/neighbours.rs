//! Neighbours that nobody has asked for yet.

use std::time::Duration;

use anyhow::{Result, ensure};
use control::admin::protocol::Drops;
use testbed::topology::{BACKENDS, Family};
use testbed::{Service, load};

use crate::Setup;

/// TCP sends its first segment again after a second.
const AT_ONCE: Duration = Duration::from_millis(500);

#[test]
fn the_first_packets_to_unknown_neighbours_are_kept_and_not_lost() -> Result<()> {
    for mode in ["nat", "fullnat"] {
        let services = Family::BOTH.map(|family| Service::http(family.routed_vip()).mode(mode));
        let Some(setup) = Setup::start(&services)? else { return Ok(()) };
        for service in &services {
            for round in 0..3 {
                setup.topology.gateway.ip("neigh flush all\n")?;
                let load = load(&setup.topology.client, service.addr(), BACKENDS.into(), BACKENDS.into())?;
                ensure!(load.failures.is_empty(), "{mode} {}: {:?}", service.addr(), load.failures);
                let longest = Duration::from_micros(load.latency_us.max());
                println!(
                    "{mode} {} round {round}: the longest of {BACKENDS} took {longest:?}",
                    service.addr()
                );
                ensure!(longest < AT_ONCE, "{mode} {}: {longest:?}", service.addr());
            }
        }
        let drops: Drops = serde_json::from_value(setup.weir.show("drops")?)?;
        let lost: Vec<_> = drops.drops.iter().filter(|drop| drop.name == "no_neighbour").collect();
        ensure!(lost.is_empty(), "{mode}: {lost:?}");
    }
    Ok(())
}
