//! What watching tells the store.

use std::net::IpAddr;

use super::object::{EndpointSlice, Key, Node, Service, ServiceCidr, Undecodable};
use super::store::Configured;

/// One thing that happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// To the Services.
    Service(Update<Service>),
    /// To the EndpointSlices.
    Slice(Update<EndpointSlice>),
    /// To the own Node; `None` where there is none.
    Node(Option<Node>),
    /// To the ServiceCIDRs; a key's namespace is empty.
    Cidr(Update<ServiceCidr>),
    /// The host's own addresses, by which node ports are reached where `nodePortAddresses` asks for them.
    HostAddresses(Vec<IpAddr>),
    /// To the configuration beside Kubernetes: what it has, Kubernetes has not.
    Configured(Configured),
}

/// What happened to the objects of a kind.
///
/// A list is taken in between [`Self::Restarted`] and [`Self::Complete`], one object at a time. Until it is complete
/// nothing is missed that was there before, so that a list blanks nothing.
#[derive(Clone, Debug)]
pub enum Update<T> {
    /// A list begins.
    Restarted,
    /// An object is there, or is another.
    Applied(T),
    /// An object is gone.
    Deleted(Key),
    /// There is an object that cannot be told from others. It is counted.
    Undecodable(Undecodable),
    /// The list is complete: what was not in it is gone.
    Complete,
}
