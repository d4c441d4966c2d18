//! The bare AF_XDP forwarder: a bridge of two interfaces that moves frames from ring to ring and nothing else. What
//! carries traffic through AF_XDP on a given machine cannot be cheaper by much, so Weir is held against it.

use anyhow::Result;
use clap::{Args, ValueEnum};
use serde::Serialize;

use crate::arguments;
use crate::packet::Packet;
use crate::station::{Attach, Options, SocketReport, Station};
use crate::thread::{self, Cpu, Stop};

/// Moves frames between two interfaces, unchanged, one thread a queue.
#[derive(Args, Debug)]
pub(crate) struct ForwardArgs {
    /// First interface.
    #[arg(long = "in", value_name = "IF")]
    first: String,
    /// Second interface.
    #[arg(long = "out", value_name = "IF")]
    second: String,
    /// Queues of each interface, from 0 on; one thread each.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    queues: u32,
    /// Core of each thread; unbound where none is given.
    #[arg(long, value_delimiter = ',')]
    cores: Vec<usize>,
    /// How to attach the redirect program.
    #[arg(long, value_enum, default_value_t = Attach::Native)]
    attach: Attach,
    /// What to do about transport checksums.
    #[arg(long, value_enum, default_value_t = Checksums::Complete)]
    checksums: Checksums,
    /// Empty turns before a thread sleeps until a frame arrives.
    #[arg(long, default_value_t = 1000)]
    spins: u32,
    /// Entries of each ring.
    #[arg(long, default_value = "4096", value_parser = arguments::ring)]
    ring: u32,
}

/// Local senders on a veth leave checksums to the device, but a frame that goes through AF_XDP has to have one. Who
/// computes it, the forwarder or the sender, makes no measurable difference to iperf3 on two cores.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Checksums {
    /// Frames pass as they are: for senders with `ethtool -K .. tx off`.
    Keep,
    /// TCP and UDP checksums are computed here.
    Complete,
}

#[derive(Serialize)]
struct ForwardReport {
    command: &'static str,
    seconds: f64,
    threads: Vec<ThreadReport>,
}

#[derive(Serialize)]
struct ThreadReport {
    /// Frames sent on: first to second interface, second to first.
    forwarded: [u64; 2],
    /// Frames that the other side's TX ring had no room for.
    overflowed: u64,
    sockets: Vec<SocketReport>,
    cpu: Cpu,
}

#[derive(Default)]
struct Counts {
    forwarded: [u64; 2],
    overflowed: u64,
}

/// Forwards until it is stopped.
pub(crate) fn run(args: &ForwardArgs, stop: &Stop) -> Result<serde_json::Value> {
    let options = Options { attach: args.attach, ring: args.ring, copy: false };
    let stations = (0..args.queues)
        .map(|queue| Station::open(&[&args.first, &args.second], queue, options))
        .collect::<Result<Vec<_>>>()?;
    let reports = stations.iter().map(Station::report).collect::<Result<Vec<_>>>()?;
    let zero_copy = reports.iter().flatten().filter(|socket| socket.zero_copy).count();
    eprintln!("{zero_copy} of {} sockets are zero-copy", reports.iter().flatten().count());
    crate::say_ready();
    let done = thread::run_all(stations, &args.cores, stop, |mut station| {
        let counts = forward(&mut station, args, stop)?;
        Ok((counts, station))
    })?;
    let seconds = done.iter().map(|thread| thread.elapsed.as_secs_f64()).fold(0.0, f64::max);
    let threads = done
        .iter()
        .map(|thread| {
            let (counts, station) = &thread.value;
            Ok(ThreadReport {
                forwarded: counts.forwarded,
                overflowed: counts.overflowed,
                sockets: station.report()?,
                cpu: thread.cpu,
            })
        })
        .collect::<Result<_>>()?;
    Ok(serde_json::to_value(ForwardReport { command: "forward", seconds, threads })?)
}

fn forward(station: &mut Station, args: &ForwardArgs, stop: &Stop) -> Result<Counts> {
    const SLEEP_MS: u8 = 50;
    let mut counts = Counts::default();
    let mut idle = 0_u32;
    while !stop.is_raised() {
        let mut moved = 0;
        for (forwarded, (from, to)) in counts.forwarded.iter_mut().zip([(0, 1), (1, 0)]) {
            let received = station.receive(from);
            if received > 0 {
                if args.checksums == Checksums::Complete {
                    station.each(complete);
                }
                let sent = station.send(to)?;
                *forwarded += sent as u64;
                counts.overflowed += (received - sent) as u64;
                moved += received;
            }
            station.refill();
        }
        idle = if moved > 0 { 0 } else { idle.saturating_add(1) };
        if idle > args.spins {
            station.wait(SLEEP_MS)?;
        }
    }
    Ok(counts)
}

fn complete(frame: &mut [u8]) {
    // What is neither TCP nor UDP has no checksum that a sender leaves to the device.
    if let Some(packet) = Packet::find(frame) {
        packet.complete(frame);
    }
}
