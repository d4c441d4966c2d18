//! Health and metrics of a running Weir, over HTTP.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use testbed::topology::{LAN, QUEUES, Topology, WAN};
use testbed::{Service, Weir, run};

use crate::{Setup, both, can_run, eventually, weir};
use testbed::servers::Servers;

const METRICS: &str = "127.0.0.1:10249";
const HEALTH: &str = "127.0.0.1:10256";

fn listening(topology: &Topology, services: &[Service]) -> String {
    let config = testbed::config(topology, services);
    format!("metrics: {{listen: \"{METRICS}\"}}\nhealth: {{listen: \"{HEALTH}\"}}\n{config}")
}

fn start(services: &[Service]) -> Result<Option<Setup>> {
    if !can_run() {
        return Ok(None);
    }
    let topology = Topology::build()?;
    let servers = Servers::start(&topology)?;
    let weir = Weir::start(&topology, weir(), &listening(&topology, services))?;
    Ok(Some(Setup { weir, _servers: servers, topology }))
}

/// Status and body of a page, asked for in the gateway.
fn get(topology: &Topology, address: &str, path: &str, accept: &str) -> Result<(u16, String)> {
    let mut curl = topology.gateway.command("curl");
    curl.args(["--silent", "--show-error", "--write-out", "\n%{http_code}", "--header"]);
    curl.arg(format!("accept: {accept}")).arg(format!("http://{address}{path}"));
    let said = run(&mut curl, Duration::from_secs(10))?;
    ensure!(said.status.success(), "curl {path}: {}", said.err);
    let (body, status) = said.out.rsplit_once('\n').context("no status")?;
    Ok((status.parse()?, body.to_owned()))
}

fn scrape(topology: &Topology) -> Result<String> {
    let (status, text) = get(topology, METRICS, "/metrics", "*/*")?;
    ensure!(status == 200, "/metrics: {status} {text}");
    Ok(text)
}

/// The value of a sample, by its name with labels.
fn sample(text: &str, name: &str) -> Result<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    Ok(line.with_context(|| format!("no {name} in\n{text}"))?.parse()?)
}

/// What families there are: name to type.
fn families(text: &str) -> BTreeMap<&str, &str> {
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
    types.collect()
}

#[test]
fn what_the_metrics_tell_is_what_weir_show_tells() -> Result<()> {
    const REQUESTS: u32 = 40;
    let services = both(|family| Service::http(family.vip()));
    let Some(setup) = start(&services)? else { return Ok(()) };
    for service in &services {
        testbed::load(&setup.topology.client, service.addr(), REQUESTS, 2)?;
    }
    // What is noted once a second is new now, and no packet is under way any more.
    std::thread::sleep(Duration::from_millis(1500));
    let text = scrape(&setup.topology)?;
    let workers = setup.workers()?;
    let total = |of: fn(&control::admin::protocol::WorkerRow) -> u64| workers.iter().map(of).sum::<u64>();
    ensure!(total(|row| row.forwarded) > u64::from(REQUESTS), "{workers:?}");
    for (name, want) in [
        ("weir_packets_total{verdict=\"forwarded\"}", total(|row| row.forwarded)),
        ("weir_packets_total{verdict=\"handed_over\"}", total(|row| row.handed_over)),
        ("weir_worker_flows_opened_total{worker=\"0\"}", workers[0].flows_opened),
        ("weir_worker_flows_opened_total{worker=\"1\"}", workers[1].flows_opened),
        ("weir_worker_flows_limit{worker=\"0\"}", 65_536),
        ("weir_worker_up{worker=\"1\"}", 1),
        ("weir_table_entries{table=\"services\"}", 2),
        ("weir_table_entries{table=\"backends\"}", 6),
        ("weir_drops_total{reason=\"no_backend\"}", 0),
        ("weir_last_reload_accepted", 1),
        ("weir_interface_up{interface=\"wan\"}", 1),
        ("weir_interface_mode{interface=\"lan\",mode=\"native\"}", 1),
    ] {
        let found = sample(&text, name)?;
        ensure!((found - want as f64).abs() < 0.5, "{name} is {found}, not {want}");
    }
    for service in &services {
        let name = format!("{}/{}/tcp", service.vip, service.port);
        let of = |metric: &str, label: &str| sample(&text, &format!("{metric}{{service=\"{name}\"{label}}}"));
        let flows = of("weir_service_flows_opened_total", "")?;
        ensure!((flows - f64::from(REQUESTS)).abs() < 0.5, "{name}: {flows}");
        ensure!(of("weir_service_packets_total", ",direction=\"in\"")? > 4.0 * flows);
        ensure!(of("weir_service_bytes_total", ",direction=\"out\"")? > 100.0 * flows);
    }
    ensure!(sample(&text, "weir_xdp_frames_total{fate=\"vip\"}")? > f64::from(REQUESTS));
    for interface in [WAN, LAN] {
        let queues = (0..QUEUES).map(|queue| format!("{{interface=\"{interface}\",queue=\"{queue}\"}}"));
        let received: f64 = queues
            .map(|labels| sample(&text, &format!("weir_queue_rx_frames_total{labels}")))
            .sum::<Result<_>>()?;
        ensure!(received > f64::from(REQUESTS), "{interface}: {received}");
    }
    // The kernel counts it in steps of 10 ms.
    eventually(Duration::from_secs(60), || {
        testbed::load(&setup.topology.client, services[0].addr(), REQUESTS, 2)?;
        let text = scrape(&setup.topology)?;
        ensure!(sample(&text, "weir_worker_cpu_seconds_total{worker=\"0\"}")? > 0.0, "no processor time");
        Ok(())
    })
}

#[test]
fn health_tells_of_a_refused_file_and_stays_good() -> Result<()> {
    let services = both(|family| Service::http(family.vip()));
    let Some(setup) = start(&services)? else { return Ok(()) };
    let health = |path| -> Result<(u16, Value)> {
        let (status, body) = get(&setup.topology, HEALTH, path, "*/*")?;
        Ok((status, serde_json::from_str(&body).with_context(|| body.clone())?))
    };
    let (status, body) = health("/healthz")?;
    ensure!(status == 200 && body["healthy"] == true && body.get("notes").is_none(), "{status} {body}");
    ensure!(setup.weir.reload("interfaces: []\n").is_err());
    for path in ["/healthz", "/livez"] {
        let (status, body) = health(path)?;
        let note = body["notes"][0].as_str().unwrap_or_default();
        ensure!(
            status == 200 && note.starts_with("the last change was refused: "),
            "{path}: {status} {body}"
        );
    }
    let text = scrape(&setup.topology)?;
    ensure!(sample(&text, "weir_reloads_total{result=\"refused\"}")? > 0.5);
    ensure!(sample(&text, "weir_last_reload_accepted")? < 0.5);
    setup.weir.reload(&listening(&setup.topology, &services))?;
    ensure!(health("/healthz")?.1.get("notes").is_none());
    Ok(())
}

#[test]
fn a_metrics_address_that_is_taken_is_waited_for() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let topology = Topology::build()?;
    let mut holder = topology.gateway.command("python3");
    holder.args(["-c", "import socket,sys\ns=socket.create_server(('127.0.0.1',10249))\nsys.stdin.read()"]);
    let mut holder = holder.stdin(Stdio::piped()).spawn()?;
    eventually(Duration::from_secs(5), || {
        let said = run(
            topology.gateway.command("ss").args(["-Hltn", "sport", "=", ":10249"]),
            Duration::from_secs(5),
        )?;
        ensure!(!said.out.is_empty(), "not yet");
        Ok(())
    })?;
    let services = both(|family| Service::http(family.vip()));
    let weir = Weir::start(&topology, weir(), &listening(&topology, &services))?;
    ensure!(get(&topology, HEALTH, "/healthz", "*/*")?.0 == 200);
    drop(holder.stdin.take());
    holder.wait()?;
    eventually(Duration::from_secs(15), || scrape(&topology))?;
    ensure!(weir.log().contains("cannot listen on 127.0.0.1:10249 for metrics"), "{}", weir.log());
    Ok(())
}

#[test]
fn prometheus_takes_both_notations_and_the_documentation_lists_what_there_is() -> Result<()> {
    let services = both(|family| Service::http(family.vip()));
    let Some(setup) = start(&services)? else { return Ok(()) };
    testbed::load(&setup.topology.client, services[0].addr(), 10, 1)?;
    let text = scrape(&setup.topology)?;
    let (_, open) = get(&setup.topology, METRICS, "/metrics", "application/openmetrics-text")?;
    ensure!(open.ends_with("# EOF\n") && open.contains("# TYPE weir_drops counter\n"), "{open}");

    let documented = documented(include_str!("../../docs/metrics.md"))?;
    let found = families(&text);
    for (name, kind) in &found {
        ensure!(documented.get(*name) == Some(kind), "{name}, a {kind}, is not in docs/metrics.md");
    }
    let is_kubernetes = |name: &str| name.starts_with("kubeproxy_") || name.starts_with("weir_kubernetes_");
    for name in documented.keys().filter(|name| !is_kubernetes(name)) {
        ensure!(found.contains_key(name), "{name} is in docs/metrics.md and not told");
    }

    if Command::new("promtool").arg("--version").output().is_err() {
        println!("did not run: not installed: promtool (Debian's package prometheus)");
        return Ok(());
    }
    let mut promtool = Command::new("promtool").args(["check", "metrics"]).stdin(Stdio::piped()).spawn()?;
    promtool.stdin.take().context("no pipe")?.write_all(text.as_bytes())?;
    ensure!(promtool.wait()?.success(), "promtool check metrics:\n{text}");
    Ok(())
}

/// The metrics of the documentation's tables: name to type.
fn documented(text: &str) -> Result<BTreeMap<&str, &str>> {
    let mut all = BTreeMap::new();
    for row in text.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<_> = row.split('|').map(str::trim).collect();
        let [_, name, kind, ..] = cells[..] else { continue };
        if ["counter", "gauge", "histogram"].contains(&kind) {
            ensure!(all.insert(name.trim_matches('`'), kind).is_none(), "{name} is there twice");
        }
    }
    ensure!(all.len() > 20, "the tables cannot be read: {all:?}");
    Ok(all)
}
