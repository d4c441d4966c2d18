//! Two workers on two cores: each has its own flows and frames; tables, counts of backends and the directory are shared.

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use core_affinity::CoreId;

use crate::frames::Chunks;
use crate::measure::Meter;
use crate::random::Random;
use crate::results::Report;
use crate::world::{Direction, Shape, Shared, World};
use crate::{MIDDLE, SECTIONS, TURNS, add};

/// What a packet takes one of two workers, beside what it takes while the other one rests.
pub(crate) const NAME: &str = "established, two workers";

/// Measures the first worker in turns: alone, and while the second one works all the time.
pub(crate) fn measure(report: &mut Report, cores: &[CoreId]) {
    let [.., second, first] = cores else {
        println!("two workers were not measured: there is one core only");
        return;
    };
    eprintln!("two workers");
    let shape = Shape::plain(MIDDLE);
    let shared = Shared::new(&shape, 2);
    let (turn, rests) = (Barrier::new(2), AtomicBool::new(true));
    let (alone, together) = thread::scope(|scope| {
        scope.spawn(|| {
            let mut worker = Worker::new(shape, &shared, 1, *second);
            for _ in 0..TURNS {
                turn.wait();
                turn.wait();
                while !rests.load(Ordering::Relaxed) {
                    worker.section(&mut Meter::Done);
                }
            }
        });
        let first = scope.spawn(|| {
            let mut worker = Worker::new(shape, &shared, 0, *first);
            let [mut alone, mut together] = [(); 2].map(|()| Meter::clock());
            for _ in 0..TURNS {
                turn.wait();
                (0..SECTIONS).for_each(|_| worker.section(&mut alone));
                rests.store(false, Ordering::Relaxed);
                turn.wait();
                (0..SECTIONS).for_each(|_| worker.section(&mut together));
                rests.store(true, Ordering::Relaxed);
            }
            (alone, together)
        });
        first.join().expect("the first worker ends well")
    });
    add(report, "established, one worker of two", MIDDLE, &alone, None);
    add(report, NAME, MIDDLE, &together, Some(&alone));
}

/// What one thread has.
struct Worker {
    world: World,
    chunks: Chunks,
    random: Random,
}

impl Worker {
    fn new(shape: Shape, shared: &Shared, number: u8, core: CoreId) -> Self {
        core_affinity::set_for_current(core);
        let (mut world, mut chunks) = (World::of_worker(shape, shared, number), Chunks::new());
        world.open(&mut chunks, 0, MIDDLE, &mut Meter::Done);
        world.establish(&mut chunks, 0, MIDDLE);
        Self { world, chunks, random: Random::new() }
    }

    fn section(&mut self, meter: &mut Meter) {
        self.world.section(&mut self.chunks, Direction::Established, MIDDLE, &mut self.random, meter);
    }
}
