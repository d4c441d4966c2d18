//! kube-proxy's configuration and flags, as an operator of it gives them.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;
use testbed::topology::Family;
use testbed::{Said, Service, Topology, Weir, run};

use crate::commands::Desk;
use crate::{LIMIT, can_run, weir};

const KUBEADM: &str = include_str!("../../control/src/config/kube_proxy/tests/kubeadm.yaml");
const CONFIG: &str = "\
interfaces: [{name: eth1}]
snat_pools: [{name: pool, addresses: [10.0.2.200]}]
";
const IPVS: &str = "\
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
clusterCIDR: 10.244.0.0/16
mode: ipvs
ipvs: {scheduler: mh, strictARP: true}
shceduler: rr
";

fn desk(proxy: &str) -> Result<Desk> {
    let desk = Desk::new(CONFIG)?;
    fs::write(desk.path("kube-proxy.yaml"), proxy)?;
    Ok(desk)
}

#[test]
fn check_tells_what_each_field_will_do() -> Result<()> {
    let desk = desk(KUBEADM)?;
    for args in [
        &["check", "--kube-proxy-config", "kube-proxy.yaml"][..],
        &["check", "weir.yaml", "--kube-proxy-config", "kube-proxy.yaml"],
    ] {
        let said = desk.weir(args)?;
        assert!(said.status.success(), "{said:?}");
        let table = String::from_utf8_lossy(&said.stdout);
        let row = |field: &str| table.lines().find(|line| line.starts_with(field)).context("a row");
        assert!(row("clusterCIDR")?.contains("honoured"), "{table}");
        assert!(row("ipvs.scheduler")?.contains("none      the mode is iptables"), "{table}");
        assert!(row("oomScoreAdj")?.contains("(-999)"), "{table}");
    }
    fs::write(desk.path("kube-proxy.yaml"), IPVS)?;
    let said = desk.json(&["check", "--kube-proxy-config", "kube-proxy.yaml", "-o", "json"])?;
    let warnings: Vec<_> = said["warnings"].as_array().context("warnings")?.iter().collect();
    assert_eq!(
        warnings.iter().map(|warning| (&warning["line"], &warning["path"])).collect::<Vec<_>>(),
        [(&Value::from(5), &Value::from("ipvs.strictARP")), (&Value::from(6), &Value::from("shceduler"))]
    );
    let fields = said["kube_proxy"]["fields"].as_array().context("fields")?;
    let scheduler =
        fields.iter().find(|field| field["field"] == "ipvs.scheduler").context("ipvs.scheduler")?;
    assert_eq!((&scheduler["value"], &scheduler["effect"]), (&Value::from("mh"), &Value::from("honoured")));
    Ok(())
}

#[test]
fn check_tells_every_fault_of_both_files() -> Result<()> {
    let desk = desk(&KUBEADM.replace("bindAddress: 0.0.0.0", "bindAddress: here"))?;
    fs::write(desk.path("weir.yaml"), CONFIG.replace("10.0.2.200", "x"))?;
    let args = ["check", "weir.yaml", "--kube-proxy-config", "kube-proxy.yaml"];
    let said = desk.weir(&args)?;
    assert_eq!(said.status.code(), Some(2), "{said:?}");
    let told = String::from_utf8_lossy(&said.stderr);
    for want in ["weir.yaml:2:39: ", "kube-proxy.yaml:5:18: bindAddress: \"here\" is not an IP address"] {
        assert!(told.contains(want), "{want} is not in {told}");
    }
    let json = desk.weir(&[&args[..], &["-o", "json"]].concat())?;
    assert_eq!(json.status.code(), Some(2), "{json:?}");
    let faults = serde_json::from_slice::<Value>(&json.stdout)?;
    assert_eq!(faults["faults"].as_array().map(Vec::len), Some(2), "{faults}");

    let no_pool = Desk::new("interfaces: [{name: eth1}]\n")?;
    fs::write(no_pool.path("kube-proxy.yaml"), IPVS)?;
    let said = no_pool.weir(&args)?;
    assert_eq!(said.status.code(), Some(2), "{said:?}");
    assert!(String::from_utf8_lossy(&said.stderr).contains("there is no pool in snat_pools"), "{said:?}");
    Ok(())
}

#[test]
fn the_configuration_with_its_defaults_is_written_as_kube_proxy_does() -> Result<()> {
    let desk = desk(KUBEADM)?;
    let written = |args: &[&str]| -> Result<String> {
        let said = desk.weir(&[&["run", "--write-config-to", "written.yaml"][..], args].concat())?;
        assert!(said.status.success(), "{said:?}");
        Ok(fs::read_to_string(desk.path("written.yaml"))?)
    };
    let whole = include_str!("../../control/src/config/kube_proxy/tests/defaulted.yaml");
    assert_eq!(written(&["--kube-proxy-config", "kube-proxy.yaml"])?, whole);
    let by_flags = written(&[
        "--proxy-mode=ipvs",
        "--ipvs-scheduler",
        "lc",
        "--masquerade-all",
        "--iptables-localhost-nodeports=false",
        "--oom-score-adj",
        "-5",
        "--ipvs-exclude-cidrs=10.0.0.0/8",
        "--ipvs-exclude-cidrs=10.1.0.0/16,10.2.0.0/16",
        "--feature-gates=LoadBalancerIPMode=false",
        "-v4",
    ])?;
    for line in [
        "mode: ipvs",
        "  scheduler: lc",
        "  masqueradeAll: true",
        "  localhostNodePorts: false",
        "oomScoreAdj: -5",
        "  - 10.2.0.0/16",
        "  LoadBalancerIPMode: false",
        "  verbosity: 4",
    ] {
        assert!(by_flags.lines().any(|written| written == line), "{line:?} is not in\n{by_flags}");
    }
    Ok(())
}

#[test]
fn flags_that_make_no_sense_are_told_before_anything_is_touched() -> Result<()> {
    let desk = desk(IPVS)?;
    for (args, want) in [
        (&["--cluster-cidr", "here"][..], "command line: --cluster-cidr: \"here\" is not a network"),
        (&["--proxy-mode=kernelspace"], "command line: --proxy-mode: "),
        (&["--kube-proxy-config", "elsewhere.yaml"], "elsewhere.yaml: cannot be read"),
        (&["--kube-proxy-config", "weir.yaml"], "weir.yaml:1:1: \"kind\" is missing"),
        (&["--kube-proxy-configuration", "x"], "unexpected argument"),
    ] {
        let said = desk.weir(&[&["run", "--config", "weir.yaml"][..], args].concat())?;
        assert_eq!(said.status.code(), Some(2), "{args:?}: {said:?}");
        assert!(String::from_utf8_lossy(&said.stderr).contains(want), "{want} is not in {said:?}");
    }
    let said = desk.weir(&["run"])?;
    assert_eq!(said.status.code(), Some(2), "{said:?}");
    let said = desk.weir(&[
        "run",
        "--write-config-to",
        "w",
        "--kube-proxy-config",
        "kube-proxy.yaml",
        "--proxy-mode=nftables",
    ])?;
    assert!(said.status.success(), "{said:?}");
    let warned = String::from_utf8_lossy(&said.stderr);
    assert!(warned.contains("--proxy-mode: does not count beside --kube-proxy-config"), "{warned}");
    Ok(())
}

fn run_in(topology: &Topology, args: &[&str]) -> Result<Said> {
    run(topology.gateway.command(weir()).arg("run").args(args), LIMIT)
}

#[test]
fn cleanup_takes_away_what_a_killed_weir_has_left_and_lets_a_running_one_be() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let topology = Topology::build()?;
    let config = testbed::config(&topology, &[Service::http(Family::V4.vip())]);
    let running = Weir::start(&topology, weir(), &config)?;
    let (file, socket) = (running.config_path().to_owned(), running.socket().to_owned());
    let cleanup = || run_in(&topology, &["--cleanup", "--config", &file.display().to_string()]);
    let pair = || {
        Ok::<_, anyhow::Error>(
            run(topology.gateway.command("ip").args(["link", "show", "weir0"]), LIMIT)?.status,
        )
    };

    let said = cleanup()?;
    assert_eq!(said.status.code(), Some(1), "{said:?}");
    assert!(said.err.contains("another weir is running"), "{said:?}");
    running.show("workers").context("it goes on")?;

    running.kill()?;
    assert!(pair()?.success() && Path::new(&socket).exists(), "a killed Weir leaves these");
    let said = cleanup()?;
    assert!(said.status.success(), "{said:?}");
    assert!(said.err.contains("removed the interfaces weir0 and weir1"), "{said:?}");
    assert!(!pair()?.success() && !Path::new(&socket).exists());
    let again = cleanup()?;
    assert!(again.status.success() && !again.err.contains("removed"), "{again:?}");
    Ok(())
}

#[test]
fn init_only_switches_on_forwarding() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let topology = Topology::build()?;
    let forwarding = |value: &str| {
        let command = format!("sysctl -w net.ipv4.ip_forward={value}");
        run(topology.gateway.command("sh").args(["-c", &command]), LIMIT)
    };
    let read = || {
        Ok::<_, anyhow::Error>(
            run(topology.gateway.command("sysctl").args(["-n", "net.ipv4.ip_forward"]), LIMIT)?.out,
        )
    };
    forwarding("0")?;
    assert_eq!(read()?.trim(), "0");
    for _ in 0..2 {
        let said = run_in(&topology, &["--init-only"])?;
        assert!(said.status.success(), "{said:?}");
        assert_eq!(read()?.trim(), "1");
    }
    Ok(())
}

#[test]
fn the_log_has_the_form_and_the_level_that_kube_proxy_was_told() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let topology = Topology::build()?;
    let file = topology.scratch().join("kube-proxy.yaml");
    fs::write(&file, IPVS)?;
    let config = topology.scratch().join("none.yaml");
    // It ends for want of the interface, after it has told what it was asked for.
    fs::write(&config, "interfaces: [{name: wan9}]\nsnat_pools: [{name: a, addresses: [10.0.2.200]}]\n")?;
    let said = run_in(
        &topology,
        &[
            "--config",
            &config.display().to_string(),
            "--kube-proxy-config",
            &file.display().to_string(),
            "--logging-format=json",
            "--hostname-override=Node-A",
        ],
    )?;
    let lines: Vec<Value> = said.err.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let messages: Vec<_> = lines.iter().filter_map(|line| line["fields"]["message"].as_str()).collect();
    assert!(messages.iter().any(|message| message.contains("ipvs.strictARP: no effect")), "{said:?}");
    assert!(lines.iter().any(|line| line["fields"]["node"] == "node-a"), "{said:?}");
    assert_eq!(said.status.code(), Some(2), "{said:?}");
    Ok(())
}
