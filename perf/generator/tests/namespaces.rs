//! The commands against each other, over veth pairs: client -- forwarder -- server, each in a namespace of its own.

#![allow(
    clippy::cast_possible_truncation,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use serde_json::Value;

const QUEUES: &str = "2";
const SERVER_MAC: &str = "02:00:00:00:00:02";

/// Three namespaces with two veth pairs of two queues, gone when dropped.
struct Lab {
    client: String,
    forwarder: String,
    server: String,
}

impl Lab {
    fn new(name: &str) -> Self {
        let [client, forwarder, server] =
            ["c", "f", "s"].map(|role| format!("weirgen-{name}-{role}-{}", std::process::id()));
        let lab = Self { client, forwarder, server };
        let Self { client, forwarder, server } = &lab;
        for namespace in [client, forwarder, server] {
            ip(&format!("netns add {namespace}"));
        }
        let queues = format!("numtxqueues {QUEUES} numrxqueues {QUEUES}");
        for (namespace, near, far) in [(client, "c0", "f0"), (server, "s0", "f1")] {
            ip(&format!(
                "link add {near} netns {namespace} {queues} type veth peer name {far} netns {forwarder} {queues}"
            ));
        }
        ip(&format!("-n {server} link set s0 address {SERVER_MAC}"));
        for (namespace, interface) in [(client, "c0"), (server, "s0"), (forwarder, "f0"), (forwarder, "f1")] {
            ip(&format!("-n {namespace} link set {interface} addrgenmode none up"));
        }
        ip(&format!("-n {client} addr add 10.0.0.1/24 dev c0"));
        ip(&format!("-n {server} addr add 10.0.0.2/24 dev s0"));
        lab
    }

    fn forward(&self) -> Tool {
        Tool::start(&self.forwarder, &["forward", "--in", "f0", "--out", "f1", "--queues", QUEUES])
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for namespace in [&self.client, &self.forwarder, &self.server] {
            drop(Command::new("ip").args(["netns", "del", namespace]).status());
        }
    }
}

fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split_whitespace()).output().unwrap();
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A running `weir-gen`, ended when dropped.
struct Tool(Child);

impl Tool {
    /// Starts a command and waits until its sockets are bound.
    fn start(namespace: &str, arguments: &[&str]) -> Self {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", namespace, env!("CARGO_BIN_EXE_weir-gen")]).args(arguments);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut tool = Self(child);
        let mut lines = BufReader::new(tool.0.stderr.take().unwrap()).lines();
        let mut said = Vec::new();
        let ready = lines.by_ref().map(Result::unwrap).any(|line| {
            said.push(line);
            said.last().is_some_and(|line| line == "ready")
        });
        assert!(ready, "{arguments:?} did not start: {said:?}");
        // Nobody reads what else it says, but it must be able to say it.
        thread::spawn(move || lines.for_each(drop));
        tool
    }

    /// Waits for the end and returns the report.
    fn report(mut self) -> Value {
        let mut text = String::new();
        self.0.stdout.take().unwrap().read_to_string(&mut text).unwrap();
        assert!(self.0.wait().unwrap().success());
        serde_json::from_str(&text).unwrap()
    }

    /// Stops the command and returns the report.
    fn stop(self) -> Value {
        self.signal();
        self.report()
    }

    fn signal(&self) {
        // `ip netns exec` becomes the command, so this is its process.
        drop(Command::new("kill").arg(self.0.id().to_string()).status());
    }
}

impl Drop for Tool {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(None)) {
            self.signal();
            drop(self.0.wait());
        }
    }
}

/// Namespaces need root. Says so where the test cannot run.
fn is_root(test: &str) -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("{test} did not run: it needs root for network namespaces and AF_XDP");
    }
    root
}

#[test]
fn nothing_is_lost_or_damaged_at_a_low_rate() {
    if !is_root("nothing_is_lost_or_damaged_at_a_low_rate") {
        return;
    }
    let lab = Lab::new("rate");
    let forwarder = lab.forward();
    let mut passed = 0;
    for (src, dst, protocol, size) in [
        ("10.1.0.1", "10.0.0.2", "udp", "60"),
        ("10.1.0.1", "10.0.0.2", "tcp-syn", "60"),
        ("fd00::1", "fd00::2", "tcp-ack", "1514"),
    ] {
        let sink = ["sink", "--interface", "s0", "--queues", QUEUES, "--streams", QUEUES];
        let sink = Tool::start(&lab.server, &sink);
        let generator = Tool::start(
            &lab.client,
            &[
                "send",
                "--interface",
                "c0",
                "--queues",
                QUEUES,
                "--dst-mac",
                SERVER_MAC,
                "--src",
                src,
                "--dst",
                dst,
                "--protocol",
                protocol,
                "--size",
                size,
                "--flows",
                "500",
                "--rate",
                "10000",
                "--count",
                "2000",
            ],
        );
        assert_eq!(generator.report()["sent"], 4000, "{protocol}");
        thread::sleep(Duration::from_millis(200));
        let report = sink.stop();
        let faults = ["missing", "late", "damaged"].map(|fault| report[fault].as_u64().unwrap());
        assert_eq!((report["received"].as_u64(), faults), (Some(4000), [0, 0, 0]), "{protocol}: {report}");
        passed += 4000;
    }
    let report = forwarder.stop();
    let threads = report["threads"].as_array().unwrap();
    let forwarded: u64 = threads.iter().map(|thread| thread["forwarded"][0].as_u64().unwrap()).sum();
    assert_eq!(forwarded, passed, "{report}");
    for thread in threads {
        assert!(thread["forwarded"][0].as_u64().unwrap() > 0, "both queues take part: {report}");
    }
}

/// What all generators of these tests have in common.
const SENDER: [&str; 10] =
    ["--interface", "c0", "--dst-mac", SERVER_MAC, "--src", "10.1.0.1", "--dst", "10.0.0.2", "--dsts", "3"];

#[test]
fn datagrams_of_all_sizes_are_answered_timed_and_told_by_flow() {
    if !is_root("datagrams_of_all_sizes_are_answered_timed_and_told_by_flow") {
        return;
    }
    let lab = Lab::new("answers");
    let forwarder = lab.forward();
    let start_ns = (Duration::from(nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).unwrap())
        + Duration::from_secs(2))
    .as_nanos()
    .to_string();
    let flows = ["--flows", "50", "--random", "--new-per-mille", "100"];
    let pace = ["--rate", "10000", "--start-ns", &start_ns];
    let sink = ["sink", "--interface", "s0", "--queues", QUEUES, "--answer", "--by-flow"];
    let sink = Tool::start(&lab.server, &[&sink[..], &flows, &pace].concat());
    let send = ["send", "--size", "imix", "--answers", "--count", "3600"];
    let generator = Tool::start(&lab.client, &[&send[..], &SENDER, &flows, &pace].concat());
    let sent = generator.report();
    // Of twelve frames seven of 60 bytes, four of 590, one of 1514.
    assert_eq!((&sent["sent"], &sent["bytes"]), (&3600.into(), &1_288_200.into()));
    assert_eq!(sent["answered"], 3600, "{sent}");
    let report = sink.stop();
    let none_lacks = serde_json::json!({"flows": 0, "most": 0});
    assert_eq!((&report["received"], &report["flow_loss"]), (&3600.into(), &none_lacks), "{report}");
    // None can come before it is due; how long after depends on the machine.
    let latency = &report["latency"];
    assert_eq!(latency["count"], 3600);
    assert!(latency["p50_ns"].as_u64().unwrap() > 1000, "{latency}");
    // They are due within 0.36 seconds.
    let tenths = &report["latency_tenths"];
    assert!(tenths["count"].as_u64().unwrap() >= 1 && tenths["p99_ns"].as_u64().unwrap() > 1000, "{tenths}");
    drop(forwarder);
}

#[test]
fn a_window_keeps_a_generator_without_a_rate_from_losing_anything() {
    if !is_root("a_window_keeps_a_generator_without_a_rate_from_losing_anything") {
        return;
    }
    let lab = Lab::new("window");
    let _forwarder = lab.forward();
    let file = std::env::temp_dir().join(format!("weirgen-window-{}", std::process::id()));
    let progress = ["--progress", file.to_str().unwrap()];
    let sink = ["sink", "--interface", "s0", "--queues", QUEUES];
    let sink = Tool::start(&lab.server, &[&sink[..], &progress].concat());
    let send = ["send", "--window", "256", "--count", "20000", "--flows", "100"];
    let sent = Tool::start(&lab.client, &[&send[..], &SENDER, &progress].concat()).report();
    assert_eq!(sent["sent"], 20_000);
    assert!(sent["threads"][0]["waited_s"].as_f64().unwrap() > 0.0, "{sent}");
    thread::sleep(Duration::from_millis(200));
    let report = sink.stop();
    let counts = ["received", "missing", "damaged"].map(|count| report[count].as_u64().unwrap());
    assert_eq!(counts, [20_000, 0, 0], "{report}");

    // Where nothing comes, the window opens by itself after a while: 400 frames in steps of 256 at most.
    let silent = ["send", "--window", "256", "--count", "400", "--flows", "100"];
    let sent = Tool::start(&lab.client, &[&silent[..], &SENDER, &progress].concat()).report();
    assert_eq!(sent["sent"], 400);
    std::fs::remove_file(file).unwrap();
}

#[test]
fn connections_are_opened_used_and_closed() {
    if !is_root("connections_are_opened_used_and_closed") {
        return;
    }
    let lab = Lab::new("connect");
    let forwarder = lab.forward();
    let sink = Tool::start(&lab.server, &["sink", "--interface", "s0", "--queues", QUEUES, "--answer"]);
    let connect = |more: &[&str]| {
        let args = ["connect", "--connections", "500", "--rate", "5000"];
        Tool::start(&lab.client, &[&args[..], &SENDER, more].concat()).report()
    };
    let report = connect(&[]);
    for (field, want) in [("started", 500), ("opened", 500), ("closed", 500), ("strange", 0)] {
        assert_eq!(report[field], want, "{field}: {report}");
    }
    assert_eq!(report["latency"]["count"], 500);
    let report = connect(&["--open", "--first-flow", "500"]);
    for (field, want) in [("started", 500), ("opened", 500), ("closed", 0), ("strange", 0)] {
        assert_eq!(report[field], want, "{field}: {report}");
    }
    drop(forwarder);
    let report = connect(&[]);
    assert_eq!((&report["started"], &report["opened"]), (&500.into(), &0.into()), "{report}");
    drop(sink);
}

#[test]
fn tcp_passes_with_checksum_offload_left_on() {
    const BYTES: usize = 16 << 20;
    if !is_root("tcp_passes_with_checksum_offload_left_on") {
        return;
    }
    let lab = Lab::new("tcp");
    let _forwarder = lab.forward();
    let address: SocketAddr = "10.0.0.2:7000".parse().unwrap();
    let pattern: Vec<u8> = (0..BYTES).map(|at| ((at * 31) >> 3) as u8).collect();
    thread::scope(|scope| {
        let listener =
            scope.spawn(|| inside(&lab.server, || TcpListener::bind(address).unwrap())).join().unwrap();
        let server = scope.spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut received = Vec::new();
            stream.read_to_end(&mut received).unwrap();
            stream.write_all(b"whole").unwrap();
            received
        });
        let client = scope.spawn(|| {
            let mut stream = inside(&lab.client, || {
                TcpStream::connect_timeout(&address, Duration::from_secs(10)).unwrap()
            });
            stream.set_write_timeout(Some(Duration::from_secs(10))).unwrap();
            stream.write_all(&pattern).unwrap();
            stream.shutdown(std::net::Shutdown::Write).unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            answer
        });
        assert_eq!(client.join().unwrap(), "whole");
        assert!(server.join().unwrap() == pattern, "the bytes differ");
    });
}

/// Runs `work` with this thread in the namespace; sockets made in it stay there.
fn inside<T>(namespace: &str, work: impl FnOnce() -> T) -> T {
    setns(File::open(format!("/run/netns/{namespace}")).unwrap(), CloneFlags::CLONE_NEWNET).unwrap();
    work()
}
