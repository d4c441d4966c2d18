//! All backends of a Service are replaced, one after the other, while clients go on asking.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use testbed::servers::nginx;
use testbed::{Process, Signal};

use super::*;

/// How long wrk asks.
const ASKED: Duration = Duration::from_secs(14);
/// How long a pod is left alone, once Weir has taken the step before.
const STEP: Duration = Duration::from_millis(500);

/// The web servers that are pods at present, by backend.
struct Pods<'a> {
    net: &'a Net,
    running: Vec<(u8, Process)>,
    started: u32,
}

impl Pods<'_> {
    fn start(&mut self, number: u8) -> Result<()> {
        self.started += 1;
        let directory: PathBuf = self.net.topology.scratch().join(format!("pod-{}", self.started));
        std::fs::create_dir(&directory)?;
        let namespace = &self.net.topology.backends[usize::from(number) - 1];
        self.running.push((number, nginx(namespace, number, &directory)?));
        Ok(())
    }

    fn publish(&self, terminating: Option<u8>) -> Result<()> {
        let endpoints = self.running.iter().map(|(number, _)| {
            let endpoint = endpoint(*number, false);
            if Some(*number) == terminating { endpoint.terminating() } else { endpoint }
        });
        self.net.put(slice("web", &endpoints.collect::<Vec<_>>()))
    }

    /// A new pod comes, and the oldest one goes: told of, then gone from the slice, then ended. Each of the steps waits
    /// for Weir, as a pod's time to end is long beside that: how fast a full machine is decides nothing.
    fn replace(&mut self, with: u8, end: impl Fn(Process) -> Result<()>) -> Result<()> {
        self.start(with)?;
        self.publish(None)?;
        self.net.until_backends(|weights| weights.get(&with).is_some_and(|weight| *weight > 0))?;
        std::thread::sleep(STEP);
        let (oldest, _) = self.running[0];
        self.publish(Some(oldest))?;
        self.net.until_backends(|weights| weights.get(&oldest).is_none_or(|weight| *weight == 0))?;
        std::thread::sleep(STEP);
        let (_, process) = self.running.remove(0);
        self.publish(None)?;
        self.net.until_backends(|weights| !weights.contains_key(&oldest))?;
        std::thread::sleep(STEP);
        end(process)
    }
}

/// Requests and errors of wrk while every backend is replaced.
fn replaced_under_load(end: impl Fn(Process) -> Result<()>) -> Result<Option<(u64, u64)>> {
    let Some(net) = Net::start(vec![service("web", 1, |_| {}), slice("web", &[])], "")? else {
        return Ok(None);
    };
    let mut pods = Pods { net: &net, running: Vec::new(), started: 0 };
    pods.start(1)?;
    pods.start(2)?;
    pods.publish(None)?;
    net.until_served_by(outside(), web(cluster_ip(1)), &[1, 2])?;
    let mut command = net.topology.client.command("wrk");
    command.args(["--threads", "1", "--connections", "8", "--timeout", "20s", "-H", "Connection: close"]);
    command.arg(format!("--duration={}s", ASKED.as_secs())).arg(format!("http://{}/", web(cluster_ip(1))));
    let mut wrk = Process::spawn("wrk", command, net.topology.scratch().join("wrk.log"))?;
    for with in [3, 1, 2] {
        pods.replace(with, &end)?;
    }
    net.until_served_by(outside(), web(cluster_ip(1)), &[1, 2])?;
    let ended = wrk.wait(ASKED * 3)?;
    ensure!(ended.is_some(), "wrk goes on: {}", wrk.log());
    let result = testbed::clients::wrk_result(&wrk.log())?;
    println!("{result:?}");
    Ok(Some((result.requests, result.errors())))
}

#[test]
fn no_request_fails_while_graceful_backends_are_replaced() -> Result<()> {
    let graceful = |mut process: Process| -> Result<()> {
        process.signal(Signal::SIGQUIT)?;
        ensure!(process.wait(LIMIT)?.is_some(), "nginx goes on");
        Ok(())
    };
    let Some((requests, errors)) = replaced_under_load(graceful)? else { return Ok(()) };
    ensure!(requests > 100 && errors == 0, "{errors} of {requests} requests failed");
    Ok(())
}

#[test]
fn hardly_a_request_fails_while_backends_are_killed() -> Result<()> {
    let Some((requests, errors)) = replaced_under_load(|mut process| process.kill().map(drop))? else {
        return Ok(());
    };
    ensure!(requests > 100 && errors * 1000 <= requests, "{errors} of {requests} requests failed");
    Ok(())
}
