//! `weir run`: the one file that knows every part and puts them together.
//!
//! Everything is opened in an order in which each step can fail and leave nothing behind: what was opened before is
//! closed when its owner is dropped. Frames come only once all of it works, when control fills the XDP program's maps.

mod kubernetes;

use std::fs;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use control::admin::server::ListenError;
use control::config::{self, Config, HostReport, Settings};
use control::daemon::{Control, Host, Parts, Served};
use control::http::{self, health};
use control::metrics::{self, Metrics};
use control::nic::judge::Wish;
use control::nic::tuning::{self, Profile, Tuned};
use control::nic::{Machine, Nic};
use control::reconcile::Reconciler;
use dataplane::flow::directory::Directory;
use dataplane::ids::WorkerId;
use dataplane::io::handoff::{self, Exchange};
use dataplane::io::huge::HugePages;
use dataplane::io::xsk::{PortConfig, XskConfig, XskIo, ZeroCopy};
use dataplane::pipeline::{Engine, Setup};
use dataplane::snapshot::Net;
use dataplane::state::State;
use dataplane::stats::WorkerStats;
use dataplane::wanted::Wanted;
use dataplane::worker::{self, Idle, on_core};
use xdp_prog::Xdp;

use self::kubernetes::Feed;
use crate::cli::{EXIT_USAGE, KubeProxyFlags};
use crate::process;

/// Entries of each AF_XDP ring. Small enough that a worker's frames stay in the second-level cache, large enough for
/// a millisecond of full load on a copying interface.
pub(crate) const RING_SIZE: u32 = 2048;
/// Neighbours that workers miss and control has not seen yet, at most.
const WANTED: usize = 1024;
/// How long a change may wait until health suffers: twice kube-proxy's `syncPeriod`.
const HEALTH_LIMIT: Duration = Duration::from_secs(60);
/// What a handed-over frame may have beside its IP packet: Ethernet header and two VLAN tags.
const LAYER_2: usize = 22;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Weir's own configuration file. That of kube-proxy is --kube-proxy-config.
    #[arg(long, value_name = "FILE", required_unless_present_any = ["write_config_to", "cleanup", "init_only"])]
    config: Option<PathBuf>,
    /// Workers spin for ever instead of sleeping when idle: lowest latency, one whole core each.
    #[arg(long)]
    busy_poll: bool,
    /// Settings of the served interfaces while Weir runs. They are put back at the end, or by the next start.
    #[arg(long, value_enum, default_value_t)]
    tuning: Tuning,
    #[command(flatten)]
    kube_proxy: KubeProxyFlags,
}

/// What `--tuning` names.
#[derive(Clone, Copy, Debug, Default, clap::ValueEnum)]
enum Tuning {
    /// Interrupts are deferred longer, those of each queue go to its worker's core, and workers poll their queues where they can.
    Gateway,
    /// Interrupts are deferred for a moment under load.
    Shared,
    /// Everything stays as it is.
    #[default]
    Off,
}

impl From<Tuning> for Profile {
    fn from(tuning: Tuning) -> Self {
        match tuning {
            Tuning::Gateway => Self::Gateway,
            Tuning::Shared => Self::Shared,
            Tuning::Off => Self::Off,
        }
    }
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let (proxy, said) = match args.kube_proxy.load() {
        Ok(loaded) => loaded,
        Err(status) => return Ok(status),
    };
    if let Some(file) = &args.kube_proxy.write_config_to {
        let written = fs::write(file, proxy.document().to_yaml()?);
        written.with_context(|| format!("cannot write {}", file.display()))?;
        return Ok(ExitCode::SUCCESS);
    }
    process::init_log(&proxy);
    let config = args.config.as_deref().map(crate::cli::load).transpose();
    let config = match config {
        Ok(config) => config,
        Err(status) => return Ok(status),
    };
    if args.kube_proxy.cleanup {
        return clean_up(config.as_ref());
    }
    if args.kube_proxy.init_only {
        process::forward_ipv4().context("cannot switch on net.ipv4.ip_forward")?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut config = config.context("--config is missing")?;
    let feed = match Feed::of(&mut config, &proxy, said) {
        Ok(feed) => feed,
        Err(status) => return Ok(status),
    };
    if let Some(feed) = &feed {
        process::set_oom_score(&proxy);
        kubernetes::look_after(args.kube_proxy.clone(), Arc::clone(&proxy));
        tracing::info!(node = %feed.node(), mode = proxy.mode().name(), "as kube-proxy");
    }
    let host = config.check_host();
    for warning in host.warnings.iter() {
        tracing::warn!("{warning}");
    }
    if host.faults.count() > 0 {
        eprintln!("{}", host.faults);
        return Ok(ExitCode::from(EXIT_USAGE));
    }
    let settings = config.settings.clone();
    let (mut control, http) = start(config, feed, &host, args.busy_poll, proxy.listen().hard_fail)?;
    let profile = Profile::from(args.tuning);
    if let Some(tuned) = tune(profile, &settings)? {
        control.keep(tuned);
    }
    if profile.polls() {
        control.poll_by_workers();
    }
    let ending = control.run();
    drop(http);
    for panic in &ending.panics {
        tracing::error!("{panic}");
    }
    ending.result?;
    Ok(if ending.panics.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Puts back what a killed Weir has set, and sets what `profile` says. To be called once the admin socket is this
/// process's, so that there is no other, and the sockets are open, which is when drivers make their queues anew.
fn tune(profile: Profile, settings: &Settings) -> anyhow::Result<Option<Tuned>> {
    let record = tuning::record(&settings.socket);
    tuning::restore(&record);
    if profile == Profile::Off {
        return Ok(None);
    }
    let is_served = |name: &str| settings.interfaces.iter().any(|served| served.as_str() == name);
    let nics = Nic::read(is_served)?;
    let wish = Wish::new(settings, &Machine::read(), &nics);
    Ok(Some(Tuned::apply(profile, &nics, &wish.cores, record)?))
}

/// Takes away what a killed Weir has left.
fn clean_up(config: Option<&Config>) -> anyhow::Result<ExitCode> {
    let socket = config.map_or(Path::new(config::SOCKET), |config| &config.settings.socket);
    for what in control::daemon::clean_up(socket)? {
        tracing::info!("removed {what}");
    }
    tuning::restore(&tuning::record(socket));
    Ok(ExitCode::SUCCESS)
}

/// Opens everything. The workers run afterwards, and get no frames yet.
fn start(
    config: Config,
    feed: Option<Feed>,
    report: &HostReport,
    busy_poll: bool,
    hard_fail: bool,
) -> anyhow::Result<(Control<Xdp>, Option<http::thread::Thread>)> {
    let settings = &config.settings;
    // Told first: it is the plainest reason of those that a second Weir would meet.
    if UnixStream::connect(&settings.socket).is_ok() {
        return Err(ListenError::Running(settings.socket.clone()).into());
    }
    let large_frames = report.large_frames;
    let mut xdp = Xdp::load(&xdp_prog::Limits { large_frames, ..settings.limits.xdp() })?;
    xdp.set_beat_limit(settings.workers.beat_limit)?;
    // Before anything else of the machine is touched: interfaces that another Weir serves are not to be had, and then
    // its kernel path is left alone.
    attach(&mut xdp, settings)?;
    let host = Host::open_catching(settings)?;
    let count = settings.workers.count.get();
    let limits = settings.limits;
    let state = Arc::new(State::new(limits.services, limits.backends));
    let stats: Vec<_> =
        (0..count).map(|_| Arc::new(WorkerStats::new(limits.services, limits.backends))).collect();
    let reconciler =
        Reconciler::new(config.desired.clone(), host.net().clone(), Arc::clone(&state), stats.clone())?;

    let shared = Shared {
        settings,
        net: host.net(),
        state,
        directory: Arc::new(Directory::new(settings.flow_limit * usize::from(count), count)),
        seed: ahash::RandomState::new().hash_one(std::process::id()),
        wanted: Arc::new(Wanted::new(WANTED)),
        busy_poll,
        whole_kib: report.whole_kib,
        copied: &report.copied,
    };
    let frame_len = host.net().ports.iter().map(|port| usize::from(port.mtu)).max().unwrap_or(0) + LAYER_2;
    let exchanges =
        handoff::mesh(count, handoff::depth(count.into()), frame_len).context("making the handoff rings")?;
    let mut workers = Vec::with_capacity(exchanges.len());
    for (id, exchange) in (0..count).map(WorkerId).zip(exchanges) {
        let Some(stats) = stats.get(id.index()) else { continue };
        workers.push(shared.worker(id, exchange, &reconciler, &xdp, Arc::clone(stats))?);
    }
    let wanted = shared.wanted;
    let limit = feed.as_ref().map_or(HEALTH_LIMIT, Feed::health_limit);
    let health = Arc::new(health::State::new(limit));
    let numbers = metrics::control::Control::default();
    let mut counted = Metrics::new();
    counted.add_workers(&workers, settings.flow_limit);
    counted.add_services(&reconciler, settings.metrics_services);
    counted.add_xdp(xdp.counters().clone());
    numbers.register(counted.registry());
    let http = listen(settings, &health, counted, feed.as_ref(), hard_fail)?;
    let kubernetes = feed.map(|feed| feed.start(&config, &host, Arc::clone(&health))).transpose()?;
    let services = config.desired.len();
    tracing::info!(workers = count, services, socket = %config.settings.socket.display(), "ready");
    Ok((
        Control::new(Parts {
            config,
            host,
            reconciler,
            gate: xdp,
            workers,
            wanted,
            health,
            numbers,
            kubernetes,
        }),
        http,
    ))
}

/// Starts the thread that tells of health and metrics, where either is asked for.
fn listen(
    settings: &Settings,
    health: &Arc<health::State>,
    mut metrics: Metrics,
    feed: Option<&Feed>,
    hard_fail: bool,
) -> anyhow::Result<Option<http::thread::Thread>> {
    let addresses = http::thread::Addresses { health: settings.health, metrics: settings.metrics, hard_fail };
    // Services' health checks are served wherever Kubernetes asks for them.
    if feed.is_none() && addresses.health.is_none() && addresses.metrics.is_none() {
        return Ok(None);
    }
    let node = feed.map(|feed| feed.expose(&mut metrics)).transpose()?;
    let parts = http::thread::Parts { addresses, health: Arc::clone(health), metrics, node };
    Ok(Some(http::thread::Thread::start(parts)?))
}

/// Attaches the XDP program to the served interfaces. Its maps are empty, so everything passes to the kernel.
fn attach(xdp: &mut Xdp, settings: &Settings) -> anyhow::Result<()> {
    for (id, name) in (0..).zip(&settings.interfaces) {
        let name = name.as_str();
        let attached = nix::net::if_::if_nametoindex(name)
            .map_err(anyhow::Error::from)
            .and_then(|ifindex| Ok(xdp.attach(id, ifindex, settings.xdp.allow_generic)?));
        let mode = attached.with_context(|| name.to_owned())?;
        tracing::info!(interface = name, %mode, "XDP program attached");
    }
    Ok(())
}

/// What all workers are made with.
struct Shared<'a> {
    settings: &'a Settings,
    net: &'a Net,
    state: Arc<State>,
    directory: Arc<Directory>,
    seed: u64,
    wanted: Arc<Wanted>,
    busy_poll: bool,
    whole_kib: bool,
    copied: &'a [String],
}

impl Shared<'_> {
    /// Opens a worker's sockets and memory on its core, starts it, and gives its sockets to the XDP program.
    fn worker(
        &self,
        id: WorkerId,
        exchange: Exchange,
        reconciler: &Reconciler,
        xdp: &Xdp,
        stats: Arc<WorkerStats>,
    ) -> anyhow::Result<Served> {
        let workers = &self.settings.workers;
        let core = workers.cores.as_ref().and_then(|cores| cores.get(id.index()).copied()).map(usize::from);
        let core = core.or_else(|| core_affinity::get_core_ids()?.get(id.index()).map(|core| core.id));
        let sockets = self.sockets(id);
        let setup = Setup {
            worker: id,
            workers: workers.count.get(),
            flow_limit: self.settings.flow_limit,
            state: Arc::clone(&self.state),
            directory: Arc::clone(&self.directory),
            stats: Arc::clone(&stats),
            wanted: Arc::clone(&self.wanted),
            seed: self.seed,
        };
        // On the worker's core, so that the pages come from its memory.
        let (io, engine) = on_core(core, || (XskIo::open(&sockets), Engine::with_memory(setup, &HugePages)))?;
        let io = io?;
        let opened = io.sockets().to_vec();
        let beat = xdp.beat(id.0.into()).context("more workers than the XDP program knows")?;
        let handle = worker::spawn(worker::Parts {
            id,
            core,
            io,
            handler: engine,
            exchange,
            snapshots: reconciler.reader(id),
            stats,
            beat: move |now_ns| beat.beat(now_ns),
            idle: Idle {
                spin: workers.spin,
                busy_poll: self.busy_poll || workers.busy_poll,
                beat_limit: workers.beat_limit,
            },
        })?;
        for socket in &opened {
            let fd = socket.fd().context("the worker ended at once")?;
            xdp.register_socket(socket.port.0, socket.queue, fd.as_fd())?;
        }
        Ok(Served { handle, sockets: opened })
    }

    fn sockets(&self, id: WorkerId) -> XskConfig {
        let zero_copy = match self.settings.xdp.zero_copy {
            config::ZeroCopy::Auto => ZeroCopy::Auto,
            config::ZeroCopy::Never => ZeroCopy::Never,
            config::ZeroCopy::Require => ZeroCopy::Require,
        };
        let served = self.settings.interfaces.len();
        // The kernel path, which comes behind the served ones, is a veth pair, which can only copy.
        let is_copied =
            |index: usize, name: &str| index >= served || self.copied.iter().any(|copied| copied == name);
        let port = |(index, port): (usize, &dataplane::snapshot::net::Port)| PortConfig {
            name: Arc::clone(&port.name),
            ifindex: port.ifindex,
            mtu: port.mtu,
            zero_copy: if is_copied(index, &port.name) { ZeroCopy::Never } else { zero_copy },
        };
        XskConfig {
            queue: id.0.into(),
            ring_size: RING_SIZE,
            ports: self.net.ports.iter().enumerate().map(port).collect(),
            whole_kib: self.whole_kib,
        }
    }
}
