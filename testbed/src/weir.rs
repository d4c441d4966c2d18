//! Weir itself, as a process in the gateway.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::card::Card;
use crate::process::{Process, run};
use crate::topology::{LAN, Topology, WAN};

const START_LIMIT: Duration = Duration::from_secs(20);
const ANSWER_LIMIT: Duration = Duration::from_secs(20);

/// A running `weir run`, stopped when it goes out of scope.
#[derive(Debug)]
pub struct Weir {
    process: Process,
    binary: PathBuf,
    config: PathBuf,
    socket: PathBuf,
}

impl Weir {
    /// Starts `binary` in the gateway with this configuration and waits until its admin socket answers.
    ///
    /// # Errors
    /// When it does not start, with what it wrote.
    pub fn start(topology: &Topology, binary: &Path, config: &str) -> Result<Self> {
        Self::start_with(topology, binary, config, &[])
    }

    /// [`Self::start`] with further arguments.
    ///
    /// # Errors
    /// When it does not start, with what it wrote; on network cards, when it serves a queue in less than their best mode.
    pub fn start_with(topology: &Topology, binary: &Path, config: &str, args: &[&str]) -> Result<Self> {
        let scratch = topology.scratch();
        let file = scratch.join("weir.yaml");
        fs::write(&file, config)?;
        let mut command = topology.gateway.command(binary);
        command.arg("run").arg("--config").arg(&file).args(args);
        let process = Process::spawn("weir", command, scratch.join("weir.log"))?;
        let (binary, socket) = (binary.to_owned(), scratch.join("weir.sock"));
        let mut weir = Self { process, binary: binary.clone(), config: file, socket: socket.clone() };
        weir.process.wait_until(START_LIMIT, || {
            Ok(socket.exists() && run(&mut show(&binary, &socket, "workers"), ANSWER_LIMIT)?.status.success())
        })?;
        if let Some(card) = topology.card {
            topology.wait_for_carriers()?;
            // Unless the configuration has its own idea of the mode.
            if !config.contains("zero_copy:") {
                weir.uses_the_cards_at_their_best(card)?;
            }
        }
        Ok(weir)
    }

    /// Reads back that every queue of the network cards that it serves is in the best mode that there is.
    fn uses_the_cards_at_their_best(&self, card: Card) -> Result<()> {
        let (interfaces, best) = (self.show("interfaces")?, card.mode()?);
        let rows = interfaces.as_array().map(Vec::as_slice).unwrap_or_default();
        let queues = rows
            .iter()
            .filter(|row| row["name"] == WAN || row["name"] == LAN)
            .flat_map(|row| row["queues"].as_array().map(Vec::as_slice).unwrap_or_default());
        let modes: Vec<&Value> = queues.map(|queue| &queue["mode"]).collect();
        ensure!(!modes.is_empty() && modes.iter().all(|mode| **mode == best), "not {best}: {interfaces}");
        println!("{best} on {} queues", modes.len());
        Ok(())
    }

    /// What `weir show SUBJECT` says, as JSON.
    ///
    /// # Errors
    /// When Weir does not answer.
    pub fn show(&self, subject: &str) -> Result<Value> {
        let said = run(&mut show(&self.binary, &self.socket, subject), ANSWER_LIMIT)?;
        ensure!(said.status.success(), "weir show {subject}: {}", said.err.trim());
        serde_json::from_str(&said.out).with_context(|| format!("weir show {subject} printed: {}", said.out))
    }

    /// What `weir show SUBJECT` prints for people.
    ///
    /// # Errors
    /// When Weir does not answer.
    pub fn table(&self, subject: &str) -> Result<String> {
        let mut command = Command::new(&self.binary);
        let said = run(command.args(["show", subject, "--socket"]).arg(&self.socket), ANSWER_LIMIT)?;
        ensure!(said.status.success(), "weir show {subject}: {}", said.err.trim());
        Ok(said.out)
    }

    /// Replaces the configuration file and has Weir read it.
    ///
    /// # Errors
    /// With the faults, when the configuration is refused.
    pub fn reload(&self, config: &str) -> Result<()> {
        fs::write(&self.config, config)?;
        let mut command = Command::new(&self.binary);
        let said = run(command.arg("reload").arg("--socket").arg(&self.socket), ANSWER_LIMIT)?;
        ensure!(said.status.success(), "weir reload: {}{}", said.out, said.err);
        Ok(())
    }

    /// Its configuration file.
    pub fn config_path(&self) -> &Path {
        &self.config
    }

    /// Its admin socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Everything that it has written.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// When it has ended.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.process.signal(signal)
    }

    /// Ends it without a chance to clean up.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub fn kill(mut self) -> Result<()> {
        self.process.kill().map(drop)
    }

    /// Asks it to end and waits for it.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub fn stop(mut self) -> Result<ExitStatus> {
        self.process.stop()
    }
}

fn show(binary: &Path, socket: &Path, subject: &str) -> Command {
    let mut command = Command::new(binary);
    command.args(["show", subject, "--output", "json", "--socket"]).arg(socket);
    command
}
