//! What was counted, for Prometheus.
//!
//! kube-proxy's names where they mean the same ([`kubernetes`]), Weir's own beside them. Everything is read when it is
//! asked for, from counters that their owners write without waiting for anybody; nothing here is in the way of a packet
//! or of control. `docs/metrics.md` lists all of it.

pub mod control;
pub mod kubernetes;
mod process;
mod services;
mod workers;
mod write;
mod xdp;

use std::sync::Arc;

use prometheus_client::encoding::{prometheus_text, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

use self::process::Process;
use self::services::Services;
use self::workers::Workers;
use self::write::Labels;
use self::xdp::Xdp;
use crate::daemon::Served;
use crate::http::health::Page;
use crate::reconcile::Reconciler;

/// A notation for metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Prometheus's text format, 0.0.4.
    Prometheus,
    /// OpenMetrics 1.0.
    OpenMetrics,
}

impl Format {
    /// What an `Accept` header asks for: OpenMetrics only where that is named and not liked less than plain text.
    pub fn accepted(accept: &str) -> Self {
        let quality = |media: &str| {
            let entries = accept.split(',').map(|entry| entry.split(';').map(str::trim));
            let found = entries.filter_map(|mut parts| {
                let name = parts.next()?;
                let quality = parts.filter_map(|part| part.strip_prefix("q=")).next();
                name.eq_ignore_ascii_case(media).then(|| quality.map_or(1.0, |q| q.parse().unwrap_or(0.0)))
            });
            found.fold(0.0, f64::max)
        };
        let open = quality("application/openmetrics-text");
        if open > 0.0 && open >= quality("text/plain") { Self::OpenMetrics } else { Self::Prometheus }
    }

    /// The media type of the answer.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Prometheus => prometheus_text::CONTENT_TYPE,
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// Everything that is counted.
#[derive(Debug, Default)]
pub struct Metrics {
    registry: Registry,
}

impl Metrics {
    /// What the process itself costs, and room for more.
    pub fn new() -> Self {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Process));
        Self { registry }
    }

    /// What workers count, each of which has room for so many flows.
    pub fn add_workers(&mut self, workers: &[Served], flow_limit: usize) {
        self.registry.register_collector(Box::new(Workers::new(workers, flow_limit)));
    }

    /// What services get, the first `limit` ones told one by one.
    pub fn add_services(&mut self, reconciler: &Reconciler, limit: usize) {
        let (state, stats) = (Arc::clone(reconciler.state()), reconciler.stats().to_vec());
        let services = Services::new(reconciler.watch(), state, stats, limit);
        self.registry.register_collector(Box::new(services));
    }

    /// What the XDP program counts.
    pub fn add_xdp(&mut self, counters: xdp_prog::Counters) {
        self.registry.register_collector(Box::new(Xdp(counters)));
    }

    /// Where more is registered.
    pub fn registry(&mut self) -> &mut Registry {
        &mut self.registry
    }

    /// All of it now. Takes some time where there are many services.
    pub fn text(&self, format: Format) -> String {
        let mut text = String::new();
        let written = match format {
            Format::Prometheus => prometheus_text::encode(&mut text, &self.registry),
            Format::OpenMetrics => text::encode(&mut text, &self.registry),
        };
        if let Err(error) = written {
            tracing::error!(%error, "the metrics cannot be written");
        }
        text
    }
}

/// How often the pages of [`crate::http`] were asked for.
#[derive(Clone, Debug, Default)]
pub struct Requests {
    health: Family<Labels<1>, Counter>,
    life: Family<Labels<1>, Counter>,
}

impl Requests {
    /// Counts an answer.
    pub fn count(&self, page: Page, code: &'static str) {
        let family = match page {
            Page::Health => &self.health,
            Page::Life => &self.life,
        };
        family.get_or_create(&Labels([("code", code.into())])).inc();
    }

    /// Has them exposed.
    pub fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("kubeproxy");
        registry.register("proxy_healthz", "Answers to /healthz", self.health.clone());
        registry.register("proxy_livez", "Answers to /livez", self.life.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_metrics_is_written_to_those_who_ask_for_it() {
        for (accept, want) in [
            ("", Format::Prometheus),
            ("*/*", Format::Prometheus),
            ("text/plain;version=0.0.4", Format::Prometheus),
            ("application/openmetrics-text", Format::OpenMetrics),
            (
                "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.1",
                Format::OpenMetrics,
            ),
            ("text/plain, application/openmetrics-text;q=0.5", Format::Prometheus),
            ("application/openmetrics-text;q=0", Format::Prometheus),
            ("application/openmetrics-text;q=nonsense", Format::Prometheus),
            (";;;,,;q=", Format::Prometheus),
        ] {
            assert_eq!(Format::accepted(accept), want, "{accept}");
        }
    }
}
