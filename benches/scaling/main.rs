//! What workers share, with more of them than this machine has cores: costs that two cores can tell, and a simulation.
//!
//! `cargo bench --bench scaling`. Measured is what a handoff takes either worker, through the real rings. With that, queues,
//! handoffs and shared lines of 1 to 64 workers are simulated, packet by packet. What a packet takes a worker by itself is
//! given, and so is what a cache line takes that another core wrote last: two cores of a virtual machine may be threads of
//! one, so what they take is told, but says little of 64.

#![allow(
    clippy::cast_possible_truncation,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    missing_docs,
    reason = "a bench stops by panicking when something is not as it has to be"
)]

mod costs;
#[path = "../shared/machine.rs"]
mod machine;
#[path = "../shared/random.rs"]
mod random;
mod simulation;

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use serde::{Deserialize, Serialize};
use testbed::Origin;

use self::costs::Costs;
use self::machine::change;
use self::simulation::{Outcome, Replies, World, simulate};

/// Workers that are simulated.
const WORKERS: [usize; 5] = [1, 2, 8, 16, 64];
/// Of a thousand packets so many are the first ones of flows, where flows open.
const NEW_PER_MILLE: u32 = 100;

/// Costs on two cores, and a simulation of up to 64 workers.
#[derive(Debug, Parser)]
struct Args {
    /// What the engine takes a packet, as `cargo bench --bench engine` says of established ones.
    #[arg(long, default_value_t = 40.0)]
    engine_ns: f64,
    /// What receiving a frame takes, and what sending one does; 30 is a guess for zero-copy, the kernel's copy mode has 500.
    #[arg(long, default_value_t = 30.0)]
    io_ns: f64,
    /// What a locked addition takes to a line that another core wrote last; 60 is a guess for cores of one processor.
    #[arg(long, default_value_t = 60.0)]
    line_ns: f64,
    /// Store no result.
    #[arg(long)]
    no_store: bool,
    /// Cargo gives it to every bench.
    #[arg(long, hide = true)]
    bench: bool,
}

/// One run of the bench.
#[derive(Debug, Serialize, Deserialize)]
struct Report {
    #[serde(flatten)]
    origin: Origin,
    costs: Costs,
    rows: Vec<Row>,
}

/// One number of workers.
#[derive(Debug, Serialize, Deserialize)]
struct Row {
    workers: usize,
    /// Established packets, replies at random: as much as comes.
    random: Outcome,
    /// At four fifths of what was carried then.
    random_at_80_percent: Outcome,
    /// Replies where the flow is: by the NIC's hash.
    home: Outcome,
    /// Replies there, and a tenth of the packets open flows on one service with one position for all workers.
    position: Outcome,
    /// The same without one, as by the hash schedulers.
    no_position: Outcome,
}

fn main() -> Result<ExitCode> {
    // `cargo test` runs benches too, without this argument.
    if !std::env::args().any(|argument| argument == "--bench") {
        return Ok(ExitCode::SUCCESS);
    }
    let args = Args::parse();
    let Some(costs) = Costs::measure(args.engine_ns, args.io_ns, args.line_ns) else {
        println!("not measured: two cores are needed");
        return Ok(ExitCode::SUCCESS);
    };
    println!(
        "handoff: {:.0} ns for who sends, {:.0} ns for who takes; a line that these two cores write: {:.0} ns each time (alone {:.0})",
        costs.send_ns, costs.take_ns, costs.near_line_ns, costs.own_line_ns
    );
    let rows: Vec<_> = WORKERS.iter().map(|workers| row(*workers, &costs)).collect();
    let one = &rows[0];
    println!(
        "\nMillion packets a second, and times one worker: established, then a tenth of all the first of flows"
    );
    println!(
        "{:>7}  {:>22}  {:>18}  {:>22}  {:>22}  {:>22}",
        "workers",
        "replies at random",
        "at 80 %: ring, lost",
        "by the hash",
        "new, one position",
        "new, none"
    );
    for row in &rows {
        let told = |outcome: &Outcome, single: &Outcome| {
            format!("{:.1} ({:.1})", outcome.carried_per_us, outcome.carried_per_us / single.carried_per_us)
        };
        let calm = &row.random_at_80_percent;
        println!(
            "{:>7}  {:>22}  {:>18}  {:>22}  {:>22}  {:>22}",
            row.workers,
            told(&row.random, &one.random),
            format!("{}, {:.3} %", calm.ring_peak, calm.lost_percent),
            told(&row.home, &one.home),
            told(&row.position, &one.position),
            told(&row.no_position, &one.no_position),
        );
    }
    let report = Report {
        origin: machine::here(&["Cargo.toml", "Cargo.lock", "dataplane/src", "benches"])?,
        costs,
        rows,
    };
    let last: Option<Report> = machine::newest("scaling", |report: &Report| &report.origin)?;
    machine::print(&report.origin, last.as_ref().map(|last| &last.origin));
    if let Some(last) = &last {
        let (now, before) = (&report.costs, &last.costs);
        println!(
            "handing over {}, taking {}",
            change(Some(before.send_ns), now.send_ns),
            change(Some(before.take_ns), now.take_ns)
        );
    }
    if !args.no_store {
        println!("stored in {}", machine::store("scaling", &report.origin, &report)?.display());
    }
    Ok(ExitCode::SUCCESS)
}

fn row(workers: usize, costs: &Costs) -> Row {
    eprintln!("{workers} workers");
    let world = World { workers, replies: Replies::Random, new_per_mille: 0, position: false, load: None };
    let opening = World { replies: Replies::Home, new_per_mille: NEW_PER_MILLE, ..world };
    let random = simulate(costs, &world);
    let load = Some(random.carried_per_us / workers as f64 * 0.8);
    Row {
        workers,
        random_at_80_percent: simulate(costs, &World { load, ..world }),
        random,
        home: simulate(costs, &World { replies: Replies::Home, ..world }),
        position: simulate(costs, &World { position: true, ..opening }),
        no_position: simulate(costs, &opening),
    }
}
