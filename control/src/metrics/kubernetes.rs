//! What is counted of Kubernetes as a source: kube-proxy's metrics that mean the same here, by kube-proxy's names, and
//! Weir's own of the API server and its objects.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets, linear_buckets};
use prometheus_client::registry::Registry;

use super::write::Labels;
use crate::model::Family as IpFamily;

type FloatGauge = Gauge<f64, std::sync::atomic::AtomicU64>;
type Histograms = Family<Labels<1>, Histogram, fn() -> Histogram>;

/// What objects are of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Objects {
    /// Services.
    Services,
    /// EndpointSlices.
    Endpoints,
}

/// Which of a Service's policies keeps traffic on the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrafficPolicy {
    /// `internalTrafficPolicy: Local`.
    Internal,
    /// `externalTrafficPolicy: Local`.
    External,
}

/// What became of something that was to be told in the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventFate {
    /// The API server has it.
    Sent,
    /// It was told already: it becomes a count.
    Repeated,
    /// The API server did not take it.
    Failed,
    /// There were too many at once.
    Lost,
}

impl EventFate {
    fn labels(self) -> Labels<1> {
        let fate = match self {
            Self::Sent => "sent",
            Self::Repeated => "repeated",
            Self::Failed => "failed",
            Self::Lost => "lost",
        };
        Labels([("fate", fate.into())])
    }
}

/// The counters. Cheap to clone: clones count on the same ones.
#[derive(Clone, Debug)]
pub struct Kubernetes {
    programming: Histograms,
    programming_fine: Histograms,
    sync: Histograms,
    last_sync: Family<Labels<1>, FloatGauge>,
    last_queued: Family<Labels<1>, FloatGauge>,
    service_changes: Counter,
    service_changes_pending: Gauge,
    endpoint_changes: Counter,
    endpoint_changes_pending: Gauge,
    no_local_endpoints: Family<Labels<2>, Gauge>,
    connected: Family<Labels<1>, Gauge>,
    errors: Family<Labels<2>, Counter>,
    relists: Family<Labels<1>, Counter>,
    objects: Family<Labels<1>, Gauge>,
    faults: Family<Labels<1>, Gauge>,
    events: Family<Labels<1>, Counter>,
}

impl Default for Kubernetes {
    fn default() -> Self {
        Self {
            programming: Family::new_with_constructor(|| Histogram::new(programming_buckets())),
            programming_fine: Family::new_with_constructor(|| {
                Histogram::new(exponential_buckets(0.000_5, 2.0, 16))
            }),
            sync: Family::new_with_constructor(|| Histogram::new(exponential_buckets(0.001, 2.0, 15))),
            last_sync: Family::default(),
            last_queued: Family::default(),
            service_changes: Counter::default(),
            service_changes_pending: Gauge::default(),
            endpoint_changes: Counter::default(),
            endpoint_changes_pending: Gauge::default(),
            no_local_endpoints: Family::default(),
            connected: Family::default(),
            errors: Family::default(),
            relists: Family::default(),
            objects: Family::default(),
            faults: Family::default(),
            events: Family::default(),
        }
    }
}

/// kube-proxy's buckets of network programming: 0.25, 0.5, 1 to 59, 60 to 115 by fives, 120 to 300 by thirties.
fn programming_buckets() -> impl Iterator<Item = f64> {
    linear_buckets(0.25, 0.25, 2)
        .chain(linear_buckets(1.0, 1.0, 59))
        .chain(linear_buckets(60.0, 5.0, 12))
        .chain(linear_buckets(120.0, 30.0, 7))
}

impl Kubernetes {
    /// Objects have changed, and so many changes wait now.
    pub fn changed(&self, objects: Objects, changes: u64, pending: usize) {
        let (total, gauge) = match objects {
            Objects::Services => (&self.service_changes, &self.service_changes_pending),
            Objects::Endpoints => (&self.endpoint_changes, &self.endpoint_changes_pending),
        };
        total.inc_by(changes);
        gauge.set(i64::try_from(pending).unwrap_or(i64::MAX));
    }

    /// A change of this family waits to get into force.
    pub fn queued(&self, family: IpFamily) {
        self.last_queued.get_or_create(&of(family)).set(unix_s());
    }

    /// All changes are in force that waited; those of this family took so long from the first step to the last.
    pub fn synced(&self, family: IpFamily, took: Duration) {
        self.sync.get_or_create(&of(family)).observe(took.as_secs_f64());
        self.last_sync.get_or_create(&of(family)).set(unix_s());
        self.service_changes_pending.set(0);
        self.endpoint_changes_pending.set(0);
    }

    /// Workers use an endpoint's change so long after what triggered it (the annotation
    /// `endpoints.kubernetes.io/last-change-trigger-time`).
    pub fn programmed(&self, family: IpFamily, latency: Duration) {
        self.programming.get_or_create(&of(family)).observe(latency.as_secs_f64());
        self.programming_fine.get_or_create(&of(family)).observe(latency.as_secs_f64());
    }

    /// So many Services have endpoints, but none on this node where this policy wants them.
    pub fn no_local_endpoints(&self, policy: TrafficPolicy, family: IpFamily, services: usize) {
        let policy = match policy {
            TrafficPolicy::Internal => "internal",
            TrafficPolicy::External => "external",
        };
        let labels = Labels([("traffic_policy", policy.into()), ("ip_family", family.name().into())]);
        self.no_local_endpoints.get_or_create(&labels).set(i64::try_from(services).unwrap_or(i64::MAX));
    }

    /// Whether the watch of a resource is up.
    pub fn connected(&self, resource: &'static str, is_up: bool) {
        self.connected.get_or_create(&Labels([("resource", resource.into())])).set(is_up.into());
    }

    /// The API server could not be used for a resource, in a way that has this name.
    pub fn error(&self, resource: &'static str, kind: &'static str) {
        let labels = Labels([("resource", resource.into()), ("kind", kind.into())]);
        self.errors.get_or_create(&labels).inc();
    }

    /// All objects of a resource were read again.
    pub fn relisted(&self, resource: &'static str) {
        self.relists.get_or_create(&Labels([("resource", resource.into())])).inc();
    }

    /// So many objects of a resource are known.
    pub fn objects(&self, resource: &'static str, count: usize) {
        let gauge = self.objects.get_or_create(&Labels([("resource", resource.into())]));
        gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// So many objects have a fault of this kind now.
    pub fn faults(&self, kind: &'static str, count: usize) {
        let gauge = self.faults.get_or_create(&Labels([("kind", kind.into())]));
        gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// Something was told in the cluster, or was not.
    pub fn event(&self, fate: EventFate) {
        self.events.get_or_create(&fate.labels()).inc();
    }

    /// How often that was so.
    pub fn events(&self, fate: EventFate) -> u64 {
        self.events.get_or_create(&fate.labels()).get()
    }

    /// Has all of them exposed.
    pub fn register(&self, registry: &mut Registry) {
        self.register_kube_proxys(registry.sub_registry_with_prefix("kubeproxy"));
        let own = registry.sub_registry_with_prefix("weir_kubernetes");
        let fine = self.programming_fine.clone();
        own.register(
            "programming_duration_seconds",
            "As network_programming_duration_seconds, but finer",
            fine,
        );
        own.register("api_connected", "Whether the watch of a resource is up", self.connected.clone());
        own.register("api_errors", "Failures of the API server, by kind", self.errors.clone());
        own.register("relists", "How often all objects were read again", self.relists.clone());
        own.register("objects", "Objects that are known", self.objects.clone());
        own.register("object_faults", "Objects that have a fault, by kind", self.faults.clone());
        own.register("events", "What was told in the cluster, by what became of it", self.events.clone());
    }

    fn register_kube_proxys(&self, registry: &mut Registry) {
        let latency = "Seconds from what triggered an endpoint's change until workers use it";
        registry.register("network_programming_duration_seconds", latency, self.programming.clone());
        let sync = "Seconds that it took to get changes into force";
        registry.register("sync_proxy_rules_duration_seconds", sync, self.sync.clone());
        let last = "When changes last got into force, in seconds since 1970";
        registry.register("sync_proxy_rules_last_timestamp_seconds", last, self.last_sync.clone());
        let queued = "When a change last came, in seconds since 1970";
        registry.register("sync_proxy_rules_last_queued_timestamp_seconds", queued, self.last_queued.clone());
        let changes = [
            ("service", &self.service_changes, &self.service_changes_pending),
            ("endpoint", &self.endpoint_changes, &self.endpoint_changes_pending),
        ];
        for (what, total, pending) in changes {
            let name = format!("sync_proxy_rules_{what}_changes");
            registry.register(&name, format!("Changes of {what}s that came"), total.clone());
            let help = format!("Changes of {what}s that are not in force yet");
            registry.register(format!("{name}_pending"), help, pending.clone());
        }
        registry.register(
            "sync_proxy_rules_no_local_endpoints_total",
            "Services with endpoints, none of which is on this node as a traffic policy wants it",
            self.no_local_endpoints.clone(),
        );
    }
}

fn of(family: IpFamily) -> Labels<1> {
    Labels([("ip_family", family.name().into())])
}

fn unix_s() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::{Format, Metrics};

    #[test]
    fn the_documentation_lists_all_of_them() {
        let counted = Kubernetes::default();
        counted.queued(IpFamily::V4);
        counted.synced(IpFamily::V4, Duration::ZERO);
        counted.programmed(IpFamily::V4, Duration::ZERO);
        counted.no_local_endpoints(TrafficPolicy::Internal, IpFamily::V4, 0);
        counted.connected("services", true);
        counted.error("services", "gone");
        counted.event(EventFate::Sent);
        counted.relisted("services");
        counted.objects("services", 0);
        counted.faults("annotation", 0);
        let mut metrics = Metrics::new();
        counted.register(metrics.registry());
        let text = metrics.text(Format::Prometheus);
        let documentation = include_str!("../../../docs/metrics.md");
        let families = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
        let told: Vec<_> = families.filter(|(name, _)| !name.starts_with("process_")).collect();
        assert_eq!(told.len(), 9 + 7 + 1, "{told:?}");
        for (name, kind) in told {
            assert!(documentation.contains(&format!("| `{name}` | {kind} |")), "{name}, a {kind}");
        }
    }

    #[test]
    fn kube_proxys_names_types_and_buckets_are_kept() {
        let counted = Kubernetes::default();
        counted.changed(Objects::Services, 3, 2);
        counted.changed(Objects::Endpoints, 5, 4);
        counted.queued(IpFamily::V4);
        counted.programmed(IpFamily::V6, Duration::from_millis(300));
        counted.no_local_endpoints(TrafficPolicy::External, IpFamily::V4, 7);
        let mut metrics = Metrics::new();
        counted.register(metrics.registry());
        let text = metrics.text(Format::Prometheus);
        let has = |line: &str| assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        has("# TYPE kubeproxy_sync_proxy_rules_service_changes_total counter");
        has("kubeproxy_sync_proxy_rules_service_changes_total 3");
        has("kubeproxy_sync_proxy_rules_service_changes_pending 2");
        has("kubeproxy_sync_proxy_rules_endpoint_changes_total 5");
        has("kubeproxy_sync_proxy_rules_endpoint_changes_pending 4");
        has("# TYPE kubeproxy_network_programming_duration_seconds histogram");
        let bucket = |le: &str, count: u32| {
            format!(
                "kubeproxy_network_programming_duration_seconds_bucket{{ip_family=\"IPv6\",le=\"{le}\"}} {count}"
            )
        };
        has(&bucket("0.25", 0));
        has(&bucket("0.5", 1));
        for le in ["1", "59", "60", "65", "115", "120", "150", "300", "+Inf"] {
            has(&bucket(le, 1));
        }
        let buckets =
            text.lines().filter(|line| line.starts_with("kubeproxy_network_programming_duration_seconds_b"));
        assert_eq!(buckets.count(), 2 + 59 + 12 + 7 + 1);
        has("# TYPE kubeproxy_sync_proxy_rules_no_local_endpoints_total gauge");
        has(
            "kubeproxy_sync_proxy_rules_no_local_endpoints_total{traffic_policy=\"external\",ip_family=\"IPv4\"} 7",
        );
        counted.synced(IpFamily::V4, Duration::from_micros(1500));
        let text = metrics.text(Format::Prometheus);
        let has = |line: &str| assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        has("kubeproxy_sync_proxy_rules_service_changes_pending 0");
        has("kubeproxy_sync_proxy_rules_duration_seconds_bucket{ip_family=\"IPv4\",le=\"0.001\"} 0");
        has("kubeproxy_sync_proxy_rules_duration_seconds_bucket{ip_family=\"IPv4\",le=\"0.002\"} 1");
        has("kubeproxy_sync_proxy_rules_duration_seconds_bucket{ip_family=\"IPv4\",le=\"16.384\"} 1");
    }
}
