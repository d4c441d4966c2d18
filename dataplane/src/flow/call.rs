//! Calls of SIP, which templates are found by (IPVS: persistence engine `sip`).

use std::hash::Hasher;

use siphasher::sip128::{Hasher128, SipHasher24};

use crate::wire::sip::CALL_ID_MAX;

/// No call: of templates that are found by the client alone.
pub const NONE: u128 = 0;

/// A keyed 128-bit hash that stands for a Call-ID; never [`NONE`]. With ten million calls at once two have the same by a
/// chance of one in 10^24, and nobody who does not know `seed` can find such two. Equal for all workers of the process.
pub fn hash(id: &[u8], seed: u64) -> u128 {
    // The digits of the golden ratio: for another use of the seed than the flow table's.
    let mut hasher = SipHasher24::new_with_keys(seed, 0x9e37_79b9_7f4a_7c15);
    hasher.write(id);
    hasher.finish128().as_u128().max(1)
}

/// A Call-ID to be shown.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct CallId {
    len: u8,
    bytes: [u8; CALL_ID_MAX],
}

impl CallId {
    /// The same as text, cut where it is too long. `None` where there is no Call-ID.
    pub fn text(&self) -> Option<&str> {
        let bytes = self.bytes.get(..usize::from(self.len))?;
        std::str::from_utf8(bytes).ok().filter(|text| !text.is_empty())
    }
}

impl From<&[u8]> for CallId {
    fn from(id: &[u8]) -> Self {
        let id = id.get(..CALL_ID_MAX).unwrap_or(id);
        let mut bytes = [0; CALL_ID_MAX];
        if let Some(place) = bytes.get_mut(..id.len()) {
            place.copy_from_slice(id);
        }
        Self { len: u8::try_from(id.len()).unwrap_or(0), bytes }
    }
}

impl Default for CallId {
    fn default() -> Self {
        Self { len: 0, bytes: [0; CALL_ID_MAX] }
    }
}

impl std::fmt::Debug for CallId {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.text().fmt(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_differ_by_their_id_and_by_the_seed() {
        let mut seen = std::collections::HashSet::new();
        for seed in 0..10 {
            for id in 0..1000_u32 {
                assert!(seen.insert(hash(&id.to_be_bytes(), seed)));
            }
        }
        assert_eq!(hash(b"a@b", 7), hash(b"a@b", 7));
    }

    #[test]
    fn a_call_id_is_shown_as_it_was() {
        let longest = "x".repeat(CALL_ID_MAX);
        for (id, want) in [("a@b", Some("a@b")), ("", None), (&longest, Some(longest.as_str()))] {
            assert_eq!(CallId::from(id.as_bytes()).text(), want);
        }
    }
}
