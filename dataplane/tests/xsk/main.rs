//! AF_XDP sockets and workers on veth pairs in network namespaces of the test's own.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(clippy::indexing_slicing, clippy::cast_possible_truncation, reason = "a test fails by panicking")]
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_macros,
    clippy::disallowed_types,
    reason = "a test may wait and write"
)]

mod net;
mod opening;
mod sending;
mod workers;
