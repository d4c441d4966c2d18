//! A flood of SYNs from addresses that never answer, and what it does to clients.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use etherparse::PacketBuilder;
use nix::sys::signal::Signal;

use crate::clients::{self, Wrk};
use crate::http::{Load, load_for};
use crate::namespace::Namespace;
use crate::raw::Raw;
use crate::topology::{ETH, Family, Topology, WAN};
use crate::weir::Weir;

/// Different SYNs, sent over and over: more than the half-open flows that a test's table holds.
const FRAMES: u32 = 1 << 18;
/// SYNs a second: the whole table's worth every few seconds, but no more than the rings in front of Weir take on two busy
/// cores. What is lost there says nothing about Weir.
const RATE_PPS: u32 = 50_000;
/// The variable of the environment that says another rate; 0 for as many as can be sent.
const RATE_VARIABLE: &str = "WEIR_FLOOD_PPS";
/// SYNs sent at once.
const BURST: u32 = 64;
/// The first of the senders' addresses; behind the client as the gateway's routes have it.
const SENDERS: Ipv4Addr = Ipv4Addr::new(10, 66, 0, 0);

/// How long it may take until all kept connections are open and have had an answer.
const OPENING: Duration = Duration::from_secs(60);
/// How long a program may take that has nothing to wait for: beside 200 busy connections `ss` takes an emulated guest over 10 s.
const LIMIT: Duration = Duration::from_secs(60);
/// How long after a flood a kept connection may carry nothing: longer than TCP waits before it sends once more what was
/// lost all through a flood of some seconds.
const RECOVERY: Duration = Duration::from_secs(30);
/// How long connections are kept at most: until all is seen of them, on any machine.
const LONGEST: Duration = Duration::from_secs(600);

/// The SYNs of a flood, ready to be sent: making them takes a slow machine some ten seconds.
#[derive(Debug)]
struct Syns {
    frames: Vec<Vec<u8>>,
    /// How long to wait between two bursts.
    pause: Duration,
}

impl Syns {
    fn make(topology: &Topology, target: SocketAddr) -> Result<Self> {
        let SocketAddr::V4(target) = target else { bail!("{target} is no IPv4 address") };
        topology.gateway.ip(&format!("route replace {SENDERS}/16 via {}\n", Family::V4.client()))?;
        let [client, gateway] = [topology.client.mac(ETH)?, topology.gateway.mac(WAN)?];
        let frames = (0..FRAMES).map(|number| {
            // Addresses from a /16, several ports each.
            let sender = Ipv4Addr::from_bits(SENDERS.to_bits() | number & 0xffff);
            let port = u16::try_from(1024 + (number >> 16) * 977 + number % 31).unwrap_or(1024);
            let mut frame = Vec::new();
            PacketBuilder::ethernet2(client, gateway)
                .ipv4(sender.octets(), target.ip().octets(), 64)
                .tcp(port, target.port(), number.wrapping_mul(0x9e37_79b1), 64_240)
                .syn()
                .write(&mut frame, &[])
                .map(|()| frame)
        });
        let frames = frames.collect::<Result<Vec<_>, _>>()?;
        let rate = match std::env::var(RATE_VARIABLE) {
            Ok(rate) => rate.parse().with_context(|| format!("{RATE_VARIABLE}={rate}"))?,
            Err(_) => RATE_PPS,
        };
        Ok(Self { frames, pause: (Duration::from_secs(1) * BURST).checked_div(rate).unwrap_or_default() })
    }

    fn send(self, topology: &Topology) -> Result<Flood> {
        let raw = Raw::open(&topology.client, ETH)?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut sent = 0;
            let (mut frames, mut next) = (self.frames.iter().cycle(), Instant::now());
            while !stopped.load(Ordering::Relaxed) {
                for frame in frames.by_ref().take(BURST as usize) {
                    // A queue that is full takes the next one.
                    sent += u64::from(raw.send(frame).is_ok());
                }
                // Who is late does not hurry.
                next = (next + self.pause).max(Instant::now());
                std::thread::sleep(next.saturating_duration_since(Instant::now()));
            }
            sent
        });
        Ok(Flood { stop, thread: Some(thread) })
    }
}

/// A flood, running until this goes out of scope.
#[derive(Debug)]
pub struct Flood {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<u64>>,
}

impl Flood {
    /// Floods the IPv4 service at `target` from the client's namespace, by 50,000 SYNs a second or as `WEIR_FLOOD_PPS` says.
    ///
    /// # Errors
    /// When the gateway's route to the senders cannot be set, there is no packet socket to be had, or the variable is no
    /// number.
    pub fn start(topology: &Topology, target: SocketAddr) -> Result<Self> {
        Syns::make(topology, target)?.send(topology)
    }

    /// Ends it. Returns how many SYNs left.
    pub fn stop(mut self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().and_then(|thread| thread.join().ok()).unwrap_or_default()
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // What it counted is not asked for.
            let _ = thread.join();
        }
    }
}

/// What clients met during a flood.
#[derive(Debug)]
pub struct Outcome {
    /// SYNs of the flood a second.
    pub rate_pps: f64,
    /// Connections that were open before, and used all the time.
    pub kept: Wrk,
    /// Those of them that are gone, or carried nothing any more when the flood was over; by the client's port.
    pub lost: BTreeSet<u16>,
    /// Connections opened meanwhile, one request each.
    pub new: Load,
    /// By how much Weir's resident memory grew, bytes.
    pub grown: i64,
}

/// Has `kept` connections to `server` carry requests, floods it for `duration` from when they all have had answers, and
/// opens connections one after the other meanwhile. Kept connections get all the time that TCP takes to send again what
/// was lost on the way: one that is lost for good is what counts.
///
/// # Errors
/// When a part cannot be run. What clients meet is in the outcome.
pub fn under_flood(
    topology: &Topology,
    weir: &Weir,
    server: SocketAddr,
    kept: u32,
    duration: Duration,
) -> Result<Outcome> {
    let syns = Syns::make(topology, server)?;
    let log = topology.scratch().join("wrk-under-flood.log");
    let mut wrk = clients::wrk_with(&topology.client, server, kept, LONGEST, log)?;
    let mut before = BTreeMap::new();
    wrk.wait_until(OPENING, || {
        before = received(&topology.client, server.port())?;
        Ok(before.values().filter(|bytes| **bytes > 0).count() >= kept as usize)
    })?;
    let memory = resident(weir.pid())?;
    let started = Instant::now();
    let flood = syns.send(topology)?;
    let new = load_for(&topology.client, server, duration, 2)?;
    let rate_pps = flood.stop() as f64 / started.elapsed().as_secs_f64();
    let grown = resident(weir.pid())? - memory;
    let lost = lost(&topology.client, server.port(), before.into_keys().collect())?;
    wrk.signal(Signal::SIGINT)?;
    let status = wrk.wait(RECOVERY)?.context("wrk did not end")?;
    anyhow::ensure!(status.success(), "wrk: {}", wrk.log());
    Ok(Outcome { rate_pps, kept: clients::wrk_result(&wrk.log())?, lost, new, grown })
}

/// Of a client's connections to `port`, those that are not there any more, or get nothing for [`RECOVERY`].
fn lost(client: &Namespace, port: u16, mut waited_for: BTreeSet<u16>) -> Result<BTreeSet<u16>> {
    let (begin, started) = (received(client, port)?, Instant::now());
    let mut lost = BTreeSet::new();
    while !waited_for.is_empty() && started.elapsed() < RECOVERY {
        let now = received(client, port)?;
        lost.extend(waited_for.extract_if(.., |own| !now.contains_key(own)));
        waited_for.retain(|own| now.get(own) == begin.get(own));
        std::thread::sleep(Duration::from_millis(100));
    }
    lost.extend(waited_for);
    Ok(lost)
}

/// The established TCP connections to `port`, by the client's own port: bytes that came by them.
fn received(client: &Namespace, port: u16) -> Result<BTreeMap<u16, u64>> {
    let mut command = client.command("ss");
    command.args(["-H", "-O", "-t", "-n", "-i", "state", "established", &format!("dport = :{port}")]);
    let said = crate::run(&mut command, LIMIT)?;
    anyhow::ensure!(said.status.success(), "ss: {}", said.err.trim());
    let connection = |line: &str| {
        let (_, own) = line.split_whitespace().nth(2)?.rsplit_once(':')?;
        let bytes = line.split_whitespace().find_map(|word| word.strip_prefix("bytes_received:"));
        Some((own.parse().ok()?, bytes.map_or(Some(0), |bytes| bytes.parse().ok())?))
    };
    said.out.lines().map(|line| connection(line).with_context(|| format!("ss printed {line:?}"))).collect()
}

/// Resident bytes of a process.
fn resident(pid: u32) -> Result<i64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<i64>()? * 1024)
}
