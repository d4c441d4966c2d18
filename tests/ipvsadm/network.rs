//! The network of the recordings: a client, a director with the VIPs, and three real servers.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use testbed::topology::{Topology, veth};
use testbed::{Namespace, Weir};

use crate::weir;

/// Ports on which real servers answer, over TCP and UDP.
const PORTS: [u16; 2] = [80, 53];
/// The director's interfaces towards the client and towards the servers.
const WAN: &str = "lbc";
const LAN: &str = "lbs";
/// Everybody else's interface towards it.
const ETH: &str = "eth1";
/// Longer than any step of a recording takes.
const PATIENCE: Duration = Duration::from_secs(5);

/// The network, and the Weir that runs in its director.
pub(crate) struct Network {
    // Dropped first.
    weir: Option<Weir>,
    /// Whether connections of the running Weir may still be there.
    is_used: bool,
    _hub: Namespace,
    topology: Topology,
    programs: PathBuf,
    config: String,
}

impl Network {
    /// Builds it, without a Weir. The real servers answer as long as the process lives.
    pub(crate) fn build() -> Result<Self> {
        let topology = Topology::build()?;
        let hub = connect(&topology)?;
        for (number, server) in (1..).zip(&topology.backends) {
            serve(server, number)?;
        }
        let programs = topology.scratch().join("bin");
        std::fs::create_dir(&programs)?;
        for name in ["weir", "ipvsadm", "ipvsadm-save", "ipvsadm-restore"] {
            symlink(weir(), programs.join(name))?;
        }
        let socket = topology.scratch().join("weir.sock");
        let config = format!(
            "interfaces: [{{name: {WAN}}}, {{name: {LAN}}}]\nworkers: {{count: 1}}\nflows: {{limit: 4096}}\n\
             limits: {{services: 256, backends: 1024}}\nadmin: {{socket: \"{}\"}}\n\
             ipvs: {{drop_removed: true}}\n",
            socket.display()
        );
        Ok(Self { weir: None, is_used: false, _hub: hub, topology, programs, config })
    }

    /// Starts with no services and the timeouts that IPVS has by itself; with no connections either where the
    /// recording `has_traffic`.
    pub(crate) fn begin(&mut self, has_traffic: bool) -> Result<()> {
        if self.is_used || has_traffic {
            drop(self.weir.take());
        }
        self.is_used = has_traffic;
        match &self.weir {
            None => {
                // The same that a reload would read.
                self.weir = Some(Weir::start(&self.topology, weir(), &self.config)?);
                Ok(())
            }
            Some(running) => running.reload(&self.config),
        }
    }

    /// Replaces the configuration of the Weir that runs.
    pub(crate) fn reload(&self, config: &str) -> Result<()> {
        self.weir.as_ref().context("weir runs")?.reload(config)
    }

    /// Where Weir runs.
    pub(crate) fn director(&self) -> &Namespace {
        &self.topology.gateway
    }

    /// Where clients run.
    pub(crate) fn client(&self) -> &Namespace {
        &self.topology.client
    }

    /// A directory with the program under its names.
    pub(crate) fn programs(&self) -> &Path {
        &self.programs
    }

    /// Weir's admin socket.
    pub(crate) fn socket(&self) -> Result<&Path> {
        Ok(self.weir.as_ref().context("weir runs")?.socket())
    }
}

/// Connects everybody once more, by links of one queue (one worker makes its choices as the kernel does), with the
/// addresses of the recordings. The VIPs are the director's own, as IPVS needs it. Returns what holds the links.
fn connect(topology: &Topology) -> Result<Namespace> {
    let Topology { client, gateway: director, backends: servers, .. } = topology;
    let hub = topology.add("hub")?;
    veth(director, WAN, client, ETH, 1)?;
    veth(director, LAN, &hub, "uplink", 1)?;
    hub.ip("link add bridge type bridge stp_state 0 mcast_snooping 0\nlink set bridge up\n\
            link set uplink master bridge\n")?;
    client.ip(&format!(
        "address add 10.0.0.1/24 dev {ETH}\naddress add 10.0.0.2/24 dev {ETH}\n\
         address add fd00::1/64 dev {ETH}\nroute add fd00:ff::/64 via fd00::254 dev {ETH}\n"
    ))?;
    // Their ports are used again by the next recording.
    client.sysctl("net/ipv4/tcp_max_tw_buckets", "0")?;
    // The other links have this subnet.
    director.ip("address flush scope global\n")?;
    director.ip(&format!(
        "address add 10.0.0.254/24 dev {WAN}\naddress add fd00::254/64 dev {WAN}\n\
         address add 10.1.0.254/24 dev {LAN}\naddress add fd00:1::254/64 dev {LAN}\n\
         address add 10.0.0.100/32 dev lo\naddress add fd00:ff::100/128 dev lo\n"
    ))?;
    for (number, server) in (1..).zip(servers) {
        let port = format!("port{number}");
        veth(&hub, &port, server, ETH, 1)?;
        hub.ip(&format!("link set {port} master bridge\n"))?;
        server.ip(&format!(
            "address add 10.1.0.{number}/24 dev {ETH}\naddress add fd00:1::{number}/64 dev {ETH}\n\
             route replace default via 10.1.0.254\nroute replace default via fd00:1::254 dev {ETH}\n"
        ))?;
    }
    Ok(hub)
}

/// Answers on the server's addresses with its name: `rs1` and so on.
fn serve(namespace: &Namespace, number: u8) -> Result<()> {
    let name = format!("rs{number}");
    for addr in [format!("10.1.0.{number}"), format!("fd00:1::{number}")] {
        let addr: IpAddr = addr.parse()?;
        for port in PORTS {
            let at = SocketAddr::new(addr, port);
            let tcp = bound(namespace, || TcpListener::bind(at))?;
            let udp = bound(namespace, || UdpSocket::bind(at))?;
            let of_tcp = name.clone();
            thread::spawn(move || {
                for stream in tcp.incoming().flatten() {
                    let name = of_tcp.clone();
                    thread::spawn(move || answer(stream, &name));
                }
            });
            let name = name.clone();
            thread::spawn(move || {
                let mut datagram = [0; 2048];
                while let Ok((_, from)) = udp.recv_from(&mut datagram) {
                    // One that does not arrive is missed by the client.
                    let _ = udp.send_to(name.as_bytes(), from);
                }
            });
        }
    }
    Ok(())
}

/// A socket with an address that may be usable only a moment after it was given to an interface.
fn bound<T: Send>(namespace: &Namespace, bind: impl Fn() -> std::io::Result<T> + Sync) -> Result<T> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match namespace.enter(&bind)? {
            Err(error) if error.kind() == ErrorKind::AddrNotAvailable && Instant::now() < deadline => {
                thread::sleep(Duration::from_millis(10));
            }
            result => return Ok(result?),
        }
    }
}

/// Answers each request of a connection until its other end closes.
fn answer(mut stream: TcpStream, name: &str) {
    let mut request = [0; 2048];
    while let Ok(length) = stream.read(&mut request) {
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{name}", name.len());
        if length == 0 || stream.write_all(answer.as_bytes()).is_err() {
            return;
        }
    }
}

/// Has reads and writes fail that take too long.
pub(crate) fn patient(stream: &TcpStream) -> Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream.set_write_timeout(Some(PATIENCE))?)
}
