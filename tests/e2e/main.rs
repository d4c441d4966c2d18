//! End to end: the built binary between real clients and servers, in namespaces with two queues an interface, over
//! IPv4 and IPv6. What needs namespaces needs root, and says so where it does not run.

mod access;
mod answers;
mod client_address;
mod commands;
mod datagrams;
mod demo;
mod doctor;
mod flood;
mod ftp;
mod get;
mod icmp;
mod ipvs;
mod kernel;
mod kube_proxy;
mod kubernetes;
mod large;
mod metrics;
mod modes;
mod neighbours;
mod nics;
mod queues;
mod reach;
mod reload;
mod sctp;
mod show;
mod start;
mod traffic;
mod tuning;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use control::admin::protocol::{InterfaceRow, WorkerRow};
use testbed::topology::{Family, Topology, has_nics};
use testbed::{Namespace, Service, Weir};

use testbed::servers::Servers;

/// How long a program may take that has nothing to wait for: starting it takes a while on a busy machine.
const LIMIT: Duration = Duration::from_secs(20);

/// The binary under test.
fn weir() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_weir"))
}

/// Whether namespaces can be made; says why not.
fn can_run() -> bool {
    let missing = testbed::missing_programs();
    if !testbed::is_root() {
        println!("did not run: network namespaces need root");
    } else if !missing.is_empty() {
        println!("did not run: not installed: {}", missing.join(", "));
    }
    testbed::is_root() && missing.is_empty()
}

/// [`can_run`] for what needs interfaces that are veth pairs; says so where they are network cards.
fn can_run_on_veth(why: &str) -> bool {
    if has_nics() {
        println!("did not run: not on network cards: {why}");
    }
    !has_nics() && can_run()
}

/// The network with its servers and a Weir that offers some services.
struct Setup {
    // Dropped in this order: who uses something goes before it.
    weir: Weir,
    _servers: Servers,
    topology: Topology,
}

impl Setup {
    /// Builds it; `None` where that cannot be.
    fn start(services: &[Service]) -> Result<Option<Self>> {
        if !can_run() {
            return Ok(None);
        }
        let topology = Topology::build()?;
        let servers = Servers::start(&topology)?;
        let weir = Weir::start(&topology, weir(), &testbed::config(&topology, services))?;
        Ok(Some(Self { weir, _servers: servers, topology }))
    }

    fn workers(&self) -> Result<Vec<WorkerRow>> {
        Ok(serde_json::from_value(self.weir.show("workers")?)?)
    }
}

/// What Weir shows of its interfaces.
fn interfaces(weir: &Weir) -> Result<Vec<InterfaceRow>> {
    Ok(serde_json::from_value(weir.show("interfaces")?)?)
}

/// The same service over both families.
fn both(service: impl Fn(Family) -> Service) -> Vec<Service> {
    Family::BOTH.map(service).to_vec()
}

/// A connection to a web server that is kept from one request to the next.
struct KeptAlive(TcpStream);

impl KeptAlive {
    fn open(client: &Namespace, server: SocketAddr) -> Result<Self> {
        let stream = client.enter(|| TcpStream::connect(server))??;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        Ok(Self(stream))
    }

    /// The page that a web server names itself on.
    fn ask(&mut self) -> Result<String> {
        self.0.write_all(b"GET / HTTP/1.1\r\nHost: weir\r\n\r\n")?;
        let mut answer = [0; 1024];
        let length = self.0.read(&mut answer)?;
        let answer = String::from_utf8_lossy(answer.get(..length).unwrap_or_default());
        answer.lines().last().map(str::to_owned).context("no answer")
    }
}

/// Tries until it works; the last error after `limit`.
fn eventually<T>(limit: Duration, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        match attempt() {
            Err(error) if Instant::now() >= deadline => {
                return Err(error).with_context(|| format!("still not after {limit:?}"));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
            done => return done,
        }
    }
}
