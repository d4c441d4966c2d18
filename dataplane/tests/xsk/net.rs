//! Network namespaces of a test's own: a client and a server, and between them the one that the sockets are in.

use std::fs::File;
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;
use std::process::Command;
use std::sync::Arc;

use dataplane::io::xsk::{PortConfig, XskConfig, ZeroCopy};
use nix::sched::{CloneFlags, setns, unshare};

pub(crate) const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);
pub(crate) const VIP: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 100);
pub(crate) const SERVER: Ipv4Addr = Ipv4Addr::new(10, 9, 1, 2);
/// MAC addresses of the client, of the two ports, and of the server.
pub(crate) const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
pub(crate) const PORT_MACS: [[u8; 6]; 2] = [[2, 0, 0, 0, 0, 2], [2, 0, 0, 0, 0, 3]];
pub(crate) const SERVER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 4];

/// A namespace that goes away with this value and what runs in it.
pub(crate) struct Namespace(File);

impl Namespace {
    fn new() -> Self {
        let thread = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
            std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").expect("IPv6 off");
            ip("link set lo up");
            File::open("/proc/thread-self/ns/net").expect("the namespace")
        });
        Self(thread.join().expect("a namespace"))
    }

    /// Runs `work` in a thread in this namespace.
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(&self.0, CloneFlags::CLONE_NEWNET).expect("setns");
                work()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }
}

/// Client `c0` -- `p0` [the sockets' namespace] `p1` -- server `s0`. Two queues everywhere. The VIP is an address of
/// the server's, and both ends believe it to be reached by the ports.
pub(crate) struct Lab {
    pub(crate) client: Namespace,
    pub(crate) middle: Namespace,
    pub(crate) server: Namespace,
}

impl Lab {
    /// `None` where the test cannot run, which is said.
    pub(crate) fn new(test: &str) -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("{test} did not run: it needs root for network namespaces and AF_XDP");
            return None;
        }
        let lab = Self { client: Namespace::new(), middle: Namespace::new(), server: Namespace::new() };
        lab.middle.run(|| {
            let veth = |here, own, there, other, namespace: &Namespace| {
                let (own, other, queues) = (mac(own), mac(other), "numtxqueues 2 numrxqueues 2");
                ip(&format!(
                    "link add {here} address {own} {queues} type veth peer {there} address {other} {queues}"
                ));
                ip(&format!("link set {there} netns {}", namespace.path()));
                ip(&format!("link set {here} up"));
            };
            veth("p0", PORT_MACS[0], "c0", CLIENT_MAC, &lab.client);
            veth("p1", PORT_MACS[1], "s0", SERVER_MAC, &lab.server);
        });
        lab.client.run(|| {
            ip(&format!("addr add {CLIENT}/24 dev c0"));
            ip("link set c0 up");
            ip(&format!("neigh add {VIP} lladdr {} dev c0 nud permanent", mac(PORT_MACS[0])));
        });
        lab.server.run(|| {
            ip(&format!("addr add {SERVER}/24 dev s0"));
            ip(&format!("addr add {VIP}/32 dev lo"));
            ip("link set s0 up");
            ip("route add default via 10.9.1.1 dev s0");
            ip(&format!("neigh add 10.9.1.1 lladdr {} dev s0 nud permanent", mac(PORT_MACS[1])));
        });
        Some(lab)
    }
}

/// Runs `ip` with these arguments in the calling thread's namespace.
pub(crate) fn ip(arguments: &str) -> String {
    let output = Command::new("ip").args(arguments.split_whitespace()).output().expect("ip");
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

pub(crate) fn ifindex(name: &str) -> u32 {
    let line = ip(&format!("-o link show {name}"));
    line.split(':').next().expect("an index").parse().expect("a number")
}

/// The sockets' configuration for these interfaces of the calling thread's namespace.
pub(crate) fn config(queue: u32, ports: &[&str]) -> XskConfig {
    let port = |name: &&str| PortConfig {
        name: Arc::from(*name),
        ifindex: ifindex(name),
        mtu: 1500,
        zero_copy: ZeroCopy::Auto,
    };
    XskConfig { queue, ring_size: 2048, ports: ports.iter().map(port).collect(), whole_kib: false }
}

fn mac(bytes: [u8; 6]) -> String {
    bytes.map(|byte| format!("{byte:02x}")).join(":")
}
