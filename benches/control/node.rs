//! A node: the source's store, control's part and two workers, as in `weir run` but for the network and the API server.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use control::admin::protocol::Count;
use control::config::kube_proxy::{Flags, KubeProxy, settings};
use control::config::{Config, Section, parse};
use control::daemon::Served;
use control::metrics::{Format, Metrics};
use control::reconcile::{Gate, Reconciler};
use control::source::kubernetes::event::{Event, Update};
use control::source::kubernetes::store::{Configured, Store};
use dataplane::flow::directory::Directory;
use dataplane::frame::BATCH;
use dataplane::ids::{PortId, WorkerId};
use dataplane::io::handoff::mesh;
use dataplane::io::memory::MemoryIo;
use dataplane::pipeline::{Engine, Setup};
use dataplane::snapshot::Net;
use dataplane::snapshot::net::{Link, Path, Port, Route};
use dataplane::state::State;
use dataplane::stats::WorkerStats;
use dataplane::wanted::Wanted;
use dataplane::worker::{Idle, Parts, WorkerHandle, spawn};
use nix::time::{ClockId, clock_gettime};
use xdp_prog::{Delta, SyncError, Xdp};

use crate::cluster;
use crate::numbers::{Percentiles, mib, ms};
use crate::resident::resident;
use crate::results::{Cost, Scrape};

const WORKERS: u8 = 2;
/// Flows that a worker has room for: their table is not what is measured.
const FLOWS: usize = 4096;
/// Objects that are decoded before they are handed to the store, as pages of a list are.
const PAGE: usize = 500;
/// How often control looks after what is due, as in `weir run`.
const POLL: Duration = Duration::from_millis(25);
/// How often it looks after the rest.
const HOUSEKEEPING: Duration = Duration::from_secs(1);
/// Changes of one endpoint, one after the other.
const CHANGES: u32 = 2000;
/// How long nothing happens, and how long a hundred changes a second do.
const IDLE: Duration = Duration::from_secs(4);
const BUSY: u32 = 4;
/// How often metrics are asked for.
const SCRAPES: usize = 5;
/// How long workers may take to use new tables.
const PATIENCE: Duration = Duration::from_secs(5);

/// The kernel's maps, where this process may have some.
enum Kernel {
    Maps(Box<Xdp>),
    None,
}

impl Gate for Kernel {
    fn begin(&mut self, delta: &Delta) -> Result<(), SyncError> {
        match self {
            Self::Maps(xdp) => Gate::begin(&mut **xdp, delta),
            Self::None => Ok(()),
        }
    }

    fn finish(&mut self) -> Result<(), SyncError> {
        match self {
            Self::Maps(xdp) => Gate::finish(&mut **xdp),
            Self::None => Ok(()),
        }
    }

    fn counts(&self) -> Vec<Count> {
        Vec::new()
    }

    fn mode(&self, _: u8) -> String {
        "none".into()
    }
}

struct Node {
    store: Store,
    reconciler: Reconciler,
    gate: Kernel,
    workers: Vec<Served>,
    started: Instant,
}

/// What the first load took.
#[derive(Default)]
struct Load {
    /// From texts to objects.
    decode_cpu: Duration,
    /// From objects to tables that workers use.
    cpu: Duration,
    /// To fill the XDP program's maps then.
    maps_cpu: Duration,
    /// Both.
    wall: Duration,
}

/// What so many Services cost.
pub(crate) fn measure(services: u32) -> Result<Cost> {
    let before = resident()?;
    let config = config()?;
    let gate =
        Xdp::load(&config.settings.limits.xdp()).map_or(Kernel::None, |xdp| Kernel::Maps(Box::new(xdp)));
    let has_maps = matches!(gate, Kernel::Maps(_));
    let mut node = Node::new(&config, gate)?;
    let empty = resident()?;
    let maps_empty = map_bytes()?;
    let load = node.load(services)?;
    node.keep_house();
    let loaded = resident()?;
    let maps_loaded = map_bytes()?;
    let (change_cpu_ms, visible_ms) = node.one_endpoint_at_a_time(services)?;
    node.keep_house();
    let idle_cpu_percent = node.idle()?;
    let busy_cpu_percent = node.hundred_a_second(services)?;
    node.keep_house();
    let after = resident()?;
    let scrape = node.scrape(config.settings.metrics_services);
    let scrape_all = node.scrape(services as usize);
    node.end()?;
    Ok(Cost {
        services,
        decode_cpu_ms: ms(load.decode_cpu),
        load_cpu_ms: ms(load.cpu),
        maps_cpu_ms: ms(load.maps_cpu),
        load_ms: ms(load.wall),
        change_cpu_ms,
        visible_ms,
        resident_empty_mib: mib(empty.saturating_sub(before)),
        resident_mib: mib(loaded.saturating_sub(before)),
        resident_after_mib: mib(after.saturating_sub(before)),
        maps_mib: has_maps.then(|| [mib(maps_empty), mib(maps_loaded)]),
        idle_cpu_percent,
        busy_cpu_percent,
        scrape,
        scrape_all,
    })
}

/// Weir's configuration where Kubernetes feeds it and nothing is said of limits.
fn config() -> Result<Config> {
    let text = "interfaces: [{name: port0}]\nsnat_pools: [{name: pool, addresses: [192.168.0.200]}]\n";
    let mut config = parse("bench.yaml", text).map_err(|faults| anyhow::anyhow!("{faults}"))?;
    config.fill_in(&Arc::new(KubeProxy::without_file(&Flags::default())?), 2);
    Ok(config)
}

impl Node {
    fn new(config: &Config, gate: Kernel) -> Result<Self> {
        let limits = config.settings.limits;
        let state = Arc::new(State::new(limits.services, limits.backends));
        let stats: Vec<_> =
            (0..WORKERS).map(|_| Arc::new(WorkerStats::new(limits.services, limits.backends))).collect();
        let reconciler = Reconciler::new(config.desired.clone(), net(), Arc::clone(&state), stats.clone())?;
        let (wanted, directory) = (Arc::new(Wanted::new(BATCH)), Arc::new(Directory::new(FLOWS, WORKERS)));
        let exchanges = mesh(WORKERS, 64, 2048)?;
        let mut workers = Vec::new();
        for ((id, stats), exchange) in (0..WORKERS).map(WorkerId).zip(stats).zip(exchanges) {
            let engine = Engine::new(Setup {
                worker: id,
                workers: WORKERS,
                flow_limit: FLOWS,
                state: Arc::clone(&state),
                directory: Arc::clone(&directory),
                stats: Arc::clone(&stats),
                wanted: Arc::clone(&wanted),
                seed: 1,
            });
            let (io, _) = MemoryIo::new(1, 256);
            let handle = spawn(Parts {
                id,
                core: None,
                io,
                handler: engine,
                exchange,
                snapshots: reconciler.reader(id),
                stats,
                beat: |_| {},
                idle: Idle::default(),
            })?;
            workers.push(Served { handle, sockets: Vec::new() });
        }
        let proxy = KubeProxy::without_file(&Flags::default())?;
        let section = Section { snat_pool: Some("pool".into()), ..Section::default() };
        let settings =
            settings(&proxy, &section, cluster::NODE).map_err(|error| anyhow::anyhow!("{error:?}"))?;
        let configured = Configured::of(&config.desired, &settings);
        let store = Store::new(settings, configured, jiff::Timestamp::now());
        let mut node = Self { store, reconciler, gate, workers, started: Instant::now() };
        node.wait()?;
        Ok(node)
    }

    /// Reads the whole cluster, and puts it into force.
    fn load(&mut self, services: u32) -> Result<Load> {
        let mut load = Load::default();
        self.store.apply(Event::Node(Some(cluster::own_node())));
        self.store.apply(Event::Service(Update::Restarted));
        self.store.apply(Event::Slice(Update::Restarted));
        let numbers: Vec<u32> = (0..services).collect();
        for page in numbers.chunks(PAGE) {
            let texts: Vec<_> = page.iter().map(|number| cluster::texts(*number)).collect();
            let cpu = thread_cpu();
            let objects: Vec<_> = texts.iter().map(cluster::objects).collect();
            load.decode_cpu += thread_cpu() - cpu;
            drop(texts);
            let (wall, cpu) = (Instant::now(), thread_cpu());
            for (service, slice) in objects {
                self.store.apply(Event::Service(Update::Applied(service)));
                self.store.apply(Event::Slice(Update::Applied(slice)));
            }
            load.wall += wall.elapsed();
            load.cpu += thread_cpu() - cpu;
        }
        let (wall, cpu) = (Instant::now(), thread_cpu());
        self.store.apply(Event::Service(Update::Complete));
        self.store.apply(Event::Slice(Update::Complete));
        self.put()?;
        load.maps_cpu = self.wait()?;
        load.wall += wall.elapsed();
        load.cpu += thread_cpu() - cpu - load.maps_cpu;
        let in_force = self.reconciler.current().services.len();
        ensure!(in_force == services as usize, "{in_force} of {services} Services are in force");
        Ok(load)
    }

    /// Takes in what an EndpointSlice has become, and asks for what follows.
    fn change(&mut self, text: &str) -> Result<()> {
        self.store.apply(Event::Slice(Update::Applied(cluster::decode(text))));
        self.put()
    }

    /// Puts what has changed into force.
    fn put(&mut self) -> Result<()> {
        let output = self.store.take_change().context("nothing has changed")?;
        let before = self.reconciler.current().generation;
        let generation = self.reconciler.change(output.change, &mut self.gate)?;
        ensure!(generation > before, "a change is none");
        self.wake();
        Ok(())
    }

    fn wake(&self) {
        self.handles().for_each(WorkerHandle::wake);
    }

    fn handles(&self) -> impl Iterator<Item = &WorkerHandle> {
        self.workers.iter().map(|worker| &worker.handle)
    }

    /// Waits until every worker uses it, and completes it. Returns what completing took of the processor, without the
    /// waiting.
    fn wait(&mut self) -> Result<Duration> {
        let deadline = Instant::now() + PATIENCE;
        let mut completing = Duration::ZERO;
        while self.reconciler.is_waiting() {
            ensure!(Instant::now() < deadline, "workers do not take the tables");
            self.wake();
            std::thread::yield_now();
            let cpu = thread_cpu();
            self.reconciler.advance(&mut self.gate, false)?;
            completing = thread_cpu() - cpu;
        }
        Ok(completing)
    }

    /// What control does by the clock.
    fn poll(&mut self) -> Result<()> {
        self.reconciler.estimate(self.started.elapsed().as_millis() as u64);
        self.reconciler.advance(&mut self.gate, false)?;
        Ok(())
    }

    fn keep_house(&mut self) {
        self.reconciler.tidy();
        self.reconciler.neighbour_news();
        self.reconciler.owned_news();
    }

    /// This thread's time for a change of one endpoint, and the time until workers use it.
    fn one_endpoint_at_a_time(&mut self, services: u32) -> Result<(Percentiles, Percentiles)> {
        let (mut cpus, mut visible) = (Vec::new(), Vec::new());
        for number in 1..=CHANGES {
            let text = cluster::changed(of(number, services), number);
            // So that workers sleep again, as most changes find them.
            std::thread::sleep(Duration::from_micros(200));
            let (wall, cpu) = (Instant::now(), thread_cpu());
            self.change(&text)?;
            let asking = thread_cpu() - cpu;
            let completing = self.wait()?;
            visible.push(ms(wall.elapsed()));
            // What the change leaves behind has to be freed.
            let cpu = thread_cpu();
            self.keep_house();
            cpus.push(ms(asking + completing + (thread_cpu() - cpu)));
        }
        Ok((Percentiles::of(cpus), Percentiles::of(visible)))
    }

    /// Percent of a core that everything takes while nothing happens.
    fn idle(&mut self) -> Result<f64> {
        let (wall, cpu) = (Instant::now(), process_cpu());
        let mut housekeeping = wall;
        while wall.elapsed() < IDLE {
            self.poll()?;
            if Instant::now() >= housekeeping {
                self.keep_house();
                housekeeping += HOUSEKEEPING;
            }
            std::thread::sleep(POLL);
        }
        Ok(percent(process_cpu() - cpu, wall.elapsed()))
    }

    /// Percent of a core that everything takes for a hundred changes a second, each of one endpoint.
    fn hundred_a_second(&mut self, services: u32) -> Result<f64> {
        let numbers = CHANGES + 1..CHANGES + 1 + 100 * BUSY;
        let texts: Vec<_> = numbers.map(|number| cluster::changed(of(number, services), number)).collect();
        let (wall, cpu) = (Instant::now(), process_cpu());
        for (number, text) in (0..).zip(&texts) {
            std::thread::sleep((Duration::from_millis(10) * number).saturating_sub(wall.elapsed()));
            self.change(text)?;
            while self.reconciler.is_waiting() {
                std::thread::sleep(Duration::from_micros(500));
                self.reconciler.advance(&mut self.gate, false)?;
            }
            self.poll()?;
            if number % 100 == 0 {
                self.keep_house();
            }
        }
        Ok(percent(process_cpu() - cpu, wall.elapsed()))
    }

    /// What it takes to tell the metrics, so many services one by one.
    fn scrape(&self, services: usize) -> Scrape {
        let mut metrics = Metrics::new();
        metrics.add_workers(&self.workers, FLOWS);
        metrics.add_services(&self.reconciler, services);
        let mut times = Vec::new();
        let mut bytes = 0;
        for _ in 0..SCRAPES {
            let cpu = thread_cpu();
            bytes = metrics.text(Format::Prometheus).len();
            times.push(ms(thread_cpu() - cpu));
        }
        Scrape { services, cpu_ms: Percentiles::of(times).p50, bytes }
    }

    fn end(mut self) -> Result<()> {
        self.handles().for_each(WorkerHandle::stop);
        for worker in self.workers.drain(..) {
            worker.handle.join().map_err(|panic| anyhow::anyhow!("{panic}"))?;
        }
        Ok(())
    }
}

/// Some Service, another one each time.
fn of(number: u32, services: u32) -> u32 {
    number.wrapping_mul(7919) % services
}

/// One port, and everything by a gateway.
fn net() -> Net {
    let link = Link { port: PortId(0), vlans: Default::default(), mtu: 1500 };
    let port = Port { name: "port0".into(), ifindex: 7, mac: [2; 6], mtu: 1500, partial_checksums: false };
    let mut net = Net { epoch: 1, ports: vec![port], ..Net::default() };
    net.links.insert(7, link);
    net.routes4.insert((0, 0), Route::Via(vec![Path::new(7, Some([192, 168, 0, 254].into()))]));
    net
}

/// Bytes of kernel memory that this process's maps take, as the kernel says.
fn map_bytes() -> Result<u64> {
    // A map may be open more than once.
    let mut maps = HashMap::new();
    for file in std::fs::read_dir("/proc/self/fdinfo")? {
        // The one by which the folder is read is gone by now.
        let Ok(text) = std::fs::read_to_string(file?.path()) else { continue };
        let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        if let (Some(map), Some(memory)) = (field("map_id:"), field("memlock:")) {
            maps.insert(map.to_owned(), memory.parse::<u64>()?);
        }
    }
    Ok(maps.values().sum())
}

/// Processor time of this thread, which is control's.
fn thread_cpu() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap().into()
}

/// Processor time of all threads, the workers' included.
fn process_cpu() -> Duration {
    clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).unwrap().into()
}

fn percent(cpu: Duration, wall: Duration) -> f64 {
    cpu.as_secs_f64() / wall.as_secs_f64() * 100.0
}
