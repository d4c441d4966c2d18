//! Loads the program and keeps what it needs: maps, attachments, sockets, beats.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use libbpf_rs::{
    MapCore, MapFlags, MapHandle, Object, ObjectBuilder, OpenObject, PrintLevel, Program, ProgramInput,
};
use zerocopy::IntoBytes;

use crate::abi::{BeatLine, MAX_PORTS, MAX_QUEUES, OBJECT, Settings};
use crate::attach::{Attachment, Mode};
use crate::counters::Counters;
use crate::error::{AttachError, LoadError, SocketError, SyncError};
use crate::fronts::{self, Fronts};
use crate::ours::Delta;
use crate::privilege;
use crate::shared::{Beat, Element, Shared};
use crate::tables::{Maps, SyncReport, Table, Tables};

/// The program's name in the object file.
const PROGRAM: &str = "weir_xdp";

/// A worker that has not beaten for so long gets no more frames, unless [`Xdp::set_beat_limit`] says otherwise.
pub const DEFAULT_BEAT_LIMIT: Duration = Duration::from_secs(1);

/// The beat limits that make sense: above the workers' own turn, below anybody's patience.
const BEAT_LIMITS: std::ops::RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_secs(3600);

/// How much the maps can hold. For each entry of the limits the kernel takes 16 to 32 bytes at once, and some 90 for each
/// that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// VIPs, each with port and protocol.
    pub vips: u32,
    /// Backends in `nat` mode.
    pub nat_backends: u32,
    /// Addresses of all kinds: those of VIPs and `nat` backends, the node's, SNAT addresses, owned ones.
    pub addresses: u32,
    /// Whether frames may be larger than a page: the program is then loaded as one that takes frames in several buffers
    /// (`BPF_F_XDP_HAS_FRAGS`), which lets it on interfaces with a large MTU.
    pub large_frames: bool,
}

impl Default for Limits {
    /// Room for a large cluster.
    fn default() -> Self {
        Self { vips: 65_536, nat_backends: 65_536, addresses: 65_536, large_frames: false }
    }
}

/// The loaded program. Dropping it takes the program off every interface.
#[derive(Debug)]
pub struct Xdp {
    // Before the object: the interfaces are let go of first.
    attachments: Vec<Attachment>,
    object: Object,
    tables: Tables,
    xsks: MapHandle,
    settings: Shared<Settings>,
    counters: Counters,
    beats: Arc<Shared<BeatLine>>,
}

impl Xdp {
    /// Loads the program and makes its maps, empty. Until they are filled everything passes to the kernel.
    pub fn load(limits: &Limits) -> Result<Self, LoadError> {
        let missing = privilege::missing();
        if !missing.is_empty() {
            return Err(LoadError::Capability { missing: missing.join(", ") });
        }
        libbpf_rs::set_print(Some((PrintLevel::Info, |_, line| {
            tracing::debug!("libbpf: {}", line.trim_end())
        })));
        let mut open = ObjectBuilder::default().open_memory(OBJECT).map_err(refused)?;
        for (name, limit) in
            [("vips", limits.vips), ("backends", limits.nat_backends), ("addresses", limits.addresses)]
        {
            set_limit(&mut open, name, limit)?;
        }
        if limits.large_frames {
            open.progs_mut()
                .for_each(|mut program| program.set_flags(libbpf_rs::libbpf_sys::BPF_F_XDP_HAS_FRAGS));
        }
        let buckets = fronts::buckets(limits.vips);
        set_limit(&mut open, "fronts", buckets)?;
        let object = open.load().map_err(refused)?;
        program(&object).ok_or(LoadError::Incomplete(PROGRAM))?;
        let settings: Shared<Settings> = shared(&object, "settings", 1)?;
        let fronts = shared(&object, "fronts", buckets)?;
        let fronts = Fronts::new(fronts, buckets, settings.at(0).ok_or(LoadError::Incomplete("settings"))?);
        let table = |name| map(&object, name).map(|map| Table { name, map });
        let xdp = Self {
            attachments: Vec::new(),
            tables: Tables::new(Maps {
                vips: table("vips")?,
                fronts,
                backends: table("backends")?,
                addresses: table("addresses")?,
                node_ports: table("node_ports")?,
                rules: table("rules")?,
            }),
            xsks: map(&object, "xsks")?,
            settings,
            counters: Counters::new(map(&object, "counters")?),
            beats: Arc::new(shared(&object, "beats", MAX_QUEUES)?),
            object,
        };
        xdp.write_beat_limit(DEFAULT_BEAT_LIMIT);
        Ok(xdp)
    }

    /// Attaches the program to an interface of the calling thread's network namespace, under a port number of the
    /// caller's. Native mode is tried first, generic mode only if `allow_generic`. Returns the mode that the kernel
    /// says the program runs in.
    pub fn attach(&mut self, port: u8, ifindex: u32, allow_generic: bool) -> Result<Mode, AttachError> {
        if u32::from(port) >= MAX_PORTS {
            return Err(AttachError::TooManyPorts(port));
        }
        if self.attachments.iter().any(|known| known.port == port) {
            return Err(AttachError::PortInUse(port));
        }
        let program = program(&self.object).ok_or(AttachError::Gone)?;
        let attachment = Attachment::new(program.as_fd(), port, ifindex, allow_generic)?;
        let mode = attachment.mode(program.as_fd())?;
        self.serve(port, ifindex);
        self.attachments.push(attachment);
        Ok(mode)
    }

    /// The mode in which the kernel runs the program for this port now. [`AttachError::Gone`] if it does not.
    pub fn mode(&self, port: u8) -> Result<Mode, AttachError> {
        let attachment = self.attachments.iter().find(|known| known.port == port).ok_or(AttachError::Gone)?;
        let program = program(&self.object).ok_or(AttachError::Gone)?;
        attachment.mode(program.as_fd())
    }

    /// Takes the program off the interface with this port number, if it is on one.
    pub fn detach(&mut self, port: u8) {
        if let Some(position) = self.attachments.iter().position(|known| known.port == port) {
            self.attachments.swap_remove(position);
            self.serve(port, 0);
        }
    }

    /// Gives the frames of this port and queue to an AF_XDP socket. The kernel forgets the socket when it is closed.
    pub fn register_socket(&self, port: u8, queue: u32, socket: BorrowedFd<'_>) -> Result<(), SocketError> {
        let slot = slot(port, queue)?;
        self.xsks
            .update(slot.as_bytes(), socket.as_raw_fd().as_bytes(), MapFlags::ANY)
            .map_err(|source| SocketError::Kernel { port, queue, source })
    }

    /// Gives the frames of this port and queue to the kernel again.
    pub fn unregister_socket(&self, port: u8, queue: u32) -> Result<(), SocketError> {
        let slot = slot(port, queue)?;
        match self.xsks.delete(slot.as_bytes()) {
            Err(error) if error.kind() == libbpf_rs::ErrorKind::NotFound => Ok(()),
            other => other.map_err(|source| SocketError::Kernel { port, queue, source }),
        }
    }

    /// The beat of a worker, which is the queue index that it serves; `None` past [`MAX_QUEUES`]. Until the worker
    /// beats, its frames pass to the kernel.
    pub fn beat(&self, worker: u32) -> Option<Beat> {
        Beat::new(Arc::clone(&self.beats), worker)
    }

    /// Sets the age of a beat past which its worker gets no more frames: 1 ms to 1 hour.
    pub fn set_beat_limit(&self, limit: Duration) -> Result<(), SyncError> {
        if !BEAT_LIMITS.contains(&limit) {
            return Err(SyncError::BeatLimit(limit));
        }
        self.write_beat_limit(limit);
        Ok(())
    }

    /// Begins a change: nothing is handed over any more that nobody claims now, and nothing new is yet. To be called
    /// before the workers forget what goes. A change that does not fit the maps, or that the kernel does not take, is as
    /// if it had not been asked for; what the kernel may have lost over it [`Self::finish`] puts back.
    pub fn begin(&mut self, delta: &Delta) -> Result<SyncReport, SyncError> {
        self.tables.begin(delta)
    }

    /// Completes all changes that were begun: exactly what is claimed is handed over. To be called once the workers know
    /// what is new. Where the kernel refuses, a further call goes on from there.
    pub fn finish(&mut self) -> Result<SyncReport, SyncError> {
        self.tables.finish()
    }

    /// What it counts.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Runs the program on a frame, as if it had come in on that interface and queue (`BPF_PROG_TEST_RUN`), and
    /// returns its verdict: 2 for the kernel (`XDP_PASS`), 4 for a socket (`XDP_REDIRECT`). Nothing is delivered;
    /// counters count. The interface must be up and the frame at least an Ethernet header long.
    pub fn dry_run(&mut self, frame: &[u8], ifindex: u32, queue: u32) -> Result<u32, libbpf_rs::Error> {
        self.dry_runs(frame, ifindex, queue, 1).map(|(verdict, _)| verdict)
    }

    /// [`Self::dry_run`] so many times over. Returns how long each took on average, too.
    pub fn dry_runs(
        &mut self,
        frame: &[u8],
        ifindex: u32,
        queue: u32,
        times: u32,
    ) -> Result<(u32, Duration), libbpf_rs::Error> {
        let mut programs = self.object.progs_mut();
        let program = programs.find(|program| program.name() == PROGRAM);
        let program = program.ok_or_else(|| libbpf_rs::Error::from_raw_os_error(libc::ENOENT))?;
        let length =
            u32::try_from(frame.len()).map_err(|_| libbpf_rs::Error::from_raw_os_error(libc::EMSGSIZE))?;
        // struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex
        let mut context = [0, length, 0, ifindex, queue, 0];
        let input = ProgramInput {
            context_in: Some(context.as_mut_bytes()),
            data_in: Some(frame),
            repeat: times,
            ..ProgramInput::default()
        };
        program.test_run(input).map(|output| (output.return_value, output.duration))
    }

    fn write_beat_limit(&self, limit: Duration) {
        if let Some(settings) = self.settings.at(0) {
            let limit_ns = u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX);
            settings.beat_limit_ns.store(limit_ns, Ordering::Relaxed);
        }
    }

    /// The port number is that of this interface from now on; 0: of none.
    fn serve(&self, port: u8, ifindex: u32) {
        let slot = self.settings.at(0).and_then(|settings| settings.interfaces.get(usize::from(port)));
        if let Some(slot) = slot {
            slot.store(ifindex, Ordering::Relaxed);
        }
    }
}

fn program(object: &Object) -> Option<Program<'_>> {
    object.progs().find(|program| program.name() == PROGRAM)
}

fn map(object: &Object, name: &'static str) -> Result<MapHandle, LoadError> {
    let map = object.maps().find(|map| map.name() == name).ok_or(LoadError::Incomplete(name))?;
    MapHandle::try_from(&map).map_err(refused)
}

fn shared<T: Element>(object: &Object, name: &'static str, count: u32) -> Result<Shared<T>, LoadError> {
    Shared::map(&map(object, name)?, count).map_err(|source| LoadError::NotMapped { name, source })
}

fn set_limit(open: &mut OpenObject, name: &'static str, limit: u32) -> Result<(), LoadError> {
    if limit == 0 {
        return Err(LoadError::ZeroLimit(name));
    }
    let mut map = open.maps_mut().find(|map| map.name() == name).ok_or(LoadError::Incomplete(name))?;
    map.set_max_entries(limit).map_err(refused)
}

fn slot(port: u8, queue: u32) -> Result<u32, SocketError> {
    if u32::from(port) >= MAX_PORTS || queue >= MAX_QUEUES {
        return Err(SocketError::OutOfRange { port, queue });
    }
    Ok(u32::from(port) * MAX_QUEUES + queue)
}

fn refused(source: libbpf_rs::Error) -> LoadError {
    if source.kind() == libbpf_rs::ErrorKind::OutOfMemory {
        LoadError::Memory { source }
    } else {
        LoadError::Refused { release: privilege::kernel_release(), source }
    }
}
