//! Health and metrics over real HTTP, from the thread that serves them.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use control::http::health::{self, Node as Eligibility};
use control::http::node_port::{Check, Checks};
use control::http::pages::Proxy;
use control::http::thread::{Addresses, Node, Parts, StartError, Thread};
use control::metrics::Metrics;
use control::metrics::kubernetes::Kubernetes;
use control::model::Family;
use control::source::kubernetes::notice::{Notice, Outbox, Reason, Reference};
use control::source::kubernetes::object::Key;
use tokio::sync::mpsc;

const LIMIT: Duration = Duration::from_secs(60);

/// An address that nobody listens on. Its port is below those that the kernel gives to clients, so that none takes it
/// meanwhile, and no other test of this process gets it.
fn free_address() -> SocketAddr {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    loop {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = 12_000 + (std::process::id().wrapping_mul(61).wrapping_add(step)) % 20_000;
        let address = (Ipv4Addr::LOCALHOST, u16::try_from(port).unwrap()).into();
        if TcpListener::bind(address).is_ok() {
            return address;
        }
    }
}

/// An answer.
struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    fn has(&self, field: &str) -> bool {
        self.head.lines().any(|line| line.eq_ignore_ascii_case(field))
    }

    fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }
}

/// Asks, where need be for some seconds, until somebody listens.
fn ask(address: SocketAddr, method: &str, path: &str, accept: &str) -> Answer {
    let begun = Instant::now();
    let mut stream = loop {
        match TcpStream::connect(address) {
            Ok(stream) => break stream,
            Err(error) => assert!(begun.elapsed() < Duration::from_secs(15), "{address}: {error}"),
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    write!(stream, "{method} {path} HTTP/1.1\r\nhost: x\r\naccept: {accept}\r\nconnection: close\r\n\r\n")
        .unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Answer { status, head: head.to_owned(), body: body.to_owned() }
}

fn get(address: SocketAddr, path: &str) -> Answer {
    ask(address, "GET", path, "*/*")
}

/// A running thread and what it works with.
struct Running {
    health: SocketAddr,
    metrics: SocketAddr,
    state: Arc<health::State>,
    checks: Arc<Checks>,
    notices: mpsc::Receiver<Notice>,
    _thread: Thread,
}

fn start(health: SocketAddr, metrics: SocketAddr, hard_fail: bool) -> Result<Running, StartError> {
    let state = Arc::new(health::State::new(LIMIT));
    let checks = Arc::new(Checks::default());
    checks.listen_on(vec![Ipv4Addr::LOCALHOST.into()]);
    let (outbox, notices) = Outbox::new(Kubernetes::default());
    let proxy =
        Proxy { mode: "ipvs".into(), configuration: serde_json::json!({"mode": "ipvs", "clusterCIDR": ""}) };
    let node = Node { name: "node-1".into(), checks: Arc::clone(&checks), outbox, proxy };
    let mut counted = Metrics::new();
    Kubernetes::default().register(counted.registry());
    let thread = Thread::start(Parts {
        addresses: Addresses { health: Some(health), metrics: Some(metrics), hard_fail },
        health: Arc::clone(&state),
        metrics: counted,
        node: Some(node),
    })?;
    Ok(Running { health, metrics, state, checks, notices, _thread: thread })
}

fn started() -> Running {
    start(free_address(), free_address(), true).unwrap()
}

#[test]
fn healthz_and_livez_answer_as_kube_proxys_and_are_counted() {
    let running = started();
    let long_ago = Instant::now().checked_sub(2 * LIMIT).unwrap();
    for method in ["GET", "POST"] {
        let answer = ask(running.health, method, "/healthz", "*/*");
        assert_eq!(answer.status, 200, "{method}");
        assert!(
            answer.has("content-type: application/json") && answer.has("x-content-type-options: nosniff")
        );
        assert_eq!(answer.json()["nodeEligible"], true);
        assert_eq!(answer.json()["lastUpdated"], answer.json()["currentTime"]);
    }
    running.state.node(Eligibility::Leaving("the taint ToBeDeletedByClusterAutoscaler"));
    let (healthz, livez) = (get(running.health, "/healthz"), get(running.health, "/livez"));
    assert_eq!((healthz.status, livez.status), (503, 200));
    assert_eq!(healthz.json()["nodeEligible"], false);
    assert_eq!(livez.json().get("nodeEligible"), None);
    running.state.updated(Family::V4, long_ago);
    running.state.queued(Family::V4, long_ago);
    assert_eq!(get(running.health, "/livez").status, 503);
    assert_eq!(get(running.health, "/metrics").status, 404);
    let text = get(running.metrics, "/metrics").body;
    for line in [
        "kubeproxy_proxy_healthz_total{code=\"200\"} 2",
        "kubeproxy_proxy_healthz_total{code=\"503\"} 1",
        "kubeproxy_proxy_livez_total{code=\"200\"} 1",
        "kubeproxy_proxy_livez_total{code=\"503\"} 1",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
    }
}

#[test]
fn the_metrics_listener_tells_mode_configuration_and_metrics_in_the_notation_asked_for() {
    let running = started();
    let mode = get(running.metrics, "/proxyMode");
    assert_eq!((mode.status, &*mode.body), (200, "ipvs"));
    assert!(mode.has("content-type: text/plain; charset=utf-8"));
    assert_eq!(get(running.metrics, "/healthz").body, "ok");
    let configz = get(running.metrics, "/configz");
    assert!(configz.has("content-type: application/json"));
    let want = serde_json::json!({"kubeproxy.config.k8s.io": {"mode": "ipvs", "clusterCIDR": ""}});
    assert_eq!(configz.json(), want);
    for (accept, media, end) in [
        ("*/*", "content-type: text/plain; version=0.0.4; charset=utf-8", false),
        (
            "application/openmetrics-text; version=1.0.0",
            "content-type: application/openmetrics-text; version=1.0.0; charset=utf-8",
            true,
        ),
    ] {
        let answer = ask(running.metrics, "GET", "/metrics", accept);
        assert_eq!(answer.status, 200);
        assert!(answer.has(media), "{}", answer.head);
        assert_eq!(answer.body.ends_with("# EOF\n"), end, "{accept}");
        assert!(answer.body.contains("\nkubeproxy_sync_proxy_rules_service_changes_total 0\n"));
    }
    assert_eq!(get(running.metrics, "/livez").status, 404);
}

#[test]
fn without_kubernetes_there_is_no_mode_and_no_configuration() {
    let (health, metrics) = (free_address(), free_address());
    let _thread = Thread::start(Parts {
        addresses: Addresses { health: Some(health), metrics: Some(metrics), hard_fail: true },
        health: Arc::new(health::State::new(LIMIT)),
        metrics: Metrics::new(),
        node: None,
    })
    .unwrap();
    for (path, status) in [("/metrics", 200), ("/healthz", 200), ("/proxyMode", 404), ("/configz", 404)] {
        assert_eq!(get(metrics, path).status, status, "{path}");
    }
    assert_eq!(get(health, "/livez").status, 200);
}

#[test]
fn an_address_in_use_is_fatal_where_that_is_wanted() {
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = taken.local_addr().unwrap();
    let refusal = start(free_address(), address, true).err().expect("the address is taken");
    let text = refusal.to_string();
    assert!(text.starts_with(&format!("cannot listen on {address} for metrics: ")), "{text}");
}

#[test]
fn else_an_address_in_use_is_told_and_tried_again() {
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = taken.local_addr().unwrap();
    let mut running = start(address, free_address(), false).unwrap();
    assert_eq!(get(running.metrics, "/healthz").status, 200);
    let notice = running.notices.blocking_recv().unwrap();
    assert_eq!((notice.object, notice.reason), (Reference::node("node-1".into()), Reason::HEALTH_SERVER));
    drop(taken);
    assert_eq!(get(address, "/healthz").status, 200);
}

#[test]
fn services_health_checks_follow_the_nodes_health() {
    let running = started();
    let check = free_address();
    let web = Key { namespace: "shop".into(), name: "web".into() };
    running.checks.set(web.clone(), Check { uid: None, port: check.port(), local_endpoints: 2 });
    assert_eq!(get(check, "/").status, 200);
    let long_ago = Instant::now().checked_sub(2 * LIMIT).unwrap();
    running.state.updated(Family::V6, long_ago);
    running.state.queued(Family::V6, long_ago);
    let answer = get(check, "/");
    assert_eq!((answer.status, &answer.json()["serviceProxyHealthy"]), (503, &false.into()));
    assert!(answer.has("x-load-balancing-endpoint-weight: 2"));
}

#[test]
fn all_ports_are_free_once_the_thread_has_ended() {
    let running = started();
    let (health, metrics) = (running.health, running.metrics);
    assert_eq!(get(health, "/healthz").status, 200);
    drop(running);
    TcpListener::bind(health).unwrap();
    TcpListener::bind(metrics).unwrap();
}
