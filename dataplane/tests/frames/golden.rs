//! The kernel's own packets: what IPVS and its host made of the same input, byte for byte.
//!
//! Two differences are wanted. Identifications of packets that the balancer makes itself vary from run to run. And
//! the kernel leaves the UDP checksum in a quoted datagram as it was behind the translation; here it is given back
//! as its sender computed it.

use std::fs;
use std::path::PathBuf;

use dataplane::flow::key::FlowKey;
use dataplane::frame::Frame;
use dataplane::ids::PortId;
use dataplane::packet::{Packet, parse};
use dataplane::rewrite::{answer, icmp};
use dataplane::verdict::DropReason;
use dataplane::wire::checksum::Sum;
use serde_json::Value;

use crate::samples::{BACKEND, CLIENT, CLIENT_MAC, L3, OWN_MAC, VIP, bits};

/// One recorded step: what came in, from which side, and what went out.
struct Step {
    side: String,
    packet: Vec<u8>,
    out: Vec<(String, Vec<u8>)>,
}

fn steps(scenario: &str) -> Vec<Step> {
    let path: PathBuf =
        [env!("CARGO_MANIFEST_DIR"), "tests/golden/ipvs/packets", &format!("{scenario}.json")]
            .iter()
            .collect();
    let recording: Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    let bytes = |hex: &Value| -> Vec<u8> {
        let digits = hex.as_str().unwrap().as_bytes().chunks(2);
        digits.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
    };
    let steps = recording["steps"].as_array().unwrap().iter().filter(|step| step["inject"].is_string());
    steps
        .map(|step| Step {
            side: step["inject"].as_str().unwrap().to_owned(),
            packet: bytes(&step["packet"]),
            out: step["out"]
                .as_array()
                .unwrap()
                .iter()
                .map(|out| (out["side"].as_str().unwrap().to_owned(), bytes(&out["packet"])))
                .collect(),
        })
        .collect()
}

fn framed(packet: &[u8]) -> Vec<u8> {
    [&OWN_MAC[..], &CLIENT_MAC, &[0x08, 0x00], packet].concat()
}

fn answered(
    packet: &[u8],
    answer: impl Fn(&mut Frame<'_>, &Packet) -> Result<(), DropReason>,
) -> Result<Vec<u8>, DropReason> {
    let mut chunk = framed(packet);
    let (len, parsed) = (chunk.len(), parse(&chunk)?);
    chunk.resize(len + 64, 0xa5);
    let mut frame = Frame::new(&mut chunk, 0, len, PortId(0)).unwrap();
    answer(&mut frame, &parsed)?;
    Ok(frame.bytes()[L3..].to_vec())
}

/// The packet with another identification.
fn identified(packet: &[u8], id: &[u8]) -> Vec<u8> {
    let mut packet = packet.to_vec();
    packet[4..6].copy_from_slice(id);
    packet[10..12].fill(0);
    let checksum = Sum::of(&packet[..20]).checksum();
    packet[10..12].copy_from_slice(&checksum.to_be_bytes());
    packet
}

#[test]
fn refusals_are_the_kernels() {
    for (scenario, step) in [("tcp-no-destination", 0), ("udp-no-destination", 0)] {
        let step = &steps(scenario)[step];
        let got =
            answered(&step.packet, |frame, packet| answer::port_unreachable(frame, packet, OWN_MAC)).unwrap();
        assert_eq!(got, identified(&step.out[0].1, &got[4..6]), "{scenario}");
    }
    let expired = &steps("ttl")[0];
    let got =
        answered(&expired.packet, |frame, packet| answer::time_exceeded(frame, packet, OWN_MAC)).unwrap();
    assert_eq!(got, identified(&expired.out[0].1, &got[4..6]), "time exceeded");
}

/// The kernel had already taken one hop off the packet that it quotes.
#[test]
fn fragmentation_needed_is_the_kernels() {
    let large = steps("mtu").into_iter().find(|step| step.packet.len() == 1440).unwrap();
    let one_hop_less = {
        let mut packet = large.packet.clone();
        packet[8] -= 1;
        identified(&packet, &large.packet[4..6])
    };
    let got = answered(&one_hop_less, |frame, packet| answer::too_big(frame, packet, OWN_MAC, 1280)).unwrap();
    assert_eq!(got, identified(&large.out[0].1, &got[4..6]));
}

#[test]
fn resets_are_the_kernels() {
    let mut compared = 0;
    for step in steps("tcp-no-connection").iter().filter(|step| step.side == "client") {
        let reset = |frame: &mut Frame<'_>, packet: &Packet| answer::reset(frame, packet, OWN_MAC);
        match step.out.first() {
            Some((side, want)) if side == "client" => {
                assert_eq!(answered(&step.packet, reset).as_ref(), Ok(want));
                compared += 1;
            }
            Some(_) => {} // forwarded
            None => assert_eq!(answered(&step.packet, reset), Err(DropReason::Unsupported), "RST for RST"),
        }
    }
    assert_eq!(compared, 4);
}

#[test]
fn an_echo_reply_is_the_kernels() {
    let all = steps("icmp-related");
    let step = all.iter().find(|step| step.packet[9] == 1 && step.packet[20] == 8).unwrap();
    let got = answered(&step.packet, |frame, packet| answer::echo(frame, packet, OWN_MAC)).unwrap();
    assert_eq!(got, identified(&step.out[0].1, &got[4..6]));
}

#[test]
fn translated_errors_are_the_kernels() {
    let all = steps("icmp-related");
    // By the quoted packet's protocol and direction: the checksum that its sender had computed, where it is UDP.
    let checksum_sent = |quoted: &FlowKey| {
        let sent = all.iter().find(|step| parse(&framed(&step.packet)).is_ok_and(|p| p.key == *quoted));
        sent.map(|step| [step.packet[26], step.packet[27]])
    };
    let mut compared = 0;
    for step in all.iter().filter(|step| step.packet[9] == 1) {
        let Some((_, want)) = step.out.first() else { continue };
        let packet = parse(&framed(&step.packet)).unwrap();
        let from_server = step.side == "server";
        let key = packet.key;
        if key.proto == 1 {
            continue; // the echo request
        }
        let port = if key.proto == 17 { 53 } else { 80 };
        let (tuple, src, dst) = if from_server {
            (FlowKey { dst: bits(VIP), dport: port, ..key }, Some(bits(VIP)), bits(CLIENT))
        } else {
            (FlowKey { src: bits(BACKEND), sport: 5353, ..key }, None, bits(BACKEND))
        };
        let got = answered(&step.packet, |frame, packet| icmp::translate(frame, packet, src, dst, &tuple, 0))
            .unwrap();

        let mut want = want.clone();
        if key.proto == 17 {
            want[54..56].copy_from_slice(&checksum_sent(&tuple).unwrap());
            want[22..24].fill(0);
            let checksum = Sum::of(&want[20..]).checksum();
            want[22..24].copy_from_slice(&checksum.to_be_bytes());
        }
        assert_eq!(got, want);
        compared += 1;
    }
    assert_eq!(compared, 7);
}
