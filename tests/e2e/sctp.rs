//! SCTP between real endpoints, where this kernel has the protocol.

use std::collections::BTreeSet;

use anyhow::Result;
use testbed::sctp::{Greeter, ask};
use testbed::servers::backend_name;
use testbed::topology::{BACKENDS, Family, Topology};
use testbed::{Service, Weir};

use crate::{can_run, weir};

const PORT: u16 = 3868;

#[test]
fn associations_of_every_mode_carry_data_both_ways() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let topology = Topology::build()?;
    let mut greeters = Vec::new();
    for (number, backend) in (1..).zip(&topology.backends) {
        for family in Family::BOTH {
            for own in [family.backend(number), family.shared_vip()] {
                match Greeter::start(backend, own, PORT, backend_name(number)) {
                    Ok(greeter) => greeters.push(greeter),
                    Err(error) => {
                        println!("did not run: {error:#}; make test-vm has a kernel with SCTP");
                        return Ok(());
                    }
                }
            }
        }
    }
    let vip = |family: Family, mode| match mode {
        "fullnat" => family.vip(),
        "nat" => family.routed_vip(),
        _ => family.shared_vip(),
    };
    let modes =
        Family::BOTH.into_iter().flat_map(|family| ["nat", "fullnat", "dr"].map(|mode| (family, mode)));
    let services: Vec<_> = modes
        .map(|(family, mode)| (family, Service::new(vip(family, mode), PORT, "sctp").mode(mode)))
        .collect();
    let listed: Vec<_> = services.iter().map(|(_, service)| service.clone()).collect();
    let weir = Weir::start(&topology, weir(), &testbed::config(&topology, &listed))?;
    for (family, service) in &services {
        let what = format!("{} {}", service.addr(), service.mode);
        let mut answered = BTreeSet::new();
        for _ in 0..BACKENDS * 2 {
            match ask(&topology.client, family.client(), service.addr(), 40_000) {
                Ok(name) => answered.insert(name),
                Err(error) => {
                    let [drops, flows] = ["drops", "flows"].map(|subject| weir.table(subject));
                    return Err(error.context(format!("{what}; Weir says\n{}\n{}", drops?, flows?)));
                }
            };
        }
        assert_eq!(answered, (1..=BACKENDS).map(backend_name).collect(), "{what}");
    }
    Ok(())
}
