//! `weir doctor` before real interfaces, sound ones and those with a trap.

use anyhow::{Result, ensure};
use serde_json::Value;
use testbed::topology::{ETH, Family, LAN, WAN, veth};
use testbed::{Namespace, Said, Service, Topology, Weir, run};

use crate::{LIMIT, can_run, weir};

fn doctor(namespace: &Namespace, args: &[&str]) -> Result<Said> {
    run(namespace.command(weir()).arg("doctor").args(args), LIMIT)
}

/// What it says as JSON, and its exit status.
fn report(namespace: &Namespace, args: &[&str]) -> Result<(Value, Option<i32>)> {
    let said = doctor(namespace, &[args, &["-o", "json"]].concat())?;
    Ok((serde_json::from_str(&said.out)?, said.status.code()))
}

/// The sentences of this weight about the first interface.
fn sentences(report: &Value, weight: &str) -> Vec<String> {
    let findings =
        report.pointer("/interfaces/0/findings").and_then(Value::as_array).cloned().unwrap_or_default();
    let of_weight = findings.iter().filter(|finding| finding["weight"] == weight);
    of_weight.filter_map(|finding| Some(finding["text"].as_str()?.to_owned())).collect()
}

/// Asserts that doctor refuses this interface for the reason `want` and with status 1.
fn assert_refused(name: &str, namespace: &Namespace, args: &[&str], want: &str) -> Result<()> {
    let (report, status) = report(namespace, args)?;
    assert_eq!((status, report.get("can_run")), (Some(1), Some(&Value::Bool(false))), "{name}: {report:#}");
    let refusals = sentences(&report, "refuses");
    assert!(refusals.iter().any(|text| text.contains(want)), "{name}: {want:?} is not in {refusals:#?}");
    let said = doctor(namespace, args)?;
    assert_eq!(said.status.code(), Some(1), "{name}: {said:?}");
    assert!(said.out.contains(want) && said.out.contains("Weir cannot run here"), "{name}: {}", said.out);
    Ok(())
}

#[test]
fn a_sound_gateway_is_found_sound() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let topology = Topology::build()?;
    let file = topology.scratch().join("weir.yaml");
    std::fs::write(&file, testbed::config(&topology, &[Service::http(Family::V4.vip())]))?;
    let by_config = ["--config", &file.display().to_string()];
    for args in [&[WAN, LAN, "--workers", "2"][..], &by_config, &["--workers", "2"]] {
        let (report, status) = report(&topology.gateway, args)?;
        assert_eq!((status, &report["can_run"]), (Some(0), &Value::Bool(true)), "{args:?}: {report:#}");
        let machine = &report["machine"];
        for feature in ["af_xdp", "xdp_program"] {
            assert_eq!(machine[feature], true, "{args:?}: {feature}");
        }
        let interfaces = report["interfaces"].as_array().cloned().unwrap_or_default();
        let names: Vec<_> = interfaces.iter().filter_map(|nic| nic["name"].as_str()).collect();
        assert_eq!(names, [WAN, LAN], "{args:?}: in the order of their indices");
        for nic in &interfaces {
            assert_eq!(
                (&nic["kind"], &nic["queues"]["rx"]),
                (&"veth".into(), &2.into()),
                "{args:?}: {nic:#}"
            );
            assert_eq!((&nic["mtu"], &nic["up"]), (&1500.into(), &true.into()), "{args:?}: {nic:#}");
        }
        let said = doctor(&topology.gateway, args)?;
        ensure!(said.out.ends_with("Weir can run here.\n"), "{args:?}: {}", said.out);
    }
    // Nothing was left on the interfaces, so Weir starts.
    Weir::start(&topology, weir(), &testbed::config(&topology, &[Service::http(Family::V4.vip())]))?
        .stop()?;
    Ok(())
}

#[test]
fn each_trap_is_refused_with_a_sentence_by_doctor_and_by_run() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let topology = Topology::build()?;
    let gateway = &topology.gateway;
    let config = testbed::config(&topology, &[Service::http(Family::V4.vip())]);
    let file = topology.scratch().join("trap.yaml");
    let far = topology.add("far")?;
    // A veth of one queue, whose peer sends by as many, and one whose peer sends by more.
    veth(gateway, "one", &far, "eth1", 1)?;
    gateway.ip(
        "link add near numrxqueues 2 numtxqueues 2 type veth peer name wide numrxqueues 2 numtxqueues 4\n\
         link set near up\nlink set wide up\nlink add br0 type bridge\nlink add idle numrxqueues 2 numtxqueues 2 type veth \
         peer name idle-far numrxqueues 2 numtxqueues 2\n",
    )?;
    for (name, interface, prepare, want) in [
        ("too few queues", "one", "", "2 workers need 2 RX queues, one has 1"),
        ("a peer with more", "near", "", "its peer wide 4 TX queues"),
        ("down", "idle", "", "idle is down: set it up"),
        ("no native XDP", "br0", "link set br0 up\n", "bridge has no native XDP for br0"),
        ("a member of a bridge", WAN, "link set wan master br0\n", "wan is a part of br0 (bridge)"),
        (
            "too large an MTU",
            WAN,
            "link set wan nomaster\nlink set wan mtu 12000\n",
            "the MTU of wan is 12000: Weir takes",
        ),
    ] {
        gateway.ip(prepare)?;
        assert_refused(name, gateway, &[interface, "--workers", "2"], want)?;
        std::fs::write(&file, config.replace("name: wan", &format!("name: {interface}")))?;
        let said = run(gateway.command(weir()).args(["run", "--config"]).arg(&file), LIMIT)?;
        assert_eq!(said.status.code(), Some(2), "{name}: {said:?}");
        assert!(said.err.contains("trap.yaml:2:") && said.err.contains(want), "{name}: {}", said.err);
    }
    gateway.ip("link set wan mtu 1500\n")?;
    // Where one of several interfaces will do, the others do not matter.
    assert_eq!(report(gateway, &["--workers", "2"])?.1, Some(0));

    if let Err(error) = gateway.ip("link add bond0 type bond\n") {
        println!("a bond's member did not run: this kernel has no bonding ({error:#}); make test-vm has one");
        return Ok(());
    }
    gateway.ip("link set idle master bond0\nlink set bond0 up\nlink set idle-far up\n")?;
    assert_refused("a member of a bond", gateway, &["idle"], "idle is a part of bond0 (bond)")?;
    assert_refused("a bond", gateway, &["bond0"], "bond0 is a bond")
}

#[test]
fn who_holds_an_interface_is_told_and_what_is_not_there_is_an_error() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let topology = Topology::build()?;
    let config = testbed::config(&topology, &[Service::http(Family::V4.vip())]);
    let running = Weir::start(&topology, weir(), &config)?;
    assert_refused("the program", &topology.gateway, &[WAN], "is attached to wan in native mode")?;
    running.stop()?;

    for (namespace, names) in [(&topology.gateway, [WAN, "wan9"]), (&topology.client, [ETH, "lan9"])] {
        let said = doctor(namespace, &names)?;
        assert_eq!(said.status.code(), Some(2), "{said:?}");
        let want = format!("weir: there is no interface {} in this network namespace\n", names[1]);
        assert_eq!((said.err, said.out), (want, String::new()));
    }
    Ok(())
}
