//! SNAT ports by the RX queue that replies to them arrive on.
//!
//! A card takes the low bits of a hash for a place in its indirection table, and the queue from there. The hash is the
//! exclusive or of what source, destination address and destination port add ([`Toeplitz`]). So the ports of a pool are
//! sorted once by what they add: for a flow's backend, an address of the pool and a place that has the wanted queue, the
//! ports that suit are one run of that list.

use crate::flow::snat::{self, scale};
use crate::flow::toeplitz::Toeplitz;
use crate::ids::WorkerId;
use crate::snapshot::SnatPool;

/// How a card spreads frames over its RX queues, as it says.
#[derive(Clone, Debug)]
pub struct Spread {
    key: Box<[u8]>,
    toeplitz: Toeplitz,
    /// The queue of each place: a power of two of them.
    table: Box<[u16]>,
}

/// Places in an indirection table at most: as many as 16 bits tell.
pub const TABLE_LIMIT: usize = 1 << 16;

impl Spread {
    /// A card with this key and indirection table; `None` where the key is too short, or the table's length is no power of
    /// two or beyond [`TABLE_LIMIT`].
    pub fn new(key: &[u8], table: &[u32]) -> Option<Self> {
        let toeplitz = Toeplitz::new(key)?;
        let is_usable = table.len().is_power_of_two() && table.len() <= TABLE_LIMIT;
        let table = table.iter().map(|queue| u16::try_from(*queue).ok()).collect::<Option<_>>()?;
        is_usable.then_some(Self { key: key.into(), toeplitz, table })
    }

    /// Whether it spreads as the card with this key and table does.
    pub fn is_of(&self, key: &[u8], table: &[u32]) -> bool {
        *self.key == *key && self.table.iter().map(|queue| u32::from(*queue)).eq(table.iter().copied())
    }

    /// The hash.
    pub fn toeplitz(&self) -> &Toeplitz {
        &self.toeplitz
    }

    /// The queue of a packet with this hash.
    #[inline]
    pub fn queue(&self, hash: u32) -> Option<u16> {
        self.table.get(usize::from(self.place(hash))).copied()
    }

    /// The place in the table of a packet with this hash.
    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "a table has no more than 2^16 places")]
    fn place(&self, hash: u32) -> u16 {
        (hash & (self.table.len() as u32).wrapping_sub(1)) as u16
    }
}

/// A pool's addresses and ports of one family, sorted for one card.
#[derive(Clone, Debug)]
pub struct Sorted {
    /// Each address, with the place that it adds.
    addresses: Box<[(u128, u16)]>,
    /// The ports: each worker's slice after the other, and in it by the place that they add.
    ports: Box<[u16]>,
    workers: Box<[Share]>,
}

/// What is one worker's.
#[derive(Clone, Debug)]
struct Share {
    /// The places that have its queue.
    places: Box<[u16]>,
    /// Where in `ports` the run of each place begins, and where the last one ends.
    starts: Box<[u32]>,
}

impl Sorted {
    /// The IPv6 or IPv4 half of `pool`, for so many workers, whose frames come by `spread`.
    pub fn new(pool: &SnatPool, v6: bool, workers: u8, spread: &Spread) -> Self {
        let toeplitz = spread.toeplitz();
        let with_place = |addr: u128| (addr, spread.place(toeplitz.of_destination(addr, v6)));
        let addresses: Box<[_]> = if v6 {
            pool.v6.iter().map(|addr| with_place(*addr)).collect()
        } else {
            pool.v4.iter().map(|addr| with_place((*addr).into())).collect()
        };
        let mut ports = Vec::new();
        let share = |worker: WorkerId| {
            let own = if addresses.is_empty() { 0..0 } else { snat::slice(pool, worker, workers) };
            let port = |offset| u16::try_from(u32::from(pool.low) + offset).ok();
            let of_port = |port: u16| spread.place(toeplitz.of_destination_port(port, v6));
            let mut own: Vec<_> = own.filter_map(port).map(|port| (of_port(port), port)).collect();
            own.sort_unstable();
            let begin = ports.len();
            let start = |place: usize| begin + own.partition_point(|(of, _)| usize::from(*of) < place);
            let starts = (0..=spread.table.len()).map(start).map(|start| u32::try_from(start).unwrap_or(0));
            let starts = starts.collect();
            ports.extend(own.iter().map(|(_, port)| *port));
            let has_queue = |queue: u16| queue == u16::from(worker.0);
            let places = (0..=u16::MAX).zip(&spread.table).filter(|(_, queue)| has_queue(**queue));
            Share { places: places.map(|(place, _)| place).collect(), starts }
        };
        let workers = (0..workers).map(WorkerId).map(share).collect();
        Self { addresses, ports: ports.into(), workers }
    }

    /// Those of `worker` for replies whose source adds `from` to the hash.
    #[inline]
    pub fn suited(&self, worker: WorkerId, from: u32) -> Option<Suited<'_>> {
        Some(Suited { sorted: self, share: self.workers.get(worker.index())?, from })
    }
}

/// The pairs of SNAT address and port of one worker to which replies from one source come on its own queue.
#[derive(Clone, Copy, Debug)]
pub struct Suited<'a> {
    sorted: &'a Sorted,
    share: &'a Share,
    from: u32,
}

impl Suited<'_> {
    /// One of them, which 64 random bits choose; `None` where the place that these chose has none.
    #[inline]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "numbers below a length, and places, which are 16 bits"
    )]
    pub fn pick(&self, random: u64) -> Option<(u128, u16)> {
        let Self { sorted, share, from } = *self;
        // 22 bits for the address, 20 for the place, 22 for the port: each is spread over the upper half of a word.
        let [for_address, for_place, for_port] = [random, random << 22, random << 42];
        let choose = |bits: u64, count: usize| scale(bits, count as u64) as usize;
        let (address, adds) = *sorted.addresses.get(choose(for_address, sorted.addresses.len()))?;
        let wanted = *share.places.get(choose(for_place, share.places.len()))?;
        let mask = share.starts.len().wrapping_sub(2);
        let place = usize::from(wanted ^ adds ^ from as u16) & mask;
        let [first, end] = [share.starts.get(place)?, share.starts.get(place + 1)?];
        let run = sorted.ports.get(*first as usize..*end as usize)?;
        Some((address, *run.get(choose(for_port, run.len()))?))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;
    use crate::flow::key::{FlowKey, TCP};
    use crate::flow::snat::tests::pool;
    use crate::flow::toeplitz::tests::KEY;

    /// Picks by numbers that are spread over all of 64 bits.
    fn picks(suited: &Suited<'_>, count: u64) -> HashSet<(u128, u16)> {
        (1..=count).filter_map(|n| suited.pick(snat::mix(n))).collect()
    }

    /// The pairs of `worker` to which a reply from this source comes on its queue, found by hashing all of them.
    fn searched(
        pool: &SnatPool,
        spread: &Spread,
        worker: WorkerId,
        workers: u8,
        source: FlowKey,
    ) -> HashSet<(u128, u16)> {
        let v4 = pool.v4.iter().map(|addr| u128::from(*addr));
        let addresses: Vec<_> = if source.v6 { pool.v6.clone() } else { v4.collect() };
        let pairs = addresses.iter().flat_map(|addr| (pool.low..=pool.high).map(|port| (*addr, port)));
        let is_suited = |(addr, port): &(u128, u16)| {
            let reply = FlowKey { dst: *addr, dport: *port, ..source };
            snat::owner(pool, *port, workers) == Some(worker)
                && spread.queue(spread.toeplitz().hash(&reply)) == Some(worker.0.into())
        };
        pairs.filter(is_suited).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn what_is_picked_is_the_workers_own_and_comes_back_to_its_queue(
            key in proptest::collection::vec(any::<u8>(), 40..=52),
            table in (0..=9u32).prop_flat_map(|log| proptest::collection::vec(0..6u32, 1 << log)),
            (low, count) in (1u16..60_000, 1u16..3_000),
            addresses in 0..4u32,
            (workers, worker) in (1..=8u8).prop_flat_map(|workers| (Just(workers), 0..workers)),
            (src, sport, v6) in any::<(u128, u16, bool)>(),
        ) {
            let (pool, spread) = (pool(low, low + (count - 1), addresses), Spread::new(&key, &table).unwrap());
            let src = if v6 { src } else { src & 0xffff_ffff };
            let source = FlowKey { src, sport, proto: TCP, v6, ..FlowKey::default() };
            let sorted = Sorted::new(&pool, v6, workers, &spread);
            let from = spread.toeplitz().of_source(src, v6, sport);
            let suited = sorted.suited(WorkerId(worker), from).unwrap();
            let right = searched(&pool, &spread, WorkerId(worker), workers, source);
            prop_assert!(picks(&suited, 500).is_subset(&right));
        }
    }

    #[test]
    fn all_that_suits_can_be_picked_and_about_as_often() {
        let table: Vec<u32> = (0..128).map(|place| place % 4).collect();
        let (pool, spread) = (pool(2_000, 2_999, 2), Spread::new(&KEY, &table).unwrap());
        let source = FlowKey { src: 0x0a01_0203, sport: 8080, proto: TCP, ..FlowKey::default() };
        let sorted = Sorted::new(&pool, false, 4, &spread);
        let from = spread.toeplitz().of_source(source.src, false, source.sport);
        for worker in (0..4).map(WorkerId) {
            let right = searched(&pool, &spread, worker, 4, source);
            assert!((90..160).contains(&right.len()), "a quarter of 500: {}", right.len());
            let suited = sorted.suited(worker, from).unwrap();
            assert_eq!(picks(&suited, 20_000), right);
            let hits = (1..=1_000).filter_map(|n| suited.pick(snat::mix(n))).count();
            assert!(hits > 600, "few places have no port: {hits}");
        }
        assert!(sorted.suited(WorkerId(4), from).is_none());
    }

    #[test]
    fn a_key_or_table_that_cannot_be_used_is_refused() {
        let table = [0, 1, 0, 1];
        assert!(Spread::new(&KEY, &table).is_some_and(|spread| spread.is_of(&KEY, &table)));
        assert!(Spread::new(&KEY[..39], &table).is_none());
        for table in [&[0, 1, 2][..], &[], &[0, 65_536], &vec![0; 2 * TABLE_LIMIT]] {
            assert!(Spread::new(&KEY, table).is_none(), "{} places", table.len());
        }
        assert!(Spread::new(&KEY, &vec![0; TABLE_LIMIT]).is_some());
    }
}
