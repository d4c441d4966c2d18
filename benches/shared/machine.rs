//! What results say of the machine and the sources, and where they are stored.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;
use testbed::Origin;

/// This checkout, of which these paths matter, and this machine.
pub(crate) fn here(paths: &[&str]) -> Result<Origin> {
    Origin::of(Path::new(env!("CARGO_MANIFEST_DIR")), paths)
}

/// Prints where a result comes from, and what it is compared with.
pub(crate) fn print(origin: &Origin, last: Option<&Origin>) {
    println!("\n{}\nLinux {}, commit {}", origin.cpu, origin.kernel, origin.sources());
    match last {
        Some(last) if last.cpu == origin.cpu => println!("compared with commit {}", last.sources()),
        Some(last) => println!("compared with commit {} ON ANOTHER CPU: {}", last.sources(), last.cpu),
        None => println!("no earlier result to compare with"),
    }
}

/// Stores a result of a bench.
pub(crate) fn store(bench: &str, origin: &Origin, report: &impl Serialize) -> Result<PathBuf> {
    std::fs::create_dir_all(folder())?;
    let path = folder().join(origin.file_name(bench));
    std::fs::write(&path, serde_json::to_string_pretty(report)? + "\n")
        .with_context(|| path.display().to_string())?;
    Ok(path)
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

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("perf/results")
}
