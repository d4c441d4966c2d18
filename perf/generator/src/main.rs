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
