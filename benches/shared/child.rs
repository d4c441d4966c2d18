//! Processes that benches start.

use std::process::Command;

use anyhow::{Result, ensure};
use serde::de::DeserializeOwned;

/// What a process of this bench prints that is started with an argument and a number.
pub(crate) fn child<T: DeserializeOwned>(argument: &str, number: u32) -> Result<T> {
    let output = Command::new(std::env::current_exe()?).args([argument, &number.to_string()]).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(serde_json::from_slice(&output.stdout)?)
}
