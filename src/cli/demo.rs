//! `weir demo`: real HTTP, DNS and bulk TCP through Weir, in a network of namespaces made for it.

use std::fmt;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use control::admin::protocol::{Drops, InterfaceRow, WorkerRow};
use testbed::clients::{self, Direction, Transport};
use testbed::servers::{self, DNS_NAME, Servers};
use testbed::topology::{BACKENDS, Family, QUEUES, Topology};
use testbed::{Load, Service, Weir};

/// Connections that the HTTP client has open at a time.
const AT_ONCE: u32 = 8;
/// DNS questions of one row.
const QUESTIONS: u32 = 30;
const WIDTH: usize = 26;

#[derive(Debug, clap::Args)]
pub(crate) struct DemoArgs {
    /// Keep everything running afterwards, and say how to try it by hand; Ctrl-C ends it.
    #[arg(long)]
    keep: bool,
    /// HTTP requests to each of the VIPs.
    #[arg(long, value_name = "COUNT", default_value_t = 2000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    requests: u32,
    /// Seconds of bulk TCP, for each direction and address family.
    #[arg(long, value_name = "SECONDS", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=3600))]
    seconds: u32,
}

/// Runs the demo. The exit status says whether everything worked; nothing of it stays on the machine.
pub(crate) fn run(args: DemoArgs) -> Result<ExitCode> {
    ensure!(testbed::is_root(), "the demo makes network namespaces and needs root: sudo weir demo");
    let missing = testbed::missing_programs();
    ensure!(
        missing.is_empty(),
        "not installed: {}; `make deps` installs what the demo needs",
        missing.join(", ")
    );

    println!(
        "client -- gateway -- {BACKENDS} backends, each a network namespace of this machine; Weir runs in the \
         gateway:\n{QUEUES} queues an interface, {QUEUES} workers, AF_XDP. In the backends: nginx, dnsmasq, iperf3."
    );
    let topology = Topology::build()?;
    let _servers = Servers::start(&topology)?;
    let binary = std::env::current_exe().context("finding this binary")?;
    let services = Services::new();
    let weir = Weir::start(&topology, &binary, &testbed::config(&topology, &services.all()))?;

    let mut faults = Vec::new();
    http(&topology, &services.http, args.requests, &mut faults)?;
    dns(&topology, &services.dns, &mut faults);
    bulk(&topology, &services.bulk, Duration::from_secs(args.seconds.into()), &mut faults);
    kernel(&weir, &mut faults)?;
    drops(&weir)?;
    let code = conclude(&faults);
    if args.keep {
        invite(&topology, &services, &weir);
        // A signal ends the process, and removes everything first.
        loop {
            std::thread::park();
        }
    }
    Ok(code)
}

/// What is offered: the web in every forwarding mode, DNS, iperf3, each over IPv4 and IPv6.
struct Services {
    http: Vec<Service>,
    dns: Vec<Service>,
    bulk: Vec<Service>,
}

impl Services {
    fn new() -> Self {
        let http = |family: Family| {
            [
                Service::http(family.vip()),
                Service::http(family.routed_vip()).mode("nat"),
                Service::http(family.shared_vip()).mode("dr"),
            ]
        };
        Self {
            http: Family::BOTH.into_iter().flat_map(http).collect(),
            dns: Family::BOTH.map(|family| Service::dns(family.vip())).to_vec(),
            bulk: Family::BOTH.map(|family| Service::iperf3(family.vip())).to_vec(),
        }
    }

    fn all(&self) -> Vec<Service> {
        [&self.http, &self.dns, &self.bulk].into_iter().flatten().cloned().collect()
    }
}

fn http(topology: &Topology, services: &[Service], requests: u32, faults: &mut Vec<String>) -> Result<()> {
    println!("\nHTTP, a connection a request, {AT_ONCE} at a time; times from connect to the last byte");
    let backends =
        (1..=BACKENDS).map(|number| format!("{:>11}", servers::backend_name(number))).collect::<String>();
    println!(
        "{:WIDTH$}{:8}{:>7}{backends}{:>9}{:>9}{:>9}{:>9}{:>9}",
        "VIP", "mode", "failed", "req/s", "p50 ms", "p90 ms", "p99 ms", "max ms"
    );
    for service in services {
        let load = testbed::load(&topology.client, service.addr(), requests, AT_ONCE)?;
        let answered = f64::from(requests) / load.elapsed.as_secs_f64();
        let rate = Cell(answered, 0);
        let times = [50.0, 90.0, 99.0, 100.0].map(|quantile| Cell(milliseconds(&load, quantile), 2));
        let [p50, p90, p99, max] = times;
        println!(
            "{:WIDTH$}{:8}{:>7}{}{rate:>9}{p50:>9}{p90:>9}{p99:>9}{max:>9}",
            service.addr(),
            service.mode,
            load.failures.len(),
            shares(|name| load.answers.get(name).copied().unwrap_or(0)),
        );
        judge_shares(service, &load, faults);
    }
    Ok(())
}

/// A backend that got nothing, or a request that failed, is a fault.
fn judge_shares(service: &Service, load: &Load, faults: &mut Vec<String>) {
    let addr = service.addr();
    if let Some(first) = load.failures.first() {
        faults.push(format!("HTTP {addr}: {} requests failed, the first: {first}", load.failures.len()));
    }
    for name in (1..=BACKENDS).map(servers::backend_name).filter(|name| !load.answers.contains_key(name)) {
        faults.push(format!("HTTP {addr}: {name} got nothing"));
    }
}

fn dns(topology: &Topology, services: &[Service], faults: &mut Vec<String>) {
    println!("\nDNS over UDP, {QUESTIONS} questions by dig");
    for service in services {
        let addr = service.addr();
        match clients::dig(&topology.client, addr, Transport::Udp, QUESTIONS) {
            Ok(answers) => {
                let of = |name: &str| answers.iter().filter(|answer| *answer == name).count();
                println!("{addr:WIDTH$}{:8}{:>7}{}", service.mode, "", shares(|name| of(name)));
                if (1..=BACKENDS).map(|number| of(&servers::backend_name(number))).sum::<usize>()
                    != answers.len()
                {
                    faults.push(format!("DNS {addr}: unexpected answers: {answers:?}"));
                }
            }
            Err(error) => failed(faults, addr, "DNS", &error),
        }
    }
}

fn bulk(topology: &Topology, services: &[Service], duration: Duration, faults: &mut Vec<String>) {
    println!("\nBulk TCP by iperf3, {} s each", duration.as_secs());
    for service in services {
        for direction in [Direction::Upload, Direction::Download] {
            match clients::iperf3(&topology.client, service.vip, direction, duration) {
                Ok(rate) => {
                    let towards = format!("{direction:?}").to_lowercase();
                    println!(
                        "{:WIDTH$}{:8}{towards:>12}{:>9} Gbit/s",
                        service.addr(),
                        service.mode,
                        Cell(rate / 1e9, 2)
                    );
                }
                Err(error) => failed(faults, service.addr(), "iperf3", &error),
            }
        }
    }
}

/// The mode as the kernel has it, and who worked.
fn kernel(weir: &Weir, faults: &mut Vec<String>) -> Result<()> {
    println!("\nInterfaces, the modes read back from the kernel");
    let interfaces: Vec<InterfaceRow> = serde_json::from_value(weir.show("interfaces")?)?;
    for interface in &interfaces {
        let queues: Vec<String> = interface
            .queues
            .iter()
            .map(|queue| format!("queue {} {} rx {} tx {}", queue.queue, queue.mode, queue.rx, queue.tx))
            .collect();
        let program =
            if interface.xdp == "none" { "path to the kernel" } else { &*format!("XDP {}", interface.xdp) };
        println!("{:8}{program:20}{}", interface.name, queues.join(", "));
    }
    if !interfaces.iter().any(|interface| interface.xdp == "native") {
        faults.push("no interface has the XDP program in native mode".to_owned());
    }
    println!("\nWorkers");
    let workers: Vec<WorkerRow> = serde_json::from_value(weir.show("workers")?)?;
    for worker in &workers {
        println!(
            "worker {}: {} frames, {} sent on, {} answered, {} to the kernel, {} handed over, {} flows opened",
            worker.worker,
            worker.frames,
            worker.forwarded,
            worker.answered,
            worker.kernel,
            worker.handed_over,
            worker.flows_opened
        );
    }
    Ok(())
}

fn drops(weir: &Weir) -> Result<()> {
    println!("\nPackets not delivered, by reason");
    let drops: Drops = serde_json::from_value(weir.show("drops")?)?;
    if drops.drops.is_empty() {
        println!("none");
    }
    for drop in drops.drops {
        println!("{:24}{:>9}", drop.name, drop.count);
    }
    Ok(())
}

fn conclude(faults: &[String]) -> ExitCode {
    if faults.is_empty() {
        println!("\nEverything worked.");
        return ExitCode::SUCCESS;
    }
    println!("\nThis did not work:");
    for fault in faults {
        println!("- {fault}");
    }
    ExitCode::FAILURE
}

/// What to type into another terminal.
fn invite(topology: &Topology, services: &Services, weir: &Weir) {
    let client = format!("ip netns exec {}", topology.client.name());
    println!("\nAll of it is still running; try, as root, in another terminal:");
    for service in &services.http {
        println!("  {client} curl http://{}/", service.addr());
    }
    for service in &services.dns {
        println!("  {client} dig +short @{} {DNS_NAME} TXT", service.vip);
    }
    for service in &services.bulk {
        println!("  {client} iperf3 --client {}", service.vip);
    }
    for subject in ["services", "backends", "flows", "workers", "drops", "interfaces"] {
        println!("  weir show {subject} --socket {}", weir.socket().display());
    }
    println!(
        "  $EDITOR {0} && weir reload --socket {1}",
        weir.config_path().display(),
        weir.socket().display()
    );
    println!("Ctrl-C ends it and removes everything.");
}

fn failed(faults: &mut Vec<String>, addr: SocketAddr, what: &str, error: &anyhow::Error) {
    println!("{addr:WIDTH$}failed");
    faults.push(format!("{what} {addr}: {error:#}"));
}

/// One column a backend.
fn shares<T: fmt::Display>(of: impl Fn(&str) -> T) -> String {
    (1..=BACKENDS).map(|number| format!("{:>11}", of(&servers::backend_name(number)))).collect()
}

fn milliseconds(load: &Load, percentile: f64) -> f64 {
    Duration::from_micros(load.latency_us.value_at_percentile(percentile)).as_secs_f64() * 1e3
}

/// A number with so many decimals, which obeys the width that it is printed with.
struct Cell(f64, usize);

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{:.*}", self.1, self.0))
    }
}
