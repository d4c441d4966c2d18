//! Changes of a desired state: what a source hands on, so that the rest need not be looked at.

use std::sync::Arc;

use ipnet::IpNet;

use super::{Service, Unicast};

/// What changes in a desired state. Removals come first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// Names of services that go. One that is not there, or is the configuration's, is no fault.
    pub remove: Vec<Arc<str>>,
    /// Services that are new, or take the place of those with their names. Each name once.
    pub put: Vec<Service>,
    /// What services share, where it changes.
    pub common: Option<Common>,
}

/// What a source says besides services. It is beside what the configuration says of the same.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Common {
    /// The node's own addresses, on which node ports are reached.
    pub node_addresses: Vec<Unicast>,
    /// Where local clients are: see [`super::Draft::local`].
    pub local: Vec<IpNet>,
    /// Networks of virtual addresses: see [`super::Draft::virtual_networks`].
    pub virtual_networks: Vec<IpNet>,
}

impl Change {
    /// Whether nothing changes.
    pub fn is_empty(&self) -> bool {
        self.remove.is_empty() && self.put.is_empty() && self.common.is_none()
    }
}
