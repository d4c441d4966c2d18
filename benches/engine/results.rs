//! Results as they are stored, shown and compared.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::lifetime::Lifetime;
use crate::measure::Summary;

/// One run of the bench.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Report {
    /// Commit that was checked out.
    commit: String,
    /// Whether the sources differed from it.
    modified: bool,
    /// When, in seconds since 1970.
    unix_s: u64,
    cpu: String,
    kernel: String,
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
        let cpus = fs::read_to_string("/proc/cpuinfo")?;
        let field = |name: &str| {
            let fields = cpus.lines().filter_map(|line| line.split_once(':'));
            let value = fields.map(|(key, value)| (key.trim(), value.trim())).find(|(key, _)| *key == name);
            value.map_or("unknown", |(_, value)| value)
        };
        Ok(Self {
            commit: git(&["rev-parse", "--short=12", "HEAD"]).unwrap_or_else(|| "unknown".into()),
            modified: git(&[
                "status",
                "--porcelain",
                "--",
                "Cargo.toml",
                "Cargo.lock",
                "dataplane/src",
                "benches",
            ])
            .is_none_or(|changes| !changes.is_empty()),
            unix_s: SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs(),
            // Virtual machines often hide the name; family and model still tell two processors apart.
            cpu: format!(
                "{} (family {}, model {})",
                field("model name"),
                field("cpu family"),
                field("model")
            ),
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned(),
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
        println!("\n{}\nLinux {}, commit {}{}", self.cpu, self.kernel, self.commit, self.mark());
        match last {
            Some(last) if last.cpu == self.cpu => {
                println!("compared with commit {}{}", last.commit, last.mark())
            }
            Some(last) => {
                println!("compared with commit {}{} ON ANOTHER CPU: {}", last.commit, last.mark(), last.cpu)
            }
            None => println!("no earlier result to compare with"),
        }
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

    fn mark(&self) -> &'static str {
        if self.modified { " with changes" } else { "" }
    }

    /// Stores the report among the results. One commit has one file; with changes, another.
    pub(crate) fn store(&self) -> Result<PathBuf> {
        let suffix = if self.modified { "-modified" } else { "" };
        let path = folder().join(format!("engine-{}{suffix}.json", self.commit));
        fs::create_dir_all(folder())?;
        fs::write(&path, serde_json::to_string_pretty(self)? + "\n")
            .with_context(|| path.display().to_string())?;
        Ok(path)
    }

    /// The newest stored report.
    pub(crate) fn newest() -> Result<Option<Self>> {
        let Ok(files) = fs::read_dir(folder()) else { return Ok(None) };
        let mut reports = Vec::new();
        for file in files {
            let path = file?.path();
            if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("engine-")) {
                let text = fs::read_to_string(&path)?;
                let report: Self = serde_json::from_str(&text).with_context(|| path.display().to_string())?;
                reports.push(report);
            }
        }
        Ok(reports.into_iter().max_by_key(|report| report.unix_s))
    }
}

fn change(before: Option<f64>, now: f64) -> String {
    before.map_or_else(String::new, |before| format!("{:+.1} %", (now / before - 1.0) * 100.0))
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("perf/results")
}

fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).current_dir(env!("CARGO_MANIFEST_DIR")).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
