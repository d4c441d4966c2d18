//! Connection tracking against a reference: the kernel's tables and rules, written down a second time (`kernel.rs`), beside
//! one real engine. One check for proptest and for the fuzzer.
//!
//! Bytes spell a sequence of operations: packets of TCP, UDP and SCTP with any flags and chunks from clients and backends,
//! time that passes, weights, thresholds, backends that go and come back, and settings. After each, the verdict, all
//! connections with their states and times, and all counts have to be the same. Which of the backends that may be chosen
//! is chosen is the scheduler's matter: the reference takes the engine's word for it.

mod frames;
mod kernel;
mod world;

use self::kernel::Seen;
use self::world::{CLIENTS, SERVICES, World};

/// Carries out the operations that `bytes` spell, and returns how many there were.
///
/// # Panics
/// Where engine and reference differ.
pub fn check(bytes: &[u8]) -> u64 {
    let mut input = Input(bytes);
    let mut world = World::new();
    let mut operations = 0;
    while !input.0.is_empty() {
        operate(&mut world, &mut input);
        operations += 1;
    }
    world.end();
    operations
}

fn operate(world: &mut World, input: &mut Input<'_>) {
    match input.next() % 64 {
        0..=27 => {
            let (key, seen) = packet(input);
            world.client_sends(key, seen);
        }
        28..=45 => {
            let (key, seen) = packet(input);
            world.backend_sends(key, seen);
        }
        46..=51 => world.pass(u32::from(input.next() / 4)),
        52 => world.pass(u32::from(input.next()) * 40),
        53..=54 => world.weigh(input.next(), input.next() % 4),
        55 => world.limit(input.next(), input.next() % 8, input.next() % 8),
        56 => world.remove(input.next()),
        57..=59 => world.bring_back(input.next()),
        60..=61 => world.set(input.next()),
        62 => world.set_timeout(input.next(), input.next()),
        _ => world.restore(),
    }
}

fn packet(input: &mut Input<'_>) -> ((usize, usize), Seen) {
    let place = usize::from(input.next());
    let key = (place % CLIENTS, place / CLIENTS % SERVICES);
    let proto = world::protocol(key.1);
    // Mostly what peers send: SYN, SYN-ACK, ACK, FIN and RST, chunks that have a meaning.
    let flags = match input.next() {
        common @ 0..=199 => [0x02, 0x12, 0x10, 0x11, 0x04][usize::from(common) % 5],
        _ => input.next(),
    };
    let chunk = match flags {
        0x04 if input.next() < 32 => None,
        _ => Some(input.next()).map(|kind| if kind < 240 { kind % 15 } else { kind }),
    };
    match proto {
        kernel::TCP => (key, Seen { proto, flags, chunk: None }),
        kernel::SCTP => (key, Seen { proto, flags: 0, chunk }),
        _ => (key, Seen { proto, flags: 0, chunk: None }),
    }
}

/// Bytes that are read once; past their end there are zeros.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn next(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_seeds_of_the_fuzzer_hold() {
        let seeds = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/seeds/conntrack")).unwrap();
        let operations = seeds.map(|seed| check(&std::fs::read(seed.unwrap().path()).unwrap())).sum::<u64>();
        assert!(operations > 100, "{operations} operations");
    }

    /// Ten million operations take minutes with optimisation: `WEIR_OPERATIONS` says how many there are to be.
    #[test]
    fn as_many_random_operations_as_asked_for_agree() {
        let wanted = std::env::var("WEIR_OPERATIONS").map_or(40_000, |count| count.parse().unwrap());
        let (mut done, mut state) = (0, 0x2545_f491_4f6c_dd1d_u64);
        while done < wanted {
            // Marsaglia's xorshift.
            let bytes: Vec<u8> = std::iter::repeat_with(|| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                (state >> 32) as u8
            })
            .take(2000)
            .collect();
            done += check(&bytes);
        }
        println!("{done} operations agree");
    }

    proptest! {
        #[test]
        fn engine_and_reference_agree(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            check(&bytes);
        }
    }
}
