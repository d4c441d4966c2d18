//! Weighted least connections (`ip_vs_wlc.c`): the smallest overhead for its weight, of equals the first in the list.

use super::{eligible, overhead};
use crate::snapshot::Backend;
use crate::state::State;

#[inline]
pub(super) fn least<'a>(backends: &'a [Backend], state: &State) -> Option<&'a Backend> {
    let candidates = backends.iter().filter(|backend| eligible(backend, state));
    lightest(candidates.map(|backend| (backend, overhead(backend, state))))
}

/// The backend with the smallest load for its weight, of equals the first.
#[inline]
pub(super) fn lightest<'a>(mut candidates: impl Iterator<Item = (&'a Backend, u64)>) -> Option<&'a Backend> {
    let first = candidates.next()?;
    let (least, _) =
        candidates.fold(first, |least, other| if outweighs(least, other) { other } else { least });
    Some(least)
}

/// Whether `one` has more load for its weight than `other`.
#[inline]
pub(super) fn outweighs(one: (&Backend, u64), other: (&Backend, u64)) -> bool {
    // load / weight compared without division; 128 bits hold the product whatever the weight.
    u128::from(one.1) * u128::from(other.0.weight) > u128::from(other.1) * u128::from(one.0.weight)
}
