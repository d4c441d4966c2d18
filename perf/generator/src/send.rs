//! The generator: frames of many flows, at a rate or as fast as the interface takes them. The loop is open: nothing that
//! comes back slows it down. With a window it is closed: what is measured then has always something to do.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use clap::Args;
use serde::Serialize;

use crate::arguments;
use crate::clock;
use crate::flows::{Flow, FlowArgs};
use crate::packet::Packet;
use crate::progress::Progress;
use crate::station::{Attach, BATCH, FRAME_MAX, Options, SocketReport, Station};
use crate::tag::{Protocol, Shape, Tag, Writer};
use crate::thread::{self, Cpu, Stop};

/// Sends generated frames, one thread a queue.
#[derive(Args, Debug)]
pub(crate) struct SendArgs {
    #[command(flatten)]
    port: PortArgs,
    #[command(flatten)]
    flows: FlowArgs,
    /// What the packets are.
    #[arg(long, value_enum, default_value_t = Protocol::Udp)]
    protocol: Protocol,
    /// Bytes of a frame, 1792 at most, Ethernet header included, frame check sequence not; or `imix`: of twelve frames seven
    /// of 60 bytes, four of 590, one of 1514.
    #[arg(long, default_value = "60")]
    size: Size,
    /// Frames a second, all threads together; as fast as possible where none is given.
    #[arg(long, value_parser = arguments::rate)]
    rate: Option<f64>,
    /// Closed loop instead of a rate: at most so many frames are under way at once. Nothing is then lost for want of room, and
    /// nothing waits for a clock.
    #[arg(long, conflicts_with_all = ["rate", "start_ns"], requires = "progress", value_parser = clap::value_parser!(u64).range(1..))]
    window: Option<u64>,
    /// The file by which the sink tells how many frames have come.
    #[arg(long, value_name = "FILE")]
    progress: Option<PathBuf>,
    /// Sleep while the window is closed rather than yield: what interrupts do meanwhile is then not taken for waiting.
    #[arg(long, requires = "window")]
    sleep: bool,
    /// When the first frame is due, in nanoseconds of the monotonic clock.
    #[arg(long, value_name = "NS")]
    start_ns: Option<u64>,
    /// Spin while no frame is due rather than sleep for some 100 us.
    #[arg(long)]
    spin: bool,
    /// Ask the sink to answer each frame, and count the answers.
    #[arg(long)]
    answers: bool,
    /// Frames of each thread at most.
    #[arg(long, default_value_t = u32::MAX)]
    count: u32,
    /// Seconds at most.
    #[arg(long, value_parser = arguments::seconds)]
    seconds: Option<Duration>,
}

/// Where generated packets leave, and their addresses.
#[derive(Args, Debug)]
pub(crate) struct PortArgs {
    /// Interface to send by.
    #[arg(long, value_name = "IF")]
    pub(crate) interface: String,
    /// Queues; one thread each.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=i64::from(Tag::STREAMS)))]
    pub(crate) queues: u16,
    /// The first of these queues.
    #[arg(long, default_value_t = 0)]
    pub(crate) first_queue: u16,
    /// Core of each thread; unbound where none is given.
    #[arg(long, value_delimiter = ',')]
    pub(crate) cores: Vec<usize>,
    /// Source MAC address; the interface's where none is given.
    #[arg(long)]
    src_mac: Option<Mac>,
    /// Destination MAC address.
    #[arg(long)]
    dst_mac: Mac,
    /// First source address.
    #[arg(long)]
    src: IpAddr,
    /// First destination address.
    #[arg(long)]
    dst: IpAddr,
    /// How many destination addresses there are; a flow's number counts through them.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    dsts: u32,
    /// First source port: flows count through the ports from here to 65535, then through the addresses.
    #[arg(long, default_value_t = 1024)]
    sport: u16,
    /// Destination port.
    #[arg(long, default_value_t = 80)]
    pub(crate) dport: u16,
    /// Entries of each ring.
    #[arg(long, default_value = "4096", value_parser = arguments::ring)]
    ring: u32,
    /// Copy mode, also where the driver has zero-copy.
    #[arg(long)]
    copy: bool,
}

impl PortArgs {
    /// A writer of such frames, of one size.
    pub(crate) fn writer(&self, protocol: Protocol, size: usize) -> Result<Writer> {
        let src_mac = self.src_mac.map_or_else(|| own_mac(&self.interface), Ok)?;
        Writer::new(Shape {
            src_mac: src_mac.0,
            dst_mac: self.dst_mac.0,
            src: self.src,
            dst: self.dst,
            dsts: self.dsts,
            sport: self.sport,
            dport: self.dport,
            protocol,
            size,
        })
    }

    /// A writer of SYNs as short as can be.
    pub(crate) fn syn_writer(&self) -> Result<Writer> {
        const LEAST: usize = 60;
        const LEAST_V6: usize = 74;
        self.writer(Protocol::TcpSyn, if self.src.is_ipv4() { LEAST } else { LEAST_V6 })
    }

    /// A station for each thread, with the thread's number.
    pub(crate) fn stations(&self, attach: Attach) -> Result<Vec<(u16, Station)>> {
        let options = Options { attach, ring: self.ring, copy: self.copy };
        (0..self.queues)
            .map(|stream| {
                let queue = u32::from(self.first_queue) + u32::from(stream);
                Ok((stream, Station::open(&[&self.interface], queue, options)?))
            })
            .collect()
    }
}

/// How long frames are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Size {
    Bytes(usize),
    Imix,
}

/// Shares of twelve frames and their bytes without the frame check sequence: the mix that the field calls simple IMIX.
const IMIX: [(usize, usize); 3] = [(7, 60), (4, 590), (1, 1514)];

impl Size {
    /// A writer for each place in a cycle of frames.
    fn writers(self, port: &PortArgs, protocol: Protocol) -> Result<Vec<Writer>> {
        match self {
            Self::Bytes(size) => Ok(vec![port.writer(protocol, size)?]),
            Self::Imix => IMIX
                .iter()
                .flat_map(|(share, size)| std::iter::repeat_n(*size, *share))
                .map(|size| port.writer(protocol, size))
                .collect(),
        }
    }
}

impl FromStr for Size {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        if text == "imix" {
            return Ok(Self::Imix);
        }
        let size = text.parse().with_context(|| format!("not a size: {text}"))?;
        ensure!(size <= FRAME_MAX, "frames of {size} bytes do not fit: {FRAME_MAX} at most");
        Ok(Self::Bytes(size))
    }
}

#[derive(Serialize)]
struct SendReport {
    command: &'static str,
    interface: String,
    flows: u32,
    /// From the time that the first frame was due to the last one sent.
    seconds: f64,
    sent: u64,
    bytes: u64,
    rate_pps: f64,
    /// Answers that came back.
    answered: u64,
    threads: Vec<ThreadReport>,
}

#[derive(Serialize)]
struct ThreadReport {
    /// The number that the thread's frames carry.
    stream: u16,
    sent: u32,
    answered: u64,
    /// Of the CPU time: seconds of waiting for the window to open.
    waited_s: f64,
    sockets: Vec<SocketReport>,
    cpu: Cpu,
}

/// What writes the frames of a run.
struct Writers {
    /// For each place in a cycle of frames.
    cycle: Vec<Writer>,
    /// For the first frames of new flows, where they are others.
    first: Option<Writer>,
}

impl Writers {
    fn new(args: &SendArgs) -> Result<Self> {
        let syns = args.flows.new_per_mille > 0 && matches!(args.protocol, Protocol::TcpAck);
        let first = syns.then(|| args.port.syn_writer()).transpose()?;
        Ok(Self { cycle: args.size.writers(&args.port, args.protocol)?, first })
    }

    /// The only one, if all frames are of one kind.
    fn single(&self) -> Option<&Writer> {
        match (self.cycle.as_slice(), &self.first) {
            ([writer], None) => Some(writer),
            _ => None,
        }
    }

    fn of(&self, sequence: u32, flow: Flow) -> Option<&Writer> {
        let first = self.first.as_ref().filter(|_| flow.new);
        first.or_else(|| self.cycle.get(sequence as usize % self.cycle.len()))
    }
}

/// What a thread has done.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    sent: u32,
    bytes: u64,
    answered: u64,
    /// CPU time spent on waiting for the window to open.
    waited: Duration,
}

/// Sends until the count or the time is reached, or until it is stopped.
pub(crate) fn run(args: &SendArgs, stop: &Stop) -> Result<serde_json::Value> {
    let writers = Writers::new(args)?;
    let limit = writers.cycle.first().map_or(0, Writer::flow_limit);
    ensure!(
        args.flows.end(args.port.queues, args.count) <= limit,
        "more flows than source addresses and ports"
    );
    let attach = if args.answers { Attach::Native } else { Attach::None };
    let jobs = args.port.stations(attach)?;
    crate::say_ready();
    let start = args.start_ns.map_or_else(|| Ok(Instant::now()), clock::instant)?;
    let done = thread::run_all(jobs, &args.port.cores, stop, |(stream, mut station)| {
        let counts = send(&mut station, &writers, stream, args, start, stop)?;
        Ok((stream, counts, station))
    })?;
    let seconds = start.elapsed().as_secs_f64();
    let threads = done
        .iter()
        .map(|thread| {
            let (stream, counts, station) = &thread.value;
            Ok(ThreadReport {
                stream: *stream,
                sent: counts.sent,
                answered: counts.answered,
                waited_s: counts.waited.as_secs_f64(),
                sockets: station.report()?,
                cpu: thread.cpu,
            })
        })
        .collect::<Result<Vec<_>>>()?;
    let sent: u64 = threads.iter().map(|thread| u64::from(thread.sent)).sum();
    Ok(serde_json::to_value(SendReport {
        command: "send",
        interface: args.port.interface.clone(),
        flows: args.flows.flows,
        seconds,
        sent,
        bytes: done.iter().map(|thread| thread.value.1.bytes).sum(),
        rate_pps: sent as f64 / seconds,
        answered: done.iter().map(|thread| thread.value.1.answered).sum(),
        threads,
    })?)
}

fn send(
    station: &mut Station,
    writers: &Writers,
    stream: u16,
    args: &SendArgs,
    start: Instant,
    stop: &Stop,
) -> Result<Counts> {
    // Frames of one kind are written once but for what differs. Of several kinds a chunk can hold any, and where answers
    // are received, chunks hold these.
    let single = writers.single().filter(|_| !args.answers);
    if let Some(writer) = single {
        station.each_free(writer.size(), |frame| writer.prepare(frame));
    }
    let flow = |sequence| args.flows.of(args.port.queues, stream, sequence);
    let pace = Pace::new(start, args);
    let mut counts = Counts::default();
    let mut window = match (args.window, &args.progress) {
        (Some(size), Some(file)) => Some(Window::open(size, args.sleep, file)?),
        _ => None,
    };
    while counts.sent < args.count && !stop.is_raised() {
        if args.answers {
            counts.answered += collect(station, stream);
        }
        let Some(mut due) = pace.due(counts.sent) else { break };
        if let Some(window) = &mut window {
            due = window.room(counts.sent)?;
        }
        let left = usize::try_from(args.count - counts.sent)?;
        let wanted = due.min(left).min(BATCH).min(station.room(0));
        let mut sequence = counts.sent;
        let taken = station.take(wanted, || {
            let writer = single.or_else(|| writers.of(sequence, flow(sequence)));
            let size = writer.map_or(0, Writer::size);
            sequence += 1;
            size
        });
        if taken == 0 {
            station.refill();
            pace.rest();
            continue;
        }
        let mut sequence = counts.sent;
        station.each(|frame| {
            let flow = flow(sequence);
            let Some(writer) = writers.of(sequence, flow) else { return };
            if single.is_none() {
                writer.prepare(frame);
            }
            // The frame has the writer's size, so this cannot fail.
            writer.write(frame, flow.number, Tag { stream, sequence, answer: args.answers });
            counts.bytes += frame.len() as u64;
            sequence += 1;
        });
        counts.sent += u32::try_from(station.send(0)?)?;
        station.refill();
    }
    drain(station)?;
    counts.waited = window.map_or(Duration::ZERO, |window| window.waited);
    if args.answers {
        counts.answered +=
            collect_rest(station, stream, u64::from(counts.sent).saturating_sub(counts.answered), stop)?;
    }
    Ok(counts)
}

/// Waits until the ring is empty: what is still in it would be lost with the socket.
pub(crate) fn drain(station: &mut Station) -> Result<()> {
    let patience = Instant::now();
    while !station.is_drained()? {
        ensure!(patience.elapsed() < Duration::from_secs(2), "the interface does not take the last frames");
    }
    Ok(())
}

/// Takes what has been received, and returns how many answers to frames of this thread are in it.
fn collect(station: &mut Station, stream: u16) -> u64 {
    let mut answers = 0;
    while station.receive(0) > 0 {
        station.each(|frame| {
            let tag = Packet::find(frame).and_then(|packet| Tag::read(frame, &packet));
            answers += u64::from(tag.is_some_and(|tag| tag.answer && tag.stream == stream));
        });
        station.discard();
        station.refill();
    }
    answers
}

/// Waits for `open` more answers, but not much longer than they come.
fn collect_rest(station: &mut Station, stream: u16, open: u64, stop: &Stop) -> Result<u64> {
    const PATIENCE: Duration = Duration::from_millis(300);
    let (mut answers, mut last) = (0, Instant::now());
    while answers < open && last.elapsed() < PATIENCE && !stop.is_raised() {
        let more = collect(station, stream);
        if more > 0 {
            (answers, last) = (answers + more, Instant::now());
        } else {
            station.wait(10)?;
        }
    }
    Ok(answers)
}

/// A limit of the frames under way.
struct Window {
    size: u64,
    sleep: bool,
    progress: Progress,
    /// Frames that are counted as lost, since nothing came for so long.
    lost: u64,
    waited: Duration,
}

impl Window {
    fn open(size: u64, sleep: bool, file: &Path) -> Result<Self> {
        Ok(Self { size, sleep, progress: Progress::open(file)?, lost: 0, waited: Duration::ZERO })
    }

    /// How many frames may be sent beyond those `sent`, at least some: waits until the window is half open, and lets others
    /// have the core meanwhile. Frames of which nothing is heard for long no longer count as being under way.
    fn room(&mut self, sent: u32) -> Result<usize> {
        const PATIENCE: Duration = Duration::from_millis(20);
        let sent = u64::from(sent);
        let room = |window: &Self| {
            let under_way = sent.saturating_sub(window.progress.count() + window.lost);
            window.size.saturating_sub(under_way)
        };
        let enough = self.size.div_ceil(2);
        if room(self) < enough {
            let (begun, start) = (Instant::now(), thread::cpu_time()?);
            while room(self) < enough && begun.elapsed() < PATIENCE {
                if self.sleep {
                    std::thread::sleep(Duration::from_micros(50));
                } else {
                    std::thread::yield_now();
                }
            }
            if room(self) < enough {
                self.lost = sent.saturating_sub(self.progress.count());
            }
            self.waited += thread::cpu_time()?.saturating_sub(start);
        }
        Ok(usize::try_from(room(self))?)
    }
}

/// How many frames the clock allows.
pub(crate) struct Pace {
    start: Instant,
    rate: Option<f64>,
    limit: Option<Duration>,
    spin: bool,
}

impl Pace {
    fn new(start: Instant, args: &SendArgs) -> Self {
        let queues = f64::from(args.port.queues);
        Self { start, rate: args.rate.map(|rate| rate / queues), limit: args.seconds, spin: args.spin }
    }

    /// Frames that are due beyond those `sent`; `None` once the time is up.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "float to integer saturates")]
    fn due(&self, sent: u32) -> Option<usize> {
        let elapsed = self.start.elapsed();
        if self.limit.is_some_and(|limit| elapsed >= limit) {
            return None;
        }
        Some(match self.rate {
            // The first one is due at once, and frame n so many n-ths of a second later.
            Some(rate) => ((elapsed.as_secs_f64() * rate) as usize).saturating_sub(sent as usize),
            None => usize::MAX,
        })
    }

    /// Lets the core go while nothing is due, for less time than makes a burst overflow a ring.
    fn rest(&self) {
        if self.rate.is_some() && !self.spin {
            std::thread::sleep(Duration::from_micros(50));
        }
    }
}

/// A MAC address as `xx:xx:xx:xx:xx:xx`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mac([u8; 6]);

impl FromStr for Mac {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let bytes = text.split(':').map(|byte| u8::from_str_radix(byte, 16)).collect::<Result<Vec<_>, _>>();
        let bytes = bytes.ok().and_then(|bytes| bytes.try_into().ok());
        bytes.map(Self).ok_or_else(|| anyhow!("not a MAC address: {text}"))
    }
}

fn own_mac(interface: &str) -> Result<Mac> {
    let path = format!("/sys/class/net/{interface}/address");
    fs::read_to_string(&path).with_context(|| path)?.trim().parse()
}
