//! Kubernetes as a source: Services, EndpointSlices and the own Node become services of the desired state.

pub mod event;
pub mod notice;
pub mod object;
pub mod settings;
