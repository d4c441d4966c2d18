//! Flows from the first to the last: opened, found and forgotten, with what they cost in memory.
//!
//! The memory is what the process has resident, so each size has a process of its own.

use std::time::Instant;

use anyhow::{Result, ensure};
use dataplane::snapshot::Mode;
use serde::{Deserialize, Serialize};

use crate::child::child;
use crate::frames::Chunks;
use crate::measure::Meter;
use crate::random::Random;
use crate::resident::resident;
use crate::world::{Direction, Shape, World};

/// Sections of packets that look flows up.
const SECTIONS: usize = 2_000;

/// What so many `nat` flows over IPv4 cost.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Lifetime {
    /// How many flows.
    pub(crate) flows: u32,
    /// Resident memory of the engine with all of them, bytes a flow: both directions and the index of both included.
    pub(crate) bytes_a_flow: f64,
    /// Resident memory of the engine, MiB.
    resident_mib: f64,
    /// Nanoseconds to open one.
    open_ns: f64,
    /// Nanoseconds to find one and translate its packet.
    find_ns: f64,
    /// Nanoseconds to forget one.
    forget_ns: f64,
}

impl Lifetime {
    /// Measures in a new process.
    pub(crate) fn measure(flows: u32) -> Result<Self> {
        child("--lifetime", flows)
    }

    /// What such a process does and prints.
    pub(crate) fn run(flows: u32) -> Result<()> {
        let mut chunks = Chunks::new();
        let shape = Shape { mode: Mode::Nat, ..Shape::plain(flows) };
        let before = resident()?;
        let mut world = World::new(shape);
        let mut meter = Meter::clock();
        world.open(&mut chunks, 0, flows, &mut meter);
        let open_ns = meter.summary().median;
        world.establish(&mut chunks, 0, flows);
        // What the bench itself notes of each flow is not the engine's.
        let bytes = (resident()? - before).saturating_sub(world.own_bytes());
        let (mut meter, mut random) = (Meter::clock(), Random::new());
        for _ in 0..SECTIONS {
            world.section(&mut chunks, Direction::Established, flows, &mut random, &mut meter);
        }
        let find_ns = meter.summary().median;
        let start = Instant::now();
        let ended = world.forget();
        ensure!(ended == flows, "{ended} of {flows} flows were forgotten");
        let result = Self {
            flows,
            bytes_a_flow: bytes as f64 / f64::from(flows),
            resident_mib: bytes as f64 / f64::from(1 << 20),
            open_ns,
            find_ns,
            forget_ns: start.elapsed().as_nanos() as f64 / f64::from(flows),
        };
        println!("{}", serde_json::to_string(&result)?);
        Ok(())
    }

    /// One line for people.
    pub(crate) fn print(&self) {
        println!(
            "{} nat flows: {:.1} bytes each, {:.0} MiB resident; opened in {:.0} ns, found in {:.0} ns, forgotten in {:.0} ns",
            self.flows, self.bytes_a_flow, self.resident_mib, self.open_ns, self.find_ns, self.forget_ns
        );
    }
}
