//! What others ask over HTTP: is this node healthy, what was counted, has this node a backend of that service.
//!
//! ```text
//! health.listen     /healthz /livez                                    pages::health
//! metrics.listen    /metrics /healthz; with Kubernetes /proxyMode /configz    pages::metrics
//! node ports        anything: how many local endpoints a Service has   node_port
//! ```
//!
//! All of it runs in a thread of its own ([`thread`]), asks nobody who could be slow, and reads what others note: control
//! and the Kubernetes source in [`health::State`] and [`node_port::Checks`], everybody's counters in the registry of
//! [`crate::metrics`]. What a client can cost is bounded by [`listen`].

pub mod health;
pub mod listen;
pub mod node_port;
pub mod pages;
pub mod thread;
