//! The report for people.

use std::fmt::{self, Display, Formatter};

use control::nic::judge::{Finding, Weight, counted, listed};
use control::nic::{Napi, Nic};

use super::{MachineReport, NicReport, Report};

/// Characters of the column of names.
const NAMES: usize = 14;

impl Display for Report {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.machine)?;
        for nic in &self.interfaces {
            write!(f, "\n{nic}")?;
        }
        if self.interfaces.is_empty() {
            writeln!(f, "\nThere is no Ethernet interface in this network namespace.")?;
        }
        let verdict =
            if self.can_run { "Weir can run here." } else { "Weir cannot run here: see what refuses." };
        writeln!(f, "\n{verdict}")
    }
}

impl Display for MachineReport {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self { machine, workers, frame_bytes, .. } = self;
        writeln!(f, "machine")?;
        line(f, "kernel", format_args!("Linux {}", machine.kernel))?;
        let has = |what: &'static str, has: bool| format!("{}{what}", if has { "" } else { "no " });
        let features = [
            has("AF_XDP", self.af_xdp),
            has("TX metadata", self.tx_metadata),
            has("XDP program", self.xdp_program),
        ];
        line(f, "features", features.join(", "))?;
        let cores: Vec<_> = machine.cores.iter().map(|(core, _)| *core).collect();
        line(f, "cores", format_args!("{}, for {}", listed(&cores), counted((*workers).into())))?;
        let lockable = match machine.lockable_bytes {
            None => "any amount".to_owned(),
            Some(bytes) => format!("{} KiB", bytes >> 10),
        };
        let frames = frame_bytes >> 20;
        line(f, "frame memory", format_args!("{frames} MiB; {lockable} may be locked"))?;
        let pages = machine.free_huge_pages;
        line(f, "huge pages", format_args!("{pages} free of 2 MiB"))?;
        tell(f, &self.findings)
    }
}

impl Display for NicReport {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let nic = &self.nic;
        writeln!(f, "{}", nic.name)?;
        let link = match (nic.up, nic.carrier) {
            (false, _) => "down",
            (true, false) => "up, no carrier",
            (true, true) => "up",
        };
        line(f, "driver", format_args!("{}, MTU {}, {link}", nic.driver_or_kind(), nic.mtu))?;
        if let Some(node) = nic.numa_node {
            line(f, "memory node", node)?;
        }
        line(f, "queues", Queues(nic))?;
        line(f, "XDP", Features(nic))?;
        if let Some(rings) = &nic.rings {
            let (rx, tx) = ((rings.rx, rings.rx_max), (rings.tx, rings.tx_max));
            line(f, "rings", format_args!("RX {} of {}, TX {} of {}", rx.0, rx.1, tx.0, tx.1))?;
        }
        match &nic.rss {
            Some(rss) => {
                let mut used = rss.table.clone();
                used.sort_unstable();
                used.dedup();
                let used: Vec<_> = used.iter().map(ToString::to_string).collect();
                let function = rss.function.as_deref().unwrap_or("?");
                let length = rss.table.len();
                line(f, "RSS", format_args!("{function}, table of {length} to queues {}", used.join(", ")))?;
                line(f, "RSS key", if rss.key.is_empty() { "not told" } else { &rss.key })?;
            }
            None => line(f, "RSS", "no indirection table told")?,
        }
        if let Some(on) = &nic.offloads {
            let names =
                ["rx-lro", "rx-gro-hw", "rx-gro", "rx-vlan-hw-parse", "tx-vlan-hw-insert", "rx-vlan-filter"];
            let on: Vec<_> = names.into_iter().filter(|name| on.contains(*name)).collect();
            line(
                f,
                "offloads on",
                if on.is_empty() { "none of those that matter".to_owned() } else { on.join(", ") },
            )?;
        }
        for napi in &nic.napis {
            line(f, "NAPI", Settings(napi))?;
        }
        tell(f, &self.findings)
    }
}

struct Queues<'a>(&'a Nic);

impl Display for Queues<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let queues = &self.0.queues;
        let number = |count: Option<u32>| count.map_or_else(|| "?".to_owned(), |count| count.to_string());
        write!(f, "{} RX, {} TX", number(queues.rx), number(queues.tx))?;
        match queues.rx_max {
            Some(most) => write!(f, ", {most} RX at most"),
            None => Ok(()),
        }
    }
}

struct Features<'a>(&'a Nic);

impl Display for Features<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Some(xdp) = &self.0.xdp else { return f.write_str("the kernel does not tell") };
        write!(f, "{}", if xdp.native { "native" } else { "no native mode" })?;
        write!(f, "{}", if xdp.redirect { ", redirect" } else { ", no redirect" })?;
        write!(f, "{}", if xdp.zero_copy { ", zero-copy" } else { ", copy mode only" })?;
        if xdp.multi_buffer {
            f.write_str(", multi-buffer")?;
        }
        if let Some(segments) = xdp.zero_copy_segments.filter(|segments| *segments > 1) {
            write!(f, " ({segments} buffers a frame in zero-copy mode)")?;
        }
        if xdp.tx_checksum { f.write_str(", TX checksums") } else { Ok(()) }
    }
}

struct Settings<'a>(&'a Napi);

impl Display for Settings<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let napi = self.0;
        let queues: Vec<_> = napi.rx_queues.iter().map(ToString::to_string).collect();
        write!(f, "RX queue {}", if queues.is_empty() { "-".to_owned() } else { queues.join(", ") })?;
        if let Some(irq) = napi.irq {
            write!(f, ", interrupt {irq}")?;
        }
        if !napi.irq_cores.is_empty() {
            write!(f, " to cores {}", listed(&napi.irq_cores))?;
        }
        for (name, value) in [
            ("defer_hard_irqs", napi.defer_hard_irqs),
            ("gro_flush_timeout", napi.gro_flush_timeout_ns),
            ("irq_suspend_timeout", napi.irq_suspend_timeout_ns),
        ] {
            if let Some(value) = value {
                write!(f, ", {name} {value}")?;
            }
        }
        Ok(())
    }
}

fn line(f: &mut Formatter<'_>, name: &str, value: impl Display) -> fmt::Result {
    writeln!(f, "  {name:NAMES$} {value}")
}

fn tell(f: &mut Formatter<'_>, findings: &[Finding]) -> fmt::Result {
    for finding in findings {
        let weight = match finding.weight {
            Weight::Refuses => "refuses",
            Weight::Costs => "costs",
            Weight::Notes => "notes",
        };
        line(f, weight, &finding.text)?;
    }
    Ok(())
}
