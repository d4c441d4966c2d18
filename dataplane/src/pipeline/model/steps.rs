//! What bytes mean.

use super::draft::{Field, Outer};
use super::world::LONGEST;
use super::{Arrival, Model, WORKERS, kept};
use crate::flow::key::{FlowKey, TCP, UDP, bits};
use crate::ids::PortId;
use crate::packet::{Kind, Packet, parse};
use crate::pipeline::fixture::{LAN, MACS, SNAT4, SNAT6, SPECIAL, UPLINK, backend, vip};
use crate::time::{TICKS_PER_SECOND, Tick};
use crate::wire::tcp::{ACK, FIN, RST, SYN, Tcp};
use crate::wire::view;

/// Bytes from the front; zeros once there are no more.
pub(super) struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn byte(&mut self) -> u8 {
        self.take(1).first().copied().unwrap_or_default()
    }

    fn word(&mut self) -> u16 {
        u16::from_be_bytes([self.byte(), self.byte()])
    }

    fn take(&mut self, len: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// One of `choices`.
    pub(super) fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[usize::from(self.byte()) % choices.len()]
    }
}

/// The time to start at: some then meet the end of the numbers.
pub(super) fn start(input: &mut Input<'_>) -> Tick {
    input.pick(&[Tick(0), Tick(u32::MAX / 2), Tick(u32::MAX - 100)])
}

/// One step. The first byte says which in its low half; the high half holds worker, port and whether to go on
/// collecting a batch.
pub(super) fn step(model: &mut Model, input: &mut Input<'_>) {
    let first = input.byte();
    let (worker, hold) = (usize::from(first >> 4) % WORKERS, first & 0x40 != 0);
    let (bytes, port) = match first & 15 {
        0..=4 => (Some(to_vip(input)), UPLINK),
        5..=8 => (answer(model, input), LAN),
        9 => (error(model, input), LAN),
        10 => (Some(question(input)), UPLINK),
        11 => (Some(anything(input)), UPLINK),
        12 => (changed(model, input), UPLINK),
        13 => return model.pass(input.byte().into()),
        14 => return model.pass(u32::from(input.byte()) * TICKS_PER_SECOND * 4),
        _ => return model.change(input.byte()),
    };
    let port = PortId(port.0 ^ (first >> 5 & 1));
    if let Some(mut bytes) = bytes {
        bytes.truncate(LONGEST);
        model.arrive(worker, hold, Arrival { bytes, port, handed_over: false });
    }
}

/// A frame from some client to a service.
fn to_vip(input: &mut Input<'_>) -> Vec<u8> {
    let who = input.byte();
    let (v6, proto) = (who & 1 != 0, if who & 2 != 0 { UDP } else { TCP });
    let (src, sport) = source(who >> 2, v6);
    let dport = match who & 0x80 {
        0 => input.pick(&[80, 81, 82, 83, 84]),
        _ => match input.byte() {
            which @ 128.. => kept::PORTS[usize::from(which) % kept::PORTS.len()],
            which => SPECIAL[usize::from(which) % SPECIAL.len()].port,
        },
    };
    transport(FlowKey { src, dst: bits(vip(v6)).0, sport, dport, proto, v6 }, [1000, 2000], input)
}

/// Mostly clients, and some who cannot be one.
fn source(number: u8, v6: bool) -> (u128, u16) {
    let client = if v6 { 0xfd22 << 112 } else { 0xac10_0000 };
    let addr = match number % 32 {
        28 => bits(vip(v6)).0,
        29 => bits(backend(1, v6)).0,
        30 => snat(v6),
        31 => {
            if v6 {
                0xff02 << 112 | 1
            } else {
                0xe000_0001
            }
        }
        host => client | u128::from(host % 4 + 1),
    };
    let port = if number % 32 == 28 { 80 } else { 40_000 + u16::from(number % 32 / 4) };
    (addr, port)
}

fn snat(v6: bool) -> u128 {
    if v6 { SNAT6.to_bits() } else { SNAT4.to_bits().into() }
}

/// The answer of whoever received an earlier frame, or the next frame of its sender.
fn answer(model: &Model, input: &mut Input<'_>) -> Option<Vec<u8>> {
    let which = input.byte();
    let received = if which & 0x80 == 0 { &model.sent } else { &model.seen };
    let frame = received.get(usize::from(which & 0x7f) % received.len().max(1))?;
    let packet = parse(frame).ok().filter(|packet| packet.kind == Kind::Transport)?;
    let [next, acknowledged] = following(frame, &packet);
    Some(if which & 0x80 == 0 {
        transport(packet.key.reversed(), [acknowledged, next], input)
    } else {
        transport(packet.key, [next, acknowledged], input)
    })
}

/// The number behind a segment, and the one that it acknowledges.
fn following(frame: &[u8], packet: &Packet) -> [u32; 2] {
    let Ok(tcp) = view::<Tcp>(frame, packet.l4.into()) else { return [1000, 2000] };
    let end = usize::from(packet.l4) + tcp.header_len();
    let data = u32::try_from(usize::from(packet.end).saturating_sub(end)).expect("a frame is shorter");
    let controls = u32::from(tcp.flags & SYN != 0) + u32::from(tcp.flags & FIN != 0);
    let next = tcp.sequence.get().wrapping_add(data).wrapping_add(controls);
    [next, if tcp.flags & ACK != 0 { tcp.acknowledgement.get() } else { 2000 }]
}

/// An ICMP error about an earlier frame, to who seemed to have sent it.
fn error(model: &Model, input: &mut Input<'_>) -> Option<Vec<u8>> {
    let (which, kind, len) = (input.byte(), input.byte(), input.byte());
    let about = if which & 0x80 == 0 { &model.sent } else { &model.seen };
    let frame = about.get(usize::from(which & 0x7f) % about.len().max(1))?;
    let packet = parse(frame).ok()?;
    let quote = frame.get(packet.l3.into()..packet.end.into())?;
    let (sender, _) = packet.outer_addresses(frame).ok()?;
    let v6 = packet.key.v6;
    let router = if v6 { 0xfd77 << 112 | 1 } else { 0x0a4d_0001 };
    Some(outer(input).error(kind, v6, router, sender, &quote[..quote.len().min(28 + usize::from(len))]))
}

/// ARP, neighbour discovery or echo, for one of Weir's addresses or another.
fn question(input: &mut Input<'_>) -> Vec<u8> {
    let what = input.byte();
    let v6 = what & 1 != 0;
    let target = [bits(vip(v6)).0, snat(v6), bits(backend(1, v6)).0][usize::from(what >> 2) % 3];
    let (asker, _) = if what & 0x80 != 0 { (0, 0) } else { source(what >> 4, v6) };
    let outer = outer(input);
    if what & 2 != 0 { outer.echo(v6, asker, target) } else { outer.who_has(v6, asker, target) }
}

fn anything(input: &mut Input<'_>) -> Vec<u8> {
    let len = input.byte();
    input.take(len.into()).to_vec()
}

/// An earlier frame with some bytes changed, or cut off.
fn changed(model: &Model, input: &mut Input<'_>) -> Option<Vec<u8>> {
    let which = input.byte();
    let mut bytes = model.seen.get(usize::from(which) % model.seen.len().max(1))?.clone();
    for _ in 0..which >> 6 {
        let (at, value) = (usize::from(input.byte()), input.byte());
        if let Some(byte) = bytes.get_mut(at) {
            *byte = value;
        }
    }
    if which & 0x20 != 0 {
        bytes.truncate(input.byte().into());
    }
    Some(bytes)
}

/// A segment or datagram with this key, from its flags to its checksum as the input says.
fn transport(key: FlowKey, numbers: [u32; 2], input: &mut Input<'_>) -> Vec<u8> {
    let flags = input.pick(&[SYN, SYN | ACK, ACK, ACK | FIN, RST, RST | ACK, 0, 0xff]);
    let field = input.pick(&[Field::Right, Field::Right, Field::Partial, Field::Wrong, Field::Zero]);
    let outer = outer(input);
    let payload = match input.byte() {
        255 => usize::from(input.word() % 1800),
        few => usize::from(few % 64),
    };
    outer.transport(&key, flags, numbers, payload, field)
}

fn outer(input: &mut Input<'_>) -> Outer {
    let shape = input.byte();
    Outer {
        mac: MACS[0],
        tags: [0, 0, 1, 2][usize::from(shape & 3)],
        ttl: [64, 64, 255, 2, 1, 0, 64, 64][usize::from(shape >> 2 & 7)],
        extended: shape & 0x20 != 0,
        fragment: [0x4000, 0, 0x4000, 0x2000][usize::from(shape >> 6)],
    }
}
