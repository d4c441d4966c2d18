//! Workers, their queues and what they share, packet by packet.
//!
//! A worker has an RX ring and takes batches as the real one does: half of one from other workers at most, then from its ring. A packet
//! takes it the engine's time and the I/O's; one whose flow is another's is looked up and handed over, which the other one
//! sees when the batch ends. A flow that opens has the line of its scheduler's position and that of its backend's counts for
//! itself for a moment, one worker after another, and writes two lines of the directory that a worker far away wrote last.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use dataplane::frame::BATCH;
use dataplane::io::handoff;
use serde::{Deserialize, Serialize};

use crate::costs::{Costs, INJECTED};
use crate::random::Random;

/// Frames that an RX ring holds.
const RX_RING: u32 = 2048;
/// Backends, whose counts are lines of their own.
const BACKENDS: u32 = 256;
/// Packets that are simulated for each worker, and how many of them pass before anything is counted.
const PACKETS: u64 = 60_000;
const WARM_UP: u64 = 10_000;
/// How often an idle worker looks, in picoseconds.
const LOOK: u32 = 200_000;
const PICO: f64 = 1000.0;

/// Where replies come in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Replies {
    /// At any worker.
    Random,
    /// At their flow's.
    Home,
}

/// What is simulated.
#[derive(Clone, Copy, Debug)]
pub(crate) struct World {
    pub(crate) workers: usize,
    pub(crate) replies: Replies,
    /// Of a thousand packets so many open a flow.
    pub(crate) new_per_mille: u32,
    /// Whether the scheduler has a position that all workers share.
    pub(crate) position: bool,
    /// Packets a microsecond for each worker; as many as it takes where there is none.
    pub(crate) load: Option<f64>,
}

/// What came of it.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Outcome {
    /// Packets carried a microsecond, by all workers.
    pub(crate) carried_per_us: f64,
    /// Of the packets that were offered, in RX rings and in rings between workers.
    pub(crate) lost_percent: f64,
    /// Of the packets carried.
    pub(crate) handed_over_percent: f64,
    /// Frames that lay in one ring between two workers at most.
    pub(crate) ring_peak: usize,
}

#[derive(Debug, Default)]
struct Worker {
    /// Frames in the RX ring, and when the ring was looked at last.
    waiting: f64,
    seen_at: u64,
    /// What is left of its batch: frames of others, and received ones.
    taken: usize,
    received: usize,
    /// To be seen by others at the end of the batch: how many for each.
    outgoing: Vec<usize>,
    /// Rings to it from each worker.
    inbox: Vec<usize>,
    next_inbox: usize,
    /// Frames in all of them.
    mail: usize,
}

/// A line that workers write: until when it is somebody's, and whose.
#[derive(Clone, Copy, Debug, Default)]
struct Line {
    free_at: u64,
    owner: usize,
}

impl Line {
    /// Has `worker` write it at `now`; until when that takes.
    fn write(&mut self, worker: usize, now: u64, costs: &Costs) -> u64 {
        let takes = if self.owner == worker { costs.own_line_ns } else { costs.far_line_ns };
        self.free_at = self.free_at.max(now) + pico(takes);
        self.owner = worker;
        self.free_at
    }
}

fn pico(ns: f64) -> u64 {
    (ns * PICO) as u64
}

struct Counts {
    carried: u64,
    handed_over: u64,
    lost: u64,
    offered: f64,
    ring_peak: usize,
}

pub(crate) fn simulate(costs: &Costs, world: &World) -> Outcome {
    let count = world.workers;
    let depth = handoff::depth(count);
    let mut workers: Vec<Worker> = (0..count)
        .map(|_| Worker { outgoing: vec![0; count], inbox: vec![0; count], ..Worker::default() })
        .collect();
    let mut lines = vec![Line::default(); BACKENDS as usize + 1];
    let mut random = Random::new();
    // Each begins at a moment of its own.
    let mut events: BinaryHeap<_> =
        (0..count).map(|id| Reverse((u64::from(random.below(LOOK)), id))).collect();
    let (mut counts, mut begun) =
        (Counts { carried: 0, handed_over: 0, lost: 0, offered: 0.0, ring_peak: 0 }, None);
    let total = PACKETS * count as u64;
    let mut over = 0;
    while let Some(Reverse((now, id))) = events.pop() {
        if begun.is_none() && counts.carried >= WARM_UP * count as u64 {
            counts = Counts { carried: 0, handed_over: 0, lost: 0, offered: 0.0, ring_peak: 0 };
            begun = Some(now);
        }
        if counts.carried >= total {
            over = now;
            break;
        }
        let worker = &mut workers[id];
        if worker.taken == 0 && worker.received == 0 {
            hand_out(&mut workers, id, depth, &mut counts);
            workers[id].take_batch(now, world.load, &mut random, &mut counts);
        }
        let worker = &mut workers[id];
        let next = if worker.taken > 0 {
            worker.taken -= 1;
            counts.carried += 1;
            now + pico(costs.take_ns + costs.engine_ns + costs.io_ns)
        } else if worker.received > 0 {
            worker.received -= 1;
            let is_reply = random.below(2) == 0;
            let owner = match world.replies {
                Replies::Random if is_reply => random.below(count as u32) as usize,
                _ => id,
            };
            if owner == id {
                counts.carried += 1;
                let opens = random.below(1000) < world.new_per_mille;
                let begun = if opens { open(&mut lines, id, now, costs, world, &mut random) } else { now };
                begun + pico(costs.engine_ns + 2.0 * costs.io_ns)
            } else {
                worker.outgoing[owner] += 1;
                counts.handed_over += 1;
                now + pico(costs.io_ns + costs.engine_ns + costs.send_ns)
            }
        } else {
            now + u64::from(LOOK)
        };
        events.push(Reverse((next, id)));
    }
    let us = (over - begun.expect("it went on for longer than it warmed up")) as f64 / (PICO * 1000.0);
    Outcome {
        carried_per_us: counts.carried as f64 / us,
        lost_percent: 100.0 * counts.lost as f64 / counts.offered,
        handed_over_percent: 100.0 * counts.handed_over as f64 / counts.carried as f64,
        ring_peak: counts.ring_peak,
    }
}

/// A flow's first packet, from `now` on: its lines, one after another. The engine's own work for it is taken for an established packet's.
fn open(lines: &mut [Line], id: usize, now: u64, costs: &Costs, world: &World, random: &mut Random) -> u64 {
    let mut done = now;
    if let Some(position) = lines.last_mut().filter(|_| world.position) {
        done = position.write(id, done, costs);
    }
    done = lines[random.below(BACKENDS) as usize].write(id, done, costs);
    if world.workers > 1 { done + 2 * pico(costs.far_line_ns) } else { done }
}

/// Has others see what the batch of `id` was for them.
fn hand_out(workers: &mut [Worker], id: usize, depth: usize, counts: &mut Counts) {
    for other in 0..workers.len() {
        let sent = std::mem::take(&mut workers[id].outgoing[other]);
        let inbox = &mut workers[other].inbox[id];
        let fits = sent.min(depth - *inbox);
        *inbox += fits;
        counts.ring_peak = counts.ring_peak.max(*inbox);
        counts.lost += (sent - fits) as u64;
        workers[other].mail += fits;
    }
}

impl Worker {
    /// Takes what has come for the next batch.
    fn take_batch(&mut self, now: u64, load: Option<f64>, random: &mut Random, counts: &mut Counts) {
        while self.taken < INJECTED && self.mail > 0 {
            self.next_inbox = (self.next_inbox + 1) % self.inbox.len();
            let taken = self.inbox[self.next_inbox].min(INJECTED - self.taken);
            self.inbox[self.next_inbox] -= taken;
            self.mail -= taken;
            self.taken += taken;
        }
        let room = BATCH - self.taken;
        let Some(load) = load else {
            self.received = room;
            counts.offered += room as f64;
            return;
        };
        // As many as come on average, and in one of a hundred batches half a batch at once beside that.
        let came = (now - self.seen_at) as f64 / (PICO * 1000.0) * load;
        let burst = if random.below(100) == 0 { (BATCH / 2) as f64 } else { 0.0 };
        self.seen_at = now;
        self.waiting += came + burst;
        counts.offered += came + burst;
        let beyond = (self.waiting - f64::from(RX_RING)).max(0.0);
        counts.lost += beyond as u64;
        self.waiting -= beyond;
        self.received = room.min(self.waiting as usize);
        self.waiting -= self.received as f64;
    }
}
