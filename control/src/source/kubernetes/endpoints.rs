//! Which endpoints of a service port are used: under the traffic policy `Cluster`, and under `Local`.

use std::cmp::Reverse;

use super::object::{Conditions, Endpoint, EndpointSlice, ServicePort};
use super::topology::{Place, Topology, topology};
use crate::model::{Family, Port};

/// An endpoint on one of its ports.
#[derive(Clone, Copy, Debug)]
pub struct Candidate<'a> {
    /// The endpoint.
    pub endpoint: &'a Endpoint,
    /// The port.
    pub port: Port,
    /// Whether it is on the own Node.
    pub local: bool,
    /// Whether it gets new flows under the policy `Cluster`.
    pub cluster: bool,
    /// Whether it gets new flows under the policy `Local`.
    pub near: bool,
}

/// The endpoints of a service port in one family, by address and port.
#[derive(Clone, Debug)]
pub struct Choice<'a> {
    /// All of them, used or not.
    pub candidates: Vec<Candidate<'a>>,
    /// Whether any could be used, wherever it is.
    pub any: bool,
    /// By which hints some are left out under the policy `Cluster`.
    pub topology: Topology,
}

impl Conditions {
    /// It is on its way out and answers still: of use where none is ready.
    fn is_leaving(self) -> bool {
        self.serving && self.terminating
    }
}

impl Candidate<'_> {
    fn conditions(&self) -> Conditions {
        self.endpoint.conditions
    }

    /// Whether it still answers: what it has been sent so far goes on.
    pub fn answers(&self) -> bool {
        self.conditions().ready || self.conditions().serving
    }
}

/// Chooses among the endpoints that `slices` have for a service port, whatever their order.
///
/// Under `Cluster` all that are ready are used, less those that topology hints keep for others; under `Local` those of
/// them that are on the own Node, whatever their hints. Where none is ready, those that are terminating but serving are.
pub fn choose<'a>(
    slices: impl IntoIterator<Item = &'a EndpointSlice>,
    family: Family,
    port: &ServicePort,
    place: &Place<'_>,
) -> Choice<'a> {
    let mut candidates = merge(slices, family, port, place.node);
    let ready = |candidate: &&Candidate<'_>| candidate.conditions().ready;
    let leaving = |candidate: &&Candidate<'_>| candidate.conditions().is_leaving();
    let any_ready = candidates.iter().any(|candidate| ready(&candidate));
    let near_ready = candidates.iter().any(|candidate| candidate.local && ready(&candidate));
    let any = any_ready || candidates.iter().any(|candidate| leaving(&candidate));
    let topology = topology(candidates.iter().filter(ready).map(|candidate| candidate.endpoint), place);
    for candidate in &mut candidates {
        let (is_ready, is_leaving) = (candidate.conditions().ready, candidate.conditions().is_leaving());
        candidate.cluster =
            if any_ready { is_ready && topology.admits(candidate.endpoint, place) } else { is_leaving };
        candidate.near = candidate.local && if near_ready { is_ready } else { is_leaving };
    }
    Choice { candidates, any, topology }
}

/// Every address and port once, in their order: what is said of it more than once is as good as the best of it, above
/// all local.
fn merge<'a>(
    slices: impl IntoIterator<Item = &'a EndpointSlice>,
    family: Family,
    port: &ServicePort,
    node: &str,
) -> Vec<Candidate<'a>> {
    let mut candidates = Vec::new();
    for slice in slices.into_iter().filter(|slice| slice.family == Some(family)) {
        let same = |of: &&super::object::SlicePort| of.name == port.name && of.protocol == port.protocol;
        for of in slice.ports.iter().filter(same) {
            candidates.extend(slice.endpoints.iter().map(|endpoint| Candidate {
                endpoint,
                port: of.port,
                local: endpoint.node.as_deref() == Some(node),
                cluster: false,
                near: false,
            }));
        }
    }
    candidates.sort_unstable_by_key(|candidate| {
        let Conditions { ready, serving, terminating } = candidate.conditions();
        let Endpoint { node, extra, addr, .. } = candidate.endpoint;
        // The last two only so that the order of slices never matters.
        let rank = (candidate.local, ready, serving, !terminating, node.as_deref(), extra.as_deref());
        (*addr, candidate.port, Reverse(rank))
    });
    candidates.dedup_by_key(|candidate| (candidate.endpoint.addr, candidate.port));
    candidates
}

/// Why a candidate gets no new flows under the policy, `Local` where `near`; `None` where it does.
pub fn left_out(candidate: &Candidate<'_>, choice: &Choice<'_>, near: bool) -> Option<&'static str> {
    if near && candidate.near || !near && candidate.cluster {
        return None;
    }
    let Conditions { ready, serving, terminating } = candidate.conditions();
    Some(match (ready, serving, terminating) {
        _ if near && !candidate.local => "is on another node",
        (true, ..) => match choice.topology {
            Topology::Node => "is hinted for other nodes",
            Topology::Zone | Topology::None => "is hinted for other zones",
        },
        (false, true, true) => "is terminating, and others are ready",
        (false, false, true) => "is terminating and not serving",
        (false, _, false) => "is not ready",
    })
}
