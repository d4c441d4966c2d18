//! What must not outlive the process: namespaces with all that runs in them, scratch directories, programs, and changes
//! to the machine that a command undoes.
//!
//! Names begin with `weir-PID-`, so that what a killed process left behind can be told from what is in use.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, Once, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

const PREFIX: &str = "weir-";
const NAMESPACES: &str = "/run/netns";

/// Something to remove.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Mess {
    Directory(PathBuf),
    /// By name, as `ip netns` has it.
    Namespace(String),
    /// A change, by the command that takes it back and the environment that this needs.
    Change(Vec<String>, Vec<(String, String)>),
    /// By process id, with the name of its program: the id may have gone to another one.
    Process(u32, String),
}

impl Mess {
    /// Removes it; a namespace's processes are ended first. What is gone already is not missed.
    pub(crate) fn remove(&self) {
        match self {
            Self::Directory(path) => drop(std::fs::remove_dir_all(path)),
            Self::Namespace(name) => {
                end_processes(name);
                drop(quiet(Command::new("ip").args(["netns", "delete", name])));
            }
            Self::Change(undo, environment) => {
                if let Some((program, args)) = undo.split_first() {
                    let mut command = Command::new(program);
                    drop(quiet(command.args(args).envs(environment.iter().map(|(key, value)| (key, value)))));
                }
            }
            Self::Process(pid, program) => {
                let runs = || {
                    let comm = std::fs::read_to_string(format!("/proc/{pid}/comm"));
                    comm.is_ok_and(|comm| comm.trim() == program)
                };
                for signal in [Signal::SIGTERM, Signal::SIGKILL] {
                    let grace = Instant::now() + Duration::from_secs(1);
                    if runs() {
                        // It may have ended meanwhile.
                        let _ = kill(Pid::from_raw(pid.cast_signed()), signal);
                    }
                    while runs() && Instant::now() < grace {
                        std::thread::sleep(Duration::from_millis(10));
                    }
                }
            }
        }
    }
}

static LIVE: Mutex<BTreeSet<Mess>> = Mutex::new(BTreeSet::new());

fn live() -> MutexGuard<'static, BTreeSet<Mess>> {
    // A thread that panicked left the set whole, and now is when it is needed.
    LIVE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The beginning of every name that this process gives.
pub(crate) fn prefix() -> String {
    format!("{PREFIX}{}-", std::process::id())
}

/// From now on a signal that ends this process removes `mess` first.
pub(crate) fn register(mess: Mess) {
    prepare();
    live().insert(mess);
}

fn prepare() {
    static PREPARED: Once = Once::new();
    PREPARED.call_once(|| {
        remove_leftovers();
        remove_on_signal();
    });
}

/// A program, or a change to the machine, that must not outlive the process: ended, or undone, when this goes out of scope
/// or a signal ends the process.
#[derive(Debug)]
pub struct Undo(Mess);

impl Undo {
    /// A change that `command` takes back, run with `environment` besides the own one. To be called before the change is made.
    pub fn change(command: &[&str], environment: &[(String, String)]) -> Self {
        let command = command.iter().map(|word| (*word).to_owned()).collect();
        Self::register(Mess::Change(command, environment.to_vec()))
    }

    /// A running program by its process id and its name (the kernel's, 15 bytes at most).
    pub fn process(pid: u32, program: &str) -> Self {
        Self::register(Mess::Process(pid, program.to_owned()))
    }

    /// Starts `command`, whose program has this name. No signal that ends this process comes between start and registration.
    pub(crate) fn spawn(command: &mut Command, program: &str) -> std::io::Result<(Child, Self)> {
        prepare();
        let mut live = live();
        let child = command.spawn()?;
        let mess = Mess::Process(child.id(), program.to_owned());
        live.insert(mess.clone());
        Ok((child, Self(mess)))
    }

    fn register(mess: Mess) -> Self {
        register(mess.clone());
        Self(mess)
    }
}

impl Drop for Undo {
    fn drop(&mut self) {
        remove(&self.0);
    }
}

/// Removes what was registered.
pub(crate) fn remove(mess: &Mess) {
    mess.remove();
    live().remove(mess);
}

fn remove_on_signal() {
    // Without the handler only a signal leaves something behind, and the next run removes that.
    let Ok(mut signals) = signal_hook::iterator::Signals::new([SIGHUP, SIGINT, SIGTERM]) else { return };
    std::thread::spawn(move || {
        for signal in signals.forever() {
            // Held to the end: what is being built meanwhile waits in `register` for a process that is gone.
            let mut live = live();
            while let Some(mess) = live.pop_last() {
                mess.remove();
            }
            drop(signal_hook::low_level::emulate_default_handler(signal));
        }
    });
}

/// Removes what processes that no longer run left behind.
fn remove_leftovers() {
    let of_dead = |name: &str| owner(name).is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists());
    for name in entries(Path::new(NAMESPACES)).filter(|name| of_dead(name)) {
        Mess::Namespace(name).remove();
    }
    let scratch = std::env::temp_dir();
    for name in entries(&scratch).filter(|name| of_dead(name)) {
        Mess::Directory(scratch.join(name)).remove();
    }
}

fn entries(directory: &Path) -> impl Iterator<Item = String> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok())
}

/// The process that gave the name, if it is one of ours.
fn owner(name: &str) -> Option<u32> {
    name.strip_prefix(PREFIX)?.split_once('-')?.0.parse().ok()
}

/// Ends every process of a namespace: asked first, then not.
fn end_processes(namespace: &str) {
    let deadline = Instant::now() + Duration::from_secs(2);
    for signal in std::iter::once(Signal::SIGTERM).chain(std::iter::repeat(Signal::SIGKILL)) {
        let grace = Instant::now() + Duration::from_millis(500);
        let pids = processes(namespace);
        for pid in &pids {
            // It may have ended meanwhile.
            let _ = kill(*pid, signal);
        }
        while !processes(namespace).is_empty() {
            if Instant::now() > grace {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        if pids.is_empty() || Instant::now() > deadline {
            return;
        }
    }
}

/// The processes whose main thread is in the namespace, but for this one.
fn processes(namespace: &str) -> Vec<Pid> {
    let output = Command::new("ip").args(["netns", "pids", namespace]).stderr(Stdio::null()).output();
    let pids = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    pids.split_whitespace()
        .filter_map(|pid| pid.parse().ok())
        .map(Pid::from_raw)
        .filter(|pid| *pid != Pid::this())
        .collect()
}

fn quiet(command: &mut Command) -> std::io::Result<std::process::ExitStatus> {
    command.stdout(Stdio::null()).stderr(Stdio::null()).status()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_with_a_process_id_have_an_owner() {
        for (name, want) in [
            ("weir-12-0-client", Some(12)),
            ("weir-12-", Some(12)),
            ("weir-12", None),
            ("weir-x-0-client", None),
            ("other-12-0", None),
            ("weir0", None),
        ] {
            assert_eq!(owner(name), want, "{name}");
        }
    }
}
