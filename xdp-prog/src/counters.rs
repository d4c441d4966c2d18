//! What the program counts.

use std::sync::Arc;

use libbpf_rs::{MapCore as _, MapFlags, MapHandle};
use zerocopy::IntoBytes as _;

use crate::abi::Counter;

/// The program's counters. Cheap to clone, for any thread; outlives the program, whose last counts it then tells.
#[derive(Clone, Debug)]
pub struct Counters(Arc<MapHandle>);

impl Counters {
    pub(crate) fn new(map: MapHandle) -> Self {
        Self(Arc::new(map))
    }

    /// How many frames met which fate, summed over all cores and interfaces since the program was loaded.
    pub fn read(&self) -> Result<Vec<(Counter, u64)>, libbpf_rs::Error> {
        let read = |counter: &Counter| {
            let cores =
                self.0.lookup_percpu((*counter as u32).as_bytes(), MapFlags::ANY)?.unwrap_or_default();
            let values =
                cores.iter().filter_map(|value| value.first_chunk().copied().map(u64::from_ne_bytes));
            Ok((*counter, values.sum()))
        };
        Counter::ALL.iter().map(read).collect()
    }
}
