//! Why AF_XDP could not be set up, each with what to do about it.

use std::io;
use std::sync::Arc;

/// Why a worker's sockets could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum XskError {
    /// The process may not open AF_XDP sockets.
    #[error("may not open AF_XDP sockets: run as root or with CAP_NET_RAW")]
    NotPermitted,
    /// The kernel has no AF_XDP.
    #[error("this kernel has no AF_XDP: use Linux 5.15 or newer, built with CONFIG_XDP_SOCKETS")]
    Unsupported,
    /// The kernel's AF_XDP lacks what Weir needs.
    #[error("this kernel's AF_XDP has no need_wakeup flags: use Linux 5.15 or newer")]
    TooOld,
    /// The frame memory may not be locked.
    #[error(
        "may not lock {bytes} bytes of frame memory, which each worker needs: raise RLIMIT_MEMLOCK (ulimit -l, \
         LimitMEMLOCK=) or grant CAP_IPC_LOCK"
    )]
    LockedMemory {
        /// Bytes of the worker's UMEM.
        bytes: u64,
    },
    /// The frame memory could not be had.
    #[error("no memory for {chunks} frames of {chunk_size} bytes: {source}")]
    Memory {
        /// Chunks wanted.
        chunks: u32,
        /// Bytes of each.
        chunk_size: u32,
        /// What the system said.
        source: io::Error,
    },
    /// There is no such interface.
    #[error("interface {interface} is gone: give one that `ip link` shows")]
    NoInterface {
        /// Its name.
        interface: Arc<str>,
    },
    /// The interface is down.
    #[error("interface {interface} is down: set it up (ip link set {interface} up)")]
    InterfaceDown {
        /// Its name.
        interface: Arc<str>,
    },
    /// The interface has fewer queues than there are workers.
    #[error(
        "interface {interface} has no queue {queue}: give it more (ethtool -L {interface} combined {}; a veth gets \
         them when it is made) or run fewer workers", queue + 1
    )]
    NoQueue {
        /// Its name.
        interface: Arc<str>,
        /// Queue index, from 0.
        queue: u32,
    },
    /// Another socket holds the queue.
    #[error(
        "queue {queue} of {interface} is in use by another AF_XDP socket: stop the program that holds it"
    )]
    QueueBusy {
        /// Its name.
        interface: Arc<str>,
        /// Queue index, from 0.
        queue: u32,
    },
    /// Zero-copy was required and cannot be had.
    #[error("queue {queue} of {interface} cannot do zero-copy ({source}): set zero_copy to auto or never")]
    NoZeroCopy {
        /// Its name.
        interface: Arc<str>,
        /// Queue index, from 0.
        queue: u32,
        /// What the driver said.
        source: io::Error,
    },
    /// Frames of this interface are larger than Weir takes.
    #[error(
        "the MTU of {interface} is {mtu}: Weir takes at most {limit}, set it lower (ip link set {interface} mtu {limit})"
    )]
    MtuTooLarge {
        /// Its name.
        interface: Arc<str>,
        /// Its MTU in bytes.
        mtu: u16,
        /// The largest MTU that fits.
        limit: u16,
    },
    /// Frames of this interface take several chunks, which cannot be had.
    #[error(
        "the MTU of {interface} is {mtu}, and this kernel or driver carries no more than {limit} by AF_XDP in this mode: set it \
         lower (ip link set {interface} mtu {limit}), or use Linux 6.6 or newer"
    )]
    OneChunk {
        /// Its name.
        interface: Arc<str>,
        /// Its MTU in bytes.
        mtu: u16,
        /// The largest MTU whose frames fit a chunk.
        limit: u16,
    },
    /// A ring size that is no power of two, or too large.
    #[error("ring size {size} is not a power of two from 64 to 32768")]
    RingSize {
        /// Entries wanted.
        size: u32,
    },
    /// Anything else that the kernel refused.
    #[error("{interface}, queue {queue}: {call} failed: {source}")]
    Os {
        /// Its name.
        interface: Arc<str>,
        /// Queue index, from 0.
        queue: u32,
        /// The step that failed.
        call: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}
