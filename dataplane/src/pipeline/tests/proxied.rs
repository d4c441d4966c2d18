//! Connections through flows that Weir renumbers: two small TCPs over a lossy network, with all options on and off.

use std::collections::VecDeque;

use super::*;
use crate::flow::key::bits;

use crate::rewrite::identity;
use crate::snapshot::{Options, Service, Services, SynProxy};
use crate::wire::checksum::{Sum, complete};
use crate::wire::tcp::Tcp;
use crate::wire::tcp_options::{self, Offer, Options as Written};
use crate::wire::view;

/// Bytes that each end can take in: more than a window without scale can say.
const WINDOW: u32 = 100_000;
/// Steps without progress after which an end sends again.
const PATIENCE: u32 = 6;
/// Steps after which a frame that waits for a backend goes back for the last time.
const OVERDUE: u32 = 11;

/// The services of the fixture, with these options.
fn with(options: Options) -> Snapshot {
    let mut tables = tables();
    let list = tables.services.iter().map(|service| Service { options, ..service.clone() });
    let services = Services::new(list.collect(), tables.services.pools().to_vec(), [vip(false), vip(true)]);
    tables.services = Arc::new(services);
    tables
}

/// A TCP segment, in host order.
#[derive(Clone, Debug)]
struct Segment {
    from: SocketAddr,
    to: SocketAddr,
    seq: u32,
    ack: u32,
    flags: u8,
    window: u16,
    offer: Offer,
    sack: Option<(u32, u32)>,
    told: Vec<u8>,
    data: Vec<u8>,
}

impl Segment {
    fn frame(&self) -> Vec<u8> {
        let mut options = Written::default();
        self.offer.write(&mut options);
        if let Some((left, right)) = self.sack {
            options.add(&[1, 1, tcp_options::SACK, 10]);
            options.add(&left.to_be_bytes());
            options.add(&right.to_be_bytes());
        }
        let (src, v6) = bits(self.from.ip());
        let (dst, _) = bits(self.to.ip());
        let mut segment = Vec::new();
        segment.extend(self.from.port().to_be_bytes());
        segment.extend(self.to.port().to_be_bytes());
        segment.extend(self.seq.to_be_bytes());
        segment.extend(self.ack.to_be_bytes());
        segment.extend([(5 + options.bytes().len() as u8 / 4) << 4, self.flags]);
        segment.extend(self.window.to_be_bytes());
        segment.extend([0; 4]);
        segment.extend(options.bytes());
        segment.extend(&self.data);
        let len = segment.len() as u16;
        let checksum = (Sum::pseudo_header(src, dst, TCP, len) + Sum::of(&segment)).checksum();
        segment[16..18].copy_from_slice(&checksum.to_be_bytes());
        let mut bytes = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 9, 9];
        if v6 {
            bytes.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            bytes.extend(len.to_be_bytes());
            bytes.extend([TCP, 64]);
            bytes.extend([src.to_be_bytes(), dst.to_be_bytes()].concat());
        } else {
            let mut header = vec![0x45, 0];
            header.extend((20 + len).to_be_bytes());
            header.extend([0, 7, 0x40, 0, 64, TCP, 0, 0]);
            header.extend([&src.to_be_bytes()[12..], &dst.to_be_bytes()[12..]].concat());
            let checksum = Sum::of(&header).checksum();
            header[10..12].copy_from_slice(&checksum.to_be_bytes());
            bytes.extend([0x08, 0x00]);
            bytes.extend(header);
        }
        bytes.extend(segment);
        bytes
    }

    /// What a frame carries, all of whose checksums are right.
    fn read(frame: &[u8]) -> Self {
        let packet = packet::parse(frame).expect("it can be parsed");
        let segment = &frame[packet.l4.into()..packet.end.into()];
        let pseudo = Sum::pseudo_header(packet.key.src, packet.key.dst, TCP, segment.len() as u16);
        assert!((pseudo + Sum::of(segment)).verifies(), "TCP checksum");
        let tcp: &Tcp = view(segment, 0).unwrap();
        let mut options = segment[Tcp::LEN..tcp.header_len()].to_vec();
        let (mut sack, mut told) = (None, Vec::new());
        tcp_options::each(&mut options, |kind, value| match kind {
            tcp_options::SACK => {
                let edge = |at: usize| u32::from_be_bytes(value[at..at + 4].try_into().unwrap());
                sack = Some((edge(0), edge(4)));
            }
            254 => told = value.to_vec(),
            _ => {}
        });
        Self {
            from: SocketAddr::new(packet.key.source(), packet.key.sport),
            to: SocketAddr::new(packet.key.destination(), packet.key.dport),
            seq: tcp.sequence.get(),
            ack: tcp.acknowledgement.get(),
            flags: tcp.flags,
            window: tcp.window.get(),
            offer: Offer::read(&mut options),
            sack,
            told,
            data: segment[tcp.header_len()..].to_vec(),
        }
    }
}

/// What an end supports.
#[derive(Clone, Copy, Debug)]
struct Talent {
    timestamps: bool,
    sack: bool,
    scale: Option<u8>,
}

/// One end of a connection: goes back to what was not acknowledged, and reports one block of what came too early.
#[derive(Debug)]
struct End {
    own: SocketAddr,
    peer: SocketAddr,
    is_client: bool,
    talent: Talent,
    /// What both ends support; of the windows' scales the own one and the peer's.
    agreed: Talent,
    peer_scale: u8,
    first: u32,
    una: u32,
    next: u32,
    out: Vec<u8>,
    peer_mss: usize,
    peer_first: Option<u32>,
    input: Vec<u8>,
    early: Option<(usize, Vec<u8>)>,
    clock: u32,
    recent: u32,
    idle: u32,
    owes_ack: bool,
    is_open: bool,
    /// Whether the segment that completes the handshake is still to be sent.
    completes: bool,
    told: Vec<Vec<u8>>,
}

impl End {
    fn new(
        own: SocketAddr,
        peer: SocketAddr,
        is_client: bool,
        first: u32,
        talent: Talent,
        out: Vec<u8>,
    ) -> Self {
        Self {
            own,
            peer,
            is_client,
            talent,
            agreed: talent,
            peer_scale: 0,
            first,
            una: first,
            next: first,
            out,
            peer_mss: 536,
            peer_first: None,
            input: Vec::new(),
            early: None,
            clock: first ^ 0x5555,
            recent: 0,
            idle: PATIENCE,
            owes_ack: false,
            is_open: false,
            completes: true,
            told: Vec::new(),
        }
    }

    fn segment(&self, flags: u8, seq: u32, data: &[u8]) -> Segment {
        let is_syn = flags & SYN != 0;
        let timestamps = self.agreed.timestamps.then_some((self.clock, self.recent));
        let offer = Offer {
            mss: is_syn.then_some(if self.own.is_ipv6() { 1440 } else { 1460 }),
            scale: self.agreed.scale.filter(|_| is_syn),
            sack: self.agreed.sack && is_syn,
            timestamps,
        };
        let scale = if is_syn { 0 } else { self.agreed.scale.unwrap_or(0) };
        let early = self.early.as_ref().filter(|_| self.agreed.sack && !is_syn);
        let base = self.peer_first.unwrap_or_default();
        Segment {
            from: self.own,
            to: self.peer,
            seq,
            ack: if flags & ACK != 0 { base.wrapping_add(1 + self.input.len() as u32) } else { 0 },
            flags,
            window: (WINDOW >> scale).min(0xffff) as u16,
            offer,
            sack: early.map(|(at, data)| {
                let left = base.wrapping_add(1 + *at as u32);
                (left, left.wrapping_add(data.len() as u32))
            }),
            told: Vec::new(),
            data: data.to_vec(),
        }
    }

    /// What it sends in this step.
    fn send(&mut self) -> Vec<Segment> {
        self.clock = self.clock.wrapping_add(100);
        self.idle += 1;
        let mut sent = Vec::new();
        if self.idle > PATIENCE {
            self.idle = 0;
            self.next = self.una;
            if self.una == self.first && (self.is_client || self.peer_first.is_some()) {
                let flags = if self.is_client { SYN } else { SYN | ACK };
                sent.push(self.segment(flags, self.first, &[]));
            }
        }
        if self.is_client && self.is_open && std::mem::take(&mut self.completes) {
            sent.push(self.segment(ACK, self.next, &[]));
        }
        while self.is_open && self.una != self.first {
            let (una, at) = (self.offset(self.una), self.offset(self.next));
            let rest = &self.out[at..];
            if rest.is_empty() || at - una >= 4 * self.peer_mss {
                break;
            }
            let room = if self.agreed.timestamps { self.peer_mss - 12 } else { self.peer_mss };
            let data =
                &rest[..rest.len().min(room.saturating_sub(if self.early.is_some() { 12 } else { 0 }))];
            let segment = self.segment(ACK, self.next, data);
            self.next = self.next.wrapping_add(data.len() as u32);
            self.owes_ack = false;
            sent.push(segment);
        }
        if std::mem::take(&mut self.owes_ack) {
            sent.push(self.segment(ACK, self.next, &[]));
        }
        sent
    }

    fn offset(&self, number: u32) -> usize {
        number.wrapping_sub(self.first.wrapping_add(1)) as usize
    }

    fn take(&mut self, segment: &Segment) {
        assert_eq!((segment.to, segment.flags & RST), (self.own, 0), "for the other: {segment:?}");
        if self.is_client {
            assert_eq!(segment.from, self.peer);
        }
        if !segment.told.is_empty() {
            self.told.push(segment.told.clone());
        }
        if segment.flags & SYN != 0 {
            return self.open(segment);
        }
        let Some(peer_first) = self.peer_first else { return };
        assert_eq!(segment.offer.timestamps.is_some(), self.agreed.timestamps, "timestamps: {segment:?}");
        if let Some((theirs, own)) = segment.offer.timestamps {
            assert!(
                self.clock.wrapping_sub(own) < 1 << 20,
                "a timestamp that was never sent: {own} at {}",
                self.clock
            );
            if theirs.wrapping_sub(self.recent) < 1 << 31 {
                self.recent = theirs;
            }
            assert!(self.recent.wrapping_sub(theirs) < 1 << 20, "their clock jumps");
        }
        let window = u32::from(segment.window) << self.peer_scale;
        assert!(window <= WINDOW && window + 127 >= WINDOW.min(0xffff), "window {window}");
        let acked = segment.ack.wrapping_sub(self.una);
        assert!(acked < 1 << 31 || self.una.wrapping_sub(segment.ack) < 1 << 20, "an old number");
        let sent = self.first.wrapping_add(1 + self.out.len() as u32);
        assert!(sent.wrapping_sub(segment.ack) < 1 << 31, "acknowledges what was never sent");
        if acked > 0 && acked < 1 << 31 {
            self.una = segment.ack;
            self.idle = 0;
            if self.next.wrapping_sub(self.una) > 1 << 31 {
                self.next = self.una;
            }
        }
        self.is_open = self.una != self.first;
        if let Some((left, right)) = segment.sack {
            let [left, right] =
                [left, right].map(|edge| edge.wrapping_sub(self.first.wrapping_add(1)) as usize);
            assert!(left < right && right <= self.out.len(), "a block of nothing: {left}..{right}");
        }
        self.receive(segment, segment.seq.wrapping_sub(peer_first.wrapping_add(1)));
    }

    fn receive(&mut self, segment: &Segment, at: u32) {
        if segment.data.is_empty() {
            return;
        }
        self.owes_ack = true;
        let (at, have) = (at as i32 as i64, self.input.len() as i64);
        if at <= have {
            let known = (have - at) as usize;
            self.input.extend(segment.data.iter().skip(known));
            let early = self.early.take();
            if let Some((start, data)) = early {
                let known = self.input.len().checked_sub(start);
                match known {
                    Some(known) => self.input.extend(data.iter().skip(known)),
                    None => self.early = Some((start, data)),
                }
            }
        } else if self.early.is_none() {
            self.early = Some((at as usize, segment.data.clone()));
        }
    }

    fn open(&mut self, segment: &Segment) {
        let is_answer = segment.flags & ACK != 0;
        assert_eq!(is_answer, self.is_client);
        self.owes_ack = self.is_client;
        if self.peer_first.is_some() {
            assert_eq!(self.peer_first, Some(segment.seq), "another first number");
            self.idle = PATIENCE;
            return;
        }
        self.peer_first = Some(segment.seq);
        let theirs = segment.offer;
        self.peer_mss = theirs.mss.map_or(536, usize::from);
        self.agreed = Talent {
            timestamps: self.talent.timestamps && theirs.timestamps.is_some(),
            sack: self.talent.sack && theirs.sack,
            scale: self.talent.scale.filter(|_| theirs.scale.is_some()),
        };
        self.peer_scale = theirs.scale.filter(|_| self.talent.scale.is_some()).unwrap_or(0);
        if let Some((clock, _)) = theirs.timestamps.filter(|_| self.agreed.timestamps) {
            self.recent = clock;
        }
        if self.is_client {
            assert_eq!(segment.ack, self.first.wrapping_add(1));
            (self.una, self.next) = (segment.ack, segment.ack);
            self.is_open = true;
        }
        self.idle = if self.is_client { 0 } else { PATIENCE };
    }
}

/// The engine between two ends, and frames that wait.
struct Path {
    engine: Engine,
    tables: Snapshot,
    step: u32,
    held: VecDeque<(u32, Vec<u8>)>,
    random: u64,
    /// Of 16 frames, how many are lost.
    loss: u64,
    /// Frames that were given up.
    lost: u32,
}

impl Path {
    fn new(options: Options, loss: u64, seed: u64) -> Self {
        let engine = engines(1, 64).remove(0);
        Self { engine, tables: with(options), step: 0, held: VecDeque::new(), random: seed, loss, lost: 0 }
    }

    fn loses(&mut self) -> bool {
        self.random =
            self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.random >> 60 < self.loss
    }

    fn through(&mut self, bytes: &[u8], port: PortId, overdue: bool) -> (Verdict, Vec<u8>) {
        let mut chunk = [vec![0; MIN_HEADROOM], bytes.to_vec(), vec![0; 300]].concat();
        let mut frame = Frame::new(&mut chunk, MIN_HEADROOM, bytes.len(), port).unwrap();
        frame.overdue = overdue;
        let mut verdict = [Verdict::Kernel];
        self.engine.process(std::slice::from_mut(&mut frame), &mut verdict, Tick(self.step), &self.tables);
        let mut bytes = frame.bytes().to_vec();
        // Of complete checksums one in 65,536 looks partial; the interface computes it anew.
        if let Checksum::Partial { start, offset } = frame.checksum {
            assert!(complete(&mut bytes[start.into()..], offset.into()));
        }
        (verdict[0], bytes)
    }

    /// Gives a frame to the engine, and what it sends to whom it is for.
    fn pass(&mut self, bytes: &[u8], port: PortId, overdue: bool, ends: &mut [End; 2]) {
        let known = self.engine.backends_answered();
        let (verdict, sent) = self.through(bytes, port, overdue);
        match verdict {
            Verdict::Tx(LAN) => self.arrive(&sent, &mut ends[1]),
            Verdict::Tx(_) => self.arrive(&sent, &mut ends[0]),
            Verdict::Reply(None) => self.arrive(&sent, &mut ends[usize::from(port == LAN)]),
            Verdict::Unanswered => {
                assert_eq!(sent, bytes, "changed");
                self.held.push_back((self.step, bytes.to_vec()));
            }
            Verdict::Drop(DropReason::BackendSilent | DropReason::BadCookie) => self.lost += 1,
            other => panic!("{other:?} for {:?}", Segment { data: Vec::new(), ..Segment::read(bytes) }),
        }
        if self.engine.backends_answered() != known {
            for (_, bytes) in std::mem::take(&mut self.held) {
                self.pass(&bytes, UPLINK, false, ends);
            }
        }
    }

    fn arrive(&mut self, bytes: &[u8], end: &mut End) {
        let packet = packet::parse(bytes).unwrap();
        assert!(packet.end - packet.l3 <= 1500, "larger than the link");
        let segment = Segment::read(bytes);
        if !end.is_client && end.peer != segment.from {
            end.peer = segment.from;
        }
        if !self.loses() {
            end.take(&segment);
        }
    }

    fn step(&mut self, ends: &mut [End; 2]) {
        self.step += 1;
        self.engine.sweep(Tick(self.step), &self.tables);
        while self.held.front().is_some_and(|(since, _)| self.step - since >= OVERDUE) {
            let (_, bytes) = self.held.pop_front().unwrap();
            self.pass(&bytes, UPLINK, true, ends);
        }
        for (number, port) in [(0, UPLINK), (1, LAN)] {
            for segment in ends[number].send() {
                if !self.loses() {
                    self.pass(&segment.frame(), port, false, ends);
                }
            }
        }
    }
}

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

#[test]
fn a_backend_that_refuses_resets_the_client() {
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
    let (verdict, sent) = path.through(&reset.frame(), LAN, false);
    assert_eq!(verdict, Verdict::Tx(UPLINK));
    let seen = Segment::read(&sent);
    assert_eq!((seen.flags & RST, seen.seq), (RST, right.ack), "the number that the client expects");
}

#[test]
fn a_silent_backend_is_asked_again_and_what_waits_is_given_up_in_time() {
    let mut path = Path::new(Options { syn_proxy: SynProxy::Always, ..Options::default() }, 0, 1);
    let right = completed(&mut path, false);
    assert_eq!(path.through(&right.frame(), UPLINK, false).0, Verdict::Tx(LAN));
    let data = Segment { data: vec![1; 100], ..right };
    let (verdict, same) = path.through(&data.frame(), UPLINK, false);
    assert_eq!((verdict, same), (Verdict::Unanswered, data.frame()));
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
        for _ in 0..2 {
            let sent = packet(UDP, 0, from, to, 64);
            let mut wire = Wire::new(&sent, UPLINK);
            assert_eq!(wire.through(&mut engine, &tables, Tick(0)), Verdict::Tx(LAN));
            wire.seen();
            let packet = packet::parse(wire.bytes()).unwrap();
            let payload = &wire.bytes()[usize::from(packet.l4) + 8..packet.end.into()];
            let key = packet::parse(&sent).unwrap().key;
            assert_eq!(payload, [identity::header(&key).bytes(), b"eleven byte"].concat());
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
