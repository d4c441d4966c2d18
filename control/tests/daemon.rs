//! The control thread from start to stop: in a namespace, with the XDP program attached and a worker that runs over
//! memory.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod netns;

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use control::admin::client::ask;
use control::admin::protocol::{Reload, Reply, Request, Status};
use control::config::{self, Config};
use control::daemon::{Control, Ending, Host, HostError, Parts, Served, Signal};
use control::reconcile::Reconciler;
use dataplane::flow::directory::Directory;
use dataplane::ids::WorkerId;
use dataplane::io::handoff;
use dataplane::io::memory::MemoryIo;
use dataplane::pipeline::{Engine, Setup};
use dataplane::snapshot::net::Neighbour;
use dataplane::state::State;
use dataplane::stats::WorkerStats;
use dataplane::wanted::Wanted;
use dataplane::worker::{self, Idle};
use netns::{Netns, is_root};
use tempfile::TempDir;
use tokio::sync::mpsc;
use xdp_prog::Xdp;

const PATIENCE: Duration = Duration::from_secs(10);

/// A folder of its own for a test, removed at the end.
struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    fn socket(&self) -> PathBuf {
        self.0.path().join("weir.sock")
    }

    /// Writes the configuration with these services.
    fn configure(&self, services: &str) -> PathBuf {
        let path = self.0.path().join("weir.yaml");
        let socket = self.socket();
        let text = format!(
            "interfaces: [{{name: eth1}}]\nworkers: {{count: 1, beat_limit_ms: 500}}\nflows: {{limit: 2000}}\n\
             limits: {{services: 8, backends: 8}}\nadmin: {{socket: {}}}\nservices:\n{services}",
            socket.display()
        );
        fs::write(&path, text).unwrap();
        path
    }
}

fn service(port: u16, backend: &str) -> String {
    format!(
        "- {{name: s{port}, vip: 10.1.0.100, port: {port}, mode: nat, backends: [{{address: {backend}, port: 80}}]}}\n"
    )
}

/// All parts, the worker running over memory.
fn parts(config: Config, wanted: Arc<Wanted>) -> Parts<Xdp> {
    let host = Host::open(&config.settings).unwrap();
    let state = Arc::new(State::new(8, 8));
    let stats = Arc::new(WorkerStats::new(8, 8));
    let mut gate = Xdp::load(&config.settings.limits.xdp()).unwrap();
    gate.attach(0, host.net().ports[0].ifindex, false).unwrap();
    let net = host.net().clone();
    let reconciler =
        Reconciler::new(config.desired.clone(), net, Arc::clone(&state), vec![Arc::clone(&stats)]).unwrap();
    let setup = Setup {
        worker: WorkerId(0),
        workers: 1,
        flow_limit: 2000,
        state,
        directory: Arc::new(Directory::new(2000, 1)),
        stats: Arc::clone(&stats),
        wanted: Arc::clone(&wanted),
        seed: 1,
    };
    let handle = worker::spawn(worker::Parts {
        id: WorkerId(0),
        core: None,
        io: MemoryIo::new(2, 64).0,
        handler: Engine::new(setup),
        exchange: handoff::mesh(1, 1, 2048).unwrap().remove(0),
        snapshots: reconciler.reader(WorkerId(0)),
        stats,
        beat: drop,
        idle: Idle::default(),
    })
    .unwrap();
    let workers = vec![Served { handle, sockets: Vec::new() }];
    let health = Arc::new(control::http::health::State::new(Duration::from_secs(60)));
    Parts {
        config,
        host,
        reconciler,
        gate,
        workers,
        wanted,
        health,
        numbers: Default::default(),
        kubernetes: None,
    }
}

fn status(socket: &Path) -> Status {
    match ask(socket, &Request::Status {}).unwrap() {
        Reply::Status(status) => status,
        other => panic!("{other:?}"),
    }
}

fn reload(socket: &Path) -> Reload {
    match ask(socket, &Request::Reload {}).unwrap() {
        Reply::Reload(reload) => reload,
        other => panic!("{other:?}"),
    }
}

fn until(what: &str, wanted: impl Fn() -> bool) {
    let start = Instant::now();
    while !wanted() {
        assert!(start.elapsed() < PATIENCE, "{what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Runs control over `path` in the namespace while `test` talks to it, then stops it.
fn with_control(
    own: &Netns,
    path: &Path,
    wanted: &Arc<Wanted>,
    test: impl FnOnce(&mpsc::Sender<Signal>),
) -> Ending {
    let (signals, receiver) = mpsc::channel(1);
    let config = config::load(path).unwrap();
    let socket = config.settings.socket.clone();
    let wanted = Arc::clone(wanted);
    thread::scope(|scope| {
        let control = scope.spawn(|| own.enter(|| Control::new(parts(config, wanted)).run_until(receiver)));
        until("control listens", || control.is_finished() || ask(&socket, &Request::Status {}).is_ok());
        test(&signals);
        drop(signals);
        control.join().unwrap()
    })
}

#[test]
fn control_serves_reloads_resolves_and_leaves_nothing_behind() {
    if !is_root() {
        return;
    }
    let (own, far) = (Netns::new(), Netns::new());
    own.connect("eth1", &far, "far1");
    own.ip("addr add 10.1.0.1/24 dev eth1");
    for host in [2, 3, 4] {
        far.ip(&format!("addr add 10.1.0.{host}/24 dev far1"));
    }
    // What a killed run leaves.
    own.ip("link add weir0 type veth peer name weir1");
    let folder = Folder::new();
    let path = folder.configure(&service(80, "10.1.0.2"));
    let socket = folder.socket();
    let wanted = Arc::new(Wanted::new(16));
    let eth1 = own.ip("link show eth1").split(':').next().unwrap().parse().unwrap();
    let is_reachable = |addr: &str| own.ip(&format!("neigh show {addr}")).contains("lladdr");
    let ending = with_control(&own, &path, &wanted, |signals| {
        until("a backend's neighbour is resolved unasked", || is_reachable("10.1.0.2"));
        until("and in the tables", || status(&socket).neighbours.0 >= 1);
        assert!(!is_reachable("10.1.0.4"));
        wanted.push(Neighbour { link: eth1, addr: IpAddr::from([10, 1, 0, 4]) }).unwrap();
        until("a neighbour that a worker misses is resolved", || is_reachable("10.1.0.4"));

        let Ok(Reply::Interfaces(interfaces)) = ask(&socket, &Request::Interfaces {}) else { panic!() };
        let shown: Vec<_> = interfaces.iter().map(|row| (&*row.name, &*row.xdp, row.up)).collect();
        assert_eq!(shown, [("eth1", "native", true), ("weir1", "none", true)]);
        let weir1 = own.ip("link show weir1");
        assert!(weir1.starts_with(&format!("{}:", interfaces[1].ifindex)), "not the one left over: {weir1}");
        assert!(interfaces[0].addresses.contains(&"10.1.0.1/24".to_owned()));
        let Ok(Reply::Workers(workers)) = ask(&socket, &Request::Workers {}) else { panic!() };
        assert!(workers.len() == 1 && workers[0].alive && workers[0].turns > 0, "{workers:?}");
        let Ok(Reply::Flows(flows)) =
            ask(&socket, &Request::Flows { limit: 10, service: None, client: None, after: None })
        else {
            panic!()
        };
        assert!(flows.flows.is_empty() && !flows.more && flows.silent.is_empty(), "{flows:?}");
        let Ok(Reply::Drops(drops)) = ask(&socket, &Request::Drops { all: true }) else { panic!() };
        assert!(drops.drops.iter().any(|count| count.name == "no_backend"));
        assert!(drops.xdp.iter().any(|count| count.name == "not_ours"));

        folder.configure(&(service(80, "10.1.0.3") + &service(81, "10.1.0.2")));
        let done = reload(&socket);
        assert!(done.faults.is_empty(), "{done:?}");
        let Ok(Reply::Services(services)) = ask(&socket, &Request::Services {}) else { panic!() };
        let vips: Vec<_> = services.iter().map(|row| row.vips.join(" ")).collect();
        assert_eq!(vips, ["10.1.0.100:80/tcp", "10.1.0.100:81/tcp"]);
        let one = Request::Backends { service: Some("s80".into()) };
        let Ok(Reply::Backends(backends)) = ask(&socket, &one) else { panic!() };
        assert_eq!(backends.iter().map(|row| &*row.address).collect::<Vec<_>>(), ["10.1.0.3:80"]);
        until("the new backend's neighbour is resolved", || is_reachable("10.1.0.3"));

        for (name, services, fault) in [
            ("a fault in the file", service(0, "10.1.0.3"), "port"),
            ("too many services", (1..10).map(|port| service(port, "10.1.0.3")).collect(), "services"),
        ] {
            folder.configure(&services);
            let refused = reload(&socket);
            assert!(refused.faults.iter().any(|text| text.contains(fault)), "{name}: {refused:?}");
            assert_eq!(status(&socket).services, 2, "{name}: the old state holds");
            assert_eq!(status(&socket).last_reload, Some(refused));
        }
        let changed = fs::read_to_string(folder.configure(&service(80, "10.1.0.2")));
        fs::write(&path, changed.unwrap().replace("limit: 2000", "limit: 3000")).unwrap();
        let refused = reload(&socket);
        assert!(refused.faults[0].contains("restart"), "{refused:?}");

        folder.configure(&service(90, "10.1.0.2"));
        signals.blocking_send(Signal::Reload).unwrap();
        until("a signal reloads", || status(&socket).services == 1);
        assert_eq!(status(&socket).workers, (1, 1));
        let second = own.enter(|| Host::open(&config::load(&path).unwrap().settings));
        assert!(matches!(second, Err(HostError::Listen(_))), "another weir is running");
    });
    ending.result.unwrap();
    assert!(ending.panics.is_empty());
    assert!(!socket.exists());
    let links = own.ip("link show");
    assert!(!links.contains("weir") && !links.contains("xdp"), "{links}");
}

#[test]
fn an_interface_that_is_not_there_is_named_and_nothing_stays() {
    if !is_root() {
        return;
    }
    let own = Netns::new();
    let folder = Folder::new();
    let path = folder.configure(&service(80, "10.1.0.2"));
    let refused = own.enter(|| Host::open(&config::load(&path).unwrap().settings)).unwrap_err();
    assert!(matches!(&refused, HostError::NoInterface(name) if &**name == "eth1"), "{refused}");
    assert!(!folder.socket().exists());
    assert!(!own.ip("link show").contains("weir"));
}
