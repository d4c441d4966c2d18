//! Traffic generators, sink and bare forwarder over AF_XDP by xsk-rs: what Weir is measured with and against. It
//! shares no code with Weir, so that the meter does not have the faults of what it measures.
//!
//! Each command prints one JSON object on standard output when it ends, and the line `ready` on standard error once
//! its sockets are bound.

mod answer;
mod arguments;
mod checksum;
mod clock;
mod connect;
mod flows;
mod forward;
mod latency;
mod loss;
mod packet;
#[expect(unsafe_code, reason = "the two ends are processes, and share a counter in a mapped file")]
mod progress;
mod send;
mod sink;
#[expect(unsafe_code, reason = "xsk-rs leaves the ownership of frames to its caller")]
mod station;
mod tag;
mod thread;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Traffic generator, sink and bare AF_XDP forwarder.
#[derive(Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Open TCP connections, and close them again.
    Connect(connect::ConnectArgs),
    /// Move frames between two interfaces, unchanged.
    Forward(forward::ForwardArgs),
    /// Send UDP or TCP frames of many flows.
    Send(send::SendArgs),
    /// Receive and count what `send` sent.
    Sink(sink::SinkArgs),
}

fn main() -> ExitCode {
    match run(&Cli::parse().command) {
        Ok(report) => {
            println!("{report}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("weir-gen: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: &Command) -> Result<serde_json::Value> {
    skip_dispatcher();
    let stop = thread::Stop::on_signals()?;
    match command {
        Command::Connect(args) => connect::run(args, &stop),
        Command::Forward(args) => forward::run(args, &stop),
        Command::Send(args) => send::run(args, &stop),
        Command::Sink(args) => sink::run(args, &stop),
    }
}

/// Has libxdp attach its redirect program by itself. Its dispatcher would pin files in the host's bpffs, which a
/// killed process leaves behind.
#[expect(unsafe_code, reason = "the environment is the only way to tell libxdp")]
fn skip_dispatcher() {
    // SAFETY: no other thread runs yet.
    unsafe { std::env::set_var("LIBXDP_SKIP_DISPATCHER", "1") };
}

/// Tells whoever started this process that frames are received from now on.
fn say_ready() {
    eprintln!("ready");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_that_cannot_be_are_refused_with_the_reason() {
        const SEND: &str = "send --interface a --dst-mac 02:00:00:00:00:02 --src 10.0.0.1 --dst 10.0.0.2";
        const CONNECT: &str =
            "connect --interface a --dst-mac 02:00:00:00:00:02 --src 10.0.0.1 --dst 10.0.0.2";
        const SINK: &str = "sink --interface a";
        const FORWARD: &str = "forward --in a --out b";
        let time = "not a time in seconds above 0";
        let rate = "not a rate above 0";
        for (command, more, want) in [
            (SEND, "--size 1792", None),
            (SEND, "--size imix", None),
            (SEND, "--size 1793", Some("frames of 1793 bytes do not fit: 1792 at most")),
            (SEND, "--size 4000", Some("frames of 4000 bytes do not fit: 1792 at most")),
            (SEND, "--size=-1", Some("not a size: -1")),
            (SEND, "--size 18446744073709551616", Some("not a size: 18446744073709551616")),
            (SEND, "--seconds 0.5", None),
            (SEND, "--seconds=-1", Some(time)),
            (SEND, "--seconds 0", Some(time)),
            (SEND, "--seconds nan", Some(time)),
            (SEND, "--seconds inf", Some(time)),
            (SEND, "--seconds 1e300", Some(time)),
            (SEND, "--rate 1e6", None),
            (SEND, "--rate 0", Some(rate)),
            (SEND, "--rate=-5", Some(rate)),
            (SEND, "--rate nan", Some(rate)),
            (SEND, "--rate inf", Some(rate)),
            (SEND, "--flows 0", Some("0 is not in 1..=4294967295")),
            (SEND, "--first-flow 281474976710656", Some("is not in 0..281474976710656")),
            (SEND, "--queues 0", Some("0 is not in 1..=32768")),
            (SEND, "--queues 32769", Some("32769 is not in 1..=32768")),
            (SEND, "--dsts 0", Some("0 is not in 1..=4294967295")),
            (SEND, "--progress p --window 0", Some("0 is not in 1..18446744073709551615")),
            (SEND, "--ring 0", Some("a power of two of entries, 65536 at most, not 0")),
            (SEND, "--ring 2147483648", Some("a power of two of entries, 65536 at most, not 2147483648")),
            (CONNECT, "--connections 1 --rate 10", None),
            (CONNECT, "--connections 0 --rate 10", Some("0 is not in 1..=4294967295")),
            (CONNECT, "--connections 1 --rate 0", Some(rate)),
            (CONNECT, "--connections 1 --rate inf", Some(rate)),
            (
                CONNECT,
                "--connections 1 --rate 1 --first-flow 18446744073709551615",
                Some("is not in 0..281474976710656"),
            ),
            (SINK, "--by-flow --flows 1 --streams 32768 --seconds 1 --rate 1", None),
            (SINK, "--by-flow --flows 0", Some("0 is not in 1..=4294967295")),
            (SINK, "--streams 0", Some("0 is not in 1..=32768")),
            (SINK, "--streams 32769", Some("32769 is not in 1..=32768")),
            (SINK, "--queues 0", Some("0 is not in 1..=4294967295")),
            (SINK, "--seconds=-1", Some(time)),
            (SINK, "--seconds nan", Some(time)),
            (SINK, "--seconds inf", Some(time)),
            (SINK, "--start-ns 1 --rate nan", Some(rate)),
            (SINK, "--start-ns 1 --rate 0", Some(rate)),
            (SINK, "--ring 3", Some("a power of two of entries, 65536 at most, not 3")),
            (FORWARD, "--queues 1", None),
            (FORWARD, "--queues 0", Some("0 is not in 1..=4294967295")),
            (FORWARD, "--ring many", Some("not a number of entries: many")),
        ] {
            let words = ["weir-gen", command, more].into_iter().flat_map(str::split_whitespace);
            let parsed = Cli::try_parse_from(words).map(|_| ()).map_err(|error| error.to_string());
            match (parsed, want) {
                (Ok(()), None) => {}
                (Err(said), Some(want)) => assert!(said.contains(want), "{command} {more}: {said}"),
                (parsed, _) => panic!("{command} {more}: {parsed:?}"),
            }
        }
    }
}
