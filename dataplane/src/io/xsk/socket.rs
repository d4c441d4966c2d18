//! Opening one AF_XDP socket: memory registered, rings made and mapped, bound to a queue.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::error::XskError;
use super::metadata::TX_METADATA_LEN;
use super::port::{BATCH, Rings, Wake};
use super::ring::{Consumer, Producer};
use super::sys::{self, Mapping};
use super::umem::Umem;
use super::{CHUNK_MTU_MAX, PortConfig};

#[expect(clippy::cast_possible_truncation, reason = "44")]
const FAMILY: u16 = libc::AF_XDP as u16;

/// How a queue's socket is opened.
#[derive(Clone, Debug)]
pub(super) struct Request<'a> {
    pub(super) interface: &'a Arc<str>,
    pub(super) ifindex: u32,
    pub(super) queue: u32,
    /// Entries of each ring.
    pub(super) ring_size: u32,
    /// The socket whose registration of the UMEM is shared, in that one's mode; without one the UMEM is registered
    /// anew, and the modes are tried in order.
    pub(super) share: Option<&'a Socket>,
    /// The modes to try.
    pub(super) modes: &'a [BindMode],
    /// The port whose frames take several chunks, where there is one.
    pub(super) large: Option<&'a PortConfig>,
}

/// How frames get from the driver to a socket and back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BindMode {
    /// The NIC reads and writes the frames in Weir's memory.
    ZeroCopy,
    /// The kernel copies each frame.
    Copy,
}

impl BindMode {
    /// The name as output has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::ZeroCopy => "zero-copy",
            Self::Copy => "copy",
        }
    }

    fn flags(self) -> u16 {
        match self {
            Self::ZeroCopy => libc::XDP_ZEROCOPY | libc::XDP_USE_NEED_WAKEUP,
            Self::Copy => libc::XDP_COPY | libc::XDP_USE_NEED_WAKEUP,
        }
    }
}

/// A bound socket.
#[derive(Clone, Debug)]
pub(super) struct Socket {
    pub(super) fd: Arc<OwnedFd>,
    pub(super) mode: BindMode,
    /// Whether the UMEM was registered with TX metadata.
    pub(super) metadata: bool,
    /// Whether its worker's calls poll the queue.
    pub(super) polled: Arc<AtomicBool>,
}

/// What [`open`] makes.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) socket: Socket,
    pub(super) rings: Rings,
    /// Chunks out for receiving.
    pub(super) receiving: u32,
}

impl Wake for Socket {
    #[inline]
    fn tx(&self) -> io::Result<()> {
        sys::wake_tx(self.fd.as_fd())
    }

    #[inline]
    fn rx(&self) {
        sys::wake_rx(self.fd.as_fd());
    }

    #[inline]
    fn is_polled(&self) -> bool {
        self.polled.load(Ordering::Relaxed)
    }
}

/// A socket's counters of what the kernel dropped (`XDP_STATISTICS`, linux/if_xdp.h).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Received frames lost for another reason than the ones below.
    pub rx_dropped: u64,
    /// Fill-ring entries that the kernel found invalid.
    pub rx_invalid: u64,
    /// TX descriptors that the kernel found invalid.
    pub tx_invalid: u64,
    /// Received frames lost because the RX ring was full.
    pub rx_ring_full: u64,
    /// Times that the fill ring was empty when a chunk was wanted.
    pub fill_ring_empty: u64,
    /// Times that the TX ring was empty when the kernel looked.
    pub tx_ring_empty: u64,
}

/// What the kernel's AF_XDP can do for this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Support {
    /// Whether it takes TX metadata, by which checksums are left to it.
    pub tx_metadata: bool,
}

/// Finds out whether this process may open AF_XDP sockets and what they can do. Binds none; a little memory is
/// registered and given back.
pub fn support() -> Result<Support, XskError> {
    let interface = Arc::from("no interface");
    let (interface, share, modes, large) = (&interface, None, &[], None);
    let request = Request { interface, ifindex: 0, queue: 0, ring_size: 64, share, modes, large };
    let umem =
        Umem::new(1, 4096).map_err(|source| XskError::Memory { chunks: 1, chunk_size: 4096, source })?;
    let fd = sys::socket().map_err(|error| request.explain("socket", error))?;
    let tx_metadata = register(fd.as_fd(), &umem).map_err(|error| request.explain_register(&umem, error))?;
    Ok(Support { tx_metadata })
}

/// Opens the socket that `request` describes over `umem`. A queue that is still being released by another process is
/// waited for, about a second.
///
/// The fill ring is full when it is bound: a driver that looks at it then and finds nothing may not look again before a frame
/// has come, for which it has no room (igb of Linux 6.18.15, where a wakeup for receiving raises the TX queue's interrupt).
pub(super) fn open(umem: &mut Umem, request: &Request<'_>) -> Result<Opened, XskError> {
    let fd = sys::socket().map_err(|error| request.explain("socket", error))?;
    let metadata = match request.share {
        None => register(fd.as_fd(), umem).map_err(|error| request.explain_register(umem, error))?,
        Some(owner) => owner.metadata,
    };
    let mut rings = rings(fd.as_fd(), request)?;
    // More frames a call than the 32 that copy mode sends by default; older kernels do not know the option.
    let _ = sys::set_option(fd.as_fd(), sys::XDP_MAX_TX_SKB_BUDGET, &BATCH);
    let lent = fill(&mut rings, umem);
    let mode = bind_in_some_mode(fd.as_fd(), request)
        .and_then(|()| mode_in_use(fd.as_fd()).map_err(|error| request.explain("XDP_OPTIONS", error)));
    let kept = match mode {
        Ok(BindMode::ZeroCopy) => lent.len(),
        // What is missing was taken for a mode that then could not be had.
        Ok(BindMode::Copy) => rings.fill.untaken() as usize,
        Err(_) => 0,
    };
    for address in lent.iter().take(lent.len().saturating_sub(kept)) {
        if let Some((chunk, _)) = umem.reclaim(*address) {
            umem.give_back(chunk);
        }
    }
    #[expect(clippy::cast_possible_truncation, reason = "entries of a ring at most")]
    let receiving = kept as u32;
    let socket = Socket { fd: Arc::new(fd), mode: mode?, metadata, polled: Arc::default() };
    Ok(Opened { socket, rings, receiving })
}

/// Lends chunks for receiving until the fill ring is full. Returns their addresses, in the order of the ring.
fn fill(rings: &mut Rings, umem: &mut Umem) -> Vec<u64> {
    let mut lent = Vec::new();
    for _ in 0..rings.fill.size() {
        let Some(chunk) = umem.take() else { break };
        let address = umem.lend(chunk, 0);
        let pushed = rings.fill.push(address);
        debug_assert!(pushed, "a new ring has room for its size");
        lent.push(address);
    }
    rings.fill.publish();
    lent
}

/// Registers the memory. Returns whether the kernel takes TX metadata.
fn register(fd: BorrowedFd<'_>, umem: &Umem) -> io::Result<bool> {
    let (addr, len, chunk_size) = umem.extent();
    let plain = libc::xdp_umem_reg { addr, len, chunk_size, headroom: 0, flags: 0, tx_metadata_len: 0 };
    let with_metadata = libc::xdp_umem_reg {
        flags: libc::XDP_UMEM_TX_METADATA_LEN,
        tx_metadata_len: TX_METADATA_LEN,
        ..plain
    };
    match sys::set_option(fd, libc::XDP_UMEM_REG, &with_metadata) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            sys::set_option(fd, libc::XDP_UMEM_REG, &plain).map(|()| false)
        }
        result => result.map(|()| true),
    }
}

fn rings(fd: BorrowedFd<'_>, request: &Request<'_>) -> Result<Rings, XskError> {
    let size = request.ring_size;
    for (name, option) in [
        ("XDP_UMEM_FILL_RING", libc::XDP_UMEM_FILL_RING),
        ("XDP_UMEM_COMPLETION_RING", libc::XDP_UMEM_COMPLETION_RING),
        ("XDP_RX_RING", libc::XDP_RX_RING),
        ("XDP_TX_RING", libc::XDP_TX_RING),
    ] {
        sys::set_option(fd, option, &size).map_err(|error| request.explain(name, error))?;
    }
    let (offsets, len) = sys::option::<libc::xdp_mmap_offsets>(fd, libc::XDP_MMAP_OFFSETS)
        .map_err(|error| request.explain("XDP_MMAP_OFFSETS", error))?;
    if len != size_of::<libc::xdp_mmap_offsets>() {
        return Err(XskError::TooOld);
    }
    let map = |layout, entry, at| {
        map_ring(fd, layout, size as usize * entry, at).map_err(|error| request.explain("mmap", error))
    };
    let (descriptor, address) = (size_of::<libc::xdp_desc>(), size_of::<u64>());
    let rx = map(&offsets.rx, descriptor, libc::XDP_PGOFF_RX_RING)?;
    let tx = map(&offsets.tx, descriptor, libc::XDP_PGOFF_TX_RING)?;
    let fill = map(&offsets.fr, address, libc::XDP_UMEM_PGOFF_FILL_RING as libc::off_t)?;
    let completion = map(&offsets.cr, address, libc::XDP_UMEM_PGOFF_COMPLETION_RING as libc::off_t)?;
    let bad = |error| request.explain("ring layout", io::Error::other(error));
    Ok(Rings {
        rx: Consumer::new(rx, &offsets.rx, size).map_err(bad)?,
        tx: Producer::new(tx, &offsets.tx, size).map_err(bad)?,
        fill: Producer::new(fill, &offsets.fr, size).map_err(bad)?,
        completion: Consumer::new(completion, &offsets.cr, size).map_err(bad)?,
    })
}

fn map_ring(
    fd: BorrowedFd<'_>,
    layout: &libc::xdp_ring_offset,
    entries_len: usize,
    at: libc::off_t,
) -> io::Result<Arc<Mapping>> {
    let start = usize::try_from(layout.desc).map_err(io::Error::other)?;
    Mapping::of(fd, start + entries_len, at).map(Arc::new)
}

fn bind_in_some_mode(fd: BorrowedFd<'_>, request: &Request<'_>) -> Result<(), XskError> {
    let mut address = libc::sockaddr_xdp {
        sxdp_family: FAMILY,
        sxdp_flags: 0,
        sxdp_ifindex: request.ifindex,
        sxdp_queue_id: request.queue,
        sxdp_shared_umem_fd: 0,
    };
    if let Some(owner) = request.share {
        // Mode and need_wakeup are the owner's; the kernel refuses other flags here.
        address.sxdp_flags = libc::XDP_SHARED_UMEM;
        address.sxdp_shared_umem_fd = owner.fd.as_raw_fd() as u32;
        return bind(fd, &address).map_err(|error| request.explain_bind(owner.mode, error));
    }
    let several = request.large.map_or(0, |_| libc::XDP_USE_SG);
    let mut refused = None;
    for mode in request.modes {
        address.sxdp_flags = mode.flags() | several;
        match bind(fd, &address) {
            Ok(()) => return Ok(()),
            Err(error) if concerns_mode(&error) => refused = Some((*mode, error)),
            Err(error) => return Err(request.explain_bind(*mode, error)),
        }
    }
    let Some((mode, error)) = refused else { return Ok(()) };
    if let Some(port) = request.large {
        address.sxdp_flags = mode.flags();
        if bind(fd, &address).is_ok() {
            let (interface, mtu) = (Arc::clone(&port.name), port.mtu);
            return Err(XskError::OneChunk { interface, mtu, limit: CHUNK_MTU_MAX });
        }
    }
    Err(request.explain_bind(mode, error))
}

/// Binds, and waits while the queue is still being released: the kernel does that some time after a close.
#[expect(clippy::disallowed_methods, reason = "at start, before any worker runs")]
fn bind(fd: BorrowedFd<'_>, address: &libc::sockaddr_xdp) -> io::Result<()> {
    for wait_ms in [1, 2, 4, 8, 16, 32, 64, 128, 256, 512] {
        match sys::bind(fd, address) {
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                std::thread::sleep(Duration::from_millis(wait_ms));
            }
            result => return result,
        }
    }
    sys::bind(fd, address)
}

/// Whether another mode might be had where this error is what one got.
fn concerns_mode(error: &io::Error) -> bool {
    !matches!(error.raw_os_error(), Some(libc::EBUSY | libc::ENODEV | libc::ENETDOWN | libc::EPERM))
}

fn mode_in_use(fd: BorrowedFd<'_>) -> io::Result<BindMode> {
    let (options, _) = sys::option::<libc::xdp_options>(fd, libc::XDP_OPTIONS)?;
    let zero_copy = options.flags & libc::XDP_OPTIONS_ZEROCOPY != 0;
    Ok(if zero_copy { BindMode::ZeroCopy } else { BindMode::Copy })
}

/// Has the kernel poll the socket's queue whenever its worker calls for it, and put off interrupts meanwhile, or stop that.
/// While it does, it wakes up the driver for nothing but such a poll.
pub(super) fn prefer_busy_poll(fd: BorrowedFd<'_>, on: bool) -> io::Result<()> {
    if on {
        sys::set_socket_option(fd, libc::SO_BUSY_POLL_BUDGET, BATCH)?;
    }
    // Any time but 0 will do, for a call that may not wait polls once.
    sys::set_socket_option(fd, libc::SO_BUSY_POLL, on.into())?;
    sys::set_socket_option(fd, libc::SO_PREFER_BUSY_POLL, on.into())
}

/// The NAPI instance that the kernel would poll for the socket; `None` where it knows none.
pub(super) fn napi(fd: BorrowedFd<'_>) -> Option<u32> {
    sys::socket_option(fd, libc::SO_INCOMING_NAPI_ID).ok().filter(|id| *id != 0)
}

/// Reads a socket's counters.
pub(super) fn statistics(fd: BorrowedFd<'_>) -> io::Result<Statistics> {
    let (raw, _) = sys::option::<libc::xdp_statistics>(fd, libc::XDP_STATISTICS)?;
    Ok(Statistics {
        rx_dropped: raw.rx_dropped,
        rx_invalid: raw.rx_invalid_descs,
        tx_invalid: raw.tx_invalid_descs,
        rx_ring_full: raw.rx_ring_full,
        fill_ring_empty: raw.rx_fill_ring_empty_descs,
        tx_ring_empty: raw.tx_ring_empty_descs,
    })
}

impl Request<'_> {
    fn explain(&self, call: &'static str, error: io::Error) -> XskError {
        match error.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => XskError::NotPermitted,
            Some(libc::EAFNOSUPPORT) => XskError::Unsupported,
            _ => {
                XskError::Os { interface: Arc::clone(self.interface), queue: self.queue, call, source: error }
            }
        }
    }

    fn explain_register(&self, umem: &Umem, error: io::Error) -> XskError {
        match error.raw_os_error() {
            Some(libc::ENOBUFS) => XskError::LockedMemory { bytes: umem.extent().1 },
            _ => self.explain("XDP_UMEM_REG", error),
        }
    }

    fn explain_bind(&self, mode: BindMode, error: io::Error) -> XskError {
        let (interface, queue) = (Arc::clone(self.interface), self.queue);
        match (error.raw_os_error(), mode) {
            (Some(libc::ENODEV), _) => XskError::NoInterface { interface },
            (Some(libc::ENETDOWN), _) => XskError::InterfaceDown { interface },
            (Some(libc::EBUSY), _) => XskError::QueueBusy { interface, queue },
            (Some(libc::EINVAL), BindMode::Copy) => XskError::NoQueue { interface, queue },
            (_, BindMode::ZeroCopy) => XskError::NoZeroCopy { interface, queue, source: error },
            _ => self.explain("bind", error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use nix::sched::{CloneFlags, unshare};

    use super::*;

    fn ip(arguments: &str) -> String {
        let output = Command::new("ip").args(arguments.split(' ')).output().unwrap();
        assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn request<'a>(interface: &'a Arc<str>, share: Option<&'a Socket>) -> Request<'a> {
        let line = ip(&format!("-o link show {interface}"));
        let ifindex = line.split(':').next().unwrap().parse().unwrap();
        Request { interface, ifindex, queue: 0, ring_size: 64, share, modes: &[BindMode::Copy], large: None }
    }

    /// Has `work` done in a network namespace of its own, which goes away with its thread; says so where it cannot be.
    fn in_a_namespace(work: fn()) {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("this test did not run: it needs root for a network namespace and AF_XDP");
            return;
        }
        let thread = std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            work();
        });
        thread.join().unwrap();
    }

    #[test]
    #[cfg_attr(miri, ignore = "Miri has no sockets of this kind")]
    fn one_memory_can_be_registered_twice_and_each_registration_shared() {
        in_a_namespace(|| {
            let names = ["v0", "v1", "v2", "v3"].map(Arc::<str>::from);
            for pair in names.chunks(2) {
                ip(&format!("link add {} up type veth peer name {}", pair[0], pair[1]));
            }
            let mut umem = Umem::new(512, 2048).unwrap();
            let mut open = |name, share| super::open(&mut umem, &request(name, share)).unwrap().socket;
            let (first, second) = (open(&names[0], None), open(&names[1], None));
            for (name, owner) in [(&names[2], &first), (&names[3], &second)] {
                let shared = open(name, Some(owner));
                assert_eq!((shared.mode, shared.metadata), (owner.mode, owner.metadata));
                assert_eq!(statistics(shared.fd.as_fd()).unwrap(), Statistics::default());
            }
        });
    }

    #[test]
    #[cfg_attr(miri, ignore = "Miri has no sockets of this kind")]
    fn a_fill_ring_is_full_when_it_is_bound_and_its_chunks_are_free_again_where_that_fails() {
        in_a_namespace(|| {
            ip("link add v0 up type veth peer name v1");
            let name = Arc::<str>::from("v0");
            let mut umem = Umem::new(512, 2048).unwrap();
            let (both, none) = ([BindMode::ZeroCopy, BindMode::Copy], [BindMode::ZeroCopy]);
            for (modes, want) in [(&both[1..], 64), (&none[..], 0), (&both[..], 64)] {
                let opened = super::open(&mut umem, &Request { modes, ..request(&name, None) });
                let lent = umem.balance().lent;
                assert_eq!(lent, want, "{modes:?}");
                assert!(umem.is_balanced());
                let Ok(mut opened) = opened else { continue };
                assert_eq!((opened.receiving, opened.rings.fill.untaken()), (64, 64), "{modes:?}");
                umem = Umem::new(512, 2048).unwrap();
            }
        });
    }
}
