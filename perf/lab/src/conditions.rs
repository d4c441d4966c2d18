//! Under which circumstances something was measured.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use testbed::Origin;

use crate::network::Topology;
use crate::pauses::{self, Pauses};
use crate::traffic::Cores;

/// Circumstances of a run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Conditions {
    #[serde(flatten)]
    pub(crate) origin: Origin,
    pub(crate) cores: usize,
    /// Who has which of them.
    pub(crate) assigned: Cores,
    pub(crate) topology: Topology,
    /// Driver of each interface that is not a veth of the lab's own, and what it says about itself.
    pub(crate) nics: Vec<String>,
    /// Modes of Weir's sockets, as the kernel said; nothing where Weir was not measured.
    pub(crate) weir_interfaces: Value,
    /// Modes of the sockets of generator, sink and bare forwarder, as the kernel said. Older results have none.
    #[serde(default)]
    pub(crate) modes: BTreeMap<String, String>,
    /// What the cores stood still for before the first measurement. Older results do not say.
    pub(crate) pauses: Option<Pauses>,
}

impl Conditions {
    /// Those of this machine now.
    pub(crate) fn now(root: &Path, topology: &Topology, assigned: &Cores) -> Result<Self> {
        const WATCH: Duration = Duration::from_secs(2);
        let Cores { generator, sink, device } = assigned;
        let mut all = [&generator[..], sink, device].concat();
        all.sort_unstable();
        all.dedup();
        Ok(Self {
            origin: Origin::of(root, &Origin::SOURCES)?,
            cores: std::thread::available_parallelism()?.get(),
            assigned: assigned.clone(),
            topology: topology.clone(),
            nics: nics(topology),
            weir_interfaces: Value::Null,
            modes: BTreeMap::new(),
            pauses: Some(pauses::of_cores(&all, WATCH)?),
        })
    }

    /// Whether a result under the other ones can be compared with one under these: the same machine, connected alike.
    pub(crate) fn are_those_of(&self, other: &Self) -> bool {
        let machine = |conditions: &Self| {
            let Self { origin, cores, assigned, topology, .. } = conditions;
            (origin.cpu.clone(), origin.kernel.clone(), *cores, assigned.clone(), topology.clone())
        };
        machine(self) == machine(other)
    }

    /// Lines for people.
    pub(crate) fn lines(&self) -> Vec<(&'static str, String)> {
        let Cores { generator, sink, device } = &self.assigned;
        let topology = match &self.topology {
            Topology::Namespaces => "network namespaces and veth pairs".to_owned(),
            Topology::Wires(wires) => format!("generator {}, sink {}", wires.generator, wires.sink),
        };
        let mut lines = vec![
            ("Commit", self.origin.sources()),
            ("CPU", format!("{}, {} cores", self.origin.cpu, self.cores)),
            ("Kernel", self.origin.kernel.clone()),
            ("Topology", topology),
            ("Cores", format!("generator {generator:?}, sink {sink:?}, device {device:?}")),
        ];
        if let Some(Pauses { share, longest_ms }) = self.pauses {
            let share = share * 100.0;
            lines.push((
                "Pauses of busy cores",
                format!("{share:.1} % of the time, {longest_ms:.1} ms the longest"),
            ));
        }
        if !self.nics.is_empty() {
            lines.push(("NICs", self.nics.join("; ")));
        }
        if !self.modes.is_empty() {
            let modes = self.modes.iter().map(|(name, mode)| format!("{name} {mode}"));
            lines.push(("Sockets", modes.collect::<Vec<_>>().join(", ")));
        }
        if let Some(ports) = self.weir_interfaces.as_array() {
            lines.push(("Weir's sockets", ports.iter().map(socket).collect::<Vec<_>>().join("; ")));
        }
        lines
    }

    #[cfg(test)]
    pub(crate) fn example() -> Self {
        Self {
            origin: Origin {
                commit: "0123456789ab".to_owned(),
                modified: false,
                unix_s: 1_700_000_000,
                cpu: "Example <1>".to_owned(),
                kernel: "6.18".to_owned(),
            },
            cores: 2,
            assigned: Cores { generator: vec![0], sink: vec![0], device: vec![1] },
            topology: Topology::Namespaces,
            nics: Vec::new(),
            weir_interfaces: Value::Null,
            modes: [("bare".to_owned(), "copy".to_owned())].into(),
            pauses: Some(Pauses { share: 0.014, longest_ms: 9.8 }),
        }
    }
}

/// An interface of `weir show interfaces`: its name, how XDP is attached, and the modes of its sockets.
fn socket(port: &Value) -> String {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let queues = port["queues"].as_array().map(Vec::as_slice).unwrap_or_default();
    let modes: Vec<String> = queues.iter().map(|queue| text(&queue["mode"])).collect();
    format!("{} XDP {}, {}", text(&port["name"]), text(&port["xdp"]), modes.join(", "))
}

fn nics(topology: &Topology) -> Vec<String> {
    let Topology::Wires(wires) = topology else { return Vec::new() };
    let mut names = vec![&wires.generator, &wires.sink];
    names.extend(wires.device.iter().flatten());
    names.sort();
    names.dedup();
    let driver = |name: &String| {
        let info = said("ethtool", &["-i", name]).unwrap_or_default();
        let wanted = |line: &&str| {
            ["driver", "version", "firmware-version"].contains(&line.split(':').next().unwrap_or_default())
        };
        format!("{name}: {}", info.lines().filter(wanted).collect::<Vec<_>>().join(", "))
    };
    names.into_iter().map(driver).collect()
}

fn said(program: &str, args: &[&str]) -> Result<String> {
    let output = Command::new(program).args(args).output().with_context(|| format!("running {program}"))?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
