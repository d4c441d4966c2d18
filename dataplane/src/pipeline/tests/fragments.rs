//! Packets in pieces: through every mode, both families and ways, in and out of order, across workers.

use super::*;
use crate::flow::fragments::LIFE_S;
use crate::snapshot::Mode;

/// Data bytes of a fragment but the last.
const PIECE: usize = 56;

/// Cuts an IP packet into fragments of [`PIECE`] bytes.
fn cut(frame: &[u8], id: u8) -> Vec<Vec<u8>> {
    model::fragments::cut(frame, id.into(), PIECE)
}

/// The packet that these fragments are, as its receiver puts it together.
fn whole(fragments: &[Wire]) -> Wire {
    let v6 = fragments[0].bytes()[12..14] == [0x86, 0xdd];
    let headers = if v6 { 62 } else { 34 };
    let mut head = fragments[0].bytes()[..if v6 { 54 } else { 34 }].to_vec();
    let data: Vec<u8> = fragments.iter().flat_map(|wire| wire.bytes()[headers..].to_vec()).collect();
    for wire in fragments {
        let same = if v6 { 22..54 } else { 26..34 };
        assert_eq!(wire.bytes()[same.clone()], head[same], "all between the same hosts");
        assert_eq!(wire.bytes()[..12], head[..12], "all by the same hop");
        assert_eq!(wire.checksum, Checksum::Complete);
        parse_header(wire);
    }
    if v6 {
        head[20] = fragments[0].bytes()[54];
        head[18..20].copy_from_slice(&(data.len() as u16).to_be_bytes());
    } else {
        head[16..18].copy_from_slice(&(data.len() as u16 + 20).to_be_bytes());
        head[20..22].fill(0);
        model::fragments::sum_header(&mut head);
    }
    Wire::new(&[head, data].concat(), UPLINK)
}

/// Its header has the right checksum and one hop less.
fn parse_header(wire: &Wire) {
    assert_eq!(packet::parse(wire.bytes()).expect("right headers").ttl, 63);
}

/// A datagram or segment of 168 bytes of data: four fragments.
fn long(proto: u8, flags: u8, from: SocketAddr, to: SocketAddr) -> Vec<u8> {
    let link = PacketBuilder::ethernet2([2, 0, 0, 0, 9, 9], [2, 0, 0, 0, 0, 1]);
    let ip = match (from.ip(), to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => link.ipv4(from.octets(), to.octets(), 64),
        (IpAddr::V6(from), IpAddr::V6(to)) => link.ipv6(from.octets(), to.octets(), 64),
        _ => panic!("families differ"),
    };
    let (mut bytes, data) = (Vec::new(), [7; 168]);
    if proto == UDP {
        ip.udp(from.port(), to.port()).write(&mut bytes, &data).unwrap();
    } else {
        let mut tcp = ip.tcp(from.port(), to.port(), 1000, 5000);
        if flags & SYN != 0 {
            tcp = tcp.syn();
        }
        if flags & ACK != 0 {
            tcp = tcp.ack(77);
        }
        tcp.write(&mut bytes, &data).unwrap();
    }
    bytes
}

fn wires(fragments: &[Vec<u8>], port: PortId) -> Vec<Wire> {
    fragments.iter().map(|bytes| Wire::new(bytes, port)).collect()
}

#[test]
fn fragments_go_where_the_first_one_goes_in_every_mode_and_both_ways() {
    let tables = tables();
    for v6 in [false, true] {
        for proto in [TCP, UDP] {
            for (port, mode) in fixture::MODES {
                let name = format!("{mode:?} {proto} v6 {v6}");
                let mut engine = engines(1, 64).remove(0);
                let service = at(vip(v6), port);
                let mut sent = wires(&cut(&long(proto, SYN, client(1, v6), service), 1), UPLINK);
                for wire in &mut sent {
                    assert_eq!(wire.through(&mut engine, &tables, Tick(0)), Verdict::Tx(LAN), "{name}");
                }
                let (src, dst, ttl) = whole(&sent).seen();
                assert_eq!(ttl, 63);
                if mode == Mode::Dr {
                    assert_eq!((src, dst), (client(1, v6), service));
                    continue;
                }
                assert_eq!(dst, at(backend(1, v6), 8000 + port), "{name}");
                let mut replies = wires(&cut(&long(proto, SYN | ACK, dst, src), 2), LAN);
                for wire in &mut replies {
                    assert_eq!(wire.through(&mut engine, &tables, Tick(1)), Verdict::Tx(UPLINK), "{name}");
                }
                assert_eq!(whole(&replies).seen(), (service, client(1, v6), 63), "{name}");
                let stats = engine.stats();
                assert_eq!((stats.fragmented.get(), stats.fragments_followed.get()), (2, 6));
                let backend = stats.backend(BackendId(0)).map(|_| engine.flows());
                assert_eq!(backend, Some(1));
            }
        }
    }
}

#[test]
fn a_tunnel_carries_fragments_as_they_are_and_a_translation_between_families_none() {
    let tables = tables();
    for special in fixture::SPECIAL {
        for v6 in [false, true] {
            let name = format!("{special:?} v6 {v6}");
            let mut engine = engines(1, 64).remove(0);
            let pieces = cut(&long(UDP, 0, client(1, v6), at(vip(v6), special.port)), 1);
            for bytes in &pieces {
                let mut wire = Wire::new(bytes, UPLINK);
                let verdict = wire.through(&mut engine, &tables, Tick(0));
                if !special.mode.is_tunnel() && special.across {
                    assert_eq!(verdict, Verdict::Drop(DropReason::Fragment), "{name}");
                    continue;
                }
                assert_eq!(verdict, Verdict::Tx(LAN), "{name}");
                if special.mode.is_tunnel() {
                    let inner = wire.len - (bytes.len() - 14);
                    let data = if v6 { 48 } else { 20 };
                    assert_eq!(wire.bytes()[inner + data..], bytes[14 + data..], "{name}");
                    let [hops, was] = [wire.bytes()[inner + if v6 { 7 } else { 8 }], 64];
                    assert_eq!(hops, was - 1, "{name}");
                }
            }
        }
    }
}

#[test]
fn a_one_packet_service_sends_all_fragments_of_a_packet_to_one_backend() {
    let tables = tables();
    let mut list: Vec<_> = tables.services.iter().cloned().collect();
    list.iter_mut().for_each(|service| service.one_packet = true);
    let services = crate::snapshot::Services::new(list, tables.services.pools().to_vec(), []);
    let tables = Snapshot { services: Arc::new(services), ..tables };
    let [mut engine, _] = <[_; 2]>::try_from(engines(2, 64)).unwrap();
    let mut backends = std::collections::BTreeSet::new();
    for id in 1..=3 {
        let mut sent = wires(&cut(&long(UDP, 0, client(1, false), at(vip(false), 80)), id), UPLINK);
        let verdicts = sent.iter_mut().map(|wire| wire.through(&mut engine, &tables, Tick(0)));
        assert!(verdicts.into_iter().all(|verdict| verdict == Verdict::Tx(LAN)));
        for wire in &sent {
            assert_eq!(wire.bytes()[30..34], sent[0].bytes()[30..34], "to one backend");
        }
        backends.insert(sent[0].bytes()[30..34].to_vec());
    }
    assert_eq!((backends.len(), engine.flows()), (3, 3), "each packet is scheduled by itself");
    engine.sweep(Tick(0), &tables);
    let late = Tick(LIFE_S * 10 * 3);
    while engine.sweep(late, &tables) {}
    assert_eq!((engine.flows(), engine.core.fragments.len()), (0, 0));
}

#[test]
fn what_comes_before_the_first_fragment_is_early_and_in_the_end_dropped() {
    let tables = tables();
    for v6 in [false, true] {
        let mut engine = engines(1, 64).remove(0);
        let pieces = cut(&long(UDP, 0, client(1, v6), at(vip(v6), 80)), 9);
        let mut early = Wire::new(&pieces[2], UPLINK);
        assert_eq!(early.through(&mut engine, &tables, Tick(0)), Verdict::Early);
        assert_eq!(early.bytes(), pieces[2]);
        let known = engine.first_fragments();
        assert_eq!(Wire::new(&pieces[0], UPLINK).through(&mut engine, &tables, Tick(0)), Verdict::Tx(LAN));
        assert_ne!(engine.first_fragments(), known, "worth another try");
        assert_eq!(early.through(&mut engine, &tables, Tick(0)), Verdict::Tx(LAN));

        let mut another = Wire::new(&cut(&pieces_of(client(1, v6), v6), 10)[1], UPLINK);
        another.overdue = true;
        let verdict = another.through(&mut engine, &tables, Tick(0));
        assert_eq!(
            verdict,
            Verdict::Drop(DropReason::FragmentUnmatched),
            "of another packet, and its time is up"
        );
        let mut foreign = Wire::new(&cut(&long(UDP, 0, at(backend(1, v6), 9), client(1, v6)), 11)[1], LAN);
        assert_eq!(foreign.through(&mut engine, &tables, Tick(0)), Verdict::Early);
        foreign.overdue = true;
        assert_eq!(
            foreign.through(&mut engine, &tables, Tick(0)),
            Verdict::Kernel,
            "the backend's own traffic"
        );
    }
}

fn pieces_of(from: SocketAddr, v6: bool) -> Vec<u8> {
    long(UDP, 0, from, at(vip(v6), 80))
}

#[test]
fn the_rest_of_a_refused_packet_is_refused_for_the_same_reason() {
    let mut tables = tables();
    let no_route = crate::snapshot::Net { routes4: Default::default(), ..fixture::net() };
    let pieces = |port| cut(&long(UDP, 0, client(1, false), at(vip(false), port)), 3);
    let mut engine = engines(1, 64).remove(0);
    let mut run = |tables: &Snapshot, port, want: [Verdict; 2]| {
        for (bytes, want) in pieces(port).iter().zip(want) {
            assert_eq!(Wire::new(bytes, UPLINK).through(&mut engine, tables, Tick(0)), want);
        }
    };
    let refused = Verdict::Reply(Some(DropReason::NoBackend));
    run(&tables, 83, [refused, Verdict::Drop(DropReason::NoBackend)]);
    run(&tables, 99, [Verdict::Kernel, Verdict::Kernel]);
    tables.net = Arc::new(no_route);
    run(&tables, 80, [Verdict::Drop(DropReason::NoRoute); 2]);
}

#[test]
fn a_fragment_too_large_for_the_next_link_is_cut_again() {
    let mut tables = tables();
    let mut net = fixture::net();
    net.hops.iter_mut().flatten().for_each(|hop| hop.mtu = 70);
    tables.net = Arc::new(net);
    let dropped = Verdict::Drop(DropReason::MtuExceeded);
    let refused = Verdict::Reply(Some(DropReason::MtuExceeded));
    let sent = Verdict::Tx(LAN);
    // 56 bytes of data come in each, and 48 fit.
    for (name, flags, want, lens) in
        [("may be cut", 0, [sent; 2], &[82, 42, 82, 42][..]), ("may not", 0x40, [refused, dropped], &[])]
    {
        let mut engine = engines(1, 64).remove(0);
        let pieces = cut(&long(UDP, 0, client(1, false), at(vip(false), 80)), 3);
        let mut left = Vec::new();
        let verdicts = [0, 1].map(|n| {
            let mut bytes = pieces[n].clone();
            bytes[20] |= flags;
            model::fragments::sum_header(&mut bytes);
            let mut wire = Wire::new(&bytes, UPLINK);
            let verdict = wire.through(&mut engine, &tables, Tick(0));
            if let Verdict::Tx(_) = verdict {
                left.extend(wire.departing());
            }
            verdict
        });
        assert_eq!(verdicts, want, "{name}");
        assert_eq!(left.iter().map(Vec::len).collect::<Vec<_>>(), lens, "{name}");
        let offsets: Vec<_> = left.iter().map(|piece| u16::from_be_bytes([piece[20], piece[21]])).collect();
        assert_eq!(offsets, [0x2000, 0x2006, 0x2007, 0x200d][..lens.len()], "{name}");
    }
}

#[test]
fn fragments_reach_the_worker_that_has_the_flow() {
    let tables = tables();
    for v6 in [false, true] {
        let [mut here, mut there] = <[_; 2]>::try_from(engines(2, 64)).unwrap();
        let service = at(vip(v6), 80);
        let open =
            |bytes: &[u8], engine: &mut Engine| Wire::new(bytes, UPLINK).through(engine, &tables, Tick(0));
        assert_eq!(open(&packet(UDP, 0, client(1, v6), service, 64), &mut there), Verdict::Tx(LAN));

        // All at the worker that does not have it, as an interface sends them that hashes addresses alone.
        let pieces = cut(&long(UDP, 0, client(1, v6), service), 5);
        let mut sent = wires(&pieces, UPLINK);
        for wire in &mut sent {
            assert_eq!(wire.through(&mut here, &tables, Tick(0)), Verdict::Handoff(WorkerId(1)));
            wire.handed_over = true;
            assert_eq!(wire.through(&mut there, &tables, Tick(0)), Verdict::Tx(LAN));
        }
        assert_eq!(whole(&sent).seen().1, at(backend(1, v6), 8080));

        // The first at the one that has it, as one does that hashes ports where it sees some; the rest at the other.
        let mut sent = wires(&cut(&long(UDP, 0, client(1, v6), service), 6), UPLINK);
        let [first, rest @ ..] = &mut sent[..] else { unreachable!() };
        assert_eq!(rest[0].through(&mut here, &tables, Tick(0)), Verdict::Early);
        assert_eq!(first.through(&mut there, &tables, Tick(0)), Verdict::Tx(LAN));
        for wire in rest {
            assert_eq!(wire.through(&mut here, &tables, Tick(0)), Verdict::Handoff(WorkerId(1)));
            wire.handed_over = true;
            assert_eq!(wire.through(&mut there, &tables, Tick(0)), Verdict::Tx(LAN));
        }
        assert_eq!(whole(&sent).seen().1, at(backend(1, v6), 8080));

        // After its time the directory may still name the owner, who does not hand it back; a sweep later it does not.
        let late = Tick(LIFE_S * 10 + 1);
        let mut stray = Wire::new(&pieces[1], UPLINK);
        assert_eq!(stray.through(&mut here, &tables, late), Verdict::Handoff(WorkerId(1)));
        stray.handed_over = true;
        assert_eq!(stray.through(&mut there, &tables, late), Verdict::Early);
        stray.handed_over = false;
        for engine in [&mut here, &mut there] {
            engine.sweep(Tick(0), &tables);
            while engine.sweep(late, &tables) {}
        }
        assert_eq!(stray.through(&mut here, &tables, late), Verdict::Early);
    }
}

#[test]
fn a_fragment_of_icmp_to_a_vip_is_dropped_by_name() {
    let tables = tables();
    let mut engine = engines(1, 64).remove(0);
    let mut ping = cut(&long(UDP, 0, client(1, false), at(vip(false), 80)), 3);
    for bytes in &mut ping {
        bytes[23] = 1;
        model::fragments::sum_header(bytes);
        let verdict = Wire::new(bytes, UPLINK).through(&mut engine, &tables, Tick(0));
        assert_eq!(verdict, Verdict::Drop(DropReason::Fragment));
    }
}

proptest! {
    #[test]
    fn pieces_of_anything_hold(steps in proptest::collection::vec(any::<u8>(), 0..400)) {
        model::fragments::check(&steps);
    }

    #[test]
    fn errors_about_anything_hold(steps in proptest::collection::vec(any::<u8>(), 0..400)) {
        model::errors::check(&steps);
    }
}

#[test]
fn the_seeds_of_the_fuzzers_hold() {
    for (folder, check) in
        [("fragments", model::fragments::check as fn(&[u8])), ("icmp", model::errors::check as fn(&[u8]))]
    {
        let path = format!("{}/fuzz/seeds/{folder}", env!("CARGO_MANIFEST_DIR"));
        for seed in std::fs::read_dir(path).unwrap() {
            check(&std::fs::read(seed.unwrap().path()).unwrap());
        }
    }
}
