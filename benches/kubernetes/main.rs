//! From the API server to workers: how long it takes to read a cluster, and a change to be seen.
//!
//! `cargo bench --bench kubernetes`. The API server's double is in the same process, over TLS on the loopback interface.
//! A worker is a thread that looks which tables are in force; the XDP program is left out. Two times are told of each
//! change: until control is asked for it, and until the worker sees it.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    missing_docs,
    reason = "a bench stops by panicking when something is not as it has to be"
)]

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

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
use testbed::apiserver::objects::{node, numbered, numbered_endpoint, slice};
use testbed::apiserver::{ApiServer, Fault, Options, Verb};
use xdp_prog::{Delta, SyncError};

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
    /// Cargo says so.
    #[arg(long, hide = true)]
    bench: bool,
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

fn main() {
    let args = Args::parse();
    let api = ApiServer::start(Options::default()).unwrap();
    api.access().allow_token("token", "system:kube-proxy");
    for object in (0..args.services).flat_map(|number| numbered(number, args.endpoints)) {
        api.cluster().put(object).unwrap();
    }
    api.cluster().put(node("node-0", &[[192, 168, 0, 2].into()], &[])).unwrap();
    if args.pages {
        api.faults().set(None, Verb::WatchList, Fault::Status(500));
    }
    let directory = tempfile::tempdir().unwrap();
    let kubeconfig = directory.path().join("kubeconfig");
    std::fs::write(&kubeconfig, api.kubeconfig("token")).unwrap();

    let config = "interfaces: [{name: eth0}]\nsnat_pools: [{name: pool, addresses: [192.168.0.200]}]\n";
    let config = parse("bench.yaml", config).unwrap_or_else(|faults| panic!("{faults}"));
    let proxy = KubeProxy::without_file(&Flags::default()).unwrap();
    let section = Section { snat_pool: Some("pool".into()), ..Section::default() };
    let settings = settings(&proxy, &section, "node-0").unwrap();
    let (services, backends) = (1 << 18, 1 << 20);
    let stats = vec![Arc::new(WorkerStats::new(services, backends))];
    let state = Arc::new(State::new(services, backends));
    let reconciler = Reconciler::new(config.desired.clone(), Net::default(), state, stats).unwrap();
    let worker = Worker::start(&reconciler);

    let counted = Kubernetes::default();
    let (outbox, notices) = Outbox::new(counted.clone());
    let health = Arc::new(health::State::new(Duration::from_secs(60)));
    let ears = Ears { health, counted: counted.clone(), checks: Arc::default(), outbox };
    let surroundings =
        Surroundings { addresses: Vec::new(), configured: Configured::of(&config.desired, &settings) };
    let server = Server { kubeconfig: Some(kubeconfig), ..Server::default() };
    let status = Arc::new(Status::new(counted));
    let begun = Instant::now();
    let mut thread = Thread::start(Parts { server, settings, status, ears, notices }, surroundings).unwrap();
    let mut control = Control { proposals: thread.take_proposals(), reconciler, worker };

    let (asked, seen, put) = control.adopt(|_| {});
    let way = if args.pages { "by lists in pages" } else { "by watches" };
    println!("{} services with {} endpoints each, {way}", args.services, args.endpoints);
    println!(
        "first sync: asked for after {:?}, seen after {:?}, {put} services",
        asked - begun,
        seen - begun
    );
    control.follow(&api, &args);
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

    /// Moves one endpoint after the other, and tells how long each took.
    fn follow(&mut self, api: &ApiServer, args: &Args) {
        let count = args.rate * args.seconds;
        let cluster = Arc::clone(api.cluster());
        let (services, endpoints, rate) = (args.services, args.endpoints, args.rate);
        let (sender, changed) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let begun = Instant::now();
            for change in 0..count {
                let due = begun + Duration::from_secs(1) * change / rate;
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
                let (object, addr) = moved(change % services, endpoints, change);
                sender.send((addr, Instant::now())).unwrap();
                cluster.put(object).unwrap();
            }
        });
        let mut waiting: HashMap<IpAddr, Instant> = HashMap::new();
        let (mut until_asked, mut until_seen) = (Vec::new(), Vec::new());
        while until_seen.len() < count as usize {
            let mut found = Vec::new();
            let (asked, seen, _) = self.adopt(|proposal| {
                waiting.extend(changed.try_iter());
                let backends = proposal.change.put.iter().flat_map(|service| service.backends.iter());
                found = backends.filter_map(|backend| waiting.remove(&backend.addr.ip())).collect();
            });
            until_asked.extend(found.iter().map(|at| asked - *at));
            until_seen.extend(found.iter().map(|at| seen - *at));
        }
        println!("{count} changes, {rate} a second:");
        tell("asked for", &mut until_asked);
        tell("seen", &mut until_seen);
    }
}

fn tell(what: &str, times: &mut [Duration]) {
    times.sort_unstable();
    let at = |share: usize| times[(times.len() * share / 100).min(times.len() - 1)];
    println!("  {what:<10} p50 {:?}, p99 {:?}, at most {:?}", at(50), at(99), times[times.len() - 1]);
}

/// The slice of a Service with its first endpoint at an address that no other change has.
fn moved(number: u32, endpoints: u32, change: u32) -> (serde_json::Value, IpAddr) {
    let (namespace, name) = (format!("ns-{}", number % 50), format!("service-{number}"));
    let mut all: Vec<_> = (0..endpoints).map(|index| numbered_endpoint(number * endpoints + index)).collect();
    let addr = IpAddr::from((0x0b00_0001 + change).to_be_bytes());
    all[0].addr = addr;
    (slice(&namespace, &name, &format!("{name}-abcde"), &[("http", 8080, "TCP")], &all), addr)
}
