//! AF_XDP: frames straight from and to an interface's queues, past the kernel's network stack.
//!
//! ```text
//! XskIo ── Ports ─┬─ Umem      chunks: free, held or lent (memfd, huge pages)
//!                 └─ Port ...  one socket's rings and chunk account
//!                     └─ Ring  producer and consumer ends over shared memory
//! socket: register, map, bind    metadata: checksums on TX    sys: system calls
//! ```
//!
//! One [`XskIo`] belongs to one worker: one UMEM, and a socket on the same queue index of every port. All unsafe code
//! of the I/O lies in `sys`, `ring` and `umem`, behind types that cannot be misused from the rest. What is not here:
//! the XDP program that directs frames to the sockets, and the choice of what to do with a frame.

mod error;
mod metadata;
mod port;
mod ports;
mod ring;
mod socket;
mod sys;
mod umem;

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

pub use self::error::XskError;
pub use self::socket::{BindMode, Statistics, Support, support};

use self::port::{BATCH, Port};
use self::ports::{CHUNKS_OF_FRAME, Ports, XDP_HEADROOM};
use self::socket::{Opened, Request, Socket};
use self::umem::Umem;
use crate::frame::Frame;
use crate::ids::PortId;
use crate::io::{Arrival, Io, LiveIo, PortCounters, Turn};
use crate::verdict::Verdict;

/// Ethernet header and two VLAN tags.
const LAYER_2_LEN: u32 = 22;
const CHUNK_SIZES: [u32; 2] = [2048, 4096];

/// The largest MTU of an interface whose frames fit a chunk with the kernel's headroom before them. Those of a larger one come
/// and go in several chunks, which takes Linux 6.6.
pub const CHUNK_MTU_MAX: u16 = 3818;
const _: () = assert!(CHUNK_MTU_MAX as u32 == CHUNK_SIZES[1] - XDP_HEADROOM - LAYER_2_LEN);

/// The largest MTU of an interface.
pub const MTU_MAX: u16 = 11_498;
const _: () = assert!(
    (MTU_MAX as u32 + LAYER_2_LEN) as usize == CHUNKS_OF_FRAME * (CHUNK_SIZES[1] - XDP_HEADROOM) as usize
);

/// How many chunks the largest frame of an interface with this MTU takes.
pub fn chunks_of_frame(mtu: u32) -> u32 {
    mtu.saturating_add(LAYER_2_LEN).div_ceil(CHUNK_SIZES[1] - XDP_HEADROOM)
}

/// Whether frames are to stay where the NIC put them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum ZeroCopy {
    /// Where the driver can, else copied.
    #[default]
    Auto,
    /// Never: always copied.
    Never,
    /// Where the driver cannot, opening fails.
    Require,
}

/// An interface to open.
#[derive(Clone, Debug)]
pub struct PortConfig {
    /// Its name, for messages.
    pub name: Arc<str>,
    /// The kernel's index of it.
    pub ifindex: u32,
    /// Largest IP packet in bytes.
    pub mtu: u16,
    /// Whether zero-copy is asked for.
    pub zero_copy: ZeroCopy,
}

/// What a worker's sockets are opened with.
#[derive(Clone, Debug)]
pub struct XskConfig {
    /// The queue index, the same on every port.
    pub queue: u32,
    /// Entries of each of a socket's four rings: a power of two from 64 to 32768. A worker's UMEM has twice as many
    /// chunks for every port and a batch besides.
    pub ring_size: u32,
    /// The interfaces, by [`PortId`].
    pub ports: Vec<PortConfig>,
    /// Whether the driver of one of them tells its NIC the room of a chunk in whole KiB: then a chunk of 2048 bytes has
    /// room for 1024, and longer frames come in pieces that make no sense.
    pub whole_kib: bool,
}

impl XskConfig {
    /// Bytes of frame memory that a worker takes with this.
    pub fn memory_bytes(&self) -> Result<u64, XskError> {
        Ok(umem::len(self.chunks(), chunk_size(&self.ports, self.whole_kib)?) as u64)
    }

    fn chunks(&self) -> u32 {
        self.ports.iter().map(|_| 2 * self.ring_size).sum::<u32>() + BATCH
    }
}

/// The sockets and the memory of one worker.
#[derive(Debug)]
pub struct XskIo {
    ports: Ports<Socket>,
    sockets: Vec<PortSocket>,
    /// One entry a socket, and the last for the bell.
    poll: Box<[libc::pollfd]>,
}

/// What other threads may know of a worker's socket. Does not keep it open: it dies with its worker.
#[derive(Clone, Debug)]
pub struct PortSocket {
    /// The port.
    pub port: PortId,
    /// The interface's name.
    pub interface: Arc<str>,
    /// The queue index.
    pub queue: u32,
    /// How frames get to and from the driver, as the kernel said after binding.
    pub mode: BindMode,
    /// Whether partial checksums are left to the kernel.
    pub tx_checksum: bool,
    /// Frames counted by the worker.
    pub counters: Arc<PortCounters>,
    polled: Arc<AtomicBool>,
    fd: Weak<OwnedFd>,
}

/// A worker's frame memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// Chunks in all.
    pub chunks: usize,
    /// Bytes of a chunk.
    pub chunk_size: usize,
    /// Whether it lies on pages of 2 MiB.
    pub huge_pages: bool,
}

impl XskIo {
    /// Opens a socket on the configured queue of every port, in the calling thread's network namespace. The memory is
    /// faulted in by the calling thread: call it on the worker's core.
    ///
    /// All sockets share one UMEM. The kernel binds those that share a registration of it in one mode, so there is one
    /// registration for the ports that can do zero-copy and one for those that cannot.
    pub fn open(config: &XskConfig) -> Result<Self, XskError> {
        let size = config.ring_size;
        if !size.is_power_of_two() || !(64..=32768).contains(&size) {
            return Err(XskError::RingSize { size });
        }
        let (chunks, chunk_size) = (config.chunks(), chunk_size(&config.ports, config.whole_kib)?);
        let mut umem = Umem::new(chunks, chunk_size).map_err(|source| XskError::Memory {
            chunks,
            chunk_size,
            source,
        })?;
        let (mut opened, mut sockets, mut ports) = (Vec::new(), Vec::new(), Vec::new());
        for (id, port) in (0..=u8::MAX).map(PortId).zip(&config.ports) {
            let Opened { socket, rings, receiving } = open_port(&mut umem, config, port, &opened)?;
            let counters = Arc::new(PortCounters::default());
            // Of zero-copy drivers only some complete checksums, and none says so here.
            let tx_checksum = socket.metadata && socket.mode == BindMode::Copy;
            sockets.push(PortSocket {
                port: id,
                interface: Arc::clone(&port.name),
                queue: config.queue,
                mode: socket.mode,
                tx_checksum,
                counters: Arc::clone(&counters),
                polled: Arc::clone(&socket.polled),
                fd: Arc::downgrade(&socket.fd),
            });
            ports.push(Port::new(rings, socket.clone(), receiving, tx_checksum, counters));
            opened.push(socket);
        }
        let wanted = |fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        let poll = opened.iter().map(|socket| socket.fd.as_raw_fd()).chain([-1]).map(wanted).collect();
        let large = large(&config.ports).map(|port| usize::from(port.mtu) + LAYER_2_LEN as usize);
        Ok(Self { ports: Ports::new(umem, ports, large), sockets, poll })
    }

    /// The sockets, by [`PortId`], for the XDP program's map and for whoever shows them.
    pub fn sockets(&self) -> &[PortSocket] {
        &self.sockets
    }

    /// The frame memory.
    pub fn memory(&self) -> Memory {
        let umem = self.ports.umem();
        Memory { chunks: umem.chunks(), chunk_size: umem.chunk_size(), huge_pages: umem.is_huge() }
    }

    /// Chunks that are neither free nor with the kernel on some port's account: 0 between turns, or a frame leaked.
    pub fn leaked_chunks(&self) -> usize {
        let balance = self.ports.umem().balance();
        let lent: usize = self.ports.iter().map(Port::lent).sum();
        balance.held + balance.lent.abs_diff(lent)
    }

    /// The descriptor of the frame memory, by which a successor can map it.
    pub fn memory_fd(&self) -> Option<BorrowedFd<'_>> {
        self.ports.umem().memfd()
    }
}

impl Io for XskIo {
    #[inline]
    fn turn(&mut self, work: impl FnOnce(&mut [Frame<'_>], &mut [Verdict])) -> Turn {
        self.ports.turn(work)
    }
}

impl LiveIo for XskIo {
    #[inline]
    fn inject(&mut self, fill: impl FnMut(&mut [u8]) -> Option<Arrival>) -> usize {
        self.ports.inject(fill)
    }

    fn wait(&mut self, bell: BorrowedFd<'_>, timeout: Duration) -> bool {
        // What the interface did not take is tried again soon.
        let limit = if self.ports.push_out() { Duration::from_millis(1) } else { Duration::MAX };
        let timeout_ms = i32::try_from(timeout.min(limit).as_millis()).unwrap_or(i32::MAX);
        if let Some(last) = self.poll.last_mut() {
            last.fd = bell.as_raw_fd();
        }
        // It fails for no reason that concerns the worker but a lack of kernel memory; then the turn comes early.
        sys::poll(&mut self.poll, timeout_ms).is_ok()
            && self.poll.last().is_some_and(|last| last.revents != 0)
    }
}

impl PortSocket {
    /// The socket, while its worker lives. Not to be kept: that would keep the socket open.
    pub fn fd(&self) -> Option<Arc<OwnedFd>> {
        self.fd.upgrade()
    }

    /// The NAPI instance that the kernel would poll for the socket; `None` where it knows none, as with drivers that do not
    /// say what serves a queue, or the worker is gone.
    pub fn napi(&self) -> Option<u32> {
        socket::napi(self.fd()?.as_fd())
    }

    /// Whether the worker's calls poll the queue.
    pub fn is_polled(&self) -> bool {
        self.polled.load(Ordering::Relaxed)
    }

    /// Has the worker's calls poll the queue in place of interrupts (`SO_PREFER_BUSY_POLL`, Linux 5.11), one call a turn, a
    /// batch at most; or no longer. The kernel then wakes up the driver for nothing but its [NAPI instance](Self::napi), so
    /// that one has to serve the queue in both directions. While the worker sleeps, interrupts come back.
    pub fn set_polled(&self, polled: bool) -> io::Result<()> {
        if let Some(fd) = self.fd() {
            socket::prefer_busy_poll(fd.as_fd(), polled)?;
        }
        self.polled.store(polled, Ordering::Relaxed);
        Ok(())
    }

    /// What the kernel counts on the socket; `None` where its worker is gone.
    pub fn statistics(&self) -> Option<io::Result<Statistics>> {
        Some(socket::statistics(self.fd()?.as_fd()))
    }
}

/// Opens a port in the best mode that it can and may have, and shares the registration of a socket in that mode.
fn open_port(
    umem: &mut Umem,
    config: &XskConfig,
    port: &PortConfig,
    opened: &[Socket],
) -> Result<Opened, XskError> {
    let owner = |mode| opened.iter().find(|socket| socket.mode == mode);
    let (fast, slow) = (owner(BindMode::ZeroCopy), owner(BindMode::Copy));
    let request = |share, modes| Request {
        interface: &port.name,
        ifindex: port.ifindex,
        queue: config.queue,
        ring_size: config.ring_size,
        share,
        modes,
        large: large(&config.ports),
    };
    let mut open = |share, modes| socket::open(umem, &request(share, modes));
    match (port.zero_copy, fast, slow) {
        (ZeroCopy::Never, _, _) => open(slow, &[BindMode::Copy]),
        (ZeroCopy::Require, _, _) => open(fast, &[BindMode::ZeroCopy]),
        // Both modes by one registration, for it is the first.
        (ZeroCopy::Auto, None, None) => open(None, &[BindMode::ZeroCopy, BindMode::Copy]),
        (ZeroCopy::Auto, _, _) => match open(fast, &[BindMode::ZeroCopy]) {
            // The second registration may be more than the process may lock, which copying would not need.
            Err(XskError::NoZeroCopy { .. } | XskError::LockedMemory { .. }) => open(slow, &[BindMode::Copy]),
            result => result,
        },
    }
}

/// The port with the largest MTU.
fn largest(ports: &[PortConfig]) -> Option<&PortConfig> {
    ports.iter().max_by_key(|port| port.mtu)
}

/// The port with the largest MTU, where its frames do not fit a chunk.
fn large(ports: &[PortConfig]) -> Option<&PortConfig> {
    largest(ports).filter(|port| port.mtu > CHUNK_MTU_MAX)
}

/// The smallest chunk that holds a frame of every port, or else the largest.
fn chunk_size(ports: &[PortConfig], whole_kib: bool) -> Result<u32, XskError> {
    let unit = if whole_kib && ports.iter().any(|port| port.zero_copy != ZeroCopy::Never) { 1024 } else { 1 };
    let room = |size: u32| (size - XDP_HEADROOM) / unit * unit - LAYER_2_LEN;
    let [small, page] = CHUNK_SIZES;
    match largest(ports) {
        Some(port) if port.mtu > MTU_MAX => {
            Err(XskError::MtuTooLarge { interface: Arc::clone(&port.name), mtu: port.mtu, limit: MTU_MAX })
        }
        Some(port) if u32::from(port.mtu) > room(small) => Ok(page),
        _ => Ok(small),
    }
}
