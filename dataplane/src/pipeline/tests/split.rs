//! IPv4 packets without DF that are larger than their path.

use super::*;
use crate::packet::parse;
use crate::pipeline::fixture::{SPECIAL, net};

/// A datagram of `len` bytes of data with its checksum; `df` is the flags' byte.
fn datagram(to: SocketAddr, len: usize, df: u8) -> Vec<u8> {
    let (IpAddr::V4(src), IpAddr::V4(dst)) = (client(1, false).ip(), to.ip()) else { unreachable!() };
    let link = PacketBuilder::ethernet2([2, 0, 0, 0, 9, 9], [2, 0, 0, 0, 0, 1]);
    let data: Vec<u8> = (0..len).map(|at| (at % 251) as u8).collect();
    let mut bytes = Vec::new();
    let udp = link.ipv4(src.octets(), dst.octets(), 64).udp(client(1, false).port(), to.port());
    udp.write(&mut bytes, &data).unwrap();
    bytes[20] = df;
    model::fragments::sum_header(&mut bytes);
    bytes
}

/// Every link takes packets of so many bytes.
fn narrowed(mtu: u16) -> Snapshot {
    let mut tables = tables();
    let mut narrow = net();
    narrow.hops.iter_mut().flatten().for_each(|hop| hop.mtu = mtu);
    tables.net = Arc::new(narrow);
    tables
}

/// Puts IPv4 fragments together.
fn together(pieces: &[Vec<u8>]) -> Vec<u8> {
    let mut whole = pieces[0][..34].to_vec();
    for piece in pieces {
        let offset = usize::from(u16::from_be_bytes([piece[20], piece[21]]) & 0x1fff) * 8;
        assert_eq!(offset, whole.len() - 34, "in order");
        assert!(Sum::of(&piece[14..34]).verifies(), "header checksum");
        assert_eq!(piece[..12], whole[..12], "by the same hop");
        whole.extend_from_slice(&piece[34..]);
    }
    let len = (whole.len() - 14) as u16;
    whole[16..18].copy_from_slice(&len.to_be_bytes());
    whole[20..22].fill(0);
    model::fragments::sum_header(&mut whole);
    whole
}

fn lens(pieces: &[Vec<u8>]) -> Vec<usize> {
    pieces.iter().map(|piece| piece.len() - 14).collect()
}

#[test]
fn a_datagram_larger_than_its_path_arrives_in_pieces_in_every_mode() {
    let tables = narrowed(1300);
    for (mode, port) in [("nat", 80), ("fullnat", 81), ("dr", 82)] {
        let mut engine = engines(1, 64).remove(0);
        let mut wire = Wire::new(&datagram(at(vip(false), port), 1372, 0), UPLINK);
        assert_eq!(wire.through(&mut engine, &tables, Tick(0)), Verdict::Tx(LAN), "{mode}");
        let seen = wire.seen();
        let pieces = wire.departing();
        assert_eq!(lens(&pieces), [1300, 120], "{mode}");
        assert_eq!(Wire::new(&together(&pieces), LAN).seen(), seen, "{mode}");
        assert_eq!((engine.stats().forwarded.get(), engine.stats().split.get()), (1, 1), "{mode}");
    }
}

#[test]
fn df_and_ipv6_are_never_cut() {
    let tables = narrowed(1300);
    let refused = Verdict::Reply(Some(DropReason::MtuExceeded));
    for port in [80, 81, 82, 90, 91, 92] {
        let mut engine = engines(1, 64).remove(0);
        let mut wire = Wire::new(&datagram(at(vip(false), port), 1372, 0x40), UPLINK);
        assert_eq!(wire.through(&mut engine, &tables, Tick(0)), refused, "{port}");
        assert_eq!(wire.split, None, "{port}");
        let to = at(vip(true), port);
        let (IpAddr::V6(src), IpAddr::V6(dst)) = (client(1, true).ip(), to.ip()) else { unreachable!() };
        let link = PacketBuilder::ethernet2([2, 0, 0, 0, 9, 9], [2, 0, 0, 0, 0, 1]);
        let mut bytes = Vec::new();
        let udp = link.ipv6(src.octets(), dst.octets(), 64).udp(7, port);
        udp.write(&mut bytes, &[7; 1372]).unwrap();
        let mut wire = Wire::new(&bytes, UPLINK);
        assert_eq!(wire.through(&mut engine, &tables, Tick(0)), refused, "{port}");
        assert_eq!((wire.split, engine.stats().split.get()), (None, 0), "{port}");
    }
}

#[test]
fn of_a_tunnel_the_outer_packet_is_cut() {
    let tables = tables();
    for special in SPECIAL.into_iter().filter(|special| special.mode.is_tunnel()) {
        let mut engine = engines(1, 64).remove(0);
        let sent = datagram(at(vip(false), special.port), 1472, 0);
        let mut wire = Wire::new(&sent, UPLINK);
        let verdict = wire.through(&mut engine, &tables, Tick(0));
        if special.across {
            // What is in IPv6 is not cut on the way.
            assert_eq!(verdict, Verdict::Reply(Some(DropReason::MtuExceeded)), "{special:?}");
            continue;
        }
        assert_eq!(verdict, Verdict::Tx(LAN), "{special:?}");
        let outer = parse(wire.bytes()).unwrap();
        let pieces = wire.departing();
        assert_eq!(pieces.len(), 2, "{special:?}");
        assert_eq!(lens(&pieces)[0], 1500, "{special:?}");
        let whole = together(&pieces);
        assert_eq!(usize::from(outer.end), whole.len(), "{special:?}");
        assert_eq!(whole[34..], wire.bytes()[34..], "{special:?}");
        assert!(whole.ends_with(&sent[34..]), "{special:?}");
    }
}

#[test]
fn a_checksum_that_its_sender_left_is_finished_before_the_packet_is_cut() {
    let mut tables = narrowed(1300);
    Arc::get_mut(&mut tables.net).unwrap().ports[0].partial_checksums = true;
    for port in [80, 81, 82, 90, 91, 92] {
        let mut engine = engines(1, 64).remove(0);
        let mut sent = datagram(at(vip(false), port), 1372, 0);
        let FlowKey { src, dst, .. } = parse(&sent).unwrap().key;
        leave_checksum(&mut sent);
        let mut wire = Wire::new(&sent, UPLINK);
        assert_eq!(wire.through(&mut engine, &tables, Tick(0)), Verdict::Tx(LAN), "{port}");
        assert_eq!(wire.checksum, Checksum::Complete, "{port}");
        let whole = together(&wire.departing());
        if port < 90 {
            Wire::new(&whole, LAN).seen(); // panics where the checksum is wrong
        } else {
            let inner = &whole[whole.len() - 1380..];
            let sum = Sum::pseudo_header(src, dst, UDP, 1380) + Sum::of(inner);
            assert!(sum.verifies(), "{port}: inside the tunnel");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn large_packets_are_handled_as_they_should_be(
        packets in proptest::collection::vec((0u8..4, any::<[u8; 5]>(), 1100u16..1800), 1..12),
        tables in any::<u8>(),
    ) {
        let mut steps = vec![15, tables];
        for (worker, choices, len) in packets {
            // From some client to a service, and so much data.
            steps.push(worker << 4);
            steps.extend(choices);
            steps.push(255);
            steps.extend(len.to_be_bytes());
        }
        model::check(&steps);
    }
}

#[test]
fn padding_is_no_part_of_any_piece() {
    let tables = narrowed(1300);
    let mut engine = engines(1, 64).remove(0);
    let small = [datagram(at(vip(false), 80), 100, 0), vec![0xee; 1300]].concat();
    let mut wire = Wire::new(&small, UPLINK);
    assert_eq!(wire.through(&mut engine, &tables, Tick(0)), Verdict::Tx(LAN));
    assert_eq!(wire.split, None, "the packet fits, whatever is behind it");
    let large = [datagram(at(vip(false), 80), 1372, 0), vec![0xee; 50]].concat();
    let mut wire = Wire::new(&large, UPLINK);
    assert_eq!(wire.through(&mut engine, &tables, Tick(0)), Verdict::Tx(LAN));
    assert_eq!(lens(&wire.departing()), [1300, 120]);
}
