//! Kubernetes as a source: what of kube-proxy's configuration and of Weir's own makes one, and its start.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
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
