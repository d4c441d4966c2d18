//! Which flow a frame belongs to: a function of its sequence number, so that a sink can tell the flows that lost
//! frames although a load balancer has changed their addresses and ports.

use clap::Args;
use clap::builder::RangedU64ValueParser;

/// The flows of a generator's threads.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct FlowArgs {
    /// Flows of each thread. No two threads send the same flow.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) flows: u32,
    /// Number of the first flow: to have other flows than an earlier run.
    #[arg(long, default_value_t = 0, value_parser = first_flow())]
    pub(crate) first_flow: u64,
    /// Visit the flows in random order rather than one after the other.
    #[arg(long)]
    pub(crate) random: bool,
    /// Of a thousand frames so many are the first of a new flow, beside those of `--flows`.
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=1000))]
    pub(crate) new_per_mille: u32,
}

/// The number of a first flow: no more than there are ports and 32-bit addresses, so that sums with it stay in 64 bits.
pub(crate) fn first_flow() -> RangedU64ValueParser {
    clap::value_parser!(u64).range(..1 << 48)
}

/// The flow of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Flow {
    /// Its number, among those of all threads.
    pub(crate) number: u64,
    /// Whether the frame is the first of a flow beside `--flows`.
    pub(crate) new: bool,
}

impl FlowArgs {
    /// The flow of frame `sequence` of thread `stream` among so many `streams`.
    pub(crate) fn of(&self, streams: u16, stream: u16, sequence: u32) -> Flow {
        let (streams, stream, sequence) = (u64::from(streams), u64::from(stream), u64::from(sequence));
        let count = u64::from(self.flows);
        let before = |frames: u64| frames * u64::from(self.new_per_mille) / 1000;
        let fresh = before(sequence);
        if before(sequence + 1) > fresh {
            // One thread's are between another's, so that nobody needs to know how many there will be.
            return Flow { number: self.first_flow + streams * count + fresh * streams + stream, new: true };
        }
        let place = sequence - fresh;
        let place = if self.random { (scatter(place << 16 | stream) * count) >> 32 } else { place % count };
        Flow { number: self.first_flow + stream * count + place, new: false }
    }

    /// One more than the highest number that frames up to `count` a thread can have.
    pub(crate) fn end(&self, streams: u16, count: u32) -> u64 {
        let fresh = u64::from(count) * u64::from(self.new_per_mille) / 1000;
        self.first_flow + u64::from(streams) * (u64::from(self.flows) + fresh)
    }
}

/// 32 well mixed bits (the finalizer of SplitMix64, Steele, Lea and Flood 2014).
fn scatter(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (value ^ (value >> 31)) >> 32
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const ARGS: FlowArgs = FlowArgs { flows: 10, first_flow: 100, random: false, new_per_mille: 0 };

    fn numbers(args: FlowArgs, stream: u16, frames: u32) -> Vec<u64> {
        (0..frames).map(|sequence| args.of(2, stream, sequence).number).collect()
    }

    #[test]
    fn threads_visit_their_own_flows_in_turn() {
        assert_eq!(numbers(ARGS, 0, 11), [100, 101, 102, 103, 104, 105, 106, 107, 108, 109, 100]);
        assert_eq!(numbers(ARGS, 1, 3), [110, 111, 112]);
    }

    #[test]
    fn random_order_visits_every_flow_about_as_often() {
        let mut visits = [0; 10];
        for number in numbers(FlowArgs { random: true, ..ARGS }, 1, 10_000) {
            visits[usize::try_from(number - 110).unwrap()] += 1;
        }
        assert!(visits.iter().all(|visits| (850..1150).contains(visits)), "{visits:?}");
    }

    #[test]
    fn the_share_of_new_flows_is_kept_and_none_comes_twice() {
        let args = FlowArgs { new_per_mille: 250, ..ARGS };
        let mut new = BTreeSet::new();
        for stream in 0..2 {
            for sequence in 0..1000 {
                let flow = args.of(2, stream, sequence);
                assert!(flow.number < args.end(2, 1000));
                assert_eq!(flow.new, flow.number >= 120, "{flow:?}");
                assert!(!flow.new || new.insert(flow.number), "{flow:?} came twice");
            }
        }
        assert_eq!(new.len(), 500);
        assert_eq!(numbers(FlowArgs { new_per_mille: 1000, ..ARGS }, 1, 3), [121, 123, 125]);
    }
}
