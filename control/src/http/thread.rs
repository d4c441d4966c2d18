//! The thread that answers over HTTP.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use axum::Router;
use tokio::net::TcpListener;
use tokio::runtime::Builder;
use tokio::sync::oneshot;
use tokio::time::{interval, sleep};

use super::health;
use super::listen::{self, Guests, Patience};
use super::node_port::{self, Checks};
use super::pages::{self, Proxy};
use crate::metrics::{Metrics, Requests};
use crate::source::kubernetes::notice::{Notice, Outbox, Reason, Reference};

/// How often an address is tried again that could not be listened on.
const RETRY: Duration = Duration::from_secs(5);
/// How often workers are looked at.
const LOOK: Duration = Duration::from_secs(1);
/// Connections to the health page, and to the metrics page, at a time at most.
const CONNECTIONS_MAX: usize = 64;

/// Why the thread did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An address cannot be listened on, and that was not to be waited for.
    #[error("cannot listen on {address} for {what}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What for.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
    /// No thread, or no event loop.
    #[error("cannot start the thread for health and metrics: {0}")]
    Thread(#[from] io::Error),
}

/// Where to listen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Addresses {
    /// For `/healthz` and `/livez`.
    pub health: Option<SocketAddr>,
    /// For `/metrics` and the rest.
    pub metrics: Option<SocketAddr>,
    /// Whether an address that cannot be listened on is an error and not tried again (`bindAddressHardFail`).
    pub hard_fail: bool,
}

/// What is needed for Services' health checks.
#[derive(Clone, Debug)]
pub struct Node {
    /// The own Node's name.
    pub name: Arc<str>,
    /// The checks.
    pub checks: Arc<Checks>,
    /// Where notices go.
    pub outbox: Outbox,
    /// What is told of the mode and the configuration.
    pub proxy: Proxy,
}

/// What the thread works with.
#[derive(Debug)]
pub struct Parts {
    /// Where it listens.
    pub addresses: Addresses,
    /// What is noted of health.
    pub health: Arc<health::State>,
    /// What is counted.
    pub metrics: Metrics,
    /// With Kubernetes as a source.
    pub node: Option<Node>,
}

/// The running thread. It ends when this is dropped.
#[derive(Debug)]
pub struct Thread {
    // `Option` only for their end.
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Thread {
    /// Starts it, in the calling thread's network namespace.
    pub fn start(parts: Parts) -> Result<Self, StartError> {
        let runtime = Builder::new_current_thread().enable_all().max_blocking_threads(1).build()?;
        let (stop, stopped) = oneshot::channel();
        let tasks = {
            let _inside = runtime.enter();
            Tasks::open(parts)?
        };
        let thread = std::thread::Builder::new().name("weir-http".into()).spawn(move || {
            runtime.block_on(async move {
                tokio::select! {
                    _ = stopped => {}
                    () = tasks.run() => {}
                }
            });
        })?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // It has nothing to say in the end, and a panic of its own was printed.
            let _ = thread.join();
        }
    }
}

/// What runs in the thread.
struct Tasks {
    health: Option<Site>,
    metrics: Option<Site>,
    node: Option<Node>,
    state: Arc<health::State>,
}

/// Pages with their address, and the listener where that was opened at once.
struct Site {
    address: SocketAddr,
    what: &'static str,
    reason: Reason,
    pages: Router,
    listener: Option<TcpListener>,
}

impl Tasks {
    fn open(parts: Parts) -> Result<Self, StartError> {
        let Parts { addresses, health: state, mut metrics, node } = parts;
        let requests = Requests::default();
        requests.register(metrics.registry());
        let site = |address: Option<SocketAddr>, what, reason, pages| -> Result<Option<Site>, StartError> {
            let Some(address) = address else { return Ok(None) };
            let listener = match listen::open(address) {
                Ok(listener) => Some(listener),
                Err(source) if addresses.hard_fail => {
                    return Err(StartError::Listen { address, what, source });
                }
                // It is tried again, and told then.
                Err(_) => None,
            };
            Ok(Some(Site { address, what, reason, pages, listener }))
        };
        let proxy = node.as_ref().map(|node| node.proxy.clone());
        let health = pages::health(&state, &requests);
        let health = site(addresses.health, "health", Reason::HEALTH_SERVER, health)?;
        let metrics = pages::metrics(Arc::new(metrics), proxy);
        let metrics = site(addresses.metrics, "metrics", Reason::METRICS_SERVER, metrics)?;
        Ok(Self { health, metrics, node, state })
    }

    async fn run(self) {
        let Self { health, metrics, node, state } = self;
        let told = |site: Option<Site>| {
            let node = node.as_ref().map(|node| (Arc::clone(&node.name), node.outbox.clone()));
            async move {
                if let Some(site) = site {
                    site.serve(node).await;
                }
            }
        };
        let checks = async {
            if let Some(Node { name, checks, outbox, .. }) = node.clone() {
                node_port::serve(checks, Arc::clone(&state), outbox, name).await;
            }
        };
        let watching = async {
            let mut look = interval(LOOK);
            loop {
                look.tick().await;
                state.look(Instant::now());
            }
        };
        tokio::join!(told(health), told(metrics), checks, watching);
    }
}

impl Site {
    /// Serves the pages, once their address can be listened on.
    async fn serve(self, node: Option<(Arc<str>, Outbox)>) {
        let Self { address, what, reason, pages, mut listener } = self;
        let listener = loop {
            match listener.take().map_or_else(|| listen::open(address), Ok) {
                Ok(listener) => break listener,
                Err(error) => {
                    let message = format!("cannot listen on {address} for {what}: {error}; trying again");
                    tracing::warn!("{message}");
                    if let Some((name, outbox)) = &node {
                        outbox.tell(Notice::warning(Reference::node(Arc::clone(name)), reason, message));
                    }
                    sleep(RETRY).await;
                }
            }
        };
        tracing::info!(%address, "serving {what}");
        listen::serve(listener, pages, Guests::new(CONNECTIONS_MAX), Patience::default()).await;
    }
}
