//! The schedulers: which backend takes a new flow. One file a scheduler.
//!
//! Formulas and iteration order are the kernel's (`net/netfilter/ipvs/ip_vs_*.c`).

use crate::flow::key::FlowKey;
use crate::snapshot::{Backend, Service};
use crate::state::State;

/// A scheduler with the tables that it needs, compiled for one set of backends.
#[derive(Clone, Debug)]
pub enum Scheduler {
    /// Round robin.
    Rr,
}

/// The backend that takes the flow which `key` (client to VIP) opens; `None` where none may.
pub fn schedule<'a>(service: &'a Service, _state: &State, _key: &FlowKey) -> Option<&'a Backend> {
    service.backends.first()
}
