//! Where a stored result comes from: which sources, which machine, when.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// Sources and machine of a result.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Origin {
    /// Commit that was checked out.
    pub commit: String,
    /// Whether the sources differed from it.
    pub modified: bool,
    /// When, in seconds since 1970.
    pub unix_s: u64,
    /// The processor: its name, with family and model.
    pub cpu: String,
    /// The kernel's release.
    pub kernel: String,
}

impl Origin {
    /// The paths that matter where everything does but what is written about it, from the checkout's root.
    pub const SOURCES: [&str; 4] = [".", ":!docs", ":!README.md", ":!perf/results"];

    /// This machine, and the checkout that `directory` is in, of which these paths matter (as git takes them, seen from
    /// `directory`). New files below them are changes, too.
    pub fn of(directory: &Path, paths: &[&str]) -> Result<Self> {
        let status = [&["status", "--porcelain", "--"], paths].concat();
        Ok(Self {
            commit: git(directory, &["rev-parse", "--short=12", "HEAD"]).unwrap_or_else(|| "unknown".into()),
            modified: git(directory, &status).is_none_or(|changes| !changes.is_empty()),
            unix_s: SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs(),
            cpu: cpu(&fs::read_to_string("/proc/cpuinfo").context("/proc/cpuinfo")?),
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease")
                .context("the kernel's release")?
                .trim()
                .into(),
        })
    }

    /// The commit, for people.
    pub fn sources(&self) -> String {
        format!("{}{}", self.commit, if self.modified { " with changes" } else { "" })
    }

    /// The file of such a result. One commit has one; with changes, another.
    pub fn file_name(&self, kind: &str) -> String {
        let suffix = if self.modified { "-modified" } else { "" };
        format!("{kind}-{}{suffix}.json", self.commit)
    }
}

/// Virtual machines often hide the name; family and model still tell two processors apart.
fn cpu(cpuinfo: &str) -> String {
    let field = |name: &str| {
        let mut fields = cpuinfo.lines().filter_map(|line| line.split_once(':'));
        fields.find(|(key, _)| key.trim() == name).map_or("unknown", |(_, value)| value.trim())
    };
    format!("{} (family {}, model {})", field("model name"), field("cpu family"), field("model"))
}

fn git(directory: &Path, arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).current_dir(directory).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_of_changed_sources_has_a_file_of_its_own() {
        for (modified, file, sources) in [
            (false, "lab-0123456789ab.json", "0123456789ab"),
            (true, "lab-0123456789ab-modified.json", "0123456789ab with changes"),
        ] {
            let commit = "0123456789ab".to_owned();
            let origin = Origin { commit, modified, unix_s: 0, cpu: String::new(), kernel: String::new() };
            assert_eq!((origin.file_name("lab"), origin.sources()), (file.to_owned(), sources.to_owned()));
        }
    }

    #[test]
    fn a_processor_has_its_name_family_and_model() {
        let cpuinfo =
            "processor\t: 0\ncpu family\t: 25\nmodel\t\t: 17\nmodel name\t: AMD EPYC\n\nprocessor\t: 1\n";
        for (text, want) in [
            (cpuinfo, "AMD EPYC (family 25, model 17)"),
            ("Features\t: fp asimd\n", "unknown (family unknown, model unknown)"),
        ] {
            assert_eq!(cpu(text), want);
        }
    }

    #[test]
    fn outside_of_a_checkout_the_commit_is_unknown_and_counts_as_changed() {
        let elsewhere = tempfile::tempdir().unwrap();
        let origin = Origin::of(elsewhere.path(), &["."]).unwrap();
        assert_eq!((origin.commit.as_str(), origin.modified), ("unknown", true));
    }
}
