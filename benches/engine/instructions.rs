//! Instructions a packet, counted by callgrind: exact, and the same on every machine with the same compiler.
//!
//! The bench runs itself twice under valgrind, which counts inside `World::process` and `Bare::process` only. Both
//! runs make the same world and the same sections of frames; one processes the sections, the other does not. The
//! difference is the processing.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use dataplane::snapshot::Mode;

use crate::bare::Bare;
use crate::frames::{Chunks, SECTION};
use crate::measure::Meter;
use crate::random::Random;
use crate::world::{Direction, Shape, Shared, World, bare_section};

/// Flows in the table: few, so that valgrind is soon done with them.
const FLOWS: u32 = 4096;
/// Sections that are processed or not.
const SECTIONS: u32 = 16;

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Subject {
    /// The bare loop.
    Bare,
    /// Full NAT, client to backend.
    Established,
    /// Full NAT, backend to client.
    Reply,
    /// Full NAT, first packets.
    New,
    /// Client address kept, first packets.
    NewNat,
    /// Full NAT, first packets, spread over a hundred services of ten backends.
    NewSpread,
    /// Those of one service at one of two workers, with SNAT ports of its slice.
    NewOfTwo,
    /// The same, with those tried first whose replies its card gives it.
    NewSteered,
    /// Full NAT over IPv6, client to backend.
    EstablishedV6,
    /// Client address kept, client to backend.
    EstablishedNat,
    /// MAC address rewritten, client to backend.
    EstablishedDr,
}

/// One of the two runs; `process` says which.
pub(crate) fn run(subject: Subject, process: bool) {
    let flows = FLOWS + SECTIONS * SECTION as u32;
    let mut shape = Shape::plain(flows);
    match subject {
        Subject::EstablishedV6 => shape.v6 = true,
        Subject::EstablishedNat | Subject::NewNat => shape.mode = Mode::Nat,
        Subject::EstablishedDr => shape.mode = Mode::Dr,
        Subject::NewSpread => shape = Shape::spread(flows, 100, 10),
        Subject::NewSteered => shape.steered = true,
        Subject::Bare | Subject::Established | Subject::Reply | Subject::New | Subject::NewOfTwo => {}
    }
    let is_of_two = matches!(subject, Subject::NewOfTwo | Subject::NewSteered);
    let workers = if is_of_two { 2 } else { 1 };
    let mut world = World::of_worker(shape, &Shared::new(&shape, workers), 0);
    let (mut chunks, mut random) = (Chunks::new(), Random::new());
    world.open(&mut chunks, 0, FLOWS, &mut Meter::Done);
    world.establish(&mut chunks, 0, FLOWS);
    let mut bare = Bare::new(FLOWS as usize);
    (0..FLOWS).for_each(|flow| bare.insert(&world.client_key(flow), &world.sent_key(flow)));
    let mut meter = if process { Meter::Done } else { Meter::Omitted };
    if is_of_two || matches!(subject, Subject::New | Subject::NewNat | Subject::NewSpread) {
        world.open(&mut chunks, FLOWS, flows, &mut meter);
        return;
    }
    let direction = if subject == Subject::Reply { Direction::Reply } else { Direction::Established };
    for _ in 0..SECTIONS {
        if subject == Subject::Bare {
            bare_section(&bare, &world, &mut chunks, FLOWS, &mut random, &mut meter);
        } else {
            world.section(&mut chunks, direction, FLOWS, &mut random, &mut meter);
        }
    }
}

/// Instructions a packet of `subject`. Fails where valgrind is missing or says nothing.
pub(crate) fn count(subject: Subject) -> Result<f64> {
    let [with, without] = [true, false].map(|process| collected(subject, process));
    Ok((with? - without?) as f64 / f64::from(SECTIONS * SECTION as u32))
}

/// The counted instructions of one run.
fn collected(subject: Subject, process: bool) -> Result<i64> {
    let name = subject.to_possible_value().context("a hidden subject")?;
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .args(["--toggle-collect=*World*process*", "--toggle-collect=*Bare*process*"])
        .arg(std::env::current_exe()?)
        .args(["--instructions", name.get_name()])
        .args(process.then_some("--process"))
        .output()
        .context("valgrind (apt install valgrind)")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "valgrind: {said}");
    let count =
        said.lines().find_map(|line| line.split_once("Collected :")).context("valgrind counted nothing")?;
    Ok(count.1.trim().parse()?)
}
