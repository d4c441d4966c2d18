//! Two small TCPs with the engine between them, and a network that loses frames.

use std::collections::VecDeque;

use super::*;
use crate::flow::key::bits;
use crate::snapshot::{Options, Service, Services};
use crate::wire::checksum::{Sum, complete};
use crate::wire::tcp::Tcp;
use crate::wire::tcp_options::{self, Offer, Options as Written};
use crate::wire::view;

/// Bytes that each end can take in: more than a window without scale can say.
const WINDOW: u32 = 100_000;
/// Steps without progress after which an end sends again.
pub(super) const PATIENCE: u32 = 6;
/// Steps after which a frame that waits for a backend goes back for the last time.
const OVERDUE: u32 = 11;

/// The services of the fixture, with these options.
pub(super) fn with(options: Options) -> Snapshot {
    let mut tables = tables();
    let list = tables.services.iter().map(|service| Service { options, ..service.clone() });
    let services = Services::new(list.collect(), tables.services.pools().to_vec(), [vip(false), vip(true)]);
    tables.services = Arc::new(services);
    tables
}

/// A TCP segment, in host order.
#[derive(Clone, Debug)]
pub(super) struct Segment {
    pub(super) from: SocketAddr,
    pub(super) to: SocketAddr,
    pub(super) seq: u32,
    pub(super) ack: u32,
    pub(super) flags: u8,
    pub(super) window: u16,
    pub(super) offer: Offer,
    pub(super) sack: Option<(u32, u32)>,
    pub(super) told: Vec<u8>,
    pub(super) data: Vec<u8>,
}

impl Segment {
    pub(super) fn frame(&self) -> Vec<u8> {
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
    pub(super) fn read(frame: &[u8]) -> Self {
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
pub(super) struct Talent {
    pub(super) timestamps: bool,
    pub(super) sack: bool,
    pub(super) scale: Option<u8>,
}

/// One end of a connection: goes back to what was not acknowledged, and reports one block of what came too early.
#[derive(Debug)]
pub(super) struct End {
    pub(super) own: SocketAddr,
    pub(super) peer: SocketAddr,
    pub(super) is_client: bool,
    pub(super) talent: Talent,
    /// What both ends support; of the windows' scales the own one and the peer's.
    pub(super) agreed: Talent,
    pub(super) peer_scale: u8,
    pub(super) first: u32,
    pub(super) una: u32,
    pub(super) next: u32,
    pub(super) out: Vec<u8>,
    pub(super) peer_mss: usize,
    pub(super) peer_first: Option<u32>,
    pub(super) input: Vec<u8>,
    pub(super) early: Option<(usize, Vec<u8>)>,
    pub(super) clock: u32,
    pub(super) recent: u32,
    pub(super) idle: u32,
    pub(super) owes_ack: bool,
    pub(super) is_open: bool,
    /// Whether the segment that completes the handshake is still to be sent.
    pub(super) completes: bool,
    pub(super) told: Vec<Vec<u8>>,
}

impl End {
    pub(super) fn new(
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

    pub(super) fn segment(&self, flags: u8, seq: u32, data: &[u8]) -> Segment {
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
    pub(super) fn send(&mut self) -> Vec<Segment> {
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

    pub(super) fn offset(&self, number: u32) -> usize {
        number.wrapping_sub(self.first.wrapping_add(1)) as usize
    }

    pub(super) fn take(&mut self, segment: &Segment) {
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

    pub(super) fn receive(&mut self, segment: &Segment, at: u32) {
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

    pub(super) fn open(&mut self, segment: &Segment) {
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
pub(super) struct Path {
    pub(super) engine: Engine,
    pub(super) tables: Snapshot,
    pub(super) step: u32,
    pub(super) held: VecDeque<(u32, Vec<u8>)>,
    pub(super) random: u64,
    /// Of 16 frames, how many are lost.
    pub(super) loss: u64,
    /// Frames that were given up.
    pub(super) lost: u32,
}

impl Path {
    pub(super) fn new(options: Options, loss: u64, seed: u64) -> Self {
        let engine = engines(1, 64).remove(0);
        Self { engine, tables: with(options), step: 0, held: VecDeque::new(), random: seed, loss, lost: 0 }
    }

    pub(super) fn loses(&mut self) -> bool {
        self.random =
            self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.random >> 60 < self.loss
    }

    pub(super) fn through(&mut self, bytes: &[u8], port: PortId, overdue: bool) -> (Verdict, Vec<u8>) {
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
    pub(super) fn pass(&mut self, bytes: &[u8], port: PortId, overdue: bool, ends: &mut [End; 2]) {
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

    pub(super) fn arrive(&mut self, bytes: &[u8], end: &mut End) {
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

    pub(super) fn step(&mut self, ends: &mut [End; 2]) {
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
