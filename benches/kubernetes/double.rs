//! The API server's double, in a process of its own: what it takes is not Weir's.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::IpAddr;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use dataplane::worker::monotonic_ns;
use testbed::apiserver::objects::{node, numbered, numbered_moved};
use testbed::apiserver::{ApiServer, Fault, Options, Verb};

use crate::Args;

/// The token that it knows.
const TOKEN: &str = "token";

/// The running process. It ends with this.
pub(crate) struct Double {
    // Before the process, which ends when this is closed.
    orders: Option<ChildStdin>,
    process: Child,
    /// A kubeconfig that leads to it.
    pub(crate) kubeconfig: String,
    changes: Receiver<(IpAddr, u64)>,
}

impl Double {
    /// Starts it with all Services.
    pub(crate) fn start(args: &Args) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("--double");
        for (name, value) in [
            ("--services", args.services),
            ("--endpoints", args.endpoints),
            ("--rate", args.rate),
            ("--seconds", args.seconds),
        ] {
            command.args([name, &value.to_string()]);
        }
        if args.pages {
            command.arg("--pages");
        }
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let orders = process.stdin.take();
        let mut lines = BufReader::new(process.stdout.take().context("no standard output")?).lines();
        let kubeconfig = serde_json::from_str(&lines.next().context("it has ended")??)?;
        let (sender, changes) = channel();
        std::thread::spawn(move || listen(lines.map_while(Result::ok), &sender));
        Ok(Self { orders, process, kubeconfig, changes })
    }

    /// Has it begin with the changes.
    pub(crate) fn begin(&mut self) -> Result<()> {
        self.orders.as_mut().context("it has ended")?.write_all(b"begin\n")?;
        Ok(())
    }

    /// The first so many changes: the new endpoint, and when the server was about to have it.
    pub(crate) fn changes(&self, count: usize) -> impl Iterator<Item = (IpAddr, u64)> {
        self.changes.iter().take(count)
    }
}

/// Whether an endpoint is one of those that changes bring.
pub(crate) fn is_moved(addr: &IpAddr) -> bool {
    matches!(addr, IpAddr::V4(addr) if addr.octets()[0] == 11)
}

impl Drop for Double {
    fn drop(&mut self) {
        self.orders = None;
        // It has nothing to say in the end.
        let _ = self.process.wait();
    }
}

/// Reads what it prints of each change.
fn listen(lines: impl Iterator<Item = String>, sender: &Sender<(IpAddr, u64)>) {
    for line in lines {
        let (addr, at_ns) = line.split_once(' ').expect("address and time");
        // Nobody listens any more at the end.
        let _ = sender.send((addr.parse().expect("an address"), at_ns.parse().expect("a time")));
    }
}

/// What the process does.
pub(crate) fn serve(args: &Args) -> Result<()> {
    let api = ApiServer::start(Options::default())?;
    api.access().allow_token(TOKEN, "system:kube-proxy");
    for object in (0..args.services).flat_map(|number| numbered(number, args.endpoints)) {
        api.cluster().put(object)?;
    }
    api.cluster().put(node(crate::NODE, &[[192, 168, 0, 2].into()], &[]))?;
    if args.pages {
        api.faults().set(None, Verb::WatchList, Fault::Status(500));
    }
    println!("{}", serde_json::to_string(&api.kubeconfig(TOKEN))?);
    for order in std::io::stdin().lines() {
        order?;
        change(&api, args)?;
    }
    Ok(())
}

/// Moves one endpoint after the other.
fn change(api: &ApiServer, args: &Args) -> Result<()> {
    let begun = Instant::now();
    for change in 0..args.rate * args.seconds {
        let due = begun + Duration::from_secs(1) * change / args.rate;
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        let (object, addr) = numbered_moved(change % args.services, args.endpoints, change);
        println!("{addr} {}", monotonic_ns());
        api.cluster().put(object)?;
    }
    Ok(())
}
