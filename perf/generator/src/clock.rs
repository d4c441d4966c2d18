//! The monotonic clock as a number that generator and sink share, though they are two processes.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::time::{ClockId, clock_gettime};

/// `CLOCK_MONOTONIC` in nanoseconds.
pub(crate) fn now_ns() -> Result<u64> {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).context("clock")?;
    Ok(u64::try_from(Duration::from(now).as_nanos())?)
}

/// The instant at `ns` of that clock. Fails for one that has passed by more than a minute or is further off than that.
pub(crate) fn instant(ns: u64) -> Result<Instant> {
    const FAR: Duration = Duration::from_mins(1);
    let (raw, now) = (now_ns()?, Instant::now());
    let off = Duration::from_nanos(ns.abs_diff(raw));
    ensure!(off < FAR, "{ns} ns is not near now, which is {raw} ns of the monotonic clock");
    let instant = if ns < raw { now.checked_sub(off) } else { now.checked_add(off) };
    instant.context("the clock cannot express the time")
}
