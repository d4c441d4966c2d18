//! What was measured: as it is stored, and what follows from it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::account::Window;
use crate::conditions::Conditions;
use crate::traffic::{FlowLoss, Latency, Tenths};

/// One run of the lab.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) conditions: Conditions,
    /// Peers that could not be measured, and why.
    pub(crate) absent: Vec<(String, String)>,
    pub(crate) figures: Vec<Figure>,
    /// What differs from the last result of the same machine; nothing where there was none.
    pub(crate) compared: Option<Compared>,
}

/// A comparison with an earlier result.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Compared {
    /// Of these sources.
    pub(crate) with: String,
    pub(crate) lines: Vec<String>,
}

/// What a figure is of. Two runs are compared where these are the same.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Key {
    pub(crate) quantity: Quantity,
    pub(crate) device: String,
    pub(crate) packets: String,
    pub(crate) size: String,
    pub(crate) flows: u32,
    pub(crate) services: u32,
    pub(crate) workers: usize,
    /// Whether they were sent as the clock said, a few at a time, rather than as fast as the device carried them.
    pub(crate) paced: bool,
    /// Percent of the device's own throughput, where that is what was sent.
    pub(crate) load_percent: Option<u32>,
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Quantity {
    /// CPU nanoseconds a packet, net of generator and sink.
    Cost,
    /// The highest rate without loss, frames a second.
    ThroughputLossless,
    /// The highest rate with at most one lost of 100,000.
    Throughput,
    /// The highest rate of whole connections, a second.
    Connections,
    /// 99th percentile of the time under way, nanoseconds.
    LatencyP99,
    /// The same of each tenth of a second, the middle one of these.
    LatencyP99Tenth,
}

impl Quantity {
    pub(crate) const ALL: [Self; 6] = [
        Self::Cost,
        Self::ThroughputLossless,
        Self::Throughput,
        Self::Connections,
        Self::LatencyP99,
        Self::LatencyP99Tenth,
    ];

    /// What it is called.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Cost => "CPU a packet, net of generator and sink",
            Self::ThroughputLossless => "Throughput without loss",
            Self::Throughput => "Throughput with at most 0.001 % loss",
            Self::Connections => "Connections a second",
            Self::LatencyP99 => "99th percentile of latency",
            Self::LatencyP99Tenth => "99th percentile of latency in the middle tenth of a second",
        }
    }

    /// What its numbers are.
    pub(crate) fn unit(self) -> &'static str {
        match self {
            Self::Cost => "ns",
            Self::ThroughputLossless | Self::Throughput => "packets/s",
            Self::Connections => "connections/s",
            Self::LatencyP99 | Self::LatencyP99Tenth => "us",
        }
    }

    /// What a number is divided by to be in that unit.
    pub(crate) fn scale(self) -> f64 {
        if self.is_latency() { 1000.0 } else { 1.0 }
    }

    /// Whether it is taken at shares of the device's own throughput.
    pub(crate) fn is_latency(self) -> bool {
        matches!(self, Self::LatencyP99 | Self::LatencyP99Tenth)
    }
}

/// A number, taken several times in one run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Figure {
    #[serde(flatten)]
    pub(crate) key: Key,
    /// When that run began, in seconds since 1970: a file may have figures of several. Older ones did not say.
    pub(crate) run_unix_s: Option<u64>,
    /// One a repeat, in order.
    pub(crate) values: Vec<f64>,
    /// What lies behind each.
    pub(crate) samples: Vec<Sample>,
}

/// One measurement.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Sample {
    pub(crate) rate_pps: f64,
    pub(crate) sent: u64,
    pub(crate) received: u64,
    pub(crate) damaged: u64,
    pub(crate) flow_loss: FlowLoss,
    pub(crate) latency: Option<Latency>,
    pub(crate) latency_tenths: Option<Tenths>,
    /// CPU nanoseconds a packet, of everything.
    pub(crate) gross_ns: f64,
    /// The same, of generator and sink programs.
    pub(crate) ends_ns: f64,
    pub(crate) window: Window,
}

impl Sample {
    /// The share of frames that did not arrive.
    pub(crate) fn loss(&self) -> f64 {
        if self.sent == 0 { 1.0 } else { self.sent.saturating_sub(self.received) as f64 / self.sent as f64 }
    }
}

impl Figure {
    /// The middle one, or the lower one of the two in the middle.
    pub(crate) fn median(&self) -> f64 {
        let mut sorted = self.values.clone();
        sorted.sort_by(f64::total_cmp);
        sorted.get(sorted.len().saturating_sub(1) / 2).copied().unwrap_or(f64::NAN)
    }

    /// The sample that the median is of.
    pub(crate) fn middle(&self) -> Option<&Sample> {
        let median = self.median();
        let mut pairs = self.values.iter().zip(&self.samples);
        pairs.find(|(value, _)| value.total_cmp(&median).is_eq()).map(|(_, sample)| sample)
    }

    /// From the least to the greatest, as a share of the median: what a repeat can differ by.
    pub(crate) fn spread(&self) -> f64 {
        let least = self.values.iter().copied().fold(f64::INFINITY, f64::min);
        let greatest = self.values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        (greatest - least) / self.median().abs()
    }

    /// The greatest share of frames that any repeat lost.
    pub(crate) fn loss(&self) -> f64 {
        self.samples.iter().map(Sample::loss).fold(0.0, f64::max)
    }
}

impl Key {
    /// Whether this is the case that all devices have: 60 bytes, as few flows and as many services as usual, one worker.
    pub(crate) fn is_usual(&self) -> bool {
        (self.services, self.workers, self.size.as_str()) == (1000, 1, "60")
            && self.flows <= 1000
            && !self.is_of_few()
    }

    /// Whether this is a cost of frames that come a few at a time: its own case beside that of a busy device.
    pub(crate) fn is_of_few(&self) -> bool {
        self.paced && self.quantity == Quantity::Cost
    }

    /// What makes it what it is, but for the device.
    pub(crate) fn case(&self) -> String {
        let Self { packets, size, flows, services, workers, .. } = self;
        let size = if size == "imix" { "IMIX".to_owned() } else { format!("{size} bytes") };
        let flows = if packets == "established" { format!(", {flows} flows") } else { String::new() };
        let load = self.load_percent.map(|percent| format!(", at {percent} % load")).unwrap_or_default();
        let services = if *services == 1 { "1 service".to_owned() } else { format!("{services} services") };
        let workers = if *workers == 1 { String::new() } else { format!(", {workers} workers") };
        let paced = if self.is_of_few() { ", a few at a time" } else { "" };
        format!("{packets}, {size}{flows}, {services}{workers}{paced}{load}")
    }
}

impl Report {
    /// The figure of a key.
    pub(crate) fn figure(&self, key: &Key) -> Option<&Figure> {
        self.figures.iter().find(|figure| figure.key == *key)
    }

    /// Adds a measurement.
    pub(crate) fn push(&mut self, key: Key, value: f64, sample: Sample) {
        let run_unix_s = Some(self.conditions.origin.unix_s);
        match self.figures.iter_mut().find(|figure| figure.key == key) {
            Some(figure) => {
                figure.values.push(value);
                figure.samples.push(sample);
            }
            None => {
                self.figures.push(Figure { key, run_unix_s, values: vec![value], samples: vec![sample] });
            }
        }
    }

    /// Takes over what an earlier run measured and this one did not.
    pub(crate) fn add(&mut self, before: Self) {
        for old in before.figures {
            if self.figure(&old.key).is_none() {
                self.figures.push(old);
            }
        }
        for absent in before.absent {
            if !self.absent.contains(&absent) {
                self.absent.push(absent);
            }
        }
        for (name, mode) in before.conditions.modes {
            self.conditions.modes.entry(name).or_insert(mode);
        }
        if self.conditions.weir_interfaces.is_null() {
            self.conditions.weir_interfaces = before.conditions.weir_interfaces;
        }
    }

    /// Reads a stored one.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        serde_json::from_str(&text).with_context(|| format!("{} is no report of the lab", path.display()))
    }

    /// The last stored one that this one can be compared with: of the same machine in the same topology. Files that are no reports are
    /// passed over.
    pub(crate) fn last(&self, directory: &Path) -> Option<(PathBuf, Self)> {
        let entries = fs::read_dir(directory).ok()?;
        let reports = entries.flatten().map(|entry| entry.path()).filter(|path| {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            name.starts_with("lab-") && name.ends_with(".json")
        });
        reports
            .filter_map(|path| Some((path.clone(), Self::read(&path).ok()?)))
            .filter(|(_, report)| report.conditions.are_those_of(&self.conditions))
            .max_by_key(|(_, report)| report.conditions.origin.unix_s)
    }

    /// Writes it.
    pub(crate) fn store(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self)? + "\n";
        fs::write(path, text).with_context(|| format!("writing {}", path.display()))
    }

    /// What this run measured and an earlier one had, too, and whether it differs by more than the repeats of either.
    pub(crate) fn compare(&self, before: &Self) -> Compared {
        let mut lines = Vec::new();
        for figure in &self.figures {
            let Some(old) = before.figure(&figure.key) else { continue };
            let change = figure.median() / old.median() - 1.0;
            let noise = figure.spread().max(old.spread());
            let verdict = if figure.values.len().max(old.values.len()) == 1 {
                " (one measurement each)"
            } else if change.abs() > noise {
                ""
            } else {
                " (within the spread of repeats)"
            };
            lines.push(format!(
                "{}, {}, {}: {} -> {} {} ({:+.0} %){verdict}",
                figure.key.quantity.title(),
                figure.key.device,
                figure.key.case(),
                number(old.median() / figure.key.quantity.scale()),
                number(figure.median() / figure.key.quantity.scale()),
                figure.key.quantity.unit(),
                change * 100.0,
            ));
        }
        Compared { with: before.conditions.origin.sources(), lines }
    }
}

/// A number with as many digits as it is worth.
pub(crate) fn number(value: f64) -> String {
    match value.abs() {
        size if !size.is_finite() => "-".to_owned(),
        size if size < 10.0 => format!("{value:.2}"),
        size if size < 100.0 => format!("{value:.1}"),
        size if size < 100_000.0 => format!("{value:.0}"),
        size if size < 10_000_000.0 => format!("{:.0}k", value / 1e3),
        _ => format!("{:.1}M", value / 1e6),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A figure of a device without samples.
    pub(crate) fn figure(quantity: Quantity, device: &str, packets: &str, values: &[f64]) -> Figure {
        let key = Key {
            quantity,
            device: device.to_owned(),
            packets: packets.to_owned(),
            size: "60".to_owned(),
            flows: 1000,
            services: 1000,
            workers: 1,
            paced: false,
            load_percent: None,
        };
        Figure { key, run_unix_s: Some(1_700_000_000), values: values.to_vec(), samples: Vec::new() }
    }

    /// A report with these figures.
    pub(crate) fn report(figures: Vec<Figure>) -> Report {
        Report { conditions: Conditions::example(), absent: Vec::new(), figures, compared: None }
    }

    #[test]
    fn the_median_and_the_spread_are_those_of_the_repeats() {
        for (name, values, median, spread) in [
            ("one", vec![5.0], 5.0, 0.0),
            ("three in disorder", vec![9.0, 4.0, 5.0], 5.0, 1.0),
            ("four", vec![1.0, 2.0, 3.0, 4.0], 2.0, 1.5),
        ] {
            let figure = figure(Quantity::Cost, "weir", "established", &values);
            assert_eq!((figure.median(), figure.spread()), (median, spread), "{name}");
        }
    }

    #[test]
    fn what_was_measured_again_replaces_what_is_stored() {
        let of = |device, value| figure(Quantity::Cost, device, "established", &[value]);
        let mut now = report(vec![of("weir-fullnat", 3.0)]);
        now.conditions.modes = [("sink".to_owned(), "zero-copy".to_owned())].into();
        now.add(report(vec![of("weir-fullnat", 1.0), of("bare", 2.0)]));
        let all: Vec<_> =
            now.figures.iter().map(|figure| (figure.key.device.as_str(), figure.median())).collect();
        assert_eq!(all, [("weir-fullnat", 3.0), ("bare", 2.0)]);
        let modes: Vec<_> = now.conditions.modes.values().map(String::as_str).collect();
        assert_eq!(modes, ["copy", "zero-copy"], "of the bare forwarder from before, of the sink from now");
    }

    #[test]
    fn the_last_result_is_one_of_the_same_machine() {
        let directory = testbed::Scratch::new().unwrap();
        let [same, older, faster] = ["same", "older", "faster"].map(|name| {
            let path = directory.path().join(format!("lab-{name}.json"));
            let mut report = report(Vec::new());
            match name {
                "older" => report.conditions.origin.unix_s -= 1,
                "faster" => report.conditions.origin.cpu.push('+'),
                _ => {}
            }
            report.store(&path).unwrap();
            path
        });
        fs::write(directory.path().join("lab-broken.json"), "{").unwrap();
        let last = || report(Vec::new()).last(directory.path()).map(|(path, _)| path);
        assert_eq!(last().as_ref(), Some(&same));
        fs::remove_file(same).unwrap();
        assert_eq!(last().as_ref(), Some(&older));
        fs::remove_file(older).unwrap();
        assert_eq!(last(), None);
        assert!(faster.exists());
    }

    #[test]
    fn a_change_within_the_spread_is_said_to_be_none() {
        let of = |values: &[f64]| report(vec![figure(Quantity::Cost, "weir", "established", values)]);
        let [alone] = of(&[220.0]).compare(&of(&[110.0])).lines.try_into().unwrap();
        assert!(alone.ends_with("110 -> 220 ns (+100 %) (one measurement each)"), "{alone}");
        let before = of(&[100.0, 110.0, 120.0]);
        let [within] = of(&[115.0]).compare(&before).lines.try_into().unwrap();
        assert!(within.contains("110 -> 115 ns (+5 %) (within"), "{within}");
        let [beyond] = of(&[220.0]).compare(&before).lines.try_into().unwrap();
        assert!(beyond.ends_with("110 -> 220 ns (+100 %)"), "{beyond}");
        let other = report(vec![figure(Quantity::Cost, "bare", "established", &[1.0])]);
        assert!(other.compare(&before).lines.is_empty());
    }
}
