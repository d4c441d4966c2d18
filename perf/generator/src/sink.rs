//! The sink: receives generated frames and says how many are missing, out of order or damaged, which flows lack some,
//! and how long they were under way. It can answer for the far end.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Args;
use serde::Serialize;

use crate::answer::answer;
use crate::arguments;
use crate::clock;
use crate::flows::FlowArgs;
use crate::latency::{Latencies, LatencyReport, Schedule, Tenths, TenthsReport};
use crate::loss::{self, FlowLoss, Seen};
use crate::packet::Packet;
use crate::progress::Progress;
use crate::station::{Attach, Options, SocketReport, Station};
use crate::tag::Tag;
use crate::thread::{self, Cpu, Stop};

/// Receives and counts generated frames, one thread a queue.
#[derive(Args, Debug)]
pub(crate) struct SinkArgs {
    /// Interface to receive from.
    #[arg(long, value_name = "IF")]
    interface: String,
    /// Queues, from 0 on; one thread each.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    queues: u32,
    /// Core of each thread; unbound where none is given.
    #[arg(long, value_delimiter = ',')]
    cores: Vec<usize>,
    /// How to attach the redirect program.
    #[arg(long, value_enum, default_value_t = Attach::Native)]
    attach: Attach,
    /// Seconds at most; until it is stopped where none are given.
    #[arg(long, value_parser = arguments::seconds)]
    seconds: Option<Duration>,
    /// Answer what asks for it: datagrams of `send --answers`, and connections.
    #[arg(long)]
    answer: bool,
    /// The generator's flows are those of its options of the same names: tell how many lack frames.
    #[arg(long)]
    by_flow: bool,
    #[command(flatten)]
    flows: FlowArgs,
    /// Threads of the generator. Frames of others count as other traffic.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=i64::from(Tag::STREAMS)))]
    streams: u16,
    /// When the generator's first frame was due, in nanoseconds of the monotonic clock: tell how long frames were under
    /// way from the time that they were due.
    #[arg(long, value_name = "NS", requires = "rate")]
    start_ns: Option<u64>,
    /// The generator's rate.
    #[arg(long, value_parser = arguments::rate)]
    rate: Option<f64>,
    /// A file by which the generator learns how many frames have come, for `send --window`.
    #[arg(long, value_name = "FILE")]
    progress: Option<PathBuf>,
    /// Run before all programs that are not realtime ones (SCHED_FIFO), so that frames are seen when they come.
    #[arg(long)]
    realtime: bool,
    /// Empty turns before a thread sleeps until a frame arrives.
    #[arg(long, default_value_t = 1000)]
    spins: u32,
    /// Entries of each ring.
    #[arg(long, default_value = "4096", value_parser = arguments::ring)]
    ring: u32,
    /// Copy mode, also where the driver has zero-copy.
    #[arg(long)]
    copy: bool,
}

#[derive(Serialize)]
struct SinkReport {
    command: &'static str,
    interface: String,
    /// From the first generated frame to the last.
    seconds: f64,
    received: u64,
    rate_pps: f64,
    /// Missing between the first and the last frame of each stream. Frames lost behind the last one show only beside
    /// what the generator says it sent.
    missing: u64,
    late: u64,
    damaged: u64,
    /// The beginning of the first of the damaged ones, in hexadecimal digits.
    first_damaged: Option<String>,
    /// Frames that came before.
    doubled: u64,
    /// Other traffic: frames without a mark, of none of the streams, or numbered 2^24 or more ahead of their stream's.
    other: u64,
    answered: u64,
    flow_loss: Option<FlowLoss>,
    latency: Option<LatencyReport>,
    latency_tenths: Option<TenthsReport>,
    streams: BTreeMap<u16, Stream>,
    threads: Vec<ThreadReport>,
}

#[derive(Serialize)]
struct ThreadReport {
    received: u64,
    sockets: Vec<SocketReport>,
    cpu: Cpu,
}

/// Frames of one sending thread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
struct Stream {
    received: u64,
    bytes: u64,
    /// One more than the highest sequence number seen.
    next: u64,
    /// Frames that came behind one with a higher sequence number.
    late: u64,
    /// Frames with a wrong IPv4, TCP or UDP checksum, but for those that are left to the interface.
    damaged: u64,
    doubled: u64,
}

impl Stream {
    fn count(&mut self, sequence: u32, bytes: usize, intact: bool, doubled: bool) {
        let sequence = u64::from(sequence);
        self.received += 1;
        self.bytes += bytes as u64;
        self.late += u64::from(sequence < self.next);
        self.next = self.next.max(sequence + 1);
        self.damaged += u64::from(!intact);
        self.doubled += u64::from(doubled);
    }

    /// One stream as two queues saw it.
    fn merge(self, other: Self) -> Self {
        Self {
            received: self.received + other.received,
            bytes: self.bytes + other.bytes,
            next: self.next.max(other.next),
            late: self.late + other.late,
            damaged: self.damaged + other.damaged,
            doubled: self.doubled + other.doubled,
        }
    }
}

/// What a thread has seen.
struct Counts {
    streams: BTreeMap<u16, (Stream, Seen)>,
    other: u64,
    answered: u64,
    first_damaged: Option<String>,
    latencies: Latencies,
    tenths: Tenths,
    span: Option<(Instant, Instant)>,
}

impl Counts {
    fn new() -> Result<Self> {
        Ok(Self {
            streams: BTreeMap::new(),
            other: 0,
            answered: 0,
            first_damaged: None,
            latencies: Latencies::new()?,
            tenths: Tenths::new()?,
            span: None,
        })
    }

    /// Whether a mark is one of so many `streams`, and not too far ahead: what a frame costs has a limit, in memory for the numbers
    /// before its own and in time to look through them. So many frames are more than a second of 14.88 million a second.
    fn takes(&self, tag: Tag, streams: u16) -> bool {
        const AHEAD: u64 = 1 << 24;
        let next = self.streams.get(&tag.stream).map_or(0, |(stream, _)| stream.next);
        tag.stream < streams && u64::from(tag.sequence) < next + AHEAD
    }
}

/// Receives until the time is up or until it is stopped.
pub(crate) fn run(args: &SinkArgs, stop: &Stop) -> Result<serde_json::Value> {
    let options = Options { attach: args.attach, ring: args.ring, copy: args.copy };
    let stations = (0..args.queues)
        .map(|queue| Station::open(&[&args.interface], queue, options))
        .collect::<Result<Vec<_>>>()?;
    let schedule = args
        .start_ns
        .zip(args.rate)
        .map(|(start_ns, rate)| Schedule { start_ns, rate_pps: rate / f64::from(args.streams) });
    let progress = args.progress.as_deref().map(Progress::create).transpose()?;
    crate::say_ready();
    let done = thread::run_all(stations, &args.cores, stop, |mut station| {
        if args.realtime {
            thread::run_first()?;
        }
        let counts = receive(&mut station, args, schedule, progress.as_ref(), stop)?;
        Ok((counts, station))
    })?;
    let mut all: BTreeMap<u16, (Stream, Seen)> = BTreeMap::new();
    let mut latencies = Latencies::new()?;
    let mut threads = Vec::new();
    for thread in &done {
        let (counts, station) = &thread.value;
        for (id, (stream, seen)) in &counts.streams {
            let whole = all.entry(*id).or_default();
            whole.0 = whole.0.merge(*stream);
            whole.1.merge(seen);
        }
        latencies.add(&counts.latencies)?;
        let received = counts.streams.values().map(|(stream, _)| stream.received).sum();
        threads.push(ThreadReport { received, sockets: station.report()?, cpu: thread.cpu });
    }
    let streams: BTreeMap<_, _> = all.iter().map(|(id, (stream, _))| (*id, *stream)).collect();
    let total = streams.values().fold(Stream::default(), |sum, stream| sum.merge(*stream));
    let seconds = span(done.iter().filter_map(|thread| thread.value.0.span)).as_secs_f64();
    let seen = all.iter().map(|(id, (stream, seen))| (*id, seen, stream.next));
    Ok(serde_json::to_value(SinkReport {
        command: "sink",
        interface: args.interface.clone(),
        seconds,
        received: total.received,
        rate_pps: if seconds > 0.0 { total.received as f64 / seconds } else { 0.0 },
        missing: streams
            .values()
            .map(|stream| (stream.next + stream.doubled).saturating_sub(stream.received))
            .sum(),
        late: total.late,
        damaged: total.damaged,
        first_damaged: done.iter().find_map(|thread| thread.value.0.first_damaged.clone()),
        doubled: total.doubled,
        other: done.iter().map(|thread| thread.value.0.other).sum(),
        answered: done.iter().map(|thread| thread.value.0.answered).sum(),
        flow_loss: args.by_flow.then(|| loss::by_flow(&args.flows, args.streams, seen)),
        latency: latencies.report(),
        latency_tenths: Tenths::report(done.iter().map(|thread| &thread.value.0.tenths)),
        streams,
        threads,
    })?)
}

fn receive(
    station: &mut Station,
    args: &SinkArgs,
    schedule: Option<Schedule>,
    progress: Option<&Progress>,
    stop: &Stop,
) -> Result<Counts> {
    const SLEEP_MS: u8 = 20;
    let start = Instant::now();
    let mut counts = Counts::new()?;
    let mut idle = 0_u32;
    while !stop.is_raised() && args.seconds.is_none_or(|limit| start.elapsed() < limit) {
        let received = station.receive(0);
        if received > 0 {
            let timed =
                schedule.map(|schedule| Ok::<_, anyhow::Error>((schedule, clock::now_ns()?))).transpose()?;
            let mut marked = false;
            station.retain(|frame| {
                let packet = Packet::find(frame);
                marked |= count(&mut counts, args.streams, frame, packet.as_ref(), timed);
                args.answer && packet.is_some_and(|packet| answer(frame, &packet).is_some())
            });
            if args.answer {
                counts.answered += station.send(0)? as u64;
            }
            station.refill();
            if let Some(progress) = progress {
                progress.add(received as u64);
            }
            if marked {
                let now = Instant::now();
                counts.span = Some((counts.span.map_or(now, |(first, _)| first), now));
            }
            idle = 0;
        } else {
            idle = idle.saturating_add(1);
            if idle > args.spins {
                station.wait(SLEEP_MS)?;
            }
        }
    }
    Ok(counts)
}

/// Counts a frame. Returns whether it was a generated one, of one of so many `streams`.
fn count(
    counts: &mut Counts,
    streams: u16,
    frame: &[u8],
    packet: Option<&Packet>,
    timed: Option<(Schedule, u64)>,
) -> bool {
    let tagged = packet.and_then(|packet| Some((packet, Tag::read(frame, packet)?)));
    let Some((packet, tag)) = tagged.filter(|(_, tag)| counts.takes(*tag, streams)) else {
        counts.other += 1;
        return false;
    };
    let (stream, seen) = counts.streams.entry(tag.stream).or_default();
    let doubled = seen.note(tag.sequence);
    let intact = packet.is_intact(frame) || packet.is_unfinished(frame);
    stream.count(tag.sequence, frame.len(), intact, doubled);
    const HEADERS: usize = 74;
    if !intact && counts.first_damaged.is_none() {
        counts.first_damaged = Some(frame.iter().take(HEADERS).map(|byte| format!("{byte:02x}")).collect());
    }
    if let Some((schedule, now_ns)) = timed {
        let ns = now_ns.saturating_sub(schedule.due_ns(u64::from(tag.sequence)));
        counts.latencies.record(ns);
        counts.tenths.record(now_ns, ns);
    }
    true
}

/// From the earliest first to the latest last.
fn span(spans: impl Iterator<Item = (Instant, Instant)>) -> Duration {
    let whole = spans.reduce(|(a, b), (first, last)| (a.min(first), b.max(last)));
    whole.map_or(Duration::ZERO, |(first, last)| last - first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_and_late_frames_are_told_apart() {
        let mut stream = Stream::default();
        for sequence in [0, 1, 4, 3] {
            stream.count(sequence, 60, sequence != 4, sequence == 3);
        }
        let want = Stream { received: 4, bytes: 240, next: 5, late: 1, damaged: 1, doubled: 1 };
        assert_eq!(stream, want);
        let other = Stream { received: 1, bytes: 60, next: 3, ..Stream::default() };
        assert_eq!(stream.merge(other), Stream { received: 5, bytes: 300, ..want });
    }

    #[test]
    fn frames_of_other_streams_and_far_ahead_are_other_traffic() {
        const STREAMS: u16 = 2;
        let writer = crate::tag::tests::udp_writer();
        let mut counts = Counts::new().unwrap();
        for (name, stream, sequence, generated) in [
            ("the first", 0, 0, true),
            ("of the last stream", 1, 0, true),
            ("of a stream beyond", STREAMS, 0, false),
            ("of the last one that a mark can name", Tag::STREAMS - 1, 0, false),
            ("the last one that there can be", 0, u32::MAX, false),
            ("too far ahead", 0, (1 << 24) + 1, false),
            ("ahead", 0, 1 << 24, true),
            ("ahead of that", 0, 1 << 25, true),
            ("late", 0, 1, true),
        ] {
            let mut frame = vec![0; writer.size()];
            writer.prepare(&mut frame);
            writer.write(&mut frame, 0, Tag { stream, sequence, answer: false }).unwrap();
            let packet = Packet::find(&frame).unwrap();
            assert_eq!(count(&mut counts, STREAMS, &frame, Some(&packet), None), generated, "{name}");
        }
        assert_eq!(counts.other, 4);
        let received: Vec<_> =
            counts.streams.iter().map(|(id, (stream, _))| (*id, stream.received)).collect();
        assert_eq!(received, [(0, 4), (1, 1)]);
    }
}
