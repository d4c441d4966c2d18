//! What results say of the machine and the sources, and where they are stored.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Where and of what a result is.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Origin {
    /// Commit that was checked out.
    pub(crate) commit: String,
    /// Whether the sources differed from it.
    pub(crate) modified: bool,
    /// When, in seconds since 1970.
    pub(crate) unix_s: u64,
    pub(crate) cpu: String,
    pub(crate) kernel: String,
}

impl Origin {
    /// This checkout, of which these paths matter, and this machine.
    pub(crate) fn here(paths: &[&str]) -> Result<Self> {
        let cpus = std::fs::read_to_string("/proc/cpuinfo")?;
        let field = |name: &str| {
            let fields = cpus.lines().filter_map(|line| line.split_once(':'));
            let value = fields.map(|(key, value)| (key.trim(), value.trim())).find(|(key, _)| *key == name);
            value.map_or("unknown", |(_, value)| value)
        };
        let status = [&["status", "--porcelain", "--"], paths].concat();
        Ok(Self {
            commit: git(&["rev-parse", "--short=12", "HEAD"]).unwrap_or_else(|| "unknown".into()),
            modified: git(&status).is_none_or(|changes| !changes.is_empty()),
            unix_s: SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs(),
            // Virtual machines often hide the name; family and model still tell two processors apart.
            cpu: format!(
                "{} (family {}, model {})",
                field("model name"),
                field("cpu family"),
                field("model")
            ),
            kernel: std::fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned(),
        })
    }

    /// Prints it, and what it is compared with.
    pub(crate) fn print(&self, last: Option<&Self>) {
        println!("\n{}\nLinux {}, commit {}{}", self.cpu, self.kernel, self.commit, self.mark());
        match last {
            Some(last) if last.cpu == self.cpu => {
                println!("compared with commit {}{}", last.commit, last.mark());
            }
            Some(last) => {
                println!("compared with commit {}{} ON ANOTHER CPU: {}", last.commit, last.mark(), last.cpu);
            }
            None => println!("no earlier result to compare with"),
        }
    }

    fn mark(&self) -> &'static str {
        if self.modified { " with changes" } else { "" }
    }

    /// Stores a result of a bench. One commit has one file; with changes, another.
    pub(crate) fn store(&self, bench: &str, report: &impl Serialize) -> Result<PathBuf> {
        let suffix = if self.modified { "-modified" } else { "" };
        std::fs::create_dir_all(folder())?;
        let path = folder().join(format!("{bench}-{}{suffix}.json", self.commit));
        std::fs::write(&path, serde_json::to_string_pretty(report)? + "\n")
            .with_context(|| path.display().to_string())?;
        Ok(path)
    }
}

/// The newest stored result of a bench; `origin` says where one comes from.
pub(crate) fn newest<T: DeserializeOwned>(bench: &str, origin: impl Fn(&T) -> &Origin) -> Result<Option<T>> {
    let Ok(files) = std::fs::read_dir(folder()) else { return Ok(None) };
    let mut reports = Vec::new();
    for file in files {
        let path = file?.path();
        if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&format!("{bench}-"))) {
            let text = std::fs::read_to_string(&path)?;
            reports.push(serde_json::from_str(&text).with_context(|| path.display().to_string())?);
        }
    }
    Ok(reports.into_iter().max_by_key(|report| origin(report).unix_s))
}

/// By how much a number changed, for people.
pub(crate) fn change(before: Option<f64>, now: f64) -> String {
    before.map_or_else(String::new, |before| format!("{:+.1} %", (now / before - 1.0) * 100.0))
}

/// Resident bytes of this process.
pub(crate) fn resident() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kib: u64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kib * 1024)
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("perf/results")
}

fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).current_dir(env!("CARGO_MANIFEST_DIR")).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
