//! `weir explain`: what would happen to one packet, and why. No root: the engine itself is asked.

#[cfg(test)]
mod cases;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;

use anyhow::{Context as _, bail};
use control::config::{Config, Limits};
use control::model::{self, DesiredState};
use control::source::kubernetes::offline::Offline;
use control::source::kubernetes::reasons::reasons;
use dataplane::frame::{Frame, MIN_HEADROOM};
use dataplane::ids::{PortId, ServiceId};
use dataplane::snapshot::{Backend, Clients, Mode};
use dataplane::time::Tick;
use dataplane::trace::{Answer, Step};
use dataplane::verdict::{DropReason, Verdict};
use etherparse::PacketBuilder;
use serde::Serialize;

use super::cluster::Cluster;
use super::imagine::{Imagined, OWN_MAC, PEER_MAC};
use super::{EXIT_USAGE, Format};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Configuration file.
    #[arg(long, value_name = "FILE", required_unless_present = "objects")]
    config: Option<PathBuf>,
    #[command(flatten)]
    cluster: Cluster,
    /// Sender of the packet; without a port, 50000.
    #[arg(long, value_name = "IP[:PORT]")]
    from: Sender,
    /// Destination of the packet; TCP (its first segment, a SYN) where no protocol is given.
    #[arg(long, value_name = "IP:PORT[/tcp|udp|sctp]")]
    to: Target,
    /// Output.
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// Source port of a packet whose sender gives none.
const DEFAULT_PORT: u16 = 50_000;

#[derive(Clone, Copy, Debug)]
struct Sender(SocketAddr);

impl FromStr for Sender {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.parse().map(Self).or_else(|_| {
            let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
            let address: IpAddr =
                bare.parse().map_err(|_| format!("`{text}` is no address, with or without :PORT"))?;
            Ok(Self(SocketAddr::new(address, DEFAULT_PORT)))
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

#[derive(Clone, Copy, Debug)]
struct Target {
    address: SocketAddr,
    protocol: Protocol,
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (address, protocol) = match text.rsplit_once('/') {
            None => (text, Protocol::Tcp),
            Some((address, protocol)) => match protocol.to_ascii_lowercase().as_str() {
                "tcp" => (address, Protocol::Tcp),
                "udp" => (address, Protocol::Udp),
                "sctp" => (address, Protocol::Sctp),
                other => return Err(format!("`{other}` is none of tcp, udp and sctp")),
            },
        };
        let address = address.parse().map_err(|_| format!("`{address}` is not IP:PORT (IPv6: [IP]:PORT)"))?;
        Ok(Self { address, protocol })
    }
}

/// The answer, as `-o json` prints it.
#[derive(Debug, Serialize)]
struct Explanation {
    /// `forward`, `reject`, `drop` or `kernel`.
    outcome: &'static str,
    /// The drop reason's name, where it is not forwarded.
    reason: Option<&'static str>,
    service: Option<String>,
    /// All candidates, as `ip:port`, by address; none where the packet is not forwarded.
    backends: Vec<String>,
    mode: Option<&'static str>,
    /// Whether the backend sees a source address of Weir's own.
    masquerade: bool,
    steps: Vec<String>,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    if args.from.0.is_ipv4() != args.to.address.is_ipv4() {
        eprintln!("weir: --from and --to are of different address families");
        return Ok(ExitCode::from(EXIT_USAGE));
    }
    let config = match args.config.as_deref().map(super::load).transpose() {
        Ok(config) => config,
        Err(status) => return Ok(status),
    };
    let explanation = match config {
        Some(config) if !args.cluster.is_given() => {
            let mut imagined = Imagined::new(&config.desired, config.settings.limits, 1)?;
            answer(&mut imagined, args.from.0, args.to)?
        }
        config => match args.cluster.desired(config.as_ref(), args.from.0.ip(), args.to.address.ip()) {
            Ok(offline) => explain_objects(&offline, config.as_ref(), args.from.0, args.to)?,
            Err(status) => return Ok(status),
        },
    };
    match args.output {
        Format::Json => super::print(serde_json::to_string_pretty(&explanation)? + "\n")?,
        Format::Text => super::print(explanation)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// What becomes of a packet where objects of Kubernetes say it: their part of the reasons comes first.
fn explain_objects(
    offline: &Offline,
    config: Option<&Config>,
    from: SocketAddr,
    to: Target,
) -> anyhow::Result<Explanation> {
    let limits = config.map_or_else(|| room(&offline.desired), |config| config.settings.limits);
    let mut imagined = Imagined::new(&offline.desired, limits, 1)?;
    let mut explanation = answer(&mut imagined, from, to)?;
    let protocol = match to.protocol {
        Protocol::Tcp => model::Protocol::Tcp,
        Protocol::Udp => model::Protocol::Udp,
        Protocol::Sctp => model::Protocol::Sctp,
    };
    let mut steps = reasons(&offline.store, from.ip(), to.address, protocol);
    steps.append(&mut explanation.steps);
    Ok(Explanation { steps, ..explanation })
}

/// Room for what is desired.
fn room(desired: &DesiredState) -> Limits {
    let services = || desired.services();
    let node = desired.node_addresses().len();
    Limits {
        services: services().map(|service| service.keys().count() + node).sum(),
        backends: services().map(|service| service.backends.len()).sum(),
    }
}

/// What the engine does with the first packet of a client.
fn answer(imagined: &mut Imagined, from: SocketAddr, to: Target) -> anyhow::Result<Explanation> {
    imagined.sent_by(from.ip());
    let (verdict, steps) = ask(imagined, &packet(from, to)?)?;
    Ok(explain(imagined, verdict, &steps))
}

/// The first packet that such a client sends.
fn packet(from: SocketAddr, to: Target) -> anyhow::Result<Vec<u8>> {
    let link = PacketBuilder::ethernet2(PEER_MAC, OWN_MAC);
    let ip = match (from.ip(), to.address.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => link.ipv4(from.octets(), to.octets(), 64),
        (IpAddr::V6(from), IpAddr::V6(to)) => link.ipv6(from.octets(), to.octets(), 64),
        _ => bail!("--from and --to are of different address families"),
    };
    let (sport, dport) = (from.port(), to.address.port());
    let mut bytes = Vec::new();
    match to.protocol {
        Protocol::Tcp => ip.tcp(sport, dport, 1, 65_535).syn().write(&mut bytes, &[]),
        Protocol::Udp => ip.udp(sport, dport).write(&mut bytes, b"weir"),
        Protocol::Sctp => {
            // Common header (RFC 9260, section 3.1) and an INIT chunk; the checksum is the receiver's affair.
            let mut header = [sport.to_be_bytes(), dport.to_be_bytes()].concat();
            header.extend([0; 8]);
            header.extend([1, 0, 0, 20, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1]);
            ip.write(&mut bytes, etherparse::IpNumber::SCTP, &header)
        }
    }
    .context("building the packet")?;
    Ok(bytes)
}

fn ask(imagined: &mut Imagined, packet: &[u8]) -> anyhow::Result<(Verdict, Vec<Step>)> {
    let mut chunk = [vec![0; MIN_HEADROOM], packet.to_vec(), vec![0; 2048]].concat();
    let mut frame =
        Frame::new(&mut chunk, MIN_HEADROOM, packet.len(), PortId(0)).context("packet too large")?;
    let mut steps = Vec::new();
    let verdict = imagined.engine.process_one(&mut frame, Tick::default(), &imagined.tables, &mut steps);
    Ok((verdict, steps))
}

fn explain(imagined: &Imagined, verdict: Verdict, steps: &[Step]) -> Explanation {
    let (outcome, reason) = match verdict {
        Verdict::Tx(_) | Verdict::Reply(None) => ("forward", None),
        Verdict::Reply(Some(reason)) => ("reject", Some(reason)),
        Verdict::Unresolved => ("drop", Some(DropReason::NoNeighbour)),
        // One packet is imagined, and no other fragment of it.
        Verdict::Early => ("drop", Some(DropReason::FragmentUnmatched)),
        Verdict::Unanswered => ("drop", Some(DropReason::BackendSilent)),
        Verdict::Drop(reason) => ("drop", Some(reason)),
        // One worker hands nothing over, so what is left is the kernel's.
        Verdict::Kernel | Verdict::Handoff(_) => ("kernel", None),
    };
    let service = steps.iter().find_map(|step| match step {
        Step::ServiceMatched(id) => imagined.service(*id),
        _ => None,
    });
    let chosen = service.and_then(|service| {
        steps.iter().find_map(|step| match step {
            Step::Scheduled(id) => service.backends.iter().find(|backend| backend.id == *id),
            _ => None,
        })
    });
    let opened = steps.iter().find_map(|step| match step {
        Step::FlowOpened(mode) => Some(*mode),
        _ => None,
    });
    let mode = opened.or(chosen.map(|backend| backend.mode));
    let all =
        service.filter(|_| outcome == "forward").into_iter().flat_map(|service| service.backends.iter());
    let mut candidates: Vec<_> = all.filter(|backend| backend.weight > 0).collect();
    candidates.sort_by_key(|backend| (backend.addr, backend.port));
    Explanation {
        outcome,
        reason: reason.map(|reason| reason.name()),
        service: service.map(|service| service.name.to_string()),
        backends: candidates.into_iter().map(address).collect(),
        mode: mode.map(Mode::name),
        masquerade: mode == Some(Mode::FullNat),
        steps: steps.iter().filter_map(|step| sentence(imagined, service.map(|s| s.id), *step)).collect(),
    }
}

/// One step as a sentence; `None` for what the imagined network makes up.
fn sentence(imagined: &Imagined, service: Option<ServiceId>, step: Step) -> Option<String> {
    let backend = |id| service.and_then(|service| imagined.backend(service, id)).map_or("?".into(), address);
    Some(match step {
        Step::FlowUnknown => "no flow knows the packet".into(),
        Step::NoService { allocated: true } => {
            "the destination is a virtual address, and no service has it on this port".into()
        }
        Step::NoService { allocated: false } => {
            "the destination is in a network of virtual addresses, and no service has it".into()
        }
        Step::NotOurs => "the destination is neither a service nor a SNAT address".into(),
        Step::ServiceMatched(id) => match imagined.service(id) {
            Some(service) => format!(
                "the destination is service {}{}, scheduled by {}, with {} backends",
                service.name,
                if service.clients == Clients::Inside { " (for clients inside)" } else { "" },
                service.scheduler.kind().name(),
                service.backends.len()
            ),
            None => return None,
        },
        Step::Scheduled(id) => format!("the scheduler chooses {}", backend(id)),
        Step::FlowOpened(mode) => format!("a flow is opened, forwarded by {}", mode.name()),
        Step::SnatTaken { address, port } => {
            format!("the backend sees the source {}", SocketAddr::new(address, port))
        }
        Step::Answered(answer) => format!("answered with {}", answer_name(answer)),
        Step::Refused(reason) => format!("refused: {}", reason.name()),
        Step::FlowKnown { reply, .. } => {
            format!("belongs to a flow, {} the backend", if reply { "from" } else { "to" })
        }
        Step::FragmentFollows => "a later fragment, which goes where the first one went".into(),
        Step::Split(pieces) => format!("larger than its path: it leaves in {pieces} fragments"),
        Step::FragmentEarly => "a later fragment, whose first one has not come".into(),
        Step::IcmpTranslated => "an ICMP error about a flow, translated".into(),
        Step::FlowElsewhere(_) | Step::NextHop(_) => return None,
    })
}

fn answer_name(answer: Answer) -> &'static str {
    match answer {
        Answer::Arp => "an ARP reply",
        Answer::NeighbourAdvertisement => "a neighbour advertisement",
        Answer::Echo => "an echo reply",
        Answer::Cookie => "a SYN cookie",
        Answer::Handshake => "the end of a handshake",
        Answer::Reset => "a TCP reset",
        Answer::PortUnreachable => "ICMP port unreachable",
        Answer::TooBig => "ICMP fragmentation needed",
        Answer::TimeExceeded => "ICMP time exceeded",
    }
}

/// A backend as `ip:port`.
pub(super) fn address(backend: &Backend) -> String {
    SocketAddr::new(backend.addr, backend.port).to_string()
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.reason {
            Some(reason) => writeln!(f, "{}: {reason}", self.outcome)?,
            None => writeln!(f, "{}", self.outcome)?,
        }
        if let Some(service) = &self.service {
            writeln!(f, "  service     {service}")?;
            writeln!(f, "  candidates  {}", self.backends.join(" "))?;
        }
        if let Some(mode) = self.mode {
            writeln!(f, "  mode        {mode}{}", if self.masquerade { ", masqueraded" } else { "" })?;
        }
        for (number, step) in (1..).zip(&self.steps) {
            writeln!(f, "  {number}. {step}")?;
        }
        Ok(())
    }
}
