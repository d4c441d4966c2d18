//! TX: no XDP program is needed, for frames come from a test's hand.

use std::net::UdpSocket;
use std::time::Duration;

use dataplane::frame::Checksum;
use dataplane::ids::PortId;
use dataplane::io::xsk::{BindMode, XskConfig, XskIo};
use dataplane::io::{Arrival, Io, LiveIo, Turn};
use dataplane::verdict::{DropReason, Verdict};
use dataplane::wire::checksum::Sum;
use etherparse::PacketBuilder;

use crate::net::{CLIENT, CLIENT_MAC, Lab, PORT_MACS, SERVER, SERVER_MAC, config, ip};

const UPLINK: PortId = PortId(0);
const DOWNLINK: PortId = PortId(1);
/// Where the UDP header starts, and where its checksum lies in it.
const PARTIAL: Checksum = Checksum::Partial { start: 34, offset: 6 };

/// A datagram to the server's port 7777 with a right checksum.
fn datagram(payload: &[u8]) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2(PORT_MACS[1], SERVER_MAC)
        .ipv4(CLIENT.octets(), SERVER.octets(), 64)
        .udp(5555, 7777);
    let mut frame = Vec::new();
    builder.write(&mut frame, payload).unwrap();
    frame
}

/// The same as a local socket leaves it: the checksum field holds the sum of the pseudo-header.
fn unfinished(payload: &[u8]) -> Vec<u8> {
    let mut frame = datagram(payload);
    let (src, dst) = (u128::from(CLIENT.to_bits()), u128::from(SERVER.to_bits()));
    let sum = Sum::pseudo_header(src, dst, 17, frame.len() as u16 - 34).fold();
    frame[40..42].copy_from_slice(&sum.to_be_bytes());
    frame
}

/// Sends frames by `port`, a turn for each batch.
fn send(io: &mut XskIo, port: PortId, frames: &[(&[u8], Checksum)]) -> Turn {
    let mut left = frames.iter();
    let mut all = Turn::default();
    loop {
        let taken = io.inject(|room| {
            let (bytes, checksum) = left.next()?;
            room[..bytes.len()].copy_from_slice(bytes);
            Some(Arrival::handed_over(bytes.len(), UPLINK, *checksum))
        });
        if taken == 0 {
            return all;
        }
        let turn = io.turn(|_, verdicts| verdicts.fill(Verdict::Tx(port)));
        all.frames += turn.frames;
        all.lost.extend(turn.lost.into_iter().take(all.lost.remaining_capacity()));
    }
}

fn receiver(lab: &Lab) -> UdpSocket {
    let socket = lab.server.run(|| UdpSocket::bind((SERVER, 7777)).unwrap());
    socket.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
    socket
}

/// The payloads up to and including an empty one.
fn received(socket: &UdpSocket) -> Vec<Vec<u8>> {
    let mut buffer = [0; 2048];
    let next = || {
        let len = socket.recv(&mut buffer).expect("a datagram");
        Some(buffer[..len].to_vec()).filter(|payload| !payload.is_empty())
    };
    std::iter::from_fn(next).collect()
}

#[test]
fn partial_checksums_are_completed_on_the_way_out() {
    let Some(lab) = Lab::new("partial_checksums_are_completed_on_the_way_out") else { return };
    let socket = receiver(&lab);
    lab.middle.run(|| {
        let mut io = XskIo::open(&config(0, &["p0", "p1"])).unwrap();
        assert!(io.sockets().iter().all(|socket| socket.tx_checksum && socket.mode == BindMode::Copy));
        let turn = send(
            &mut io,
            DOWNLINK,
            &[
                (&datagram(b"complete"), Checksum::Complete),
                (&unfinished(b"left to the kernel"), PARTIAL),
                (&unfinished(b"sent as it is, and refused by the server"), Checksum::Complete),
                (&unfinished(b"odd length"), PARTIAL),
                (&datagram(b""), Checksum::Complete),
            ],
        );
        assert_eq!((turn.frames, turn.lost.len()), (5, 0));
        assert_eq!(received(&socket), [&b"complete"[..], b"left to the kernel", b"odd length"]);
        io.turn(|_, _| ());
        assert_eq!(io.leaked_chunks(), 0);
    });
}

#[test]
fn one_memory_serves_two_interfaces() {
    let Some(lab) = Lab::new("one_memory_serves_two_interfaces") else { return };
    let to_server = receiver(&lab);
    let to_client = lab.client.run(|| UdpSocket::bind((CLIENT, 7777)).unwrap());
    to_client.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
    let back = |payload: &[u8]| {
        let mut frame = Vec::new();
        let builder = PacketBuilder::ethernet2(PORT_MACS[0], CLIENT_MAC);
        builder
            .ipv4(SERVER.octets(), CLIENT.octets(), 64)
            .udp(7777, 7777)
            .write(&mut frame, payload)
            .unwrap();
        frame
    };
    lab.middle.run(|| {
        let mut io = XskIo::open(&config(1, &["p0", "p1"])).unwrap();
        let memory = io.memory();
        assert!(memory.chunks >= 2 * 2 * 2048 + 64 && memory.chunk_size == 2048, "{memory:?}");
        for round in 0..200u8 {
            // 64 frames are two kernel calls in copy mode, and 200 times 64 use every chunk several times.
            let out = datagram(&[round, 1]);
            assert!(send(&mut io, DOWNLINK, &[(&out[..], Checksum::Complete); 32]).lost.is_empty());
            assert!(
                send(&mut io, UPLINK, &[(&back(&[round, 2])[..], Checksum::Complete); 32]).lost.is_empty()
            );
            for (socket, from) in [(&to_server, 1), (&to_client, 2)] {
                let mut buffer = [0; 16];
                for _ in 0..32 {
                    assert_eq!(socket.recv(&mut buffer).unwrap(), 2);
                    assert_eq!(buffer[..2], [round, from]);
                }
            }
        }
        io.turn(|_, _| ());
        let sent: Vec<_> = io.sockets().iter().map(|socket| socket.counters.tx.get()).collect();
        assert_eq!(sent, [200 * 32; 2]);
        assert_eq!(io.leaked_chunks(), 0);
    });
}

#[test]
fn a_link_that_is_down_loses_by_name_and_recovers() {
    let Some(lab) = Lab::new("a_link_that_is_down_loses_by_name_and_recovers") else { return };
    let socket = receiver(&lab);
    lab.middle.run(|| {
        let small = XskConfig { ring_size: 64, ..config(0, &["p0", "p1"]) };
        let mut io = XskIo::open(&small).unwrap();
        ip("link set p1 down");
        let frame = datagram(b"while it is down");
        let lost: usize = (0..100)
            .map(|_| send(&mut io, DOWNLINK, &[(&frame[..], Checksum::Complete); 32]).lost.len())
            .sum();
        let counters = std::sync::Arc::clone(&io.sockets()[1].counters);
        assert!(counters.failed_wakeups.get() > 0);
        assert!(lost == 3200 - 64, "the ring has 64 entries, {lost} were lost");
        assert_eq!(io.leaked_chunks(), 0);
        ip("link set p1 up");
        // What waited goes first.
        let start = std::time::Instant::now();
        while send(&mut io, DOWNLINK, &[(&datagram(b""), Checksum::Complete)]).lost.first()
            == Some(&DropReason::TxRingFull)
        {
            assert!(start.elapsed() < Duration::from_secs(3), "the ring stays full");
        }
        let waited = received(&socket);
        assert_eq!(waited, [b"while it is down"; 64]);
        io.turn(|_, _| ());
        assert_eq!(io.leaked_chunks(), 0);
    });
}

#[test]
fn what_the_kernel_would_choke_on_is_not_sent() {
    let Some(lab) = Lab::new("what_the_kernel_would_choke_on_is_not_sent") else { return };
    let socket = receiver(&lab);
    lab.middle.run(|| {
        let mut io = XskIo::open(&config(0, &["p0", "p1"])).unwrap();
        let frame = datagram(b"");
        let turn = send(
            &mut io,
            DOWNLINK,
            &[
                (&frame[..13], Checksum::Complete),
                (&[], Checksum::Complete),
                (&frame, Checksum::Partial { start: 34, offset: 60 }),
            ],
        );
        assert_eq!(turn.lost[..], [DropReason::Truncated, DropReason::Truncated, DropReason::BadLength]);
        let turn = io.turn(|_, _| ());
        assert_eq!(turn.frames, 0);
        io.inject(|room| {
            room[..frame.len()].copy_from_slice(&frame);
            Some(Arrival::handed_over(frame.len(), UPLINK, Checksum::Complete))
        });
        let turn = io.turn(|frames, verdicts| {
            // As encapsulation in the wrong place would: no room left for TX metadata.
            let headroom = frames[0].headroom();
            assert!(frames[0].grow_front(headroom - 23));
            verdicts.fill(Verdict::Drop(DropReason::Land));
            verdicts[0] = Verdict::Tx(DOWNLINK);
        });
        assert_eq!(turn.lost[..], [DropReason::NoHeadroom]);
        assert!(send(&mut io, DOWNLINK, &[(&frame, Checksum::Complete)]).lost.is_empty());
        assert!(received(&socket).is_empty(), "the ring is not blocked, and nothing else came");
        let statistics = io.sockets()[1].statistics().unwrap().unwrap();
        assert_eq!(statistics.tx_invalid, 0);
        io.turn(|_, _| ());
        assert_eq!(io.leaked_chunks(), 0);
    });
}
