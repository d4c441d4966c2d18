//! The desired state that objects from files come to, without a cluster.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use jiff::Timestamp;

use super::event::{Event, Update};
use super::manifest::Object;
use super::notice::Notice;
use super::settings::Settings;
use super::store::{Configured, Store};
use crate::model::{AddressRange, Conflict, DesiredState, Draft, Port, SnatPool};

/// Name of the pool that is made up where there is none.
const POOL: &str = "imagined";

/// What objects come to.
#[derive(Debug)]
pub struct Offline {
    /// The objects.
    pub store: Store,
    /// What is desired with them.
    pub desired: DesiredState,
    /// What is wrong with them.
    pub notices: Vec<Notice>,
}

/// Takes `objects` in, beside what `draft` has. Where the settings have no SNAT pool for masquerading, one is made up, of
/// an address that nothing has. `others` are addresses that it must not be, either.
pub fn desired(
    objects: impl IntoIterator<Item = Object>,
    mut settings: Settings,
    mut draft: Draft,
    others: &[IpAddr],
) -> Result<Offline, Vec<Conflict>> {
    let objects: Vec<_> = objects.into_iter().collect();
    if settings.snat_pool.is_none() {
        let used = objects.iter().flat_map(addresses).chain(others.iter().copied());
        let used = used.chain(settings.node_addresses.iter().copied()).collect();
        draft.pools.retain(|pool| *pool.name != *POOL);
        draft.pools.extend(imagined(&used));
        settings.snat_pool = Some(POOL.into());
    }
    let mut desired = DesiredState::new(draft)?;
    let configured = Configured::of(&desired, &settings);
    let mut store = Store::new(settings, configured, Timestamp::UNIX_EPOCH);
    for object in objects {
        match object {
            Object::Service(service) => store.apply(Event::Service(Update::Applied(service))),
            Object::Slice(slice) => store.apply(Event::Slice(Update::Applied(slice))),
            Object::Cidr(cidr) => store.apply(Event::Cidr(Update::Applied(cidr))),
            Object::Node(node) if node.name == store.settings().node => store.apply(Event::Node(Some(node))),
            Object::Node(_) => {}
        }
    }
    store.apply(Event::Service(Update::Complete));
    store.apply(Event::Slice(Update::Complete));
    let output = store.take_change().unwrap_or_default();
    desired.change(output.change)?;
    Ok(Offline { store, desired, notices: output.notices })
}

/// A pool of one address of each family, from the networks that are for benchmarks (RFC 2544, RFC 5180), which are of no
/// use to anybody else.
fn imagined(used: &HashSet<IpAddr>) -> Option<SnatPool> {
    let v4 = (0xc612_0001..).map(|bits| IpAddr::V4(Ipv4Addr::from_bits(bits)));
    let v6 = ((0x2001_0002 << 96) + 1..).map(|bits| IpAddr::V6(Ipv6Addr::from_bits(bits)));
    let is_free = |ip: &IpAddr| !used.contains(ip);
    let (v4, v6) = ({ v4 }.find(is_free)?, { v6 }.find(is_free)?);
    let ranges = vec![AddressRange::new(v4, v4).ok()?, AddressRange::new(v6, v6).ok()?];
    Some(SnatPool { name: POOL.into(), ranges, low: Port::new(1024)?, high: Port::new(u16::MAX)? })
}

/// Every address of an object.
fn addresses(object: &Object) -> Vec<IpAddr> {
    match object {
        Object::Service(service) => {
            let ingress = service.ingress.iter().map(|ingress| ingress.ip);
            service.cluster_ips.iter().chain(&service.external_ips).copied().chain(ingress).collect()
        }
        Object::Slice(slice) => slice.endpoints.iter().map(|endpoint| endpoint.addr).collect(),
        Object::Node(node) => node.internal.iter().chain(&node.external).copied().collect(),
        Object::Cidr(_) => Vec::new(),
    }
}
