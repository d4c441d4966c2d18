//! Eight 16-bit words compared with one at once: by SSE2, which every x86_64 has.
#![expect(
    unsafe_code,
    reason = "a function with a target feature has to be called as unsafe, also where all have the feature"
)]

/// Words that are compared at once.
pub const LANES: usize = 8;

/// Two bits set for every lane of `words` that holds `word`; the lowest two are those of the first lane.
#[inline(always)]
pub fn equal(words: &[u16; LANES], word: u16) -> u32 {
    #[cfg(target_arch = "x86_64")]
    {
        // SAFETY: SSE2 is part of x86_64, and the function asks for nothing else.
        unsafe { by_sse2(words, word) }
    }
    #[cfg(not(target_arch = "x86_64"))]
    one_by_one(words, word)
}

#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "sse2")]
fn by_sse2(words: &[u16; LANES], word: u16) -> u32 {
    use core::arch::x86_64::{_mm_cmpeq_epi16, _mm_movemask_epi8, _mm_set_epi64x, _mm_set1_epi16};

    let [low, high]: [i64; 2] = zerocopy::transmute!(*words);
    let equal = _mm_cmpeq_epi16(_mm_set_epi64x(high, low), _mm_set1_epi16(word.cast_signed()));
    _mm_movemask_epi8(equal).cast_unsigned()
}

#[cfg(any(test, not(target_arch = "x86_64")))]
fn one_by_one(words: &[u16; LANES], word: u16) -> u32 {
    words.iter().rev().fold(0, |mask, other| mask << 2 | if *other == word { 0b11 } else { 0 })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn both_ways_say_the_same(mut words: [u16; LANES], places: u8) {
            let word = words[0];
            for (place, other) in words.iter_mut().enumerate().filter(|(place, _)| places >> place & 1 != 0) {
                *other = word ^ u16::from(place == 7);
            }
            for word in words {
                prop_assert_eq!(equal(&words, word), one_by_one(&words, word));
            }
        }
    }
}
