//! Destination hashing (`ip_vs_dh.c`): packets to one address go to one backend as long as the list of backends stays
//! the same. For services that are reached by many addresses: a cache for each part of them.

use super::{eligible, hash};
use crate::flow::key::FlowKey;
use crate::snapshot::Backend;
use crate::state::State;

/// Buckets of the table, the kernel's default (`CONFIG_IP_VS_DH_TAB_BITS` 8): a hash is a byte.
const BUCKETS: usize = 256;

/// Which backend each hash names.
#[derive(Clone, Debug)]
pub struct Table {
    /// Places in the list of backends; those past the first 256 have no bucket.
    places: Box<[u8; BUCKETS]>,
}

impl Table {
    /// Hands the buckets out one by one in the order of the list, over and over. Weights do not count.
    pub(super) fn over(backends: &[Backend]) -> Self {
        let mut places = Box::new([0; BUCKETS]);
        let turns = (0..=u8::MAX).zip(backends).map(|(place, _)| place).cycle();
        places.iter_mut().zip(turns).for_each(|(bucket, place)| *bucket = place);
        Self { places }
    }

    /// The backend for the destination of `key`; `None` where that one takes no new flows.
    #[inline]
    pub(super) fn find<'a>(
        &self,
        backends: &'a [Backend],
        state: &State,
        key: &FlowKey,
    ) -> Option<&'a Backend> {
        backends.get(self.named(key)?).filter(|backend| eligible(backend, state))
    }

    /// The place in the list of the backend that the hash of `key` names.
    #[inline]
    pub(super) fn named(&self, key: &FlowKey) -> Option<usize> {
        let bucket = usize::from(hash::byte(hash::fold(key.dst)));
        self.places.get(bucket).map(|place| usize::from(*place))
    }
}
