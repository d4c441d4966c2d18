//! The Kubernetes source against a double of the API server, over HTTP and TLS.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod credentials;
mod publishing;
mod reading;
mod trouble;
mod world;
