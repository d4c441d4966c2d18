//! Weighted least connections (`ip_vs_wlc.c`): the smallest overhead for its weight, of equals the first in the list.

use super::{eligible, overhead};
use crate::snapshot::Backend;
use crate::state::State;

#[inline]
pub(super) fn least<'a>(backends: &'a [Backend], state: &State) -> Option<&'a Backend> {
    let loaded = |backend: &'a Backend| (backend, u128::from(overhead(backend, state)));
    let mut candidates = backends.iter().filter(|backend| eligible(backend)).map(loaded);
    let first = candidates.next()?;
    let (least, _) = candidates.fold(first, |least, other| {
        // overhead / weight compared without division; 128 bits hold the product whatever the weight.
        let lighter = least.1 * u128::from(other.0.weight) > other.1 * u128::from(least.0.weight);
        if lighter { other } else { least }
    });
    Some(least)
}
