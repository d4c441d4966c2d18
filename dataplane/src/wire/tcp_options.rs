//! TCP options (RFC 9293, section 3.1; RFC 7323; RFC 2018): read, changed and written in place.

/// Kind: end of the list.
const END: u8 = 0;
/// Kind: padding of one byte.
const NOP: u8 = 1;
/// Kind: largest segment that the sender takes.
pub const MSS: u8 = 2;
/// Kind: by how much the sender's windows are shifted.
pub const WINDOW_SCALE: u8 = 3;
/// Kind: the sender understands selective acknowledgements.
pub const SACK_PERMITTED: u8 = 4;
/// Kind: selective acknowledgements.
pub const SACK: u8 = 5;
/// Kind: timestamps.
pub const TIMESTAMPS: u8 = 8;

/// Bytes of options in a header at most.
pub const LONGEST: usize = 40;
/// The largest shift of a window (RFC 7323, section 2.3).
pub const LARGEST_SCALE: u8 = 14;

/// Calls `see` with kind and value of each option, in order, up to one that is malformed.
pub fn each(mut options: &mut [u8], mut see: impl FnMut(u8, &mut [u8])) {
    loop {
        options = match options {
            [] | [END, ..] => return,
            [NOP, rest @ ..] => rest,
            [kind, len, rest @ ..] => {
                let kind = *kind;
                let Some(len) = usize::from(*len).checked_sub(2) else { return };
                let Some((value, rest)) = rest.split_at_mut_checked(len) else { return };
                see(kind, value);
                rest
            }
            [_] => return,
        };
    }
}

/// What a SYN or SYN-ACK offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Offer {
    /// Largest segment that its sender takes; `None` where it says nothing.
    pub mss: Option<u16>,
    /// By how much its sender's windows are shifted, where windows are shifted at all.
    pub scale: Option<u8>,
    /// Whether its sender understands selective acknowledgements.
    pub sack: bool,
    /// Its sender's timestamp, and the one that it repeats.
    pub timestamps: Option<(u32, u32)>,
}

impl Offer {
    /// What the options of a segment say.
    pub fn read(options: &mut [u8]) -> Self {
        let mut offer = Self::default();
        each(options, |kind, value| match (kind, &*value) {
            (MSS, [high, low]) => offer.mss = Some(u16::from_be_bytes([*high, *low])),
            (WINDOW_SCALE, [scale]) => offer.scale = Some((*scale).min(LARGEST_SCALE)),
            (SACK_PERMITTED, []) => offer.sack = true,
            (TIMESTAMPS, value) => offer.timestamps = pair(value),
            _ => {}
        });
        offer
    }

    /// As options, in whole words.
    pub fn write(&self, options: &mut Options) {
        if let Some(mss) = self.mss {
            let [high, low] = mss.to_be_bytes();
            options.add(&[MSS, 4, high, low]);
        }
        if let Some((own, repeated)) = self.timestamps {
            // With what else needs two bytes in the place of the padding.
            options.add(if self.sack { &[SACK_PERMITTED, 2] } else { &[NOP, NOP] });
            options.add(&[TIMESTAMPS, 10]);
            options.add(&own.to_be_bytes());
            options.add(&repeated.to_be_bytes());
        } else if self.sack {
            options.add(&[NOP, NOP, SACK_PERMITTED, 2]);
        }
        if let Some(scale) = self.scale {
            options.add(&[NOP, WINDOW_SCALE, 3, scale]);
        }
    }
}

/// Both values of a timestamps option.
fn pair(value: &[u8]) -> Option<(u32, u32)> {
    let ([own, repeated], []) = value.as_chunks::<4>() else { return None };
    Some((u32::from_be_bytes(*own), u32::from_be_bytes(*repeated)))
}

/// Options to be put into a header.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    bytes: [u8; LONGEST],
    len: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { bytes: [END; LONGEST], len: 0 }
    }
}

impl Options {
    /// Adds bytes; nothing where they do not fit. Whoever adds sees to whole words.
    pub fn add(&mut self, bytes: &[u8]) {
        if let Some(free) = self.bytes.get_mut(self.len..self.len + bytes.len()) {
            free.copy_from_slice(bytes);
            self.len += bytes.len();
        }
    }

    /// All of them.
    pub fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_written_is_read_again(
            mss in any::<Option<u16>>(), scale in proptest::option::of(0..=LARGEST_SCALE), sack: bool,
            timestamps in any::<Option<(u32, u32)>>(),
        ) {
            let offer = Offer { mss, scale, sack, timestamps };
            let mut options = Options::default();
            offer.write(&mut options);
            prop_assert_eq!(options.bytes().len() % 4, 0);
            prop_assert_eq!(Offer::read(&mut options.bytes().to_vec()), offer);
        }

        #[test]
        fn any_bytes_are_survived(mut bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            let mut seen = 0;
            each(&mut bytes, |_, value| seen += 2 + value.len());
            prop_assert!(seen <= bytes.len());
            Offer::read(&mut bytes);
        }
    }

    #[test]
    fn options_end_where_they_are_malformed() {
        for (name, bytes, want) in [
            ("padded", &[1u8, 1, 2, 4, 5, 0xb4, 0][..], Some(1460)),
            ("behind the end", &[0, 2, 4, 5, 0xb4], None),
            ("behind one of no length", &[9, 0, 2, 4, 5, 0xb4], None),
            ("behind one of length one", &[9, 1, 2, 4, 5, 0xb4], None),
            ("cut off", &[2, 4, 5], None),
            ("of another length", &[2, 3, 5], None),
        ] {
            assert_eq!(Offer::read(&mut bytes.to_vec()).mss, want, "{name}");
        }
    }
}
