//! Random numbers of a bench.

/// Marsaglia's xorshift64*: in no order that a cache could foresee.
pub(crate) struct Random(u64);

impl Random {
    /// The same numbers each time.
    pub(crate) fn new() -> Self {
        Self(0x853c_49e6_748f_ea9b)
    }

    /// A number below `bound`.
    pub(crate) fn below(&mut self, bound: u32) -> u32 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let high = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32;
        ((high * u64::from(bound)) >> 32) as u32
    }
}
