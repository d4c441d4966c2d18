//! ICMP errors about flows in every mode, from both sides: any error, about anything that was sent, quoted as short as
//! you like, some bytes of the quote changed.
//!
//! Whoever gets an error finds in it the beginning of a packet that it sent itself, with all checksums right.

use std::sync::LazyLock;

use super::draft::{Field, Outer};
use super::judge::verifies;
use super::steps::Input;
use crate::flow::key::{FlowKey, TCP, UDP, bits};
use crate::frame::{Frame, MIN_HEADROOM};
use crate::ids::PortId;
use crate::packet::{Kind, Packet, parse};
use crate::pipeline::Engine;
use crate::pipeline::fixture::{LAN, MACS, UPLINK, engines, tables, vip};
use crate::snapshot::Snapshot;
use crate::time::Tick;
use crate::verdict::Verdict;
use crate::wire::tcp::{ACK, SYN};

/// Packets that errors can be about.
const MEMORY: usize = 24;
/// Services: every mode, and backends of the other family.
const PORTS: [u16; 12] = [80, 81, 82, 90, 91, 92, 93, 94, 95, 96, 97, 98];

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
}

/// A packet as it came to Weir, and as Weir sent it.
struct Passed {
    came: Vec<u8>,
    went: Vec<u8>,
    /// The port that it left by, where errors about it come in.
    port: PortId,
}

struct World {
    engines: Vec<Engine>,
    tables: &'static Snapshot,
    passed: Vec<Passed>,
}

impl World {
    fn new() -> Self {
        Self { engines: engines(2, 64), tables: &TABLES, passed: Vec::new() }
    }

    fn step(&mut self, input: &mut Input<'_>) {
        let what = input.byte();
        match what & 3 {
            0 => self.client(what, input),
            1 => self.backend(what, input),
            _ => self.error(what, input),
        }
    }

    /// A client's packet to a service.
    fn client(&mut self, what: u8, input: &mut Input<'_>) {
        let v6 = what & 4 != 0;
        let proto = if what & 8 != 0 { TCP } else { UDP };
        let client = if v6 { 0xfd22 << 112 } else { 0xac10_0000 };
        let key = FlowKey {
            src: client | (u128::from(what >> 4) + 1),
            dst: bits(vip(v6)).0,
            sport: 40_000,
            dport: input.pick(&PORTS),
            proto,
            v6,
        };
        self.send(&key, SYN, UPLINK, input);
    }

    /// A backend's answer to a packet that it was sent.
    fn backend(&mut self, what: u8, input: &mut Input<'_>) {
        let which = usize::from(what >> 2) % self.passed.len().max(1);
        let went = self.passed.get(which).filter(|passed| passed.port == LAN);
        let packet = went.and_then(|passed| parse(&passed.went).ok());
        if let Some(packet) = packet.filter(|packet| packet.kind == Kind::Transport) {
            self.send(&packet.key.reversed(), SYN | ACK, LAN, input);
        }
    }

    fn send(&mut self, key: &FlowKey, flags: u8, port: PortId, input: &mut Input<'_>) {
        let outer = Outer { mac: MACS[0], tags: 0, ttl: 64, extended: false, fragment: 0x4000 };
        let came = outer.transport(key, flags, [1000, 2000], usize::from(input.byte()), Field::Right);
        let (verdict, went) = self.decide(0, &came, port, false);
        if let Verdict::Tx(port) = verdict {
            if self.passed.len() == MEMORY {
                self.passed.remove(0);
            }
            self.passed.push(Passed { came, went, port });
        }
    }

    /// An error about a packet that Weir sent, from a router behind it, at either worker.
    fn error(&mut self, what: u8, input: &mut Input<'_>) {
        let which = usize::from(what >> 3) % self.passed.len().max(1);
        let (kind, len, change) = (input.byte(), input.byte(), input.byte());
        let Some(passed) = self.passed.get(which) else { return };
        let (came, port) = (passed.came.clone(), passed.port);
        let l3 = if passed.went[12..14] == [0x81, 0] { 18 } else { 14 };
        let v6 = passed.went[l3] >> 4 == 6;
        let mut quote = passed.went[l3..].to_vec();
        quote.truncate((8 + usize::from(len) * 4).min(quote.len()));
        let is_changed = change & 7 == 7;
        for _ in 0..if is_changed { change >> 6 } else { 0 } {
            let (at, value) = (usize::from(input.byte()), input.byte());
            if let Some(byte) = quote.get_mut(at) {
                *byte = value;
            }
        }
        let src = |v6| if v6 { 0xfd77 << 112 | 1 } else { 0x0a4d_0001 };
        let sender = if v6 { passed.went.get(l3 + 8..l3 + 24) } else { passed.went.get(l3 + 12..l3 + 16) };
        let sender = sender.unwrap_or_default().iter().fold(0, |bits, byte| bits << 8 | u128::from(*byte));
        let outer = Outer { mac: MACS[0], tags: 0, ttl: 64, extended: false, fragment: 0 };
        let error = outer.error(kind, v6, src(v6), sender, &quote);
        let worker = usize::from(what >> 2 & 1);
        let (mut verdict, mut bytes) = self.decide(worker, &error, port, false);
        if let Verdict::Handoff(owner) = verdict {
            assert_ne!(owner.index(), worker, "handed over to itself");
            assert_eq!(bytes, error, "handed over, but changed");
            (verdict, bytes) = self.decide(owner.index(), &error, port, true);
        }
        match verdict {
            Verdict::Tx(_) if is_changed => well_formed(&bytes),
            Verdict::Tx(_) => told(&came, &bytes),
            Verdict::Kernel => assert_eq!(bytes, error, "for the kernel, but changed"),
            Verdict::Drop(_) | Verdict::Reply(_) => {}
            Verdict::Unresolved => assert_eq!(bytes, error, "without a neighbour, but changed"),
            other => panic!("{other:?}"),
        }
    }

    fn decide(&mut self, worker: usize, bytes: &[u8], port: PortId, handed_over: bool) -> (Verdict, Vec<u8>) {
        let mut chunk = [vec![0xa5; MIN_HEADROOM], bytes.to_vec(), vec![0xa5; 1500]].concat();
        let mut frame = Frame::new(&mut chunk, MIN_HEADROOM, bytes.len(), port).expect("within the chunk");
        frame.handed_over = handed_over;
        let mut verdict = [Verdict::Kernel];
        self.engines[worker].process(std::slice::from_mut(&mut frame), &mut verdict, Tick(1), self.tables);
        (verdict[0], frame.bytes().to_vec())
    }
}

/// An ICMP error with right checksums; in a tunnel the checksums of the headers that can be read.
fn well_formed(bytes: &[u8]) {
    let packet = parse(bytes).expect("what is sent can be parsed");
    if matches!(packet.kind, Kind::IcmpError | Kind::TunnelError) {
        assert!(verifies(bytes, &packet), "ICMP checksum");
    }
}

/// The receiver of the error sent what it quotes: the packet that came.
fn told(came: &[u8], bytes: &[u8]) {
    well_formed(bytes);
    let packet = parse(bytes).expect("parsed before");
    if packet.kind != Kind::IcmpError {
        return; // to the backend through its tunnel
    }
    let sent = parse(came).expect("it was forwarded");
    let is_direct = packet.key != sent.key;
    if is_direct {
        return; // to a backend that has the VIP itself and sent the packet from it
    }
    let (_, to) = packet.outer_addresses(bytes).expect("an IP packet");
    assert_eq!(to, sent.key.src, "to whom it quotes");
    let quote = &bytes[usize::from(packet.l4) + 8..packet.end.into()];
    let headers = usize::from(sent.l4 - sent.l3);
    let quoted = quote.get(headers..).unwrap_or_default();
    let original = &came[sent.l4.into()..sent.end.into()];
    let same = quoted.len().min(original.len());
    assert_eq!(
        quoted[..same],
        original[..same],
        "ports, checksum and data as they were sent: {}",
        describe(&sent)
    );
}

fn describe(packet: &Packet) -> String {
    format!("{:?} to port {}", packet.key.source(), packet.key.dport)
}
