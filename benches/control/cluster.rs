//! A cluster as the API server tells of it: Services of type ClusterIP with ten endpoints each.

use std::net::IpAddr;

use control::source::kubernetes::object::{EndpointSlice, Node, Reduced, Service, Watched};
use testbed::apiserver::objects::{node, numbered, numbered_moved};

/// Endpoints of a Service.
pub(crate) const ENDPOINTS: u32 = 10;
/// Name of the own Node.
pub(crate) const NODE: &str = "node-0";

/// The texts of a Service and of its EndpointSlice.
pub(crate) fn texts(service: u32) -> [String; 2] {
    numbered(service, ENDPOINTS).map(|object| object.to_string())
}

/// The text of a Service's EndpointSlice with its first endpoint at another address, which no other change has.
pub(crate) fn changed(service: u32, change: u32) -> String {
    numbered_moved(service, ENDPOINTS, change).0.to_string()
}

/// The own Node.
pub(crate) fn own_node() -> Node {
    decode(&node(NODE, &[[192, 168, 0, 2].into()], &[]).to_string())
}

/// A Service and its EndpointSlice, as they are read.
pub(crate) fn objects([service, slice]: &[String; 2]) -> (Service, EndpointSlice) {
    (decode(service), decode(slice))
}

/// An object as it is read.
pub(crate) fn decode<T: Reduced>(text: &str) -> T {
    serde_json::from_str::<Watched<T>>(text).unwrap().object.unwrap()
}

/// Where an EndpointSlice's endpoints are.
pub(crate) fn addresses(slice: &EndpointSlice) -> Vec<IpAddr> {
    slice.endpoints.iter().map(|endpoint| endpoint.addr).collect()
}
