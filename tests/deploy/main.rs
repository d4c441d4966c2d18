//! What is deployed: manifests, image, unit, alerts and dashboard, as far as they can be checked without a cluster.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod image;
mod manifests;
mod observability;

use std::path::PathBuf;
use std::process::Command;

/// A file or folder of the repository.
fn repository(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Whether a program is there; says where it is not.
fn has(program: &str, package: &str) -> bool {
    let found = Command::new("sh").args(["-c", &format!("command -v {program}")]).output().unwrap();
    if !found.status.success() {
        println!("did not run: not installed: {program} (Debian's package {package})");
    }
    found.status.success()
}
