//! A small network on one machine, with real servers and clients: what `weir demo`, the end-to-end tests and the
//! lab run Weir in.
//!
//! ```text
//! client --eth0-----wan-- gateway --lan-----uplink-- switch --port1-----eth0-- backend-1 (nginx, dnsmasq, iperf3)
//!                           Weir                       |------port2-----eth0-- backend-2
//!                                                      `------port3-----eth0-- backend-3
//! ```
//!
//! Each name is a network namespace, each line a veth pair, the gateway's with two queues, and everything has an IPv4
//! and an IPv6 address ([`topology`]). Checksum offload stays on, as it is on a host out of the box. Nothing of it
//! touches the machine's own interfaces, and all of it is gone when the [`Topology`] goes out of scope, when the
//! process gets SIGINT, SIGTERM or SIGHUP, and, after SIGKILL, when the next one is built.
//!
//! All of it needs root ([`is_root`]) and the programs that `scripts/deps.sh net` installs.

pub mod apiserver;
mod card;
mod cleanup;
pub mod clients;
pub mod config;
pub mod echo;
pub mod flood;
mod http;
mod namespace;
mod origin;
mod process;
mod raw;
pub mod sctp;
pub mod servers;
pub mod topology;
pub mod tunnels;
mod weir;

pub use card::{Card, kernel_version};
pub use cleanup::Undo;
pub use config::{Service, config};
pub use http::{Load, load, load_for};
pub use namespace::Namespace;
/// For [`Weir::signal`] and [`Process::signal`].
pub use nix::sys::signal::Signal;
pub use origin::Origin;
pub use process::{Process, Said, run};
pub use raw::Raw;
pub use topology::{Scratch, Topology};
pub use weir::Weir;

/// Whether this process may make namespaces.
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// The programs that this crate runs and that are not on this machine.
pub fn missing_programs() -> Vec<&'static str> {
    const PROGRAMS: [&str; 14] = [
        "ip",
        "ss",
        "ethtool",
        "nginx",
        "dnsmasq",
        "iperf3",
        "curl",
        "dig",
        "wrk",
        "ping",
        "tcpdump",
        "timeout",
        "traceroute",
        "vsftpd",
    ];
    let path = std::env::var_os("PATH").unwrap_or_default();
    let directories: Vec<_> = std::env::split_paths(&path).collect();
    let missing = |program: &&str| !directories.iter().any(|directory| directory.join(program).exists());
    PROGRAMS.into_iter().filter(missing).collect()
}
