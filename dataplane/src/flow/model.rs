//! The flow table against a map: one check for proptest and for the fuzzer.

use std::collections::HashMap;

use super::entry::{Tuple, Way};
use super::key::{FlowKey, TCP, UDP};
use super::table::{FlowTable, Heap, NewFlow, Slot};
use crate::ids::{BackendId, ServiceId};
use crate::snapshot::Mode;
use crate::time::Tick;

/// Few enough that operations meet, more than the table holds.
const FLOWS: u8 = 96;
const LIMIT: usize = 64;

/// Carries the operations out that `bytes` spell (two bytes each) and compares every answer with the map's.
///
/// # Panics
/// Where the table and the map disagree.
pub fn check(bytes: &[u8]) {
    let mut table = FlowTable::new(LIMIT, 7, &Heap);
    let mut slots: HashMap<u8, Slot> = HashMap::new();
    for operation in bytes.chunks_exact(2) {
        let number = operation[1] % FLOWS;
        match (operation[0] % 4, slots.get(&number).copied()) {
            (0 | 1, None) => match table.open(&flow(number), Tick(u32::from(number))) {
                Ok(slot) => assert!(slots.insert(number, slot).is_none()),
                Err(_) => assert!(slots.len() >= LIMIT, "full with {} of {LIMIT}", slots.len()),
            },
            (2, Some(slot)) => {
                table.close(slot);
                slots.remove(&number);
            }
            _ => find(&table, number, slots.get(&number).copied()),
        }
        assert_eq!(table.len(), slots.len());
    }
    for number in 0..FLOWS {
        find(&table, number, slots.get(&number).copied());
    }
}

fn find(table: &FlowTable, number: u8, slot: Option<Slot>) {
    let NewFlow { tuple, mode, .. } = flow(number);
    for (key, way) in [(tuple.forward, Way::Forward), (tuple.reply, Way::Reply)] {
        let hit = table.lookup(table.hash(&key), &key);
        let expected = slot.filter(|_| way == Way::Forward || mode != Mode::Dr).map(|slot| (slot, way));
        assert_eq!(hit.map(|hit| (hit.slot(), hit.way())), expected, "flow {number} {way:?}");
    }
    if let Some(entry) = slot.and_then(|slot| table.entry(slot)) {
        assert_eq!((table.tuple(entry), entry.mode()), (tuple, mode), "flow {number}");
        assert_eq!(entry.expires, Tick(u32::from(number)), "flow {number}");
    }
}

/// Flow `number`: both families, both protocols, all modes.
fn flow(number: u8) -> NewFlow {
    let v6 = number.is_multiple_of(3);
    let wide = if v6 { 0x2001_0db8 << 96 } else { 0 };
    let host = |group: u128, host: u8| wide | group << 16 | u128::from(host);
    let mode = [Mode::Nat, Mode::FullNat, Mode::Dr][usize::from(number % 5 % 3)];
    let proto = if number.is_multiple_of(2) { TCP } else { UDP };
    let forward = FlowKey {
        src: host(1, number / 8),
        dst: host(2, number % 4),
        sport: 1000 + u16::from(number),
        dport: 80,
        proto,
        v6,
    };
    let reply = FlowKey {
        src: host(3, number % 7),
        dst: if mode == Mode::FullNat { host(4, 1) } else { forward.src },
        sport: 8080,
        dport: 1000 + u16::from(number),
        proto,
        v6,
    };
    NewFlow {
        tuple: Tuple { forward, reply },
        mode,
        service: ServiceId(number.into()),
        backend: BackendId(number.into()),
    }
}
