//! Results as they are stored, shown and compared.

use std::path::PathBuf;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use testbed::Origin;

use crate::machine::{self, change};
use crate::numbers::Percentiles;
use crate::{Args, Cpu};

/// One run of the bench.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Report {
    #[serde(flatten)]
    origin: Origin,
    pub(crate) services: u32,
    pub(crate) endpoints: u32,
    /// Whether all was read by lists in pages.
    pages: bool,
    /// Changes a second.
    rate: u32,
    /// From the start of the source until control is asked for all Services.
    pub(crate) asked_ms: f64,
    /// And until workers have them.
    pub(crate) seen_ms: f64,
    /// What that took of the processor.
    pub(crate) sync_cpu_ms: Cpu,
    /// Memory from before the first object, slabs and counters included, until all are in force.
    pub(crate) resident_mib: f64,
    /// The same after all changes.
    pub(crate) resident_after_mib: f64,
    /// From the API server's having a change until control is asked for it.
    pub(crate) change_asked_ms: Percentiles,
    /// And until workers have it.
    pub(crate) change_seen_ms: Percentiles,
    /// Percent of a core during the changes.
    pub(crate) busy_percent: Cpu,
    /// Percent of a core while nothing happens.
    pub(crate) idle_percent: Cpu,
}

impl Report {
    /// An empty one about this checkout and this machine.
    pub(crate) fn new(args: &Args) -> Result<Self> {
        let paths = ["Cargo.toml", "Cargo.lock", "dataplane/src", "control/src", "testbed/src", "benches"];
        let none = Percentiles { p50: 0.0, p99: 0.0 };
        Ok(Self {
            origin: machine::here(&paths)?,
            services: args.services,
            endpoints: args.endpoints,
            pages: args.pages,
            rate: args.rate,
            asked_ms: 0.0,
            seen_ms: 0.0,
            sync_cpu_ms: Cpu::default(),
            resident_mib: 0.0,
            resident_after_mib: 0.0,
            change_asked_ms: none,
            change_seen_ms: none,
            busy_percent: Cpu::default(),
            idle_percent: Cpu::default(),
        })
    }

    /// Prints all numbers, with the differences from `last`.
    pub(crate) fn print(&self, last: Option<&Self>) {
        machine::print(&self.origin, last.map(|last| &last.origin));
        let way = if self.pages { "lists in pages" } else { "watches" };
        println!("{} Services with {} endpoints each, by {way}\n", self.services, self.endpoints);
        let old = last.map(Self::rows);
        for (at, (name, value)) in self.rows().into_iter().enumerate() {
            let change = change(old.as_ref().map(|old| old[at].1), value);
            println!("{name:<58} {value:>10.3} {change:>10}");
        }
    }

    fn rows(&self) -> [(String, f64); 14] {
        let busy = format!("{} changes a second, percent of a core:", self.rate);
        [
            ("first sync, ms until control is asked".into(), self.asked_ms),
            ("first sync, ms until workers have it".into(), self.seen_ms),
            ("first sync, ms of the processor: source".into(), self.sync_cpu_ms.source),
            ("first sync, ms of the processor: control".into(), self.sync_cpu_ms.control),
            ("resident after the first sync, MiB".into(), self.resident_mib),
            ("resident after all changes, MiB".into(), self.resident_after_mib),
            ("a change, ms until control is asked, p50".into(), self.change_asked_ms.p50),
            ("a change, ms until control is asked, p99".into(), self.change_asked_ms.p99),
            ("a change, ms until workers have it, p50".into(), self.change_seen_ms.p50),
            ("a change, ms until workers have it, p99".into(), self.change_seen_ms.p99),
            (format!("{busy} source"), self.busy_percent.source),
            (format!("{busy} control"), self.busy_percent.control),
            ("idle, percent of a core: source".into(), self.idle_percent.source),
            ("idle, percent of a core: control".into(), self.idle_percent.control),
        ]
    }

    /// Stores the report among the results.
    pub(crate) fn store(&self) -> Result<PathBuf> {
        machine::store(&self.bench(), &self.origin, self)
    }

    /// The newest stored report of as many Services.
    pub(crate) fn newest(&self) -> Result<Option<Self>> {
        machine::newest(&self.bench(), |report: &Self| &report.origin)
    }

    fn bench(&self) -> String {
        let way = if self.pages { "-pages" } else { "" };
        format!("kubernetes{way}-{}x{}-{}", self.services, self.endpoints, self.rate)
    }
}
