//! The path by which frames that Weir took but that are not its own get to the kernel after all: a veth pair.
//!
//! ```text
//! worker --AF_XDP TX--> weir1 ==veth== weir0 --> the kernel receives, or routes on
//! ```
//!
//! The pair carries no addresses but a dummy where the kernel insists, and nothing is routed to it. What the kernel needs so that it accepts foreign
//! packets on `weir0` is set on that interface alone; `net.ipv4.ip_forward` is the administrator's.

use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;
use std::{fs, io};

use futures_util::StreamExt;
use rtnetlink::packet_route::address::AddressScope;
use rtnetlink::packet_route::link::{InfoData, InfoVeth, LinkAttribute, LinkMessage};
use rtnetlink::{Handle, LinkUnspec, LinkVeth};

use super::event::{self, KernelLink};

/// The address of the kernel's end where the kernel filters by the way back: without any address on the interface
/// even the loose filter refuses (`net/ipv4/fib_frontend.c`, `__fib_validate_source`). RFC 7600 reserves it for nodes
/// that have none; by its scope it is never a source.
const DUMMY: Ipv4Addr = Ipv4Addr::new(192, 0, 0, 8);

/// Why the pair could not be made.
#[derive(Debug, thiserror::Error)]
pub enum KernelPathError {
    /// Its name is taken by something else.
    #[error("interface {name} exists and is no veth: rename it, or choose another `kernel_path`")]
    Taken {
        /// The name.
        name: Arc<str>,
    },
    /// The kernel refused.
    #[error("cannot {what} for the kernel path (CAP_NET_ADMIN is needed): {source}")]
    Refused {
        /// What was tried.
        what: String,
        /// Why it failed.
        source: rtnetlink::Error,
    },
    /// A setting could not be written.
    #[error("cannot write {setting} for the kernel path: {source}")]
    Setting {
        /// The setting, as sysctl names it.
        setting: String,
        /// Why it failed.
        source: io::Error,
    },
}

/// The pair. [`KernelPath::remove`] takes it away; one left over by a killed process is replaced at the next start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelPath {
    /// The end that the kernel receives on.
    pub kernel_end: KernelLink,
    /// The end that the workers send on.
    pub workers_end: KernelLink,
}

/// The names of the pair's ends for a configured name: `weir0` has the workers' end `weir1`.
pub fn names(kernel_path: &str) -> (Arc<str>, Arc<str>) {
    let stem = kernel_path.strip_suffix('0').unwrap_or(kernel_path);
    (Arc::from(kernel_path), Arc::from(format!("{stem}1")))
}

impl KernelPath {
    /// Makes the pair `names` (kernel's end, workers' end) with so many queues and that MTU, and sets both up.
    pub async fn create(
        handle: &Handle,
        names: &(Arc<str>, Arc<str>),
        queues: u32,
        mtu: u32,
    ) -> Result<Self, KernelPathError> {
        for name in [&names.0, &names.1] {
            remove_left_over(handle, name).await?;
        }
        let refused =
            |source| KernelPathError::Refused { what: format!("create {} and {}", names.0, names.1), source };
        handle.link().add(pair(names, queues, mtu)).execute().await.map_err(refused)?;
        let made = Self::set_up(handle, names).await;
        if made.is_err() {
            // The fault that counts is the first one.
            let _ = remove_left_over(handle, &names.0).await;
        }
        made
    }

    async fn set_up(handle: &Handle, names: &(Arc<str>, Arc<str>)) -> Result<Self, KernelPathError> {
        configure(&names.0, &names.1)?;
        if is_filtered() {
            let index = find(handle, &names.0).await?.map_or(0, |link| link.index);
            let mut request = handle.address().add(index, DUMMY.into(), 32);
            request.message_mut().header.scope = AddressScope::Host;
            let refused =
                |source| KernelPathError::Refused { what: format!("add {DUMMY} to {}", names.0), source };
            request.execute().await.map_err(refused)?;
        }
        for name in [&names.0, &names.1] {
            let up = LinkUnspec::new_with_name(name).up().build();
            let refused = |source| KernelPathError::Refused { what: format!("set {name} up"), source };
            handle.link().set(up).execute().await.map_err(refused)?;
        }
        let missing = |name: &str| KernelPathError::Refused {
            what: format!("find {name}"),
            source: rtnetlink::Error::RequestFailed,
        };
        Ok(Self {
            kernel_end: find(handle, &names.0).await?.ok_or_else(|| missing(&names.0))?,
            workers_end: find(handle, &names.1).await?.ok_or_else(|| missing(&names.1))?,
        })
    }

    /// Takes the pair away, with both ends.
    pub async fn remove(&self, handle: &Handle) -> Result<(), KernelPathError> {
        let refused =
            |source| KernelPathError::Refused { what: format!("remove {}", self.kernel_end.name), source };
        handle.link().del(self.kernel_end.index).execute().await.map_err(refused)
    }
}

/// Takes away the pair of these names that a killed process has left behind; whether there was one.
pub async fn clean_up(handle: &Handle, names: &(Arc<str>, Arc<str>)) -> Result<bool, KernelPathError> {
    let mut found = false;
    for name in [&names.0, &names.1] {
        found |= remove_left_over(handle, name).await?;
    }
    Ok(found)
}

fn pair(names: &(Arc<str>, Arc<str>), queues: u32, mtu: u32) -> LinkMessage {
    let mtu = LinkAttribute::Mtu(mtu);
    let attributes = [LinkAttribute::NumTxQueues(queues), LinkAttribute::NumRxQueues(queues), mtu];
    let mut far = LinkUnspec::new_with_name(&names.1).build();
    far.attributes.extend(attributes.clone());
    let [tx, rx, mtu] = attributes;
    LinkVeth::new(&names.0, &names.1)
        .append_extra_attribute(tx)
        .append_extra_attribute(rx)
        .append_extra_attribute(mtu)
        .set_info_data(InfoData::Veth(InfoVeth::Peer(far)))
        .build()
}

async fn find(handle: &Handle, name: &str) -> Result<Option<KernelLink>, KernelPathError> {
    let mut answers = std::pin::pin!(handle.link().get().match_name(name).execute());
    match answers.next().await {
        None => Ok(None),
        Some(Ok(message)) => Ok(event::link(&message)),
        Some(Err(rtnetlink::Error::NetlinkError(error))) if error.raw_code() == -libc::ENODEV => Ok(None),
        Some(Err(source)) => Err(KernelPathError::Refused { what: format!("look for {name}"), source }),
    }
}

async fn remove_left_over(handle: &Handle, name: &Arc<str>) -> Result<bool, KernelPathError> {
    let Some(link) = find(handle, name).await? else { return Ok(false) };
    if !link.veth {
        return Err(KernelPathError::Taken { name: Arc::clone(name) });
    }
    let refused = |source| KernelPathError::Refused { what: format!("remove the old {name}"), source };
    handle.link().del(link.index).execute().await.map_err(refused).map(|()| true)
}

/// Settings of the two interfaces, before they are set up. See `Documentation/networking/ip-sysctl.rst`.
fn configure(kernel_end: &str, workers_end: &str) -> Result<(), KernelPathError> {
    // The larger of `all` and the interface's own counts. Where `all` is strict, loose (2) is the least that accepts
    // a packet whose way back leads by another interface.
    let strict =
        fs::read_to_string("/proc/sys/net/ipv4/conf/all/rp_filter").is_ok_and(|all| all.trim() == "1");
    write("ipv4", kernel_end, "rp_filter", if strict { "2" } else { "0" })?;
    if !Path::new("/proc/sys/net/ipv6").exists() {
        return Ok(());
    }
    // No link-local address (hence no neighbour discovery of its own), nothing from router advertisements. IPv6 as
    // such stays on at the kernel's end: it has to receive and forward.
    write("ipv6", kernel_end, "addr_gen_mode", "1")?;
    write("ipv6", kernel_end, "accept_ra", "0")?;
    write("ipv6", kernel_end, "router_solicitations", "0")?;
    write("ipv6", workers_end, "disable_ipv6", "1")
}

/// Whether the kernel filters by the way back (`net.ipv4.conf.all.rp_filter`) on all interfaces.
fn is_filtered() -> bool {
    fs::read_to_string("/proc/sys/net/ipv4/conf/all/rp_filter").is_ok_and(|all| all.trim() != "0")
}

fn write(family: &str, interface: &str, key: &str, value: &str) -> Result<(), KernelPathError> {
    let path = format!("/proc/sys/net/{family}/conf/{interface}/{key}");
    fs::write(&path, value).map_err(|source| KernelPathError::Setting {
        setting: format!("net.{family}.conf.{interface}.{key}"),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_workers_end_is_named_after_the_kernels() {
        for (configured, kernel_end, workers_end) in
            [("weir0", "weir0", "weir1"), ("lb", "lb", "lb1"), ("x10", "x10", "x11")]
        {
            assert_eq!(names(configured), (Arc::from(kernel_end), Arc::from(workers_end)));
        }
    }
}
