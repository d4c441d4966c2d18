//! Programs: those that serve until they are stopped, and those that run to their end.

use std::fs::File;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::cleanup::Undo;

/// How often something is looked at that is being waited for.
const LOOK: Duration = Duration::from_millis(10);
/// How long a program may take to end once it is asked to.
const GRACE: Duration = Duration::from_secs(5);

/// A running program whose output goes to a file, stopped when it goes out of scope.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command`; `log` gets what it writes.
    ///
    /// # Errors
    /// When the program or the log file cannot be opened.
    pub fn spawn(name: impl Into<String>, mut command: Command, log: PathBuf) -> Result<Self> {
        let name = name.into();
        let output = File::create(&log).with_context(|| format!("creating {}", log.display()))?;
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        let child = command.spawn().with_context(|| format!("starting {name}"))?;
        Ok(Self { name, child, log })
    }

    /// Waits until `ready` says so.
    ///
    /// # Errors
    /// When the program ends before, or `limit` runs out; with what it wrote.
    pub fn wait_until(&mut self, limit: Duration, mut ready: impl FnMut() -> Result<bool>) -> Result<()> {
        let deadline = Instant::now() + limit;
        while !ready()? {
            if let Some(status) = self.child.try_wait()? {
                bail!("{} ended ({status}) before it was ready:\n{}", self.name, self.log());
            }
            ensure!(
                Instant::now() < deadline,
                "{} was not ready after {limit:?}:\n{}",
                self.name,
                self.log()
            );
            std::thread::sleep(LOOK);
        }
        Ok(())
    }

    /// Everything that it has written.
    pub fn log(&self) -> String {
        std::fs::read(&self.log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// Where its output goes.
    pub fn log_path(&self) -> &Path {
        &self.log
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// When it has ended.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(self.pid().cast_signed());
        kill(pid, signal).with_context(|| format!("sending {signal} to {}", self.name))
    }

    /// Asks it to end, insists after a while, and waits for it.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub fn stop(&mut self) -> Result<ExitStatus> {
        if let Some(status) = self.child.try_wait()? {
            return Ok(status);
        }
        // A stopped process takes the request only once it continues.
        self.signal(Signal::SIGTERM)?;
        self.signal(Signal::SIGCONT)?;
        match self.wait(GRACE)? {
            Some(status) => Ok(status),
            None => self.kill(),
        }
    }

    /// Ends it at once and waits for it.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub fn kill(&mut self) -> Result<ExitStatus> {
        self.child.kill()?;
        Ok(self.child.wait()?)
    }

    /// Waits at most so long for it to end by itself.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub fn wait(&mut self, limit: Duration) -> Result<Option<ExitStatus>> {
        let deadline = Instant::now() + limit;
        loop {
            match self.child.try_wait()? {
                None if Instant::now() < deadline => std::thread::sleep(LOOK),
                ended => return Ok(ended),
            }
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Nothing is left to be done about a process that does not even die.
        drop(self.stop());
    }
}

/// What a program that ran to its end said.
#[derive(Clone, Debug)]
pub struct Said {
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub out: String,
    /// Its standard error.
    pub err: String,
}

/// Runs a program to its end, at most for `limit`. A signal that ends this process ends it, and what it started, before changes
/// to the machine are undone.
///
/// # Errors
/// When it cannot be started or takes longer. A status other than success is the caller's to judge.
pub fn run(command: &mut Command, limit: Duration) -> Result<Said> {
    let program = command.get_program().to_owned();
    let mut bounded = Command::new("timeout");
    // Sooner than a registered program is killed: this one kills what it runs.
    bounded
        .args(["--kill-after=0.5", &limit.as_secs_f64().to_string()])
        .arg(&program)
        .args(command.get_args());
    bounded.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let running = || format!("running {command:?}");
    let (child, _ended) = Undo::spawn(&mut bounded, "timeout").with_context(running)?;
    let output = child.wait_with_output().with_context(running)?;
    const TIMED_OUT: i32 = 124;
    ensure!(output.status.code() != Some(TIMED_OUT), "{command:?} took longer than {limit:?}");
    // Where it has to insist, `timeout` ends by that itself.
    let killed = output.status.signal() == Some(Signal::SIGKILL as i32);
    ensure!(!killed, "{command:?} was killed: after {limit:?}, or by something else before");
    Ok(Said {
        status: output.status,
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_takes_too_long_is_told_from_one_that_fails() {
        const SHORT: Duration = Duration::from_millis(200);
        let ran = |script: &str, limit| run(Command::new("sh").args(["-c", script]), limit);
        assert_eq!(ran("exit 3", GRACE * 10).unwrap().status.code(), Some(3));
        let said = |script| format!("{:#}", ran(script, SHORT).unwrap_err());
        assert!(said("sleep 60").contains("took longer than 200ms"));
        let deaf = "trap '' TERM; while :; do sleep 60; done";
        assert!(said(deaf).contains("was killed: after 200ms"));
    }
}
