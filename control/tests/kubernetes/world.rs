//! A feed that runs, and what it has told so far.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use control::config::Section;
use control::config::kube_proxy::{Flags, KubeProxy, settings};
use control::source::kubernetes::client::{Connection, Server};
use control::source::kubernetes::event::{Event, Update};
use control::source::kubernetes::feed::feed;
use control::source::kubernetes::settings::Settings;
use control::source::kubernetes::status::{Resource, Status};
use tempfile::TempDir;
use testbed::apiserver::objects::numbered;
use testbed::apiserver::{self, ApiServer, Options};
use tokio::sync::oneshot;

/// What a test waits for comes in this time, or never.
pub(crate) const LIMIT: Duration = Duration::from_secs(40);
/// Who has it is known to every server of these tests.
pub(crate) const TOKEN: &str = "secret";
/// The own Node's name.
pub(crate) const NODE: &str = "node-7";

/// Objects of a kind, as told: what makes them differ, by name.
#[derive(Debug, Default)]
pub(crate) struct Told {
    pub(crate) objects: BTreeMap<String, String>,
    /// Of the list that is being read.
    listed: Option<BTreeSet<String>>,
    /// Lists that were complete.
    pub(crate) lists: usize,
    /// The least number of objects since there were some.
    pub(crate) least: Option<usize>,
}

impl Told {
    fn take<T>(&mut self, update: Update<T>, describe: impl Fn(&T) -> (String, String)) {
        match update {
            Update::Restarted => self.listed = Some(BTreeSet::new()),
            Update::Applied(object) => {
                let (name, what) = describe(&object);
                if let Some(listed) = &mut self.listed {
                    listed.insert(name.clone());
                }
                self.objects.insert(name, what);
            }
            Update::Deleted(key) => drop(self.objects.remove(&key.to_string())),
            Update::Undecodable(_) => {}
            Update::Complete => {
                let listed = self.listed.take().expect("a list ends that did not begin");
                self.objects.retain(|name, _| listed.contains(name));
                self.lists += 1;
            }
        }
        if self.lists > 0 {
            self.least = Some(self.least.unwrap_or(usize::MAX).min(self.objects.len()));
        }
    }
}

/// All that was told.
#[derive(Debug, Default)]
pub(crate) struct Model {
    pub(crate) services: Told,
    pub(crate) slices: Told,
    pub(crate) cidrs: Told,
    /// The own Node's zone; outer `None` until it is told whether there is one.
    pub(crate) zone: Option<Option<String>>,
}

impl Model {
    fn take(&mut self, event: Event) {
        match event {
            Event::Service(update) => {
                self.services
                    .take(update, |service| (service.key.to_string(), format!("{:?}", service.cluster_ips)));
            }
            Event::Slice(update) => {
                self.slices.take(update, |slice| {
                    let addresses: Vec<_> = slice.endpoints.iter().map(|endpoint| endpoint.addr).collect();
                    (slice.key.to_string(), format!("{addresses:?}"))
                });
            }
            Event::Cidr(update) => {
                self.cidrs.take(update, |cidr| (format!("/{}", cidr.name), format!("{:?}", cidr.cidrs)));
            }
            Event::Node(node) => {
                self.zone = Some(node.and_then(|node| Some(node.zone?.to_string())));
            }
            Event::HostAddresses(_) | Event::Configured(_) => {}
        }
    }
}

/// A feed in a thread of its own, which ends with this.
pub(crate) struct World {
    pub(crate) model: Arc<Mutex<Model>>,
    pub(crate) status: Arc<Status>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl World {
    pub(crate) fn start(server: Server) -> Self {
        Self::start_with(server, kubernetes_settings())
    }

    pub(crate) fn start_with(server: Server, settings: Settings) -> Self {
        let (model, status) = (Arc::<Mutex<Model>>::default(), Arc::<Status>::default());
        let (stop, stopped) = oneshot::channel::<()>();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (told, noted) = (Arc::clone(&model), Arc::clone(&status));
        let thread = std::thread::spawn(move || {
            let sink = |event| told.lock().unwrap().take(event);
            let connection = Connection::new(server);
            runtime.block_on(async {
                tokio::select! {
                    _ = feed(&connection, &settings, &noted, sink) => {}
                    _ = stopped => {}
                }
            });
            runtime.shutdown_background();
        });
        Self { model, status, stop: Some(stop), thread: Some(thread) }
    }

    /// Waits until it is as `is_it` says; panics with `what` and all that was told.
    pub(crate) fn until(&self, what: &str, is_it: impl Fn(&Model, &Status) -> bool) {
        let deadline = Instant::now() + LIMIT;
        while !is_it(&self.model.lock().unwrap(), &self.status) {
            assert!(
                Instant::now() < deadline,
                "{what}: {:?} {:?}",
                self.status.watched(),
                self.model.lock().unwrap()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until everything was read once.
    pub(crate) fn until_synced(&self) {
        self.until("all is read", |_, status| status.watched().iter().all(|(_, watched)| watched.synced));
    }

    /// Waits until what was told is what the server has.
    pub(crate) fn until_same(&self, server: &ApiServer) {
        let want = cluster_ips(server);
        self.until("the services are the server's", |model, _| model.services.objects == want);
        let want: BTreeSet<_> = names(server, apiserver::Resource::EndpointSlices);
        self.until("the slices are the server's", |model, _| {
            model.slices.objects.keys().cloned().collect::<BTreeSet<_>>() == want
        });
    }

    /// Waits for a trouble of this kind with a resource.
    pub(crate) fn until_trouble(&self, resource: Resource, kind: &str) {
        self.until(&format!("{resource} has trouble: {kind}"), |_, status| {
            let trouble = status.watched()[resource as usize].1.trouble.clone();
            trouble.is_some_and(|(trouble, _)| trouble.kind.name() == kind)
        });
    }

    /// Waits until nothing is wrong.
    pub(crate) fn until_fine(&self) {
        self.until("nothing is wrong", |_, status| status.troubles().is_empty());
    }

    pub(crate) fn lists(&self, resource: Resource) -> u64 {
        self.status.watched()[resource as usize].1.lists
    }
}

impl Drop for World {
    fn drop(&mut self) {
        drop(self.stop.take());
        let ended = self.thread.take().map(JoinHandle::join);
        if !std::thread::panicking() {
            ended.unwrap().unwrap();
        }
    }
}

fn names(server: &ApiServer, resource: apiserver::Resource) -> BTreeSet<String> {
    let name = |object: serde_json::Value| {
        let word = |key: &str| object["metadata"][key].as_str().unwrap_or_default().to_owned();
        format!("{}/{}", word("namespace"), word("name"))
    };
    server.cluster().objects(resource).into_iter().map(name).collect()
}

fn cluster_ips(server: &ApiServer) -> BTreeMap<String, String> {
    let names = names(server, apiserver::Resource::Services);
    let objects = server.cluster().objects(apiserver::Resource::Services);
    let addresses = objects.iter().map(|object| {
        let addr: std::net::IpAddr = object["spec"]["clusterIP"].as_str().unwrap().parse().unwrap();
        format!("{:?}", [addr])
    });
    names.into_iter().zip(addresses).collect()
}

/// What Kubernetes is understood by without any configuration.
pub(crate) fn kubernetes_settings() -> Settings {
    let proxy = KubeProxy::without_file(&Flags::default()).unwrap();
    settings(&proxy, &Section::default(), NODE).unwrap()
}

/// A server with TLS that knows [`TOKEN`] and has so many Services, each with a slice of three endpoints, and a Node.
pub(crate) fn server(services: u32) -> ApiServer {
    server_with(Options::default(), services)
}

pub(crate) fn server_with(options: Options, services: u32) -> ApiServer {
    let server = ApiServer::start(options).unwrap();
    server.access().allow_token(TOKEN, "system:kube-proxy");
    for object in (0..services).flat_map(|number| numbered(number, 3)) {
        server.cluster().put(object).unwrap();
    }
    let node = apiserver::objects::node(NODE, &[[192, 168, 0, 2].into()], &["10.244.0.0/24"]);
    server.cluster().put(node).unwrap();
    server
}

/// Changes the cluster address of a Service.
pub(crate) fn change(server: &ApiServer, number: u32, host: u8) {
    let [mut service, _] = numbered(number, 3);
    let addr = format!("10.97.0.{host}");
    service["spec"]["clusterIP"] = addr.as_str().into();
    service["spec"]["clusterIPs"] = serde_json::json!([addr]);
    server.cluster().put(service).unwrap();
}

/// Where a kubeconfig is, and the way to a server by it.
pub(crate) struct Way {
    pub(crate) directory: TempDir,
    pub(crate) path: PathBuf,
}

impl Way {
    pub(crate) fn new(text: &str) -> Self {
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("kubeconfig.conf");
        std::fs::write(&path, text).unwrap();
        Self { directory, path }
    }

    pub(crate) fn server(&self) -> Server {
        Server { kubeconfig: Some(self.path.clone()), qps: None, ..Server::default() }
    }
}

/// A feed from this server.
pub(crate) fn fed(server: &ApiServer) -> (World, Way) {
    let way = Way::new(&server.kubeconfig(TOKEN));
    (World::start(way.server()), way)
}
