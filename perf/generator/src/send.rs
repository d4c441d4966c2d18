//! The generator: frames of many flows, at a rate or as fast as the interface takes them.

use std::fs;
use std::net::IpAddr;
use std::str::FromStr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use clap::Args;
use serde::Serialize;

use crate::station::{Attach, BATCH, Options, SocketReport, Station};
use crate::tag::{Protocol, Shape, Tag, Writer};
use crate::thread::{self, Cpu, Stop};

/// Sends generated frames, one thread a queue.
#[derive(Args, Debug)]
pub(crate) struct SendArgs {
    /// Interface to send by.
    #[arg(long, value_name = "IF")]
    interface: String,
    /// Queues, from 0 on; one thread each.
    #[arg(long, default_value_t = 1)]
    queues: u16,
    /// Core of each thread; unbound where none is given.
    #[arg(long, value_delimiter = ',')]
    cores: Vec<usize>,
    /// Source MAC address; the interface's where none is given.
    #[arg(long)]
    src_mac: Option<Mac>,
    /// Destination MAC address.
    #[arg(long)]
    dst_mac: Mac,
    /// First source address.
    #[arg(long)]
    src: IpAddr,
    /// Destination address.
    #[arg(long)]
    dst: IpAddr,
    /// First source port: flows count through the ports from here to 65535, then through the addresses.
    #[arg(long, default_value_t = 1024)]
    sport: u16,
    /// Destination port.
    #[arg(long, default_value_t = 80)]
    dport: u16,
    /// What the packets are.
    #[arg(long, value_enum, default_value_t = Protocol::Udp)]
    protocol: Protocol,
    /// Bytes of a frame, Ethernet header included, frame check sequence not.
    #[arg(long, default_value_t = 60)]
    size: usize,
    /// Flows of each thread. No two threads send the same flow.
    #[arg(long, default_value_t = 1)]
    flows: u32,
    /// Visit the flows in random order rather than one after the other.
    #[arg(long)]
    random: bool,
    /// Frames a second, all threads together; as fast as possible where none is given.
    #[arg(long)]
    rate: Option<u64>,
    /// Frames of each thread at most.
    #[arg(long, default_value_t = u32::MAX)]
    count: u32,
    /// Seconds at most.
    #[arg(long)]
    seconds: Option<f64>,
    /// Entries of each ring.
    #[arg(long, default_value_t = 4096)]
    ring: u32,
}

#[derive(Serialize)]
struct SendReport {
    command: &'static str,
    interface: String,
    size: usize,
    flows: u64,
    seconds: f64,
    sent: u64,
    rate_pps: f64,
    threads: Vec<ThreadReport>,
}

#[derive(Serialize)]
struct ThreadReport {
    /// The number that the thread's frames carry.
    stream: u16,
    sent: u32,
    sockets: Vec<SocketReport>,
    cpu: Cpu,
}

/// Sends until the count or the time is reached, or until it is stopped.
pub(crate) fn run(args: &SendArgs, stop: &Stop) -> Result<serde_json::Value> {
    ensure!(args.queues > 0 && args.flows > 0, "at least one queue and one flow");
    let src_mac = args.src_mac.map_or_else(|| own_mac(&args.interface), Ok)?;
    let writer = Writer::new(Shape {
        src_mac: src_mac.0,
        dst_mac: args.dst_mac.0,
        src: args.src,
        dst: args.dst,
        sport: args.sport,
        dport: args.dport,
        protocol: args.protocol,
        size: args.size,
    })?;
    let flows = u64::from(args.queues) * u64::from(args.flows);
    ensure!(flows <= writer.flow_limit(), "more flows than source addresses and ports");
    let options = Options { attach: Attach::None, ring: args.ring };
    let jobs = (0..args.queues)
        .map(|stream| Ok((stream, Station::open(&[&args.interface], u32::from(stream), options)?)))
        .collect::<Result<Vec<_>>>()?;
    crate::say_ready();
    let done = thread::run_all(jobs, &args.cores, stop, |(stream, mut station)| {
        let sent = send(&mut station, &writer, stream, args, stop)?;
        Ok((stream, sent, station))
    })?;
    let seconds = done.iter().map(|thread| thread.elapsed.as_secs_f64()).fold(0.0, f64::max);
    let threads = done
        .iter()
        .map(|thread| {
            let (stream, sent, station) = &thread.value;
            Ok(ThreadReport { stream: *stream, sent: *sent, sockets: station.report()?, cpu: thread.cpu })
        })
        .collect::<Result<Vec<_>>>()?;
    let sent: u64 = threads.iter().map(|thread| u64::from(thread.sent)).sum();
    Ok(serde_json::to_value(SendReport {
        command: "send",
        interface: args.interface.clone(),
        size: args.size,
        flows,
        seconds,
        sent,
        rate_pps: sent as f64 / seconds,
        threads,
    })?)
}

fn send(station: &mut Station, writer: &Writer, stream: u16, args: &SendArgs, stop: &Stop) -> Result<u32> {
    station.each_free(args.size, |frame| writer.prepare(frame));
    let mut flows = Flows::new(u64::from(stream) * u64::from(args.flows), args.flows, args.random);
    let pace = Pace::new(args.rate.map(|rate| rate as f64 / f64::from(args.queues)), args.seconds);
    let mut sent = 0;
    while sent < args.count && !stop.is_raised() {
        let Some(due) = pace.due(sent) else { break };
        let left = usize::try_from(args.count - sent)?;
        let wanted = due.min(left).min(BATCH).min(station.room(0));
        let taken = station.take(wanted, args.size);
        if taken == 0 {
            station.refill();
            pace.rest();
            continue;
        }
        let mut sequence = sent;
        station.each(|frame| {
            // The frame has the writer's size, so this cannot fail.
            writer.write(frame, flows.next(), Tag { stream, sequence });
            sequence += 1;
        });
        sent += u32::try_from(station.send(0)?)?;
        station.refill();
    }
    // What is still in the ring would be lost with the socket.
    let patience = Instant::now();
    while !station.is_drained()? {
        ensure!(patience.elapsed() < Duration::from_secs(2), "the interface does not take the last frames");
    }
    Ok(sent)
}

/// The flow of the next frame.
struct Flows {
    first: u64,
    count: u32,
    random: bool,
    position: u32,
    state: u64,
}

impl Flows {
    fn new(first: u64, count: u32, random: bool) -> Self {
        Self { first, count, random, position: 0, state: first | 1 }
    }

    fn next(&mut self) -> u64 {
        if self.random {
            // Knuth's MMIX generator; the high bits are the good ones.
            self.state =
                self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let point = self.state >> 32;
            self.position = ((point * u64::from(self.count)) >> 32) as u32;
            self.first + u64::from(self.position)
        } else {
            let flow = self.first + u64::from(self.position);
            self.position = if self.position + 1 == self.count { 0 } else { self.position + 1 };
            flow
        }
    }
}

/// How many frames the clock allows.
struct Pace {
    start: Instant,
    rate: Option<f64>,
    limit: Option<Duration>,
}

impl Pace {
    fn new(rate: Option<f64>, seconds: Option<f64>) -> Self {
        Self { start: Instant::now(), rate, limit: seconds.map(Duration::from_secs_f64) }
    }

    /// Frames that are due beyond those `sent`; `None` once the time is up.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "float to integer saturates")]
    fn due(&self, sent: u32) -> Option<usize> {
        let elapsed = self.start.elapsed();
        if self.limit.is_some_and(|limit| elapsed >= limit) {
            return None;
        }
        Some(match self.rate {
            Some(rate) => ((elapsed.as_secs_f64() * rate) as usize).saturating_sub(sent as usize),
            None => usize::MAX,
        })
    }

    /// Lets the core go while nothing is due, for less time than makes a burst overflow a ring.
    fn rest(&self) {
        if self.rate.is_some() {
            std::thread::sleep(Duration::from_micros(50));
        }
    }
}

/// A MAC address as `xx:xx:xx:xx:xx:xx`.
#[derive(Clone, Copy, Debug)]
struct Mac([u8; 6]);

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
