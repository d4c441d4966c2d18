//! `weir replay`: a capture through the engine. No root; time is the capture's own.

use std::collections::{HashMap, VecDeque};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use dataplane::frame::{Frame, MIN_HEADROOM};
use dataplane::ids::{BackendId, PortId, ServiceId};
use dataplane::io::pcap;
use dataplane::rewrite::split;
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
    let imagined = Imagined::new(&config.desired, config.settings.limits, args.flows as usize)?;
    let names = Names::of(&imagined);
    if let Some(output) =
        [&args.out, &args.verdicts].into_iter().flatten().find(|path| is_same(path, &args.input))
    {
        anyhow::bail!("{}: the capture itself would be overwritten", output.display());
    }
    let mut capture = pcap::Reader::open(&args.input)?;
    let sent = args.out.as_deref().map(pcap::Writer::create).transpose()?;
    let mut replay = Replay { names, sent, lines: lines(args)?, imagined, early: VecDeque::new() };
    let mut n = 0;
    while let Some(packet) = capture.next()? {
        n += 1;
        replay.pass(packet.time_ns)?;
        let known = replay.imagined.engine.news();
        replay.take(
            Packet { n, came_ns: packet.time_ns, bytes: packet.bytes.to_vec() },
            packet.time_ns,
            false,
        )?;
        if replay.imagined.engine.news() != known {
            replay.retry(packet.time_ns)?;
        }
    }
    replay.finish()?;
    Ok(ExitCode::SUCCESS)
}

/// A packet of the capture.
struct Packet {
    n: u64,
    /// When it came.
    came_ns: u64,
    bytes: Vec<u8>,
}

/// How long a later fragment waits for the first one of its packet, or a segment for its backend, and how many do, about as
/// under a worker.
const PATIENCE_NS: u64 = 100_000_000;
const PATIENT: usize = 64;

/// A capture on its way through the engine.
struct Replay {
    imagined: Imagined,
    names: Names,
    sent: Option<pcap::Writer>,
    lines: Box<dyn std::io::Write>,
    /// Later fragments that came before the first one, and segments that came before their backend has answered.
    early: VecDeque<Packet>,
}

impl Replay {
    /// Has the engine decide on a packet, or keeps it for later.
    fn take(&mut self, packet: Packet, now_ns: u64, overdue: bool) -> anyhow::Result<()> {
        let Packet { n, bytes, .. } = &packet;
        let mut chunk = [vec![0; MIN_HEADROOM], bytes.clone(), vec![0; TAILROOM]].concat();
        let mut frame = Frame::new(&mut chunk, MIN_HEADROOM, bytes.len(), PortId(0))
            .context("a frame lies in its own chunk")?;
        frame.overdue = overdue;
        let now = Tick::from_ns(now_ns);
        let Imagined { engine, tables, .. } = &mut self.imagined;
        while engine.sweep(now, tables) {}
        let mut steps = Vec::new();
        let verdict = engine.process_one(&mut frame, now, tables, &mut steps);
        if matches!(verdict, Verdict::Early | Verdict::Unanswered) {
            self.early.push_back(packet);
            if self.early.len() <= PATIENT {
                return Ok(());
            }
            let Some(oldest) = self.early.pop_front() else { return Ok(()) };
            return self.take(oldest, now_ns, true);
        }
        if let (Verdict::Tx(_) | Verdict::Reply(_), Some(sent)) = (verdict, &mut self.sent) {
            for bytes in split::departing(&frame) {
                sent.write(now_ns, &bytes)?;
            }
        }
        serde_json::to_writer(&mut self.lines, &self.names.line(*n, verdict, &steps))?;
        self.lines.write_all(b"\n")?;
        Ok(())
    }

    /// Tries again what waits for a first fragment or for a backend.
    fn retry(&mut self, now_ns: u64) -> anyhow::Result<()> {
        for packet in std::mem::take(&mut self.early) {
            self.take(packet, now_ns, false)?;
        }
        Ok(())
    }

    /// Gives up what has waited long enough at this time.
    fn pass(&mut self, now_ns: u64) -> anyhow::Result<()> {
        let until_ns = |packet: &Packet| packet.came_ns.saturating_add(PATIENCE_NS);
        while let Some(packet) = self.early.pop_front_if(|packet| until_ns(packet) <= now_ns) {
            let now_ns = until_ns(&packet);
            self.take(packet, now_ns, true)?;
        }
        Ok(())
    }

    fn finish(mut self) -> anyhow::Result<()> {
        self.pass(u64::MAX)?;
        self.lines.flush()?;
        self.sent.map(pcap::Writer::finish).transpose()?;
        Ok(())
    }
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
            // Kept and tried again, so never the last word.
            Verdict::Early => ("drop", Some(DropReason::FragmentUnmatched)),
            Verdict::Unanswered => ("drop", Some(DropReason::BackendSilent)),
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
