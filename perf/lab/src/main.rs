//! The lab: Weir beside its peers, in one topology and one run, with the same generator and sink. What it does and how to
//! read it is in `docs/lab.md`.

mod account;
mod conditions;
mod device;
mod measure;
mod network;
mod pauses;
mod priority;
mod profiles;
mod report;
mod results;
mod targets;
mod traffic;

use std::io::{ErrorKind, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, Parser, Subcommand};

use crate::conditions::Conditions;
use crate::device::{Binaries, Device, Interrupts, Mode, Peer};
use crate::measure::Lab;
use crate::network::{Topology, Wires};
use crate::profiles::{Plan, Profile};
use crate::results::Report;
use crate::traffic::Cores;

/// How long a program that ends by itself may take.
pub(crate) const LIMIT: Duration = Duration::from_secs(20);

/// Weir beside its peers.
#[derive(Debug, Parser)]
#[command(name = "weir-lab", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Measure, print, store, compare with the last.
    Run(Box<RunArgs>),
    /// Write the report of a stored result as HTML, and print it.
    Report {
        /// The stored result.
        result: PathBuf,
        /// Where the HTML goes; beside the result where none is given.
        #[arg(long)]
        html: Option<PathBuf>,
    },
    /// List the peers, and why one cannot be measured here.
    Peers {
        /// Their scripts.
        #[arg(long, default_value = "perf/peers")]
        peers: PathBuf,
    },
}

#[derive(Args, Debug)]
struct RunArgs {
    /// What is measured.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Profile::ALL)]
    profiles: Vec<Profile>,
    /// The short form: fewer devices and cases, once each.
    #[arg(long)]
    short: bool,
    /// These devices alone: `bare`, `weir-fullnat`, `weir-nat`, `bare-untuned`, `weir-fullnat-untuned`, and the peers by name.
    #[arg(long, value_delimiter = ',')]
    devices: Vec<String>,
    /// How often each number is taken.
    #[arg(long)]
    repeats: Option<usize>,
    /// Say what would be measured and how long it takes, and stop.
    #[arg(long)]
    dry_run: bool,
    /// End with an error where a target is missed.
    #[arg(long)]
    check: bool,
    /// Store nothing.
    #[arg(long)]
    no_store: bool,
    /// Forget what is stored of the same commit and is not measured this time; else it is kept.
    #[arg(long)]
    fresh: bool,
    /// Where results are stored, and the last is looked for.
    #[arg(long, default_value = "perf/results")]
    results: PathBuf,
    /// The peers' scripts.
    #[arg(long, default_value = "perf/peers")]
    peers: PathBuf,
    /// Weir's binary.
    #[arg(long, default_value = "target/release/weir")]
    weir: PathBuf,
    /// The generator's.
    #[arg(long, default_value = "perf/generator/target/release/weir-gen")]
    generator: PathBuf,
    /// Cores of the generator.
    #[arg(long, value_delimiter = ',', value_name = "CORES")]
    generator_cores: Vec<usize>,
    /// Cores of the sink.
    #[arg(long, value_delimiter = ',', value_name = "CORES")]
    sink_cores: Vec<usize>,
    /// Cores of the device.
    #[arg(long, value_delimiter = ',', value_name = "CORES")]
    device_cores: Vec<usize>,
    /// Have generator and sink use copy mode, also where they could do without.
    #[arg(long)]
    copy: bool,
    #[command(flatten)]
    wires: WireArgs,
}

/// Interfaces that there are, in place of namespaces.
#[derive(Args, Debug)]
struct WireArgs {
    /// The generator's interface: the lab then uses interfaces and makes no namespaces.
    #[arg(long, value_name = "IF")]
    generator_interface: Option<String>,
    /// The sink's; the generator's own where one port and a switch serve both.
    #[arg(long, value_name = "IF", requires = "generator_interface")]
    sink_interface: Option<String>,
    /// The device's interface towards the generator, where it is on this machine.
    #[arg(long, value_name = "IF", requires = "device_out")]
    device_in: Option<String>,
    /// The device's interface towards the sink.
    #[arg(long, value_name = "IF", requires_all = ["generator_interface", "device_in"])]
    device_out: Option<String>,
    /// The MAC address of a device elsewhere, which is then the only one that is measured.
    #[arg(long, value_name = "MAC", requires = "generator_interface", conflicts_with = "device_in")]
    device_mac: Option<String>,
}

impl WireArgs {
    fn topology(&self) -> Result<Topology> {
        let Some(generator) = self.generator_interface.clone() else { return Ok(Topology::Namespaces) };
        let sink = self.sink_interface.clone().unwrap_or_else(|| generator.clone());
        let device = self.device_in.clone().zip(self.device_out.clone()).map(<[String; 2]>::from);
        ensure!(
            device.is_some() || self.device_mac.is_some(),
            "with interfaces the lab has to know --device-in and --device-out, or --device-mac"
        );
        Ok(Topology::Wires(Wires { generator, sink, device, device_mac: self.device_mac.clone() }))
    }
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Run(args) => run(&args),
        Command::Report { result, html } => Report::read(&result).and_then(|report| {
            let html = html.unwrap_or_else(|| result.with_extension("html"));
            report::store(&report::html::write(&report), &html)?;
            say(&report::markdown::write(&report)).map(|()| ExitCode::SUCCESS)
        }),
        Command::Peers { peers } => list(&peers).map(|()| ExitCode::SUCCESS),
    };
    done.unwrap_or_else(|error| {
        eprintln!("weir-lab: {error:#}");
        ExitCode::FAILURE
    })
}

/// Prints a line. That nobody reads on, as behind `| head`, is no failure.
fn say(text: &str) -> Result<()> {
    match writeln!(std::io::stdout(), "{text}") {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        done => done.context("standard output"),
    }
}

fn list(directory: &std::path::Path) -> Result<()> {
    for peer in Peer::all(directory)? {
        let obstacle = peer.obstacle()?;
        say(&format!("{:20}{}", peer.name, obstacle.as_deref().unwrap_or("can be measured")))?;
    }
    Ok(())
}

fn run(args: &RunArgs) -> Result<ExitCode> {
    let topology = args.wires.topology()?;
    let cores = cores(args)?;
    let (devices, absent) = devices(args, &topology)?;
    let repeats = args.repeats.unwrap_or(if args.short { 1 } else { 3 });
    ensure!(repeats > 0, "at least one repeat");
    let plan = Plan::new(&args.profiles, devices, args.short, repeats, &topology, &cores);
    ensure!(
        !plan.is_empty(),
        "nothing to measure: none of these profiles is for any of these devices on these cores"
    );
    plan.announce();
    for (name, reason) in &absent {
        println!("{name} is left out: {reason}");
    }
    if args.dry_run {
        return Ok(ExitCode::SUCCESS);
    }
    ensure!(testbed::is_root(), "network namespaces and AF_XDP need root");
    for binary in [&args.weir, &args.generator] {
        ensure!(binary.exists(), "{} is not built; `make lab` builds it", binary.display());
    }
    let absolute = |path: &PathBuf| path.canonicalize().with_context(|| path.display().to_string());
    let binaries = Binaries { weir: absolute(&args.weir)?, generator: absolute(&args.generator)? };
    let _raised = priority::raise()?;
    let conditions = Conditions::now(&std::env::current_dir()?, &topology, &cores)?;
    let lab = Lab { topology, binaries, cores, copy: args.copy };
    let mut report = Report { conditions, absent, figures: Vec::new(), compared: None };
    plan.run(&lab, &mut report)?;
    finish(args, &mut report)
}

/// Compares, prints and stores.
fn finish(args: &RunArgs, report: &mut Report) -> Result<ExitCode> {
    let path = args.results.join(report.conditions.origin.file_name("lab"));
    report.compared = report.last(&args.results).map(|(_, before)| report.compare(&before));
    if !args.fresh && path.exists() {
        report.add(Report::read(&path)?);
    }
    let text = report::markdown::write(report);
    println!("\n{text}");
    if !args.no_store {
        std::fs::create_dir_all(&args.results)?;
        report.store(&path)?;
        let [markdown, html] = ["md", "html"].map(|end| path.with_extension(end));
        report::store(&text, &markdown)?;
        report::store(&report::html::write(report), &html)?;
        println!("Stored: {}, {}, {}", path.display(), markdown.display(), html.display());
    }
    let missed = targets::all(report).iter().any(|target| target.met == Some(false));
    Ok(if args.check && missed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn cores(args: &RunArgs) -> Result<Cores> {
    let own = Cores::of_machine()?;
    let or = |given: &[usize], own: Vec<usize>| if given.is_empty() { own } else { given.to_vec() };
    Ok(Cores {
        generator: or(&args.generator_cores, own.generator),
        sink: or(&args.sink_cores, own.sink),
        device: or(&args.device_cores, own.device),
    })
}

/// Devices that cannot be measured, and why.
type Absent = Vec<(String, String)>;

/// What can be measured here, and what cannot.
fn devices(args: &RunArgs, topology: &Topology) -> Result<(Vec<Device>, Absent)> {
    if let Topology::Wires(Wires { device: None, .. }) = topology {
        return Ok((vec![Device::Elsewhere], Vec::new()));
    }
    let (tuned, untuned) = (Interrupts::Deferred, Interrupts::Usual);
    let mut devices = vec![
        Device::Bare(tuned),
        Device::Weir(Mode::Fullnat, tuned),
        Device::Weir(Mode::Nat, tuned),
        Device::Bare(untuned),
        Device::Weir(Mode::Fullnat, untuned),
    ];
    devices.extend(Peer::all(&args.peers)?.into_iter().map(Device::Peer));
    if !args.devices.is_empty() {
        let unknown = args.devices.iter().find(|name| !devices.iter().any(|device| device.name() == *name));
        if let Some(name) = unknown {
            let known: Vec<_> = devices.iter().map(Device::name).collect();
            bail!("there is no device {name}; there are {}", known.join(", "));
        }
        devices.retain(|device| args.devices.iter().any(|name| name == device.name()));
    } else if args.short {
        devices.retain(|device| profiles::SHORT_DEVICES.contains(&device.name()));
    }
    let mut absent = Vec::new();
    let mut present = Vec::new();
    for device in devices {
        let obstacle = match &device {
            Device::Peer(peer) => peer.obstacle()?,
            _ => None,
        };
        match obstacle {
            Some(reason) => absent.push((device.name().to_owned(), reason)),
            None => present.push(device),
        }
    }
    Ok((present, absent))
}
