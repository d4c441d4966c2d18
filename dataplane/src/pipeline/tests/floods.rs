//! What more packets than there is room for do.

use super::*;
use crate::snapshot::{Defence, Settings};

/// A client of its own for every number.
fn stranger(number: u32) -> SocketAddr {
    SocketAddr::new(Ipv4Addr::from(0xac10_0000 + number).into(), 40_000)
}

fn with(settings: Settings) -> Snapshot {
    Snapshot { settings, ..tables() }
}

fn send(engine: &mut Engine, tables: &Snapshot, now: Tick, bytes: &[u8]) -> Verdict {
    Wire::new(bytes, UPLINK).through(engine, tables, now)
}

fn syn(number: u32) -> Vec<u8> {
    packet(TCP, SYN, stranger(number), at(vip(false), 80), 64)
}

fn ack(number: u32) -> Vec<u8> {
    packet(TCP, ACK, stranger(number), at(vip(false), 80), 64)
}

fn datagram(number: u32) -> Vec<u8> {
    packet(UDP, 0, stranger(number), at(vip(false), 80), 64)
}

fn knows(engine: &Engine, bytes: &[u8]) -> bool {
    let (key, flows) = (packet::parse(bytes).unwrap().key, &engine.core.flows);
    flows.lookup(flows.hash(&key), &key).is_some()
}

#[test]
fn half_open_flows_are_bounded_and_the_oldest_makes_room() {
    for (bound, want) in [(0, 25), (10, 10), (60, 60), (1000, 64)] {
        let tables = with(Settings { half_open: bound, ..Settings::default() });
        let mut engine = engines(1, if want == 64 { 64 } else { 100 }).remove(0);
        for number in 0..500 {
            assert_eq!(send(&mut engine, &tables, Tick(0), &syn(number)), Verdict::Tx(LAN));
            assert!(engine.core.half_open.count() <= want);
        }
        assert_eq!((engine.core.half_open.count(), engine.flows()), (want, want), "bound {bound}");
        let known: Vec<_> = (0..500).filter(|number| knows(&engine, &syn(*number))).collect();
        assert_eq!(known, (500 - want as u32..500).collect::<Vec<_>>(), "the youngest are left");
        assert_eq!(engine.stats().flows_evicted.get(), 500 - want as u64);
        assert_eq!(engine.stats().half_open.get(), want as u64);
    }
}

#[test]
fn a_bound_that_is_lowered_is_reached_while_flows_come() {
    let mut engine = engines(1, 400).remove(0);
    let [high, low] = [90, 10].map(|half_open| with(Settings { half_open, ..Settings::default() }));
    for number in 0..90 {
        send(&mut engine, &high, Tick(0), &syn(number));
    }
    for number in 100..180 {
        send(&mut engine, &low, Tick(0), &syn(number));
    }
    assert_eq!(engine.core.half_open.count(), 10);
}

#[test]
fn established_flows_survive_any_flood() {
    let tables = tables();
    let mut engine = engines(1, 100).remove(0);
    for number in 0..80 {
        send(&mut engine, &tables, Tick(0), &syn(number));
        send(&mut engine, &tables, Tick(0), &ack(number));
    }
    for number in 1000..9000 {
        send(&mut engine, &tables, Tick(0), &syn(number));
        send(&mut engine, &tables, Tick(0), &datagram(number));
    }
    for number in 0..80 {
        assert!(knows(&engine, &syn(number)), "flow {number}");
    }
    assert!(engine.flows() <= 100);
}

#[test]
fn a_full_table_ends_half_open_flows_before_single_datagrams_and_neither_what_was_answered() {
    let tables = tables();
    let mut engine = engines(1, 8).remove(0);
    let server = |number| {
        let reply = packet(UDP, 0, at(backend(number, false), 8080), stranger(u32::from(number) - 1), 64);
        Wire::new(&reply, LAN)
    };
    for number in 0..6 {
        send(&mut engine, &tables, Tick(0), &datagram(number));
    }
    for answered in 1..=3 {
        assert_eq!(server(answered).through(&mut engine, &tables, Tick(0)), Verdict::Tx(UPLINK));
    }
    send(&mut engine, &tables, Tick(0), &syn(10));
    send(&mut engine, &tables, Tick(0), &syn(11));
    assert_eq!(engine.flows(), 8);
    // Two half-open flows go, then the three datagrams that nobody answered.
    for (number, gone) in [(20, syn(10)), (21, syn(11))] {
        assert_eq!(send(&mut engine, &tables, Tick(0), &datagram(number)), Verdict::Tx(LAN));
        assert!(!knows(&engine, &gone));
        // A second datagram: not a single one any more.
        send(&mut engine, &tables, Tick(0), &datagram(number));
    }
    for number in 30..33 {
        assert_eq!(send(&mut engine, &tables, Tick(0), &datagram(number)), Verdict::Tx(LAN));
        send(&mut engine, &tables, Tick(0), &datagram(number));
    }
    for number in 3..6 {
        assert!(!knows(&engine, &datagram(number)), "datagram {number}");
    }
    assert_eq!(
        send(&mut engine, &tables, Tick(0), &datagram(40)),
        Verdict::Drop(DropReason::FlowTableFull),
        "what is left may not go"
    );
}

#[test]
fn a_flow_whose_time_is_up_goes_before_one_that_lives() {
    let tables = tables();
    let mut engine = engines(1, 4).remove(0);
    for number in 0..3 {
        send(&mut engine, &tables, Tick(0), &datagram(number));
    }
    let late = Tick(0).after_seconds(301);
    send(&mut engine, &tables, late, &syn(9));
    send(&mut engine, &tables, late, &datagram(10));
    assert!(knows(&engine, &syn(9)));
    assert_eq!(engine.stats().flows_evicted.get(), 0);
}

#[test]
fn new_flows_a_second_are_limited_and_known_ones_are_not() {
    let tables = with(Settings { new_flows_per_s: 50, half_open: 1000, ..Settings::default() });
    let mut engine = engines(1, 1000).remove(0);
    let opened = |engine: &mut Engine, from: u32, now| {
        let verdicts = (from..from + 200).map(|number| send(engine, &tables, now, &syn(number)));
        verdicts.filter(|verdict| *verdict == Verdict::Tx(LAN)).count()
    };
    assert_eq!(opened(&mut engine, 0, Tick(7)), 50);
    assert_eq!(engine.stats().drops(DropReason::NewFlowLimit), 150);
    assert_eq!(opened(&mut engine, 1000, Tick(8)), 5, "a tenth of a second later");
    assert_eq!(opened(&mut engine, 2000, Tick(18)), 50);
    assert_eq!(opened(&mut engine, 3000, Tick(1000)), 50, "time without flows is not saved up");
    assert_eq!(opened(&mut engine, 3000, Tick(1000)), 50, "packets of known flows");
}

#[test]
fn drop_packet_takes_one_of_so_many_that_would_open_a_flow() {
    let dropped = |settings: Settings, flows: u32| {
        let tables = with(settings);
        let mut engine = engines(1, 1100).remove(0);
        for number in 0..flows {
            send(&mut engine, &super::tables(), Tick(0), &datagram(10_000 + number));
        }
        engine.sweep(Tick(0), &tables);
        for number in 0..60 {
            send(&mut engine, &tables, Tick(0), &syn(number));
            send(&mut engine, &tables, Tick(0), &ack(number));
        }
        engine.stats().drops(DropReason::DropPacket)
    };
    let automatic = Settings { drop_packet: Defence::Automatic, ..Settings::default() };
    // Free entries 1100 - flows, against 1024.
    for (name, settings, flows, want) in [
        ("off", Settings::default(), 1000, 0),
        ("enough is free", automatic, 76, 0),
        ("one entry is lacking: 1 of 1024, the last", automatic, 77, 0),
        ("half is lacking: 1 of 2", automatic, 588, 30),
        ("three quarters are lacking: all", automatic, 844, 60),
        ("always", Settings { drop_packet: Defence::Always, ..Settings::default() }, 0, 6),
        ("always 3", Settings { drop_packet: Defence::Always, am_droprate: 3, ..Settings::default() }, 0, 20),
    ] {
        assert_eq!(dropped(settings, flows), want, "{name}");
    }
}

#[test]
fn drop_entry_ends_a_thirty_second_of_the_half_open_flows_a_second() {
    let usual = with(Settings { half_open: 4096, ..Settings::default() });
    let tables = with(Settings { half_open: 4096, drop_entry: Defence::Always, ..Settings::default() });
    let mut engine = engines(1, 4096).remove(0);
    for number in 0..2048 {
        send(&mut engine, &usual, Tick(0), &syn(number));
    }
    for number in 0..2048 {
        send(&mut engine, &usual, Tick(0), &syn(10_000 + number));
        send(&mut engine, &usual, Tick(0), &ack(10_000 + number));
    }
    for turn in 0..100 {
        engine.sweep(Tick(turn), &tables);
    }
    // Ten times 128 slots, half of them half-open: less those drawn twice.
    let dropped = engine.stats().flows_dropped.get();
    assert!((450..=640).contains(&dropped), "{dropped} of 2048 after ten seconds");
    assert_eq!(engine.flows() as u64, 4096 - dropped);
    assert_eq!(engine.core.half_open.count() as u64, 2048 - dropped);
}

#[test]
fn drop_entry_ends_idle_flows_of_few_packets_and_no_others() {
    let usual = tables();
    let drops = |settings| with(settings);
    let always = drops(Settings { drop_entry: Defence::Always, ..Settings::default() });
    // Packets from the client, seconds idle: may it end?
    for (packets, idle_s, may_end) in
        [(1, 58, false), (1, 61, true), (8, 61, true), (9, 61, false), (9, 250, false)]
    {
        let mut engine = engines(1, 64).remove(0);
        for number in 0..64 {
            for _ in 0..packets {
                send(&mut engine, &usual, Tick(0), &datagram(number));
            }
        }
        for second in 0..2 {
            for _ in 0..10 {
                engine.core.defend(Tick(0).after_seconds(idle_s + second), &always);
            }
        }
        let ended = engine.stats().flows_dropped.get();
        assert!(
            if packets == 1 && may_end { ended > 0 } else { ended <= u64::from(may_end) },
            "{packets} {idle_s}"
        );
    }
}

#[test]
fn secure_tcp_follows_the_free_entries_each_second() {
    let tables = with(Settings { secure_tcp: Defence::Automatic, amemthresh: 10, ..Settings::default() });
    let mut engine = engines(1, 32).remove(0);
    let is_on = |engine: &mut Engine, second| {
        engine.sweep(Tick(0).after_seconds(second), &tables);
        engine.core.defence.secure_tcp()
    };
    assert!(!is_on(&mut engine, 0));
    for number in 0..23 {
        send(&mut engine, &super::tables(), Tick(1), &datagram(number));
    }
    assert!(!is_on(&mut engine, 0), "decided once a second");
    assert!(is_on(&mut engine, 1));
    is_on(&mut engine, 302);
    assert!(!is_on(&mut engine, 303), "all flows have ended");
}
