//! What the XDP program takes a frame, by kind: `cargo bench -p xdp-prog`, as root.
//!
//! The kernel runs the program many times on one frame and tells how long it took (`BPF_PROG_TEST_RUN`), so what it looks
//! up is in the cache. What the kernel does with a frame that is handed over is not in it. Kinds take turns; a figure is
//! the median of all turns. The first kind is what the program costs at least.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a bench stops by panicking")]
#![allow(clippy::indexing_slicing, missing_docs, reason = "a bench stops by panicking")]

#[path = "../tests/support/mod.rs"]
mod support;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use etherparse::EtherType;
use support::{Bench, TCP, UDP, enter_namespace, ethernet, framed, ip_packet, transport};
use xdp_prog::{Endpoint, Ours, Proto};

const RUNS: u32 = 200_000;
const TURNS: usize = 15;
const SERVICES: u32 = 1000;

const VIP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);
const VIP_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, 1);
const SNAT: Ipv4Addr = Ipv4Addr::new(10, 2, 0, 200);
const NODE: Ipv4Addr = Ipv4Addr::new(10, 2, 0, 1);
const BACKEND: Ipv4Addr = Ipv4Addr::new(10, 128, 0, 1);
const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 64, 0, 1);
const CLIENT_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 2, 0, 0, 0, 0, 0, 1);

/// What a frame is for, and the frame.
type Kind = (&'static str, Vec<u8>);

/// Services on addresses of both families, a SNAT address, a node with a NodePort, and `nat` backends.
fn ours() -> Ours {
    let mut ours = Ours::default();
    for number in 0..SERVICES {
        let v4 = Ipv4Addr::from_bits(VIP.to_bits() + number);
        let v6 = Ipv6Addr::from_bits(VIP_V6.to_bits() + u128::from(number));
        for addr in [IpAddr::from(v4), IpAddr::from(v6)] {
            ours.vips.insert(Endpoint { addr, port: 80, proto: Proto::Tcp });
        }
        let backend = Ipv4Addr::from_bits(BACKEND.to_bits() + number);
        ours.nat_backends.insert(Endpoint { addr: backend.into(), port: 8080, proto: Proto::Tcp });
    }
    ours.snat.insert(SNAT.into(), 1024..=65535);
    ours.node_addresses.insert(NODE.into());
    ours.node_ports.insert((Proto::Tcp, 30080));
    ours
}

fn kinds() -> Vec<Kind> {
    let tcp =
        |src: IpAddr, sport, dst: IpAddr, dport| framed(&ip_packet(src, dst, TCP, &transport(sport, dport)));
    let v4 = |src: Ipv4Addr, sport, dst: Ipv4Addr, dport| tcp(src.into(), sport, dst.into(), dport);
    let other = Ipv4Addr::new(192, 0, 2, 1);
    let datagram = ip_packet(CLIENT.into(), other.into(), UDP, &transport(1024, 53));
    vec![
        ("neither IP nor ARP (LLDP)", ethernet(&[], &[0; 46], EtherType(0x88cc))),
        ("to a VIP", v4(CLIENT, 1024, VIP, 80)),
        ("to a VIP over IPv6", tcp(CLIENT_V6.into(), 1024, VIP_V6.into(), 80)),
        ("to a SNAT address", v4(BACKEND, 8080, SNAT, 40_000)),
        ("to a NodePort", v4(CLIENT, 1024, NODE, 30_080)),
        ("from a `nat` backend", v4(BACKEND, 8080, CLIENT, 1024)),
        ("the kernel's: a VIP's other port", v4(CLIENT, 1024, VIP, 22)),
        ("the kernel's: ssh to the node", v4(CLIENT, 1024, NODE, 22)),
        ("the kernel's: UDP between others", framed(&datagram)),
    ]
}

fn main() {
    // `cargo test` runs benches too, without this argument: then once will do.
    let runs = if std::env::args().any(|argument| argument == "--bench") { RUNS } else { 1 };
    if !enter_namespace("the bench of the XDP program") {
        return;
    }
    let mut bench = Bench::patient(&ours());
    let kinds = kinds();
    let mut times: Vec<Vec<Duration>> = vec![Vec::new(); kinds.len()];
    for _ in 0..TURNS {
        for ((_, frame), times) in kinds.iter().zip(&mut times) {
            times.push(bench.time(frame, runs));
        }
    }
    println!("The XDP program, ns a frame (median of {TURNS} turns of {runs} runs, from to):");
    for ((name, _), times) in kinds.iter().zip(&mut times) {
        times.sort_unstable();
        let ns = |time: &Duration| time.as_nanos();
        let (first, last) = (ns(&times[0]), ns(&times[TURNS - 1]));
        println!("  {name:35}{:4}  ({first} to {last})", ns(&times[TURNS / 2]));
    }
}
