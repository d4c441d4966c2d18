//! `weir demo`: works, twice in a row too, and leaves nothing behind however it ends.

use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use testbed::{Process, Said, Signal, run};

use crate::{can_run, eventually, weir};

const LIMIT: Duration = Duration::from_secs(120);

fn demo() -> Result<Said> {
    run(Command::new(weir()).args(["demo", "--requests", "120", "--seconds", "1"]), LIMIT)
}

/// The namespaces of a process.
fn namespaces(pid: u32) -> Result<Vec<String>> {
    let said = run(Command::new("ip").args(["netns", "list"]), LIMIT)?;
    let prefix = format!("weir-{pid}-");
    Ok(said.out.lines().filter(|line| line.starts_with(&prefix)).map(str::to_owned).collect())
}

/// A demo that has said how to try it by hand.
fn kept() -> Result<(Process, tempfile::TempDir)> {
    let directory = tempfile::tempdir()?;
    let mut command = Command::new(weir());
    command.args(["demo", "--keep", "--requests", "30", "--seconds", "1"]);
    let mut demo = Process::spawn("weir demo", command, directory.path().join("log"))?;
    let log = demo.log_path().to_owned();
    demo.wait_until(LIMIT, || Ok(std::fs::read_to_string(&log)?.contains("Ctrl-C")))?;
    assert!(namespaces(demo.pid())?.len() >= 5);
    Ok((demo, directory))
}

#[test]
fn it_works_twice_in_a_row() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    for _ in 0..2 {
        let said = demo()?;
        assert!(said.status.success(), "{}{}", said.out, said.err);
        for part in ["backend-1", "p99", "Gbit/s", "native", "Everything worked"] {
            assert!(said.out.contains(part), "no {part} in:\n{}", said.out);
        }
    }
    Ok(())
}

#[test]
fn a_signal_ends_a_kept_demo_and_everything_of_it() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let (mut demo, _log) = kept()?;
        let by_hand: Vec<String> = demo
            .log()
            .lines()
            .filter(|line| line.contains(" curl "))
            .map(|line| line.trim().to_owned())
            .collect();
        for line in &by_hand {
            let words: Vec<&str> = line.split_whitespace().collect();
            let said =
                run(Command::new(words[0]).args(&words[1..]).args(["--silent", "--max-time", "5"]), LIMIT)?;
            assert!(said.out.starts_with("backend-"), "{line}: {said:?}");
        }
        assert!(!by_hand.is_empty(), "{}", demo.log());
        let pid = demo.pid();
        demo.signal(signal)?;
        let status = demo.wait(Duration::from_secs(20))?;
        assert!(status.is_some_and(|status| !status.success()), "{status:?}");
        assert_eq!(namespaces(pid)?, Vec::<String>::new());
    }
    Ok(())
}

#[test]
fn the_next_run_removes_what_a_killed_one_left() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let (mut killed, _log) = kept()?;
    let pid = killed.pid();
    killed.kill()?;
    assert!(!namespaces(pid)?.is_empty(), "nothing was left, so nothing is shown");
    let said = demo()?;
    assert!(said.status.success(), "{}{}", said.out, said.err);
    eventually(Duration::from_secs(5), || {
        let left = namespaces(pid)?;
        anyhow::ensure!(left.is_empty(), "{left:?}");
        Ok(())
    })
}
