//! Packets in pieces through the engines of two workers: any packets, cut anywhere, in any order, at either worker, some of
//! the bytes changed, with time passing in between.
//!
//! What one engine says, this does: hands over, keeps what is early and tries it again. Every piece comes to one end;
//! the pieces of a packet that were all sent are put together again, and its checksum has to hold.

use std::collections::HashSet;
use std::sync::LazyLock;

use super::draft::{Field, Outer};
use super::judge::verifies;
use super::steps::Input;
use crate::flow::fragments::room;
use crate::flow::key::{FlowKey, TCP, UDP, bits};
use crate::frame::{Frame, MIN_HEADROOM};
use crate::ids::PortId;
use crate::packet::{Kind, fragment_key, parse};
use crate::pipeline::Engine;
use crate::pipeline::fixture::{GUE_PORT, LAN, MACS, UPLINK, engines, tables, vip};
use crate::snapshot::Snapshot;
use crate::time::{TICKS_PER_SECOND, Tick};
use crate::verdict::{DropReason, Verdict};
use crate::wire::checksum::Sum;
use crate::wire::tcp::{ACK, SYN};

/// Flows of a worker.
const FLOW_LIMIT: usize = 12;
/// Pieces that a worker keeps at most.
const PATIENT: usize = 64;
/// Packets that steps can refer to.
const MEMORY: usize = 8;
/// Services: every mode, backends of the other family, one that has no backend, and none at all.
const PORTS: [u16; 12] = [80, 81, 82, 83, 84, 90, 91, 92, 93, 94, 96, 97];

/// Made once: it costs more than many steps.
static TABLES: LazyLock<Snapshot> = LazyLock::new(tables);

/// Carries out the steps that `bytes` spell.
///
/// # Panics
/// Where something does not hold.
pub fn check(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let mut world = World::new();
    while !input.is_empty() {
        world.step(&mut input);
    }
    world.end();
}

/// Cuts an IP packet, in an untagged frame without IP options, into fragments with at most `most` bytes of data, a
/// multiple of 8.
pub(in crate::pipeline) fn cut(frame: &[u8], id: u32, most: usize) -> Vec<Vec<u8>> {
    let v6 = frame[12..14] == [0x86, 0xdd];
    let (head, data) = frame.split_at(if v6 { 54 } else { 34 });
    let short = |len: usize| u16::try_from(len).expect("a frame is shorter").to_be_bytes();
    let [.., high_id, low_id] = id.to_be_bytes();
    let mut offset = 0;
    let fragment = |piece: &[u8]| {
        let more = offset + piece.len() < data.len();
        let units = u16::try_from(offset / 8).expect("a packet is shorter");
        offset += piece.len();
        let mut head = head.to_vec();
        if v6 {
            head[18..20].copy_from_slice(&short(piece.len() + 8));
            let next = std::mem::replace(&mut head[20], 44);
            let [high, low] = (units << 3 | u16::from(more)).to_be_bytes();
            head.extend([next, 0, high, low]);
            head.extend(id.to_be_bytes());
        } else {
            head[16..18].copy_from_slice(&short(piece.len() + 20));
            head[18..20].copy_from_slice(&[high_id, low_id]);
            head[20..22].copy_from_slice(&(units | if more { 0x2000 } else { 0 }).to_be_bytes());
            sum_header(&mut head);
        }
        [head, piece.to_vec()].concat()
    };
    data.chunks(most).map(fragment).collect()
}

/// Computes the checksum of an IPv4 header without options.
pub(in crate::pipeline) fn sum_header(frame: &mut [u8]) {
    frame[24..26].fill(0);
    let checksum = Sum::of(&frame[14..34]).checksum();
    frame[24..26].copy_from_slice(&checksum.to_be_bytes());
}

/// A packet and what has become of its pieces.
struct Original {
    pieces: Vec<Vec<u8>>,
    /// By piece, how it was sent; only of pieces as they were cut.
    sent: Vec<Option<Vec<u8>>>,
    port: PortId,
    /// Whether a later piece may go elsewhere than an earlier one: time has passed.
    is_old: bool,
}

/// A piece on its way.
#[derive(Clone)]
struct Piece {
    bytes: Vec<u8>,
    port: PortId,
    /// Packet and piece, if it is whole.
    of: Option<(u64, usize)>,
}

struct World {
    engines: Vec<Engine>,
    tables: &'static Snapshot,
    now: Tick,
    originals: Vec<(u64, Original)>,
    /// Packets so far.
    made: u64,
    early: [Vec<(Piece, bool)>; 2],
    keys: HashSet<FlowKey>,
}

impl World {
    fn new() -> Self {
        let tables = &*TABLES;
        let mut engines = engines(2, FLOW_LIMIT);
        for engine in &mut engines {
            engine.sweep(Tick(0), tables);
        }
        let early = Default::default();
        Self { engines, tables, now: Tick(0), originals: Vec::new(), made: 0, early, keys: HashSet::new() }
    }

    fn step(&mut self, input: &mut Input<'_>) {
        match input.byte() {
            what @ 0..=63 => self.make(what, input),
            64..=79 => self.answer(input),
            which @ 80..=239 => self.deliver(which, input),
            _ => self.pass(u32::from(input.byte())),
        }
    }

    /// A packet of some client's to a service.
    fn make(&mut self, what: u8, input: &mut Input<'_>) {
        let v6 = what & 1 != 0;
        let proto = if what & 2 != 0 { TCP } else { UDP };
        let client = if v6 { 0xfd22 << 112 } else { 0xac10_0000 };
        let key = FlowKey {
            src: client | (u128::from(what >> 2 & 3) + 1),
            dst: bits(vip(v6)).0,
            sport: 40_000 + u16::from(what >> 4),
            dport: input.pick(&PORTS),
            proto,
            v6,
        };
        self.add(&key, SYN, UPLINK, input);
    }

    /// A backend's answer to what it was sent first.
    fn answer(&mut self, input: &mut Input<'_>) {
        let which = usize::from(input.byte());
        let sent = self.originals.get(which % self.originals.len().max(1));
        let first = sent.and_then(|(_, original)| original.sent.first()).and_then(Option::as_ref);
        let packet = first.and_then(|bytes| parse(bytes).ok());
        if let Some(packet) = packet.filter(|packet| packet.kind == Kind::FirstFragment) {
            self.add(&packet.key.reversed(), SYN | ACK, LAN, input);
        }
    }

    fn add(&mut self, key: &FlowKey, flags: u8, port: PortId, input: &mut Input<'_>) {
        let len = 60 + usize::from(input.byte()) * 4;
        let most = (usize::from(input.byte() % 32) + 1) * 8;
        // Identifications meet again.
        let id = u32::from(input.byte() % 8);
        let outer = Outer { mac: MACS[0], tags: 0, ttl: 64, extended: false, fragment: 0 };
        let pieces = cut(&outer.transport(key, flags, [1000, 2000], len, Field::Right), id, most);
        let sent = vec![None; pieces.len()];
        if self.originals.len() == MEMORY {
            self.originals.remove(0);
        }
        self.made += 1;
        self.originals.push((self.made, Original { pieces, sent, port, is_old: false }));
    }

    /// A piece of a packet, whole or with a byte changed, arrives at a worker.
    fn deliver(&mut self, which: u8, input: &mut Input<'_>) {
        let at = input.byte();
        let Some((number, original)) = self.originals.get(usize::from(which) % self.originals.len().max(1))
        else {
            return;
        };
        let place = usize::from(at & 0x3f) % original.pieces.len();
        let mut piece =
            Piece { bytes: original.pieces[place].clone(), port: original.port, of: Some((*number, place)) };
        if which & 0x0c == 0x0c {
            let (at, value) = (usize::from(input.byte()), input.byte());
            if let Some(byte) = piece.bytes.get_mut(14 + at) {
                *byte = value;
            }
            if piece.bytes[12..14] == [8, 0] {
                sum_header(&mut piece.bytes);
            }
            piece.of = None;
        }
        self.arrive(usize::from(at >> 7), piece, false, false);
        for worker in 0..2 {
            self.retry(worker, false);
        }
    }

    /// One piece at one worker, and at the other if it is handed over.
    fn arrive(&mut self, worker: usize, piece: Piece, handed_over: bool, overdue: bool) {
        let (verdict, bytes) = self.decide(worker, &piece, handed_over, overdue);
        match verdict {
            Verdict::Handoff(owner) => {
                assert!(!handed_over && owner.index() != worker, "handed to and fro");
                assert_eq!(bytes, piece.bytes, "handed over, but changed");
                self.arrive(owner.index(), piece, true, overdue);
            }
            Verdict::Early => {
                assert!(!overdue, "kept for ever");
                assert_eq!(bytes, piece.bytes, "kept, but changed");
                let early = &mut self.early[worker];
                early.push((piece, handed_over));
                if early.len() > PATIENT {
                    early.remove(0);
                }
            }
            Verdict::Kernel => assert_eq!(bytes, piece.bytes, "for the kernel, but changed"),
            Verdict::Tx(_) => self.sent(&piece, bytes),
            Verdict::Reply(_) => {
                let answer = parse(&bytes).expect("an answer can be parsed");
                assert!(verifies(&bytes, &answer), "checksum of an answer");
            }
            Verdict::Drop(reason) => {
                let unmatched = reason == DropReason::FragmentUnmatched;
                assert!(!unmatched || overdue, "given up before its time");
            }
            Verdict::Unresolved => assert_eq!(bytes, piece.bytes, "without a neighbour, but changed"),
            other => panic!("{other:?}"),
        }
    }

    fn decide(
        &mut self,
        worker: usize,
        piece: &Piece,
        handed_over: bool,
        overdue: bool,
    ) -> (Verdict, Vec<u8>) {
        if let Ok(packet) = parse(&piece.bytes)
            && matches!(packet.kind, Kind::FirstFragment | Kind::Fragment)
        {
            self.keys.extend(fragment_key(&piece.bytes, &packet));
        }
        let len = piece.bytes.len();
        let mut chunk = [vec![0xa5; MIN_HEADROOM], piece.bytes.clone(), vec![0xa5; 1500]].concat();
        let mut frame = Frame::new(&mut chunk, MIN_HEADROOM, len, piece.port).expect("within the chunk");
        (frame.handed_over, frame.overdue) = (handed_over, overdue);
        let mut verdict = [Verdict::Kernel];
        let engine = &mut self.engines[worker];
        engine.process(std::slice::from_mut(&mut frame), &mut verdict, self.now, self.tables);
        assert!(engine.core.fragments.len() <= room(FLOW_LIMIT), "more packets than there is room for");
        assert!(engine.flows() <= FLOW_LIMIT, "more flows than allowed");
        (verdict[0], frame.bytes().to_vec())
    }

    /// Notes what was sent, and judges the packet where that was the last of it.
    fn sent(&mut self, piece: &Piece, bytes: Vec<u8>) {
        let before = parse(&piece.bytes).expect("what is sent could be parsed");
        let after = parse(&bytes).expect("what is sent can be parsed");
        assert!(after.ttl == before.ttl - 1, "one hop less");
        let Some((number, place)) = piece.of else { return };
        let Some((_, original)) = self.originals.iter_mut().find(|(this, _)| *this == number) else { return };
        original.sent[place] = Some(bytes);
        if original.is_old {
            return;
        }
        let sent: Option<Vec<_>> = original.sent.iter().cloned().collect();
        if let Some(sent) = sent {
            together(&original.pieces, &sent);
        }
    }

    /// Tries what is early once more.
    fn retry(&mut self, worker: usize, overdue: bool) {
        for (piece, handed_over) in std::mem::take(&mut self.early[worker]) {
            self.arrive(worker, piece, handed_over, overdue);
        }
    }

    fn pass(&mut self, ticks: u32) {
        for worker in 0..2 {
            self.retry(worker, ticks > 0);
        }
        self.now = Tick(self.now.0.wrapping_add(ticks));
        for (_, original) in &mut self.originals {
            original.is_old |= ticks > 0;
        }
        for engine in &mut self.engines {
            engine.sweep(self.now, self.tables);
        }
    }

    fn end(mut self) {
        self.pass(1);
        assert!(self.early.iter().all(Vec::is_empty), "kept for ever");
        self.now = Tick(self.now.0.wrapping_add(2000 * TICKS_PER_SECOND));
        for engine in &mut self.engines {
            while engine.sweep(self.now, self.tables) {}
            assert_eq!((engine.core.fragments.len(), engine.flows()), (0, 0), "outlive their time");
            assert_eq!(engine.stats().directory_full.get(), 0);
        }
        let core = &self.engines[0].core;
        for key in self.keys {
            let owner = core.setup.directory.owner(core.fragment_hash(&key));
            assert_eq!(owner, None, "{key:?} is still in the directory");
        }
    }
}

/// Puts the pieces of a packet together as they were sent: the transport checksum holds.
fn together(pieces: &[Vec<u8>], sent: &[Vec<u8>]) {
    let parsed: Vec<_> = sent.iter().map(|sent| parse(sent).expect("parsed before")).collect();
    let grown = |at: usize| sent[at].len().wrapping_sub(pieces[at].len());
    let Some(first) = parsed.first().filter(|first| first.kind != Kind::Other && first.key.dport != GUE_PORT)
    else {
        return;
    };
    let ends = |at: usize| parsed[at].outer_addresses(&sent[at]);
    if (0..sent.len()).any(|at| ends(at) != ends(0) || grown(at) != grown(0)) {
        return; // another packet with the same identification came in between, or the flow made room
    }
    let data: Vec<u8> = parsed
        .iter()
        .zip(sent)
        .flat_map(|(packet, sent)| sent[packet.l4.into()..packet.end.into()].to_vec())
        .collect();
    let len = u16::try_from(data.len()).expect("a frame is shorter");
    let (src, dst) = ends(0).expect("an IP packet");
    let sum = Sum::pseudo_header(src, dst, first.key.proto, len) + Sum::of(&data);
    assert!(sum.verifies(), "checksum of the whole packet");
}
