//! Source hashing (`ip_vs_sh.c`): a client stays with one backend as long as the list of backends stays the same.

use super::{Flags, eligible};
use crate::flow::key::FlowKey;
use crate::snapshot::Backend;

/// Buckets of the table, the kernel's default (`CONFIG_IP_VS_SH_TAB_BITS` 8): a hash is a byte.
const BUCKETS: usize = 256;

/// The golden ratio's hash multiplier (`include/linux/hash.h`, `GOLDEN_RATIO_32`).
const GOLDEN_RATIO: u32 = 0x61c8_8647;

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
    pub(super) fn find<'a>(&self, backends: &'a [Backend], key: &FlowKey) -> Option<&'a Backend> {
        let hash = self.hash(key);
        let named = self.backend(backends, hash)?;
        if eligible(named) {
            return Some(named);
        }
        if !self.flags.sh_fallback {
            return None;
        }
        // The kernel adds the hash to the offset, and the sum to the hash: its walk starts twice the hash along. Over
        // all 256 offsets it passes every bucket.
        (0..=u8::MAX).find_map(|offset| {
            let bucket = hash.wrapping_add(hash).wrapping_add(offset);
            self.backend(backends, bucket).filter(|backend| eligible(backend))
        })
    }

    #[inline]
    fn backend<'a>(&self, backends: &'a [Backend], bucket: u8) -> Option<&'a Backend> {
        backends.get(usize::from(*self.places.get(usize::from(bucket))?))
    }

    /// The upper byte of the product: of an IPv6 address its four words are folded first, of an IPv4 address the
    /// upper three are 0 anyway.
    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "the fold takes the words one by one")]
    fn hash(&self, key: &FlowKey) -> u8 {
        let halves = key.src ^ key.src >> 64;
        let folded = (halves ^ halves >> 32) as u32;
        let port = if self.flags.sh_port { u32::from(key.sport) } else { 0 };
        let [top, ..] = folded.wrapping_add(port).wrapping_mul(GOLDEN_RATIO).to_be_bytes();
        top
    }
}
