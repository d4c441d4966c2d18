//! Which of a stream's frames have come: to tell those that are missing, and the flows that they belong to.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::flows::FlowArgs;

/// Sequence numbers that have come: a bit each, so half a gigabyte at the very most.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen(Vec<u64>);

/// How losses lie among flows.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct FlowLoss {
    /// Flows that lack frames.
    flows: u64,
    /// Frames that the one lacks that lacks most.
    most: u64,
}

impl Seen {
    /// Notes a frame. Returns whether it had come before.
    pub(crate) fn note(&mut self, sequence: u32) -> bool {
        let (word, bit) = (sequence as usize / 64, 1 << (sequence % 64));
        if word >= self.0.len() {
            self.0.resize(word + 1, 0);
        }
        let Some(word) = self.0.get_mut(word) else { return false };
        let before = *word & bit != 0;
        *word |= bit;
        before
    }

    /// What has come by one queue or another.
    pub(crate) fn merge(&mut self, other: &Self) {
        if self.0.len() < other.0.len() {
            self.0.resize(other.0.len(), 0);
        }
        for (word, more) in self.0.iter_mut().zip(&other.0) {
            *word |= more;
        }
    }

    /// Those below `end` that have not come.
    fn missing(&self, end: u64) -> impl Iterator<Item = u32> {
        let has = |sequence: u32| {
            let word = self.0.get(sequence as usize / 64).copied().unwrap_or(0);
            word & (1 << (sequence % 64)) != 0
        };
        (0..u32::try_from(end).unwrap_or(u32::MAX)).filter(move |sequence| !has(*sequence))
    }
}

/// The losses of all streams by flow; for each stream what has come, and how many were sent as far as is known.
pub(crate) fn by_flow<'a>(
    flows: &FlowArgs,
    streams: u16,
    seen: impl Iterator<Item = (u16, &'a Seen, u64)>,
) -> FlowLoss {
    let mut lost: BTreeMap<u64, u64> = BTreeMap::new();
    for (stream, seen, end) in seen {
        for sequence in seen.missing(end) {
            *lost.entry(flows.of(streams, stream, sequence).number).or_default() += 1;
        }
    }
    FlowLoss { flows: lost.len() as u64, most: lost.into_values().max().unwrap_or(0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_are_counted_by_flow_whatever_queue_the_rest_came_by() {
        let flows = FlowArgs { flows: 10, first_flow: 0, random: false, new_per_mille: 0 };
        let [mut one, mut other] = [Seen::default(), Seen::default()];
        // Of a hundred frames in ten flows, flow 3 lacks three, flow 7 one.
        for sequence in (0..100).filter(|sequence| ![3, 13, 53, 77].contains(sequence)) {
            assert!(!if sequence < 50 { &mut one } else { &mut other }.note(sequence));
        }
        assert!(other.note(99), "it came before");
        one.merge(&other);
        let loss = by_flow(&flows, 1, [(0, &one, 100)].into_iter());
        assert_eq!(loss, FlowLoss { flows: 2, most: 3 });
        assert_eq!(one.missing(102).collect::<Vec<_>>(), [3, 13, 53, 77, 100, 101]);
    }
}
