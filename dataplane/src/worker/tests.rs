//! The loop over frames in memory.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::AtomicUsize;
use std::time::Instant;

use super::*;
use crate::frame::Checksum;
use crate::ids::{BackendId, PortId, ServiceId};
use crate::io::handoff::mesh;
use crate::io::memory::{MemoryIo, Packet, Wire};
use crate::snapshot::Mode;
use crate::snapshot::publish::Publisher;

const PATIENCE: Duration = Duration::from_secs(5);

/// Decides by a function; knows a number of flows.
struct Rule<F> {
    rule: F,
    flows: usize,
}

impl<F: FnMut(&mut Frame<'_>, &Snapshot) -> Verdict> Handler for Rule<F> {
    fn process(&mut self, frames: &mut [Frame<'_>], verdicts: &mut [Verdict], _: Tick, tables: &Snapshot) {
        for (frame, verdict) in frames.iter_mut().zip(verdicts) {
            *verdict = (self.rule)(frame, tables);
        }
    }

    fn sweep(&mut self, _: Tick, _: &Snapshot) -> bool {
        false
    }

    fn dump(&self, cursor: usize, limit: usize, _: Tick, out: &mut Vec<FlowRecord>) -> Option<usize> {
        for slot in cursor..self.flows.min(cursor + limit) {
            if out.len() == out.capacity() {
                return Some(slot);
            }
            out.push(record(slot as u32));
        }
        (cursor + limit < self.flows).then_some(cursor + limit)
    }

    fn flows(&self) -> usize {
        self.flows
    }
}

fn record(expires_s: u32) -> FlowRecord {
    let nobody = (IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);
    FlowRecord {
        proto: 6,
        client: nobody,
        vip: nobody,
        snat: nobody,
        backend: nobody,
        service_id: ServiceId(0),
        backend_id: BackendId(0),
        mode: Mode::Nat,
        state: "ESTABLISHED",
        expires_s,
        call_id: Default::default(),
    }
}

/// A worker over memory, and what the test sees of it.
struct Bench {
    handle: WorkerHandle,
    wire: Arc<Wire>,
    beat: Arc<AtomicU64>,
    beats: Arc<AtomicUsize>,
}

const BUSY: Idle = Idle { spin: Duration::ZERO, busy_poll: true, beat_limit: Duration::from_secs(1) };
const SLEEPY: Idle = Idle { spin: Duration::ZERO, busy_poll: false, beat_limit: Duration::from_secs(40) };

fn start<F>(id: u8, exchange: Exchange, publisher: &Publisher, idle: Idle, rule: F) -> Bench
where
    F: FnMut(&mut Frame<'_>, &Snapshot) -> Verdict + Send + 'static,
{
    let (io, wire) = MemoryIo::new(2, 256);
    let (beat, beats) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicUsize::new(0)));
    let handle = spawn(Parts {
        id: WorkerId(id),
        core: None,
        io,
        handler: Rule { rule, flows: 1000 },
        exchange,
        snapshots: publisher.reader(WorkerId(id)),
        stats: Arc::new(WorkerStats::new(0, 0)),
        beat: {
            let (beat, beats) = (Arc::clone(&beat), Arc::clone(&beats));
            move |now_ns| {
                beat.store(now_ns, Ordering::Relaxed);
                beats.fetch_add(1, Ordering::Relaxed);
            }
        },
        idle,
    })
    .unwrap();
    Bench { handle, wire, beat, beats }
}

fn alone(idle: Idle, rule: impl FnMut(&mut Frame<'_>, &Snapshot) -> Verdict + Send + 'static) -> Bench {
    start(0, mesh(1, 4, 2048).unwrap().remove(0), &Publisher::new(Snapshot::default(), 1), idle, rule)
}

fn packet(first: u8) -> Packet {
    Packet { port: PortId(0), bytes: vec![first; 60], checksum: Default::default() }
}

fn until<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = found() {
            return found;
        }
        assert!(start.elapsed() < PATIENCE, "{what}");
        std::thread::sleep(Duration::from_micros(100));
    }
}

#[test]
fn frames_pass_and_losses_are_counted_by_reason() {
    let bench = alone(BUSY, |frame, _| match frame.bytes()[0] {
        1 => Verdict::Tx(PortId(1)),
        2 => Verdict::Tx(PortId(7)),
        3 => Verdict::Handoff(WorkerId(1)),
        _ => Verdict::Kernel,
    });
    for first in 1..=4 {
        bench.wire.put(packet(first)).unwrap();
    }
    let sent = until("the frame to be sent", || bench.wire.take());
    assert_eq!((sent.port, &sent.bytes[..]), (PortId(1), &[1; 60][..]));
    for reason in [DropReason::NoPort, DropReason::HandoffFull, DropReason::NoKernelPath] {
        until(reason.name(), || (bench.handle.stats.drops(reason) == 1).then_some(()));
    }
    bench.handle.stop();
    bench.handle.join().unwrap();
    assert_eq!(bench.beat.load(Ordering::Relaxed), 0, "the last beat");
}

#[test]
fn a_handoff_wakes_its_owner_and_is_marked() {
    let publisher = Publisher::new(Snapshot::default(), 2);
    let [first, second] = <[_; 2]>::try_from(mesh(2, 64, 2048).unwrap()).unwrap();
    let here = start(0, first, &publisher, BUSY, |_, _| Verdict::Handoff(WorkerId(1)));
    let there = start(1, second, &publisher, SLEEPY, |frame, _| {
        assert!(frame.handed_over);
        Verdict::Tx(PortId(1))
    });
    for round in 0..20 {
        until("the owner to sleep", || (there.handle.view.sleeps.get() > round).then_some(()));
        here.wire.put(packet(9)).unwrap();
        let sent = until("the owner to wake", || there.wire.take());
        assert_eq!(sent.bytes, [9; 60]);
    }
    assert_eq!(there.handle.stats.taken_over.get(), 20);
    for bench in [here, there] {
        bench.handle.stop();
        bench.handle.join().unwrap();
    }
}

#[test]
fn an_idle_worker_sleeps_yet_beats_within_its_limit() {
    let beat_limit = Duration::from_millis(400);
    let idle = Idle { beat_limit, ..Idle::default() };
    let bench = alone(idle, |_, _| unreachable!("no frames"));
    std::thread::sleep(Duration::from_millis(100));
    let (mut oldest, start) = (0, Instant::now());
    while start.elapsed() < Duration::from_secs(1) {
        let age_ns = monotonic_ns().saturating_sub(bench.beat.load(Ordering::Relaxed));
        oldest = oldest.max(age_ns);
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(u128::from(oldest) < beat_limit.as_nanos(), "{oldest} ns without a beat");
    let beats = bench.beats.load(Ordering::Relaxed);
    assert!(bench.handle.view.sleeps.get() >= 5, "{beats} beats");
    bench.handle.stop();
    bench.handle.join().unwrap();
}

#[test]
fn stop_ends_a_sleeping_worker_at_once() {
    let bench = alone(SLEEPY, |_, _| unreachable!("no frames"));
    until("the worker to sleep", || (bench.handle.view.sleeps.get() > 0).then_some(()));
    bench.handle.stop();
    until("the worker to end", || bench.handle.is_finished().then_some(()));
    bench.handle.join().unwrap();
}

#[test]
fn a_panic_is_reported_and_ends_the_beat() {
    let bench = alone(BUSY, |frame, _| panic!("frame of {} bytes", frame.len()));
    bench.wire.put(packet(0)).unwrap();
    until("the worker to end", || bench.handle.is_finished().then_some(()));
    let panic = bench.handle.join().unwrap_err();
    assert_eq!((panic.worker, &*panic.message), (WorkerId(0), "frame of 60 bytes"));
    assert_eq!(bench.beat.load(Ordering::Relaxed), 0);
}

#[test]
fn a_woken_worker_uses_the_new_snapshot() {
    let mut publisher = Publisher::new(Snapshot::default(), 1);
    let exchange = mesh(1, 4, 2048).unwrap().remove(0);
    let bench = start(0, exchange, &publisher, SLEEPY, |_, _| Verdict::Kernel);
    until("the worker to sleep", || (bench.handle.view.sleeps.get() > 0).then_some(()));
    let generation = publisher.publish(Snapshot::default());
    bench.handle.wake();
    until("the new generation to be seen", || publisher.is_seen(generation).then_some(()));
    bench.handle.stop();
    bench.handle.join().unwrap();
}

#[test]
fn a_frame_without_a_neighbour_is_sent_as_soon_as_there_are_tables_for_it() {
    for idle in [BUSY, SLEEPY] {
        let mut publisher = Publisher::new(Snapshot::default(), 1);
        let exchange = mesh(1, 4, 2048).unwrap().remove(0);
        let bench = start(0, exchange, &publisher, idle, |frame, tables| match tables.net.epoch {
            7 => {
                assert!(frame.handed_over, "it has a worker");
                Verdict::Tx(PortId(1))
            }
            _ => Verdict::Unresolved,
        });
        let stats = Arc::clone(&bench.handle.stats);
        let checksum = Checksum::Partial { start: 34, offset: 16 };
        for first in [3, 4] {
            bench.wire.put(Packet { checksum, ..packet(first) }).unwrap();
        }
        bench.handle.wake();
        until("the frames to wait", || (stats.waited.get() == 2).then_some(()));
        publisher.publish(Snapshot::default());
        bench.handle.wake();
        until("them to be tried with other tables", || (stats.waited.get() == 4).then_some(()));
        let net = Arc::new(crate::snapshot::Net { epoch: 7, ..Default::default() });
        publisher.publish(Snapshot { net, ..Snapshot::default() });
        bench.handle.wake();
        for first in [3, 4] {
            let sent = until("them to be sent", || bench.wire.take());
            assert_eq!((&sent.bytes[..], sent.checksum), (&[first; 60][..], checksum));
        }
        assert_eq!((stats.drops(DropReason::NoNeighbour), stats.taken_over.get()), (0, 0));
        bench.handle.stop();
        bench.handle.join().unwrap();
    }
}

#[test]
fn a_frame_whose_neighbour_does_not_answer_is_dropped_after_a_second() {
    for idle in [BUSY, SLEEPY] {
        let bench = alone(idle, |_, _| Verdict::Unresolved);
        let start = Instant::now();
        bench.wire.put(packet(1)).unwrap();
        bench.handle.wake();
        let stats = Arc::clone(&bench.handle.stats);
        until("the frame to be dropped", || (stats.drops(DropReason::NoNeighbour) == 1).then_some(()));
        let took = start.elapsed();
        // A turn's time may be read a while before its frames are.
        assert!((Duration::from_millis(700)..Duration::from_secs(3)).contains(&took), "{took:?}");
        assert_eq!(stats.waited.get(), 1);
        bench.handle.stop();
        bench.handle.join().unwrap();
    }
}

#[test]
fn flows_are_read_page_by_page() {
    for idle in [BUSY, SLEEPY] {
        let bench = alone(idle, |_, _| unreachable!("no frames"));
        let desk = bench.handle.flow_desk();
        let (mut cursor, mut seen) = (Some(0), Vec::new());
        while let Some(from) = cursor {
            let page = desk.page(from, 300, PATIENCE).unwrap();
            assert!(page.records.len() <= 300);
            seen.extend(page.records.iter().map(|record| record.expires_s));
            cursor = page.next;
        }
        assert_eq!(seen, (0..1000).collect::<Vec<_>>());
        bench.handle.stop();
        bench.handle.join().unwrap();
        let timeout = Duration::from_millis(5);
        assert_eq!(desk.page(0, 1, timeout).unwrap_err(), FlowsUnavailable::NoAnswer);
        assert_eq!(desk.page(0, 1, timeout).unwrap_err(), FlowsUnavailable::Busy, "the answer is still owed");
    }
}

#[test]
fn a_core_that_does_not_exist_is_named() {
    let error = on_core(Some(1023), || ()).unwrap_err();
    assert!(error.to_string().starts_with("no thread can run on core 1023 ("), "{error}");
    assert_eq!(on_core(Some(0), nix::sched::sched_getcpu).unwrap(), Ok(0));
}
