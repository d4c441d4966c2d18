//! What two cores tell.

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use core_affinity::CoreId;
use dataplane::frame::{BATCH, Frame};
use dataplane::ids::{PortId, WorkerId};
use dataplane::io::handoff::{depth, mesh};
use serde::{Deserialize, Serialize};

const FRAME: usize = 60;
const CHUNK: usize = 2048;
/// Frames that a worker takes from others in a batch.
pub(crate) const INJECTED: usize = BATCH / 2;
const BATCHES: usize = 4000;
/// From one batch to the next.
const PAUSE: Duration = Duration::from_micros(10);
const ADDITIONS: u64 = 4_000_000;

/// Nanoseconds.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Costs {
    /// The engine, for a packet that is one's own. Given.
    pub(crate) engine_ns: f64,
    /// Receiving a frame; sending one takes as long. Given.
    pub(crate) io_ns: f64,
    /// A locked addition to a line that another core wrote last, as simulated. Given.
    pub(crate) far_line_ns: f64,
    /// Handing a frame over, for who does it.
    pub(crate) send_ns: f64,
    /// Taking it.
    pub(crate) take_ns: f64,
    /// A locked addition to a line that another core wrote last, while that does the same, on these two cores.
    pub(crate) near_line_ns: f64,
    /// The same where nobody else writes it.
    pub(crate) own_line_ns: f64,
}

impl Costs {
    /// `None` where there is one core only.
    pub(crate) fn measure(engine_ns: f64, io_ns: f64, far_line_ns: f64) -> Option<Self> {
        let cores = core_affinity::get_core_ids().unwrap_or_default();
        let [.., here, there] = *cores else { return None };
        let (send_ns, take_ns) = handoff(here, there);
        let (near_line_ns, own_line_ns) = line(here, there);
        Some(Self { engine_ns, io_ns, far_line_ns, send_ns, take_ns, near_line_ns, own_line_ns })
    }
}

/// What handing over and taking take, by the medians of batches.
fn handoff(here: CoreId, there: CoreId) -> (f64, f64) {
    let [mut near, mut far] = <[_; 2]>::try_from(mesh(2, depth(2), CHUNK).expect("rings")).expect("two");
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let taker = scope.spawn(|| {
            core_affinity::set_for_current(there);
            let (mut times, mut room) = (Vec::new(), vec![0; CHUNK]);
            while !done.load(Ordering::Relaxed) {
                let begun = Instant::now();
                let taken = (0..INJECTED)
                    .take_while(|_| far.receive(&mut room, || unreachable!("it fits")).is_some())
                    .count();
                if taken == INJECTED {
                    times.push(begun.elapsed());
                } else {
                    std::hint::spin_loop();
                }
            }
            times
        });
        core_affinity::set_for_current(here);
        let mut times = Vec::new();
        // A frame in each of half a batch's chunks.
        let mut chunks = vec![vec![0; CHUNK]; INJECTED];
        while times.len() < BATCHES {
            let begun = Instant::now();
            let mut sent = 0;
            for chunk in &mut chunks {
                let frame = Frame::new(chunk, 256, FRAME, PortId(0)).expect("it lies inside");
                sent += usize::from(near.send(WorkerId(1), &frame).is_ok());
            }
            near.announce();
            if sent == INJECTED {
                times.push(begun.elapsed());
            }
            // The taker is not to be behind for want of time: both have other work, too.
            while begun.elapsed() < PAUSE {
                std::hint::spin_loop();
            }
        }
        done.store(true, Ordering::Relaxed);
        (median(times), median(taker.join().expect("the taker ends well")))
    })
}

fn median(mut times: Vec<Duration>) -> f64 {
    times.sort_unstable();
    times[times.len() / 2].as_nanos() as f64 / INJECTED as f64
}

/// What a line takes that both cores write all the time, each time that one of them has it; and alone.
fn line(here: CoreId, there: CoreId) -> (f64, f64) {
    let (line, begin) = (AtomicU64::new(0), Barrier::new(2));
    let add = |core| {
        core_affinity::set_for_current(core);
        begin.wait();
        let begun = Instant::now();
        for _ in 0..ADDITIONS {
            line.fetch_add(1, Ordering::Relaxed);
        }
        begun.elapsed()
    };
    let took = thread::scope(|scope| {
        let other = scope.spawn(|| add(there));
        add(here).max(other.join().expect("it ends well"))
    });
    let begun = Instant::now();
    for _ in 0..ADDITIONS {
        line.fetch_add(1, Ordering::Relaxed);
    }
    let each = |time: Duration, times: u64| time.as_nanos() as f64 / times as f64;
    (each(took, 2 * ADDITIONS), each(begun.elapsed(), ADDITIONS))
}
