//! Workers between a client and a server, behind the XDP program.
//!
//! What they decide is simple: datagrams of the client to the VIP's port 7777 go on to the server, which has the VIP
//! too, and its answers go back. A worker owns the flows whose client port is its own number modulo two, so that about
//! half of all frames arrive at the wrong one.

use std::collections::HashSet;
use std::net::{IpAddr, UdpSocket};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use dataplane::frame::{Checksum, Frame};
use dataplane::ids::{PortId, WorkerId};
use dataplane::io::Io;
use dataplane::io::handoff::{Exchange, mesh};
use dataplane::io::xsk::{PortSocket, XskConfig, XskIo};
use dataplane::pipeline::FlowRecord;
use dataplane::snapshot::Snapshot;
use dataplane::snapshot::publish::Publisher;
use dataplane::stats::WorkerStats;
use dataplane::time::Tick;
use dataplane::verdict::{DropReason, Verdict};
use dataplane::wire::checksum::{Sum, is_partial};
use dataplane::worker::{Handler, Idle, Parts, WorkerHandle, monotonic_ns, spawn};
use xdp_prog::{Delta, Endpoint, Limits, Ours, Proto, Xdp};

use crate::net::{CLIENT, CLIENT_MAC, Lab, PORT_MACS, SERVER_MAC, VIP, config, ifindex, ip};

const SERVICE: u16 = 7777;

/// The rule above, for worker `own` of two.
struct Relay {
    own: u8,
}

impl Relay {
    fn decide(&self, frame: &mut Frame<'_>) -> Verdict {
        let bytes = frame.bytes_mut();
        let word = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
        let long = |at: usize| u128::from(word(at)) << 16 | u128::from(word(at + 2));
        if bytes.len() < 42 || word(12) != 0x0800 || bytes[23] != 17 {
            return Verdict::Drop(DropReason::Unsupported);
        }
        let pseudo_header = Sum::pseudo_header(long(26), long(30), 17, word(38));
        let is_unfinished = is_partial(word(40), pseudo_header);
        let is_request = word(36) == SERVICE;
        let client_port = if is_request { word(34) } else { word(36) };
        let owner = (client_port % 2) as u8;
        if owner != self.own {
            return Verdict::Handoff(WorkerId(owner));
        }
        let (port, mac) = if is_request { (1, SERVER_MAC) } else { (0, CLIENT_MAC) };
        bytes[..6].copy_from_slice(&mac);
        bytes[6..12].copy_from_slice(&PORT_MACS[usize::from(port)]);
        if is_unfinished {
            frame.checksum = Checksum::Partial { start: 34, offset: 6 };
        }
        Verdict::Tx(PortId(port))
    }
}

impl Handler for Relay {
    fn process(&mut self, frames: &mut [Frame<'_>], verdicts: &mut [Verdict], _: Tick, _: &Snapshot) {
        for (frame, verdict) in frames.iter_mut().zip(verdicts) {
            *verdict = self.decide(frame);
        }
    }

    fn sweep(&mut self, _: Tick, _: &Snapshot) -> bool {
        false
    }

    fn dump(&self, _: usize, _: usize, _: Tick, _: &mut Vec<FlowRecord>) -> Option<usize> {
        None
    }

    fn flows(&self) -> usize {
        0
    }
}

/// The program on both ports, for both ways of the service.
fn program() -> Xdp {
    let service = Endpoint { addr: IpAddr::V4(VIP), port: SERVICE, proto: Proto::Udp };
    let ours =
        Ours { vips: HashSet::from([service]), nat_backends: HashSet::from([service]), ..Ours::default() };
    let mut xdp = Xdp::load(&Limits::default()).unwrap();
    for (port, name) in [(0, "p0"), (1, "p1")] {
        xdp.attach(port, ifindex(name), false).unwrap();
    }
    xdp.begin(&Delta::between(&Ours::default(), &ours)).unwrap();
    xdp.finish().unwrap();
    xdp
}

fn register(xdp: &Xdp, io: &XskIo) {
    for socket in io.sockets() {
        xdp.register_socket(socket.port.0, socket.queue, socket.fd().unwrap().as_fd()).unwrap();
    }
}

/// Two workers and the program, in the calling thread's namespace.
fn workers(idle: Idle) -> (Xdp, Vec<WorkerHandle>, Vec<PortSocket>) {
    let xdp = program();
    let publisher = Publisher::new(Snapshot::default(), 2);
    let mut sockets = Vec::new();
    let start = |(own, exchange): (u8, Exchange)| {
        let io = XskIo::open(&config(own.into(), &["p0", "p1"])).unwrap();
        register(&xdp, &io);
        sockets.extend_from_slice(io.sockets());
        let beat = xdp.beat(own.into()).unwrap();
        let parts = Parts {
            id: WorkerId(own),
            core: None,
            io,
            handler: Relay { own },
            exchange,
            snapshots: publisher.reader(WorkerId(own)),
            stats: Arc::new(WorkerStats::new(0, 0)),
            beat: move |now_ns| beat.beat(now_ns),
            idle,
        };
        spawn(parts).unwrap()
    };
    let handles = (0..2).zip(mesh(2, 256, 2048).unwrap()).map(start).collect();
    (xdp, handles, sockets)
}

/// Echoes in the server's namespace until dropped.
struct Echo {
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Echo {
    fn new(lab: &Lab) -> Self {
        let socket = lab.server.run(|| UdpSocket::bind((VIP, SERVICE)).unwrap());
        socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let thread = std::thread::spawn({
            let stop = Arc::clone(&stop);
            move || {
                let mut buffer = [0; 2048];
                while !stop.load(Ordering::Relaxed) {
                    if let Ok((len, from)) = socket.recv_from(&mut buffer) {
                        socket.send_to(&buffer[..len], from).unwrap();
                    }
                }
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(std::thread::JoinHandle::join);
    }
}

/// Sends `rounds` datagrams by each of 40 sockets and counts the right answers.
fn converse(lab: &Lab, rounds: usize, len: usize) -> usize {
    let sockets: Vec<_> =
        lab.client.run(|| (0..40).map(|n| UdpSocket::bind((CLIENT, 20_000 + n)).unwrap()).collect());
    let mut answers = 0;
    for round in 0..rounds {
        let payload = |n: usize| vec![(round + n) as u8; len];
        for (n, socket) in sockets.iter().enumerate() {
            socket.send_to(&payload(n), (VIP, SERVICE)).unwrap();
        }
        for (n, socket) in sockets.iter().enumerate() {
            socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
            let mut buffer = [0; 2048];
            answers += usize::from(socket.recv(&mut buffer).is_ok_and(|len| buffer[..len] == payload(n)));
        }
    }
    answers
}

fn stop(handles: Vec<WorkerHandle>) {
    for handle in &handles {
        handle.stop();
    }
    for handle in handles {
        handle.join().unwrap();
    }
}

/// Held by every test that starts workers: the time that a process's workers use is counted by their threads' name.
static WORKERS: Mutex<()> = Mutex::new(());

#[test]
fn two_workers_relay_both_ways_and_hand_over_what_is_not_theirs() {
    let _alone = WORKERS.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(lab) = Lab::new("two_workers_relay_both_ways_and_hand_over_what_is_not_theirs") else { return };
    for (name, idle) in [
        ("busy", Idle { busy_poll: true, ..Idle::default() }),
        ("spinning, then sleeping", Idle::default()),
        ("sleeping at once", Idle { spin: Duration::ZERO, ..Idle::default() }),
    ] {
        let (xdp, handles, sockets) = lab.middle.run(|| workers(idle));
        let echo = Echo::new(&lab);
        assert_eq!(converse(&lab, 25, 1000), 1000, "{name}");
        drop(echo);
        for socket in &sockets {
            let (rx, tx) = (socket.counters.rx.get(), socket.counters.tx.get());
            assert!(rx > 0 && tx > 0, "{name}: {socket:?}");
            assert_eq!(socket.counters.bad_descriptors.get(), 0, "{name}");
        }
        let taken_over: u64 = handles.iter().map(|handle| handle.stats.taken_over.get()).sum();
        assert!(taken_over > 100, "{name}: {taken_over} of about 1000");
        let lost: u64 = handles.iter().flat_map(|h| DropReason::ALL.iter().map(|r| h.stats.drops(*r))).sum();
        assert_eq!(lost, 0, "{name}");
        stop(handles);
        drop(xdp);
    }
}

#[test]
fn an_idle_worker_uses_less_than_a_hundredth_of_a_core() {
    let _alone = WORKERS.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(lab) = Lab::new("an_idle_worker_uses_less_than_a_hundredth_of_a_core") else { return };
    let (xdp, handles, _) = lab.middle.run(|| workers(Idle::default()));
    let echo = Echo::new(&lab);
    let share = |name: &str| {
        let before = cpu_ns("weir-w");
        std::thread::sleep(Duration::from_secs(1));
        let share = (cpu_ns("weir-w") - before) as f64 / 1e9 / 2.0;
        println!("{name}: {:.3} % of a core for each of two workers", share * 100.0);
        assert!(share < 0.01, "{name}: {share} of a core");
    };
    share("before any traffic");
    assert_eq!(converse(&lab, 5, 100), 200);
    share("after traffic");
    lab.middle.run(|| ip("link set p1 down"));
    share("with a link down");
    lab.middle.run(|| ip("link del p1"));
    share("with an interface gone");
    drop(echo);
    stop(handles);
    drop(xdp);
}

/// CPU time of this process's threads with such names, in nanoseconds.
fn cpu_ns(prefix: &str) -> u64 {
    let read = |task: &std::path::Path, file| std::fs::read_to_string(task.join(file)).unwrap_or_default();
    std::fs::read_dir("/proc/self/task")
        .unwrap()
        .map(|task| task.unwrap().path())
        .filter(|task| read(task, "comm").starts_with(prefix))
        .filter_map(|task| read(&task, "schedstat").split(' ').next()?.parse::<u64>().ok())
        .sum()
}

#[test]
fn a_ring_that_nobody_reads_shows_in_the_statistics() {
    let Some(lab) = Lab::new("a_ring_that_nobody_reads_shows_in_the_statistics") else { return };
    lab.middle.run(|| {
        let xdp = program();
        let open = |queue| {
            let io = XskIo::open(&XskConfig { ring_size: 64, ..config(queue, &["p0"]) }).unwrap();
            register(&xdp, &io);
            xdp.beat(queue).unwrap().beat(monotonic_ns());
            io
        };
        let mut ios = [open(0), open(1)];
        let client = lab.client.run(|| UdpSocket::bind((CLIENT, 20_000)).unwrap());
        for _ in 0..1000 {
            client.send_to(&[1; 100], (VIP, SERVICE)).unwrap();
        }
        let statistics = || ios.iter().map(|io| io.sockets()[0].statistics().unwrap().unwrap());
        let lost = || statistics().map(|s| s.rx_dropped + s.rx_ring_full + s.fill_ring_empty).sum::<u64>();
        let start = Instant::now();
        while lost() < 1000 - 64 && start.elapsed() < Duration::from_secs(2) {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(lost() >= 1000 - 64, "{:?}", statistics().collect::<Vec<_>>());
        let mut frames = 0;
        for io in &mut ios {
            frames += io.turn(|_, _| ()).frames;
            io.turn(|_, _| panic!("a flow has one queue, and 64 entries"));
            assert_eq!(io.leaked_chunks(), 0);
        }
        assert_eq!(frames, 64);
    });
}
