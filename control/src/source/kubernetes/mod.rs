//! Kubernetes as a source: Services, EndpointSlices and the own Node become services of the desired state.

pub mod annotations;
mod bucket;
pub mod client;
pub mod convert;
pub mod emit;
pub mod endpoints;
pub mod event;
pub mod exposure;
pub mod feed;
mod lines;
pub mod manifest;
pub mod notice;
pub mod object;
pub mod offline;
pub mod publish;
pub mod reasons;
pub mod settings;
pub mod status;
pub mod store;
pub mod thread;
pub mod topology;
pub mod trouble;
mod watch;
mod wire;
