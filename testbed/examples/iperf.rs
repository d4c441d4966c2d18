//! iperf3 through Weir beside iperf3 through a bare AF_XDP forwarder, in turns on the same network: what Weir costs
//! over what AF_XDP costs anyway.
//!
//! The forwarder joins `wan` and `lan` as a bridge, so it carries a client with an address in the backends' subnet;
//! Weir carries the same client by way of a VIP with `fullnat`. The rate is the receiver's; each figure is the median
//! of the rounds. With `--check` the exit status says whether every ratio reaches `--least`.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use serde_json::{Value, json};
use testbed::clients::{self, Direction};
use testbed::servers::{HTTP_PORT, Servers};
use testbed::topology::{ETH, Family, LAN, QUEUES, Topology, WAN};
use testbed::{Origin, Process, Service, Weir};

const DIRECTIONS: [Direction; 2] = [Direction::Upload, Direction::Download];
const START_LIMIT: Duration = Duration::from_secs(10);

#[derive(Debug, Parser)]
struct Args {
    /// Weir's binary.
    #[arg(long, value_name = "FILE", default_value = "target/release/weir")]
    weir: PathBuf,
    /// The traffic generator's binary, which has the forwarder.
    #[arg(long, value_name = "FILE", default_value = "perf/generator/target/release/weir-gen")]
    forwarder: PathBuf,
    /// How often each figure is taken.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds of one iperf3.
    #[arg(long, default_value_t = 2)]
    seconds: u64,
    /// The least rate through Weir over that through the forwarder.
    #[arg(long, default_value_t = 0.8)]
    least: f64,
    /// Makes a missed `--least` an error.
    #[arg(long)]
    check: bool,
    /// Where the result is stored, as JSON.
    #[arg(long, value_name = "FILE")]
    store: Option<PathBuf>,
}

/// Rates of one family and direction, bits a second, a round each.
struct Figure {
    family: Family,
    direction: Direction,
    bare: Vec<f64>,
    weir: Vec<f64>,
}

impl Figure {
    fn ratio(&self) -> f64 {
        median(&self.weir) / median(&self.bare)
    }
}

fn main() -> Result<ExitCode> {
    let args = Args::parse();
    ensure!(testbed::is_root(), "network namespaces need root");
    for binary in [&args.weir, &args.forwarder] {
        ensure!(binary.exists(), "{} is not built; `make bench` builds it", binary.display());
    }
    let topology = Topology::build()?;
    let _servers = Servers::start(&topology)?;
    for family in Family::BOTH {
        let (addr, prefix) = bridged(family);
        topology.client.ip(&format!("address add {addr}/{prefix} dev {ETH}\n"))?;
    }

    let mut figures: Vec<Figure> = Family::BOTH
        .into_iter()
        .flat_map(|family| {
            DIRECTIONS.map(|direction| Figure { family, direction, bare: Vec::new(), weir: Vec::new() })
        })
        .collect();
    let mut interfaces = Value::Null;
    let duration = Duration::from_secs(args.seconds);
    for round in 1..=args.rounds {
        println!("round {round} of {}", args.rounds);
        let forwarder = forward(&topology, &args.forwarder)?;
        for figure in &mut figures {
            let server = figure.family.backend(1);
            figure.bare.push(clients::iperf3(&topology.client, server, figure.direction, duration)?);
        }
        drop(forwarder);
        let services = Family::BOTH.map(|family| Service::iperf3(family.vip()));
        let weir = Weir::start(&topology, &args.weir, &testbed::config(&topology, &services))?;
        for figure in &mut figures {
            let vip = figure.family.vip();
            figure.weir.push(clients::iperf3(&topology.client, vip, figure.direction, duration)?);
        }
        interfaces = weir.show("interfaces")?;
        // An iperf3 server that does not see its client go is busy for ever.
        std::thread::sleep(Duration::from_millis(500));
        weir.stop()?;
    }
    print(&figures);
    if let Some(path) = &args.store {
        store(path, &args, &figures, &interfaces)?;
    }
    let least = figures.iter().map(Figure::ratio).fold(f64::INFINITY, f64::min);
    println!("\nthe least ratio is {least:.2}, wanted is {:.2}", args.least);
    Ok(if args.check && least < args.least { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// The client's address in the backends' subnet, with the subnet's prefix length.
fn bridged(family: Family) -> (IpAddr, u8) {
    match family.router() {
        IpAddr::V4(addr) => (IpAddr::from((addr.to_bits() + 1).to_be_bytes()), 24),
        IpAddr::V6(addr) => (IpAddr::from((addr.to_bits() + 1).to_be_bytes()), 64),
    }
}

/// A running forwarder that has carried a connection: neighbours are known from here on.
fn forward(topology: &Topology, binary: &Path) -> Result<Process> {
    let mut command = topology.gateway.command(binary);
    command.args(["forward", "--in", WAN, "--out", LAN, "--queues", &QUEUES.to_string()]);
    let log = topology.scratch().join("forwarder.log");
    let mut forwarder = Process::spawn("the forwarder", command, log.clone())?;
    forwarder.wait_until(START_LIMIT, || Ok(std::fs::read_to_string(&log)?.contains("ready")))?;
    for family in Family::BOTH {
        let server = SocketAddr::new(family.backend(1), HTTP_PORT);
        let reached = topology.client.enter(|| std::net::TcpStream::connect_timeout(&server, START_LIMIT))?;
        reached.with_context(|| format!("reaching {server} through the forwarder"))?;
    }
    Ok(forwarder)
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

fn print(figures: &[Figure]) {
    println!("\n{:8}{:10}{:>16}{:>16}{:>8}", "family", "", "bare, Gbit/s", "Weir, Gbit/s", "ratio");
    for figure in figures {
        println!(
            "{:8}{:10}{:>16.2}{:>16.2}{:>8.2}",
            format!("{:?}", figure.family),
            format!("{:?}", figure.direction).to_lowercase(),
            median(&figure.bare) / 1e9,
            median(&figure.weir) / 1e9,
            figure.ratio(),
        );
    }
}

fn store(path: &Path, args: &Args, figures: &[Figure], interfaces: &Value) -> Result<()> {
    let rows: Vec<Value> = figures
        .iter()
        .map(|figure| {
            json!({
                "family": format!("{:?}", figure.family),
                "direction": format!("{:?}", figure.direction).to_lowercase(),
                "bare_bps": figure.bare,
                "weir_bps": figure.weir,
                "ratio": figure.ratio(),
            })
        })
        .collect();
    let report = json!({
        "origin": Origin::of(&std::env::current_dir()?, &Origin::SOURCES)?,
        "cores": std::thread::available_parallelism()?.get(),
        "interfaces": interfaces,
        "queues": QUEUES,
        "seconds": args.seconds,
        "figures": rows,
    });
    std::fs::write(path, serde_json::to_string_pretty(&report)? + "\n")
        .with_context(|| format!("writing {}", path.display()))
}
