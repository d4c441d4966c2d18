//! Kubernetes as a source: what of kube-proxy's configuration and of Weir's own makes one, and its start.

use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use control::config::kube_proxy::{Change, change};
use control::config::{Config, KubeProxy};
use control::daemon::Host;
use control::daemon::kubernetes::Source;
use control::http::health;
use control::http::node_port::Checks;
use control::http::pages::Proxy;
use control::http::thread::Node;
use control::metrics::Metrics;
use control::metrics::kubernetes::Kubernetes;
use control::source::kubernetes::client::Server;
use control::source::kubernetes::notice::{Notice, Outbox, Reason, Reference};
use control::source::kubernetes::publish::{Ears, Surroundings};
use control::source::kubernetes::settings::Settings;
use control::source::kubernetes::status::Status;
use control::source::kubernetes::store::Configured;
use control::source::kubernetes::thread::{Parts, Thread};
use tokio::sync::mpsc;

use crate::cli::KubeProxyFlags;

/// How often it is looked whether kube-proxy's file is another.
const LOOK: Duration = Duration::from_secs(5);

/// Looks after the file of kube-proxy's configuration as long as the process runs, and tells when it says something else
/// than what is in force. kube-proxy ends then, and is started again; Weir's flows would end with it.
pub(super) fn look_after(flags: KubeProxyFlags, in_force: Arc<KubeProxy>) {
    let Some(file) = flags.file().map(Path::to_owned) else { return };
    let look = move || {
        let mut known = fs::read(&file).ok();
        loop {
            std::thread::sleep(LOOK);
            let Ok(now) = fs::read(&file) else { continue };
            if known.as_ref() == Some(&now) {
                continue;
            }
            known = Some(now);
            let file = file.display();
            match flags.load() {
                Err(_) => {
                    tracing::error!(%file, "kube-proxy's configuration is faulty; the one before stays in force")
                }
                Ok((new, _)) => match change(&in_force, &new) {
                    Change::None => tracing::info!(%file, "kube-proxy's configuration is the one in force"),
                    Change::Live(fields) | Change::RestartNeeded(fields) => {
                        let fields = fields.join(", ");
                        tracing::warn!(%file, fields, "kube-proxy's configuration has changed: restart weir");
                    }
                },
            }
        }
    };
    if let Err(error) = std::thread::Builder::new().name("kube-proxy-file".into()).spawn(look) {
        tracing::warn!(%error, "changes of kube-proxy's configuration will not be told");
    }
}

/// A source that is not started yet.
#[derive(Debug)]
pub(super) struct Feed {
    proxy: Arc<KubeProxy>,
    settings: Settings,
    counted: Kubernetes,
    checks: Arc<Checks>,
    outbox: Outbox,
    notices: mpsc::Receiver<Notice>,
}

impl Feed {
    /// What is to feed Weir, where Kubernetes is; `config` then has what kube-proxy's sets, and room for a cluster. `said`:
    /// whether the command line speaks of kube-proxy. Faults are told here; the error is the exit status that stands for
    /// them.
    pub(super) fn of(
        config: &mut Config,
        proxy: &Arc<KubeProxy>,
        said: bool,
    ) -> Result<Option<Self>, ExitCode> {
        if !config.kubernetes.enabled.unwrap_or(said) {
            if said {
                tracing::warn!(
                    "kubernetes.enabled is false: kube-proxy's configuration and flags have no effect"
                );
            }
            return Ok(None);
        }
        for warning in proxy.warnings_beside(&config.kubernetes) {
            tracing::warn!("{warning}");
        }
        let settings = crate::cli::settings_of_kubernetes(config, proxy)?;
        let counted = Kubernetes::default();
        let (outbox, notices) = Outbox::new(counted.clone());
        let checks = Arc::default();
        Ok(Some(Self { proxy: Arc::clone(proxy), settings, counted, checks, outbox, notices }))
    }

    /// The own Node's name.
    pub(super) fn node(&self) -> &Arc<str> {
        &self.settings.node
    }

    /// How long a change may wait until health suffers.
    pub(super) fn health_limit(&self) -> Duration {
        self.settings.sync_period * 2
    }

    /// Has what is counted exposed, and says what else is served over HTTP.
    pub(super) fn expose(&self, metrics: &mut Metrics) -> anyhow::Result<Node> {
        self.counted.register(metrics.registry());
        let configuration = serde_json::to_value(self.proxy.document()).context("/configz")?;
        Ok(Node {
            name: Arc::clone(&self.settings.node),
            checks: Arc::clone(&self.checks),
            outbox: self.outbox.clone(),
            proxy: Proxy { mode: self.proxy.mode().name().into(), configuration },
        })
    }

    /// Starts to watch.
    pub(super) fn start(
        self,
        config: &Config,
        host: &Host,
        health: Arc<health::State>,
    ) -> anyhow::Result<Source> {
        let Self { proxy, settings, counted, checks, outbox, notices } = self;
        let (client, section) = (proxy.client(), &config.kubernetes);
        let server = Server {
            kubeconfig: section.kubeconfig.clone().or(client.kubeconfig),
            // The command line counts for more than the file.
            master: client.master.or_else(|| section.master.clone()),
            qps: client.qps,
            burst: client.burst,
            ..Server::default()
        };
        let surroundings = Surroundings {
            addresses: host.addresses(),
            configured: Configured::of(&config.desired, &settings),
        };
        let node = Reference::node(Arc::clone(&settings.node));
        outbox.tell(Notice::normal(node, Reason::STARTING, "weir has started"));
        let status = Arc::new(Status::new(counted.clone()));
        let ears = Ears { health, counted, checks, outbox };
        let parts = Parts { server, settings: settings.clone(), status, ears, notices };
        let thread = Thread::start(parts, surroundings).context("starting the thread for Kubernetes")?;
        Ok(Source { thread, settings })
    }
}
