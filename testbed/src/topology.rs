//! The network: who is connected to whom, with which addresses.

use std::fs::Permissions;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

use crate::card::Card;
use crate::cleanup::{self, Mess};
use crate::namespace::Namespace;

/// Queues of the gateway's veth pairs, and of most cards.
pub const QUEUES: u32 = 2;
/// Queues of the links between switch and backends. A bridge sends what arrived on queue 0 or 1 by queue 0 and what
/// arrived on queue 2 by queue 1: the kernel takes the queue that a veth frame was sent by for the number, from 1, of
/// the queue that it was received by. So it takes three for replies to reach the gateway on both of its queues.
const PORT_QUEUES: u32 = 3;
/// The MTU of every link, where a test gives it no other.
const MTU: u16 = 1500;
/// How long a network card is waited for.
const NIC_LIMIT: Duration = Duration::from_secs(10);
/// How many backends there are.
pub const BACKENDS: u8 = 3;
/// The gateway's interface towards the client.
pub const WAN: &str = "wan";
/// The gateway's interface towards the backends.
pub const LAN: &str = "lan";
/// The only interface of the client and of each backend.
pub const ETH: &str = "eth0";

/// An address family, and the addresses that it gives everybody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both of them.
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];

    /// The client's address.
    pub fn client(self) -> IpAddr {
        self.host(1, 2)
    }

    /// The gateway's own address towards the client.
    pub fn gateway(self) -> IpAddr {
        self.host(1, 1)
    }

    /// The gateway's own address towards the backends, which is their router.
    pub fn router(self) -> IpAddr {
        self.host(2, 1)
    }

    /// The address of backend `number`, from 1.
    pub fn backend(self, number: u8) -> IpAddr {
        self.host(2, 10 + number)
    }

    /// A VIP in the client's own subnet: the client asks for its MAC address.
    pub fn vip(self) -> IpAddr {
        self.host(1, 100)
    }

    /// A VIP in the client's own subnet that every backend has on its loopback interface too, as `dr` wants it.
    pub fn shared_vip(self) -> IpAddr {
        self.host(1, 101)
    }

    /// A VIP in no subnet: the client sends to it by way of the gateway.
    pub fn routed_vip(self) -> IpAddr {
        self.host(9, 100)
    }

    /// A source address for `fullnat`, in the backends' subnet.
    pub fn snat(self) -> IpAddr {
        self.host(2, 200)
    }

    /// The address as a URL has it.
    pub fn url(addr: IpAddr) -> String {
        match addr {
            IpAddr::V4(addr) => addr.to_string(),
            IpAddr::V6(addr) => format!("[{addr}]"),
        }
    }

    fn host(self, subnet: u8, host: u8) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::new(10, subnet, 0, host).into(),
            Self::V6 => Ipv6Addr::new(0xfd00, subnet.into(), 0, 0, 0, 0, 0, host.into()).into(),
        }
    }

    /// Prefix lengths of a subnet and of a single address.
    fn prefixes(self) -> (u8, u8) {
        match self {
            Self::V4 => (24, 32),
            Self::V6 => (64, 128),
        }
    }
}

/// The network of the crate's drawing, without servers and without Weir.
#[derive(Debug)]
pub struct Topology {
    /// Where clients run.
    pub client: Namespace,
    /// Where Weir runs; forwards between `wan` and `lan` as a router does.
    pub gateway: Namespace,
    /// Where servers run, in the order of their numbers.
    pub backends: Vec<Namespace>,
    /// What the gateway's interfaces are, where they are no veth pairs.
    pub card: Option<Card>,
    switch: Namespace,
    scratch: Scratch,
    prefix: String,
}

impl Topology {
    /// Builds it, and removes what killed processes left of theirs.
    ///
    /// # Errors
    /// Without root, or when a program is missing.
    pub fn build() -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let prefix = format!("{}{}-", cleanup::prefix(), COUNT.fetch_add(1, Ordering::Relaxed));
        let namespace = |role: &str| Namespace::add(format!("{prefix}{role}"));
        let topology = Self {
            client: namespace("client")?,
            gateway: namespace("gateway")?,
            backends: (1..=BACKENDS)
                .map(|number| namespace(&format!("backend-{number}")))
                .collect::<Result<_>>()?,
            card: Card::here()?,
            switch: namespace("switch")?,
            scratch: Scratch::make(&prefix)?,
            prefix,
        };
        topology.connect()?;
        topology.address()?;
        Ok(topology)
    }

    /// Gives every link between client and backends another MTU.
    ///
    /// # Errors
    /// When a link does not take it.
    pub fn set_mtu(&self, mtu: u16) -> Result<()> {
        let set = |namespace: &Namespace, link: &str| namespace.ip(&format!("link set {link} mtu {mtu}\n"));
        for (number, backend) in (1..).zip(&self.backends) {
            set(backend, ETH)?;
            set(&self.switch, &format!("port{number}"))?;
        }
        set(&self.switch, "uplink")?;
        set(&self.switch, "bridge")?;
        set(&self.gateway, LAN)?;
        set(&self.gateway, WAN)?;
        set(&self.client, ETH)
    }

    /// One more namespace, not connected yet.
    ///
    /// # Errors
    /// When there is one with this role.
    pub fn add(&self, role: &str) -> Result<Namespace> {
        Namespace::add(format!("{}{role}", self.prefix))
    }

    /// Queues of the gateway's interfaces, and so workers of a Weir that uses them all.
    pub fn queues(&self) -> u32 {
        self.card.map_or(QUEUES, Card::queues)
    }

    /// A directory for configurations, sockets and logs that is removed with the rest.
    pub fn scratch(&self) -> &Path {
        self.scratch.path()
    }

    fn connect(&self) -> Result<()> {
        self.gateway.sysctl("net/ipv4/ip_forward", "1")?;
        self.gateway.sysctl("net/ipv6/conf/all/forwarding", "1")?;
        if self.card.is_some() {
            for (nic, (namespace, name)) in (0u8..).zip(self.places()) {
                move_nic(nic, namespace, name)?;
            }
            self.wait_for_carriers()?;
        } else {
            veth(&self.gateway, WAN, &self.client, ETH, QUEUES)?;
            veth(&self.gateway, LAN, &self.switch, "uplink", QUEUES)?;
        }
        // Without snooping, neighbour discovery's multicast reaches every port from the first frame on.
        self.switch.ip("link add bridge type bridge stp_state 0 mcast_snooping 0\nlink set bridge up\n")?;
        self.switch.ip("link set uplink master bridge\n")?;
        for (number, backend) in (1..).zip(&self.backends) {
            let port = format!("port{number}");
            veth(&self.switch, &port, backend, ETH, PORT_QUEUES)?;
            self.switch.ip(&format!("link set {port} master bridge\n"))?;
        }
        Ok(())
    }

    /// Where the network cards go: namespace and name of each.
    fn places(&self) -> [(&Namespace, &'static str); 4] {
        [(&self.gateway, WAN), (&self.client, ETH), (&self.gateway, LAN), (&self.switch, "uplink")]
    }

    /// Waits until every network card has its link: some lose it for seconds when they are set up or get an XDP program.
    ///
    /// # Errors
    /// When one has none in time.
    pub fn wait_for_carriers(&self) -> Result<()> {
        let deadline = Instant::now() + NIC_LIMIT;
        for (namespace, name) in self.places() {
            loop {
                let mut ip = namespace.command("ip");
                let said = crate::run(ip.args(["-oneline", "link", "show", name]), NIC_LIMIT)?;
                if said.out.contains("LOWER_UP") {
                    break;
                }
                ensure!(Instant::now() < deadline, "{name} has no link: {}{}", said.out, said.err);
                std::thread::sleep(Duration::from_millis(50));
            }
        }
        Ok(())
    }

    fn address(&self) -> Result<()> {
        for family in Family::BOTH {
            let (subnet, single) = family.prefixes();
            let (client, gateway, router) = (family.client(), family.gateway(), family.router());
            let shared = family.shared_vip();
            self.gateway.ip(&format!(
                "address add {gateway}/{subnet} dev {WAN}\naddress add {router}/{subnet} dev {LAN}\n"
            ))?;
            self.client
                .ip(&format!("address add {client}/{subnet} dev {ETH}\nroute add default via {gateway}\n"))?;
            for (number, backend) in (1..).zip(&self.backends) {
                let own = family.backend(number);
                backend.ip(&format!(
                    "address add {own}/{subnet} dev {ETH}\naddress add {shared}/{single} dev lo\n\
                     route add default via {router}\n"
                ))?;
            }
        }
        Ok(())
    }
}

/// Whether the gateway has network cards that are there for tests alone, instead of veth pairs.
pub fn has_nics() -> bool {
    !matches!(Card::here(), Ok(None))
}

impl Drop for Topology {
    /// A namespace keeps its cards for as long as a socket of it lingers; so the next one's are taken out of it.
    fn drop(&mut self) {
        for (namespace, name) in self.places().into_iter().filter(|_| self.card.is_some()) {
            let mut ip = Command::new("ip");
            ip.args([
                "-netns",
                namespace.name(),
                "link",
                "set",
                name,
                "netns",
                &std::process::id().to_string(),
            ]);
            // What did not get there is not there for the next topology either, which says so.
            let _ = crate::run(&mut ip, NIC_LIMIT);
        }
    }
}

/// Gives the card with this number (the last byte of its MAC address) to a namespace. One that the namespace before it
/// still has comes back soon after that is gone.
fn move_nic(nic: u8, namespace: &Namespace, name: &str) -> Result<()> {
    let mac = format!("02:77:65:69:72:{nic:02x}");
    let deadline = Instant::now() + NIC_LIMIT;
    let found = loop {
        let links = std::fs::read_dir("/sys/class/net")?.flatten();
        let is_it = |path: &std::path::PathBuf| {
            std::fs::read_to_string(path.join("address")).is_ok_and(|address| address.trim() == mac)
        };
        match links.map(|entry| entry.path()).find(is_it) {
            Some(path) => break path,
            None if Instant::now() >= deadline => bail!("there is no network card {mac}"),
            None => std::thread::sleep(Duration::from_millis(20)),
        }
    };
    let found = found.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut ip = Command::new("ip");
    let said =
        crate::run(ip.args(["link", "set", &found, "netns", namespace.name(), "name", name]), NIC_LIMIT)?;
    ensure!(said.status.success(), "moving {found} to {}: {}", namespace.name(), said.err);
    // A card keeps the MTU that an earlier test gave it.
    namespace.ip(&format!("link set {name} mtu {MTU} up\n"))
}

/// Connects two namespaces by a veth pair with so many queues at both ends, both up.
///
/// # Errors
/// When one of the names is taken.
pub fn veth(near: &Namespace, near_name: &str, far: &Namespace, far_name: &str, queues: u32) -> Result<()> {
    let queues = format!("numtxqueues {queues} numrxqueues {queues}");
    let far_namespace = far.name();
    near.ip(&format!(
        "link add {near_name} {queues} type veth peer name {far_name} netns {far_namespace} {queues}\n\
         link set {near_name} up\n"
    ))?;
    far.ip(&format!("link set {far_name} up\n"))
}

/// A directory that others than root can read, for servers that give up their privileges. Removed when it goes out of
/// scope or a signal ends the process.
#[derive(Debug)]
pub struct Scratch(TempDir);

impl Scratch {
    /// One with a name of its own.
    ///
    /// # Errors
    /// When the directory for temporary files cannot be written to.
    pub fn new() -> Result<Self> {
        Self::make(&cleanup::prefix())
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    fn make(prefix: &str) -> Result<Self> {
        let readable = Permissions::from_mode(0o755);
        let made = tempfile::Builder::new().prefix(prefix).permissions(readable).tempdir();
        let directory = made.context("making a scratch directory")?;
        cleanup::register(Mess::Directory(directory.path().into()));
        Ok(Self(directory))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        cleanup::remove(&Mess::Directory(self.0.path().into()));
    }
}
