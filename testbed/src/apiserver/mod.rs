//! A double of the Kubernetes API server: HTTP/1.1 and TLS, objects with versions, lists in pages, watches, and what
//! goes wrong with them, on command.
//!
//! It serves Services, EndpointSlices, Nodes, ServiceCIDRs and Events as kube-apiserver does: `limit` and `continue` at
//! one version, watches from a version or with `sendInitialEvents`, bookmarks, label and field selectors, `410` for
//! what is compacted, `Status` objects for refusals, client certificates and bearer tokens. It does not validate or
//! default objects: what a test puts is what is served. [`Cluster`] holds the objects and outlives a server, so that
//! one can be restarted; [`Faults`] makes requests and watches go wrong; [`objects`] makes objects as controllers do.

mod access;
mod answer;
mod cluster;
mod fault;
mod listen;
pub mod objects;
mod resource;
mod selector;
mod status;
mod stream;

use std::collections::HashSet;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use axum::Router;
use tokio::sync::oneshot;

pub use access::{Access, Identity};
pub use cluster::Cluster;
pub use fault::{Cut, Fault, Faults, Verb};
pub use resource::Resource;

/// How a server is.
#[derive(Clone, Debug)]
pub struct Options {
    /// With TLS, and who asks has to be known ([`Access`]). Without: HTTP, for everybody.
    pub tls: bool,
    /// How often watches get bookmarks.
    pub beat: Duration,
    /// Watches last so long at most.
    pub longest_watch: Duration,
    /// Resources that this server is too old to have.
    pub missing: HashSet<Resource>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            tls: true,
            beat: Duration::from_secs(60),
            longest_watch: Duration::from_secs(1800),
            missing: HashSet::new(),
        }
    }
}

/// A request that was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Its method.
    pub method: String,
    /// Its path and query.
    pub uri: String,
    /// Who asked.
    pub user: Option<String>,
    /// The status code of the answer.
    pub status: u16,
}

/// What all connections share.
#[derive(Debug)]
struct Shared {
    cluster: Arc<Cluster>,
    access: Arc<Access>,
    faults: Arc<Faults>,
    beat: Duration,
    longest_watch: Mutex<Duration>,
    missing: HashSet<Resource>,
    requests: Mutex<Vec<Request>>,
}

impl Shared {
    fn is_served(&self, resource: Resource) -> bool {
        !self.missing.contains(&resource)
    }

    fn note(&self, request: Request) {
        locked(&self.requests).push(request);
    }

    fn longest_watch(&self) -> Duration {
        *locked(&self.longest_watch)
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A server, running in a thread of its own until this goes out of scope.
#[derive(Debug)]
pub struct ApiServer {
    addr: SocketAddr,
    tls: bool,
    shared: Arc<Shared>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl ApiServer {
    /// Starts one on the loopback interface, at a port of the kernel's choice, over an empty cluster.
    ///
    /// # Errors
    /// When it cannot listen.
    pub fn start(options: Options) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let access = Arc::new(Access::new(!options.tls)?);
        Self::start_at(listener, options, Arc::default(), access, Arc::default())
    }

    /// Starts one that listens there, over `cluster`, for those who are known to `access`.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn start_at(
        listener: TcpListener,
        options: Options,
        cluster: Arc<Cluster>,
        access: Arc<Access>,
        faults: Arc<Faults>,
    ) -> Result<Self> {
        let addr = listener.local_addr()?;
        let acceptor = options.tls.then(|| access.acceptor(&[addr.ip()])).transpose()?;
        let shared = Arc::new(Shared {
            cluster,
            access,
            faults,
            beat: options.beat,
            longest_watch: Mutex::new(options.longest_watch),
            missing: options.missing,
            requests: Mutex::default(),
        });
        listener.set_nonblocking(true)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let connections = {
            let _inside = runtime.enter();
            listen::Connections::accept(tokio::net::TcpListener::from_std(listener)?, acceptor)
        };
        let app = Router::new().fallback(answer::answer).with_state(Arc::clone(&shared));
        let app = app.into_make_service_with_connect_info::<listen::Peer>();
        let (stop, stopped) = oneshot::channel::<()>();
        let serve = move || {
            runtime.block_on(async {
                tokio::select! {
                    // Both ends are the end.
                    _ = async { axum::serve(connections, app).await } => {}
                    _ = stopped => {}
                }
            });
            // Ends all connections.
            runtime.shutdown_background();
        };
        let thread = std::thread::Builder::new().name("apiserver".into()).spawn(serve)?;
        Ok(Self { addr, tls: options.tls, shared, stop: Some(stop), thread: Some(thread) })
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Its URL.
    pub fn url(&self) -> String {
        format!("{}://{}", if self.tls { "https" } else { "http" }, self.addr)
    }

    /// Its objects.
    pub fn cluster(&self) -> &Arc<Cluster> {
        &self.shared.cluster
    }

    /// Who may ask.
    pub fn access(&self) -> &Arc<Access> {
        &self.shared.access
    }

    /// What goes wrong.
    pub fn faults(&self) -> &Arc<Faults> {
        &self.shared.faults
    }

    /// New watches last so long at most.
    pub fn limit_watches(&self, longest: Duration) {
        *locked(&self.shared.longest_watch) = longest;
    }

    /// The requests so far.
    pub fn requests(&self) -> Vec<Request> {
        locked(&self.shared.requests).clone()
    }

    /// A kubeconfig for it, for whoever has `token`.
    pub fn kubeconfig(&self, token: &str) -> String {
        self.shared.access.kubeconfig(&self.url(), &serde_json::json!({"token": token}))
    }

    /// Ends it with all its connections, and starts another at the same place, over the same objects.
    ///
    /// # Errors
    /// When the place is taken meanwhile.
    pub fn restart(self) -> Result<Self> {
        let cluster = Arc::clone(&self.shared.cluster);
        self.restart_over(cluster)
    }

    /// As [`ApiServer::restart`], over other objects, as after the loss of etcd's.
    ///
    /// # Errors
    /// When the place is taken meanwhile.
    pub fn restart_over(mut self, cluster: Arc<Cluster>) -> Result<Self> {
        self.end()?;
        let shared = &self.shared;
        let options = Options {
            tls: self.tls,
            beat: shared.beat,
            longest_watch: shared.longest_watch(),
            missing: shared.missing.clone(),
        };
        let listener =
            TcpListener::bind(self.addr).with_context(|| format!("listening at {} again", self.addr))?;
        Self::start_at(listener, options, cluster, Arc::clone(&shared.access), Arc::clone(&shared.faults))
    }

    fn end(&mut self) -> Result<()> {
        drop(self.stop.take());
        match self.thread.take().map(JoinHandle::join) {
            Some(Err(_)) => Err(anyhow!("the API server's double panicked")),
            _ => Ok(()),
        }
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        // A panic of its own has been told.
        let _ = self.end();
    }
}
