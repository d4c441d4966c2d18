//! What the engine costs by itself: nanoseconds and instructions a packet, beside a bare loop in the same run.
//!
//! `cargo bench --bench engine`, or `make bench`. A harness of its own rather than criterion: a table of ten million
//! flows takes seconds to build and is then used by several cases in turn, the engine and the bare loop have to take
//! turns for their ratio to mean something on a machine with other users, and instructions are to be counted besides.
//!
//! A section of frames is written outside the clock, then processed under it, batch by batch as a worker does. The
//! frames lie in the second-level cache, like frames that a driver has just written; the flows lie where the size of
//! their table puts them, because they are visited at random. Every verdict is checked, and of each section one
//! frame's checksums.

#![allow(
    clippy::cast_possible_truncation,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    missing_docs,
    reason = "a bench stops by panicking when something is not as it has to be"
)]

mod bare;
#[path = "../shared/child.rs"]
mod child;
mod frames;
mod instructions;
mod lifetime;
#[path = "../shared/machine.rs"]
mod machine;
mod measure;
#[expect(unsafe_code, reason = "advice about memory has no safe wrapper")]
mod memory;
#[path = "../shared/random.rs"]
mod random;
#[path = "../shared/resident.rs"]
mod resident;
mod results;
#[path = "../shared/targets.rs"]
mod targets;
mod workers;
mod world;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, ValueEnum};
use core_affinity::CoreId;
use dataplane::frame::BATCH;
use dataplane::schedule::Kind;
use dataplane::snapshot::Mode;

use bare::Bare;
use frames::{Chunks, SECTION};
use instructions::Subject;
use lifetime::Lifetime;
use measure::Meter;
use random::Random;
use results::{Case, Count, Report};
use world::{Direction, Shape, World, bare_section, bare_turn};

const SIZES: [u32; 4] = [1_000, 64_000, 1_000_000, 10_000_000];
/// Flows where only the kind of gateway differs.
const MIDDLE: u32 = 64_000;
/// How many times the engine and what it is held against take turns.
const TURNS: usize = 20;
/// Sections in a turn, of each: enough to have its flows back in the caches for most of the turn.
const SECTIONS: usize = 100;
/// Sections before a turn of a large table that are not measured: on a virtual machine the translations of its addresses
/// have to come back into the caches, too.
const WARM: usize = 50;
/// Schedulers that take constant time, as long as few backends are drained or overloaded.
const CONSTANT: [Kind; 5] = [Kind::Rr, Kind::Wrr, Kind::Dh, Kind::Sh, Kind::Mh];
/// How many times each of them fills a table, in turns: one time takes a tenth of a second, in which another user of the machine
/// can have slowed it down from beginning to end.
const FILLED: usize = 8;
/// First packets to measure at least, by opening the flows of a table again and again.
const OPENED: u32 = 200_000;

/// Nanoseconds and instructions a packet of the engine.
#[derive(Parser)]
struct Cli {
    /// Only sizes up to this many flows.
    #[arg(long, default_value_t = u32::MAX)]
    flows: u32,
    /// Only these parts of the bench; nothing is stored then.
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Part>,
    /// Leave the stored results as they are.
    #[arg(long)]
    no_store: bool,
    /// Fail where a target is missed.
    #[arg(long)]
    check: bool,
    /// Be the run that valgrind looks at.
    #[arg(long, hide = true)]
    instructions: Option<Subject>,
    /// Be the process whose memory is looked at, with so many flows.
    #[arg(long, hide = true)]
    lifetime: Option<u32>,
    /// In that run, process what was prepared.
    #[arg(long, hide = true)]
    process: bool,
    /// Cargo says so.
    #[arg(long, hide = true)]
    bench: bool,
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Instructions a packet.
    Instructions,
    /// Full NAT with more and more flows, beside the bare loop.
    Sizes,
    /// Other kinds of gateways.
    Kinds,
    /// One service and many.
    Services,
    /// Every scheduler.
    Schedulers,
    /// A service that asks where clients are.
    Access,
    /// Ports on which checksums may be unfinished.
    Checksums,
    /// Several packets of one flow after each other.
    Runs,
    /// Two workers on two cores.
    Workers,
    /// Memory.
    Lifetimes,
}

fn main() -> Result<ExitCode> {
    let cli = Cli::parse();
    if let Some(subject) = cli.instructions {
        instructions::run(subject, cli.process);
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(flows) = cli.lifetime {
        Lifetime::run(flows)?;
        return Ok(ExitCode::SUCCESS);
    }
    // A move to another core would empty the caches.
    let cores = core_affinity::get_core_ids().unwrap_or_default();
    if let Some(core) = cores.last() {
        core_affinity::set_for_current(*core);
    }
    let last = Report::newest()?;
    let mut report = Report::new(60, BATCH)?;
    let parts = if cli.only.is_empty() { Part::value_variants() } else { &cli.only };
    for part in parts {
        measure(*part, &cli, &cores, &mut report)?;
    }
    report.print(last.as_ref());
    let met = judge(&report);
    if !cli.no_store && cli.only.is_empty() {
        println!("\nstored in {}", report.store()?.display());
    }
    Ok(if met || !cli.check { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn measure(part: Part, cli: &Cli, cores: &[CoreId], report: &mut Report) -> Result<()> {
    let upto = |flows: &u32| *flows <= cli.flows;
    match part {
        Part::Instructions => count_instructions(report),
        Part::Sizes => SIZES.into_iter().filter(upto).for_each(|flows| sizes(report, flows)),
        Part::Kinds => {
            for (name, mode, v6) in
                [("nat", Mode::Nat, false), ("dr", Mode::Dr, false), ("fullnat IPv6", Mode::FullNat, true)]
            {
                kinds(report, name, Shape { mode, v6, ..Shape::plain(MIDDLE) });
            }
        }
        Part::Services => services(report),
        Part::Schedulers => schedulers(report, cli.flows),
        Part::Access => beside(report, "asking for clients", |shape| shape.asks_clients = true),
        Part::Checksums => {
            beside(report, "checksums may be left", |shape| shape.leaves_checksums = true);
        }
        Part::Runs => runs(report, cli.flows),
        Part::Workers => workers::measure(report, cores),
        Part::Lifetimes => {
            for flows in [1_000_000, 10_000_000].into_iter().filter(upto) {
                report.lifetimes.push(Lifetime::measure(flows)?);
            }
        }
    }
    Ok(())
}

fn count_instructions(report: &mut Report) {
    for subject in Subject::value_variants() {
        let name = subject.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned());
        match instructions::count(*subject) {
            Ok(per_packet) => report.instructions.push(Count { name, per_packet }),
            Err(error) => {
                println!("instructions were not counted: {error:#}");
                return;
            }
        }
    }
}

/// Full NAT of one service over IPv4 with so many flows, beside the bare loop.
fn sizes(report: &mut Report, flows: u32) {
    eprintln!("{flows} flows");
    let mut chunks = Chunks::new();
    let mut world = opened(report, "new", Shape::plain(flows), flows, &mut chunks);
    let mut bare = Bare::new(flows as usize);
    (0..flows).for_each(|flow| bare.insert(&world.client_key(flow), &world.sent_key(flow)));
    let mut random = Random::new();
    let [mut established, mut reply, mut least] = [(); 3].map(|()| Meter::clock());
    let turn = (WARM, SECTIONS);
    for _ in 0..TURNS {
        world.turn(&mut chunks, Direction::Established, flows, &mut random, turn, &mut established);
        bare_turn(&bare, &world, &mut chunks, flows, &mut random, turn, &mut least);
        world.turn(&mut chunks, Direction::Reply, flows, &mut random, turn, &mut reply);
    }
    add(report, "bare loop", flows, &least, None);
    add(report, "established", flows, &established, Some(&least));
    add(report, "reply", flows, &reply, Some(&least));
}

/// Another kind of gateway.
fn kinds(report: &mut Report, name: &str, shape: Shape) {
    eprintln!("{name}");
    let (mut chunks, mut random) = (Chunks::new(), Random::new());
    let mut world = opened(report, &format!("new, {name}"), shape, MIDDLE, &mut chunks);
    let [mut established, mut reply] = [(); 2].map(|()| Meter::clock());
    for _ in 0..TURNS * SECTIONS {
        world.section(&mut chunks, Direction::Established, MIDDLE, &mut random, &mut established);
        if shape.mode != Mode::Dr {
            world.section(&mut chunks, Direction::Reply, MIDDLE, &mut random, &mut reply);
        }
    }
    add(report, &format!("established, {name}"), MIDDLE, &established, None);
    if shape.mode != Mode::Dr {
        add(report, &format!("reply, {name}"), MIDDLE, &reply, None);
    }
}

/// The same traffic to one service, with no other service and with 49,999 others, in turns.
fn services(report: &mut Report) {
    const MANY: u32 = 50_000;
    eprintln!("{MANY} services");
    let (mut chunks, mut random) = (Chunks::new(), Random::new());
    let shape = Shape { services: MANY, ..Shape::plain(MIDDLE) };

    let [mut one, mut many] = [(); 2].map(|()| Meter::clock());
    let mut world = World::new(shape);
    let mut other = world.tables_with(1);
    world.open(&mut chunks, 0, MIDDLE, &mut Meter::Done);
    world.establish(&mut chunks, 0, MIDDLE);
    for _ in 0..TURNS {
        for meter in [&mut many, &mut one] {
            for _ in 0..SECTIONS {
                world.section(&mut chunks, Direction::Established, MIDDLE, &mut random, meter);
            }
            world.swap_tables(&mut other);
        }
    }
    add(report, "established, 1 service", MIDDLE, &one, None);
    add(report, "established, 50,000 services", MIDDLE, &many, Some(&one));

    let [mut one, mut many] = [(); 2].map(|()| Meter::clock());
    for turn in 0..4 {
        // Where a table lies in memory may matter: each of the two is made first half of the time.
        let mut worlds = [(); 2].map(|()| World::new(shape));
        let (few, all) = (turn % 2, 1 - turn % 2);
        worlds[few].swap_tables(&mut other);
        for first in (0..MIDDLE).step_by(SECTION) {
            let end = MIDDLE.min(first + SECTION as u32);
            worlds[few].open(&mut chunks, first, end, &mut one);
            worlds[all].open(&mut chunks, first, end, &mut many);
        }
        worlds[few].swap_tables(&mut other);
    }
    add(report, "new, 1 service", MIDDLE, &one, None);
    add(report, "new, 50,000 services", MIDDLE, &many, Some(&one));
    let spread = Shape { spread: true, ..shape };
    again(report, "new, spread over 50,000 services", spread);
    again(report, "new, spread over 50,000 services, strangers", Shape { strangers: true, ..spread });
    let lab = Shape::spread(MIDDLE, 1_000, 10);
    again(report, "new, spread over 1,000 services", lab);
    again(report, "new, spread over 1,000 services, strangers", Shape { strangers: true, ..lab });
}

/// First packets in a gateway that has had such flows before, so that all memory is there.
fn again(report: &mut Report, name: &str, shape: Shape) {
    let (mut chunks, mut new) = (Chunks::new(), Meter::clock());
    let mut world = World::new(shape);
    world.open(&mut chunks, 0, MIDDLE, &mut Meter::Done);
    for _ in 0..4 {
        world.forget();
        world.open(&mut chunks, 0, MIDDLE, &mut new);
    }
    add(report, name, MIDDLE, &new, None);
}

/// Each scheduler beside `rr`; first packets at a million flows where it takes constant time.
fn schedulers(report: &mut Report, most: u32) {
    let flows = most.min(1_000_000);
    let mut meters = CONSTANT.map(|_| Meter::clock());
    for _ in 0..FILLED {
        for (kind, new) in CONSTANT.into_iter().zip(&mut meters) {
            // By hash many flows go to one backend: more than the SNAT pool has ports for.
            let shape = Shape { scheduler: kind, mode: Mode::Nat, ..Shape::plain(flows) };
            World::new(shape).open(&mut Chunks::new(), 0, flows, new);
        }
    }
    for (kind, new) in CONSTANT.into_iter().zip(&meters) {
        add(report, &new_with(kind), flows, new, None);
    }
    for kind in Kind::ALL.iter().filter(|kind| **kind != Kind::Rr) {
        beside(report, kind.name(), |shape| shape.scheduler = *kind);
    }
}

/// The case of first packets with a scheduler.
fn new_with(kind: Kind) -> String {
    format!("new, all by {}", kind.name())
}

/// A gateway that `differ` makes another beside the plain one, in turns.
fn beside(report: &mut Report, name: &str, differ: impl Fn(&mut Shape)) {
    eprintln!("{name}");
    let (mut chunks, mut random) = (Chunks::new(), Random::new());
    let mut shape = Shape::plain(MIDDLE);
    let plain = shape;
    differ(&mut shape);
    let [mut usual, mut other, mut new, mut newer] = [(); 4].map(|()| Meter::clock());
    let mut worlds = [plain, shape].map(World::new);
    for first in (0..MIDDLE).step_by(SECTION) {
        let end = MIDDLE.min(first + SECTION as u32);
        for (world, meter) in worlds.iter_mut().zip([&mut new, &mut newer]) {
            world.open(&mut chunks, first, end, meter);
        }
    }
    worlds.iter_mut().for_each(|world| world.establish(&mut chunks, 0, MIDDLE));
    for _ in 0..TURNS {
        for (world, meter) in worlds.iter_mut().zip([&mut usual, &mut other]) {
            for _ in 0..SECTIONS {
                world.section(&mut chunks, Direction::Established, MIDDLE, &mut random, meter);
            }
        }
    }
    add(report, &format!("established, {name}"), MIDDLE, &other, Some(&usual));
    add(report, &format!("new, {name}"), MIDDLE, &newer, Some(&new));
}

/// Eight packets of a flow after each other, as bulk traffic comes, beside the bare loop over the same.
fn runs(report: &mut Report, most: u32) {
    let flows = most.min(1_000_000);
    eprintln!("runs");
    let (mut chunks, mut random) = (Chunks::new(), Random::new());
    let mut world = World::new(Shape { run: 8, ..Shape::plain(flows) });
    world.open(&mut chunks, 0, flows, &mut Meter::Done);
    world.establish(&mut chunks, 0, flows);
    let mut bare = Bare::new(flows as usize);
    (0..flows).for_each(|flow| bare.insert(&world.client_key(flow), &world.sent_key(flow)));
    let [mut established, mut least] = [(); 2].map(|()| Meter::clock());
    for _ in 0..TURNS {
        for _ in 0..SECTIONS {
            world.section(&mut chunks, Direction::Established, flows, &mut random, &mut established);
        }
        for _ in 0..SECTIONS {
            bare_section(&bare, &world, &mut chunks, flows, &mut random, &mut least);
        }
    }
    add(report, "bare loop, runs of 8", flows, &least, None);
    add(report, "established, runs of 8", flows, &established, Some(&least));
}

/// A world with `flows` established flows. Opening them is measured, in as many worlds as make enough packets.
fn opened(report: &mut Report, name: &str, shape: Shape, flows: u32, chunks: &mut Chunks) -> World {
    let mut new = Meter::clock();
    let mut world = World::new(shape);
    world.open(chunks, 0, flows, &mut new);
    for _ in 1..OPENED.div_ceil(flows) {
        world = World::new(shape);
        world.open(chunks, 0, flows, &mut new);
    }
    world.establish(chunks, 0, flows);
    add(report, name, flows, &new, None);
    world
}

fn add(report: &mut Report, name: &str, flows: u32, meter: &Meter, against: Option<&Meter>) {
    let ratio = against.map(|against| meter.ratio(against, SECTIONS));
    report.cases.push(Case { name: name.to_owned(), flows, ns: meter.summary(), ratio });
}

/// Nanoseconds of a first packet at a million flows, with the scheduler that takes longest of those in constant time.
fn slowest_new(report: &Report) -> Option<f64> {
    let cases = CONSTANT.iter().map(|kind| report.case(&new_with(*kind), 1_000_000));
    cases.flatten().map(|case| case.ns.median).max_by(f64::total_cmp)
}

/// How many times longer an established packet takes with the slowest scheduler than with `rr`.
fn slowest_scheduler(report: &Report) -> Option<f64> {
    let cases = Kind::ALL.iter().map(|kind| report.case(&format!("established, {}", kind.name()), MIDDLE));
    cases.flatten().filter_map(|case| case.ratio).map(|ratio| ratio.median).max_by(f64::total_cmp)
}

/// Prints the targets and whether each is met.
fn judge(report: &Report) -> bool {
    let ratio = |name: &str, flows: u32| {
        report.case(name, flows).and_then(|case| case.ratio).map(|ratio| ratio.median)
    };
    // By hash many flows go to one backend, so full NAT is judged by `rr` alone.
    let new = report.case("new", 1_000_000).map(|case| case.ns.median);
    let checks = [
        ("established, 64k flows, times the bare loop", ratio("established", 64_000), 1.5),
        ("established, 1M flows, times the bare loop", ratio("established", 1_000_000), 1.5),
        ("established, 10M flows, times the bare loop", ratio("established", 10_000_000), 1.5),
        ("instructions of an established packet", report.count("established"), 280.0),
        ("new by nat, 1M flows, ns, slowest scheduler in constant time", slowest_new(report), 120.0),
        ("new by full NAT, 1M flows, ns, rr", new, 120.0),
        ("established, slowest scheduler, times rr", slowest_scheduler(report), 1.05),
        // 1.9 times the packets of one.
        ("one of two workers, times one alone", ratio(workers::NAME, MIDDLE), 2.0 / 1.9),
        ("established, 50,000 services, times 1", ratio("established, 50,000 services", MIDDLE), 1.05),
        ("bytes of a nat flow at 10M", report.bytes_a_flow(10_000_000), 128.0),
        ("new, 50,000 services, times 1", ratio("new, 50,000 services", MIDDLE), 1.05),
    ];
    targets::met(checks)
}
