use proptest::prelude::*;

use super::*;
use crate::flow::key::TCP;
use crate::ids::HopId;

fn flow(number: u32) -> NewFlow {
    let forward = FlowKey {
        src: u128::from(0x0a00_0000 + number / 50_000),
        dst: 0x0a01_0001,
        sport: 1 + (number % 50_000) as u16,
        dport: 80,
        proto: TCP,
        v6: false,
    };
    let reply = FlowKey { src: 0x0a02_0001, dst: forward.src, sport: 8080, dport: forward.sport, ..forward };
    NewFlow { tuple: Tuple { forward, reply }, mode: Mode::Nat, service: ServiceId(0), backend: BackendId(0) }
}

#[test]
fn a_table_takes_as_many_flows_as_it_was_made_for_and_no_more() {
    for limit in [1, 2, 1000, 1 << 16, 100_000] {
        let mut table = FlowTable::new(limit, 99, &Heap);
        for number in 0..limit as u32 {
            assert!(table.open(&flow(number), Tick(0)).is_ok(), "flow {number} of {limit}");
        }
        assert_eq!(table.open(&flow(limit as u32), Tick(0)), Err(Full));
        assert_eq!(table.len(), limit);
    }
}

#[test]
fn a_full_table_answers_from_one_bucket_almost_always() {
    // 2^17 flows fill the buckets to their mean limit of four references.
    let limit = 1 << 17;
    let mut table = FlowTable::new(limit, 5, &Heap);
    for number in 0..limit as u32 {
        table.open(&flow(number), Tick(0)).unwrap();
    }
    let at_home = (0..limit as u32)
        .filter(|number| {
            let key = flow(*number).tuple.forward;
            table.probe(table.hash(&key)).and_then(|hit| table.confirm(hit, &key)).is_some()
        })
        .count();
    assert!(at_home * 100 > limit * 90, "{at_home} of {limit} found by their first probe");
    let spilled = table.buckets.iter().filter(|bucket| bucket.spilled > 0).count();
    assert!(spilled * 100 < table.buckets.len() * 30, "{spilled} of {} buckets", table.buckets.len());
}

#[test]
fn a_slot_is_used_again_and_finds_only_its_new_flow() {
    let mut table = FlowTable::new(8, 1, &Heap);
    let first = table.open(&flow(1), Tick(0)).unwrap();
    table.close(first);
    table.close(first);
    assert_eq!(table.open(&flow(2), Tick(0)), Ok(first));
    let gone = flow(1).tuple.forward;
    assert!(table.lookup(table.hash(&gone), &gone).is_none());
    assert_eq!((table.len(), table.high_water()), (1, 1));
}

#[test]
fn the_slots_behind_are_those_that_flows_will_take() {
    let mut table = FlowTable::new(6, 7, &Heap);
    let slots: Vec<_> = (0..4).map(|number| table.open(&flow(number), Tick(0)).unwrap()).collect();
    [2, 0, 3].into_iter().for_each(|at: usize| table.close(slots[at]));
    let behind = std::iter::successors(table.next_slot(), |slot| table.slot_behind(*slot));
    let ahead: Vec<_> = behind.take(5).collect();
    let taken: Vec<_> = (4..9).map(|number| table.open(&flow(number), Tick(0)).unwrap()).collect();
    assert_eq!(ahead, taken);
}

proptest! {
    #[test]
    fn the_table_equals_a_map(operations in proptest::collection::vec(any::<u8>(), 0..2000)) {
        crate::flow::model::check(&operations);
    }
}

proptest! {
    #[test]
    fn a_flow_opened_by_words_is_the_flow_opened_by_its_tuple(
        forward in any::<(u32, u32, u16, u16)>(),
        reply in any::<(u32, u32, u16, u16)>(),
        proto in prop_oneof![Just(TCP), Just(crate::flow::key::UDP)],
        mode in prop_oneof![Just(Mode::Nat), Just(Mode::FullNat), Just(Mode::Dr)],
        state in prop_oneof![Just(State::SynRecv), Just(State::Close), Just(State::Udp)],
    ) {
        let key = |(src, dst, sport, dport): (u32, u32, u16, u16)| {
            FlowKey { src: src.into(), dst: dst.into(), sport, dport, proto, v6: false }
        };
        let tuple = Tuple { forward: key(forward), reply: key(reply) };
        let new = NewFlow { tuple, mode, service: ServiceId(3), backend: BackendId(4) };
        let [mut by_tuple, mut by_words] = [(); 2].map(|()| FlowTable::new(8, 7, &Heap));
        let slot = by_tuple.open(&new, Tick(0)).unwrap();
        Deltas::prepare(by_tuple.entry_mut(slot).unwrap(), &tuple);
        let keys = [tuple.forward, tuple.reply];
        let words = NewWords {
            words: keys.map(|key| (key.addresses_v4(), key.ports())),
            hashes: keys.map(|key| by_words.hash(&key)),
            proto,
            mode,
            service: ServiceId(3),
            backend: BackendId(4),
            hops: [HopId(5), HopId(6)],
            epoch: 9,
            state,
            expires: Tick(11),
        };
        let entry = by_tuple.entry_mut(slot).unwrap();
        (entry.state, entry.expires) = (state, Tick(11));
        entry.set_active(state.is_active());
        entry.count_packet(Way::Forward);
        [Way::Forward, Way::Reply].into_iter().zip(words.hops).for_each(|(way, hop)| entry.take_hop(way, hop, 9));
        prop_assert_eq!(by_words.open_words(&words), Ok(slot));
        let entries = [&by_tuple, &by_words].map(|table| format!("{:?}", table.entry(slot).unwrap()));
        prop_assert_eq!(&entries[0], &entries[1]);
        for key in keys {
            let [one, other] = [&by_tuple, &by_words].map(|table| table.lookup(table.hash(&key), &key));
            prop_assert_eq!(one, other);
            let hash = by_words.hash(&key);
            prop_assert_eq!(by_words.lookup_words(hash, (key.addresses_v4(), key.ports()), proto), other);
            prop_assert!(other.is_none() || !by_words.is_unknown(hash));
        }
        prop_assert_eq!((by_words.len(), by_words.high_water()), (1, 1));
        by_words.close(slot);
        prop_assert!(keys.iter().all(|key| by_words.is_unknown(by_words.hash(key))));
        prop_assert!(by_words.is_empty());
    }
}
