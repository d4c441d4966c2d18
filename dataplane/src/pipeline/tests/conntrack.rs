//! IPVS's rules for connections that are over, backends that go, and SCTP.

use super::*;
use crate::flow::key::SCTP;
use crate::snapshot::{Defence, Service, Services};
use crate::wire::sctp::{self, crc};

/// The tables with every service changed by `change`.
fn with_services(change: impl Fn(&mut Service)) -> Snapshot {
    let mut tables = tables();
    let services = Arc::get_mut(&mut tables.services).unwrap();
    let mut list: Vec<_> = services.iter().cloned().collect();
    list.iter_mut().for_each(&change);
    *services = Services::new(list, services.pools().to_vec(), [vip(false), vip(true)]);
    tables
}

/// The tables with the UDP services as SCTP services.
fn sctp_tables() -> Snapshot {
    with_services(|service| {
        service.vips.iter_mut().filter(|vip| vip.proto == UDP).for_each(|vip| vip.proto = SCTP);
    })
}

/// One SCTP packet with a chunk of this kind and some data. `right` says whether its CRC is.
fn sctp_packet(chunk: u8, from: SocketAddr, to: SocketAddr, right: bool) -> Vec<u8> {
    let mut segment = [from.port().to_be_bytes(), to.port().to_be_bytes()].concat();
    segment.extend([0xaa; 4]);
    segment.extend([0; 4]);
    segment.extend([chunk, 0, 0, 21]);
    segment.extend(b"seventeen bytes..\0\0\0");
    let crc = crc::checksum([&segment[..]]) ^ u32::from(!right);
    segment[8..12].copy_from_slice(&crc.to_le_bytes());
    let link = PacketBuilder::ethernet2([2, 0, 0, 0, 9, 9], [2, 0, 0, 0, 0, 1]);
    let ip = match (from.ip(), to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => link.ipv4(from.octets(), to.octets(), 64),
        (IpAddr::V6(from), IpAddr::V6(to)) => link.ipv6(from.octets(), to.octets(), 64),
        _ => panic!("families differ"),
    };
    let mut bytes = Vec::new();
    ip.write(&mut bytes, etherparse::IpNumber::SCTP, &segment).unwrap();
    bytes
}

/// Source and destination of an SCTP packet, and whether its CRC is right.
fn sctp_seen(wire: &Wire) -> (SocketAddr, SocketAddr, bool) {
    let packet = packet::parse(wire.bytes()).unwrap();
    let mut segment = wire.bytes()[packet.l4.into()..packet.end.into()].to_vec();
    let carried = u32::from_le_bytes(segment[8..12].try_into().unwrap());
    segment[8..12].fill(0);
    let key = packet.key;
    let (src, dst) = (at(key.source(), key.sport), at(key.destination(), key.dport));
    (src, dst, carried == crc::checksum([&segment[..]]))
}

fn states(engine: &Engine, now: Tick) -> Vec<(&'static str, u32)> {
    let mut records = Vec::with_capacity(64);
    engine.dump(0, usize::MAX, now, &mut records);
    records.iter().map(|record| (record.state, record.expires_s)).collect()
}

#[test]
fn sctp_is_translated_both_ways_and_a_wrong_crc_stays_wrong() {
    let tables = sctp_tables();
    for v6 in [false, true] {
        for port in [80, 81, 82] {
            let mut engine = engines(1, 64).remove(0);
            let (from, to) = (client(1, v6), at(vip(v6), port));
            let mut sent = Wire::new(&sctp_packet(sctp::INIT, from, to, true), UPLINK);
            assert_eq!(sent.through(&mut engine, &tables, Tick(0)), Verdict::Tx(LAN));
            let (src, dst, right) = sctp_seen(&sent);
            assert!(right, "CRC on port {port}");
            assert_eq!(states(&engine, Tick(0)), [("INIT1", 4)]);
            if port == 82 {
                assert_eq!((src, dst), (from, to));
                continue;
            }
            assert_eq!(dst, at(backend(1, v6), 8000 + port));
            let mut reply = Wire::new(&sctp_packet(sctp::INIT_ACK, dst, src, false), LAN);
            assert_eq!(reply.through(&mut engine, &tables, Tick(0)), Verdict::Tx(UPLINK));
            assert_eq!(sctp_seen(&reply), (to, from, false));
            assert_eq!(states(&engine, Tick(0)), [("C-SENT", 61)]);
        }
    }
}

#[test]
fn a_crc_that_a_local_sender_has_left_out_is_computed() {
    let tables = sctp_tables();
    let mut engine = engines(1, 64).remove(0);
    let mut bytes = sctp_packet(sctp::INIT, client(1, false), at(vip(false), 80), true);
    bytes[34 + 8..34 + 12].fill(0);
    let mut wire = Wire::new(&bytes, LAN);
    assert_eq!(wire.through(&mut engine, &tables, Tick(0)), Verdict::Tx(LAN));
    assert!(sctp_seen(&wire).2);
    assert_eq!(wire.checksum, Checksum::Complete);
}

#[test]
fn sctp_opens_by_init_alone_unless_sloppy() {
    let mut tables = sctp_tables();
    let data = sctp_packet(0, client(1, false), at(vip(false), 80), true);
    let mut engine = engines(1, 64).remove(0);
    let strict = Wire::new(&data, UPLINK).through(&mut engine, &tables, Tick(0));
    assert_eq!(strict, Verdict::Drop(DropReason::NoFlow));
    tables.settings.sloppy_sctp = true;
    assert_eq!(Wire::new(&data, UPLINK).through(&mut engine, &tables, Tick(0)), Verdict::Tx(LAN));
    assert_eq!(states(&engine, Tick(0)), [("ESTABLISHED", 900)]);
}

#[test]
fn a_sloppy_service_opens_a_flow_on_any_segment_but_a_reset() {
    let mut tables = tables();
    tables.settings.sloppy_tcp = true;
    for (flags, want) in [(ACK, "ESTABLISHED"), (FIN | ACK, "CLOSE"), (0, "CLOSE"), (SYN | ACK, "SYN_RECV")] {
        let mut engine = engines(1, 64).remove(0);
        let segment = packet(TCP, flags, client(1, false), at(vip(false), 80), 64);
        assert_eq!(Wire::new(&segment, UPLINK).through(&mut engine, &tables, Tick(0)), Verdict::Tx(LAN));
        assert_eq!(states(&engine, Tick(0))[0].0, want);
    }
    let mut engine = engines(1, 64).remove(0);
    let reset = packet(TCP, RST, client(1, false), at(vip(false), 80), 64);
    let verdict = Wire::new(&reset, UPLINK).through(&mut engine, &tables, Tick(0));
    assert_eq!(verdict, Verdict::Drop(DropReason::NoFlow));
}

/// What becomes of a client's `flags` on an established flow whose backend was removed or drained.
fn after(change: impl Fn(&mut Service), settings: impl Fn(&mut Snapshot), flags: u8) -> (Verdict, IpAddr) {
    let mut engine = engines(1, 64).remove(0);
    let (from, to) = (client(1, false), at(vip(false), 80));
    for flags in [SYN, ACK] {
        Wire::new(&packet(TCP, flags, from, to, 64), UPLINK).through(&mut engine, &tables(), Tick(0));
    }
    let mut changed = with_services(change);
    settings(&mut changed);
    let mut wire = Wire::new(&packet(TCP, flags, from, to, 64), UPLINK);
    let verdict = wire.through(&mut engine, &changed, Tick(0));
    (verdict, packet::parse(wire.bytes()).unwrap().key.destination())
}

#[test]
fn a_flow_whose_backend_goes_ends_as_the_settings_say() {
    let remove =
        |service: &mut Service| service.backends = service.backends.iter().skip(1).cloned().collect();
    let drain = |service: &mut Service| {
        Arc::make_mut(&mut service.backends).iter_mut().take(1).for_each(|backend| backend.weight = 0);
    };
    let default = |_: &mut Snapshot| {};
    let dropping = |tables: &mut Snapshot| tables.settings.drop_removed = true;
    let expiring = |tables: &mut Snapshot| tables.settings.expire_nodest_conn = true;
    let (first, second) = (backend(1, false), backend(2, false));

    assert_eq!(after(remove, default, ACK), (Verdict::Tx(LAN), first), "it goes on");
    assert_eq!(after(remove, dropping, ACK).0, Verdict::Drop(DropReason::BackendRemoved));
    assert_eq!(after(remove, dropping, SYN).0, Verdict::Drop(DropReason::BackendRemoved));
    assert_eq!(after(remove, expiring, ACK).0, Verdict::Reply(Some(DropReason::NoFlow)));
    assert_ne!(after(remove, expiring, SYN).1, first, "scheduled anew");

    assert_eq!(after(drain, expiring, ACK), (Verdict::Tx(LAN), first), "a drained backend keeps its flow");
    assert_eq!(after(drain, default, SYN), (Verdict::Tx(LAN), first));
    assert_eq!(after(drain, expiring, SYN), (Verdict::Tx(LAN), second), "but not the next connection");
}

#[test]
fn a_backend_that_returns_has_its_flows_again() {
    let mut engine = engines(1, 64).remove(0);
    let (from, to) = (client(1, false), at(vip(false), 80));
    let mut without =
        with_services(|service| service.backends = service.backends.iter().skip(1).cloned().collect());
    without.settings.drop_removed = true;
    let with = Snapshot { settings: without.settings, ..tables() };
    let mut send = |tables: &Snapshot, flags| {
        let mut wire = Wire::new(&packet(TCP, flags, from, to, 64), UPLINK);
        wire.through(&mut engine, tables, Tick(0))
    };
    assert_eq!([send(&with, SYN), send(&with, ACK)], [Verdict::Tx(LAN); 2]);
    assert_eq!(send(&without, ACK), Verdict::Drop(DropReason::BackendRemoved));
    assert_eq!(send(&with, ACK), Verdict::Tx(LAN));
    assert_eq!(engine.flows(), 1);
}

#[test]
fn port_reuse_is_as_the_settings_say() {
    let (from, to) = (client(1, false), at(vip(false), 80));
    let direct = at(vip(false), 82);
    for (mode, to, ending, reused) in [
        (1, to, RST, true),
        (0, to, RST, false),
        (2, to, RST, true),
        (1, direct, FIN | ACK, false),
        (2, direct, FIN | ACK, true),
        (2, to, FIN | ACK, false),
    ] {
        let mut tables = tables();
        tables.settings.conn_reuse_mode = mode;
        let mut engine = engines(1, 64).remove(0);
        for flags in [SYN, ACK, ending, SYN] {
            let verdict =
                Wire::new(&packet(TCP, flags, from, to, 64), UPLINK).through(&mut engine, &tables, Tick(0));
            assert_eq!(verdict, Verdict::Tx(LAN));
        }
        let opened = engine.stats().flows_opened.get();
        assert_eq!(opened, 1 + u64::from(reused), "mode {mode}, {to}, {ending}");
        assert_eq!(engine.flows(), 1);
    }
}

#[test]
fn secure_tcp_waits_for_the_backend() {
    let mut tables = tables();
    tables.settings.secure_tcp = Defence::Always;
    let mut engine = engines(1, 64).remove(0);
    engine.sweep(Tick(0), &tables);
    let (from, to) = (client(1, false), at(vip(false), 80));
    let server = at(backend(1, false), 8080);
    let mut seen = Vec::new();
    for (flags, src, dst, port) in [
        (SYN, from, to, UPLINK),
        (SYN | ACK, server, from, LAN),
        (ACK, from, to, UPLINK),
        (ACK, server, from, LAN),
    ] {
        Wire::new(&packet(TCP, flags, src, dst, 64), port).through(&mut engine, &tables, Tick(0));
        seen.push(states(&engine, Tick(0))[0]);
    }
    assert_eq!(seen, [("SYN_RECV", 60), ("SYNACK", 120), ("SYNACK", 120), ("ESTABLISHED", 900)]);
}

#[test]
fn the_flows_of_a_drained_backend_end_when_its_time_is_up() {
    let tables = tables();
    let mut engine = engines(1, 64).remove(0);
    for number in 0..6 {
        Wire::new(&packet(TCP, SYN, client(number, false), at(vip(false), 80), 64), UPLINK).through(
            &mut engine,
            &tables,
            Tick(0),
        );
    }
    let state = Arc::clone(&engine.core.setup.state);
    state.backend(BackendId(0)).unwrap().set_ends(Some(Tick(50)));
    let mut after = |tick| {
        engine.sweep(Tick(tick), &tables);
        engine.flows()
    };
    assert_eq!((after(20), after(40), after(49)), (6, 6, 6));
    (50..200).for_each(|tick| _ = after(tick));
    assert_eq!(engine.flows(), 4, "two of six were the drained backend's");
    assert_eq!(engine.stats().flows_drained.get(), 2);
    assert_eq!(state.backend(BackendId(0)).unwrap().counts(), (0, 0));
}

#[test]
fn a_udp_checksum_that_was_left_out_is_computed_under_translation() {
    let tables = tables();
    for v6 in [false, true] {
        let mut engine = engines(1, 64).remove(0);
        let mut bytes = packet(UDP, 0, client(1, v6), at(vip(v6), 80), 64);
        let field = if v6 { 60 } else { 40 };
        bytes[field..field + 2].fill(0);
        let mut wire = Wire::new(&bytes, UPLINK);
        assert_eq!(wire.through(&mut engine, &tables, Tick(0)), Verdict::Tx(LAN));
        wire.seen();
    }
}
