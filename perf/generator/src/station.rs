//! AF_XDP sockets of one queue index on some interfaces, and the memory they share.
//!
//! The only file with unsafe code. xsk-rs asks of its callers that a frame is in one place at a time. Here every
//! descriptor is owned by exactly one of: the free list, the batch, a kernel ring. All three belong to one
//! [`Station`], so descriptors of different memories cannot mix either.

use std::num::NonZeroU32;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use clap::ValueEnum;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::Serialize;
use xsk_rs::config::{BindFlags, FrameSize, LibxdpFlags, QueueSize, SocketConfig, UmemConfig, XdpFlags};
use xsk_rs::{CompQueue, FillQueue, FrameDesc, RxQueue, Socket, TxQueue, Umem};

/// Frames in a batch at most.
pub(crate) const BATCH: usize = 64;

/// Bytes of one frame's memory. Holds an untagged frame of 1,500 bytes MTU behind the kernel's headroom.
const CHUNK: u32 = 2048;

/// Bytes of the longest frame: a chunk less `XDP_PACKET_HEADROOM` of linux/bpf.h.
pub(crate) const FRAME_MAX: usize = CHUNK as usize - 256;

/// How long a bind waits for the socket of an earlier run, which the kernel releases some time after its end.
const RELEASE_LIMIT: Duration = Duration::from_secs(10);

/// How the XDP program that fills the rings is attached.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Attach {
    /// In the driver.
    Native,
    /// Behind the driver, on socket buffers.
    Generic,
    /// Not at all: the sockets only send.
    None,
}

/// What a station is opened with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Options {
    /// How frames get into the rings.
    pub(crate) attach: Attach,
    /// Entries of each ring: a power of two, small enough that those of all rings can be counted in 32 bits.
    pub(crate) ring: u32,
    /// Copy mode, also where the driver has zero-copy.
    pub(crate) copy: bool,
}

/// Sockets on the same queue index of each interface, in the order of the interfaces.
pub(crate) struct Station {
    ports: Vec<Port>,
    free: Vec<FrameDesc>,
    batch: Vec<FrameDesc>,
    umem: Umem,
}

struct Port {
    rx: RxQueue,
    tx: TxQueue,
    fill: FillQueue,
    completion: CompQueue,
    ring: u32,
    receives: bool,
}

/// The kernel's own counts of one socket (`XDP_STATISTICS`) and what it is (`XDP_OPTIONS`).
#[derive(Debug, Serialize)]
pub(crate) struct SocketReport {
    pub(crate) zero_copy: bool,
    rx_dropped: u64,
    rx_ring_full: u64,
    rx_fill_ring_empty: u64,
    rx_invalid: u64,
    tx_invalid: u64,
}

impl Station {
    /// Binds a socket to `queue` of each interface. Where frames are to be received, the first socket on an interface
    /// attaches libxdp's redirect program and the last one dropped detaches it.
    pub(crate) fn open(interfaces: &[&str], queue: u32, options: Options) -> Result<Self> {
        let ring = QueueSize::new(options.ring)?;
        let config = UmemConfig::builder()
            .frame_size(FrameSize::new(CHUNK)?)
            .fill_queue_size(ring)
            .comp_queue_size(ring)
            .build()?;
        // Each port can have its fill, RX and TX rings full at once, and a batch is out besides.
        let frames = u32::try_from(interfaces.len())? * options.ring * 3 + u32::try_from(BATCH)?;
        let frames = NonZeroU32::new(frames).context("no interface")?;
        let (umem, free) = Umem::new(config, frames, true)
            .or_else(|_| Umem::new(config, frames, false))
            .map_err(|error| {
                with_source(
                    "cannot register memory for frames (this needs root and a large enough RLIMIT_MEMLOCK)",
                    &error,
                )
            })?;
        let ports = interfaces
            .iter()
            .map(|name| {
                Port::bind(&umem, name, queue, options).with_context(|| format!("{name} queue {queue}"))
            })
            .collect::<Result<_>>()?;
        let mut station = Self { ports, free, batch: Vec::with_capacity(BATCH), umem };
        station.refill();
        Ok(station)
    }

    /// Moves received frames of a port into the empty batch. Returns how many.
    pub(crate) fn receive(&mut self, port: usize) -> usize {
        debug_assert!(self.batch.is_empty());
        let Some(port) = self.ports.get_mut(port) else { return 0 };
        self.batch.resize(BATCH, FrameDesc::default());
        // SAFETY: the batch's descriptors are placeholders that the ring overwrites; the rest is cut off below.
        let count = unsafe { port.rx.consume(&mut self.batch) };
        self.batch.truncate(count);
        count
    }

    /// Moves free frames into the empty batch, `count` at most; `len` gives the bytes of the next one. Returns how many.
    pub(crate) fn take(&mut self, count: usize, mut len: impl FnMut() -> usize) -> usize {
        debug_assert!(self.batch.is_empty());
        let left = self.free.len().saturating_sub(count.min(BATCH));
        self.batch.extend(self.free.drain(left..));
        for desc in &mut self.batch {
            // SAFETY: the batch owns the frame, and it is of this memory.
            unsafe { self.umem.data_mut(desc) }.cursor().set_pos(len());
        }
        self.batch.len()
    }

    /// Calls `work` on each frame of the batch.
    pub(crate) fn each(&mut self, mut work: impl FnMut(&mut [u8])) {
        for desc in &mut self.batch {
            // SAFETY: the batch owns the frame, and it is of this memory.
            work(unsafe { self.umem.data_mut(desc) }.contents_mut());
        }
    }

    /// Calls `work` on each free frame, `len` bytes long: to write what all frames have in common once.
    pub(crate) fn each_free(&mut self, len: usize, mut work: impl FnMut(&mut [u8])) {
        for desc in &mut self.free {
            // SAFETY: the free list owns the frame, and it is of this memory.
            let mut data = unsafe { self.umem.data_mut(desc) };
            data.cursor().set_pos(len);
            work(data.contents_mut());
        }
    }

    /// Sends the batch by a port. Frames that its TX ring has no room for are freed unsent. Returns how many went.
    pub(crate) fn send(&mut self, port: usize) -> Result<usize> {
        let Some(port) = self.ports.get_mut(port) else { bail!("no port {port}") };
        let room = port.tx.nb_free(u32::try_from(self.batch.len())?) as usize;
        self.free.extend(self.batch.drain(room.min(self.batch.len())..));
        // SAFETY: the batch owns the frames, they are of this memory, and it gives them up here.
        let sent = unsafe { port.tx.produce(&self.batch) };
        self.free.extend(self.batch.drain(sent..));
        self.batch.clear();
        port.kick(&mut self.free)?;
        Ok(sent)
    }

    /// Frees the frames of the batch that `keep`, which may change them, does not keep. It sees them as long as on a
    /// wire: what the kernel has forwarded lacks the padding.
    pub(crate) fn retain(&mut self, mut keep: impl FnMut(&mut [u8]) -> bool) {
        let Self { batch, free, umem, .. } = self;
        batch.retain_mut(|desc| {
            const LEAST: usize = 60;
            // SAFETY: the batch owns the frame, and it is of this memory.
            let mut data = unsafe { umem.data_mut(desc) };
            let len = data.contents().len();
            data.cursor().set_pos(len.max(LEAST));
            let kept = keep(data.contents_mut());
            if !kept {
                free.push(*desc);
            }
            kept
        });
    }

    /// Frees the batch.
    pub(crate) fn discard(&mut self) {
        self.free.append(&mut self.batch);
    }

    /// Takes sent frames back and gives free ones to the receiving ports.
    pub(crate) fn refill(&mut self) {
        for port in &mut self.ports {
            port.reclaim(&mut self.free);
            port.feed(&mut self.free);
        }
    }

    /// Room in the TX ring of a port once all that was sent is taken back.
    pub(crate) fn room(&mut self, port: usize) -> usize {
        self.ports.get_mut(port).map_or(0, |port| port.tx.nb_free_exact() as usize)
    }

    /// Whether no frame waits in a TX ring of any port.
    pub(crate) fn is_drained(&mut self) -> Result<bool> {
        let Self { ports, free, .. } = self;
        for port in &mut *ports {
            port.kick(free)?;
        }
        Ok(ports.iter_mut().all(|port| port.tx.nb_free_exact() == port.ring))
    }

    /// Sleeps until a frame is received, `timeout_ms` at most.
    pub(crate) fn wait(&self, timeout_ms: u8) -> Result<()> {
        let mut fds: Vec<_> = self
            .ports
            .iter()
            .map(|port| {
                // SAFETY: the socket is open as long as `self`, which outlives the call.
                let fd = unsafe { BorrowedFd::borrow_raw(port.rx.fd().as_raw_fd()) };
                PollFd::new(fd, PollFlags::POLLIN)
            })
            .collect();
        match poll(&mut fds, PollTimeout::from(timeout_ms)) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(error) => Err(error).context("poll"),
        }
    }

    /// What the kernel says about the sockets, in the order of the interfaces.
    pub(crate) fn report(&self) -> Result<Vec<SocketReport>> {
        self.ports.iter().map(Port::report).collect()
    }
}

impl Port {
    fn bind(umem: &Umem, name: &str, queue: u32, options: Options) -> Result<Self> {
        let receives = !matches!(options.attach, Attach::None);
        let ring = QueueSize::new(options.ring)?;
        let mut config = SocketConfig::builder();
        let mode = if options.copy { BindFlags::XDP_COPY } else { BindFlags::empty() };
        config.rx_queue_size(ring).tx_queue_size(ring).bind_flags(BindFlags::XDP_USE_NEED_WAKEUP | mode);
        match options.attach {
            Attach::Native => config.xdp_flags(XdpFlags::XDP_FLAGS_DRV_MODE),
            Attach::Generic => config.xdp_flags(XdpFlags::XDP_FLAGS_SKB_MODE),
            Attach::None => config.libxdp_flags(LibxdpFlags::XSK_LIBXDP_FLAGS_INHIBIT_PROG_LOAD),
        };
        let interface = name.parse()?;
        let started = Instant::now();
        loop {
            // SAFETY: a station binds each pair of interface and queue once.
            match unsafe { Socket::new(config.build(), umem, &interface, queue) } {
                Ok((tx, rx, Some((fill, completion)))) => {
                    return Ok(Self { rx, tx, fill, completion, ring: options.ring, receives });
                }
                Ok((_, _, None)) => bail!("named twice"),
                Err(error) if is_busy(&error) && started.elapsed() < RELEASE_LIMIT => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                Err(error) => return Err(with_source("cannot bind an AF_XDP socket", &error)),
            }
        }
    }

    /// Has the kernel send what is in the TX ring. In copy mode one call sends 32 frames at most.
    fn kick(&mut self, free: &mut Vec<FrameDesc>) -> Result<()> {
        const PER_CALL: u32 = 32;
        let waiting = self.ring - self.tx.nb_free_exact();
        for _ in 0..waiting.div_ceil(PER_CALL) {
            if self.tx.needs_wakeup() {
                self.tx.wakeup().context("sendto on an AF_XDP socket")?;
            }
            self.reclaim(free);
        }
        Ok(())
    }

    fn reclaim(&mut self, free: &mut Vec<FrameDesc>) {
        let mut done = [FrameDesc::default(); BATCH];
        loop {
            // SAFETY: the descriptors are placeholders; those that the ring fills in change owner to the free list.
            let count = unsafe { self.completion.consume(&mut done) };
            free.extend(done.iter().take(count));
            if count < BATCH {
                return;
            }
        }
    }

    fn feed(&mut self, free: &mut Vec<FrameDesc>) {
        if !self.receives {
            return;
        }
        let room = self.fill.nb_free_exact() as usize;
        let left = free.len().saturating_sub(room);
        let given = free.get(left..).unwrap_or_default();
        // SAFETY: the free list owns the frames, they are of this memory, and it gives up those that were taken.
        let count = unsafe { self.fill.produce(given) };
        free.truncate(free.len() - count);
        if self.fill.needs_wakeup() {
            // A failed poll only delays the refill to the next turn.
            drop(self.fill.wakeup(self.rx.fd_mut(), 0));
        }
    }

    fn report(&self) -> Result<SocketReport> {
        let statistics = self.rx.fd().xdp_statistics().context("XDP_STATISTICS")?;
        Ok(SocketReport {
            zero_copy: is_zero_copy(self.rx.fd())?,
            rx_dropped: statistics.rx_dropped(),
            rx_ring_full: statistics.rx_ring_full(),
            rx_fill_ring_empty: statistics.rx_fill_ring_empty_descs(),
            rx_invalid: statistics.rx_invalid_descs(),
            tx_invalid: statistics.tx_invalid_descs(),
        })
    }
}

fn is_busy(error: &dyn std::error::Error) -> bool {
    let source = error.source().and_then(|source| source.downcast_ref::<std::io::Error>());
    source.and_then(std::io::Error::raw_os_error) == Some(libc::EBUSY)
}

/// xsk-rs keeps the kernel's answer in the source.
fn with_source(what: &str, error: &dyn std::error::Error) -> anyhow::Error {
    match error.source() {
        Some(source) => anyhow!("{what}: {source}"),
        None => anyhow!("{what}: {error}"),
    }
}

/// `XDP_OPTIONS_ZEROCOPY` as the kernel has it for the socket.
fn is_zero_copy(fd: &impl AsRawFd) -> Result<bool> {
    let mut options = libc::xdp_options { flags: 0 };
    let mut len = libc::socklen_t::try_from(size_of_val(&options))?;
    // SAFETY: `options` is valid for writes of `len` bytes, and both live until the call returns.
    let status = unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            libc::SOL_XDP,
            libc::XDP_OPTIONS,
            (&raw mut options).cast(),
            &raw mut len,
        )
    };
    Errno::result(status).context("XDP_OPTIONS")?;
    Ok(options.flags & libc::XDP_OPTIONS_ZEROCOPY != 0)
}
