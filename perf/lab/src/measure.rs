//! One measurement: a fresh network, a fresh device, flows opened, traffic, what it cost and what was lost.

use std::collections::BTreeMap;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::account::{Mark, Window};
use crate::device::{Binaries, Device, Kind, Running, Services};
use crate::network::{Network, Topology};
use crate::results::Sample;
use crate::traffic::{Connected, Cores, Load, Pace, Packets, Received, Sent, Sink, Traffic, start_in};

/// How long frames may take to arrive after the last one was sent.
const SETTLE: Duration = Duration::from_millis(150);
/// From the start of a timed generator to its first frame.
const LEAD: Duration = Duration::from_millis(700);

/// Handshakes a second while flows are opened: what the slowest peer does without loss, and Weir.
pub(crate) fn open_rate_pps(device: &Device) -> f64 {
    if matches!(device, Device::Weir(..)) { 50_000.0 } else { 20_000.0 }
}

/// What all measurements of a run have in common.
#[derive(Clone, Debug)]
pub(crate) struct Lab {
    pub(crate) topology: Topology,
    pub(crate) binaries: Binaries,
    pub(crate) cores: Cores,
    /// Whether generator and sink use copy mode, also where they could do without.
    pub(crate) copy: bool,
}

/// A device at work in its network, for several measurements.
pub(crate) struct Bench<'a> {
    lab: &'a Lab,
    device: &'a Device,
    services: Services,
    workers: usize,
    // In this order: the device ends before its network does.
    running: Running,
    network: Network,
    /// Flows that are open, from the first one on.
    open: u32,
    /// The first flow that nothing has used yet.
    unused: u32,
    /// Modes of sockets, by who has them.
    modes: BTreeMap<String, String>,
}

impl<'a> Bench<'a> {
    /// Sets a device up.
    pub(crate) fn new(lab: &'a Lab, device: &'a Device, services: Services, workers: usize) -> Result<Self> {
        let network = match device {
            Device::Nothing => Network::direct(&lab.topology)?.context("the device is elsewhere")?,
            _ => {
                let returns = device.kind() == Kind::Reflector;
                Network::with_device(&lab.topology, workers, returns)?
            }
        };
        let running = device.start(&network, &lab.binaries, &lab.cores, workers, services)?;
        let modes = running.mode().map(|mode| (device.name().to_owned(), mode.to_owned()));
        let modes = modes.into_iter().collect();
        Ok(Self { lab, device, services, workers, running, network, open: 0, unused: 0, modes })
    }

    fn traffic(&self) -> Result<Traffic<'_>> {
        Ok(Traffic {
            binary: &self.lab.binaries.generator,
            network: &self.network,
            cores: &self.lab.cores,
            target: self.device.target(&self.network, self.services)?,
            queues: self.workers,
            copy: self.lab.copy,
        })
    }

    /// Opens flows through what keeps any, both ways.
    fn open(&mut self, flows: u32) -> Result<()> {
        if self.device.kind() != Kind::Balancer || self.open >= flows {
            return Ok(());
        }
        let traffic = self.traffic()?;
        let sink = traffic.answering_sink()?;
        let each = flows / u32::try_from(self.workers)?;
        let said = traffic.connect(each, open_rate_pps(self.device), 0, true)?;
        sink.map(Sink::stop).transpose()?;
        if said.strange > 0 {
            println!("    {} answers to SYNs have wrong numbers, addresses or checksums", said.strange);
        }
        // One that is not open shows as loss in every round. Among ten million some are lost whenever the machine pauses.
        ensure!(
            said.opened * 100 >= said.started * 99,
            "{}: of {} connections {} were opened",
            self.device.name(),
            said.started,
            said.opened
        );
        self.open = flows;
        self.unused = self.unused.max(flows);
        Ok(())
    }

    /// Sends a load and counts what arrives and what it costs.
    pub(crate) fn sample(&mut self, load: &Load) -> Result<Sample> {
        if load.packets == Packets::Established {
            self.open(load.flows)?;
        }
        let first_flow = if load.packets == Packets::New { self.unused } else { 0 };
        let before = self.forwarded()?;
        let traffic = self.traffic()?;
        let start_ns = matches!(load.pace, Pace::Timed(_)).then(|| start_in(LEAD)).transpose()?;
        let sink = traffic.counting_sink(load, first_flow, start_ns)?;
        let mut pids = self.running.pids();
        pids.push(sink.pid());
        let sink_alone = [sink.pid()];
        let (start, sink_start) = (Mark::now(&pids)?, Mark::now(&sink_alone)?);
        let sent = traffic.send(load, first_flow, start_ns)?;
        sleep(SETTLE);
        let (end, sink_end) = (Mark::now(&pids)?, Mark::now(&sink_alone)?);
        let window = start.until(&end);
        let sink_s = sink_start.until(&sink_end).charged_s;
        let received = sink.stop()?;
        for (name, mode) in [("generator", sent.mode()), ("sink", received.mode())] {
            self.modes.insert(name.to_owned(), mode.to_owned());
        }
        if load.packets == Packets::New {
            self.unused += load.flows(self.workers) * u32::try_from(self.workers)?;
        }
        let window = Window { charged_s: window.charged_s + sent.cpu_s(), ..window };
        let all_s = match self.lab.topology {
            Topology::Namespaces => window.charged_s + window.softirq_s,
            // A NIC's packets are the kernel's work in nobody's name, and often on a core that is idle otherwise.
            Topology::Wires(_) => window.busy_s - sent.waited_s(),
        };
        let sample = sample(&sent, &received, window, all_s, sent.cpu_s() + sink_s);
        ensure!(sample.received > 0, "{}: nothing of {} frames arrived", self.device.name(), sample.sent);
        if let Some(frame) = &received.first_damaged {
            println!("    the first of {} frames with a wrong checksum: {frame}", received.damaged);
        }
        self.check(before, &received)?;
        Ok(sample)
    }

    /// Opens connections at a rate, through to their ends.
    pub(crate) fn connections(&mut self, rate: f64, seconds: f64) -> Result<(Connected, Window)> {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "float to integer saturates"
        )]
        let count = ((rate * seconds) as u32 / u32::try_from(self.workers)?).max(1);
        let traffic = self.traffic()?;
        let sink = traffic.answering_sink()?;
        let pids: Vec<_> = self.running.pids().into_iter().chain(sink.iter().map(Sink::pid)).collect();
        let start = Mark::now(&pids)?;
        let said = traffic.connect(count, rate, self.unused, false)?;
        let mut window = start.until(&Mark::now(&pids)?);
        window.charged_s += said.cpu_s();
        sink.map(Sink::stop).transpose()?;
        self.unused += count * u32::try_from(self.workers)?;
        Ok((said, window))
    }

    /// Frames that Weir says it has sent on.
    fn forwarded(&self) -> Result<Option<u64>> {
        let workers = self.running.show("workers")?;
        let forwarded = |workers: Value| -> Result<u64> {
            let rows = workers.as_array().cloned().unwrap_or_default();
            let counts: Option<Vec<u64>> = rows.iter().map(|row| row["forwarded"].as_u64()).collect();
            let counts = counts.filter(|counts| counts.len() == self.workers);
            Ok(counts.with_context(|| format!("weir show workers: {workers}"))?.iter().sum())
        };
        workers.map(forwarded).transpose()
    }

    /// Weir's own counts have to agree with what arrived.
    fn check(&self, before: Option<u64>, received: &Received) -> Result<()> {
        if let (Some(before), Some(after)) = (before, self.forwarded()?) {
            let counted = after - before;
            ensure!(
                counted >= received.received,
                "Weir says that it sent {counted} frames on, but {} have arrived",
                received.received
            );
        }
        Ok(())
    }

    /// Modes of the other sockets: the generator's, the sink's, the bare forwarder's.
    pub(crate) fn modes(&self) -> BTreeMap<String, String> {
        self.modes.clone()
    }

    /// Modes of Weir's sockets.
    pub(crate) fn interfaces(&self) -> Result<Option<Value>> {
        self.running.show("interfaces")
    }
}

fn sample(sent: &Sent, received: &Received, window: Window, all_s: f64, ends_s: f64) -> Sample {
    let each_ns = |seconds: f64| seconds * 1e9 / sent.sent.max(1) as f64;
    Sample {
        rate_pps: sent.sent as f64 / sent.seconds,
        sent: sent.sent,
        received: received.received.saturating_sub(received.doubled),
        damaged: received.damaged,
        flow_loss: received.flow_loss.unwrap_or_default(),
        latency: received.latency,
        latency_tenths: received.latency_tenths,
        gross_ns: each_ns(all_s),
        ends_ns: each_ns(ends_s),
        window,
    }
}
