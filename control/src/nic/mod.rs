//! What network interfaces and the machine can do, read before anything is attached, and what it means for Weir.
//!
//! ```text
//! rtnetlink -> link ----+
//! ethtool, netdev ------+-> Nic (facts) ----+-> judge (pure) -> findings: `weir doctor`, `weir check`, `weir run`
//! sysfs, /proc -> device+                   |
//! machine -> Machine (facts) ---------------+
//! ```
//!
//! Nothing of this changes anything or needs a privilege; only [`tuning`] does. What a driver or an older kernel does not tell is
//! `None`, and nothing is concluded from it.

pub mod claim;
mod device;
mod genl;
pub mod judge;
mod link;
mod machine;
mod offer;
pub mod polling;
pub mod tuning;

use std::collections::BTreeSet;
use std::io;

use dataplane::snapshot::steering::Class;
use serde::Serialize;

pub use self::machine::Machine;

/// A network interface of the calling thread's network namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Nic {
    /// Its name.
    pub name: String,
    /// Its index in the kernel.
    pub ifindex: u32,
    /// Its link-layer address, as sysfs writes it; empty where it has none.
    pub address: String,
    /// What kind of virtual interface it is, as `ip link add type` names it; `None` for a device.
    pub kind: Option<String>,
    /// Whether it is Ethernet.
    pub ethernet: bool,
    /// The driver of a device.
    pub driver: Option<String>,
    /// The memory node that a device is attached to, where the machine has several.
    pub numa_node: Option<u32>,
    /// Largest IP packet in bytes.
    pub mtu: u32,
    /// Whether it was set up.
    pub up: bool,
    /// Whether it has a carrier.
    pub carrier: bool,
    /// What it is a part of.
    pub member_of: Option<Master>,
    /// VLAN links above it.
    pub vlans: Vec<String>,
    /// The other end of a veth pair, where that is in the same namespace.
    pub peer: Option<Peer>,
    /// XDP programs that are attached to it.
    pub programs: Vec<Attached>,
    /// Its queues.
    pub queues: Queues,
    /// Its rings.
    pub rings: Option<Rings>,
    /// How it spreads frames over its RX queues.
    pub rss: Option<Rss>,
    /// The offloads that are on, as `ethtool --show-features` of the kernel names them; `None` where they are not told.
    pub offloads: Option<BTreeSet<String>>,
    /// What its driver can do for XDP and AF_XDP, where the kernel tells (Linux 6.3 and newer).
    pub xdp: Option<XdpFeatures>,
    /// RX queues that an AF_XDP socket is bound to, where the kernel tells (Linux 6.13 and newer).
    pub bound_queues: Vec<u32>,
    /// The NAPI instances that serve its queues, where the kernel tells (Linux 6.8 and newer).
    pub napis: Vec<Napi>,
}

/// The bond, bridge, team or other link that an interface is a part of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Master {
    /// Its name.
    pub name: String,
    /// Its kind, as `ip link add type` names it.
    pub kind: String,
}

/// The other end of a veth pair.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Peer {
    /// Its name.
    pub name: String,
    /// Its index in the kernel.
    pub ifindex: u32,
    /// Its TX queues.
    pub tx_queues: Option<u32>,
}

/// An XDP program on an interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Attached {
    /// The program's id.
    pub program: u32,
    /// Who runs it: `native`, `generic` or `offloaded`.
    pub mode: &'static str,
}

/// How many queues an interface uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Queues {
    /// RX queues in use.
    pub rx: Option<u32>,
    /// TX queues in use.
    pub tx: Option<u32>,
    /// RX queues at most.
    pub rx_max: Option<u32>,
}

/// Entries of an interface's own rings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Rings {
    /// RX entries.
    pub rx: u32,
    /// RX entries at most.
    pub rx_max: u32,
    /// TX entries.
    pub tx: u32,
    /// TX entries at most.
    pub tx_max: u32,
}

/// How an interface spreads frames over its RX queues.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Rss {
    /// The hash function's key, in hexadecimal digits.
    pub key: String,
    /// The RX queue of each value of the hash, modulo the table's length.
    pub table: Vec<u32>,
    /// The hash function, as `ethtool --show-rxfh` names it.
    pub function: Option<String>,
    /// Whether both directions of a flow have the same hash (`input_xfrm`, Linux 6.9 and newer).
    pub symmetric: bool,
    /// Of which packets it hashes addresses and ports, where the kernel tells (Linux 6.17 and newer).
    pub hashes_ports: Option<HashesPorts>,
}

/// Of which packets addresses and ports are hashed, and nothing else.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[expect(clippy::struct_excessive_bools, reason = "the kernel tells of each by itself")]
pub struct HashesPorts {
    /// TCP over IPv4.
    pub tcp4: bool,
    /// UDP over IPv4.
    pub udp4: bool,
    /// TCP over IPv6.
    pub tcp6: bool,
    /// UDP over IPv6.
    pub udp6: bool,
}

impl HashesPorts {
    /// Whether those of this class are among them.
    pub fn has(self, class: Class) -> bool {
        match class {
            Class::Tcp4 => self.tcp4,
            Class::Udp4 => self.udp4,
            Class::Tcp6 => self.tcp6,
            Class::Udp6 => self.udp6,
        }
    }
}

/// What a driver can do for XDP (`enum netdev_xdp_act` and `netdev_xsk_flags` of linux/netdev.h).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct XdpFeatures {
    /// It runs XDP programs itself.
    pub native: bool,
    /// It carries `XDP_REDIRECT` out, without which AF_XDP gets nothing.
    pub redirect: bool,
    /// AF_XDP sockets may share its buffers.
    pub zero_copy: bool,
    /// It gives frames of several buffers to XDP programs.
    pub multi_buffer: bool,
    /// Buffers of one frame at most in zero-copy mode.
    pub zero_copy_segments: Option<u32>,
    /// It completes checksums of zero-copy frames.
    pub tx_checksum: bool,
}

/// What serves a queue in the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Napi {
    /// Its id.
    pub id: u32,
    /// The RX queues that it serves.
    pub rx_queues: Vec<u32>,
    /// The TX queues that it serves.
    pub tx_queues: Vec<u32>,
    /// Its interrupt.
    pub irq: Option<u32>,
    /// The cores that may take the interrupt.
    pub irq_cores: Vec<u16>,
    /// How often it polls without work before it enables its interrupt again.
    pub defer_hard_irqs: Option<u32>,
    /// Nanoseconds until a deferred interrupt's timer polls.
    pub gro_flush_timeout_ns: Option<u32>,
    /// Nanoseconds for which interrupts stay off while a program busy-polls (Linux 6.13 and newer).
    pub irq_suspend_timeout_ns: Option<u32>,
}

/// Why interfaces could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// No event loop.
    #[error("cannot make an event loop to read the interfaces with: {0}")]
    Runtime(#[source] io::Error),
    /// No netlink socket.
    #[error("cannot open a netlink socket: {0}")]
    Open(#[source] io::Error),
    /// The kernel does not answer.
    #[error("cannot read the interfaces from the kernel by netlink: {0}")]
    Links(#[source] rtnetlink::Error),
}

impl Nic {
    /// Those interfaces of the calling thread's network namespace that are `wanted` by their names, by index.
    pub fn read(wanted: impl Fn(&str) -> bool) -> Result<Vec<Self>, ReadError> {
        let mut nics = link::read_all()?;
        nics.retain(|nic| wanted(&nic.name));
        let mut asker = offer::Asker::default();
        for nic in &mut nics {
            asker.fill_in(nic);
            device::fill_in_irqs(&mut nic.napis);
        }
        Ok(nics)
    }

    /// Whether its driver tells the NIC the room of a zero-copy buffer in whole KiB, what is left over lost (`SRRCTL.BSIZEPKT`
    /// of Intel's gigabit NICs and 82599).
    pub fn has_whole_kib_buffers(&self) -> bool {
        matches!(self.driver.as_deref(), Some("igb" | "igc" | "ixgbe"))
    }

    /// Its driver, or what stands for one.
    pub fn driver_or_kind(&self) -> &str {
        self.driver.as_deref().or(self.kind.as_deref()).unwrap_or("unknown driver")
    }
}

/// The NAPI instances of the interface with this index, without their interrupts' cores, as far as the kernel tells.
pub fn napis(ifindex: u32) -> Vec<Napi> {
    offer::Asker::default().napis(ifindex).0
}

/// How many RX queues the interface with this index uses, and how it spreads frames over them; `None` where its driver
/// does not say.
pub fn receives(ifindex: u32) -> (Option<u32>, Option<Rss>) {
    let mut asker = offer::Asker::default();
    (asker.channels(ifindex).and_then(|queues| queues.rx), asker.rss(ifindex))
}
