//! Generator, sink and what they say: `weir-gen` as processes.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sched::{CpuSet, sched_getaffinity};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use testbed::{Process, Signal, Undo};

use crate::device::Target;
use crate::network::{Network, Place};

/// How long a program may take to bind its sockets.
const START_LIMIT: Duration = Duration::from_secs(15);
/// How long one may take over its end.
const END_LIMIT: Duration = Duration::from_secs(20);

/// Which core has what to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Cores {
    pub(crate) generator: Vec<usize>,
    pub(crate) sink: Vec<usize>,
    pub(crate) device: Vec<usize>,
}

impl Cores {
    /// A third each; generator and sink share a core where there are less than three.
    pub(crate) fn of_machine() -> Result<Self> {
        let allowed = sched_getaffinity(Pid::from_raw(0)).context("cores of this process")?;
        let cores = (0..CpuSet::count()).filter(|core| allowed.is_set(*core).unwrap_or(false));
        Ok(Self::shared_out(&cores.collect::<Vec<_>>()))
    }

    fn shared_out(cores: &[usize]) -> Self {
        let third = cores.len() / 3;
        let (first, rest) = cores.split_at(third.max(1).min(cores.len()));
        match rest {
            [] => Self { generator: first.to_vec(), sink: first.to_vec(), device: first.to_vec() },
            [one] => Self { generator: first.to_vec(), sink: first.to_vec(), device: vec![*one] },
            _ => {
                let (second, last) = rest.split_at(third.max(1));
                Self { generator: first.to_vec(), sink: second.to_vec(), device: last.to_vec() }
            }
        }
    }
}

impl Cores {
    /// Everything on one.
    pub(crate) fn one(&self) -> Self {
        let core: Vec<usize> = self.generator.iter().take(1).copied().collect();
        Self { generator: core.clone(), sink: core.clone(), device: core }
    }
}

/// What packets are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Packets {
    /// TCP segments in the middle of connections.
    Established,
    /// SYNs, each of a new connection.
    New,
}

/// What is sent in one measurement.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Load {
    pub(crate) packets: Packets,
    /// Connections, where they are established ones.
    pub(crate) flows: u32,
    /// `60`, `imix`, `1514`.
    pub(crate) size: &'static str,
    pub(crate) pace: Pace,
    pub(crate) seconds: f64,
    /// Frames at most.
    pub(crate) count: u32,
}

impl Load {
    /// Flows of each of so many threads. Of new ones there are more than frames, so that none comes twice.
    pub(crate) fn flows(&self, threads: usize) -> u32 {
        let all = match self.packets {
            Packets::Established => self.flows,
            Packets::New => self.count,
        };
        all / u32::try_from(threads).unwrap_or(u32::MAX)
    }
}

/// What says when a frame is sent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Pace {
    /// So many are under way at most: as fast as the device carries them.
    Window(u32),
    /// So many frames a second.
    Rate(f64),
    /// The same, and times are taken: the generator does not sleep, and the sink runs before it.
    Timed(f64),
}

/// The report of `weir-gen send`.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Sent {
    pub(crate) sent: u64,
    pub(crate) seconds: f64,
    threads: Vec<Thread>,
}

/// The report of `weir-gen sink`.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Received {
    pub(crate) received: u64,
    pub(crate) damaged: u64,
    pub(crate) first_damaged: Option<String>,
    pub(crate) doubled: u64,
    pub(crate) flow_loss: Option<FlowLoss>,
    pub(crate) latency: Option<Latency>,
    pub(crate) latency_tenths: Option<Tenths>,
    threads: Vec<Thread>,
}

impl Received {
    /// The mode of the sink's sockets.
    pub(crate) fn mode(&self) -> &'static str {
        mode_of(&self.threads)
    }
}

/// The 99th percentile of each tenth of a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Tenths {
    /// How many there were.
    pub(crate) count: u64,
    /// The middle one.
    pub(crate) p99_ns: u64,
}

/// Losses by flow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FlowLoss {
    /// Flows that lack frames.
    pub(crate) flows: u64,
    /// Frames that the one lacks that lacks most.
    pub(crate) most: u64,
}

/// Latencies.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Latency {
    pub(crate) count: u64,
    pub(crate) p50_ns: u64,
    pub(crate) p90_ns: u64,
    pub(crate) p99_ns: u64,
    pub(crate) p999_ns: u64,
    pub(crate) p9999_ns: u64,
    pub(crate) max_ns: u64,
}

/// The report of `weir-gen connect`.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Connected {
    pub(crate) seconds: f64,
    pub(crate) started: u64,
    pub(crate) opened: u64,
    pub(crate) closed: u64,
    pub(crate) strange: u64,
    pub(crate) latency: Option<Latency>,
    threads: Vec<Thread>,
}

#[derive(Clone, Debug, Deserialize)]
struct Thread {
    /// Of the CPU time: seconds that were spent on waiting.
    #[serde(default)]
    waited_s: f64,
    cpu: Cpu,
    sockets: Vec<Socket>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
struct Socket {
    zero_copy: bool,
}

/// The mode of sockets, of which so many are zero-copy.
pub(crate) fn mode(zero_copy: usize, all: usize) -> &'static str {
    match zero_copy {
        0 => "copy",
        some if some == all => "zero-copy",
        _ => "copy and zero-copy",
    }
}

fn mode_of(threads: &[Thread]) -> &'static str {
    let sockets: Vec<_> = threads.iter().flat_map(|thread| &thread.sockets).collect();
    mode(sockets.iter().filter(|socket| socket.zero_copy).count(), sockets.len())
}

#[derive(Clone, Debug, Deserialize)]
struct Cpu {
    user_s: f64,
    system_s: f64,
}

fn cpu_s(threads: &[Thread]) -> f64 {
    threads.iter().map(|thread| thread.cpu.user_s + thread.cpu.system_s - thread.waited_s).sum()
}

impl Sent {
    /// The mode of the generator's sockets.
    pub(crate) fn mode(&self) -> &'static str {
        mode_of(&self.threads)
    }

    /// CPU seconds that the generator's threads took, but for waiting.
    pub(crate) fn cpu_s(&self) -> f64 {
        cpu_s(&self.threads)
    }

    /// CPU seconds that they waited.
    pub(crate) fn waited_s(&self) -> f64 {
        self.threads.iter().map(|thread| thread.waited_s).sum()
    }
}

impl Connected {
    /// CPU seconds that the generator's threads took.
    pub(crate) fn cpu_s(&self) -> f64 {
        cpu_s(&self.threads)
    }
}

/// Starts `weir-gen` in a network.
pub(crate) struct Traffic<'a> {
    pub(crate) binary: &'a Path,
    pub(crate) network: &'a Network,
    pub(crate) cores: &'a Cores,
    pub(crate) target: Target,
    /// Queues, and so threads, of generator and sink.
    pub(crate) queues: usize,
    /// Whether they use copy mode, also where they could do without.
    pub(crate) copy: bool,
}

/// A running sink.
pub(crate) struct Sink(Tool);

impl Sink {
    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.0.process.pid()
    }

    /// Ends it and returns what it has counted.
    pub(crate) fn stop(self) -> Result<Received> {
        self.0.process.signal(Signal::SIGTERM)?;
        self.0.report()
    }
}

impl Traffic<'_> {
    /// A sink that answers; none where the generator of connections has its interface, and answers by itself.
    pub(crate) fn answering_sink(&self) -> Result<Option<Sink>> {
        if self.shares_port() { Ok(None) } else { self.sink(&["--answer".to_owned()]).map(Some) }
    }

    /// Whether generator and sink have one interface.
    fn shares_port(&self) -> bool {
        self.target.returns || self.network.has_one_port()
    }

    /// A sink for a load; timed from the load's start, if it has one.
    pub(crate) fn counting_sink(&self, load: &Load, first_flow: u32, start_ns: Option<u64>) -> Result<Sink> {
        let mut args = vec!["--by-flow".to_owned()];
        args.extend(self.flow_args(load, first_flow));
        args.extend(self.progress());
        if let (Pace::Timed(rate), Some(start_ns)) = (load.pace, start_ns) {
            let timed = ["--realtime".into(), "--start-ns".into(), start_ns.to_string()];
            args.extend(timed.into_iter().chain(["--rate".into(), rate.to_string()]));
        }
        self.sink(&args)
    }

    fn sink(&self, args: &[String]) -> Result<Sink> {
        let network = self.network;
        // What a reflector sends back arrives at the generator's interface.
        let (place, port) = if self.target.returns {
            (&network.near, &network.near_port)
        } else {
            (&network.far, &network.far_port)
        };
        let mut all = vec!["sink".to_owned(), "--interface".into(), port.name.clone()];
        all.extend(["--spins".into(), "0".into(), "--cores".into(), list(&self.cores.sink, self.queues)]);
        all.extend(
            ["--queues", "--streams"].into_iter().flat_map(|key| [key.into(), self.queues.to_string()]),
        );
        all.extend(self.copy.then(|| "--copy".into()));
        all.extend_from_slice(args);
        Ok(Sink(self.tool("sink", place, &all)?))
    }

    /// Sends a load and waits for its end. The first frame is due at `start_ns`.
    pub(crate) fn send(&self, load: &Load, first_flow: u32, start_ns: Option<u64>) -> Result<Sent> {
        let protocol = match load.packets {
            Packets::Established => "tcp-ack",
            Packets::New => "tcp-syn",
        };
        let mut args = self.sender("send");
        if self.shares_port() {
            // A queue of an interface has one socket, and the sink has the first ones.
            args.extend(["--first-queue".into(), self.queues.to_string()]);
        }
        args.extend(["--protocol".into(), protocol.into(), "--size".into(), load.size.into()]);
        args.extend(["--seconds".into(), load.seconds.to_string()]);
        args.extend(self.flow_args(load, first_flow));
        let each = load.count / u32::try_from(self.queues)?;
        args.extend(["--count".into(), each.to_string()]);
        match load.pace {
            Pace::Window(size) => {
                args.extend(["--window".into(), size.to_string()]);
                args.extend(self.progress());
                if matches!(self.network.near, Place::Here) {
                    // What a NIC's interrupts do counts for the device, and not as the generator's waiting.
                    args.push("--sleep".into());
                }
            }
            Pace::Rate(rate) => args.extend(["--rate".into(), rate.to_string()]),
            Pace::Timed(rate) => args.extend(["--rate".into(), rate.to_string(), "--spin".into()]),
        }
        if let Some(start_ns) = start_ns {
            args.extend(["--start-ns".into(), start_ns.to_string()]);
        }
        let limit = Duration::from_secs_f64(load.seconds) + END_LIMIT;
        self.tool("generator", &self.network.near, &args)?.ended(limit)
    }

    /// The file by which the sink tells the generator how many frames have come.
    fn progress(&self) -> [String; 2] {
        let file = self.network.scratch.path().join("progress");
        ["--progress".into(), file.display().to_string()]
    }

    /// Which flows.
    fn flow_args(&self, load: &Load, first_flow: u32) -> [String; 4] {
        let flows = load.flows(self.queues);
        ["--flows".into(), flows.to_string(), "--first-flow".into(), first_flow.to_string()]
    }

    /// Opens connections and waits for their end; leaves them open if `open` says so.
    pub(crate) fn connect(
        &self,
        connections: u32,
        rate_pps: f64,
        first_flow: u32,
        open: bool,
    ) -> Result<Connected> {
        let mut args = self.sender("connect");
        args.extend(["--connections".into(), connections.to_string(), "--rate".into(), rate_pps.to_string()]);
        args.extend(["--first-flow".into(), first_flow.to_string()]);
        args.extend(open.then(|| "--open".into()));
        args.extend(self.shares_port().then(|| "--answer".into()));
        let limit = Duration::from_secs_f64(f64::from(connections) / rate_pps) + END_LIMIT;
        self.tool("generator", &self.network.near, &args)?.ended(limit)
    }

    /// What both generators have in common.
    fn sender(&self, command: &str) -> Vec<String> {
        let Target { mac, first, count, port, .. } = &self.target;
        let mut args = vec![command.to_owned(), "--interface".into(), self.network.near_port.name.clone()];
        args.extend([
            "--cores".into(),
            list(&self.cores.generator, self.queues),
            "--dst-mac".into(),
            mac.clone(),
        ]);
        args.extend(["--queues".into(), self.queues.to_string()]);
        args.extend(["--src".into(), crate::network::CLIENT.to_string(), "--dst".into(), first.to_string()]);
        args.extend(["--dsts".into(), count.to_string(), "--dport".into(), port.to_string()]);
        args.extend(self.copy.then(|| "--copy".into()));
        args
    }

    fn tool(&self, name: &str, place: &Place, args: &[String]) -> Result<Tool> {
        let mut command: Command = place.command(self.binary);
        command.args(args);
        Tool::start(name, command, self.network.scratch.path())
    }
}

/// The monotonic clock so long from now, in nanoseconds.
pub(crate) fn start_in(delay: Duration) -> Result<u64> {
    let now = Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC).context("clock")?);
    Ok(u64::try_from((now + delay).as_nanos())?)
}

/// Cores for so many threads.
pub(crate) fn list(cores: &[usize], threads: usize) -> String {
    cores.iter().cycle().take(threads).map(usize::to_string).collect::<Vec<_>>().join(",")
}

/// A running `weir-gen`.
struct Tool {
    process: Process,
    log: PathBuf,
    _undo: Undo,
}

impl Tool {
    /// Starts one and waits until its sockets are bound.
    fn start(name: &str, command: Command, scratch: &Path) -> Result<Self> {
        let log = scratch.join(format!("{name}.log"));
        let process = Process::spawn(name, command, log.clone())?;
        let undo = Undo::process(process.pid(), "weir-gen");
        let mut tool = Self { process, log, _undo: undo };
        let ready = |text: String| text.lines().any(|line| line == "ready");
        let log = tool.log.clone();
        tool.process.wait_until(START_LIMIT, || Ok(ready(std::fs::read_to_string(&log)?)))?;
        Ok(tool)
    }

    fn ended<T: DeserializeOwned>(mut self, limit: Duration) -> Result<T> {
        match self.process.wait(limit)? {
            Some(status) if status.success() => self.read(),
            Some(status) => bail!("the generator ended ({status}):\n{}", self.process.log()),
            None => bail!("the generator did not end within {limit:?}"),
        }
    }

    fn report<T: DeserializeOwned>(mut self) -> Result<T> {
        let status = self.process.wait(END_LIMIT)?.context("weir-gen does not end")?;
        ensure!(status.success(), "weir-gen ended ({status}):\n{}", self.process.log());
        self.read()
    }

    fn read<T: DeserializeOwned>(&self) -> Result<T> {
        let text = std::fs::read_to_string(&self.log)?;
        let report = text.lines().find(|line| line.starts_with('{'));
        let report = report.with_context(|| format!("weir-gen reports nothing:\n{text}"))?;
        serde_json::from_str(report).with_context(|| format!("the report {report}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cores_are_shared_out_in_thirds() {
        for (cores, generator, sink, device) in [
            (&[5][..], &[5][..], &[5][..], &[5][..]),
            (&[4, 5], &[4], &[4], &[5]),
            (&[4, 5, 6], &[4], &[5], &[6]),
            (&[0, 1, 2, 3, 8, 9, 10], &[0, 1], &[2, 3], &[8, 9, 10]),
        ] {
            let shared = Cores::shared_out(cores);
            assert_eq!(
                (&shared.generator[..], &shared.sink[..], &shared.device[..]),
                (generator, sink, device)
            );
        }
    }
}
