//! What can fail, in one sentence each that says what to do. The caller names the interface.

use std::io;
use std::time::Duration;

use crate::attach::Mode;

/// Why the program could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The process lacks capabilities.
    #[error("loading the XDP program needs {missing}: run as root or grant it")]
    Capability {
        /// The names of those that it lacks.
        missing: String,
    },
    /// The kernel has no memory for the maps.
    #[error(
        "the kernel has no memory for the XDP program's maps ({source}): lower the limits, raise the cgroup's \
         memory limit or, before Linux 5.11, RLIMIT_MEMLOCK"
    )]
    Memory {
        /// The kernel's answer.
        source: libbpf_rs::Error,
    },
    /// The kernel does not take the program.
    #[error(
        "Linux {release} does not take the XDP program ({source:#}): it needs Linux 5.15 or newer with BPF and XDP sockets"
    )]
    Refused {
        /// The running kernel.
        release: String,
        /// The kernel's answer.
        source: libbpf_rs::Error,
    },
    /// A limit is 0.
    #[error("the limit of {0} must be at least 1")]
    ZeroLimit(&'static str),
    /// The compiled program lacks a part.
    #[error("the compiled XDP program has no {0}: this build is broken")]
    Incomplete(&'static str),
    /// An array that is written through shared memory could not be mapped.
    #[error("the XDP program's array {name} cannot be mapped: {source}")]
    NotMapped {
        /// The array.
        name: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Why the program could not be attached to an interface.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// The port number is past the limit.
    #[error("port number {0} is past the {max} interfaces that can be served", max = crate::MAX_PORTS)]
    TooManyPorts(u8),
    /// The port number is in use.
    #[error("port number {0} is already attached")]
    PortInUse(u8),
    /// There is no such interface in this network namespace.
    #[error("there is no interface with index {0} in this network namespace")]
    NoInterface(u32),
    /// Another program is attached.
    #[error(
        "XDP program {program} is already attached there in {mode} mode, by another Weir or another tool: an interface \
         serves one (`bpftool prog show id {program}` tells what it is)"
    )]
    Occupied {
        /// The id of that program.
        program: u32,
        /// How it is attached.
        mode: Mode,
    },
    /// The driver does not run XDP programs itself.
    #[error(
        "the driver has no native XDP ({source}): allow generic mode, which is slower, or use another interface"
    )]
    NoNative {
        /// The kernel's answer.
        source: io::Error,
    },
    /// The driver runs XDP programs, but not with the interface's present settings.
    #[error(
        "the driver refuses native XDP with the interface's present settings ({source}): lower its MTU below \
         3500, turn off large receive offload, give a veth at least as many receive queues as its peer has transmit \
         queues, or allow generic mode"
    )]
    Settings {
        /// The kernel's answer.
        source: io::Error,
    },
    /// Missing privileges.
    #[error("attaching the XDP program needs CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN ({source})")]
    Permission {
        /// The kernel's answer.
        source: io::Error,
    },
    /// Any other refusal.
    #[error("the kernel refuses to attach the XDP program in {mode} mode: {source}")]
    Kernel {
        /// The mode that was asked for.
        mode: Mode,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The kernel could not be asked what is attached.
    #[error("the kernel does not say which XDP program is attached: {0}")]
    Query(libbpf_rs::Error),
    /// The attachment is not there any more: somebody took it away.
    #[error("the XDP program is not attached there any more: somebody detached it")]
    Gone,
}

/// Why a socket could not be registered or taken off.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Port number or queue are past the limits.
    #[error("there is no place for a socket of port {port}, queue {queue}: at most {ports} ports of {queues} queues",
            ports = crate::MAX_PORTS, queues = crate::MAX_QUEUES)]
    OutOfRange {
        /// The port number.
        port: u8,
        /// The queue.
        queue: u32,
    },
    /// The kernel refuses.
    #[error("the socket of port {port}, queue {queue} cannot be entered or taken off: {source}")]
    Kernel {
        /// The port number.
        port: u8,
        /// The queue.
        queue: u32,
        /// The kernel's answer.
        source: libbpf_rs::Error,
    },
}

/// Why the maps could not be made what they should be.
#[derive(Debug, thiserror::Error)]
pub enum SyncError {
    /// More entries than the map was made for. Nothing was changed.
    #[error(
        "{wanted} entries do not fit the XDP program's map of {map}, which was made for {limit}: raise its limit"
    )]
    Full {
        /// The map.
        map: &'static str,
        /// Its limit.
        limit: u32,
        /// How many entries it should hold.
        wanted: usize,
    },
    /// The kernel refuses. What was written before stays; a further call goes on from there.
    #[error("the XDP program's map of {map} cannot be changed: {source}")]
    Kernel {
        /// The map.
        map: &'static str,
        /// The kernel's answer.
        source: libbpf_rs::Error,
    },
    /// A beat limit that can never or always be met.
    #[error("a beat limit of {0:?} is outside of 1 ms to 1 hour")]
    BeatLimit(Duration),
}
