//! What a change of services costs: from the API's objects until workers use what they say.
//!
//! `cargo bench --bench control`, or `make bench`. Clusters of several sizes, ten endpoints to a Service, go through the
//! Kubernetes source's own store, control and its maps in the kernel (where the bench runs as root) to two workers with
//! engines over queues in memory; only the API server and the network are left out. Each size has a process of its own,
//! since resident memory is one of the numbers. Beside them, in the same run, nftables programs rules in kube-proxy's
//! manner for the same Services, in a network namespace of its own.

#![allow(
    clippy::cast_possible_truncation,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    missing_docs,
    reason = "a bench stops by panicking when something is not as it has to be"
)]

#[path = "../shared/child.rs"]
mod child;
mod cluster;
#[path = "../shared/machine.rs"]
mod machine;
mod node;
#[path = "../shared/numbers.rs"]
mod numbers;
mod peer;
#[path = "../shared/resident.rs"]
mod resident;
mod results;
#[path = "../shared/targets.rs"]
mod targets;

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;

use child::child;
use peer::Peer;
use results::Report;

/// Sizes of clusters, in Services.
const SIZES: [u32; 3] = [1_000, 10_000, 50_000];
/// The largest that nftables is asked to hold, unless all is: its transactions take longer with each rule that is there.
const PEER_SHORT: u32 = 1_000;
/// The largest that it is asked to hold at all: 50,000 Services would take an hour and gigabytes.
const PEER_MOST: u32 = 10_000;

/// The cost of changes.
#[derive(Parser)]
struct Cli {
    /// Only sizes up to this many Services.
    #[arg(long, default_value_t = u32::MAX)]
    services: u32,
    /// Let nftables hold 10,000 Services, too, which takes it minutes.
    #[arg(long)]
    long: bool,
    /// Leave the stored results as they are.
    #[arg(long)]
    no_store: bool,
    /// Fail where a target is missed.
    #[arg(long)]
    check: bool,
    /// Be the process that is measured, with so many Services.
    #[arg(long, hide = true)]
    node: Option<u32>,
    /// Be the process that programs nftables, with so many Services.
    #[arg(long, hide = true)]
    peer: Option<u32>,
    /// Cargo says so.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<ExitCode> {
    let cli = Cli::parse();
    if let Some(services) = cli.node {
        println!("{}", serde_json::to_string(&node::measure(services)?)?);
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(services) = cli.peer {
        println!("{}", serde_json::to_string(&Peer::measure(services)?)?);
        return Ok(ExitCode::SUCCESS);
    }
    let last = Report::newest()?;
    let mut report = Report::new()?;
    for services in SIZES.into_iter().filter(|services| *services <= cli.services) {
        eprintln!("{services} Services");
        report.costs.push(child("--node", services)?);
        if services <= if cli.long { PEER_MOST } else { PEER_SHORT } {
            match child("--peer", services) {
                Ok(peer) => report.peers.push(peer),
                Err(error) => eprintln!("nftables was not measured: {error:#}"),
            }
        }
    }
    report.print(last.as_ref());
    let met = judge(&report);
    if !cli.no_store {
        println!("\nstored in {}", report.store()?.display());
    }
    Ok(if met || !cli.check { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Prints the targets, at 50,000 Services, and whether each is met.
fn judge(report: &Report) -> bool {
    let Some(cost) = report.costs.iter().find(|cost| cost.services == 50_000) else { return true };
    let checks = [
        ("first load until workers use it, ms of one core", cost.load_cpu_ms, 1500.0),
        ("one endpoint, ms on the control thread, p50", cost.change_cpu_ms.p50, 1.0),
        ("one endpoint, ms until workers use it, p99", cost.visible_ms.p99, 2.0),
        ("resident, MiB", cost.resident_mib, 400e6 / f64::from(1 << 20)),
        ("idle, percent of a core", cost.idle_cpu_percent, 1.0),
        ("100 changes a second, percent of a core", cost.busy_cpu_percent, 10.0),
    ];
    targets::met(checks.map(|(name, value, limit)| (name, Some(value), limit)))
}
