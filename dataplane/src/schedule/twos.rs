//! Power of two choices (`ip_vs_twos.c`): of two backends drawn by their weights, the one with the smaller overhead for
//! its weight.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use super::{eligible, hash, overhead, wlc};
use crate::flow::key::FlowKey;
use crate::snapshot::Backend;
use crate::state::State;

/// Draws two backends and takes the better one; the first of two equals.
///
/// Chance comes from the number of draws so far, which `cell` counts for all workers, mixed with the client's address
/// and port: no clock, no state of a worker's own, and a client cannot tell the draws of others.
#[inline]
pub(super) fn better<'a>(
    backends: &'a [Backend],
    state: &State,
    key: &FlowKey,
    cell: &AtomicU64,
) -> Option<&'a Backend> {
    let candidates = || backends.iter().filter(|backend| eligible(backend, state));
    let total: u64 = candidates().map(|backend| u64::from(backend.weight)).sum();
    let client = u64::from(hash::fold(key.src)) << 32 | u64::from(key.sport) << 16 | u64::from(key.dport);
    let one = hash::mix(hash::mix(cell.fetch_add(1, Relaxed)) ^ client);
    let draw = |number| {
        let mut left = below(number, total + 1);
        candidates().find(|backend| {
            let reached = left <= u64::from(backend.weight);
            left = left.saturating_sub(backend.weight.into());
            reached
        })
    };
    // `total` may be out of date when a draw walks the list: then the last one there is.
    let first = draw(one).or_else(|| candidates().next_back())?;
    let Some(second) = draw(hash::mix(!one)) else { return Some(first) };
    let loaded = |backend| (backend, overhead(backend, state));
    Some(if wlc::outweighs(loaded(first), loaded(second)) { second } else { first })
}

/// Maps 64 random bits evenly on `0..end`.
#[inline]
fn below(bits: u64, end: u64) -> u64 {
    ((u128::from(bits) * u128::from(end)) >> 64) as u64
}
