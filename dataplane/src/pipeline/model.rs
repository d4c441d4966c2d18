//! The engines of two workers under any frames, times and tables: one check for proptest and for the fuzzer.
//!
//! Bytes spell a sequence of steps: frames (new flows, answers to what was sent, errors about it, questions to the
//! VIPs, earlier frames once more with some bytes changed, and any bytes at all), time that passes, and other tables.
//! Frames that another worker owns are handed over to it. All is done twice side by side, in batches and frame by
//! frame, with the same outcome; frame by frame it is judged too.

mod access;
mod draft;
pub mod errors;
pub mod fragments;
mod judge;
mod kept;
mod special;
mod steps;
mod world;

use std::collections::VecDeque;

use self::steps::Input;
use self::world::World;
use crate::frame::{BATCH, Checksum};
use crate::ids::PortId;
use crate::rewrite::split::Split;
use crate::verdict::Verdict;

/// Flows of one worker: few enough that the table fills up.
const FLOW_LIMIT: usize = 12;
/// Workers.
const WORKERS: usize = 2;
/// Frames that later ones can refer to.
const MEMORY: usize = 16;

/// A frame on its way to a worker.
#[derive(Clone, Debug)]
struct Arrival {
    bytes: Vec<u8>,
    port: PortId,
    handed_over: bool,
}

/// What became of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Outcome {
    verdict: Verdict,
    bytes: Vec<u8>,
    checksum: Checksum,
    split: Option<Split>,
}

/// Carries out the steps that `bytes` spell.
///
/// # Panics
/// Where something does not hold.
pub fn check(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let mut model = Model::new(&mut input);
    while !input.is_empty() {
        steps::step(&mut model, &mut input);
    }
    model.flush();
    model.end();
}

/// Both worlds, and what steps refer to.
struct Model {
    batched: World,
    single: World,
    queues: [Vec<Arrival>; WORKERS],
    /// The last frames that came.
    seen: VecDeque<Vec<u8>>,
    /// The last frames that were sent on.
    sent: VecDeque<Vec<u8>>,
}

impl Model {
    fn new(input: &mut Input<'_>) -> Self {
        let start = steps::start(input);
        Self {
            batched: World::new(start),
            single: World::new(start),
            queues: Default::default(),
            seen: VecDeque::new(),
            sent: VecDeque::new(),
        }
    }

    /// Has a frame wait for the worker's next batch, which is due now unless `hold`.
    fn arrive(&mut self, worker: usize, hold: bool, arrival: Arrival) {
        remember(&mut self.seen, &arrival.bytes);
        self.queues[worker].push(arrival);
        if !hold || self.queues[worker].len() == BATCH {
            self.turn(worker);
        }
    }

    /// Lets every worker do what waits for it.
    fn flush(&mut self) {
        for worker in 0..WORKERS {
            self.turn(worker);
        }
    }

    /// One batch of one worker, and of the other what it is handed.
    fn turn(&mut self, worker: usize) {
        let arrivals = std::mem::take(&mut self.queues[worker]);
        let mut handed = Vec::new();
        for (arrival, verdict) in arrivals.iter().zip(self.process(worker, &arrivals)) {
            if let Verdict::Handoff(owner) = verdict {
                assert_ne!(owner.index(), worker, "handed over to itself");
                handed.push(Arrival { handed_over: true, ..arrival.clone() });
            }
        }
        for verdict in self.process(WORKERS - 1 - worker, &handed) {
            assert!(!matches!(verdict, Verdict::Handoff(_)), "handed on");
        }
    }

    fn process(&mut self, worker: usize, arrivals: &[Arrival]) -> Vec<Verdict> {
        let single: Vec<_> = arrivals.iter().map(|arrival| self.single.judged(worker, arrival)).collect();
        assert_eq!(
            self.batched.process(worker, arrivals),
            single,
            "a batch differs from its frames one by one"
        );
        for outcome in &single {
            if let Verdict::Tx(_) | Verdict::Reply(None) = outcome.verdict {
                remember(&mut self.sent, &outcome.bytes);
            }
        }
        single.into_iter().map(|outcome| outcome.verdict).collect()
    }

    fn pass(&mut self, ticks: u32) {
        self.flush();
        for world in [&mut self.batched, &mut self.single] {
            world.pass(ticks);
        }
    }

    fn change(&mut self, tables: u8) {
        self.flush();
        for world in [&mut self.batched, &mut self.single] {
            world.change(tables);
        }
    }

    fn end(self) {
        self.batched.end();
        self.single.end();
    }
}

fn remember(frames: &mut VecDeque<Vec<u8>>, frame: &[u8]) {
    frames.truncate(MEMORY - 1);
    frames.push_front(frame.to_vec());
}
