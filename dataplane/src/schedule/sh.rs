//! Source hashing (`ip_vs_sh.c`): a client stays with one backend as long as the list of backends stays the same.

use super::{Flags, eligible, hash};
use crate::flow::key::FlowKey;
use crate::snapshot::Backend;
use crate::state::State;

/// Buckets of the table, the kernel's default (`CONFIG_IP_VS_SH_TAB_BITS` 8): a hash is a byte.
const BUCKETS: usize = 256;

/// Which backend each hash names.
#[derive(Clone, Debug)]
pub struct Table {
    /// Places in the list of backends. A backend fills at least one bucket, so no place is above 255.
    places: Box<[u8; BUCKETS]>,
    flags: Flags,
}

impl Table {
    /// Hands the buckets out in the order of the list, over and over: to each backend as many in a row as its
    /// weight, to a drained one 1.
    pub(super) fn over(backends: &[Backend], flags: Flags) -> Self {
        let mut places = Box::new([0; BUCKETS]);
        let shares = (0..=u8::MAX).zip(backends).flat_map(|(place, backend)| {
            let share = usize::try_from(backend.weight.max(1)).unwrap_or(BUCKETS).min(BUCKETS);
            std::iter::repeat_n(place, share)
        });
        for (bucket, place) in places.iter_mut().zip(shares.cycle()) {
            *bucket = place;
        }
        Self { places, flags }
    }

    /// The backend for the client of `key`.
    #[inline]
    pub(super) fn find<'a>(
        &self,
        backends: &'a [Backend],
        state: &State,
        key: &FlowKey,
    ) -> Option<&'a Backend> {
        let hash = self.hash(key);
        let named = self.backend(backends, hash)?;
        if eligible(named, state) {
            return Some(named);
        }
        if !self.flags.fallback {
            return None;
        }
        // The kernel adds the hash to the offset, and the sum to the hash: its walk starts twice the hash along. Over
        // all 256 offsets it passes every bucket.
        (0..=u8::MAX).find_map(|offset| {
            let bucket = hash.wrapping_add(hash).wrapping_add(offset);
            self.backend(backends, bucket).filter(|backend| eligible(backend, state))
        })
    }

    /// The place in the list of the backend that the hash of `key` names.
    #[inline]
    pub(super) fn named(&self, key: &FlowKey) -> Option<usize> {
        self.place(self.hash(key))
    }

    #[inline]
    fn place(&self, bucket: u8) -> Option<usize> {
        self.places.get(usize::from(bucket)).map(|place| usize::from(*place))
    }

    #[inline]
    fn backend<'a>(&self, backends: &'a [Backend], bucket: u8) -> Option<&'a Backend> {
        backends.get(self.place(bucket)?)
    }

    #[inline]
    fn hash(&self, key: &FlowKey) -> u8 {
        let port = if self.flags.port { u32::from(key.sport) } else { 0 };
        hash::byte(hash::fold(key.src).wrapping_add(port))
    }
}
