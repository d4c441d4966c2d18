//! What Weir has of the machine besides interfaces' queues: the admin socket, the mirror, the kernel path.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;

use dataplane::snapshot::Net;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc;

use super::signals::{self, Signal};
use crate::admin::server::{self, ListenError, Socket};
use crate::config::{KERNEL_PATH, KernelPath as Path, Settings};
use crate::netlink::NetlinkError;
use crate::netlink::announce::Announcer;
use crate::netlink::compile::{HOP_LIMIT, Scope, compile};
use crate::netlink::kernel_path::{self, KernelPath, KernelPathError, names};
use crate::netlink::mirror::Doubts;
use crate::netlink::monitor::Monitor;

/// Largest IP packet of ordinary Ethernet, in bytes.
const ETHERNET_MTU: u32 = 1500;

/// Why Weir cannot start on this machine. What was done before is undone.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// No event loop.
    #[error("cannot make the control thread's event loop: {0}")]
    Runtime(#[source] io::Error),
    /// No signals.
    #[error("cannot catch signals: {0}")]
    Signals(#[source] io::Error),
    /// The admin socket.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The mirror.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// The kernel path.
    #[error(transparent)]
    KernelPath(#[from] KernelPathError),
    /// An interface of the configuration is not there.
    #[error("there is no interface {0} in this network namespace")]
    NoInterface(Box<str>),
    /// No packet socket.
    #[error("cannot open a packet socket on {0} (CAP_NET_RAW is needed): {1}")]
    Packet(String, #[source] io::Error),
}

/// The machine as Weir found and arranged it. Undone when dropped.
#[derive(Debug)]
pub struct Host {
    // `Option` only for its end, which takes these apart.
    pub(super) socket: Option<Socket>,
    pub(super) monitor: Monitor,
    pub(super) announcer: Announcer,
    pub(super) scope: Scope,
    pub(super) net: Net,
    kernel_path: Option<KernelPath>,
    pub(super) runtime: Option<Runtime>,
    pub(super) signals: Option<mpsc::Receiver<Signal>>,
}

impl Host {
    /// Opens the admin socket, reads the kernel's tables, makes the kernel path. In the calling thread's network
    /// namespace, where [`super::Control::run_until`] has to be called too.
    pub fn open(settings: &Settings) -> Result<Self, HostError> {
        Self::open_on(new_runtime()?, None, settings)
    }

    /// [`Self::open`], and the process's signals are [`super::Control::run`]'s from the start: one that comes before
    /// that ends Weir in order, too, and leaves nothing behind.
    pub fn open_catching(settings: &Settings) -> Result<Self, HostError> {
        let runtime = new_runtime()?;
        let signals = signals::catch(&runtime).map_err(HostError::Signals)?;
        Self::open_on(runtime, Some(signals), settings)
    }

    fn open_on(
        runtime: Runtime,
        signals: Option<mpsc::Receiver<Signal>>,
        settings: &Settings,
    ) -> Result<Self, HostError> {
        let socket = Socket::open(&settings.socket)?;
        let monitor = runtime.block_on(Monitor::open())?;
        let served: Vec<Arc<str>> = settings.interfaces.iter().map(|name| Arc::from(name.as_str())).collect();
        if let Some(missing) = served.iter().find(|name| monitor.mirror().link_named(name).is_none()) {
            return Err(HostError::NoInterface((**missing).into()));
        }
        let ends = match settings.kernel_path {
            Path::None => None,
            Path::Veth => Some(names(KERNEL_PATH)),
        };
        let queues = settings.workers.count.get().into();
        // What a served interface carries, the path carries too.
        let mtus = served.iter().filter_map(|name| monitor.mirror().link_named(name)).map(|link| link.mtu);
        let mtu = mtus.fold(ETHERNET_MTU, u32::max);
        let create = |ends| runtime.block_on(KernelPath::create(monitor.handle(), ends, queues, mtu));
        let kernel_path = ends.as_ref().map(create).transpose()?;
        let scope = Scope { served, kernel_path: ends };
        let mut host = Self {
            socket: Some(socket),
            monitor,
            announcer: Announcer::default(),
            scope,
            net: Net::default(),
            kernel_path,
            runtime: Some(runtime),
            signals,
        };
        host.first_net()?;
        Ok(host)
    }

    /// The addresses that the host has itself.
    pub fn addresses(&self) -> Vec<IpAddr> {
        self.monitor.mirror().addresses.iter().map(|(_, addr, _)| *addr).collect()
    }

    /// The network as it is now: the ports to open, served ones first, then the workers' end of the kernel path.
    pub fn net(&self) -> &Net {
        &self.net
    }

    fn first_net(&mut self) -> Result<(), HostError> {
        if let Some(runtime) = &self.runtime {
            // The pair is newer than the mirror, which may still have one that it replaced.
            self.monitor.mirror_mut().doubt(Doubts { all: true, ..Doubts::default() });
            runtime.block_on(self.monitor.settle())?;
        }
        self.net = compile(self.monitor.mirror(), &self.scope, &Net::default(), true, HOP_LIMIT);
        let served = self.net.ports.get(..self.scope.served.len()).unwrap_or_default();
        let names = || self.scope.served.join(", ");
        self.announcer = Announcer::open(served).map_err(|error| HostError::Packet(names(), error))?;
        Ok(())
    }
}

/// Takes away what a Weir that was killed has left on this machine, and tells it. A running one is let be.
pub fn clean_up(socket: &std::path::Path) -> Result<Vec<String>, HostError> {
    let mut removed = Vec::new();
    if server::clear(socket)? {
        removed.push(format!("the admin socket {}", socket.display()));
    }
    let pair = names(KERNEL_PATH);
    let cleaned = new_runtime()?.block_on(async {
        let (requests, handle, _) = rtnetlink::new_connection().map_err(NetlinkError::Open)?;
        tokio::spawn(requests);
        Ok::<_, HostError>(kernel_path::clean_up(&handle, &pair).await?)
    })?;
    if cleaned {
        removed.push(format!("the interfaces {} and {}", pair.0, pair.1));
    }
    Ok(removed)
}

fn new_runtime() -> Result<Runtime, HostError> {
    Builder::new_current_thread().enable_all().build().map_err(HostError::Runtime)
}

impl Drop for Host {
    fn drop(&mut self) {
        let Some(runtime) = self.runtime.take() else { return };
        if let Some(path) = self.kernel_path.take()
            && let Err(error) = runtime.block_on(path.remove(self.monitor.handle()))
        {
            tracing::warn!(%error, "the kernel path stays");
        }
    }
}
