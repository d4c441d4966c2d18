//! Weighted overflow (`ip_vs_ovf.c`): the backend of the largest weight until its active connections are more than its
//! weight, then the next one.

use super::{active, eligible, fo};
use crate::snapshot::Backend;
use crate::state::State;

#[inline]
pub(super) fn heaviest_with_room<'a>(backends: &'a [Backend], state: &State) -> Option<&'a Backend> {
    let has_room = |backend: &&Backend| eligible(backend, state) && active(backend, state) <= backend.weight;
    fo::of_all(backends.iter().filter(has_room))
}
