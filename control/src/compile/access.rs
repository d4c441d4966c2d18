//! Who may use services, where clients are, and which services are parts of one.

use std::collections::HashMap;
use std::net::IpAddr;

use dataplane::flow::key::VipKey;
use dataplane::snapshot::{Access, Group, Locality, Networks};
use ipnet::IpNet;

use crate::model::{self, DesiredState, Unicast};

/// The groups of the services so far: the address that their clients are known by, and how many services they have.
#[derive(Debug, Default)]
pub(super) struct Groups<'d>(HashMap<&'d str, (VipKey, u16), ahash::RandomState>);

impl<'d> Groups<'d> {
    /// The place in its group of a service that is reached by `vips`.
    pub(super) fn join(&mut self, service: &'d model::Service, vips: &[VipKey]) -> Option<Group> {
        let (name, first) = (service.group.as_deref()?, vips.first()?);
        let (vip, count) = self.0.entry(name).or_insert((*first, 0));
        let group = Group { vip: *vip, place: *count };
        *count = count.saturating_add(1);
        Some(group)
    }
}

pub(super) fn access(of: &model::Access) -> Access {
    let model::Access { sources, masquerade, when_empty } = of;
    let sources = sources.as_ref().map(|sources| networks(sources.iter().copied()));
    Access { sources, masquerade: *masquerade, when_empty: *when_empty }
}

pub(super) fn locality(desired: &DesiredState) -> Locality {
    let node = desired.node_addresses().iter().copied().map(Unicast::ip).map(IpNet::from);
    Locality {
        local: networks(desired.local().iter().copied()),
        node: networks(node),
        virtual_networks: networks(desired.virtual_networks().iter().copied()),
    }
}

fn networks(list: impl IntoIterator<Item = IpNet>) -> Networks {
    let (mut v4, mut v6) = (Vec::new(), Vec::new());
    for net in list {
        match (net.network(), net.broadcast()) {
            (IpAddr::V4(first), IpAddr::V4(last)) => v4.push((first.to_bits(), last.to_bits())),
            (IpAddr::V6(first), IpAddr::V6(last)) => v6.push((first.to_bits(), last.to_bits())),
            _ => {}
        }
    }
    Networks::new(v4, v6)
}
