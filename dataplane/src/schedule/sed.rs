//! Shortest expected delay (`ip_vs_sed.c`): as wlc, but idle connections do not count and the new one does.

use super::{active, eligible, wlc};
use crate::snapshot::Backend;
use crate::state::State;

#[inline]
pub(super) fn least<'a>(backends: &'a [Backend], state: &State) -> Option<&'a Backend> {
    let candidates = backends.iter().filter(|backend| eligible(backend, state));
    wlc::lightest(candidates.map(|backend| (backend, u64::from(active(backend, state)) + 1)))
}
