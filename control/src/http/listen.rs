//! The listening end of every page: what one client can cost is bounded, and so is what all of them can.
//!
//! A request's head has so many bytes and so much time, an answer has to be taken in its time, and where all connections
//! are in use a new one ends the oldest: whoever holds connections open keeps nobody else away.

use std::collections::VecDeque;
use std::io;
use std::net::{Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, SockaddrIn6, bind, listen, setsockopt, socket,
    sockopt,
};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{sleep, timeout};

/// Bytes of a request's head at most.
const HEAD_MAX: usize = 16 << 10;
/// Header fields of a request at most.
const FIELDS_MAX: usize = 64;
/// Connections that the kernel keeps until they are taken.
const BACKLOG: i32 = 128;

/// How long a client may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// For a request's head, and between two requests.
    pub head: Duration,
    /// For all that it asks by one connection; then that is ended as soon as nothing is being answered.
    pub life: Duration,
    /// And how long then for the last answer.
    pub rest: Duration,
}

impl Default for Patience {
    /// 10 s for a head, a minute for all requests of a connection and half of one for the last answer.
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self { head: seconds(10), life: seconds(60), rest: seconds(30) }
    }
}

/// Listens on `address`. The address of all interfaces is that of both families, where the machine has both.
///
/// In the current runtime.
pub fn open(address: SocketAddr) -> io::Result<TcpListener> {
    if address.ip().is_unspecified() {
        match open_on(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), address.port())) {
            // IPv6 is off.
            Err(error) if no_ipv6(&error) && address.is_ipv4() => open_on(address),
            result => result,
        }
    } else {
        open_on(address)
    }
}

fn no_ipv6(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL))
}

fn open_on(address: SocketAddr) -> io::Result<TcpListener> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let socket = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)?;
    // A restart must not wait for connections of the run before.
    setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    match address {
        SocketAddr::V4(v4) => bind(socket.as_raw_fd(), &SockaddrIn::from(v4))?,
        SocketAddr::V6(v6) => {
            setsockopt(&socket, sockopt::Ipv6V6Only, &!v6.ip().is_unspecified())?;
            bind(socket.as_raw_fd(), &SockaddrIn6::from(v6))?;
        }
    }
    listen(&socket, Backlog::new(BACKLOG)?)?;
    TcpListener::from_std(std::net::TcpListener::from(socket))
}

/// Answers what comes in by `pages` until the future is dropped, which ends all its connections. They are `guests`,
/// together with those of other listeners.
pub async fn serve(listener: TcpListener, pages: Router, guests: Arc<Guests>, patience: Patience) {
    let mut own = JoinSet::new();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => guests.admit(own.spawn(converse(stream, pages.clone(), patience))),
            // Out of descriptors, most likely: they come back when connections end.
            Err(error) => {
                tracing::debug!(%error, "HTTP connection not accepted");
                sleep(Duration::from_millis(100)).await;
            }
        }
        while own.try_join_next().is_some() {}
    }
}

async fn converse(stream: TcpStream, pages: Router, patience: Patience) {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(patience.head)
        .max_headers(FIELDS_MAX)
        .max_buf_size(HEAD_MAX);
    let mut connection = pin!(http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(pages)));
    // How it ends is the client's affair.
    if timeout(patience.life, connection.as_mut()).await.is_err() {
        connection.as_mut().graceful_shutdown();
        let _ = timeout(patience.rest, connection).await;
    }
}

/// The connections of one or more listeners, so many at a time.
#[derive(Debug)]
pub struct Guests {
    limit: usize,
    /// The oldest first.
    open: Mutex<VecDeque<AbortHandle>>,
}

impl Guests {
    /// Room for so many.
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit, open: Mutex::default() })
    }

    fn admit(&self, guest: AbortHandle) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if open.len() >= self.limit {
            open.retain(|guest| !guest.is_finished());
        }
        if open.len() >= self.limit
            && let Some(oldest) = open.pop_front()
        {
            oldest.abort();
        }
        open.push_back(guest);
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};
    use std::time::Instant;

    use axum::routing::any;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    const SHORT: Patience = Patience {
        head: Duration::from_millis(300),
        life: Duration::from_millis(900),
        rest: Duration::from_millis(300),
    };

    /// A listener with a short page, a long one and one that answers late.
    fn start(limit: usize) -> (SocketAddr, tokio::task::JoinHandle<()>) {
        let pages = Router::new()
            .route("/", any(async || "hello"))
            .route("/long", any(async || vec![b'x'; 64 << 20]))
            .route("/late", any(async || sleep(Duration::from_millis(1100)).await));
        let listener = open((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let address = listener.local_addr().unwrap();
        (address, tokio::spawn(serve(listener, pages, Guests::new(limit), SHORT)))
    }

    /// What comes back for `request`, until the other end closes.
    async fn ask(address: SocketAddr, request: &[u8]) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request).await.unwrap();
        let mut answer = Vec::new();
        // A reset ends it as well.
        let _ = stream.read_to_end(&mut answer).await;
        String::from_utf8_lossy(&answer).into_owned()
    }

    fn get(path: &str) -> Vec<u8> {
        format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").into_bytes()
    }

    #[tokio::test]
    async fn requests_that_are_no_good_are_refused_and_others_go_on() {
        let (address, _server) = start(8);
        let many = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(FIELDS_MAX + 1));
        let large = format!("GET / HTTP/1.1\r\na: {}\r\n\r\n", "x".repeat(HEAD_MAX));
        for (what, request, want) in [
            ("a good one", get("/"), "HTTP/1.1 200"),
            ("no HTTP", b"\x16\x03\x01\x02\x00\x01\x00\x01\r\n\r\n".to_vec(), "HTTP/1.1 400"),
            ("too many fields", many.into_bytes(), "HTTP/1.1 431"),
            ("too large a head", large.into_bytes(), "HTTP/1.1 431"),
            ("no such page", get("/else"), "HTTP/1.1 404"),
            ("nothing", Vec::new(), ""),
            ("half a head", b"GET / HTTP/1.1\r\nhost: ".to_vec(), ""),
        ] {
            let begun = Instant::now();
            let answer = ask(address, &request).await;
            assert!(answer.starts_with(want) && (want.is_empty() == answer.is_empty()), "{what}: {answer:?}");
            assert!(begun.elapsed() < SHORT.life, "{what} took {:?}", begun.elapsed());
        }
    }

    #[tokio::test]
    async fn who_does_not_take_the_answer_is_left_after_a_while() {
        let (address, _server) = start(8);
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(&get("/long")).await.unwrap();
        sleep(SHORT.life + SHORT.rest + Duration::from_millis(300)).await;
        let mut taken = 0;
        let mut piece = vec![0; 1 << 20];
        while let Ok(read @ 1..) = stream.read(&mut piece).await {
            taken += read;
        }
        assert!(taken < 64 << 20, "{taken}");
    }

    #[tokio::test]
    async fn an_answer_that_is_under_way_when_the_connections_time_is_up_is_sent() {
        let (address, _server) = start(8);
        let answer = ask(address, b"GET /late HTTP/1.1\r\nhost: x\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer:?}");
    }

    #[tokio::test]
    async fn where_all_connections_are_in_use_a_new_one_ends_the_oldest() {
        let (address, _server) = start(4);
        let mut idle = Vec::new();
        for _ in 0..4 {
            idle.push(TcpStream::connect(address).await.unwrap());
        }
        let begun = Instant::now();
        assert!(ask(address, &get("/")).await.starts_with("HTTP/1.1 200"));
        let read = idle[0].read(&mut [0; 1]).await;
        assert!(matches!(read, Ok(0) | Err(_)) && begun.elapsed() < SHORT.head, "{read:?}");
    }

    #[tokio::test]
    async fn the_end_of_a_listener_ends_its_connections_and_frees_its_port() {
        let (address, server) = start(4);
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        assert!(stream.read(&mut [0; 512]).await.unwrap() > 0);
        server.abort();
        let _ = server.await;
        assert!(matches!(stream.read(&mut [0; 1]).await, Ok(0) | Err(_)));
        open(address).unwrap();
    }

    #[tokio::test]
    async fn the_address_of_all_interfaces_is_that_of_both_families() {
        for all in [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)] {
            let listener = open((all, 0).into()).unwrap();
            let port = listener.local_addr().unwrap().port();
            TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.unwrap();
            TcpStream::connect((Ipv6Addr::LOCALHOST, port)).await.unwrap();
        }
        let six = open((Ipv6Addr::LOCALHOST, 0).into()).unwrap();
        let port = six.local_addr().unwrap().port();
        assert!(TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.is_err());
    }
}
