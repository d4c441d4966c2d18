//! The generator of TCP connections: handshake, a segment of data each way, both FINs; against `sink --answer`, through
//! whatever translates addresses between them. Like the sink it keeps no state of a connection: the numbers that come
//! back say which one it is and how far. The loop is open, and nothing is sent twice: what is lost has failed.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::Args;
use serde::Serialize;

use crate::answer::{DATA, DATA_ACK, FIN_ACK, SYN_ACK, Segment, answer, flag, turn};
use crate::arguments;
use crate::clock;
use crate::flows::first_flow;
use crate::latency::{Latencies, LatencyReport, Schedule};
use crate::packet::{Packet, TCP, u16_at};
use crate::send::{PortArgs, drain};
use crate::station::{Attach, BATCH, SocketReport, Station};
use crate::tag::{Tag, Writer};
use crate::thread::{self, Cpu, Stop};

/// Opens TCP connections, one thread a queue.
#[derive(Args, Debug)]
pub(crate) struct ConnectArgs {
    #[command(flatten)]
    port: PortArgs,
    /// Connections of each thread.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    connections: u32,
    /// Number of the first flow, as for `send`.
    #[arg(long, default_value_t = 0, value_parser = first_flow())]
    first_flow: u64,
    /// Connections a second, all threads together.
    #[arg(long, value_parser = arguments::rate)]
    rate: f64,
    /// Leave them open once the handshake is done: flows for `send --protocol tcp-ack`.
    #[arg(long)]
    open: bool,
    /// Answer as the sink does, too: for connections that come back by the same interface.
    #[arg(long)]
    answer: bool,
}

#[derive(Serialize)]
struct ConnectReport {
    command: &'static str,
    interface: String,
    /// From the time that the first SYN was due to the end.
    seconds: f64,
    /// SYNs sent.
    started: u64,
    /// Handshakes done.
    opened: u64,
    /// Connections that both ends have closed.
    closed: u64,
    /// Answers that fit no connection: wrong numbers, wrong source, RST.
    strange: u64,
    /// From the time that the SYN was due to its answer.
    latency: Option<LatencyReport>,
    threads: Vec<ThreadReport>,
}

#[derive(Serialize)]
struct ThreadReport {
    sockets: Vec<SocketReport>,
    cpu: Cpu,
}

struct Counts {
    started: u32,
    opened: u64,
    closed: u64,
    strange: u64,
    latencies: Latencies,
}

/// Opens all connections and waits for their ends.
pub(crate) fn run(args: &ConnectArgs, stop: &Stop) -> Result<serde_json::Value> {
    let writer = args.port.syn_writer()?;
    let flows = u64::from(args.port.queues) * u64::from(args.connections);
    ensure!(args.first_flow + flows <= writer.flow_limit(), "more flows than source addresses and ports");
    let jobs = args.port.stations(Attach::Native)?;
    crate::say_ready();
    let schedule = Schedule { start_ns: clock::now_ns()?, rate_pps: args.rate / f64::from(args.port.queues) };
    let begun = Instant::now();
    let done = thread::run_all(jobs, &args.port.cores, stop, |(stream, mut station)| {
        let first = args.first_flow + u64::from(stream) * u64::from(args.connections);
        let client = Client { writer: &writer, args, first, stream, schedule };
        let counts = client.run(&mut station, stop)?;
        Ok((counts, station))
    })?;
    let seconds = begun.elapsed().as_secs_f64();
    let mut latencies = Latencies::new()?;
    for thread in &done {
        latencies.add(&thread.value.0.latencies)?;
    }
    let sum = |of: fn(&Counts) -> u64| done.iter().map(|thread| of(&thread.value.0)).sum();
    let threads = done
        .iter()
        .map(|thread| Ok(ThreadReport { sockets: thread.value.1.report()?, cpu: thread.cpu }))
        .collect::<Result<_>>()?;
    Ok(serde_json::to_value(ConnectReport {
        command: "connect",
        interface: args.port.interface.clone(),
        seconds,
        started: sum(|counts| u64::from(counts.started)),
        opened: sum(|counts| counts.opened),
        closed: sum(|counts| counts.closed),
        strange: sum(|counts| counts.strange),
        latency: latencies.report(),
        threads,
    })?)
}

/// What a segment that came back does to its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Opened,
    Answered,
    Closed,
}

/// The clients of one thread.
struct Client<'a> {
    writer: &'a Writer,
    args: &'a ConnectArgs,
    /// Number of its first flow.
    first: u64,
    stream: u16,
    schedule: Schedule,
}

impl Client<'_> {
    fn run(&self, station: &mut Station, stop: &Stop) -> Result<Counts> {
        const PATIENCE: Duration = Duration::from_millis(300);
        let mut counts =
            Counts { started: 0, opened: 0, closed: 0, strange: 0, latencies: Latencies::new()? };
        let mut last = Instant::now();
        loop {
            let mut busy = self.follow(station, &mut counts)?;
            busy |= self.start(station, &mut counts)?;
            station.refill();
            let ended = if self.args.open { counts.opened } else { counts.closed };
            let all_started = counts.started == self.args.connections;
            if stop.is_raised() || all_started && ended >= u64::from(counts.started) {
                break;
            }
            if busy {
                last = Instant::now();
            } else if !all_started {
                std::thread::sleep(Duration::from_micros(50));
            } else if last.elapsed() < PATIENCE {
                station.wait(10)?;
            } else {
                break;
            }
        }
        drain(station)?;
        Ok(counts)
    }

    /// Answers what has come. Returns whether anything had.
    fn follow(&self, station: &mut Station, counts: &mut Counts) -> Result<bool> {
        if station.receive(0) == 0 {
            return Ok(false);
        }
        let now_ns = clock::now_ns()?;
        station.retain(|frame| {
            let Some(packet) = Packet::find(frame).filter(|packet| packet.proto == TCP) else { return false };
            let Some((sequence, step, reply)) = self.step(frame, &packet) else {
                let answered = self.args.answer && answer(frame, &packet).is_some();
                counts.strange += u64::from(!answered);
                return answered;
            };
            match step {
                Step::Opened => {
                    counts.opened += 1;
                    let due = self.schedule.due_ns(u64::from(sequence));
                    counts.latencies.record(now_ns.saturating_sub(due));
                }
                Step::Answered => {}
                Step::Closed => counts.closed += 1,
            }
            turn(frame, &packet).and_then(|()| reply.write(frame, &packet)).is_some()
        });
        station.send(0)?;
        Ok(true)
    }

    /// Sends the SYNs that are due. Returns whether there were any.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "float to integer saturates")]
    fn start(&self, station: &mut Station, counts: &mut Counts) -> Result<bool> {
        let elapsed_s = (clock::now_ns()?.saturating_sub(self.schedule.start_ns)) as f64 / 1e9;
        let due = ((elapsed_s * self.schedule.rate_pps) as u32).min(self.args.connections);
        let due = usize::try_from(due.saturating_sub(counts.started))?.min(BATCH).min(station.room(0));
        if station.take(due, || self.writer.size()) == 0 {
            return Ok(false);
        }
        let mut sequence = counts.started;
        station.each(|frame| {
            self.writer.prepare(frame);
            let flow = self.first + u64::from(sequence);
            self.writer.write(frame, flow, Tag { stream: self.stream, sequence, answer: true });
            sequence += 1;
        });
        counts.started += u32::try_from(station.send(0)?)?;
        Ok(true)
    }

    /// Which connection a segment belongs to, what it says, and what is said next. `None` where it fits none.
    fn step(&self, frame: &[u8], packet: &Packet) -> Option<(u32, Step, Segment)> {
        let segment = Segment::read(frame, packet)?;
        let (from, to) =
            if packet.v6 { (packet.l3 + 20, packet.l3 + 36) } else { (packet.l3 + 12, packet.l3 + 16) };
        let addr = |at: usize| frame.get(at..)?.first_chunk().map(|bytes| u32::from_be_bytes(*bytes));
        let flow = self.writer.flow_from(addr(to)?, u16_at(frame, packet.l4 + 2)?)?;
        let right_source = addr(from)? == self.writer.destination(flow)
            && u16_at(frame, packet.l4)? == self.args.port.dport
            && (packet.is_intact(frame) || packet.is_unfinished(frame));
        let sequence = u32::try_from(flow.checked_sub(self.first)?).ok()?;
        (right_source && sequence < self.args.connections).then_some(())?;
        // What the own end and the far end have sent beyond their first number.
        let (own, far) = (segment.ack.wrapping_sub(sequence), segment.seq.wrapping_sub(!sequence));
        let data = u32::from(DATA);
        let (step, reply) = match (segment.flags, own, far) {
            (SYN_ACK, 1, 0) if self.args.open => (Step::Opened, segment.reply(flag::ACK, 0)),
            (SYN_ACK, 1, 0) => (Step::Opened, segment.reply(DATA_ACK, DATA)),
            (DATA_ACK, sent, 1) if sent == 1 + data => (Step::Answered, segment.reply(FIN_ACK, 0)),
            (FIN_ACK, sent, got) if sent == 2 + data && got == 1 + data => {
                (Step::Closed, segment.reply(flag::ACK, 0))
            }
            _ => return None,
        };
        Some((sequence, step, reply))
    }
}
