//! The largest segment that a TCP peer is told of in a SYN or SYN-ACK (RFC 9293, section 3.7.1), made smaller, so that
//! segments fit a path that is narrower than the peer knows.

use zerocopy::big_endian::U16;

use crate::wire::checksum::{Delta, Sum};
use crate::wire::tcp::Tcp;
use crate::wire::{view, view_mut};

const END: u8 = 0;
const NO_OPERATION: u8 = 1;
const MSS: u8 = 2;
/// Length of the option.
const MSS_LEN: u8 = 4;

/// Lowers the segment size that `segment` announces to `most`. Returns whether it did: an option that says as little
/// already, or is missing, or lies behind options that make no sense, is left alone. `unfinished` says that the checksum
/// is only the pseudo-header's sum, and stays that.
pub fn clamp(segment: &mut [u8], most: u16, unfinished: bool) -> bool {
    let Some(at) = find(segment) else { return false };
    let Ok(said) = view_mut::<U16>(segment, at) else { return false };
    if said.get() <= most {
        return false;
    }
    let before = said.get();
    *said = most.into();
    let change = Delta::between(Sum::word(before), Sum::word(most));
    // At an odd place each byte counts in the other half of its word.
    let change = if at.is_multiple_of(2) { change } else { change.swapped() };
    match view_mut::<Tcp>(segment, 0) {
        Ok(tcp) if !unfinished => tcp.checksum = change.apply(tcp.checksum.get()).into(),
        _ => {}
    }
    true
}

/// Where the announced size lies in the segment.
fn find(segment: &[u8]) -> Option<usize> {
    let tcp: &Tcp = view(segment, 0).ok()?;
    let end = tcp.header_len().min(segment.len());
    let mut at = Tcp::LEN;
    while at < end {
        let len = match *segment.get(at..end)? {
            [END, ..] => return None,
            [NO_OPERATION, ..] => 1,
            [MSS, MSS_LEN, _, _, ..] => return Some(at + 2),
            [_, len, ..] if len >= 2 => len.into(),
            _ => return None,
        };
        at += len;
    }
    None
}

#[cfg(test)]
#[allow(clippy::cast_possible_truncation, reason = "test segments are short")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A SYN with these options, padded to whole words, and a checksum as if the pseudo-header were empty.
    fn syn(options: &[u8]) -> Vec<u8> {
        let mut segment = vec![0x0f, 0xa0, 0, 80, 0, 0, 3, 232, 0, 0, 0, 0, 0, 2, 0xfa, 0xf0, 0, 0, 0, 0];
        segment.extend(options);
        segment.resize(20 + options.len().next_multiple_of(4), 0);
        segment[12] = (segment.len() as u8 / 4) << 4;
        segment.extend(b"odd");
        let checksum = Sum::of(&segment).checksum();
        segment[16..18].copy_from_slice(&checksum.to_be_bytes());
        segment
    }

    #[test]
    fn only_an_option_that_says_more_is_changed() {
        for (name, options, most, want) in [
            ("larger", &[2, 4, 5, 180][..], 1400, Some((22, 1400))),
            ("equal", &[2, 4, 5, 120], 1400, None),
            ("smaller", &[2, 4, 2, 24], 1400, None),
            ("missing", &[4, 2, 1, 1], 1400, None),
            ("no options", &[], 1400, None),
            ("behind others", &[4, 2, 3, 3, 7, 2, 4, 5, 180], 1400, Some((27, 1400))),
            ("at an odd place", &[1, 2, 4, 5, 180], 1000, Some((23, 1000))),
            ("behind the end", &[0, 2, 4, 5, 180], 1400, None),
            ("of a wrong length", &[2, 3, 5, 180], 1400, None),
            ("cut off", &[1, 1, 2, 4], 1400, None),
            ("behind one of no length", &[8, 0, 2, 4, 5, 180], 1400, None),
            ("behind one that is too long", &[8, 40, 2, 4, 5, 180], 1400, None),
        ] {
            let before = syn(options);
            let mut after = before.clone();
            assert_eq!(clamp(&mut after, most, false), want.is_some(), "{name}");
            match want {
                Some((at, value)) => {
                    assert_eq!(after[at..at + 2], u16::to_be_bytes(value), "{name}");
                    assert!(Sum::of(&after).verifies(), "{name}: checksum");
                }
                None => assert_eq!(after, before, "{name}"),
            }
            let mut unfinished = before.clone();
            clamp(&mut unfinished, most, true);
            assert_eq!(unfinished[16..18], before[16..18], "{name}: only the pseudo-header's");
        }
    }

    proptest! {
        #[test]
        fn any_segment_is_survived(mut bytes in proptest::collection::vec(any::<u8>(), 0..80), most: u16) {
            let before = bytes.clone();
            if clamp(&mut bytes, most, false) {
                let [was, is] = [&before, &bytes].map(|bytes| Sum::of(bytes).verifies());
                prop_assert_eq!(was, is, "right stays right, wrong wrong");
            } else {
                prop_assert_eq!(bytes, before);
            }
        }

        #[test]
        fn the_checksum_follows(leading in 0..8usize, said: u16, most: u16) {
            let mut segment = syn(&[&vec![1; leading][..], &[2, 4], &said.to_be_bytes()].concat());
            prop_assert_eq!(clamp(&mut segment, most, false), said > most);
            prop_assert!(Sum::of(&segment).verifies());
        }
    }
}
