//! Numbers of the command line: what cannot be is refused where it is read.

use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};

/// A time in seconds, above 0.
pub(crate) fn seconds(text: &str) -> Result<Duration> {
    let time = text.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    time.filter(|time| !time.is_zero()).ok_or_else(|| anyhow!("not a time in seconds above 0: {text}"))
}

/// So many a second, above 0.
pub(crate) fn rate(text: &str) -> Result<f64> {
    let rate = text.parse().ok().filter(|rate: &f64| rate.is_finite() && *rate > 0.0);
    rate.with_context(|| format!("not a rate above 0: {text}"))
}

/// Entries of a ring.
pub(crate) fn ring(text: &str) -> Result<u32> {
    const MOST: u32 = 1 << 16;
    let entries = text.parse().with_context(|| format!("not a number of entries: {text}"))?;
    ensure!(
        u32::is_power_of_two(entries) && entries <= MOST,
        "a ring has a power of two of entries, {MOST} at most, not {text}"
    );
    Ok(entries)
}
