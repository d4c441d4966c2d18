//! What the process costs, by the names that Prometheus's own clients have for it.

use std::fmt;
use std::fs;

use nix::sys::resource::{Resource, getrlimit};
use nix::unistd::{SysconfVar, sysconf};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;

use super::write::Writer;

/// Reads `/proc` when asked.
#[derive(Debug)]
pub(super) struct Process;

/// What `/proc/self/stat` says.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Stat {
    cpu_ticks: u64,
    started_ticks: u64,
    virtual_bytes: u64,
    resident_pages: u64,
}

impl Collector for Process {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut writer = Writer(encoder);
        let labels = super::Labels([("version", env!("CARGO_PKG_VERSION").into())]);
        prometheus_client::metrics::info::Info::new(labels).encode(writer.0.encode_descriptor(
            "weir_build",
            "The running version",
            None,
            MetricType::Info,
        )?)?;
        if let Some(stat) = fs::read_to_string("/proc/self/stat").ok().as_deref().and_then(parse) {
            stat.write(&mut writer)?;
        }
        if let Ok(open) = fs::read_dir("/proc/self/fd") {
            writer.gauge("process_open_fds", "Open file descriptors", number(open.count() as u64))?;
        }
        if let Ok((soft, _)) = getrlimit(Resource::RLIMIT_NOFILE) {
            writer.gauge("process_max_fds", "File descriptors that may be open", number(soft))?;
        }
        Ok(())
    }
}

impl Stat {
    fn write(&self, writer: &mut Writer<'_>) -> fmt::Result {
        let hertz = variable(SysconfVar::CLK_TCK).unwrap_or(100.0);
        let cpu = ConstCounter::new(number(self.cpu_ticks) / hertz);
        cpu.encode(writer.0.encode_descriptor(
            "process_cpu_seconds",
            "Processor time in user and system mode, in seconds",
            None,
            MetricType::Counter,
        )?)?;
        let page = variable(SysconfVar::PAGE_SIZE).unwrap_or(4096.0);
        let resident = number(self.resident_pages) * page;
        writer.gauge("process_resident_memory_bytes", "Resident memory in bytes", resident)?;
        let all = number(self.virtual_bytes);
        writer.gauge("process_virtual_memory_bytes", "Virtual memory in bytes", all)?;
        let Some(boot) = boot_time() else { return Ok(()) };
        let started = boot + number(self.started_ticks) / hertz;
        writer.gauge("process_start_time_seconds", "When the process started, in seconds since 1970", started)
    }
}

/// Reads the fields behind the name of the program, which may hold anything (proc(5)).
fn parse(stat: &str) -> Option<Stat> {
    let (_, fields) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = fields.split_ascii_whitespace().collect();
    // Numbered from 3 in the manual, which is the state.
    let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
    Some(Stat {
        cpu_ticks: field(14)?.checked_add(field(15)?)?,
        started_ticks: field(22)?,
        virtual_bytes: field(23)?,
        resident_pages: field(24)?,
    })
}

/// The name of a thread and its processor time in seconds, from its `stat`.
pub(super) fn thread_time(stat: &str) -> Option<(String, f64)> {
    let (_, name) = stat.rsplit_once(')')?.0.split_once('(')?;
    let hertz = variable(SysconfVar::CLK_TCK).unwrap_or(100.0);
    Some((name.to_owned(), number(parse(stat)?.cpu_ticks) / hertz))
}

fn boot_time() -> Option<f64> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    stat.lines().find_map(|line| line.strip_prefix("btime ")?.trim().parse().ok())
}

fn variable(variable: SysconfVar) -> Option<f64> {
    let value = sysconf(variable).ok()??;
    Some(number(u64::try_from(value).ok()?))
}

/// Counts beyond 2^53 lose their last digits, as everything in Prometheus does.
#[expect(clippy::cast_precision_loss, reason = "Prometheus's numbers are floating-point ones")]
pub(super) fn number(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stat_line_is_read_behind_any_program_name() {
        let rest = "S 1 2 3 4 5 6 7 8 9 10 300 40 13 14 15 16 17 18 1234 5000 60 18446744073709551615";
        let want = Stat { cpu_ticks: 340, started_ticks: 1234, virtual_bytes: 5000, resident_pages: 60 };
        for name in ["weir", "a) S 1 (b", ""] {
            assert_eq!(parse(&format!("77 ({name}) {rest}")), Some(want), "{name}");
        }
        for bad in
            ["", "77 (weir", "77 (weir) S 1 2", "77 (weir) S 1 2 3 4 5 6 7 8 9 10 x 40 1 1 1 1 1 1 1 1 1"]
        {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn this_process_has_memory_time_and_files() {
        let text = crate::metrics::Metrics::new().text(crate::metrics::Format::Prometheus);
        let value = |name: &str| -> f64 {
            let line = text.lines().find(|line| line.split(' ').next() == Some(name)).expect(name);
            line.rsplit(' ').next().unwrap().parse().unwrap()
        };
        assert!(value("process_resident_memory_bytes") > 1e6);
        assert!(value("process_virtual_memory_bytes") >= value("process_resident_memory_bytes"));
        assert!(value("process_open_fds") >= 3.0);
        assert!(value("process_max_fds") >= value("process_open_fds"));
        assert!(value("process_cpu_seconds_total") >= 0.0);
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
        let started = value("process_start_time_seconds");
        assert!((now - 86_400.0..now + 2.0).contains(&started), "{started} {now}");
    }
}
