//! Replies to SNAT ports come on the queue of the worker that owns them, where the card says how it spreads frames.

use super::*;
use crate::flow::suited::Spread;
use crate::flow::toeplitz::tests::KEY;
use crate::snapshot::Steering;
use crate::snapshot::steering::{Claim, Class};

const WORKERS: u8 = 4;

/// Which queue each place of the card's table has.
fn table() -> Vec<u32> {
    (0..128).map(|place| place * 7 % u32::from(WORKERS)).collect()
}

fn card() -> Spread {
    Spread::new(&KEY, &table()).unwrap()
}

/// The tables of a gateway whose card towards the backends makes this claim.
fn steered(classes: &[Class]) -> Snapshot {
    let tables = tables();
    let claim = Claim { key: KEY.into(), table: table(), classes: classes.iter().copied().collect() };
    let steering = Steering::new(&[None, Some(claim)], tables.services.pools(), WORKERS, None);
    Snapshot { steering: Some(Arc::new(steering)), ..tables }
}

/// The reply to a packet that opens a flow by `worker`, and the queue that the card gives it.
fn reply(
    engine: &mut Engine,
    tables: &Snapshot,
    card: &Spread,
    number: u16,
    (proto, port, v6): (u8, u16, bool),
) -> (Vec<u8>, Option<u16>) {
    let mut sent = Wire::new(&packet(proto, SYN, client(number, v6), at(vip(v6), port), 64), UPLINK);
    assert_eq!(sent.through(engine, tables, Tick(0)), Verdict::Tx(LAN));
    let (src, server, _) = sent.seen();
    let bytes = packet(proto, SYN | ACK, server, src, 64);
    let key = packet::parse(&bytes).unwrap().key;
    (bytes, card.queue(card.toeplitz().hash(&key)))
}

#[test]
fn replies_come_back_to_the_worker_that_opened_the_flow() {
    let claimed = [Class::Tcp4, Class::Tcp6, Class::Udp6];
    let (tables, card) = (steered(&claimed), card());
    let mut engines = engines(WORKERS, 512);
    // fullnat; of the other family, and with smaller segments, which take the long way.
    let ports = [81, 96, 98];
    for (proto, v6) in [(TCP, false), (TCP, true), (UDP, false), (UDP, true)] {
        for (port, engine, worker) in
            ports.iter().flat_map(|port| (0..WORKERS).map(move |worker| (*port, usize::from(worker), worker)))
        {
            let engine = &mut engines[engine];
            let mut home = 0;
            for number in 1..=60 {
                // Each worker has clients of its own.
                let number = u16::from(worker) * 60 + number;
                let (_, queue) = reply(engine, &tables, &card, number, (proto, port, v6));
                home += u32::from(queue == Some(worker.into()));
            }
            let of_backend = Class::of(proto, v6 != (port == 96)).unwrap();
            let want = if claimed.contains(&of_backend) { 60..=60 } else { 3..=35 };
            assert!(want.contains(&home), "{of_backend:?} port {port} worker {worker}: {home} of 60");
        }
    }
}

#[test]
fn a_reply_on_another_queue_than_claimed_reaches_its_flow_all_the_same() {
    let (tables, without, card) = (steered(&Class::ALL), tables(), card());
    let mut engines = engines(WORKERS, 512);
    for number in 1..=20 {
        let (bytes, _) = reply(&mut engines[1], &tables, &card, number, (TCP, 81, false));
        // With and without: the owner is the same while tables change.
        for tables in [&tables, &without] {
            let mut frame = Wire::new(&bytes, LAN);
            assert_eq!(frame.through(&mut engines[2], tables, Tick(0)), Verdict::Handoff(WorkerId(1)));
            frame.handed_over = true;
            assert_eq!(frame.through(&mut engines[1], tables, Tick(0)), Verdict::Tx(UPLINK));
        }
    }
}

#[test]
fn frames_are_looked_at_whether_they_come_where_the_card_says() {
    let (tables, card) = (steered(&[Class::Tcp4]), card());
    let mut engines = engines(WORKERS, 512);
    let replies: Vec<_> =
        (1..=80).map(|number| reply(&mut engines[1], &tables, &card, number, (TCP, 81, false))).collect();
    let seen = |engine: &Engine| engine.stats().arrivals(LAN, Class::Tcp4);
    assert_eq!(seen(&engines[1]), [0, 0], "of the uplink's card nothing is known");
    // One batch a frame, of which each eighth is looked at.
    for (bytes, queue) in &replies {
        for _ in 0..8 {
            let worker = usize::from(queue.unwrap());
            Wire::new(bytes, LAN).through(&mut engines[worker], &tables, Tick(0));
        }
    }
    let total = |engines: &[Engine]| {
        engines.iter().map(seen).fold([0, 0], |[a, b], [other, own]| [a + other, b + own])
    };
    assert_eq!(total(&engines), [0, 80]);
    for (bytes, queue) in &replies {
        let elsewhere = (usize::from(queue.unwrap()) + 1) % usize::from(WORKERS);
        for _ in 0..8 {
            Wire::new(bytes, LAN).through(&mut engines[elsewhere], &tables, Tick(0));
        }
        // What another worker handed over says nothing of the card.
        for _ in 0..8 {
            let mut handed = Wire::new(bytes, LAN);
            handed.handed_over = true;
            handed.through(&mut engines[elsewhere], &tables, Tick(0));
        }
    }
    assert_eq!(total(&engines), [80, 80]);
    let mut udp = packet(UDP, 0, at(backend(1, false), 8081), at(SNAT4.into(), 5_000), 64);
    for _ in 0..16 {
        Wire::new(&udp, LAN).through(&mut engines[0], &tables, Tick(0));
    }
    udp.truncate(20);
    for _ in 0..16 {
        Wire::new(&udp, LAN).through(&mut engines[0], &tables, Tick(0));
    }
    assert_eq!(total(&engines), [80, 80]);
}
