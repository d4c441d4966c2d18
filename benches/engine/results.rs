//! Results as they are stored, shown and compared.

use std::path::PathBuf;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::lifetime::Lifetime;
use testbed::Origin;

use crate::machine::{self, change};
use crate::measure::Summary;

/// One run of the bench.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Report {
    #[serde(flatten)]
    origin: Origin,
    /// Bytes of a frame over IPv4; 20 more over IPv6.
    frame_bytes: u32,
    batch: usize,
    pub(crate) cases: Vec<Case>,
    /// Instructions a packet.
    pub(crate) instructions: Vec<Count>,
    /// Memory.
    #[serde(default)]
    pub(crate) lifetimes: Vec<Lifetime>,
}

/// Nanoseconds a packet of one case.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Case {
    /// What the packets are, and the gateway.
    pub(crate) name: String,
    /// Flows in the table.
    pub(crate) flows: u32,
    pub(crate) ns: Summary,
    /// Times what it is held against: the bare loop with as many flows, or the same case with one service.
    pub(crate) ratio: Option<Summary>,
}

/// Instructions a packet of one subject.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Count {
    pub(crate) name: String,
    pub(crate) per_packet: f64,
}

impl Report {
    /// An empty report about this checkout and this machine.
    pub(crate) fn new(frame_bytes: u32, batch: usize) -> Result<Self> {
        let paths = ["Cargo.toml", "Cargo.lock", "dataplane/src", "benches"];
        Ok(Self {
            origin: machine::here(&paths)?,
            frame_bytes,
            batch,
            cases: Vec::new(),
            instructions: Vec::new(),
            lifetimes: Vec::new(),
        })
    }

    /// The case's time, if it was measured.
    pub(crate) fn case(&self, name: &str, flows: u32) -> Option<&Case> {
        self.cases.iter().find(|case| case.name == name && case.flows == flows)
    }

    /// The subject's instructions, if they were counted.
    pub(crate) fn count(&self, name: &str) -> Option<f64> {
        self.instructions.iter().find(|count| count.name == name).map(|count| count.per_packet)
    }

    /// Bytes of one of so many flows, if they were looked at.
    pub(crate) fn bytes_a_flow(&self, flows: u32) -> Option<f64> {
        self.lifetimes.iter().find(|lifetime| lifetime.flows == flows).map(|lifetime| lifetime.bytes_a_flow)
    }

    /// Prints all numbers, with the differences from `last`.
    pub(crate) fn print(&self, last: Option<&Self>) {
        machine::print(&self.origin, last.map(|last| &last.origin));
        println!(
            "\n{:<44} {:>10} {:>8} {:>15} {:>6} {:>8}",
            "case", "flows", "ns", "p10 to p90", "ratio", "change"
        );
        for case in &self.cases {
            let before = last.and_then(|last| last.case(&case.name, case.flows)).map(|case| case.ns.median);
            println!(
                "{:<44} {:>10} {:>8.1} {:>15} {:>6} {:>8}",
                case.name,
                case.flows,
                case.ns.median,
                format!("{:.1} to {:.1}", case.ns.p10, case.ns.p90),
                case.ratio.map_or_else(String::new, |ratio| format!("{:.2}", ratio.median)),
                change(before, case.ns.median),
            );
        }
        for count in &self.instructions {
            let before = last.and_then(|last| last.count(&count.name));
            let change = change(before, count.per_packet);
            println!(
                "{:<44} {:>19.1} {:>32}",
                format!("instructions: {}", count.name),
                count.per_packet,
                change
            );
        }
        self.lifetimes.iter().for_each(Lifetime::print);
    }

    /// Stores the report among the results.
    pub(crate) fn store(&self) -> Result<PathBuf> {
        machine::store("engine", &self.origin, self)
    }

    /// The newest stored report.
    pub(crate) fn newest() -> Result<Option<Self>> {
        machine::newest("engine", |report: &Self| &report.origin)
    }
}
