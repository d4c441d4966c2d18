//! Results as they are stored, shown and compared.

use std::path::PathBuf;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use testbed::Origin;

use crate::machine::{self, change};
use crate::numbers::Percentiles;
use crate::peer::Peer;

/// One run of the bench.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Report {
    #[serde(flatten)]
    origin: Origin,
    pub(crate) costs: Vec<Cost>,
    #[serde(default)]
    pub(crate) peers: Vec<Peer>,
}

/// What a cluster costs.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Cost {
    /// Services, of ten endpoints each.
    pub(crate) services: u32,
    /// The control thread's time to read all objects.
    pub(crate) decode_cpu_ms: f64,
    /// The control thread's time from objects to tables that workers use.
    pub(crate) load_cpu_ms: f64,
    /// And to fill the XDP program's maps then.
    pub(crate) maps_cpu_ms: f64,
    /// Both, by the clock.
    pub(crate) load_ms: f64,
    /// The control thread's time for a change of one endpoint, from the EndpointSlice's text.
    pub(crate) change_cpu_ms: Percentiles,
    /// From such a text until every worker uses what it says.
    pub(crate) visible_ms: Percentiles,
    /// Memory before the first object: slabs and counters as far as they are touched, the program.
    pub(crate) resident_empty_mib: f64,
    /// Memory of all of it, the source's store included, after the first load.
    pub(crate) resident_mib: f64,
    /// The same after thousands of changes.
    pub(crate) resident_after_mib: f64,
    /// Kernel memory of the XDP program's maps, before and after the first load; none where the process may have none.
    pub(crate) maps_mib: Option<[f64; 2]>,
    /// Percent of a core that all threads take while nothing happens.
    pub(crate) idle_cpu_percent: f64,
    /// Percent of a core for a hundred changes a second.
    pub(crate) busy_cpu_percent: f64,
    /// Metrics, as many services told one by one as the default is.
    pub(crate) scrape: Scrape,
    /// All services told.
    pub(crate) scrape_all: Scrape,
}

/// What telling metrics takes.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Scrape {
    /// Services told one by one at most.
    pub(crate) services: usize,
    pub(crate) cpu_ms: f64,
    pub(crate) bytes: usize,
}

impl Report {
    /// An empty report about this checkout and this machine.
    pub(crate) fn new() -> Result<Self> {
        let paths = ["Cargo.toml", "Cargo.lock", "dataplane/src", "control/src", "xdp-prog/src", "benches"];
        Ok(Self { origin: machine::here(&paths)?, costs: Vec::new(), peers: Vec::new() })
    }

    /// Prints all numbers, with the differences from `last`.
    pub(crate) fn print(&self, last: Option<&Self>) {
        machine::print(&self.origin, last.map(|last| &last.origin));
        println!("\n{:<9} {:<58} {:>10} {:>10}", "Services", "", "", "change");
        for cost in &self.costs {
            let before = last.and_then(|last| last.costs.iter().find(|old| old.services == cost.services));
            print(cost.services, &cost.rows(), before.map(Cost::rows).as_deref());
            if cost.maps_mib.is_none() {
                println!("{:<9} without the XDP program's maps: not root", cost.services);
            }
            let peer = |report: &Self| {
                let peer = report.peers.iter().find(|peer| peer.services == cost.services)?;
                Some(peer.rows().to_vec())
            };
            if let Some(rows) = peer(self) {
                print(cost.services, &rows, last.and_then(peer).as_deref());
            }
        }
    }

    /// Stores the report among the results.
    pub(crate) fn store(&self) -> Result<PathBuf> {
        machine::store("control", &self.origin, self)
    }

    /// The newest stored report.
    pub(crate) fn newest() -> Result<Option<Self>> {
        machine::newest("control", |report: &Self| &report.origin)
    }
}

impl Cost {
    fn rows(&self) -> Vec<(&'static str, f64)> {
        let mut rows = vec![
            ("reading all objects, ms of the processor", self.decode_cpu_ms),
            ("first load until workers use it, ms of the processor", self.load_cpu_ms),
            ("then the XDP program's maps, ms of the processor", self.maps_cpu_ms),
            ("first load until the maps are filled, ms", self.load_ms),
            ("one endpoint, ms of the processor, p50", self.change_cpu_ms.p50),
            ("one endpoint, ms of the processor, p99", self.change_cpu_ms.p99),
            ("one endpoint until workers use it, ms, p50", self.visible_ms.p50),
            ("one endpoint until workers use it, ms, p99", self.visible_ms.p99),
            ("resident before the first load, MiB", self.resident_empty_mib),
            ("resident after the first load, MiB", self.resident_mib),
            ("resident after thousands of changes, MiB", self.resident_after_mib),
            ("idle, percent of a core", self.idle_cpu_percent),
            ("100 changes a second, percent of a core", self.busy_cpu_percent),
            ("metrics, ms of the processor", self.scrape.cpu_ms),
            ("metrics, KiB", self.scrape.bytes as f64 / 1024.0),
            ("metrics with all services, ms of the processor", self.scrape_all.cpu_ms),
            ("metrics with all services, KiB", self.scrape_all.bytes as f64 / 1024.0),
        ];
        if let Some([empty, loaded]) = self.maps_mib {
            rows.push(("XDP program's maps before the first load, MiB", empty));
            rows.push(("XDP program's maps after the first load, MiB", loaded));
        }
        rows
    }
}

fn print(services: u32, rows: &[(&str, f64)], before: Option<&[(&str, f64)]>) {
    for (name, value) in rows {
        let old = before.into_iter().flatten().find(|(other, _)| other == name);
        let change = change(old.map(|(_, value)| *value), *value);
        println!("{services:<9} {name:<58} {value:>10.3} {change:>10}");
    }
}
