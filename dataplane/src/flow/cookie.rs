//! SYN cookies: all that a SYN says and Weir has to remember lies in the sequence number of the answer, and comes back in
//! the client's acknowledgement (D. J. Bernstein, 1996; RFC 4987, section 3.6).
//!
//! ```text
//!  31                            8 7       4  3    2  1    0
//! | keyed hash of all that follows | scale | SACK | MSS | minute |
//! ```
//!
//! The hash covers the five-tuple, the client's own first sequence number, the eight bits below it and the minute as a
//! whole; so one who does not see the answer hits upon it once in 2^24 tries, and what he hits upon is good for one
//! tuple and two minutes at most. Half of it covers the number but for its low bits: by that half a segment is known
//! that follows the one which should have brought the cookie back, and did not arrive.
//! The options need no timestamps to be carried (as they do in Linux): hosts that send
//! none keep window scaling and selective acknowledgements. Every worker of the process makes the same cookies.

use std::hash::Hasher;

use siphasher::sip::SipHasher24;

use super::key::FlowKey;
use crate::time::{TICKS_PER_SECOND, Tick};
use crate::wire::tcp_options::Offer;

/// Sizes of a segment that a cookie can hold: what common paths and tunnels leave, per family.
const SIZES: [[u16; 4]; 2] = [[536, 1300, 1440, 1460], [1220, 1380, 1420, 1440]];
/// In the place of a scale: the client does not shift windows.
const UNSCALED: u32 = 15;

const MINUTE: u32 = 1;
const SIZE_SHIFT: u32 = 1;
const SACK: u32 = 1 << 3;
const SCALE_SHIFT: u32 = 4;
const HASH: u32 = !0xff;
const DATA_BITS: u32 = 8;
const HALF_SHIFT: u32 = 20;

/// How many bytes a client may send before the backend has answered, at most.
pub const REACH: u32 = 1 << 14;

/// What cookies are hashed with.
#[derive(Clone, Copy)]
pub struct Secret(u64, u64);

impl std::fmt::Debug for Secret {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("Secret")
    }
}

impl Secret {
    /// The secret of a process whose workers share `seed`.
    pub fn of(seed: u64) -> Self {
        // The first digits of e: for another use of the seed than the flow table's.
        let half = |word: u64| {
            let mut hasher = SipHasher24::new_with_keys(seed, 0xb7e1_5162_8aed_2a6a);
            hasher.write_u64(word);
            hasher.finish()
        };
        Self(half(0), half(1))
    }

    /// The sequence number that answers the SYN with `key` and the sequence number `first`, which makes `offer`.
    pub fn cookie(&self, key: &FlowKey, first: u32, offer: &Offer, now: Tick) -> u32 {
        let minute = minute(now);
        let data = minute & MINUTE | pack(offer, key.v6);
        self.hash(key, first, data, minute) | data
    }

    /// What the SYN offered to which `cookie` answered, if it did within the last minute or two. Of the size no more
    /// than the cookie could hold; of timestamps nothing.
    pub fn open(&self, key: &FlowKey, first: u32, cookie: u32, now: Tick) -> Option<Offer> {
        let data = cookie & !HASH;
        let minute = of_parity(minute(now), data)?;
        (self.hash(key, first, data, minute) == cookie & HASH).then(|| unpack(data, key.v6))
    }

    /// Whether a segment whose own number is `number` follows, within [`REACH`], the one that should have brought `cookie`
    /// back. Of unrelated segments one in 2,048 seems to.
    pub fn follows(&self, key: &FlowKey, number: u32, cookie: u32, now: Tick) -> bool {
        let data = cookie & !HASH;
        let Some(minute) = of_parity(minute(now), data) else { return false };
        [number, number.wrapping_sub(REACH)]
            .iter()
            .any(|first| self.half(key, u64::from(first / REACH), data, minute) == cookie >> HALF_SHIFT)
    }

    fn hash(&self, key: &FlowKey, first: u32, data: u32, minute: u32) -> u32 {
        let rough = self.half(key, u64::from(first / REACH), data, minute);
        // Its own bit tells an exact number from a rough one.
        let exact = self.half(key, u64::from(first) | 1 << 32, data, minute);
        rough << HALF_SHIFT | exact << DATA_BITS
    }

    /// Twelve bits.
    fn half(&self, key: &FlowKey, first: u64, data: u32, minute: u32) -> u32 {
        let mut hasher = SipHasher24::new_with_keys(self.0, self.1);
        hasher.write_u128(key.src);
        hasher.write_u128(key.dst);
        hasher.write_u64(first);
        hasher.write_u32(u32::from(key.sport) << 16 | u32::from(key.dport));
        hasher.write_u64(u64::from(minute) << 8 | u64::from(data));
        u32::try_from(hasher.finish() >> 52).unwrap_or_default()
    }
}

fn minute(now: Tick) -> u32 {
    now.0 / (60 * TICKS_PER_SECOND)
}

/// Of this minute and the one before, the one that has the cookie's parity.
fn of_parity(minute: u32, data: u32) -> Option<u32> {
    if (minute ^ data) & MINUTE == 0 { Some(minute) } else { minute.checked_sub(1) }
}

fn pack(offer: &Offer, v6: bool) -> u32 {
    let mss = offer.mss.unwrap_or(0);
    // The largest that is not too large; the smallest for one that takes even less.
    let size = sizes(v6).iter().skip(1).filter(|size| **size <= mss).count();
    let scale = offer.scale.map_or(UNSCALED, u32::from);
    u32::try_from(size).unwrap_or_default() << SIZE_SHIFT
        | if offer.sack { SACK } else { 0 }
        | scale << SCALE_SHIFT
}

/// What the SYN offered to which a cookie of Weir's answered: [`Secret::open`] has said that it is one.
pub fn unpack(cookie: u32, v6: bool) -> Offer {
    let data = cookie & !HASH;
    let size = usize::try_from(data >> SIZE_SHIFT & 3).unwrap_or_default();
    let scale = data >> SCALE_SHIFT;
    Offer {
        mss: sizes(v6).get(size).copied(),
        scale: u8::try_from(scale).ok().filter(|_| scale != UNSCALED),
        sack: data & SACK != 0,
        timestamps: None,
    }
}

fn sizes(v6: bool) -> &'static [u16; 4] {
    let [v4_sizes, v6_sizes] = &SIZES;
    if v6 { v6_sizes } else { v4_sizes }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::flow::key::TCP;

    const MINUTE_TICKS: u32 = 60 * TICKS_PER_SECOND;

    fn key(number: u32, v6: bool) -> FlowKey {
        FlowKey { src: number.into(), dst: 7, sport: 40_000, dport: 80, proto: TCP, v6 }
    }

    fn offer() -> Offer {
        Offer { mss: Some(1460), scale: Some(7), sack: true, timestamps: None }
    }

    proptest! {
        #[test]
        fn a_cookie_gives_back_what_was_offered(
            seed: u64, number: u32, first: u32, v6: bool, now in 0..=u32::MAX,
            mss in any::<Option<u16>>(), scale in proptest::option::of(0u8..=14), sack: bool,
        ) {
            let (secret, key) = (Secret::of(seed), key(number, v6));
            let offer = Offer { mss, scale, sack, timestamps: None };
            let cookie = secret.cookie(&key, first, &offer, Tick(now));
            let opened = secret.open(&key, first, cookie, Tick(now)).unwrap();
            prop_assert_eq!((opened.scale, opened.sack), (scale, sack));
            let (size, asked) = (opened.mss.unwrap(), mss.unwrap_or(0));
            let smallest = sizes(v6)[0];
            prop_assert!(size <= asked || size == smallest);
            let fits_better = sizes(v6).iter().any(|other| *other > size && *other <= asked);
            prop_assert!(!fits_better);
        }

        #[test]
        fn a_cookie_is_good_for_its_own_tuple_number_and_secret_alone(number: u32, first: u32, other in 1u32..) {
            let (secret, now) = (Secret::of(1), Tick(5));
            let cookie = secret.cookie(&key(number, false), first, &offer(), now);
            let opens = |secret: &Secret, key, first| secret.open(&key, first, cookie, now).is_some();
            prop_assert!(opens(&secret, key(number, false), first));
            prop_assert!(!opens(&secret, key(number ^ other, false), first));
            prop_assert!(!opens(&secret, key(number, false), first ^ other));
            let own = key(number, false);
            let (from, to) = (FlowKey { sport: 40_001, ..own }, FlowKey { dport: 81, ..own });
            prop_assert!(!opens(&secret, from, first) && !opens(&secret, to, first));
            prop_assert!(!opens(&Secret::of(2), key(number, false), first));
        }

        #[test]
        fn a_changed_cookie_is_none(number: u32, first: u32, bit in 0u32..32) {
            let (secret, now) = (Secret::of(3), Tick(100_000));
            let cookie = secret.cookie(&key(number, true), first, &offer(), now);
            prop_assert_eq!(secret.open(&key(number, true), first, cookie ^ 1 << bit, now), None);
        }
    }

    #[test]
    fn a_cookie_is_accepted_within_its_minute_and_the_next() {
        let (secret, key) = (Secret::of(9), key(1, false));
        for start in [0, MINUTE_TICKS, 7 * MINUTE_TICKS] {
            for made in [0, 1, MINUTE_TICKS / 2, MINUTE_TICKS - 1] {
                let cookie = secret.cookie(&key, 1, &offer(), Tick(start + made));
                let opens = |tick| secret.open(&key, 1, cookie, Tick(tick)).is_some();
                assert!(opens(start + made) && opens(start + 2 * MINUTE_TICKS - 1), "made at {made}");
                for later in 2..100 {
                    assert!(!opens(start + later * MINUTE_TICKS), "{later} minutes later");
                }
                for earlier in 1..=start / MINUTE_TICKS {
                    assert!(!opens(start - earlier * MINUTE_TICKS), "{earlier} minutes before");
                }
            }
        }
    }

    #[test]
    fn what_follows_a_lost_segment_is_known_and_little_else() {
        let (secret, key, now) = (Secret::of(6), key(1, false), Tick(10));
        for first in [0, 77, REACH - 1, u32::MAX - 5] {
            let cookie = secret.cookie(&key, first, &offer(), now);
            for later in [1, 1460, REACH] {
                assert!(
                    secret.follows(&key, first.wrapping_add(later), cookie, now),
                    "{later} behind {first}"
                );
            }
        }
        let others = (0u32..20_000).map(|n| n.wrapping_mul(0x9e37_79b1));
        let taken = others.filter(|cookie| secret.follows(&key, 77, *cookie, now)).count();
        assert!(taken < 40, "{taken} of 20,000");
    }

    #[test]
    fn guesses_hit_about_once_in_2_to_the_24() {
        let (secret, key, now) = (Secret::of(4), key(1, false), Tick(10));
        // 2^22 guesses at random: 0.125 hits are to be expected, as half of them have the right parity.
        let guesses = (0u32..1 << 22).map(|n| n.wrapping_mul(0x9e37_79b1) ^ n >> 3);
        let hits = guesses.filter(|guess| secret.open(&key, 77, *guess, now).is_some()).count();
        assert!(hits <= 3, "{hits} hits");
    }

    #[test]
    fn cookies_of_one_client_look_unrelated() {
        let secret = Secret::of(5);
        let hashes: std::collections::HashSet<_> = (0..1000)
            .map(|first| secret.cookie(&key(1, false), first << 20, &offer(), Tick(0)) >> 8)
            .collect();
        assert!(hashes.len() >= 999);
    }
}
