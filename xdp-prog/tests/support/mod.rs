//! A network namespace of the test's own, and frames.

#![allow(dead_code, reason = "every test file uses its own part")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(clippy::indexing_slicing, clippy::cast_possible_truncation, reason = "a test fails by panicking")]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd;
use std::process::Command;
use std::time::Duration;

use etherparse::{
    EtherType, Ethernet2Header, IpFragOffset, IpNumber, Ipv4Header, Ipv6Header, SingleVlanHeader, VlanId,
};
use nix::sched::{CloneFlags, unshare};
use nix::time::{ClockId, clock_gettime};
use socket2::{Domain, Socket, Type};
use xdp_prog::{Beat, Counter, Delta, Limits, Ours, SyncReport, Xdp};

pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
pub(crate) const SCTP: u8 = 132;
pub(crate) const ICMP: u8 = 1;
pub(crate) const ICMPV6: u8 = 58;

/// Moves the calling thread into a network namespace of its own, which goes away with it. Says so and returns false
/// where the test cannot run.
pub(crate) fn enter_namespace(test: &str) -> bool {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("{test} did not run: it needs root for network namespaces and BPF");
        return false;
    }
    unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
    // A quiet namespace: what its kernel sends of its own accord would be counted.
    std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").expect("IPv6 off");
    ip("link set lo up");
    true
}

/// Runs `ip` with these arguments in the calling thread's namespace.
pub(crate) fn ip(arguments: &str) -> String {
    let output = Command::new("ip").args(arguments.split_whitespace()).output().expect("ip");
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

/// A pair of veth interfaces, up, with two queues each. Returns the index of the first.
pub(crate) fn veth_pair(here: &str, there: &str) -> u32 {
    ip(&format!(
        "link add {here} numrxqueues 2 numtxqueues 2 type veth peer name {there} numrxqueues 2 numtxqueues 2"
    ));
    ip(&format!("link set {here} up"));
    ip(&format!("link set {there} up"));
    ifindex(here)
}

pub(crate) fn ifindex(name: &str) -> u32 {
    let line = ip(&format!("-o link show {name}"));
    line.split(':').next().expect("an index").parse().expect("a number")
}

pub(crate) fn monotonic_ns() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("a clock");
    now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64
}

/// An AF_XDP socket without rings: enough to be redirected to.
pub(crate) fn xdp_socket() -> Socket {
    const AF_XDP: i32 = 44;
    Socket::new(Domain::from(AF_XDP), Type::RAW, None).expect("an AF_XDP socket")
}

/// The loaded program on queue 0 of a veth, with a socket and a worker that is alive.
pub(crate) struct Bench {
    pub(crate) xdp: Xdp,
    pub(crate) ifindex: u32,
    pub(crate) beat: Beat,
    pub(crate) socket: Socket,
}

impl Bench {
    pub(crate) fn new(ours: &Ours) -> Self {
        Self::with_limits(ours, &Limits::default())
    }

    pub(crate) fn with_limits(ours: &Ours, limits: &Limits) -> Self {
        let ifindex = veth_pair("in0", "out0");
        let mut xdp = Xdp::load(limits).expect("load");
        xdp.attach(0, ifindex, false).expect("attach");
        let socket = xdp_socket();
        xdp.register_socket(0, 0, socket.as_fd()).expect("register");
        shift(&mut xdp, &Ours::default(), ours);
        let beat = xdp.beat(0).expect("worker 0");
        beat.beat(monotonic_ns());
        Self { xdp, ifindex, beat, socket }
    }

    /// [`Self::new`] with a worker that stays alive however long the test takes.
    pub(crate) fn patient(ours: &Ours) -> Self {
        Self::new(ours).made_patient()
    }

    pub(crate) fn made_patient(self) -> Self {
        self.xdp.set_beat_limit(Duration::from_secs(3600)).expect("set");
        self
    }

    /// What the program does with a frame on queue 0: the one counter that moved. Its verdict must agree.
    pub(crate) fn judge(&mut self, frame: &[u8]) -> Counter {
        self.judge_at(frame, self.ifindex, 0)
    }

    /// How long the program takes for a frame on queue 0, when it runs so many times on it.
    pub(crate) fn time(&mut self, frame: &[u8], times: u32) -> Duration {
        self.beat.beat(monotonic_ns());
        self.xdp.dry_runs(frame, self.ifindex, 0, times).expect("dry runs").1
    }

    pub(crate) fn judge_at(&mut self, frame: &[u8], ifindex: u32, queue: u32) -> Counter {
        let before = self.xdp.counters().read().expect("counters");
        let verdict = self.xdp.dry_run(frame, ifindex, queue).expect("dry run");
        let after = self.xdp.counters().read().expect("counters");
        let moved: Vec<_> = before.iter().zip(&after).filter(|(b, a)| b != a).collect();
        let [(was, is)] = moved.as_slice() else { panic!("a frame counts once: {moved:?}") };
        assert_eq!(is.1, was.1 + 1);
        let (pass, redirect) = (2, 4);
        assert_eq!(verdict, if is.0.is_handed_over() { redirect } else { pass }, "{:?}", is.0);
        is.0
    }
}

/// Has the program hand over something else than before.
pub(crate) fn shift(xdp: &mut Xdp, before: &Ours, after: &Ours) -> SyncReport {
    let begun = xdp.begin(&Delta::between(before, after)).expect("begin");
    let finished = xdp.finish().expect("finish");
    SyncReport { written: begun.written + finished.written, deleted: begun.deleted + finished.deleted }
}

/// An Ethernet frame with these VLAN tags.
pub(crate) fn ethernet(tags: &[u16], payload: &[u8], kind: EtherType) -> Vec<u8> {
    // The outer of two tags is a service tag, as 802.1ad has it.
    let tpid = |position: usize| match tags.len() - position {
        0 => kind,
        1 => EtherType::VLAN_TAGGED_FRAME,
        _ => EtherType::PROVIDER_BRIDGING,
    };
    let mut frame =
        Ethernet2Header { source: [2; 6], destination: [4; 6], ether_type: tpid(0) }.to_bytes().to_vec();
    for (position, vid) in tags.iter().enumerate() {
        let vlan_id = VlanId::try_new(*vid).expect("12 bits");
        let tag = SingleVlanHeader { vlan_id, ether_type: tpid(position + 1), ..SingleVlanHeader::default() };
        frame.extend(tag.to_bytes());
    }
    frame.extend(payload);
    frame
}

/// An Ethernet frame around an IP packet.
pub(crate) fn framed(packet: &[u8]) -> Vec<u8> {
    tagged(&[], packet)
}

/// An Ethernet frame around an IP packet with these VLAN tags.
pub(crate) fn tagged(tags: &[u16], packet: &[u8]) -> Vec<u8> {
    let kind = if packet[0] >> 4 == 4 { EtherType::IPV4 } else { EtherType::IPV6 };
    ethernet(tags, packet, kind)
}

/// An IP packet of the addresses' family.
pub(crate) fn ip_packet(src: IpAddr, dst: IpAddr, proto: u8, payload: &[u8]) -> Vec<u8> {
    match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => ipv4(src, dst, proto, payload, |_| ()),
        (IpAddr::V6(src), IpAddr::V6(dst)) => ipv6(src, dst, proto, payload),
        _ => panic!("one family"),
    }
}

pub(crate) fn ipv4(
    src: Ipv4Addr,
    dst: Ipv4Addr,
    proto: u8,
    payload: &[u8],
    change: impl FnOnce(&mut Ipv4Header),
) -> Vec<u8> {
    let length = u16::try_from(payload.len()).expect("short");
    let mut header = Ipv4Header::new(length, 64, IpNumber(proto), src.octets(), dst.octets()).expect("short");
    change(&mut header);
    header.total_len = header.header_len() as u16 + length;
    header.header_checksum = header.calc_header_checksum();
    [&header.to_bytes(), payload].concat()
}

pub(crate) fn ipv6(src: Ipv6Addr, dst: Ipv6Addr, next: u8, payload: &[u8]) -> Vec<u8> {
    let header = Ipv6Header {
        payload_length: u16::try_from(payload.len()).expect("short"),
        next_header: IpNumber(next),
        hop_limit: 64,
        source: src.octets(),
        destination: dst.octets(),
        ..Ipv6Header::default()
    };
    [&header.to_bytes(), payload].concat()
}

/// The first 8 bytes of a TCP, UDP or SCTP header, which is what a quoted packet has, and 12 more.
pub(crate) fn transport(sport: u16, dport: u16) -> Vec<u8> {
    let mut bytes = vec![0; 20];
    bytes[..2].copy_from_slice(&sport.to_be_bytes());
    bytes[2..4].copy_from_slice(&dport.to_be_bytes());
    bytes
}

/// An ICMP or ICMPv6 message.
pub(crate) fn icmp(kind: u8, body: &[u8]) -> Vec<u8> {
    [&[kind, 0, 0, 0, 0, 0, 0, 0], body].concat()
}

pub(crate) fn arp(operation: u16, target: Ipv4Addr) -> Vec<u8> {
    let mut bytes = vec![0, 1, 8, 0, 6, 4];
    bytes.extend(operation.to_be_bytes());
    bytes.extend([2, 2, 2, 2, 2, 2, 192, 0, 2, 10]);
    bytes.extend([0; 6]);
    bytes.extend(target.octets());
    ethernet(&[], &bytes, EtherType::ARP)
}

/// A fragment: offset in units of 8 bytes.
pub(crate) fn fragment(
    src: IpAddr,
    dst: IpAddr,
    proto: u8,
    offset: u16,
    more: bool,
    payload: &[u8],
) -> Vec<u8> {
    match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => ipv4(src, dst, proto, payload, |header| {
            header.fragment_offset = IpFragOffset::try_new(offset).unwrap();
            header.more_fragments = more;
        }),
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            let word = offset << 3 | u16::from(more);
            let header = [&[proto, 0], word.to_be_bytes().as_slice(), &[0, 0, 0, 7]].concat();
            ipv6(src, dst, 44, &[&header, payload].concat())
        }
        _ => panic!("one family"),
    }
}
