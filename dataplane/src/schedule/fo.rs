//! Weighted failover (`ip_vs_fo.c`): everything to the backend of the largest weight, of equals the first in the list.

use super::eligible;
use crate::snapshot::Backend;
use crate::state::State;

#[inline]
pub(super) fn heaviest<'a>(backends: &'a [Backend], state: &State) -> Option<&'a Backend> {
    of_all(backends.iter().filter(|backend| eligible(backend, state)))
}

/// The backend of the largest weight, of equals the first.
#[inline]
pub(super) fn of_all<'a>(candidates: impl Iterator<Item = &'a Backend>) -> Option<&'a Backend> {
    candidates.reduce(|heaviest, other| if other.weight > heaviest.weight { other } else { heaviest })
}
