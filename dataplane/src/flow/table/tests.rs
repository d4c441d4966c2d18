use proptest::prelude::*;

use super::*;
use crate::flow::key::TCP;

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
            table.confirm(table.probe(table.hash(&key)), &key).is_some()
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

proptest! {
    #[test]
    fn the_table_equals_a_map(operations in proptest::collection::vec(any::<u8>(), 0..2000)) {
        crate::flow::model::check(&operations);
    }
}
