//! Packets against recordings of the kernel's IPVS: what leaves, byte for byte, the flows with their states and expiry
//! times, and the backends' counts have to be the same after each packet.
//!
//! A recording is described in `golden/README`'s words: `setup` holds ipvsadm commands, `sysctl` settings; each step injects
//! the packet of a client or a server, or changes something. What the engine leaves to the kernel is answered or routed
//! here as the kernel does it. What varies from one run of the kernel to the next is left out: IP identifications of
//! packets that the balancer makes itself, and the source port of GUE, which is a keyed hash.

#![allow(
    clippy::disallowed_macros,
    clippy::disallowed_methods,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking, and says why"
)]

#[path = "golden/balancer.rs"]
mod balancer;
#[path = "golden/mod.rs"]
mod golden;

use std::collections::BTreeSet;

use balancer::{Balancer, Sent};
use serde_json::Value;

/// Seconds between a packet and the look at the table: a second's boundary lay between them.
const LOOKED_AFTER_S: u32 = 1;

#[test]
fn packets_leave_as_they_left_the_kernel() {
    golden::check("packets", |_, recording| {
        if recording["table"].is_array() { replay_table(recording) } else { replay(recording) }
    });
}

fn replay(recording: &Value) -> Result<(), String> {
    let mut balancer = Balancer::new(recording);
    // The kernel sends nothing of a packet in fragments before it has all; Weir sends each as soon as it knows where to.
    let (mut early_sent, mut early_want) = (Vec::new(), Vec::new());
    for (number, step) in recording["steps"].as_array().unwrap().iter().enumerate() {
        let what = step["what"].as_str().unwrap_or_default();
        let differs = |field: &str, got: &dyn std::fmt::Debug, want: &dyn std::fmt::Debug| {
            Err(format!("step {number} ({what}): {field}\n   got {got:?}\n  want {want:?}"))
        };
        if let Some(command) = step["ipvsadm"].as_str() {
            balancer.ipvsadm(command);
            continue;
        }
        if let Some(setting) = step["sysctl"].as_str() {
            balancer.sysctl(setting);
            continue;
        }
        if let Some(seconds) = step["wait"].as_u64() {
            balancer.wait(u32::try_from(seconds).unwrap());
            continue;
        }
        let packet = hex(step["packet"].as_str().unwrap());
        let mut sent = balancer.inject(step["inject"].as_str().unwrap(), &packet);
        let mut want: Vec<_> = step["out"].as_array().unwrap().iter().map(recorded).collect();
        if is_fragment(&packet) && want.is_empty() {
            early_sent.append(&mut sent);
            early_want.append(&mut want);
            continue;
        }
        sent.splice(0..0, early_sent.drain(..));
        want.splice(0..0, early_want.drain(..));
        let same = sent.len() == want.len() && sent.iter().zip(&want).all(|(sent, want)| sent.is(want));
        if !same {
            return differs("out", &sent, &want);
        }
        if step["conns"].is_array() {
            let (got, want) = (balancer.connections(LOOKED_AFTER_S), connections(&step["conns"]));
            if got != want {
                return differs("conns", &got, &want);
            }
        }
        if step["dests"].is_array() {
            let (got, want) = (balancer.destinations(), destinations(&step["dests"]));
            if got != want {
                return differs("dests", &got, &want);
            }
        }
    }
    Ok(())
}

/// From each state, one more segment from either side. One client port a row.
fn replay_table(recording: &Value) -> Result<(), String> {
    let mut balancer = Balancer::new(recording);
    let mut failures = Vec::new();
    for (port, row) in (1025u16..).zip(recording["table"].as_array().unwrap()) {
        let text = |field: &str| row[field].as_str().unwrap_or_default();
        for step in text("path").split_whitespace() {
            let (from, flags) = step.split_once(':').unwrap();
            balancer.segment(if from == "c" { "client" } else { "server" }, port, flags);
        }
        let before = balancer.counts_of_all();
        let sent = balancer.segment(text("from"), port, text("segment"));
        let after = balancer.counts_of_all();
        let forwarded = sent.iter().any(|sent| sent.side != text("from"));
        let want_change = [0, 1].map(|column| row["active_inactive_change"][column].as_i64().unwrap());
        let change = [after[0] - before[0], after[1] - before[1]];
        let of_port = |connection: &[String; 6]| connection[3].ends_with(&format!(":{port}"));
        let flow = balancer.connections(LOOKED_AFTER_S).into_iter().find(of_port);
        // Meanwhile flows of earlier rows have ended by their timeout.
        let same_counts = change[0] == want_change[0] && change[1] >= want_change[1];
        let got = (flow.as_ref().map(|flow| (flow[1].as_str(), flow[2].as_str())), forwarded);
        let expires = row["expires"].as_u64().map(|expires| expires.to_string());
        let want_flow = row["after"].as_str().zip(expires.as_deref());
        if got != (want_flow, row["forwarded"].as_bool().unwrap()) || !same_counts {
            failures.push(format!("{row}: got {got:?} {change:?}"));
        }
    }
    if failures.is_empty() { Ok(()) } else { Err(failures.join("\n")) }
}

fn is_fragment(packet: &[u8]) -> bool {
    packet[0] >> 4 == 4 && (packet[6] & 0x3f != 0 || packet[7] != 0) || packet[0] >> 4 == 6 && packet[6] == 44
}

fn recorded(out: &Value) -> Sent {
    Sent {
        side: out["side"].as_str().unwrap().to_owned(),
        packet: hex(out["packet"].as_str().unwrap()),
        made: false,
    }
}

/// Protocol, state, seconds left, client, VIP and backend of each flow.
fn connections(recorded: &Value) -> BTreeSet<[String; 6]> {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let row = |row: &Value| [0, 1, 2, 3, 4, 5].map(|column| text(&row[column]));
    recorded.as_array().unwrap().iter().map(row).collect()
}

/// Address, forwarding, weight, active and inactive flows of each backend.
fn destinations(recorded: &Value) -> BTreeSet<[String; 5]> {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let row = |row: &Value| [0, 1, 2, 3, 4].map(|column| text(&row[column]));
    recorded.as_array().unwrap().iter().map(row).collect()
}

fn hex(text: &str) -> Vec<u8> {
    text.as_bytes()
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}
