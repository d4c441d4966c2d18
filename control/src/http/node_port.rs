//! Services' health checks for load balancers in front of the cluster: has this node a backend of its own?
//!
//! A Service of type LoadBalancer whose external traffic stays on the node (`externalTrafficPolicy: Local`) has a
//! `healthCheckNodePort`. Whoever connects to it, with whatever request, learns how many of the Service's endpoints are on
//! this node: 200 where there is one and this node works, else 503.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use axum::http::header::{CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::IntoResponse;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::health;
use super::listen::{self, Guests, Patience};
use crate::source::kubernetes::notice::{Notice, Outbox, Reason, Reference};
use crate::source::kubernetes::object::Key;

/// How many endpoints there are, for load balancers that weigh nodes.
const WEIGHT: HeaderName = HeaderName::from_static("x-load-balancing-endpoint-weight");
/// Connections to all health checks at a time at most.
const CONNECTIONS_MAX: usize = 256;
/// A port that could not be opened is tried again with the next change, but not more often than this.
const PAUSE: Duration = Duration::from_secs(1);
/// Without a change it is tried again after this.
const RETRY: Duration = Duration::from_secs(30);

/// A Service's health check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// The Service's UID, for Events.
    pub uid: Option<Arc<str>>,
    /// Its `healthCheckNodePort`.
    pub port: u16,
    /// Its ready endpoints on this node, each address once.
    pub local_endpoints: usize,
}

/// The health checks that there shall be. Shared by who knows the Services and who serves the checks.
#[derive(Debug, Default)]
pub struct Checks {
    book: Mutex<Book>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Book {
    checks: HashMap<Key, Check>,
    /// The node's addresses to listen on; none: all.
    addresses: Vec<IpAddr>,
    /// The Services whose checks have come, gone or got another port.
    news: BTreeSet<Key>,
    /// Whether the addresses have changed.
    moved: bool,
}

impl Checks {
    /// A Service has this check, instead of one that it may have had.
    pub fn set(&self, service: Key, check: Check) {
        let mut book = self.lock();
        let port = check.port;
        let before = book.checks.insert(service.clone(), check);
        if before.is_none_or(|before| before.port != port) {
            book.news.insert(service);
            self.changed.notify_one();
        }
    }

    /// A Service has none.
    pub fn remove(&self, service: &Key) {
        let mut book = self.lock();
        if book.checks.remove(service).is_some() {
            book.news.insert(service.clone());
            self.changed.notify_one();
        }
    }

    /// The checks are on these addresses of the node, on all where there are none here.
    pub fn listen_on(&self, addresses: Vec<IpAddr>) {
        let mut book = self.lock();
        if book.addresses != addresses {
            book.addresses = addresses;
            book.moved = true;
            self.changed.notify_one();
        }
    }

    /// Changes got into force: a good moment to try again what did not go before.
    pub fn synced(&self) {
        self.changed.notify_one();
    }

    fn local_endpoints(&self, service: &Key) -> usize {
        self.lock().checks.get(service).map_or(0, |check| check.local_endpoints)
    }

    fn lock(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Serves the checks until the future is dropped. `node` is the own Node's name.
pub async fn serve(checks: Arc<Checks>, health: Arc<health::State>, outbox: Outbox, node: Arc<str>) {
    let guests = Guests::new(CONNECTIONS_MAX);
    let open = HashMap::new();
    let mut desk = Desk { checks, health, outbox, node, guests, open, failed: BTreeSet::new() };
    loop {
        desk.follow().await;
        if desk.failed.is_empty() {
            desk.checks.changed.notified().await;
        } else {
            // What else changes waits for this pause, too.
            sleep(PAUSE).await;
            let _ = timeout(RETRY, desk.checks.changed.notified()).await;
        }
    }
}

/// What is open, and what could not be opened.
struct Desk {
    checks: Arc<Checks>,
    health: Arc<health::State>,
    outbox: Outbox,
    node: Arc<str>,
    guests: Arc<Guests>,
    open: HashMap<Key, Open>,
    failed: BTreeSet<Key>,
}

/// A check's port with its listeners, one an address.
struct Open {
    port: u16,
    listeners: JoinSet<()>,
}

impl Desk {
    /// Closes and opens what has changed, and tries again what did not go before.
    async fn follow(&mut self) {
        let (mut news, addresses, moved) = {
            let mut book = self.checks.lock();
            let mut news = std::mem::take(&mut book.news);
            let moved = std::mem::take(&mut book.moved);
            if moved {
                news.extend(book.checks.keys().cloned());
            }
            (news, book.addresses.clone(), moved)
        };
        news.append(&mut self.failed);
        // Before anything is opened: a port may go from one Service to another.
        for service in &news {
            let wanted = self.checks.lock().checks.get(service).map(|check| check.port);
            if self.open.get(service).is_some_and(|open| moved || Some(open.port) != wanted)
                && let Some(mut open) = self.open.remove(service)
            {
                open.listeners.shutdown().await;
            }
        }
        for service in news {
            let check = self.checks.lock().checks.get(&service).cloned();
            if let Some(check) = check.filter(|_| !self.open.contains_key(&service)) {
                self.open(service, &check, &addresses);
            }
        }
    }

    /// Opens a check's port on all addresses, or on none.
    fn open(&mut self, service: Key, check: &Check, addresses: &[IpAddr]) {
        let all = [Ipv4Addr::UNSPECIFIED.into()];
        let addresses = if addresses.is_empty() { &all } else { addresses };
        let port = check.port;
        let opened: io::Result<Vec<_>> =
            addresses.iter().map(|address| listen::open(SocketAddr::new(*address, port))).collect();
        match opened {
            Ok(opened) => {
                let page = page(service.clone(), Arc::clone(&self.checks), Arc::clone(&self.health));
                let mut listeners = JoinSet::new();
                for listener in opened {
                    let guests = Arc::clone(&self.guests);
                    listeners.spawn(listen::serve(listener, page.clone(), guests, Patience::default()));
                }
                self.open.insert(service, Open { port, listeners });
            }
            Err(error) => {
                let node = &self.node;
                let message =
                    format!("node {node} failed to start healthcheck \"{service}\" on port {port}: {error}");
                tracing::warn!("{message}");
                let Key { namespace, name } = service.clone();
                let object = Reference::service(namespace, name, check.uid.clone());
                self.outbox.tell(Notice::warning(object, Reason::SERVICE_HEALTH_SERVER, message));
                self.failed.insert(service);
            }
        }
    }
}

/// The one page of a check, whatever is asked for.
fn page(service: Key, checks: Arc<Checks>, health: Arc<health::State>) -> Router {
    let answer = async move || {
        let endpoints = checks.local_endpoints(&service);
        let is_serving = health.is_serving(Instant::now());
        let is_good = endpoints > 0 && is_serving;
        let code = if is_good { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        let headers = [
            (CONTENT_TYPE, HeaderValue::from_static("application/json")),
            (X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
            (WEIGHT, HeaderValue::from(endpoints)),
        ];
        (code, headers, body(&service, endpoints, is_serving)).into_response()
    };
    Router::new().fallback(answer)
}

/// What is told, in kube-proxy's very layout.
fn body(service: &Key, endpoints: usize, is_serving: bool) -> String {
    let quoted = |text: &str| serde_json::Value::from(text).to_string();
    let (namespace, name) = (quoted(&service.namespace), quoted(&service.name));
    format!(
        "{{\n\t\"service\": {{\n\t\t\"namespace\": {namespace},\n\t\t\"name\": {name}\n\t}},\n\t\
         \"localEndpoints\": {endpoints},\n\t\"serviceProxyHealthy\": {is_serving}\n}}"
    )
}

#[cfg(test)]
mod tests;
