//! What holds for every frame, with every truncation of the samples, with changed ones and with noise.

use std::fs;
use std::path::PathBuf;

use proptest::prelude::*;

use crate::model::check;
use crate::samples;

fn seeds() -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "fuzz", "seeds", "parse"].iter().collect()
}

#[test]
fn every_truncation_of_every_sample_holds() {
    for (name, frame) in samples::all() {
        for len in 0..=frame.len() {
            let outcome = std::panic::catch_unwind(|| check(&frame[..len]));
            assert!(outcome.is_ok(), "{name} cut to {len} bytes");
        }
    }
}

#[test]
fn every_seed_of_the_fuzz_target_holds() {
    let seeds: Vec<_> = fs::read_dir(seeds()).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(seeds.len() >= samples::all().len());
    for path in seeds {
        check(&fs::read(&path).unwrap());
    }
}

/// `cargo test -p dataplane --test frames -- --ignored` after a change of the samples.
#[test]
#[ignore = "writes into the source tree"]
fn the_samples_become_seeds() {
    fs::create_dir_all(seeds()).unwrap();
    for (name, frame) in samples::all() {
        fs::write(seeds().join(name), frame).unwrap();
    }
}

/// A sample with some bytes changed.
fn changed() -> impl Strategy<Value = Vec<u8>> {
    let samples: Vec<_> = samples::all().into_iter().map(|(_, frame)| frame).collect();
    let changes = proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..6);
    (proptest::sample::select(samples), changes).prop_map(|(mut frame, changes)| {
        for (index, byte) in changes {
            let at = index.index(frame.len());
            frame[at] = byte;
        }
        frame
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn changed_samples_hold(frame in changed()) {
        check(&frame);
    }

    #[test]
    fn noise_holds(frame in proptest::collection::vec(any::<u8>(), 0..200)) {
        check(&frame);
    }
}
