//! Never queue (`ip_vs_nq.c`): the first backend without an active connection, else what sed chooses.

use super::{active, eligible, sed};
use crate::snapshot::Backend;
use crate::state::State;

#[inline]
pub(super) fn first_idle<'a>(backends: &'a [Backend], state: &State) -> Option<&'a Backend> {
    let idle = backends.iter().find(|backend| eligible(backend, state) && active(backend, state) == 0);
    idle.or_else(|| sed::least(backends, state))
}
