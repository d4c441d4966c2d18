//! Connections through flows that Weir renumbers, with all options on and off.

use super::ends::{End, PATIENCE, Path, Segment, Talent, with};
use super::*;
use crate::flow::key::bits;
use crate::rewrite::identity;
use crate::snapshot::{Options, SynProxy};
use crate::wire::tcp_options::Offer;

/// One connection: who may what, and what is lost.
#[derive(Clone, Copy, Debug)]
struct Case {
    v6: bool,
    port: u16,
    options: Options,
    client: Talent,
    server: Talent,
    first: [u32; 2],
    loss: u64,
    seed: u64,
    speaks_first: bool,
}

fn data(len: usize, start: u8) -> Vec<u8> {
    (0..len).map(|n| (n as u8).wrapping_mul(31).wrapping_add(start)).collect()
}

/// Runs a connection to its end.
fn run(case: &Case) -> (Path, [End; 2], u32) {
    let service = at(vip(case.v6), case.port);
    let client = client(1, case.v6);
    let server = at(backend(1, case.v6), 8000 + case.port);
    // Where the last segment of a handshake is lost, somebody has to speak.
    let requests = if !case.speaks_first {
        6000
    } else if case.loss > 0 {
        10
    } else {
        0
    };
    let mut ends = [
        End::new(client, service, true, case.first[0], case.client, data(requests, 1)),
        End::new(server, client, false, case.first[1], case.server, data(9000, 7)),
    ];
    let mut path = Path::new(case.options, case.loss, case.seed);
    let header = identity::header(&FlowKey {
        src: bits(client.ip()).0,
        dst: bits(service.ip()).0,
        sport: client.port(),
        dport: service.port(),
        proto: TCP,
        v6: case.v6,
    });
    let mut want = if case.options.proxy_protocol { header.bytes().to_vec() } else { Vec::new() };
    want.extend(&ends[0].out);
    for step in 1..3000 {
        path.step(&mut ends);
        let is_done = ends[1].input.len() >= want.len() && ends[0].input.len() >= ends[1].out.len();
        if is_done {
            assert!(ends[1].input == want, "what the server got");
            assert!(ends[0].input == ends[1].out, "what the client got");
            return (path, ends, step);
        }
    }
    panic!("the connection stands still: {:?}", ends.map(|end| (end.input.len(), end.una, end.next)));
}

const ALL: Talent = Talent { timestamps: true, sack: true, scale: Some(7) };

fn usual(options: Options) -> Case {
    Case {
        v6: false,
        port: 80,
        options,
        client: ALL,
        server: ALL,
        first: [1000, 70_000],
        loss: 0,
        seed: 1,
        speaks_first: false,
    }
}

fn talents() -> impl Strategy<Value = Talent> {
    (any::<bool>(), any::<bool>(), proptest::option::of(0u8..=14))
        .prop_map(|(timestamps, sack, scale)| Talent { timestamps, sack, scale })
}

fn cases() -> impl Strategy<Value = Case> {
    let options = (any::<bool>(), any::<bool>(), any::<bool>(), proptest::option::of(Just(1400u16)));
    let options = options.prop_map(|(cookies, proxy_protocol, toa, mss)| Options {
        syn_proxy: if cookies { SynProxy::Always } else { SynProxy::Off },
        proxy_protocol,
        toa,
        mss,
        ..Options::default()
    });
    let numbers = prop_oneof![any::<u32>(), u32::MAX - 3000..=u32::MAX];
    (
        (any::<bool>(), prop::sample::select(vec![80u16, 81]), options),
        (talents(), talents(), [numbers.clone(), numbers]),
        (0u64..5, any::<u64>(), any::<bool>()),
    )
        .prop_map(|((v6, port, options), (client, server, first), (loss, seed, speaks_first))| Case {
            v6,
            port,
            options,
            client,
            // A backend that has no timestamps, or no SACK, cannot be known before it is asked.
            server: if options.syn_proxy == SynProxy::Always {
                Talent { timestamps: client.timestamps, sack: client.sack, ..server }
            } else {
                server
            },
            first,
            loss,
            seed,
            speaks_first,
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    #[test]
    fn whatever_is_lost_both_ends_get_what_was_sent(case in cases()) {
        run(&case);
    }
}

#[test]
fn without_loss_a_proxied_connection_needs_no_retransmission() {
    for v6 in [false, true] {
        for port in [80, 81] {
            for proxy_protocol in [false, true] {
                for speaks_first in [false, true] {
                    let options = Options {
                        syn_proxy: SynProxy::Always,
                        proxy_protocol,
                        toa: true,
                        ..Options::default()
                    };
                    let (path, ends, steps) = run(&Case { v6, port, speaks_first, ..usual(options) });
                    assert!(steps < PATIENCE, "{steps} steps: {v6} {port} {proxy_protocol} {speaks_first}");
                    let stats = path.engine.stats();
                    assert_eq!((stats.cookies_sent.get(), stats.cookies_accepted.get()), (1, 1));
                    assert_eq!(path.lost, 0);
                    let want = identity::option(&FlowKey {
                        src: bits(ends[0].own.ip()).0,
                        sport: ends[0].own.port(),
                        v6,
                        ..FlowKey::default()
                    });
                    assert_eq!(ends[1].told[0], want.bytes()[2..], "the SYN tells of the client");
                    assert!(ends[1].told.len() >= 2, "and so does the end of the handshake");
                }
            }
        }
    }
}

#[test]
fn only_the_first_segments_of_a_flow_tell_of_the_client_and_then_it_is_a_plain_one() {
    let (path, ends, _) = run(&usual(Options { toa: true, ..Options::default() }));
    assert!((2..=4).contains(&ends[1].told.len()), "{} segments", ends[1].told.len());
    let flows = &path.engine.core.flows;
    assert!(flows.entry(0).is_some_and(|entry| entry.is_plain()));
    let (path, ..) = run(&usual(Options { proxy_protocol: true, ..Options::default() }));
    assert!(path.engine.core.flows.entry(0).is_some_and(|entry| !entry.is_plain()));
}

#[test]
fn a_flood_of_syns_leaves_nothing_behind() {
    let options = Options { syn_proxy: SynProxy::Always, ..Options::default() };
    let mut path = Path::new(options, 0, 1);
    for number in 0..1000u32 {
        let from = SocketAddr::new(Ipv4Addr::from(0xac10_0000 + number).into(), 40_000);
        let syn = packet(TCP, SYN, from, at(vip(false), 80), 64);
        let (verdict, sent) = path.through(&syn, UPLINK, false);
        assert_eq!(verdict, Verdict::Reply(None));
        let answer = Segment::read(&sent);
        assert_eq!((answer.flags, answer.to, answer.ack), (SYN | ACK, from, 1001));
        assert_eq!(answer.offer.mss, Some(1460));
    }
    assert_eq!(path.engine.flows(), 0);
    assert_eq!(path.engine.stats().cookies_sent.get(), 1000);
}

#[test]
fn cookies_are_used_above_the_watermark_and_honoured_below() {
    let options = Options { syn_proxy: SynProxy::Above(4), ..Options::default() };
    let mut path = Path::new(options, 0, 1);
    let syn = |number: u32| {
        let from = SocketAddr::new(Ipv4Addr::from(0xac10_0000 + number).into(), 40_000);
        packet(TCP, SYN, from, at(vip(false), 80), 64)
    };
    for number in 0..5 {
        assert_eq!(path.through(&syn(number), UPLINK, false).0, Verdict::Tx(LAN));
    }
    let (verdict, sent) = path.through(&syn(9), UPLINK, false);
    assert_eq!(verdict, Verdict::Reply(None), "five flows are half-open");
    let answer = Segment::read(&sent);
    // The half-open ones end, and the client completes.
    path.step = 700;
    path.engine.sweep(Tick(path.step), &path.tables);
    assert_eq!(path.engine.flows(), 0);
    let ack = Segment {
        from: answer.to,
        to: answer.from,
        seq: answer.ack,
        ack: answer.seq.wrapping_add(1),
        flags: ACK,
        offer: Offer::default(),
        ..answer
    };
    assert_eq!(path.through(&ack.frame(), UPLINK, false).0, Verdict::Tx(LAN));
}

/// A client's end of a handshake with Weir: the segment that completes it.
fn completed(path: &mut Path, v6: bool) -> Segment {
    let (from, to) = (client(1, v6), at(vip(v6), 80));
    let end = End::new(from, to, true, 1000, ALL, Vec::new());
    let (verdict, sent) = path.through(&end.segment(SYN, 1000, &[]).frame(), UPLINK, false);
    assert_eq!(verdict, Verdict::Reply(None));
    let answer = Segment::read(&sent);
    let timestamps = answer.offer.timestamps.map(|(theirs, own)| (own + 1, theirs));
    let offer = Offer { timestamps, ..Offer::default() };
    Segment { from, to, seq: 1001, ack: answer.seq.wrapping_add(1), flags: ACK, offer, ..answer }
}

#[test]
fn what_repeats_no_cookie_is_reset_and_counted() {
    let options = Options { syn_proxy: SynProxy::Always, ..Options::default() };
    for v6 in [false, true] {
        let mut path = Path::new(options, 0, 1);
        let right = completed(&mut path, v6);
        for (name, wrong) in [
            ("another number", Segment { ack: right.ack.wrapping_add(1 << 20), ..right.clone() }),
            ("another first number", Segment { seq: right.seq.wrapping_add(1 << 20), ..right.clone() }),
            ("another client", Segment { from: client(2, v6), ..right.clone() }),
            ("another service", Segment { to: at(vip(v6), 81), ..right.clone() }),
        ] {
            let (verdict, sent) = path.through(&wrong.frame(), UPLINK, false);
            assert_eq!(verdict, Verdict::Reply(Some(DropReason::BadCookie)), "{name}");
            assert_eq!(Segment::read(&sent).flags & RST, RST, "{name}");
        }
        let later = Segment { seq: right.seq.wrapping_add(1448), data: vec![1; 1448], ..right.clone() };
        let verdict = path.through(&later.frame(), UPLINK, false).0;
        assert_eq!(verdict, Verdict::Drop(DropReason::BadCookie), "the one before it was lost");
        assert_eq!(path.engine.flows(), 0);
        path.step = 1199;
        assert_eq!(path.through(&right.frame(), UPLINK, false).0, Verdict::Tx(LAN), "within the next minute");
        let mut path = Path::new(options, 0, 1);
        let late = completed(&mut path, v6);
        path.step = 1200;
        let refused = Verdict::Reply(Some(DropReason::BadCookie));
        assert_eq!(path.through(&late.frame(), UPLINK, false).0, refused, "two minutes later");
    }
}

/// The frame with its checksum left to the interface, as a local sender leaves it.
fn unfinished(segment: &Segment) -> Vec<u8> {
    let mut bytes = segment.frame();
    leave_checksum(&mut bytes);
    bytes
}

#[test]
fn a_backend_that_refuses_resets_the_client() {
    let whole = |segment: &Segment| segment.frame();
    for (name, made) in [("whole", whole as fn(&Segment) -> Vec<u8>), ("unfinished checksum", unfinished)] {
        let mut path = Path::new(Options { syn_proxy: SynProxy::Always, ..Options::default() }, 0, 1);
        let right = completed(&mut path, false);
        let (verdict, sent) = path.through(&right.frame(), UPLINK, false);
        assert_eq!(verdict, Verdict::Tx(LAN));
        let syn = Segment::read(&sent);
        assert_eq!((syn.flags, syn.seq), (SYN, 1000));
        assert_eq!((syn.offer.mss, syn.offer.scale, syn.offer.sack), (Some(1460), Some(7), true));
        let reset = Segment {
            from: syn.to,
            to: syn.from,
            seq: 0,
            ack: 1001,
            flags: RST | ACK,
            offer: Offer::default(),
            ..syn
        };
        let (verdict, sent) = path.through(&made(&reset), LAN, false);
        assert_eq!(verdict, Verdict::Tx(UPLINK), "{name}");
        let seen = Segment::read(&sent);
        assert_eq!(
            (seen.flags & RST, seen.seq),
            (RST, right.ack),
            "{name}: the number that the client expects"
        );
    }
}

#[test]
fn a_silent_backend_is_asked_again_and_what_waits_is_given_up_in_time() {
    let mut path = Path::new(Options { syn_proxy: SynProxy::Always, ..Options::default() }, 0, 1);
    let right = completed(&mut path, false);
    assert_eq!(path.through(&right.frame(), UPLINK, false).0, Verdict::Tx(LAN));
    let data = Segment { data: vec![1; 100], ..right };
    for (port, bytes) in [(UPLINK, data.frame()), (LAN, unfinished(&data))] {
        let (verdict, same) = path.through(&bytes, port, false);
        assert_eq!((verdict, same), (Verdict::Unanswered, bytes));
    }
    path.step = 11;
    path.engine.sweep(Tick(11), &path.tables);
    let (verdict, again) = path.through(&data.frame(), UPLINK, true);
    assert_eq!((verdict, Segment::read(&again).flags), (Verdict::Tx(LAN), SYN), "a second SYN in its place");
    let given_up = Verdict::Drop(DropReason::BackendSilent);
    assert_eq!(path.through(&data.frame(), UPLINK, true).0, given_up);
}

#[test]
fn datagrams_carry_the_header_each() {
    let tables = with(Options { proxy_protocol: true, ..Options::default() });
    for v6 in [false, true] {
        let mut engine = engines(1, 8).remove(0);
        let (from, to) = (client(1, v6), at(vip(v6), 81));
        for behind in [0, 0, 3] {
            let mut sent = packet(UDP, 0, from, to, 64);
            let packet::Packet { key, l4, end, .. } = packet::parse(&sent).unwrap();
            let sum = |bytes: &[u8], key: &FlowKey, l4: u16, len: u16| {
                let covered = &bytes[usize::from(l4)..usize::from(l4 + len)];
                Sum::pseudo_header(key.src, key.dst, UDP, len) + Sum::of(covered)
            };
            let (at, len) = (usize::from(l4), end - l4 - behind);
            sent[at + 4..at + 8].fill(0);
            sent[at + 4..at + 6].copy_from_slice(&len.to_be_bytes());
            let checksum = sum(&sent, &key, l4, len).udp_checksum();
            sent[at + 6..at + 8].copy_from_slice(&checksum.to_be_bytes());
            let mut wire = Wire::new(&sent, UPLINK);
            assert_eq!(wire.through(&mut engine, &tables, Tick(0)), Verdict::Tx(LAN));
            let packet = packet::parse(wire.bytes()).unwrap();
            let datagram = &wire.bytes()[packet.l4.into()..packet.end.into()];
            assert_eq!(datagram[8..], [identity::header(&key).bytes(), b"eleven byte"].concat());
            let len = u16::from_be_bytes([datagram[4], datagram[5]]);
            assert_eq!(len, packet.end - packet.l4 - behind, "what is behind the datagram's end stays there");
            assert!(sum(wire.bytes(), &packet.key, packet.l4, len).verifies(), "checksum");
        }
        let large = Segment {
            from,
            to,
            seq: 0,
            ack: 0,
            flags: 0,
            window: 0,
            offer: Offer::default(),
            sack: None,
            told: Vec::new(),
            data: vec![0; 1450],
        };
        // A datagram of the same size as this segment: as long as it is right behind its own header only.
        let mut bytes = large.frame();
        let l4 = if v6 { 54 } else { 34 };
        let len = (bytes.len() - l4) as u16;
        let checksum_at = if v6 { 20 } else { 23 };
        bytes[checksum_at] = UDP;
        bytes[l4 + 4..l4 + 6].copy_from_slice(&len.to_be_bytes());
        bytes[l4 + 6..l4 + 8].fill(0);
        if v6 {
            let sum =
                Sum::pseudo_header(bits(from.ip()).0, bits(to.ip()).0, UDP, len) + Sum::of(&bytes[l4..]);
            bytes[l4 + 6..l4 + 8].copy_from_slice(&sum.udp_checksum().to_be_bytes());
        } else {
            bytes[24..26].fill(0);
            let checksum = Sum::of(&bytes[14..34]).checksum();
            bytes[24..26].copy_from_slice(&checksum.to_be_bytes());
        }
        let mut wire = Wire::new(&bytes, UPLINK);
        let verdict = wire.through(&mut engine, &tables, Tick(0));
        assert_eq!(verdict, Verdict::Reply(Some(DropReason::MtuExceeded)), "too large with the header");
    }
}

/// "Fragmentation needed" about the IPv4 packet in `frame`, to who seemed to have sent it, quoting `len` bytes of it.
fn fragmentation_needed(frame: &[u8], mtu: u16, len: usize) -> Vec<u8> {
    let quote = &frame[14..frame.len().min(14 + len)];
    let mut message = [&[3, 4, 0, 0, 0, 0][..], &mtu.to_be_bytes(), quote].concat();
    let checksum = Sum::of(&message).checksum();
    message[2..4].copy_from_slice(&checksum.to_be_bytes());
    let total = 20 + message.len() as u16;
    let mut header =
        [&[0x45, 0][..], &total.to_be_bytes(), &[0, 1, 0, 0, 64, 1, 0, 0, 10, 1, 0, 254]].concat();
    header.extend(&quote[12..16]);
    let checksum = Sum::of(&header).checksum();
    header[10..12].copy_from_slice(&checksum.to_be_bytes());
    [&[2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 9, 9, 8, 0][..], &header, &message].concat()
}

#[test]
fn errors_quote_the_number_that_their_receiver_sent() {
    for (port, quoted) in [(80, 28), (81, 28), (80, 60), (81, 60)] {
        let options = Options { syn_proxy: SynProxy::Always, proxy_protocol: true, ..Options::default() };
        let (mut path, ends, _) = run(&Case { port, ..usual(options) });
        for (end, port, back) in [(&ends[0], UPLINK, LAN), (&ends[1], LAN, UPLINK)] {
            let segment = end.segment(ACK, end.next, &[7; 100]);
            let (verdict, sent) = path.through(&segment.frame(), port, false);
            assert_eq!(verdict, Verdict::Tx(back));
            assert_ne!(Segment::read(&sent).seq, segment.seq, "renumbered");
            let error = fragmentation_needed(&sent, 1400, quoted);
            let (verdict, told) = path.through(&error, back, false);
            assert_eq!(verdict, Verdict::Tx(port));
            let l4 = usize::from(packet::parse(&told).unwrap().l4);
            let number = u32::from_be_bytes(told[l4 + 8 + 24..l4 + 8 + 28].try_into().unwrap());
            assert_eq!(number, segment.seq, "{quoted} bytes quoted");
            let mtu = u16::from_be_bytes([told[l4 + 6], told[l4 + 7]]);
            let header = if end.is_client { 28 } else { 0 };
            assert_eq!(mtu, 1400 - header, "room for what is added on the way");
        }
    }
}
