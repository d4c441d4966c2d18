use std::sync::atomic::{AtomicU32, Ordering};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::*;
use crate::metrics::kubernetes::Kubernetes;
use crate::model::Family;

/// The checks with their server on loopback.
struct Served {
    checks: Arc<Checks>,
    health: Arc<health::State>,
    notices: mpsc::Receiver<Notice>,
    _server: Aborting,
}

struct Aborting(JoinHandle<()>);

impl Drop for Aborting {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn start() -> Served {
    let (outbox, notices) = Outbox::new(Kubernetes::default());
    let checks = Arc::new(Checks::default());
    checks.listen_on(vec![Ipv4Addr::LOCALHOST.into()]);
    let health = Arc::new(health::State::new(Duration::from_secs(60)));
    let server = tokio::spawn(serve(Arc::clone(&checks), Arc::clone(&health), outbox, "node-1".into()));
    Served { checks, health, notices, _server: Aborting(server) }
}

fn name(name: &str) -> Key {
    Key { namespace: "shop".into(), name: name.into() }
}

fn check(port: u16, local_endpoints: usize) -> Check {
    Check { uid: Some("3f".into()), port, local_endpoints }
}

/// A port that nobody listens on. It is below those that the kernel gives to clients, so that none takes it meanwhile, and
/// no other test of this process gets it.
async fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    loop {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = 12_000 + (std::process::id().wrapping_mul(61).wrapping_add(step)) % 20_000;
        let port = u16::try_from(port).unwrap();
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await.is_ok() {
            return port;
        }
    }
}

/// The whole answer to a request; `None` where nobody listens.
async fn ask(port: u16, request_line: &str) -> Option<String> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.ok()?;
    let request = format!("{request_line} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.ok()?;
    Some(answer)
}

/// Asks until the answer begins like this, or nobody listens for the empty text.
async fn until(port: u16, want: &str) -> String {
    for _ in 0..200 {
        let answer = ask(port, "GET /").await.unwrap_or_default();
        if answer.starts_with(want) && answer.is_empty() == want.is_empty() {
            return answer;
        }
        sleep(Duration::from_millis(10)).await;
    }
    panic!("port {port} does not answer {want:?}");
}

#[tokio::test]
async fn the_answer_is_kube_proxys_byte_for_byte_whatever_is_asked() {
    let served = start();
    let port = free_port().await;
    served.checks.set(name("web"), check(port, 3));
    until(port, "HTTP/1.1 200 OK\r\n").await;
    for request in ["GET /", "GET /healthz?x=1", "POST /any/thing", "DELETE /", "OPTIONS *"] {
        let answer = ask(port, request).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let head = head.to_ascii_lowercase();
        assert!(head.starts_with("http/1.1 200 ok\r\n"), "{request}: {head}");
        for field in [
            "content-type: application/json",
            "x-content-type-options: nosniff",
            "x-load-balancing-endpoint-weight: 3",
        ] {
            assert!(head.lines().any(|line| line == field), "{request}: {field} is not in {head}");
        }
        let want = "{\n\t\"service\": {\n\t\t\"namespace\": \"shop\",\n\t\t\"name\": \"web\"\n\t},\n\t\"localEndpoints\": \
                    3,\n\t\"serviceProxyHealthy\": true\n}";
        assert_eq!(body, want, "{request}");
    }
}

#[tokio::test]
async fn endpoints_and_the_nodes_health_decide_on_the_status() {
    let served = start();
    let port = free_port().await;
    // Endpoints, whether this node works; status, and what the body says.
    for (endpoints, works, status, tells) in [
        (1, true, "200 OK", "\"localEndpoints\": 1,\n\t\"serviceProxyHealthy\": true"),
        (0, true, "503 Service Unavailable", "\"localEndpoints\": 0,\n\t\"serviceProxyHealthy\": true"),
        (2, false, "503 Service Unavailable", "\"localEndpoints\": 2,\n\t\"serviceProxyHealthy\": false"),
        (2, true, "200 OK", "\"localEndpoints\": 2,\n\t\"serviceProxyHealthy\": true"),
    ] {
        let now = Instant::now();
        served.health.updated(Family::V4, now);
        if !works {
            served.health.queued(Family::V4, now.checked_sub(Duration::from_secs(61)).unwrap());
        }
        served.checks.set(name("web"), check(port, endpoints));
        let answer = until(port, &format!("HTTP/1.1 {status}\r\n")).await;
        assert!(answer.contains(tells), "{answer}");
        assert!(answer.contains(&format!("x-load-balancing-endpoint-weight: {endpoints}\r\n")), "{answer}");
    }
}

#[tokio::test]
async fn a_node_that_is_leaving_still_answers_for_its_endpoints() {
    let served = start();
    let port = free_port().await;
    served.health.node(health::Node::Leaving("a taint"));
    served.checks.set(name("web"), check(port, 1));
    until(port, "HTTP/1.1 200 OK\r\n").await;
}

#[tokio::test]
async fn ports_open_move_and_close_with_their_services() {
    let served = start();
    let (first, second) = (free_port().await, free_port().await);
    served.checks.set(name("a"), check(first, 1));
    until(first, "HTTP/1.1 200").await;
    served.checks.set(name("a"), check(second, 1));
    until(second, "HTTP/1.1 200").await;
    until(first, "").await;
    // Two Services that change ports with each other.
    served.checks.set(name("b"), check(first, 1));
    until(first, "HTTP/1.1 200").await;
    served.checks.set(name("a"), check(first, 4));
    served.checks.set(name("b"), check(second, 5));
    for (port, service, endpoints) in [(first, "a", 4), (second, "b", 5)] {
        for attempt in 0.. {
            let answer = ask(port, "GET /").await.unwrap_or_default();
            if answer.contains(&format!("\"name\": \"{service}\"")) {
                assert!(answer.contains(&format!("\"localEndpoints\": {endpoints},")), "{answer}");
                break;
            }
            assert!(attempt < 300, "{port} never became {service}'s: {answer}");
            sleep(Duration::from_millis(10)).await;
        }
    }
    served.checks.remove(&name("a"));
    served.checks.remove(&name("b"));
    until(first, "").await;
    until(second, "").await;
}

#[tokio::test]
async fn a_connection_ends_with_its_check() {
    let served = start();
    let port = free_port().await;
    served.checks.set(name("a"), check(port, 1));
    until(port, "HTTP/1.1 200").await;
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    assert!(stream.read(&mut [0; 1024]).await.unwrap() > 0);
    served.checks.remove(&name("a"));
    let read = timeout(Duration::from_secs(5), stream.read(&mut [0; 1])).await.unwrap();
    assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
}

#[tokio::test]
async fn a_port_that_is_taken_is_told_and_tried_again_and_holds_up_no_other() {
    let mut served = start();
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let (port, other) = (taken.local_addr().unwrap().port(), free_port().await);
    served.checks.set(name("a"), check(port, 1));
    served.checks.set(name("b"), check(other, 1));
    until(other, "HTTP/1.1 200").await;
    let notice = served.notices.recv().await.unwrap();
    assert_eq!(notice.object, Reference::service("shop".into(), "a".into(), Some("3f".into())));
    assert_eq!(notice.reason, Reason::SERVICE_HEALTH_SERVER);
    let text = format!("node node-1 failed to start healthcheck \"shop/a\" on port {port}: ");
    assert!(notice.message.starts_with(&text), "{}", notice.message);
    drop(taken);
    served.checks.synced();
    until(port, "HTTP/1.1 200").await;
}

#[tokio::test]
async fn other_addresses_of_the_node_take_the_places_of_those_before() {
    let served = start();
    let port = free_port().await;
    served.checks.set(name("a"), check(port, 1));
    until(port, "HTTP/1.1 200").await;
    let other = Ipv4Addr::new(127, 0, 0, 2);
    served.checks.listen_on(vec![other.into()]);
    until(port, "").await;
    TcpStream::connect((other, port)).await.unwrap();
    served.checks.listen_on(vec![other.into(), Ipv4Addr::LOCALHOST.into()]);
    until(port, "HTTP/1.1 200").await;
}
