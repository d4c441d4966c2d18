//! The sink: receives generated frames and says how many are missing, out of order, doubled or damaged.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Args;
use serde::Serialize;

use crate::packet::Packet;
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
    #[arg(long, default_value_t = 1)]
    queues: u32,
    /// Core of each thread; unbound where none is given.
    #[arg(long, value_delimiter = ',')]
    cores: Vec<usize>,
    /// How to attach the redirect program.
    #[arg(long, value_enum, default_value_t = Attach::Native)]
    attach: Attach,
    /// Seconds at most; until it is stopped where none are given.
    #[arg(long)]
    seconds: Option<f64>,
    /// Entries of each ring.
    #[arg(long, default_value_t = 4096)]
    ring: u32,
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
    /// Frames without a mark: other traffic.
    other: u64,
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
    /// Frames with a wrong IPv4, TCP or UDP checksum.
    damaged: u64,
}

impl Stream {
    fn count(&mut self, sequence: u32, bytes: usize, intact: bool) {
        let sequence = u64::from(sequence);
        self.received += 1;
        self.bytes += bytes as u64;
        self.late += u64::from(sequence < self.next);
        self.next = self.next.max(sequence + 1);
        self.damaged += u64::from(!intact);
    }

    /// One stream as two queues saw it.
    fn merge(self, other: Self) -> Self {
        Self {
            received: self.received + other.received,
            bytes: self.bytes + other.bytes,
            next: self.next.max(other.next),
            late: self.late + other.late,
            damaged: self.damaged + other.damaged,
        }
    }
}

#[derive(Default)]
struct Counts {
    streams: BTreeMap<u16, Stream>,
    other: u64,
    span: Option<(Instant, Instant)>,
}

/// Receives until the time is up or until it is stopped.
pub(crate) fn run(args: &SinkArgs, stop: &Stop) -> Result<serde_json::Value> {
    let options = Options { attach: args.attach, ring: args.ring };
    let stations = (0..args.queues)
        .map(|queue| Station::open(&[&args.interface], queue, options))
        .collect::<Result<Vec<_>>>()?;
    crate::say_ready();
    let limit = args.seconds.map(Duration::from_secs_f64);
    let done = thread::run_all(stations, &args.cores, stop, |mut station| {
        let counts = receive(&mut station, limit, stop)?;
        Ok((counts, station))
    })?;
    let mut streams: BTreeMap<u16, Stream> = BTreeMap::new();
    let mut threads = Vec::new();
    for thread in &done {
        let (counts, station) = &thread.value;
        for (id, stream) in &counts.streams {
            let whole = streams.entry(*id).or_default();
            *whole = whole.merge(*stream);
        }
        let received = counts.streams.values().map(|stream| stream.received).sum();
        threads.push(ThreadReport { received, sockets: station.report()?, cpu: thread.cpu });
    }
    let total = streams.values().fold(Stream::default(), |sum, stream| sum.merge(*stream));
    let seconds = span(done.iter().filter_map(|thread| thread.value.0.span)).as_secs_f64();
    Ok(serde_json::to_value(SinkReport {
        command: "sink",
        interface: args.interface.clone(),
        seconds,
        received: total.received,
        rate_pps: if seconds > 0.0 { total.received as f64 / seconds } else { 0.0 },
        missing: streams.values().map(|stream| stream.next.saturating_sub(stream.received)).sum(),
        late: total.late,
        damaged: total.damaged,
        other: done.iter().map(|thread| thread.value.0.other).sum(),
        streams,
        threads,
    })?)
}

fn receive(station: &mut Station, limit: Option<Duration>, stop: &Stop) -> Result<Counts> {
    const SPINS: u32 = 1000;
    const SLEEP_MS: u8 = 20;
    let start = Instant::now();
    let mut counts = Counts::default();
    let mut idle = 0;
    while !stop.is_raised() && limit.is_none_or(|limit| start.elapsed() < limit) {
        if station.receive(0) > 0 {
            let mut marked = false;
            station.each(|frame| marked |= count(&mut counts, frame));
            station.discard();
            station.refill();
            if marked {
                let now = Instant::now();
                counts.span = Some((counts.span.map_or(now, |(first, _)| first), now));
            }
            idle = 0;
        } else {
            idle += 1;
            if idle > SPINS {
                station.wait(SLEEP_MS)?;
            }
        }
    }
    Ok(counts)
}

/// Counts a frame. Returns whether it was a generated one.
fn count(counts: &mut Counts, frame: &[u8]) -> bool {
    let found = Packet::find(frame).and_then(|packet| Some((packet, Tag::read(frame, &packet)?)));
    let Some((packet, tag)) = found else {
        counts.other += 1;
        return false;
    };
    counts.streams.entry(tag.stream).or_default().count(tag.sequence, frame.len(), packet.is_intact(frame));
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
            stream.count(sequence, 60, sequence != 4);
        }
        assert_eq!(stream, Stream { received: 4, bytes: 240, next: 5, late: 1, damaged: 1 });
        let other = Stream { received: 1, bytes: 60, next: 3, late: 0, damaged: 0 };
        assert_eq!(stream.merge(other), Stream { received: 5, bytes: 300, next: 5, late: 1, damaged: 1 });
    }
}
