//! `ipvsadm` against recordings of the kernel's own: the built binary under its name, a running Weir, real clients and
//! servers in namespaces.
//!
//! What is recorded of a command is its exit status, standard output and standard error, and they have to be the same
//! to the letter. Where a recording says that it is volatile, counters, rates and expiry times may differ; entries of
//! `-c` and services of `--nosort` are sets. Files of the kernel below `/proc` are no commands and not looked at.

#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "what all tests against recordings share says by panicking why it fails"
)]

mod compare;
#[path = "../../dataplane/tests/golden/mod.rs"]
mod golden;
mod live;
mod network;
mod traffic;

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use compare::{Outcome, differs};
use network::Network;
use traffic::Traffic;

/// How long a listing may take to say what was recorded: what clients and servers did is still under way.
const SETTLES: Duration = Duration::from_secs(2);

#[test]
fn every_recorded_command_is_answered_as_the_kernels_tool_does() {
    if !can_run() {
        return;
    }
    let mut network = Network::build().expect("the network is built");
    // Recordings without traffic leave nothing behind that could not be cleared.
    let quiet = std::cell::RefCell::new(&mut network);
    golden::check("ipvsadm", |name, recording| {
        let network = &mut **quiet.borrow_mut();
        replay(network, recording).map_err(|error| format!("{name}: {error:#}"))
    });
}

fn replay(network: &mut Network, recording: &Value) -> Result<()> {
    let steps = recording["steps"].as_array().context("a recording has steps")?;
    let has_traffic = steps.iter().any(|step| step.get("traffic").is_some());
    network.begin(has_traffic)?;
    let volatile = recording["volatile"] == true;
    let mut traffic = Traffic::default();
    for step in steps {
        if let Some(what) = step["traffic"].as_str() {
            traffic.pass(network, what).with_context(|| what.to_owned())?;
            continue;
        }
        let text = |key: &str| step[key].as_str().unwrap_or_default();
        let command = text("cmd");
        if !command.starts_with("ipvsadm") {
            ensure!(command.contains("/proc/"), "no step: {step}");
            ensure!(!command.contains("/proc/sys"), "no sysctls: {command}");
            continue;
        }
        traffic.note(command);
        let status = step["rc"].as_i64().context("a command has an exit status")?;
        let want = Outcome { status, out: text("stdout").to_owned(), err: text("stderr").to_owned() };
        let deadline =
            Instant::now() + if has_traffic && command.contains(" -L") { SETTLES } else { Duration::ZERO };
        loop {
            let got = run(network, command, text("stdin"))?;
            let Some(difference) = differs(command, &want, &got, volatile) else { break };
            ensure!(Instant::now() < deadline, "{command}\n{difference}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    Ok(())
}

/// Whether there can be namespaces; says why not.
fn can_run() -> bool {
    let can = testbed::is_root() && testbed::missing_programs().is_empty();
    if !can {
        println!("did not run: network namespaces need root, and some programs");
    }
    can
}

/// Runs a command of the shell, in the director.
fn run(network: &Network, command: &str, input: &str) -> Result<Outcome> {
    use std::io::Write as _;
    let path = std::env::var("PATH").unwrap_or_default();
    let mut shell = network.director().command("sh");
    shell.args(["-c", command]);
    shell.env("PATH", format!("{}:{path}", network.programs().display()));
    shell.env("WEIR_SOCKET", network.socket()?);
    let mut child = shell.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that does not read it may be gone already.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output()?;
    Ok(Outcome {
        status: output.status.code().context("it ended by a signal")?.into(),
        out: String::from_utf8(output.stdout)?,
        err: String::from_utf8(output.stderr)?,
    })
}

/// The binary under test.
fn weir() -> &'static std::path::Path {
    std::path::Path::new(env!("CARGO_BIN_EXE_weir"))
}

#[test]
fn weir_ipvsadm_is_the_same_program() -> Result<()> {
    let output = Command::new(weir()).args(["ipvsadm", "--version"]).output()?;
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "ipvsadm v1.31 2019/12/24 (compiled with popt and IPVS v1.2.1)\n"
    );
    let output = Command::new(weir()).args(["ipvsadm", "-A", "-t"]).output()?;
    assert_eq!(String::from_utf8_lossy(&output.stderr), "-t: missing argument\n");
    assert_eq!(output.status.code(), Some(255));
    let without =
        Command::new(weir()).arg("ipvsadm").env("WEIR_SOCKET", "/nonexistent/weir.sock").output()?;
    assert_eq!(without.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&without.stderr).starts_with("Can't initialize ipvs: "));
    Ok(())
}
