//! What the XDP program counts.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use xdp_prog::Counters;

use super::write::{Labels, Writer};

/// Reads the program's counters from the kernel when asked.
#[derive(Debug)]
pub(super) struct Xdp(pub Counters);

impl Collector for Xdp {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let counts = self.0.read().unwrap_or_else(|error| {
            tracing::warn!(%error, "the XDP program's counters cannot be read");
            Vec::new()
        });
        let rows = counts.iter().map(|(counter, count)| (Labels([("fate", counter.name().into())]), *count));
        Writer(encoder).counters("weir_xdp_frames", "Frames that the XDP program saw, by what it did", rows)
    }
}
