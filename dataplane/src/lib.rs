//! The packet engine of Weir and, apart from it, AF_XDP I/O and the worker loop.
//!
//! ```text
//! io (xsk | memory | pcap) --frames--> pipeline --verdicts--> io
//!                                        |
//!      packet (parse) -> flow (known?) -> snapshot (service) -> schedule -> flow (open) -> rewrite
//! ```
//!
//! The engine ([`pipeline::Engine`]) is a function: a batch of frames, the time, a [`snapshot::Snapshot`] and
//! the worker's own state in; a [`verdict::Verdict`] a frame out. It does no I/O, reads no clock, takes no lock
//! and allocates nothing, so the same code runs in production, in `weir replay`, in `weir explain`, in a fuzzer
//! and in a bench.

#![cfg_attr(
    test,
    allow(
        clippy::disallowed_methods,
        clippy::disallowed_types,
        clippy::disallowed_macros,
        reason = "a test may wait, measure and write"
    )
)]

pub mod flow;
pub mod frame;
pub mod ids;
pub mod io;
pub mod lanes;
pub mod packet;
pub mod pipeline;
pub mod prefetch;
pub mod rewrite;
pub mod schedule;
pub mod snapshot;
pub mod state;
pub mod stats;
pub mod time;
pub mod trace;
pub mod verdict;
pub mod wanted;
pub mod wire;
pub mod worker;
