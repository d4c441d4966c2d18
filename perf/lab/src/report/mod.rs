//! Reports for people.

pub(crate) mod html;
pub(crate) mod markdown;
mod svg;
mod table;

use std::path::Path;

use anyhow::{Context, Result};

use crate::results::Report;

/// Writes the HTML report.
pub(crate) fn store_html(report: &Report, path: &Path) -> Result<()> {
    std::fs::write(path, html::write(report)).with_context(|| format!("writing {}", path.display()))
}
