//! What has to hold for one frame and what became of it.

use super::{Arrival, Outcome, kept, special};
use crate::flow::entry::Way;
use crate::flow::key::{FlowKey, TCP, UDP, address};
use crate::flow::sequence::Sequence;
use crate::frame::Checksum;
use crate::packet::{Kind, Packet, parse};
use crate::pipeline::Engine;
use crate::pipeline::fixture::MACS;
use crate::rewrite::split::Pieces;
use crate::snapshot::{Mode, Snapshot};
use crate::verdict::Verdict;
use crate::wire::checksum::{Sum, complete};
use crate::wire::{ipv4, ipv6};

/// Judges what `engine` made of `arrival` and nothing has happened since.
///
/// # Panics
/// Where something does not hold.
pub(super) fn judge(engine: &Engine, tables: &Snapshot, arrival: &Arrival, outcome: &Outcome) {
    let before = parse(&arrival.bytes);
    match (outcome.verdict, before) {
        (verdict, Err(reason)) => assert_eq!(verdict, Verdict::Drop(reason)),
        (Verdict::Tx(_), Ok(before)) if before.kind == Kind::Fragment => {
            followed((arrival, &before), outcome)
        }
        (Verdict::Tx(_), Ok(before)) => forwarded(engine, tables, (arrival, &before), outcome),
        (Verdict::Reply(_), Ok(before)) => replied((arrival, &before), outcome),
        (Verdict::Kernel, Ok(before)) => {
            assert_eq!(outcome.bytes, arrival.bytes, "for the kernel, but changed");
            if let Checksum::Partial { start, .. } = outcome.checksum {
                assert!(tables.net.leaves_checksums(arrival.port), "finished on this port");
                assert_eq!(start, before.l4);
            }
        }
        (Verdict::Handoff(_) | Verdict::Unresolved | Verdict::Early | Verdict::Unanswered, Ok(_)) => {
            assert_eq!(outcome.bytes, arrival.bytes, "{:?}, but changed", outcome.verdict);
            assert_eq!(outcome.checksum, Checksum::Complete);
        }
        // An answer that failed may have begun.
        (Verdict::Drop(_), Ok(_)) => {}
    }
}

fn forwarded(engine: &Engine, tables: &Snapshot, (arrival, before): (&Arrival, &Packet), outcome: &Outcome) {
    // An error's receiver sent, or would have sent, packets the other way round.
    let is_error = before.kind == Kind::IcmpError;
    let turn = |key: FlowKey| if is_error { key.reversed() } else { key };
    let (key, flows) = (turn(before.key), &engine.core.flows);
    let hit = flows.lookup(flows.hash(&key), &key);
    if hit.is_none() && matches!(before.kind, Kind::IcmpError | Kind::TunnelError) {
        return told(engine, tables, arrival, outcome);
    }
    let Some(hit) = hit else { return kept::single(tables, (arrival, before), outcome) };
    let entry = flows.entry(hit.slot()).expect("a flow that was found");
    let (tuple, way) = (flows.tuple(entry), hit.way());
    if flows.extra(hit.slot()).is_some_and(|extra| extra.sequence != Sequence::default()) {
        return special::shaped(tables, (&tuple, way), (arrival, before), outcome);
    }
    if entry.mode().is_tunnel() {
        let extra = flows.extra(hit.slot()).expect("a tunnel has parameters");
        return special::tunnelled(tables, (&tuple, entry.mode(), extra), (arrival, before), outcome);
    }
    if !entry.keeps_family() {
        return special::crossed(tables, (&tuple, way), (arrival, before), outcome);
    }
    let after = parse(&outcome.bytes).expect("what is sent can be parsed");
    assert_eq!(after.kind, before.kind);
    assert_eq!(after.ttl, before.ttl - 1, "one hop less");
    assert_eq!((after.tcp_flags, after.end - after.l3), (before.tcp_flags, before.end - before.l3));

    let is_direct = entry.mode() == Mode::Dr;
    assert_eq!(turn(after.key), if is_direct { key } else { tuple.translated(way) }, "translation");

    let target = if is_direct { tuple.reply.source() } else { address(destination(outcome, &after), key.v6) };
    assert!(!is_direct || way == Way::Forward, "replies of a dr flow are no part of it");
    let (hop, path) = tables.net.way_to(target, 0).expect("what is sent has a way to go");
    let hop = tables.net.hop(hop).expect("what is sent has a next hop");
    assert_eq!(outcome.verdict, Verdict::Tx(hop.port));
    assert_eq!(outcome.bytes[..usize::from(after.l3) - 2], hop.header[..], "layer-2 header");
    fits(outcome, (after.end - after.l3).into(), path.mtu.unwrap_or(hop.mtu).min(hop.mtu));

    if is_error {
        assert!(verifies(&outcome.bytes, &after), "ICMP checksum");
    } else {
        transport_checksum(tables, (arrival, before), (outcome, &after));
        let header = if key.proto == TCP { 20 } else { 8 };
        let data = |bytes: &[u8], packet: &Packet| bytes[usize::from(packet.l4) + header..].to_vec();
        assert_eq!(data(&outcome.bytes, &after), data(&arrival.bytes, before), "payload");
    }
}

/// A packet that leaves with `len` bytes fits its path, or is to be cut so that it does. Some paths are narrower than is
/// said here: they were told to be.
pub(super) fn fits(outcome: &Outcome, len: usize, mtu: u16) {
    let Some(split) = outcome.split else { return assert!(len <= mtu.into(), "too large for its path") };
    assert!(split.mtu <= mtu && len > split.mtu.into(), "cut to {split:?} of {len} bytes, {mtu} of the path");
    assert_eq!(outcome.checksum, Checksum::Complete, "of the whole packet");
    assert!(Pieces::of(&outcome.bytes, split).expect("it can be cut").count() > 1);
}

/// An error about a packet in a tunnel becomes one about the client's packet in it, and quotes no more than was quoted.
fn told(engine: &Engine, tables: &Snapshot, arrival: &Arrival, outcome: &Outcome) {
    let after = parse(&outcome.bytes).expect("what is sent can be parsed");
    assert_eq!(after.kind, Kind::IcmpError);
    assert!(verifies(&outcome.bytes, &after), "ICMP checksum");
    let flows = &engine.core.flows;
    let hit = flows.lookup(flows.hash(&after.key), &after.key).expect("the client's packet is of a flow");
    let entry = flows.entry(hit.slot()).expect("a flow that was found");
    assert!(hit.way() == Way::Forward && entry.mode().is_tunnel());
    let client = after.key.source();
    assert_eq!(after.outer_addresses(&outcome.bytes), Ok((after.key.dst, after.key.src)), "to the client");
    let hop =
        tables.net.hop_to(client, 0).ok().and_then(|id| tables.net.hop(id)).expect("a way to the client");
    assert_eq!(outcome.verdict, Verdict::Tx(hop.port));
    assert_eq!(outcome.bytes[..usize::from(after.l3) - 2], hop.header[..], "layer-2 header");
    let quote = &outcome.bytes[usize::from(after.l4) + 8..after.end.into()];
    assert!(arrival.bytes.windows(quote.len()).any(|quoted| quoted == quote), "more than was quoted");
}

/// A later fragment goes on with other addresses and nothing else, or in a tunnel.
fn followed((arrival, before): (&Arrival, &Packet), outcome: &Outcome) {
    let after = parse(&outcome.bytes).expect("what is sent can be parsed");
    if after.kind != before.kind {
        let data = &arrival.bytes[before.l4.into()..before.end.into()];
        assert!(outcome.bytes.ends_with(data), "data in a tunnel");
        return;
    }
    assert_eq!((after.kind, after.key.proto), (before.kind, before.key.proto));
    assert_eq!((after.ttl, after.end - after.l3), (before.ttl - 1, before.end - before.l3));
    let data = |bytes: &[u8], packet: &Packet| bytes[packet.l4.into()..packet.end.into()].to_vec();
    assert_eq!(data(&outcome.bytes, &after), data(&arrival.bytes, before), "data");
    assert_eq!(outcome.checksum, Checksum::Complete);
}

/// What was right stays right, what was wrong wrong, what was missing missing, and what was partial partial.
pub(super) fn transport_checksum(
    tables: &Snapshot,
    (arrival, before): (&Arrival, &Packet),
    (outcome, after): (&Outcome, &Packet),
) {
    let offset = if before.key.proto == TCP { 16 } else { 6 };
    let field = |bytes: &[u8], packet: &Packet| {
        let at = usize::from(packet.l4) + offset;
        u16::from_be_bytes([bytes[at], bytes[at + 1]])
    };
    let (was, is) = (field(&arrival.bytes, before), field(&outcome.bytes, after));
    let partial = |packet: &Packet| {
        Sum::pseudo_header(packet.key.src, packet.key.dst, packet.key.proto, packet.end - packet.l4).fold()
    };
    let is_whole = before.kind == Kind::Transport;
    let is_partial = is_whole && tables.net.leaves_checksums(arrival.port) && was == partial(before);
    if is_partial && outcome.split.is_some() {
        assert!(verifies(&outcome.bytes, after), "finished before it is cut");
        return;
    }
    if is_partial {
        let noted = Checksum::Partial { start: after.l4, offset: u16::try_from(offset).expect("16 or 6") };
        assert_eq!(outcome.checksum, noted);
        let mut finished = outcome.bytes.clone();
        assert!(complete(&mut finished[after.l4.into()..after.end.into()], offset));
        assert!(verifies(&finished, after), "partial checksum {was:#x} became {is:#x}");
        return;
    }
    assert_eq!(outcome.checksum, Checksum::Complete);
    if before.key.proto == UDP && was == 0 {
        let is_translated = after.key != before.key;
        assert_eq!(is != 0, is_whole && is_translated, "a missing checksum is computed under translation");
        let at = usize::from(after.l4) + 4;
        let len = u16::from_be_bytes([outcome.bytes[at], outcome.bytes[at + 1]]);
        if is != 0 && len == after.end - after.l4 {
            assert!(verifies(&outcome.bytes, after), "a missing checksum became {is:#x}");
        }
    } else {
        assert_ne!((before.key.proto, is), (UDP, 0), "a checksum lost");
        assert_eq!(
            verifies(&outcome.bytes, after),
            verifies(&arrival.bytes, before),
            "{was:#x} became {is:#x}"
        );
    }
}

fn replied((arrival, before): (&Arrival, &Packet), outcome: &Outcome) {
    let after = parse(&outcome.bytes).expect("an answer can be parsed");
    assert_eq!(outcome.bytes[6..12], MACS[arrival.port.index()], "from the port's address");
    // Who looks for a duplicate of its address has none yet: it is told by way of all nodes.
    let asker = if before.kind == Kind::NeighbourSolicitation && before.key.src == 0 {
        &[0x33, 0x33, 0, 0, 0, 1]
    } else {
        &arrival.bytes[6..12]
    };
    assert_eq!(&outcome.bytes[..6], asker, "to who asked");
    assert_eq!(after.l3, before.l3, "with the same tags");
    assert_eq!(outcome.checksum, Checksum::Complete);
    if before.kind != Kind::ArpRequest {
        assert!(verifies(&outcome.bytes, &after), "checksum of an answer");
    }
}

/// Destination of the IP header.
fn destination(outcome: &Outcome, after: &Packet) -> u128 {
    after.outer_addresses(&outcome.bytes).expect("an IP packet").1
}

/// Whether the TCP, UDP, ICMP or ICMPv6 checksum of a whole packet is right.
pub(super) fn verifies(bytes: &[u8], packet: &Packet) -> bool {
    let proto = match packet.kind {
        Kind::IcmpError if packet.key.v6 => ipv6::ICMPV6,
        Kind::IcmpError => ipv4::ICMP,
        _ => packet.key.proto,
    };
    let covered = if proto == ipv4::ICMP {
        Sum::default()
    } else {
        let (src, dst) = packet.outer_addresses(bytes).expect("an IP packet");
        Sum::pseudo_header(src, dst, proto, packet.end - packet.l4)
    };
    (covered + Sum::of(&bytes[packet.l4.into()..packet.end.into()])).verifies()
}
