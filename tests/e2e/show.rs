//! What a running Weir tells of itself.

use std::os::unix::fs::PermissionsExt;

use anyhow::Result;
use serde_json::Value;
use testbed::topology::{BACKENDS, Family, LAN, QUEUES, WAN};
use testbed::{Card, Service};

use crate::{Setup, both};

fn rows(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

#[test]
fn every_subject_is_shown_for_people_and_for_programs() -> Result<()> {
    const REQUESTS: u32 = 30;
    let services = both(|family| Service::http(family.vip()));
    let Some(setup) = Setup::start(&services)? else { return Ok(()) };
    for service in &services {
        testbed::load(&setup.topology.client, service.addr(), REQUESTS, 2)?;
    }
    let vip = Family::V4.vip().to_string();
    for (subject, word) in [
        ("status", "weir.yaml"),
        ("services", &*vip),
        ("backends", "10.2.0.11:80"),
        ("flows", &*vip),
        ("workers", "handed"),
        ("drops", "vip"),
        ("interfaces", "native"),
    ] {
        let table = setup.weir.table(subject)?;
        assert!(table.contains(word), "{subject}:\n{table}");
        setup.weir.show(subject)?;
    }

    let backends = setup.weir.show("backends")?;
    assert_eq!(rows(&backends).len(), usize::from(2 * BACKENDS), "{backends}");
    let flows: u64 = rows(&backends).iter().filter_map(|backend| backend["flows"].as_u64()).sum();
    assert_eq!(flows, u64::from(2 * REQUESTS), "{backends}");
    for backend in rows(&backends) {
        // SYN, ACK, request and FIN at least, and as many back.
        assert!(
            backend["packets_in"].as_u64() >= Some(40) && backend["packets_out"].as_u64() >= Some(30),
            "{backend}"
        );
    }

    let interfaces = setup.weir.show("interfaces")?;
    for name in [WAN, LAN] {
        let found = rows(&interfaces).iter().find(|interface| interface["name"] == name);
        let interface = found.unwrap_or_else(|| panic!("no {name} in {interfaces}"));
        assert_eq!(interface["xdp"], "native", "{interface}");
        let queues = rows(&interface["queues"]);
        assert_eq!(queues.len(), QUEUES as usize, "{interface}");
        // veth has no zero-copy.
        let mode = setup.topology.card.map_or(Ok("copy"), Card::mode)?;
        assert!(queues.iter().all(|queue| queue["mode"] == mode), "not {mode}: {interface}");
    }
    Ok(())
}

#[test]
fn the_admin_socket_is_roots_alone() -> Result<()> {
    let Some(setup) = Setup::start(&both(|family| Service::http(family.vip())))? else { return Ok(()) };
    let mode = std::fs::metadata(setup.weir.socket())?.permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    Ok(())
}
