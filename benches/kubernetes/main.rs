//! From the API server to workers: how long it takes to read a cluster, and a change to be seen.
//!
//! `cargo bench --bench kubernetes`. The API server's double is a process of its own, over TLS on the loopback interface.
//! A worker is a thread that looks which tables are in force; the XDP program is left out. Two times are told of each
//! change: until control is asked for it, and until the worker sees it. Processor times are those of the source's
//! thread and of control's, which is the main one.

#![allow(
    clippy::cast_possible_truncation,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    missing_docs,
    reason = "a bench stops by panicking when something is not as it has to be"
)]

mod double;
#[path = "../shared/machine.rs"]
mod machine;
#[path = "../shared/numbers.rs"]
mod numbers;
#[path = "../shared/resident.rs"]
mod resident;
mod results;
#[path = "../shared/targets.rs"]
mod targets;

use std::collections::HashMap;
use std::net::IpAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use control::admin::protocol::Count;
use control::config::kube_proxy::{Flags, KubeProxy, settings};
use control::config::{Section, parse};
use control::http::health;
use control::metrics::kubernetes::Kubernetes;
use control::reconcile::{Gate, Reconciler};
use control::source::kubernetes::client::Server;
use control::source::kubernetes::notice::Outbox;
use control::source::kubernetes::publish::{Ears, Outcome, Proposal, Surroundings};
use control::source::kubernetes::status::Status;
use control::source::kubernetes::store::Configured;
use control::source::kubernetes::thread::{Parts, Thread};
use dataplane::ids::WorkerId;
use dataplane::snapshot::Net;
use dataplane::state::State;
use dataplane::stats::WorkerStats;
use dataplane::worker::monotonic_ns;
use serde::{Deserialize, Serialize};
use xdp_prog::{Delta, SyncError};

use double::Double;
use numbers::{Percentiles, mib, ms};
use resident::resident;
use results::Report;

/// Name of the own Node.
const NODE: &str = "node-0";
/// How long nothing happens.
const IDLE: Duration = Duration::from_secs(5);

#[derive(Debug, Parser)]
struct Args {
    /// Services.
    #[arg(long, default_value_t = 10_000)]
    services: u32,
    /// Endpoints of each.
    #[arg(long, default_value_t = 10)]
    endpoints: u32,
    /// Changes a second.
    #[arg(long, default_value_t = 100)]
    rate: u32,
    /// For so many seconds.
    #[arg(long, default_value_t = 10)]
    seconds: u32,
    /// The server has no watches that begin with all: lists in pages.
    #[arg(long)]
    pages: bool,
    /// Leave the stored results as they are.
    #[arg(long)]
    no_store: bool,
    /// Fail where a target is missed.
    #[arg(long)]
    check: bool,
    /// Be the API server.
    #[arg(long, hide = true)]
    double: bool,
    /// Cargo says so.
    #[arg(long, hide = true)]
    bench: bool,
}

/// Processor time of the source's thread and of control's, in what unit is said where it stands.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
struct Cpu {
    source: f64,
    control: f64,
}

impl Cpu {
    /// Milliseconds so far.
    fn now() -> Result<Self> {
        let mut source = 0.0;
        for task in std::fs::read_dir("/proc/self/task")? {
            let path = task?.path();
            // A thread may end meanwhile.
            if std::fs::read_to_string(path.join("comm")).is_ok_and(|name| name.trim() == "kubernetes") {
                source += milliseconds(&path.join("schedstat"))?;
            }
        }
        Ok(Self { source, control: milliseconds("/proc/self/schedstat".as_ref())? })
    }

    fn since(self, before: Self) -> Self {
        Self { source: self.source - before.source, control: self.control - before.control }
    }

    fn percent_of(self, wall: Duration) -> Self {
        let percent = |ms: f64| ms / wall.as_secs_f64() / 10.0;
        Self { source: percent(self.source), control: percent(self.control) }
    }
}

/// What a thread has had of the processor.
fn milliseconds(schedstat: &std::path::Path) -> Result<f64> {
    let text = std::fs::read_to_string(schedstat)?;
    let running: f64 = text.split(' ').next().context("an empty schedstat")?.parse()?;
    Ok(running / 1e6)
}

/// What would be the XDP program.
struct Open;

impl Gate for Open {
    fn begin(&mut self, _: &Delta) -> Result<(), SyncError> {
        Ok(())
    }

    fn finish(&mut self) -> Result<(), SyncError> {
        Ok(())
    }

    fn counts(&self) -> Vec<Count> {
        Vec::new()
    }

    fn mode(&self, _: u8) -> String {
        String::new()
    }
}

fn main() -> Result<ExitCode> {
    let args = Args::parse();
    if args.double {
        double::serve(&args)?;
        return Ok(ExitCode::SUCCESS);
    }
    let changes = args.rate * args.seconds;
    ensure!(changes <= args.services, "{changes} changes of {} Services: each is to have one", args.services);
    let mut report = Report::new(&args)?;
    let last = report.newest()?;
    measure(&args, &mut report)?;
    report.print(last.as_ref());
    let met = judge(&report);
    if !args.no_store {
        println!("\nstored in {}", report.store()?.display());
    }
    Ok(if met || !args.check { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Prints the targets, and whether each is met.
fn judge(report: &Report) -> bool {
    let is_usual = (report.services, report.endpoints) == (10_000, 10);
    let sync = is_usual.then_some(("first sync, ms", Some(report.seen_ms), 3000.0));
    let change = ("a change, ms until workers have it, p99", Some(report.change_seen_ms.p99), 60.0);
    targets::met(sync.into_iter().chain([change]))
}

fn measure(args: &Args, report: &mut Report) -> Result<()> {
    let mut double = Double::start(args)?;
    let directory = tempfile::tempdir()?;
    let kubeconfig = directory.path().join("kubeconfig");
    std::fs::write(&kubeconfig, &double.kubeconfig)?;
    let before = resident()?;

    let text = "interfaces: [{name: eth0}]\nsnat_pools: [{name: pool, addresses: [192.168.0.200]}]\n";
    let mut config = parse("bench.yaml", text).unwrap_or_else(|faults| panic!("{faults}"));
    let proxy = Arc::new(KubeProxy::without_file(&Flags::default())?);
    config.fill_in(&proxy, 2);
    let section = Section { snat_pool: Some("pool".into()), ..Section::default() };
    let settings = settings(&proxy, &section, NODE).unwrap();
    let limits = config.settings.limits;
    let stats = vec![Arc::new(WorkerStats::new(limits.services, limits.backends))];
    let state = Arc::new(State::new(limits.services, limits.backends));
    let reconciler = Reconciler::new(config.desired.clone(), Net::default(), state, stats)?;
    let worker = Worker::start(&reconciler);

    let counted = Kubernetes::default();
    let (outbox, notices) = Outbox::new(counted.clone());
    let health = Arc::new(health::State::new(Duration::from_secs(60)));
    let ears = Ears { health, counted: counted.clone(), checks: Arc::default(), outbox };
    let surroundings =
        Surroundings { addresses: Vec::new(), configured: Configured::of(&config.desired, &settings) };
    let server = Server { kubeconfig: Some(kubeconfig), ..Server::default() };
    let status = Arc::new(Status::new(counted));
    let (begun, cpu) = (Instant::now(), Cpu::now()?);
    let mut thread = Thread::start(Parts { server, settings, status, ears, notices }, surroundings)?;
    let mut control = Control { proposals: thread.take_proposals(), reconciler, worker };

    let (asked, seen, put) = control.adopt(|_| {});
    assert_eq!(put, args.services as usize, "all Services come at once");
    report.sync_cpu_ms = Cpu::now()?.since(cpu);
    (report.asked_ms, report.seen_ms) = (ms(asked - begun), ms(seen - begun));
    report.resident_mib = mib(resident()?.saturating_sub(before));
    control.follow(&mut double, args, report)?;
    report.resident_after_mib = mib(resident()?.saturating_sub(before));
    let (begun, cpu) = (Instant::now(), Cpu::now()?);
    while begun.elapsed() < IDLE {
        std::thread::sleep(Duration::from_millis(25));
        control.reconciler.estimate(begun.elapsed().as_millis() as u64);
        control.reconciler.advance(&mut Open, false)?;
    }
    report.idle_percent = Cpu::now()?.since(cpu).percent_of(begun.elapsed());
    Ok(())
}

/// Looks which tables are in force.
struct Worker {
    seen: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
}

impl Worker {
    fn start(reconciler: &Reconciler) -> Self {
        let mut reader = reconciler.reader(WorkerId(0));
        let (seen, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let worker = Self { seen: Arc::clone(&seen), stop: Arc::clone(&stop) };
        std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                seen.store(reader.read().generation, Ordering::Release);
                std::thread::sleep(Duration::from_micros(100));
            }
        });
        worker
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

struct Control {
    proposals: tokio::sync::mpsc::Receiver<Proposal>,
    reconciler: Reconciler,
    worker: Worker,
}

impl Control {
    /// Puts the next proposal into force: when it was asked for, when it was seen, how many services it has.
    fn adopt(&mut self, look: impl FnOnce(&Proposal)) -> (Instant, Instant, usize) {
        let proposal = self.proposals.blocking_recv().expect("the source goes on");
        let asked = Instant::now();
        look(&proposal);
        let Proposal { change, reply } = proposal;
        let put = change.put.len();
        let generation = self.reconciler.change(change, &mut Open).unwrap();
        while self.worker.seen.load(Ordering::Acquire) < generation {
            std::thread::sleep(Duration::from_micros(100));
        }
        let seen = Instant::now();
        self.reconciler.advance(&mut Open, false).unwrap();
        self.reconciler.tidy();
        reply.send(Outcome { at: seen, refused: Vec::new(), fault: None }).unwrap();
        (asked, seen, put)
    }

    /// Has the double move one endpoint after the other, and notes how long each took.
    fn follow(&mut self, double: &mut Double, args: &Args, report: &mut Report) -> Result<()> {
        let count = (args.rate * args.seconds) as usize;
        let (begun, cpu) = (Instant::now(), Cpu::now()?);
        double.begin()?;
        let mut seen: HashMap<IpAddr, (u64, u64)> = HashMap::new();
        while seen.len() < count {
            let (mut moved, mut asked_ns) = (Vec::new(), 0);
            self.adopt(|proposal| {
                asked_ns = monotonic_ns();
                let backends = proposal.change.put.iter().flat_map(|service| service.backends.iter());
                moved = backends.map(|backend| backend.addr.ip()).filter(double::is_moved).collect();
            });
            let seen_ns = monotonic_ns();
            for addr in moved {
                seen.entry(addr).or_insert((asked_ns, seen_ns));
            }
        }
        report.busy_percent = Cpu::now()?.since(cpu).percent_of(begun.elapsed());
        let (mut until_asked, mut until_seen) = (Vec::new(), Vec::new());
        for (addr, at_ns) in double.changes(count) {
            let (asked_ns, seen_ns) = seen[&addr];
            until_asked.push((asked_ns - at_ns) as f64 / 1e6);
            until_seen.push((seen_ns - at_ns) as f64 / 1e6);
        }
        ensure!(until_seen.len() == count, "the double has ended");
        report.change_asked_ms = Percentiles::of(until_asked);
        report.change_seen_ms = Percentiles::of(until_seen);
        Ok(())
    }
}
