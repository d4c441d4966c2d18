//! Commands that need neither root nor a running Weir.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::Result;
use etherparse::PacketBuilder;
use serde_json::Value;

use crate::weir;

const CONFIG: &str = "\
interfaces:
  - name: eth1
  - name: eth2
workers: {count: 2, cores: [0, 1]}
snat_pools:
  - name: pool
    addresses: [10.0.2.200]
services:
  - name: web
    vip: 10.0.0.10
    port: 80
    scheduler: rr
    mode: fullnat
    snat_pool: pool
    backends:
      - {address: 10.0.2.1, port: 8080}
      - {address: 10.0.2.2, port: 8080}
  - name: empty
    vip: 10.0.0.10
    port: 81
    backends: []
";

/// A directory with the binary and a configuration that an ordinary user can read.
pub(crate) struct Desk(tempfile::TempDir);

impl Desk {
    pub(crate) fn new(config: &str) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        // Not by the builder: the umask would take the right to write away.
        std::fs::set_permissions(&directory, std::fs::Permissions::from_mode(0o777))?;
        std::fs::copy(weir(), directory.path().join("weir"))?;
        std::fs::write(directory.path().join("weir.yaml"), config)?;
        Ok(Self(directory))
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Runs `weir` in the directory as an ordinary user.
    pub(crate) fn weir(&self, args: &[&str]) -> Result<Output> {
        let mut command = if testbed::is_root() {
            let mut command = Command::new("setpriv");
            command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all"]);
            command.arg(self.path("weir"));
            command
        } else {
            Command::new(self.path("weir"))
        };
        Ok(command.args(args).current_dir(self.0.path()).output()?)
    }

    pub(crate) fn json(&self, args: &[&str]) -> Result<Value> {
        let output = self.weir(args)?;
        assert!(output.status.success(), "{args:?}: {output:?}");
        Ok(serde_json::from_slice(&output.stdout)?)
    }
}

#[test]
fn check_accepts_a_good_file_and_tells_every_fault_of_a_bad_one() -> Result<()> {
    let good = Desk::new(CONFIG)?.weir(&["check", "weir.yaml"])?;
    assert!(good.status.success(), "{good:?}");

    let faulty = CONFIG
        .replace("port: 81", "port: 65536")
        .replace("{address: 10.0.2.2, port: 8080}", "{address: \"fd00::2\", port: 8080, weight: 2147483648}")
        .replace("scheduler: rr", "scheduler: fastest");
    let bad = Desk::new(&faulty)?.weir(&["check", "weir.yaml"])?;
    assert_eq!(bad.status.code(), Some(2), "{bad:?}");
    let said = String::from_utf8_lossy(&bad.stdout).into_owned() + &String::from_utf8_lossy(&bad.stderr);
    for place in ["weir.yaml:12:", "weir.yaml:14:", "weir.yaml:17:", "weir.yaml:20:"] {
        assert!(said.contains(place), "{place} is not in {said}");
    }
    for reason in ["fastest", "65536", "no IPv6 address", "2147483648"] {
        assert!(said.contains(reason), "{reason} is not in {said}");
    }
    let missing = Desk::new(CONFIG)?.weir(&["check", "elsewhere.yaml"])?;
    assert_eq!(missing.status.code(), Some(2), "{missing:?}");
    Ok(())
}

#[test]
fn explain_tells_what_becomes_of_a_packet() -> Result<()> {
    let desk = Desk::new(CONFIG)?;
    for (name, to, outcome, reason) in [
        ("a service", "10.0.0.10:80", "forward", None),
        ("with its protocol", "10.0.0.10:80/tcp", "forward", None),
        ("another protocol", "10.0.0.10:80/udp", "kernel", None),
        ("no backend", "10.0.0.10:81", "reject", Some("no_backend")),
        ("another address", "10.0.0.99:80", "kernel", None),
    ] {
        let said = desk.json(&[
            "explain",
            "--config",
            "weir.yaml",
            "--from",
            "192.0.2.1:4000",
            "--to",
            to,
            "--output",
            "json",
        ])?;
        assert_eq!(said["outcome"], outcome, "{name}: {said}");
        if let Some(reason) = reason {
            assert_eq!(said["reason"], reason, "{name}: {said}");
        }
        for key in ["service", "backends", "mode", "masquerade", "steps"] {
            assert!(said.get(key).is_some(), "{name}: no {key} in {said}");
        }
    }
    let said = desk.json(&[
        "explain",
        "--config",
        "weir.yaml",
        "--from",
        "192.0.2.1",
        "--to",
        "10.0.0.10:80",
        "-o",
        "json",
    ])?;
    let backends: Vec<&str> =
        said["backends"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    assert_eq!(
        {
            let mut sorted = backends.clone();
            sorted.sort_unstable();
            sorted
        },
        ["10.0.2.1:8080", "10.0.2.2:8080"]
    );
    assert_eq!((&said["mode"], &said["masquerade"]), (&"fullnat".into(), &true.into()), "{said}");

    let text =
        desk.weir(&["explain", "--config", "weir.yaml", "--from", "192.0.2.1", "--to", "10.0.0.10:80"])?;
    assert!(text.status.success() && !text.stdout.is_empty(), "{text:?}");
    let nonsense =
        desk.weir(&["explain", "--config", "weir.yaml", "--from", "192.0.2.1", "--to", "10.0.0.10"])?;
    assert_eq!(nonsense.status.code(), Some(2), "{nonsense:?}");
    Ok(())
}

const ACCESS: &str = r#"
interfaces: [{name: eth1}]
node_addresses: [192.0.2.1]
local_networks: [10.244.0.0/16]
virtual_networks: [10.96.0.0/16]
snat_pools: [{name: p, addresses: [192.0.2.9]}]
services:
  - {name: open, vip: 10.96.0.1, port: 80, node_port: 30080, snat_pool: p, masquerade: not-local,
     backends: [{address: 10.244.0.1, port: 8080}]}
  - {name: narrow, vip: 203.0.113.1, port: 80, source_ranges: [198.51.100.0/24], backends: [{address: 10.244.0.1}]}
  - {name: elsewhere, vip: 203.0.113.2, port: 80, when_empty: drop}
"#;

#[test]
fn explain_tells_who_may_use_a_service_and_whose_address_is_hidden() -> Result<()> {
    let desk = Desk::new(ACCESS)?;
    let (pod, outside, node) = ("10.244.0.7", "198.51.100.7", "192.0.2.1");
    for (name, from, to, outcome, reason, masquerade) in [
        ("a pod", pod, "10.96.0.1:80", "forward", None, false),
        ("from outside", outside, "10.96.0.1:80", "forward", None, true),
        ("the node itself", node, "10.96.0.1:80", "forward", None, true),
        ("the backend itself", "10.244.0.1", "10.96.0.1:80", "forward", None, true),
        ("by node port", pod, "192.0.2.1:30080", "forward", None, false),
        ("in a source range", outside, "203.0.113.1:80", "forward", None, false),
        ("in none", pod, "203.0.113.1:80", "drop", Some("source_range"), false),
        ("backends elsewhere", outside, "203.0.113.2:80", "drop", Some("no_local_backend"), false),
        ("no such port", outside, "10.96.0.1:81", "reject", Some("no_service_port"), false),
        ("no such address", outside, "10.96.0.2:80", "drop", Some("unallocated_address"), false),
        ("outside of the virtual network", outside, "10.97.0.2:80", "kernel", None, false),
    ] {
        let ask = ["explain", "--config", "weir.yaml", "--from", from, "--to", to, "-o", "json"];
        let said = desk.json(&ask)?;
        assert_eq!(
            (&said["outcome"], &said["masquerade"]),
            (&outcome.into(), &masquerade.into()),
            "{name}: {said}"
        );
        assert_eq!(said["reason"], reason.map_or(Value::Null, Value::from), "{name}: {said}");
        let mode = match (outcome, masquerade) {
            ("forward", true) => "fullnat".into(),
            ("forward", false) => "nat".into(),
            _ => Value::Null,
        };
        assert_eq!(said["mode"], mode, "{name}: {said}");
    }
    Ok(())
}

#[test]
fn replay_sends_a_capture_through_the_engine() -> Result<()> {
    let desk = Desk::new(CONFIG)?;
    let tcp = |port: u16, syn: bool| {
        let builder = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 9], [2, 0, 0, 0, 0, 1])
            .ipv4([192, 0, 2, 1], [10, 0, 0, 10], 64)
            .tcp(4000, port, 1000, 64000);
        let builder = if syn { builder.syn() } else { builder.ack(1) };
        let mut frame = Vec::new();
        builder.write(&mut frame, b"").map(|()| frame)
    };
    capture(&desk.path("in.pcap"), &[tcp(80, true)?, tcp(80, false)?, tcp(81, true)?, tcp(82, true)?])?;
    let replay =
        ["replay", "--config", "weir.yaml", "--in", "in.pcap", "--out", "out.pcap", "--verdicts", "v.jsonl"];
    let output = desk.weir(&replay)?;
    assert!(output.status.success(), "{output:?}");
    let rows: Vec<Value> = std::fs::read_to_string(desk.path("v.jsonl"))?
        .lines()
        .map(serde_json::from_str)
        .collect::<Result<_, _>>()?;
    assert_eq!(rows.len(), 4, "{rows:?}");
    assert_eq!((&rows[0]["flow"], &rows[1]["flow"]), (&"new".into(), &"known".into()), "{rows:?}");
    assert_eq!(rows[0]["backend"], rows[1]["backend"], "a flow stays with its backend: {rows:?}");
    assert_eq!(rows[0]["service"], "web", "{rows:?}");
    assert_eq!(rows[2]["reason"], "no_backend", "{rows:?}");
    assert_eq!(rows[3]["verdict"], "kernel", "{rows:?}");
    assert!(std::fs::metadata(desk.path("out.pcap"))?.len() > 24, "frames were written");

    std::fs::write(desk.path("bad.pcap"), b"not a capture")?;
    let bad = desk.weir(&["replay", "--config", "weir.yaml", "--in", "bad.pcap"])?;
    assert!(!bad.status.success() && !String::from_utf8_lossy(&bad.stderr).contains("panicked"), "{bad:?}");
    Ok(())
}

#[test]
fn a_capture_is_not_overwritten_by_what_becomes_of_it() -> Result<()> {
    let desk = Desk::new(CONFIG)?;
    let path = desk.path("in.pcap");
    capture(&path, &[vec![0; 60]])?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666))?;
    let before = std::fs::read(&path)?;
    for option in ["--out", "--verdicts"] {
        let refused =
            desk.weir(&["replay", "--config", "weir.yaml", "--in", "in.pcap", option, "./in.pcap"])?;
        assert!(!refused.status.success(), "{option}: {refused:?}");
        assert!(String::from_utf8_lossy(&refused.stderr).contains("overwritten"), "{option}: {refused:?}");
        assert_eq!(std::fs::read(&path)?, before, "{option}");
    }
    Ok(())
}

#[test]
fn a_reader_that_has_seen_enough_is_no_fault() -> Result<()> {
    let desk = Desk::new(CONFIG)?;
    // More lines than a buffer holds.
    capture(&desk.path("in.pcap"), &vec![vec![0; 60]; 200])?;
    for args in [
        &["explain", "--config", "weir.yaml", "--from", "192.0.2.7", "--to", "10.0.0.10:80"][..],
        &["replay", "--config", "weir.yaml", "--in", "in.pcap"],
        &["check", "weir.yaml"],
    ] {
        let (reader, writer) = std::io::pipe()?;
        drop(reader);
        let output = Command::new(weir()).args(args).current_dir(desk.0.path()).stdout(writer).output()?;
        assert!(output.status.success(), "{args:?}: {output:?}");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!said.contains("roken pipe"), "{args:?}: {said}");
    }
    Ok(())
}

/// Writes a classic pcap file, a millisecond between two frames.
fn capture(path: &Path, frames: &[Vec<u8>]) -> Result<()> {
    const ETHERNET: u32 = 1;
    let mut file = Vec::new();
    let words =
        |file: &mut Vec<u8>, words: &[u32]| file.extend(words.iter().flat_map(|word| word.to_le_bytes()));
    // Magic number of microseconds, version 2.4, zone, accuracy, snapshot length, link type.
    words(&mut file, &[0xa1b2_c3d4, 2 | 4 << 16, 0, 0, 65535, ETHERNET]);
    for (number, frame) in (0..).zip(frames) {
        let length = u32::try_from(frame.len())?;
        words(&mut file, &[1_700_000_000, number * 1000, length, length]);
        file.extend(frame);
    }
    Ok(std::fs::write(path, file)?)
}
