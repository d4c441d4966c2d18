//! What all tests against recordings of the kernel's IPVS share: where the recordings lie, and the one list of
//! those that are answered otherwise, `exceptions.txt`, each with its reason.
//!
//! The recordings lie in `ipvs/` beside this file, or below the folder that the environment variable `WEIR_GOLDEN`
//! names, in the subfolders `schedulers`, `packets` and `ipvsadm` (or those below `ipvs`).

#![allow(
    clippy::disallowed_methods,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking, and says why"
)]

use std::any::Any;
use std::collections::BTreeMap;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use serde_json::Value;

/// One subfolder for each kind of recording.
const SUBFOLDERS: [&str; 3] = ["schedulers", "packets", "ipvsadm"];

/// Replays every recording in `subfolder`, by name and content. Fails where one is answered otherwise (an error or
/// a panic) and no exception, and where an exception is none or names no recording.
pub(crate) fn check(subfolder: &str, replay: impl Fn(&str, &Value) -> Result<(), String>) {
    let other = std::env::var_os("WEIR_GOLDEN").map(PathBuf::from);
    let recordings = recordings(other.as_deref(), subfolder);
    let mut exceptions = exceptions(subfolder);
    let mut failures = Vec::new();
    for (name, recording) in &recordings {
        let outcome = catch_unwind(AssertUnwindSafe(|| replay(name, recording)));
        let failure = outcome.unwrap_or_else(|panic| Err(message(panic.as_ref()))).err();
        match (failure, exceptions.remove(name.as_str())) {
            (Some(why), None) => failures.push(format!("{subfolder}/{name}: {why}")),
            // In a folder from elsewhere a recording of this name may be another one.
            (None, Some(reason)) if other.is_none() => {
                failures.push(format!("{subfolder}/{name} is no exception any more ({reason})"));
            }
            _ => {}
        }
    }
    if other.is_none() {
        failures.extend(exceptions.keys().map(|name| format!("{subfolder}/{name} names no recording")));
    }
    let (failed, all) = (failures.len(), recordings.len());
    assert!(failures.is_empty(), "{failed} failures, {all} recordings\n{}", failures.join("\n"));
}

/// Every recording of a subfolder, by its file's name. A folder without any is a mistake, but for a folder from
/// elsewhere that has recordings of other kinds.
fn recordings(other: Option<&Path>, subfolder: &str) -> BTreeMap<String, Value> {
    let base = other.map_or_else(own, Path::to_owned);
    let places = |subfolder: &str| [base.join(subfolder), base.join("ipvs").join(subfolder)];
    let Some(folder) = places(subfolder).into_iter().find(|folder| folder.is_dir()) else {
        let has_others =
            SUBFOLDERS.iter().flat_map(|subfolder| places(subfolder)).any(|folder| folder.is_dir());
        assert!(other.is_some() && has_others, "no recordings of {subfolder} below {}", base.display());
        return BTreeMap::new();
    };
    let paths = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
    let files = paths.filter(|path| path.extension().is_some_and(|extension| extension == "json"));
    let recordings: BTreeMap<_, _> = files.map(|path| (name(&path), read(&path))).collect();
    assert!(!recordings.is_empty(), "no recordings in {}", folder.display());
    recordings
}

/// The folder of this file, from any package of the workspace.
fn own() -> PathBuf {
    let above = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors();
    above.map(|root| root.join("dataplane/tests/golden")).find(|folder| folder.is_dir()).unwrap()
}

fn name(path: &Path) -> String {
    path.file_stem().unwrap().to_str().unwrap().to_owned()
}

fn read(path: &Path) -> Value {
    let text = fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_slice(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The exceptions of a subfolder: recording and reason.
fn exceptions(subfolder: &str) -> BTreeMap<&'static str, &'static str> {
    let lines = include_str!("exceptions.txt").lines().map(str::trim);
    let entries = lines.filter(|line| !line.is_empty() && !line.starts_with('#')).map(|line| {
        let (place, reason) = line.split_once(": ").unwrap_or_else(|| panic!("no reason: {line}"));
        let (folder, name) = place.split_once('/').unwrap_or_else(|| panic!("no subfolder: {line}"));
        assert!(SUBFOLDERS.contains(&folder), "no such subfolder: {line}");
        (folder, name, reason)
    });
    let named = entries.filter(|(folder, name, _)| *folder == subfolder && !name.starts_with('*'));
    named.map(|(_, name, reason)| (name, reason)).collect()
}

/// Whether the list has an exception of this kind for all recordings of a subfolder: a line `subfolder/*kind: reason`.
#[allow(dead_code, reason = "not every test that includes this compares packets")]
pub(crate) fn allows(subfolder: &str, kind: &str) -> bool {
    include_str!("exceptions.txt").lines().any(|line| {
        let rest = line.strip_prefix(subfolder).and_then(|rest| rest.strip_prefix("/*"));
        rest.and_then(|rest| rest.split_once(": ")).is_some_and(|(name, _)| name == kind)
    })
}

/// What a panic said.
fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(ToString::to_string);
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default()
}
