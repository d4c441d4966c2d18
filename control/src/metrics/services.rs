//! What services got, for so many of them.
//!
//! Backends' counters go on when a backend goes and another gets its slot, so what is told of a service is summed up from
//! scrape to scrape: it never goes back. Backends that came and went between two scrapes are missed.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use dataplane::ids::{BackendId, ServiceId};
use dataplane::snapshot::Service;
use dataplane::snapshot::publish::Watch;
use dataplane::state::State;
use dataplane::stats::WorkerStats;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;

use super::write::{Labels, Writer};

type Map<K, V> = HashMap<K, V, ahash::RandomState>;

/// Flows, packets and bytes in, packets and bytes out.
type Traffic = [u64; 5];

/// Reads tables and counters when asked.
#[derive(Debug)]
pub(super) struct Services {
    published: Watch,
    state: Arc<State>,
    stats: Vec<Arc<WorkerStats>>,
    limit: usize,
    totals: Mutex<Totals>,
}

#[derive(Debug, Default)]
struct Totals {
    /// Whether counters were looked at before. What is there the first time has come since the start.
    is_later: bool,
    services: Map<String, Total>,
}

#[derive(Debug, Default)]
struct Total {
    traffic: Traffic,
    refused: u64,
    /// What the counters showed at the last look.
    backends: Map<BackendId, Traffic>,
    services: Map<ServiceId, u64>,
}

/// A service, or the services of a group, now.
#[derive(Debug, Default)]
struct Row<'a> {
    name: &'a str,
    services: Vec<&'a Service>,
}

impl Services {
    /// The first `limit` services are told of.
    pub(super) fn new(
        published: Watch,
        state: Arc<State>,
        stats: Vec<Arc<WorkerStats>>,
        limit: usize,
    ) -> Self {
        Self { published, state, stats, limit, totals: Mutex::default() }
    }

    fn traffic(&self, id: BackendId) -> Traffic {
        let mut sum = Traffic::default();
        for counters in self.stats.iter().filter_map(|stats| stats.backend(id)) {
            let of = [
                &counters.flows,
                &counters.packets_in,
                &counters.bytes_in,
                &counters.packets_out,
                &counters.bytes_out,
            ];
            sum.iter_mut().zip(of).for_each(|(sum, counter)| *sum += counter.get());
        }
        sum
    }

    fn refused(&self, id: ServiceId) -> u64 {
        self.stats.iter().filter_map(|stats| stats.refused(id)).map(|counter| counter.get()).sum()
    }

    /// Adds what has come since the last look.
    fn look(&self, total: &mut Total, row: &Row<'_>, is_later: bool) {
        let (mut backends, mut services) = (Map::default(), Map::default());
        for service in &row.services {
            let now = self.refused(service.id);
            let before = total.services.get(&service.id).copied().unwrap_or(if is_later { now } else { 0 });
            total.refused += now.saturating_sub(before);
            services.insert(service.id, now);
            // Services of a group share backends.
            for id in service.backends.iter().map(|backend| backend.id) {
                if backends.contains_key(&id) {
                    continue;
                }
                let now = self.traffic(id);
                let fresh = if is_later { now } else { Traffic::default() };
                let before = total.backends.get(&id).copied().unwrap_or(fresh);
                for ((sum, now), before) in total.traffic.iter_mut().zip(now).zip(before) {
                    *sum += now.saturating_sub(before);
                }
                backends.insert(id, now);
            }
        }
        (total.backends, total.services) = (backends, services);
    }

    /// Flows by whether they are active.
    fn flows(&self, row: &Row<'_>) -> (u64, u64) {
        let ids: std::collections::BTreeSet<_> = row
            .services
            .iter()
            .flat_map(|service| service.backends.iter())
            .map(|backend| backend.id.0)
            .collect();
        ids.into_iter().filter_map(|id| self.state.backend(BackendId(id))).fold((0, 0), |sum, backend| {
            let (active, inactive) = backend.counts();
            (sum.0 + u64::from(active), sum.1 + u64::from(inactive))
        })
    }
}

/// The first services, those of a group as one, and how many are left out.
fn rows<'a>(services: impl Iterator<Item = &'a Service>, limit: usize) -> (Vec<Row<'a>>, usize) {
    let mut places: Map<&str, usize> = Map::default();
    let mut rows: Vec<Row<'a>> = Vec::new();
    let mut left_out = std::collections::HashSet::<&str, ahash::RandomState>::default();
    for service in services {
        let whole: &str = &service.name;
        let name = match (&service.group, whole.rsplit_once('/')) {
            (Some(_), Some((group, _))) => group,
            _ => whole,
        };
        if let Some(row) = places.get(name).and_then(|place| rows.get_mut(*place)) {
            row.services.push(service);
        } else if rows.len() < limit {
            places.insert(name, rows.len());
            rows.push(Row { name, services: vec![service] });
        } else {
            left_out.insert(name);
        }
    }
    (rows, left_out.len())
}

impl Collector for Services {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let snapshot = self.published.current();
        let (rows, left_out) = rows(snapshot.services.iter(), self.limit);
        let mut totals = self.totals.lock().unwrap_or_else(PoisonError::into_inner);
        let is_later = std::mem::replace(&mut totals.is_later, true);
        let mut before = std::mem::take(&mut totals.services);
        let mut told = Vec::with_capacity(rows.len());
        for row in &rows {
            let mut total = before.remove(row.name).unwrap_or_default();
            self.look(&mut total, row, is_later);
            told.push(Line {
                service: row.name.to_owned(),
                traffic: total.traffic,
                refused: total.refused,
                flows: self.flows(row),
            });
            totals.services.insert(row.name.to_owned(), total);
        }
        drop(totals);
        Told { rows: told, left_out }.write(&mut Writer(encoder))
    }
}

/// What is told of a service.
struct Line {
    service: String,
    traffic: Traffic,
    refused: u64,
    /// Active and inactive.
    flows: (u64, u64),
}

struct Told {
    rows: Vec<Line>,
    left_out: usize,
}

impl Told {
    fn write(&self, writer: &mut Writer<'_>) -> fmt::Result {
        writer.counters("weir_service_flows_opened", "Flows opened", self.one(|line| line.traffic[0]))?;
        writer.counters(
            "weir_service_refused",
            "New flows that were refused",
            self.one(|line| line.refused),
        )?;
        let packets = self.two("direction", ["in", "out"], |line| [line.traffic[1], line.traffic[3]]);
        writer.counters("weir_service_packets", "Packets from clients and to them", packets)?;
        let bytes = self.two("direction", ["in", "out"], |line| [line.traffic[2], line.traffic[4]]);
        writer.counters(
            "weir_service_bytes",
            "Bytes from clients and to them, from the IP header on",
            bytes,
        )?;
        let flows = self.two("state", ["active", "inactive"], |line| [line.flows.0, line.flows.1]);
        writer.gauges("weir_service_flows", "Flows of the present backends", flows)?;
        let help = "Services that are not told of one by one";
        writer.gauges("weir_services_left_out", help, [(Labels([]), self.left_out as u64)])
    }

    fn one(&self, pick: fn(&Line) -> u64) -> impl Iterator<Item = (Labels<1>, u64)> {
        self.rows.iter().map(move |line| (Labels([("service", line.service.clone().into())]), pick(line)))
    }

    fn two(
        &self,
        label: &'static str,
        values: [&'static str; 2],
        pick: fn(&Line) -> [u64; 2],
    ) -> impl Iterator<Item = (Labels<2>, u64)> {
        self.rows.iter().flat_map(move |line| {
            let service = |value: &'static str| {
                Labels([("service", line.service.clone().into()), (label, value.into())])
            };
            values.map(service).into_iter().zip(pick(line))
        })
    }
}
