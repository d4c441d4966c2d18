//! The numbers of a TCP flow whose backend's data were made longer or shorter on the way (IPVS: `ip_vs_seq`).

/// By how much the backend's sequence numbers are shifted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Shift {
    /// Number of the last segment that was changed in length, as the backend counts.
    at: u32,
    /// The shift up to and with that segment's number.
    before: i16,
    /// The shift behind it.
    after: i16,
}

impl Shift {
    /// Whether it changes nothing.
    pub fn is_none(&self) -> bool {
        self.before == 0 && self.after == 0
    }

    /// The segment at `sequence` becomes longer by so many bytes. A retransmission changes nothing.
    pub fn add(&mut self, sequence: u32, bytes: i16) {
        if self.is_none() || is_after(sequence, self.at) {
            *self = Self { at: sequence, before: self.after, after: self.after.saturating_add(bytes) };
        }
    }

    /// What the client is told instead of the backend's `sequence`.
    pub fn to_client(&self, sequence: u32) -> u32 {
        sequence.wrapping_add_signed(self.by(is_after(sequence, self.at)))
    }

    /// What the backend is told instead of the `acknowledgement` of the client.
    pub fn to_backend(&self, acknowledgement: u32) -> u32 {
        // Where the changed segment begins for the client: until it has some of it, the former shift holds.
        let behind = is_after(acknowledgement, self.at.wrapping_add_signed(self.before.into()));
        acknowledgement.wrapping_add_signed(-self.by(behind))
    }

    fn by(&self, behind: bool) -> i32 {
        i32::from(if behind { self.after } else { self.before })
    }
}

/// Whether `one` lies behind `other`, within half of all numbers.
fn is_after(one: u32, other: u32) -> bool {
    (1..1 << 31).contains(&one.wrapping_sub(other))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn an_acknowledgement_of_what_the_client_was_sent_is_one_of_what_the_backend_sent(
            start: u32,
            lines in proptest::collection::vec((30u16..90, -11i16..=11, any::<bool>()), 1..6),
        ) {
            let (mut shift, mut next, mut seen) = (Shift::default(), start, start);
            for (len, change, again) in lines {
                let behind = |number: u32, len: i32| number.wrapping_add_signed(len);
                shift.add(next, change);
                prop_assert_eq!(shift.to_client(next), seen);
                if again {
                    let before = shift;
                    shift.add(next, change);
                    prop_assert_eq!(shift, before);
                }
                let (end, end_seen) = (behind(next, len.into()), behind(seen, i32::from(len) + i32::from(change)));
                prop_assert_eq!(shift.to_client(end), end_seen);
                prop_assert_eq!(shift.to_backend(end_seen), end);
                prop_assert_eq!(shift.to_backend(seen), next);
                (next, seen) = (end, end_seen);
            }
        }
    }
}
