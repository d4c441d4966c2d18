//! Least connections (`ip_vs_lc.c`): the smallest overhead, of equals the first in the list.

use super::{eligible, overhead};
use crate::snapshot::Backend;
use crate::state::State;

#[inline]
pub(super) fn least<'a>(backends: &'a [Backend], state: &State) -> Option<&'a Backend> {
    backends.iter().filter(|backend| eligible(backend, state)).min_by_key(|backend| overhead(backend, state))
}
