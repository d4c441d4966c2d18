//! Reports for people.

pub(crate) mod html;
pub(crate) mod markdown;
mod svg;
mod table;

use std::path::Path;

use anyhow::{Context, Result};

/// Writes a report.
pub(crate) fn store(text: &str, path: &Path) -> Result<()> {
    std::fs::write(path, text).with_context(|| format!("writing {}", path.display()))
}
