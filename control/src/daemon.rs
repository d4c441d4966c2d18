//! The control thread: everything that happens while workers forward.
//!
//! ```text
//! signals, admin calls -> reload -> reconcile --> workers, XDP program
//! kernel notifications -> mirror -> net ----^
//! workers' wishes -> resolver -> kernel
//! ```
//!
//! One event loop on the calling thread; nothing in it waits for the network, and what takes long (reading a file,
//! asking workers for flows) happens beside it.

mod ear;
mod host;
mod ipvs;
pub mod kubernetes;
mod pressure;
mod queues;
mod reload;
mod signals;
mod steering;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use dataplane::io::xsk::PortSocket;
use dataplane::snapshot::Net;
use dataplane::snapshot::net::{Neighbour, Port};
use dataplane::wanted::Wanted;
use dataplane::worker::{WorkerHandle, WorkerPanic};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval, sleep_until};
use xdp_prog::Counter;

use self::ear::Ear;
pub use self::host::{Host, HostError, clean_up};
use self::pressure::Pressure;
use self::queues::Queues;
use self::reload::{Reloads, Waiting};
pub use self::signals::Signal;
use self::steering::{Arrivals, Steering, arrivals};
use crate::admin::protocol::{Count, Drops, Reload, Reply, Request, Status};
use crate::admin::server::{Call, PATIENCE, Socket};
use crate::admin::show::{self, FlowFilter};
use crate::config::{self, Config, Faults};
use crate::http::health;
use crate::ipvs::list;
use crate::metrics::{self, control::Note};
use crate::netlink::compile::{HOP_LIMIT, compile};
use crate::netlink::monitor::Monitor;
use crate::netlink::resolve::{Known, Resolver};
use crate::nic::tuning::Tuned;
use crate::reconcile::{Gate, Reconciler};

/// How often what is due is asked and announced. Workers' wishes are seen to as they come, within a poll's bounds.
const POLL: Duration = Duration::from_millis(25);
/// How often the rest is looked after.
const HOUSEKEEPING: Duration = Duration::from_secs(1);
/// How long kernel notifications are gathered before new tables are made of them. A neighbour alone is not kept
/// waiting, for frames wait for it; then tables follow each other after [`PAUSE`] times what they took to make, but
/// this at most.
const DEBOUNCE: Duration = Duration::from_millis(5);
/// See [`DEBOUNCE`]: neighbours that come and go cost a tenth of control's time.
const PAUSE: u32 = 9;
/// Announcements sent a poll at most.
const BURST: usize = 64;

/// Why control ended otherwise than asked to.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// No worker is left.
    #[error("all workers have ended")]
    NoWorkers,
}

/// How the run ended.
#[derive(Debug)]
pub struct Ending {
    /// Asked to, or why otherwise.
    pub result: Result<(), ControlError>,
    /// Workers that ended by a bug.
    pub panics: Vec<WorkerPanic>,
}

/// A worker with what others may know of its sockets.
#[derive(Debug)]
pub struct Served {
    /// The worker.
    pub handle: WorkerHandle,
    /// Its sockets.
    pub sockets: Vec<PortSocket>,
}

/// What control is made of. All is running; the XDP program hands nothing over yet.
#[derive(Debug)]
pub struct Parts<G> {
    /// The configuration in force.
    pub config: Config,
    /// The machine.
    pub host: Host,
    /// The tables.
    pub reconciler: Reconciler,
    /// What decides in the kernel.
    pub gate: G,
    /// The workers, by id.
    pub workers: Vec<Served>,
    /// The neighbours that workers miss.
    pub wanted: Arc<Wanted>,
    /// Where it notes how things are.
    pub health: Arc<health::State>,
    /// And in numbers.
    pub numbers: metrics::control::Control,
    /// Kubernetes, where it feeds Weir.
    pub kubernetes: Option<kubernetes::Source>,
}

/// The control thread's state.
#[derive(Debug)]
pub struct Control<G> {
    // Before the host, which has the admin socket.
    tuned: Option<Tuned>,
    config: Config,
    host: Host,
    reconciler: Reconciler,
    gate: G,
    workers: Vec<Served>,
    wanted: Arc<Wanted>,
    resolver: Resolver,
    reloads: Reloads,
    last_reload: Option<Reload>,
    /// When the mirror's changes become tables.
    refresh_at: Option<Instant>,
    /// When a neighbour alone may change the tables again.
    rested_at: Instant,
    /// Workers that have ended, as last looked at.
    dead: usize,
    /// Interfaces that are gone, as last looked at.
    gone: usize,
    pressure: Pressure,
    queues: Queues,
    steering: Steering,
    /// What had arrived when the interfaces were asked last how they spread frames.
    arrived: Arrivals,
    health: Arc<health::State>,
    numbers: metrics::control::Control,
    kubernetes: Option<kubernetes::Source>,
    started: Instant,
}

impl<G: Gate> Control<G> {
    /// Control over `parts`, at rest.
    pub fn new(parts: Parts<G>) -> Self {
        let Parts { config, host, mut reconciler, gate, workers, wanted, health, numbers, kubernetes } =
            parts;
        let views = workers.iter().map(|worker| Arc::clone(&worker.handle.view));
        health.watch(views, config.settings.workers.beat_limit, Instant::now());
        let served = host.net().ports.get(..host.scope.served.len()).unwrap_or_default();
        let queues = Queues::new(served, config.settings.workers.count.get().into());
        let names = served.iter().map(|port| Arc::clone(&port.name));
        let steering = Steering::new(names.zip(queues.rss()).collect());
        reconciler.set_claims(steering.claims());
        if workers.len() > 1 {
            steering.sentences().iter().for_each(|sentence| tracing::info!("{sentence}"));
        }
        Self {
            tuned: None,
            queues,
            steering,
            arrived: Arrivals::new(),
            reloads: Reloads::new(Path::new(config.file())),
            config,
            host,
            reconciler,
            gate,
            workers,
            wanted,
            resolver: Resolver::default(),
            last_reload: None,
            refresh_at: None,
            rested_at: Instant::now(),
            dead: 0,
            gone: 0,
            pressure: Pressure::default(),
            health,
            numbers,
            kubernetes,
            started: Instant::now(),
        }
    }

    /// Takes over settings that were made under the admin socket. They are put back before it goes, since another Weir
    /// may make its own from then on.
    pub fn keep(&mut self, tuned: Tuned) {
        self.tuned = Some(tuned);
    }

    /// Has workers poll their queues in place of interrupts, where that can be had, and says in the log where.
    pub fn poll_by_workers(&mut self) {
        let sockets = self.workers.iter().flat_map(|worker| &worker.sockets);
        self.queues.poll_by_workers(sockets).iter().for_each(|sentence| tracing::info!("{sentence}"));
    }

    /// Opens the gate and works until SIGTERM or SIGINT; SIGHUP reloads. Then the kernel gets all frames, the workers
    /// end, and what was made on the machine is taken away. Only with a host that catches signals
    /// ([`Host::open_catching`]); else it ends at once.
    pub fn run(mut self) -> Ending {
        let signals = self.host.signals.take().unwrap_or_else(|| mpsc::channel(1).1);
        self.run_until(signals)
    }

    /// As [`Control::run`], with signals from a channel; its end means stop.
    pub fn run_until(mut self, signals: mpsc::Receiver<Signal>) -> Ending {
        let result = match (self.host.runtime.take(), self.host.socket.take()) {
            (Some(runtime), Some(socket)) => {
                let result = runtime.block_on(self.serve(signals, socket));
                self.host.runtime = Some(runtime);
                result
            }
            _ => Ok(()),
        };
        self.end(result)
    }

    /// Ends all, the kernel's frames first.
    fn end(self, result: Result<(), ControlError>) -> Ending {
        drop(self.gate);
        for worker in &self.workers {
            worker.handle.stop();
        }
        let joined = self.workers.into_iter().filter_map(|worker| worker.handle.join().err());
        Ending { result, panics: joined.collect() }
    }

    async fn serve(
        &mut self,
        mut signals: mpsc::Receiver<Signal>,
        socket: Socket,
    ) -> Result<(), ControlError> {
        let (sender, mut calls) = mpsc::channel(1);
        let mut ear = Ear::new(Arc::clone(&self.wanted));
        let listening = tokio::spawn(socket.serve(sender, PATIENCE));
        let mut poll = interval(POLL);
        let mut housekeeping = interval(HOUSEKEEPING);
        poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
        housekeeping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        self.complete().await;
        self.services_changed();
        self.tell_surroundings();
        let mut proposals = self.kubernetes.as_mut().map(|source| source.thread.take_proposals());
        let result = loop {
            let refresh_at = self.refresh_at.unwrap_or_else(Instant::now);
            tokio::select! {
                signal = signals.recv() => match signal {
                    Some(Signal::Reload) => self.reloads.request(None),
                    Some(Signal::Stop) | None => break Ok(()),
                },
                result = self.host.monitor.changed() => match result {
                    Ok(()) => self.plan_refresh(),
                    Err(error) => self.reconnect(&error).await,
                },
                () = sleep_until(refresh_at.into()), if self.refresh_at.is_some() => self.refresh().await,
                (read, waiting) = self.reloads.read() => self.finish_reload(read, waiting).await,
                proposal = kubernetes::next(proposals.as_mut()) => self.adopt_proposal(proposal).await,
                Some(call) = calls.recv() => self.answer(call).await,
                () = ear.heard(), if ear.left() > 0 => self.fulfil(&mut ear).await,
                _ = poll.tick() => {
                    ear.begin();
                    let now_ms = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
                    self.reconciler.estimate(now_ms);
                    self.fulfil(&mut ear).await;
                    self.poll();
                }
                _ = housekeeping.tick() => {
                    if self.keep_house() {
                        break Err(ControlError::NoWorkers);
                    }
                }
            }
        };
        self.tuned = None;
        listening.abort();
        // Its end closes the socket and removes its file.
        let _ = listening.await;
        result
    }

    /// Waits until the workers use the newest services, and lets the gate follow. A worker that does not turn is not
    /// waited for longer than the XDP program trusts it.
    async fn complete(&mut self) {
        let mut patience = self.config.settings.workers.beat_limit;
        if self.workers.iter().any(|worker| worker.handle.is_finished()) {
            patience = POLL;
        }
        let deadline = Instant::now() + patience;
        while self.reconciler.is_waiting() {
            for worker in &self.workers {
                worker.handle.wake();
            }
            let is_late = Instant::now() >= deadline;
            self.advance(is_late);
            if is_late {
                return;
            }
            if self.reconciler.is_waiting() {
                tokio::time::sleep(Duration::from_micros(500)).await;
            }
        }
    }

    fn advance(&mut self, is_late: bool) {
        if let Err(error) = self.reconciler.advance(&mut self.gate, is_late) {
            tracing::error!(%error, "the XDP program does not follow; trying again");
        }
    }

    /// What follows from new services or routes: which neighbours are needed, which addresses are announced.
    fn services_changed(&mut self) {
        let now = Instant::now();
        for (place, is_needed) in self.reconciler.neighbour_news() {
            if is_needed {
                self.resolver.stand(place, now);
            } else {
                self.resolver.let_go(place, now);
            }
        }
        let snapshot = self.reconciler.current();
        self.host.announcer.follow(&snapshot.net, self.reconciler.owned_news());
    }

    /// Notes when what the kernel said becomes tables.
    fn plan_refresh(&mut self) {
        let mirror = self.host.monitor.mirror();
        let now = Instant::now();
        let at = match mirror.changes() {
            changes if changes.only_neighbours() && !mirror.is_in_doubt() => now.max(self.rested_at),
            changes if changes.any() || mirror.is_in_doubt() => now + DEBOUNCE,
            _ => return,
        };
        self.refresh_at.get_or_insert(at);
    }

    /// Makes new tables of what the kernel said.
    async fn refresh(&mut self) {
        self.refresh_at = None;
        if let Err(error) = self.host.monitor.settle().await {
            tracing::warn!(%error, "the tables stay as they are; trying again");
            self.refresh_at = Some(Instant::now() + HOUSEKEEPING);
            return;
        }
        let changes = self.host.monitor.mirror_mut().take_changes();
        if changes.addresses {
            self.tell_surroundings();
        }
        let reroute = changes.links || changes.routes || changes.addresses;
        if !reroute && !changes.neighbours {
            return;
        }
        let old = Arc::clone(&self.reconciler.current().net);
        let begun = Instant::now();
        let new = compile(self.host.monitor.mirror(), &self.host.scope, &old, reroute, HOP_LIMIT);
        let now = Instant::now();
        self.rested_at = now + DEBOUNCE.min(PAUSE * (now - begun));
        let same = (new.epoch, &new.ports, new.kernel) == (old.epoch, &old.ports, old.kernel)
            && new.neighbours == old.neighbours
            && new.hops == old.hops;
        if same {
            return;
        }
        let is_there = |net: &Net, place| net.neighbours.get(place).is_some_and(|id| net.hop(*id).is_some());
        for place in old.neighbours.keys().filter(|place| is_there(&old, place) && !is_there(&new, place)) {
            self.resolver.lost(*place, now);
        }
        for place in new.neighbours.keys().filter(|place| is_there(&new, place) && !is_there(&old, place)) {
            self.resolver.found(*place, now);
        }
        self.host.announcer.net_changed(&old, &new);
        let generation = self.reconciler.set_net(new);
        // One that sleeps may keep frames that waited for this.
        for worker in &self.workers {
            worker.handle.wake();
        }
        tracing::debug!(generation, ?changes, "network changed");
        if reroute {
            self.services_changed();
        }
    }

    async fn reconnect(&mut self, error: &crate::netlink::NetlinkError) {
        tracing::warn!(%error, "opening another netlink socket");
        match Monitor::open().await {
            Ok(mut monitor) => {
                monitor.mirror_mut().all_changed();
                self.host.monitor = monitor;
                self.refresh_at = Some(Instant::now());
            }
            Err(error) => {
                tracing::error!(%error, "the network is not followed; trying again");
                tokio::time::sleep(POLL).await;
            }
        }
    }

    /// Asks for the neighbours that workers miss and for those that are due.
    async fn fulfil(&mut self, ear: &mut Ear) {
        let now = Instant::now();
        for place in ear.wishes() {
            self.resolver.want(place, now);
        }
        let mirror = self.host.monitor.mirror();
        let known = |place: &Neighbour| match mirror.neighbours.get(place) {
            Some(entry) if entry.mac.is_none() => Known::Missing,
            None => Known::Missing,
            Some(entry) if entry.fixed => Known::Fixed,
            Some(_) => Known::Usable,
        };
        let due = self.resolver.due(now, ear.left(), known);
        ear.spend(due.len());
        for place in due {
            if let Err(error) = self.host.monitor.ask(place).await {
                tracing::debug!(%error, ?place, "not asked for");
            }
        }
    }

    fn poll(&mut self) {
        if self.host.announcer.is_pending() {
            self.host.announcer.send_due(&self.reconciler.current().net, BURST);
        }
        self.advance(false);
    }

    /// Returns whether there is no worker left.
    fn keep_house(&mut self) -> bool {
        self.health.control_beat(Instant::now());
        let generations_kept = self.reconciler.tidy();
        self.numbers.note(self.note(generations_kept));
        let dead = self.workers.iter().filter(|worker| worker.handle.is_finished()).count();
        if dead > self.dead {
            for worker in self.workers.iter().filter(|worker| worker.handle.is_finished()) {
                let worker = worker.handle.id.0;
                tracing::error!(worker, "a worker has ended; the kernel gets the frames of its queues");
            }
        }
        self.dead = dead;
        let snapshot = self.reconciler.current();
        let is_gone = |port: &&Port| !self.host.monitor.mirror().links.contains_key(&port.ifindex);
        let gone: Vec<_> = snapshot.net.ports.iter().filter(is_gone).collect();
        if gone.len() > self.gone {
            // The XDP program and the sockets are bound to an interface, not to its name.
            let names: Vec<_> = gone.iter().map(|port| &*port.name).collect();
            tracing::error!(interfaces = %names.join(", "), "gone: restart weir once they are back");
        }
        self.gone = gone.len();
        for (what, packets) in self.pressure.news(self.reconciler.stats(), Instant::now()) {
            tracing::warn!(packets, "{what}");
        }
        let now = Instant::now();
        let strays = self.gate.counts().into_iter().find(|count| count.name == Counter::NoSocket.name());
        let strays = strays.and_then(|count| self.queues.strays(count.count, now));
        let (stats, ports) = (self.reconciler.stats(), self.host.scope.served.len());
        // Counted before the interfaces are asked: what they say then holds for all of it, or has changed.
        let news = self.queues.news(now, || self.arrived = arrivals(stats, ports));
        let steered = news.as_ref().map(|_| self.steering.follow(&self.queues.rss(), &self.arrived));
        for what in news.into_iter().flatten().chain(strays) {
            tracing::warn!("{what}");
        }
        if let Some(steered) = steered {
            if self.workers.len() > 1 {
                steered.iter().for_each(|what| tracing::warn!("{what}"));
            }
            self.reconciler.set_claims(self.steering.claims());
        }
        for what in self.pressure.room(self.reconciler.in_use(), self.reconciler.state().capacity()) {
            tracing::warn!("{what}");
        }
        dead == self.workers.len()
    }

    async fn finish_reload(&mut self, read: Result<Config, Faults>, waiting: Waiting) {
        let faults = match read {
            Ok(config) => self.adopt(config).await.err().unwrap_or_default(),
            Err(faults) => faults.to_string().lines().map(str::to_owned).collect(),
        };
        let generation = self.reconciler.current().generation;
        if faults.is_empty() {
            tracing::info!(generation, "configuration reloaded");
            self.health.accepted();
        } else {
            tracing::error!(generation, faults = faults.len(), "reload refused: {}", faults.join("; "));
            self.health.refused(faults.first().map_or("", String::as_str));
        }
        self.numbers.reloaded(faults.is_empty());
        let reload = Reload {
            at_unix_s: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
            count: self.last_reload.as_ref().map_or(0, |last| last.count) + 1,
            faults,
            generation,
        };
        for reply in waiting {
            // A caller that is gone wants no reply.
            let _ = reply.send(Reply::Reload(reload.clone()));
        }
        self.last_reload = Some(reload);
    }

    /// Puts a configuration into force, or says why not.
    async fn adopt(&mut self, mut config: Config) -> Result<(), Vec<String>> {
        config.fill_in_like(&self.config);
        let fixed = config.restart_needed(&self.config);
        if !fixed.is_empty() {
            let file = config.file();
            return Err(fixed
                .iter()
                .map(|key| format!("{file}: {key}: only a restart changes this"))
                .collect());
        }
        let before = self.reconciler.current().generation;
        let generation = self
            .reconciler
            .configure(&config.desired, &mut self.gate)
            .map_err(|refusal| vec![format!("{}: {refusal}", config.file())])?;
        if generation != before {
            self.complete().await;
            self.services_changed();
        }
        self.config = config;
        self.tell_surroundings();
        Ok(())
    }

    async fn answer(&mut self, call: Call) {
        let Call { request, reply } = call;
        let answer = match request {
            Request::Status {} => Reply::Status(self.status()),
            Request::Services {} => Reply::Services(show::services(&self.reconciler)),
            Request::Backends { service } => {
                Reply::Backends(show::backends(&self.reconciler, service.as_deref()))
            }
            Request::Workers {} => {
                let handles = self.workers.iter().map(|worker| &worker.handle);
                Reply::Workers(show::workers(handles, &self.steering.sentences()))
            }
            Request::Drops { all } => Reply::Drops(Drops {
                drops: show::drops(self.reconciler.stats(), all),
                xdp: self.xdp_counts(all),
            }),
            Request::Interfaces {} => Reply::Interfaces(self.interfaces()),
            Request::Flows { limit, service, client, after } => {
                let desks: Vec<_> = self
                    .workers
                    .iter()
                    .map(|worker| (worker.handle.id.0, worker.handle.flow_desk()))
                    .collect();
                let snapshot = self.reconciler.current();
                tokio::task::spawn_blocking(move || {
                    let flows = show::flows(&desks, &snapshot, &FlowFilter { limit, service, client, after });
                    let _ = reply.send(Reply::Flows(flows));
                });
                return;
            }
            Request::Reload {} => return self.reloads.request(Some(reply)),
            Request::Config {} => Reply::Config(config::write(
                &self.config.settings,
                &self.config.kubernetes,
                self.reconciler.desired(),
            )),
            Request::Ipvs { commands } => Reply::Ipvs(self.change(&commands).await),
            Request::IpvsList { service } => match list::services(&self.reconciler, service) {
                Ok(services) => Reply::IpvsList(services),
                Err(refusal) => Reply::Ipvs(vec![Some(refusal)]),
            },
            Request::IpvsTimeouts {} => Reply::IpvsTimeouts(list::timeouts(self.reconciler.desired())),
        };
        // A caller that is gone wants no reply.
        let _ = reply.send(answer);
    }

    fn xdp_counts(&self, all: bool) -> Vec<Count> {
        self.gate.counts().into_iter().filter(|count| all || count.count > 0).collect()
    }

    fn interfaces(&self) -> Vec<crate::admin::protocol::InterfaceRow> {
        let net = Arc::clone(&self.reconciler.current().net);
        let row = |(number, port)| {
            let is_served = usize::from(number) < self.host.scope.served.len();
            let xdp = if is_served { self.gate.mode(number) } else { "none".into() };
            let sockets = self.workers.iter().flat_map(|worker| &worker.sockets);
            show::interface(port, xdp, self.host.monitor.mirror(), sockets)
        };
        (0u8..).zip(&net.ports).map(row).collect()
    }

    /// How things are, in numbers.
    fn note(&self, generations_kept: usize) -> Note {
        let snapshot = self.reconciler.current();
        let (service_room, backend_room) = self.reconciler.state().capacity();
        let ports = snapshot.net.ports.iter().take(self.host.scope.served.len());
        let interface = |(number, port): (u8, &Port)| {
            let is_up = self.host.monitor.mirror().links.get(&port.ifindex).is_some_and(|link| link.up);
            (port.name.to_string(), self.gate.mode(number), is_up)
        };
        let (services, backends) = self.reconciler.in_use();
        Note {
            generation: snapshot.generation,
            generations_kept,
            services: (services, service_room),
            backends: (backends, backend_room),
            neighbours: (snapshot.net.hops.iter().flatten().count(), snapshot.net.hops.len()),
            neighbours_refused: self.resolver.refused(),
            interfaces: (0u8..).zip(ports).map(interface).collect(),
        }
    }

    fn status(&mut self) -> Status {
        let snapshot = self.reconciler.current();
        let alive = self.workers.iter().filter(|worker| !worker.handle.is_finished()).count();
        Status {
            version: env!("CARGO_PKG_VERSION").into(),
            pid: std::process::id(),
            uptime_s: self.started.elapsed().as_secs(),
            config: self.config.file().into(),
            generation: snapshot.generation,
            generations_kept: self.reconciler.tidy(),
            workers: (alive, self.workers.len()),
            services: snapshot.services.len(),
            backends: snapshot.services.iter().map(|service| service.backends.len()).sum(),
            neighbours: (snapshot.net.hops.iter().flatten().count(), snapshot.net.hops.len()),
            neighbours_refused: self.resolver.refused(),
            last_reload: self.last_reload.clone(),
            kubernetes: self.kubernetes_status(),
        }
    }
}
