//! A hint to the memory system: fetch this cache line, it is wanted soon.
#![expect(unsafe_code, reason = "the prefetch instruction has no safe wrapper")]

/// Asks for the cache line of `value` to be brought into all cache levels. Never faults, changes nothing.
#[inline(always)]
pub fn prefetch<T: ?Sized>(value: &T) {
    #[cfg(target_arch = "x86_64")]
    {
        use core::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: PREFETCHT0 is a hint that neither faults nor dereferences, and SSE is part of x86_64.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(value).cast()) }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = value;
}
