//! `weir doctor`: what this machine and its interfaces can do for Weir, before anything is attached.

mod told;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use control::config::{Config, ZeroCopy};
use control::nic::judge::{self, Finding, Weight, Wish};
use control::nic::{Machine, Nic};
use dataplane::io::xsk::{self, PortConfig, XskConfig};
use serde::Serialize;
use xdp_prog::{Limits, Xdp};

use super::{EXIT_USAGE, Format};
use crate::run::RING_SIZE;

/// The MTU of the path to the kernel, where the interfaces have none that is larger.
const USUAL_MTU: u16 = 1500;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Interfaces; without any those of the configuration, else all Ethernet ones.
    #[arg(value_name = "IFACE")]
    interfaces: Vec<String>,
    /// The configuration that Weir shall run with.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Workers, unless the configuration says how many.
    #[arg(long, value_name = "COUNT", default_value_t = 1, conflicts_with = "config",
          value_parser = clap::value_parser!(u8).range(1..=128))]
    workers: u8,
    /// Output.
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// What is found, as `-o json` prints it.
#[derive(Debug, Serialize)]
struct Report {
    /// Whether Weir could run: nothing about the machine refuses, nor about any interface that was asked for. Where none
    /// was, one will do.
    can_run: bool,
    machine: MachineReport,
    interfaces: Vec<NicReport>,
}

#[derive(Debug, Serialize)]
struct MachineReport {
    #[serde(flatten)]
    machine: Machine,
    workers: u8,
    /// Whether this process may open AF_XDP sockets.
    af_xdp: bool,
    /// Whether the kernel takes TX metadata, so that it can finish checksums.
    tx_metadata: bool,
    /// Whether the kernel takes the XDP program from this process.
    xdp_program: bool,
    /// Bytes of the workers' frame memory together.
    frame_bytes: u64,
    findings: Vec<Finding>,
}

#[derive(Debug, Serialize)]
struct NicReport {
    #[serde(flatten)]
    nic: Nic,
    findings: Vec<Finding>,
}

/// The exit status is 0 where Weir could run, 1 where it could not, 2 where what was asked for is not there.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let config = match args.config.as_deref().map(super::load).transpose() {
        Ok(config) => config,
        Err(status) => return Ok(status),
    };
    let wanted = wanted(args, config.as_ref());
    let nics = Nic::read(|name| wanted.is_empty() || wanted.iter().any(|wanted| wanted == name))?;
    let missing: Vec<_> = wanted.iter().filter(|name| nics.iter().all(|nic| nic.name != **name)).collect();
    for name in &missing {
        eprintln!("weir: there is no interface {name} in this network namespace");
    }
    if !missing.is_empty() {
        return Ok(ExitCode::from(EXIT_USAGE));
    }
    let nics = nics.into_iter().filter(|nic| !wanted.is_empty() || nic.ethernet).collect();
    let report = Report::new(nics, !wanted.is_empty(), args, config.as_ref());
    match args.output {
        Format::Text => super::print(&report)?,
        Format::Json => super::print(serde_json::to_string_pretty(&report)? + "\n")?,
    }
    Ok(if report.can_run { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The names of the interfaces that were asked for.
fn wanted(args: &Args, config: Option<&Config>) -> Vec<String> {
    match config {
        Some(config) if args.interfaces.is_empty() => {
            config.settings.interfaces.iter().map(|name| name.as_str().to_owned()).collect()
        }
        _ => args.interfaces.clone(),
    }
}

impl Report {
    fn new(nics: Vec<Nic>, all_are_needed: bool, args: &Args, config: Option<&Config>) -> Self {
        let machine = Machine::read();
        // Without names each interface is told of as if it were served alone.
        let together = if all_are_needed { nics.as_slice() } else { &[] };
        let wish = match config {
            Some(config) => Wish::new(&config.settings, &machine, together),
            None => Wish {
                workers: args.workers,
                cores: machine.cores.iter().map(|(core, _)| *core).take(args.workers.into()).collect(),
                allow_generic: false,
                zero_copy: ZeroCopy::Auto,
                largest_mtu: judge::largest_mtu(together),
            },
        };
        let judged = |nic: Nic| {
            let findings = judge::occupied(&nic, &wish).into_iter().chain(judge::nic(&nic, &wish, &machine));
            let mut findings: Vec<_> = findings.collect();
            findings.sort_by_key(|finding| finding.weight);
            NicReport { nic, findings }
        };
        let interfaces: Vec<_> = nics.into_iter().map(judged).collect();
        let served = interfaces.iter().filter(|nic| all_are_needed || is_sound(&nic.findings));
        let frame_bytes = frame_bytes(served.map(|nic| &nic.nic), wish.workers);
        let machine = MachineReport::new(machine, &wish, frame_bytes);
        let mut sound = interfaces.iter().map(|nic| is_sound(&nic.findings));
        let can_run = is_sound(&machine.findings)
            && if all_are_needed { sound.all(|sound| sound) } else { sound.any(|sound| sound) };
        Self { can_run, machine, interfaces }
    }
}

impl MachineReport {
    fn new(machine: Machine, wish: &Wish, frame_bytes: u64) -> Self {
        let mut findings = judge::machine(&machine, wish, frame_bytes);
        let mut refuse = |about, text| findings.push(Finding { weight: Weight::Refuses, about, text });
        let support = xsk::support().map_err(|error| refuse("AF_XDP", error.to_string()));
        // Maps of one entry: whether the kernel takes the program does not depend on their size.
        let limits = Limits { vips: 1, nat_backends: 1, addresses: 1, large_frames: false };
        let loaded = Xdp::load(&limits).map_err(|error| refuse("XDP program", error.to_string()));
        let tx_metadata = support.is_ok_and(|support| support.tx_metadata);
        if support.is_ok() && !tx_metadata {
            let text = format!(
                "Linux {} takes no TX metadata (6.8 and newer do): Weir finishes checksums itself",
                machine.kernel
            );
            findings.push(Finding { weight: Weight::Notes, about: "TX metadata", text });
        }
        findings.sort_by_key(|finding| finding.weight);
        Self {
            workers: wish.workers,
            af_xdp: support.is_ok(),
            tx_metadata,
            xdp_program: loaded.is_ok(),
            frame_bytes,
            findings,
            machine,
        }
    }
}

/// The frame memory of all workers, which have a socket on each interface and on the path to the kernel.
fn frame_bytes<'a>(nics: impl Iterator<Item = &'a Nic>, workers: u8) -> u64 {
    let port = |mtu| PortConfig { name: Arc::from(""), ifindex: 0, mtu, zero_copy: xsk::ZeroCopy::Auto };
    // A larger MTU is refused anyway.
    let mtu = |nic: &Nic| u16::try_from(nic.mtu).unwrap_or(xsk::MTU_MAX).min(xsk::MTU_MAX);
    let mut whole_kib = false;
    let nics = nics.inspect(|nic| whole_kib |= nic.has_whole_kib_buffers());
    let ports = nics.map(|nic| port(mtu(nic))).chain([port(USUAL_MTU)]).collect();
    let config = XskConfig { queue: 0, ring_size: RING_SIZE, ports, whole_kib };
    config.memory_bytes().unwrap_or(0) * u64::from(workers)
}

fn is_sound(findings: &[Finding]) -> bool {
    findings.iter().all(|finding| finding.weight != Weight::Refuses)
}
