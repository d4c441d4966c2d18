//! `weir replay`: a capture through the engine. No root; time is the capture's own.

use std::collections::HashMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use dataplane::frame::{Frame, MIN_HEADROOM};
use dataplane::ids::{BackendId, PortId, ServiceId};
use dataplane::io::pcap;
use dataplane::time::Tick;
use dataplane::trace::Step;
use dataplane::verdict::{DropReason, Verdict};
use serde::Serialize;

use super::explain::address;
use super::imagine::Imagined;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Configuration file.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Capture to read: pcap or pcapng, Ethernet.
    #[arg(long = "in", value_name = "PCAP")]
    input: PathBuf,
    /// Writes the frames that Weir would send.
    #[arg(long, value_name = "PCAP")]
    out: Option<PathBuf>,
    /// Writes one JSON object a packet; without it they go to standard output.
    #[arg(long, value_name = "JSONL")]
    verdicts: Option<PathBuf>,
    /// Flows at most.
    #[arg(long, value_name = "COUNT", default_value_t = 1 << 16, value_parser = clap::value_parser!(u32).range(1..=1 << 26))]
    flows: u32,
}

/// One packet's line.
#[derive(Debug, Serialize)]
struct Line<'a> {
    /// Number of the packet in the capture, from 1.
    n: u64,
    /// `forward`, `reply` (answered in place), `kernel` or `drop`.
    verdict: &'static str,
    reason: Option<&'static str>,
    service: Option<&'a str>,
    backend: Option<&'a str>,
    /// `new`, `known` (from the client) or `reply` (from the backend).
    flow: Option<&'static str>,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let config = match super::load(&args.config) {
        Ok(config) => config,
        Err(status) => return Ok(status),
    };
    let mut imagined = Imagined::new(&config, args.flows as usize)?;
    let names = Names::of(&imagined);
    if let Some(output) =
        [&args.out, &args.verdicts].into_iter().flatten().find(|path| is_same(path, &args.input))
    {
        anyhow::bail!("{}: the capture itself would be overwritten", output.display());
    }
    let mut capture = pcap::Reader::open(&args.input)?;
    let mut sent = args.out.as_deref().map(pcap::Writer::create).transpose()?;
    let mut lines = lines(args)?;
    let mut chunk = Vec::new();
    let mut n = 0;
    while let Some(packet) = capture.next()? {
        n += 1;
        chunk.clear();
        chunk.resize(MIN_HEADROOM, 0);
        chunk.extend_from_slice(packet.bytes);
        chunk.resize(chunk.len() + TAILROOM, 0);
        let mut frame = Frame::new(&mut chunk, MIN_HEADROOM, packet.bytes.len(), PortId(0))
            .context("a frame lies in its own chunk")?;
        let now = Tick::from_ns(packet.time_ns);
        while imagined.engine.sweep(now, &imagined.tables) {}
        let mut steps = Vec::new();
        let verdict = imagined.engine.process_one(&mut frame, now, &imagined.tables, &mut steps);
        if let (Verdict::Tx(_) | Verdict::Reply(_), Some(sent)) = (verdict, &mut sent) {
            sent.write(packet.time_ns, frame.bytes())?;
        }
        serde_json::to_writer(&mut lines, &names.line(n, verdict, &steps))?;
        lines.write_all(b"\n")?;
    }
    lines.flush()?;
    sent.map(pcap::Writer::finish).transpose()?;
    Ok(ExitCode::SUCCESS)
}

fn is_same(output: &Path, input: &Path) -> bool {
    let file = |path: &Path| path.canonicalize().ok();
    file(output).is_some_and(|output| Some(output) == file(input))
}

/// Room behind a frame for what Weir may add: an ICMP error quotes up to 1280 bytes.
const TAILROOM: usize = 1500;

fn lines(args: &Args) -> anyhow::Result<Box<dyn std::io::Write>> {
    let Some(path) = &args.verdicts else {
        return Ok(Box::new(std::io::BufWriter::new(std::io::stdout().lock())));
    };
    let file = std::fs::File::create(path).with_context(|| format!("creating {}", path.display()))?;
    Ok(Box::new(std::io::BufWriter::new(file)))
}

/// What services and backends are called, looked up once.
struct Names {
    services: HashMap<ServiceId, String>,
    backends: HashMap<BackendId, String>,
}

impl Names {
    fn of(imagined: &Imagined) -> Self {
        let services = || imagined.tables.services.iter();
        Self {
            services: services().map(|service| (service.id, service.name.to_string())).collect(),
            backends: services()
                .flat_map(|service| service.backends.iter())
                .map(|backend| (backend.id, address(backend)))
                .collect(),
        }
    }

    fn line(&self, n: u64, verdict: Verdict, steps: &[Step]) -> Line<'_> {
        let (verdict, reason) = match verdict {
            Verdict::Tx(_) => ("forward", None),
            Verdict::Reply(reason) => ("reply", reason),
            // One worker hands nothing over, so what is left is the kernel's.
            Verdict::Kernel | Verdict::Handoff(_) => ("kernel", None),
            // Nobody keeps it here.
            Verdict::Unresolved => ("drop", Some(DropReason::NoNeighbour)),
            Verdict::Drop(reason) => ("drop", Some(reason)),
        };
        let (mut service, mut backend, mut flow) = (None, None, None);
        for step in steps {
            match step {
                Step::ServiceMatched(id) => service = Some(*id),
                Step::Scheduled(id) => backend = Some(*id),
                Step::FlowOpened(_) => flow = Some("new"),
                Step::FlowKnown { reply, service: of, backend: to } => {
                    (service, backend) = (Some(*of), Some(*to));
                    flow = Some(if *reply { "reply" } else { "known" });
                }
                _ => {}
            }
        }
        Line {
            n,
            verdict,
            reason: reason.map(|reason| reason.name()),
            service: service.and_then(|id| self.services.get(&id)).map(String::as_str),
            backend: backend.and_then(|id| self.backends.get(&id)).map(String::as_str),
            flow,
        }
    }
}
